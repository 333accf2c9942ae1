//! Controls of speculation: SPEC_CTRL, PRED_CMD and FLUSH_CMD are the guest's own, and cost it no exits.

use crate::config::*;
use crate::cpu::*;
use crate::report::*;
use crate::trap::expect;
use crate::{host, smp, test};
use core::sync::atomic::{AtomicU32, Ordering};

const SPEC_CTRL: u32 = 0x48;
const PRED_CMD: u32 = 0x49;
const FLUSH_CMD: u32 = 0x10b;
const GP: u64 = 13;
/// Exits that a thousand instructions may have for other reasons: interrupts of the host, and asking for the number.
const OTHERS: u64 = 50;

fn intel(bit: u32) -> bool {
    cpuid(7, 0)[3] & 1 << bit != 0
}
fn amd(bit: u32) -> bool {
    cpuid(0x8000_0008, 0)[1] & 1 << bit != 0
}

/// Bits that the guest's CPUID offers: IBRS, STIBP, SSBD.
fn bits() -> u64 {
    let b = u64::from(intel(26) || amd(14))
        | u64::from(intel(27) || amd(15)) << 1
        | u64::from(intel(31) || amd(24)) << 2;
    if b == 0 {
        skip("no SPEC_CTRL")
    }
    b
}

fn exits_of(f: impl Fn(u64)) -> u64 {
    let before = host::must(op::EXITS, &[]);
    if before == !0 {
        skip("exits are not counted")
    }
    (0..1000).for_each(f);
    host::must(op::EXITS, &[]) - before
}

// Linux writes it twice for a system call on CPUs without enhanced IBRS. Each write was an exit.
test!(writes, "spec/thousand_writes");
fn writes() {
    let b = bits();
    wrmsr(SPEC_CTRL, b & 1);
    let n = exits_of(|i| wrmsr(SPEC_CTRL, if i & 1 == 0 { 0 } else { b }));
    if n > OTHERS {
        fail_eq("exits of 1000 writes of SPEC_CTRL", n, 0)
    }
    check_eq(rdmsr(SPEC_CTRL), b, "the last value");
    let n = exits_of(|_| _ = rdmsr(SPEC_CTRL));
    if n > OTHERS {
        fail_eq("exits of 1000 reads of SPEC_CTRL", n, 0)
    }
}

test!(kept, "spec/kept_over_exits");
fn kept() {
    let b = bits();
    for v in [0, b, b & !1, 1 & b, 0, b & 2, b] {
        wrmsr(SPEC_CTRL, v);
        let exits: [fn(); 4] = [
            || _ = cpuid(1, 0),
            || _ = inb(PIO_RAM),
            host::move_somewhere,
            || _ = host::must(op::SLEEP_US, &[100]),
        ];
        for f in exits {
            f();
            check_eq(rdmsr(SPEC_CTRL), v, "RDMSR");
        }
        check_eq(host::must(op::GET_MSR, &[SPEC_CTRL as u64]), v, "KVM_GET_MSRS");
    }
    for v in [0, b, b & 4, 0] {
        check_eq(host::must(op::SET_MSR, &[SPEC_CTRL as u64, v]), 1, "KVM_SET_MSRS");
        check_eq(rdmsr(SPEC_CTRL), v, "RDMSR after KVM_SET_MSRS");
    }
}

test!(reserved, "spec/reserved_bits");
fn reserved() {
    let b = bits();
    for _ in 0..2 {
        expect(GP, 0, "SPEC_CTRL, bit 63", || wrmsr(SPEC_CTRL, 1 << 63));
        expect(GP, 0, "SPEC_CTRL, bit 30", || wrmsr(SPEC_CTRL, 1 << 30));
        wrmsr(SPEC_CTRL, b);
        check_eq(rdmsr(SPEC_CTRL), b, "SPEC_CTRL");
    }
}

test!(absent, "spec/absent");
fn absent() {
    if !(intel(26) || intel(27) || intel(31) || amd(14) || amd(15) || amd(24)) {
        expect(GP, 0, "SPEC_CTRL that does not exist", || _ = rdmsr(SPEC_CTRL));
        expect(GP, 0, "SPEC_CTRL that does not exist", || wrmsr(SPEC_CTRL, 1));
    }
    if !intel(28) {
        expect(GP, 0, "FLUSH_CMD that does not exist", || wrmsr(FLUSH_CMD, 1));
    }
}

fn command(msr: u32, what: &str) {
    wrmsr(msr, 0);
    wrmsr(msr, 1);
    let n = exits_of(|_| wrmsr(msr, 1));
    if n > OTHERS {
        log_num("MSR ", msr as u64);
        fail_eq(": exits of 1000 writes", n, 0)
    }
    expect(GP, 0, what, || _ = rdmsr(msr));
    expect(GP, 0, what, || wrmsr(msr, 1 << 40));
}

test!(barriers, "spec/thousand_barriers");
fn barriers() {
    if !(intel(26) || amd(12)) {
        skip("no IBPB")
    }
    command(PRED_CMD, "PRED_CMD");
}

test!(flushes, "spec/thousand_flushes");
fn flushes() {
    if !intel(28) {
        skip("no FLUSH_CMD")
    }
    command(FLUSH_CMD, "FLUSH_CMD");
}

static DONE: AtomicU32 = AtomicU32::new(0);
fn turns(v: u64) {
    host::must(op::MIGRATE, &[0]);
    wrmsr(SPEC_CTRL, v);
    for _ in 0..20 {
        for _ in 0..2000 {
            pause();
        }
        inb(PIO_RAM);
        if rdmsr(SPEC_CTRL) != v {
            fail("SPEC_CTRL mixed up between vCPUs")
        }
    }
    DONE.fetch_add(1, Ordering::SeqCst);
}

test!(two, "spec/vcpus_on_one_host_cpu", cpus(2));
fn two() {
    let b = bits();
    smp::start_all(2);
    smp::run(1, || turns(0));
    turns(b);
    check(host::wait_ms(20_000, || DONE.load(Ordering::SeqCst) == 2), "the other did not finish");
}

// Scenario `speculation`: interrupts of the host come in between; its handlers must find the host's value.
test!(interrupted, "spec/interrupted", timeout(60));
fn interrupted() {
    let b = bits();
    for i in 0..40 {
        let v = [b & 2, b & 4, 0, b][i & 3];
        wrmsr(SPEC_CTRL, v);
        let until = rdtsc() + host::tsc_khz();
        while rdtsc() < until {
            cpuid(1, 0);
        }
        check_eq(rdmsr(SPEC_CTRL), v, "SPEC_CTRL");
    }
}
