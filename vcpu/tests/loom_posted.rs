//! Posted vectors under loom's weak memory model: a sender that announces and notifies, without a request, against a vCPU that
//! enters, leaves, sleeps, and whose CPU begins or ceases to deliver. No posted vector is stuck: it was taken, or a notification, a
//! wake-up or a request is on its way to one who will look. Each rule is needed: without it loom finds the loss.
//!
//! Not here: the order of PIR and ON, which only senders that rely on another's notification need; see `exitless_posted`.
//!
//! A model, as `loom.rs`: the words of `VcpuShared` and of the descriptor, each rule a switch, fences for what is SeqCst or a locked
//! instruction in the crate.
//!
//! ```text
//!  sender: PIR bit; delivers? ─ no ──────────────────────────────────────────▶ request; kick (wake, or IPI if IN_GUEST)
//!                       └ yes ▶ ON; IN_GUEST? ─ yes ▶ notification      no ─▶ the same
//!  owner:  mode = IN_GUEST; requests? ON? ─ take the PIR ─ enter       mode = OUTSIDE; ON = 0; PIR? ─ asleep; requests? ON? ─ sleep
//! ```

use loom::sync::Arc;
use loom::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence};
use loom::thread;

const OUTSIDE: u32 = 0;
const IN_GUEST: u32 = 1;

/// What the protocol keeps.
#[derive(Clone, Copy)]
struct Rules {
    /// Sender: the announcement is a full barrier before the look at the mode.
    announce_look: bool,
    /// Owner: saying that it enters is a full barrier before all looks.
    enter_look: bool,
    /// Owner: takes what was announced after saying that it enters, not before.
    take_after: bool,
    /// Owner, whose CPU does not deliver (any more): an announcement keeps it out too.
    on_keeps_out: bool,
    /// Owner: forgets the announcement before its last look at the PIR, not after.
    settle_first: bool,
    /// Owner: looks at ON once more, having said that it sleeps.
    wakes_on: bool,
    /// That look does not ask whether the CPU delivers.
    wakes_always: bool,
    /// Owner: announces to itself what it was asked to look at by a sender that announced nothing.
    announces: bool,
}

const REAL: Rules = Rules {
    announce_look: true,
    enter_look: true,
    take_after: true,
    on_keeps_out: true,
    settle_first: true,
    wakes_on: true,
    wakes_always: true,
    announces: true,
};

/// Between two accesses of which the first is SeqCst or locked.
fn between(sequential: bool) {
    if sequential {
        fence(Ordering::SeqCst);
    }
}

struct Vcpu {
    pir: AtomicU64,
    on: AtomicBool,
    requests: AtomicU64,
    mode: AtomicU32,
    delivers: AtomicBool,
    asleep: AtomicBool,
    woken: AtomicBool,
    /// Pending at the owner's CPU: a notification, a reschedule IPI.
    notified: AtomicBool,
    ipi: AtomicBool,
    rules: Rules,
}

impl Vcpu {
    fn new(rules: Rules, mode: u32, delivers: bool) -> Arc<Self> {
        Arc::new(Self {
            pir: AtomicU64::new(0),
            on: AtomicBool::new(false),
            requests: AtomicU64::new(0),
            mode: AtomicU32::new(mode),
            delivers: AtomicBool::new(delivers),
            asleep: AtomicBool::new(false),
            woken: AtomicBool::new(false),
            notified: AtomicBool::new(false),
            ipi: AtomicBool::new(false),
            rules,
        })
    }

    // --- the sender: `Shared::post`, `VcpuObj::notify` ---

    fn post(&self, bit: u64) {
        if self.pir.fetch_or(bit, Ordering::AcqRel) & bit != 0 {
            return;
        }
        if self.delivers.load(Ordering::Acquire) {
            self.on.swap(true, Ordering::AcqRel);
            between(self.rules.announce_look);
            if self.mode.load(Ordering::Acquire) == IN_GUEST {
                return self.notified.store(true, Ordering::Release);
            }
        }
        self.requests.fetch_or(1, Ordering::AcqRel);
        between(true);
        if self.asleep.load(Ordering::Acquire) {
            self.woken.store(true, Ordering::Release);
        } else if self.mode.load(Ordering::Acquire) == IN_GUEST {
            self.ipi.store(true, Ordering::Release);
        }
    }

    // --- the owner ---

    /// `Descriptor::settle`.
    fn settle(&self) -> bool {
        let was = self.on.load(Ordering::Relaxed);
        if was {
            self.on.swap(false, Ordering::AcqRel);
            between(true);
        }
        was
    }

    fn all(&self) -> u64 {
        if self.pir.load(Ordering::Relaxed) == 0 { 0 } else { self.pir.swap(0, Ordering::AcqRel) }
    }

    /// `vapic::sync`: what was announced.
    fn take(&self) -> u64 {
        if self.settle() { self.all() } else { 0 }
    }

    /// Interrupts are on: what is pending at the CPU is spent on the host.
    fn spend(&self) {
        self.notified.swap(false, Ordering::AcqRel);
        self.ipi.swap(false, Ordering::AcqRel);
    }

    /// `request::process`, and `entry::prepare` where the CPU delivers. `true`: it was asked to look.
    fn process(&self, delivers: bool) -> bool {
        if self.requests.load(Ordering::Relaxed) == 0 {
            return false;
        }
        self.requests.swap(0, Ordering::AcqRel);
        if delivers && self.rules.announces && self.pir.load(Ordering::Acquire) != 0 {
            self.on.swap(true, Ordering::AcqRel);
        }
        true
    }

    fn end_guest(&self) {
        self.mode.store(OUTSIDE, Ordering::Release);
        self.spend();
    }

    /// The start of a slice; `Err`: called off.
    fn begin(&self, delivers: bool) -> Result<u64, ()> {
        self.spend();
        let early = if delivers && !self.rules.take_after { self.take() } else { 0 };
        self.mode.store(IN_GUEST, Ordering::Release);
        between(self.rules.enter_look);
        let announced = !delivers && self.rules.on_keeps_out && self.on.load(Ordering::Relaxed);
        if self.requests.load(Ordering::Acquire) != 0 || announced {
            self.mode.store(OUTSIDE, Ordering::Release);
            return Err(());
        }
        Ok(if delivers && self.rules.take_after { self.take() } else { early })
    }

    /// `run::wait` and `Host::block`: the bits it found, or `None`: sleeps.
    fn sleep(&self, delivers: bool) -> Option<u64> {
        let found = if self.rules.settle_first {
            self.settle();
            self.all()
        } else {
            let all = self.all();
            self.settle();
            all
        };
        if found != 0 || self.requests.load(Ordering::Acquire) != 0 {
            return Some(found);
        }
        self.asleep.store(true, Ordering::Release);
        between(true);
        let listens = self.rules.wakes_on && (delivers || self.rules.wakes_always);
        let wake = self.requests.load(Ordering::Acquire) != 0 || listens && self.on.load(Ordering::Acquire);
        if wake {
            self.asleep.store(false, Ordering::Release);
        }
        wake.then_some(0)
    }
}

/// Where the owner ended up.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    InGuest,
    /// In the loop: it looks at requests and announcements again.
    Awake,
    Asleep,
}

/// Senders of different vectors against `owner`, which tells what it took and where it ended; all interleavings with at most three
/// preemptions, which is more than any of the losses needs.
fn race(
    rules: Rules,
    senders: u64,
    (mode, delivers): (u32, bool),
    owner: impl Fn(&Vcpu) -> (u64, End) + Copy + Send + Sync + 'static,
) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(move || {
        let v = Vcpu::new(rules, mode, delivers);
        let threads: Vec<_> = (0..senders)
            .map(|i| {
                let v = v.clone();
                thread::spawn(move || v.post(1 << i))
            })
            .collect();
        let (seen, end) = owner(&v);
        threads.into_iter().for_each(|t| t.join().unwrap());
        let left = v.pir.load(Ordering::SeqCst);
        assert_eq!(seen | left, (1 << senders) - 1, "a vector vanished");
        assert_eq!(seen & left, 0, "a vector is there twice");
        let told = match end {
            End::InGuest => v.notified.load(Ordering::SeqCst) || v.ipi.load(Ordering::SeqCst),
            End::Awake => v.requests.load(Ordering::SeqCst) != 0 || v.on.load(Ordering::SeqCst),
            End::Asleep => v.woken.load(Ordering::SeqCst),
        };
        assert!(left == 0 || told, "a vector is stuck");
    });
}

fn in_guest(seen: u64, entry: Result<u64, ()>) -> (u64, End) {
    match entry {
        Ok(taken) => (seen | taken, End::InGuest),
        Err(()) => (seen, End::Awake),
    }
}

fn slept(seen: u64, sleep: Option<u64>) -> (u64, End) {
    match sleep {
        Some(found) => (seen | found, End::Awake),
        None => (seen, End::Asleep),
    }
}

/// From outside into the guest.
fn enters(v: &Vcpu) -> (u64, End) {
    v.process(true);
    in_guest(0, v.begin(true))
}

/// In the guest; an exit answered at once, without leaving the slice: what was sent meanwhile is pending at the CPU.
fn enters_again(v: &Vcpu) -> (u64, End) {
    (v.take(), End::InGuest)
}

/// In the guest; an exit that ends the slice; the next one.
fn leaves_and_enters(v: &Vcpu) -> (u64, End) {
    v.end_guest();
    enters(v)
}

/// In the guest; HLT.
fn halts(v: &Vcpu) -> (u64, End) {
    v.end_guest();
    slept(0, v.sleep(true))
}

/// In the guest; the guest disables its APIC: software looks at the PIR from now on, when it has a reason.
fn ceases(v: &Vcpu) -> (u64, End) {
    v.end_guest();
    v.process(true);
    v.delivers.store(false, Ordering::Release);
    // `entry::prepare`: the switch is a reason.
    let found = v.all();
    in_guest(found, v.begin(false))
}

/// The same, and another slice after that one.
fn ceases_and_enters(v: &Vcpu) -> (u64, End) {
    let (mut seen, end) = ceases(v);
    if end == End::InGuest {
        v.end_guest();
    }
    if v.settle() | v.process(false) {
        seen |= v.all();
    }
    in_guest(seen, v.begin(false))
}

/// The same, and then HLT.
fn ceases_and_halts(v: &Vcpu) -> (u64, End) {
    let (seen, end) = ceases(v);
    if end != End::InGuest {
        return (seen, end);
    }
    v.end_guest();
    slept(seen, v.sleep(false))
}

/// Outside; the CPU delivers from now on: all there is goes into the page.
fn begins(v: &Vcpu) -> (u64, End) {
    v.process(false);
    v.delivers.store(true, Ordering::Release);
    let (mut seen, end) = in_guest(0, v.begin(true));
    if end == End::InGuest {
        // `vapic::hand_over`.
        v.settle();
        seen |= v.all();
    }
    (seen, end)
}

/// The same, and another slice: the page is home already.
fn begins_and_enters(v: &Vcpu) -> (u64, End) {
    let (seen, end) = begins(v);
    if end == End::Awake {
        return (seen, end);
    }
    v.end_guest();
    v.process(true);
    in_guest(seen, v.begin(true))
}

fn must_fail(what: &str, model: impl Fn() + std::panic::UnwindSafe) {
    assert!(std::panic::catch_unwind(model).is_err(), "loom does not need: {what}");
}

const OUT: (u32, bool) = (OUTSIDE, true);
const IN: (u32, bool) = (IN_GUEST, true);

#[test]
fn entries() {
    for senders in [1, 2] {
        race(REAL, senders, OUT, enters);
        race(REAL, senders, IN, enters_again);
    }
    race(REAL, 1, IN, leaves_and_enters);
}

#[test]
fn sleep() {
    race(REAL, 1, IN, halts);
}

#[test]
fn switch() {
    race(REAL, 1, IN, ceases);
    race(REAL, 1, IN, ceases_and_enters);
    race(REAL, 1, IN, ceases_and_halts);
    race(REAL, 1, (OUTSIDE, false), begins);
    race(REAL, 1, (OUTSIDE, false), begins_and_enters);
}

#[test]
fn every_rule_is_needed() {
    must_fail("a barrier in the announcement", || race(Rules { announce_look: false, ..REAL }, 1, IN, halts));
    must_fail("a barrier in the entry", || race(Rules { enter_look: false, ..REAL }, 1, OUT, enters));
    must_fail("taking after saying so", || {
        race(Rules { take_after: false, ..REAL }, 1, IN, leaves_and_enters)
    });
    must_fail("an announcement keeps out", || race(Rules { on_keeps_out: false, ..REAL }, 1, IN, ceases));
    must_fail("settling before the look", || race(Rules { settle_first: false, ..REAL }, 1, IN, halts));
    must_fail("waking on ON", || race(Rules { wakes_on: false, ..REAL }, 1, IN, halts));
    must_fail("announcing to itself", || {
        race(Rules { announces: false, ..REAL }, 1, (OUTSIDE, false), begins_and_enters)
    });
    must_fail("waking on ON always", || race(Rules { wakes_always: false, ..REAL }, 1, IN, ceases_and_halts));
}
