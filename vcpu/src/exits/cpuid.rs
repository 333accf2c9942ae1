//! CPUID from the table that user space set.

use super::ending::{skip_over, unreadable};
use crate::backend::Backend;
use crate::host::Host;
use crate::outcome::Next;
use crate::shared::VcpuShared;
use crate::skip;
use crate::vcpu::Vcpu;
use exitless_policy::cpuid::Dynamic;
use exitless_x86::apic::apic_base;
use exitless_x86::cpuid::CpuidResult;
use exitless_x86::regs::Gpr;

/// Answers CPUID in the registers; RIP is the caller's.
#[inline]
pub fn execute<B: Backend>(v: &mut Vcpu<B>) {
    let leaf = v.b.gprs().get(Gpr::Rax) as u32;
    let sub = v.b.gprs().get(Gpr::Rcx) as u32;
    let r = match v.cpuid.remembered(leaf, sub) {
        Some(r) => r,
        None => look_up(v, leaf, sub),
    };
    let g = v.b.gprs_mut();
    g.set(Gpr::Rax, u64::from(r.eax));
    g.set(Gpr::Rbx, u64::from(r.ebx));
    g.set(Gpr::Rcx, u64::from(r.ecx));
    g.set(Gpr::Rdx, u64::from(r.edx));
}

#[inline(never)]
fn look_up<B: Backend>(v: &mut Vcpu<B>, leaf: u32, sub: u32) -> CpuidResult {
    let apic_enabled = v.lapic.apic_base() & apic_base::ENABLE != 0;
    v.cpuid.execute(leaf, sub, &Dynamic { cr4: v.b.cr4(), xcr0: v.xcr0, apic_enabled })
}

/// The slow way, when the fast path could not read the instruction.
pub fn handle<B: Backend, H: Host<Cpu = B::Cpu>>(v: &mut Vcpu<B>, sh: &VcpuShared, host: &H) -> Next {
    if skip::next_rip(v, host, false).is_none() {
        return unreadable(v, sh, host);
    }
    execute(v);
    skip_over(v, sh, host)
}
