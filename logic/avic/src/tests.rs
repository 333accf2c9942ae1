//! The protocol under loom: the crate's own entry on loom's memory, a sender whose CPU looks the target up, and the target's thread
//! as the run loop has it. No vector is stuck: its owner took it, or a doorbell, an IPI, a request or a wake-up is on its way to one
//! who will look. Each rule of the crate's head is taken away once, and loom finds the loss.

use crate::entry::{Entry, Memory, Word};
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release, SeqCst};
use exitless_x86::svm::avic::PhysicalEntry;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicBool, AtomicU64, fence};
use loom::thread;

impl Word for AtomicU64 {
    fn store(&self, v: u64) {
        self.store(v, Release);
    }
    fn swap(&self, v: u64) {
        self.swap(v, AcqRel);
    }
}

/// Loom's memory, with the barrier or without.
struct Model<const BARRIER: bool>;

impl<const BARRIER: bool> Memory for Model<BARRIER> {
    type Word = AtomicU64;
    fn barrier() {
        if BARRIER {
            fence(SeqCst);
        }
    }
}

const PAGE: u64 = 0x1000;

/// What the sender's side does, and leaves out.
#[derive(Clone, Copy)]
struct Sender {
    /// Its CPU takes an IsRunning that was just cleared for set (erratum 1235).
    stale: bool,
    /// An incomplete IPI is told.
    tells: bool,
    /// Software rings only if the target's entries are still with AVIC after they were seen to be under way.
    asks_again: bool,
}

const REAL: Sender = Sender { stale: false, tells: true, asks_again: true };

/// One vCPU: its entry, the bit in its backing page, and what `exitless_vcpu::VcpuShared` has.
struct World<const B: bool> {
    entry: Entry<Model<B>>,
    irr: AtomicBool,
    /// Pending at each CPU.
    doorbells: [AtomicBool; 2],
    ipi: AtomicBool,
    in_guest: AtomicBool,
    /// Entries are with AVIC.
    delivers: AtomicBool,
    on: AtomicBool,
    request: AtomicBool,
    asleep: AtomicBool,
    woken: AtomicBool,
}

impl<const B: bool> World<B> {
    /// In the guest on CPU 0; `ipis`: hardware senders may see that.
    fn new(ipis: bool) -> Arc<Self> {
        let w = Self {
            entry: Entry(AtomicU64::new(0)),
            irr: AtomicBool::new(false),
            doorbells: core::array::from_fn(|_| AtomicBool::new(false)),
            ipi: AtomicBool::new(false),
            in_guest: AtomicBool::new(true),
            delivers: AtomicBool::new(true),
            on: AtomicBool::new(false),
            request: AtomicBool::new(false),
            asleep: AtomicBool::new(false),
            woken: AtomicBool::new(false),
        };
        w.entry.admit(PAGE);
        if ipis {
            w.entry.run(PAGE, 0);
        }
        Arc::new(w)
    }

    // --- the sender ---

    /// What a CPU does with a write of the ICR, and software with the exit.
    fn send(&self, how: Sender) {
        let early = self.look_up();
        self.irr.swap(true, SeqCst);
        fence(SeqCst);
        let entry = if how.stale { early } else { self.look_up() };
        if entry.is_running() {
            self.ring(usize::from(entry.host_id()));
        } else if how.tells {
            self.tell(how);
        }
    }

    /// Software posts.
    fn post(&self, how: Sender) {
        self.irr.swap(true, SeqCst);
        self.tell(how);
    }

    /// A swap, because loom orders plain stores less than memory does.
    fn ring(&self, cpu: usize) {
        self.doorbells[cpu].swap(true, AcqRel);
    }

    fn look_up(&self) -> PhysicalEntry {
        PhysicalEntry::from_bits(self.entry.0.load(Acquire))
    }

    /// As `VcpuObj::notify` in `linux/module` does it: `vcpu/tests/loom_posted.rs` has its rules.
    fn tell(&self, how: Sender) {
        if self.delivers.load(Acquire) {
            self.on.swap(true, AcqRel);
            fence(SeqCst);
            if self.in_guest.load(Acquire) {
                if how.asks_again && !self.delivers.load(Acquire) {
                    return self.ipi.store(true, Release);
                }
                // Where the thread is now; a CPU outside of guest mode ignores it.
                return (0..2).for_each(|cpu| self.ring(cpu));
            }
        }
        self.request.swap(true, AcqRel);
        fence(SeqCst);
        if self.asleep.load(Acquire) {
            self.woken.store(true, Release);
        } else if self.in_guest.load(Acquire) {
            self.ipi.store(true, Release);
        }
    }

    // --- the owner ---

    /// Behind an exit that ends the slice. Interrupts are on then.
    fn leave(&self) {
        self.in_guest.store(false, Release);
        self.entry.stop(PAGE);
        self.ipi.swap(false, AcqRel);
    }

    /// A slice begins on `cpu` and enters the guest, or is called off.
    fn enter(&self, cpu: u32, run: impl Fn(&Self)) -> End {
        self.in_guest.store(true, Release);
        fence(SeqCst);
        if self.request.load(Acquire) {
            self.in_guest.store(false, Release);
            return End::Awake;
        }
        run(self);
        if self.on.load(Relaxed) {
            self.on.swap(false, AcqRel);
            fence(SeqCst);
        }
        // VMRUN: what was rung before is ignored.
        self.doorbells[cpu as usize].swap(false, AcqRel);
        if self.irr.load(Acquire) { End::Took } else { End::InGuest(cpu) }
    }

    /// Its entries are without AVIC from now on: the next one, which software looks for.
    fn cease(&self) -> End {
        self.leave();
        self.delivers.store(false, Release);
        if self.irr.load(Acquire) {
            return End::Took;
        }
        self.in_guest.store(true, Release);
        fence(SeqCst);
        if self.request.load(Acquire) || self.on.load(Acquire) {
            return End::Awake;
        }
        End::Without
    }

    /// HLT: `run::wait` and `Host::block`.
    fn sleep(&self) -> End {
        if self.on.load(Relaxed) {
            self.on.swap(false, AcqRel);
            fence(SeqCst);
        }
        if self.irr.load(Acquire) {
            return End::Took;
        }
        self.falls_asleep()
    }

    fn falls_asleep(&self) -> End {
        self.asleep.store(true, Release);
        fence(SeqCst);
        if self.request.load(Acquire) || self.on.load(Acquire) {
            self.asleep.store(false, Release);
            return End::Awake;
        }
        End::Asleep
    }
}

/// Where the owner ended up.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    /// It has seen the vector.
    Took,
    InGuest(u32),
    /// In the guest without AVIC.
    Without,
    /// In the loop: it looks at requests and announcements again.
    Awake,
    Asleep,
}

/// All interleavings of one sender with `owner`, which is in the guest on CPU 0.
fn race<const B: bool>(
    how: Sender,
    ipis: bool,
    owner: impl Fn(&World<B>) -> End + Copy + Send + Sync + 'static,
) {
    race_with::<B>(ipis, move |w| w.send(how), owner);
}

fn race_with<const B: bool>(
    ipis: bool,
    send: impl Fn(&World<B>) + Copy + Send + Sync + 'static,
    owner: impl Fn(&World<B>) -> End + Copy + Send + Sync + 'static,
) {
    loom::model(move || {
        let w = World::<B>::new(ipis);
        let other = w.clone();
        let sender = thread::spawn(move || send(&other));
        let end = owner(&w);
        sender.join().unwrap();
        let told = match end {
            End::Took => true,
            End::InGuest(cpu) => w.doorbells[cpu as usize].load(SeqCst) || w.ipi.load(SeqCst),
            End::Without => w.ipi.load(SeqCst),
            End::Awake => w.request.load(SeqCst) || w.on.load(SeqCst),
            End::Asleep => w.woken.load(SeqCst),
        };
        assert!(told || !w.irr.load(SeqCst), "lost interrupt");
    });
}

fn halts<const B: bool>(w: &World<B>) -> End {
    w.leave();
    w.sleep()
}

/// The thread goes to CPU 1.
fn moves<const B: bool>(w: &World<B>) -> End {
    w.leave();
    w.enter(1, |w| w.entry.run(PAGE, 1))
}

/// An exit that is answered at once; the entry stays.
fn enters_again<const B: bool>(w: &World<B>) -> End {
    w.enter(0, |_| ())
}

#[test]
fn nothing_is_lost_at_sleep() {
    race::<true>(REAL, true, halts);
}

#[test]
fn nothing_is_lost_on_the_way_to_another_cpu() {
    race::<true>(REAL, true, moves);
}

#[test]
fn nothing_is_lost_at_an_entry() {
    race::<true>(REAL, true, enters_again);
}

/// IsRunning never set: every IPI exits.
#[test]
fn nothing_is_lost_without_ipis() {
    for stale in [false, true] {
        let how = Sender { stale, ..REAL };
        race::<true>(how, false, halts);
        race::<true>(how, false, |w| {
            w.leave();
            w.enter(1, |_| ())
        });
    }
}

/// Entries without AVIC, where a doorbell means nothing: for a while (an interrupt of the 8259's, say), or for good.
#[test]
fn nothing_is_lost_without_avic() {
    for ipis in [true, false] {
        race::<true>(REAL, ipis, World::cease);
    }
    race_with::<true>(false, |w| w.post(REAL), World::cease);
}

/// The guest disables its APIC and halts: what was sent before is in the IRR, what comes later is software's to refuse.
#[test]
fn a_retired_entry_is_not_rung() {
    race::<true>(REAL, true, |w| {
        w.leave();
        w.entry.retire();
        w.sleep()
    });
}

// --- each rule taken away once ---

#[test]
#[should_panic(expected = "lost interrupt")]
fn barrier_of_stop_is_needed() {
    race::<false>(REAL, true, halts);
}

#[test]
#[should_panic(expected = "lost interrupt")]
fn the_look_comes_after_stop() {
    race::<true>(REAL, true, |w| {
        w.in_guest.store(false, Release);
        fence(SeqCst);
        if w.irr.load(Acquire) {
            return End::Took;
        }
        w.entry.stop(PAGE);
        w.falls_asleep()
    });
}

#[test]
#[should_panic(expected = "lost interrupt")]
fn an_entry_is_one_store() {
    race::<true>(REAL, true, |w| {
        w.leave();
        w.enter(1, |w| {
            w.entry.run(PAGE, 0);
            w.entry.run(PAGE, 1);
        })
    });
}

#[test]
#[should_panic(expected = "lost interrupt")]
fn software_asks_again_before_it_rings() {
    race_with::<true>(false, |w| w.post(Sender { asks_again: false, ..REAL }), World::cease);
}

#[test]
#[should_panic(expected = "lost interrupt")]
fn an_incomplete_ipi_is_told() {
    race::<true>(Sender { tells: false, ..REAL }, true, halts);
}

#[test]
#[should_panic(expected = "lost interrupt")]
fn erratum_1235_loses_with_ipis() {
    race::<true>(Sender { stale: true, ..REAL }, true, halts);
}

// --- the machine's memory ---

#[test]
fn each_word() {
    let entry: Entry = bytemuck::Zeroable::zeroed();
    let word = || entry.0.load(SeqCst);
    entry.admit(0x12_3456_7000);
    assert_eq!(word(), 1 << 63 | 0x12_3456_7000);
    entry.run(0x12_3456_7000, 0x1_0abc);
    assert_eq!(word(), 3 << 62 | 0x12_3456_7abc, "of the host's id as much as there is room for");
    entry.stop(0x12_3456_7000);
    assert_eq!(word(), 1 << 63 | 0x12_3456_7000);
    entry.retire();
    assert_eq!(word(), 0);
}
