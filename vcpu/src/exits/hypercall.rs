//! Hypercalls of the KVM ABI. None that this version offers needs an answer but "unknown".

use super::ending::{fault, unreadable};
use crate::backend::Backend;
use crate::host::Host;
use crate::outcome::Next;
use crate::shared::VcpuShared;
use crate::skip;
use crate::vcpu::Vcpu;
use exitless_insn::Mode;
use exitless_x86::exception::Exception;
use exitless_x86::regs::{Gpr, cr0};

/// `-KVM_ENOSYS`.
const ENOSYS: u64 = -1000i64 as u64;
/// `-KVM_EPERM`.
const EPERM: u64 = -1i64 as u64;

/// VMMCALL or VMCALL: RAX is the number, RAX the answer.
pub fn handle<B: Backend, H: Host<Cpu = B::Cpu>>(v: &mut Vcpu<B>, sh: &VcpuShared, host: &H) -> Next {
    let Some(next) = skip::next_rip(v, host, false) else { return unreadable(v, sh, host) };
    answer(v, sh, next)
}

/// A hypercall whose instruction ends at `next`.
pub(super) fn answer<B: Backend>(v: &mut Vcpu<B>, sh: &VcpuShared, next: u64) -> Next {
    if v.b.cr0() & cr0::PE == 0 {
        return fault(v, sh, Exception::ud());
    }
    execute(v, sh);
    v.finish_skip(next);
    Next::Again
}

/// Answers in the registers, in protected mode; RIP is the caller's.
pub fn execute<B: Backend>(v: &mut Vcpu<B>, sh: &VcpuShared) {
    sh.stats.hypercalls.bump();
    let number = v.b.gprs().get(Gpr::Rax);
    let mut answer = call(v, number);
    if v.mode() != Mode::Bits64 {
        answer &= 0xffff_ffff;
    }
    v.b.gprs_mut().set(Gpr::Rax, answer);
}

fn call<B: Backend>(v: &Vcpu<B>, number: u64) -> u64 {
    if v.b.cpl() != 0 {
        return EPERM;
    }
    match number {
        // KVM_HC_VAPIC_POLL_IRQ: the exit itself was the point.
        1 => 0,
        _ => ENOSYS,
    }
}
