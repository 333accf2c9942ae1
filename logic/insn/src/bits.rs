//! BT, BTS, BTR and BTC: a bit of a register or of a bit string in memory.

use crate::alu::{self, Op, Size};
use crate::emulate::{Cpu, Stop};
use crate::operand::{Exec, Flow, Step, read};

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
