//! Moves: MOV, MOVZX, MOVSX, MOVBE, CMOVcc, SETcc, XLAT, SSE and MMX moves, the x87's control and status, IN and OUT.

use exitless_x86::exception::Exception;
use exitless_x86::regs::{Gpr, SegReg};
use iced_x86::{Mnemonic, OpKind, Register};

use crate::address;
use crate::alu::{self, Size};
use crate::emulate::{Cpu, Stop, X87Word};
use crate::operand::{Exec, Flow, Step, read, write, write_gpr};
use crate::{ports, segment};

/// MOV between general registers, memory and immediates, MOVNTI and MOVDIRI, load and store of a segment register.
pub(crate) fn mov<C: Cpu>(x: &mut Exec<'_, C>) -> Step {
    if let Some(r) = segment::named(x.instr.op0_register()).filter(|_| !x.is_memory(0)) {
        return segment::mov(x, r);
    }
    if let Some(segment) = selector_source(x) {
        return store_selector(x, segment);
    }
    let size = x.size(0)?;
    let value = x.load(1, size)?;
    x.store(0, size, value)?;
    Ok(Flow::Next)
}

/// The segment register of `mov r/m, sreg`.
fn selector_source<C: Cpu>(x: &Exec<'_, C>) -> Option<SegReg> {
    segment::named(x.instr.op1_register()).filter(|_| x.instr.op1_kind() == OpKind::Register)
}

/// Memory takes 16 bits whatever the prefixes; a register its full size, zero-extended.
fn store_selector<C: Cpu>(x: &mut Exec<'_, C>, segment: SegReg) -> Step {
    let size = x.size(0)?;
    let selector = u64::from(x.cpu.segment(segment).selector);
    x.store(0, size, selector)?;
    Ok(Flow::Next)
}

/// MOVZX.
pub(crate) fn zero_extend<C: Cpu>(x: &mut Exec<'_, C>) -> Step {
    let (to, from) = (x.size(0)?, x.size(1)?);
    let value = x.load(1, from)?;
    x.store(0, to, value)?;
    Ok(Flow::Next)
}

/// MOVSX and MOVSXD.
pub(crate) fn sign_extend<C: Cpu>(x: &mut Exec<'_, C>) -> Step {
    let (to, from) = (x.size(0)?, x.size(1)?);
    let value = x.load(1, from)?;
    x.store(0, to, from.sign_extend(value))?;
    Ok(Flow::Next)
}

/// MOVBE: the bytes in reverse order.
pub(crate) fn swap_bytes<C: Cpu>(x: &mut Exec<'_, C>) -> Step {
    let size = x.size(0)?;
    let value = x.load(1, size)?.swap_bytes() >> (64 - size.bits());
    x.store(0, size, value)?;
    Ok(Flow::Next)
}

/// CMOVcc: the source is read, and the upper half of a 32-bit destination cleared, in any case.
pub(crate) fn conditional<C: Cpu>(x: &mut Exec<'_, C>, cc: u8) -> Step {
    let size = x.size(0)?;
    let source = x.load(1, size)?;
    let old = x.load(0, size)?;
    let value = if alu::condition(cc, x.cpu.rflags()) { source } else { old };
    x.store(0, size, value)?;
    Ok(Flow::Next)
}

/// SETcc.
pub(crate) fn set<C: Cpu>(x: &mut Exec<'_, C>, cc: u8) -> Step {
    let value = u64::from(alu::condition(cc, x.cpu.rflags()));
    x.store(0, Size::B1, value)?;
    Ok(Flow::Next)
}

/// XLAT: AL becomes the byte at rBX + AL, which is this instruction's memory operand.
pub(crate) fn xlat<C: Cpu>(x: &mut Exec<'_, C>) -> Step {
    let linear = x.linear(1, false)?;
    let value = read(x.cpu, linear, Size::B1)?;
    write_gpr(x.cpu, Gpr::Rax, Size::B1, value);
    Ok(Flow::Next)
}

/// IN: port in an immediate or DX, data in AL, AX or EAX.
pub(crate) fn input<C: Cpu>(x: &mut Exec<'_, C>) -> Step {
    let size = x.size(0)?;
    let port = x.load(1, Size::B2)? as u16;
    ports::check(x.cpu, port, size as u8)?;
    let value = x.cpu.io_in(port, size as u8)?;
    x.store(0, size, u64::from(value))?;
    Ok(Flow::Next)
}

/// OUT.
pub(crate) fn output<C: Cpu>(x: &mut Exec<'_, C>) -> Step {
    let size = x.size(1)?;
    let port = x.load(0, Size::B2)? as u16;
    let value = x.load(1, size)? as u32;
    ports::check(x.cpu, port, size as u8)?;
    x.cpu.io_out(port, size as u8, value)?;
    Ok(Flow::Next)
}

/// How an SSE move treats its operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SseMove {
    /// Bytes moved.
    bytes: usize,
    /// Where they stand in the register.
    at: usize,
    /// A load clears the other bytes of the register.
    clears: bool,
    /// Memory must be aligned to 16 bytes, else #GP(0).
    aligned: bool,
}

/// The SSE moves without conversion; `None` for other instructions.
pub(crate) fn sse_move(m: Mnemonic) -> Option<SseMove> {
    let whole = |aligned| SseMove { bytes: 16, at: 0, clears: true, aligned };
    let low = |bytes| SseMove { bytes, at: 0, clears: true, aligned: false };
    let half = |at| SseMove { bytes: 8, at, clears: false, aligned: false };
    match m {
        Mnemonic::Movdqu | Mnemonic::Movups | Mnemonic::Movupd | Mnemonic::Lddqu => Some(whole(false)),
        Mnemonic::Movdqa | Mnemonic::Movaps | Mnemonic::Movapd => Some(whole(true)),
        Mnemonic::Movntdq | Mnemonic::Movntps | Mnemonic::Movntpd | Mnemonic::Movntdqa => Some(whole(true)),
        Mnemonic::Movd | Mnemonic::Movss | Mnemonic::Movntss => Some(low(4)),
        Mnemonic::Movq | Mnemonic::Movsd | Mnemonic::Movntsd | Mnemonic::Movntq => Some(low(8)),
        Mnemonic::Movlps | Mnemonic::Movlpd => Some(half(0)),
        Mnemonic::Movhps | Mnemonic::Movhpd => Some(half(8)),
        _ => None,
    }
}

/// A move between an XMM register and memory.
pub(crate) fn sse<C: Cpu>(x: &mut Exec<'_, C>, m: SseMove) -> Step {
    if let Some(i) = mmx_number(x, 0) {
        return mmx_load(x, i, m);
    }
    if let Some(i) = mmx_number(x, 1) {
        return mmx_store(x, i, m);
    }
    if x.is_memory(0) { sse_store(x, m) } else { sse_load(x, m) }
}

/// XMM number of operand `op`.
fn xmm_number<C: Cpu>(x: &Exec<'_, C>, op: u32) -> Result<u8, Stop> {
    let n = (x.instr.op_register(op) as u32).wrapping_sub(Register::XMM0 as u32);
    if x.instr.op_kind(op) == OpKind::Register && n < 16 { Ok(n as u8) } else { Err(Stop::Unhandled) }
}

/// Linear address of the memory side, with the alignment rule.
fn sse_linear<C: Cpu>(x: &Exec<'_, C>, m: SseMove, write: bool) -> Result<u64, Stop> {
    let linear = x.place(0, m.bytes, write)?;
    if m.aligned && !linear.is_multiple_of(16) {
        return Err(Stop::Fault(Exception::gp(0)));
    }
    // Whether 16 bytes off 16 are checked is the processor's choice (SDM vol. 2B, MOVUPS); off 8 they are.
    address::aligned(x.cpu, linear, m.bytes.min(8))?;
    Ok(linear)
}

fn sse_store<C: Cpu>(x: &mut Exec<'_, C>, m: SseMove) -> Step {
    let register = x.cpu.xmm(xmm_number(x, 1)?)?;
    let linear = sse_linear(x, m, true)?;
    let data = register.get(m.at..m.at + m.bytes).ok_or(Stop::Unhandled)?;
    x.cpu.write(linear, data)?;
    Ok(Flow::Next)
}

fn sse_load<C: Cpu>(x: &mut Exec<'_, C>, m: SseMove) -> Step {
    if !x.is_memory(1) {
        return Err(Stop::Unhandled.into());
    }
    let number = xmm_number(x, 0)?;
    let old = x.cpu.xmm(number)?;
    let mut new = if m.clears { [0; 16] } else { old };
    let linear = sse_linear(x, m, false)?;
    let part = new.get_mut(m.at..m.at + m.bytes).ok_or(Stop::Unhandled)?;
    x.cpu.read(linear, part)?;
    x.cpu.set_xmm(number, new);
    Ok(Flow::Next)
}

/// MMX number of operand `op`.
fn mmx_number<C: Cpu>(x: &Exec<'_, C>, op: u32) -> Option<u8> {
    let n = (x.instr.op_register(op) as u32).wrapping_sub(Register::MM0 as u32);
    (x.instr.op_kind(op) == OpKind::Register && n < 8).then_some(n as u8)
}

/// MOVD and MOVQ from memory. A register is written, and with it the x87's tags, when nothing can fail any more.
fn mmx_load<C: Cpu>(x: &mut Exec<'_, C>, i: u8, m: SseMove) -> Step {
    if !x.is_memory(1) {
        return Err(Stop::Unhandled.into());
    }
    x.cpu.mmx_usable()?;
    let size = mmx_size(m)?;
    let linear = x.linear(size.bytes(), false)?;
    let value = read(x.cpu, linear, size)?;
    x.cpu.set_mmx(i, value);
    Ok(Flow::Next)
}

/// MOVD, MOVQ and MOVNTQ to memory.
fn mmx_store<C: Cpu>(x: &mut Exec<'_, C>, i: u8, m: SseMove) -> Step {
    if !x.is_memory(0) {
        return Err(Stop::Unhandled.into());
    }
    x.cpu.mmx_usable()?;
    let size = mmx_size(m)?;
    let linear = x.linear(size.bytes(), true)?;
    x.cpu.check_write(linear, size.bytes())?;
    let value = x.cpu.mmx(i);
    write(x.cpu, linear, size, value)?;
    Ok(Flow::Next)
}

fn mmx_size(m: SseMove) -> Result<Size, Stop> {
    Size::from_bytes(m.bytes).ok_or(Stop::Unhandled)
}

/// FNSTCW and FNSTSW to memory.
pub(crate) fn store_x87<C: Cpu>(x: &mut Exec<'_, C>, word: X87Word) -> Step {
    if !x.is_memory(0) {
        return Err(Stop::Unhandled.into());
    }
    let value = x.cpu.x87(word)?;
    let linear = x.linear(2, true)?;
    write(x.cpu, linear, Size::B2, u64::from(value))?;
    Ok(Flow::Next)
}
