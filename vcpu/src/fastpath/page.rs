//! Registers in the xAPIC's page, where software has them and the exit tells the bytes of the instruction (AMD's decode assists): what
//! [`super::apic`] does for MSRs, and loads.
//!
//! The address is the second-level fault's, and taken for that of the instruction's one operand in memory, as
//! `exits::slat` takes it: below CPL 3, and for the kind of access that faulted.

use super::apic;
use super::count::counted;
use crate::apic::page;
use crate::backend::{Backend, SlatFault};
use crate::host::Host;
use crate::outcome::Fast;
use crate::shared::VcpuShared;
use crate::skip::{Behind, wrap};
use crate::vcpu::Vcpu;
use exitless_chooser::Mechanism::MsrFastpath;
use exitless_insn::{Plain, plain_mov};
use exitless_lapic::Now;
use exitless_x86::apic::reg;
use exitless_x86::regs::Gpr;

/// A register of the page lies there. None does at its start, where an operand that begins in the page before faults too.
pub(super) fn holds<B: Backend>(v: &Vcpu<B>, fault: SlatFault) -> bool {
    fault.gpa & 0xfff != 0 && page::is_register(v, fault.gpa)
}

pub(super) fn handle<B: Backend, H: Host<Cpu = B::Cpu>>(
    v: &mut Vcpu<B>,
    sh: &VcpuShared,
    host: &H,
    fault: SlatFault,
) -> Fast {
    if !is_own(v, host, fault) {
        return Fast::Slow;
    }
    let (offset, mode) = ((fault.gpa & 0xfff) as u32, v.mode());
    let Some((length, what)) = plain_mov(v.b.fetched(), mode) else { return Fast::Slow };
    let behind = Behind::At(wrap(v.b.rip().wrapping_add(length as u64), mode));
    let done = match (what, fault.write) {
        (Plain::Load(to), false) => load(v, sh, host, offset, to, behind),
        (Plain::Store(from), true) => store(v, sh, host, offset, v.b.gprs().get(from) as u32, behind),
        (Plain::StoreConstant(value), true) => store(v, sh, host, offset, value, behind),
        _ => Fast::Slow,
    };
    if done == Fast::Reenter {
        sh.stats.pf_taken.bump();
    }
    done
}

/// The register is accessed by an operand of the instruction's own, and not hidden by memory.
fn is_own<B: Backend, H: Host<Cpu = B::Cpu>>(v: &Vcpu<B>, host: &H, fault: SlatFault) -> bool {
    let operand = !fault.table_walk && !fault.fetch && v.b.cpl() < 3 && !v.watches();
    operand && host.irqchip() && !host.is_ram(fault.gpa, false)
}

fn store<B: Backend, H: Host<Cpu = B::Cpu>>(
    v: &mut Vcpu<B>,
    sh: &VcpuShared,
    host: &H,
    offset: u32,
    value: u32,
    behind: Behind,
) -> Fast {
    let value = u64::from(value);
    match offset {
        reg::ICR => apic::write(v, sh, host, offset, v.lapic.icr() & !0xffff_ffff | value, behind),
        reg::ICR2 | reg::EOI | reg::TPR => apic::write(v, sh, host, offset, value, behind),
        _ => Fast::Slow,
    }
}

/// Nothing that is read here waits for anybody; the timer's count needs a clock that slices do not look at.
fn load<B: Backend, H: Host<Cpu = B::Cpu>>(
    v: &mut Vcpu<B>,
    sh: &VcpuShared,
    host: &H,
    offset: u32,
    to: Gpr,
    behind: Behind,
) -> Fast {
    let elsewhere = v.vapic.on() || v.pv.eoi_offered;
    if offset == reg::TMCCT || elsewhere || !sh.active(MsrFastpath) {
        return Fast::Slow;
    }
    let value = v.lapic.mmio_read(&sh.apic, offset, &Now { ns: 0, guest_tsc: 0 });
    v.b.gprs_mut().set(to, u64::from(value));
    let done = behind.go(v, host);
    counted(sh, MsrFastpath, done)
}
