//! Two guests with more vCPUs than the host has CPUs (`cargo xtask overcommit`): one whose vCPUs wait for each other, beside one that
//! only computes.
//!
//! The waits are those of ebizzy: for a lock whose holder may not run, and for all others' answers to an interrupt, as a kernel waits
//! when it changes a mapping. Both wait by PAUSE. Work is what gets done; a CPU's time that goes into waiting is lost. `work_yield` asks
//! the host by hypercall, as Linux does behind an interrupt to others, to let those run that have not answered.

use super::yields::{HC_SCHED_YIELD, hypercall};
use super::*;

const CPUS: u64 = 4;
const SHOOTDOWN: u8 = 0x47;
/// Loops with the lock held, and without.
const HELD: u64 = 200;
const OWN: u64 = 1000;
/// Rounds of one vCPU from one shootdown to the next.
const BETWEEN: u64 = 8;
/// Of the host's time.
const MILLISECONDS: u64 = 2000;

static LOCK: AtomicBool = AtomicBool::new(false);
static ROUNDS: AtomicU64 = AtomicU64::new(0);
/// A bit for each CPU that has answered, and for the one that asks.
static ANSWERS: AtomicU64 = AtomicU64::new(0);
static YIELD: AtomicBool = AtomicBool::new(false);
static AMD: AtomicBool = AtomicBool::new(false);
/// One shootdown at a time.
static SHOOTING: AtomicBool = AtomicBool::new(false);

fn lock(lock: &AtomicBool) {
    while lock.swap(true, Ordering::Acquire) {
        while lock.load(Ordering::Relaxed) {
            pause();
        }
    }
}

fn unlock(lock: &AtomicBool) {
    lock.store(false, Ordering::Release)
}

fn compute(loops: u64) {
    for _ in 0..loops {
        unsafe { asm!("nop") }
    }
}

fn shootdown() {
    lock(&SHOOTING);
    ANSWERS.store(1 << index(), Ordering::SeqCst);
    wrmsr(0x830, 3 << 18 | SHOOTDOWN as u64);
    let answered = || ANSWERS.load(Ordering::SeqCst);
    if YIELD.load(Ordering::Relaxed) {
        for cpu in (0..CPUS).filter(|cpu| answered() >> cpu & 1 == 0) {
            hypercall(AMD.load(Ordering::Relaxed), HC_SCHED_YIELD, cpu, 0);
        }
    }
    while answered() != (1 << CPUS) - 1 {
        pause();
    }
    unlock(&SHOOTING);
}

fn round(number: u64) {
    lock(&LOCK);
    compute(HELD);
    unlock(&LOCK);
    compute(OWN);
    if number % BETWEEN == 0 {
        shootdown();
    }
    ROUNDS.fetch_add(1, Ordering::Relaxed);
}

fn worker() {
    apic::to_x2apic();
    apic::enable();
    sti();
    READY.fetch_add(1, Ordering::SeqCst);
    let mut number = index() as u64;
    while !STOP.load(Ordering::Relaxed) {
        number += 1;
        round(number);
    }
}

test!(b_work, "overcommit/work", BENCH | BY_NAME | cpus(CPUS) | timeout(100));
fn b_work() {
    work()
}

test!(b_work_yield, "overcommit/work_yield", BENCH | BY_NAME | cpus(CPUS) | timeout(100));
fn b_work_yield() {
    YIELD.store(true, Ordering::SeqCst);
    AMD.store(amd(), Ordering::SeqCst);
    work()
}

/// CPU time for a round of work.
fn work() {
    smp::start_all(CPUS as usize);
    trap::on(SHOOTDOWN, |_| {
        ANSWERS.fetch_or(1 << index(), Ordering::SeqCst);
        wrmsr(0x80b, 0);
    });
    for cpu in 1..CPUS as usize {
        smp::run(cpu, worker);
    }
    apic::to_x2apic();
    apic::enable();
    while READY.load(Ordering::SeqCst) != CPUS - 1 {}
    sti();
    let (spent, done) = (host::must(op::CPU_TIME, &[]), ROUNDS.load(Ordering::SeqCst));
    let end = rdtsc() + host::tsc_khz() * MILLISECONDS;
    let mut number = 0;
    while rdtsc() < end {
        number += 1;
        round(number);
    }
    let (spent, done) = (host::must(op::CPU_TIME, &[]) - spent, ROUNDS.load(Ordering::SeqCst) - done);
    let name = "overcommit";
    host::must(op::BENCH, &[name.as_ptr() as u64, name.len() as u64, spent, done, !0, 0]);
}

fn spin() {
    loop {
        compute(OWN)
    }
}

/// Until it is ended from outside.
test!(b_spin, "overcommit/spin", BY_NAME | cpus(CPUS) | timeout(250));
fn b_spin() {
    smp::start_all(CPUS as usize);
    for cpu in 1..CPUS as usize {
        smp::run(cpu, spin);
    }
    spin()
}
