//! Going over the leaves of a range without removing tables: aging, write protection, dirty bits.

use core::ops::Range;
use core::sync::atomic::{AtomicU64, Ordering};

use crate::frames::{ENTRIES, Frames, TableAddr, entry_at};
use crate::tables::{index, shift};
use crate::{Dropped, Format, Level, Slat};

/// The answer of an operation over a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a flush may be due and the range may not be finished"]
pub struct Swept {
    /// Flush the TLBs of all CPUs that ran the VM, before anybody relies on the change.
    pub flush: bool,
    /// The budget is used up: continue from this guest physical address. `None` when done.
    pub next: Option<u64>,
}

/// The answer of [`Slat::age_range`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "the range may not be finished"]
pub struct Aged {
    /// Some leaf had been used.
    pub young: bool,
    /// As in [`Swept`].
    pub next: Option<u64>,
}

/// Where an operation stands in its range, and how much it may still do.
pub(crate) struct Cursor {
    start: u64,
    end: u64,
    budget: u32,
    next: Option<u64>,
    pub(crate) flush: bool,
}

impl Cursor {
    pub(crate) fn new(start: u64, end: u64, budget: u32) -> Self {
        // At least one entry per call, or a caller with a budget of 0 would never get to the end.
        Self { start, end, budget: budget.max(1), next: None, flush: false }
    }

    /// The entries of a table at `level`, whose first stands for `base`, that touch the range.
    pub(crate) fn entries_of(&self, base: u64, level: u32) -> Range<usize> {
        if self.start >= self.end {
            return 0..0;
        }
        let first = self.start.saturating_sub(base) >> shift(level);
        let last = (self.end - 1).saturating_sub(base) >> shift(level);
        let entries = ENTRIES as u64;
        (first.min(entries) as usize)..((last + 1).min(entries) as usize)
    }

    /// Pays for one entry at `gpa`, or notes that the work stops in front of it. The first entry of a call, the only one
    /// that may begin before the range, is always paid for; so `next` is behind the call's start.
    pub(crate) fn step(&mut self, gpa: u64) -> bool {
        if self.budget == 0 {
            self.next = Some(gpa);
            return false;
        }
        self.budget -= 1;
        true
    }

    pub(crate) fn stopped(&self) -> bool {
        self.next.is_some()
    }

    pub(crate) fn swept(&self) -> Swept {
        Swept { flush: self.flush, next: self.next }
    }
}

impl<F: Format> Slat<F> {
    /// Says whether a leaf of `start..end` was used, and clears the accessed bits if `clear`. Clearing needs no flush: a
    /// TLB that still holds the leaf makes it look old too early, which costs nothing but a wrong guess. Without
    /// accessed bits in hardware every leaf counts as used.
    pub fn age_range<R: Frames>(&self, frames: &R, start: u64, end: u64, clear: bool, budget: u32) -> Aged {
        let accessed = self.format.accessed_mask();
        let mut young = false;
        let swept = self.sweep(frames, start, end, budget, &mut |slot, entry, _, _| {
            young |= self.format.accessed(entry);
            if clear && entry & accessed != 0 {
                slot.fetch_and(!accessed, Ordering::AcqRel);
            }
            false
        });
        Aged { young, next: swept.next }
    }

    /// Clears the dirty bit of every 4K leaf of `start..end`, so that hardware logs the next write there. Large leaves are dropped
    /// as by [`Slat::write_protect_range`]. Without dirty bits nothing is found.
    pub fn clear_dirty_range<R: Frames>(
        &mut self,
        frames: &R,
        start: u64,
        end: u64,
        budget: u32,
        on_drop: &mut impl FnMut(Dropped),
    ) -> Swept {
        let bit = self.format.dirty_mask();
        self.watch_range(frames, start, end, budget, bit, on_drop)
    }

    /// The same for single frames, as [`Slat::write_protect_mask`].
    pub fn clear_dirty_mask<R: Frames>(
        &mut self,
        frames: &R,
        gpa: u64,
        mask: u64,
        on_drop: &mut impl FnMut(Dropped),
    ) -> bool {
        let bit = self.format.dirty_mask();
        self.watch_mask(frames, gpa, mask, bit, on_drop)
    }

    /// Takes write permission from every 4K leaf of `start..end`. Large leaves that allow writes are dropped instead, so
    /// that they come back as 4K leaves of their own. Dirty bits stay.
    pub fn write_protect_range<R: Frames>(
        &mut self,
        frames: &R,
        start: u64,
        end: u64,
        budget: u32,
        on_drop: &mut impl FnMut(Dropped),
    ) -> Swept {
        self.watch_range(frames, start, end, budget, F::WRITE, on_drop)
    }

    fn watch_range<R: Frames>(
        &mut self,
        frames: &R,
        start: u64,
        end: u64,
        budget: u32,
        bit: u64,
        on_drop: &mut impl FnMut(Dropped),
    ) -> Swept {
        let mut lost = [0u64; 3];
        let this = &*self;
        let swept = this.sweep(frames, start, end, budget, &mut |slot, entry, gpa, level| {
            this.watch((slot, entry), gpa, level, bit, &mut lost, on_drop)
        });
        self.lose(lost);
        swept
    }

    /// The same for single frames: bit `n` of `mask` stands for the frame at `gpa + n * 4096`. One word of a dirty
    /// bitmap at a time. Returns whether a flush is due.
    pub fn write_protect_mask<R: Frames>(
        &mut self,
        frames: &R,
        gpa: u64,
        mask: u64,
        on_drop: &mut impl FnMut(Dropped),
    ) -> bool {
        self.watch_mask(frames, gpa, mask, F::WRITE, on_drop)
    }

    fn watch_mask<R: Frames>(
        &mut self,
        frames: &R,
        gpa: u64,
        mask: u64,
        bit: u64,
        on_drop: &mut impl FnMut(Dropped),
    ) -> bool {
        let mut lost = [0u64; 3];
        let mut flush = false;
        let mut bits = mask;
        while bits != 0 {
            let page = gpa.saturating_add((bits.trailing_zeros() as u64) << shift(0));
            bits &= bits - 1;
            if let Some((slot, level)) = self.leaf_slot(frames, page) {
                let entry = slot.load(Ordering::Acquire);
                flush |= self.watch((slot, entry), page, level, bit, &mut lost, on_drop);
            }
        }
        self.lose(lost);
        flush
    }

    /// Clears `bit`, that of writes or of dirt, in a 4K leaf, or drops a large one. Returns whether something changed.
    fn watch(
        &self,
        (slot, entry): (&AtomicU64, u64),
        gpa: u64,
        level: Level,
        bit: u64,
        lost: &mut [u64; 3],
        on_drop: &mut impl FnMut(Dropped),
    ) -> bool {
        if level == Level::Page4K {
            return entry & bit != 0 && slot.fetch_and(!bit, Ordering::AcqRel) & bit != 0;
        }
        if entry & F::WRITE == 0 {
            return false;
        }
        let old = slot.swap(0, Ordering::AcqRel);
        if let Some(count) = lost.get_mut(level as usize) {
            *count += 1;
        }
        on_drop(self.leaf(old, gpa, level));
        true
    }

    fn lose(&mut self, lost: [u64; 3]) {
        for (level, lost) in Level::ALL.into_iter().zip(lost) {
            let count = self.counts.leaves(level);
            *count = count.saturating_sub(lost);
        }
    }

    /// The entry of the leaf that maps `gpa`.
    fn leaf_slot<'r, R: Frames>(&self, frames: &'r R, gpa: u64) -> Option<(&'r AtomicU64, Level)> {
        let mut table = self.root().filter(|_| gpa < self.gpa_end())?;
        let mut level = self.root_level();
        loop {
            let slot = entry_at(frames.entries(table), index(gpa, level));
            let entry = slot.load(Ordering::Acquire);
            if !self.format.is_present(entry) {
                return None;
            }
            if self.format.is_leaf(entry, level) {
                return Some((slot, Level::from_index(level)?));
            }
            table = TableAddr::from_entry(&self.format, entry);
            level = level.checked_sub(1)?;
        }
    }

    /// Shows every leaf of `start..end` to `visit` (entry, its value, first guest physical address, size), which returns
    /// whether a flush is due for it.
    fn sweep<R: Frames>(
        &self,
        frames: &R,
        start: u64,
        end: u64,
        budget: u32,
        visit: &mut impl FnMut(&AtomicU64, u64, u64, Level) -> bool,
    ) -> Swept {
        let mut cursor = Cursor::new(start, end.min(self.gpa_end()), budget);
        if let Some(root) = self.root() {
            self.sweep_table(frames, root, self.root_level(), 0, &mut cursor, visit);
        }
        cursor.swept()
    }

    /// One table, whose first entry stands for `base`. Calls itself for tables below: at most five deep.
    fn sweep_table<R: Frames>(
        &self,
        frames: &R,
        table: TableAddr,
        level: u32,
        base: u64,
        cursor: &mut Cursor,
        visit: &mut impl FnMut(&AtomicU64, u64, u64, Level) -> bool,
    ) {
        let entries = frames.entries(table);
        for number in cursor.entries_of(base, level) {
            let gpa = base + ((number as u64) << shift(level));
            let slot = entry_at(entries, number);
            let entry = slot.load(Ordering::Acquire);
            if self.format.is_present(entry) && !self.format.is_leaf(entry, level) {
                let child = TableAddr::from_entry(&self.format, entry);
                self.sweep_table(frames, child, level.saturating_sub(1), gpa, cursor, visit);
            } else if cursor.step(gpa)
                && self.format.is_present(entry)
                && let Some(size) = Level::from_index(level)
            {
                cursor.flush |= visit(slot, entry, gpa, size);
            }
            if cursor.stopped() {
                return;
            }
        }
    }
}
