//! What the two formats of entries have in common, as the rest of the crate needs it.

use crate::Level;

/// What the guest may do with a leaf. Reading is always allowed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Perm {
    /// Writes.
    pub write: bool,
    /// Instruction fetches.
    pub exec: bool,
}

impl Perm {
    /// Read, write, execute: ordinary memory.
    pub const RWX: Self = Self { write: true, exec: true };
    /// Read and execute: read-only slots, write-protected frames.
    pub const RX: Self = Self { write: false, exec: true };

    /// Whether everything that `other` allows is allowed.
    pub const fn allows(self, other: Self) -> bool {
        (self.write || !other.write) && (self.exec || !other.exec)
    }
}

/// The host's part of the memory type; the guest's PAT is combined with it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MemType {
    /// Write-back: memory.
    #[default]
    Wb,
    /// Uncacheable: device registers.
    Uc,
}

/// Bits to set and to clear in an entry so that it allows more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grant {
    /// Bits to set.
    pub set: u64,
    /// Bits to clear.
    pub clear: u64,
}

/// The layout of entries. Implementations are plain values (what the CPU offers), copied freely.
///
/// An entry of 0 must be not present, and so must any multiple of 4096 below 2^52: unlinked tables are chained
/// through their first entry while hardware may still read it.
pub trait Format: Copy {
    /// Mask of the bit that allows writes.
    const WRITE: u64;
    /// The physical address field, bits 51:12, of entries that link or map 4K.
    const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

    /// A leaf entry. `hpa` is aligned to the size of `level`. The accessed bit is set: leaves are made on access.
    fn leaf(&self, level: Level, hpa: u64, perm: Perm, memtype: MemType) -> u64;
    /// An entry that links to the table at `hpa`, with all permissions: leaves decide.
    fn table(&self, hpa: u64) -> u64;
    /// A 4K entry that is not present, at which hardware stops in a way of its own: there is a device and no memory. `None`: the
    /// CPU has no such entry.
    fn device_mark(&self) -> Option<u64>;
    /// Whether hardware would use the entry.
    fn is_present(&self, entry: u64) -> bool;
    /// Whether a present entry of a table at `level` (0 = page table, 1 = page directory, ..) is a leaf.
    fn is_leaf(&self, entry: u64, level: u32) -> bool;
    /// What a leaf allows.
    fn perm(&self, entry: u64) -> Perm;
    /// The host's memory type of a leaf.
    fn memtype(&self, entry: u64) -> MemType;
    /// Changes to a leaf so that it allows `perm` too.
    fn grant(&self, perm: Perm) -> Grant;
    /// The accessed bit, or 0 if hardware does not maintain one.
    fn accessed_mask(&self) -> u64;
    /// The dirty bit, or 0 if hardware does not maintain one.
    fn dirty_mask(&self) -> u64;

    /// Whether hardware used the leaf. Always, if it does not say.
    fn accessed(&self, entry: u64) -> bool {
        self.accessed_mask() == 0 || entry & self.accessed_mask() != 0
    }
    /// Whether the guest wrote through the leaf. If hardware does not say: whether it could.
    fn dirty(&self, entry: u64) -> bool {
        match self.dirty_mask() {
            0 => entry & Self::WRITE != 0,
            mask => entry & mask != 0,
        }
    }
    /// The physical address of a linked table, or of a leaf of size `level`.
    fn address(&self, entry: u64, level: Level) -> u64 {
        // Bits below the size hold other things in large leaves (PAT in bit 12 of NPT).
        level.base(entry & Self::ADDRESS)
    }
}
