//! The hand-over of `shared.rs` under loom's weak memory model: no interleaving loses a request or a wake-up, and each rule is
//! needed: without it loom finds the loss.
//!
//! A model, not the crate's atomics: the same two words with each rule as a switch. loom knows sequential consistency as fences
//! only, so where the crate has two SeqCst accesses, a store and a load of the other's word, the model has a fence between them.
//!
//! ```text
//!  requester: payload; request |= bit; mode == IN_GUEST?  -> IPI      owner: mode = IN_GUEST; request == 0?  -> enter
//!                                      blocked?           -> wake            taken: request = 0 -> payload
//! ```

use loom::sync::Arc;
use loom::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence};
use loom::thread;

const OUTSIDE: u32 = 0;
const IN_GUEST: u32 = 1;

/// What the protocol keeps.
#[derive(Clone, Copy)]
struct Rules {
    /// Requester: the request is a release.
    request: Ordering,
    /// Requester: request and look at the mode are SeqCst.
    request_look: bool,
    /// Owner: announcement and check are SeqCst.
    announce_check: bool,
    /// The owner looks at the requests after announcing itself, not before.
    check_after: bool,
    /// The owner takes requests with an acquiring swap.
    take: Ordering,
}

const REAL: Rules = Rules {
    request: Ordering::AcqRel,
    request_look: true,
    announce_check: true,
    check_after: true,
    take: Ordering::AcqRel,
};

/// Between two SeqCst accesses.
fn between(sequential: bool) {
    if sequential {
        fence(Ordering::SeqCst);
    }
}

struct Vcpu {
    requests: AtomicU64,
    mode: AtomicU32,
    /// What the request is about: the IRR bit, the new table root.
    payload: AtomicU32,
    /// A reschedule IPI is pending: the guest comes out at once.
    ipi: AtomicBool,
    rules: Rules,
}

impl Vcpu {
    fn new(rules: Rules) -> Arc<Self> {
        Arc::new(Self {
            requests: AtomicU64::new(0),
            mode: AtomicU32::new(OUTSIDE),
            payload: AtomicU32::new(0),
            ipi: AtomicBool::new(false),
            rules,
        })
    }

    /// `request` and `needs_ipi`: the whole of a requester.
    fn ask(&self, bit: u64) {
        self.payload.fetch_add(1, Ordering::Relaxed);
        self.requests.fetch_or(bit, self.rules.request);
        between(self.rules.request_look);
        if self.mode.load(Ordering::Acquire) == IN_GUEST {
            self.ipi.store(true, Ordering::Relaxed);
        }
    }

    /// `take`: what was asked, and that its payload shows.
    fn take(&self) -> u64 {
        if self.requests.load(Ordering::Relaxed) == 0 {
            return 0;
        }
        let bits = self.requests.swap(0, self.rules.take);
        let seen = self.payload.load(Ordering::Relaxed);
        assert!(seen >= bits.count_ones(), "a taken request without its payload");
        bits
    }

    /// `begin_guest`: may the owner enter?
    fn begin_guest(&self) -> bool {
        let none = || self.requests.load(Ordering::Acquire) == 0;
        let early = !self.rules.check_after && none();
        self.mode.store(IN_GUEST, Ordering::Release);
        between(self.rules.announce_check);
        if self.rules.check_after { none() } else { early }
    }

    fn end_guest(&self) {
        self.mode.store(OUTSIDE, Ordering::Release);
    }
}

/// All interleavings with at most three preemptions: more thread switches than any of the losses needs.
fn explore(model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(model);
}

/// Requesters against an owner that makes one round of the loop and tries to enter. In the end: whoever is in the guest and was
/// asked something must have the IPI; whoever stayed out finds the request.
fn enter(rules: Rules, requesters: u64) {
    explore(move || {
        let v = Vcpu::new(rules);
        let threads: Vec<_> = (0..requesters)
            .map(|i| {
                let v = v.clone();
                thread::spawn(move || v.ask(1 << i))
            })
            .collect();
        let mut seen = v.take();
        let inside = v.begin_guest();
        if !inside {
            v.end_guest();
            seen |= v.take();
        }
        threads.into_iter().for_each(|t| t.join().unwrap());
        let left = v.requests.load(Ordering::SeqCst);
        assert_eq!(seen | left, (1 << requesters) - 1, "a request vanished");
        assert_eq!(seen & left, 0, "a request is there twice");
        assert!(!(inside && left != 0) || v.ipi.load(Ordering::SeqCst), "in the guest, asked, and no IPI");
    });
}

/// Two entries: the kick of the first must not be taken for one of the second.
fn enter_twice(rules: Rules) {
    explore(move || {
        let v = Vcpu::new(rules);
        let requester = {
            let v = v.clone();
            thread::spawn(move || v.ask(1))
        };
        let mut inside = false;
        for _ in 0..2 {
            v.take();
            inside = v.begin_guest();
            if !inside {
                v.end_guest();
                continue;
            }
            // An exit for some other reason; interrupts come on and a pending IPI is spent.
            if v.ipi.load(Ordering::SeqCst) {
                v.ipi.store(false, Ordering::SeqCst);
                v.end_guest();
                inside = false;
            }
        }
        requester.join().unwrap();
        let left = v.requests.load(Ordering::SeqCst);
        assert!(!(inside && left != 0) || v.ipi.load(Ordering::SeqCst), "in the guest, asked, and no IPI");
    });
}

/// The sleeper: announces that it sleeps, then looks at the requests once more; the waker asks, then looks whether it sleeps.
/// (The announcement is the task's state; its barrier is the scheduler's, here SeqCst.)
fn sleep(look_again: bool) {
    explore(move || {
        let v = Vcpu::new(REAL);
        let asleep = Arc::new(AtomicBool::new(false));
        let woken = Arc::new(AtomicBool::new(false));
        let waker = {
            let (v, asleep, woken) = (v.clone(), asleep.clone(), woken.clone());
            thread::spawn(move || {
                v.ask(1);
                between(true);
                if asleep.load(Ordering::SeqCst) {
                    woken.store(true, Ordering::SeqCst);
                }
            })
        };
        let mut sleeps = v.take() == 0;
        if sleeps {
            asleep.store(true, Ordering::SeqCst);
            between(true);
            sleeps = !(look_again && v.requests.load(Ordering::SeqCst) != 0);
        }
        waker.join().unwrap();
        assert!(!sleeps || woken.load(Ordering::SeqCst), "sleeps for ever");
    });
}

/// The loss that loom must find: the model without one rule.
fn must_fail(what: &str, model: impl Fn() + std::panic::UnwindSafe) {
    assert!(std::panic::catch_unwind(model).is_err(), "loom does not need: {what}");
}

#[test]
fn no_request_is_lost() {
    enter(REAL, 1);
    enter(REAL, 2);
}

#[test]
fn no_request_is_lost_over_two_entries() {
    enter_twice(REAL);
}

#[test]
fn no_wake_up_is_lost() {
    sleep(true);
}

/// Each SeqCst, the order of the two steps, and the check itself.
#[test]
fn every_rule_is_needed() {
    must_fail("the announcement before the check", || enter(Rules { check_after: false, ..REAL }, 1));
    must_fail("SeqCst of announcement and check", || enter(Rules { announce_check: false, ..REAL }, 1));
    must_fail("SeqCst of request and look", || enter(Rules { request_look: false, ..REAL }, 1));
    must_fail("a release of the request", || enter(Rules { request: Ordering::Relaxed, ..REAL }, 1));
    must_fail("an acquire of the taking", || enter(Rules { take: Ordering::Relaxed, ..REAL }, 1));
    must_fail("looking again before sleep", || sleep(false));
}
