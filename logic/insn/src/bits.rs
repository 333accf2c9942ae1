//! BT, BTS, BTR and BTC: a bit of a register or of a bit string in memory. BSF, BSR and the counts of bits.

use crate::alu::{self, Op, Size};
use crate::emulate::{Cpu, Stop};
use crate::operand::{Exec, Flow, Step, read};
use exitless_x86::regs::rflags::{CF, ZF};

/// BT, BTS, BTR, BTC. A register source selects a bit anywhere around the memory operand (SDM vol. 2A, BT);
/// an immediate stays inside.
pub(crate) fn bit<C: Cpu>(x: &mut Exec<'_, C>, op: Op) -> Step {
    let size = x.size(0)?;
    let index = x.load(1, size)?;
    let by = if x.reg(1).is_some() && x.is_memory(0) { displacement(size, index) } else { 0 };
    let after =
        if op == Op::Bt { test(x, by, size, index)? } else { x.modify_at(0, by, op, size, index)?.rflags };
    x.cpu.set_rflags(after);
    Ok(Flow::Next)
}

/// Bytes from the operand's address to the word that holds bit `index`, which is signed.
fn displacement(size: Size, index: u64) -> u64 {
    let index = size.sign_extend(index) as i64;
    let words = index >> size.bits().trailing_zeros();
    (words as u64).wrapping_mul(size.bytes() as u64)
}

/// BT reads only.
fn test<C: Cpu>(x: &mut Exec<'_, C>, by: u64, size: Size, index: u64) -> Result<u64, Stop> {
    let value = if x.is_memory(0) {
        let linear = x.linear_at(by, size.bytes(), false)?;
        read(x.cpu, linear, size)?
    } else {
        x.load(0, size)?
    };
    Ok(alu::apply(Op::Bt, size, value, index, x.cpu.rflags()).1)
}

/// BSF (`low`) and BSR. Of zero the destination stays, which both vendors do; the flags but ZF are undefined, and stay.
pub(crate) fn scan<C: Cpu>(x: &mut Exec<'_, C>, low: bool) -> Step {
    let size = x.size(0)?;
    let source = x.load(1, size)?;
    let before = x.cpu.rflags() & !ZF;
    if source == 0 {
        x.cpu.set_rflags(before | ZF);
        return Ok(Flow::Next);
    }
    let index = if low { source.trailing_zeros() } else { 63 - source.leading_zeros() };
    x.store(0, size, u64::from(index))?;
    x.cpu.set_rflags(before);
    Ok(Flow::Next)
}

/// What POPCNT, TZCNT and LZCNT count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Count {
    Ones,
    TrailingZeros,
    LeadingZeros,
}

/// POPCNT clears all flags but ZF, which tells a source of zero. TZCNT and LZCNT tell that in CF, and a result of zero in ZF; the
/// others are undefined, and stay.
pub(crate) fn count<C: Cpu>(x: &mut Exec<'_, C>, what: Count) -> Step {
    let size = x.size(0)?;
    let source = x.load(1, size)?;
    let result = match what {
        Count::Ones => source.count_ones(),
        Count::TrailingZeros => source.trailing_zeros().min(size.bits()),
        Count::LeadingZeros => source.leading_zeros() - (64 - size.bits()),
    };
    x.store(0, size, u64::from(result))?;
    let flag = |set: bool, flag: u64| if set { flag } else { 0 };
    let before = x.cpu.rflags();
    let after = match what {
        Count::Ones => before & !alu::STATUS | flag(source == 0, ZF),
        _ => before & !(CF | ZF) | flag(source == 0, CF) | flag(result == 0, ZF),
    };
    x.cpu.set_rflags(after);
    Ok(Flow::Next)
}
