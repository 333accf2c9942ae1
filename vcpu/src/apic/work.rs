//! What APIC registers ask for when they were written.

use crate::backend::Backend;
use crate::host::Host;
use crate::shared::Request;
use crate::shared::VcpuShared;
use crate::timer;
use crate::vcpu::Vcpu;
use exitless_lapic::Work;

/// Does what a register access left to do.
pub fn apply<B: Backend, H: Host<Cpu = B::Cpu>>(v: &mut Vcpu<B>, sh: &VcpuShared, host: &H, work: Work) {
    v.vapic.written();
    if let Some(msg) = work.ipi {
        host.send_ipi(&msg);
    }
    if let Some(eoi) = work.eoi
        && (eoi.broadcast || host.wants_eoi(eoi.vector))
        && host.ioapic_eoi(eoi.vector, eoi.level)
    {
        v.user_eoi = Some(eoi.vector);
    }
    // SVR masks the timer too.
    if work.timer_changed || v.lapic.timer_masked() {
        timer::lazy::clear(v, sh, host);
    }
    if work.timer_changed {
        timer::sync(v, sh, host);
    }
    if work.routing_changed {
        host.apic_moved();
    }
    if work.rescan || work.eoi.is_some() {
        v.event_dirty = true;
        sh.request(Request::EVENT);
    }
}
