//! Second-level faults: memory that is not mapped yet, or a device.

use super::{emulate, suberror};
use crate::backend::{Backend, Event, SlatFault};
use crate::emul::Walked;
use crate::host::{FaultOutcome, Host};
use crate::run::{Next, RunExit};
use crate::shared::VcpuShared;
use crate::vcpu::Vcpu;
use exitless_x86::exception::{Exception, Vector};

/// Maps the page, or emulates the access to a device.
pub fn handle<B: Backend, H: Host<Cpu = B::Cpu>>(
    v: &mut Vcpu<B>,
    sh: &VcpuShared,
    host: &H,
    fault: SlatFault,
) -> Next {
    sh.stats.pf_taken.bump();
    match host.slat_fault(fault.gpa, fault.write, fault.fetch) {
        FaultOutcome::Fixed => {
            sh.stats.pf_fixed.bump();
            Next::Again
        }
        FaultOutcome::Mmio if fault.table_walk && delivers_fault(v) => {
            super::fault(v, sh, Exception::pf(0, v.b.cr2()))
        }
        FaultOutcome::Mmio | FaultOutcome::ReadOnly => {
            let operand = !fault.table_walk && !fault.fetch;
            let walked = operand.then_some(Walked { gpa: fault.gpa, write: fault.write });
            device(v, sh, host, fault.gpa, walked)
        }
        // User space takes the signal and tells the guest, or ends it; then, or if it does not care, the guest tries again.
        FaultOutcome::Poisoned(hva) => {
            host.memory_error(hva);
            Next::Again
        }
        FaultOutcome::Error(e) => Next::Leave(RunExit::Error(e)),
    }
}

/// A #PF or #DF is being delivered. Page tables outside of memory then make it a double or triple fault, whatever the
/// address was, which hardware does not tell.
fn delivers_fault<B: Backend>(v: &Vcpu<B>) -> bool {
    matches!(v.reinject, Some(Event::Exception(Exception { vector: Vector::PF | Vector::DF, .. })))
}

/// An access to a device at `gpa`; `walked`: it is an operand of the instruction that lies there.
pub(super) fn device<B: Backend, H: Host<Cpu = B::Cpu>>(
    v: &mut Vcpu<B>,
    sh: &VcpuShared,
    host: &H,
    gpa: u64,
    walked: Option<Walked>,
) -> Next {
    // An interrupted event whose frames or tables lie in a device: nothing can emulate that.
    if v.reinject.is_some() {
        let data = [0, v.b.exit_number(), 0, gpa];
        return Next::Leave(RunExit::Internal { suberror: suberror::DELIVERY_EV, data, ndata: 4 });
    }
    emulate::at(v, sh, host, walked)
}
