//! The APIC timer's wires: from the APIC's wish to a timer of the host's, and back.
//!
//! Where the timer is, its *home*:
//! ```text
//!            arm                           block
//!   nobody ───────────────────▶ the CPU ───────────▶ the host (hrtimer)
//!      ▲                           ▲                      │
//!      └──── cancel (any home) ────┴──── runnable again ──┘    arm, no timer in the CPU: the host at once
//! ```
//! *The CPU*: a timer that runs while the vCPU is in the guest and then exits (VMX-preemption timer, SDM vol. 3C, 26.5.1). It
//! holds a moment of the host's TSC (a little before the deadline: [`early`]), and counts from there anew at each entry: on whatever CPU, after however long a
//! break. So a preempted vCPU needs no other timer: what was due meanwhile exits at once when it runs again, and before
//! that nobody could take the interrupt. Where CPUs' TSCs differ such a moment means nothing, and the host's timer is the home.

pub mod early;

use crate::backend::Backend;
use crate::clock::units::{ns_to_ticks, ticks_to_ns};
use crate::host::{Host, Moment};
use crate::shared::VcpuShared;
use crate::vcpu::Vcpu;
use exitless_lapic::{Armed, Now};

/// Both clocks as the guest's APIC sees them.
pub fn now<B: Backend>(v: &Vcpu<B>, m: Moment) -> Now {
    Now { ns: m.ns, guest_tsc: v.guest_tsc(m.tsc) }
}

/// Brings the timer in line with the APIC: what is due expires, what is next is armed.
pub fn sync<B: Backend, H: Host<Cpu = B::Cpu>>(v: &mut Vcpu<B>, sh: &VcpuShared, host: &H) {
    let m = host.now();
    if v.lapic.armed().is_due(&now(v, m)) {
        fired(v, sh, host);
    } else {
        arm(v, host, m);
    }
}

/// The host's timer fired, or the deadline is past: posts the vector if it is time, and arms the next.
pub fn fired<B: Backend, H: Host<Cpu = B::Cpu>>(v: &mut Vcpu<B>, sh: &VcpuShared, host: &H) {
    let m = host.now();
    let n = now(v, m);
    v.lapic.expire(&sh.apic, &n);
    v.event_dirty = true;
    arm(v, host, m);
}

/// The CPU's timer ran out, in a slice. `true`: the APIC's is due, and its vector posted unless masked.
pub fn ran_out<B: Backend, H: Host<Cpu = B::Cpu>>(v: &mut Vcpu<B>, sh: &VcpuShared, host: &H) -> bool {
    if v.timer_on_host {
        // It ran out for nobody. The host's will come; to cancel that one may wait, which a slice must not.
        return false;
    }
    let m = host.now();
    let Some((left, _)) = left(v, host, m) else { return false };
    if left > early::ticks(v, host) {
        arm(v, host, m);
        return false;
    }
    early::wait(v, host, m.tsc.saturating_add(left));
    // The guest finds its clock at the deadline, if not behind it.
    let m = host.now();
    let due = v.lapic.expire(&sh.apic, &now(v, m));
    arm(v, host, m);
    due
}

/// What is left at `m` until the APIC's timer is due: host ticks, and when that is on the host's clock, ns.
fn left<B: Backend, H: Host<Cpu = B::Cpu>>(v: &Vcpu<B>, host: &H, m: Moment) -> Option<(u64, u64)> {
    let khz = host.tsc_khz();
    match v.lapic.armed() {
        Armed::None => None,
        Armed::AtNs(ns) => Some((ns_to_ticks(ns.saturating_sub(m.ns), khz), ns)),
        Armed::AtTsc(t) => {
            let left = v.rate.host_ticks(t.saturating_sub(v.guest_tsc(m.tsc)));
            Some((left, m.ns.saturating_add(ticks_to_ns(left, khz))))
        }
    }
}

/// The one way to end it, whatever its home.
pub fn cancel<B: Backend, H: Host<Cpu = B::Cpu>>(v: &mut Vcpu<B>, host: &H) {
    v.b.set_timer(None);
    if core::mem::take(&mut v.timer_on_host) {
        host.cancel_timer();
    }
}

/// Arms for what the APIC waits for, which is not due at `m`. While the home is the CPU nothing here sleeps.
pub fn arm<B: Backend, H: Host<Cpu = B::Cpu>>(v: &mut Vcpu<B>, host: &H, m: Moment) {
    let Some((ticks, ns)) = left(v, host, m) else { return cancel(v, host) };
    let early = if v.b.has_timer() { early::ticks(v, host) } else { 0 };
    let at = m.tsc.saturating_add(ticks.saturating_sub(early));
    if host.steady_tsc() && v.b.set_timer(Some(at)) {
        if core::mem::take(&mut v.timer_on_host) {
            host.cancel_timer();
        }
        return;
    }
    v.b.set_timer(None);
    v.timer_on_host = true;
    host.arm_timer(ns);
}

/// When the CPU's timer should run out, ns on the host's clock; never, if the home is the host.
pub fn next_ns<B: Backend, H: Host<Cpu = B::Cpu>>(v: &Vcpu<B>, host: &H) -> u64 {
    if v.timer_on_host {
        return u64::MAX;
    }
    left(v, host, host.now()).map_or(u64::MAX, |(_, ns)| ns)
}

/// The vCPU is about to sleep: the CPU's timer cannot wake it. `false`: it is due already, do not sleep.
pub fn to_host<B: Backend, H: Host<Cpu = B::Cpu>>(v: &mut Vcpu<B>, sh: &VcpuShared, host: &H) -> bool {
    if v.timer_on_host {
        return true;
    }
    let m = host.now();
    let armed = v.lapic.armed();
    if armed.is_due(&now(v, m)) {
        fired(v, sh, host);
        return false;
    }
    if armed == Armed::None {
        return true;
    }
    let ns = next_ns(v, host);
    v.b.set_timer(None);
    v.timer_on_host = true;
    host.arm_timer(ns);
    true
}

/// The vCPU runs again.
pub fn to_cpu<B: Backend, H: Host<Cpu = B::Cpu>>(v: &mut Vcpu<B>, sh: &VcpuShared, host: &H) {
    if v.timer_on_host && v.b.has_timer() && host.steady_tsc() {
        sync(v, sh, host);
    }
}
