//! The protocol under loom: the crate's own code on loom's memory, against senders in software and in hardware.
//!
//! What must hold at the end of every interleaving: a request that is still in the PIR has its notification on the way to the
//! place where the owner waits for it. Each rule of the crate's head is taken away once, and loom finds the loss.

use crate::descriptor::{Block, Descriptor, Flag, Place, Posted};
use crate::memory::{Barrier, Memory, Word};
use core::sync::atomic::Ordering;
use exitless_x86::vmx::posted::Control;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicBool, AtomicU64, fence};
use loom::thread;

impl Word for AtomicU64 {
    fn load(&self, order: Ordering) -> u64 {
        self.load(order)
    }
    fn fetch_or(&self, bits: u64, order: Ordering) -> u64 {
        self.fetch_or(bits, order)
    }
    fn fetch_and(&self, bits: u64, order: Ordering) -> u64 {
        self.fetch_and(bits, order)
    }
    fn swap(&self, new: u64, order: Ordering) -> u64 {
        self.swap(new, order)
    }
    fn exchange(&self, old: u64, new: u64) -> Result<u64, u64> {
        // Weak exchanges that fail for no reason are no interleaving of their own: the loop comes back to the same state.
        self.compare_exchange(old, new, Ordering::AcqRel, Ordering::Acquire)
    }
}

/// Loom's memory; `WITHOUT` names the barrier that is missing (0: none).
#[derive(Clone, Copy)]
struct Model<const WITHOUT: u8>;

const LOAD: u8 = Barrier::Load as u8 + 1;
const BLOCK: u8 = Barrier::Block as u8 + 1;
const TAKE: u8 = Barrier::Take as u8 + 1;

impl<const WITHOUT: u8> Memory for Model<WITHOUT> {
    type Word = AtomicU64;
    fn barrier(at: Barrier) {
        if at as u8 + 1 != WITHOUT {
            fence(Ordering::SeqCst);
        }
    }
}

const NOTIFY: u8 = 0xf2;
const WAKE_UP: u8 = 0xf1;
const CPU0: Place = Place { vector: NOTIFY, destination: 0 };
const CPU1: Place = Place { vector: NOTIFY, destination: 1 };
const LIST0: Place = Place { vector: WAKE_UP, destination: 0 };
const LIST1: Place = Place { vector: WAKE_UP, destination: 1 };
const VECTOR: u8 = 0x41;
const OTHER: u8 = 0x42;

type Pir<const W: u8> = Descriptor<Model<W>>;

/// The descriptor, and which notifications were sent.
struct World<const W: u8> {
    d: Pir<W>,
    sent: [AtomicBool; 4],
}

impl<const W: u8> World<W> {
    fn new() -> Arc<Self> {
        let d = Descriptor {
            pir: core::array::from_fn(|_| AtomicU64::new(0)),
            control: AtomicU64::new(2),
            flags: core::array::from_fn(|_| AtomicU64::new(0)),
            reserved: 0,
        };
        Arc::new(Self { d, sent: core::array::from_fn(|_| AtomicBool::new(false)) })
    }

    /// A vCPU that runs on CPU 0, nothing pending.
    fn running() -> Arc<Self> {
        let w = Self::new();
        assert!(!w.d.load(CPU0));
        w
    }

    fn line(&self, p: Place) -> &AtomicBool {
        &self.sent[usize::from(p.vector == WAKE_UP) * 2 + p.destination as usize]
    }

    fn send(&self, p: Posted) {
        if let Posted::Notify(place) = p {
            self.line(place).store(true, Ordering::Release);
        }
    }

    fn software(&self, vector: u8) {
        self.send(self.d.post(vector));
    }

    /// Interrupt remapping and IPI virtualisation: the request bit with a locked cycle, then a look at the control word, then ON.
    fn hardware(&self, vector: u8) {
        let d = &self.d;
        d.pir[usize::from(vector / 64)].fetch_or(1 << (vector % 64), Ordering::SeqCst);
        fence(Ordering::SeqCst);
        let mut word = d.control.load(Ordering::Relaxed);
        loop {
            let c = Control::from_bits(word);
            if c.outstanding() || c.suppress() {
                return;
            }
            match d.control.exchange(word, c.with_outstanding(true).into_bits()) {
                Ok(_) => {
                    return self
                        .send(Posted::Notify(Place { vector: c.vector(), destination: c.destination() }));
                }
                Err(now) => word = now,
            }
        }
    }

    /// A guest with a window to the descriptor (`docs/protocols/shared-descriptor.md`): locked instructions, and one load.
    fn guest(&self, vector: u8) {
        let d = &self.d;
        if d.pir[usize::from(vector / 64)].fetch_or(1 << (vector % 64), Ordering::SeqCst) & 1 << (vector % 64)
            != 0
            || d.control.fetch_or(1, Ordering::SeqCst) & 1 != 0
        {
            return;
        }
        let c = Control::from_bits(d.control.load(Ordering::Relaxed));
        if !c.suppress() {
            self.send(Posted::Notify(Place { vector: c.vector(), destination: c.destination() }));
        }
    }

    fn requested(&self) -> bool {
        self.d.pir.iter().any(|w| w.load(Ordering::Acquire) != 0)
    }

    fn notified(&self, p: Place) -> bool {
        self.line(p).load(Ordering::Acquire)
    }

    /// The owner is in the guest at `p`, or asleep on the list of `p`.
    fn check_waiting(&self, p: Place) {
        assert!(!self.requested() || self.notified(p), "lost interrupt");
    }
}

/// Which senders compete.
#[derive(Clone, Copy)]
enum Senders {
    Software,
    Hardware,
    /// A sibling with a window to the descriptor.
    Guest,
    /// Two of them, with two vectors.
    Both,
    /// Two of them with the same vector.
    Same,
    /// A sibling, and the host, with the same vector.
    Beside,
}

const ALL: [Senders; 6] =
    [Senders::Software, Senders::Hardware, Senders::Guest, Senders::Both, Senders::Same, Senders::Beside];

impl Senders {
    /// Three threads with three switches take minutes.
    fn switches(self) -> usize {
        match self {
            Self::Software | Self::Hardware | Self::Guest => 4,
            Self::Both | Self::Same | Self::Beside => 2,
        }
    }

    fn start<const W: u8>(self, world: &Arc<World<W>>) -> std::vec::Vec<thread::JoinHandle<()>> {
        let (a, b) = (world.clone(), world.clone());
        match self {
            Self::Software => std::vec![thread::spawn(move || a.software(VECTOR))],
            Self::Hardware => std::vec![thread::spawn(move || a.hardware(VECTOR))],
            Self::Guest => std::vec![thread::spawn(move || a.guest(VECTOR))],
            Self::Beside => {
                std::vec![thread::spawn(move || a.guest(VECTOR)), thread::spawn(move || b.software(VECTOR))]
            }
            Self::Both => {
                std::vec![thread::spawn(move || a.software(VECTOR)), thread::spawn(move || b.hardware(OTHER))]
            }
            Self::Same => {
                std::vec![
                    thread::spawn(move || a.software(VECTOR)),
                    thread::spawn(move || b.software(VECTOR))
                ]
            }
        }
    }
}

/// Bounded by forced switches of threads: unbounded runs take hours, and three find each of the losses below.
fn explore(switches: usize, f: impl Fn() + Sync + Send + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(switches);
    model.check(f);
}

/// Runs `owner` on a vCPU that runs on CPU 0, against the senders; then `check` with what the owner made of it.
fn race<const W: u8, T: 'static>(
    senders: Senders,
    owner: impl Fn(&World<W>) -> T + Copy + Send + Sync + 'static,
    check: impl Fn(&World<W>, T) + Copy + Send + Sync + 'static,
) {
    explore(senders.switches(), move || {
        let world = World::<W>::running();
        let threads = senders.start(&world);
        let outcome = owner(&world);
        threads.into_iter().for_each(|t| t.join().unwrap());
        check(&world, outcome);
    });
}

/// Takes what is there and enters the guest: what comes later must interrupt CPU 0.
fn takes<const W: u8>(w: &World<W>) {
    let _ = w.d.take(&mut [0; 4]);
}

fn in_guest<const W: u8>(w: &World<W>, (): ()) {
    w.check_waiting(CPU0);
}

/// Sleeps on the list of CPU 1 if it may.
fn blocks<const W: u8>(w: &World<W>) -> Block {
    w.d.block(LIST1)
}

fn asleep<const W: u8>(w: &World<W>, b: Block) {
    match b {
        Block::Sleep => w.check_waiting(LIST1),
        Block::Pending => assert!(w.d.has_pending(), "awake for nothing"),
    }
}

/// Is preempted, comes back on CPU 1, takes what is there and enters the guest.
fn moves<const W: u8>(w: &World<W>) {
    w.d.put();
    let _ = w.d.load(CPU1);
    let _ = w.d.take(&mut [0; 4]);
}

fn on_cpu1<const W: u8>(w: &World<W>, (): ()) {
    w.check_waiting(CPU1);
}

#[test]
fn taker() {
    ALL.into_iter().for_each(|s| race::<0, _>(s, takes, in_guest));
}

#[test]
fn blocker() {
    ALL.into_iter().for_each(|s| race::<0, _>(s, blocks, asleep));
}

/// Waits with a request that it has looked at and left (its priority is too low): it sleeps, and what comes then wakes it.
#[test]
fn waits_over_what_it_left() {
    const LEFT: u8 = 0x21;
    let all = |w: &World<0>| [0, 1, 2, 3].map(|i| w.d.requested(i));
    for s in ALL {
        race::<0, _>(
            s,
            move |w| {
                w.d.put_back(0, 1 << LEFT);
                let _ = w.d.settle();
                (all(w), w.d.wait(LIST1))
            },
            move |w, (looked_at, b)| match b {
                Block::Sleep => assert!(all(w) == looked_at || w.notified(LIST1), "lost interrupt"),
                Block::Pending => assert!(w.d.outstanding(), "awake for nothing"),
            },
        );
    }
    explore(1, || {
        let w = World::<0>::running();
        w.d.put_back(0, 1 << LEFT);
        assert_eq!(w.d.wait(LIST1), Block::Sleep, "by what it left it would never sleep");
        w.d.put();
        assert_eq!(w.d.wait(LIST1), Block::Pending, "from out it has not looked");
    });
}

/// Out (to user space, say) and then asleep: SN goes away in the exchange that turns notifications into wake-ups.
#[test]
fn blocker_from_out() {
    for s in ALL {
        race::<0, _>(
            s,
            |w| {
                w.d.put();
                blocks(w)
            },
            asleep,
        );
    }
}

/// Preempted and back on the same CPU.
#[test]
fn preempter() {
    for s in ALL {
        race::<0, _>(
            s,
            |w| {
                w.d.put();
                let _ = w.d.load(CPU0);
                takes(w)
            },
            in_guest,
        );
    }
}

/// Preempted and not back yet: nothing may be forgotten, by ON or by PIR.
#[test]
fn preempted_for_good() {
    for s in ALL {
        race::<0, _>(
            s,
            |w| w.d.put(),
            |w, ()| {
                assert!(!w.requested() || w.d.has_pending());
                assert_eq!(w.d.load(CPU1), w.requested(), "load tells whether something waits");
            },
        );
    }
}

#[test]
fn mover() {
    ALL.into_iter().for_each(|s| race::<0, _>(s, moves, on_cpu1));
}

/// Wakes up from a list (a signal, say) and runs on the other CPU.
#[test]
fn blocker_that_comes_back() {
    for s in ALL {
        race::<0, _>(
            s,
            |w| {
                let _ = w.d.block(LIST0);
                let _ = w.d.load(CPU1);
                takes(w)
            },
            on_cpu1,
        );
    }
}

/// The CPU of a sleeping vCPU's list goes away while others post: the owner is woken, and waits on another CPU's list. A notification that
/// went to the old one is nobody's any more, but ON is there.
#[test]
fn its_cpu_goes_away() {
    for s in ALL {
        explore(s.switches(), move || {
            let world = World::<0>::running();
            assert_eq!(world.d.wait(LIST0), Block::Sleep);
            let threads = s.start(&world);
            // Woken, it comes to CPU 1, looks at what was announced, and at the requests.
            let _ = world.d.load(CPU1);
            let _ = world.d.settle();
            let looked_at = [0, 1, 2, 3].map(|i| world.d.requested(i));
            let slept = world.d.wait(LIST1);
            threads.into_iter().for_each(|t| t.join().unwrap());
            let now = [0, 1, 2, 3].map(|i| world.d.requested(i));
            assert!(slept == Block::Pending || now == looked_at || world.notified(LIST1), "lost interrupt");
        });
    }
}

/// The handler that runs for a vector sees what its sender stored before, also when the sender coalesced.
#[test]
fn posts_publish() {
    explore(3, || {
        let world = World::<0>::running();
        world.software(VECTOR);
        let data = Arc::new(AtomicU64::new(0));
        let sender = {
            let (world, data) = (world.clone(), data.clone());
            thread::spawn(move || {
                data.store(1, Ordering::Relaxed);
                world.d.post(VECTOR)
            })
        };
        let mut taken = [0; 4];
        world.d.take(&mut taken);
        let seen = data.load(Ordering::Relaxed);
        let coalesced = sender.join().unwrap() == Posted::Coalesced;
        assert_ne!(taken[1] & 2, 0);
        assert!(!coalesced || seen == 1, "the handler ran without the data");
    });
}

// --- each rule taken away once ---

#[test]
#[should_panic(expected = "lost interrupt")]
fn barrier_of_load_is_needed() {
    race::<LOAD, _>(Senders::Hardware, moves, on_cpu1);
}

#[test]
#[should_panic(expected = "lost interrupt")]
fn barrier_of_block_is_needed() {
    race::<BLOCK, _>(
        Senders::Hardware,
        |w| {
            w.d.put();
            blocks(w)
        },
        asleep,
    );
}

#[test]
#[should_panic(expected = "lost interrupt")]
fn barrier_of_take_is_needed() {
    // Hardware that finds ON set sends nothing: what it requested must be in what is taken.
    explore(3, || {
        let world = World::<TAKE>::new();
        assert!(!world.d.load(CPU0));
        world.d.control.fetch_or(1, Ordering::SeqCst);
        let threads = Senders::Hardware.start(&world);
        takes(&world);
        threads.into_iter().for_each(|t| t.join().unwrap());
        in_guest(&world, ());
    });
}

/// The same with its barrier: the model is right, not only easily broken.
#[test]
fn barrier_of_take_suffices() {
    explore(3, || {
        let world = World::<0>::new();
        assert!(!world.d.load(CPU0));
        world.d.control.fetch_or(1, Ordering::SeqCst);
        let threads = Senders::Hardware.start(&world);
        takes(&world);
        threads.into_iter().for_each(|t| t.join().unwrap());
        in_guest(&world, ());
    });
}

/// A sender that puts NV and NDST together from two reads. `late` is the one it takes from the read-modify-write that set ON.
fn split_sender(w: &World<0>, late: impl Fn(Control, Control) -> Place) {
    let d = &w.d;
    d.pir[1].fetch_or(2, Ordering::SeqCst);
    let early = Control::from_bits(d.control.load(Ordering::SeqCst));
    let now = Control::from_bits(d.control.fetch_or(1, Ordering::SeqCst));
    if !now.outstanding() {
        w.send(Posted::Notify(late(early, now)));
    }
}

fn split(late: impl Fn(Control, Control) -> Place + Copy + Send + Sync + 'static) {
    explore(3, move || {
        let world = World::<0>::running();
        let w = world.clone();
        let sender = thread::spawn(move || split_sender(&w, late));
        let outcome = blocks(&world);
        sender.join().unwrap();
        asleep(&world, outcome);
    });
}

/// The new NV with the old NDST: wakes the list of a CPU that the vCPU is not on.
#[test]
#[should_panic(expected = "lost interrupt")]
fn destination_is_of_the_same_read() {
    split(|early, now| Place { vector: now.vector(), destination: early.destination() });
}

/// The old NV with the new NDST: interrupts a CPU where nobody runs, and wakes nobody.
#[test]
#[should_panic(expected = "lost interrupt")]
fn vector_is_of_the_same_read() {
    split(|early, now| Place { vector: early.vector(), destination: now.destination() });
}

/// Both from the read that set ON: the two tests above fail for the right reason.
#[test]
fn one_read_of_both_suffices() {
    split(|_, now| Place { vector: now.vector(), destination: now.destination() });
}

/// A sibling that reads the place before it sets ON (`docs/protocols/shared-descriptor.md`: "once, now").
#[test]
#[should_panic(expected = "lost interrupt")]
fn a_guest_looks_at_the_place_behind_on() {
    explore(3, || {
        let world = World::<0>::running();
        let w = world.clone();
        let sender = thread::spawn(move || {
            w.d.pir[1].fetch_or(2, Ordering::SeqCst);
            let early = Control::from_bits(w.d.control.load(Ordering::SeqCst));
            if w.d.control.fetch_or(1, Ordering::SeqCst) & 1 == 0 && !early.suppress() {
                w.send(Posted::Notify(Place { vector: early.vector(), destination: early.destination() }));
            }
        });
        let outcome = blocks(&world);
        sender.join().unwrap();
        asleep(&world, outcome);
    });
}

/// A sibling that stops in its sequence, behind the request or behind ON; the host sends at the same time, and notifies as it owes.
fn stops_and_host_sends(on: bool, vector: u8, shown: bool) {
    explore(3, move || {
        let world = World::<0>::running();
        let [guest, host] = [world.clone(), world.clone()];
        let guest = thread::spawn(move || {
            if guest.d.request(vector) && on {
                let _ = guest.d.announce();
            }
        });
        let host = thread::spawn(move || {
            if (host.d.request(VECTOR) || shown) && host.d.announce().owes(|| shown) {
                host.line(CPU0).store(true, Ordering::Release);
            }
        });
        takes(&world);
        guest.join().unwrap();
        host.join().unwrap();
        let due = world.d.requested(usize::from(VECTOR / 64)) & 1 << (VECTOR % 64) != 0;
        assert!(!due || world.notified(CPU0), "lost interrupt");
    });
}

#[test]
fn a_guest_that_stops_mutes_nobody() {
    for (on, vector) in [(true, OTHER), (true, VECTOR), (false, VECTOR)] {
        stops_and_host_sends(on, vector, true);
    }
}

#[test]
#[should_panic(expected = "lost interrupt")]
fn who_stops_behind_on_would_mute_the_host() {
    stops_and_host_sends(true, OTHER, false);
}

#[test]
#[should_panic(expected = "lost interrupt")]
fn who_stops_before_on_would_too() {
    stops_and_host_sends(false, VECTOR, false);
}

/// A guest that writes what it likes into the descriptor while the owner moves, sleeps and comes back. The owner never waits for it; once it
/// has stopped, and the owner was out and in again, the descriptor is as good as any.
#[test]
fn who_scribbles_is_waited_for_by_nobody() {
    for garbage in [0, !0, 1, 2, 0x00f2_0000 | 7 << 32] {
        explore(3, move || {
            let world = World::<0>::running();
            let w = world.clone();
            let scribbler = thread::spawn(move || {
                w.d.control.swap(garbage, Ordering::Relaxed);
                w.d.pir[1].swap(garbage, Ordering::Relaxed);
                w.d.control.swap(!garbage, Ordering::Relaxed);
            });
            let _ = world.d.wait(LIST0);
            let _ = world.d.load(CPU1);
            let _ = world.d.take(&mut [0; 4]);
            scribbler.join().unwrap();
            world.d.put();
            let _ = world.d.load(CPU1);
            world.d.drain(&mut [0; 4]);
            assert!(!world.d.has_pending());
            assert_eq!(world.d.post(VECTOR), Posted::Notify(CPU1));
        });
    }
}

/// Memory whose exchanges all fail: somebody writes between each look and each exchange.
struct Restless;
/// See [`Restless`].
struct Written(core::sync::atomic::AtomicU64);

impl Memory for Restless {
    type Word = Written;
    fn barrier(_: Barrier) {}
}

impl Word for Written {
    fn load(&self, order: Ordering) -> u64 {
        self.0.load(order)
    }
    fn fetch_or(&self, bits: u64, order: Ordering) -> u64 {
        self.0.fetch_or(bits, order)
    }
    fn fetch_and(&self, bits: u64, order: Ordering) -> u64 {
        self.0.fetch_and(bits, order)
    }
    fn swap(&self, new: u64, order: Ordering) -> u64 {
        self.0.swap(new, order)
    }
    fn exchange(&self, _: u64, _: u64) -> Result<u64, u64> {
        Err(self.0.load(Ordering::Relaxed))
    }
}

/// The owner's steps end, with preemption off as they are called, and it looks at the requests rather than sleep.
#[test]
fn the_owner_gets_through_whoever_writes() {
    let word = || Written(core::sync::atomic::AtomicU64::new(0));
    let d = Descriptor::<Restless> {
        pir: core::array::from_fn(|_| word()),
        control: word(),
        flags: core::array::from_fn(|_| word()),
        reserved: 0,
    };
    assert!(d.load(CPU1), "pending, for all that it knows");
    assert_eq!(Control::from_bits(d.control.load(Ordering::Relaxed)).destination(), 1);
    assert!(d.take(&mut [0; 4]));
    assert_eq!(d.wait(LIST0), Block::Pending);
    assert!(d.take(&mut [0; 4]));
    assert_eq!(d.block(LIST0), Block::Pending);
}

/// Guests read flags there; nothing else moves with them.
#[test]
fn flags_are_shown() {
    let d = native();
    d.show(Flag::Found, 7);
    let read = |d: &Descriptor| [0, 1].map(|i: usize| d.flags[i].load(Ordering::Relaxed));
    assert_eq!(read(&d), [0, 7]);
    d.show(Flag::Sends, 7);
    d.show(Flag::Found, 0);
    assert_eq!(read(&d), [7, 0]);
    d.init();
    assert_eq!(read(&d), [0, 0]);
    assert!(!d.has_pending());
}

/// Taking before clearing ON: a post in between sends nothing and ON is gone.
#[test]
#[should_panic(expected = "lost interrupt")]
fn on_is_cleared_first() {
    explore(3, || {
        let world = World::<0>::running();
        world.software(OTHER);
        world.line(CPU0).store(false, Ordering::Release);
        let threads = Senders::Software.start(&world);
        world.d.pir[1].swap(0, Ordering::SeqCst);
        world.d.control.fetch_and(!1, Ordering::SeqCst);
        threads.into_iter().for_each(|t| t.join().unwrap());
        in_guest(&world, ());
    });
}

/// Sleeping in spite of ON: that sender has notified the CPU where the vCPU ran.
#[test]
#[should_panic(expected = "lost interrupt")]
fn blocker_looks_at_on() {
    let deaf = |w: &World<0>| {
        let place = |c: Control| c.with_vector(WAKE_UP).with_destination(1);
        let mut word = w.d.control.load(Ordering::Acquire);
        while let Err(now) = w.d.control.exchange(word, place(Control::from_bits(word)).into_bits()) {
            word = now;
        }
        Block::Sleep
    };
    race::<0, _>(Senders::Software, deaf, asleep);
}

/// A plain store of the control word forgets the ON of a post that came between.
#[test]
#[should_panic(expected = "lost interrupt")]
fn exchange_keeps_on() {
    let store = |w: &World<0>| {
        w.d.put();
        let c = Control::from_bits(w.d.control.load(Ordering::Acquire));
        w.d.control.swap(c.with_suppress(false).with_destination(1).into_bits(), Ordering::SeqCst);
        // As `load`, but without its look at the PIR, which would hide the loss for software senders.
        takes(w);
    };
    race::<0, _>(Senders::Software, store, on_cpu1);
}

/// "Pending" by ON alone misses what hardware posted while suppressed.
#[test]
#[should_panic(expected = "missed")]
fn pending_is_not_on_alone() {
    race::<0, _>(
        Senders::Hardware,
        |w| w.d.put(),
        |w, ()| {
            assert!(w.d.wants_wake_up() || !w.requested(), "missed");
        },
    );
}

// --- without threads ---

#[test]
fn each_vector_has_its_bit() {
    loom::model(|| {
        for vector in [0u8, 63, 64, 127, 128, 255] {
            let w = World::<0>::running();
            assert_eq!(w.d.post(vector), Posted::Notify(CPU0));
            assert_eq!(w.d.post(vector), Posted::Coalesced);
            let mut taken = [0; 4];
            assert!(w.d.take(&mut taken));
            let mut expected = [0; 4];
            expected[usize::from(vector / 64)] = 1 << (vector % 64);
            assert_eq!(taken, expected);
            assert!(!w.d.take(&mut taken) && !w.d.has_pending());
        }
    });
}

#[test]
fn senders_are_told_apart() {
    loom::model(|| {
        let w = World::<0>::running();
        w.d.put();
        assert_eq!(w.d.post(1), Posted::Suppressed);
        assert_eq!(w.d.post(2), Posted::Outstanding);
        assert_eq!(w.d.block(LIST1), Block::Pending);
        assert!(w.d.load(CPU1));
        assert!(w.d.take(&mut [0; 4]));
        assert_eq!(w.d.block(LIST0), Block::Sleep);
        assert_eq!(w.d.post(3), Posted::Notify(LIST0));
    });
}

// --- the machine's memory ---

/// On CPU 0, nothing requested.
fn native() -> Descriptor {
    let d: Descriptor = bytemuck::Zeroable::zeroed();
    d.init();
    assert!(!d.load(CPU0));
    d
}

#[test]
fn init_forgets_everything() {
    let d = native();
    for vector in [1, 64, 255] {
        let _ = d.post(vector);
    }
    d.init();
    assert!(!d.has_pending());
    assert_eq!([0, 1, 2, 3].map(|word| d.requested(word)), [0; 4]);
    // Out: nobody is notified, and nowhere.
    assert_eq!(d.post(1), Posted::Suppressed);
    assert_eq!(Control::from_bits(d.control.load(Ordering::Relaxed)).vector(), 0);
}

#[test]
fn the_owner_moves_on_the_machine_too() {
    let d = native();
    assert_eq!(d.post(1), Posted::Notify(CPU0));
    assert!(d.take(&mut [0; 4]));
    assert!(!d.load(CPU1));
    assert_eq!(d.post(2), Posted::Notify(CPU1));
    assert_eq!(d.block(LIST1), Block::Pending);
    assert!(d.take(&mut [0; 4]));
    assert_eq!(d.block(LIST1), Block::Sleep);
    assert!(!d.wants_wake_up());
    assert_eq!(d.post(3), Posted::Notify(LIST1));
    assert!(d.wants_wake_up());
}

#[test]
fn a_request_is_withdrawn_once() {
    let d = native();
    for vector in [0x41, 0x42] {
        let _ = d.post(vector);
    }
    assert!(d.withdraw(0x41));
    assert!(!d.withdraw(0x41) && !d.withdraw(0x43));
    assert_eq!(d.requested(1), 1 << 2);
}
