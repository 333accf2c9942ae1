//! Nested page tables of SVM (APM vol. 2, 15.25): the host's own long-mode format.
//!
//! | bits  | field | here                                                                                      |
//! |-------|-------|-------------------------------------------------------------------------------------------|
//! | 0     | P     | set                                                                                       |
//! | 1     | R/W   | tables: set; leaves: write permission                                                     |
//! | 2     | U/S   | always set: every nested access counts as a user access (15.25.5)                         |
//! | 3, 4  | PWT, PCD | both for UC: index 3 of the host's PAT, which is UC at reset and under Linux           |
//! | 5     | A     | hardware sets it (15.25.5); leaves are born with it                                       |
//! | 6     | D     | hardware sets it, leaves only                                                             |
//! | 7     | PS    | leaves of 2M and 1G; in a 4K leaf the bit is PAT and stays 0                              |
//! | 51:12 | address |                                                                                         |
//! | 63    | NX    | leaves without exec; needs EFER.NXE of the host                                           |
//!
//! The mark of a device has a reserved bit of the address set: an access there is a fault with RSV, and no TLB keeps it.
//!
//! The number of levels is the host's: 5 when the host runs with CR4.LA57, because nested paging uses the paging mode
//! that the host had at VMRUN (15.25.3).

use bytemuck::Zeroable;

use crate::{Format, Grant, Level, MemType, Perm};

/// The nested page-table format. `sme_mask` is the C-bit that the host puts into its own entries, 0 without SME.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Zeroable)]
pub struct Npt {
    /// Encryption bit to set in every entry (APM vol. 2, 7.10.3), or 0.
    pub sme_mask: u64,
    /// A bit of [`Format::ADDRESS`] that must be 0 in entries, or 0 where the CPU has none: see [`Npt::reserved_bit`].
    pub reserved: u64,
}

const P: u64 = 1 << 0;
const RW: u64 = 1 << 1;
const US: u64 = 1 << 2;
const PWT: u64 = 1 << 3;
const PCD: u64 = 1 << 4;
const A: u64 = 1 << 5;
const D: u64 = 1 << 6;
const PS: u64 = 1 << 7;
const NX: u64 = 1 << 63;

impl Npt {
    /// The highest bit that is reserved in entries of a CPU whose physical addresses have so many bits (CPUID 8000_0008h, as
    /// it is without memory encryption: bits that encryption takes are not reserved); 0: there is none. The C-bit, which may lie
    /// above the addresses, is none even while the host does not use it (APM vol. 2, 7.10.3).
    pub const fn reserved_bit(physical_bits: u32, c_bit: Option<u32>) -> u64 {
        let mut bit = 51;
        while bit >= physical_bits {
            match c_bit {
                Some(c) if c == bit => bit -= 1,
                _ => return 1 << bit,
            }
        }
        0
    }
}

impl Format for Npt {
    const WRITE: u64 = RW;

    fn leaf(&self, level: Level, hpa: u64, perm: Perm, memtype: MemType) -> u64 {
        let mut entry = (hpa & Self::ADDRESS) | P | US | A;
        if memtype != MemType::Uc {
            // Devices do not decrypt.
            entry |= self.sme_mask;
        }
        if level != Level::Page4K {
            entry |= PS;
        }
        if perm.write {
            entry |= RW;
        }
        if !perm.exec {
            entry |= NX;
        }
        if memtype == MemType::Uc {
            entry |= PWT | PCD;
        }
        entry
    }

    fn table(&self, hpa: u64) -> u64 {
        (hpa & Self::ADDRESS) | self.sme_mask | P | RW | US | A
    }

    fn device_mark(&self) -> Option<u64> {
        (self.reserved != 0).then_some(P | RW | US | self.reserved)
    }

    fn is_present(&self, entry: u64) -> bool {
        entry & P != 0 && entry & self.reserved == 0
    }

    fn is_leaf(&self, entry: u64, level: u32) -> bool {
        level == 0 || entry & PS != 0
    }

    fn perm(&self, entry: u64) -> Perm {
        Perm { write: entry & RW != 0, exec: entry & NX == 0 }
    }

    fn memtype(&self, entry: u64) -> MemType {
        if entry & PCD != 0 { MemType::Uc } else { MemType::Wb }
    }

    fn grant(&self, perm: Perm) -> Grant {
        Grant { set: if perm.write { RW } else { 0 }, clear: if perm.exec { NX } else { 0 } }
    }

    fn accessed_mask(&self) -> u64 {
        A
    }

    fn dirty_mask(&self) -> u64 {
        D
    }

    fn address(&self, entry: u64, level: Level) -> u64 {
        level.base(entry & Self::ADDRESS & !self.sme_mask)
    }
}
