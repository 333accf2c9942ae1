//! The shortcut for plain MOVs against the decoder.

mod common;

use common::Random;
use exitless_insn::{Mode, Plain, plain_address, plain_mov};
use exitless_x86::regs::Gpr;
use iced_x86::{Code, Decoder, DecoderOptions, Instruction, OpKind, Register};

/// A 32-bit register of the decoder's, by its encoding.
fn is(r: Register, gpr: Gpr) -> bool {
    r as usize - Register::EAX as usize == gpr as usize
}

/// What the decoder says it is, of those that count as plain.
fn decoded(bytes: &[u8; 15], valid: usize, mode: Mode) -> Option<(usize, Instruction)> {
    let bits = if mode == Mode::Bits64 { 64 } else { 32 };
    let instr = Decoder::new(bits, &bytes[..valid], DecoderOptions::AMD).decode();
    let plain = matches!(
        instr.code(),
        Code::Mov_rm32_r32
            | Code::Mov_r32_rm32
            | Code::Mov_rm32_imm32
            | Code::Mov_EAX_moffs32
            | Code::Mov_moffs32_EAX
    );
    let memory = [instr.op0_kind(), instr.op1_kind()].contains(&OpKind::Memory);
    (plain && memory).then_some((instr.len(), instr))
}

fn agrees(what: Plain, instr: &Instruction) -> bool {
    match what {
        Plain::Load(gpr) => instr.op1_kind() == OpKind::Memory && is(instr.op0_register(), gpr),
        Plain::Store(gpr) => instr.op1_kind() == OpKind::Register && is(instr.op1_register(), gpr),
        Plain::StoreConstant(value) => {
            instr.op1_kind() == OpKind::Immediate32 && instr.immediate32() == value
        }
    }
}

/// Registers with values of their own, those for 64-bit addresses.
fn value(r: Register) -> u64 {
    (r as u64 - Register::RAX as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// The operand's address is the decoder's, FS and GS left to it.
fn lies_there(bytes: &[u8; 15], instr: &Instruction) {
    let registers = [
        Register::RAX,
        Register::RCX,
        Register::RDX,
        Register::RBX,
        Register::RSP,
        Register::RBP,
        Register::RSI,
        Register::RDI,
        Register::R8,
        Register::R9,
        Register::R10,
        Register::R11,
        Register::R12,
        Register::R13,
        Register::R14,
        Register::R15,
    ];
    let op = u32::from(instr.op0_kind() != OpKind::Memory);
    let theirs = instr.virtual_address(op, 0, |r, _, _| match r {
        Register::FS | Register::GS => None,
        Register::ES | Register::CS | Register::SS | Register::DS => Some(0),
        _ => Some(value(r)),
    });
    // The decoder counted from 0: what lies at RIP does so here as well.
    let ours = plain_address(bytes, instr.next_ip(), |gpr| value(registers[gpr as usize]));
    let based = bytes.iter().take_while(|b| [0x26, 0x2e, 0x36, 0x3e, 0x64, 0x65].contains(b));
    if based.clone().any(|b| matches!(b, 0x64 | 0x65)) {
        assert_eq!(ours, None, "{bytes:x?}");
    } else {
        assert_eq!(ours, theirs, "{bytes:x?}");
    }
}

/// Prefixes that the shortcut leaves to the decoder: sizes, LOCK and the hints that share REP's bytes, REX before another prefix.
fn is_odd(bytes: &[u8; 15], mode: Mode) -> bool {
    const LEGACY: [u8; 11] = [0x26, 0x2e, 0x36, 0x3e, 0x64, 0x65, 0x66, 0x67, 0xf0, 0xf2, 0xf3];
    let rex = |b: &u8| mode == Mode::Bits64 && b & 0xf0 == 0x40;
    let prefixes: Vec<u8> = bytes.iter().copied().take_while(|b| LEGACY.contains(b) || rex(b)).collect();
    prefixes.iter().any(|b| LEGACY[6..].contains(b)) || prefixes.iter().rev().skip(1).any(rex)
}

/// Each opcode with each ModRM byte, under random prefixes and with random bytes behind, whole and cut short.
#[test]
fn as_the_decoder() {
    let mut random = Random::new(1);
    let mut found = 0;
    for (opcode, modrm) in (0..=255u8).flat_map(|opcode| (0..=255u8).map(move |modrm| (opcode, modrm))) {
        let opcode = if random.coin() { random.pick(&[0x89, 0x8b, 0xc7, 0xa1, 0xa3]) } else { opcode };
        for mode in [Mode::Bits32, Mode::Bits64] {
            let mut code = vec![];
            while random.below(4) == 0 {
                code.push(random.pick(&[0x26, 0x2e, 0x36, 0x3e, 0x64, 0x65, 0x66, 0x67, 0xf0, 0xf3]));
            }
            if random.coin() {
                code.push(0x40 | random.below(16) as u8);
            }
            code.extend([opcode, modrm]);
            code.truncate(15);
            let bytes = std::array::from_fn(|i| code.get(i).copied().unwrap_or_else(|| random.next() as u8));
            let valid = if random.coin() { 15 } else { random.below(16) as usize };
            let (ours, theirs) = (plain_mov(&bytes[..valid], mode), decoded(&bytes, valid, mode));
            match (ours, theirs) {
                (Some((length, what)), Some((len, instr))) => {
                    assert_eq!(length, len, "{mode:?} {bytes:x?}");
                    assert!(agrees(what, &instr), "{mode:?} {bytes:x?} {what:?}");
                    if mode == Mode::Bits64 {
                        lies_there(&bytes, &instr);
                    }
                    found += 1;
                }
                (None, None) => {}
                (None, Some(_)) => assert!(is_odd(&bytes, mode), "{mode:?} {bytes:x?}"),
                (Some(_), None) => panic!("{mode:?} {bytes:x?}: {ours:?}"),
            }
            assert_eq!(plain_mov(&bytes, Mode::Bits16), None);
        }
    }
    assert!(found > 10_000, "{found}");
}

/// As Linux compiles the xAPIC's accesses.
#[test]
fn those_of_linux() {
    let of = |code: &[u8]| plain_mov(code, Mode::Bits64);
    // mov [0xffffffffff5fc0b0], 0; mov [rdi-0xa03000], esi; mov eax, [0xffffffffff5fc300]; mov [r12], r13d
    let eoi = [0xc7, 0x04, 0x25, 0xb0, 0xc0, 0x5f, 0xff, 0, 0, 0, 0];
    assert_eq!(of(&eoi), Some((11, Plain::StoreConstant(0))));
    assert_eq!(of(&[0x89, 0xb7, 0, 0xd0, 0x5f, 0xff]), Some((6, Plain::Store(Gpr::Rsi))));
    assert_eq!(of(&[0x8b, 0x04, 0x25, 0, 0xc3, 0x5f, 0xff]), Some((7, Plain::Load(Gpr::Rax))));
    assert_eq!(of(&[0x45, 0x89, 0x2c, 0x24]), Some((4, Plain::Store(Gpr::R13))));
    assert_eq!(of(&[0x48, 0x89, 0x07]), None, "64 bits");
    assert_eq!(of(&[0x87, 0x07]), None, "XCHG");
}
