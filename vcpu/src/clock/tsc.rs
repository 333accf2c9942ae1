//! The guest's time-stamp counter: the host's, at another rate where the CPU can scale it, plus an offset.
//!
//! `guest = (host * ratio >> 48) + offset`, modulo 2^64, as the CPU computes it (SDM vol. 3C, 26.3; APM vol. 2, 15.30.5).

/// Fractional bits of [`Rate`]'s ratio.
const FRACTION: u32 = 48;
/// A requested rate this near to the host's, in millionths, is the host's: crystals differ by as much.
const TOLERANCE_PPM: u64 = 250;
/// No guest's rate reaches this, whatever the ratio could hold, as on stock KVM.
const MOST_KHZ: u32 = i32::MAX as u32;

/// What the CPU can scale by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scaling {
    /// Fractional bits of its ratio, at most 48.
    pub fraction: u32,
    /// The largest ratio.
    pub most: u64,
}

impl Scaling {
    /// VMX's TSC multiplier: 16 bits and 48 behind the point.
    pub const VMX: Self = Self { fraction: 48, most: u64::MAX };
    /// SVM's TSC ratio: 8 bits and 32 behind the point.
    pub const SVM: Self = Self { fraction: 32, most: (1 << 40) - 1 };
}

/// The rate of a guest's TSC, and that of the host's TSC below it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, bytemuck::Zeroable)]
pub struct Rate {
    /// With [`FRACTION`] bits behind the point; exactly what the CPU multiplies by.
    ratio: u64,
    /// As user space asked for it, in kHz.
    khz: u32,
    host_khz: u32,
    /// pvclock's factors.
    mul: u32,
    shift: i32,
}

impl Rate {
    /// The host's rate, in kHz.
    pub fn host(khz: u32) -> Self {
        let (mul, shift) = factors(khz);
        Self { ratio: 1 << FRACTION, khz, host_khz: khz, mul, shift }
    }

    /// The rate that user space asks for, in kHz (0: the host's); `None`: this CPU cannot have it.
    pub fn asked(khz: u32, host_khz: u32, scaling: Option<Scaling>) -> Option<Self> {
        let host = Self::host(host_khz);
        if khz == 0 {
            return Some(host);
        }
        if u64::from(khz.abs_diff(host_khz)) * 1_000_000 <= u64::from(host_khz) * TOLERANCE_PPM {
            return Some(Self { khz, ..host });
        }
        let scaling = scaling.filter(|_| khz < MOST_KHZ)?;
        // Below 2^32 times 2^48: whole and rest apart, so that 64 bits do. What the CPU's ratio cannot hold is cut off here too.
        let (whole, rest) = (khz / host_khz.max(1), khz % host_khz.max(1));
        if u64::from(whole) > scaling.most >> scaling.fraction {
            return None;
        }
        let ratio = (u64::from(whole) << scaling.fraction) | fraction(rest, host_khz, scaling.fraction);
        if ratio == 0 || ratio > scaling.most {
            return None;
        }
        let (mul, shift) = factors(khz);
        Some(Self { ratio: ratio << (FRACTION - scaling.fraction), khz, host_khz, mul, shift })
    }

    /// In kHz.
    pub fn khz(&self) -> u32 {
        self.khz
    }

    /// Is it another than the host's?
    pub fn is_scaled(&self) -> bool {
        self.ratio != 1 << FRACTION
    }

    /// The ratio as the CPU takes it.
    pub fn ratio(&self, scaling: Scaling) -> u64 {
        self.ratio >> (FRACTION - scaling.fraction)
    }

    /// pvclock's multiplier and shift for the guest's ticks.
    pub fn clock_factors(&self) -> (u32, i8) {
        (self.mul, self.shift as i8)
    }

    /// Ticks of the guest in so many ns, modulo 2^64.
    pub fn ticks_in(&self, ns: u64) -> u64 {
        let khz = u64::from(self.khz);
        (ns / 1_000_000).wrapping_mul(khz).wrapping_add(ns % 1_000_000 * khz / 1_000_000)
    }

    /// The ratio with 48 bits behind the point: TSCs of one ratio count at one rate.
    pub fn raw_ratio(&self) -> u64 {
        self.ratio
    }

    /// Ticks of the guest for ticks of the host, as the CPU computes them.
    pub fn guest_ticks(&self, host: u64) -> u64 {
        if !self.is_scaled() {
            return host;
        }
        self.scaled(host)
    }

    #[cold]
    fn scaled(&self, host: u64) -> u64 {
        scale(host, self.ratio)
    }

    /// How many ticks of the host it takes until `guest` ticks of the guest have passed, rounded up, saturating.
    pub fn host_ticks(&self, guest: u64) -> u64 {
        if !self.is_scaled() {
            return guest;
        }
        let (khz, host) = (u64::from(self.khz.max(1)), u64::from(self.host_khz));
        let (whole, rest) = (guest / khz, guest % khz);
        whole.saturating_mul(host).saturating_add((rest * host).div_ceil(khz))
    }
}

/// Ticks of a guest with that [`Rate::raw_ratio`] for ticks of the host.
pub fn scale(host: u64, ratio: u64) -> u64 {
    (u128::from(host).wrapping_mul(u128::from(ratio)) >> FRACTION) as u64
}

/// Ticks in `ns` at `khz`, modulo 2^64, and the millionths of a tick that are over; `rest`: those of the times before. However a
/// time is cut into pieces, they have as many ticks as the whole.
pub fn ticks_and_rest(ns: u64, khz: u32, rest: u32) -> (u64, u32) {
    let khz = u64::from(khz);
    let millionths = ns % 1_000_000 * khz + u64::from(rest);
    let ticks = (ns / 1_000_000).wrapping_mul(khz).wrapping_add(millionths / 1_000_000);
    (ticks, (millionths % 1_000_000) as u32)
}

/// `rest / by` with `bits` (at most 48) behind the point, for `rest < by`.
fn fraction(rest: u32, by: u32, bits: u32) -> u64 {
    let by = u64::from(by.max(1));
    // 16 bits at a time: 32 + 16 bits fit.
    let (mut left, mut value, mut done) = (u64::from(rest), 0, 0);
    while done < bits {
        let step = (bits - done).min(16);
        left <<= step;
        value = (value << step) | (left / by);
        left %= by;
        done += step;
    }
    value
}

/// pvclock's factors for a rate in kHz: ns = ((ticks << shift) * mul) >> 32, shift negative = right.
pub fn factors(khz: u32) -> (u32, i32) {
    let mut base = u64::from(khz.max(1)) * 1000;
    let mut scaled = 1_000_000_000u64;
    let mut shift = 0;
    // Bring the rate into (1e9/2, 2e9], so that the multiplier keeps its precision.
    while base > scaled * 2 || base >> 32 != 0 {
        base >>= 1;
        shift -= 1;
    }
    while base <= scaled / 2 {
        base <<= 1;
        shift += 1;
    }
    if base <= scaled {
        // mul must stay below 2^32: halve the quotient.
        scaled >>= 1;
        shift += 1;
    }
    (((scaled << 32) / base) as u32, shift)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_hosts_rate_changes_nothing() {
        let rate = Rate::host(2_400_000);
        assert!(!rate.is_scaled());
        assert_eq!(rate.guest_ticks(u64::MAX), u64::MAX);
        assert_eq!(rate.host_ticks(u64::MAX), u64::MAX);
        assert_eq!(Rate::asked(0, 2_400_000, None), Some(rate));
        // Near it: the hosts' ticks under the name that was asked for.
        let near = Rate::asked(2_400_600, 2_400_000, None).unwrap();
        assert!(!near.is_scaled() && near.khz() == 2_400_600 && near.clock_factors() == rate.clock_factors());
        assert_eq!(Rate::asked(2_400_601, 2_400_000, None), None, "no scaling in this CPU");
    }

    #[test]
    fn ratios_as_the_manuals_write_them() {
        let vmx = Rate::asked(3_600_000, 2_400_000, Some(Scaling::VMX)).unwrap();
        assert_eq!(vmx.ratio(Scaling::VMX), 3 << 47);
        let svm = Rate::asked(3_600_000, 2_400_000, Some(Scaling::SVM)).unwrap();
        assert_eq!(svm.ratio(Scaling::SVM), 3 << 31);
        assert_eq!(Rate::host(1).ratio(Scaling::SVM), 1 << 32);
        // A third cannot be held: cut off where the CPU's ratio ends, and the software's with it.
        let third = Rate::asked(1_000_000, 3_000_000, Some(Scaling::SVM)).unwrap();
        assert_eq!(third.ratio(Scaling::SVM), 0x5555_5555);
        assert_eq!(third.guest_ticks(3 << 40), ((u128::from(3u64 << 40) * 0x5555_5555) >> 32) as u64);
    }

    #[test]
    fn what_the_ratio_cannot_hold_is_refused() {
        let asked = |khz, host| Rate::asked(khz, host, Some(Scaling::SVM));
        assert!(asked(255_000_000, 1_000_000).is_some());
        assert_eq!(asked(256_000_000, 1_000_000), None);
        let most = i32::MAX as u32;
        assert!(Rate::asked(most - 1, 32_768, Some(Scaling::VMX)).is_some());
        assert_eq!(Rate::asked(most - 1, 32_767, Some(Scaling::VMX)), None);
        assert_eq!(Rate::asked(most, 1_000_000, Some(Scaling::VMX)), None);
    }

    proptest! {
        /// No tick is lost or won between the pieces of a time.
        #[test]
        fn times_in_pieces(
            khz in any::<u32>(),
            pieces in proptest::collection::vec(0u64..10_000_000_000, 1..100),
        ) {
            let (mut ticks, mut rest) = (0, 0);
            for ns in &pieces {
                let (more, over) = ticks_and_rest(*ns, khz, rest);
                ticks += more;
                rest = over;
            }
            let whole = u128::from(pieces.iter().sum::<u64>()) * u128::from(khz);
            prop_assert_eq!(u128::from(ticks) * 1_000_000 + u128::from(rest), whole);
        }

        /// A timer armed by it never fires early; late by the ratio's last bit at most.
        #[test]
        fn a_wait_lasts_as_long_as_asked(
            khz in 10_000u32..=10_000_000,
            host in 10_000u32..=10_000_000,
            start in any::<u64>(),
            guest in 0u64..1 << 44,
        ) {
            for scaling in [Scaling::VMX, Scaling::SVM] {
                let Some(rate) = Rate::asked(khz, host, Some(scaling)) else { continue };
                let start = start >> 16;
                let wait = rate.host_ticks(guest);
                let passed = rate.guest_ticks(start + wait) - rate.guest_ticks(start);
                let slack = (u128::from(wait) >> scaling.fraction) as u64 + u64::from(khz / host) + 2;
                prop_assert!(passed.abs_diff(guest) <= slack, "{passed} for {guest}");
            }
        }

        /// One second is one second.
        #[test]
        fn the_clocks_factors(khz in 1000u32..=20_000_000) {
            let (mul, shift) = factors(khz);
            let ticks = u64::from(khz) * 1000;
            let shifted = if shift < 0 { ticks >> -shift } else { ticks << shift };
            let ns = ((u128::from(shifted) * u128::from(mul)) >> 32) as u64;
            prop_assert!(ns.abs_diff(1_000_000_000) <= 10, "{ns} ns");
        }
    }
}
