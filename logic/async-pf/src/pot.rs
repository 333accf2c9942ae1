//! The workers there are on the host, and who has how many.

use core::sync::atomic::{AtomicU32, Ordering::Relaxed};

/// On the whole host at once.
const ALL: u32 = 512;
const PARTS: usize = 64;

/// Shared by all users: one may have as many as are left for all, so that some always are. Users of the same part count as one.
#[derive(Debug)]
pub struct Pot {
    busy: AtomicU32,
    of: [AtomicU32; PARTS],
}

impl Pot {
    /// All are free.
    #[allow(clippy::new_without_default, reason = "a static's value")]
    pub const fn new() -> Self {
        Self { busy: AtomicU32::new(0), of: [const { AtomicU32::new(0) }; PARTS] }
    }

    fn part(&self, user: u32) -> Option<&AtomicU32> {
        // The upper bits of the product: owners of whole ranges of ids differ in their upper bits alone.
        self.of.get((user.wrapping_mul(0x9e37_79b9) >> 26) as usize)
    }

    /// A worker of this user's, until [`Pot::give`]. `false`: the user has enough.
    pub fn take(&self, user: u32) -> bool {
        let Some(part) = self.part(user) else { return false };
        // Who comes at the same time may be refused for this one's try, but never let in too many.
        let busy = self.busy.fetch_add(1, Relaxed) + 1;
        let own = part.fetch_add(1, Relaxed) + 1;
        let may = own <= ALL.saturating_sub(busy);
        if !may {
            self.give(user);
        }
        may
    }

    /// It has ended.
    pub fn give(&self, user: u32) {
        if let Some(part) = self.part(user) {
            part.fetch_sub(1, Relaxed);
            self.busy.fetch_sub(1, Relaxed);
        }
    }
}
