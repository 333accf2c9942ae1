//! Second-level faults: memory that is not mapped yet, or a device.

use super::{doorbell, emulate, ending};
use crate::backend::{Backend, Event, SlatFault};
use crate::host::{FaultOutcome, Host};
use crate::journal::Walked;
use crate::outcome::{Next, RunExit, suberror};
use crate::pv::async_pf;
use crate::shared::VcpuShared;
use crate::vcpu::Vcpu;
use exitless_chooser::Mechanism::AsyncPf;
use exitless_x86::exception::{Exception, Vector};

/// Maps the page, or emulates the access to a device.
pub fn handle<B: Backend, H: Host<Cpu = B::Cpu>>(
    v: &mut Vcpu<B>,
    sh: &VcpuShared,
    host: &H,
    fault: SlatFault,
) -> Next {
    sh.stats.pf_taken.bump();
    if doorbell::may_ring(fault) {
        if doorbell::rung(v, sh, host, fault.gpa) {
            return Next::Again;
        }
        doorbell::learn(v, sh, host, fault.gpa);
    }
    // Whatever it takes to have the page: reclaim, swap, the pages that look like it.
    v.b.dirty_l1d();
    match resolve(v, sh, host, fault) {
        FaultOutcome::Slow(_) => Next::Again,
        FaultOutcome::Fixed if fault.marked && broken(v, sh) => ending::unexpected(v.b.exit_number()),
        FaultOutcome::Fixed => {
            sh.stats.pf_fixed.bump();
            Next::Again
        }
        FaultOutcome::Mmio if fault.table_walk && delivers_fault(v) => {
            ending::fault(v, sh, Exception::pf(0, v.b.cr2()))
        }
        outcome @ (FaultOutcome::Mmio | FaultOutcome::ReadOnly) => {
            // Read-only memory must stay readable by hardware: no mark there.
            if outcome == FaultOutcome::Mmio && fault.write && !fault.marked && host.is_doorbell(fault.gpa) {
                host.mark_device(fault.gpa);
            }
            let walked = walked(v, fault);
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

/// [`Host::slat_fault`]; [`FaultOutcome::Slow`]: somebody else waits for the page.
fn resolve<B: Backend, H: Host<Cpu = B::Cpu>>(
    v: &mut Vcpu<B>,
    sh: &VcpuShared,
    host: &H,
    fault: SlatFault,
) -> FaultOutcome {
    match host.slat_fault(fault.gpa, fault.write, fault.fetch, !sh.active(AsyncPf)) {
        FaultOutcome::Slow(hva) if !async_pf::begin(v, sh, host, fault, hva) => {
            host.slat_fault(fault.gpa, fault.write, fault.fetch, true)
        }
        outcome => outcome,
    }
}

/// A fault at a mark was resolved: memory has come where a device was. Again and again, with no other exit in between, there was no
/// mark: the CPU finds the tables misconfigured, and would for ever.
fn broken<B: Backend>(v: &mut Vcpu<B>, sh: &VcpuShared) -> bool {
    const ENOUGH: u8 = 16;
    let (last, times) = v.resolved_marks;
    let now = sh.stats.exits.get();
    let times = if now == last.wrapping_add(1) { times.saturating_add(1) } else { 1 };
    v.resolved_marks = (now, times);
    times >= ENOUGH
}

/// What the exit tells of an operand. Nothing at CPL 3: the access may have been the system's, to a descriptor or the I/O bitmap
/// for instance. Below, such an access needs no less than an operand.
fn walked<B: Backend>(v: &Vcpu<B>, fault: SlatFault) -> Option<Walked> {
    if fault.table_walk || fault.fetch || v.b.cpl() == 3 {
        return None;
    }
    let linear = v.b.fault_linear();
    let known = linear.is_some() || !v.b.fetched().is_empty();
    known.then_some(Walked { gpa: fault.gpa, linear, write: fault.write })
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
