//! One CPU: the page that it shares with the host, and what it did. Only the CPU itself writes, with interrupts off; the host writes *armed*.

use core::sync::atomic::Ordering::Relaxed;
use core::sync::atomic::{AtomicU64, Ordering, fence};
use exitless_lazy::{GuestPage, Told};

/// `struct exg_cpu` of `guest/c/exg.h`: the page, then what is the guest's alone.
#[derive(Debug, Default)]
#[repr(C, align(64))]
pub struct Cpu {
    armed: AtomicU64,
    pending: AtomicU64,
    offset: AtomicU64,
    reserved: [AtomicU64; 5],
    /// Deadlines that were written to the MSR.
    written: AtomicU64,
    /// Deadlines that were not.
    spared: AtomicU64,
    /// Times that the host was asked to attend.
    asked: AtomicU64,
    /// Deadlines in a row that the host did not attend.
    ignored: AtomicU64,
    /// Not to ask again before the TSC is here.
    again: AtomicU64,
    rest: [u64; 3],
}

const _: () = assert!(size_of::<Cpu>() == 128);

/// So many deadlines in a row that nobody attends: the host is another than the one that was asked.
const IGNORED: u64 = 8;

/// No locked instruction: nobody else writes.
fn bump(counter: &AtomicU64) {
    counter.store(counter.load(Relaxed).wrapping_add(1), Relaxed);
}

impl GuestPage for Cpu {
    fn want(&self, deadline: u64) {
        self.pending.store(deadline, Relaxed);
    }
    fn barrier(&self) {
        fence(Ordering::SeqCst);
    }
    fn armed(&self) -> u64 {
        self.armed.load(Relaxed)
    }
    fn told(&self) -> Told {
        // It has not agreed to ask.
        Told { offset: self.offset.load(Relaxed), inside: 0 }
    }
    fn request(&self) {}
}

impl Cpu {
    /// The CPU wants its timer at `deadline`. `true`: [`Cpu::write`] that, then call [`Cpu::wrote`].
    pub fn set(&self, deadline: u64) -> bool {
        let writes = exitless_lazy::set(self, deadline);
        bump(if writes { &self.written } else { &self.spared });
        writes
    }

    /// Writes the MSR.
    pub fn write(&self, deadline: u64, wrmsr: impl FnMut(u64)) {
        exitless_lazy::write(self, deadline, wrmsr);
    }

    /// The MSR was written with `deadline`, it is `now`. `true`: ask the host to attend, which it does not seem to do; once a second, of
    /// `second` ticks, at most.
    pub fn wrote(&self, deadline: u64, now: u64, second: u64) -> bool {
        let attended = self.armed() != 0 || self.told() != Told::NOTHING;
        if attended || deadline <= now {
            self.ignored.store(if attended { 0 } else { self.ignored.load(Relaxed) }, Relaxed);
            return false;
        }
        bump(&self.ignored);
        let asks = self.ignored.load(Relaxed) >= IGNORED && now >= self.again.load(Relaxed);
        if asks {
            self.asks(now, second);
        }
        asks
    }

    /// The host is asked.
    pub fn asks(&self, now: u64, second: u64) {
        bump(&self.asked);
        self.ignored.store(0, Relaxed);
        self.again.store(now.saturating_add(second), Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECOND: u64 = 1_000_000;

    #[test]
    fn spared_and_written() {
        let c = Cpu::default();
        assert!(c.set(100));
        c.armed.store(100, Relaxed);
        assert!(!c.wrote(100, 50, SECOND));
        assert!(!c.set(150) && !c.set(120) && c.set(99));
        assert_eq!((c.written.load(Relaxed), c.spared.load(Relaxed), c.pending.load(Relaxed)), (2, 2, 99));
    }

    /// A host that has never heard of it is asked, but not often; one that attends is not.
    #[test]
    fn asks_now_and_then() {
        let c = Cpu::default();
        let asked = (0..10 * SECOND).step_by(1000).filter(|now| c.wrote(now + 500, *now, SECOND)).count();
        assert!((9..=11).contains(&asked), "{asked}");
        c.armed.store(5, Relaxed);
        assert!((0..10 * SECOND).step_by(1000).all(|now| !c.wrote(now + 500, now, SECOND)));
    }

    /// The host's ticks are written where the host says so, and such a host is not asked again.
    #[test]
    fn subtracts() {
        let c = Cpu::default();
        let mut written = std::vec::Vec::new();
        c.write(5000, |v| {
            written.push(v);
            c.offset.store(1000, Relaxed);
        });
        assert_eq!(written, [5000, 4000]);
        assert!((0..10 * SECOND).step_by(1000).all(|now| !c.wrote(now + 500, now, SECOND)));
    }

    /// Deadlines that have passed when they are written say nothing about the host.
    #[test]
    fn past_ones_do_not_count() {
        let c = Cpu::default();
        assert!((0..10 * SECOND).step_by(1000).all(|now| !c.wrote(now, now, SECOND)));
    }

    proptest! {
        /// Whatever the host writes into *armed*, the guest writes each deadline that is before it.
        #[test]
        fn never_beyond_armed(steps in proptest::collection::vec((any::<u64>(), any::<u64>()), 0..50)) {
            let c = Cpu::default();
            for (armed, deadline) in steps {
                c.armed.store(armed, Relaxed);
                prop_assert_eq!(c.set(deadline), armed == 0 || deadline < armed);
                prop_assert_eq!(c.pending.load(Relaxed), deadline);
            }
        }
    }
}
