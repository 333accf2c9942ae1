//! Clocks of two vCPUs, each of which reads the other's page too, as Linux's vDSO does, while user space moves TSCs and the
//! host is in trouble with its own.

use crate::apic::{self, *};
use crate::config::*;
use crate::cpu::*;
use crate::report::*;
use crate::smp::{self, Race};
use crate::t_pv::{clock_of, clock_on, flags_of, need_clock};
use crate::{host, test, trap};
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

const TSC: u64 = 0x10;
/// In a page's flags: all pages agree; the guest was stopped.
const STABLE: u8 = 1;
const STOPPED: u8 = 2;

static READY: AtomicU64 = AtomicU64::new(0);
static OVER: AtomicBool = AtomicBool::new(false);

/// Both CPUs meet here, for the n-th time.
fn meet(n: u64) {
    READY.fetch_add(1, Ordering::SeqCst);
    check(host::wait_ms(20_000, || READY.load(Ordering::SeqCst) >= 2 * n), "the other does not come");
}

fn stable() -> bool {
    (0..2).all(|i| flags_of(i) & STABLE != 0)
}
fn unstable() -> bool {
    (0..2).all(|i| flags_of(i) & STABLE == 0)
}

static SAME: Race = Race::new();
static AGAIN: Race = Race::new();

/// User space moves the calling vCPU's TSC by 500 s.
fn move_tsc() {
    let value = rdtsc() + 500_000 * host::tsc_khz();
    check_eq(host::must(op::SET_MSR, &[TSC, value]), 1, "KVM_SET_MSRS");
}

/// CPU 1's part: its TSC is moved away, and then CPU 0's follows.
fn moved() {
    clock_on();
    meet(1);
    SAME.run(300, || clock_of(0));
    meet(2);
    move_tsc();
    check(host::wait_ms(10_000, unstable), "the pages agree with a TSC 500 s away");
    let (own, other) = (clock_of(1), clock_of(0));
    check(other > own + 400_000_000_000, "the TSC did not move");
    let h = host::must(op::GET_CLOCK, &[]);
    check(h + 1_000_000 >= own && h <= clock_of(1) + 1_000_000, "its own page is wrong");
    meet(3);
    check(host::wait_ms(10_000, stable), "the pages do not agree again");
    meet(4);
    AGAIN.run(300, || clock_of(0));
}

test!(pages, "clock/pages_of_each_other", cpus(2));
fn pages() {
    need_clock();
    smp::start_all(2);
    smp::run(1, moved);
    clock_on();
    meet(1);
    if !host::wait_ms(2_000, || flags_of(0) & STABLE != 0) {
        skip("the pages never agree: the host's clock source is not the TSC")
    }
    SAME.run(300, || clock_of(0));
    check_eq(SAME.back(2), 0, "ns backwards between vCPUs");
    meet(2);
    check(host::wait_ms(10_000, unstable), "the pages agree with a TSC 500 s away");
    meet(3);
    move_tsc();
    check(host::wait_ms(10_000, stable), "the pages do not agree again");
    meet(4);
    AGAIN.run(300, || clock_of(0));
    check_eq(AGAIN.back(2), 0, "ns backwards between vCPUs, again");
}

// --- the host in trouble: run by scenarios, by name ---

static TICKS: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];
static PERIOD: AtomicU64 = AtomicU64::new(0);
/// Both vCPUs' TSCs are one clock; both vCPUs read vCPU 0's page.
static TSCS: Race = Race::new();
static FIRST: Race = Race::new();

/// What the TSCs may do in that trouble.
static TSCS_AGREE: AtomicBool = AtomicBool::new(true);
/// How far a vCPU's own page may go back when it is written anew by another clock than the TSC, ns.
const REWRITTEN: u64 = 5_000_000;

fn arm() {
    wrmsr(MSR_TSC_DEADLINE, rdtsc() + PERIOD.load(Ordering::SeqCst));
}

/// Reads clocks until it is over, while timer interrupts come.
fn live() {
    trap::on(0x40, |_| {
        TICKS[index()].fetch_add(1, Ordering::SeqCst);
        arm();
        eoi();
    });
    apic::enable();
    clock_on();
    write(LVTT, TSC_DEADLINE | 0x40);
    meet(1);
    arm();
    sti();
    let (mut tsc, mut own, mut flags) = (0, 0, 0);
    while !OVER.load(Ordering::SeqCst) {
        let now = rdtsc();
        check(now >= tsc, "the TSC went back");
        tsc = now;
        let before = core::mem::replace(&mut flags, flags_of(index()));
        let now = clock_of(index());
        let slack = if before & flags & flags_of(index()) & STABLE != 0 { 0 } else { REWRITTEN };
        check(now + slack >= own, "kvmclock went back");
        own = own.max(now);
        // Pages that say they agree do so until the host knows better.
        if TSCS_AGREE.load(Ordering::SeqCst) {
            TSCS.once(rdtsc);
            if stable() {
                FIRST.once(|| clock_of(0));
            }
        }
        if index() == 0 && step() {
            OVER.store(true, Ordering::SeqCst);
        }
    }
    cli();
    meet(2);
}

/// What has to happen: `now` on both vCPUs, then so many ticks on each.
static HAPPENS: AtomicU64 = AtomicU64::new(0);
static SINCE: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];
static HAPPENED: AtomicBool = AtomicBool::new(false);

fn step() -> bool {
    // SAFETY: `trouble` has stored a function pointer.
    let happens: fn() -> bool = unsafe { core::mem::transmute(HAPPENS.load(Ordering::SeqCst)) };
    if !HAPPENED.load(Ordering::SeqCst) {
        if happens() {
            HAPPENED.store(true, Ordering::SeqCst);
            (0..2).for_each(|i| SINCE[i].store(TICKS[i].load(Ordering::SeqCst), Ordering::SeqCst));
        }
        return false;
    }
    (0..2).all(|i| TICKS[i].load(Ordering::SeqCst) > SINCE[i].load(Ordering::SeqCst) + 50)
}

fn trouble(tscs_agree: bool, happens: fn() -> bool) {
    need_clock();
    if cpuid(1, 0)[2] & 1 << 24 == 0 {
        skip("no TSC deadline")
    }
    TSCS_AGREE.store(tscs_agree, Ordering::SeqCst);
    HAPPENS.store(happens as usize as u64, Ordering::SeqCst);
    PERIOD.store(host::tsc_khz() * 10, Ordering::SeqCst);
    smp::start_all(2);
    smp::run(1, live);
    live();
    check_eq(TSCS.furthest(), 0, "ticks backwards between vCPUs");
    check_eq(FIRST.furthest(), 0, "ns backwards between vCPUs");
}

test!(sleeps, "clock/while_the_host_sleeps", cpus(2) | BY_NAME | timeout(200));
fn sleeps() {
    trouble(true, || (0..2).all(|i| flags_of(i) & STOPPED != 0));
}

test!(agrees, "clock/agrees_when_the_host_has_slept", cpus(2) | BY_NAME | timeout(200));
fn agrees() {
    sleeps();
    check(stable(), "the pages do not agree any more");
}

static AGREED: AtomicBool = AtomicBool::new(false);
static FELL: AtomicBool = AtomicBool::new(false);

fn fallen() -> bool {
    if stable() {
        AGREED.store(true, Ordering::SeqCst);
    }
    if AGREED.load(Ordering::SeqCst) && unstable() {
        FELL.store(true, Ordering::SeqCst);
    }
    FELL.load(Ordering::SeqCst)
}

test!(fails, "clock/while_the_hosts_tsc_fails", cpus(2) | BY_NAME | timeout(200));
fn fails() {
    trouble(false, fallen);
    check(unstable(), "the pages agree again");
}

test!(source, "clock/while_the_host_counts_by_something_else", cpus(2) | BY_NAME | timeout(200));
fn source() {
    trouble(true, || fallen() && stable());
}
