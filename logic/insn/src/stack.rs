//! PUSH, POP, and near CALL and JMP through a register or memory.

use exitless_x86::exception::Exception;
use exitless_x86::paging::canonical;
use exitless_x86::regs::{Gpr, SegReg};
use iced_x86::OpKind;

use crate::address::{self, segment_of};
use crate::alu::Size;
use crate::decode::Mode;
use crate::emulate::{Cpu, Stop};
use crate::operand::{Exec, Flow, Step, read, write, write_gpr};

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

/// The stack pointer moved by `by`, wrapped to its width.
fn moved<C: Cpu>(cpu: &C, by: u64) -> u64 {
    cpu.gpr(Gpr::Rsp).wrapping_add(by) & stack_width(cpu).mask()
}

/// Writes below the stack pointer and returns the new one, which is not yet in RSP.
fn push_value<C: Cpu>(x: &mut Exec<'_, C>, size: Size, value: u64) -> Result<u64, Stop> {
    let top = moved(x.cpu, (size.bytes() as u64).wrapping_neg());
    let linear = address::data(x.cpu, SegReg::Ss, top, size.bytes(), true)?;
    write(x.cpu, linear, size, value)?;
    Ok(top)
}

fn set_stack_pointer<C: Cpu>(cpu: &mut C, value: u64) {
    let width = stack_width(cpu);
    write_gpr(cpu, Gpr::Rsp, width, value);
}

/// PUSH of a general register, memory or an immediate.
pub(crate) fn push<C: Cpu>(x: &mut Exec<'_, C>) -> Step {
    let size = pushed_size(x)?;
    let value = x.load(0, size)?;
    let top = push_value(x, size, value)?;
    set_stack_pointer(x.cpu, top);
    Ok(Flow::Next)
}

/// POP into a register or memory. A memory operand based on RSP uses its value after the increment.
pub(crate) fn pop<C: Cpu>(x: &mut Exec<'_, C>) -> Step {
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

/// The target of an indirect near branch, checked (SDM vol. 2A, CALL). Far forms are not handled.
fn target<C: Cpu>(x: &mut Exec<'_, C>) -> Result<(Size, u64), Stop> {
    if x.reg(0).is_none() && !x.is_memory(0) {
        return Err(Stop::Unhandled);
    }
    // A far pointer in memory is none of the sizes.
    let size = x.size(0)?;
    let to = x.load(0, size)?;
    let allowed = if x.mode == Mode::Bits64 {
        // Vendors differ on an operand-size prefix here.
        if size != Size::B8 {
            return Err(Stop::Unhandled);
        }
        canonical(to, x.cpu.linear_bits())
    } else {
        to <= u64::from(x.cpu.segment(SegReg::Cs).limit)
    };
    if allowed { Ok((size, to)) } else { Err(Stop::Fault(Exception::gp(0))) }
}

/// JMP r/m.
pub(crate) fn jump<C: Cpu>(x: &mut Exec<'_, C>) -> Step {
    let (_, to) = target(x)?;
    Ok(Flow::Jump(to))
}

/// CALL r/m.
pub(crate) fn call<C: Cpu>(x: &mut Exec<'_, C>) -> Step {
    let (size, to) = target(x)?;
    let top = push_value(x, size, x.next)?;
    set_stack_pointer(x.cpu, top);
    Ok(Flow::Jump(to))
}
