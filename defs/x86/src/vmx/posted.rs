//! The posted-interrupt descriptor: 64 bytes that senders and the CPU share (SDM vol. 3C, table 30-1).
//!
//! The layout only; the protocol on it is `logic/posted`.

use bitfield_struct::bitfield;
use core::mem::size_of;

/// Alignment that VMCS and interrupt-remapping hardware demand, bytes.
pub const ALIGN: usize = 64;
/// Byte offset of the control word.
pub const CONTROL_OFFSET: usize = 32;
/// Vectors per word of the posted-interrupt requests.
pub const WORD_BITS: u32 = 64;

/// Bits 319:256: everything a sender must see in one piece. Bits that VMX does not name are software's or the
/// interrupt-remapping hardware's (VT-d specification, 9.11).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct Control {
    /// ON: an interrupt has been posted since the CPU last took the requests.
    pub outstanding: bool,
    /// SN: hardware sets only the request bit and sends nothing.
    pub suppress: bool,
    #[bits(14)]
    __: u16,
    /// NV: the physical vector that notifies.
    pub vector: u8,
    __: u8,
    /// NDST: whom it notifies. x2APIC: the APIC id. xAPIC: the APIC id in bits 15:8 of these 32.
    pub destination: u32,
}

/// NDST for a host APIC id.
pub const fn destination(apic_id: u32, x2apic: bool) -> u32 {
    if x2apic { apic_id } else { (apic_id & 0xff) << 8 }
}

const _: () = assert!(size_of::<Control>() == 8);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layout() {
        let c = Control::new().with_outstanding(true).with_vector(0xf2).with_destination(0x1234_5678);
        assert_eq!(c.into_bits(), 0x1234_5678_00f2_0001);
        assert_eq!(Control::new().with_suppress(true).into_bits(), 2);
    }

    /// NDST in xAPIC mode is bits 47:40 of the control word.
    #[test]
    fn destinations() {
        let xapic = Control::new().with_destination(destination(3, false));
        assert_eq!(xapic.into_bits() >> 40 & 0xff, 3);
        assert_eq!(destination(0x1_0003, true), 0x1_0003);
    }
}
