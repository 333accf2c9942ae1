//! The guest's half: one question for each deadline.

use crate::Told;

/// The page as the guest reaches it.
pub trait GuestPage {
    /// Stores *pending*.
    fn want(&self, deadline: u64);
    /// A full barrier, store to load included.
    fn barrier(&self);
    /// Loads *armed*.
    fn armed(&self) -> u64;
    /// Loads *offset* and *inside*.
    fn told(&self) -> Told;
    /// Requests the timer's vector in the CPU's own descriptor.
    fn request(&self);
}

/// The guest wants its timer at `deadline`, not 0. `true`: it must write that to IA32_TSC_DEADLINE. Nothing else on this CPU may set a
/// deadline in between: interrupts are off.
#[inline]
pub fn set(page: &impl GuestPage, deadline: u64) -> bool {
    page.want(deadline);
    page.barrier();
    let armed = page.armed();
    armed == 0 || deadline < armed
}

/// Behind [`set`], interrupts still off: writes `deadline` to IA32_TSC_DEADLINE, in ticks of whomever the host says. It may say something
/// else between the look and the write, as it may on another host: what was written then is wrong, and the next look shows it.
#[inline]
pub fn write(page: &impl GuestPage, deadline: u64, mut wrmsr: impl FnMut(u64)) {
    let mut told = page.told();
    loop {
        if told.inside != 0 {
            page.request();
        }
        // 0 disarms.
        wrmsr(deadline.wrapping_sub(told.offset).max(1));
        let seen = page.told();
        if seen == told {
            return;
        }
        told = seen;
    }
}
