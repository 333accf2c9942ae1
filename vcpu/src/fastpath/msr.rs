//! RDMSR and WRMSR that need nothing but the vCPU, or whom an IPI reaches.

use super::apic;
use super::count::counted;
use crate::backend::Backend;
use crate::host::{Host, Moment};
use crate::outcome::Fast;
use crate::shared::VcpuShared;
use crate::skip::{self, Behind};
use crate::timer;
use crate::vcpu::Vcpu;
use exitless_chooser::{Fallback, Mechanism::DeadlineFastpath, Mechanism::MsrFastpath};
use exitless_lapic::Mode;
use exitless_policy::Origin;
use exitless_x86::msr::Msr;
use exitless_x86::regs::Gpr;

/// The x2APIC's registers.
fn x2apic_offset(msr: u32) -> Option<u32> {
    msr.checked_sub(Msr::X2APIC.0).filter(|index| *index <= 0xff).map(|index| index << 4)
}

pub(super) fn read<B: Backend, H: Host<Cpu = B::Cpu>>(v: &mut Vcpu<B>, sh: &VcpuShared, host: &H) -> Fast {
    let msr = v.b.gprs().get(Gpr::Rcx) as u32;
    // Hardware, or the guest, has some of the APIC's.
    let elsewhere = x2apic_offset(msr).is_some() && (v.vapic.on() || v.pv.eoi_offered);
    if elsewhere || !sh.active(MsrFastpath) {
        return Fast::Slow;
    }
    let done = read_own(v, sh, host, msr);
    counted(sh, MsrFastpath, done)
}

/// Nothing that is read here waits for anybody.
fn read_own<B: Backend, H: Host<Cpu = B::Cpu>>(
    v: &mut Vcpu<B>,
    sh: &VcpuShared,
    host: &H,
    msr: u32,
) -> Result<(), Fallback> {
    let value = v.read_msr(sh, host, msr, Origin::Guest).map_err(|_| Fallback::Form)?;
    skip::over(v, host)?;
    sh.stats.by_msr.bump(msr);
    v.b.gprs_mut().set_edx_eax(value);
    Ok(())
}

pub(super) fn write<B: Backend, H: Host<Cpu = B::Cpu>>(v: &mut Vcpu<B>, sh: &VcpuShared, host: &H) -> Fast {
    let msr = v.b.gprs().get(Gpr::Rcx) as u32;
    let value = v.b.gprs().edx_eax();
    let done = match x2apic_offset(msr) {
        Some(offset) if v.lapic.mode() == Mode::X2Apic => {
            apic::write(v, sh, host, offset, value, Behind::Exiting)
        }
        _ if msr == Msr::TSC_DEADLINE.0 && sh.active(DeadlineFastpath) => {
            let done = deadline(v, sh, host, value);
            counted(sh, DeadlineFastpath, done)
        }
        _ => Fast::Slow,
    };
    if done == Fast::Reenter {
        sh.stats.by_msr.bump(msr);
    }
    done
}

/// The most frequent of a tickless guest's exits: the timer moves in the CPU or in the host, neither of which sleeps, and a
/// deadline that has passed is delivered without any.
fn deadline<B: Backend, H: Host<Cpu = B::Cpu>>(
    v: &mut Vcpu<B>,
    sh: &VcpuShared,
    host: &H,
    deadline: u64,
) -> Result<(), Fallback> {
    skip::over(v, host)?;
    let m = Moment { ns: 0, tsc: host.tsc() };
    // Where the CPU delivers, it has the vector.
    v.event_dirty |= timer::write_deadline(v, sh, host, deadline, m, Origin::Guest) && !v.vapic.in_page;
    Ok(())
}
