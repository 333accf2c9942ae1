//! Moves in 16- and 32-bit code, selectors, SSE, LOCK prefixes, branches: what the 64-bit comparison does not reach.

mod common;

use common::machine::{MMIO, Machine, RAM};
use exitless_insn::{Mode, Outcome, Stop};
use exitless_x86::exception::Exception;
use exitless_x86::regs::{Gpr, SegReg, rflags};

const UNHANDLED: Outcome = Outcome::Stop(Stop::Unhandled);
const ELSEWHERE: Outcome = Outcome::Stop(Stop::Elsewhere);

/// The usual instructions of drivers in 32-bit code: registers are 32 bits, the upper halves clear.
#[test]
fn thirty_two_bit_moves() {
    let mut m = Machine::new(Mode::Bits32);
    m.set(Gpr::Rax, 0x1_0000_0001).set(Gpr::Rbx, MMIO);
    assert_eq!(m.step(&[0x89, 0x03]), Outcome::Done);
    assert_eq!((m.device.log[0].len, m.device.log[0].data[0]), (4, 1));
    assert_eq!(m.step(&[0x8b, 0x03]), Outcome::Done);
    assert!(m.get(Gpr::Rax) <= 0xffff_ffff);
    assert_eq!(m.step(&[0xa1, 0, 0, 0x10, 0]), Outcome::Done);
    assert_eq!(m.step(&[0x66, 0xc7, 0x03, 0x34, 0x12]), Outcome::Done);
    assert_eq!((m.device.log[3].len, m.device.log[3].data[..2].to_vec()), (2, vec![0x34, 0x12]));
    assert_eq!(m.rip, 0x1000 + 2 + 2 + 5 + 5);
}

/// High byte registers as source and destination.
#[test]
fn high_bytes() {
    let mut m = Machine::new(Mode::Bits32);
    m.set(Gpr::Rax, 0x1234).set(Gpr::Rbx, RAM);
    assert_eq!(m.step(&[0x88, 0x23]), Outcome::Done);
    assert_eq!(m.peek(RAM, 1), [0x12]);
    m.poke(RAM, &[0x77]);
    assert_eq!(m.step(&[0x8a, 0x3b]), Outcome::Done);
    assert_eq!(m.get(Gpr::Rbx), RAM & !0xff00 | 0x7700);
}

/// A selector is stored as 16 bits to memory and zero-extended to a register.
#[test]
fn selectors() {
    let mut m = Machine::new(Mode::Bits64);
    m.segments[SegReg::Fs as usize].selector = 0x53;
    m.set(Gpr::Rbx, MMIO);
    assert_eq!(m.step(&[0x48, 0x8c, 0x23]), Outcome::Done);
    assert_eq!((m.device.log[0].len, m.device.log[0].data[0]), (2, 0x53));
    m.set(Gpr::Rax, u64::MAX);
    assert_eq!(m.step(&[0x8c, 0xe0]), Outcome::Done);
    assert_eq!(m.get(Gpr::Rax), 0x53);
}

/// Control registers are the caller's.
#[test]
fn control_registers_are_not_moves() {
    let mut m = Machine::new(Mode::Bits64);
    assert_eq!(m.step(&[0x0f, 0x22, 0xc0]), ELSEWHERE);
    assert_eq!(m.step(&[0x0f, 0x20, 0xc0]), ELSEWHERE);
    assert_eq!(m.step(&[0x0f, 0x23, 0xf8]), ELSEWHERE);
}

/// SSE: full width, low parts that clear the rest, halves that do not, and the alignment rule.
#[test]
fn sse_moves() {
    let mut m = Machine::new(Mode::Bits64);
    let bytes: Vec<u8> = (1..=32).collect();
    m.poke(RAM, &bytes).set(Gpr::Rbx, RAM + 1);
    m.xmm[1] = [0xee; 16];
    assert_eq!(m.step(&[0x0f, 0x10, 0x0b]), Outcome::Done);
    assert_eq!(m.xmm[1], bytes[1..17]);
    assert_eq!(m.step(&[0x0f, 0x28, 0x0b]), Outcome::Stop(Stop::Fault(Exception::gp(0))));
    assert_eq!(m.step(&[0xf3, 0x0f, 0x7e, 0x0b]), Outcome::Done);
    assert_eq!(m.xmm[1][..8], bytes[1..9]);
    assert_eq!(m.xmm[1][8..], [0; 8]);
    m.xmm[1] = [0xee; 16];
    assert_eq!(m.step(&[0x0f, 0x16, 0x0b]), Outcome::Done);
    assert_eq!((m.xmm[1][0], m.xmm[1][8]), (0xee, 2));
    m.set(Gpr::Rbx, RAM + 0x100);
    assert_eq!(m.step(&[0x66, 0x0f, 0xe7, 0x0b]), Outcome::Done);
    assert_eq!(*m.peek(RAM + 0x100, 16), m.xmm[1]);
    assert_eq!(m.step(&[0xf2, 0x44, 0x0f, 0x10, 0x03]), Outcome::Done);
    assert_eq!(m.xmm[8][..8], m.xmm[1][..8]);
    m.xmm_reachable = false;
    assert_eq!(m.step(&[0x0f, 0x10, 0x0b]), UNHANDLED);
    assert_eq!(m.step(&[0x0f, 0x10, 0xca]), ELSEWHERE);
}

/// LOCK belongs to a few instructions with a memory destination; elsewhere it is #UD.
#[test]
fn lock_validity() {
    let ud = Outcome::Stop(Stop::Fault(Exception::ud()));
    let mut m = Machine::new(Mode::Bits64);
    m.set(Gpr::Rbx, RAM).set(Gpr::Rcx, RAM);
    assert_eq!(m.step(&[0xf0, 0x01, 0x03]), Outcome::Done);
    for code in [
        &[0xf0, 0x89, 0x03][..],
        &[0xf0, 0x01, 0xc3],
        &[0xf0, 0x03, 0x03],
        &[0xf0, 0x39, 0x03],
        &[0xf0, 0x0f, 0xa3, 0x03],
        &[0xf0, 0xa4],
    ] {
        assert_eq!(m.step(code), ud, "{code:02x?}");
    }
}

/// A locked add that loses its race reads again; one that always loses gives up without an effect.
#[test]
fn lock_races() {
    let mut m = Machine::new(Mode::Bits64);
    m.set(Gpr::Rbx, RAM).set(Gpr::Rax, 0x10).races = 3;
    assert_eq!(m.step(&[0xf0, 0x01, 0x03]), Outcome::Done);
    assert_eq!(m.peek_u64(RAM), 0x13);
    m.races = 1_000;
    let (rip, flags) = (m.rip, m.rflags);
    assert_eq!(m.step(&[0xf0, 0x0f, 0xc1, 0x03]), Outcome::Contended);
    assert_eq!((m.rip, m.rflags, m.get(Gpr::Rax)), (rip, flags, 0x10));
    m.races = 2;
    assert_eq!(m.step(&[0x87, 0x03]), Outcome::Done);
    assert_eq!((m.peek(RAM, 1)[0], m.races), (0x10, 0));
}

/// A read-modify-write of a page without write permission faults as a write, before anything is read.
#[test]
fn modify_faults_as_write() {
    let mut m = Machine::new(Mode::Bits64);
    m.read_only = MMIO..MMIO + 0x1000;
    m.set(Gpr::Rbx, MMIO);
    let pf = Outcome::Stop(Stop::Fault(Exception::pf(3, MMIO)));
    for code in [&[0x01, 0x03][..], &[0xff, 0x03], &[0x87, 0x03], &[0x0f, 0xb1, 0x03], &[0x0f, 0xc7, 0x0b]] {
        assert_eq!(m.step(code), pf, "{code:02x?}");
    }
    assert!(m.device.log.is_empty());
    assert_eq!(m.step(&[0x39, 0x03]), Outcome::Done);
}

/// Near branches through memory: the return address and the target check.
#[test]
fn branches() {
    let mut m = Machine::new(Mode::Bits64);
    m.poke(RAM, &0xffff_8000_1234_5678u64.to_le_bytes()).set(Gpr::Rbx, RAM).set(Gpr::Rsp, RAM + 0x100);
    assert_eq!(m.step(&[0xff, 0x13]), Outcome::Done);
    assert_eq!((m.rip, m.get(Gpr::Rsp)), (0xffff_8000_1234_5678, RAM + 0xf8));
    assert_eq!(m.peek_u64(RAM + 0xf8), 0x1002);
    assert_eq!(m.step(&[0xff, 0x23]), Outcome::Done);
    m.poke(RAM, &0x8000_0000_0000_0000u64.to_le_bytes());
    let before = m.gpr;
    assert_eq!(m.step(&[0xff, 0x13]), Outcome::Stop(Stop::Fault(Exception::gp(0))));
    assert_eq!(m.gpr, before);
    assert_eq!(m.step(&[0x66, 0xff, 0x13]), UNHANDLED);
    let mut m = Machine::new(Mode::Bits16);
    m.segments[SegReg::Ds as usize].base = RAM;
    m.segments[SegReg::Ss as usize].base = RAM;
    m.poke(RAM, &[0x78, 0x56, 0x34, 0x12]).set(Gpr::Rsp, 0xffff_0000);
    assert_eq!(m.step(&[0xff, 0x16, 0, 0]), Outcome::Done);
    assert_eq!((m.rip, m.get(Gpr::Rsp)), (0x5678, 0xffff_fffe));
    assert_eq!(m.peek(RAM + 0xfffe, 2), [0x04, 0x10]);
}

/// The stack pointer is as wide as SS says, whatever the code size; the rest of RSP stays.
#[test]
fn stack_widths() {
    let mut m = Machine::new(Mode::Bits32);
    m.segments[SegReg::Ss as usize].attrib &= !exitless_x86::regs::Segment::DB;
    m.segments[SegReg::Ss as usize].base = RAM;
    m.poke(RAM + 0x40, &[1, 2, 3, 4]).set(Gpr::Rbx, RAM + 0x40).set(Gpr::Rsp, 0x7777_0002);
    assert_eq!(m.step(&[0xff, 0x33]), Outcome::Done);
    assert_eq!(m.get(Gpr::Rsp), 0x7777_fffe);
    assert_eq!(m.peek(RAM + 0xfffe, 4), [1, 2, 3, 4]);
    let mut m = Machine::new(Mode::Bits16);
    m.segments[SegReg::Ss as usize].attrib |= exitless_x86::regs::Segment::DB;
    m.segments[SegReg::Ss as usize].limit = u32::MAX;
    m.poke(RAM, &[9, 8, 7, 6]).set(Gpr::Rsp, RAM);
    assert_eq!(m.step(&[0x5b]), Outcome::Done);
    assert_eq!((m.get(Gpr::Rbx), m.get(Gpr::Rsp)), (0x0809, RAM + 2));
    m.set(Gpr::Rsp, 0);
    m.segments[SegReg::Ss as usize].limit = 0xffff;
    assert_eq!(m.step(&[0x53]), Outcome::Stop(Stop::Fault(Exception::ss(0))));
}

/// Short forms that 64-bit code does not have: INC, DEC, MOV with a 16-bit absolute address.
#[test]
fn short_forms() {
    let mut m = Machine::new(Mode::Bits32);
    m.rflags |= rflags::CF;
    m.set(Gpr::Rdx, 0xffff_ffff);
    assert_eq!(m.step(&[0x42]), Outcome::Done);
    assert_eq!((m.get(Gpr::Rdx), m.rflags & (rflags::CF | rflags::ZF)), (0, rflags::CF | rflags::ZF));
    assert_eq!(m.step(&[0x66, 0x4a]), Outcome::Done);
    assert_eq!(m.get(Gpr::Rdx), 0xffff);
    let mut m = Machine::new(Mode::Bits16);
    m.segments[SegReg::Ds as usize].base = RAM;
    m.set(Gpr::Rax, 0x1111_2222);
    assert_eq!(m.step(&[0xa3, 0x10, 0x00]), Outcome::Done);
    assert_eq!(m.peek(RAM + 0x10, 4), [0x22, 0x22, 0, 0]);
    assert_eq!(m.step(&[0x66, 0x67, 0xa3, 0x20, 0, 0, 0]), Outcome::Done);
    assert_eq!(m.peek(RAM + 0x20, 4), [0x22, 0x22, 0x11, 0x11]);
}

/// RF is clear after an instruction, DF and the others stay.
#[test]
fn resume_flag() {
    let mut m = Machine::new(Mode::Bits64);
    m.rflags |= rflags::RF | rflags::DF;
    m.set(Gpr::Rbx, RAM);
    assert_eq!(m.step(&[0x8a, 0x03]), Outcome::Done);
    assert_eq!(m.rflags, 2 | rflags::DF);
}

/// Bytes that end too early, garbage, and instructions outside the set are refused, never half done.
#[test]
fn refused() {
    let mut m = Machine::new(Mode::Bits64);
    let before = m.gpr;
    assert_eq!(m.step(&[0x0f, 0x0b]), ELSEWHERE);
    for code in [&[0xc5, 0xfa, 0x6f, 0x03][..], &[0xd8, 0x03]] {
        assert_eq!(m.step(code), UNHANDLED, "{code:02x?}");
    }
    let prefixes = [0x66; 15];
    for code in [&[][..], &[0x8b], &[0x48, 0x8b, 0x05, 0, 0], &prefixes] {
        assert_eq!(m.step(code), Outcome::Stop(Stop::CutShort), "{code:02x?}");
    }
    assert_eq!(m.gpr, before);
}

/// Random bytes in every mode: the emulator returns, whatever they are.
#[test]
fn random_bytes_do_not_panic() {
    let mut r = common::Random::new(99);
    for _ in 0..200_000 {
        let mode = r.pick(&[Mode::Bits16, Mode::Bits32, Mode::Bits64]);
        let mut m = Machine { ram: Vec::new(), ..Machine::new(mode) };
        m.ram.resize(0x100, 0);
        for g in &mut m.gpr {
            *g = RAM + r.below(0x200);
        }
        m.protected = r.coin();
        let mut code = [0; 15];
        for b in &mut code {
            *b = r.next() as u8;
        }
        let valid = r.below(16) as usize;
        m.step(&code[..valid]);
    }
}

/// Every general register is the one that its number says.
#[test]
fn every_register() {
    const ALL: [Gpr; 16] = [
        Gpr::Rax,
        Gpr::Rcx,
        Gpr::Rdx,
        Gpr::Rbx,
        Gpr::Rsp,
        Gpr::Rbp,
        Gpr::Rsi,
        Gpr::Rdi,
        Gpr::R8,
        Gpr::R9,
        Gpr::R10,
        Gpr::R11,
        Gpr::R12,
        Gpr::R13,
        Gpr::R14,
        Gpr::R15,
    ];
    for (n, r) in (0u8..).zip(ALL) {
        let mut m = Machine::new(Mode::Bits64);
        // MOV [moffs], through the register: MOV [rip + disp32], r.
        m.set(r, 0x1111_0000 + u64::from(n));
        let disp = (RAM as u32).wrapping_sub(0x1007).to_le_bytes();
        let code = [&[0x48 | n >> 3 << 2, 0x89, 0x05 | (n & 7) << 3][..], &disp].concat();
        assert_eq!(m.step(&code), Outcome::Done, "{r:?}");
        assert_eq!(m.peek_u64(RAM), 0x1111_0000 + u64::from(n), "{r:?}");
    }
}

/// Code is 64-bit where the CPU is in long mode and the segment says so; neither alone will do.
#[test]
fn modes() {
    use exitless_x86::regs::{Segment, efer};
    let cs = |attrib: u16| Segment { attrib: Segment::P | Segment::S | 0xb | attrib, ..Segment::default() };
    for (attrib, efer, mode) in [
        (Segment::L, efer::LMA, Mode::Bits64),
        (Segment::L, 0, Mode::Bits16),
        (Segment::L, efer::LME, Mode::Bits16),
        (0, efer::LMA, Mode::Bits16),
        (Segment::DB, efer::LMA, Mode::Bits32),
        (Segment::DB, 0, Mode::Bits32),
        (0, 0, Mode::Bits16),
    ] {
        assert_eq!(Mode::of(&cs(attrib), efer), mode, "{attrib:x} {efer:x}");
    }
}
