//! Control registers, debug registers and XCR0: values, reserved bits and the faults around them.

use crate::config::*;
use crate::cpu::*;
use crate::report::*;
use crate::test;
use crate::trap::{expect, expect_or_skip};
use core::arch::asm;

const UD: u64 = 6;
const NM: u64 = 7;
const GP: u64 = 13;

test!(cr0_bits, "cr/cr0_bits");
fn cr0_bits() {
    let c = cr0();
    for bit in [1u64, 3, 16, 18] {
        set_cr0(c ^ 1 << bit);
        check_eq(cr0(), c ^ 1 << bit, "CR0 read back");
        outb(PIO_RAM, 0);
        check_eq(cr0(), c ^ 1 << bit, "CR0 after an exit");
        set_cr0(c);
    }
}

test!(cr0_upper, "cr/cr0_upper_half");
fn cr0_upper() {
    let c = cr0();
    expect_or_skip(GP, 0, "the upper half of CR0", || set_cr0(c | 1 << 32));
}

test!(cr0_cache, "cr/cr0_cache_disable");
fn cr0_cache() {
    let c = cr0();
    set_cr0(c | 1 << 30);
    check_eq(cr0() >> 29 & 3, 2, "CD");
    set_cr0(c | 3 << 29);
    check_eq(cr0() >> 29 & 3, 3, "CD and NW");
    set_cr0(c);
    check_eq(cr0(), c, "as before");
}

test!(cr0_invalid, "cr/cr0_invalid");
fn cr0_invalid() {
    let c = cr0();
    expect(GP, 0, "NW without CD", || set_cr0((c & !(1 << 30)) | 1 << 29));
    expect(GP, 0, "PG without PE", || set_cr0(c & !1));
    check_eq(cr0(), c, "unchanged");
}

test!(ts, "cr/ts_device_not_available");
fn ts() {
    set_cr0(cr0() | 8);
    outb(PIO_RAM, 0);
    let mut r: u64 = 0;
    // The common stub saves vector state first, so it must not run with TS set: use a plain gate for #NM.
    crate::trap::set_gate(7, nm_stub as *const () as u64, 0xe, 0, 0);
    unsafe { asm!("pxor xmm0, xmm0", inout("rax") r, out("xmm0") _) };
    check_eq(r, NM, "rax set by the #NM handler");
    check_eq(cr0() & 8, 0, "CLTS");
}
core::arch::global_asm!("nm_stub:", "clts", "mov eax, 7", "iretq");
unsafe extern "C" {
    fn nm_stub();
}

test!(clts_lmsw, "cr/clts_lmsw_smsw");
fn clts_lmsw() {
    let c = cr0();
    unsafe { asm!("lmsw {0:x}", in(reg) (c as u16) | 8) };
    check_eq(cr0(), c | 8, "LMSW sets TS");
    unsafe { asm!("clts") };
    check_eq(cr0(), c, "CLTS");
    unsafe { asm!("lmsw {0:x}", in(reg) (c as u16) & !1) };
    check_eq(cr0() & 1, 1, "LMSW cannot clear PE");
    let s: u64;
    unsafe { asm!("smsw {0:r}", out(reg) s) };
    check_eq(s & 0xffff, c & 0xffff, "SMSW");
}

test!(wp, "cr/write_protect");
fn wp() {
    let p = crate::mem::page();
    let va = crate::mem::FREE_VA;
    crate::mem::map(va, p, crate::mem::P);
    set_cr0(cr0() & !0x1_0000);
    crate::mem::w8(va, 1);
    set_cr0(cr0() | 0x1_0000);
    let c = expect(14, 3, "write to a read-only page with WP", || crate::mem::w8(va, 2));
    check_eq(c.cr2, va, "CR2");
    check_eq(crate::mem::r8(p) as u64, 1, "the first write, not the second");
}

test!(cr4_bits, "cr/cr4_bits");
fn cr4_bits() {
    let c = cr4();
    for bit in [2u64, 3, 7, 8] {
        set_cr4(c ^ 1 << bit);
        check_eq(cr4(), c ^ 1 << bit, "CR4 read back");
        outb(PIO_RAM, 0);
        check_eq(cr4(), c ^ 1 << bit, "CR4 after an exit");
        set_cr4(c);
    }
}

test!(cr4_invalid, "cr/cr4_invalid");
fn cr4_invalid() {
    let c = cr4();
    expect(GP, 0, "PAE cleared in long mode", || set_cr4(c & !0x20));
    expect(GP, 0, "reserved bit 31", || set_cr4(c | 1 << 31));
    expect(GP, 0, "reserved bit 15", || set_cr4(c | 1 << 15));
    check_eq(cr4(), c, "unchanged");
}

test!(smep, "cr/smep_smap");
fn smep() {
    let f = cpuid(7, 0)[1];
    if f & 1 << 7 == 0 || f & 1 << 20 == 0 {
        skip("no SMEP or SMAP")
    }
    let (p, va) = (crate::mem::page(), crate::mem::FREE_VA);
    crate::mem::map(va, p, 7);
    // The tables above carry U already except the first level.
    unsafe { *(PML4 as *mut u64).add((va >> 39) as usize & 511) |= 4 };
    crate::mem::w8(p, 0xc3);
    set_cr4(cr4() | 1 << 20 | 1 << 21);
    let c = expect(14, 0x11, "fetch from a user page", || {
        let f: extern "C" fn() = unsafe { core::mem::transmute(va) };
        f()
    });
    check_eq(c.cr2, va, "CR2");
    expect(14, 1, "read of a user page", || {
        crate::mem::r8(va);
    });
    unsafe { asm!("stac") };
    check_eq(crate::mem::r8(va) as u64, 0xc3, "read with AC");
    unsafe { asm!("clac") };
}

test!(cr3_switch, "cr/cr3_switch");
fn cr3_switch() {
    // A second top-level table that maps the free region elsewhere.
    let (a, b) = (crate::mem::page(), crate::mem::page());
    let va = crate::mem::FREE_VA;
    crate::mem::map(va, a, 3);
    crate::mem::w64(a, 0xa);
    crate::mem::w64(b, 0xb);
    let top = crate::mem::page();
    unsafe { core::ptr::copy_nonoverlapping(PML4 as *const u64, top as *mut u64, 512) };
    let (l3, l2, l1) = (crate::mem::page(), crate::mem::page(), crate::mem::page());
    unsafe {
        *(top as *mut u64).add((va >> 39) as usize & 511) = l3 | 3;
        *(l3 as *mut u64) = l2 | 3;
        *(l2 as *mut u64) = l1 | 3;
        *(l1 as *mut u64) = b | 3;
    }
    for _ in 0..5 {
        check_eq(crate::mem::r64(va), 0xa, "first tables");
        set_cr3(top);
        check_eq(crate::mem::r64(va), 0xb, "second tables");
        set_cr3(PML4);
    }
}

test!(cr2, "cr/cr2_survives_exits");
fn cr2() {
    set_cr2(0x1234_5678_9abc);
    outb(PIO_RAM, 0);
    cpuid(0, 0);
    check_eq(crate::cpu::cr2(), 0x1234_5678_9abc, "CR2");
}

test!(cr8_values, "cr/cr8");
fn cr8_values() {
    for v in 0..16 {
        set_cr8(v);
        outb(PIO_RAM, 0);
        check_eq(cr8(), v, "CR8");
        check_eq(crate::apic::read(crate::apic::TPR) as u64, v << 4, "TPR");
    }
    set_cr8(0);
    crate::apic::write(crate::apic::TPR, 0x75);
    check_eq(cr8(), 7, "CR8 after a TPR write");
}

test!(cr8_invalid, "cr/cr8_invalid");
fn cr8_invalid() {
    expect_or_skip(GP, 0, "CR8 16", || set_cr8(16));
    expect(GP, 0, "CR8 upper half", || set_cr8(1 << 32));
}

test!(dr, "cr/debug_registers");
fn dr() {
    set_dr0(0x1111_0000_1111);
    set_dr1(0x2222_0000_2222);
    set_dr2(0x3333_0000_3333);
    set_dr3(0x4444_0000_4444);
    outb(PIO_RAM, 0);
    check_eq(dr0(), 0x1111_0000_1111, "DR0");
    check_eq(dr1(), 0x2222_0000_2222, "DR1");
    check_eq(dr2(), 0x3333_0000_3333, "DR2");
    check_eq(dr3(), 0x4444_0000_4444, "DR3");
    set_dr7(0x400 | 0x2);
    outb(PIO_RAM, 0);
    check_eq(dr7(), 0x402, "DR7");
    set_dr7(0x400);
    set_dr6(0xffff_0ff0);
    outb(PIO_RAM, 0);
    check_eq(dr6(), 0xffff_0ff0, "DR6");
}

test!(dr_invalid, "cr/debug_registers_invalid");
fn dr_invalid() {
    if crate::trap::catch(|| set_dr7(1 << 32)).is_none() {
        skip("this CPU (an emulator's) accepts the upper half of DR7")
    }
    expect(GP, 0, "DR6 upper half", || set_dr6(1 << 32));
}

fn need_xsave() {
    if cpuid(1, 0)[2] & 1 << 26 == 0 {
        skip("no XSAVE")
    }
}

test!(xsetbv_valid, "cr/xsetbv");
fn xsetbv_valid() {
    need_xsave();
    set_cr4(cr4() | 1 << 18);
    check_eq(xgetbv(0), 1, "XCR0 after reset");
    xsetbv(0, 3);
    outb(PIO_RAM, 0);
    check_eq(xgetbv(0), 3, "x87 and SSE");
    if cpuid(0xd, 0)[0] & 4 != 0 {
        xsetbv(0, 7);
        outb(PIO_RAM, 0);
        check_eq(xgetbv(0), 7, "AVX too");
        xsetbv(0, 1);
    }
}

test!(xsetbv_invalid, "cr/xsetbv_invalid");
fn xsetbv_invalid() {
    need_xsave();
    set_cr4(cr4() | 1 << 18);
    expect(GP, 0, "x87 bit clear", || xsetbv(0, 2));
    expect(GP, 0, "zero", || xsetbv(0, 0));
    expect(GP, 0, "AVX without SSE", || xsetbv(0, 5));
    expect(GP, 0, "bit 63", || xsetbv(0, 1 << 63 | 3));
    expect(GP, 0, "XCR1", || xsetbv(1, 3));
    expect(GP, 0, "an unsupported feature", || xsetbv(0, 3 | 1 << 30));
    check_eq(xgetbv(0), 1, "unchanged");
}

test!(xsetbv_ud, "cr/xsetbv_without_osxsave");
fn xsetbv_ud() {
    expect_or_skip(UD, 0, "XSETBV without OSXSAVE", || xsetbv(0, 3));
}

// ---- UMIP ----

/// SGDT, SIDT, SLDT, STR and SMSW with the address in RAX or to memory at RAX, then INT3, for CPL 3.
const STORES: [&[u8]; 4] = [
    &[0x0f, 0x01, 0x00, 0xcc],       // sgdt [rax]
    &[0x0f, 0x01, 0x08, 0xcc],       // sidt [rax]
    &[0x0f, 0x00, 0xc0, 0xcc],       // sldt eax
    &[0x66, 0x0f, 0x00, 0x08, 0xcc], // str [rax]
];

/// As user code; the exception that ends it.
fn as_user(code: &[u8]) -> u64 {
    let (text, stack) = (crate::mem::page(), crate::mem::page());
    let va = crate::mem::FREE_VA + 0x20_0000;
    crate::mem::map(va, text, 5);
    crate::mem::map(va + 0x1000, stack, 7);
    unsafe { *(PML4 as *mut u64).add((va >> 39) as usize & 511) |= 4 };
    for (i, b) in code.iter().enumerate() {
        crate::mem::w8(text + i as u64, *b);
    }
    invlpg(va);
    crate::trap::user(va, va + 0x1ff0, va + 0x1800).vector
}

/// What the five instructions store, in this order, with the LDT in place of SMSW.
fn tables() -> [u64; 6] {
    let (mut g, mut i) = ([0u64; 2], [0u64; 2]);
    let (ldt, tr): (u64, u64);
    unsafe {
        asm!("sgdt [{}]", in(reg) &mut g);
        asm!("sidt [{}]", in(reg) &mut i);
        asm!("sldt {:e}", out(reg) ldt);
        asm!("str {:e}", out(reg) tr);
    }
    [g[0], g[1] & 0xffff, i[0], i[1] & 0xffff, ldt, tr]
}

test!(umip, "cr/umip");
fn umip() {
    const UMIP: u64 = 1 << 11;
    if cpuid(7, 0)[2] & 4 == 0 {
        expect(GP, 0, "UMIP without the feature", || set_cr4(cr4() | UMIP));
        skip("no UMIP")
    }
    for code in STORES {
        check_eq(as_user(code), 3, "CPL 3 without UMIP");
    }
    let before = tables();
    set_cr4(cr4() | UMIP);
    check_eq(cr4() & UMIP, UMIP, "CR4");
    check_eq(before[5], 0x40, "TR");
    for (now, then) in tables().into_iter().zip(before) {
        check_eq(now, then, "CPL 0 with UMIP");
    }
    for code in STORES {
        check_eq(as_user(code), GP, "CPL 3 with UMIP");
    }
    // Loads at CPL 0, where exits make UMIP.
    let (mut g, mut i) = ([0u64; 2], [0u64; 2]);
    unsafe {
        asm!("sgdt [{0}]", "lgdt [{0}]", in(reg) &mut g);
        asm!("sidt [{0}]", "lidt [{0}]", in(reg) &mut i);
        asm!("lldt {:x}", in(reg) 0u64);
    }
    crate::trap::load_tr(0);
    check_eq(tables()[5], 0x40, "TR after LTR");
    expect(UD, 0, "the IDT still works", || unsafe { asm!("ud2") });
    check_eq(as_user(&[0x0f, 0x01, 0x10, 0xcc]), GP, "LGDT at CPL 3");
    set_cr4(cr4() & !UMIP);
    for code in STORES {
        check_eq(as_user(code), 3, "CPL 3 without UMIP again");
    }
}
