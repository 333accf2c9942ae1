//! Instruction length for exits of processors that do not save the next RIP.

use exitless_x86::regs::Gpr;
use iced_x86::{Instruction, Mnemonic};

use crate::decode::{Mode, control, decode};
use crate::operand::RegRef;

/// Which instruction it is, as far as exits care.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Kind {
    Cpuid,
    Rdmsr,
    Wrmsr,
    Hlt,
    Vmmcall,
    Vmcall,
    Invd,
    Wbinvd,
    Monitor,
    Mwait,
    Xsetbv,
    Rdpmc,
    Rdtsc,
    Rdtscp,
    Pause,
    Invlpg,
    Invlpga,
    Clts,
    Vmrun,
    Vmload,
    Vmsave,
    Stgi,
    Clgi,
    Skinit,
    /// MOV to or from a control or debug register, LMSW, SMSW: see `decode_cr_access`.
    CrAccess,
    /// IN, OUT, INS, OUTS.
    Io,
    /// INT3 (CC), INTO, INT n or INT1 (F1): software interrupts, for re-injection.
    SoftwareInterrupt,
    /// MOVBE, which processors before 2013 lack.
    Movbe,
    /// RDPID to this register.
    Rdpid(Gpr),
    /// Anything else; the length is right.
    Other,
}

/// Length and kind of the instruction at the front of `bytes`, of which `valid` were fetched (at most 15).
/// `None`: not a valid instruction, or it continues after the bytes fetched.
pub fn instruction_length(bytes: &[u8; 15], valid: usize, mode: Mode) -> Option<(usize, Kind)> {
    match without_prefix(bytes) {
        Some((length, kind)) if length <= valid => Some((length, kind)),
        Some(_) => None,
        None => decoded(bytes, valid, mode),
    }
}

/// The exact opcodes that exit most, without any prefix. They mean the same in every mode.
fn without_prefix(bytes: &[u8; 15]) -> Option<(usize, Kind)> {
    let [first, second, third, ..] = *bytes;
    match (first, second) {
        (0x0f, 0xa2) => Some((2, Kind::Cpuid)),
        (0x0f, 0x30) => Some((2, Kind::Wrmsr)),
        (0x0f, 0x32) => Some((2, Kind::Rdmsr)),
        (0x0f, 0x31) => Some((2, Kind::Rdtsc)),
        (0x0f, 0x33) => Some((2, Kind::Rdpmc)),
        (0x0f, 0x06) => Some((2, Kind::Clts)),
        (0x0f, 0x08) => Some((2, Kind::Invd)),
        (0x0f, 0x09) => Some((2, Kind::Wbinvd)),
        (0x0f, 0x01) => group7(third).map(|kind| (3, kind)),
        (0xf3, 0x90) => Some((2, Kind::Pause)),
        (0xf4, _) => Some((1, Kind::Hlt)),
        (0xec..=0xef, _) => Some((1, Kind::Io)),
        (0xcc | 0xf1, _) => Some((1, Kind::SoftwareInterrupt)),
        _ => None,
    }
}

/// 0F 01 with a register form that is an opcode of its own (APM vol. 3, table A-7).
fn group7(modrm: u8) -> Option<Kind> {
    match modrm {
        0xc1 => Some(Kind::Vmcall),
        0xc8 => Some(Kind::Monitor),
        0xc9 => Some(Kind::Mwait),
        0xd1 => Some(Kind::Xsetbv),
        0xd8 => Some(Kind::Vmrun),
        0xd9 => Some(Kind::Vmmcall),
        0xda => Some(Kind::Vmload),
        0xdb => Some(Kind::Vmsave),
        0xdc => Some(Kind::Stgi),
        0xdd => Some(Kind::Clgi),
        0xde => Some(Kind::Skinit),
        0xdf => Some(Kind::Invlpga),
        0xf9 => Some(Kind::Rdtscp),
        _ => None,
    }
}

/// Everything else, and the opcodes above with prefixes.
fn decoded(bytes: &[u8; 15], valid: usize, mode: Mode) -> Option<(usize, Kind)> {
    let instr = decode(bytes, valid, mode, 0).ok()?;
    Some((instr.len(), kind_of(&instr)))
}

fn kind_of(instr: &Instruction) -> Kind {
    match instr.mnemonic() {
        Mnemonic::Cpuid => Kind::Cpuid,
        Mnemonic::Rdmsr => Kind::Rdmsr,
        Mnemonic::Wrmsr => Kind::Wrmsr,
        Mnemonic::Hlt => Kind::Hlt,
        Mnemonic::Vmmcall => Kind::Vmmcall,
        Mnemonic::Vmcall => Kind::Vmcall,
        Mnemonic::Invd => Kind::Invd,
        Mnemonic::Wbinvd | Mnemonic::Wbnoinvd => Kind::Wbinvd,
        Mnemonic::Monitor => Kind::Monitor,
        Mnemonic::Mwait => Kind::Mwait,
        Mnemonic::Xsetbv => Kind::Xsetbv,
        Mnemonic::Rdpmc => Kind::Rdpmc,
        Mnemonic::Rdtsc => Kind::Rdtsc,
        Mnemonic::Rdtscp => Kind::Rdtscp,
        Mnemonic::Pause => Kind::Pause,
        Mnemonic::Invlpg => Kind::Invlpg,
        Mnemonic::Invlpga => Kind::Invlpga,
        Mnemonic::Clts => Kind::Clts,
        Mnemonic::Vmrun => Kind::Vmrun,
        Mnemonic::Vmload => Kind::Vmload,
        Mnemonic::Vmsave => Kind::Vmsave,
        Mnemonic::Stgi => Kind::Stgi,
        Mnemonic::Clgi => Kind::Clgi,
        Mnemonic::Skinit => Kind::Skinit,
        Mnemonic::Lmsw | Mnemonic::Smsw => Kind::CrAccess,
        Mnemonic::Mov if moves_control(instr) => Kind::CrAccess,
        Mnemonic::In | Mnemonic::Out => Kind::Io,
        Mnemonic::Insb | Mnemonic::Insw | Mnemonic::Insd => Kind::Io,
        Mnemonic::Outsb | Mnemonic::Outsw | Mnemonic::Outsd => Kind::Io,
        Mnemonic::Int | Mnemonic::Int1 | Mnemonic::Int3 | Mnemonic::Into => Kind::SoftwareInterrupt,
        Mnemonic::Movbe => Kind::Movbe,
        Mnemonic::Rdpid => RegRef::of(instr.op0_register()).map_or(Kind::Other, |r| Kind::Rdpid(r.gpr)),
        _ => Kind::Other,
    }
}

/// One side of this MOV is a control or debug register.
fn moves_control(instr: &Instruction) -> bool {
    control(instr.op0_register()).is_some() || control(instr.op1_register()).is_some()
}
