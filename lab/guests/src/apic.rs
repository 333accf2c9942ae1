//! The local APIC as the guest's driver sees it, in xAPIC (MMIO) and x2APIC (MSR) form.
#![allow(dead_code)]

use crate::cpu::{rdmsr, wrmsr};
use crate::mem::{r32, w32};

pub const BASE: u64 = 0xfee0_0000;
pub const ID: u32 = 0x20;
pub const VERSION: u32 = 0x30;
pub const TPR: u32 = 0x80;
pub const PPR: u32 = 0xa0;
pub const EOI: u32 = 0xb0;
pub const LDR: u32 = 0xd0;
pub const DFR: u32 = 0xe0;
pub const SVR: u32 = 0xf0;
pub const ISR: u32 = 0x100;
pub const TMR: u32 = 0x180;
pub const IRR: u32 = 0x200;
pub const ESR: u32 = 0x280;
pub const ICR: u32 = 0x300;
pub const ICR2: u32 = 0x310;
pub const LVTT: u32 = 0x320;
pub const LVT_THERMAL: u32 = 0x330;
pub const LVT_PC: u32 = 0x340;
pub const LVT0: u32 = 0x350;
pub const LVT1: u32 = 0x360;
pub const LVT_ERR: u32 = 0x370;
pub const TMICT: u32 = 0x380;
pub const TMCCT: u32 = 0x390;
pub const TDCR: u32 = 0x3e0;
pub const SELF_IPI: u32 = 0x3f0;

pub const MASKED: u32 = 1 << 16;
pub const PERIODIC: u32 = 1 << 17;
pub const TSC_DEADLINE: u32 = 2 << 17;

pub const MSR_APIC_BASE: u32 = 0x1b;
pub const MSR_TSC_DEADLINE: u32 = 0x6e0;

pub fn x2apic() -> bool {
    rdmsr(MSR_APIC_BASE) & 0x400 != 0
}

pub fn read(reg: u32) -> u32 {
    if x2apic() { rdmsr(0x800 + reg / 16) as u32 } else { r32(BASE + reg as u64) }
}

pub fn write(reg: u32, v: u32) {
    if x2apic() { wrmsr(0x800 + reg / 16, v as u64) } else { w32(BASE + reg as u64, v) }
}

/// Writes the interrupt command register: low word and destination (8 bits in xAPIC mode, 32 in x2APIC mode).
pub fn icr(low: u32, dest: u32) {
    if x2apic() {
        wrmsr(0x830, (dest as u64) << 32 | low as u64)
    } else {
        w32(BASE + ICR2 as u64, dest << 24);
        w32(BASE + ICR as u64, low)
    }
}

pub fn eoi() {
    write(EOI, 0)
}

/// Software-enables the APIC with spurious vector 0xff.
pub fn enable() {
    write(SVR, 0x1ff)
}

pub fn to_x2apic() {
    wrmsr(MSR_APIC_BASE, rdmsr(MSR_APIC_BASE) | 0xc00);
}

/// Bit of a vector in ISR, TMR or IRR.
pub fn bit(reg: u32, vector: u8) -> bool {
    read(reg + (vector as u32 / 32) * 16) >> (vector % 32) & 1 != 0
}
