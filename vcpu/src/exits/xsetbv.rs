//! XSETBV: the guest's XCR0.

use super::ending::{fault, unreadable};
use crate::backend::Backend;
use crate::host::Host;
use crate::outcome::Next;
use crate::shared::VcpuShared;
use crate::skip;
use crate::vcpu::Vcpu;
use exitless_policy::control::check_xcr0;
use exitless_x86::exception::Exception;
use exitless_x86::regs::{Gpr, cr4};

/// Checks and stores XCR0; it is loaded with the next slice.
pub fn handle<B: Backend, H: Host<Cpu = B::Cpu>>(v: &mut Vcpu<B>, sh: &VcpuShared, host: &H) -> Next {
    if v.b.cr4() & cr4::OSXSAVE == 0 {
        return fault(v, sh, Exception::ud());
    }
    let (index, value) = (v.b.gprs().get(Gpr::Rcx) as u32, v.b.gprs().edx_eax());
    let checked = check_xcr0(index, value, v.cpuid.caps());
    let (0, Ok(value)) = (v.b.cpl(), checked) else { return fault(v, sh, Exception::gp(0)) };
    let Some(next) = skip::next_rip(v, host, false) else { return unreadable(v, sh, host) };
    v.xcr0 = value;
    v.finish_skip(next);
    Next::Again
}
