//! Registers of the APIC written without leaving the slice: those whose effect ends in the vCPU, and the ICR, of which
//! [`crate::ipi`] knows. Where hardware has the APIC, only what it leaves to software comes here.

use super::count::counted;
use crate::apic::ipiv;
use crate::backend::{ApicKind, Backend};
use crate::host::Host;
use crate::ipi;
use crate::outcome::Fast;
use crate::shared::VcpuShared;
use crate::skip::Behind;
use crate::vcpu::Vcpu;
use exitless_chooser::{Fallback, Mechanism};
use exitless_lapic::Mode;
use exitless_x86::apic::reg;

/// Whose the write of the register at `offset` is, by software's registers if they are `all`: hardware or the guest may have some
/// (`apic::vapic`, `apic::eoi`).
fn mechanism(offset: u32, all: bool) -> Option<Mechanism> {
    match offset {
        reg::ICR | reg::ICR2 => Some(Mechanism::IpiFastpath),
        reg::SELF_IPI if all => Some(Mechanism::IpiFastpath),
        reg::EOI if all => Some(Mechanism::EoiFastpath),
        reg::TPR if all => Some(Mechanism::MsrFastpath),
        _ => None,
    }
}

/// The register at `offset` of the page, or its MSR, is written with `value`. `Slow`: nothing was done.
pub(super) fn write<B: Backend, H: Host<Cpu = B::Cpu>>(
    v: &mut Vcpu<B>,
    sh: &VcpuShared,
    host: &H,
    offset: u32,
    value: u64,
    behind: Behind,
) -> Fast {
    // With AVIC the ICR is hardware's, and this exit one that nobody asked for.
    if v.vapic.kind == ApicKind::X2ApicIpis && v.vapic.keeps_irr() {
        return Fast::Slow;
    }
    let all = !v.vapic.on() && !v.pv.eoi_offered;
    let Some(m) = mechanism(offset, all).filter(|m| sh.active(*m)) else { return Fast::Slow };
    let done = match offset {
        reg::ICR => ipi::send(v, sh, host, value, behind),
        reg::ICR2 => icr2(v, host, value, behind),
        reg::SELF_IPI => self_ipi(v, sh, host, value, behind),
        reg::EOI => eoi(v, sh, host, value, behind),
        _ => tpr(v, sh, host, value, behind),
    };
    counted(sh, m, done)
}

/// The guest wrote the register at `offset` of the page, in hardware.
pub(super) fn wrote<B: Backend, H: Host<Cpu = B::Cpu>>(
    v: &mut Vcpu<B>,
    sh: &VcpuShared,
    host: &H,
    offset: u32,
) -> Fast {
    if offset != reg::ICR {
        return Fast::Slow;
    }
    if let Some(value) = ipiv::unsent(v) {
        sh.count_fallback(Mechanism::IpiVirtualization, Fallback::Form);
        return write(v, sh, host, offset, value, Behind::Here);
    }
    let Some(page) = v.b.apic_page().filter(|_| v.vapic.kind == ApicKind::XApic) else { return Fast::Slow };
    let value = u64::from(page.read(reg::ICR)) | u64::from(page.read(reg::ICR2) & 0xff00_0000) << 32;
    let done = write(v, sh, host, offset, value, Behind::Here);
    if done == Fast::Reenter
        && let Some(page) = v.b.apic_page()
    {
        // Delivery status is clear: who waits for it reads the page.
        page.write(reg::ICR, v.lapic.icr() as u32);
    }
    done
}

/// In x2APIC mode a register has reserved bits, and a write that sets one faults.
fn faults<B: Backend>(v: &Vcpu<B>, value: u64, most: u64) -> bool {
    value > most && v.lapic.mode() == Mode::X2Apic
}

/// Nobody but the vCPU hears of the end of an edge-triggered interrupt that no chip waits for.
fn eoi<B: Backend, H: Host<Cpu = B::Cpu>>(
    v: &mut Vcpu<B>,
    sh: &VcpuShared,
    host: &H,
    value: u64,
    behind: Behind,
) -> Result<(), Fallback> {
    let others = v.lapic.top_isr().is_some_and(|vector| sh.apic.is_level(vector) || host.wants_eoi(vector));
    if others || faults(v, value, 0) {
        return Err(Fallback::Form);
    }
    behind.go(v, host)?;
    if v.lapic.eoi(&sh.apic).is_some() {
        look_again(v, sh);
    }
    Ok(())
}

fn tpr<B: Backend, H: Host<Cpu = B::Cpu>>(
    v: &mut Vcpu<B>,
    sh: &VcpuShared,
    host: &H,
    value: u64,
    behind: Behind,
) -> Result<(), Fallback> {
    if faults(v, value, 0xff) {
        return Err(Fallback::Form);
    }
    behind.go(v, host)?;
    let _ = v.lapic.set_tpr(&sh.apic, value as u8);
    look_again(v, sh);
    Ok(())
}

/// The half of the command that sends nothing; there is none in x2APIC mode.
fn icr2<B: Backend, H: Host<Cpu = B::Cpu>>(
    v: &mut Vcpu<B>,
    host: &H,
    value: u64,
    behind: Behind,
) -> Result<(), Fallback> {
    if v.lapic.mode() == Mode::X2Apic {
        return Err(Fallback::Form);
    }
    v.lapic.keep_destination(value as u32);
    behind.go(v, host)
}

fn self_ipi<B: Backend, H: Host<Cpu = B::Cpu>>(
    v: &mut Vcpu<B>,
    sh: &VcpuShared,
    host: &H,
    value: u64,
    behind: Behind,
) -> Result<(), Fallback> {
    let behind = behind.known(v, host)?;
    if !v.lapic.interrupt_self(&sh.apic, value) {
        return Err(Fallback::Form);
    }
    v.event_dirty = true;
    behind.go(v, host)
}

/// What is deliverable may have changed, if anything waits.
fn look_again<B: Backend>(v: &mut Vcpu<B>, sh: &VcpuShared) {
    v.event_dirty |= sh.apic.has_irr();
}
