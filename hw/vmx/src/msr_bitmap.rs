//! The MSR bitmaps: four of 1 KiB in one page, 1 = exit (SDM vol. 3C, 25.6.9).
//!
//! | offset | MSRs                      | access |
//! |--------|---------------------------|--------|
//! | 0x000  | 0 to 0x1fff               | RDMSR  |
//! | 0x400  | 0xc000_0000 to 0xc000_1fff | RDMSR |
//! | 0x800  | 0 to 0x1fff               | WRMSR  |
//! | 0xc00  | 0xc000_0000 to 0xc000_1fff | WRMSR |

use crate::residence::Travelling;
use exitless_vcpu::backend::Opened;
use exitless_x86::msr::Msr;

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

/// x2APIC registers that hardware reads from the virtual-APIC page and that exist (SDM vol. 3C, 30.5): not the current count,
/// which runs.
fn readable() -> impl Iterator<Item = u32> {
    use exitless_x86::apic::reg as r;
    let single =
        [r::ID, r::VERSION, r::TPR, r::PPR, r::LDR, r::SVR, r::ESR, r::LVT_TIMER, r::LVT_THERMAL, r::LVT_PC];
    let more = [r::LVT_LINT0, r::LVT_LINT1, r::LVT_ERROR, r::TMICT, r::TDCR];
    let banks = (0..24).map(|n| r::ISR + n * 16);
    single.into_iter().chain(more).chain(banks).map(|offset| X2APIC + (offset >> 4))
}

/// And those whose writes hardware does by itself.
const WRITABLE: [u32; 3] = {
    use exitless_x86::apic::reg as r;
    [X2APIC + (r::TPR >> 4), X2APIC + (r::EOI >> 4), SELF_IPI]
};

const SELF_IPI: u32 = X2APIC + (exitless_x86::apic::reg::SELF_IPI >> 4);

const X2APIC: u32 = Msr::X2APIC.0;

/// Residencies of C-states, read by guests that idle in them.
const CSTATES: [Msr; 4] =
    [Msr::CORE_C1_RESIDENCY, Msr::CORE_C3_RESIDENCY, Msr::CORE_C6_RESIDENCY, Msr::CORE_C7_RESIDENCY];

/// Opens what a guest has for itself.
pub fn open(map: &mut [u8], opened: Opened) {
    let each = opened.msrs().filter_map(|(msr, read)| position(msr).map(|place| (place, read)));
    for ((byte, bit), read) in each {
        for at in [read.then_some(byte), Some(byte + WRITE)].into_iter().flatten() {
            if let Some(b) = map.get_mut(at) {
                *b &= !(1 << bit);
            }
        }
    }
    for (byte, bit) in
        CSTATES.into_iter().filter(|_| opened.has(Opened::CSTATES)).filter_map(|m| position(m.0))
    {
        if let Some(b) = map.get_mut(byte) {
            *b &= !(1 << bit);
        }
    }
}

/// Opens the x2APIC's MSRs as far as hardware virtualises them.
pub fn open_x2apic(map: &mut [u8]) {
    let reads = readable().filter_map(position);
    let writes = WRITABLE.into_iter().filter_map(position).map(|(byte, bit)| (byte + WRITE, bit));
    for (at, bit) in reads.chain(writes) {
        if let Some(b) = map.get_mut(at) {
            *b &= !(1 << bit);
        }
    }
}

/// Opens the deadline of the CPU's APIC timer, for a guest to which it is lent.
pub fn open_deadline(map: &mut [u8]) {
    let Some((byte, bit)) = position(Msr::TSC_DEADLINE.0) else { return };
    for at in [byte, byte + WRITE] {
        if let Some(b) = map.get_mut(at) {
            *b &= !(1 << bit);
        }
    }
}

/// Opens writes of the ICR, where the CPU sends IPIs: what it cannot send exits behind the write.
pub fn open_icr(map: &mut [u8]) {
    const ICR: u32 = X2APIC + (exitless_x86::apic::reg::ICR >> 4);
    let own = position(ICR).and_then(|(byte, bit)| Some((map.get_mut(byte + WRITE)?, bit)));
    if let Some((byte, bit)) = own {
        *byte &= !(1 << bit);
    }
}

/// Lets self-IPIs exit again.
pub fn close_self_ipi(map: &mut [u8]) {
    let own = position(SELF_IPI).and_then(|(byte, bit)| Some((map.get_mut(byte + WRITE)?, bit)));
    if let Some((byte, bit)) = own {
        *byte |= 1 << bit;
    }
}

/// Registers that the CPU keeps beyond a vCPU's turn: writes must exit ([`crate::residence::Travelling`]).
fn lent(msr: u32) -> bool {
    Travelling::ALL.into_iter().any(|t| t.lent() && t.number() == msr)
}

/// Sets all bitmaps to "exit", then opens what the policy table passes through.
pub fn fill(map: &mut [u8], passthrough: impl Iterator<Item = u32>) {
    map.fill(0xff);
    for msr in passthrough.filter(|&msr| !lent(msr)) {
        let Some((byte, bit)) = position(msr) else { continue };
        for at in [byte, byte + WRITE] {
            if let Some(b) = map.get_mut(at) {
                *b &= !(1 << bit);
            }
        }
    }
}
