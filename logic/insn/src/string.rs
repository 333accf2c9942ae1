//! String instructions: MOVS, STOS, LODS, SCAS, CMPS, INS and OUTS, with and without repetition.
//!
//! Each iteration, or block of INS or OUTS, commits on its own, so an event, a fault or a request to user space finds the architectural
//! state between two iterations, as on a processor (SDM vol. 2B, REP).

use exitless_x86::paging::PAGE_SHIFT;
use exitless_x86::regs::{Gpr, SegReg, rflags};
use iced_x86::{Mnemonic, OpKind};

use crate::address::{self, address_mask, segment_of};
use crate::alu::{self, Op, Size};
use crate::emulate::{Cpu, Stop};
use crate::operand::{Exec, Flow, Step, memory_size, read, write, write_gpr};
use crate::ports;

/// Iterations of one call: bounds the time until the caller looks at pending events.
const MAX_ITERATIONS: u32 = 64;

/// Bytes of a page, in which a block of elements must lie.
const PAGE: u64 = 1 << PAGE_SHIFT;

/// Which string instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Movs,
    Stos,
    Lods,
    Scas,
    Cmps,
    Ins,
    Outs,
}

/// The string instruction behind a mnemonic. `MOVSD` and `CMPSD` are SSE instructions too.
pub(crate) fn kind_of(m: Mnemonic) -> Option<Kind> {
    match m {
        Mnemonic::Movsb | Mnemonic::Movsw | Mnemonic::Movsd | Mnemonic::Movsq => Some(Kind::Movs),
        Mnemonic::Stosb | Mnemonic::Stosw | Mnemonic::Stosd | Mnemonic::Stosq => Some(Kind::Stos),
        Mnemonic::Lodsb | Mnemonic::Lodsw | Mnemonic::Lodsd | Mnemonic::Lodsq => Some(Kind::Lods),
        Mnemonic::Scasb | Mnemonic::Scasw | Mnemonic::Scasd | Mnemonic::Scasq => Some(Kind::Scas),
        Mnemonic::Cmpsb | Mnemonic::Cmpsw | Mnemonic::Cmpsd | Mnemonic::Cmpsq => Some(Kind::Cmps),
        Mnemonic::Insb | Mnemonic::Insw | Mnemonic::Insd => Some(Kind::Ins),
        Mnemonic::Outsb | Mnemonic::Outsw | Mnemonic::Outsd => Some(Kind::Outs),
        _ => None,
    }
}

/// Address size in bytes of a string operand; `None` for other operands.
fn string_address(kind: OpKind) -> Option<Size> {
    match kind {
        OpKind::MemorySegSI | OpKind::MemoryESDI => Some(Size::B2),
        OpKind::MemorySegESI | OpKind::MemoryESEDI => Some(Size::B4),
        OpKind::MemorySegRSI | OpKind::MemoryESRDI => Some(Size::B8),
        _ => None,
    }
}

/// What stays the same over all iterations.
#[derive(Clone, Copy, Debug)]
struct Shape {
    kind: Kind,
    /// Bytes of one element.
    size: Size,
    /// Width of rSI, rDI and rCX.
    address: Size,
    /// Segment of the source: DS or the prefix's.
    source: SegReg,
}

/// Whether the instruction is a string instruction rather than its SSE namesake.
pub(crate) fn is_string<C: Cpu>(x: &Exec<'_, C>) -> bool {
    string_address(x.instr.op0_kind()).or(string_address(x.instr.op1_kind())).is_some()
}

/// A string instruction of `kind`.
pub(crate) fn string<C: Cpu>(x: &mut Exec<'_, C>, kind: Kind) -> Step {
    let address = string_address(x.instr.op0_kind()).or(string_address(x.instr.op1_kind()));
    let size = memory_size(&x.instr);
    let shape = Shape {
        kind,
        size: size.ok_or(Stop::Unhandled)?,
        address: address.ok_or(Stop::Unhandled)?,
        source: segment_of(x.instr.memory_segment()),
    };
    if x.instr.has_rep_prefix() || x.instr.has_repne_prefix() {
        return repeat(x, shape);
    }
    check_port(x.cpu, shape)?;
    iteration(x.cpu, shape)?;
    Ok(Flow::Next)
}

/// Up to [`MAX_ITERATIONS`]; one while each may end in a trap.
fn repeat<C: Cpu>(x: &mut Exec<'_, C>, shape: Shape) -> Step {
    let limit = if x.cpu.stepping() { 1 } else { MAX_ITERATIONS };
    for _ in 0..limit {
        let count = x.cpu.gpr(Gpr::Rcx) & shape.address.mask();
        if count == 0 {
            return Ok(Flow::Next);
        }
        check_port(x.cpu, shape)?;
        let done = iterations(x.cpu, shape, count)?;
        write_gpr(x.cpu, Gpr::Rcx, shape.address, count.saturating_sub(done));
        if done >= count || ends(x, shape.kind) {
            return Ok(Flow::Next);
        }
        x.cpu.commit();
    }
    Ok(Flow::Repeat)
}

/// INS and OUTS: the port is asked for before memory is.
fn check_port<C: Cpu>(cpu: &mut C, s: Shape) -> Result<(), Stop> {
    match s.kind {
        Kind::Ins | Kind::Outs => ports::check(cpu, cpu.gpr(Gpr::Rdx) as u16, s.size as u8),
        _ => Ok(()),
    }
}

/// REPE ends on ZF clear, REPNE on ZF set; only SCAS and CMPS look.
fn ends<C: Cpu>(x: &Exec<'_, C>, kind: Kind) -> bool {
    let zero = x.cpu.rflags() & rflags::ZF != 0;
    matches!(kind, Kind::Scas | Kind::Cmps) && zero == x.instr.has_repne_prefix()
}

/// One iteration, or as many as a port takes at once: how many.
fn iterations<C: Cpu>(cpu: &mut C, s: Shape, count: u64) -> Result<u64, Stop> {
    let done = match s.kind {
        Kind::Ins | Kind::Outs => block(cpu, s, count)?,
        _ => 0,
    };
    if done == 0 {
        iteration(cpu, s)?;
        return Ok(1);
    }
    Ok(done)
}

/// The elements of INS or OUTS up to the end of the page, in one go: how many were done. None when they run downwards, are
/// single-stepped, or come near the end of the segment or of the address size.
fn block<C: Cpu>(cpu: &mut C, s: Shape, count: u64) -> Result<u64, Stop> {
    if cpu.rflags() & rflags::DF != 0 || cpu.stepping() {
        return Ok(0);
    }
    let (segment, index) = if s.kind == Kind::Ins { (SegReg::Es, Gpr::Rdi) } else { (s.source, Gpr::Rsi) };
    let (size, mask, write) = (s.size.bytes() as u64, address_mask(s.address.bytes()), s.kind == Kind::Ins);
    let offset = cpu.gpr(index) & mask;
    let linear = address::data(cpu, segment, offset, s.size.bytes(), write)?;
    let max = count.min((PAGE - (linear & (PAGE - 1))) >> s.size.bytes().trailing_zeros());
    let len = max * size;
    if max < 2 || len - 1 > mask - offset {
        return Ok(0);
    }
    if address::linearize(cpu, segment, offset, len as usize, write).is_err() {
        return Ok(0);
    }
    let (port, max) = (cpu.gpr(Gpr::Rdx) as u16, max as u32);
    let done = match s.kind {
        Kind::Ins => cpu.io_in_block(port, s.size as u8, max, linear)?,
        _ => cpu.io_out_block(port, s.size as u8, max, linear)?,
    };
    let done = u64::from(done);
    let value = cpu.gpr(index).wrapping_add(done * size);
    write_gpr(cpu, index, s.address, value);
    Ok(done)
}

/// One iteration. Registers change after the last access.
fn iteration<C: Cpu>(cpu: &mut C, s: Shape) -> Result<(), Stop> {
    match s.kind {
        Kind::Movs => movs(cpu, s),
        Kind::Stos => stos(cpu, s),
        Kind::Lods => lods(cpu, s),
        Kind::Scas => scas(cpu, s),
        Kind::Cmps => cmps(cpu, s),
        Kind::Ins => ins(cpu, s),
        Kind::Outs => outs(cpu, s),
    }
}

/// Linear address of the source element.
fn source<C: Cpu>(cpu: &C, s: Shape) -> Result<u64, Stop> {
    let offset = cpu.gpr(Gpr::Rsi) & address_mask(s.address.bytes());
    address::data(cpu, s.source, offset, s.size.bytes(), false)
}

/// Linear address of the destination element, always in ES.
fn destination<C: Cpu>(cpu: &C, s: Shape, write: bool) -> Result<u64, Stop> {
    let offset = cpu.gpr(Gpr::Rdi) & address_mask(s.address.bytes());
    address::data(cpu, SegReg::Es, offset, s.size.bytes(), write)
}

/// Moves rSI or rDI by one element in the direction of DF.
fn advance<C: Cpu>(cpu: &mut C, r: Gpr, s: Shape) {
    let step = s.size.bytes() as u64;
    let step = if cpu.rflags() & rflags::DF != 0 { step.wrapping_neg() } else { step };
    let value = cpu.gpr(r).wrapping_add(step);
    write_gpr(cpu, r, s.address, value);
}

fn movs<C: Cpu>(cpu: &mut C, s: Shape) -> Result<(), Stop> {
    let from = source(cpu, s)?;
    let to = destination(cpu, s, true)?;
    let value = read(cpu, from, s.size)?;
    write(cpu, to, s.size, value)?;
    advance(cpu, Gpr::Rsi, s);
    advance(cpu, Gpr::Rdi, s);
    Ok(())
}

fn stos<C: Cpu>(cpu: &mut C, s: Shape) -> Result<(), Stop> {
    let to = destination(cpu, s, true)?;
    let value = cpu.gpr(Gpr::Rax);
    write(cpu, to, s.size, value)?;
    advance(cpu, Gpr::Rdi, s);
    Ok(())
}

fn lods<C: Cpu>(cpu: &mut C, s: Shape) -> Result<(), Stop> {
    let from = source(cpu, s)?;
    let value = read(cpu, from, s.size)?;
    write_gpr(cpu, Gpr::Rax, s.size, value);
    advance(cpu, Gpr::Rsi, s);
    Ok(())
}

fn scas<C: Cpu>(cpu: &mut C, s: Shape) -> Result<(), Stop> {
    let at = destination(cpu, s, false)?;
    let value = read(cpu, at, s.size)?;
    let (_, after) = alu::apply(Op::Sub, s.size, cpu.gpr(Gpr::Rax), value, cpu.rflags());
    cpu.set_rflags(after);
    advance(cpu, Gpr::Rdi, s);
    Ok(())
}

fn cmps<C: Cpu>(cpu: &mut C, s: Shape) -> Result<(), Stop> {
    let from = source(cpu, s)?;
    let at = destination(cpu, s, false)?;
    let a = read(cpu, from, s.size)?;
    let b = read(cpu, at, s.size)?;
    let (_, after) = alu::apply(Op::Sub, s.size, a, b, cpu.rflags());
    cpu.set_rflags(after);
    advance(cpu, Gpr::Rsi, s);
    advance(cpu, Gpr::Rdi, s);
    Ok(())
}

fn ins<C: Cpu>(cpu: &mut C, s: Shape) -> Result<(), Stop> {
    let to = destination(cpu, s, true)?;
    // Reading a port may change the device, so memory must not fault after it.
    cpu.check_write(to, s.size.bytes())?;
    let value = cpu.io_in(cpu.gpr(Gpr::Rdx) as u16, s.size as u8)?;
    write(cpu, to, s.size, u64::from(value))?;
    advance(cpu, Gpr::Rdi, s);
    Ok(())
}

fn outs<C: Cpu>(cpu: &mut C, s: Shape) -> Result<(), Stop> {
    let from = source(cpu, s)?;
    let value = read(cpu, from, s.size)?;
    cpu.io_out(cpu.gpr(Gpr::Rdx) as u16, s.size as u8, value as u32)?;
    advance(cpu, Gpr::Rsi, s);
    Ok(())
}
