//! The end of an interrupt: the offer to skip the write (PV EOI, in guest memory that the guest named by MSR), and who hears of it
//! where hardware ends it.

use super::vapic;
use crate::backend::Backend;
use crate::host::Host;
use crate::outcome::Next;
use crate::shared::VcpuShared;
use crate::trace;
use crate::traced::Trace;
use crate::vcpu::Vcpu;
use crate::vcpu::pv::enabled;
use exitless_pv_abi::KVM_PV_EOI_ADDRESS;

/// An offer may have to be made, in the guest's memory: not in a slice.
pub fn may_offer<B: Backend>(v: &Vcpu<B>) -> bool {
    enabled(v.pv.eoi) && !v.vapic.on()
}

/// After injection: lets the guest skip the EOI of an edge-triggered interrupt behind which nothing waits.
pub fn offer<B: Backend, H: Host<Cpu = B::Cpu>>(v: &mut Vcpu<B>, sh: &VcpuShared, host: &H) {
    if !enabled(v.pv.eoi) {
        return;
    }
    let want = v.lapic.can_pv_eoi(&sh.apic).is_some_and(|vector| !host.wants_eoi(vector));
    if want == v.pv.eoi_offered {
        return;
    }
    let byte = [u8::from(want)];
    if v.write_guest(host, v.pv.eoi & KVM_PV_EOI_ADDRESS, &byte) {
        v.pv.eoi_offered = want;
    }
}

/// Before user space may look: takes back an offer that was not used, so that the APIC's registers tell all. The next
/// entry offers again.
pub fn withdraw<B: Backend, H: Host<Cpu = B::Cpu>>(v: &mut Vcpu<B>, host: &H) {
    if core::mem::take(&mut v.pv.eoi_offered) {
        v.write_guest(host, v.pv.eoi & KVM_PV_EOI_ADDRESS, &[0]);
    }
}

/// After a slice, before anything looks at the APIC: did the guest use the offer?
pub fn collect<B: Backend, H: Host<Cpu = B::Cpu>>(v: &mut Vcpu<B>, sh: &VcpuShared, host: &H) {
    if !v.pv.eoi_offered {
        return;
    }
    let gpa = v.pv.eoi & KVM_PV_EOI_ADDRESS;
    let mut byte = [0];
    if !v.read_guest(host, gpa, &mut byte) {
        return;
    }
    if byte[0] & 1 == 0 {
        v.pv.eoi_offered = false;
        vapic::take_back(v, sh);
        // Only edge-triggered interrupts are offered: no I/O APIC waits for this EOI.
        let ended = v.lapic.eoi(&sh.apic);
        trace::tell(host, || Trace::PvEoi { vector: ended.map_or(0, |e| e.vector) });
        v.event_dirty = true;
    }
}

/// The guest ended `vector`, which somebody wants to hear of; hardware has taken it out of the ISR.
pub fn ended<B: Backend, H: Host<Cpu = B::Cpu>>(
    v: &mut Vcpu<B>,
    sh: &VcpuShared,
    host: &H,
    vector: u8,
) -> Next {
    if host.wants_eoi(vector) && host.ioapic_eoi(vector, sh.apic.is_level(vector)) {
        v.user_eoi = Some(vector);
    }
    Next::Again
}
