//! The host's timer as the vCPU's thread knows it: when it is queued for, and whether another deadline is worth moving it.
//!
//! To move it costs as much as several exits of other kinds, and a guest writes many deadlines for each that comes. So one that is
//! queued for an earlier moment, still some time away, stays: it fires early, and the thread arms again. That is one interrupt
//! too many in [`NEAR_MS`] at most, against each move saved. Moments are of the host's TSC; where the timer's own clock has stood still
//! meanwhile, as the host slept, it is taken for [`Queue::gone`].

/// Nearer than this a moment is likely to come before the guest's next deadline is written.
const NEAR_MS: u64 = 1;

/// All-zero: not queued.
#[derive(Clone, Copy, Debug, Default, bytemuck::Zeroable)]
pub struct Queue {
    at: u64,
    started: u64,
    /// On a CPU that keeps house.
    away: bool,
}

impl Queue {
    /// It may be queued: a callback may come.
    pub fn queued(&self) -> bool {
        self.at != 0
    }

    /// On a CPU that keeps house, whatever the thread's own CPU is.
    pub fn is_away(&self) -> bool {
        self.queued() && self.away
    }

    /// It fired, or was stopped.
    pub fn gone(&mut self) {
        self.at = 0;
    }

    /// At `now` it is queued for a moment that is worth no more thought. Its clock is not the TSC's to the last millionth: what it was
    /// started for long ago comes late, or early, by some of that time; so half of the way is the most.
    fn far(&self, now: u64, khz: u32) -> bool {
        let left = self.at.saturating_sub(now);
        left >= u64::from(khz) * NEAR_MS && left >= self.at.saturating_sub(self.started) / 2
    }

    /// It is to fire at `at` at the latest, `at` is not before `now`: here, or `away`. `true`: start it so. One that is away and only asks
    /// may stay there.
    pub fn want(&mut self, now: u64, at: u64, khz: u32, away: bool) -> bool {
        let serves = self.at == at || self.at < at && self.far(now, khz);
        if self.queued() && serves && self.away >= away {
            return false;
        }
        // 0 would read as not queued.
        *self = Self { at: at.max(1), started: now, away };
        true
    }

    /// Nobody waits for it. `true`: stop it.
    pub fn drop(&mut self, now: u64, khz: u32) -> bool {
        let stop = self.queued() && !self.far(now, khz);
        if stop {
            self.gone();
        }
        stop
    }
}

#[cfg(test)]
mod tests {
    use super::Queue;
    use proptest::prelude::*;

    const KHZ: u32 = 1_000_000;
    const MS: u64 = KHZ as u64;

    /// The one that a guest writes again and again is started once; an earlier one moves it; one that is near is moved.
    #[test]
    fn started_when_it_must_be() {
        let mut q = Queue::default();
        assert!(q.want(100, 100 + 10 * MS, KHZ, false));
        assert!(!q.want(200, 100 + 10 * MS, KHZ, false));
        assert!(!q.want(200, 100 + 20 * MS, KHZ, false));
        assert!(q.want(300, 100 + 9 * MS, KHZ, false), "an earlier one");
        assert!(q.want(100 + 8 * MS + 1, 100 + 30 * MS, KHZ, false), "near");
        assert!(q.want(100 + 20 * MS, 100 + 31 * MS, KHZ, false), "more than half of the way is gone");
        q.gone();
        assert!(q.want(100 + 20 * MS, 100 + 31 * MS, KHZ, false));
        assert!(q.want(100 + 20 * MS, 100 + 31 * MS, KHZ, true), "elsewhere");
        assert!(!q.want(100 + 20 * MS, 100 + 40 * MS, KHZ, true) && q.is_away());
        assert!(!q.want(100 + 30 * MS, 100 + 31 * MS, KHZ, false) && q.is_away(), "asks from there");
        assert!(q.want(100 + 30 * MS, 100 + 32 * MS, KHZ, false) && !q.is_away(), "near");
    }

    #[test]
    fn stopped_when_it_would_come_soon() {
        let mut q = Queue::default();
        assert!(!q.drop(5, KHZ), "not queued");
        assert!(q.want(0, 10 * MS, KHZ, false));
        assert!(!q.drop(MS, KHZ) && q.queued());
        assert!(q.drop(9 * MS + 1, KHZ) && !q.queued());
    }

    proptest! {
        /// Whatever was written before, the timer is queued at the latest for the last deadline, and wakes for nothing once a
        /// millisecond at most.
        #[test]
        fn never_late(steps in proptest::collection::vec((0..2 * MS, proptest::option::of(0..8 * MS)), 1..60)) {
            let (mut q, mut now, mut queued, mut early) = (Queue::default(), 0, None::<u64>, 0);
            let mut wanted = None::<u64>;
            for (passes, left) in steps {
                now += passes;
                if queued.is_some_and(|at| at <= now) {
                    queued = None;
                    q.gone();
                    early += u64::from(wanted.is_none_or(|at| at > now));
                    if let Some(at) = wanted.filter(|at| *at > now) {
                        prop_assert!(q.want(now, at, KHZ, false));
                        queued = Some(at);
                    }
                }
                wanted = left.map(|l| now + l);
                match wanted {
                    Some(at) if q.want(now, at, KHZ, false) => queued = Some(at.max(1)),
                    None if q.drop(now, KHZ) => queued = None,
                    _ => {}
                }
                prop_assert_eq!(q.queued(), queued.is_some());
                if let Some(at) = wanted {
                    prop_assert!(queued.is_some_and(|q| q <= at.max(1)), "late");
                }
                prop_assert!(early <= now / MS + 1);
            }
        }
    }
}
