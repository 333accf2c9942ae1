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

/// What the guest asks for: small, so that it stays in registers. Work is out of the line of who only gets an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// The answer is known.
    Answer(i64),
    /// Many IPIs; the operands say to whom.
    SendIpi,
    /// The halt of the vCPU with this APIC id ends.
    Kick(u32),
    /// That one may run instead.
    Yield(u32),
    /// The wall clock and the guest's TSC at one moment, to be written to this address.
    ClockPairing(u64),
}

impl Call {
    /// What RAX and the operands ask for. In user mode nothing.
    pub fn of<B: Backend, H: Host<Cpu = B::Cpu>>(v: &Vcpu<B>, host: &H) -> Self {
        if v.b.cpl() != 0 {
            return Self::Answer(-KVM_EPERM);
        }
        match v.b.gprs().get(Gpr::Rax) {
            // The exit itself was the point.
            KVM_HC_VAPIC_POLL_IRQ => Self::Answer(0),
            number @ KVM_HC_KICK_CPU..=KVM_HC_SCHED_YIELD => Self::with_operands(v, host, number),
            _ => Self::Answer(-KVM_ENOSYS),
        }
    }

    #[inline(never)]
    fn with_operands<B: Backend, H: Host<Cpu = B::Cpu>>(v: &Vcpu<B>, host: &H, number: u64) -> Self {
        let [b, c] = [Gpr::Rbx, Gpr::Rcx].map(|r| operand(v, r));
        let has = |bit| v.cpuid.caps().pv & bit != 0;
        match number {
            // User space has the APICs, and nobody here knows whose id is whose.
            KVM_HC_SEND_IPI if has(feature::PV_SEND_IPI) && !host.irqchip() => Self::Answer(-KVM_EOPNOTSUPP),
            KVM_HC_KICK_CPU if has(feature::PV_UNHALT) && !host.irqchip() => Self::Answer(0),
            KVM_HC_SEND_IPI if has(feature::PV_SEND_IPI) => Self::SendIpi,
            KVM_HC_KICK_CPU if has(feature::PV_UNHALT) => Self::Kick(c as u32),
            KVM_HC_SCHED_YIELD if has(feature::PV_SCHED_YIELD) => Self::Yield(b as u32),
            KVM_HC_CLOCK_PAIRING if c == u64::from(KVM_CLOCK_PAIRING_WALLCLOCK) => Self::ClockPairing(b),
            KVM_HC_CLOCK_PAIRING => Self::Answer(-KVM_EOPNOTSUPP),
            _ => Self::Answer(-KVM_ENOSYS),
        }
    }

    /// Needs no moment with interrupts on.
    #[inline(always)]
    pub fn is_quick<B: Backend, H: Host<Cpu = B::Cpu>>(self, v: &Vcpu<B>, sh: &VcpuShared, host: &H) -> bool {
        matches!(self, Self::Answer(_)) || self.is_quick_work(v, sh, host)
    }

    #[inline(never)]
    fn is_quick_work<B: Backend, H: Host<Cpu = B::Cpu>>(
        self,
        v: &Vcpu<B>,
        sh: &VcpuShared,
        host: &H,
    ) -> bool {
        match self {
            Self::Answer(_) => true,
            Self::SendIpi => sh.active(PvIpi) && ipi::are_few(targets(v)),
            Self::Kick(_) => sh.active(PvUnhalt) && (!sh.active(QueueHeadBoost) || host.alone()),
            Self::Yield(_) => !sh.active(PvYield) || host.alone(),
            Self::ClockPairing(_) => false,
        }
    }

    /// Does it. `slow`: interrupts are on.
    #[inline(never)]
    fn work<B: Backend, H: Host<Cpu = B::Cpu>>(
        self,
        v: &Vcpu<B>,
        sh: &VcpuShared,
        host: &H,
        slow: bool,
    ) -> i64 {
        match self {
            Self::Answer(answer) => answer,
            Self::SendIpi => {
                let lowest = operand(v, Gpr::Rdx) as u32;
                let sent = ipi::send(host, targets(v), lowest, operand(v, Gpr::Rsi));
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

/// An operand, as wide as the mode has it.
fn operand<B: Backend>(v: &Vcpu<B>, r: Gpr) -> u64 {
    let wide = v.b.gprs().get(r);
    if v.mode() == Mode::Bits64 { wide } else { wide & 0xffff_ffff }
}

/// The bits of SEND_IPI, in two words.
fn targets<B: Backend>(v: &Vcpu<B>) -> u128 {
    let width = if v.mode() == Mode::Bits64 { 64 } else { 32 };
    u128::from(operand(v, Gpr::Rbx)) | u128::from(operand(v, Gpr::Rcx)) << width
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
    let call = Call::of(v, host);
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
    let answer = if let Call::Answer(answer) = call { answer } else { call.work(v, sh, host, slow) };
    let narrow = answer < 0 && v.mode() != Mode::Bits64;
    v.b.gprs_mut().set(Gpr::Rax, if narrow { u64::from(answer as u32) } else { answer as u64 });
}
