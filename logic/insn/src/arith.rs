//! Arithmetic, logic, shifts and exchanges on a register or memory destination.

use exitless_x86::exception::{Exception, Vector};
use exitless_x86::regs::{Gpr, rflags};

use crate::address;
use crate::alu::{self, Op, Size};
use crate::emulate::{Cpu, Stop};
use crate::operand::{Exec, Flow, Halt, LOCK_TRIES, Step, write_gpr};

/// ADD, ADC, SUB, SBB, AND, OR, XOR.
pub(crate) fn binary<C: Cpu>(x: &mut Exec<'_, C>, op: Op) -> Step {
    let size = x.size(0)?;
    let source = x.load(1, size)?;
    let done = x.modify(0, op, size, source)?;
    x.cpu.set_rflags(done.rflags);
    Ok(Flow::Next)
}

/// Shifts and rotates: the count is a byte, whatever the operand size.
pub(crate) fn shift<C: Cpu>(x: &mut Exec<'_, C>, op: Op) -> Step {
    let size = x.size(0)?;
    let count = x.load(1, Size::B1)?;
    let done = x.modify(0, op, size, count)?;
    x.cpu.set_rflags(done.rflags);
    Ok(Flow::Next)
}

/// SHLD and SHRD.
pub(crate) fn double_shift<C: Cpu>(x: &mut Exec<'_, C>, left: bool) -> Step {
    let size = x.size(0)?;
    let fill = x.load(1, size)?;
    let count = x.load(2, Size::B1)?;
    let before = x.cpu.rflags();
    let compute = |old| alu::double_shift(left, size, old, fill, count, before);
    if x.is_memory(0) {
        let linear = x.linear(size.bytes(), true)?;
        let done = x.modify_memory(linear, size, false, compute)?;
        x.cpu.set_rflags(done.rflags);
    } else {
        let (result, after) = compute(x.load(0, size)?);
        x.store(0, size, result)?;
        x.cpu.set_rflags(after);
    }
    Ok(Flow::Next)
}

/// CMP (`Op::Sub`) and TEST (`Op::And`): flags only.
pub(crate) fn compare<C: Cpu>(x: &mut Exec<'_, C>, op: Op) -> Step {
    let size = x.size(0)?;
    let a = x.load(0, size)?;
    let b = x.load(1, size)?;
    let (_, after) = alu::apply(op, size, a, b, x.cpu.rflags());
    x.cpu.set_rflags(after);
    Ok(Flow::Next)
}

/// INC, DEC, NEG, NOT.
pub(crate) fn unary<C: Cpu>(x: &mut Exec<'_, C>, op: Op) -> Step {
    let size = x.size(0)?;
    let done = x.modify(0, op, size, 0)?;
    x.cpu.set_rflags(done.rflags);
    Ok(Flow::Next)
}

/// XCHG; with memory it is locked without the prefix. Memory may be either operand of the encoding.
pub(crate) fn exchange<C: Cpu>(x: &mut Exec<'_, C>) -> Step {
    let (place, other) = if x.is_memory(1) { (1, 0) } else { (0, 1) };
    let size = x.size(place)?;
    let register = x.reg(other).ok_or(Stop::Unhandled)?;
    let value = x.load(other, size)?;
    let done = x.modify(place, Op::Replace, size, value)?;
    x.set(register, done.old);
    Ok(Flow::Next)
}

/// XADD: the source register gets the old destination; with the same register twice the sum stays.
pub(crate) fn exchange_add<C: Cpu>(x: &mut Exec<'_, C>) -> Step {
    let size = x.size(0)?;
    let register = x.reg(1).ok_or(Stop::Unhandled)?;
    let value = x.load(1, size)?;
    let done = x.modify(0, Op::Add, size, value)?;
    if x.reg(0) != Some(register) {
        x.set(register, done.old);
    }
    x.cpu.set_rflags(done.rflags);
    Ok(Flow::Next)
}

/// CMPXCHG: the flags are those of CMP accumulator, destination. Unequal memory is written back unchanged, as
/// the processor does.
pub(crate) fn compare_exchange<C: Cpu>(x: &mut Exec<'_, C>) -> Step {
    let size = x.size(0)?;
    let source = x.load(1, size)?;
    let expected = x.cpu.gpr(Gpr::Rax) & size.mask();
    let before = x.cpu.rflags();
    let compute = |old| {
        let (_, after) = alu::apply(Op::Sub, size, expected, old, before);
        (if after & rflags::ZF != 0 { source } else { old }, after)
    };
    let (old, after) = if x.is_memory(0) {
        let linear = x.linear(size.bytes(), true)?;
        let locked = x.instr.has_lock_prefix();
        let done = x.modify_memory(linear, size, locked, compute)?;
        (done.old, done.rflags)
    } else {
        let old = x.load(0, size)?;
        let (new, after) = compute(old);
        // An unequal register is left alone, its upper half too.
        if after & rflags::ZF != 0 {
            x.store(0, size, new)?;
        }
        (old, after)
    };
    if after & rflags::ZF == 0 {
        write_gpr(x.cpu, Gpr::Rax, size, old);
    }
    x.cpu.set_rflags(after);
    Ok(Flow::Next)
}

/// CMPXCHG8B (`half` is 4 bytes) and CMPXCHG16B (8 bytes): only ZF changes.
pub(crate) fn compare_exchange_pair<C: Cpu>(x: &mut Exec<'_, C>, half: Size) -> Step {
    let len = half.bytes() * 2;
    let linear = x.place(0, len, true)?;
    if half == Size::B8 && !linear.is_multiple_of(16) {
        return Err(Stop::Fault(Exception::gp(0)).into());
    }
    address::aligned(x.cpu, linear, 8)?;
    let expected = pair(half, x.cpu.gpr(Gpr::Rax), x.cpu.gpr(Gpr::Rdx));
    let source = pair(half, x.cpu.gpr(Gpr::Rbx), x.cpu.gpr(Gpr::Rcx));
    let old = exchange_pair(x, linear, len, expected, source)?;
    let before = x.cpu.rflags();
    if old == expected {
        x.cpu.set_rflags(before | rflags::ZF);
    } else {
        x.cpu.set_rflags(before & !rflags::ZF);
        write_gpr(x.cpu, Gpr::Rax, half, old as u64);
        write_gpr(x.cpu, Gpr::Rdx, half, (old >> half.bits()) as u64);
    }
    Ok(Flow::Next)
}

/// Two registers as one value.
fn pair(half: Size, low: u64, high: u64) -> u128 {
    u128::from(low & half.mask()) | u128::from(high & half.mask()) << half.bits()
}

/// Writes `source`, or the old value where it is not `expected`, and returns the old value.
fn exchange_pair<C: Cpu>(
    x: &mut Exec<'_, C>,
    linear: u64,
    len: usize,
    expected: u128,
    source: u128,
) -> Result<u128, Halt> {
    for _ in 0..LOCK_TRIES {
        let mut bytes = [0; 16];
        let old_bytes = bytes.get_mut(..len).unwrap_or_default();
        x.cpu.read_for_write(linear, old_bytes)?;
        let old = u128::from_le_bytes(bytes);
        let new_bytes = if old == expected { source } else { old }.to_le_bytes();
        let (old_part, new_part) = (bytes.get(..len), new_bytes.get(..len));
        let (old_part, new_part) = (old_part.unwrap_or_default(), new_part.unwrap_or_default());
        // Without LOCK the processor promises less; the atomic write-back is right for both.
        if x.cpu.compare_exchange(linear, old_part, new_part)? {
            return Ok(old);
        }
    }
    Err(Halt::Contended)
}

/// IMUL with two or three operands.
pub(crate) fn imul<C: Cpu>(x: &mut Exec<'_, C>) -> Step {
    if x.instr.op_count() == 1 {
        return multiply(x, true);
    }
    let size = x.size(0)?;
    let (a, b) = if x.instr.op_count() == 2 { (0, 1) } else { (1, 2) };
    let a = x.load(a, size)?;
    let b = x.load(b, size)?;
    let (result, after) = alu::imul(size, a, b, x.cpu.rflags());
    x.store(0, size, result)?;
    x.cpu.set_rflags(after);
    Ok(Flow::Next)
}

/// MUL and one-operand IMUL: the accumulator times the operand into rDX:rAX, or AX for bytes.
pub(crate) fn multiply<C: Cpu>(x: &mut Exec<'_, C>, signed: bool) -> Step {
    let size = x.size(0)?;
    let factor = x.load(0, size)?;
    let (low, high, after) = alu::multiply(signed, size, x.cpu.gpr(Gpr::Rax), factor, x.cpu.rflags());
    if size == Size::B1 {
        write_gpr(x.cpu, Gpr::Rax, Size::B2, low | high << 8);
    } else {
        write_gpr(x.cpu, Gpr::Rax, size, low);
        write_gpr(x.cpu, Gpr::Rdx, size, high);
    }
    x.cpu.set_rflags(after);
    Ok(Flow::Next)
}

/// DIV and IDIV: rDX:rAX, or AX for bytes, by the operand. The status flags are undefined after it and stay.
pub(crate) fn divide<C: Cpu>(x: &mut Exec<'_, C>, signed: bool) -> Step {
    let size = x.size(0)?;
    let divisor = x.load(0, size)?;
    let low = x.cpu.gpr(Gpr::Rax);
    let high = if size == Size::B1 { low >> 8 } else { x.cpu.gpr(Gpr::Rdx) };
    let Some((quotient, rest)) = alu::divide(signed, size, high, low, divisor) else {
        return Err(Stop::Fault(Exception::plain(Vector::DE)).into());
    };
    if size == Size::B1 {
        write_gpr(x.cpu, Gpr::Rax, Size::B2, quotient | rest << 8);
    } else {
        write_gpr(x.cpu, Gpr::Rax, size, quotient);
        write_gpr(x.cpu, Gpr::Rdx, size, rest);
    }
    Ok(Flow::Next)
}
