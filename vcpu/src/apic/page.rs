//! The local APIC's register page.

use super::{ipiv, vapic, work};
use crate::backend::Backend;
use crate::host::Host;
use crate::outcome::Next;
use crate::shared::VcpuShared;
use crate::timer;
use crate::trace;
use crate::traced::Trace;
use crate::vcpu::Vcpu;
use exitless_lapic::Mode;
use exitless_x86::apic::reg;
use exitless_x86::msr::Msr;

/// Where in the APIC's page an access lies, if it does. The page is the APIC's in each of its modes.
fn offset<B: Backend>(v: &Vcpu<B>, gpa: u64) -> Option<u32> {
    let base = v.lapic.apic_base() & !0xfff;
    (gpa & !0xfff == base).then_some((gpa & 0xfff) as u32)
}

/// A register begins at `gpa`: the page is there, and has them.
pub fn is_register<B: Backend>(v: &Vcpu<B>, gpa: u64) -> bool {
    offset(v, gpa).is_some_and(|at| at & 0xf == 0) && !hole(v)
}

/// The page has no registers: the APIC is off, or they are MSRs. Nobody else answers there then, least of all user space, for
/// which a store is an MSI: loads give ones and stores are lost, as with stock KVM's quirk LAPIC_MMIO_HOLE (its default).
fn hole<B: Backend>(v: &Vcpu<B>) -> bool {
    v.lapic.mmio_base().is_none()
}

/// Reads the APIC's page; `false`: not in the page.
pub fn read<B: Backend, H: Host<Cpu = B::Cpu>>(
    v: &mut Vcpu<B>,
    sh: &VcpuShared,
    host: &H,
    gpa: u64,
    data: &mut [u8],
) -> bool {
    let Some(at) = offset(v, gpa) else { return false };
    if !host.irqchip() {
        return false;
    }
    if hole(v) {
        data.fill(0xff);
        return true;
    }
    vapic::take_back(v, sh);
    let now = timer::now(v, host.now());
    // Accesses that do not lie in a register's first 4 bytes are undefined (SDM vol. 3A, 11.4.1): zero.
    let value = v.lapic.mmio_read(&sh.apic, at & !0xf, &now);
    trace::tell(host, || Trace::Apic { write: false, register: at & !0xf, value: u64::from(value) });
    let bytes = (u64::from(value) >> ((at & 3) * 8)).to_le_bytes();
    for (i, d) in data.iter_mut().enumerate() {
        *d = if at & 0xc == 0 { bytes.get(i).copied().unwrap_or(0) } else { 0 };
    }
    true
}

/// Writes the APIC's page; `false`: not in the page.
pub fn write<B: Backend, H: Host<Cpu = B::Cpu>>(
    v: &mut Vcpu<B>,
    sh: &VcpuShared,
    host: &H,
    gpa: u64,
    data: &[u8],
) -> bool {
    let Some(at) = offset(v, gpa) else { return false };
    if !host.irqchip() {
        return false;
    }
    // Registers are written with aligned 32-bit stores; others have no effect, as on stock KVM.
    let (false, &[a, b, c, d], 0) = (hole(v), data, at & 0xf) else { return true };
    vapic::take_back(v, sh);
    let now = timer::now(v, host.now());
    let (value, in_service) = (u32::from_le_bytes([a, b, c, d]), trace::in_service(v));
    let asked = v.lapic.mmio_write(&sh.apic, at, value, &now);
    if host.tracing() {
        trace::page_written(v, host, at, value, in_service);
    }
    work::apply(v, sh, host, asked);
    true
}

/// The guest wrote the register at `offset` of the page, and hardware left what follows to us. The instruction is done.
pub fn wrote<B: Backend, H: Host<Cpu = B::Cpu>>(
    v: &mut Vcpu<B>,
    sh: &VcpuShared,
    host: &H,
    offset: u32,
) -> Next {
    let unsent = ipiv::unsent(v).filter(|_| offset == reg::ICR);
    vapic::take_back(v, sh);
    let Some(page) = v.b.apic_page() else { return Next::Again };
    // The only value that EOI takes, whatever stands there.
    let value = if offset == reg::EOI { 0 } else { page.read(offset) };
    let whole = unsent.unwrap_or(u64::from(value));
    let now = timer::now(v, host.now());
    let asked = match (v.lapic.mode(), offset) {
        (Mode::X2Apic, _) => {
            v.lapic.msr_write(&sh.apic, Msr::X2APIC.0 + (offset >> 4), whole, &now).unwrap_or_default()
        }
        _ => v.lapic.mmio_write(&sh.apic, offset, value, &now),
    };
    work::apply(v, sh, host, asked);
    Next::Again
}
