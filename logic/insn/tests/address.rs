//! Addresses: 16-bit forms, wrapping, segment bases, limits and attributes, canonical form.

mod common;

use common::machine::{Machine, RAM};
use exitless_insn::emulate::linearize;
use exitless_insn::{Mode, Outcome, Stop};
use exitless_x86::exception::Exception;
use exitless_x86::regs::{Gpr, SegReg, Segment};

const GP: Outcome = Outcome::Stop(Stop::Fault(Exception::gp(0)));
const SS: Outcome = Outcome::Stop(Stop::Fault(Exception::ss(0)));

/// The linear address of the memory operand of `code`.
fn operand(m: &Machine, code: &[u8]) -> u64 {
    // All that there is is a device.
    let mut m = Machine { mmio: 0..u64::MAX, ram: vec![], protected: false, ..m.clone() };
    for s in &mut m.segments {
        s.limit = u32::MAX;
    }
    assert_eq!(m.step(code), Outcome::Done, "{code:x?}");
    m.device.log[0].address
}

/// All eight 16-bit forms, the displacement-only form, and the wrap at 64 KiB.
#[test]
fn sixteen_bit_forms() {
    let mut m = Machine::new(Mode::Bits16);
    m.set(Gpr::Rbx, 0x1_1000).set(Gpr::Rbp, 0x2000).set(Gpr::Rsi, 0x30).set(Gpr::Rdi, 0x400);
    m.segments[SegReg::Ss as usize].base = 0x50_0000;
    let expected = [0x1030, 0x1400, 0x50_2030, 0x50_2400, 0x30, 0x400, 0x1234, 0x1000];
    for (rm, want) in expected.into_iter().enumerate() {
        assert_eq!(operand(&m, &[0x8a, rm as u8, 0x34, 0x12]), want, "rm {rm}");
    }
    assert_eq!(operand(&m, &[0x8a, 0x47, 0xff]), 0x0fff);
    m.set(Gpr::Rbx, 0xffff).set(Gpr::Rsi, 2);
    assert_eq!(operand(&m, &[0x8a, 0x00]), 1);
}

/// 67h in 16-bit code gives 32-bit forms with their own default segments.
#[test]
fn mixed_address_sizes() {
    let mut m = Machine::new(Mode::Bits16);
    m.segments[SegReg::Ds as usize].base = 0x1_0000;
    m.segments[SegReg::Ss as usize].base = 0x2_0000;
    m.set(Gpr::Rax, 0x100).set(Gpr::Rcx, 8).set(Gpr::Rsp, 0x40);
    assert_eq!(operand(&m, &[0x67, 0x8a, 0x44, 0x88, 0x10]), 0x1_0130);
    assert_eq!(operand(&m, &[0x67, 0x8a, 0x04, 0x24]), 0x2_0040);
    assert_eq!(operand(&m, &[0x26, 0x67, 0x8a, 0x00]), 0x100);
}

/// RIP-relative, absolute and 32-bit addresses in 64-bit mode.
#[test]
fn sixty_four_bit_forms() {
    let mut m = Machine::new(Mode::Bits64);
    m.rip = 0xffff_8000_0000_1000;
    assert_eq!(operand(&m, &[0x8a, 0x05, 0xf0, 0xff, 0xff, 0xff]), 0xffff_8000_0000_0ff6);
    assert_eq!(operand(&m, &[0x67, 0x8a, 0x05, 0x10, 0, 0, 0]), 0x1017);
    assert_eq!(operand(&m, &[0x8a, 0x04, 0x25, 0, 0, 0, 0x80]), 0xffff_ffff_8000_0000);
    assert_eq!(operand(&m, &[0x67, 0x8a, 0x04, 0x25, 0, 0, 0, 0x80]), 0x8000_0000);
    m.set(Gpr::Rax, u64::MAX).set(Gpr::R12, 0x10);
    assert_eq!(operand(&m, &[0x8a, 0x40, 0x02]), 1);
    assert_eq!(operand(&m, &[0x67, 0x8a, 0x40, 0x02]), 1);
    assert_eq!(operand(&m, &[0x43, 0x8a, 0x04, 0x64]), 0x30);
    m.segments[SegReg::Gs as usize].base = 0xffff_8880_0000_0000;
    m.segments[SegReg::Ds as usize].base = 0x1234;
    assert_eq!(operand(&m, &[0x65, 0x8a, 0x04, 0x25, 0x20, 0, 0, 0]), 0xffff_8880_0000_0020);
    assert_eq!(operand(&m, &[0x3e, 0x43, 0x8a, 0x04, 0x64]), 0x30);
}

/// A non-canonical operand is #GP(0), or #SS(0) through RSP or RBP; the last byte counts.
#[test]
fn non_canonical() {
    let mut m = Machine::new(Mode::Bits64);
    m.set(Gpr::Rax, 0x0000_8000_0000_0000).set(Gpr::Rbp, 0x0000_8000_0000_0000);
    assert_eq!(m.step(&[0x8a, 0x00]), GP);
    assert_eq!(m.step(&[0x8a, 0x45, 0x00]), SS);
    m.set(Gpr::Rax, 0x0000_7fff_ffff_fffe);
    assert_eq!(m.step(&[0x8b, 0x00]), GP);
    m.linear_bits = 57;
    assert!(matches!(m.step(&[0x8b, 0x00]), Outcome::Stop(Stop::Fault(e)) if e.vector.0 == 14));
}

/// The limit is the last valid offset.
#[test]
fn limits() {
    let mut m = Machine::new(Mode::Bits32);
    let ds = &mut m.segments[SegReg::Ds as usize];
    *ds = Segment { base: RAM, limit: 0xfff, ..*ds };
    m.set(Gpr::Rbx, 0xffc);
    assert_eq!(m.step(&[0x8b, 0x03]), Outcome::Done);
    m.set(Gpr::Rbx, 0xffd);
    assert_eq!(m.step(&[0x8b, 0x03]), GP);
    assert_eq!(m.step(&[0x8a, 0x03]), Outcome::Done);
    m.segments[SegReg::Ss as usize].limit = 0xff;
    m.set(Gpr::Rbp, 0x100);
    assert_eq!(m.step(&[0x8a, 0x45, 0x00]), SS);
}

/// An expand-down segment is valid above its limit.
#[test]
fn expand_down() {
    let mut m = Machine::new(Mode::Bits32);
    let ds = &mut m.segments[SegReg::Ds as usize];
    *ds = Segment { base: RAM, limit: 0xfff, attrib: ds.attrib | 4, ..*ds };
    assert!(linearize(&m, SegReg::Ds, 0xfff, 1, true).is_err());
    assert_eq!(linearize(&m, SegReg::Ds, 0x1000, 4, true), Ok(RAM + 0x1000));
    assert!(linearize(&m, SegReg::Ds, 0xffff_fffd, 4, true).is_err());
    m.segments[SegReg::Ds as usize].attrib &= !Segment::DB;
    assert!(linearize(&m, SegReg::Ds, 0x1_0000, 1, true).is_err());
}

/// Read-only data, execute-only code and null selectors, which real mode does not check.
#[test]
fn attributes() {
    let mut m = Machine::new(Mode::Bits32);
    m.set(Gpr::Rbx, RAM);
    m.segments[SegReg::Ds as usize].attrib &= !2;
    assert_eq!(m.step(&[0x88, 0x03]), GP);
    assert_eq!(m.step(&[0x8a, 0x03]), Outcome::Done);
    m.segments[SegReg::Cs as usize].attrib &= !2;
    assert_eq!(m.step(&[0x2e, 0x8a, 0x03]), GP);
    m.segments[SegReg::Es as usize].attrib &= !Segment::P;
    assert_eq!(m.step(&[0x26, 0x8a, 0x03]), GP);
    m.protected = false;
    assert_eq!(m.step(&[0x88, 0x03]), Outcome::Done);
    assert_eq!(m.step(&[0x26, 0x8a, 0x03]), Outcome::Done);
}

/// Base plus offset wraps at 4 GiB outside 64-bit mode.
#[test]
fn linear_wrap() {
    let mut m = Machine::new(Mode::Bits32);
    m.segments[SegReg::Ds as usize].base = 0xffff_f000;
    assert_eq!(linearize(&m, SegReg::Ds, RAM + 0x1000, 1, false), Ok(RAM));
}

/// `xlat` uses rBX plus AL in the address size.
#[test]
fn xlat() {
    let mut m = Machine::new(Mode::Bits16);
    m.segments[SegReg::Ds as usize].base = RAM;
    m.poke(RAM + 0x0f, &[0x99]).set(Gpr::Rbx, 0xff10).set(Gpr::Rax, 0x12ff);
    assert_eq!(m.step(&[0xd7]), Outcome::Done);
    assert_eq!(m.get(Gpr::Rax), 0x1299);
}
