//! The tree of tables of one VM: its root, its counts, and looking at it.

use core::sync::atomic::Ordering;

use bytemuck::Zeroable;

use crate::frames::{Frames, TableAddr, TablePage, entry_at};
use crate::{Format, Level, MemType, Perm};

/// Most tables that one [`Slat::map`] takes: every level below a root of five. Fill the frame cache up to this before
/// taking the mmu lock.
pub const TABLES_PER_MAP: usize = 4;

/// Bits of guest physical addresses that so many levels of tables translate.
pub const fn gpa_bits(levels: u32) -> u32 {
    if levels >= 5 { 52 } else { 48 }
}

/// Second-level page tables of one VM. All-zero is valid and means "no root yet".
#[derive(Debug, Default, Zeroable)]
#[zeroable(bound = "F: Zeroable")]
pub struct Slat<F> {
    pub(crate) format: F,
    /// Host physical address of the root table, 0 before `init`.
    root: u64,
    /// Levels of tables, 4 or 5; 0 before `init`.
    levels: u32,
    pub(crate) counts: Counts,
    /// Leaves never take the place of smaller ones; 0 or 1.
    keep_small: u64,
}

/// How much there is, for statistics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Zeroable)]
pub struct Counts {
    /// Tables, root included.
    pub tables: u64,
    /// Leaves of 4K.
    pub pages_4k: u64,
    /// Leaves of 2M.
    pub pages_2m: u64,
    /// Leaves of 1G.
    pub pages_1g: u64,
}

impl Counts {
    pub(crate) fn leaves(&mut self, level: Level) -> &mut u64 {
        match level {
            Level::Page4K => &mut self.pages_4k,
            Level::Page2M => &mut self.pages_2m,
            Level::Page1G => &mut self.pages_1g,
        }
    }
}

/// A leaf as it was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leaf {
    /// Guest physical address of its first byte.
    pub gpa: u64,
    /// Host physical address of its first byte.
    pub hpa: u64,
    /// Its size.
    pub level: Level,
    /// What the guest may do.
    pub perm: Perm,
    /// The host's memory type.
    pub memtype: MemType,
    /// Whether hardware used it since the bit was last cleared.
    pub accessed: bool,
    /// Whether the guest wrote through it since the bit was last cleared.
    pub dirty: bool,
}

/// A leaf that is no more, with the bits that hardware had set until the last moment. The host marks its pages
/// dirty and accessed by it. Until the TLB flush the guest may still use the memory.
pub type Dropped = Leaf;

impl<F: Format> Slat<F> {
    /// Gives the tables their format and root. `levels` is 4 or 5 (see [`crate::npt`] on who decides). Returns the
    /// page when there is a root already.
    pub fn init(&mut self, format: F, levels: u32, root: TablePage) -> Result<(), TablePage> {
        if self.root != 0 {
            return Err(root);
        }
        self.format = format;
        self.levels = levels.clamp(4, 5);
        self.root = TableAddr::from_page(&root).hpa();
        self.counts = Counts { tables: 1, ..Counts::default() };
        Ok(())
    }

    /// From now on a leaf where smaller ones are is [`crate::MapError::Occupied`]: they are small for a reason that only the
    /// caller knows.
    pub fn keep_small(&mut self) {
        self.keep_small = 1;
    }

    pub(crate) fn keeps_small(&self) -> bool {
        self.keep_small != 0
    }

    /// Takes the root away, for the end of the VM. Returns `None` without root or while it still has entries: zap all first.
    pub fn take_root<R: Frames>(&mut self, frames: &R) -> Option<TablePage> {
        let root = self.root()?;
        if !crate::frames::is_unused(frames.entries(root)) {
            return None;
        }
        self.root = 0;
        self.counts.tables = self.counts.tables.saturating_sub(1);
        Some(root.into_page())
    }

    /// Host physical address of the root table: nCR3, or the address in the EPTP. 0 before `init`.
    pub const fn root_hpa(&self) -> u64 {
        self.root
    }

    /// Levels of tables.
    pub const fn levels(&self) -> u32 {
        self.levels
    }

    /// The format.
    pub const fn format(&self) -> &F {
        &self.format
    }

    /// How many tables and leaves there are.
    pub const fn counts(&self) -> Counts {
        self.counts
    }

    /// One past the highest guest physical address that can be mapped.
    pub const fn gpa_end(&self) -> u64 {
        1 << gpa_bits(self.levels)
    }

    pub(crate) fn root(&self) -> Option<TableAddr> {
        (self.root != 0).then(|| TableAddr::from_page(&TablePage::new(self.root)))
    }

    pub(crate) const fn root_level(&self) -> u32 {
        self.levels.saturating_sub(1)
    }

    /// The leaf that maps `gpa`.
    pub fn lookup<R: Frames>(&self, frames: &R, gpa: u64) -> Option<Leaf> {
        let mut table = self.root()?;
        let mut level = self.root_level();
        if gpa >= self.gpa_end() {
            return None;
        }
        loop {
            let entry = entry_at(frames.entries(table), index(gpa, level)).load(Ordering::Acquire);
            if !self.format.is_present(entry) {
                return None;
            }
            if self.format.is_leaf(entry, level) {
                return Some(self.leaf(entry, gpa, Level::from_index(level)?));
            }
            table = TableAddr::from_entry(&self.format, entry);
            level = level.checked_sub(1)?;
        }
    }

    /// Takes a leaf entry apart. `gpa` is any address that it maps.
    pub(crate) fn leaf(&self, entry: u64, gpa: u64, level: Level) -> Leaf {
        Leaf {
            gpa: level.base(gpa),
            hpa: self.format.address(entry, level),
            level,
            perm: self.format.perm(entry),
            memtype: self.format.memtype(entry),
            accessed: self.format.accessed(entry),
            dirty: self.format.dirty(entry),
        }
    }
}

/// The number of the entry for `gpa` in a table at `level`.
pub(crate) const fn index(gpa: u64, level: u32) -> usize {
    (gpa >> shift(level)) as usize & 511
}

/// log2 of the bytes behind one entry of a table at `level`, 0..=4.
pub(crate) const fn shift(level: u32) -> u32 {
    12 + 9 * level
}
