//! The APIC timer: one-shot, periodic and TSC-deadline (SDM vol. 3A, 11.5.4).
//!
//! The bus clock is 1 GHz: one undivided count is one nanosecond.
//!
//! ```text
//!              TMICT != 0                     expire (one-shot), TMICT = 0
//!  stopped ───────────────▶ counting (target) ────────────────────────────▶ stopped
//!                            │  ▲ expire (periodic): target += period
//!                            └──┘
//!  stopped ── TSC_DEADLINE != 0 ──▶ deadline ── expire, TSC_DEADLINE = 0 ──▶ stopped
//!  entering or leaving TSC-deadline mode stops everything
//! ```

use bytemuck::Zeroable;
use exitless_x86::apic::lvt;

/// The two clocks at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// Host monotonic clock, nanoseconds.
    pub ns: u64,
    /// The guest's TSC, as its RDTSC would read.
    pub guest_tsc: u64,
}

/// When the timer expires next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Armed {
    /// Not armed.
    None,
    /// At this host monotonic time, nanoseconds ([`Now::ns`]).
    AtNs(u64),
    /// When the guest's TSC reaches this ([`Now::guest_tsc`]).
    AtTsc(u64),
}

impl Armed {
    /// The moment has come.
    pub fn is_due(self, now: &Now) -> bool {
        match self {
            Self::None => false,
            Self::AtNs(ns) => now.ns >= ns,
            Self::AtTsc(tsc) => now.guest_tsc >= tsc,
        }
    }
}

/// Timer registers and the running expiry.
#[derive(Debug, Zeroable)]
pub(crate) struct Timer {
    /// LVTT bits 18:17, in place.
    mode: u32,
    initial: u32,
    /// TDCR as written: bits 3, 1, 0.
    divide: u32,
    counting: bool,
    /// Expiry in nanoseconds; valid while `counting`.
    target_ns: u64,
    /// IA32_TSC_DEADLINE; 0 when disarmed.
    deadline: u64,
    /// A deadline that user space has restored before the mode that it is for; 0: none.
    early: u64,
    min_period_ns: u64,
}

impl Timer {
    /// State after reset.
    pub(crate) fn reset(&mut self, min_period_ns: u64) {
        *self = Self { min_period_ns, ..Self::zeroed() };
    }

    pub(crate) fn set_min_period(&mut self, min_period_ns: u64) {
        self.min_period_ns = min_period_ns;
    }

    pub(crate) fn is_deadline_mode(&self) -> bool {
        self.mode == lvt::TIMER_DEADLINE
    }

    fn is_periodic(&self) -> bool {
        self.mode == lvt::TIMER_PERIODIC
    }

    fn counts(&self) -> bool {
        self.mode == lvt::TIMER_ONESHOT || self.is_periodic()
    }

    pub(crate) fn initial(&self) -> u32 {
        self.initial
    }

    pub(crate) fn divide(&self) -> u32 {
        self.divide
    }

    /// 0 unless armed in TSC-deadline mode.
    pub(crate) fn deadline(&self) -> u64 {
        self.deadline
    }

    /// The divider as a power of two (SDM vol. 3A, figure 11-10).
    fn shift(&self) -> u32 {
        let code = self.divide & 3 | (self.divide & 8) >> 1;
        (code + 1) & 7
    }

    /// Nanoseconds per round; never 0.
    fn period_ns(&self) -> u64 {
        let minimum = if self.is_periodic() { self.min_period_ns } else { 0 };
        (u64::from(self.initial) << self.shift()).max(minimum).max(1)
    }

    /// LVTT bits 18:17 were written.
    pub(crate) fn set_mode(&mut self, mode: u32) {
        self.early = 0;
        let counted = self.counts();
        let changed = self.mode != mode;
        self.mode = mode;
        if changed && !(counted && self.counts()) {
            self.counting = false;
            self.initial = 0;
            self.deadline = 0;
        }
    }

    /// TMICT was written: starts a round, or stops with 0. Ignored in TSC-deadline mode.
    pub(crate) fn set_initial(&mut self, initial: u32, now: &Now) {
        if !self.counts() {
            return;
        }
        self.initial = initial;
        self.counting = initial != 0;
        self.target_ns = now.ns.saturating_add(self.period_ns());
    }

    /// TDCR was written: the remaining counts stay, their length changes.
    pub(crate) fn set_divide(&mut self, divide: u32, now: &Now) {
        let old = self.shift();
        self.divide = divide & 0xb;
        let remaining = self.target_ns.saturating_sub(now.ns);
        if self.counting && remaining != 0 && old != self.shift() {
            self.target_ns = now.ns.saturating_add(remaining.min(u64::MAX >> 8) << self.shift() >> old);
        }
    }

    /// IA32_TSC_DEADLINE was written; the caller checks the mode. 0 disarms.
    pub(crate) fn set_deadline(&mut self, deadline: u64) {
        self.deadline = deadline;
    }

    /// User space restores IA32_TSC_DEADLINE, and the mode is another one: [`Timer::restore`] may bring it.
    pub(crate) fn keep_deadline(&mut self, deadline: u64) {
        self.early = deadline;
    }

    /// TMCCT: counts left, 0 when stopped, expired or in TSC-deadline mode.
    pub(crate) fn current(&self, now: &Now) -> u32 {
        if !self.counting {
            return 0;
        }
        let remaining = match self.target_ns.checked_sub(now.ns) {
            Some(remaining) if remaining != 0 => remaining,
            _ if !self.is_periodic() => return 0,
            // Due but not yet expired by the owner: the counter has already started its next rounds.
            _ => self.period_ns() - (now.ns - self.target_ns) % self.period_ns(),
        };
        let counts = remaining.div_ceil(1 << self.shift());
        counts.min(u64::from(self.initial)) as u32
    }

    /// TMCCT to save: like `current`, but a due one-shot whose interrupt is not yet posted saves 1, so that restoring fires it.
    pub(crate) fn current_to_save(&self, now: &Now) -> u32 {
        self.current(now).max(u32::from(self.counting))
    }

    pub(crate) fn armed(&self) -> Armed {
        match (self.counting, self.deadline) {
            (true, _) => Armed::AtNs(self.target_ns),
            (false, 0) => Armed::None,
            (false, deadline) => Armed::AtTsc(deadline),
        }
    }

    /// If the timer is due: moves on and answers true, once, however many periods have passed.
    pub(crate) fn expire(&mut self, now: &Now) -> bool {
        if !self.armed().is_due(now) {
            return false;
        }
        self.deadline = 0;
        self.counting = self.counting && self.is_periodic();
        if self.counting {
            // Relative to the previous expiry, so no drift; missed periods are skipped in one step, so a long pause costs nothing.
            let period = self.period_ns();
            let missed = (now.ns - self.target_ns) / period;
            self.target_ns = self.target_ns.saturating_add(period.saturating_mul(missed + 1));
        }
        true
    }

    /// Takes over saved registers. In TSC-deadline mode a deadline set before is armed (the MSR is saved elsewhere).
    /// A periodic timer starts a whole period where no current count was saved: an extra interrupt, where losing all would hang.
    pub(crate) fn restore(&mut self, mode: u32, initial: u32, divide: u32, current: u32, now: &Now) {
        let early = self.early;
        self.set_mode(mode);
        if self.is_deadline_mode() && early != 0 {
            self.deadline = early;
        }
        self.initial = initial;
        self.divide = divide & 0xb;
        let current = match (current.min(initial), self.is_periodic()) {
            (0, true) => initial,
            (current, _) => current,
        };
        self.counting = self.counts() && current != 0;
        self.target_ns = now.ns.saturating_add(u64::from(current) << self.shift());
    }
}
