//! Pages for tables: where they come from, how they are reached, how they go back.

use core::sync::atomic::{AtomicU64, Ordering};

use crate::Format;

/// Entries of a table.
pub const ENTRIES: usize = 512;

/// The contents of one table. Hardware reads and writes it too.
pub type Entries = [AtomicU64; ENTRIES];

/// A page that the operating system gives for a table, or gets back: zeroed, 4 KiB, page aligned, not in use.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a page that is forgotten is leaked"]
pub struct TablePage {
    hpa: u64,
}

impl TablePage {
    /// The page at host physical address `hpa`, a multiple of 4096 other than 0. Low bits are cut off.
    pub const fn new(hpa: u64) -> Self {
        Self { hpa: hpa & !0xfff }
    }
    /// Host physical address.
    pub const fn hpa(&self) -> u64 {
        self.hpa
    }
}

/// The address of a table that came from [`Frames::take`] and was not given back since.
///
/// Only this crate makes values of this type, out of [`TablePage`]s and out of entries that it wrote itself. That is
/// the fact on which an implementation of [`Frames::entries`] may rest its SAFETY comment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableAddr(u64);

impl TableAddr {
    pub(crate) const fn from_page(page: &TablePage) -> Self {
        Self(page.hpa)
    }
    /// The table to which `entry` links.
    pub(crate) fn from_entry<F: Format>(format: &F, entry: u64) -> Self {
        Self(format.address(entry, crate::Level::Page4K))
    }
    /// Host physical address, page aligned, not 0.
    pub const fn hpa(self) -> u64 {
        self.0
    }
    pub(crate) const fn into_page(self) -> TablePage {
        TablePage { hpa: self.0 }
    }
}

/// The operating system's memory, as tables need it.
pub trait Frames {
    /// Pages that [`Frames::take`] can give right now. Called under the mmu lock.
    fn available(&self) -> usize;
    /// One zeroed page out of a cache that was filled beforehand: no allocation, no sleep.
    fn take(&mut self) -> Option<TablePage>;
    /// The contents of a table.
    fn entries(&self, table: TableAddr) -> &Entries;
}

/// Tables that are unlinked but not yet free: hardware may still walk them until the TLB flush.
///
/// The list is chained through the first entry of each page. An address of a page is not present in either format,
/// so hardware that still gets there finds nothing. Pages come out zeroed, ready to be used again.
#[derive(Debug, Default)]
#[must_use = "flush, then give the pages back"]
pub struct FreeList {
    head: u64,
    len: usize,
}

impl FreeList {
    /// An empty list.
    pub const fn new() -> Self {
        Self { head: 0, len: 0 }
    }
    /// Pages on the list.
    pub const fn len(&self) -> usize {
        self.len
    }
    /// Whether nothing is to be given back.
    pub const fn is_empty(&self) -> bool {
        self.head == 0
    }

    /// Adds an unlinked table whose entries are all 0.
    pub(crate) fn push<R: Frames>(&mut self, frames: &R, table: TableAddr) {
        entry_at(frames.entries(table), 0).store(self.head, Ordering::Release);
        self.head = table.0;
        self.len += 1;
    }

    /// The next page to give back. Call it only after the TLBs of all CPUs that ran the VM were flushed.
    pub fn pop<R: Frames>(&mut self, frames: &R) -> Option<TablePage> {
        if self.head == 0 {
            return None;
        }
        let table = TableAddr(self.head);
        self.head = entry_at(frames.entries(table), 0).swap(0, Ordering::AcqRel);
        self.len = self.len.saturating_sub(1);
        Some(table.into_page())
    }
}

/// The entry with number `index` modulo 512.
#[allow(clippy::indexing_slicing)]
pub(crate) fn entry_at(entries: &Entries, index: usize) -> &AtomicU64 {
    // PANIC: never; the index has nine bits and the array 512 entries, the compiler drops the check.
    &entries[index & (ENTRIES - 1)]
}

/// Whether no entry of the table is in use.
pub(crate) fn is_unused(entries: &Entries) -> bool {
    entries.iter().all(|e| e.load(Ordering::Relaxed) == 0)
}
