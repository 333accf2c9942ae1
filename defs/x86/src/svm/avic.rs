//! AVIC facts: the tables that hardware looks targets up in, and what its two exits say (APM vol. 2, 15.29).

use bitfield_struct::bitfield;
use core::mem::size_of;

/// An entry of the physical APIC ID table, which is indexed by the guest's APIC id (APM vol. 2, 15.29.4.2).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct PhysicalEntry {
    /// Where to ring: the APIC id of the host's CPU. 8 bits on CPUs without x2AVIC.
    #[bits(12)]
    pub host_id: u16,
    /// Bits 51:12 of the backing page's physical address.
    #[bits(40)]
    pub backing: u64,
    #[bits(10)]
    __: u16,
    /// The vCPU is in the guest, or about to enter it, on that CPU.
    pub is_running: bool,
    pub valid: bool,
}

const _: () = assert!(size_of::<PhysicalEntry>() == 8);

/// The highest index that a table of one page has, which is x2AVIC's (APM vol. 2, 15.29.10).
pub const MAX_INDEX: u32 = 511;
/// What the doorbell's register takes: the APIC id of the host's CPU.
pub const DOORBELL_ID: u32 = 0xfff;

/// Bits 63:32 of EXITINFO2 of [`super::ExitCode::AVIC_INCOMPLETE_IPI`]; EXITINFO1 is the ICR. Open: hardware may extend it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Incomplete(pub u32);

#[allow(missing_docs)]
impl Incomplete {
    /// Hardware sends fixed, edge-triggered interrupts only.
    pub const INVALID_TYPE: Self = Self(0);
    /// All targets have the vector in their IRR; at least one is not running.
    pub const TARGET_NOT_RUNNING: Self = Self(1);
    /// A target has no valid entry.
    pub const INVALID_TARGET: Self = Self(2);
    pub const INVALID_BACKING_PAGE: Self = Self(3);
    pub const INVALID_VECTOR: Self = Self(4);
}

/// EXITINFO1 of [`super::ExitCode::AVIC_NOACCEL`].
#[allow(missing_docs)]
pub mod noaccel {
    pub const OFFSET: u64 = 0xff0;
    pub const WRITE: u64 = 1 << 32;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layout() {
        let entry = PhysicalEntry::new().with_host_id(0x123).with_backing(0xa_bcde_f012).with_valid(true);
        assert_eq!(entry.into_bits(), 0x8000_abcd_ef01_2123);
        assert_eq!(PhysicalEntry::new().with_is_running(true).into_bits(), 1 << 62);
    }
}
