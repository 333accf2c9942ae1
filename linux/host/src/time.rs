//! Clocks in nanoseconds, and the TSC.

use crate::ffi;

/// CLOCK_MONOTONIC: the clock of [`crate::timer`].
#[inline]
pub fn monotonic_ns() -> u64 {
    // SAFETY: reads a clock; any context.
    unsafe { ffi::ex_monotonic_ns() }
}

/// CLOCK_REALTIME.
pub fn real_ns() -> u64 {
    // SAFETY: reads a clock.
    unsafe { ffi::ex_real_ns() }
}

/// The host TSC's frequency as the kernel measured it.
pub fn tsc_khz() -> u32 {
    // SAFETY: reads a variable.
    unsafe { ffi::ex_tsc_khz() }
}

/// The kernel has seen the TSC go wrong (differ between CPUs, or stop).
pub fn tsc_unstable() -> bool {
    // SAFETY: reads a variable.
    unsafe { ffi::ex_tsc_unstable() }
}

/// A CPU's TSC was seen behind another's: tells the kernel, which then counts by something else.
pub fn mark_tsc_unstable() {
    // SAFETY: any context in which interrupts may be on or off; sets flags and starts a work.
    unsafe { ffi::ex_tsc_mark_unstable() }
}

/// One instant on several clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instant {
    /// This CPU's TSC.
    pub tsc: u64,
    /// The kernel's clocks are that TSC's count, and it is stable.
    pub by_tsc: bool,
    /// CLOCK_MONOTONIC_RAW, and the time spent suspended: the base of kvmclock.
    pub base_ns: u64,
    /// CLOCK_REALTIME.
    pub real_ns: u64,
}

/// All clocks at one instant, for kvmclock's master clock.
pub fn snapshot() -> Instant {
    let mut s = ffi::ClockSnapshot::default();
    // SAFETY: s is ours to fill.
    let by_tsc = unsafe { ffi::ex_clock_snapshot(&raw mut s) };
    Instant { tsc: s.tsc, by_tsc, base_ns: s.base_ns, real_ns: s.real_ns }
}
