//! Extended page tables of VMX (SDM vol. 3C, 29.3.2).
//!
//! | bits  | field                  | here                                                                     |
//! |-------|------------------------|--------------------------------------------------------------------------|
//! | 0     | read                   | set                                                                      |
//! | 1     | write                  | tables: set; leaves: write permission                                    |
//! | 2     | execute                | tables: set; leaves: exec permission                                     |
//! | 5:3   | memory type            | leaves: 6 (WB) or 0 (UC)                                                 |
//! | 6     | ignore PAT             | WB leaves, if the VM wants the guest's PAT ignored                       |
//! | 7     | page                   | leaves of 2M and 1G                                                      |
//! | 8     | accessed               | if enabled in the EPTP; leaves are born with it                          |
//! | 9     | dirty                  | if enabled in the EPTP, leaves only                                      |
//! | 51:12 | address                |                                                                          |
//!
//! Write without read is an EPT misconfiguration (29.3.3.1); `read` is set in whatever maps or links. The mark of a device is write
//! and execute without read: an access there is such a misconfiguration, and no TLB keeps it (29.4.2).

use bytemuck::Zeroable;

use crate::{Format, Grant, Level, MemType, Perm};

/// The EPT format with what the CPU and the VM chose. Two bytes, each 0 or 1, so that all-zero is valid.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Zeroable)]
pub struct Ept {
    accessed_dirty: u8,
    ignore_guest_pat: u8,
}

const READ: u64 = 1 << 0;
const WRITE: u64 = 1 << 1;
const EXECUTE: u64 = 1 << 2;
/// A misconfiguration.
const MARK: u64 = WRITE | EXECUTE;
const MEMTYPE: u64 = 7 << 3;
const MEMTYPE_WB: u64 = 6 << 3;
const IGNORE_PAT: u64 = 1 << 6;
const PAGE: u64 = 1 << 7;
const ACCESSED: u64 = 1 << 8;
const DIRTY: u64 = 1 << 9;

impl Ept {
    /// `accessed_dirty`: hardware maintains both bits (IA32_VMX_EPT_VPID_CAP bit 21) and the EPTP enables them.
    /// `ignore_guest_pat`: memory is WB whatever the guest's PAT says, right without non-coherent devices.
    pub const fn new(accessed_dirty: bool, ignore_guest_pat: bool) -> Self {
        Self { accessed_dirty: accessed_dirty as u8, ignore_guest_pat: ignore_guest_pat as u8 }
    }

    /// The EPT pointer for a root table (SDM vol. 3C, 25.6.11): WB walks, length, accessed and dirty bits.
    pub const fn eptp(&self, root_hpa: u64, levels: u32) -> u64 {
        let ad = if self.accessed_dirty != 0 { 1 << 6 } else { 0 };
        (root_hpa & Self::ADDRESS) | ad | ((levels as u64 - 1) & 7) << 3 | 6
    }
}

impl Format for Ept {
    const WRITE: u64 = WRITE;

    fn leaf(&self, level: Level, hpa: u64, perm: Perm, memtype: MemType) -> u64 {
        let mut entry = (hpa & Self::ADDRESS) | READ | self.accessed_mask();
        if level != Level::Page4K {
            entry |= PAGE;
        }
        entry |= self.grant(perm).set;
        if memtype == MemType::Wb {
            entry |= MEMTYPE_WB;
            if self.ignore_guest_pat != 0 {
                entry |= IGNORE_PAT;
            }
        }
        entry
    }

    fn table(&self, hpa: u64) -> u64 {
        (hpa & Self::ADDRESS) | READ | WRITE | EXECUTE | self.accessed_mask()
    }

    fn device_mark(&self) -> Option<u64> {
        Some(MARK)
    }

    fn is_present(&self, entry: u64) -> bool {
        !matches!(entry & (READ | WRITE | EXECUTE), 0 | MARK)
    }

    fn is_leaf(&self, entry: u64, level: u32) -> bool {
        level == 0 || entry & PAGE != 0
    }

    fn perm(&self, entry: u64) -> Perm {
        Perm { write: entry & WRITE != 0, exec: entry & EXECUTE != 0 }
    }

    fn memtype(&self, entry: u64) -> MemType {
        if entry & MEMTYPE == MEMTYPE_WB { MemType::Wb } else { MemType::Uc }
    }

    fn grant(&self, perm: Perm) -> Grant {
        let write = if perm.write { WRITE } else { 0 };
        let exec = if perm.exec { EXECUTE } else { 0 };
        Grant { set: write | exec, clear: 0 }
    }

    fn accessed_mask(&self) -> u64 {
        if self.accessed_dirty != 0 { ACCESSED } else { 0 }
    }

    fn dirty_mask(&self) -> u64 {
        if self.accessed_dirty != 0 { DIRTY } else { 0 }
    }
}
