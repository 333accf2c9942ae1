//! The host's half. The vCPU's thread calls it, while the guest does not run.

use bytemuck::Zeroable;

/// The page as the host reaches it: guest memory, so it may be gone at any time, and holds anything.
pub trait HostPage {
    /// Stores *armed*; `false`: out of reach now.
    fn arm(&self, armed: u64) -> bool;
    /// A full barrier, store to load included.
    fn barrier(&self);
    /// Loads *pending*, once; `None`: out of reach now.
    fn pending(&self) -> Option<u64>;
}

/// What the host knows. All-zero: not attended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Zeroable)]
#[repr(C)]
pub struct Host {
    /// The host's own copy.
    armed: u64,
    /// The page may hold something else than that.
    owes: bool,
    pad: [u8; 7],
}

impl Host {
    /// The deadline that is attended, or 0.
    pub fn armed(&self) -> u64 {
        self.armed
    }

    /// The page must be written before the guest runs: [`Host::settle`].
    pub fn owes(&self) -> bool {
        self.owes
    }

    /// A new page, whatever is in it.
    pub fn begin(&mut self, page: &impl HostPage) -> bool {
        *self = Self::default();
        page.arm(0)
    }

    /// The MSR was written with `deadline`, which is to come.
    pub fn update(&mut self, page: &impl HostPage, deadline: u64) {
        if page.pending() == Some(deadline) {
            self.show(page, deadline);
        } else {
            self.stop(page);
        }
    }

    /// The MSR was written with what needs no timer.
    pub fn stop(&mut self, page: &impl HostPage) {
        if self.armed != 0 {
            self.show(page, 0);
        }
    }

    /// Ends the attending, because what was armed has come, or for whatever reason. The deadline that the guest wants instead of the
    /// one that was armed, if it is a later one: that becomes the deadline, and [`Host::go_on`] may follow.
    pub fn clear(&mut self, page: &impl HostPage) -> Option<u64> {
        let armed = self.armed;
        if armed == 0 {
            return None;
        }
        self.show(page, 0);
        page.barrier();
        // An earlier one is being written to the MSR, or is garbage.
        page.pending().filter(|pending| *pending > armed)
    }

    /// After [`Host::clear`]: attends `deadline`, for which there is a timer.
    pub fn go_on(&mut self, page: &impl HostPage, deadline: u64) {
        self.show(page, deadline);
    }

    /// Tries again to write what could not be written.
    pub fn settle(&mut self, page: &impl HostPage) {
        self.show(page, self.armed);
    }

    fn show(&mut self, page: &impl HostPage, armed: u64) {
        self.owes = !page.arm(armed);
        self.armed = armed;
    }
}
