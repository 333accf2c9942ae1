//! String instructions: what the comparison with the processor cannot show. Ports, bounds, faults, 16-bit addresses.

mod common;

use common::Random;
use common::machine::{MMIO, Machine, RAM};
use exitless_insn::{Mode, Outcome, Stop};
use exitless_x86::exception::Exception;
use exitless_x86::regs::{Gpr, SegReg, rflags};

/// A long copy comes back for events now and then, with its progress in the registers.
#[test]
fn a_long_repetition_comes_back() {
    let mut m = Machine::new(Mode::Bits64);
    m.set(Gpr::Rdi, RAM).set(Gpr::Rcx, 1000).set(Gpr::Rax, 0x5a);
    assert_eq!(m.step(&[0xf3, 0xaa]), Outcome::Again);
    let done = 1000 - m.get(Gpr::Rcx);
    assert!(done > 0 && done < 1000);
    assert_eq!((m.rip, m.get(Gpr::Rdi)), (0x1000, RAM + done));
    assert_eq!(m.run(&[0xf3, 0xaa]), Outcome::Done);
    assert_eq!((m.rip, m.get(Gpr::Rcx)), (0x1002, 0));
    assert!(m.peek(RAM, 1000).iter().all(|b| *b == 0x5a));
}

/// Single-stepping traps after every iteration, so each call does one.
#[test]
fn single_step_does_one_iteration() {
    let mut m = Machine::new(Mode::Bits64);
    m.rflags |= rflags::TF;
    m.set(Gpr::Rdi, RAM).set(Gpr::Rcx, 3);
    assert_eq!(m.step(&[0xf3, 0xaa]), Outcome::Again);
    assert_eq!(m.get(Gpr::Rcx), 2);
}

/// The last iteration moves RIP in the same call, also when it is the call's last or the single-stepped one:
/// the trap after it must not point at the instruction again.
#[test]
fn the_last_iteration_completes() {
    for (flags, count) in [(rflags::TF, 1), (0, 64), (0, 1)] {
        let mut m = Machine::new(Mode::Bits64);
        m.rflags |= flags;
        m.set(Gpr::Rdi, RAM).set(Gpr::Rcx, count);
        assert_eq!(m.step(&[0xf3, 0xaa]), Outcome::Done);
        assert_eq!((m.rip, m.get(Gpr::Rcx)), (0x1002, 0));
    }
}

/// A count of zero does nothing, not even for a bad address.
#[test]
fn zero_count() {
    let mut m = Machine::new(Mode::Bits64);
    m.set(Gpr::Rdi, 0xdead_0000_0000_0000);
    assert_eq!(m.step(&[0xf3, 0xaa]), Outcome::Done);
}

/// INS must not read the port when memory would fault: the device would lose a byte.
#[test]
fn ins_checks_memory_before_the_port() {
    let mut m = Machine::new(Mode::Bits64);
    m.read_only = RAM..RAM + 0x1000;
    m.set(Gpr::Rdi, RAM).set(Gpr::Rdx, 0x1f0);
    let outcome = m.step(&[0x6c]);
    assert_eq!(outcome, Outcome::Stop(Stop::Fault(Exception::pf(3, RAM))));
    assert!(m.device.log.is_empty());
}

/// INS and OUTS move words between a port and memory.
#[test]
fn ports() {
    let mut m = Machine::new(Mode::Bits64);
    m.poke(RAM, &[1, 2, 3, 4]).set(Gpr::Rsi, RAM).set(Gpr::Rdx, 0xffff_0170).set(Gpr::Rcx, 2);
    assert_eq!(m.run(&[0xf3, 0x66, 0x6f]), Outcome::Done);
    let log: Vec<_> = m.device.log.iter().map(|r| (r.port, r.write, r.address, r.len, r.data[0])).collect();
    assert_eq!(log, [(true, true, 0x170, 2, 1), (true, true, 0x170, 2, 3)]);
    m.set(Gpr::Rdi, RAM + 0x100);
    m.rip = 0x1000;
    assert_eq!(m.run(&[0x6d]), Outcome::Done);
    let read = m.device.log[2];
    assert_eq!((read.write, read.len), (false, 4));
    assert_eq!(m.peek(RAM + 0x100, 4), &read.data[..4]);
    assert_eq!(m.get(Gpr::Rdi), RAM + 0x104);
}

/// IN and OUT without memory.
#[test]
fn in_and_out() {
    let mut m = Machine::new(Mode::Bits64);
    m.set(Gpr::Rax, u64::MAX).set(Gpr::Rdx, 0x3f8);
    assert_eq!(m.step(&[0xed]), Outcome::Done);
    let data = m.device.log[0].data;
    assert_eq!(m.get(Gpr::Rax), u64::from(u32::from_le_bytes([data[0], data[1], data[2], data[3]])));
    assert_eq!(m.step(&[0xe6, 0x80]), Outcome::Done);
    assert_eq!((m.device.log[1].address, m.device.log[1].len), (0x80, 1));
}

/// The third of five elements faults: two are done and in the registers.
#[test]
fn fault_in_the_middle() {
    let mut m = Machine::new(Mode::Bits64);
    m.read_only = RAM + 0x1000..RAM + 0x2000;
    m.set(Gpr::Rdi, RAM + 0xffe).set(Gpr::Rcx, 5);
    let outcome = m.step(&[0xf3, 0xaa]);
    assert_eq!(outcome, Outcome::Stop(Stop::Fault(Exception::pf(3, RAM + 0x1000))));
    assert_eq!((m.get(Gpr::Rcx), m.get(Gpr::Rdi), m.rip), (3, RAM + 0x1000, 0x1000));
}

/// 16-bit addresses wrap at 64 KiB and leave the upper halves of registers alone.
#[test]
fn sixteen_bit_addresses_wrap() {
    let mut m = Machine::new(Mode::Bits16);
    m.protected = false;
    m.segments[SegReg::Es as usize].base = RAM;
    m.set(Gpr::Rdi, 0xabcd_ffff).set(Gpr::Rcx, 0x7777_0002).set(Gpr::Rax, 0x42);
    assert_eq!(m.run(&[0xf3, 0xaa]), Outcome::Done);
    assert_eq!((m.get(Gpr::Rdi), m.get(Gpr::Rcx)), (0xabcd_0001, 0x7777_0000));
    assert_eq!((m.peek(RAM + 0xffff, 1), m.peek(RAM, 1)), (&[0x42][..], &[0x42][..]));
}

/// The segment prefix moves the source, never the destination.
#[test]
fn override_moves_the_source_only() {
    let mut m = Machine::new(Mode::Bits32);
    m.segments[SegReg::Fs as usize].base = RAM;
    m.poke(RAM + 0x10, &[7]).set(Gpr::Rsi, 0x10).set(Gpr::Rdi, RAM + 0x20);
    assert_eq!(m.step(&[0x64, 0xa4]), Outcome::Done);
    assert_eq!(m.peek(RAM + 0x20, 1), [7]);
}

/// CMPS on the device reads the source before the destination, each once.
#[test]
fn compare_order() {
    let mut m = Machine::new(Mode::Bits64);
    m.set(Gpr::Rsi, MMIO).set(Gpr::Rdi, MMIO + 0x10);
    assert_eq!(m.step(&[0xa6]), Outcome::Done);
    let order: Vec<_> = m.device.log.iter().map(|r| r.address).collect();
    assert_eq!(order, [MMIO, MMIO + 0x10]);
}

/// REP INS and OUTS in blocks: the same bytes at the same places as one by one, in fewer requests, for all sizes, counts,
/// places in pages and directions.
#[test]
fn blocks_move_what_elements_move() {
    let mut fewer = 0;
    for seed in 0..2_000u64 {
        let mut r = Random::new(seed + 3);
        let mut m = Machine::new(r.pick(&[Mode::Bits32, Mode::Bits64]));
        m.ram.fill_with(|| r.next() as u8);
        m.rflags |= r.pick(&[0, 0, 0, rflags::DF]);
        let at = RAM + 0x3000 + r.pick(&[0, 0x1000]) - r.below(40);
        let count = r.pick(&[0, 1, 2, 3, 5, 16, 17, 40, 1500]);
        m.set(Gpr::Rsi, at).set(Gpr::Rdi, at).set(Gpr::Rcx, count).set(Gpr::Rdx, 0x1f0);
        let outs: [&[u8]; 3] = [&[0xf3, 0x6e], &[0xf3, 0x66, 0x6f], &[0xf3, 0x6f]];
        let ins: [&[u8]; 3] = [&[0xf3, 0x6c], &[0xf3, 0x66, 0x6d], &[0xf3, 0x6d]];
        let forms = r.pick(&[outs, ins]);
        let code = r.pick(&forms);
        let input = code[code.len() - 1] & 0xfe == 0x6c;
        let mut one_by_one = m.clone();
        m.blocks = true;
        assert_eq!(m.run(code), Outcome::Done, "seed {seed}");
        assert_eq!(one_by_one.run(code), Outcome::Done, "seed {seed}");
        assert_eq!(
            (m.gpr, m.rip, m.rflags),
            (one_by_one.gpr, one_by_one.rip, one_by_one.rflags),
            "seed {seed}"
        );
        let sent =
            |m: &Machine| -> Vec<u8> { m.device.log.iter().flat_map(|q| q.data[..q.len].to_vec()).collect() };
        assert_eq!(sent(&m).len(), sent(&one_by_one).len(), "seed {seed}");
        if !input {
            assert_eq!(sent(&m), sent(&one_by_one), "seed {seed}");
            assert!(m.ram == one_by_one.ram, "seed {seed}");
        } else if m.rflags & rflags::DF == 0 {
            assert_eq!(m.peek(at, sent(&m).len()), sent(&m), "seed {seed}");
        }
        if m.rflags & rflags::DF != 0 {
            assert_eq!(m.device.log.len(), one_by_one.device.log.len(), "seed {seed}: downwards one by one");
        }
        fewer += usize::from(m.device.log.len() < one_by_one.device.log.len());
    }
    assert!(fewer > 500, "{fewer}");
}

/// A block ends where the page ends, and the element across two pages goes alone.
#[test]
fn a_block_ends_with_its_page() {
    let mut m = Machine::new(Mode::Bits64);
    m.blocks = true;
    m.set(Gpr::Rdi, RAM + 0xff6).set(Gpr::Rcx, 6).set(Gpr::Rdx, 0x1f0);
    assert_eq!(m.run(&[0xf3, 0x6d]), Outcome::Done);
    let lengths: Vec<_> = m.device.log.iter().map(|q| q.len).collect();
    assert_eq!(lengths, [8, 4, 12]);
}

/// The next page is not writable: what fits before it is done, then the guest gets its fault with the progress in
/// the registers and nothing taken from the device.
#[test]
fn a_block_stops_before_the_fault() {
    let mut m = Machine::new(Mode::Bits64);
    m.blocks = true;
    m.read_only = RAM + 0x1000..RAM + 0x2000;
    m.set(Gpr::Rdi, RAM + 0xffc).set(Gpr::Rcx, 8).set(Gpr::Rdx, 0x1f0);
    let outcome = m.run(&[0xf3, 0x66, 0x6d]);
    assert_eq!(outcome, Outcome::Stop(Stop::Fault(Exception::pf(3, RAM + 0x1000))));
    assert_eq!((m.get(Gpr::Rcx), m.get(Gpr::Rdi), m.device.log.len()), (6, RAM + 0x1000, 1));
}

/// Before the segment's limit and the wrap of 16-bit addresses elements go one by one: the fault is the right element's.
#[test]
fn blocks_keep_off_the_limit() {
    let mut m = Machine::new(Mode::Bits32);
    m.blocks = true;
    m.segments[SegReg::Es as usize].limit = (RAM + 5) as u32;
    m.set(Gpr::Rdi, RAM).set(Gpr::Rcx, 8).set(Gpr::Rdx, 0x1f0);
    assert_eq!(m.run(&[0xf3, 0x66, 0x6d]), Outcome::Stop(Stop::Fault(Exception::gp(0))));
    assert_eq!((m.get(Gpr::Rcx), m.get(Gpr::Rdi)), (5, RAM + 6));
    let mut m = Machine::new(Mode::Bits16);
    m.blocks = true;
    m.protected = false;
    m.segments[SegReg::Es as usize].base = RAM;
    m.set(Gpr::Rdi, 0xfff8).set(Gpr::Rcx, 12).set(Gpr::Rdx, 0x1f0);
    assert_eq!(m.run(&[0xf3, 0x6c]), Outcome::Done);
    assert_eq!((m.get(Gpr::Rdi), m.get(Gpr::Rcx)), (4, 0));
    let bytes: Vec<u8> = m.device.log.iter().flat_map(|q| q.data[..q.len].to_vec()).collect();
    assert_eq!((m.peek(RAM + 0xfff8, 8), m.peek(RAM, 4)), (&bytes[..8], &bytes[8..]));
}

/// A block of INS into memory that may not be written, and one that would run beyond the address size: as element by element.
#[test]
fn blocks_keep_the_rules() {
    let mut m = Machine::new(Mode::Bits32);
    m.blocks = true;
    m.segments[SegReg::Es as usize].attrib &= !2;
    m.set(Gpr::Rdi, RAM).set(Gpr::Rdx, 0x1f0).set(Gpr::Rcx, 4);
    assert_eq!(m.step(&[0xf3, 0x6c]), Outcome::Stop(Stop::Fault(Exception::gp(0))));
    assert!(m.device.log.is_empty());
    // 16-bit offsets: up to the last in one go, beyond it one by one, and around.
    for (from, first) in [(0xfff8u64, 8), (0xfff9, 1), (0xfffc, 1), (0xffff, 1)] {
        let mut m = Machine::new(Mode::Bits16);
        m.blocks = true;
        m.segments[SegReg::Es as usize].base = RAM + 8;
        m.set(Gpr::Rdi, from).set(Gpr::Rdx, 0x1f0).set(Gpr::Rcx, 8);
        assert_eq!(m.run(&[0xf3, 0x6c]), Outcome::Done);
        assert_eq!(m.device.log[0].len, first, "{from:x}");
        assert_eq!((m.get(Gpr::Rdi), m.get(Gpr::Rcx)), ((from + 8) & 0xffff, 0));
    }
    let mut m = Machine::new(Mode::Bits16);
    m.blocks = true;
    m.segments[SegReg::Es as usize].base = RAM + 16;
    m.set(Gpr::Rdi, 0xfff0).set(Gpr::Rdx, 0x1f0).set(Gpr::Rcx, 4);
    assert_eq!(m.run(&[0xf3, 0x66, 0x6d]), Outcome::Done);
    assert_eq!(m.device.log.iter().map(|r| r.len).collect::<Vec<_>>(), [16], "four of four bytes end there");
}
