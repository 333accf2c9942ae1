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
    /// Stores *offset*; `false`: out of reach now.
    fn tell(&self, offset: u64) -> bool;
}

/// What the host knows. All-zero: not attended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Zeroable)]
#[repr(C)]
pub struct Host {
    /// The host's own copy.
    armed: u64,
    /// Likewise.
    offset: u64,
    /// The last that was told.
    last: u64,
    /// The page may hold something else than that.
    owes: bool,
    pad: [u8; 7],
}

impl Host {
    /// The deadline that is attended, or 0.
    pub fn armed(&self) -> u64 {
        self.armed
    }

    /// What the guest subtracts from each deadline that it writes, or 0.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// The page must be written before the guest runs: [`Host::settle`].
    pub fn owes(&self) -> bool {
        self.owes
    }

    /// A new page, whatever is in it.
    pub fn begin(&mut self, page: &impl HostPage) -> bool {
        *self = Self::default();
        page.arm(0) && page.tell(0)
    }

    /// The MSR was written with `deadline`: who means what it wrote, and so reads the page behind that, subtracts `offset` from now on,
    /// others nothing any more. `offset` 0: nobody does.
    pub fn shift(&mut self, page: &impl HostPage, deadline: u64, offset: u64) {
        let means = offset != 0 && page.pending() == Some(deadline);
        let offset = if means { offset } else { 0 };
        if offset == self.offset {
            return;
        }
        let told = page.tell(offset);
        // What was not told does not hold, and what is not taken back may be read.
        self.owes |= !told && offset == 0;
        self.offset = if told { offset } else { 0 };
        self.last = if self.offset != 0 { offset } else { self.last };
    }

    /// Nothing is told, and the MSR was written with `value`: the deadline, if the guest was stopped between its look at the offset of
    /// before and that write.
    pub fn stale(&self, page: &impl HostPage, value: u64) -> Option<u64> {
        let meant = value.wrapping_add(self.last);
        (self.last != 0 && self.offset == 0 && page.pending() == Some(meant)).then_some(meant)
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
        self.owes = !(page.arm(self.armed) && page.tell(self.offset));
    }

    fn show(&mut self, page: &impl HostPage, armed: u64) {
        self.owes |= !page.arm(armed);
        self.armed = armed;
    }
}
