//! Making a leaf: linking tables on the way, and what happens to what was there before.

use core::sync::atomic::Ordering;

use crate::frames::{Frames, FreeList, TableAddr, entry_at, is_unused};
use crate::tables::index;
use crate::{Dropped, Format, Level, MemType, Perm, Slat};

/// A leaf to make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// Guest physical address; rounded down to the size.
    pub gpa: u64,
    /// Host physical address behind it; rounded down to the size.
    pub hpa: u64,
    /// The size.
    pub level: Level,
    /// What the guest may do.
    pub perm: Perm,
    /// The host's memory type.
    pub memtype: MemType,
    /// The leaf is born dirty: nobody asks of it what is written.
    pub dirty: bool,
}

/// What [`Slat::map`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mapped {
    /// Nothing was mapped there: no flush.
    Fresh,
    /// The same memory was mapped there already with at least these permissions: the fault was spurious or another vCPU
    /// was first. Nothing changed.
    Same,
    /// The same leaf now allows more. No flush: a TLB that remembers less makes the guest fault once more, and
    /// the fault itself drops the stale translation.
    Widened,
    /// Other leaves went away: flush before the lock is let go and before the `FreeList` is emptied.
    Changed,
}

/// Why nothing was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapError {
    /// Not enough pages for tables: let go of the lock, fill the cache to [`crate::TABLES_PER_MAP`], look the memory up
    /// again and retry.
    NeedFrames,
    /// A leaf where smaller ones are: of 1G, too much work under a lock, or any, after [`Slat::keep_small`]. Zap the range in
    /// steps, or map smaller.
    Occupied,
    /// The guest physical address is beyond what the tables can hold, or there is no root.
    OutOfRange,
}

impl<F: Format> Slat<F> {
    /// Maps one leaf. Everything or nothing: on error the tables are as before.
    ///
    /// Permissions of an existing leaf of the same memory are only ever added: a reader that loses the race against a
    /// writer must not take the write permission back. To remove them there is
    /// [`Slat::write_protect_range`]. A larger leaf in the way is dropped, not split: its other parts fault in again.
    /// Smaller leaves in the way are dropped and their table goes to `free`. `on_drop` sees each dropped leaf.
    pub fn map<R: Frames>(
        &mut self,
        frames: &mut R,
        want: &Mapping,
        free: &mut FreeList,
        on_drop: &mut impl FnMut(Dropped),
    ) -> Result<Mapped, MapError> {
        let want =
            Mapping { gpa: want.level.base(want.gpa), hpa: want.level.base(want.hpa & F::ADDRESS), ..*want };
        let mut table = self.root().filter(|_| want.gpa < self.gpa_end()).ok_or(MapError::OutOfRange)?;
        let target = want.level as u32;
        let mut level = self.root_level();
        let mut changed = false;
        while level > target {
            let slot = entry_at(frames.entries(table), index(want.gpa, level));
            let entry = slot.load(Ordering::Acquire);
            if self.format.is_present(entry) {
                if !self.format.is_leaf(entry, level) {
                    table = TableAddr::from_entry(&self.format, entry);
                    level -= 1;
                    continue;
                }
                if self.serves(entry, level, &want) {
                    return Ok(Mapped::Same);
                }
            }
            if frames.available() < (level - target) as usize {
                return Err(MapError::NeedFrames);
            }
            changed |= self.link_table(frames, table, level, want.gpa, on_drop)?;
            // The loop finds the new table on its next turn, without special case.
        }
        let mapped = self.place_leaf(frames, table, &want, free, on_drop)?;
        Ok(if changed { Mapped::Changed } else { mapped })
    }

    /// Marks the page of `gpa` as a device's, if nothing is mapped there: accesses stop at the mark. `false`: something is, or the
    /// format has no mark. A mark goes as leaves go, by [`Slat::zap_range`] or when something is mapped over it; nobody need
    /// flush for it.
    pub fn mark_device<R: Frames>(&mut self, frames: &mut R, gpa: u64) -> Result<bool, MapError> {
        let Some(mark) = self.format.device_mark() else { return Ok(false) };
        let mut table = self.root().filter(|_| gpa < self.gpa_end()).ok_or(MapError::OutOfRange)?;
        let mut level = self.root_level();
        while level > 0 {
            let entry = entry_at(frames.entries(table), index(gpa, level)).load(Ordering::Acquire);
            if self.format.is_present(entry) && self.format.is_leaf(entry, level) {
                return Ok(false);
            }
            if self.format.is_present(entry) {
                table = TableAddr::from_entry(&self.format, entry);
                level -= 1;
                continue;
            }
            if frames.available() < level as usize {
                return Err(MapError::NeedFrames);
            }
            self.link_table(frames, table, level, gpa, &mut |_| {})?;
        }
        let slot = entry_at(frames.entries(table), index(gpa, 0));
        if self.format.is_present(slot.load(Ordering::Acquire)) {
            return Ok(false);
        }
        slot.store(mark, Ordering::Release);
        Ok(true)
    }

    /// Whether the leaf `entry` at `level` already gives what `want`, a smaller leaf inside, asks for.
    fn serves(&self, entry: u64, level: u32, want: &Mapping) -> bool {
        let Some(level) = Level::from_index(level) else { return false };
        let leaf = self.leaf(entry, want.gpa, level);
        let offset = want.gpa - leaf.gpa;
        leaf.hpa + offset == want.hpa && leaf.memtype == want.memtype && leaf.perm.allows(want.perm)
    }

    /// Puts a new, empty table where `gpa` belongs in `table`. Returns whether a leaf had to go for it.
    fn link_table<R: Frames>(
        &mut self,
        frames: &mut R,
        table: TableAddr,
        level: u32,
        gpa: u64,
        on_drop: &mut impl FnMut(Dropped),
    ) -> Result<bool, MapError> {
        let page = frames.take().ok_or(MapError::NeedFrames)?;
        let child = TableAddr::from_page(&page);
        let slot = entry_at(frames.entries(table), index(gpa, level));
        let old = slot.swap(self.format.table(child.hpa()), Ordering::AcqRel);
        self.counts.tables += 1;
        Ok(self.dropped(old, gpa, level, on_drop))
    }

    /// Writes the leaf into its table.
    fn place_leaf<R: Frames>(
        &mut self,
        frames: &R,
        table: TableAddr,
        want: &Mapping,
        free: &mut FreeList,
        on_drop: &mut impl FnMut(Dropped),
    ) -> Result<Mapped, MapError> {
        let level = want.level as u32;
        let slot = entry_at(frames.entries(table), index(want.gpa, level));
        let entry = slot.load(Ordering::Acquire);
        let dirty = if want.dirty { self.format.dirty_mask() } else { 0 };
        let new = self.format.leaf(want.level, want.hpa, want.perm, want.memtype) | dirty;
        if !self.format.is_present(entry) {
            slot.store(new, Ordering::Release);
            *self.counts.leaves(want.level) += 1;
            return Ok(Mapped::Fresh);
        }
        if !self.format.is_leaf(entry, level) {
            let child = TableAddr::from_entry(&self.format, entry);
            if self.keeps_small() && !is_unused(frames.entries(child)) {
                return Err(MapError::Occupied);
            }
            if level > Level::Page2M as u32 && !is_unused(frames.entries(child)) {
                return Err(MapError::Occupied);
            }
            slot.store(new, Ordering::Release);
            *self.counts.leaves(want.level) += 1;
            self.drain_page_table(frames, child, want.gpa, on_drop);
            self.unlinked(frames, child, free);
            return Ok(Mapped::Changed);
        }
        let old = self.leaf(entry, want.gpa, want.level);
        if old.hpa != want.hpa || old.memtype != want.memtype {
            let old = slot.swap(new, Ordering::AcqRel);
            on_drop(self.leaf(old, want.gpa, want.level));
            return Ok(Mapped::Changed);
        }
        if old.perm.allows(want.perm) {
            return Ok(Mapped::Same);
        }
        // Two steps, each atomic against hardware that sets A and D; in between the leaf is valid.
        let grant = self.format.grant(want.perm);
        slot.fetch_or(grant.set | self.format.accessed_mask(), Ordering::AcqRel);
        slot.fetch_and(!grant.clear, Ordering::AcqRel);
        Ok(Mapped::Widened)
    }

    /// Drops every 4K leaf of an unlinked page table that began at `gpa`. Each entry is swapped, not just read: hardware
    /// that still knows the table must find it empty from now on, or it could set a dirty bit after we looked.
    fn drain_page_table<R: Frames>(
        &mut self,
        frames: &R,
        table: TableAddr,
        gpa: u64,
        on_drop: &mut impl FnMut(Dropped),
    ) {
        let mut at = gpa;
        for slot in frames.entries(table) {
            if slot.load(Ordering::Relaxed) != 0 {
                let old = slot.swap(0, Ordering::AcqRel);
                self.dropped(old, at, 0, on_drop);
            }
            at += Level::Page4K.size();
        }
    }

    /// Accounts for an entry that was just swapped out. Returns whether it was a leaf.
    pub(crate) fn dropped(
        &mut self,
        old: u64,
        gpa: u64,
        level: u32,
        on_drop: &mut impl FnMut(Dropped),
    ) -> bool {
        if !self.format.is_present(old) || !self.format.is_leaf(old, level) {
            return false;
        }
        let Some(level) = Level::from_index(level) else { return false };
        let count = self.counts.leaves(level);
        *count = count.saturating_sub(1);
        on_drop(self.leaf(old, gpa, level));
        true
    }

    /// Puts an unlinked, empty table on the list.
    pub(crate) fn unlinked<R: Frames>(&mut self, frames: &R, table: TableAddr, free: &mut FreeList) {
        self.counts.tables = self.counts.tables.saturating_sub(1);
        free.push(frames, table);
    }
}
