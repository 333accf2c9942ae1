//! Control register accesses that exit.
//!
//! These bytes are read after the exit, and user code may have changed them: see `permitted`.
//!
//! CR0 writes that change more than TS and MP are checked here although hardware checks them too: a state that VMRUN
//! refuses must never be reachable, whatever the CPU under us leaves unchecked.

use super::ending::{emulation_failure, fault, unreadable};
use crate::backend::Backend;
use crate::control::{follow_pdptes, lmsw, switches, write_cr0};
use crate::host::Host;
use crate::outcome::{Next, RunExit};
use crate::shared::VcpuShared;
use crate::skip;
use crate::traced::Trace;
use crate::vcpu::Vcpu;
use exitless_insn::{CrAccessKind as K, Mode, decode_cr_access};
use exitless_policy::control::{check_cr3, check_cr4};
use exitless_x86::exception::Exception;
use exitless_x86::regs::{Gpr, cr0, cr4};

/// MOV to CR0, CR4 or CR8, LMSW, CLTS; reads of CR0 while the backend keeps some of its bits to itself. The other control
/// registers are not intercepted, but emulated CPUs (QEMU TCG) report their accesses too while CR0's are.
pub fn handle<B: Backend, H: Host<Cpu = B::Cpu>>(v: &mut Vcpu<B>, sh: &VcpuShared, host: &H) -> Next {
    let Ok((bytes, valid)) = skip::fetch(v, host, false) else { return unreadable(v, sh, host) };
    let mode = v.mode();
    let Some(access) = decode_cr_access(&bytes, valid, mode) else { return emulation_failure(v, host) };
    if !permitted(v, access.kind) {
        return fault(v, sh, Exception::gp(0));
    }
    let cr8 = v.lapic.cr8();
    let before = switches(v);
    if host.tracing() {
        told(v, host, access.kind, mode);
    }
    let done = match access.kind {
        K::WriteCr { cr: 0, from } => write_cr0(v, source(v, from, mode)),
        K::ReadCr { cr: 0, to } => read_cr0(v, to, if mode == Mode::Bits64 { 8 } else { 4 }),
        K::ReadCr { cr: 2, to } => give(v, to, v.b.cr2(), mode),
        K::ReadCr { cr: 3, to } => give(v, to, v.b.cr3(), mode),
        K::ReadCr { cr: 4, to } => give(v, to, v.b.cr4(), mode),
        K::ReadCr { cr: 8, to } => give(v, to, u64::from(cr8), mode),
        K::WriteCr { cr: 2, from } => write_cr2(v, source(v, from, mode)),
        K::WriteCr { cr: 3, from } => write_cr3(v, source(v, from, mode)),
        K::SmswReg { to, size } => read_cr0(v, to, size),
        // The operand may lie in a device.
        K::SmswMem | K::LmswMem => return super::emulate::run(v, sh, host),
        K::Clts => write_cr0(v, v.b.cr0() & !cr0::TS),
        K::LmswReg { from } => lmsw(v, v.b.gprs().get(from)),
        K::WriteCr { cr: 4, from } => write_cr4(v, source(v, from, mode)),
        K::WriteCr { cr: 8, from } => write_cr8(v, sh, source(v, from, mode)),
        _ => return emulation_failure(v, host),
    };
    if !done || !follow_pdptes(v, host, &before) {
        return fault(v, sh, Exception::gp(0));
    }
    v.finish_skip(skip::wrap(v.b.rip().wrapping_add(u64::from(access.length)), mode));
    if !host.irqchip() && v.lapic.cr8() < cr8 {
        // User space has the APIC: an interrupt it holds back may be due now.
        return Next::Leave(RunExit::SetTpr);
    }
    Next::Again
}

/// Whoever traces hears of it; a read's value follows from what is there before it.
#[cold]
#[inline(never)]
fn told<B: Backend, H: Host<Cpu = B::Cpu>>(v: &Vcpu<B>, host: &H, kind: K, mode: Mode) {
    let (write, number, value) = match kind {
        K::WriteCr { cr, from } => (true, cr, source(v, from, mode)),
        K::ReadCr { cr: 2, .. } => (false, 2, v.b.cr2()),
        K::ReadCr { cr: 3, .. } => (false, 3, v.b.cr3()),
        K::ReadCr { cr: 4, .. } => (false, 4, v.b.cr4()),
        K::ReadCr { cr: 8, .. } => (false, 8, u64::from(v.lapic.cr8())),
        K::ReadCr { cr, .. } => (false, cr, v.b.cr0()),
        K::SmswReg { .. } | K::SmswMem => (false, 0, v.b.cr0()),
        K::Clts => (true, 0, v.b.cr0() & !cr0::TS),
        K::LmswReg { from } => (true, 0, v.b.cr0() & !0xf | v.b.gprs().get(from) & 0xf),
        K::LmswMem | K::ReadDr { .. } | K::WriteDr { .. } => return,
    };
    host.trace(&Trace::Cr { write, number, value });
}

/// Hardware checked the privilege of what it executed; these bytes were read afterwards. SMSW, which user code may execute
/// where UMIP is off, exits as well.
fn permitted<B: Backend>(v: &Vcpu<B>, kind: K) -> bool {
    let anybody = matches!(kind, K::SmswReg { .. } | K::SmswMem) && v.b.cr4() & cr4::UMIP == 0;
    anybody || v.b.cpl() == 0
}

fn source<B: Backend>(v: &Vcpu<B>, r: Gpr, mode: Mode) -> u64 {
    let value = v.b.gprs().get(r);
    if mode == Mode::Bits64 { value } else { value & 0xffff_ffff }
}

fn give<B: Backend>(v: &mut Vcpu<B>, to: Gpr, value: u64, mode: Mode) -> bool {
    v.b.gprs_mut().set(to, if mode == Mode::Bits64 { value } else { value & 0xffff_ffff });
    true
}

fn write_cr2<B: Backend>(v: &mut Vcpu<B>, new: u64) -> bool {
    v.b.set_cr2(new);
    true
}

/// Translations go even where the guest would keep them (bit 63 with PCIDs).
fn write_cr3<B: Backend>(v: &mut Vcpu<B>, new: u64) -> bool {
    let Ok(w) = check_cr3(new, &switches(v), v.cpuid.caps()) else { return false };
    v.b.set_cr3(w.cr3);
    v.flush = true;
    true
}

/// `size` bytes of CR0; 4 bytes clear the upper half of the register, 2 keep the rest.
fn read_cr0<B: Backend>(v: &mut Vcpu<B>, to: Gpr, size: u8) -> bool {
    let (old, value) = (v.b.gprs().get(to), v.b.cr0());
    let new = match size {
        2 => old & !0xffff | value & 0xffff,
        4 => value & 0xffff_ffff,
        _ => value,
    };
    v.b.gprs_mut().set(to, new);
    true
}

fn write_cr4<B: Backend>(v: &mut Vcpu<B>, new: u64) -> bool {
    let old = v.b.cr4();
    if check_cr4(new, &switches(v), v.cpuid.caps()).is_err() {
        return false;
    }
    v.b.set_cr4(new);
    // Paging bits changed: the CPU would drop its translations of this address space.
    if old != new {
        v.flush = true;
    }
    true
}

fn write_cr8<B: Backend>(v: &mut Vcpu<B>, sh: &VcpuShared, new: u64) -> bool {
    if new > 15 {
        return false;
    }
    let _ = v.lapic.set_cr8(&sh.apic, new as u8);
    v.b.set_cr8(new as u8);
    v.event_dirty = true;
    true
}
