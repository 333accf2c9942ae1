//! What a vCPU's registers hold, over millions of exits of every kind: scenario `soak` runs it for as long as it is told.

use crate::apic::{self, *};
use crate::config::*;
use crate::cpu::*;
use crate::report::*;
use crate::t_fpu::{avx_keeps, avx512_keeps, sse_keeps};
use crate::trap::{self, Frame};
use crate::{host, smp, test};
use core::sync::atomic::{AtomicU64, Ordering};

const CPUS: u64 = 3;
/// Milliseconds of one run.
const TIME: u64 = 60_000;
/// CR4.OSXSAVE.
const OSXSAVE: u64 = 1 << 18;

/// What XCR0 may become on this CPU, with the check that fills what it enables.
type Room = (u64, fn(u64, fn()) -> bool);
const ROOMS: [Room; 5] =
    [(1, sse_keeps), (3, sse_keeps), (7, sse_keeps), (7, avx_keeps), (0xe7, avx512_keeps)];

static SEEDS: [AtomicU64; 4] = [const { AtomicU64::new(0) }; 4];
static ROUNDS: AtomicU64 = AtomicU64::new(0);
static DONE: AtomicU64 = AtomicU64::new(0);

/// The next of this vCPU's numbers (an LCG, its high half).
fn random() -> u64 {
    let seed = &SEEDS[index()];
    let next = seed
        .load(Ordering::Relaxed)
        .wrapping_mul(0x5851_f42d_4c95_7f2d)
        .wrapping_add(0x1405_7b7e_f767_814f | 1);
    seed.store(next, Ordering::Relaxed);
    next >> 33
}

fn irq(_: &mut Frame) {
    eoi();
}

/// Computes for a moment: interrupts of the host find the guest running.
fn compute() {
    for _ in 0..random() % 2000 {
        pause();
    }
}

/// Sleeps until the timer's interrupt, some tens of microseconds from now: another thread has the CPU meanwhile.
fn sleep() {
    write(TMICT, 1000 + random() as u32 % 50_000);
    sti_hlt();
    cli();
}

/// One exit, or a stretch without any. No vector register is touched.
fn once() {
    match random() % 16 {
        0..5 => _ = cpuid(random() as u32 % 8, 0),
        5..7 => _ = rdmsr(0x1b),
        7..9 => _ = inb(0x61),
        9 => _ = inb(PIO_RAM),
        10 => _ = unsafe { ((MMIO + random() % 64 * 8) as *const u64).read_volatile() },
        11 => unsafe { ((MMIO + random() % 64 * 8) as *mut u64).write_volatile(random()) },
        12 => _ = dr7(),
        13 => apic::icr(0x4040, random() as u32 % CPUS as u32),
        14 => sleep(),
        _ => compute(),
    }
}

fn batch() {
    for _ in 0..40 {
        once();
    }
}

fn breakpoints(base: u64) {
    set_dr0(base);
    set_dr1(base + 0x1000);
    set_dr2(base + 0x2000);
    set_dr3(base + 0x3000);
    // All four, on execution, where nothing is.
    set_dr7(0x455);
}

/// One vCPU's life: registers of one width after the other, filled, kept over a batch of exits, and compared.
fn live() {
    let own = index() as u64;
    SEEDS[index()].store(rdtsc() ^ own << 32, Ordering::Relaxed);
    trap::on(0x40, irq);
    write(TDCR, 0xb);
    write(LVTT, 0x40);
    set_cr4(cr4() | OSXSAVE);
    let able = supported();
    let until = rdtsc() + host::tsc_khz() * TIME;
    while rdtsc() < until {
        let (xcr0, keeps) = ROOMS[random() as usize % ROOMS.len()];
        if xcr0 & !able != 0 {
            continue;
        }
        let base = 0x7f00_0000 + (own << 20) + (random() % 16 << 14);
        breakpoints(base);
        xsetbv(0, xcr0);
        check(keeps(own << 32 | random(), batch), "vector registers changed");
        check_eq(xgetbv(0), xcr0, "XCR0");
        for (i, dr) in [dr0(), dr1(), dr2(), dr3()].into_iter().enumerate() {
            check_eq(dr, base + 0x1000 * i as u64, "a breakpoint's address");
        }
        check_eq(dr7(), 0x455, "DR7");
        ROUNDS.fetch_add(1, Ordering::SeqCst);
    }
    DONE.fetch_add(1, Ordering::SeqCst);
}

/// The bits that XCR0 may have.
fn supported() -> u64 {
    let [low, _, _, high] = cpuid(0xd, 0);
    (high as u64) << 32 | low as u64
}

test!(registers, "soak/registers", cpus(CPUS) | BY_NAME | timeout(240));
fn registers() {
    if cpuid(1, 0)[2] & 1 << 26 == 0 {
        skip("no XSAVE")
    }
    smp::start_all(CPUS as usize);
    for i in 1..CPUS as usize {
        smp::run(i, live);
    }
    live();
    check(host::wait_ms(60_000, || DONE.load(Ordering::SeqCst) == CPUS), "a vCPU did not finish");
    check(ROUNDS.load(Ordering::SeqCst) > CPUS * 10, "too few rounds to tell anything");
}
