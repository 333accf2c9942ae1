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
    /// Stores *offset* and *inside*; `false`: out of reach now.
    fn tell(&self, told: Told) -> bool;
}

/// What the guest does with each deadline that it writes. All-zero: nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Zeroable)]
#[repr(C)]
pub struct Told {
    /// It subtracts this.
    pub offset: u64,
    /// Not 0: before, it requests the vector.
    pub inside: u64,
}

impl Told {
    /// Nothing.
    pub const NOTHING: Self = Self { offset: 0, inside: 0 };
}

/// What the host knows. All-zero: not attended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Zeroable)]
#[repr(C)]
pub struct Host {
    /// The host's own copy.
    armed: u64,
    /// Likewise, of *offset* and *inside*.
    told: Told,
    /// The last that was told.
    last: u64,
    /// The page may hold something else than that.
    owes: bool,
    /// The guest may be where it was told *inside*, and has not written yet.
    strays: bool,
    pad: [u8; 6],
}

impl Host {
    /// The deadline that is attended, or 0.
    pub fn armed(&self) -> u64 {
        self.armed
    }

    /// What the guest does with each deadline that it writes.
    pub fn told(&self) -> Told {
        self.told
    }

    /// The page must be written before the guest runs: [`Host::settle`].
    pub fn owes(&self) -> bool {
        self.owes
    }

    /// *Inside* was taken back, and nobody has looked where the guest is: [`Host::found`].
    pub fn strays(&self) -> bool {
        self.strays
    }

    /// It is outside of its sequence.
    pub fn found(&mut self) {
        self.strays = false;
    }

    /// A new page, whatever is in it.
    pub fn begin(&mut self, page: &impl HostPage) -> bool {
        *self = Self::default();
        page.arm(0) && page.tell(Told::NOTHING)
    }

    /// The MSR was written with `deadline`: who means what it wrote, and so reads the page behind that, does `told` from now on, others
    /// nothing any more.
    pub fn tell(&mut self, page: &impl HostPage, deadline: u64, told: Told) {
        let means = told != Told::NOTHING && page.pending() == Some(deadline);
        let told = if means { told } else { Told::NOTHING };
        if told == self.told {
            return;
        }
        let shown = page.tell(told);
        // What was not told does not hold, and what is not taken back may be read.
        self.owes |= !shown;
        self.strays |= self.told.inside != 0;
        self.told = if shown { told } else { Told::NOTHING };
        self.last = if self.told.offset != 0 { self.told.offset } else { self.last };
    }

    /// Nothing is told, and the MSR was written with `value`: the deadline, if the guest was stopped between its look at the offset of
    /// before and that write.
    pub fn stale(&self, page: &impl HostPage, value: u64) -> Option<u64> {
        let meant = value.wrapping_add(self.last);
        (self.last != 0 && self.told.offset == 0 && page.pending() == Some(meant)).then_some(meant)
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
        self.owes = !(page.arm(self.armed) && page.tell(self.told));
    }

    fn show(&mut self, page: &impl HostPage, armed: u64) {
        self.owes |= !page.arm(armed);
        self.armed = armed;
    }
}
