//! Stop, ask user space, replay: the result and the device's log are those of a device in the kernel.

mod common;

use common::Random;
use common::forms::{self, Encoded};
use common::machine::{MMIO, Machine, RAM};
use exitless_insn::{Mode, Outcome, Stop};
use exitless_x86::regs::{Gpr, SegReg, rflags};

/// What the guest can see of a machine.
fn visible(m: &Machine) -> ([u64; 16], u64, u64, [[u8; 16]; 16], &[u8]) {
    (m.gpr, m.rip, m.rflags, m.xmm, &m.ram)
}

/// Runs `code` with the device in the kernel and in user space and compares.
fn both_ways(start: &Machine, code: &[u8], story: &str) {
    let mut direct = start.clone();
    let end = direct.run(code);
    let mut replayed = start.clone();
    replayed.user = true;
    let mut stops = 0;
    let replay_end = loop {
        let before = replayed.clone();
        match replayed.step(code) {
            Outcome::Stop(Stop::NeedUser) => {
                stops += 1;
                if replayed.commits == before.commits {
                    assert_eq!(
                        visible(&replayed),
                        visible(&before),
                        "{story}: {code:02x?} changed state and stopped"
                    );
                }
                replayed.answer();
            }
            Outcome::Again | Outcome::Contended => {}
            end => break end,
        }
        assert!(stops < 5_000, "{story}: {code:02x?} makes no progress");
    };
    assert_eq!(end, replay_end, "{story}: {code:02x?}");
    assert_eq!(visible(&direct), visible(&replayed), "{story}: {code:02x?}");
    assert_eq!(direct.device, replayed.device, "{story}: {code:02x?}");
    assert_eq!(stops, direct.device.log.len(), "{story}: one stop for each access");
}

fn machine(r: &mut Random, small: bool) -> Machine {
    let mut m = Machine::new(Mode::Bits64);
    for g in &mut m.gpr {
        *g = if small { (r.below(8192) as i64 - 4096) as u64 } else { r.value() };
    }
    for x in m.xmm.iter_mut().flatten() {
        *x = r.next() as u8;
    }
    m.rflags = 2 | r.next() & exitless_insn::alu::STATUS;
    m.set(Gpr::Rbx, MMIO + 0x8000).set(Gpr::Rsi, r.below(2) * 16).set(Gpr::Rsp, RAM + 0x8000);
    m
}

/// Every form whose memory operand is the device.
#[test]
fn every_form_replays() {
    let forms = forms::all();
    let mut accesses = 0;
    for seed in 0..20_000u64 {
        let mut r = Random::new(seed + 11);
        let e = Encoded::random(forms[seed as usize % forms.len()], true, &mut r);
        let mut m = machine(&mut r, e.bit_string());
        if e.form.opcode == [0x0f, 0xc7] {
            let disp = e.code.last().map_or(0, |d| *d as i8 as u64);
            m.set(Gpr::Rbx, (MMIO + 0x8000).wrapping_sub(disp));
        }
        both_ways(&m, &e.code, &format!("seed {seed}"));
        accesses += 1;
    }
    assert_eq!(accesses, 20_000);
}

/// Repeated strings from and to the device and ports: each iteration is committed once, each access made once.
#[test]
fn strings_replay() {
    for seed in 0..3_000u64 {
        let mut r = Random::new(seed + 23);
        let op =
            r.pick(&[0xa4, 0xa5, 0xa6, 0xa7, 0xaa, 0xab, 0xac, 0xad, 0xae, 0xaf, 0x6c, 0x6d, 0x6e, 0x6f]);
        let mut m = machine(&mut r, false);
        let place = |r: &mut Random| r.pick(&[MMIO + 0x100, RAM + 0x100, MMIO - 0x10, RAM + 0x800]);
        let (from, to) = (place(&mut r), place(&mut r));
        m.set(Gpr::Rsi, from).set(Gpr::Rdi, to).set(Gpr::Rcx, r.below(100));
        let repeat = r.pick(&[0xf2u8, 0xf3, 0x48]);
        m.blocks = r.coin();
        if r.below(4) == 0 {
            m.rflags |= r.pick(&[rflags::DF, rflags::TF]);
        }
        both_ways(&m, &[repeat, op], &format!("seed {seed}"));
    }
}

/// PUSH, POP, CALL and JMP with the operand, or the stack, on the device.
#[test]
fn stack_replays() {
    let codes: [&[u8]; 8] = [
        &[0xff, 0x33],
        &[0x8f, 0x03],
        &[0xff, 0x13],
        &[0xff, 0x23],
        &[0x50],
        &[0x58],
        &[0x8f, 0x04, 0x24],
        &[0xff, 0x74, 0x24, 0x08],
    ];
    for seed in 0..400u64 {
        let mut r = Random::new(seed);
        let mut m = machine(&mut r, false);
        if r.coin() {
            m.set(Gpr::Rsp, MMIO + 0x800);
        }
        if r.coin() {
            m.set(Gpr::Rbx, RAM + 0x40);
        }
        both_ways(&m, codes[seed as usize % codes.len()], &format!("seed {seed}"));
    }
}

/// DIV and IDIV by what the device answers, or #DE for it.
#[test]
fn division_replays() {
    for seed in 0..400u64 {
        let mut r = Random::new(seed);
        let mut m = machine(&mut r, seed % 2 == 0);
        if r.coin() {
            m.set(Gpr::Rdx, 0);
        }
        let extension = r.pick(&[0x33u8, 0x3b]);
        let codes: [&[u8]; 4] = [&[0xf6], &[0xf7], &[0x66, 0xf7], &[0x48, 0xf7]];
        let mut code = codes[seed as usize % 4].to_vec();
        code.push(extension);
        both_ways(&m, &code, &format!("seed {seed}"));
    }
}

/// SSE loads and stores, aligned and not.
#[test]
fn sse_replays() {
    let codes: [&[u8]; 12] = [
        &[0x0f, 0x10, 0x03],
        &[0x0f, 0x11, 0x0b],
        &[0x66, 0x0f, 0x6f, 0x03],
        &[0x66, 0x0f, 0x7f, 0x03],
        &[0xf3, 0x0f, 0x6f, 0x1b],
        &[0xf3, 0x0f, 0x7f, 0x1b],
        &[0x66, 0x0f, 0xe7, 0x03],
        &[0x66, 0x44, 0x0f, 0x6e, 0x03],
        &[0x66, 0x48, 0x0f, 0x7e, 0x03],
        &[0xf3, 0x0f, 0x7e, 0x03],
        &[0x0f, 0x16, 0x03],
        &[0x0f, 0x13, 0x03],
    ];
    for seed in 0..400u64 {
        let mut r = Random::new(seed);
        let mut m = machine(&mut r, false);
        m.set(Gpr::Rbx, MMIO + r.pick(&[0x100, 0x108]));
        both_ways(&m, codes[seed as usize % codes.len()], &format!("seed {seed}"));
    }
}

/// A fault after the device was read leaves registers alone: `movs` from the device to a read-only page faults
/// on the destination, and the journal stays for the caller to drop.
#[test]
fn fault_behind_a_device_read() {
    let mut m = Machine::new(Mode::Bits64);
    m.read_only = RAM..RAM + 0x1000;
    m.set(Gpr::Rsi, MMIO).set(Gpr::Rdi, RAM);
    let before = m.gpr;
    assert!(matches!(m.step(&[0xa4]), Outcome::Stop(Stop::Fault(e)) if e.payload == RAM));
    assert_eq!(m.gpr, before);
    assert_eq!(m.segments[SegReg::Ds as usize].base, 0);
}
