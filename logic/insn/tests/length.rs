//! Lengths and kinds of the instructions that exit, and the operands of control and debug register accesses.

mod common;

use common::{Random, fetch};
use exitless_insn::{
    CrAccess, CrAccessKind, Kind, Mode, Outcome, Stop, decode_cr_access, instruction_length,
};
use exitless_x86::regs::Gpr;

const MODES: [Mode; 3] = [Mode::Bits16, Mode::Bits32, Mode::Bits64];

fn length(code: &[u8], mode: Mode) -> Option<(usize, Kind)> {
    let (bytes, valid) = fetch(code);
    instruction_length(&bytes, valid, mode)
}

fn cr(code: &[u8], mode: Mode) -> Option<CrAccess> {
    let (bytes, valid) = fetch(code);
    decode_cr_access(&bytes, valid, mode)
}

/// Opcodes that mean the same in every mode, with their kind.
static EXITING: [(&[u8], Kind); 33] = [
    (&[0x0f, 0xa2], Kind::Cpuid),
    (&[0x0f, 0x32], Kind::Rdmsr),
    (&[0x0f, 0x30], Kind::Wrmsr),
    (&[0xf4], Kind::Hlt),
    (&[0x0f, 0x01, 0xd9], Kind::Vmmcall),
    (&[0x0f, 0x01, 0xc1], Kind::Vmcall),
    (&[0x0f, 0x08], Kind::Invd),
    (&[0x0f, 0x09], Kind::Wbinvd),
    (&[0x0f, 0x01, 0xc8], Kind::Monitor),
    (&[0x0f, 0x01, 0xc9], Kind::Mwait),
    (&[0x0f, 0x01, 0xd1], Kind::Xsetbv),
    (&[0x0f, 0x33], Kind::Rdpmc),
    (&[0x0f, 0x31], Kind::Rdtsc),
    (&[0x0f, 0x01, 0xf9], Kind::Rdtscp),
    (&[0xf3, 0x90], Kind::Pause),
    (&[0x0f, 0x01, 0x38], Kind::Invlpg),
    (&[0x0f, 0x01, 0xdf], Kind::Invlpga),
    (&[0x0f, 0x06], Kind::Clts),
    (&[0x0f, 0x01, 0xd8], Kind::Vmrun),
    (&[0x0f, 0x01, 0xda], Kind::Vmload),
    (&[0x0f, 0x01, 0xdb], Kind::Vmsave),
    (&[0x0f, 0x01, 0xdc], Kind::Stgi),
    (&[0x0f, 0x01, 0xdd], Kind::Clgi),
    (&[0x0f, 0x01, 0xde], Kind::Skinit),
    (&[0x0f, 0x22, 0xc0], Kind::CrAccess),
    (&[0x0f, 0x21, 0xf8], Kind::CrAccess),
    (&[0x0f, 0x01, 0xf0], Kind::CrAccess),
    (&[0xec], Kind::Io),
    (&[0xcd, 0x80], Kind::SoftwareInterrupt),
    (&[0xcc], Kind::SoftwareInterrupt),
    (&[0x0f, 0x38, 0xf0, 0x00], Kind::Movbe),
    (&[0xf3, 0x0f, 0xc7, 0xf9], Kind::Rdpid(Gpr::Rcx)),
    (&[0x0f, 0xaa], Kind::Other),
];

/// Every exiting instruction has its length and kind in every mode, and none when its last byte is missing.
#[test]
fn exiting_instructions() {
    for (code, kind) in EXITING {
        for mode in MODES {
            assert_eq!(length(code, mode), Some((code.len(), kind)), "{code:02x?} {mode:?}");
            assert_eq!(length(&code[..code.len() - 1], mode), None, "cut {code:02x?} {mode:?}");
        }
    }
}

/// Prefixes make the instruction longer and change nothing else; only 64-bit code has REX.
#[test]
fn prefixes() {
    for (code, kind) in EXITING {
        for prefix in [0x2e, 0x3e, 0x64] {
            let with = [&[prefix], code].concat();
            for mode in MODES {
                assert_eq!(length(&with, mode), Some((with.len(), kind)), "{with:02x?} {mode:?}");
            }
        }
    }
    assert_eq!(length(&[0x48, 0x0f, 0x30], Mode::Bits64), Some((3, Kind::Wrmsr)));
    assert_eq!(length(&[0x48, 0x0f, 0x30], Mode::Bits32), Some((1, Kind::Other)));
    assert_eq!(length(&[0x66, 0x0f, 0x32], Mode::Bits16), Some((3, Kind::Rdmsr)));
}

/// A memory operand counts: INVLPG and LMSW with their displacements, INS and OUTS with prefixes.
#[test]
fn operands_count() {
    assert_eq!(length(&[0x0f, 0x01, 0x3d, 0, 0, 0, 0], Mode::Bits64), Some((7, Kind::Invlpg)));
    assert_eq!(length(&[0x0f, 0x01, 0x3e, 0, 0], Mode::Bits16), Some((5, Kind::Invlpg)));
    assert_eq!(length(&[0x0f, 0x01, 0x74, 0x24, 0x08], Mode::Bits32), Some((5, Kind::CrAccess)));
    assert_eq!(length(&[0xf3, 0x66, 0x6d], Mode::Bits32), Some((3, Kind::Io)));
    assert_eq!(length(&[0xe6, 0x80], Mode::Bits32), Some((2, Kind::Io)));
    assert_eq!(length(&[0x90], Mode::Bits64), Some((1, Kind::Other)));
    assert_eq!(length(&[0x89, 0xd8], Mode::Bits64), Some((2, Kind::Other)), "a MOV between other registers");
    assert_eq!(length(&[0xf3, 0x6f], Mode::Bits32), Some((2, Kind::Io)));
}

/// MOV to and from control and debug registers: both operands, with REX, and the 64-bit-only CR8.
#[test]
fn control_register_operands() {
    use CrAccessKind::{ReadCr, ReadDr, WriteCr, WriteDr};
    let of = |code: &[u8], mode| cr(code, mode).map(|a| (a.length, a.kind));
    for mode in MODES {
        assert_eq!(of(&[0x0f, 0x22, 0xd8], mode), Some((3, WriteCr { cr: 3, from: Gpr::Rax })));
        assert_eq!(of(&[0x0f, 0x20, 0xe1], mode), Some((3, ReadCr { cr: 4, to: Gpr::Rcx })));
        assert_eq!(of(&[0x0f, 0x23, 0xfb], mode), Some((3, WriteDr { dr: 7, from: Gpr::Rbx })));
        assert_eq!(of(&[0x0f, 0x21, 0xf4], mode), Some((3, ReadDr { dr: 6, to: Gpr::Rsp })));
        // The mod bits are ignored: this is not a memory operand (SDM vol. 2B, MOV to control registers).
        assert_eq!(of(&[0x0f, 0x22, 0x00], mode), Some((3, WriteCr { cr: 0, from: Gpr::Rax })));
    }
    assert_eq!(of(&[0x44, 0x0f, 0x22, 0xc0], Mode::Bits64), Some((4, WriteCr { cr: 8, from: Gpr::Rax })));
    assert_eq!(of(&[0x45, 0x0f, 0x20, 0xc7], Mode::Bits64), Some((4, ReadCr { cr: 8, to: Gpr::R15 })));
    assert_eq!(of(&[0x41, 0x0f, 0x22, 0xc4], Mode::Bits64), Some((4, WriteCr { cr: 0, from: Gpr::R12 })));
    assert_eq!(cr(&[0x0f, 0x22, 0xc8], Mode::Bits64), None);
    assert_eq!(cr(&[0x0f, 0x22], Mode::Bits64), None);
    assert_eq!(cr(&[0x89, 0xc0], Mode::Bits64), None);
}

/// CLTS, LMSW and SMSW with register and memory operands.
#[test]
fn machine_status_word() {
    use CrAccessKind::{Clts, LmswMem, LmswReg, SmswMem, SmswReg};
    let of = |code: &[u8], mode| cr(code, mode).map(|a| (a.length, a.kind));
    assert_eq!(of(&[0x0f, 0x06], Mode::Bits64), Some((2, Clts)));
    assert_eq!(of(&[0x0f, 0x01, 0xf3], Mode::Bits16), Some((3, LmswReg { from: Gpr::Rbx })));
    assert_eq!(of(&[0x0f, 0x01, 0x33], Mode::Bits32), Some((3, LmswMem)));
    assert_eq!(of(&[0x0f, 0x01, 0xe2], Mode::Bits16), Some((3, SmswReg { to: Gpr::Rdx, size: 2 })));
    assert_eq!(of(&[0x0f, 0x01, 0xe2], Mode::Bits64), Some((3, SmswReg { to: Gpr::Rdx, size: 4 })));
    assert_eq!(of(&[0x49, 0x0f, 0x01, 0xe1], Mode::Bits64), Some((4, SmswReg { to: Gpr::R9, size: 8 })));
    assert_eq!(of(&[0x0f, 0x01, 0x20], Mode::Bits64), Some((3, SmswMem)));
}

/// AMD's `lock mov cr0` reaches CR8 outside 64-bit mode (APM vol. 3, MOV CRn).
#[test]
fn lock_reaches_cr8() {
    let access = cr(&[0xf0, 0x0f, 0x22, 0xc1], Mode::Bits32);
    assert_eq!(
        access.map(|a| (a.length, a.kind)),
        Some((4, CrAccessKind::WriteCr { cr: 8, from: Gpr::Rcx }))
    );
}

/// Random bytes: a length is between 1 and the bytes fetched, and does not depend on the bytes after it.
#[test]
fn lengths_are_within_the_bytes() {
    let mut r = Random::new(7);
    for _ in 0..100_000 {
        let mode = r.pick(&MODES);
        let mut bytes = [0; 15];
        for b in &mut bytes {
            *b = r.next() as u8;
        }
        if r.coin() {
            bytes[0] = 0x0f;
        }
        let valid = r.below(20) as usize;
        decode_cr_access(&bytes, valid, mode);
        let Some((n, kind)) = instruction_length(&bytes, valid, mode) else { continue };
        assert!(n >= 1 && n <= valid.min(15), "{bytes:02x?} {mode:?}");
        for b in bytes.iter_mut().skip(n) {
            *b = r.next() as u8;
        }
        assert_eq!(instruction_length(&bytes, n, mode), Some((n, kind)), "{bytes:02x?} {mode:?}");
        assert_eq!(instruction_length(&bytes, n - 1, mode), None, "{bytes:02x?} {mode:?}");
    }
}

/// VEX-encoded instructions have a length, and the emulator leaves them alone: their names are not those of its SSE moves.
#[test]
fn vex() {
    // vmovups ymm0, [rax+1]; vpshufd xmm1, xmm2, 3; vzeroupper; andn eax, ebx, [rcx]; vbroadcastss ymm1, [rip+..].
    let codes: [&[u8]; 5] = [
        &[0xc5, 0xfc, 0x10, 0x40, 0x01],
        &[0xc5, 0xf9, 0x70, 0xca, 0x03],
        &[0xc5, 0xf8, 0x77],
        &[0xc4, 0xe2, 0x60, 0xf2, 0x01],
        &[0xc4, 0xe2, 0x7d, 0x18, 0x0d, 1, 2, 3, 4],
    ];
    for code in codes {
        let (bytes, valid) = fetch(code);
        assert_eq!(
            instruction_length(&bytes, valid, Mode::Bits64),
            Some((code.len(), Kind::Other)),
            "{code:02x?}"
        );
        assert_eq!(instruction_length(&bytes, valid - 1, Mode::Bits64), None, "{code:02x?}");
        let mut m = common::machine::Machine::new(Mode::Bits64);
        let refused = matches!(m.step(code), Outcome::Stop(Stop::Unhandled | Stop::Elsewhere));
        assert!(refused, "{code:02x?}");
    }
    // Outside of 64-bit mode C5 with a memory form is LDS.
    let (bytes, valid) = fetch(&[0xc5, 0x3c, 0x10]);
    assert_eq!(instruction_length(&bytes, valid, Mode::Bits32), Some((3, Kind::Other)));
}
