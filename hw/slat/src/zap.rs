//! Removing leaves, and tables that became empty.

use core::sync::atomic::Ordering;

use crate::frames::{Frames, FreeList, TableAddr, entry_at, is_unused};
use crate::sweep::{Cursor, Swept};
use crate::tables::shift;
use crate::{Dropped, Format, Slat};

impl<F: Format> Slat<F> {
    /// Removes every leaf that maps a byte of `start..end` (a large leaf that only touches the range goes as a whole),
    /// and every table that is empty then. `budget` limits the entries looked at (at least one is); the answer says where
    /// to continue. Flush if it says so, then empty `free`.
    pub fn zap_range<R: Frames>(
        &mut self,
        frames: &R,
        start: u64,
        end: u64,
        budget: u32,
        free: &mut FreeList,
        on_drop: &mut impl FnMut(Dropped),
    ) -> Swept {
        let mut cursor = Cursor::new(start, end.min(self.gpa_end()), budget);
        if let Some(root) = self.root() {
            self.zap_table(frames, root, self.root_level(), 0, &mut cursor, free, on_drop);
        }
        cursor.swept()
    }

    /// One table, whose first entry stands for `base`. Calls itself for tables below: at most five deep.
    #[allow(clippy::too_many_arguments)]
    fn zap_table<R: Frames>(
        &mut self,
        frames: &R,
        table: TableAddr,
        level: u32,
        base: u64,
        cursor: &mut Cursor,
        free: &mut FreeList,
        on_drop: &mut impl FnMut(Dropped),
    ) {
        let Some(below) = level.checked_sub(1) else {
            return self.zap_page_table(frames, table, base, cursor, on_drop);
        };
        for number in cursor.entries_of(base, level) {
            let gpa = base + ((number as u64) << shift(level));
            let slot = entry_at(frames.entries(table), number);
            let entry = slot.load(Ordering::Acquire);
            if self.format.is_present(entry) && !self.format.is_leaf(entry, level) {
                let child = TableAddr::from_entry(&self.format, entry);
                self.zap_table(frames, child, below, gpa, cursor, free, on_drop);
                if is_unused(frames.entries(child)) {
                    slot.store(0, Ordering::Release);
                    self.unlinked(frames, child, free);
                    cursor.flush = true;
                }
            } else if cursor.step(gpa) && entry != 0 {
                let old = slot.swap(0, Ordering::AcqRel);
                cursor.flush |= self.dropped(old, gpa, level, on_drop);
            }
            if cursor.stopped() {
                return;
            }
        }
    }

    /// The lowest level, where most of the time goes.
    fn zap_page_table<R: Frames>(
        &mut self,
        frames: &R,
        table: TableAddr,
        base: u64,
        cursor: &mut Cursor,
        on_drop: &mut impl FnMut(Dropped),
    ) {
        let entries = frames.entries(table);
        for number in cursor.entries_of(base, 0) {
            let gpa = base + ((number as u64) << shift(0));
            if !cursor.step(gpa) {
                return;
            }
            let slot = entry_at(entries, number);
            if slot.load(Ordering::Relaxed) != 0 {
                let old = slot.swap(0, Ordering::AcqRel);
                cursor.flush |= self.dropped(old, gpa, 0, on_drop);
            }
        }
    }
}
