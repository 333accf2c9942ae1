//! The guest's half: one question for each deadline.

/// The page as the guest reaches it.
pub trait GuestPage {
    /// Stores *pending*.
    fn want(&self, deadline: u64);
    /// A full barrier, store to load included.
    fn barrier(&self);
    /// Loads *armed*.
    fn armed(&self) -> u64;
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
