//! The VMX-preemption timer (SDM vol. 3C, 26.5.1, 28.7.1): counts down in guest mode, once each 2^n TSC ticks, and exits at 0.
//!
//! It is loaded at each entry with what is left until a moment of the TSC. Disarmed it stays on, with the largest count:
//! control fields change rarely. The exit of a count that ran out for nobody, or is too short for its moment, is answered by entering
//! again.

use crate::machine::Machine;
use crate::percpu::PerCpu;
use crate::vcpu::Vmx;
use exitless_x86::vmx::field as f;

/// Nothing to wait for.
const NEVER: u64 = u64::MAX;

/// What the VMCS is to say.
#[derive(Clone, Copy, Debug, Default, bytemuck::Zeroable)]
pub(crate) struct Timer {
    /// TSC of the host, or [`NEVER`]; meaningless unless `on`.
    at: u64,
    /// The control is set.
    pub(crate) on: bool,
}

/// Counts until the TSC reaches `at`, for a timer that steps when bit `shift` of the TSC changes: the first step not before
/// `at`.
fn count(at: u64, now: u64, shift: u32) -> u64 {
    let steps = |tsc: u64| tsc >> shift;
    let last = steps(at.saturating_add((1 << shift) - 1));
    last.saturating_sub(steps(now))
}

impl<M: Machine> Vmx<M> {
    pub(crate) fn timer_at(&mut self, at: Option<u64>) -> bool {
        if !self.caps.preemption_timer() {
            return false;
        }
        match at {
            Some(at) => {
                if !self.timer.on {
                    self.timer.on = true;
                    self.controls_due();
                }
                self.timer.at = at.min(NEVER - 1);
            }
            None if self.timer.on && self.timer.at != NEVER => {
                self.timer.at = NEVER;
                self.timer_idle = false;
            }
            None => {}
        }
        true
    }

    /// Before an entry. While the CPU's APIC timer is the guest's, what the host waits for counts here.
    pub(crate) fn load_timer(&mut self, cpu: &PerCpu) {
        if !self.timer.on {
            return;
        }
        let at = if self.lends { cpu.loan.host().unwrap_or(NEVER) } else { self.timer.at };
        if at != NEVER {
            let left = count(at, self.m.tsc(), self.caps.timer_shift);
            self.m.put(f::PREEMPTION_TIMER_VALUE, left.min(u64::from(u32::MAX)) as u32);
        } else if !self.timer_idle {
            self.timer_idle = true;
            self.m.put(f::PREEMPTION_TIMER_VALUE, u32::MAX);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::count;

    /// Never early: the step at which the count ends lies at or behind the moment.
    #[test]
    fn counts_reach_the_moment() {
        assert_eq!(count(100, 100, 5), 1, "the first change of bit 5 behind 100 is at 128");
        assert_eq!(count(96, 96, 5), 0);
        assert_eq!(count(128, 100, 5), 1);
        assert_eq!(count(129, 100, 5), 2);
        assert_eq!(count(5, 100, 5), 0, "past");
        assert_eq!(count(u64::MAX, 0, 5), u64::MAX >> 5);
        assert_eq!(count(7, 3, 0), 4);
    }

    /// The border of 32 bits, behind which the largest count is loaded again and again.
    #[test]
    fn counts_at_the_border() {
        let far = u64::from(u32::MAX) << 5;
        assert_eq!(count(far, 0, 5), u64::from(u32::MAX));
        assert_eq!(count(far + 1, 0, 5), 1 << 32);
    }
}
