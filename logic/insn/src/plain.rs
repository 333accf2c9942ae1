//! The plainest accesses to a device's register, read from their bytes in a few steps: MOV of 32 bits between memory and a register, or
//! of a constant to memory, with segment and REX prefixes.

use exitless_x86::regs::Gpr;

use crate::decode::Mode;
use crate::operand::gpr;

/// What such an instruction does with its operand in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plain {
    /// Loads it; the register's upper half becomes 0.
    Load(Gpr),
    /// Stores the register's lower half.
    Store(Gpr),
    /// Stores this.
    StoreConstant(u32),
}

const SEGMENTS: [u8; 6] = [0x26, 0x2e, 0x36, 0x3e, 0x64, 0x65];

/// Length and meaning of the instruction at the front of `code`, at most 15 bytes. `None`: another one, or it goes on behind them.
/// Where its operand lies is not looked at.
pub fn plain_mov(code: &[u8], mode: Mode) -> Option<(usize, Plain)> {
    let mut at = code.iter().take_while(|byte| SEGMENTS.contains(byte)).count();
    let mut rex = 0;
    if mode == Mode::Bits64 {
        let next = *code.get(at)?;
        if next & 0xf0 == 0x40 {
            (rex, at) = (next, at + 1);
        }
    }
    if mode == Mode::Bits16 || rex & REX_W != 0 {
        return None;
    }
    let opcode = *code.get(at)?;
    let moffs = if mode == Mode::Bits64 { 8 } else { 4 };
    let (length, what) = match opcode {
        0xa1 => (at + 1 + moffs, Plain::Load(Gpr::Rax)),
        0xa3 => (at + 1 + moffs, Plain::Store(Gpr::Rax)),
        0x89 | 0x8b | 0xc7 => {
            let modrm = *code.get(at + 1)?;
            let end = at + 2 + memory_operand(modrm, code.get(at + 2))?;
            let reg = gpr(modrm >> 3 & 7 | (rex & REX_R) << 1);
            match opcode {
                0x89 => (end, Plain::Store(reg)),
                0x8b => (end, Plain::Load(reg)),
                // The other digits are no MOV.
                _ if modrm & 0x38 != 0 => return None,
                _ => (end + 4, Plain::StoreConstant(constant(code.get(end..end + 4)?))),
            }
        }
        _ => return None,
    };
    (length <= code.len()).then_some((length, what))
}

const REX_W: u8 = 8;
const REX_R: u8 = 4;

/// Bytes of SIB and displacement behind a ModRM byte with 32- or 64-bit addresses (SDM vol. 2A, tables 2-2 and 2-3); `None`: a register.
fn memory_operand(modrm: u8, sib: Option<&u8>) -> Option<usize> {
    let rm = modrm & 7;
    let (size, base) = if rm == 4 { (1, *sib? & 7) } else { (0, rm) };
    match modrm >> 6 {
        0 if base == 5 => Some(size + 4),
        0 => Some(size),
        1 => Some(size + 1),
        2 => Some(size + 4),
        _ => None,
    }
}

fn constant(bytes: &[u8]) -> u32 {
    bytes.iter().rev().fold(0, |value, byte| value << 8 | u32::from(*byte))
}

/// Where the operand of what [`plain_mov`] found lies, in 64-bit code: its linear address, RIP behind the instruction being `next`. `None`:
/// the segment has a base of its own.
pub fn plain_address(code: &[u8], next: u64, gpr_value: impl Fn(Gpr) -> u64) -> Option<u64> {
    let mut at = code.iter().take_while(|byte| SEGMENTS.contains(byte)).count();
    if code.get(..at)?.iter().any(|byte| matches!(byte, 0x64 | 0x65)) {
        return None;
    }
    let first = *code.get(at)?;
    let rex = if first & 0xf0 == 0x40 { first } else { 0 };
    at += usize::from(rex != 0);
    if matches!(code.get(at)?, 0xa1 | 0xa3) {
        return Some(u64::from_le_bytes(*code.get(at + 1..)?.first_chunk()?));
    }
    let (modrm, rest) = code.get(at + 1..)?.split_first()?;
    let (mode, rm) = (modrm >> 6, modrm & 7);
    let (sib, rest) =
        if rm == 4 { rest.split_first().map(|(sib, rest)| (Some(*sib), rest))? } else { (None, rest) };
    let base = sib.unwrap_or(rm) & 7;
    let displacement = match (mode, base) {
        (1, _) => i64::from(*rest.first()? as i8),
        (2, _) | (0, 5) => i64::from(i32::from_le_bytes(*rest.first_chunk()?)),
        _ => 0,
    };
    let start = match (mode, base, sib) {
        (0, 5, None) => next,
        (0, 5, Some(_)) => 0,
        _ => gpr_value(gpr(base | (rex & REX_B) << 3)),
    };
    let index = |sib: u8| gpr(sib >> 3 & 7 | (rex & REX_X) << 2);
    let scaled =
        sib.filter(|sib| index(*sib) != Gpr::Rsp).map_or(0, |sib| gpr_value(index(sib)) << (sib >> 6));
    Some(start.wrapping_add(scaled).wrapping_add_signed(displacement))
}

const REX_B: u8 = 1;
const REX_X: u8 = 2;
