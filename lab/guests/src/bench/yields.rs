//! What a vCPU that waits pays, and one that wakes another by hypercall: the host's part on the caller's CPU.

use super::*;

const HC_KICK_CPU: u64 = 5;
pub const HC_SCHED_YIELD: u64 = 11;
/// -KVM_ENOSYS.
const ENOSYS: u64 = 1000u64.wrapping_neg();

/// By VMMCALL or VMCALL.
pub fn hypercall(amd: bool, number: u64, a0: u64, a1: u64) -> u64 {
    let result;
    unsafe {
        if amd {
            asm!("xchg rbx, {b}", "vmmcall", "xchg rbx, {b}", b = inout(reg) a0 => _, inout("rax") number => result, in("rcx") a1,
                options(nostack))
        } else {
            asm!("xchg rbx, {b}", "vmcall", "xchg rbx, {b}", b = inout(reg) a0 => _, inout("rax") number => result, in("rcx") a1,
                options(nostack))
        }
    }
    result
}

/// In a window; skips the row where the hypercall is not there.
fn measured_call(number: u64, a0: u64, a1: u64) {
    // CPUID exits.
    let amd = amd();
    open(Of::ThisCpu);
    let result = hypercall(amd, number, a0, a1);
    close();
    if result == ENOSYS {
        report::skip("no such hypercall")
    }
    report::check_eq(result, 0, "the hypercall's result");
}

/// PAUSEs until one exits, with nobody to let run. An exit is seen by its ticks. The next comes only after twice as many PAUSEs, so
/// there are few of them.
test!(b_pause, "bench/pause_exit", BENCH);
fn b_pause() {
    pin();
    measure_host_in("pause_exit", 6, 1, || {
        let mut last = rdtsc();
        let end = last + (1 << 24);
        open(Of::ThisCpu);
        loop {
            pause();
            let now = rdtsc();
            if now - last > 150 {
                break;
            }
            if now > end {
                report::skip("no PAUSE exits")
            }
            last = now;
        }
        close();
    });
}

fn start(target: fn()) {
    if host::must(op::HOST_CPUS, &[]) < 2 {
        report::skip("the host has not a CPU for each vCPU")
    }
    smp::start_all(2);
    pin();
    smp::run(1, target);
    while READY.load(Ordering::SeqCst) == 0 {}
}

fn running() {
    pin();
    READY.store(1, Ordering::SeqCst);
    while !STOP.load(Ordering::Relaxed) {}
}

/// To a vCPU that runs: the yield is for nothing.
test!(b_sched_yield, "bench/hc_sched_yield", BENCH | cpus(2));
fn b_sched_yield() {
    start(running);
    measure_host("hc_sched_yield", || measured_call(HC_SCHED_YIELD, 1, 0));
}

static WAKES: AtomicU64 = AtomicU64::new(0);

/// As a waiter for a lock, whom nothing but a kick wakes.
fn waiting() {
    pin();
    READY.store(1, Ordering::SeqCst);
    loop {
        hlt();
        WAKES.fetch_add(1, Ordering::SeqCst);
    }
}

test!(b_kick, "bench/hc_kick_cpu", BENCH | cpus(2));
fn b_kick() {
    start(waiting);
    let a_while = host::tsc_khz() / 2;
    let mut kicks = 0;
    measure_host("hc_kick_cpu", || {
        let halted = rdtsc() + a_while;
        while rdtsc() < halted {}
        report::check_eq(WAKES.load(Ordering::SeqCst), kicks, "wakes without a kick");
        measured_call(HC_KICK_CPU, 0, 1);
        kicks += 1;
        while WAKES.load(Ordering::SeqCst) != kicks {}
    });
}
