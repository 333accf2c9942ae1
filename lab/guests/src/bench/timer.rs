//! The APIC's timer from arming to its handler, and HLT where something is or will be pending.

use super::*;

unsafe extern "C" {
    fn bench_close();
    fn bench_timed();
    static bench_time: u64;
}

/// When the handler began.
fn time() -> u64 {
    unsafe { (&raw const bench_time).read_volatile() }
}

const AHEAD: u64 = 20_000;

fn deadline_timer(vector: u8, handler: unsafe extern "C" fn()) {
    if host::cap(72) <= 0 {
        report::skip("no KVM_CAP_TSC_DEADLINE_TIMER")
    }
    apic::to_x2apic();
    apic::enable();
    pin();
    gate(vector as usize, handler);
    apic::write(apic::LVTT, apic::TSC_DEADLINE | vector as u32);
}

/// Armed 20 000 ticks ahead, spinning meanwhile, until the handler's first instruction: what the host executes for it.
test!(b_timer_fire, "bench/timer_fire", BENCH);
fn b_timer_fire() {
    deadline_timer(0x44, bench_close);
    let set = t_lazy::setter(0x44).unwrap_or(|t| wrmsr(apic::MSR_TSC_DEADLINE, t));
    sti();
    let mut fired = 0;
    measure_host("timer_fire", || {
        let deadline = rdtsc() + AHEAD;
        open(Of::Everybody);
        set(deadline);
        fired += 1;
        while count() != fired {}
        report::check(time() >= deadline, "too early");
    });
}

/// How late that instruction comes.
test!(b_timer_late, "bench/timer_late", BENCH);
fn b_timer_late() {
    deadline_timer(0x44, bench_timed);
    sti();
    let mut fired = 0;
    measure_own("timer_late", N, || {
        let deadline = rdtsc() + AHEAD;
        wrmsr(apic::MSR_TSC_DEADLINE, deadline);
        fired += 1;
        while count() != fired {}
        time() - deadline
    });
}

/// HLT with the interrupt pending and IF=1, in the shadow of STI, until the handler's first instruction.
test!(b_hlt_pending, "bench/hlt_pending", BENCH);
fn b_hlt_pending() {
    apic::to_x2apic();
    apic::enable();
    pin();
    gate(0x45, bench_close);
    let mut sent = 0;
    measure_host("hlt_pending", || {
        wrmsr(0x83f, 0x45);
        report::check_eq(count(), sent, "handlers that ran with IF=0");
        sent += 1;
        open(Of::ThisCpu);
        sti_hlt();
        cli();
        report::check_eq(count(), sent, "handlers that ran");
    });
}

/// A deadline a millisecond ahead, then HLT: two exits, the sleep between them, and the way back into the guest. Longer than hosts
/// poll for a halted vCPU.
test!(b_sleep_until, "bench/sleep_until", BENCH);
fn b_sleep_until() {
    deadline_timer(0x46, bench_isr);
    let ahead = host::tsc_khz();
    let mut slept = 0;
    measure_host("sleep_until", || {
        let deadline = rdtsc() + ahead;
        wrmsr(apic::MSR_TSC_DEADLINE, deadline);
        sti_hlt();
        cli();
        slept += 1;
        report::check_eq(count(), slept, "handlers that ran");
        report::check(rdtsc() >= deadline, "too early");
    });
}
