//! Protection keys: what PKRU forbids to instructions that the CPU executes and to those that exit and are emulated, and that a
//! guest's PKRU is its own.

use crate::config::*;
use crate::cpu::*;
use crate::mem::{self, FREE_VA, P, U, W};
use crate::report::*;
use crate::trap::{self, expect};
use crate::{host, smp, test};
use core::arch::asm;

const PF: u64 = 14;
/// Bits of the error code.
const CODE_P: u64 = 1;
const CODE_W: u64 = 2;
const CODE_U: u64 = 4;
const CODE_PK: u64 = 32;
/// The key of the page under test, and PKRU that forbids it accesses, or writes.
const KEY: u64 = 5;
const NO_ACCESS: u32 = 1 << (2 * KEY);
const NO_WRITE: u32 = 2 << (2 * KEY);
/// The page under test.
const PAGE: u64 = FREE_VA + 0x1_0000;
/// A user page that is the device of user space.
const DEVICE: u64 = FREE_VA + 0x2_0000;

fn rdpkru() -> u32 {
    let v;
    unsafe { asm!("rdpkru", in("ecx") 0, out("eax") v, out("edx") _, options(nostack)) }
    v
}

fn wrpkru(v: u32) {
    unsafe { asm!("wrpkru", in("ecx") 0, in("edx") 0, in("eax") v, options(nostack)) }
}

/// Keys on, the page under test and the device mapped for users; supervisors too may not write where they must not.
fn on() -> u64 {
    if cpuid(7, 0)[2] & 1 << 3 == 0 {
        skip("no protection keys")
    }
    check_eq(u64::from(cpuid(7, 0)[2] >> 4 & 1), 0, "OSPKE with CR4.PKE clear");
    set_cr4(cr4() | 1 << 22);
    check_eq(u64::from(cpuid(7, 0)[2] >> 4 & 1), 1, "OSPKE with CR4.PKE set");
    set_cr0(cr0() | 1 << 16);
    let page = mem::page();
    mem::map(PAGE, page | KEY << 59, P | W | U);
    mem::map(DEVICE, MMIO, P | W | U);
    unsafe { *(PML4 as *mut u64).add((PAGE >> 39) as usize & 511) |= U };
    page
}

fn forbidden(code: u64, what: &str, f: impl FnMut()) {
    let mut f = f;
    let c = expect(PF, CODE_P | CODE_PK | code, what, || f());
    check_eq(c.cr2, PAGE, "CR2");
}

fn read() {
    mem::r8(PAGE);
}
fn write() {
    mem::w8(PAGE, 0xc3);
}

test!(access, "keys/data_access");
fn access() {
    let page = on();
    write();
    wrpkru(NO_WRITE);
    read();
    forbidden(CODE_W, "write", write);
    set_cr0(cr0() & !(1 << 16));
    write();
    set_cr0(cr0() | 1 << 16);
    wrpkru(NO_ACCESS);
    forbidden(0, "read", read);
    forbidden(CODE_W, "write where there is no access", write);
    // Code, and pages of the supervisor's, have no keys to mind.
    let f: extern "C" fn() = unsafe { core::mem::transmute(PAGE) };
    f();
    mem::map(PAGE, page | KEY << 59, P | W);
    read();
    wrpkru(!0);
    write();
}

test!(user, "keys/user_access");
fn user() {
    on();
    let (text, stack) = (FREE_VA + 0x20_0000, FREE_VA + 0x20_1000);
    let code = mem::page();
    mem::map(text, code, P | U);
    mem::map(stack, mem::page(), P | W | U);
    // MOV AL, [PAGE]; INT3.
    mem::w8(code, 0xa0);
    mem::w64(code + 1, PAGE);
    mem::w8(code + 9, 0xcc);
    check_eq(trap::user(text, stack + 0xff0, 0).vector, 3, "allowed");
    wrpkru(NO_ACCESS);
    let c = trap::user(text, stack + 0xff0, 0);
    check_eq(c.vector, PF, "forbidden");
    check_eq(c.error, CODE_P | CODE_U | CODE_PK, "error code");
}

// The device's side of these exits; the page's is the emulator's business.
test!(emulated, "keys/emulated_access");
fn emulated() {
    let page = on();
    fn from_device() {
        unsafe { asm!("movsb", inout("rsi") DEVICE => _, inout("rdi") PAGE => _, options(nostack)) }
    }
    fn from_port() {
        unsafe { asm!("insb", in("dx") PIO_IN, inout("rdi") PAGE => _, options(nostack)) }
    }
    fn to_port() {
        unsafe { asm!("outsb", in("dx") PIO_OUT, inout("rsi") PAGE => _, options(nostack)) }
    }
    mem::w8(page, 0x77);
    for pkru in [NO_WRITE, NO_ACCESS, !0 & !3] {
        wrpkru(pkru);
        forbidden(CODE_W, "MOVS from the device", from_device);
        forbidden(CODE_W, "INS", from_port);
    }
    forbidden(0, "OUTS", to_port);
    check_eq(mem::r8(page) as u64, 0x77, "the page");
    wrpkru(NO_WRITE);
    to_port();
    wrpkru(0);
    from_device();
    check_eq(mem::r8(page) as u64, mmio_pattern(MMIO) as u64, "the page, by MOVS");
    from_port();
}

/// XSAVE reaches PKRU, too.
fn xsave_on() {
    if cpuid(0xd, 0)[0] & 0x200 == 0 {
        fail("keys without their component of XCR0")
    }
    set_cr4(cr4() | 1 << 18);
    xsetbv(0, 0x203);
}

/// Exits of each kind, to the kernel and to user space; the thread's PKRU is not the guest's there, whatever that is.
fn exits() {
    cpuid(1, 0);
    inb(PIO_RAM);
    mem::r8(MMIO);
    host::must(op::CLOBBER_FPU, &[]);
    host::must(op::STATE_ROUND_TRIP, &[]);
    host::move_somewhere();
}

// Guests whose PKRU forbids everything used to find the thread's there; on the way out it must be the thread's again, or user
// space could not touch its own memory.
test!(kept, "keys/kept_over_exits");
fn kept() {
    on();
    for round in 0..2 {
        for v in [0, 0x5555_5554, !0, NO_ACCESS, 0x1234_5678] {
            wrpkru(v);
            exits();
            check_eq(rdpkru() as u64, v as u64, "PKRU");
        }
        if round == 0 {
            xsave_on();
        }
    }
}

#[repr(C, align(64))]
struct Area([u8; 4096]);

test!(component, "keys/xsave_component");
fn component() {
    on();
    xsave_on();
    let mut area = Area([0; 4096]);
    let at = cpuid(0xd, 9)[1] as usize;
    let p = &raw mut area as u64;
    wrpkru(0x1234_5678);
    unsafe { asm!("xsave [{}]", in(reg) p, in("eax") 0x200, in("edx") 0) };
    check_eq(mem::r32(p + at as u64) as u64, 0x1234_5678, "XSAVE");
    mem::w32(p + at as u64, 0x0bad_cafc);
    unsafe { asm!("xrstor [{}]", in(reg) p, in("eax") 0x200, in("edx") 0) };
    check_eq(rdpkru() as u64, 0x0bad_cafc, "XRSTOR");
    exits();
    check_eq(rdpkru() as u64, 0x0bad_cafc, "PKRU afterwards");
}

test!(off, "keys/off");
fn off() {
    if cpuid(7, 0)[2] & 1 << 3 == 0 {
        expect(13, 0, "CR4.PKE without keys", || set_cr4(cr4() | 1 << 22));
    }
    expect(6, 0, "RDPKRU", || _ = rdpkru());
    expect(6, 0, "WRPKRU", || wrpkru(0));
}

// Scenario `softirq-fpu`: interrupts of the host come in between, and its handlers must not find the guest's.
test!(interrupted, "keys/interrupted", timeout(60));
fn interrupted() {
    on();
    for v in [!0, 0x1234_5678, 0, NO_ACCESS] {
        wrpkru(v);
        for _ in 0..10 {
            let until = rdtsc() + host::tsc_khz() * 3;
            while rdtsc() < until {
                cpuid(1, 0);
            }
            check_eq(rdpkru() as u64, v as u64, "PKRU");
        }
    }
}

test!(two, "keys/vcpus_on_one_host_cpu", cpus(2));
fn two() {
    on();
    fn other() {
        set_cr4(cr4() | 1 << 22);
        turns(0x1111_1110);
    }
    fn turns(v: u32) {
        host::must(op::MIGRATE, &[0]);
        wrpkru(v);
        for _ in 0..20 {
            for _ in 0..2000 {
                pause();
            }
            inb(PIO_RAM);
            if rdpkru() != v {
                fail("PKRU mixed up between vCPUs")
            }
        }
        DONE.fetch_add(1, core::sync::atomic::Ordering::SeqCst);
    }
    static DONE: core::sync::atomic::AtomicU32 = core::sync::atomic::AtomicU32::new(0);
    smp::start_all(2);
    smp::run(1, other);
    turns(!0);
    check(
        host::wait_ms(20_000, || DONE.load(core::sync::atomic::Ordering::SeqCst) == 2),
        "the other did not finish",
    );
}
