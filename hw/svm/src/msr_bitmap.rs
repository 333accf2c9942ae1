//! The MSR permission map: two bits for each of 3 x 8192 MSRs, 1 = intercept (APM vol. 2, 15.11).

use exitless_vcpu::backend::Opened;
use exitless_x86::apic::reg;
use exitless_x86::msr::Msr;

/// Bytes of the map: two pages.
pub const SIZE: usize = 8192;

/// First byte and bit of an MSR's read bit; the write bit follows. `None`: outside the map, always intercepted.
pub fn position(msr: u32) -> Option<(usize, u8)> {
    let (base, start) = match msr {
        0..=0x1fff => (0, 0),
        0xc000_0000..=0xc000_1fff => (0x800, 0xc000_0000),
        0xc001_0000..=0xc001_1fff => (0x1000, 0xc001_0000),
        _ => return None,
    };
    let bit = (msr - start) as usize * 2;
    Some((base + bit / 8, (bit % 8) as u8))
}

/// Sets the whole map to "intercept", then opens what the policy table passes through.
pub fn fill(map: &mut [u8], passthrough: impl Iterator<Item = u32>) {
    map.fill(0xff);
    for msr in passthrough {
        if let Some((byte, bit)) = position(msr)
            && let Some(b) = map.get_mut(byte)
        {
            *b &= !(3 << bit);
        }
    }
}

/// Opens what a guest has for itself: the write bit follows the read bit.
pub fn open(map: &mut [u8], opened: Opened) {
    for (msr, read) in opened.msrs() {
        if let Some((byte, bit)) = position(msr)
            && let Some(b) = map.get_mut(byte)
        {
            let bits = if read { 3 } else { 2 };
            *b &= !(bits << bit);
        }
    }
}

/// Opens the registers of an x2APIC that AVIC virtualises and that matter: TPR and EOI, and with `ipis` writes of the ICR. All others
/// exit, and software answers.
pub fn open_x2avic(map: &mut [u8], ipis: bool) {
    const READ: u8 = 1;
    const WRITE: u8 = 2;
    let icr = if ipis { WRITE } else { 0 };
    for (offset, bits) in [(reg::TPR, READ | WRITE), (reg::EOI, WRITE), (reg::ICR, icr)] {
        if let Some((byte, bit)) = position(Msr::X2APIC.0 + (offset >> 4))
            && let Some(b) = map.get_mut(byte)
        {
            *b &= !(bits << bit);
        }
    }
}
