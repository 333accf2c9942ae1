//! The APIC timer's wires: from the APIC's wish to the host's timer and back.

use crate::backend::Backend;
use crate::host::{Host, Moment};
use crate::shared::VcpuShared;
use crate::vcpu::Vcpu;
use exitless_lapic::{Armed, Now};

/// Both clocks as the guest's APIC sees them.
pub fn now<B: Backend>(v: &Vcpu<B>, m: Moment) -> Now {
    Now { ns: m.ns, guest_tsc: v.guest_tsc(m.tsc) }
}

/// TSC ticks to ns, rounded up, saturating; `khz` ticks a millisecond.
pub fn ticks_to_ns(ticks: u64, khz: u32) -> u64 {
    let khz = u64::from(khz.max(1));
    let ms = ticks / khz;
    let rest = ticks % khz;
    ms.saturating_mul(1_000_000).saturating_add((rest * 1_000_000).div_ceil(khz))
}

/// Brings the host's timer in line with the APIC.
pub fn sync<B: Backend, H: Host<Cpu = B::Cpu>>(v: &mut Vcpu<B>, sh: &VcpuShared, host: &H) {
    let m = host.now();
    match v.lapic.armed() {
        Armed::None => host.cancel_timer(),
        Armed::AtNs(ns) if ns <= m.ns => fired(v, sh, host),
        Armed::AtNs(ns) => host.arm_timer(ns),
        Armed::AtTsc(t) => {
            let guest = v.guest_tsc(m.tsc);
            if t <= guest {
                fired(v, sh, host);
            } else {
                host.arm_timer(m.ns.saturating_add(ticks_to_ns(t - guest, host.tsc_khz())));
            }
        }
    }
}

/// The host's timer fired, or the deadline is past: posts the vector if it is time, and arms the next.
pub fn fired<B: Backend, H: Host<Cpu = B::Cpu>>(v: &mut Vcpu<B>, sh: &VcpuShared, host: &H) {
    let n = now(v, host.now());
    v.lapic.expire(&sh.apic, &n);
    v.event_dirty = true;
    let m = host.now();
    match v.lapic.armed() {
        Armed::None => host.cancel_timer(),
        Armed::AtNs(ns) => host.arm_timer(ns),
        Armed::AtTsc(t) => {
            let left = t.saturating_sub(v.guest_tsc(m.tsc));
            host.arm_timer(m.ns.saturating_add(ticks_to_ns(left, host.tsc_khz())));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::ticks_to_ns;

    /// Rounded up: a timer never fires before its deadline; far deadlines saturate instead of wrapping.
    #[test]
    fn conversion() {
        assert_eq!(ticks_to_ns(0, 1_000_000), 0);
        assert_eq!(ticks_to_ns(3, 1_000_000), 3);
        assert_eq!(ticks_to_ns(1, 3_000_000), 1);
        assert_eq!(ticks_to_ns(u64::MAX, 1000), u64::MAX);
        assert_eq!(ticks_to_ns(2_500_000, 2_500_000), 1_000_000);
    }
}
