//! From bytes to an instruction: the decoder's door, and the operands of control and debug register accesses.

use exitless_x86::regs::{Gpr, Segment};
use iced_x86::{Decoder, DecoderError, DecoderOptions, Instruction, Mnemonic, OpKind, Register};

use crate::operand::RegRef;

/// The operand and address size the code segment gives by default (SDM vol. 3A, 3.4.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Real mode, virtual-8086 mode and 16-bit code segments.
    Bits16,
    /// 32-bit code segments.
    Bits32,
    /// 64-bit mode (EFER.LMA and CS.L).
    Bits64,
}

impl Mode {
    /// The mode of code that runs in `cs` while EFER holds `efer`.
    pub fn of(cs: &Segment, efer: u64) -> Self {
        if efer & exitless_x86::regs::efer::LMA != 0 && cs.long() {
            Self::Bits64
        } else if cs.db() {
            Self::Bits32
        } else {
            Self::Bits16
        }
    }
}

/// What an instruction does with a control or debug register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum CrAccessKind {
    /// `mov crN, reg`.
    WriteCr { cr: u8, from: Gpr },
    /// `mov reg, crN`.
    ReadCr { cr: u8, to: Gpr },
    /// `mov drN, reg`.
    WriteDr { dr: u8, from: Gpr },
    /// `mov reg, drN`.
    ReadDr { dr: u8, to: Gpr },
    /// `clts`.
    Clts,
    /// `lmsw reg`: the low 16 bits of the register are the source.
    LmswReg { from: Gpr },
    /// `lmsw m16`: the operand must be read from memory; see `Cpu`.
    LmswMem,
    /// `smsw reg`: `size` bytes (2, 4 or 8) of the register are written.
    SmswReg { to: Gpr, size: u8 },
    /// `smsw m16`.
    SmswMem,
}

/// A decoded access to a control or debug register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CrAccess {
    /// Instruction length in bytes.
    pub length: u8,
    /// What it does. Register operands are 64 bits wide in 64-bit mode and 32 bits elsewhere.
    pub kind: CrAccessKind,
}

/// Decodes MOV to and from CRn and DRn, CLTS, LMSW and SMSW; `None` for anything else or too few bytes.
/// `valid` is the number of fetched bytes at the front of `bytes`.
pub fn decode_cr_access(bytes: &[u8; 15], valid: usize, mode: Mode) -> Option<CrAccess> {
    let instr = decode(bytes, valid, mode, 0).ok()?;
    let kind = match instr.mnemonic() {
        Mnemonic::Clts => CrAccessKind::Clts,
        Mnemonic::Mov => mov_kind(instr.op0_register(), instr.op1_register())?,
        Mnemonic::Lmsw if instr.op0_kind() == OpKind::Memory => CrAccessKind::LmswMem,
        Mnemonic::Lmsw => CrAccessKind::LmswReg { from: RegRef::of(instr.op0_register())?.gpr },
        Mnemonic::Smsw if instr.op0_kind() == OpKind::Memory => CrAccessKind::SmswMem,
        Mnemonic::Smsw => {
            let r = RegRef::of(instr.op0_register())?;
            CrAccessKind::SmswReg { to: r.gpr, size: r.size as u8 }
        }
        _ => return None,
    };
    Some(CrAccess { length: instr.len() as u8, kind })
}

/// MOV with a control or debug register on one side.
fn mov_kind(to: Register, from: Register) -> Option<CrAccessKind> {
    match (control(to), control(from)) {
        (Some((true, cr)), _) => Some(CrAccessKind::WriteCr { cr, from: RegRef::of(from)?.gpr }),
        (Some((false, dr)), _) => Some(CrAccessKind::WriteDr { dr, from: RegRef::of(from)?.gpr }),
        (_, Some((true, cr))) => Some(CrAccessKind::ReadCr { cr, to: RegRef::of(to)?.gpr }),
        (_, Some((false, dr))) => Some(CrAccessKind::ReadDr { dr, to: RegRef::of(to)?.gpr }),
        _ => None,
    }
}

/// (is a control register rather than a debug register, number).
pub(crate) fn control(r: Register) -> Option<(bool, u8)> {
    let n = r as u32;
    if (Register::CR0 as u32..=Register::CR15 as u32).contains(&n) {
        Some((true, (n - Register::CR0 as u32) as u8))
    } else if (Register::DR0 as u32..=Register::DR15 as u32).contains(&n) {
        Some((false, (n - Register::DR0 as u32) as u8))
    } else {
        None
    }
}

/// Why bytes are not an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DecodeError {
    /// It is not valid, or not known to this decoder (EVEX, XOP, 3DNow!).
    Unknown,
    /// It goes on after the bytes fetched.
    CutShort,
    /// Valid, but for a LOCK prefix that it does not take: #UD.
    Lock,
}

/// AMD's reading where vendors differ: `lock mov cr0` is CR8, and 66h makes near branches of 64-bit mode 16 bits
/// wide. Intel processors raise #UD for the first before any exit; the second is left unhandled.
const OPTIONS: u32 = DecoderOptions::AMD;

/// Decodes the instruction at the front of `bytes`, of which `valid` were fetched at offset `rip`.
#[inline(never)]
pub(crate) fn decode(
    bytes: &[u8; 15],
    valid: usize,
    mode: Mode,
    rip: u64,
) -> Result<Instruction, DecodeError> {
    let fetched = bytes.get(..valid.min(15)).unwrap_or_default();
    match decode_with(fetched, mode, rip, OPTIONS) {
        Err(DecodeError::Unknown) => {}
        other => return other,
    }
    match decode_with(fetched, mode, rip, OPTIONS | DecoderOptions::NO_INVALID_CHECK) {
        Ok(instr) if instr.has_lock_prefix() => Err(DecodeError::Lock),
        _ if fetched.len() == 15 && too_long(fetched, mode) => Err(DecodeError::CutShort),
        _ => Err(DecodeError::Unknown),
    }
}

/// 14 bytes did not suffice and 15 do not. (The decoder calls all that do not fit into 15 bytes invalid; an opcode that is invalid
/// in its 15th byte counts as too long here.)
fn too_long(fetched: &[u8], mode: Mode) -> bool {
    let front = fetched.get(..14).unwrap_or_default();
    decode_with(front, mode, 0, OPTIONS).is_err_and(|e| e == DecodeError::CutShort)
}

/// A function of its own: constructing the decoder checks the length of its constant table, a panic that the module's
/// gates know by this name.
#[inline(never)]
fn decode_with(fetched: &[u8], mode: Mode, rip: u64, options: u32) -> Result<Instruction, DecodeError> {
    let bitness = match mode {
        Mode::Bits16 => 16,
        Mode::Bits32 => 32,
        Mode::Bits64 => 64,
    };
    let mut decoder =
        Decoder::try_with_ip(bitness, fetched, rip, options).map_err(|_| DecodeError::Unknown)?;
    let mut instr = Instruction::default();
    decoder.decode_out(&mut instr);
    match decoder.last_error() {
        DecoderError::None => Ok(instr),
        DecoderError::NoMoreBytes => Err(DecodeError::CutShort),
        _ => Err(DecodeError::Unknown),
    }
}

/// Makes the decoder build its tables.
pub(crate) fn warm_up() {
    let mut nop = [0; 15];
    nop[0] = 0x90;
    for mode in [Mode::Bits16, Mode::Bits32, Mode::Bits64] {
        core::hint::black_box(decode(&nop, 1, mode, 0).is_ok());
    }
}
