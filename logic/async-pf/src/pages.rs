//! The pages that are on their way, and what is owed to the guest.

use bytemuck::Zeroable;

/// Pages of one vCPU that are brought at once, as KVM's.
pub const MOST: usize = 64;
/// The token that stands for all: who waits for any page looks again.
pub const WAKE_ALL: u32 = !0;

/// A page on its way.
#[derive(Clone, Copy, Debug, Default, Zeroable)]
#[repr(C)]
struct Page {
    hva: u64,
    gpa: u64,
    token: u32,
    told: u32,
}

/// One vCPU's. All-zero: none.
#[derive(Clone, Copy, Debug, Zeroable)]
#[repr(C)]
pub struct Pages {
    pages: [Page; MOST],
    /// A bit for each place with a worker.
    taken: u64,
    /// A bit for each place whose last worker did not get its page: the next fault there waits, and hears why.
    refused: u64,
    /// Upper bits of the last token.
    last: u32,
    /// The place that the vCPU waits for, plus one; 0: it does not wait.
    waits: u8,
    /// [`WAKE_ALL`] is owed.
    wake_all: bool,
    pad: [u8; 2],
}

impl Default for Pages {
    fn default() -> Self {
        Self::zeroed()
    }
}

/// A worker's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Its place, free from now on.
    pub place: u8,
    /// Guest-physical address of the fault.
    pub gpa: u64,
    /// What the guest is told; `None`: it does not know of it.
    pub token: Option<u32>,
}

impl Pages {
    /// The place of a page on its way.
    pub fn find(&self, hva: u64) -> Option<u8> {
        self.place_of(hva, self.taken)
    }

    fn place_of(&self, hva: u64, among: u64) -> Option<u8> {
        let at = |(i, p): (usize, &Page)| (among & bit(i as u8) != 0 && p.hva == hva).then_some(i as u8);
        self.pages.iter().enumerate().find_map(at)
    }

    fn has(&self, place: u8) -> bool {
        self.taken & bit(place) != 0
    }

    /// Takes a place for the page at `hva`, whose fault was at `gpa`. `None`: all are taken, or the page is one to wait for.
    pub fn begin(&mut self, hva: u64, gpa: u64, vcpu_id: u32) -> Option<u8> {
        if let Some(place) = self.place_of(hva, self.refused) {
            self.refused &= !bit(place);
            return None;
        }
        // One that remembers no page, if there is such a one.
        let free = !self.taken;
        let unmarked = free & !self.refused;
        let place = if unmarked != 0 { unmarked } else { free }.trailing_zeros() as u8;
        let token = self.next_token(vcpu_id);
        *self.pages.get_mut(usize::from(place))? = Page { hva, gpa, token, told: 0 };
        self.taken |= bit(place);
        self.refused &= !bit(place);
        Some(place)
    }

    /// As KVM's: 20 bits that count, and the vCPU's id. Neither 0, a free token word, nor [`WAKE_ALL`].
    fn next_token(&mut self, vcpu_id: u32) -> u32 {
        self.last = self.last % 0xf_fffe + 1;
        self.last << 12 | vcpu_id & 0xfff
    }

    /// Nobody brings the page: the place is free again.
    pub fn cancel(&mut self, place: u8) {
        self.taken &= !bit(place);
    }

    /// The guest is told that the page is not there. The token.
    pub fn tell(&mut self, place: u8) -> Option<u32> {
        let page = self.pages.get_mut(usize::from(place))?;
        page.told = 1;
        Some(page.token)
    }

    /// The vCPU waits for this page.
    pub fn wait_for(&mut self, place: u8) {
        self.waits = place + 1;
    }

    /// It waits.
    #[inline]
    pub fn waits(&self) -> bool {
        self.waits != 0
    }

    /// It does not any more.
    pub fn go_on(&mut self) {
        self.waits = 0;
    }

    /// What it waits for is there; `ended`: a bit for each worker that has ended.
    pub fn is_there(&self, ended: u64) -> bool {
        self.waits.checked_sub(1).is_none_or(|place| !self.has(place) || ended & bit(place) != 0)
    }

    /// The guest has switched it on, here or where it was before: what was told elsewhere is not known here.
    pub fn owe_wake_all(&mut self) {
        self.wake_all = true;
    }

    /// The guest that was told is none any more, or does not want to hear.
    pub fn forget(&mut self) {
        self.wake_all = false;
        self.pages.iter_mut().for_each(|p| p.told = 0);
    }

    /// Takes the end of a worker of which the guest does not know.
    pub fn take_quiet(&mut self, ended: u64, refused: u64) -> Option<Ended> {
        self.take(ended, refused, 0)
    }

    /// Something is owed to the guest.
    pub fn owes(&self, ended: u64) -> bool {
        self.wake_all || self.first(ended, 1).is_some()
    }

    /// [`WAKE_ALL`] is owed, and told now.
    pub fn take_wake_all(&mut self) -> bool {
        core::mem::take(&mut self.wake_all)
    }

    /// Takes the end of a worker of which the guest is told now.
    pub fn take_told(&mut self, ended: u64, refused: u64) -> Option<Ended> {
        self.take(ended, refused, 1)
    }

    fn first(&self, ended: u64, told: u32) -> Option<(u8, Page)> {
        let mut left = ended & self.taken;
        while left != 0 {
            let place = left.trailing_zeros() as u8;
            left &= left - 1;
            match self.pages.get(usize::from(place)) {
                Some(page) if page.told == told => return Some((place, *page)),
                _ => {}
            }
        }
        None
    }

    fn take(&mut self, ended: u64, refused: u64, told: u32) -> Option<Ended> {
        let (place, page) = self.first(ended, told)?;
        self.taken &= !bit(place);
        self.refused |= refused & bit(place);
        Some(Ended { place, gpa: page.gpa, token: (told != 0).then_some(page.token) })
    }
}

/// The bit of a place.
fn bit(place: u8) -> u64 {
    1u64.checked_shl(place.into()).unwrap_or(0)
}
