//! Paravirtual interfaces: kvmclock, steal time, PV EOI, hypercalls.

use crate::apic;
use crate::config::*;
use crate::cpu::*;
use crate::report::*;
use crate::trap::{self, Shared};
use crate::{host, mem, smp, test};
use core::sync::atomic::{AtomicU64, Ordering};

fn features() -> u32 {
    if cpuid(0x4000_0000, 0)[1] != 0x4b4d_564b {
        skip("no KVM signature")
    }
    cpuid(0x4000_0001, 0)[0]
}
fn need(bit: u32, what: &str) {
    if features() >> bit & 1 == 0 {
        skip(what)
    }
}

#[repr(C, align(64))]
#[derive(Clone, Copy)]
struct Clock([u32; 16]);
static CLOCKS: Shared<[Clock; 4]> = Shared::new([Clock([0; 16]); 4]);

pub fn need_clock() {
    need(3, "no kvmclock");
}

pub fn clock_on() {
    wrmsr(0x4b56_4d01, &CLOCKS.get()[index()] as *const _ as u64 | 1);
}

/// The flags in a CPU's page.
pub fn flags_of(cpu: usize) -> u8 {
    let p = &CLOCKS.get()[cpu] as *const _ as *const u8;
    // SAFETY: inside of the page's 64 bytes.
    unsafe { p.add(29).read_volatile() }
}

/// System time in nanoseconds.
pub fn clock() -> u64 {
    clock_of(index())
}

/// As a CPU's page has it, by its protocol: version, TSC base, time base, multiplier, shift.
pub fn clock_of(cpu: usize) -> u64 {
    let p = &CLOCKS.get()[cpu] as *const _ as *const u32;
    loop {
        unsafe {
            let v = p.read_volatile();
            let tsc = (p.add(2) as *const u64).read_volatile();
            let base = (p.add(4) as *const u64).read_volatile();
            let mul = p.add(6).read_volatile() as u64;
            let shift = (p.add(7) as *const i8).read_volatile();
            let d = rdtsc().wrapping_sub(tsc);
            let d = if shift >= 0 { d << shift } else { d >> -shift };
            if v & 1 == 0 && v == p.read_volatile() {
                return base + ((d as u128 * mul as u128) >> 32) as u64;
            }
        }
    }
}

test!(kvmclock, "pv/kvmclock_monotone");
fn kvmclock() {
    need(3, "no kvmclock");
    clock_on();
    let mut last = clock();
    for i in 0..200 {
        if i % 10 == 0 {
            outb(PIO_RAM, 0);
        }
        let t = clock();
        check(t >= last, "kvmclock went back");
        last = t;
    }
}

test!(kvmclock_rate, "pv/kvmclock_rate");
fn kvmclock_rate() {
    need(3, "no kvmclock");
    clock_on();
    let (t0, c0) = (rdtsc(), clock());
    host::must(op::SLEEP_US, &[100_000]);
    let (t1, c1) = (rdtsc(), clock());
    check(c1 - c0 >= 100_000_000, "shorter than the host's sleep");
    let by_tsc = (t1 - t0) * 1_000_000 / host::tsc_khz();
    check(
        c1 - c0 < by_tsc + by_tsc / 10 + 5_000_000 && c1 - c0 + by_tsc / 10 + 5_000_000 > by_tsc,
        "not the TSC's rate",
    );
}

test!(kvmclock_host, "pv/kvmclock_matches_get_clock");
fn kvmclock_host() {
    need(3, "no kvmclock");
    clock_on();
    let a = clock();
    let h = host::must(op::GET_CLOCK, &[]);
    let b = clock();
    check(h + 1_000_000 >= a && h <= b + 1_000_000, "KVM_GET_CLOCK lies between two readings");
}

static RACE: smp::Race = smp::Race::new();
fn racer() {
    clock_on();
    RACE.run(300, clock);
}
test!(kvmclock_smp, "pv/kvmclock_across_vcpus", cpus(4));
fn kvmclock_smp() {
    need(3, "no kvmclock");
    smp::start_all(4);
    for i in 1..4 {
        smp::run(i, racer);
    }
    racer();
    let back = RACE.back(4);
    if features() >> 24 & 1 == 0 {
        skip("the clock is not marked stable")
    }
    check_eq(back, 0, "nanoseconds backwards between vCPUs");
}

test!(kvmclock_off, "pv/kvmclock_off");
fn kvmclock_off() {
    need(3, "no kvmclock");
    clock_on();
    wrmsr(0x4b56_4d01, 0);
    let before = CLOCKS.get()[0].0;
    host::must(op::SLEEP_US, &[2000]);
    check(before == CLOCKS.get()[0].0, "the page still changes");
    check_eq(rdmsr(0x4b56_4d01), 0, "MSR");
}

test!(wall, "pv/wall_clock");
fn wall() {
    need(3, "no kvmclock");
    let p = mem::page();
    wrmsr(0x4b56_4d00, p);
    check_eq(mem::r32(p) as u64 & 1, 0, "version even");
    check(mem::r32(p + 4) > 1_000_000, "seconds since 1970");
}

test!(steal, "pv/steal_time");
fn steal() {
    need(5, "no steal time");
    let p = mem::page();
    wrmsr(0x4b56_4d03, p | 1);
    check_eq(rdmsr(0x4b56_4d03), p | 1, "MSR");
    outb(PIO_RAM, 0);
    check_eq(mem::r32(p + 8) as u64 & 1, 0, "version even");
    check(mem::r32(p + 8) >= 2, "version counts up");
    let s = mem::r64(p);
    host::must(op::SLEEP_US, &[1000]);
    check(mem::r64(p) >= s, "steal went back");
    trap::expect(13, 0, "reserved bits", || wrmsr(0x4b56_4d03, p | 0x21));
}

test!(pv_eoi, "pv/eoi");
fn pv_eoi() {
    need(6, "no PV EOI");
    static SKIPPED: AtomicU64 = AtomicU64::new(0);
    static COUNT: AtomicU64 = AtomicU64::new(0);
    static FLAG: Shared<[u32; 4]> = Shared::new([0; 4]);
    trap::on(0x40, |_| {
        COUNT.fetch_add(1, Ordering::SeqCst);
        let p = FLAG.get() as *mut _ as *mut u32;
        unsafe {
            if p.read_volatile() & 1 != 0 {
                p.write_volatile(0);
                SKIPPED.fetch_add(1, Ordering::SeqCst);
            } else {
                apic::eoi()
            }
        }
    });
    apic::enable();
    wrmsr(0x4b56_4d04, FLAG.get() as *mut _ as u64 | 1);
    sti();
    for i in 1..=20 {
        apic::icr(0x4_4040, 0);
        check(
            host::wait_ms(1000, || COUNT.load(Ordering::SeqCst) == i),
            "an interrupt got lost after a skipped EOI",
        );
    }
    check(SKIPPED.load(Ordering::SeqCst) > 0, "no EOI was skipped");
}

fn amd() -> bool {
    cpuid(0, 0)[1] == 0x6874_7541
}

/// With operands in RBX, RCX, RDX, RSI.
fn hypercall4(nr: u64, [b, c, d, s]: [u64; 4]) -> i64 {
    let r: i64;
    // SAFETY: the host changes RAX and nothing else.
    unsafe {
        core::arch::asm!("xchg rbx, {b}", "test {amd:e}, {amd:e}", "jz 2f", "vmmcall", "jmp 3f", "2: vmcall", "3:", "xchg rbx, {b}",
            b = inout(reg) b => _, amd = in(reg) amd() as u32, inout("rax") nr => r, in("rcx") c, in("rdx") d, in("rsi") s)
    }
    r
}

fn hypercall(nr: u64) -> i64 {
    hypercall4(nr, [0; 4])
}

test!(hyper_unknown, "pv/hypercall_unknown");
fn hyper_unknown() {
    check_eq(hypercall(1000) as u64, -1000i64 as u64, "-KVM_ENOSYS");
    check_eq(hypercall(1) as u64, 0, "KVM_HC_VAPIC_POLL_IRQ");
}

test!(hyper_patch, "pv/hypercall_other_vendor_is_patched");
fn hyper_patch() {
    // The other vendor's instruction raises #UD, which the module turns into its own one.
    let r: i64;
    unsafe {
        if amd() {
            core::arch::asm!("vmcall", inout("rax") 1000u64 => r, options(nostack))
        } else {
            core::arch::asm!("vmmcall", inout("rax") 1000u64 => r, options(nostack))
        }
    }
    check_eq(r as u64, -1000i64 as u64, "-KVM_ENOSYS");
}

/// KVM_HC_SEND_IPI: bitmap low, bitmap high, lowest APIC id, ICR.
fn send_ipi(low: u64, high: u64, lowest: u64, icr: u64) -> i64 {
    hypercall4(10, [low, high, lowest, icr])
}

test!(hyper_ipi, "pv/send_ipi", cpus(4));
fn hyper_ipi() {
    need(11, "no PV IPIs");
    static HITS: [AtomicU64; 4] = [const { AtomicU64::new(0) }; 4];
    static READY: AtomicU64 = AtomicU64::new(0);
    trap::on(0x40, |_| {
        HITS[index()].fetch_add(1, Ordering::SeqCst);
        apic::eoi();
    });
    fn open() {
        sti();
        READY.fetch_add(1, Ordering::SeqCst);
        loop {
            pause();
        }
    }
    smp::start_all(4);
    for i in 1..4 {
        smp::run(i, open);
    }
    check(host::wait_ms(10_000, || READY.load(Ordering::SeqCst) == 3), "ready");
    check_eq(send_ipi(0xe, 0, 0, 0x40) as u64, 3, "CPUs reached");
    check(host::wait_ms(5000, || (1..4).all(|i| HITS[i].load(Ordering::SeqCst) == 1)), "not all got it");
}

test!(ipi_forms, "pv/send_ipi_forms", cpus(2));
fn ipi_forms() {
    need(11, "no PV IPIs");
    static NMIS: AtomicU64 = AtomicU64::new(0);
    trap::on(2, |_| {
        NMIS.fetch_add(1, Ordering::SeqCst);
    });
    trap::on(0x41, |_| {
        NMIS.fetch_add(100, Ordering::SeqCst);
        apic::eoi();
    });
    smp::start_all(2);
    smp::run(1, sti);
    check(host::wait_ms(10_000, || smp::taken(1)), "ready");
    check_eq(send_ipi(!1, 0, 1, 0x41) as u64, 0, "ids that nobody has");
    check_eq(send_ipi(0, !0, 0, 0x41) as u64, 0, "in the other word too");
    check_eq(send_ipi(1, 0, u32::MAX as u64, 0x41) as u64, 0, "the last id is no broadcast");
    check_eq(send_ipi(3, 0, 0x1_0000_0001, 0x441) as u64, 1, "an NMI; the lowest id has 32 bits");
    check(host::wait_ms(5000, || NMIS.load(Ordering::SeqCst) == 1), "the NMI, once, and no interrupt");
    for (what, bit) in [("a logical destination", 11), ("a shorthand", 18), ("another", 19)] {
        check_eq(send_ipi(2, 0, 0, 1 << bit | 0x41) as u64, -22i64 as u64, what);
    }
    check_eq(NMIS.load(Ordering::SeqCst), 1, "what is refused is not sent");
}

/// Where the application processor is.
static PHASE: AtomicU64 = AtomicU64::new(0);
/// How far it may go.
static GO: AtomicU64 = AtomicU64::new(0);

fn phase(n: u64, what: &str) {
    check(host::wait_ms(10_000, || PHASE.load(Ordering::SeqCst) >= n), what);
}

/// KVM_HC_KICK_CPU.
fn kick(id: u64) {
    check_eq(hypercall4(5, [0, id, 0, 0]) as u64, 0, "KICK_CPU");
}

test!(kick_cpu, "pv/kick_cpu", cpus(2));
fn kick_cpu() {
    need(7, "no PV unhalt");
    fn sleeper() {
        cli();
        PHASE.store(1, Ordering::SeqCst);
        hlt();
        PHASE.store(2, Ordering::SeqCst);
        while GO.load(Ordering::SeqCst) == 0 {
            pause();
        }
        hlt();
        PHASE.store(3, Ordering::SeqCst);
        hlt();
        PHASE.store(4, Ordering::SeqCst);
    }
    smp::start_all(2);
    smp::run(1, sleeper);
    phase(1, "asleep");
    host::wait_ms(5, || false);
    check_eq(PHASE.load(Ordering::SeqCst), 1, "nothing wakes it with interrupts off");
    kick(3);
    kick(1);
    phase(2, "a kick ends the halt");
    kick(1);
    GO.store(1, Ordering::SeqCst);
    phase(3, "a kick before it ends the next");
    host::wait_ms(5, || false);
    check_eq(PHASE.load(Ordering::SeqCst), 3, "and that one only");
    kick(1);
    phase(4, "again");
}

test!(sched_yield, "pv/sched_yield", cpus(2));
fn sched_yield() {
    need(13, "no PV yield");
    fn spinner() {
        host::must(op::MIGRATE, &[0]);
        PHASE.store(1, Ordering::SeqCst);
        while GO.load(Ordering::SeqCst) == 0 {
            PHASE.fetch_add(1, Ordering::SeqCst);
        }
        cli();
        hlt();
    }
    let yield_to = |id: u64, what: &str| check_eq(hypercall4(11, [id, 0, 0, 0]) as u64, 0, what);
    host::must(op::MIGRATE, &[0]);
    smp::start_all(2);
    smp::run(1, spinner);
    phase(1, "spinning");
    // Both want one CPU: one of them waits for it at any time.
    for _ in 0..20 {
        let before = PHASE.load(Ordering::SeqCst);
        let ran = host::wait_ms(10_000, || {
            yield_to(1, "to one that is ready");
            PHASE.load(Ordering::SeqCst) != before
        });
        check(ran, "it never ran");
    }
    yield_to(0, "to oneself");
    yield_to(3, "to nobody");
    yield_to(u64::MAX, "to an id that cannot be");
    GO.store(1, Ordering::SeqCst);
    host::wait_ms(5, || false);
    yield_to(1, "to one that sleeps");
}

/// Steal time of each CPU.
static STEAL: Shared<[Clock; 4]> = Shared::new([Clock([0; 16]); 4]);

/// Address of the byte that says whether a CPU was preempted.
fn preempted_byte(cpu: usize) -> u64 {
    &STEAL.get()[cpu] as *const _ as u64 + 16
}

/// This CPU's thread shares the host's first CPU with others, and says when it waits for it.
fn share() {
    host::must(op::MIGRATE, &[0]);
    wrmsr(0x4b56_4d03, &STEAL.get()[index()] as *const _ as u64 | 1);
}

/// Rounds of the application processor; of these, those in which it was said to be preempted though it ran.
static ROUNDS: AtomicU64 = AtomicU64::new(0);
static WRONG: AtomicU64 = AtomicU64::new(0);

fn round() {
    if mem::r8(preempted_byte(1)) != 0 {
        WRONG.fetch_add(1, Ordering::SeqCst);
    }
    ROUNDS.fetch_add(1, Ordering::SeqCst);
}

/// It goes round twice at least.
fn turns() {
    let n = ROUNDS.load(Ordering::SeqCst) + 2;
    check(host::wait_ms(20_000, || ROUNDS.load(Ordering::SeqCst) >= n), "it never runs");
}

test!(preempted, "pv/preempted", cpus(2));
fn preempted() {
    need(5, "no steal time");
    fn runner() {
        share();
        loop {
            round();
        }
    }
    share();
    smp::start_all(2);
    smp::run(1, runner);
    for _ in 0..5 {
        turns();
        check(
            host::wait_ms(20_000, || mem::r8(preempted_byte(1)) == 1),
            "it waits for its CPU and does not say so",
        );
    }
    check_eq(WRONG.load(Ordering::SeqCst), 0, "said to be preempted while it ran");
    check_eq(mem::r8(preempted_byte(0)) as u64, 0, "nor am I");
}

test!(tlb_flush, "pv/tlb_flush", cpus(2));
fn tlb_flush() {
    need(5, "no steal time");
    need(9, "no PV flush");
    static AT: AtomicU64 = AtomicU64::new(mem::FREE_VA);
    /// The page it read last, and what was there.
    static READ: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];
    fn reader() {
        share();
        loop {
            let at = AT.load(Ordering::SeqCst);
            READ[1].store(mem::r64(at), Ordering::SeqCst);
            READ[0].store(at, Ordering::SeqCst);
            round();
        }
    }
    const TRIES: u64 = 40;
    let (old, new) = (mem::page(), mem::page());
    mem::w64(old, 1);
    mem::w64(new, 2);
    let pages = (0..TRIES).map(|n| mem::FREE_VA + n * 4096);
    pages.clone().for_each(|va| mem::map(va, old, mem::P | mem::W));
    share();
    smp::start_all(2);
    smp::run(1, reader);
    let mut flushes = 0;
    for va in pages {
        AT.store(va, Ordering::SeqCst);
        check(host::wait_ms(20_000, || READ[0].load(Ordering::SeqCst) == va), "it never runs");
        check(
            host::wait_ms(20_000, || mem::r8(preempted_byte(1)) == 1),
            "it waits for its CPU and does not say so",
        );
        // SAFETY: the entry that `map` made.
        unsafe { mem::entry(va, 1).write_volatile(new | mem::P | mem::W) };
        // SAFETY: an aligned byte of a static.
        let byte = unsafe { &*(preempted_byte(1) as *const core::sync::atomic::AtomicU8) };
        // Who has its CPU again by now would have to be interrupted.
        if byte.compare_exchange(1, 3, Ordering::SeqCst, Ordering::SeqCst).is_ok() {
            turns();
            check_eq(READ[1].load(Ordering::SeqCst), 2, "it runs on the old translation");
            flushes += 1;
        }
        if flushes == 3 {
            break;
        }
    }
    check_eq(flushes, 3, "flushes left to it");
    check_eq(WRONG.load(Ordering::SeqCst), 0, "said to be preempted while it ran");
}

test!(clock_pairing, "pv/clock_pairing");
fn clock_pairing() {
    let p = mem::page();
    let pair = |at, kind| hypercall4(9, [at, kind, 0, 0]);
    mem::w64(p + 56, 1);
    let before = rdtsc();
    check_eq(pair(p, 0) as u64, 0, "KVM_HC_CLOCK_PAIRING");
    let after = rdtsc();
    check(mem::r64(p) > 1_600_000_000 && mem::r64(p) < 1 << 33, "seconds since 1970");
    check(mem::r64(p + 8) < 1_000_000_000, "nanoseconds");
    let tsc = mem::r64(p + 16);
    check(tsc >= before && tsc <= after, "the guest's TSC at that moment");
    check_eq((3..8).map(|i| mem::r64(p + 8 * i)).sum(), 0, "nothing else");
    check_eq(pair(p, 1) as u64, -95i64 as u64, "another clock");
    check_eq(pair(1 << 40, 0) as u64, -14i64 as u64, "an address without memory");
}

test!(poll_control, "pv/poll_control");
fn poll_control() {
    need(12, "no poll control");
    check_eq(rdmsr(0x4b56_4d05), 1, "the host waits awake");
    for value in [0, 1] {
        wrmsr(0x4b56_4d05, value);
        check_eq(rdmsr(0x4b56_4d05), value, "as written");
    }
    trap::expect(13, 0, "reserved bits", || wrmsr(0x4b56_4d05, 2));
}
