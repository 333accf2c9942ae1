//! Every instruction that the decoder knows and that accesses memory, explicitly or on the stack, with that memory in a device:
//! it is done (or faults as a processor's would), alike with the device in the kernel and in user space, or stands in [`REFUSED`]
//! with the reason. What is refused is #UD for user code,
//! and ends KVM_RUN for the kernel's.

mod common;

use std::collections::{BTreeMap, BTreeSet};

use common::machine::{MMIO, Machine, RAM};
use exitless_insn::{Mode, Outcome, Stop};
use exitless_x86::regs::{Gpr, SegReg, TableReg, cr4};
use iced_x86::CpuidFeature as F;
use iced_x86::{
    Code, Decoder, DecoderOptions, EncodingKind, Instruction, InstructionInfoFactory, Mnemonic as M, OpAccess,
};

/// Instructions that are not done.
type Which = fn(&Instruction) -> bool;

fn has(i: &Instruction, any: &[F]) -> bool {
    i.cpuid_features().iter().any(|f| any.contains(f))
}

/// Why, and which.
const REFUSED: &[(&str, Which)] = &[
    ("AVX: registers of 256 bits are out of reach; stock KVM of that time has none", |i| {
        i.encoding() == EncodingKind::VEX
    }),
    (
        "vector arithmetic, conversions and shuffles: device registers are moved, not computed with; nor does stock KVM",
        |i| {
            let vector = has(i, VECTOR)
                && !has(i, &[F::FPU])
                && !is_move(i.mnemonic())
                && i.encoding() == EncodingKind::Legacy;
            vector
                && !matches!(i.mnemonic(), M::Ldmxcsr | M::Stmxcsr | M::Maskmovq | M::Maskmovdqu | M::Crc32)
        },
    ),
    ("MASKMOV: writes the bytes of a mask, which devices do not take", |i| {
        matches!(i.mnemonic(), M::Maskmovq | M::Maskmovdqu)
    }),
    ("x87 numbers: only the control and the status word go to a device, as on stock KVM", |i| {
        has(i, &[F::FPU, F::FPU287, F::FPU387]) && !matches!(i.mnemonic(), M::Fnstcw | M::Fnstsw)
    }),
    ("register files and MXCSR: their images are memory", |i| {
        has(i, &[F::FXSR, F::XSAVE, F::XSAVEOPT, F::XSAVEC, F::XSAVES])
            || matches!(i.mnemonic(), M::Ldmxcsr | M::Stmxcsr)
    }),
    ("VMX: exits before its operand is read, and is #UD", |i| has(i, &[F::VMX])),
    ("not offered to guests: #UD or a NOP in hardware", |i| {
        has(
            i,
            &[F::CET_SS, F::AESKLE, F::KL, F::RAO_INT, F::LKGS, F::FRED, F::ENQCMD, F::PTWRITE, F::WAITPKG],
        ) || has(i, &[F::WIDE_KL])
            || matches!(i.mnemonic(), M::Rmpupdate | M::Uiret | M::Rdmsrlist | M::Wrmsrlist | M::Pbndkb)
    }),
    ("VIA PadLock", |i| {
        has(i, &[F::PADLOCK_ACE, F::PADLOCK_PHE, F::PADLOCK_PMM, F::PADLOCK_RNG, F::PADLOCK_GMI])
    }),
    ("64 bytes at once: KVM_EXIT_MMIO has 8; nor does stock KVM", |i| i.mnemonic() == M::Movdir64b),
    ("the operand is the kernel's own descriptor; nor does stock KVM", |i| i.mnemonic() == M::Invpcid),
    (
        "the operand is a selector to be asked about, or a pair of bounds: no register of a device; nor does stock KVM",
        |i| matches!(i.mnemonic(), M::Verr | M::Verw | M::Lar | M::Lsl | M::Arpl | M::Bound),
    ),
    ("IRET: its frame is where events are delivered to, which cannot be a device either", |i| {
        matches!(i.mnemonic(), M::Iret | M::Iretd | M::Iretq)
    }),
    ("extended arithmetic that CPUID tells; nor does stock KVM", |i| {
        matches!(i.mnemonic(), M::Crc32 | M::Adcx | M::Adox)
    }),
];

const VECTOR: &[F] = &[
    F::MMX,
    F::SSE,
    F::SSE2,
    F::SSE3,
    F::SSSE3,
    F::SSE4_1,
    F::SSE4_2,
    F::SSE4A,
    F::AES,
    F::PCLMULQDQ,
    F::SHA,
    F::GFNI,
];

fn is_move(m: M) -> bool {
    let whole = matches!(m, M::Movups | M::Movupd | M::Movaps | M::Movapd | M::Movdqu | M::Movdqa | M::Lddqu);
    let streaming =
        matches!(m, M::Movntps | M::Movntpd | M::Movntdq | M::Movntdqa | M::Movntq | M::Movntss | M::Movntsd);
    let part =
        matches!(m, M::Movss | M::Movsd | M::Movd | M::Movq | M::Movlps | M::Movlpd | M::Movhps | M::Movhpd);
    whole || streaming || part || m == M::Movnti
}

/// Bytes of every instruction with the operand `[rbx]` (16-bit: `[bp + di]`), every prefix that selects another, and VEX.
fn encodings(mode: Mode) -> impl Iterator<Item = Vec<u8>> {
    let rex: &[&[u8]] = if mode == Mode::Bits64 { &[&[], &[0x48]] } else { &[&[]] };
    let mut all = vec![];
    for mandatory in [&[][..], &[0x66], &[0xf2], &[0xf3]] {
        for rex in rex {
            for map in [&[][..], &[0x0f], &[0x0f, 0x38], &[0x0f, 0x3a]] {
                all.push([mandatory, rex, map].concat());
            }
        }
    }
    for vex in 0..3 * 4 * 2 * 2u8 {
        let (map, pp, w, l) = (vex / 16 + 1, vex & 3, vex >> 2 & 1, vex >> 3 & 1);
        all.push(vec![0xc4, 0xe0 | map, w << 7 | 0x78 | l << 2 | pp]);
    }
    let all = all.into_iter().flat_map(move |front| {
        let selects = rm_selects(&front);
        let modrms = move |op: u8| {
            let registers = (0xc0..=0xff).filter(move |m| m & 7 == 3 || selects.contains(&op));
            (0..8).map(|reg| reg << 3 | 3).chain(registers).map(move |m: u8| [op, m])
        };
        (0..=255).flat_map(modrms).map(move |tail| {
            let mut code = front.clone();
            code.extend(tail);
            code.resize(15, 0);
            code
        })
    });
    all.chain(direct(mode))
}

/// Opcodes behind `front` of which the register forms are instructions of their own, which ModRM.rm selects too.
fn rm_selects(front: &[u8]) -> &'static [u8] {
    match front.iter().rposition(|b| *b == 0x0f).map(|at| &front[at + 1..]) {
        Some([]) => &[0x01, 0x1e, 0xa6, 0xa7, 0xae, 0xc7],
        Some(_) => &[],
        None => &[0xc6, 0xc7, 0xd8, 0xd9, 0xda, 0xdb, 0xdc, 0xdd, 0xde, 0xdf],
    }
}

/// Those that hold their operand's address, or a selector.
fn direct(mode: Mode) -> Vec<Vec<u8>> {
    let at = MMIO.to_le_bytes();
    let all = match mode {
        Mode::Bits64 => vec![[&[0x48, 0xa1][..], &at].concat(), [&[0x48, 0xa3][..], &at].concat()],
        Mode::Bits32 => vec![vec![0x9a, 0, 0, 0, 0, 8, 0], vec![0x66, 0x9a, 0, 0, 8, 0]],
        Mode::Bits16 => vec![],
    };
    let padded = |mut code: Vec<u8>| {
        code.resize(15, 0);
        code
    };
    all.into_iter().map(padded).collect()
}

fn bits(mode: Mode) -> u32 {
    match mode {
        Mode::Bits16 => 16,
        Mode::Bits32 => 32,
        Mode::Bits64 => 64,
    }
}

/// The instruction, if it accesses memory.
fn decode(mode: Mode, code: &[u8], info: &mut InstructionInfoFactory) -> Option<Instruction> {
    let i = Decoder::new(bits(mode), code, DecoderOptions::AMD).decode();
    let accesses = |a: OpAccess| !matches!(a, OpAccess::None | OpAccess::NoMemAccess);
    let touches = info.info(&i).used_memory().iter().any(|m| accesses(m.access()));
    (!i.is_invalid() && touches).then_some(i)
}

/// All memory but the descriptor tables is a device.
fn machine(mode: Mode) -> Machine {
    let mut m = Machine::new(mode);
    let base = if mode == Mode::Bits16 { MMIO } else { 0 };
    for s in [SegReg::Es, SegReg::Ss, SegReg::Ds, SegReg::Fs, SegReg::Gs] {
        m.segments[s as usize].base = base;
    }
    m.segments[SegReg::Cs as usize].limit = u32::MAX;
    m.tables[0] = TableReg { base: RAM, limit: 15, ..TableReg::default() };
    m.poke(RAM + 8, &0x00cf_9b00_0000_ffffu64.to_le_bytes());
    let at = MMIO - base;
    m.set(Gpr::Rbx, at + 0x8000).set(Gpr::Rsi, at + 0x2000).set(Gpr::Rdi, at + 0x3000).set(Gpr::Rcx, 2);
    m.set(Gpr::Rsp, at + 0x4000).set(Gpr::Rbp, at + 0x5000);
    m
}

/// Done, or faulted by what the device answered; `false`: not handled.
fn handled(mode: Mode, i: &Instruction, code: &[u8]) -> bool {
    let mut m = machine(mode);
    // Whatever selector the device answers: no return to an outer level.
    m.cpl = if i.mnemonic() == M::Retf { 3 } else { 0 };
    let mut asked = Machine { user: true, ..m.clone() };
    let end = m.run(&code[..i.len()]);
    assert_eq!(asked.run(&code[..i.len()]), end, "{i:?} with the device in user space");
    let visible = |m: &Machine| (m.gpr, m.rip, m.rflags, m.xmm, m.mmx, m.segments, m.tables, m.cr0, m.shadow);
    assert_eq!(visible(&asked), visible(&m), "{i:?} with the device in user space");
    assert_eq!(asked.device, m.device, "{i:?} with the device in user space");
    match end {
        Outcome::Done => {
            let quiet = matches!(i.mnemonic(), M::Clflush | M::Clflushopt | M::Clwb);
            assert!(quiet || !m.device.log.is_empty(), "{i:?} did nothing: {code:02x?}");
            true
        }
        Outcome::Stop(Stop::Fault(_)) => !m.device.log.is_empty(),
        Outcome::Stop(Stop::Unhandled) => false,
        other => panic!("{i:?}: {other:?}"),
    }
}

/// These access memory, although the decoder does not tell.
const HIDDEN: &[M] = &[
    M::Lar,
    M::Lsl,
    M::Verr,
    M::Verw,
    M::Lkgs,
    M::Int,
    M::Int1,
    M::Into,
    M::Clzero,
    M::Monitor,
    M::Monitorx,
    M::Vmrun,
    M::Vmload,
    M::Vmsave,
    M::Skinit,
    M::Encls,
    M::Enclu,
    M::Enclv,
    M::Pconfig,
    M::Pvalidate,
    M::Psmash,
    M::Rmpadjust,
    M::Rmpquery,
    M::Saveprevssp,
    M::Setssbsy,
    M::Senduipi,
    M::Rsm,
];

/// What accesses no memory is done or left to the processor, and never a failure: the code has changed under the exit, by a
/// debugger's INT3 for instance.
#[test]
fn elsewhere() {
    let mut info = InstructionInfoFactory::new();
    let (mut left, mut failures) = (0, BTreeSet::new());
    for mode in [Mode::Bits64, Mode::Bits32, Mode::Bits16] {
        for code in encodings(mode) {
            let i = Decoder::new(bits(mode), &code, DecoderOptions::AMD).decode();
            if i.is_invalid() || decode(mode, &code, &mut info).is_some() {
                continue;
            }
            let end = machine(mode).step(&code[..i.len()]);
            if HIDDEN.contains(&i.mnemonic()) {
                assert_ne!(end, Outcome::Stop(Stop::Elsewhere), "{i:?}");
            } else if end == Outcome::Stop(Stop::Unhandled) {
                failures.insert(format!("{:?}", i.mnemonic()));
            }
            left += u32::from(end == Outcome::Stop(Stop::Elsewhere));
        }
    }
    assert!(failures.is_empty(), "{failures:?}");
    assert!(left > 1000);
}

/// Memory that no operand shows: left to the processor, these would meet the same exit for ever.
#[test]
fn implied() {
    let all: &[&[u8]] = &[
        &[0x0f, 0x01, 0xfc],       // CLZERO
        &[0x0f, 0x01, 0xc8],       // MONITOR
        &[0x0f, 0x01, 0xfa],       // MONITORX
        &[0xf3, 0x0f, 0xae, 0xf3], // UMONITOR
        &[0x0f, 0x01, 0xd8],       // VMRUN
        &[0x0f, 0x01, 0xda],       // VMLOAD
        &[0x0f, 0x01, 0xdb],       // VMSAVE
        &[0x0f, 0x01, 0xde],       // SKINIT
        &[0x0f, 0x01, 0xcf],       // ENCLS
        &[0x0f, 0x01, 0xd7],       // ENCLU
        &[0x0f, 0xf7, 0xc1],       // MASKMOVQ
        &[0x66, 0x0f, 0xf7, 0xc1], // MASKMOVDQU
        &[0xd7],                   // XLATB
        &[0xa4],                   // MOVSB
        &[0xcf],                   // IRETD
    ];
    for code in all {
        for mode in [Mode::Bits64, Mode::Bits32] {
            assert_ne!(machine(mode).step(code), Outcome::Stop(Stop::Elsewhere), "{code:02x?}");
        }
    }
    // MOV CR3, EBX: PAE paging loads four entries.
    let mut m = machine(Mode::Bits32);
    assert_eq!(m.step(&[0x0f, 0x22, 0xdb]), Outcome::Stop(Stop::Elsewhere));
    m.cr4 |= cr4::PAE;
    assert_eq!(m.step(&[0x0f, 0x22, 0xdb]), Outcome::Stop(Stop::Unhandled));
}

/// See the file's head. Each reason has something to refuse, and refuses nothing that is done.
#[test]
fn every_instruction() {
    let mut info = InstructionInfoFactory::new();
    // Whether it is handled, once in any mode and encoding.
    let mut seen: BTreeMap<Code, (bool, Instruction, Vec<u8>)> = BTreeMap::new();
    for mode in [Mode::Bits64, Mode::Bits32, Mode::Bits16] {
        for code in encodings(mode) {
            if let Some(i) = decode(mode, &code, &mut info) {
                let done = handled(mode, &i, &code);
                let entry = seen.entry(i.code()).or_insert((done, i, code));
                entry.0 |= done;
            }
        }
    }
    let mut wrong = vec![];
    let mut uses = vec![0; REFUSED.len()];
    for (code, (done, i, bytes)) in &seen {
        let reasons: Vec<usize> = (0..REFUSED.len()).filter(|r| REFUSED[*r].1(i)).collect();
        match (done, &reasons[..]) {
            (true, []) => {}
            (false, [r]) => uses[*r] += 1,
            _ => wrong.push(format!("{code:?}, {bytes:02x?}: done {done}, reasons {reasons:?}")),
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), seen.len(), wrong.join("\n"));
    for (n, (reason, _)) in uses.iter().zip(REFUSED) {
        assert!(*n > 0, "refuses nothing: {reason}");
    }
}
