//! The guest moves to another VM at random moments, by its state alone (KVM_GET_*, KVM_SET_*): no timer and no IPI is lost or comes twice.

use crate::apic::{self, *};
use crate::config::*;
use crate::cpu::*;
use crate::report::*;
use crate::trap::{self, Frame};
use crate::{both, host, smp};
use core::sync::atomic::{AtomicU64, Ordering};

const TIMER: u8 = 0x40;
const IPI: u8 = 0x50;
const MOVES: u64 = 24;

static TIMERS: AtomicU64 = AtomicU64::new(0);
static IPIS: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];

fn timer(_: &mut Frame) {
    TIMERS.fetch_add(1, Ordering::SeqCst);
    eoi();
}
fn ipi(_: &mut Frame) {
    IPIS[index()].fetch_add(1, Ordering::SeqCst);
    eoi();
}

/// Halts for good, but for what comes.
fn other() {
    if X2APIC.load(Ordering::SeqCst) != 0 {
        to_x2apic();
    }
    enable();
    UP.store(1, Ordering::SeqCst);
    loop {
        cli();
        sti_hlt();
    }
}
static X2APIC: AtomicU64 = AtomicU64::new(0);
static UP: AtomicU64 = AtomicU64::new(0);

/// What came so far: timers, IPIs of each vCPU. The model of what must have come has the same form.
fn seen() -> [u64; 3] {
    [TIMERS.load(Ordering::SeqCst), IPIS[0].load(Ordering::SeqCst), IPIS[1].load(Ordering::SeqCst)]
}

/// All that must come has come, and a while later nothing else has.
fn exactly(due: &[u64; 3], what: &str) {
    check(host::wait_ms(20_000, || seen().iter().zip(due).all(|(seen, due)| seen >= due)), what);
    spin(200_000);
    for (seen, due) in seen().iter().zip(due) {
        check_eq(*seen, *due, what);
    }
}

/// So many ticks pass.
fn spin(ticks: u64) {
    let end = rdtsc() + ticks;
    while rdtsc() < end {
        pause();
    }
}

both!(counted, "move/timers_and_ipis_xapic", "move/timers_and_ipis_x2apic", cpus(2) | timeout(120));
fn counted(x2: bool) {
    if cpuid(1, 0)[2] & 1 << 24 == 0 {
        skip("no TSC deadline")
    }
    X2APIC.store(x2.into(), Ordering::SeqCst);
    trap::on(TIMER, timer);
    trap::on(IPI, ipi);
    smp::start_all(2);
    smp::run(1, other);
    if x2 {
        to_x2apic();
    }
    enable();
    check(host::wait_ms(10_000, || UP.load(Ordering::SeqCst) != 0), "the other vCPU");
    write(LVTT, TSC_DEADLINE | u32::from(TIMER));
    let mut due = [0; 3];
    sti();
    host::must(op::MOVE, &[MOVES]);
    for round in 0.. {
        if host::must(op::MOVES, &[]) >= MOVES {
            break;
        }
        let ticks = 20_000 + (round * 0x9e37_79b9 & 0x7f_ffff);
        match round % 6 {
            // Armed and awaited, awake and in HLT.
            0 | 1 => {
                due[0] += 1;
                arm(rdtsc() + ticks);
                while round % 6 == 1 && seen()[0] != due[0] {
                    cli();
                    if seen()[0] == due[0] {
                        sti();
                        break;
                    }
                    sti_hlt();
                }
                exactly(&due, "timers awaited");
                check_eq(deadline(), 0, "the deadline behind its interrupt");
            }
            // Expired with interrupts closed: the interrupt waits.
            2 => {
                cli();
                arm(rdtsc() + ticks / 8);
                spin(ticks / 8);
                check(host::wait_ms(20_000, || deadline() == 0), "does not expire");
                spin(ticks);
                check_eq(seen()[0], due[0], "a timer with interrupts closed");
                due[0] += 1;
                sti();
                exactly(&due, "timers expired before");
            }
            // Armed far ahead, and taken back: never.
            3 => {
                let far = rdtsc() + (1 << 40);
                arm(far);
                spin(ticks);
                check_eq(deadline(), far, "a far deadline");
                arm(0);
                spin(ticks / 8);
                check_eq(deadline(), 0, "a deadline taken back");
                exactly(&due, "timers that were taken back");
            }
            // To itself, waiting; to the other, which is in HLT.
            4 => {
                cli();
                apic::icr(1 << 18 | u32::from(IPI), 0);
                spin(ticks);
                due[1] += 1;
                sti();
                exactly(&due, "IPIs to itself");
            }
            _ => {
                for _ in 0..8 {
                    apic::icr(u32::from(IPI), 1);
                    due[2] += 1;
                    spin(ticks / 8);
                    check(host::wait_ms(20_000, || seen()[2] >= due[2]), "an IPI is lost");
                }
                exactly(&due, "IPIs to the other vCPU");
            }
        }
    }
    exactly(&due, "at the end");
}

fn arm(t: u64) {
    wrmsr(MSR_TSC_DEADLINE, t)
}
fn deadline() -> u64 {
    rdmsr(MSR_TSC_DEADLINE)
}
