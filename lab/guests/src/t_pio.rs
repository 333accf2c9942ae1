//! Port I/O: sizes, string forms in both directions, all address sizes, faults in the middle.

use crate::config::*;
use crate::cpu::*;
use crate::report::*;
use crate::trap::{self, Shared};
use crate::{host, mem, test};
use core::arch::asm;

#[repr(C, align(4096))]
struct Buf([u8; 12288]);
static BUF: Shared<Buf> = Shared::new(Buf([0; 12288]));
fn buf() -> u64 {
    BUF.get() as *mut _ as u64
}
static TAKEN: Shared<[u8; 8192]> = Shared::new([0; 8192]);

fn bytes(at: u64, n: u64, first: u8, what: &str) {
    for i in 0..n {
        check_eq(mem::r8(at + i) as u64, first.wrapping_add(i as u8) as u64, what);
    }
}

test!(imm, "pio/immediate_port");
fn imm() {
    unsafe {
        asm!("in al, 0x21", "mov ah, al", "not al", "out 0x21, al", "in al, 0x21", "not al", "cmp al, ah", "je 2f", "ud2",
        "2:", "mov al, ah", "out 0x21, al", out("ax") _)
    };
}

test!(upper, "pio/in_keeps_or_clears_upper_bits");
fn upper() {
    outl(PIO_RAM, 0x8899_aabb);
    let (mut a, mut b, mut c) = (!0u64, !0u64, !0u64);
    unsafe {
        asm!("in al, dx", in("dx") PIO_RAM, inout("rax") a);
        asm!("in ax, dx", in("dx") PIO_RAM, inout("rax") b);
        asm!("in eax, dx", in("dx") PIO_RAM, inout("rax") c);
    }
    check_eq(a, 0xffff_ffff_ffff_ffbb, "IN AL keeps the rest");
    check_eq(b, 0xffff_ffff_ffff_aabb, "IN AX keeps the rest");
    check_eq(c, 0x8899_aabb, "IN EAX clears the upper half");
}

test!(nobody, "pio/unclaimed_port");
fn nobody() {
    check_eq(inl(0x5ff0) as u64, 0xffff_ffff, "user space gives all ones");
    outl(0x5ff0, 1);
}

test!(last_port, "pio/highest_port");
fn last_port() {
    outb(0xffff, 1);
    check_eq(inb(0xffff) as u64, 0xff, "port ffff");
    inl(0xfffe);
}

macro_rules! ins {
    ($f:ident, $name:literal, $insn:literal, $size:literal) => {
        test!($f, $name);
        fn $f() {
            let (at, n) = (buf() + 4096 - 5 * $size, 40u64);
            let (mut di, mut cx) = (at, n);
            unsafe { asm!($insn, in("dx") PIO_IN, inout("rdi") di, inout("rcx") cx) };
            check_eq(di, at + n * $size, "RDI");
            check_eq(cx, 0, "RCX");
            bytes(at, n * $size, 0, "data across the page");
        }
    };
}
ins!(insb, "pio/rep_insb", "rep insb", 1);
ins!(insw, "pio/rep_insw", "rep insw", 2);
ins!(insd, "pio/rep_insd", "rep insd", 4);
ins!(insd32, "pio/rep_insd_address_size_32", "addr32 rep insd", 4);

test!(ins_long, "pio/rep_insb_three_pages");
fn ins_long() {
    let at = buf() + 1;
    unsafe { asm!("rep insb", in("dx") PIO_IN, inout("rdi") at => _, inout("rcx") 10000u64 => _) };
    bytes(at, 10000, 0, "data");
}

test!(ins_df, "pio/rep_insb_df");
fn ins_df() {
    let at = buf() + 4100;
    let di: u64;
    unsafe {
        asm!("std", "rep insb", "cld", in("dx") PIO_IN, inout("rdi") at => di, inout("rcx") 10u64 => _)
    };
    check_eq(di, at - 10, "RDI");
    for i in 0..10 {
        check_eq(mem::r8(at - i) as u64, i, "data downwards across the page");
    }
}

test!(insd_df, "pio/rep_insd_df");
fn insd_df() {
    let at = buf() + 4104;
    let di: u64;
    unsafe { asm!("std", "rep insd", "cld", in("dx") PIO_IN, inout("rdi") at => di, inout("rcx") 4u64 => _) };
    check_eq(di, at - 16, "RDI");
    for i in 0..4 {
        check_eq(mem::r32(at - 4 * i) as u64, 0x0302_0100 + 0x0404_0404 * i, "data");
    }
}

test!(count0, "pio/count_0");
fn count0() {
    let (mut di, mut si) = (0x1234u64, 0x5678u64);
    let before = host::user_exits(2);
    unsafe {
        asm!("rep insb", in("dx") PIO_IN, inout("rdi") di, inout("rcx") 0u64 => _);
        asm!("rep outsb", in("dx") PIO_OUT, inout("rsi") si, inout("rcx") 0u64 => _);
        // With a 32-bit address size only ECX counts.
        asm!("addr32 rep outsb", in("dx") PIO_OUT, inout("rsi") si, inout("rcx") 0x1_0000_0000u64 => _);
    }
    check_eq(host::user_exits(2) - before, 1, "no exit for them");
    check_eq(di & 0xffff, 0x1234, "RDI");
    check_eq(si & 0xffff, 0x5678, "RSI");
    let _ = (&mut di, &mut si);
}

fn taken() -> u64 {
    host::must(op::FIFO_READ, &[TAKEN.get() as *mut _ as u64, 8192])
}

macro_rules! outs {
    ($f:ident, $name:literal, $insn:literal, $size:literal) => {
        test!($f, $name);
        fn $f() {
            let (at, n) = (buf() + 4096 - 5 * $size, 40u64);
            for i in 0..n * $size {
                mem::w8(at + i, i as u8);
            }
            let (mut si, mut cx) = (at, n);
            unsafe { asm!($insn, in("dx") PIO_OUT, inout("rsi") si, inout("rcx") cx) };
            check_eq(si, at + n * $size, "RSI");
            check_eq(cx, 0, "RCX");
            check_eq(taken(), n * $size, "bytes that arrived");
            bytes(TAKEN.get() as *mut _ as u64, n * $size, 0, "data");
        }
    };
}
outs!(outsb, "pio/rep_outsb", "rep outsb", 1);
outs!(outsw, "pio/rep_outsw", "rep outsw", 2);
outs!(outsd, "pio/rep_outsd", "rep outsd", 4);
outs!(outsb32, "pio/rep_outsb_address_size_32", "addr32 rep outsb", 1);

test!(outs_df, "pio/rep_outsw_df");
fn outs_df() {
    let at = buf() + 4098;
    for i in 0..6u16 {
        mem::w16(at - 2 * i as u64, i);
    }
    let si: u64;
    unsafe {
        asm!("std", "rep outsw", "cld", in("dx") PIO_OUT, inout("rsi") at => si, inout("rcx") 6u64 => _)
    };
    check_eq(si, at - 12, "RSI");
    check_eq(taken(), 12, "bytes");
    for i in 0..6 {
        check_eq(TAKEN.get()[2 * i] as u64, i as u64, "words downwards");
    }
}

test!(outs_long, "pio/rep_outsb_two_pages");
fn outs_long() {
    for i in 0..5000 {
        mem::w8(buf() + i, i as u8);
    }
    unsafe { asm!("rep outsb", in("dx") PIO_OUT, inout("rsi") buf() => _, inout("rcx") 5000u64 => _) };
    check_eq(taken(), 5000, "bytes");
    bytes(TAKEN.get() as *mut _ as u64, 5000, 0, "data");
}

test!(single, "pio/insd_outsd_without_rep");
fn single() {
    let at = buf();
    unsafe {
        asm!("insd", "insd", in("dx") PIO_IN, inout("rdi") at => _);
        asm!("outsd", "outsd", in("dx") PIO_OUT, inout("rsi") at => _);
    }
    check_eq(mem::r64(at), 0x0706_0504_0302_0100, "in");
    check_eq(taken(), 8, "out");
}

test!(segment, "pio/outs_segment_override");
fn segment() {
    mem::w8(buf() + 0x10, 0x99);
    wrmsr(0xc000_0100, buf());
    unsafe { asm!("fs outsb", in("dx") PIO_OUT, inout("rsi") 0x10u64 => _) };
    check_eq(taken(), 1, "bytes");
    check_eq(TAKEN.get()[0] as u64, 0x99, "through FS");
}

static FAULTS: Shared<[u64; 3]> = Shared::new([0; 3]);
fn fix(f: &mut trap::Frame) {
    let n = FAULTS.get();
    n[0] += 1;
    n[1] = f.rcx;
    n[2] = cr2();
    if n[0] > 3 {
        fail("the fault keeps coming")
    }
    let page = mem::page();
    // Contents for reads from the page: a counter.
    for i in 0..4096 {
        mem::w8(page + i, i as u8);
    }
    mem::map(cr2() & !0xfff, page, mem::P | mem::W);
}

test!(ins_fault, "pio/page_fault_in_rep_insb");
fn ins_fault() {
    let va = mem::FREE_VA + 0x50_0000;
    mem::map(va, mem::page(), mem::P | mem::W);
    mem::map(va + 0x1000, 0, 0);
    trap::on(14, fix);
    let (mut di, mut cx) = (va + 0xff0, 32u64);
    unsafe { asm!("rep insb", in("dx") PIO_IN, inout("rdi") di, inout("rcx") cx) };
    check_eq(FAULTS.get()[0], 1, "faults");
    check_eq(FAULTS.get()[1], 16, "RCX at the fault");
    check_eq(FAULTS.get()[2], va + 0x1000, "CR2");
    check_eq(di, va + 0x1010, "RDI at the end");
    check_eq(cx, 0, "RCX at the end");
    let _ = (&mut di, &mut cx);
    bytes(va + 0xff0, 16, 0, "data before the fault");
}

test!(outs_fault, "pio/page_fault_in_rep_outsb");
fn outs_fault() {
    let va = mem::FREE_VA + 0x50_0000;
    let first = mem::page();
    mem::map(va, first, mem::P | mem::W);
    mem::map(va + 0x1000, 0, 0);
    for i in 0..4096 {
        mem::w8(first + i, i as u8);
    }
    trap::on(14, fix);
    unsafe { asm!("rep outsb", in("dx") PIO_OUT, inout("rsi") va + 0xff0 => _, inout("rcx") 32u64 => _) };
    check_eq(FAULTS.get()[0], 1, "faults");
    check_eq(FAULTS.get()[2], va + 0x1000, "CR2");
    check_eq(taken(), 32, "bytes");
    check_eq(TAKEN.get()[15] as u64, 0xff, "last byte before the fault");
    check_eq(TAKEN.get()[16] as u64, 0, "first byte after it");
}

test!(ins_ro, "pio/ins_to_read_only_page_faults");
fn ins_ro() {
    let va = mem::FREE_VA + 0x50_0000;
    mem::map(va, mem::page(), mem::P);
    let c = trap::expect(14, 3, "INS to a read-only page", || unsafe {
        asm!("insb", in("dx") PIO_IN, inout("rdi") va => _)
    });
    check_eq(c.cr2, va, "CR2");
}

test!(ins_mmio, "pio/ins_to_mmio");
fn ins_mmio() {
    unsafe { asm!("rep insb", in("dx") PIO_IN, inout("rdi") MMIO => _, inout("rcx") 4u64 => _) };
    check_eq(mem::r32(MMIO) as u64, 0x0302_0100, "port to device");
}

test!(outs_mmio, "pio/outs_from_mmio");
fn outs_mmio() {
    mem::w32(MMIO, 0x4433_2211);
    unsafe { asm!("rep outsb", in("dx") PIO_OUT, inout("rsi") MMIO => _, inout("rcx") 4u64 => _) };
    check_eq(taken(), 4, "bytes");
    check_eq(TAKEN.get()[3] as u64, 0x44, "device to port");
}

test!(interrupted, "pio/rep_insb_under_signals");
fn interrupted() {
    host::must(op::KICK, &[0, 300, 100]);
    for _ in 0..10 {
        taken();
        unsafe { asm!("rep insb", in("dx") PIO_IN, inout("rdi") buf() => _, inout("rcx") 8000u64 => _) };
        bytes(buf(), 8000, 0, "data");
    }
}

test!(kernel_string, "pio/rep_outsb_to_kernel_device");
fn kernel_string() {
    // The interrupt mask register of the in-kernel PIC takes the last byte.
    for i in 0..5 {
        mem::w8(buf() + i, 0xf0 + i as u8);
    }
    unsafe { asm!("rep outsb", in("dx") 0x21u16, inout("rsi") buf() => _, inout("rcx") 5u64 => _) };
    check_eq(inb(0x21) as u64, 0xf4, "IMR");
    unsafe { asm!("rep insb", in("dx") 0x21u16, inout("rdi") buf() => _, inout("rcx") 5u64 => _) };
    check_eq(mem::r8(buf() + 4) as u64, 0xf4, "read back as a string");
}
