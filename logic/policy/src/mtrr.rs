//! Memory type range registers and the PAT: storage and validity (SDM vol. 3A, 12.11 and 12.12).
//!
//! The types themselves have no effect: second-level translation decides what is cached. The registers exist so that
//! guests and their save and restore find what they wrote.

use crate::Invalid;
use crate::msr::MsrKind;
use bytemuck::Zeroable;
use exitless_nospec::Guarded;
use exitless_x86::msr::{memory_type, mtrr};

/// Variable ranges.
pub const VARIABLE: usize = 8;
/// What IA32_MTRRCAP reads: eight variable ranges, fixed ranges, write-combining.
pub const CAP: u64 = VARIABLE as u64 | mtrr::CAP_FIX | mtrr::CAP_WC;
/// The PAT after reset (SDM vol. 3A, 12.12.4).
pub const PAT_RESET: u64 = 0x0007_0406_0007_0406;

/// The registers of one vCPU. All-zero is the state after reset (MTRRs off).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Zeroable)]
#[repr(C)]
pub struct Mtrrs {
    /// IA32_MTRR_DEF_TYPE.
    def_type: u64,
    /// 64K, two of 16K, eight of 4K.
    fixed: [u64; 11],
    /// Base and mask alternate.
    variable: [u64; 2 * VARIABLE],
}

impl Mtrrs {
    /// Reads the register of an `Mtrr*` kind.
    ///
    /// # Errors
    /// [`Invalid`] for any other kind.
    pub fn read(&self, kind: MsrKind) -> Result<u64, Invalid> {
        match kind {
            MsrKind::MtrrDefType => Some(self.def_type),
            MsrKind::MtrrFixed(i) => self.fixed.guarded(i as usize).copied(),
            MsrKind::MtrrVariable(i) => self.variable.guarded(i as usize).copied(),
            _ => None,
        }
        .ok_or(Invalid)
    }

    /// Writes it; `maxphyaddr` in bits bounds base and mask.
    ///
    /// # Errors
    /// [`Invalid`] for a reserved type or bit, or another kind.
    pub fn write(&mut self, kind: MsrKind, value: u64, maxphyaddr: u8) -> Result<(), Invalid> {
        let (place, ok) = match kind {
            MsrKind::MtrrDefType => (Some(&mut self.def_type), def_type_valid(value)),
            MsrKind::MtrrFixed(i) => (self.fixed.guarded_mut(i as usize), fixed_valid(value)),
            MsrKind::MtrrVariable(i) => {
                (self.variable.guarded_mut(i as usize), variable_valid(i & 1 != 0, value, maxphyaddr))
            }
            _ => (None, false),
        };
        match place {
            Some(place) if ok => *place = value,
            _ => return Err(Invalid),
        }
        Ok(())
    }
}

fn type_valid(t: u8) -> bool {
    matches!(t, memory_type::UC | memory_type::WC | memory_type::WT | memory_type::WP | memory_type::WB)
}

fn def_type_valid(v: u64) -> bool {
    v & !(mtrr::DEF_TYPE | mtrr::DEF_FE | mtrr::DEF_E) == 0 && type_valid(v as u8)
}

fn fixed_valid(v: u64) -> bool {
    v.to_le_bytes().into_iter().all(type_valid)
}

fn variable_valid(mask: bool, v: u64, maxphyaddr: u8) -> bool {
    let beyond = !0u64 << maxphyaddr.min(63);
    if mask { v & (beyond | 0x7ff) == 0 } else { v & (beyond | 0xf00) == 0 && type_valid(v as u8) }
}

/// Whether every byte is one of the PAT's types.
pub fn pat_valid(v: u64) -> bool {
    v.to_le_bytes().into_iter().all(|t| type_valid(t) || t == memory_type::UC_MINUS)
}
