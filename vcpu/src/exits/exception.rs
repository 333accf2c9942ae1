//! Intercepted exceptions. They go to the guest; most intercepts exist so that the host survives.
//!
//! #DB and #AC: a guest could otherwise make the CPU deliver them for ever (CVE-2015-8104, CVE-2015-5307).
//! #UD: the hypercall instruction of the other vendor. It is answered here; the guest's code is never changed.

use super::{fault, hypercall};
use crate::backend::{Backend, By, Event};
use crate::host::Host;
use crate::run::Next;
use crate::shared::VcpuShared;
use crate::skip;
use crate::vcpu::Vcpu;
use exitless_insn::instruction_length;
use exitless_insn::length::Kind;
use exitless_x86::exception::{Exception, Vector};

/// Reflects the exception, unless it is not what it seems.
pub fn handle<B: Backend, H: Host<Cpu = B::Cpu>>(
    v: &mut Vcpu<B>,
    sh: &VcpuShared,
    host: &H,
    x: Exception,
) -> Next {
    match x.vector {
        Vector::UD => match foreign_hypercall(v, host) {
            Some(next) => hypercall::answer(v, sh, next),
            None => reflect(v, sh, x),
        },
        // Hardware has set DR6 before the intercept; do not set its bits twice.
        Vector::DB => reflect(v, sh, Exception { payload: v.b.dr6() & 0xe00f, ..x }),
        // The machine check was the host's: its handler has run behind the slice.
        Vector::MC => Next::Again,
        Vector::AC => reflect(v, sh, Exception { error_code: Some(0), ..x }),
        _ => reflect(v, sh, x),
    }
}

/// An exception that came while an interrupt or an NMI was being delivered takes its place, as without us: to deliver both could
/// go on for ever.
fn reflect<B: Backend>(v: &mut Vcpu<B>, sh: &VcpuShared, x: Exception) -> Next {
    v.lose_delivery();
    fault(v, sh, x)
}

/// INT1 did not reach its gate because #DB is intercepted: it is delivered as what it is.
pub fn int1<B: Backend>(v: &mut Vcpu<B>, length: u8) -> Next {
    v.reinject = Some(Event::Software(By::Int1, Vector::DB.0, length));
    v.event_dirty = true;
    Next::Again
}

/// RIP behind VMCALL or VMMCALL, if one of them lies at RIP.
fn foreign_hypercall<B: Backend, H: Host<Cpu = B::Cpu>>(v: &Vcpu<B>, host: &H) -> Option<u64> {
    let (bytes, valid) = skip::fetch(v, host, false).ok()?;
    match instruction_length(&bytes, valid, v.mode())? {
        (len, Kind::Vmcall | Kind::Vmmcall) => Some(skip::wrap(v.b.rip().wrapping_add(len as u64), v.mode())),
        _ => None,
    }
}
