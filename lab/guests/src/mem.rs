//! Guest memory: a heap of pages, 4 KiB mappings above the identity map, and volatile accesses.
#![allow(dead_code)]

use crate::config::*;
use crate::cpu;
use core::sync::atomic::{AtomicU64, Ordering};

static NEXT: AtomicU64 = AtomicU64::new(0x40_0000);

/// A zeroed 4 KiB page (identity mapped).
pub fn page() -> u64 {
    let p = NEXT.fetch_add(4096, Ordering::Relaxed);
    unsafe { core::ptr::write_bytes(p as *mut u8, 0, 4096) };
    p
}

/// First address of a region that nothing else maps.
pub const FREE_VA: u64 = 1 << 40;

pub const P: u64 = 1;
pub const W: u64 = 2;
pub const U: u64 = 4;
pub const NX: u64 = 1 << 63;

/// Address of the entry that maps `va` at a level (1 = 4 KiB page), making tables on the way down.
pub fn entry(va: u64, level: u32) -> *mut u64 {
    let mut table = PML4;
    for l in (level + 1..=4).rev() {
        let e = (table + (va >> (12 + 9 * (l - 1)) & 511) * 8) as *mut u64;
        unsafe {
            if *e & P == 0 {
                *e = page() | P | W | U;
            }
            table = *e & 0x000f_ffff_ffff_f000;
        }
    }
    (table + (va >> (12 + 9 * (level - 1)) & 511) * 8) as *mut u64
}

pub fn map(va: u64, pa: u64, flags: u64) {
    unsafe { *entry(va, 1) = pa | flags };
    cpu::invlpg(va);
}

pub fn r8(a: u64) -> u8 {
    unsafe { (a as *const u8).read_volatile() }
}
pub fn r16(a: u64) -> u16 {
    let v: u16;
    unsafe { core::arch::asm!("mov {0:x}, [{1}]", out(reg) v, in(reg) a, options(nostack)) }
    v
}
pub fn r32(a: u64) -> u32 {
    let v;
    unsafe { core::arch::asm!("mov {0:e}, [{1}]", out(reg) v, in(reg) a, options(nostack)) }
    v
}
pub fn r64(a: u64) -> u64 {
    let v;
    unsafe { core::arch::asm!("mov {0}, [{1}]", out(reg) v, in(reg) a, options(nostack)) }
    v
}
pub fn w8(a: u64, v: u8) {
    unsafe { (a as *mut u8).write_volatile(v) }
}
pub fn w16(a: u64, v: u16) {
    unsafe { core::arch::asm!("mov [{0}], {1:x}", in(reg) a, in(reg) v, options(nostack)) }
}
pub fn w32(a: u64, v: u32) {
    unsafe { core::arch::asm!("mov [{0}], {1:e}", in(reg) a, in(reg) v, options(nostack)) }
}
pub fn w64(a: u64, v: u64) {
    unsafe { core::arch::asm!("mov [{0}], {1}", in(reg) a, in(reg) v, options(nostack)) }
}
