//! MOV from and to debug registers that exits.

use super::ending::{emulation_failure, fault, unreadable};
use crate::backend::Backend;
use crate::debug;
use crate::host::Host;
use crate::outcome::Next;
use crate::shared::VcpuShared;
use crate::skip;
use crate::vcpu::Vcpu;
use exitless_insn::{CrAccessKind as K, Mode, decode_cr_access};
use exitless_nospec::Guarded;
use exitless_policy::control::{check_dr6, check_dr7};
use exitless_x86::exception::Exception;
use exitless_x86::regs::{cr4, dr7};

/// The first access of a slice loads the guest's registers and runs again without the intercept. While a debugger is in the way
/// each access is done here.
pub fn handle<B: Backend, H: Host<Cpu = B::Cpu>>(v: &mut Vcpu<B>, sh: &VcpuShared, host: &H) -> Next {
    if v.lend_debug_registers() {
        return Next::Again;
    }
    let Ok((bytes, valid)) = skip::fetch(v, host, false) else { return unreadable(v, sh, host) };
    let mode = v.mode();
    let Some(access) = decode_cr_access(&bytes, valid, mode) else { return emulation_failure(v, host) };
    let (K::WriteDr { dr, .. } | K::ReadDr { dr, .. }) = access.kind else {
        return emulation_failure(v, host);
    };
    let Some(dr) = existing(v, dr) else { return fault(v, sh, Exception::ud()) };
    if v.b.cpl() != 0 {
        return fault(v, sh, Exception::gp(0));
    }
    // The exit comes before the fault (SDM vol. 3C, 26.1.1).
    if v.b.dr7() & dr7::GD != 0 {
        return debug::general_detect(v);
    }
    match access.kind {
        K::WriteDr { from, .. } => {
            let value = v.b.gprs().get(from);
            let value = if mode == Mode::Bits64 { value } else { value & 0xffff_ffff };
            if !write(v, dr, value) {
                return fault(v, sh, Exception::gp(0));
            }
        }
        K::ReadDr { to, .. } => {
            let value = read(v, dr);
            v.b.gprs_mut().set(to, if mode == Mode::Bits64 { value } else { value & 0xffff_ffff });
        }
        _ => {}
    }
    v.finish_skip(skip::wrap(v.b.rip().wrapping_add(u64::from(access.length)), mode));
    Next::Again
}

/// DR4 and DR5 are other names of DR6 and DR7, but for CR4.DE (SDM vol. 3B, 18.2.2); `None`: #UD.
fn existing<B: Backend>(v: &Vcpu<B>, dr: u8) -> Option<u8> {
    match dr {
        0..=3 | 6 | 7 => Some(dr),
        4 | 5 if v.b.cr4() & cr4::DE == 0 => Some(dr + 2),
        _ => None,
    }
}

fn read<B: Backend>(v: &Vcpu<B>, dr: u8) -> u64 {
    match dr {
        6 => v.b.dr6(),
        7 => v.guest_dr7(),
        n => v.dr.guarded(usize::from(n)).copied().unwrap_or(0),
    }
}

/// `false`: #GP.
fn write<B: Backend>(v: &mut Vcpu<B>, dr: u8, value: u64) -> bool {
    match dr {
        6 => {
            let Ok(value) = check_dr6(value) else { return false };
            v.b.set_dr6(value);
        }
        7 => {
            let Ok(value) = check_dr7(value) else { return false };
            v.set_guest_dr7(value);
        }
        n => {
            if let Some(r) = v.dr.guarded_mut(usize::from(n)) {
                *r = value;
            }
        }
    }
    true
}
