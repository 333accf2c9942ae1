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

fn hypercall(nr: u64) -> i64 {
    let r: i64;
    unsafe {
        if cpuid(0, 0)[1] == 0x6874_7541 {
            core::arch::asm!("vmmcall", inout("rax") nr => r, options(nostack))
        } else {
            core::arch::asm!("vmcall", inout("rax") nr => r, options(nostack))
        }
    }
    r
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
        if cpuid(0, 0)[1] == 0x6874_7541 {
            core::arch::asm!("vmcall", inout("rax") 1000u64 => r, options(nostack))
        } else {
            core::arch::asm!("vmmcall", inout("rax") 1000u64 => r, options(nostack))
        }
    }
    check_eq(r as u64, -1000i64 as u64, "-KVM_ENOSYS");
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
    let r: u64;
    let amd = cpuid(0, 0)[1] == 0x6874_7541;
    unsafe {
        // KVM_HC_SEND_IPI: bitmap low, bitmap high, lowest APIC id, ICR.
        core::arch::asm!("push rbx", "mov rbx, 0xe", "test {amd:e}, {amd:e}", "jz 2f", "vmmcall", "jmp 3f", "2: vmcall", "3:",
            "pop rbx", amd = in(reg) amd as u32, inout("rax") 10u64 => r, in("rcx") 0u64, in("rdx") 0u64, in("rsi") 0x40u64)
    }
    check_eq(r, 3, "CPUs reached");
    check(host::wait_ms(5000, || (1..4).all(|i| HITS[i].load(Ordering::SeqCst) == 1)), "not all got it");
}

test!(poll_control, "pv/poll_control");
fn poll_control() {
    need(12, "no poll control");
    wrmsr(0x4b56_4d05, 0);
    wrmsr(0x4b56_4d05, 1);
    trap::expect(13, 0, "reserved bits", || wrmsr(0x4b56_4d05, 2));
}
