//! DIV and IDIV against the processor, and #DE against the definition in wide integers.

mod common;

use common::Random;
use common::machine::Machine;
use exitless_insn::alu::{Size, divide};
use exitless_insn::{Mode, Outcome, Stop};
use exitless_x86::exception::{Exception, Vector};
use exitless_x86::regs::Gpr;

/// The manual's definition (SDM vol. 2A, DIV and IDIV).
fn definition(signed: bool, size: Size, high: u64, low: u64, divisor: u64) -> Option<(u64, u64)> {
    let bits = size.bits();
    let dividend = u128::from(high & size.mask()) << bits | u128::from(low & size.mask());
    if !signed {
        let divisor = u128::from(divisor & size.mask());
        let quotient = dividend.checked_div(divisor)?;
        return (quotient <= u128::from(size.mask())).then(|| (quotient as u64, (dividend % divisor) as u64));
    }
    let unused = 128 - 2 * bits;
    let dividend = ((dividend << unused) as i128) >> unused;
    let divisor = i128::from(size.sign_extend(divisor) as i64);
    let quotient = dividend.checked_div(divisor)?;
    let most = i128::from(size.sign() - 1);
    let fits = quotient <= most && quotient >= -most - 1;
    fits.then(|| {
        (quotient as u64 & size.mask(), dividend.checked_rem(divisor).unwrap_or(0) as u64 & size.mask())
    })
}

const SIZES: [Size; 4] = [Size::B1, Size::B2, Size::B4, Size::B8];

/// Operands of which about half divide: the upper half small, or the sign of the lower one.
fn operands(r: &mut Random, size: Size) -> (u64, u64, u64) {
    let (low, divisor) = (r.value(), r.value());
    let high = match r.below(4) {
        0 => 0,
        1 => (size.sign_extend(low) as i64 >> 63) as u64,
        2 => size.sign_extend(divisor) & size.mask() >> 1,
        _ => r.value(),
    };
    (high, low, divisor)
}

#[test]
fn division_is_as_defined() {
    let (mut fits, mut errors) = (0, 0);
    for seed in 0..400_000u64 {
        let mut r = Random::new(seed + 1);
        let size = r.pick(&SIZES);
        let signed = r.coin();
        let (high, low, divisor) = operands(&mut r, size);
        let expected = definition(signed, size, high, low, divisor);
        let story = format!("seed {seed}: {signed} {size:?} {high:x}:{low:x} / {divisor:x}");
        assert_eq!(divide(signed, size, high, low, divisor), expected, "{story}");
        if expected.is_some() { fits += 1 } else { errors += 1 }
    }
    assert!(fits > 50_000 && errors > 50_000, "{fits} fit, {errors} do not");
}

/// The most negative numbers: the one quotient that fits only when negative, and the one that never fits.
#[test]
fn edges() {
    for size in SIZES {
        let (min, ones) = (size.sign(), size.mask());
        assert_eq!(divide(true, size, ones, min, 1), Some((min, 0)), "{size:?}");
        assert_eq!(divide(true, size, ones, min, ones), None, "{size:?}: minimum by -1");
        assert_eq!(divide(true, size, 0, min, ones), Some((min, 0)), "{size:?}");
        assert_eq!(divide(true, size, min, 0, min), None, "{size:?}: the widest dividend");
        assert_eq!(divide(false, size, ones - 1, ones, ones), Some((ones, ones - 1)), "{size:?}");
        assert_eq!(divide(false, size, 0, 5, 0), None, "{size:?}: by zero");
    }
}

fn encode(signed: bool, size: Size, modrm: u8) -> Vec<u8> {
    let mut code = match size {
        Size::B1 => vec![0xf6],
        Size::B2 => vec![0x66, 0xf7],
        Size::B4 => vec![0xf7],
        Size::B8 => vec![0x48, 0xf7],
    };
    code.push(modrm | if signed { 0x38 } else { 0x30 });
    code
}

/// #DE leaves RIP and every register as they were.
#[test]
fn divide_error() {
    for size in SIZES {
        for signed in [false, true] {
            let mut m = Machine::new(Mode::Bits64);
            m.gpr.fill(0x1234);
            m.set(Gpr::Rbx, common::machine::RAM);
            let before = m.gpr;
            let outcome = m.step(&encode(signed, size, 0x03));
            assert_eq!(outcome, Outcome::Stop(Stop::Fault(Exception::plain(Vector::DE))));
            assert_eq!((m.gpr, m.rip), (before, 0x1000));
        }
    }
}

/// Registers after the division are the processor's, in the halves it writes and in those it clears or keeps.
#[cfg(all(target_arch = "x86_64", unix))]
#[test]
fn division_matches_the_processor() {
    use common::native::{DATA_LEN, State, native};
    let stack = native().data_address() + 0x3800;
    let mut compared = 0;
    for seed in 0..20_000u64 {
        let mut r = Random::new(seed + 9);
        let (size, signed) = (r.pick(&SIZES), r.coin());
        let (high, low, divisor) = operands(&mut r, size);
        let mut start = State { rflags: 0x202, ..State::default() };
        start.gpr.fill_with(|| r.value());
        let byte = size == Size::B1;
        start.gpr[Gpr::Rax as usize] = if byte { low & !0xff00 | (high & 0xff) << 8 } else { low };
        start.gpr[Gpr::Rdx as usize] = if byte { r.value() } else { high };
        start.gpr[Gpr::Rcx as usize] = divisor;
        start.gpr[Gpr::Rsp as usize] = stack;
        if definition(signed, size, high, low, divisor).is_none() {
            continue;
        }
        let code = encode(signed, size, 0xc1);
        let mut real = start;
        native().run(&code, &mut real, &mut vec![0; DATA_LEN]);
        let mut m = Machine::new(Mode::Bits64);
        m.gpr = start.gpr;
        assert_eq!(m.step(&code), Outcome::Done, "seed {seed}");
        assert_eq!(m.gpr, real.gpr, "seed {seed}: {code:02x?} {start:x?}");
        compared += 1;
    }
    assert!(compared > 5_000, "{compared}");
}
