//! What Exitless offers of its own (`docs/protocols`): CPUID leaves, MSRs, the window to descriptors. Other hosts have none of it.

use crate::cpu::cpuid;

const LEAF: u32 = 0x4000_4500;
pub const MSR_LAZY_DEADLINE: u32 = 0x4558_4c00;
pub const MSR_DESCRIPTOR: u32 = 0x4558_4c01;
pub const MSR_SEQUENCE: u32 = 0x4558_4c02;
pub const MSR_PARTS: u32 = 0x4558_4c03;
pub const MSR_ICR: u32 = 0x4558_4c04;
pub const WINDOW: u64 = 0xfee1_0000;

/// All of these features are offered.
pub fn offers(features: u32) -> bool {
    let [max, b, c, d] = cpuid(LEAF, 0);
    if [b, c, d] != [0x7469_7845, 0x7373_656c, 0x5650] || max <= LEAF {
        return false;
    }
    let [offered, version, ..] = cpuid(LEAF + 1, 0);
    version == 1 && offered & features == features
}

/// Where the window has the descriptor of this APIC id.
pub fn descriptor(id: usize) -> u64 {
    WINDOW + 64 * id as u64
}
