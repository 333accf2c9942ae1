//! Timers and IPIs of four vCPUs, each counted, while all mechanisms are switched at random below them (the runner's `--switch`): what is
//! set comes once, and not before its time. Timers are set by the lazy protocol where the host offers it at that moment.

use crate::apic::{self, *};
use crate::config::*;
use crate::cpu::*;
use crate::own::MSR_LAZY_DEADLINE;
use crate::report::*;
use crate::t_lazy::{offered, set, us, words};
use crate::trap::{self, Frame};
use crate::{host, smp, test};
use core::sync::atomic::{AtomicU64, Ordering::SeqCst};

const TIMER: u8 = 0x40;
const IPI: u8 = 0x50;
const CPUS: usize = 4;

type Each = [AtomicU64; CPUS];
static FIRED: Each = [const { AtomicU64::new(0) }; CPUS];
static LAST: Each = [const { AtomicU64::new(0) }; CPUS];
static GOT: Each = [const { AtomicU64::new(0) }; CPUS];
static DONE: AtomicU64 = AtomicU64::new(0);
static END: AtomicU64 = AtomicU64::new(0);

fn timer(_: &mut Frame) {
    LAST[index()].store(rdtsc(), SeqCst);
    FIRED[index()].fetch_add(1, SeqCst);
    eoi();
}
fn ipi(_: &mut Frame) {
    GOT[index()].fetch_add(1, SeqCst);
    eoi();
}
fn fired() -> u64 {
    FIRED[index()].load(SeqCst)
}

/// Asks for lazy deadlines; that may be switched off between the look and the MSR.
fn ask() {
    if offered() {
        let _ = trap::catch(|| wrmsr(MSR_LAZY_DEADLINE, words() as u64 | 1));
    }
}
fn spin(ticks: u64) {
    let end = rdtsc() + ticks;
    while rdtsc() < end {
        pause();
    }
}

/// One vCPU's: chance, and the timers that must have come.
struct Vcpu {
    random: u64,
    due: u64,
    sent: u64,
}

impl Vcpu {
    fn below(&mut self, n: u64) -> u64 {
        self.random = xorshift(self.random);
        (self.random >> 20) % n
    }

    fn round(&mut self) {
        check_eq(fired(), self.due, "a timer came twice, or by itself");
        cli();
        match self.below(8) {
            // Nothing comes of what was taken back in time.
            0 => {
                let far = rdtsc() + us(1_000_000);
                set(far);
                wrmsr(MSR_TSC_DEADLINE, 0);
                let in_time = rdtsc() < far;
                sti();
                spin(us(30));
                self.due = if in_time { self.due } else { fired() };
            }
            // A moment that has passed.
            1 => {
                let past = rdtsc() - us(5);
                wrmsr(MSR_TSC_DEADLINE, past);
                self.await_from(past, true);
            }
            2 | 3 => {
                sti();
                self.send();
            }
            // Set, and moved to later moments.
            moves => {
                let first = rdtsc() + us(20 + self.below(600));
                let mut last = first;
                set(first);
                for _ in 0..self.below(moves) {
                    last += us(1 + self.below(300));
                    set(last);
                }
                let in_time = rdtsc() < first;
                self.await_from(last, in_time);
            }
        }
    }

    /// Until the timer has come, awake or in HLT. `once`: none of the moments before has.
    fn await_from(&mut self, t: u64, once: bool) {
        let me = index();
        let halts = self.below(2) == 0;
        while fired() == self.due || !once && LAST[me].load(SeqCst) < t {
            sti();
            pause();
            cli();
            if halts && fired() == self.due {
                sti_hlt();
                cli();
            }
        }
        sti();
        if once {
            self.due += 1;
            check(LAST[me].load(SeqCst) >= t, "a timer came early");
        } else {
            check(host::wait_ms(20_000, || rdmsr(MSR_TSC_DEADLINE) == 0), "a deadline stays");
            spin(us(300));
            self.due = fired();
        }
        check_eq(fired(), self.due, "a timer came twice");
    }

    /// To the next vCPU, which may be in HLT.
    fn send(&mut self) {
        let next = (index() + 1) % CPUS;
        apic::icr(u32::from(IPI), next as u32);
        self.sent += 1;
        let sent = self.sent;
        check(host::wait_ms(20_000, || GOT[next].load(SeqCst) >= sent), "an IPI is lost");
        check_eq(GOT[next].load(SeqCst), sent, "an IPI came twice");
    }
}

fn vcpu() {
    to_x2apic();
    enable();
    write(LVTT, TSC_DEADLINE | u32::from(TIMER));
    sti();
    let mut v = Vcpu { random: 0x9e37_79b9_7f4a_7c15 ^ (index() as u64) << 32, due: 0, sent: 0 };
    let mut rounds = 0;
    while rdtsc() < END.load(SeqCst) {
        if rounds % 16 == 0 {
            cli();
            ask();
            sti();
        }
        v.round();
        rounds += 1;
    }
    check(rounds >= 16, "hardly a round");
    // The others may still send.
    DONE.fetch_add(1, SeqCst);
    check(host::wait_ms(30_000, || DONE.load(SeqCst) >= CPUS as u64), "the other vCPUs do not end");
    spin(us(20_000));
    check_eq(fired(), v.due, "a timer came at the end");
    check_eq(GOT[(index() + 1) % CPUS].load(SeqCst), v.sent, "an IPI came at the end");
    DONE.fetch_add(1, SeqCst);
    while index() != 0 {
        pause();
    }
    check(host::wait_ms(30_000, || DONE.load(SeqCst) == 2 * CPUS as u64), "the other vCPUs do not pass");
}

fn storm(seconds: u64) {
    if cpuid(1, 0)[2] & 1 << 24 == 0 {
        skip("no TSC deadline")
    }
    trap::on(TIMER, timer);
    trap::on(IPI, ipi);
    smp::start_all(CPUS);
    END.store(rdtsc() + us(seconds * 1_000_000), SeqCst);
    (1..CPUS).for_each(|n| smp::run(n, vcpu));
    vcpu();
}

test!(short, "storm/timers_and_ipis_of_four", cpus(4) | timeout(150) | BY_NAME);
fn short() {
    storm(4)
}
test!(long, "storm/two_minutes", cpus(4) | timeout(255) | BY_NAME);
fn long() {
    storm(120)
}
