//! Ticks and nanoseconds.

/// TSC ticks to ns, rounded up, saturating; `khz` ticks a millisecond.
pub fn ticks_to_ns(ticks: u64, khz: u32) -> u64 {
    let khz = u64::from(khz.max(1));
    let ms = ticks / khz;
    let rest = ticks % khz;
    ms.saturating_mul(1_000_000).saturating_add((rest * 1_000_000).div_ceil(khz))
}

/// ns to TSC ticks, rounded up, saturating.
pub fn ns_to_ticks(ns: u64, khz: u32) -> u64 {
    let khz = u64::from(khz.max(1));
    let (ms, rest) = (ns / 1_000_000, ns % 1_000_000);
    ms.saturating_mul(khz).saturating_add((rest * khz).div_ceil(1_000_000))
}

#[cfg(test)]
mod tests {
    use super::{ns_to_ticks, ticks_to_ns};

    /// Rounded up: a timer never fires before its deadline; far deadlines saturate instead of wrapping.
    #[test]
    fn conversion() {
        assert_eq!(ticks_to_ns(0, 1_000_000), 0);
        assert_eq!(ticks_to_ns(3, 1_000_000), 3);
        assert_eq!(ticks_to_ns(1, 3_000_000), 1);
        assert_eq!(ticks_to_ns(u64::MAX, 1000), u64::MAX);
        assert_eq!(ticks_to_ns(2_500_000, 2_500_000), 1_000_000);
        assert_eq!(ns_to_ticks(1_000_000, 2_500_000), 2_500_000);
        assert_eq!(ns_to_ticks(1, 100_000), 1);
        assert_eq!(ns_to_ticks(u64::MAX, u32::MAX), u64::MAX);
    }
}
