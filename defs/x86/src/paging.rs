//! Bits of paging-structure entries (SDM vol. 3A, chapter 4; APM vol. 2, chapter 5).

/// Bits common to the entries of every paging mode (SDM vol. 3A, tables 4-4 to 4-20).
#[allow(missing_docs)]
pub mod pte {
    /// Present.
    pub const P: u64 = 1 << 0;
    /// Writable.
    pub const RW: u64 = 1 << 1;
    /// User mode may access.
    pub const US: u64 = 1 << 2;
    pub const PWT: u64 = 1 << 3;
    pub const PCD: u64 = 1 << 4;
    /// Accessed.
    pub const A: u64 = 1 << 5;
    /// Dirty; entries that map a page only.
    pub const D: u64 = 1 << 6;
    /// Page size: the entry maps a page. Levels above the lowest only; bit 7 of a PTE is PAT.
    pub const PS: u64 = 1 << 7;
    /// PAT in a PTE.
    pub const PAT: u64 = 1 << 7;
    pub const G: u64 = 1 << 8;
    /// PAT of an entry that maps a large page.
    pub const PAT_LARGE: u64 = 1 << 12;
    /// Execute disable; reserved while EFER.NXE is clear.
    pub const XD: u64 = 1 << 63;

    /// Address bits of a 64-bit entry before the MAXPHYADDR limit.
    pub const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
    /// Address bits of a 32-bit entry that points to a table or a 4 KiB page.
    pub const ADDRESS32: u64 = 0xffff_f000;
    /// First protection key bit of an entry that maps a page; four bits.
    pub const KEY_SHIFT: u32 = 59;
}

/// Bytes of the smallest page.
pub const PAGE_SIZE: u64 = 4096;
/// log2 of [`PAGE_SIZE`].
pub const PAGE_SHIFT: u32 = 12;
/// Offset in a page.
pub const PAGE_MASK: u64 = PAGE_SIZE - 1;

/// Whether `address` is canonical for linear addresses of `bits` (48 or 57) bits (SDM vol. 1, 3.3.7.1).
pub const fn canonical(address: u64, bits: u8) -> bool {
    let shift = 64u32.saturating_sub(bits as u32) & 63;
    (((address << shift) as i64) >> shift) as u64 == address
}

#[cfg(test)]
mod tests {
    use super::canonical;

    /// The edges of both halves, for four and five levels.
    #[test]
    fn canonical_edges() {
        assert!(canonical(0x0000_7fff_ffff_ffff, 48));
        assert!(!canonical(0x0000_8000_0000_0000, 48));
        assert!(!canonical(0xffff_7fff_ffff_ffff, 48));
        assert!(canonical(0xffff_8000_0000_0000, 48));
        assert!(canonical(0x0000_8000_0000_0000, 57));
        assert!(canonical(0xff00_0000_0000_0000, 57));
        assert!(!canonical(0x0100_0000_0000_0000, 57));
    }
}
