//! The TSC at another rate than the host's (KVM_SET_TSC_KHZ), where the CPU can scale it. What each rate has to agree with is the
//! VM's clock, which the host reads at its own rate.

use crate::apic::{self, *};
use crate::config::*;
use crate::cpu::*;
use crate::report::*;
use crate::trap;
use crate::{host, smp, t_pv, test};
use core::sync::atomic::{AtomicU64, Ordering};

/// Twice the host's rate, half of it, and one that no ratio holds exactly.
const RATES: [(u64, u64); 3] = [(2, 1), (1, 2), (37, 27)];

fn set(khz: u64) -> i64 {
    host::call(op::SET_TSC_KHZ, &[khz])
}

/// Runs `f` at each rate; it gets kHz.
fn at_each_rate(f: fn(u64)) {
    host::need_cap(60, "no KVM_CAP_TSC_CONTROL");
    let host_khz = host::tsc_khz();
    for (n, d) in RATES {
        let khz = host_khz * n / d;
        check_eq(set(khz) as u64, 0, "KVM_SET_TSC_KHZ");
        check_eq(host::tsc_khz(), khz, "KVM_GET_TSC_KHZ");
        f(khz);
    }
}

/// The VM's clock in ns, between two readings of the TSC.
fn bracket() -> (u64, u64, u64) {
    let before = rdtsc();
    let ns = host::must(op::GET_CLOCK, &[]);
    (before, ns, rdtsc())
}

fn ticks(ns: u64, khz: u64) -> u64 {
    (ns as u128 * khz as u128 / 1_000_000) as u64
}

test!(counts, "tsc/counts_at_the_rate_asked_for");
fn counts() {
    at_each_rate(|khz| {
        let (before0, ns0, after0) = bracket();
        host::must(op::SLEEP_US, &[50_000]);
        let (before1, ns1, after1) = bracket();
        let passed = ticks(ns1 - ns0, khz);
        let slack = passed / 1000 + 1;
        check(before1 - after0 <= passed + slack, "too fast");
        check(after1 - before0 + slack >= passed, "too slow");
    });
}

test!(clock, "tsc/kvmclock_at_each_rate");
fn clock() {
    t_pv::need_clock();
    at_each_rate(|_| {
        t_pv::clock_on();
        for _ in 0..3 {
            let a = t_pv::clock();
            let h = host::must(op::GET_CLOCK, &[]);
            let b = t_pv::clock();
            check(a <= b, "kvmclock went back");
            check(h + 100_000 >= a && h <= b + 100_000, "KVM_GET_CLOCK lies between two readings");
            host::must(op::SLEEP_US, &[20_000]);
        }
    });
}

static FIRED: AtomicU64 = AtomicU64::new(0);

fn deadline(wait: fn()) {
    if cpuid(1, 0)[2] & 1 << 24 == 0 {
        skip("no TSC deadline")
    }
    apic::enable();
    trap::on(0x40, |_| {
        FIRED.store(rdtsc(), Ordering::SeqCst);
        eoi();
    });
    write(LVTT, TSC_DEADLINE | 0x40);
    WAIT.store(wait as usize as u64, Ordering::SeqCst);
    at_each_rate(|khz| {
        // SAFETY: `deadline` has just stored a function pointer.
        let wait: fn() = unsafe { core::mem::transmute(WAIT.load(Ordering::SeqCst)) };
        // A wait long enough that one at the host's rate is told from it.
        let far = khz * 100;
        cli();
        FIRED.store(0, Ordering::SeqCst);
        let at = rdtsc() + far;
        wrmsr(MSR_TSC_DEADLINE, at);
        wait();
        sti();
        check(host::wait_ms(20_000, || FIRED.load(Ordering::SeqCst) != 0), "no interrupt");
        let fired = FIRED.load(Ordering::SeqCst);
        check(fired >= at, "fired before its deadline");
        check(fired - at < far / 5, "fired late");
        check_eq(rdmsr(MSR_TSC_DEADLINE), 0, "MSR");
    });
}
static WAIT: AtomicU64 = AtomicU64::new(0);

test!(running, "tsc/deadline_while_running");
fn running() {
    deadline(|| {
        sti();
        while FIRED.load(Ordering::SeqCst) == 0 {
            pause();
        }
    });
}
test!(halted, "tsc/deadline_while_halted");
fn halted() {
    deadline(|| {
        while FIRED.load(Ordering::SeqCst) == 0 {
            sti_hlt();
            cli();
        }
    });
}

static KHZ: AtomicU64 = AtomicU64::new(0);
static READY: AtomicU64 = AtomicU64::new(0);
static RACE: smp::Race = smp::Race::new();

fn race() {
    check_eq(set(KHZ.load(Ordering::SeqCst)) as u64, 0, "KVM_SET_TSC_KHZ");
    READY.fetch_add(1, Ordering::SeqCst);
    while READY.load(Ordering::SeqCst) < 2 {
        pause();
    }
    RACE.run(1000, rdtsc);
}

test!(agree, "tsc/vcpus_of_one_rate_agree", cpus(2));
fn agree() {
    host::need_cap(60, "no KVM_CAP_TSC_CONTROL");
    KHZ.store(host::tsc_khz() * 3 / 2, Ordering::SeqCst);
    smp::start_all(2);
    smp::run(1, race);
    race();
    check_eq(RACE.back(2), 0, "ticks backwards between vCPUs");
}

test!(bounds, "tsc/rates_that_cannot_be");
fn bounds() {
    host::need_cap(60, "no KVM_CAP_TSC_CONTROL");
    let khz = host::tsc_khz();
    check_eq(set(0xffff_ffff) as u64, -22i64 as u64, "EINVAL");
    check_eq(host::tsc_khz(), khz, "the rate is what it was");
    check_eq(set(khz * 2) as u64, 0, "twice");
    check_eq(set(0) as u64, 0, "0: the host's");
    check_eq(host::tsc_khz(), khz, "the host's rate");
}
