//! Control and debug register accesses that exit.

use super::{emulation_failure, fault, unreadable};
use crate::backend::Backend;
use crate::host::Host;
use crate::run::Next;
use crate::shared::VcpuShared;
use crate::skip;
use crate::vcpu::Vcpu;
use exitless_insn::{CrAccessKind as K, Mode, decode_cr_access};
use exitless_policy::control::{Mode as Switches, check_cr4};
use exitless_x86::exception::Exception;
use exitless_x86::regs::{Gpr, SegReg};

/// MOV to CR4 or CR8; other forms are not intercepted on any backend yet.
pub fn handle<B: Backend, H: Host<Cpu = B::Cpu>>(v: &mut Vcpu<B>, sh: &VcpuShared, host: &H) -> Next {
    let Ok((bytes, valid)) = skip::fetch(v, host, false) else { return unreadable(v, sh, host) };
    let mode = v.mode();
    let Some(access) = decode_cr_access(&bytes, valid, mode) else { return emulation_failure(v, host) };
    let done = match access.kind {
        K::WriteCr { cr: 4, from } => write_cr4(v, source(v, from, mode)),
        K::WriteCr { cr: 8, from } => write_cr8(v, sh, source(v, from, mode)),
        _ => return emulation_failure(v, host),
    };
    if !done {
        return fault(v, sh, Exception::gp(0));
    }
    v.finish_skip(skip::wrap(v.b.rip().wrapping_add(u64::from(access.length)), mode));
    Next::Again
}

fn source<B: Backend>(v: &Vcpu<B>, r: Gpr, mode: Mode) -> u64 {
    let value = v.b.gprs().get(r);
    if mode == Mode::Bits64 { value } else { value & 0xffff_ffff }
}

fn write_cr4<B: Backend>(v: &mut Vcpu<B>, new: u64) -> bool {
    let old = v.b.cr4();
    let now = Switches {
        cr0: v.b.cr0(),
        cr3: v.b.cr3(),
        cr4: old,
        efer: v.b.efer(),
        cs_long: v.b.segment(SegReg::Cs).long(),
    };
    if check_cr4(new, &now, v.cpuid.caps()).is_err() {
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

/// The first debug register access of a slice: load the guest's and let it run again without the intercept.
pub fn debug<B: Backend>(v: &mut Vcpu<B>) -> Next {
    v.dr_live = true;
    v.b.set_dr_intercept(false);
    Next::Again
}
