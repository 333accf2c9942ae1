//! The guest's half: one question for each deadline.

/// The page as the guest reaches it.
pub trait GuestPage {
    /// Stores *pending*.
    fn want(&self, deadline: u64);
    /// A full barrier, store to load included.
    fn barrier(&self);
    /// Loads *armed*.
    fn armed(&self) -> u64;
    /// Loads *offset*.
    fn offset(&self) -> u64;
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
    let mut offset = page.offset();
    loop {
        // 0 disarms.
        wrmsr(deadline.wrapping_sub(offset).max(1));
        let seen = page.offset();
        if seen == offset {
            return;
        }
        offset = seen;
    }
}
