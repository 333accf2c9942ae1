//! Segment registers, far branches, the stack's instructions, descriptor-table registers: values, and the faults of the manuals.

mod common;

use common::machine::{MMIO, Machine, RAM};
use exitless_insn::{Mode, Outcome, Stop};
use exitless_x86::exception::{Exception, Vector};
use exitless_x86::regs::{Gpr, SegReg, Segment, TableReg, cr0, cr4, rflags};

const GDT: u64 = RAM + 0x1000;

fn fault(vector: Vector, code: u32) -> Outcome {
    Outcome::Stop(Stop::Fault(Exception { error_code: Some(code), ..Exception::plain(vector) }))
}

fn gp(code: u32) -> Outcome {
    fault(Vector::GP, code)
}

const UD: Outcome = Outcome::Stop(Stop::Fault(Exception::ud()));

/// Base 0x123400, limit 0xfffff; `access` is the descriptor's byte 5, `flags` G, D and L.
fn descriptor(access: u64, flags: u64) -> u64 {
    0x000f_0012_3400_ffff | access << 40 | flags << 52
}

const FLAT: u64 = 0xc;

/// A GDT with, from 8 on: data, read-only data, user data, absent data, code, conforming code, absent code, LDT, TSS.
fn machine(mode: Mode) -> Machine {
    let mut m = Machine::new(mode);
    // Code of 1 MiB.
    let long = if mode == Mode::Bits64 { 2 } else { 4 };
    let entries = [
        0,
        descriptor(0x92, FLAT),
        descriptor(0x90, FLAT),
        descriptor(0xf2, FLAT),
        descriptor(0x12, FLAT),
        0x000f_9a00_0000_ffff | long << 52,
        0x000f_9e00_0000_ffff | long << 52,
        0x000f_1a00_0000_ffff | long << 52,
        descriptor(0x82, 0),
        0x0000_0000_0000_0000,
        descriptor(0x89, 0),
        0xffff_8000,
    ];
    for (i, d) in (0..).zip(entries) {
        m.poke(GDT + 8 * i, &d.to_le_bytes());
    }
    m.tables[0] = TableReg { base: GDT, limit: 8 * 12 - 1, ..TableReg::default() };
    m.set(Gpr::Rbx, RAM).set(Gpr::Rsp, RAM + 0x800);
    m
}

fn access(m: &Machine, selector: u64) -> u8 {
    m.peek(GDT + selector + 5, 1)[0]
}

/// BSF, BSR and the counts, of a register's every bit, of zero, and from the device.
#[test]
fn scans() {
    let mut m = machine(Mode::Bits64);
    let prefixes: [(&[u8], u32); 3] = [(&[0x66], 16), (&[], 32), (&[0x48], 64)];
    for (prefix, bits) in prefixes {
        for bit in 0..bits {
            let value = 1u64 << bit | if bit == 0 { 0 } else { 1 << (bit / 2) };
            m.poke(RAM, &value.to_le_bytes());
            let mut run = |f3: bool, op: u8| {
                let f3: &[u8] = if f3 { &[0xf3] } else { &[] };
                m.set(Gpr::Rax, 0).rflags = 2;
                assert_eq!(m.step(&[f3, prefix, &[0x0f, op, 0x03]].concat()), Outcome::Done);
                (m.get(Gpr::Rax) as u32, m.rflags & (rflags::ZF | rflags::CF))
            };
            let low = value.trailing_zeros();
            assert_eq!(run(false, 0xbc), (low, 0), "BSF {value:x}");
            assert_eq!(run(false, 0xbd), (bit, 0), "BSR {value:x}");
            assert_eq!(run(true, 0xb8), (value.count_ones(), 0), "POPCNT {value:x}");
            let zero = |n: u32| if n == 0 { rflags::ZF } else { 0 };
            assert_eq!(run(true, 0xbc), (low, zero(low)), "TZCNT {value:x}");
            assert_eq!(run(true, 0xbd), (bits - 1 - bit, zero(bits - 1 - bit)), "LZCNT {value:x}");
        }
        m.poke(RAM, &[0; 8]).set(Gpr::Rax, u64::MAX);
        m.rflags = 2 | rflags::CF;
        assert_eq!(m.step(&[prefix, &[0x0f, 0xbc, 0x03]].concat()), Outcome::Done);
        assert_eq!((m.get(Gpr::Rax), m.rflags), (u64::MAX, 2 | rflags::CF | rflags::ZF), "BSF of zero");
        assert_eq!(m.step(&[&[0xf3], prefix, &[0x0f, 0xbd, 0x03]].concat()), Outcome::Done);
        assert_eq!((m.get(Gpr::Rax) as u16, m.rflags), (bits as u16, 2 | rflags::CF), "LZCNT of zero");
        for (value, zf) in [(0u64, rflags::ZF), (1, 0)] {
            m.poke(RAM, &value.to_le_bytes()).rflags = 0x8d7;
            assert_eq!(m.step(&[&[0xf3], prefix, &[0x0f, 0xb8, 0x03]].concat()), Outcome::Done);
            assert_eq!(m.rflags, 2 | zf, "POPCNT clears the others");
        }
    }
    m.set(Gpr::Rbx, MMIO);
    assert_eq!(m.step(&[0x0f, 0xbc, 0x03]), Outcome::Done);
    assert_eq!(m.device.log.len(), 1);
}

/// MOV and POP to DS: what is loaded, and that the descriptor is accessed afterwards.
#[test]
fn data_segments() {
    let load = |m: &mut Machine, selector: u16| {
        m.poke(RAM, &selector.to_le_bytes());
        m.step(&[0x8e, 0x1b])
    };
    let mut m = machine(Mode::Bits32);
    assert_eq!(load(&mut m, 8), Outcome::Done);
    let ds = m.segments[SegReg::Ds as usize];
    assert_eq!(ds, Segment { base: 0x12_3400, limit: u32::MAX, selector: 8, attrib: 0xc93 });
    assert_eq!((access(&m, 8), m.shadow), (0x93, false));
    m.segments[SegReg::Ds as usize] = Machine::new(Mode::Bits32).segments[SegReg::Ds as usize];
    let refused = [(0x20, fault(Vector::NP, 0x20)), (0x40, gp(0x40)), (0x68, gp(0x68)), (0x0c, gp(0x0c))];
    for (selector, end) in refused {
        assert_eq!(load(&mut m, selector), end, "{selector:x}");
    }
    assert_eq!(load(&mut m, 0x11), gp(0x10), "RPL 1, DPL 0");
    assert_eq!(load(&mut m, 0x10), Outcome::Done);
}

/// Privilege of data segments: the weaker of CPL and RPL must suffice, conforming code is everybody's.
#[test]
fn data_privilege() {
    for (cpl, selector, end) in [
        (0u8, 0x0bu16, gp(0x08)),
        (3, 0x08, gp(0x08)),
        (3, 0x1b, Outcome::Done),
        (0, 0x1b, Outcome::Done),
        (3, 0x30, Outcome::Done),
        (3, 0x28, gp(0x28)),
        (0, 0x28, Outcome::Done),
        (3, 0x03, Outcome::Done),
    ] {
        let mut m = machine(Mode::Bits32);
        m.cpl = cpl;
        m.set(Gpr::Rsp, RAM + 0x800).poke(RAM + 0x800, &u32::from(selector).to_le_bytes());
        assert_eq!(m.step(&[0x07]), end, "POP ES of {selector:x} at {cpl}");
        let moved = end == Outcome::Done;
        assert_eq!(m.get(Gpr::Rsp), RAM + 0x800 + if moved { 4 } else { 0 });
        let es = m.segments[SegReg::Es as usize];
        assert_eq!(es.selector == selector, moved);
        assert_eq!(es.present(), selector & 0xfffc != 0);
    }
}

/// SS: writable data of the own level; its load holds interrupts back.
#[test]
fn stack_segment() {
    let load = |m: &mut Machine, selector: u16| {
        m.poke(RAM, &selector.to_le_bytes());
        m.step(&[0x8e, 0x13])
    };
    let mut m = machine(Mode::Bits32);
    for (selector, end) in [
        (0x10, gp(0x10)),
        (0x28, gp(0x28)),
        (0x18, gp(0x18)),
        (0x09, gp(0x08)),
        (0x00, gp(0)),
        (0x20, fault(Vector::SS, 0x20)),
    ] {
        assert_eq!(load(&mut m, selector), end, "{selector:x}");
        assert!(!m.shadow);
    }
    assert_eq!(load(&mut m, 8), Outcome::Done);
    assert!(m.shadow);
    // 64-bit kernels may have none.
    let mut m = machine(Mode::Bits64);
    assert_eq!(load(&mut m, 0), Outcome::Done);
    assert!(!m.segments[SegReg::Ss as usize].present());
    m.cpl = 3;
    assert_eq!(load(&mut m, 3), gp(0));
}

/// Real mode and virtual-8086 mode: the selector times 16.
#[test]
fn paragraphs() {
    let mut m = machine(Mode::Bits16);
    (m.protected, m.cr0) = (false, cr0::ET);
    m.segments[SegReg::Ds as usize].base = RAM;
    m.set(Gpr::Rdi, 0).set(Gpr::Rbx, 0).poke(RAM, &[0x34, 0x12]);
    assert_eq!(m.step(&[0x8e, 0x05]), Outcome::Done);
    let es = m.segments[SegReg::Es as usize];
    assert_eq!((es.base, es.selector, es.limit), (0x1_2340, 0x1234, 0xffff));
    m.cr0 |= cr0::PE;
    m.rflags |= rflags::VM;
    m.cpl = 3;
    assert_eq!(m.step(&[0x8e, 0x05]), Outcome::Done);
    assert_eq!(m.segments[SegReg::Es as usize].attrib, 0xf3);
}

/// LDS and LSS: offset and selector, or neither.
#[test]
fn far_pointers() {
    let mut m = machine(Mode::Bits32);
    m.poke(RAM, &[0x78, 0x56, 0x34, 0x12, 0x18, 0]);
    assert_eq!(m.step(&[0xc5, 0x0b]), Outcome::Done);
    assert_eq!((m.get(Gpr::Rcx), m.segments[SegReg::Ds as usize].selector), (0x1234_5678, 0x18));
    let mut m = machine(Mode::Bits32);
    m.poke(RAM, &[0x78, 0x56, 0x34, 0x12, 0x20, 0]);
    assert_eq!(m.step(&[0x0f, 0xb2, 0x0b]), fault(Vector::SS, 0x20));
    assert_eq!(m.get(Gpr::Rcx), 0);
    for (limit, end) in [(5, Outcome::Done), (4, gp(0))] {
        let mut m = machine(Mode::Bits32);
        m.poke(RAM, &[0, 0, 0, 0, 0x18, 0]);
        let ds = &mut m.segments[SegReg::Ds as usize];
        (ds.limit, ds.attrib) = (RAM as u32 + limit, ds.attrib & !Segment::G);
        assert_eq!(m.step(&[0xc4, 0x0b]), end, "six bytes, up to the segment's last");
    }
}

/// Far JMP through memory.
#[test]
fn far_jumps() {
    let jump = |cpl: u8, selector: u16, offset: u32| {
        let mut m = machine(Mode::Bits32);
        m.cpl = cpl;
        m.poke(RAM, &[&offset.to_le_bytes()[..], &selector.to_le_bytes()].concat());
        let end = m.step(&[0xff, 0x2b]);
        (end, m.rip, m.segments[SegReg::Cs as usize].selector)
    };
    assert_eq!(jump(0, 0x28, 0x5000), (Outcome::Done, 0x5000, 0x28));
    assert_eq!(jump(0, 0x2b, 0x5000).0, gp(0x28), "RPL");
    assert_eq!(jump(3, 0x2b, 0x5000).0, gp(0x28), "DPL");
    assert_eq!(jump(3, 0x33, 0x5000), (Outcome::Done, 0x5000, 0x33), "conforming: the level stays");
    assert_eq!(jump(3, 0x30, 0x5000), (Outcome::Done, 0x5000, 0x33));
    assert_eq!(jump(0, 0x28, 0x10_0000).0, gp(0), "beyond the limit");
    assert_eq!(jump(0, 0x38, 0).0, fault(Vector::NP, 0x38));
    assert_eq!((jump(0, 0x08, 0).0, jump(0, 0, 0).0, jump(0, 0x78, 0).0), (gp(8), gp(0), gp(0x78)));
    assert_eq!(jump(0, 0x50, 0).0, Outcome::Stop(Stop::Unhandled), "a task switch");
    assert_eq!(jump(0, 0x33, 0x5000), (Outcome::Done, 0x5000, 0x30), "conforming: RPL is nobody's business");
    // From long mode to 32-bit code, which has a limit; and to code that is 64-bit and 32-bit at once.
    for (flags, offset, end) in [
        (4u64, 0x5000u32, Outcome::Done),
        (4, 0x10_0000, gp(0)),
        (2, 0x10_0000, Outcome::Done),
        (6, 0x5000, gp(0x28)),
    ] {
        let mut m = machine(Mode::Bits64);
        m.poke(GDT + 0x28, &(0x000f_9a00_0000_ffff | flags << 52).to_le_bytes());
        m.poke(RAM, &[&offset.to_le_bytes()[..], &[0x28, 0]].concat());
        assert_eq!(m.step(&[0xff, 0x2b]), end, "{flags} {offset:x}");
    }
}

/// Far CALL pushes CS and the next instruction; RETF takes them back, and more.
#[test]
fn far_calls() {
    let mut m = machine(Mode::Bits32);
    m.poke(RAM, &[0, 0x50, 0, 0, 0x28, 0]);
    assert_eq!(m.step(&[0xff, 0x1b]), Outcome::Done);
    assert_eq!((m.rip, m.get(Gpr::Rsp), m.peek_u64(RAM + 0x7f8)), (0x5000, RAM + 0x7f8, 8 << 32 | 0x1002));
    m.poke(RAM + 0x7fc, &[0x28]);
    assert_eq!(m.step(&[0xca, 0x10, 0]), Outcome::Done);
    assert_eq!((m.rip, m.get(Gpr::Rsp)), (0x1002, RAM + 0x810));
    m.set(Gpr::Rsp, RAM + 0x7f8).poke(RAM + 0x7fc, &[0x2b]);
    assert_eq!(m.step(&[0xcb]), Outcome::Stop(Stop::Unhandled), "to an outer level");
    m.cpl = 3;
    m.poke(RAM + 0x7fc, &[0x28]);
    assert_eq!(m.step(&[0xcb]), gp(0x28), "to an inner level");
    // The second push would fault: nothing is pushed and nothing changes.
    let mut m = machine(Mode::Bits32);
    m.read_only = RAM + 0x7f8..RAM + 0x7fc;
    m.poke(RAM, &[0, 0x50, 0, 0, 0x28, 0]);
    let before = (m.rip, m.gpr, m.segments);
    assert_eq!(m.step(&[0xff, 0x1b]), Outcome::Stop(Stop::Fault(Exception::pf(3, RAM + 0x7f8))));
    assert_eq!((m.rip, m.gpr, m.segments), before);
    assert_eq!(m.peek(RAM + 0x7fc, 4), [0; 4]);
}

/// LTR and LLDT in long mode: 16 bytes, a busy bit, and the kernel's alone.
#[test]
fn system_segments() {
    let run = |m: &mut Machine, selector: u16, reg: u8| {
        m.poke(RAM, &selector.to_le_bytes());
        m.step(&[0x0f, 0x00, reg << 3 | 3])
    };
    let (ldt, tr) = (2, 3);
    let mut m = machine(Mode::Bits64);
    assert_eq!(run(&mut m, 0x50, tr), Outcome::Done);
    let tss = m.segments[SegReg::Tr as usize];
    assert_eq!((tss.base, tss.selector, tss.typ()), (0xffff_8000_0012_3400, 0x50, 11));
    assert_eq!(access(&m, 0x50), 0x8b);
    assert_eq!(run(&mut m, 0x50, tr), gp(0x50), "busy");
    assert_eq!(run(&mut m, 0x40, ldt), Outcome::Done);
    assert_eq!(m.segments[SegReg::Ldtr as usize].base, 0x12_3400);
    assert_eq!(run(&mut m, 0, ldt), Outcome::Done);
    assert!(!m.segments[SegReg::Ldtr as usize].present());
    for (selector, reg, code) in
        [(0, tr, 0), (0x54, tr, 0x54), (0x08, tr, 8), (0x28, ldt, 0x28), (0x60, tr, 0x60)]
    {
        assert_eq!(run(&mut m, selector, reg), gp(code), "{selector:x}");
    }
    m.poke(GDT + 0x45, &[0x02]);
    assert_eq!(run(&mut m, 0x40, ldt), fault(Vector::NP, 0x40));
    // A type in the upper half, and a base that is not canonical.
    for upper in [0x0100_ffff_8000u64, 0x1_0000, 0x1f00_ffff_8000] {
        let mut m = machine(Mode::Bits64);
        m.poke(GDT + 0x58, &upper.to_le_bytes());
        assert_eq!(run(&mut m, 0x50, tr), gp(0x50), "{upper:x}");
    }
    // The upper half lies beyond the limit.
    let mut m = machine(Mode::Bits64);
    m.tables[0].limit = 0x57;
    assert_eq!(run(&mut m, 0x50, tr), gp(0x50));
    m.cpl = 3;
    assert_eq!(run(&mut m, 0x50, tr), gp(0));
    m.protected = false;
    m.cr0 &= !cr0::PE;
    assert_eq!(run(&mut m, 0x50, tr), UD);
}

/// SGDT and LGDT in their sizes; SMSW, LMSW, SLDT, STR; UMIP hides what is stored from user code.
#[test]
fn tables_and_status() {
    let gdt = TableReg { base: 0xffff_8000_1234_5678, limit: 0x7f, ..TableReg::default() };
    let mut m = machine(Mode::Bits64);
    m.tables = [gdt, TableReg { base: 0x9abc, limit: 0xfff, ..gdt }];
    m.set(Gpr::Rbx, MMIO);
    assert_eq!(m.step(&[0x0f, 0x01, 0x03]), Outcome::Done);
    let written: Vec<_> = m.device.log.iter().map(|r| (r.address - MMIO, r.len)).collect();
    assert_eq!(written, [(0, 2), (2, 8)]);
    assert_eq!(m.device.log[1].data[..8], gdt.base.to_le_bytes());
    m.set(Gpr::Rbx, RAM);
    assert_eq!(m.step(&[0x0f, 0x01, 0x0b]), Outcome::Done);
    m.tables = [TableReg::default(); 2];
    assert_eq!(m.step(&[0x0f, 0x01, 0x13]), Outcome::Done);
    assert_eq!(m.tables[0], TableReg { base: 0x9abc, limit: 0xfff, ..gdt });
    m.poke(RAM + 2, &0x8000_0000_0000_0000u64.to_le_bytes());
    assert_eq!(m.step(&[0x0f, 0x01, 0x1b]), gp(0));
    // 16-bit operands hold 24 bits of the base.
    let mut m = machine(Mode::Bits32);
    m.poke(RAM, &[0x34, 0x12, 1, 2, 3, 4]);
    assert_eq!(m.step(&[0x66, 0x0f, 0x01, 0x1b]), Outcome::Done);
    assert_eq!(m.tables[1], TableReg { base: 0x03_0201, limit: 0x1234, ..gdt });
    m.set(Gpr::Rbx, MMIO);
    m.segments[SegReg::Tr as usize].selector = 0x50;
    m.segments[SegReg::Ldtr as usize].selector = 0x40;
    let stores: [(&[u8], u16); 3] =
        [(&[0x0f, 0x01, 0x23], 0x11), (&[0x0f, 0x00, 0x03], 0x40), (&[0x0f, 0x00, 0x0b], 0x50)];
    for (code, value) in stores {
        m.cr4 = cr4::UMIP;
        m.cpl = 3;
        assert_eq!(m.step(code), gp(0), "UMIP: {code:x?}");
        m.cpl = 0;
        m.device.log.clear();
        assert_eq!(m.step(code), Outcome::Done);
        assert_eq!(
            (m.device.log[0].len, m.device.log[0].data[..2].to_vec()),
            (2, value.to_le_bytes().to_vec())
        );
        (m.cr4, m.cpl) = (0, 3);
        assert_eq!(m.step(code), Outcome::Done);
    }
    assert_eq!((m.step(&[0x66, 0x0f, 0x01, 0x03]), m.step(&[0x0f, 0x01, 0x33])), (Outcome::Done, gp(0)));
    m.cpl = 0;
    m.set(Gpr::Rbx, RAM).poke(RAM, &[0x1b, 0]);
    assert_eq!(m.step(&[0x0f, 0x01, 0x33]), Outcome::Done);
    assert_eq!(m.cr0, 0x8000_001b);
}

/// RET, ENTER, LEAVE, PUSHA and POPA.
#[test]
fn frames() {
    let mut m = machine(Mode::Bits64);
    m.poke(RAM + 0x800, &0x1_2345u64.to_le_bytes());
    assert_eq!(m.step(&[0xc2, 0x20, 0]), Outcome::Done);
    assert_eq!((m.rip, m.get(Gpr::Rsp)), (0x1_2345, RAM + 0x828));
    m.poke(RAM + 0x828, &0x8000_0000_0000_0000u64.to_le_bytes());
    assert_eq!(m.step(&[0xc3]), gp(0));
    m.set(Gpr::Rsp, MMIO + 0x100).set(Gpr::Rbp, 0x77);
    assert_eq!(m.step(&[0xc8, 0x40, 0, 0]), Outcome::Done);
    assert_eq!((m.get(Gpr::Rsp), m.get(Gpr::Rbp)), (MMIO + 0xf8 - 0x40, MMIO + 0xf8));
    assert_eq!((m.device.log[0].address, m.device.log[0].data[0]), (MMIO + 0xf8, 0x77));
    m.set(Gpr::Rbp, RAM + 0x40).poke(RAM + 0x40, &[9, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(m.step(&[0xc9]), Outcome::Done);
    assert_eq!((m.get(Gpr::Rsp), m.get(Gpr::Rbp)), (RAM + 0x48, 9));
    assert_eq!(m.step(&[0xc8, 0, 0, 1]), Outcome::Stop(Stop::Unhandled));
    let mut m = machine(Mode::Bits32);
    for (i, r) in (0..).zip([Gpr::Rax, Gpr::Rcx, Gpr::Rdx, Gpr::Rbx, Gpr::Rsp, Gpr::Rbp, Gpr::Rsi, Gpr::Rdi])
    {
        m.set(r, if r == Gpr::Rsp { RAM + 0x800 } else { 0x1000 + i });
    }
    let before = m.gpr;
    assert_eq!(m.step(&[0x60]), Outcome::Done);
    assert_eq!(
        (m.get(Gpr::Rsp), m.peek(RAM + 0x7ec, 4)),
        (RAM + 0x7e0, &((RAM + 0x800) as u32).to_le_bytes()[..])
    );
    m.gpr = [0; 16];
    m.set(Gpr::Rsp, RAM + 0x7e0);
    assert_eq!(m.step(&[0x61]), Outcome::Done);
    assert_eq!(m.gpr, before);
    // PUSH and POP of segment registers.
    m.segments[SegReg::Fs as usize].selector = 0x53;
    assert_eq!(m.step(&[0x0f, 0xa0]), Outcome::Done);
    assert_eq!((m.get(Gpr::Rsp), m.peek(RAM + 0x7fc, 2)), (RAM + 0x7fc, &[0x53, 0][..]));
    // A call to what follows.
    assert_eq!(m.step(&[0xe8, 0, 1, 0, 0]), Outcome::Done);
    assert_eq!(m.rip & 0xfff, (m.peek_u64(RAM + 0x7f8) as u32 + 0x100) as u64 & 0xfff);
}

/// POPF changes IF and IOPL for those who may.
#[test]
fn flags() {
    for (cpl, iopl, changed) in [(0, 0, rflags::IF | rflags::IOPL), (3, 3, rflags::IF), (3, 0, 0)] {
        let mut m = machine(Mode::Bits64);
        m.cpl = cpl;
        m.rflags = 2 | iopl << 12;
        let all = rflags::IF | rflags::IOPL ^ m.rflags & rflags::IOPL | rflags::CF | rflags::AC;
        m.poke(RAM + 0x800, &(all | m.rflags).to_le_bytes());
        let before = m.rflags;
        assert_eq!(m.step(&[0x9d]), Outcome::Done);
        let iopl_changes = changed & rflags::IOPL & all;
        let expected = before | rflags::CF | rflags::AC | changed & rflags::IF | iopl_changes;
        assert_eq!(m.rflags, expected, "CPL {cpl}, IOPL {iopl}");
        m.rflags |= rflags::RF;
        assert_eq!(m.step(&[0x9c]), Outcome::Done);
        assert_eq!(m.peek_u64(RAM + 0x800), expected);
    }
    let mut m = machine(Mode::Bits16);
    m.protected = false;
    m.segments[SegReg::Ss as usize].base = RAM;
    m.set(Gpr::Rsp, 0x800);
    m.cpl = 3;
    m.rflags |= rflags::VM;
    assert_eq!((m.step(&[0x9c]), m.step(&[0x9d])), (gp(0), gp(0)));
    m.cr4 = cr4::VME;
    assert_eq!(m.step(&[0x9c]), Outcome::Stop(Stop::Unhandled));
    m.rflags |= rflags::IOPL;
    assert_eq!(m.step(&[0x9c]), Outcome::Done);
}

/// MMX moves and the x87's words; the guest's #NM or #MF comes before anything else.
#[test]
fn mmx_and_x87() {
    let mut m = machine(Mode::Bits64);
    m.set(Gpr::Rbx, MMIO);
    m.mmx[3] = 0x1122_3344_5566_7788;
    let stores: [(&[u8], usize); 3] =
        [(&[0x0f, 0x7f, 0x1b], 8), (&[0x0f, 0x7e, 0x1b], 4), (&[0x0f, 0xe7, 0x1b], 8)];
    for (code, len) in stores {
        m.device.log.clear();
        assert_eq!(m.step(code), Outcome::Done);
        assert_eq!((m.device.log[0].len, m.device.log[0].data[0]), (len, 0x88));
    }
    m.set(Gpr::Rbx, RAM).poke(RAM, &0x0102_0304_0506_0708u64.to_le_bytes());
    assert_eq!(m.step(&[0x0f, 0x6f, 0x2b]), Outcome::Done);
    assert_eq!(m.step(&[0x0f, 0x6e, 0x33]), Outcome::Done);
    assert_eq!((m.mmx[5], m.mmx[6]), (0x0102_0304_0506_0708, 0x0506_0708));
    assert_eq!((m.step(&[0xd9, 0x3b]), m.peek(RAM, 2)), (Outcome::Done, &[0x7f, 3][..]));
    let mut m2 = m.clone();
    assert_eq!((m2.step(&[0xdd, 0x3b]), m2.peek(RAM, 2)), (Outcome::Done, &[0x01, 0x38][..]));
    m.no_mmx = Some(Exception::plain(Vector::NM));
    m.set(Gpr::Rbx, 0x10);
    for code in [&[0x0f, 0x6f, 0x2b][..], &[0x0f, 0x7f, 0x2b], &[0xd9, 0x3b], &[0xdd, 0x3b]] {
        assert_eq!(m.step(code), Outcome::Stop(Stop::Fault(Exception::plain(Vector::NM))), "{code:x?}");
    }
}

/// Limit and base lie side by side, up to the segment's last byte; 16-bit operands have 24 bits of the base.
#[test]
fn pseudo_descriptors() {
    for (limit, end) in [(RAM as u32 + 5, Outcome::Done), (RAM as u32 + 4, gp(0))] {
        for code in [&[0x0f, 0x01, 0x13][..], &[0x0f, 0x01, 0x03]] {
            let mut m = machine(Mode::Bits32);
            let ds = &mut m.segments[SegReg::Ds as usize];
            (ds.limit, ds.attrib) = (limit, ds.attrib & !Segment::G);
            assert_eq!(m.step(code), end, "{code:x?} {limit:x}");
        }
    }
    let mut m = machine(Mode::Bits32);
    m.tables[0] = TableReg { base: 0x8912_3456, limit: 0x7f, ..TableReg::default() };
    assert_eq!(m.step(&[0x66, 0x0f, 0x01, 0x03]), Outcome::Done);
    assert_eq!(m.peek(RAM, 6), [0x7f, 0, 0x56, 0x34, 0x12, 0]);
    assert_eq!(m.step(&[0x0f, 0x01, 0x03]), Outcome::Done);
    assert_eq!(m.peek(RAM, 6), [0x7f, 0, 0x56, 0x34, 0x12, 0x89]);
}

/// The alignment of SGDT and SIDT is for 4 bytes, and checked outside of 64-bit code alone.
#[test]
fn aligned_pseudo_descriptors() {
    for (mode, off, faults) in [
        (Mode::Bits32, 0, false),
        (Mode::Bits32, 2, true),
        (Mode::Bits32, 4, false),
        (Mode::Bits64, 2, false),
    ] {
        let mut m = machine(mode);
        m.cpl = 3;
        m.rflags |= rflags::AC;
        m.cr0 |= cr0::AM;
        m.set(Gpr::Rbx, RAM + off);
        let end = m.step(&[0x0f, 0x01, 0x0b]);
        assert_eq!(end == Outcome::Done, !faults, "{mode:?} {off}: {end:?}");
    }
}
