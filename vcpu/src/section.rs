//! A vCPU's read section: from where to where its thread may use the tables that others replace (slots, routes,
//! ioeventfds). Atomics only.
//!
//! Vocabulary: a *change* publishes a new table and gets a number; the *section* of a vCPU spans whole runs of the guest,
//! so the writer asks vCPUs to leave and enter again (`Request::QUIESCE`) and waits for those that entered before it.
//!
//! ```text
//!  writer: table = new; change = ++changes; fence; section is 0 or above change? -> free the old table
//!  vCPU:   section = changes + 1; fence; uses table; .. ; section = 0
//! ```
//! Why not SRCU for the vCPUs too: its grace period begins some time after the request. A vCPU that answers sooner is in
//! the new section when the period begins, counts as an old reader, and nobody asks it again: the writer waits until
//! something else takes the vCPU out of the guest. Here the number tells the sections apart, whenever they began.
//! `tests/loom_section.rs` holds the protocol.

use core::sync::atomic::{AtomicU64, Ordering, fence};

/// Numbers the changes of one VM's tables.
#[derive(Default, bytemuck::Zeroable)]
#[repr(transparent)]
pub struct Changes(AtomicU64);

impl Changes {
    /// The number of the change just published; sections that have left by [`Section::has_left`] see it.
    pub fn next(&self) -> u64 {
        let change = self.0.fetch_add(1, Ordering::AcqRel) + 1;
        // Publication, then the look at the sections; pairs with the fence of `enter`.
        fence(Ordering::SeqCst);
        change
    }
}

/// One vCPU's section: 0 outside, else one more than the newest change at its entry.
#[derive(Default, bytemuck::Zeroable)]
#[repr(transparent)]
pub struct Section(AtomicU64);

impl Section {
    /// The owner's side: from now on it may load tables.
    pub fn enter(&self, changes: &Changes) {
        self.0.store(changes.0.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        // The announcement, then loads of tables; also acquires what was published before the number just read.
        fence(Ordering::SeqCst);
    }

    /// The owner's side: it uses no table any more.
    pub fn leave(&self) {
        self.0.store(0, Ordering::Release);
    }

    /// The writer's side: can this vCPU no longer use what `change` replaced?
    pub fn has_left(&self, change: u64) -> bool {
        let section = self.0.load(Ordering::Acquire);
        section == 0 || section > change
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A section that was entered before a change holds the writer up until it is left.
    #[test]
    fn an_old_section_holds_the_writer_up() {
        let (c, s) = (Changes::default(), Section::default());
        s.enter(&c);
        let change = c.next();
        assert!(!s.has_left(change));
        s.leave();
        assert!(s.has_left(change));
    }

    /// Left and entered again before the writer looked. With SRCU this kept writers waiting until a timer or another
    /// task took the vCPU out of the guest: changing slots under a vCPU that never exits took half a minute at times.
    #[test]
    fn a_new_section_does_not() {
        let (c, s) = (Changes::default(), Section::default());
        s.enter(&c);
        let change = c.next();
        s.leave();
        s.enter(&c);
        assert!(s.has_left(change));
        assert!(!s.has_left(c.next()), "but the next change has to wait for it");
    }

    #[test]
    fn outside_nothing_waits() {
        assert!(Section::default().has_left(Changes::default().next()));
    }
}
