//! Intercepted exceptions. All of them go to the guest; the intercepts exist so that the host survives.
//!
//! #DB and #AC: a guest could otherwise make the CPU deliver them for ever (CVE-2015-8104, CVE-2015-5307).

use super::fault;
use crate::backend::Backend;
use crate::run::Next;
use crate::shared::VcpuShared;
use crate::vcpu::Vcpu;
use exitless_x86::exception::{Exception, Vector};

/// Reflects the exception.
pub fn handle<B: Backend>(v: &mut Vcpu<B>, sh: &VcpuShared, x: Exception) -> Next {
    match x.vector {
        // Hardware has set DR6 before the intercept; do not set its bits twice.
        Vector::DB => fault(v, sh, Exception { payload: v.b.dr6() & 0xe00f, ..x }),
        // The machine check was the host's: its handler has run or will run as soon as interrupts are on.
        Vector::MC => Next::Again,
        Vector::AC => fault(v, sh, Exception { error_code: Some(0), ..x }),
        _ => fault(v, sh, x),
    }
}
