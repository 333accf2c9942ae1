//! What the processor would have checked: who may use a port, and whether an address is aligned.

mod common;

use common::machine::{MMIO, Machine, RAM};
use exitless_insn::{Mode, Outcome, Stop};
use exitless_x86::exception::{Exception, Vector};
use exitless_x86::regs::{Gpr, SegReg, Segment, cr0, rflags};

const GP: Outcome = Outcome::Stop(Stop::Fault(Exception::gp(0)));
const AC: Outcome =
    Outcome::Stop(Stop::Fault(Exception { vector: Vector::AC, error_code: Some(0), payload: 0 }));

const TSS: u64 = RAM + 0x1_0000;
/// IN, OUT, INS and OUTS, one byte, through DX.
const BYTE_FORMS: [&[u8]; 6] = [&[0xec], &[0xee], &[0x6c], &[0x6e], &[0xf3, 0x6c], &[0xf3, 0x6e]];

/// User code with IOPL 0 and a TSS whose bitmap lies at 104 and forbids all.
fn user(mode: Mode) -> Machine {
    let mut m = Machine::new(mode);
    m.cpl = 3;
    let tss = Segment { base: TSS, limit: 104 + 0x2000, selector: 0x28, attrib: Segment::P | 11 };
    m.segments[SegReg::Tr as usize] = tss;
    m.poke(TSS + 102, &104u16.to_le_bytes()).poke(TSS + 104, &[0xff; 0x2001]);
    let base = if mode == Mode::Bits16 { RAM } else { 0 };
    m.segments[SegReg::Ds as usize].base = base;
    m.segments[SegReg::Es as usize].base = base;
    m.set(Gpr::Rsi, RAM - base).set(Gpr::Rdi, RAM - base).set(Gpr::Rcx, 1);
    m
}

fn allow(m: &mut Machine, port: u16) {
    let at = TSS + 104 + u64::from(port / 8);
    let byte = m.peek(at, 1)[0] & !(1 << (port & 7));
    m.poke(at, &[byte]);
}

/// IOPL, the bitmap, and nobody's leave: #GP(0) before anything is touched. A bit for each byte of the port.
#[test]
fn ports_of_user_code() {
    for mode in [Mode::Bits16, Mode::Bits32, Mode::Bits64] {
        for code in BYTE_FORMS {
            let mut m = user(mode);
            m.set(Gpr::Rdx, 0x71);
            assert_eq!(m.run(code), GP, "{code:x?}");
            assert!(m.device.log.is_empty());
            allow(&mut m, 0x71);
            assert_eq!(m.run(code), Outcome::Done, "{code:x?}");
            let mut m = user(mode);
            m.set(Gpr::Rdx, 0x71);
            m.rflags |= rflags::IOPL;
            assert_eq!(m.run(code), Outcome::Done, "{code:x?} with IOPL 3");
        }
    }
    // Four bytes across two of the bitmap.
    let mut m = user(Mode::Bits64);
    m.set(Gpr::Rdx, 0x7e);
    for port in [0x7e, 0x7f, 0x80] {
        allow(&mut m, port);
        assert_eq!(m.run(&[0xed]), GP);
    }
    allow(&mut m, 0x81);
    assert_eq!(m.run(&[0xed]), Outcome::Done);
    // An immediate port.
    assert_eq!(m.run(&[0xe4, 0x7d]), GP);
    assert_eq!(m.run(&[0xe4, 0x7e]), Outcome::Done);
}

/// Both bytes that the processor reads lie within the TSS, which has 32 or 64 bits and is there.
#[test]
fn bitmap_beyond_the_tss() {
    let with = |limit: u32, attrib: u16, port: u16| {
        let mut m = user(Mode::Bits32);
        m.poke(TSS + 104, &[0; 0x2001]).set(Gpr::Rdx, u64::from(port));
        let tss = &mut m.segments[SegReg::Tr as usize];
        (tss.limit, tss.attrib) = (limit, attrib);
        m.run(&[0xec])
    };
    let busy = Segment::P | 11;
    assert_eq!(with(104 + 0x10, busy, 0x7f), Outcome::Done);
    assert_eq!(with(104 + 0xf, busy, 0x7f), GP, "the second byte lies beyond the limit");
    assert_eq!(with(104 + 0x2000, busy, 0xffff), Outcome::Done);
    assert_eq!(with(102, busy, 0), GP, "no room for the bitmap's offset");
    for (limit, end) in [(102, GP), (103, Outcome::Done)] {
        let mut m = user(Mode::Bits32);
        m.poke(TSS, &[0; 104]).segments[SegReg::Tr as usize].limit = limit;
        assert_eq!(m.run(&[0xe4, 0]), end, "a bitmap at the start of a TSS of {limit} + 1 bytes");
    }
    assert_eq!(with(104 + 0x2000, Segment::P | 9, 0), Outcome::Done);
    assert_eq!(with(104 + 0x2000, Segment::P | 3, 0), GP, "a 16-bit TSS has none");
    assert_eq!(with(104 + 0x2000, 11, 0), GP, "TR was never loaded");
}

/// Virtual-8086 mode asks the bitmap whatever IOPL says; the kernel and real mode ask nobody.
#[test]
fn ports_of_other_modes() {
    let mut m = user(Mode::Bits16);
    m.protected = false;
    m.rflags |= rflags::VM | rflags::IOPL;
    m.set(Gpr::Rdx, 0x71);
    assert_eq!(m.run(&[0xec]), GP);
    allow(&mut m, 0x71);
    assert_eq!(m.run(&[0xec]), Outcome::Done);
    let mut m = user(Mode::Bits16);
    m.cr0 &= !cr0::PE;
    (m.protected, m.cpl) = (false, 0);
    assert_eq!(m.run(&[0xec]), Outcome::Done);
    (m.protected, m.cpl) = (false, 3);
    assert_eq!(m.run(&[0xec]), Outcome::Done, "real mode's CPL is 0, whatever SS holds");
    let mut m = user(Mode::Bits32);
    m.rflags |= 1 << 12;
    assert_eq!(m.run(&[0xec]), GP, "IOPL 1 is not enough at 3");
    let mut m = user(Mode::Bits32);
    m.cpl = 1;
    assert_eq!(m.run(&[0xec]), GP);
    m.rflags |= 1 << 12;
    assert_eq!(m.run(&[0xec]), Outcome::Done);
}

/// With CR0.AM and RFLAGS.AC user code must align what it accesses, to the value's size; 16 bytes to 8 (or #GP, where they must
/// be aligned to 16 at any level).
#[test]
fn alignment() {
    let forms: [(&[u8], u64); 16] = [
        (&[0x66, 0x8b, 0x03], 2),
        (&[0x8b, 0x03], 4),
        (&[0x48, 0x8b, 0x03], 8),
        (&[0x48, 0x89, 0x03], 8),
        (&[0x01, 0x03], 4),
        (&[0x0f, 0xb7, 0x03], 2),
        (&[0x87, 0x03], 4),
        (&[0xff, 0x33], 8),
        (&[0x8f, 0x03], 8),
        (&[0x0f, 0xc7, 0x0b], 8),
        (&[0x0f, 0xab, 0x03], 4),
        (&[0x0f, 0x10, 0x03], 8),
        (&[0x66, 0x0f, 0xd6, 0x03], 8),
        (&[0xa5], 4),
        (&[0x48, 0xab], 8),
        (&[0x66, 0xa7], 2),
    ];
    for (code, size) in forms {
        for off in 1..=size {
            for (cpl, flags, am) in
                [(3, rflags::AC, true), (0, rflags::AC, true), (3, 0, true), (3, rflags::AC, false)]
            {
                let mut m = Machine::new(Mode::Bits64);
                m.cpl = cpl;
                m.rflags |= flags;
                m.cr0 |= if am { cr0::AM } else { 0 };
                m.set(Gpr::Rbx, MMIO + off).set(Gpr::Rsi, MMIO + off).set(Gpr::Rdi, MMIO + off);
                m.set(Gpr::Rsp, RAM + 0x100);
                let checked = cpl == 3 && flags != 0 && am && off != size;
                let end = m.run(code);
                assert_eq!(end, if checked { AC } else { Outcome::Done }, "{code:x?} off {off} at CPL {cpl}");
                assert!(!checked || m.device.log.is_empty());
            }
        }
    }
    // The stack.
    let mut m = Machine::new(Mode::Bits64);
    m.cpl = 3;
    m.rflags |= rflags::AC;
    m.cr0 |= cr0::AM;
    m.set(Gpr::Rsp, MMIO + 0x104);
    assert_eq!((m.run(&[0x50]), m.run(&[0x58])), (AC, AC));
    m.set(Gpr::Rbx, MMIO + 4);
    assert_eq!(m.run(&[0x0f, 0x28, 0x03]), GP, "MOVAPS");
    assert_eq!(m.run(&[0x48, 0x0f, 0xc7, 0x0b]), GP, "CMPXCHG16B");
}
