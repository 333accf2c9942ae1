//! The stack: PUSH and POP of all kinds, ENTER and LEAVE; near CALL, RET and JMP.

use exitless_x86::exception::Exception;
use exitless_x86::paging::canonical;
use exitless_x86::regs::{Gpr, SegReg, cr4, rflags};
use iced_x86::{Code, MemorySize, OpKind};

use crate::address::{self, segment_of};
use crate::alu::Size;
use crate::decode::Mode;
use crate::emulate::{Cpu, Stop};
use crate::operand::{Exec, Flow, Step, gpr, read, write, write_gpr};
use crate::segment;

/// Width of the stack pointer (SDM vol. 1, 6.2.3).
fn stack_width<C: Cpu>(cpu: &C) -> Size {
    if cpu.mode() == Mode::Bits64 {
        Size::B8
    } else if cpu.segment(SegReg::Ss).db() {
        Size::B4
    } else {
        Size::B2
    }
}

/// Operand size of PUSH and POP.
fn pushed_size<C: Cpu>(x: &Exec<'_, C>) -> Result<Size, Stop> {
    match x.instr.op0_kind() {
        OpKind::Immediate16 | OpKind::Immediate8to16 => Ok(Size::B2),
        OpKind::Immediate32 | OpKind::Immediate8to32 => Ok(Size::B4),
        OpKind::Immediate32to64 | OpKind::Immediate8to64 => Ok(Size::B8),
        _ => x.size(0),
    }
}

/// Operand size of the instructions whose operands do not tell it.
fn implied_size<C: Cpu>(x: &Exec<'_, C>) -> Result<Size, Stop> {
    use Code::*;
    match x.instr.code() {
        Pushw_ES | Pushw_CS | Pushw_SS | Pushw_DS | Pushw_FS | Pushw_GS => Ok(Size::B2),
        Popw_ES | Popw_SS | Popw_DS | Popw_FS | Popw_GS => Ok(Size::B2),
        Retnw | Retnw_imm16 | Retfw | Retfw_imm16 | Call_rel16 => Ok(Size::B2),
        Enterw_imm16_imm8 | Leavew | Pushaw | Popaw | Pushfw | Popfw => Ok(Size::B2),
        Pushd_ES | Pushd_CS | Pushd_SS | Pushd_DS | Pushd_FS | Pushd_GS => Ok(Size::B4),
        Popd_ES | Popd_SS | Popd_DS | Popd_FS | Popd_GS => Ok(Size::B4),
        Retnd | Retnd_imm16 | Retfd | Retfd_imm16 | Call_rel32_32 => Ok(Size::B4),
        Enterd_imm16_imm8 | Leaved | Pushad | Popad | Pushfd | Popfd => Ok(Size::B4),
        Pushq_FS | Pushq_GS | Popq_FS | Popq_GS => Ok(Size::B8),
        Retnq | Retnq_imm16 | Retfq | Retfq_imm16 | Call_rel32_64 => Ok(Size::B8),
        Enterq_imm16_imm8 | Leaveq | Pushfq | Popfq => Ok(Size::B8),
        _ => Err(Stop::Unhandled),
    }
}

/// The stack pointer moved by `by`, wrapped to its width.
pub(crate) fn moved<C: Cpu>(cpu: &C, by: u64) -> u64 {
    cpu.gpr(Gpr::Rsp).wrapping_add(by) & stack_width(cpu).mask()
}

/// Writes below the stack pointer and returns the new one, which is not yet in RSP.
fn push_value<C: Cpu>(x: &mut Exec<'_, C>, size: Size, value: u64) -> Result<u64, Stop> {
    push_all(x.cpu, size, &[value])
}

/// The same for up to eight values, the first one first. None is written unless all can be.
pub(crate) fn push_all<C: Cpu>(cpu: &mut C, size: Size, values: &[u64]) -> Result<u64, Stop> {
    let step = size.bytes() as u64;
    let below = |cpu: &C, n: usize| moved(cpu, (step * n as u64).wrapping_neg());
    if values.len() > 1 {
        for n in 1..=values.len() {
            let linear = address::data(cpu, SegReg::Ss, below(cpu, n), size.bytes(), true)?;
            cpu.check_write(linear, size.bytes())?;
        }
    }
    for (n, value) in (1..).zip(values) {
        let linear = address::data(cpu, SegReg::Ss, below(cpu, n), size.bytes(), true)?;
        write(cpu, linear, size, *value)?;
    }
    Ok(below(cpu, values.len()))
}

/// Reads what lies on top of the stack, the topmost first. The stack pointer stays.
pub(crate) fn pop_all<C: Cpu>(cpu: &mut C, size: Size, values: &mut [u64]) -> Result<(), Stop> {
    for (n, value) in (0..).zip(values) {
        let at = moved(cpu, size.bytes() as u64 * n);
        let linear = address::data(cpu, SegReg::Ss, at, size.bytes(), false)?;
        *value = read(cpu, linear, size)?;
    }
    Ok(())
}

pub(crate) fn set_stack_pointer<C: Cpu>(cpu: &mut C, value: u64) {
    let width = stack_width(cpu);
    write_gpr(cpu, Gpr::Rsp, width, value);
}

/// PUSH of a register, memory or an immediate; a selector is extended with zeros.
pub(crate) fn push<C: Cpu>(x: &mut Exec<'_, C>) -> Step {
    if let Some(r) = segment::named(x.instr.op0_register()) {
        let size = implied_size(x)?;
        let selector = u64::from(x.cpu.segment(r).selector);
        let top = push_value(x, size, selector)?;
        set_stack_pointer(x.cpu, top);
        return Ok(Flow::Next);
    }
    let size = pushed_size(x)?;
    let value = x.load(0, size)?;
    let top = push_value(x, size, value)?;
    set_stack_pointer(x.cpu, top);
    Ok(Flow::Next)
}

/// POP into a register or memory. A memory operand based on RSP uses its value after the increment.
pub(crate) fn pop<C: Cpu>(x: &mut Exec<'_, C>) -> Step {
    if let Some(r) = segment::named(x.instr.op0_register()).filter(|_| !x.is_memory(0)) {
        let size = implied_size(x)?;
        return segment::pop(x, r, size);
    }
    let size = pushed_size(x)?;
    let step = size.bytes() as u64;
    let top = moved(x.cpu, 0);
    let linear = address::data(x.cpu, SegReg::Ss, top, size.bytes(), false)?;
    if x.is_memory(0) {
        let offset = address::offset(x.cpu, &x.instr, step);
        let segment = segment_of(x.instr.memory_segment());
        let to = address::data(x.cpu, segment, offset, size.bytes(), true)?;
        x.cpu.check_write(to, size.bytes())?;
        let value = read(x.cpu, linear, size)?;
        write(x.cpu, to, size, value)?;
        let top = moved(x.cpu, step);
        set_stack_pointer(x.cpu, top);
        return Ok(Flow::Next);
    }
    let register = x.reg(0).ok_or(Stop::Unhandled)?;
    let value = read(x.cpu, linear, size)?;
    let top = moved(x.cpu, step);
    set_stack_pointer(x.cpu, top);
    x.set(register, value);
    Ok(Flow::Next)
}

/// `to` lies in the code segment, or is canonical; the size of near branches is fixed in 64-bit mode, where vendors differ on an
/// operand-size prefix (SDM vol. 2A, CALL).
fn near<C: Cpu>(x: &Exec<'_, C>, size: Size, to: u64) -> Result<u64, Stop> {
    let allowed = if x.mode == Mode::Bits64 {
        if size != Size::B8 {
            return Err(Stop::Unhandled);
        }
        canonical(to, x.cpu.linear_bits())
    } else {
        to <= u64::from(x.cpu.segment(SegReg::Cs).limit)
    };
    if allowed { Ok(to) } else { Err(Stop::Fault(Exception::gp(0))) }
}

/// The target of a near CALL or JMP.
fn target<C: Cpu>(x: &mut Exec<'_, C>) -> Result<(Size, u64), Stop> {
    let (size, to) = match x.instr.op0_kind() {
        OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64 => {
            (implied_size(x)?, x.instr.near_branch_target())
        }
        _ => {
            let size = x.size(0)?;
            (size, x.load(0, size)?)
        }
    };
    Ok((size, near(x, size, to)?))
}

/// The operand is a far pointer, in memory or in the instruction.
fn is_far<C: Cpu>(x: &Exec<'_, C>) -> bool {
    match x.instr.op0_kind() {
        OpKind::FarBranch16 | OpKind::FarBranch32 => true,
        OpKind::Memory => matches!(
            x.instr.memory_size(),
            MemorySize::SegPtr16 | MemorySize::SegPtr32 | MemorySize::SegPtr64
        ),
        _ => false,
    }
}

/// JMP through a register or memory.
pub(crate) fn jump<C: Cpu>(x: &mut Exec<'_, C>) -> Step {
    if is_far(x) {
        return segment::jump(x);
    }
    let (_, to) = target(x)?;
    Ok(Flow::Jump(to))
}

/// CALL.
pub(crate) fn call<C: Cpu>(x: &mut Exec<'_, C>) -> Step {
    if is_far(x) {
        return segment::call(x);
    }
    let (size, to) = target(x)?;
    let top = push_value(x, size, x.next)?;
    set_stack_pointer(x.cpu, top);
    Ok(Flow::Jump(to))
}

/// Bytes that RET takes from the stack besides.
fn released<C: Cpu>(x: &Exec<'_, C>) -> u64 {
    if x.instr.op_count() == 1 { u64::from(x.instr.immediate16()) } else { 0 }
}

/// RET.
pub(crate) fn ret<C: Cpu>(x: &mut Exec<'_, C>) -> Step {
    let size = implied_size(x)?;
    let mut to = [0];
    pop_all(x.cpu, size, &mut to)?;
    let [to] = to;
    let to = near(x, size, to)?;
    let top = moved(x.cpu, size.bytes() as u64 + released(x));
    set_stack_pointer(x.cpu, top);
    Ok(Flow::Jump(to))
}

/// RETF to the same level.
pub(crate) fn ret_far<C: Cpu>(x: &mut Exec<'_, C>) -> Step {
    let size = implied_size(x)?;
    let release = released(x);
    segment::ret(x, size, release)
}

/// ENTER without nesting.
pub(crate) fn enter<C: Cpu>(x: &mut Exec<'_, C>) -> Step {
    if x.instr.immediate8_2nd() & 31 != 0 {
        return Err(Stop::Unhandled.into());
    }
    let size = implied_size(x)?;
    let frame = push_value(x, size, x.cpu.gpr(Gpr::Rbp))?;
    let width = stack_width(x.cpu);
    write_gpr(x.cpu, Gpr::Rbp, width, frame);
    set_stack_pointer(x.cpu, frame.wrapping_sub(u64::from(x.instr.immediate16())));
    Ok(Flow::Next)
}

/// LEAVE.
pub(crate) fn leave<C: Cpu>(x: &mut Exec<'_, C>) -> Step {
    let size = implied_size(x)?;
    let frame = x.cpu.gpr(Gpr::Rbp) & stack_width(x.cpu).mask();
    let linear = address::data(x.cpu, SegReg::Ss, frame, size.bytes(), false)?;
    let value = read(x.cpu, linear, size)?;
    set_stack_pointer(x.cpu, frame.wrapping_add(size.bytes() as u64));
    write_gpr(x.cpu, Gpr::Rbp, size, value);
    Ok(Flow::Next)
}

/// PUSHA: the stack pointer as it was before.
pub(crate) fn push_registers<C: Cpu>(x: &mut Exec<'_, C>) -> Step {
    let size = implied_size(x)?;
    let mut values = [0; 8];
    for (i, value) in (0..).zip(&mut values) {
        *value = x.cpu.gpr(gpr(i));
    }
    let top = push_all(x.cpu, size, &values)?;
    set_stack_pointer(x.cpu, top);
    Ok(Flow::Next)
}

/// POPA: the stack pointer on the stack counts for nothing.
pub(crate) fn pop_registers<C: Cpu>(x: &mut Exec<'_, C>) -> Step {
    let size = implied_size(x)?;
    let mut values = [0; 8];
    pop_all(x.cpu, size, &mut values)?;
    let top = moved(x.cpu, 8 * size.bytes() as u64);
    for (i, value) in (0..8).rev().zip(values) {
        if gpr(i) != Gpr::Rsp {
            write_gpr(x.cpu, gpr(i), size, value);
        }
    }
    set_stack_pointer(x.cpu, top);
    Ok(Flow::Next)
}

fn iopl(flags: u64) -> u64 {
    (flags & rflags::IOPL) >> rflags::IOPL.trailing_zeros()
}

/// In virtual-8086 mode the flags are IOPL's to guard; with VME they are a matter of their own, which is not handled.
fn flags_allowed<C: Cpu>(cpu: &C) -> Result<(), Stop> {
    let flags = cpu.rflags();
    if flags & rflags::VM == 0 || iopl(flags) == 3 {
        return Ok(());
    }
    let extended = cpu.cr4() & cr4::VME != 0;
    Err(if extended { Stop::Unhandled } else { Stop::Fault(Exception::gp(0)) })
}

/// PUSHF: VM and RF read as zero.
pub(crate) fn push_flags<C: Cpu>(x: &mut Exec<'_, C>) -> Step {
    flags_allowed(x.cpu)?;
    let size = implied_size(x)?;
    let flags = x.cpu.rflags() & !(rflags::VM | rflags::RF);
    let top = push_value(x, size, flags)?;
    set_stack_pointer(x.cpu, top);
    Ok(Flow::Next)
}

/// POPF: IOPL is the kernel's, IF whose IOPL suffices (SDM vol. 2B, POPF).
pub(crate) fn pop_flags<C: Cpu>(x: &mut Exec<'_, C>) -> Step {
    const ANYBODY: u64 = crate::alu::STATUS | rflags::TF | rflags::DF | rflags::NT | rflags::AC | rflags::ID;
    flags_allowed(x.cpu)?;
    let size = implied_size(x)?;
    let mut value = [0];
    pop_all(x.cpu, size, &mut value)?;
    let [value] = value;
    let (old, cpl) = (x.cpu.rflags(), u64::from(x.cpu.cpl()));
    let mine = if cpl == 0 { rflags::IOPL } else { 0 } | if cpl <= iopl(old) { rflags::IF } else { 0 };
    let change = (ANYBODY | mine) & size.mask();
    let top = moved(x.cpu, size.bytes() as u64);
    set_stack_pointer(x.cpu, top);
    x.cpu.set_rflags(old & !change | value & change);
    Ok(Flow::Next)
}
