//! How much before its deadline the CPU's timer runs out: the exit, and the entry with the interrupt, take their time, and the
//! guest shall have its interrupt at the deadline. What is left then is waited awake, in the slice.
//!
//! The values are stock KVM's: 1000 ns to begin with, an eighth of each error more or less, 1000 again beyond 5000. Errors
//! below 100 ticks are noise, above 10000 something else happened.

use crate::backend::Backend;
use crate::clock::units::ns_to_ticks;
use crate::host::Host;
use crate::trace;
use crate::traced::Trace;
use crate::vcpu::Vcpu;

/// How early, in ticks.
pub fn ticks<B: Backend, H: Host<Cpu = B::Cpu>>(v: &Vcpu<B>, host: &H) -> u64 {
    let ns = host.timer_advance_ns().unwrap_or(v.advance.ns());
    ns_to_ticks(u64::from(ns), host.tsc_khz())
}

/// The timer ran out for a deadline at `at` (host TSC): waits for it, never more than the advance.
pub fn wait<B: Backend, H: Host<Cpu = B::Cpu>>(v: &mut Vcpu<B>, host: &H, at: u64) {
    let now = host.tsc();
    let most = ticks(v, host);
    if host.timer_advance_ns().is_none() {
        v.advance.learn(now.abs_diff(at), now < at, host.tsc_khz());
    }
    trace::tell(host, || Trace::TimerWait { late: now.wrapping_sub(at) as i64 });
    let end = at.min(now.saturating_add(most));
    while host.tsc() < end {
        core::hint::spin_loop();
    }
}
