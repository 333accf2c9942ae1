//! The ordering rules of `shared.rs` under loom's weak memory model: no interleaving loses a wake-up or a trigger mode, and each
//! rule is needed (without it loom finds the loss).
//!
//! A model, not the crate's atomics: one IRR word, one TMR word, a request and a mode, with the orderings that `shared.rs` uses.

use loom::sync::Arc;
use loom::sync::atomic::{AtomicBool, AtomicU32, Ordering, fence};
use loom::thread;

const OUTSIDE: u32 = 0;
const IN_GUEST: u32 = 1;
const BIT: u32 = 1;

struct Vcpu {
    tmr: AtomicU32,
    irr: AtomicU32,
    request: AtomicBool,
    mode: AtomicU32,
    kicked: AtomicBool,
}

impl Vcpu {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            tmr: AtomicU32::new(0),
            irr: AtomicU32::new(0),
            request: AtomicBool::new(false),
            mode: AtomicU32::new(OUTSIDE),
            kicked: AtomicBool::new(false),
        })
    }

    /// `Shared::post` and then what its caller owes. Coalesced posts owe nothing.
    fn send(&self, sender_fence: bool) {
        self.tmr.fetch_or(BIT, Ordering::Relaxed);
        if self.irr.fetch_or(BIT, Ordering::AcqRel) & BIT != 0 {
            return;
        }
        self.request.store(true, Ordering::Release);
        if sender_fence {
            fence(Ordering::SeqCst);
        }
        if self.mode.load(Ordering::Relaxed) == IN_GUEST {
            self.kicked.store(true, Ordering::Relaxed);
        }
    }

    /// The owner's last steps before the guest: takes what it sees. True: it entered the guest with the IRR as it saw it.
    fn enter(&self, owner_fence: bool) -> bool {
        self.mode.store(IN_GUEST, Ordering::Relaxed);
        if owner_fence {
            fence(Ordering::SeqCst);
        }
        if !self.request.load(Ordering::Relaxed) {
            return true;
        }
        self.mode.store(OUTSIDE, Ordering::Relaxed);
        assert!(self.request.swap(false, Ordering::Acquire));
        assert_ne!(self.irr.fetch_and(!BIT, Ordering::AcqRel) & BIT, 0, "a taken request has its vector");
        false
    }
}

/// One or two senders of one vector against one entry. An owner in the guest with an interrupt pending must have been kicked.
fn wake_up(senders: usize, sender_fence: bool, owner_fence: bool) {
    loom::model(move || {
        let vcpu = Vcpu::new();
        let threads: Vec<_> = (0..senders)
            .map(|_| {
                let vcpu = vcpu.clone();
                thread::spawn(move || vcpu.send(sender_fence))
            })
            .collect();
        let in_guest = vcpu.enter(owner_fence);
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        let pending = vcpu.irr.load(Ordering::Acquire) != 0;
        let kicked = vcpu.kicked.load(Ordering::Relaxed);
        assert!(!(in_guest && pending) || kicked, "lost wake-up");
        // Outside the guest the next entry's check finds whatever came after the scan.
        assert!(in_guest || !pending || vcpu.request.load(Ordering::Relaxed), "lost request");
    });
}

#[test]
fn no_lost_wake_up() {
    wake_up(1, true, true);
}

/// The second sender finds the bit set, or sets it again after the owner took it; either way nothing is lost.
#[test]
fn no_lost_wake_up_with_coalescing() {
    wake_up(2, true, true);
}

#[test]
#[should_panic(expected = "lost wake-up")]
fn sender_fence_is_needed() {
    wake_up(1, false, true);
}

#[test]
#[should_panic(expected = "lost wake-up")]
fn owner_fence_is_needed() {
    wake_up(1, true, false);
}

/// An owner that sees the IRR bit of a level interrupt sees its TMR bit: otherwise the EOI would never reach the I/O APIC.
fn trigger_mode(tmr_first: bool) {
    loom::model(move || {
        let vcpu = Vcpu::new();
        let sender = {
            let vcpu = vcpu.clone();
            thread::spawn(move || {
                if tmr_first {
                    vcpu.tmr.fetch_or(BIT, Ordering::Relaxed);
                }
                vcpu.irr.fetch_or(BIT, Ordering::AcqRel);
                if !tmr_first {
                    vcpu.tmr.fetch_or(BIT, Ordering::Relaxed);
                }
            })
        };
        if vcpu.irr.load(Ordering::Acquire) & BIT != 0 {
            assert_ne!(vcpu.tmr.load(Ordering::Relaxed) & BIT, 0, "level interrupt seen as edge");
        }
        sender.join().unwrap();
    });
}

#[test]
fn trigger_mode_is_seen() {
    trigger_mode(true);
}

#[test]
#[should_panic(expected = "level interrupt seen as edge")]
fn tmr_before_irr_is_needed() {
    trigger_mode(false);
}

/// A sender whose post coalesces makes no request, yet the handler that runs for the bit sees the data stored before the post.
#[test]
fn coalesced_sender_is_heard() {
    loom::model(|| {
        let vcpu = Vcpu::new();
        let data = Arc::new(AtomicU32::new(0));
        vcpu.irr.store(BIT, Ordering::Relaxed);
        let sender = {
            let (vcpu, data) = (vcpu.clone(), data.clone());
            thread::spawn(move || {
                data.store(1, Ordering::Relaxed);
                vcpu.irr.fetch_or(BIT, Ordering::AcqRel) & BIT != 0
            })
        };
        let taken = vcpu.irr.fetch_and(!BIT, Ordering::AcqRel) & BIT != 0;
        let seen = data.load(Ordering::Relaxed);
        let coalesced = sender.join().unwrap();
        assert!(taken && (!coalesced || seen == 1), "handler ran without the data");
    });
}
