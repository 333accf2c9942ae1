//! Clocks in nanoseconds, and the TSC.

use crate::ffi;

/// CLOCK_MONOTONIC: the clock of [`crate::timer`].
#[inline]
pub fn monotonic_ns() -> u64 {
    // SAFETY: reads a clock; any context.
    unsafe { ffi::ex_monotonic_ns() }
}

/// CLOCK_BOOTTIME: goes on during suspend; the base of kvmclock.
pub fn boottime_ns() -> u64 {
    // SAFETY: reads a clock.
    unsafe { ffi::ex_boottime_ns() }
}

/// CLOCK_MONOTONIC_RAW: not steered by NTP.
pub fn raw_ns() -> u64 {
    // SAFETY: reads a clock.
    unsafe { ffi::ex_raw_ns() }
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

/// RDTSC that does not move before earlier loads.
#[inline]
pub fn rdtsc_ordered() -> u64 {
    // SAFETY: reads the TSC.
    unsafe { ffi::ex_rdtsc_ordered() }
}

/// One instant on several clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instant {
    /// Host TSC; `None` when the kernel's clock source is not a stable TSC.
    pub tsc: Option<u64>,
    /// CLOCK_MONOTONIC_RAW.
    pub raw_ns: u64,
    /// CLOCK_REALTIME.
    pub real_ns: u64,
    /// CLOCK_BOOTTIME.
    pub boot_ns: u64,
}

/// All clocks at one instant, for kvmclock's master clock.
pub fn snapshot() -> Instant {
    let mut s = ffi::ClockSnapshot::default();
    // SAFETY: s is ours to fill.
    let by_tsc = unsafe { ffi::ex_clock_snapshot(&raw mut s) };
    Instant { tsc: by_tsc.then_some(s.tsc), raw_ns: s.raw_ns, real_ns: s.real_ns, boot_ns: s.boot_ns }
}
