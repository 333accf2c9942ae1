//! The APIC's page where hardware stops at it.

use super::{emulate, msr, slat};
use crate::apic::page;
use crate::backend::Backend;
use crate::host::Host;
use crate::outcome::Next;
use crate::shared::VcpuShared;
use crate::vcpu::Vcpu;
use exitless_avic::Access;

/// An access to the page that hardware stops at: as if nothing were mapped there.
pub fn refused<B: Backend, H: Host<Cpu = B::Cpu>>(
    v: &mut Vcpu<B>,
    sh: &VcpuShared,
    host: &H,
    offset: u32,
) -> Next {
    let Some(base) = v.lapic.mmio_base() else { return emulate::at(v, sh, host, None) };
    let gpa = base | u64::from(offset);
    // It may have been the delivery of an event, or had no linear address.
    slat::device(v, sh, host, gpa, None)
}

/// AVIC leaves an access to a register to us. Its registers are MSRs: what it stops before is RDMSR or WRMSR.
pub fn unaccelerated<B: Backend, H: Host<Cpu = B::Cpu>>(
    v: &mut Vcpu<B>,
    sh: &VcpuShared,
    host: &H,
    offset: u32,
    write: bool,
) -> Next {
    match (exitless_avic::unaccelerated(offset, write), write) {
        (Access::Trap, _) => page::wrote(v, sh, host, offset),
        (Access::Fault, true) => msr::write(v, sh, host),
        (Access::Fault, false) => msr::read(v, sh, host),
    }
}
