//! The APIC's page where hardware stops at it.

use super::{emulate, slat};
use crate::backend::Backend;
use crate::host::Host;
use crate::outcome::Next;
use crate::shared::VcpuShared;
use crate::vcpu::Vcpu;

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
