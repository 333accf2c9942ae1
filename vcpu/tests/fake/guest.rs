//! Instructions of 32-bit flat code, with what they owe.

use super::cpu::{Instruction, Op};
use super::world::{APIC, CHIP_MMIO, CHIP_PORT, DOORBELL, EVENT_PORT, ROM, Touch, pattern};
use exitless_vcpu::backend::{Exit, IoAccess, SlatFault};
use exitless_x86::regs::Gpr;

/// An instruction without effects.
pub(crate) fn insn(bytes: &[u8], exit: Exit) -> Instruction {
    Instruction {
        bytes: bytes.to_vec(),
        exit,
        set: vec![],
        owes: vec![],
        then: vec![],
        rep: false,
        faults: false,
        next_rip: false,
    }
}

fn op(i: Instruction) -> Op {
    Op::Exit(Box::new(i))
}

/// The instruction faults: one exception follows.
pub(crate) fn faulting(o: Op) -> Op {
    change(o, |i| i.faults = true)
}

/// On a CPU that saves the next RIP.
pub(crate) fn told(o: Op) -> Op {
    change(o, |i| i.next_rip = true)
}

pub(crate) fn change(o: Op, f: impl FnOnce(&mut Instruction)) -> Op {
    let Op::Exit(mut i) = o else { panic!("not an instruction") };
    f(&mut i);
    Op::Exit(i)
}

fn word(at: u64, n: usize) -> Vec<u8> {
    (0..n as u64).map(|i| pattern(at + i)).collect()
}

fn value(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |v, b| v << 8 | u64::from(*b))
}

pub(crate) fn cpuid(leaf: u32, sub: u32) -> Op {
    let set = vec![(Gpr::Rax, u64::from(leaf)), (Gpr::Rcx, u64::from(sub))];
    op(Instruction { set, ..insn(&[0x0f, 0xa2], Exit::Cpuid) })
}

pub(crate) fn rdmsr(msr: u32) -> Op {
    op(Instruction { set: vec![(Gpr::Rcx, u64::from(msr))], ..insn(&[0x0f, 0x32], Exit::Rdmsr) })
}

pub(crate) fn wrmsr(msr: u32, v: u64) -> Op {
    let set = vec![(Gpr::Rcx, u64::from(msr)), (Gpr::Rax, v & 0xffff_ffff), (Gpr::Rdx, v >> 32)];
    op(Instruction { set, ..insn(&[0x0f, 0x30], Exit::Wrmsr) })
}

pub(crate) fn hlt() -> Op {
    op(insn(&[0xf4], Exit::Hlt))
}

pub(crate) fn hypercall(n: u64) -> Op {
    op(Instruction { set: vec![(Gpr::Rax, n)], ..insn(&[0x0f, 0x01, 0xd9], Exit::Hypercall) })
}

/// With operands in RBX, RCX, RDX, RSI.
pub(crate) fn hypercall_with(n: u64, [b, c, d, s]: [u64; 4]) -> Op {
    let set = vec![(Gpr::Rax, n), (Gpr::Rbx, b), (Gpr::Rcx, c), (Gpr::Rdx, d), (Gpr::Rsi, s)];
    op(Instruction { set, ..insn(&[0x0f, 0x01, 0xd9], Exit::Hypercall) })
}

/// An instruction with an argument in RAX.
pub(crate) fn with_rax(n: u64, bytes: &[u8], exit: Exit) -> Op {
    op(Instruction { set: vec![(Gpr::Rax, n)], ..insn(bytes, exit) })
}

pub(crate) fn xsetbv(index: u32, v: u64) -> Op {
    let set = vec![(Gpr::Rcx, u64::from(index)), (Gpr::Rax, v & 0xffff_ffff), (Gpr::Rdx, v >> 32)];
    op(Instruction { set, ..insn(&[0x0f, 0x01, 0xd1], Exit::Xsetbv) })
}

pub(crate) fn mov_cr4(v: u64) -> Op {
    op(Instruction { set: vec![(Gpr::Rax, v)], ..insn(&[0x0f, 0x22, 0xe0], Exit::CrAccess) })
}

pub(crate) fn wbinvd() -> Op {
    op(insn(&[0x0f, 0x09], Exit::Wbinvd))
}

pub(crate) fn pause() -> Op {
    op(insn(&[0xf3, 0x90], Exit::Pause))
}

/// A counter that is there reads zero.
pub(crate) fn rdpmc(index: u64) -> Op {
    let then = vec![(Gpr::Rax, 0), (Gpr::Rdx, 0)];
    op(Instruction { set: vec![(Gpr::Rcx, index)], then, ..insn(&[0x0f, 0x33], Exit::Rdpmc) })
}

pub(crate) fn vmrun() -> Op {
    faulting(op(insn(&[0x0f, 0x01, 0xd8], Exit::VirtInstruction)))
}

/// Accesses of `n` bytes at `at`, as devices see them: nothing for RAM and the APIC, else one per page.
fn touches(at: u64, data: &[u8], write: bool) -> Vec<Touch> {
    let mut all = vec![];
    let mut from = 0;
    while from < data.len() {
        let here = at + from as u64;
        let n = (data.len() - from).min((4096 - (here & 4095)) as usize).min(8);
        let page = here & !0xfff;
        let ram = page < super::world::RAM as u64 || (page == ROM && !write);
        if !ram && page != APIC {
            all.push(Touch { user: page != CHIP_MMIO, write, at: here, data: data[from..from + n].to_vec() });
        }
        from += n;
    }
    all
}

/// The fault of an access at `gpa`, of which the first page may be memory and the second not.
fn fault_at(gpa: u64, write: bool) -> Exit {
    let rom = gpa & !0xfff == ROM && !write;
    let gpa = if rom { ROM + 0x1000 } else { gpa };
    Exit::Slat(SlatFault { gpa, write, fetch: false, present: false, table_walk: false, marked: false })
}

/// MOV EAX, [at].
pub(crate) fn load(at: u64) -> Op {
    let mut bytes = vec![0xa1];
    bytes.extend((at as u32).to_le_bytes());
    let data = word(at, 4);
    op(Instruction {
        owes: touches(at, &data, false),
        then: vec![(Gpr::Rax, value(&data))],
        ..insn(&bytes, fault_at(at, false))
    })
}

/// The same from a register of the APIC's page.
pub(crate) fn apic_load(offset: u32) -> Op {
    change(load(APIC + u64::from(offset)), |i| i.then.clear())
}

/// MOV [at], EAX.
pub(crate) fn store(at: u64, v: u32) -> Op {
    let mut bytes = vec![0xa3];
    bytes.extend((at as u32).to_le_bytes());
    op(Instruction {
        set: vec![(Gpr::Rax, u64::from(v))],
        owes: touches(at, &v.to_le_bytes(), true),
        ..insn(&bytes, fault_at(at, true))
    })
}

/// MOV [RDI], AX of 64-bit code at a doorbell; `marked`: the tables know the device.
pub(crate) fn ring(marked: bool) -> Op {
    at_doorbell(&[0x66, 0x89, 0x07], false, marked)
}

/// An instruction of 64-bit code that accesses [RDI], a doorbell; `reads`: four bytes.
pub(crate) fn at_doorbell(bytes: &[u8], reads: bool, marked: bool) -> Op {
    let fault =
        SlatFault { gpa: DOORBELL, write: true, fetch: false, present: false, table_walk: false, marked };
    let owes = if reads { touches(DOORBELL, &word(DOORBELL, 4), false) } else { vec![] };
    op(Instruction { set: vec![(Gpr::Rdi, DOORBELL)], owes, ..insn(bytes, Exit::Slat(fault)) })
}

/// ADD [at], EAX: a read and a write of one device register.
pub(crate) fn add(at: u64, v: u32) -> Op {
    let mut bytes = vec![0x01, 0x05];
    bytes.extend((at as u32).to_le_bytes());
    let old = word(at, 4);
    let new = (value(&old) as u32).wrapping_add(v).to_le_bytes();
    let mut owes = touches(at, &old, false);
    owes.extend(touches(at, &new, true));
    op(Instruction { set: vec![(Gpr::Rax, u64::from(v))], owes, ..insn(&bytes, fault_at(at, true)) })
}

/// MOVSD: from `from` to `to`.
pub(crate) fn movs(from: u64, to: u64) -> Op {
    let data = word(from, 4);
    let mut owes = touches(from, &data, false);
    owes.extend(touches(to, &data, true));
    op(Instruction {
        set: vec![(Gpr::Rsi, from), (Gpr::Rdi, to)],
        owes,
        then: vec![(Gpr::Rsi, from + 4), (Gpr::Rdi, to + 4)],
        ..insn(&[0xa5], fault_at(from, false))
    })
}

/// MOVSD from a register of the APIC's page, which hardware leaves to software.
pub(crate) fn apic_movs(offset: u32, to: u64) -> Op {
    change(movs(APIC + u64::from(offset), to), |i| i.exit = Exit::ApicAccess(offset))
}

fn in_kernel(port: u16) -> bool {
    (CHIP_PORT..CHIP_PORT + 16).contains(&port)
}

fn io(port: u16, size: u8, input: bool, string: bool) -> Exit {
    Exit::Io(IoAccess { port, size, input, string, rep: string })
}

fn port_touch(port: u16, write: bool, data: &[u8]) -> Touch {
    let user = !(in_kernel(port) || write && port == EVENT_PORT);
    Touch { user, write, at: u64::from(port), data: data.to_vec() }
}

/// OUT DX, AL/AX/EAX.
pub(crate) fn out(port: u16, size: u8, v: u32) -> Op {
    let bytes: &[u8] = match size {
        1 => &[0xee],
        2 => &[0x66, 0xef],
        _ => &[0xef],
    };
    let data = v.to_le_bytes();
    op(Instruction {
        set: vec![(Gpr::Rdx, u64::from(port)), (Gpr::Rax, u64::from(v))],
        owes: vec![port_touch(port, true, &data[..usize::from(size)])],
        ..insn(bytes, io(port, size, false, false))
    })
}

/// IN AL/AX/EAX, DX. What IN leaves of RAX is checked too.
pub(crate) fn input(port: u16, size: u8) -> Op {
    let bytes: &[u8] = match size {
        1 => &[0xec],
        2 => &[0x66, 0xed],
        _ => &[0xed],
    };
    let old = 0xaabb_ccdd_u64;
    let data = word(u64::from(port), usize::from(size));
    let mask = if size == 4 { !0 } else { (1u64 << (8 * size)) - 1 };
    op(Instruction {
        set: vec![(Gpr::Rdx, u64::from(port)), (Gpr::Rax, old)],
        owes: vec![port_touch(port, false, &data)],
        then: vec![(Gpr::Rax, old & !mask | value(&data))],
        ..insn(bytes, io(port, size, true, false))
    })
}

/// REP OUTSD of `n` elements at `from`, in RAM.
pub(crate) fn outs(port: u16, from: u64, n: u64, ram: &[u8]) -> Op {
    op(Instruction {
        set: vec![(Gpr::Rdx, u64::from(port)), (Gpr::Rsi, from), (Gpr::Rcx, n)],
        owes: ram.chunks(4).take(n as usize).map(|d| port_touch(port, true, d)).collect(),
        then: vec![(Gpr::Rcx, 0), (Gpr::Rsi, from + 4 * n)],
        rep: true,
        ..insn(&[0xf3, 0x6f], io(port, 4, false, true))
    })
}

/// REP INSD of `n` elements to `to`, in RAM.
pub(crate) fn ins(port: u16, to: u64, n: u64) -> Op {
    let data = word(u64::from(port), 4);
    op(Instruction {
        set: vec![(Gpr::Rdx, u64::from(port)), (Gpr::Rdi, to), (Gpr::Rcx, n)],
        owes: (0..n).map(|_| port_touch(port, false, &data)).collect(),
        then: vec![(Gpr::Rcx, 0), (Gpr::Rdi, to + 4 * n)],
        rep: true,
        ..insn(&[0xf3, 0x6d], io(port, 4, true, true))
    })
}
