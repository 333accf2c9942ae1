//! One instruction each: ports, control registers, MSRs, flags.
#![allow(dead_code)]

use core::arch::asm;

pub fn outb(port: u16, v: u8) {
    unsafe { asm!("out dx, al", in("dx") port, in("al") v, options(nostack, preserves_flags)) }
}
pub fn outw(port: u16, v: u16) {
    unsafe { asm!("out dx, ax", in("dx") port, in("ax") v, options(nostack, preserves_flags)) }
}
pub fn outl(port: u16, v: u32) {
    unsafe { asm!("out dx, eax", in("dx") port, in("eax") v, options(nostack, preserves_flags)) }
}
pub fn inb(port: u16) -> u8 {
    let v;
    unsafe { asm!("in al, dx", in("dx") port, out("al") v, options(nostack, preserves_flags)) }
    v
}
pub fn inw(port: u16) -> u16 {
    let v;
    unsafe { asm!("in ax, dx", in("dx") port, out("ax") v, options(nostack, preserves_flags)) }
    v
}
pub fn inl(port: u16) -> u32 {
    let v;
    unsafe { asm!("in eax, dx", in("dx") port, out("eax") v, options(nostack, preserves_flags)) }
    v
}

pub fn hlt() {
    unsafe { asm!("hlt", options(nostack)) }
}
/// STI and HLT as one step: an interrupt that is pending wakes the HLT instead of coming before it.
pub fn sti_hlt() {
    unsafe { asm!("sti", "hlt", options(nostack)) }
}
pub fn sti() {
    unsafe { asm!("sti", "nop", options(nostack)) }
}
pub fn cli() {
    unsafe { asm!("cli", options(nostack)) }
}
pub fn pause() {
    unsafe { asm!("pause", options(nostack)) }
}

pub fn rdmsr(i: u32) -> u64 {
    let (lo, hi): (u32, u32);
    unsafe { asm!("rdmsr", in("ecx") i, out("eax") lo, out("edx") hi, options(nostack)) }
    (hi as u64) << 32 | lo as u64
}
pub fn wrmsr(i: u32, v: u64) {
    unsafe { asm!("wrmsr", in("ecx") i, in("eax") v as u32, in("edx") (v >> 32) as u32, options(nostack)) }
}

pub fn rdtsc() -> u64 {
    let (lo, hi): (u32, u32);
    unsafe { asm!("lfence", "rdtsc", out("eax") lo, out("edx") hi, options(nostack)) }
    (hi as u64) << 32 | lo as u64
}

/// The next number by chance after `x`, which is not 0 (Marsaglia's xorshift).
pub fn xorshift(mut x: u64) -> u64 {
    x ^= x << 13;
    x ^= x >> 7;
    x ^ x << 17
}

pub fn cpuid(leaf: u32, sub: u32) -> [u32; 4] {
    let (a, b, c, d): (u32, u64, u32, u32);
    unsafe {
        asm!("mov {b}, rbx", "cpuid", "xchg {b}, rbx", b = out(reg) b, inout("eax") leaf => a, inout("ecx") sub => c,
            out("edx") d, options(nostack))
    }
    [a, b as u32, c, d]
}

macro_rules! creg {
    ($read:ident, $write:ident, $name:literal) => {
        pub fn $read() -> u64 {
            let v;
            unsafe { asm!(concat!("mov {}, ", $name), out(reg) v, options(nostack)) }
            v
        }
        pub fn $write(v: u64) {
            unsafe { asm!(concat!("mov ", $name, ", {}"), in(reg) v, options(nostack)) }
        }
    };
}
creg!(cr0, set_cr0, "cr0");
creg!(cr2, set_cr2, "cr2");
creg!(cr3, set_cr3, "cr3");
creg!(cr4, set_cr4, "cr4");
creg!(cr8, set_cr8, "cr8");
creg!(dr0, set_dr0, "dr0");
creg!(dr1, set_dr1, "dr1");
creg!(dr2, set_dr2, "dr2");
creg!(dr3, set_dr3, "dr3");
creg!(dr6, set_dr6, "dr6");
creg!(dr7, set_dr7, "dr7");

pub fn flags() -> u64 {
    let v;
    unsafe { asm!("pushfq", "pop {}", out(reg) v) }
    v
}
pub fn set_flags(v: u64) {
    unsafe { asm!("push {}", "popfq", in(reg) v) }
}

pub fn xgetbv(i: u32) -> u64 {
    let (lo, hi): (u32, u32);
    unsafe { asm!("xgetbv", in("ecx") i, out("eax") lo, out("edx") hi, options(nostack)) }
    (hi as u64) << 32 | lo as u64
}
pub fn xsetbv(i: u32, v: u64) {
    unsafe { asm!("xsetbv", in("ecx") i, in("eax") v as u32, in("edx") (v >> 32) as u32, options(nostack)) }
}

pub fn invlpg(va: u64) {
    unsafe { asm!("invlpg [{}]", in(reg) va, options(nostack)) }
}

/// Index of this CPU, from the task register.
pub fn index() -> usize {
    let tr: u64;
    unsafe { asm!("str {0:r}", out(reg) tr, options(nostack, nomem, preserves_flags)) }
    ((tr as usize).wrapping_sub(0x40) >> 4) % crate::config::MAX_CPUS
}
