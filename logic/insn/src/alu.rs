//! Arithmetic, logic, shifts and bit operations with their flags: pure functions of operands and RFLAGS.
//!
//! Flags that the manuals leave undefined get the value of the single-bit form (OF) or stay as they were.

use exitless_x86::regs::rflags::{AF, CF, OF, PF, SF, ZF};

/// The six status flags.
pub const STATUS: u64 = CF | PF | AF | ZF | SF | OF;

/// Operand size in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
#[allow(missing_docs)]
pub enum Size {
    B1 = 1,
    B2 = 2,
    B4 = 4,
    B8 = 8,
}

impl Size {
    /// The size of `bytes` bytes; `None` unless 1, 2, 4 or 8.
    pub const fn from_bytes(bytes: usize) -> Option<Self> {
        match bytes {
            1 => Some(Self::B1),
            2 => Some(Self::B2),
            4 => Some(Self::B4),
            8 => Some(Self::B8),
            _ => None,
        }
    }

    /// In bytes.
    pub const fn bytes(self) -> usize {
        self as usize
    }

    /// In bits.
    pub const fn bits(self) -> u32 {
        self as u32 * 8
    }

    /// All bits of an operand.
    pub const fn mask(self) -> u64 {
        u64::MAX >> (64 - self.bits())
    }

    /// The most significant bit of an operand.
    pub const fn sign(self) -> u64 {
        1 << (self.bits() - 1)
    }

    /// `value` sign-extended from this size to 64 bits.
    pub const fn sign_extend(self, value: u64) -> u64 {
        let unused = 64 - self.bits();
        (((value << unused) as i64) >> unused) as u64
    }
}

/// What to do with a destination `a` and a source `b`. Unary operations ignore `b`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Op {
    Add,
    Adc,
    Sub,
    Sbb,
    And,
    Or,
    Xor,
    Inc,
    Dec,
    Neg,
    Not,
    Shl,
    Shr,
    Sar,
    Rol,
    Ror,
    Rcl,
    Rcr,
    /// BT, BTS, BTR, BTC: `b` modulo the operand's bits selects the bit.
    Bt,
    Bts,
    Btr,
    Btc,
    /// The result is `b`; no flags (XCHG).
    Replace,
}

/// The result of `op` and RFLAGS after it.
pub fn apply(op: Op, size: Size, a: u64, b: u64, rflags: u64) -> (u64, u64) {
    let (a, b) = (a & size.mask(), b & size.mask());
    let carry = rflags & CF;
    match op {
        Op::Add => with_status(rflags, add(size, a, b, 0)),
        Op::Adc => with_status(rflags, add(size, a, b, carry)),
        Op::Sub => with_status(rflags, sub(size, a, b, 0)),
        Op::Sbb => with_status(rflags, sub(size, a, b, carry)),
        Op::And => with_status(rflags, logic(size, a & b)),
        Op::Or => with_status(rflags, logic(size, a | b)),
        Op::Xor => with_status(rflags, logic(size, a ^ b)),
        Op::Inc => keep_carry(rflags, add(size, a, 1, 0)),
        Op::Dec => keep_carry(rflags, sub(size, a, 1, 0)),
        Op::Neg => with_status(rflags, sub(size, 0, a, 0)),
        Op::Not => (!a & size.mask(), rflags),
        Op::Shl | Op::Shr | Op::Sar => shift(op, size, a, b, rflags),
        Op::Rol | Op::Ror => rotate(op, size, a, b, rflags),
        Op::Rcl | Op::Rcr => rotate_through_carry(op, size, a, b, rflags),
        Op::Bt | Op::Bts | Op::Btr | Op::Btc => bit(op, size, a, b, rflags),
        Op::Replace => (b, rflags),
    }
}

/// SHLD (`left`) and SHRD: `a` shifted, filled from `b`. 16-bit operands with a count above 16 are undefined
/// by the manuals; the fill is then `b` repeated.
pub fn double_shift(left: bool, size: Size, a: u64, b: u64, count: u64, rflags: u64) -> (u64, u64) {
    let (a, b) = (a & size.mask(), b & size.mask());
    let bits = size.bits();
    let count = count_of(size, count);
    if count == 0 {
        return (a, rflags);
    }
    let count = if count > bits { count - bits } else { count };
    let rest = bits - count;
    let high = |v: u64, n: u32| v.checked_shl(n).unwrap_or(0);
    let low = |v: u64, n: u32| v.checked_shr(n).unwrap_or(0);
    let (result, carry) = if left {
        ((high(a, count) | low(b, rest)) & size.mask(), low(a, rest) & 1)
    } else {
        ((low(a, count) | high(b, rest)) & size.mask(), low(a, count - 1) & 1)
    };
    let overflow = if (a ^ result) & size.sign() != 0 { OF } else { 0 };
    with_status(rflags, (result, result_flags(size, result) | carry | overflow))
}

/// IMUL with a truncated result: CF and OF say whether significant bits were lost.
pub fn imul(size: Size, a: u64, b: u64, rflags: u64) -> (u64, u64) {
    let full = i128::from(size.sign_extend(a) as i64) * i128::from(size.sign_extend(b) as i64);
    let result = full as u64 & size.mask();
    let lost = i128::from(size.sign_extend(result) as i64) != full;
    (result, lost_flags(rflags, lost))
}

/// MUL and one-operand IMUL: (low half, high half) of the product, and RFLAGS.
pub fn multiply(signed: bool, size: Size, a: u64, b: u64, rflags: u64) -> (u64, u64, u64) {
    let full = if signed {
        (i128::from(size.sign_extend(a) as i64) * i128::from(size.sign_extend(b) as i64)) as u128
    } else {
        u128::from(a & size.mask()) * u128::from(b & size.mask())
    };
    let low = full as u64 & size.mask();
    let high = (full >> size.bits()) as u64 & size.mask();
    let insignificant = if signed && low & size.sign() != 0 { size.mask() } else { 0 };
    (low, high, lost_flags(rflags, high != insignificant))
}

/// DIV and IDIV: quotient and remainder of the dividend `high:low` (rDX:rAX; AH:AL for bytes). `None` is #DE: the
/// divisor is zero or the quotient does not fit.
pub fn divide(signed: bool, size: Size, high: u64, low: u64, divisor: u64) -> Option<(u64, u64)> {
    let (high, low, divisor) = (high & size.mask(), low & size.mask(), divisor & size.mask());
    if !signed {
        return divide_magnitudes(size, high, low, divisor);
    }
    let negate =
        |negative: bool, value: u64| if negative { value.wrapping_neg() & size.mask() } else { value };
    let (below, divisor_below) = (high & size.sign() != 0, divisor & size.sign() != 0);
    let carry = u64::from(below && low != 0);
    let (high, low) = (negate(below, high).wrapping_sub(carry) & size.mask(), negate(below, low));
    let (quotient, rest) = divide_magnitudes(size, high, low, negate(divisor_below, divisor))?;
    let negative = below != divisor_below;
    let most = if negative { size.sign() } else { size.sign() - 1 };
    (quotient <= most).then(|| (negate(negative, quotient), negate(below, rest)))
}

/// Unsigned division of two halves by one. 64-bit operands bit by bit: the kernel has no 128-bit division.
fn divide_magnitudes(size: Size, high: u64, low: u64, divisor: u64) -> Option<(u64, u64)> {
    // The quotient fits exactly if the upper half is below the divisor, which then is not zero.
    if high >= divisor {
        return None;
    }
    if size != Size::B8 {
        let dividend = high << size.bits() | low;
        return dividend.checked_div(divisor).zip(dividend.checked_rem(divisor));
    }
    let (mut quotient, mut rest) = (0, high);
    for bit in (0..64).rev() {
        let overflow = rest >> 63 != 0;
        rest = rest << 1 | low >> bit & 1;
        quotient <<= 1;
        if overflow || rest >= divisor {
            rest = rest.wrapping_sub(divisor);
            quotient |= 1;
        }
    }
    Some((quotient, rest))
}

fn lost_flags(rflags: u64, lost: bool) -> u64 {
    if lost { rflags | CF | OF } else { rflags & !(CF | OF) }
}

/// Replaces all status flags.
fn with_status(rflags: u64, (result, status): (u64, u64)) -> (u64, u64) {
    (result, rflags & !STATUS | status)
}

/// Replaces the status flags except CF, as INC and DEC do.
fn keep_carry(rflags: u64, (result, status): (u64, u64)) -> (u64, u64) {
    (result, rflags & !(STATUS & !CF) | status & !CF)
}

/// ZF, SF and PF of a result.
fn result_flags(size: Size, result: u64) -> u64 {
    let zero = if result == 0 { ZF } else { 0 };
    let sign = if result & size.sign() != 0 { SF } else { 0 };
    let parity = if (result as u8).count_ones().is_multiple_of(2) { PF } else { 0 };
    zero | sign | parity
}

/// CF, OF and AF from the vectors of carries, overflows and half carries.
fn carry_flags(size: Size, carries: u64, overflows: u64, halves: u64) -> u64 {
    let carry = if carries & size.sign() != 0 { CF } else { 0 };
    let overflow = if overflows & size.sign() != 0 { OF } else { 0 };
    carry | overflow | halves & AF
}

fn add(size: Size, a: u64, b: u64, carry: u64) -> (u64, u64) {
    let r = a.wrapping_add(b).wrapping_add(carry) & size.mask();
    let carries = (a & b) | ((a | b) & !r);
    (r, result_flags(size, r) | carry_flags(size, carries, (a ^ r) & (b ^ r), a ^ b ^ r))
}

fn sub(size: Size, a: u64, b: u64, borrow: u64) -> (u64, u64) {
    let r = a.wrapping_sub(b).wrapping_sub(borrow) & size.mask();
    let borrows = (!a & b) | ((!a | b) & r);
    (r, result_flags(size, r) | carry_flags(size, borrows, (a ^ b) & (a ^ r), a ^ b ^ r))
}

fn logic(size: Size, r: u64) -> (u64, u64) {
    (r, result_flags(size, r))
}

/// The masked shift count: 5 bits, 6 for 64-bit operands.
fn count_of(size: Size, count: u64) -> u32 {
    let mask = if size.bits() == 64 { 0x3f } else { 0x1f };
    count as u32 & mask
}

fn shift(op: Op, size: Size, a: u64, b: u64, rflags: u64) -> (u64, u64) {
    let count = count_of(size, b);
    if count == 0 {
        return (a, rflags);
    }
    let bits = size.bits();
    let signed = size.sign_extend(a) as i64;
    let (result, out) = match op {
        Op::Shl => (a << count, if count <= bits { a >> (bits - count) } else { 0 }),
        Op::Shr => (a >> count, a >> (count - 1)),
        _ => ((signed >> count) as u64, (signed >> (count - 1)) as u64),
    };
    let (result, carry) = (result & size.mask(), out & CF);
    let overflow = match op {
        Op::Shl => (result & size.sign() != 0) != (carry != 0),
        Op::Shr => a & size.sign() != 0,
        _ => false,
    };
    let overflow = if overflow { OF } else { 0 };
    with_status(rflags, (result, result_flags(size, result) | carry | overflow))
}

/// CF and OF after a rotate; the other flags stay.
fn rotate_flags(rflags: u64, carry: bool, overflow: bool) -> u64 {
    let carry = if carry { CF } else { 0 };
    let overflow = if overflow { OF } else { 0 };
    rflags & !(CF | OF) | carry | overflow
}

fn rotate(op: Op, size: Size, a: u64, b: u64, rflags: u64) -> (u64, u64) {
    let count = count_of(size, b);
    if count == 0 {
        return (a, rflags);
    }
    let bits = size.bits();
    let left = if op == Op::Rol { count % bits } else { (bits - count % bits) % bits };
    let result = if left == 0 { a } else { (a << left | a >> (bits - left)) & size.mask() };
    let top = result & size.sign() != 0;
    if op == Op::Rol {
        let carry = result & 1 != 0;
        (result, rotate_flags(rflags, carry, top != carry))
    } else {
        let next = result & (size.sign() >> 1) != 0;
        (result, rotate_flags(rflags, top, top != next))
    }
}

fn rotate_through_carry(op: Op, size: Size, a: u64, b: u64, rflags: u64) -> (u64, u64) {
    let count = count_of(size, b) % (size.bits() + 1);
    if count == 0 {
        return (a, rflags);
    }
    let (mut value, mut carry) = (a, rflags & CF != 0);
    for _ in 0..count {
        let (top, bottom) = (value & size.sign() != 0, value & 1 != 0);
        if op == Op::Rcl {
            value = value << 1 & size.mask() | u64::from(carry);
            carry = top;
        } else {
            value = value >> 1 | if carry { size.sign() } else { 0 };
            carry = bottom;
        }
    }
    let top = value & size.sign() != 0;
    let overflow = if op == Op::Rcl { top != carry } else { top != (value & (size.sign() >> 1) != 0) };
    (value, rotate_flags(rflags, carry, overflow))
}

fn bit(op: Op, size: Size, a: u64, b: u64, rflags: u64) -> (u64, u64) {
    let mask = 1u64 << (b & u64::from(size.bits() - 1));
    let carry = if a & mask != 0 { CF } else { 0 };
    let result = match op {
        Op::Bts => a | mask,
        Op::Btr => a & !mask,
        Op::Btc => a ^ mask,
        _ => a,
    };
    (result, rflags & !CF | carry)
}

/// Whether condition `cc` (the low four bits of Jcc, SETcc and CMOVcc opcodes; SDM vol. 2, appendix B.1.4) holds.
pub fn condition(cc: u8, rflags: u64) -> bool {
    let set = |flag: u64| rflags & flag != 0;
    let holds = match cc >> 1 & 7 {
        0 => set(OF),
        1 => set(CF),
        2 => set(ZF),
        3 => set(CF) || set(ZF),
        4 => set(SF),
        5 => set(PF),
        6 => set(SF) != set(OF),
        _ => set(ZF) || set(SF) != set(OF),
    };
    holds != (cc & 1 != 0)
}
