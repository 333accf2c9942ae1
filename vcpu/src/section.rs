//! A vCPU's read section: from where to where its thread may use the tables that others replace (slots, routes,
//! ioeventfds). Atomics only.
//!
//! Vocabulary: a *change* publishes a new table and gets a number; the *section* of a vCPU spans whole runs of the guest,
//! so the writer asks vCPUs to leave and enter again (`Request::QUIESCE`) and sleeps until those that entered before it have. It
//! marks their sections, and who leaves a marked one wakes it.
//!
//! ```text
//!  writer: table = new; change = ++changes; fence; section is 0 or above change? -> free the old table
//!                                                  no: mark it, in the same word, and ask its vCPU -> sleep, look again
//!  vCPU:   section = changes + 1; fence; uses table; .. ; section = 0, was it marked? -> wake the writers
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
    /// The number of the change just published; sections that have left by [`Section::look`] see it.
    pub fn next(&self) -> u64 {
        let change = self.0.fetch_add(1, Ordering::AcqRel) + 1;
        // Publication, then the look at the sections; pairs with the fence of `enter`.
        fence(Ordering::SeqCst);
        change
    }
}

/// In a section's word: a writer sleeps until this section is left.
const AWAITED: u64 = 1 << 63;

/// One vCPU's section: 0 outside, else one more than the newest change at its entry, and perhaps [`AWAITED`].
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

    /// The owner's side: it uses no table any more. `true`: writers sleep until this, and must be woken.
    #[must_use]
    pub fn leave(&self) -> bool {
        self.0.swap(0, Ordering::AcqRel) & AWAITED != 0
    }

    /// The writer's side: can this vCPU still use what `change` replaced? If so its `leave` will say that somebody waits.
    ///
    /// Who marks must ask. An earlier look may have found the section not yet entered, and asked nobody: the owner reads the number of
    /// changes and announces itself in two steps, and a writer's whole first look fits in between.
    pub fn look(&self, change: u64) -> Look {
        let mut section = self.0.load(Ordering::Acquire);
        loop {
            if is_past(section, change) {
                return Look::Left;
            }
            if section & AWAITED != 0 {
                return Look::Asked;
            }
            match self.0.compare_exchange_weak(
                section,
                section | AWAITED,
                Ordering::AcqRel,
                Ordering::Acquire,
            ) {
                Ok(_) => return Look::Marked,
                Err(now) => section = now,
            }
        }
    }
}

/// What a writer finds of a vCPU's section.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// Nothing that was replaced is used there.
    Left,
    /// It is; some writer has marked it, and asks.
    Asked,
    /// It is, and is marked now: the caller must ask its vCPU to leave.
    Marked,
}

fn is_past(section: u64, change: u64) -> bool {
    section == 0 || section & !AWAITED > change
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A section that was entered before a change holds the writer up until it is left.
    #[test]
    fn an_old_section_holds_the_writer_up() {
        let (c, s) = (Changes::default(), Section::default());
        s.enter(&c);
        assert!(!s.leave(), "nobody sleeps");
        s.enter(&c);
        let change = c.next();
        assert_eq!(s.look(change), Look::Marked);
        assert!(s.leave());
        assert_eq!(s.look(change), Look::Left);
    }

    /// Left and entered again before the writer looked. With SRCU this kept writers waiting until a timer or another
    /// task took the vCPU out of the guest: changing slots under a vCPU that never exits took half a minute at times.
    #[test]
    fn a_new_section_does_not() {
        let (c, s) = (Changes::default(), Section::default());
        s.enter(&c);
        let change = c.next();
        let _ = s.leave();
        s.enter(&c);
        assert_eq!(s.look(change), Look::Left);
        assert_eq!(s.look(c.next()), Look::Marked, "but the next change has to wait for it");
    }

    #[test]
    fn outside_nothing_waits() {
        assert_eq!(Section::default().look(Changes::default().next()), Look::Left);
    }

    /// Who sleeps is told of once, by the section that was in the way, and by none that was entered later.
    #[test]
    fn who_sleeps_is_woken() {
        let (c, s) = (Changes::default(), Section::default());
        assert_eq!(s.look(c.next()), Look::Left, "outside");
        s.enter(&c);
        let change = c.next();
        assert_eq!([s.look(change), s.look(change)], [Look::Marked, Look::Asked], "its vCPU is asked once");
        assert!(s.leave());
        assert_eq!(s.look(change), Look::Left);
        s.enter(&c);
        assert_eq!(s.look(change), Look::Left);
        assert!(!s.leave());
    }
}
