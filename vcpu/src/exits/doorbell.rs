//! Doorbells: addresses where any write, of any length and data, is told to somebody, and nothing else happens.
//!
//! An exit there is answered without a look at the guest's memory if the instruction is a *known store*: one that was read and
//! decoded when it rang before, and is known by what exits tell of it ([`Stopped`]). All it does is its write, so the guest goes on
//! behind it. Whoever replaces a known store by another instruction of its length, which then touches a doorbell, has rung: at
//! CPL 0 to 2 in 64-bit code, where alone stores become known, that is the doing of the system that owns the doorbell.
//! Where the exit tells the bytes (decode assists) even that cannot be.

use crate::backend::{Backend, SlatFault};
use crate::host::Host;
use crate::shared::VcpuShared;
use crate::skip;
use crate::trace;
use crate::traced::Trace;
use crate::vcpu::Vcpu;
use exitless_chooser::{Fallback, Mechanism::DoorbellFastpath};
use exitless_insn::{Mode, instruction_length};
use exitless_x86::regs::Segment;

/// The fault is a write to a marked page, and the instruction's own access: not one of a page walk.
pub fn may_ring(fault: SlatFault) -> bool {
    fault.marked && fault.write && !fault.table_walk
}

/// A write to a marked page, at `gpa`: a known store rings, and the guest moves on. `false`: nothing was done. In slices too.
pub fn rung<B: Backend, H: Host<Cpu = B::Cpu>>(v: &mut Vcpu<B>, sh: &VcpuShared, host: &H, gpa: u64) -> bool {
    if !sh.active(DoorbellFastpath) || v.reinject.is_some() || v.watches() {
        return false;
    }
    let Some(at) = v.b.stopped() else { return false };
    let Some(length) = v.stores.length(&at) else { return false };
    if !host.ring(gpa) {
        return false;
    }
    sh.count_hit(DoorbellFastpath);
    trace::tell(host, || Trace::FastMmio { gpa });
    v.finish_skip(at.rip.wrapping_add(u64::from(length)));
    true
}

/// Nothing rang: looks at the instruction, so that it is known the next time.
pub(super) fn learn<B: Backend, H: Host<Cpu = B::Cpu>>(v: &mut Vcpu<B>, sh: &VcpuShared, host: &H, gpa: u64) {
    let Some(at) = v.b.stopped() else { return };
    let idle = sh.active(DoorbellFastpath) && v.reinject.is_none() && !v.watches();
    if !idle || v.stores.length(&at).is_some() || !host.is_doorbell(gpa) {
        return;
    }
    sh.count_fallback(DoorbellFastpath, Fallback::Length);
    if v.mode() != Mode::Bits64 || !privileged(at.code) {
        return;
    }
    let Ok((bytes, valid)) = skip::fetch(v, host, false) else { return };
    let Some((length, _)) = instruction_length(&bytes, valid, Mode::Bits64) else { return };
    if plain_store(&bytes) && (at.length == 0 || usize::from(at.length) == length) {
        v.stores.learn(at, length as u8);
    }
}

/// Code of such a segment runs at its DPL, and that is not 3: it is not conforming.
fn privileged(code: u16) -> bool {
    const CODE: u16 = Segment::S | 8;
    const CONFORMING: u16 = 4;
    let dpl = Segment { attrib: code, ..Segment::default() }.dpl();
    code & (CODE | CONFORMING) == CODE && dpl < 3
}

/// MOV or MOVNTI of a register or a constant to memory, in 64-bit code: it writes once and changes no register and no flag.
fn plain_store(bytes: &[u8; 15]) -> bool {
    const PREFIXES: [u8; 8] = [0x66, 0x67, 0x2e, 0x36, 0x3e, 0x26, 0x64, 0x65];
    let mut rest = bytes.iter().copied().skip_while(|b| PREFIXES.contains(b) || b & 0xf0 == 0x40);
    let opcode = rest.next();
    let modrm = rest.next().unwrap_or(0xff);
    let (memory, digit) = (modrm >> 6 != 3, modrm >> 3 & 7);
    match opcode {
        Some(0x88 | 0x89) => memory,
        Some(0xa2 | 0xa3) => true,
        // The other digits are no MOV.
        Some(0xc6 | 0xc7) => memory && digit == 0,
        Some(0x0f) if modrm == 0xc3 => rest.next().is_some_and(|modrm| modrm >> 6 != 3),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_store(code: &[u8]) -> bool {
        let mut bytes = [0x90; 15];
        bytes[..code.len()].copy_from_slice(code);
        plain_store(&bytes)
    }

    /// What a doorbell may skip, and what it may not: whatever reads, changes a register or a flag, or writes more than once.
    #[test]
    fn plain_stores() {
        let stores: [&[u8]; 8] = [
            &[0x88, 0x07],                         // mov [rdi], al
            &[0x66, 0x89, 0x07],                   // mov [rdi], ax
            &[0x48, 0x89, 0x07],                   // mov [rdi], rax
            &[0x66, 0xc7, 0x00, 0x01, 0x00],       // mov word [rax], 1
            &[0xc6, 0x00, 0x01],                   // mov byte [rax], 1
            &[0xa3, 1, 2, 3, 4, 5, 6, 7, 8],       // mov [moffs], eax
            &[0x65, 0x89, 0x04, 0x25, 0, 0, 0, 0], // mov gs:[0], eax
            &[0x0f, 0xc3, 0x07],                   // movnti [rdi], eax
        ];
        for code in stores {
            assert!(is_store(code), "{code:x?}");
        }
        let others: [&[u8]; 14] = [
            &[0x8b, 0x07],             // mov eax, [rdi]
            &[0x87, 0x07],             // xchg [rdi], eax
            &[0x01, 0x07],             // add [rdi], eax
            &[0xf0, 0x01, 0x07],       // lock add [rdi], eax
            &[0xab],                   // stosd
            &[0xf3, 0xab],             // rep stosd
            &[0xa5],                   // movsd
            &[0xff, 0x37],             // push [rdi]
            &[0x50],                   // push rax
            &[0x8f, 0x07],             // pop [rdi]
            &[0x89, 0xc0],             // mov eax, eax
            &[0xc7, 0xf8, 0, 0, 0, 0], // xbegin
            &[0xf0, 0x89, 0x07],       // lock mov: #UD
            &[0x0f, 0xc3, 0xc0],       // #UD
        ];
        for code in others {
            assert!(!is_store(code), "{code:x?}");
        }
    }
}
