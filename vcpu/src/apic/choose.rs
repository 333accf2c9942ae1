//! What entries do with the APIC: hardware's or software's.

use super::{avic, eoi, ipiv, raw, vapic};
use crate::backend::ApicKind;
use crate::backend::Backend;
use crate::host::Host;
use crate::shared::VcpuShared;
use crate::vcpu::Vcpu;
use core::sync::atomic::Ordering::Release;
use exitless_lapic::Mode;

/// Decides, before a slice, what its entries do with the APIC.
pub fn choose<B: Backend, H: Host<Cpu = B::Cpu>>(v: &mut Vcpu<B>, sh: &VcpuShared, host: &H) {
    if !v.b.virtualizes_apic() {
        return;
    }
    ipiv::admit(v, host);
    raw::admit(v, sh, host);
    let kind = if v.vapic.keeps_irr() { avic::kind(v, sh, host) } else { kind(v, host) };
    if kind == v.vapic.kind {
        return;
    }
    raw::end(v, sh, host);
    vapic::take_back(v, sh);
    eoi::withdraw(v, host);
    v.vapic.kind = kind;
    v.vapic.stale = true;
    v.b.set_apic(kind);
    v.chosen = false;
    // Senders that still see the old value do what is right for both: see `request::process`.
    sh.delivers.store(kind != ApicKind::Software, Release);
    v.event_dirty = true;
}

/// Before the APIC forgets what is pending: hardware senders do not find it any more.
pub fn retire<B: Backend, H: Host<Cpu = B::Cpu>>(v: &mut Vcpu<B>, sh: &VcpuShared, host: &H) {
    avic::retire(v, host);
    ipiv::retire(v);
    raw::retire(v, sh);
}

/// On CPUs that take what is posted.
fn kind<B: Backend, H: Host<Cpu = B::Cpu>>(v: &Vcpu<B>, host: &H) -> ApicKind {
    match v.lapic.mode() {
        _ if !host.irqchip() || v.debug.blocks_interrupts() => ApicKind::Software,
        Mode::Disabled => ApicKind::Software,
        // Hardware knows nothing of the enable bit in SVR, and would accept self-IPIs. As MSRs they can exit, all else is
        // software's to refuse; as writes to the page they cannot.
        Mode::XApic if !v.lapic.sw_enabled() => ApicKind::Software,
        Mode::XApic => ApicKind::XApic,
        Mode::X2Apic if !v.lapic.sw_enabled() => ApicKind::X2ApicOff,
        Mode::X2Apic => ipiv::kind(v, host),
    }
}
