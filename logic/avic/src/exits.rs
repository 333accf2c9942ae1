//! What AVIC's two exits leave to software (APM vol. 2, 15.29.9).

use exitless_x86::apic::reg;
use exitless_x86::svm::avic::Incomplete;

/// What is still to do for an ICR write. The instruction is done, and the ICR is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owed {
    /// The vector is in the IRR of all targets: tell them.
    Tell,
    /// Nothing was sent, or not to all: send it as if hardware had not tried. A target that has it twice takes it once, unless it was
    /// very quick.
    Send,
}

/// By the reason that the exit gives. Those to come are not hardware's to send either.
pub fn incomplete(why: Incomplete) -> Owed {
    match why {
        Incomplete::TARGET_NOT_RUNNING => Owed::Tell,
        _ => Owed::Send,
    }
}

/// Where an access that hardware does not do stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Behind the instruction: the register in the backing page has the value written.
    Trap,
    /// Before it.
    Fault,
}

/// For the register at `offset` of the page (APM vol. 2, table 15-22): writes with an effect beyond the register are traps.
pub fn unaccelerated(offset: u32, write: bool) -> Access {
    let trap = matches!(
        offset,
        reg::ID | reg::EOI | reg::RRD | reg::LDR | reg::DFR | reg::SVR | reg::ESR | reg::ICR
    ) || matches!(
        offset,
        reg::LVT_TIMER
            | reg::LVT_THERMAL
            | reg::LVT_PC
            | reg::LVT_LINT0
            | reg::LVT_LINT1
            | reg::LVT_ERROR
            | reg::TMICT
            | reg::TDCR
    );
    if write && trap { Access::Trap } else { Access::Fault }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_target_that_does_not_run_is_told() {
        assert_eq!(incomplete(Incomplete::TARGET_NOT_RUNNING), Owed::Tell);
        for why in [0, 2, 3, 4, 5, 77] {
            assert_eq!(incomplete(Incomplete(why)), Owed::Send, "{why}");
        }
    }

    /// The whole page: reads fault, and of the writes those to read-only registers, ICR2, TPR (never unaccelerated) and SELF_IPI.
    #[test]
    fn traps_are_writes_with_an_effect() {
        let faults =
            [reg::VERSION, reg::TPR, reg::APR, reg::PPR, reg::ISR, reg::TMR, reg::IRR, reg::LVT_CMCI];
        let more = [reg::ICR2, reg::TMCCT, reg::SELF_IPI, 0, 0x40, 0x110, 0x3d0];
        for offset in faults.into_iter().chain(more) {
            assert_eq!(unaccelerated(offset, true), Access::Fault, "{offset:#x}");
        }
        let traps = (0..0x400).step_by(16).filter(|o| unaccelerated(*o, true) == Access::Trap);
        assert_eq!(traps.count(), 16);
        assert!((0..0x400).step_by(16).all(|o| unaccelerated(o, false) == Access::Fault));
    }
}
