//! How much before its deadline a timer runs out: the exit, and the entry with the interrupt, take their time, and the guest shall
//! have its interrupt at the deadline.
//!
//! The values are stock KVM's: 1000 ns to begin with, an eighth of each error more or less, 1000 again beyond 5000. Errors
//! below 100 ticks are noise, above 10000 something else happened.

const FIRST_NS: u32 = 1000;
const MOST_NS: u32 = 5000;
const NOISE_TICKS: u64 = 100;
const ACCIDENT_TICKS: u64 = 10_000;
const STEP: u64 = 8;

/// What a vCPU has learnt; all-zero: nothing yet.
#[derive(Clone, Copy, Debug, Default, bytemuck::Zeroable)]
pub struct Advance {
    ns: u32,
}

impl Advance {
    /// ns in force.
    pub fn ns(&self) -> u32 {
        if self.ns == 0 { FIRST_NS } else { self.ns }
    }

    /// The exit was served `error` ticks (of `khz`) behind the deadline, or before it (`early`).
    pub fn learn(&mut self, error: u64, early: bool, khz: u32) {
        if !(NOISE_TICKS..=ACCIDENT_TICKS).contains(&error) {
            return;
        }
        let step = (error * 1_000_000 / u64::from(khz.max(1)) / STEP).min(u64::from(MOST_NS)) as u32;
        let next = if early { self.ns().saturating_sub(step) } else { self.ns() + step };
        // 0 would read as nothing learnt.
        self.ns = if next > MOST_NS { FIRST_NS } else { next.max(1) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Towards the error, by eighths; noise and accidents teach nothing; never beyond the bounds.
    #[test]
    fn learning() {
        let mut a = Advance::default();
        assert_eq!(a.ns(), 1000);
        a.learn(99, false, 1_000_000);
        a.learn(10_001, false, 1_000_000);
        assert_eq!(a.ns(), 1000);
        a.learn(800, false, 1_000_000);
        assert_eq!(a.ns(), 1100);
        a.learn(800, true, 1_000_000);
        a.learn(800, true, 1_000_000);
        assert_eq!(a.ns(), 900);
        for _ in 0..100 {
            a.learn(10_000, true, 1_000_000);
        }
        assert_eq!(a.ns(), 1);
        for _ in 0..1000 {
            a.learn(10_000, false, 1_000_000);
            assert!(a.ns() <= MOST_NS);
        }
        // A slow TSC: ticks are long.
        let mut b = Advance::default();
        b.learn(160, false, 100_000);
        assert_eq!(b.ns(), 1200);
    }
}
