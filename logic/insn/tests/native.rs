//! The emulator against the processor the tests run on: same instruction, same registers, same memory.
#![cfg(all(target_arch = "x86_64", unix))]

mod common;

use common::forms::{self, Encoded, Undefined};
use common::machine::Machine;
use common::native::{DATA_LEN, State, native};
use common::{Random, fetch};
use exitless_insn::alu::STATUS;
use exitless_insn::{Mode, Outcome, emulate};
use exitless_x86::regs::Gpr;
use exitless_x86::regs::rflags::{DF, FIXED, IF};

/// Random registers; RBX and RSI address the middle of data memory, RSP the upper part.
fn registers(data: u64, r: &mut Random, bit_string: bool) -> State {
    let mut s = State::default();
    for g in &mut s.gpr {
        *g = if bit_string { (r.below(8192) as i64 - 4096) as u64 } else { r.value() };
    }
    if r.coin() {
        s.gpr[Gpr::Rcx as usize] = r.below(70);
    }
    s.gpr[Gpr::Rbx as usize] = data + 0x2000 + r.below(64);
    s.gpr[Gpr::Rsi as usize] = r.below(16);
    s.gpr[Gpr::Rsp as usize] = data + 0x3800;
    s.rflags = FIXED | IF | r.next() & STATUS;
    s
}

/// Runs `code` on both and compares everything except the flags in `undefined`.
fn compare(code: &[u8], start: &State, memory: &[u8], undefined: u64, story: &str) {
    let mut real = *start;
    let mut real_memory = memory.to_vec();
    let base = {
        let mut n = native();
        n.run(code, &mut real, &mut real_memory);
        n.data_address()
    };
    let mut m = Machine::new(Mode::Bits64);
    m.gpr = start.gpr;
    m.rflags = start.rflags;
    m.ram_base = base;
    m.ram = memory.to_vec();
    m.mmio = 0..0;
    let mut outcome = Outcome::Again;
    for _ in 0..100 {
        if outcome == Outcome::Again {
            outcome = m.step(code);
        }
    }
    assert_eq!(outcome, Outcome::Done, "{story}: {code:02x?} {start:x?}");
    assert_eq!(m.rip, 0x1000 + code.len() as u64, "{story}: {code:02x?}");
    assert_eq!(
        m.gpr, real.gpr,
        "{story}: {code:02x?}\n start {start:x?}\n emulated {:x?}\n real {real:x?}",
        m.gpr
    );
    let defined = STATUS & !undefined | DF;
    assert_eq!(
        m.rflags & defined,
        real.rflags & defined,
        "{story}: {code:02x?} flags {:x} real {:x} start {start:x?}",
        m.rflags,
        real.rflags
    );
    assert!(m.ram == real_memory, "{story}: {code:02x?} memory differs, start {start:x?}");
}

fn memory(r: &mut Random, state: &State, base: u64) -> Vec<u8> {
    let mut memory = vec![0; DATA_LEN];
    let accumulator = state.gpr[0].to_le_bytes();
    let equal = r.coin();
    for chunk in memory.chunks_mut(8) {
        let value = if equal { accumulator } else { r.value().to_le_bytes() };
        chunk.copy_from_slice(&value);
    }
    let _ = base;
    memory
}

/// Every form with a memory operand and with a register operand, random prefixes, values and flags.
#[test]
fn every_form_matches_the_processor() {
    let base = native().data_address();
    let forms = forms::all();
    let mut compared = 0;
    for seed in 0..60_000u64 {
        let mut r = Random::new(seed + 1);
        let form = forms[seed as usize % forms.len()];
        let wants_memory = r.below(4) != 0;
        let e = Encoded::random(form, wants_memory, &mut r);
        let mut start = registers(base, &mut r, e.bit_string());
        if form.opcode == [0x0f, 0xc7] {
            align_pair(&mut start, &e, &mut r);
        }
        if e.undefined_result(start.gpr[1]) {
            continue;
        }
        let memory = memory(&mut r, &start, base);
        let undefined = e.undefined_flags(start.gpr[1]);
        compare(&e.code, &start, &memory, undefined, &format!("seed {seed}"));
        compared += 1;
    }
    assert!(compared > 50_000);
}

/// CMPXCHG16B wants alignment: `[rbx + rsi * scale + disp]` becomes a multiple of 16. RBX:RCX is then the new value.
fn align_pair(s: &mut State, e: &Encoded, r: &mut Random) {
    let [.., disp] = e.code[..] else { return };
    s.gpr[Gpr::Rsi as usize] = r.below(2) * 16;
    let rbx = &mut s.gpr[Gpr::Rbx as usize];
    *rbx = (*rbx & !15).wrapping_sub(disp as i8 as u64);
    s.gpr[Gpr::Rdx as usize] = s.gpr[0];
}

/// String instructions: all sizes, directions, prefixes, and 32-bit addresses.
#[test]
fn strings_match_the_processor() {
    let base = native().data_address();
    for seed in 0..20_000u64 {
        let mut r = Random::new(seed + 77);
        let op = r.pick(&[0xa4, 0xa5, 0xa6, 0xa7, 0xaa, 0xab, 0xac, 0xad, 0xae, 0xaf]);
        let mut code = Vec::new();
        let short = r.coin();
        if short {
            code.push(0x67);
        }
        if r.below(3) == 0 {
            code.push(0x66);
        }
        let repeat = r.pick(&[0, 0xf2, 0xf3]);
        if repeat != 0 {
            code.push(repeat);
        }
        if r.below(3) == 0 {
            code.push(0x48);
        }
        code.push(op);
        let mut start = registers(base, &mut r, false);
        start.gpr[Gpr::Rcx as usize] = r.below(200);
        if short && start.gpr[Gpr::Rcx as usize] == 0 {
            // What happens to the upper halves then differs between processors.
            start.gpr[Gpr::Rcx as usize] = 1;
        }
        start.gpr[Gpr::Rsi as usize] = base + 0x2000 + r.below(64);
        start.gpr[Gpr::Rdi as usize] = base + 0x2000 + r.below(64);
        if r.coin() {
            start.rflags |= DF;
        }
        let mut memory = memory(&mut r, &start, base);
        if matches!(op, 0xa6 | 0xa7 | 0xae | 0xaf) {
            memory.fill(start.gpr[0] as u8);
            let at = 0x1f00 + r.below(0x300) as usize;
            memory[at] ^= r.next() as u8;
        }
        compare(&code, &start, &memory, 0, &format!("seed {seed}"));
    }
}

/// PUSH m, POP m, PUSH r, POP r and PUSH imm, also with RSP as base and destination.
#[test]
fn stack_instructions_match_the_processor() {
    let base = native().data_address();
    let codes: [&[u8]; 18] = [
        &[0xff, 0x33],
        &[0x66, 0xff, 0x33],
        &[0xff, 0x74, 0x24, 0x10],
        &[0xff, 0x34, 0x24],
        &[0x8f, 0x03],
        &[0x66, 0x8f, 0x03],
        &[0x8f, 0x44, 0x24, 0x18],
        &[0x8f, 0x04, 0x24],
        &[0x66, 0x8f, 0x44, 0x24, 0x08],
        &[0x54],
        &[0x5c],
        &[0x50],
        &[0x41, 0x57],
        &[0x66, 0x50],
        &[0x58],
        &[0x66, 0x58],
        &[0x6a, 0x85],
        &[0x68, 0x78, 0x56, 0x34, 0x92],
    ];
    for (i, code) in codes.iter().enumerate() {
        for seed in 0..50 {
            let mut r = Random::new(seed * 31 + i as u64);
            let start = registers(base, &mut r, false);
            let memory = memory(&mut r, &start, base);
            compare(code, &start, &memory, 0, &format!("seed {seed}"));
        }
    }
}

/// MOV with a 64-bit absolute address, XLAT, and a store of a selector's size.
#[test]
fn absolute_moves_and_xlat_match_the_processor() {
    let base = native().data_address();
    for seed in 0..2_000u64 {
        let mut r = Random::new(seed + 5);
        let start = registers(base, &mut r, false);
        let memory = memory(&mut r, &start, base);
        let mut code = Vec::new();
        if r.below(3) == 0 {
            code.push(0x66);
        }
        if r.coin() {
            code.push(0x48);
        }
        code.push(0xa0 + r.below(4) as u8);
        code.extend((base + 0x100 + r.below(64)).to_le_bytes());
        compare(&code, &start, &memory, 0, &format!("seed {seed}"));
        let xlat: &[u8] = if r.coin() { &[0xd7] } else { &[0x67, 0xd7] };
        compare(xlat, &start, &memory, 0, &format!("xlat seed {seed}"));
    }
}

/// The comparison can fail: a wrong expectation about undefined flags is noticed.
#[test]
fn the_generator_reaches_memory_and_registers() {
    let mut r = Random::new(3);
    let forms = forms::all();
    let both: Vec<bool> =
        (0..100).map(|i| Encoded::random(forms[i % forms.len()], i % 2 == 0, &mut r).memory).collect();
    assert!(both.contains(&true) && both.contains(&false));
    assert!(forms.iter().any(|f| f.flags == Undefined::Bit));
    let (bytes, valid) = fetch(&[0x90]);
    assert_ne!(emulate(&mut Machine::new(Mode::Bits64), &bytes, valid), Outcome::Again);
}
