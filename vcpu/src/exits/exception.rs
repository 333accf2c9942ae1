//! Intercepted exceptions. They go to the guest; most intercepts exist so that the host survives.
//!
//! #DB and #AC: a guest could otherwise make the CPU deliver them for ever (CVE-2015-8104, CVE-2015-5307).
//! #BP: a debugger's breakpoints.
//! #UD: the hypercall instruction of the other vendor, and instructions that the guest's CPUID has and the CPU lacks. They are
//! answered here; the guest's code is never changed.

use super::ending::fault;
use super::{emulate, hypercall};
use crate::backend::{Backend, By, Event, SysReg};
use crate::debug;
use crate::host::Host;
use crate::outcome::Next;
use crate::shared::VcpuShared;
use crate::skip;
use crate::vcpu::Vcpu;
use exitless_insn::instruction_length;
use exitless_insn::length::Kind;
use exitless_x86::exception::{Exception, Vector};
use exitless_x86::regs::Gpr;

/// Reflects the exception, unless it is not what it seems.
pub fn handle<B: Backend, H: Host<Cpu = B::Cpu>>(
    v: &mut Vcpu<B>,
    sh: &VcpuShared,
    host: &H,
    x: Exception,
) -> Next {
    match x.vector {
        Vector::UD => undefined(v, sh, host, x),
        Vector::DB => debug_exception(v, sh, host, x),
        Vector::BP if v.debug.takes_bp() => debug::breakpoint(v),
        // The machine check was the host's: its handler has run behind the slice.
        Vector::MC => Next::Again,
        Vector::AC => reflect(v, sh, Exception { error_code: Some(0), ..x }),
        _ => reflect(v, sh, x),
    }
}

fn debug_exception<B: Backend, H: Host<Cpu = B::Cpu>>(
    v: &mut Vcpu<B>,
    sh: &VcpuShared,
    host: &H,
    x: Exception,
) -> Next {
    debug::hide_step(v, sh, host);
    match debug::debug_exception(v, x) {
        Ok(exit) => Next::Leave(exit),
        Err(x) => reflect(v, sh, x),
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

/// #UD of the instruction at RIP: answered if it is one that the guest has all the same.
fn undefined<B: Backend, H: Host<Cpu = B::Cpu>>(
    v: &mut Vcpu<B>,
    sh: &VcpuShared,
    host: &H,
    x: Exception,
) -> Next {
    let Ok((bytes, valid)) = skip::fetch(v, host, false) else { return reflect(v, sh, x) };
    let Some((len, kind)) = instruction_length(&bytes, valid, v.mode()) else { return reflect(v, sh, x) };
    let next = skip::wrap(v.b.rip().wrapping_add(len as u64), v.mode());
    let caps = v.cpuid.caps();
    match kind {
        Kind::Vmcall | Kind::Vmmcall => hypercall::answer(v, sh, host, next),
        Kind::Movbe if caps.movbe => emulate::run(v, sh, host),
        Kind::Rdpid(to) if caps.rdpid => read_pid(v, to, next),
        _ => reflect(v, sh, x),
    }
}

/// RDPID: TSC_AUX to a register, whatever the privilege level and CR4.TSD.
fn read_pid<B: Backend>(v: &mut Vcpu<B>, to: Gpr, next: u64) -> Next {
    let value = v.b.sys_reg(SysReg::TscAux) & 0xffff_ffff;
    v.b.gprs_mut().set(to, value);
    v.finish_skip(next);
    Next::Again
}
