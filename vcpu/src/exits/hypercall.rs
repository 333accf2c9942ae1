//! Hypercalls of the KVM ABI. What the guest's CPUID does not show is unknown.

use super::ending::{fault, unreadable};
use crate::backend::Backend;
use crate::host::Host;
use crate::outcome::Next;
use crate::pv::{clock, ipi};
use crate::shared::VcpuShared;
use crate::skip;
use crate::vcpu::Vcpu;
use exitless_chooser::{Fallback, Mechanism, Mechanism::*};
use exitless_insn::Mode;
use exitless_pv_abi::{
    KVM_CLOCK_PAIRING_WALLCLOCK, KVM_ENOSYS, KVM_EOPNOTSUPP, KVM_EPERM, KVM_HC_CLOCK_PAIRING,
    KVM_HC_KICK_CPU, KVM_HC_SCHED_YIELD, KVM_HC_SEND_IPI, KVM_HC_VAPIC_POLL_IRQ, feature,
};
use exitless_x86::exception::Exception;
use exitless_x86::regs::{Gpr, cr0};

/// What the guest asks for: numbers are of 64 bits in 64-bit mode, of 32 elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// The answer is known.
    Answer(i64),
    /// Many IPIs: to whom, and what.
    SendIpi(u128, u32, u64),
    /// The halt of the vCPU with this APIC id ends.
    Kick(u32),
    /// That one may run instead.
    Yield(u32),
    /// The wall clock and the guest's TSC at one moment, to be written to this address.
    ClockPairing(u64),
}

impl Call {
    /// What RAX and the operands ask for. In user mode nothing.
    pub fn of<B: Backend>(v: &Vcpu<B>) -> Self {
        let wide = v.mode() == Mode::Bits64;
        let register = |r| if wide { v.b.gprs().get(r) } else { v.b.gprs().get(r) & 0xffff_ffff };
        let [b, c, d] = [Gpr::Rbx, Gpr::Rcx, Gpr::Rdx].map(register);
        let has = |bit| v.cpuid.caps().pv & bit != 0;
        if v.b.cpl() != 0 {
            return Self::Answer(-KVM_EPERM);
        }
        match register(Gpr::Rax) {
            // The exit itself was the point.
            KVM_HC_VAPIC_POLL_IRQ => Self::Answer(0),
            KVM_HC_SEND_IPI if has(feature::PV_SEND_IPI) => {
                let bits = u128::from(b) | u128::from(c) << if wide { 64 } else { 32 };
                Self::SendIpi(bits, d as u32, register(Gpr::Rsi))
            }
            KVM_HC_KICK_CPU if has(feature::PV_UNHALT) => Self::Kick(c as u32),
            KVM_HC_SCHED_YIELD if has(feature::PV_SCHED_YIELD) => Self::Yield(b as u32),
            KVM_HC_CLOCK_PAIRING if c == u64::from(KVM_CLOCK_PAIRING_WALLCLOCK) => Self::ClockPairing(b),
            KVM_HC_CLOCK_PAIRING => Self::Answer(-KVM_EOPNOTSUPP),
            _ => Self::Answer(-KVM_ENOSYS),
        }
    }

    /// Needs no moment with interrupts on.
    pub fn is_quick<H: Host>(self, sh: &VcpuShared, host: &H) -> bool {
        match self {
            Self::Answer(_) => true,
            Self::SendIpi(bits, ..) => sh.active(PvIpi) && ipi::are_few(bits),
            Self::Kick(_) => sh.active(PvUnhalt) && (!sh.active(QueueHeadBoost) || host.alone()),
            Self::Yield(_) => !sh.active(PvYield) || host.alone(),
            Self::ClockPairing(_) => false,
        }
    }

    /// Does it. `slow`: interrupts are on.
    fn execute<B: Backend, H: Host<Cpu = B::Cpu>>(
        self,
        v: &Vcpu<B>,
        sh: &VcpuShared,
        host: &H,
        slow: bool,
    ) -> i64 {
        match self {
            Self::Answer(answer) => answer,
            Self::SendIpi(bits, lowest, icr) => {
                let sent = ipi::send(host, bits, lowest, icr);
                ipi::count(sh, sent, slow);
                sent
            }
            Self::Kick(id) => {
                host.unhalt(id);
                if sh.active(PvUnhalt) {
                    sh.count_hit(PvUnhalt);
                }
                // Who waits in a queue cannot be overtaken: nobody gets the lock before this one runs.
                if slow {
                    run_instead(sh, host, QueueHeadBoost, id);
                }
                0
            }
            Self::Yield(id) => {
                if slow {
                    run_instead(sh, host, PvYield, id);
                }
                0
            }
            Self::ClockPairing(gpa) => clock::pair(v, host, gpa),
        }
    }
}

/// The vCPU with this APIC id may run in our place, as `m` has it.
fn run_instead<H: Host>(sh: &VcpuShared, host: &H, m: Mechanism, id: u32) {
    if !sh.active(m) || host.alone() {
        return;
    }
    if host.yield_to(id) {
        sh.count_hit(m);
    } else {
        sh.count_fallback(m, Fallback::Elsewhere);
    }
}

/// VMMCALL or VMCALL: RAX is the number, RAX the answer.
pub fn handle<B: Backend, H: Host<Cpu = B::Cpu>>(v: &mut Vcpu<B>, sh: &VcpuShared, host: &H) -> Next {
    let Some(next) = skip::next_rip(v, host, false) else { return unreadable(v, sh, host) };
    answer(v, sh, host, next)
}

/// A hypercall whose instruction ends at `next`.
pub(super) fn answer<B: Backend, H: Host<Cpu = B::Cpu>>(
    v: &mut Vcpu<B>,
    sh: &VcpuShared,
    host: &H,
    next: u64,
) -> Next {
    if v.b.cr0() & cr0::PE == 0 {
        return fault(v, sh, Exception::ud());
    }
    let call = Call::of(v);
    v.finish_skip(next);
    execute(v, sh, host, call, true);
    Next::Again
}

/// Does `call` and answers in RAX; in protected mode, RIP is behind the instruction. `slow`: interrupts are on.
pub fn execute<B: Backend, H: Host<Cpu = B::Cpu>>(
    v: &mut Vcpu<B>,
    sh: &VcpuShared,
    host: &H,
    call: Call,
    slow: bool,
) {
    sh.stats.hypercalls.bump();
    let answer = call.execute(v, sh, host, slow);
    let narrow = answer < 0 && v.mode() != Mode::Bits64;
    v.b.gprs_mut().set(Gpr::Rax, if narrow { u64::from(answer as u32) } else { answer as u64 });
}
