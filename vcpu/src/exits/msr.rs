//! RDMSR and WRMSR.

use super::ending::{fault, unreadable};
use crate::backend::Backend;
use crate::host::Host;
use crate::outcome::Next;
use crate::shared::VcpuShared;
use crate::skip;
use crate::vcpu::Vcpu;
use exitless_policy::pmu::rdpmc;
use exitless_policy::{Invalid, Origin};
use exitless_x86::exception::Exception;
use exitless_x86::regs::{Gpr, cr0, cr4};

/// EDX:EAX from the MSR in ECX.
pub fn read<B: Backend, H: Host<Cpu = B::Cpu>>(v: &mut Vcpu<B>, sh: &VcpuShared, host: &H) -> Next {
    let msr = v.b.gprs().get(Gpr::Rcx) as u32;
    sh.stats.by_msr.bump(msr);
    let Ok(value) = v.read_msr(sh, host, msr, Origin::Guest) else { return fault(v, sh, Exception::gp(0)) };
    let Some(next) = skip::next_rip(v, host, false) else { return unreadable(v, sh, host) };
    v.b.gprs_mut().set_edx_eax(value);
    v.finish_skip(next);
    Next::Again
}

/// EDX:EAX from the performance counter in ECX.
pub fn read_counter<B: Backend, H: Host<Cpu = B::Cpu>>(v: &mut Vcpu<B>, sh: &VcpuShared, host: &H) -> Next {
    let index = v.b.gprs().get(Gpr::Rcx) as u32;
    let protected = v.b.cr0() & cr0::PE != 0 && v.b.cr4() & cr4::PCE == 0;
    let counter = if protected && v.b.cpl() != 0 { Err(Invalid) } else { rdpmc(index, v.cpuid.caps()) };
    let Ok(value) = counter else { return fault(v, sh, Exception::gp(0)) };
    let Some(next) = skip::next_rip(v, host, false) else { return unreadable(v, sh, host) };
    v.b.gprs_mut().set_edx_eax(value);
    v.finish_skip(next);
    Next::Again
}

/// EDX:EAX to the MSR in ECX.
pub fn write<B: Backend, H: Host<Cpu = B::Cpu>>(v: &mut Vcpu<B>, sh: &VcpuShared, host: &H) -> Next {
    let msr = v.b.gprs().get(Gpr::Rcx) as u32;
    let value = v.b.gprs().edx_eax();
    sh.stats.by_msr.bump(msr);
    // The length first: once the write had its effect, the instruction must not fault any more.
    let Some(next) = skip::next_rip(v, host, false) else { return unreadable(v, sh, host) };
    if v.write_msr_guest(sh, host, msr, value).is_err() {
        return fault(v, sh, Exception::gp(0));
    }
    v.finish_skip(next);
    Next::Again
}
