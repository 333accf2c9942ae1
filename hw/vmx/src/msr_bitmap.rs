//! The MSR bitmaps: four of 1 KiB in one page, 1 = exit (SDM vol. 3C, 25.6.9).
//!
//! | offset | MSRs                      | access |
//! |--------|---------------------------|--------|
//! | 0x000  | 0 to 0x1fff               | RDMSR  |
//! | 0x400  | 0xc000_0000 to 0xc000_1fff | RDMSR |
//! | 0x800  | 0 to 0x1fff               | WRMSR  |
//! | 0xc00  | 0xc000_0000 to 0xc000_1fff | WRMSR |

/// Bytes of the bitmaps: one page.
pub const SIZE: usize = 4096;
/// From an MSR's read bit to its write bit, bytes.
const WRITE: usize = 0x800;

/// Byte and bit of an MSR's read bit; the write bit lies 0x800 bytes further. `None`: no bit, the access always exits.
pub fn position(msr: u32) -> Option<(usize, u8)> {
    let (base, bit) = match msr {
        0..=0x1fff => (0, msr),
        0xc000_0000..=0xc000_1fff => (0x400, msr & 0x1fff),
        _ => return None,
    };
    Some((base + bit as usize / 8, (bit % 8) as u8))
}

/// Sets all bitmaps to "exit", then opens what the policy table passes through.
pub fn fill(map: &mut [u8], passthrough: impl Iterator<Item = u32>) {
    map.fill(0xff);
    for msr in passthrough {
        let Some((byte, bit)) = position(msr) else { continue };
        for at in [byte, byte + WRITE] {
            if let Some(b) = map.get_mut(at) {
                *b &= !(1 << bit);
            }
        }
    }
}
