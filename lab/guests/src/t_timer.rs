//! The APIC timer at its edges: values of the deadline, moments of expiry, dividers. Each expiry is one interrupt, never two.

use crate::apic::{self, *};
use crate::config::*;
use crate::cpu::*;
use crate::report::*;
use crate::trap::{self, Frame, Shared};
use crate::{both, host, smp, test};
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

static COUNTS: [AtomicU64; 4] = [const { AtomicU64::new(0) }; 4];
static OTHERS: AtomicU64 = AtomicU64::new(0);
static NMIS: AtomicU64 = AtomicU64::new(0);

fn count() -> u64 {
    COUNTS[index()].load(Ordering::SeqCst)
}
fn irq(_: &mut Frame) {
    COUNTS[index()].fetch_add(1, Ordering::SeqCst);
    eoi();
}
fn other(_: &mut Frame) {
    OTHERS.fetch_add(1, Ordering::SeqCst);
    eoi();
}
fn nmi(_: &mut Frame) {
    NMIS.fetch_add(1, Ordering::SeqCst);
}

/// The timer has vector 40; 30 and 60 are for other interrupts.
fn setup(x2: bool) {
    if x2 {
        to_x2apic();
    }
    enable();
    trap::on(0x40, irq);
    trap::on(0x30, other);
    trap::on(0x60, other);
    trap::on(2, nmi);
    us(0);
}
fn need_deadline() {
    if cpuid(1, 0)[2] & 1 << 24 == 0 {
        skip("no TSC deadline")
    }
}
fn deadline_setup(x2: bool) {
    need_deadline();
    setup(x2);
    write(LVTT, TSC_DEADLINE | 0x40);
    sti();
}
fn arm(t: u64) {
    wrmsr(MSR_TSC_DEADLINE, t)
}
fn deadline() -> u64 {
    rdmsr(MSR_TSC_DEADLINE)
}
/// TSC ticks of so many microseconds. Asks user space once, so that a deadline is not past when it is armed.
fn us(n: u64) -> u64 {
    static KHZ: AtomicU64 = AtomicU64::new(0);
    if KHZ.load(Ordering::SeqCst) == 0 {
        KHZ.store(host::tsc_khz(), Ordering::SeqCst);
    }
    KHZ.load(Ordering::SeqCst) * n / 1000
}
/// Until the deadline has expired, however late the host's timer is.
fn expired() {
    check(host::wait_ms(5000, || deadline() == 0), "does not expire");
    let limit = rdtsc() + us(500);
    spin_past(limit);
}
fn settle() {
    for _ in 0..20 {
        pause();
    }
}
/// Time enough to do something before a deadline, on a loaded machine too.
const AHEAD: u64 = 40_000;
fn past_ahead() {
    let limit = rdtsc() + us(AHEAD + 3000);
    spin_past(limit);
}
/// Until RDTSC reads more than `t`, without an exit.
fn spin_past(t: u64) {
    while rdtsc() <= t {
        pause();
    }
}
/// Initial count 0 ends the timer: nothing comes within so many milliseconds.
fn stops(ms: u64) {
    write(TMICT, 0);
    settle();
    let n = count();
    host::wait_ms(ms, || false);
    check_eq(count(), n, "initial count 0 did not stop it");
}
/// `n` interrupts in all, then no more.
fn exactly(n: u64, what: &str) {
    check(host::wait_ms(5000, || count() >= n), what);
    let limit = rdtsc() + us(300);
    spin_past(limit);
    check_eq(count(), n, what);
}

// ---- values ----

both!(once, "deadline/each_value_once_xapic", "deadline/each_value_once_x2apic");
fn once(x2: bool) {
    deadline_setup(x2);
    let mut n = 0;
    let mut one = |t: u64| {
        arm(t);
        n += 1;
        exactly(n, "interrupts of one deadline");
        check_eq(deadline(), 0, "MSR after firing");
    };
    one(1);
    one(2);
    let start = rdtsc();
    one(start);
    one(rdtsc() - 1);
    for ahead in [0, 1, 2, 3, 10, 31, 32, 33, 100, 300, 1000, 3000, 10_000, 100_000] {
        one(rdtsc() + ahead);
    }
}

test!(zero, "deadline/zero_never_fires");
fn zero() {
    deadline_setup(true);
    for _ in 0..5 {
        arm(0);
        settle();
    }
    exactly(0, "interrupts of deadline 0");
    check_eq(deadline(), 0, "MSR");
}

test!(highest, "deadline/highest_values_do_not_fire");
fn highest() {
    deadline_setup(true);
    for t in [1 << 63, u64::MAX - 1, u64::MAX] {
        arm(t);
        host::wait_ms(3, || false);
        check_eq(count(), 0, "a deadline that never comes fired");
        check_eq(deadline(), t, "MSR");
    }
    arm(1);
    exactly(1, "a past deadline after it");
}

test!(same_again, "deadline/same_value_twice");
fn same_again() {
    deadline_setup(true);
    // Far enough ahead that a busy host does not let it pass between the two.
    let t = rdtsc() + us(100_000);
    arm(t);
    arm(t);
    exactly(1, "interrupts");
    // The value is past now: it fires again.
    arm(t);
    exactly(2, "the same value once it is past");
}

/// Around and beyond what a 32-bit timer of the CPU holds: not early, and once.
fn beyond(wait: fn(u64)) {
    static AT: AtomicU64 = AtomicU64::new(0);
    deadline_setup(true);
    trap::on(0x40, |f| {
        AT.store(rdtsc(), Ordering::SeqCst);
        irq(f)
    });
    for (n, more) in [(1, 0), (2, us(2000))] {
        cli();
        let t = rdtsc() + (1 << 32) + more;
        arm(t);
        wait(t);
        sti();
        check(host::wait_ms(20_000, || count() == n), "no interrupt");
        check(AT.load(Ordering::SeqCst) >= t, "fired before its deadline");
        exactly(n, "interrupts");
    }
}
test!(beyond_hlt, "deadline/beyond_32_bits_halted", timeout(240));
fn beyond_hlt() {
    beyond(|_| sti_hlt());
}
test!(beyond_user, "deadline/beyond_32_bits_in_user_space", timeout(240));
fn beyond_user() {
    // Comes back into the guest shortly before: from there the CPU's timer may do.
    beyond(|t| {
        let left = t.saturating_sub(rdtsc()) * 1000 / host::tsc_khz();
        host::must(op::SLEEP_US, &[left.saturating_sub(1000)]);
    });
}

// ---- rewritten and disarmed ----

test!(handler, "deadline/rewritten_before_eoi");
fn handler() {
    deadline_setup(true);
    trap::on(0x40, |_| {
        let n = COUNTS[0].fetch_add(1, Ordering::SeqCst);
        // Already past: requested again while the same vector is in service, delivered after the EOI.
        match n {
            0 => arm(1),
            1 => arm(rdtsc()),
            2 => {
                arm(rdtsc() + us(200));
                arm(1);
            }
            _ => {}
        }
        settle();
        check_eq(count(), n + 1, "nested in itself");
        eoi();
    });
    arm(1);
    exactly(4, "one and three from handlers");
    check_eq(deadline(), 0, "MSR");
}

test!(disarm, "deadline/disarmed_right_before_expiry");
fn disarm() {
    deadline_setup(true);
    let mut fired = 0;
    for round in 0..300u64 {
        let before = count();
        arm(rdtsc() + 400 + round * 37 % 4000);
        for _ in 0..round % 20 {
            pause();
        }
        arm(0);
        settle();
        let after = count();
        check(after - before <= 1, "one deadline fired twice");
        check_eq(deadline(), 0, "MSR after it was disarmed");
        fired += after - before;
        if round % 10 == 9 {
            let limit = rdtsc() + us(100);
            spin_past(limit);
        }
        check_eq(count(), after, "a disarmed deadline fired");
    }
    exactly(fired, "interrupts at the end");
}

test!(disarm_late, "deadline/disarmed_after_expiry_keeps_the_interrupt");
fn disarm_late() {
    deadline_setup(true);
    cli();
    arm(rdtsc() + us(100));
    check(host::wait_ms(5000, || apic::bit(IRR, 0x40)), "not requested");
    arm(0);
    sti();
    exactly(1, "interrupts");
}

test!(past_storm, "deadline/past_values_in_a_storm");
fn past_storm() {
    deadline_setup(true);
    for n in 1..=300 {
        arm(n);
        check(host::wait_ms(1000, || count() >= n), "no interrupt");
        check_eq(count(), n, "interrupts");
    }
    cli();
    for n in 1..=300 {
        arm(n);
    }
    sti();
    exactly(301, "those with IF clear become one");
}

test!(sweep, "deadline/swept_over_hlt");
fn sweep() {
    deadline_setup(true);
    for n in 1..=200 {
        cli();
        arm(rdtsc() + n * 97 % 5000);
        sti_hlt();
        check_eq(count(), n, "HLT ended without the deadline, or with two");
    }
    exactly(200, "interrupts");
}

test!(sweep_run, "deadline/swept_over_exits");
fn sweep_run() {
    deadline_setup(true);
    for n in 1..=200 {
        let t = rdtsc() + n * 97 % 5000;
        arm(t);
        while rdtsc() <= t {
            cpuid(0, 0);
            outb(PIO_RAM, 0);
            host::call(op::QUERY_CAP, &[0]);
        }
        check(host::wait_ms(5000, || count() >= n), "no interrupt");
        check_eq(count(), n, "interrupts");
    }
    exactly(200, "interrupts");
}

// ---- the mode, the mask and the APIC around an armed deadline ----

test!(modes, "deadline/modes_change_while_armed");
fn modes() {
    deadline_setup(true);
    for mode in [0, PERIODIC] {
        arm(rdtsc() + us(AHEAD));
        write(LVTT, mode | 0x40);
        write(LVTT, TSC_DEADLINE | 0x40);
        check_eq(deadline(), 0, "MSR after the mode changed and came back");
        past_ahead();
        check_eq(count(), 0, "the old deadline fired");
    }
    for mode in [0, PERIODIC] {
        write(LVTT, mode | 0x40);
        write(TDCR, 0xb);
        write(TMICT, AHEAD as u32 * 1000);
        write(LVTT, TSC_DEADLINE | 0x40);
        check_eq(read(TMCCT) as u64, 0, "count in deadline mode");
        past_ahead();
        check_eq(count(), 0, "the old count fired");
    }
    // The same mode again is no change.
    arm(rdtsc() + us(AHEAD));
    write(LVTT, TSC_DEADLINE | 0x40);
    exactly(1, "interrupts");
}

test!(mask_later, "deadline/masked_while_armed");
fn mask_later() {
    deadline_setup(true);
    arm(rdtsc() + us(AHEAD));
    write(LVTT, MASKED | TSC_DEADLINE | 0x40);
    expired();
    check_eq(count(), 0, "fired though masked");
    check(!apic::bit(IRR, 0x40), "requested though masked");
    write(LVTT, TSC_DEADLINE | 0x40);
    host::wait_ms(3, || false);
    check_eq(count(), 0, "what expired masked came later");
    write(LVTT, MASKED | TSC_DEADLINE | 0x40);
    arm(rdtsc() + us(AHEAD));
    write(LVTT, TSC_DEADLINE | 0x40);
    exactly(1, "unmasked in time");
    check_eq(deadline(), 0, "MSR");
}

test!(soft, "deadline/apic_soft_disabled_while_armed");
fn soft() {
    deadline_setup(true);
    arm(rdtsc() + us(AHEAD));
    write(SVR, 0xff);
    expired();
    enable();
    check_eq(read(LVTT) as u64, (MASKED | TSC_DEADLINE | 0x40) as u64, "LVTT is masked");
    write(LVTT, TSC_DEADLINE | 0x40);
    host::wait_ms(3, || false);
    check_eq(count(), 0, "fired though the APIC was disabled by software");
    arm(rdtsc() + us(100));
    exactly(1, "and works again");
}

test!(off, "deadline/apic_off_while_armed");
fn off() {
    deadline_setup(true);
    arm(rdtsc() + us(AHEAD));
    wrmsr(MSR_APIC_BASE, 0xfee0_0100);
    past_ahead();
    wrmsr(MSR_APIC_BASE, 0xfee0_0900);
    enable();
    write(LVTT, TSC_DEADLINE | 0x40);
    host::wait_ms(3, || false);
    check_eq(count(), 0, "fired though the APIC was off");
    arm(rdtsc() + us(100));
    exactly(1, "and works again");
}

test!(to_x2, "deadline/x2apic_entered_while_armed");
fn to_x2() {
    deadline_setup(false);
    arm(rdtsc() + us(2000));
    to_x2apic();
    exactly(1, "interrupts");
}

test!(adjust, "deadline/tsc_adjust_written_while_armed");
fn adjust() {
    deadline_setup(true);
    if cpuid(7, 0)[1] & 2 == 0 {
        skip("no TSC_ADJUST")
    }
    arm(rdtsc() + us(2000));
    wrmsr(0x3b, rdmsr(0x3b));
    wrmsr(0x3b, 0);
    exactly(1, "interrupts");
}

// ---- what the vCPU is doing at that moment ----

test!(expires_if0_hlt, "deadline/expires_in_hlt_with_if_clear");
fn expires_if0_hlt() {
    deadline_setup(true);
    cli();
    arm(rdtsc() + us(1000));
    host::after(20_000, op::NMI, &[0]);
    hlt();
    check_eq(NMIS.load(Ordering::SeqCst), 1, "HLT ended without the NMI");
    check_eq(count(), 0, "delivered with IF clear");
    check(host::wait_ms(5000, || apic::bit(IRR, 0x40)), "not requested");
    check_eq(deadline(), 0, "MSR after firing");
    sti();
    exactly(1, "interrupts");
}

both!(tpr, "deadline/expires_under_tpr_xapic", "deadline/expires_under_tpr_x2apic");
fn tpr(x2: bool) {
    deadline_setup(x2);
    for n in 0..3 {
        if n == 1 {
            set_cr8(5)
        } else {
            write(TPR, 0x50)
        }
        arm(rdtsc() + us(500));
        check(host::wait_ms(5000, || apic::bit(IRR, 0x40)), "not requested");
        host::wait_ms(1, || false);
        check_eq(count(), n, "delivered under the TPR");
        check_eq(deadline(), 0, "MSR after firing");
        if n == 1 {
            set_cr8(0)
        } else {
            write(TPR, 0)
        }
        settle();
        check_eq(count(), n + 1, "after the TPR was lowered");
    }
}

test!(tpr_hlt, "deadline/expires_in_hlt_under_tpr");
fn tpr_hlt() {
    deadline_setup(true);
    cli();
    set_cr8(5);
    arm(rdtsc() + us(1000));
    host::after(20_000, op::MSI, &[0xfee0_0000, 0x60]);
    sti_hlt();
    check_eq(OTHERS.load(Ordering::SeqCst), 1, "HLT ended without the higher interrupt");
    check_eq(count(), 0, "delivered under CR8");
    set_cr8(0);
    exactly(1, "after CR8 was lowered");
}

test!(window, "deadline/expires_while_a_window_is_awaited");
fn window() {
    static ORDER: Shared<[u64; 4]> = Shared::new([0; 4]);
    static AT: AtomicU64 = AtomicU64::new(0);
    fn note(f: &mut Frame) {
        ORDER.get()[AT.fetch_add(1, Ordering::SeqCst) as usize & 3] = f.vector;
        eoi();
    }
    deadline_setup(true);
    for v in [0x30, 0x40, 0x60] {
        trap::on(v, note);
    }
    cli();
    wrmsr(0x83f, 0x30); // waits for IF
    arm(rdtsc() + us(500));
    check(host::wait_ms(5000, || apic::bit(IRR, 0x40)), "not requested");
    wrmsr(0x83f, 0x60);
    sti();
    settle();
    cli();
    check_eq(AT.load(Ordering::SeqCst), 3, "interrupts");
    check_eq(ORDER.get()[0], 0x60, "first");
    check_eq(ORDER.get()[1], 0x40, "second: the timer");
    check_eq(ORDER.get()[2], 0x30, "third");
}

test!(in_user, "deadline/expires_in_user_space");
fn in_user() {
    deadline_setup(true);
    for n in 1..=5 {
        arm(rdtsc() + us(1000));
        host::must(op::SLEEP_US, &[5000]);
        settle();
        check_eq(count(), n, "interrupts");
        check_eq(deadline(), 0, "MSR");
    }
    exactly(5, "interrupts");
}

test!(signals, "deadline/expires_under_signals");
fn signals() {
    deadline_setup(true);
    host::must(op::KICK, &[0, 300, 100]);
    for n in 1..=40 {
        let t = rdtsc() + us(300);
        arm(t);
        check(host::wait_ms(5000, || count() >= n), "no interrupt");
        check_eq(count(), n, "interrupts");
    }
}

test!(state, "deadline/expires_while_user_space_has_the_state");
fn state() {
    deadline_setup(true);
    // Armed, read back, set again when it is past: one interrupt, at once.
    let t = rdtsc() + us(AHEAD);
    arm(t);
    check_eq(host::must(op::GET_MSR, &[MSR_TSC_DEADLINE as u64]), t, "the deadline, read back");
    host::must(op::SLEEP_US, &[AHEAD + 3000]);
    let n = count();
    check(n <= 1, "interrupts");
    host::must(op::STATE_ROUND_TRIP, &[]);
    host::must(op::SET_MSR, &[MSR_TSC_DEADLINE as u64, t]);
    exactly(n + 1, "a past deadline that user space sets");
}

test!(delivery, "deadline/expires_during_a_delivery_that_faults");
fn delivery() {
    // The IDT is in a slot whose second-level mapping is taken away: each delivery faults first, with an expiry around it.
    const SLOT_GPA: u64 = 0x8000_0000;
    deadline_setup(true);
    host::must(op::SLOT_SET, &[FREE_SLOT, SLOT_GPA, 0x2000, 0, 0]);
    unsafe { core::ptr::copy_nonoverlapping(trap::idt_address() as *const u8, SLOT_GPA as *mut u8, 4096) };
    let d = [0xfffu16, SLOT_GPA as u16, (SLOT_GPA >> 16) as u16, 0, 0];
    unsafe { core::arch::asm!("lidt [{}]", in(reg) &d) };
    for n in 1..=60 {
        cli();
        wrmsr(0x83f, if n & 1 == 0 { 0x30 } else { 0x60 });
        host::must(op::SLOT_ZAP, &[FREE_SLOT]);
        arm(rdtsc() + n * 71 % 3000);
        sti();
        check(host::wait_ms(5000, || count() >= n), "no interrupt");
        check_eq(count(), n, "interrupts of the timer");
        settle();
        check_eq(OTHERS.load(Ordering::SeqCst), n, "the others");
    }
}

test!(moved, "deadline/moved_between_cpus");
fn moved() {
    static AT: AtomicU64 = AtomicU64::new(0);
    deadline_setup(true);
    trap::on(0x40, |f| {
        AT.store(rdtsc(), Ordering::SeqCst);
        irq(f)
    });
    let cpus = host::must(op::HOST_CPUS, &[]);
    for n in 1..=20 {
        let t = rdtsc() + us(1000);
        arm(t);
        host::must(op::MIGRATE, &[n % cpus]);
        check(host::wait_ms(5000, || count() >= n), "no interrupt");
        check(AT.load(Ordering::SeqCst) >= t, "fired before its deadline");
        check_eq(count(), n, "interrupts");
    }
}

static DONE: AtomicU32 = AtomicU32::new(0);

test!(four, "deadline/of_four_vcpus", cpus(4));
fn four() {
    // More vCPUs than CPUs on the lab's machines: those that are not running take what is due when they run again.
    fn ticks() {
        static AT: [AtomicU64; 4] = [const { AtomicU64::new(0) }; 4];
        fn stamp(f: &mut Frame) {
            AT[index()].store(rdtsc(), Ordering::SeqCst);
            irq(f)
        }
        trap::on(0x40, stamp);
        let me = index();
        to_x2apic();
        enable();
        write(LVTT, TSC_DEADLINE | 0x40);
        let step = us(300 + 170 * me as u64);
        for n in 1..=20 {
            cli();
            let t = rdtsc() + step;
            arm(t);
            if n & 1 == 0 {
                sti_hlt();
            } else {
                sti();
                while count() < n {
                    pause();
                }
            }
            check_eq(count(), n, "interrupts of one vCPU");
            check(AT[me].load(Ordering::SeqCst) >= t, "fired before its deadline");
        }
        cli();
        DONE.fetch_add(1, Ordering::SeqCst);
    }
    need_deadline();
    smp::start_all(4);
    for i in 1..4 {
        smp::run(i, ticks);
    }
    ticks();
    check(host::wait_ms(20_000, || DONE.load(Ordering::SeqCst) == 4), "not all came to their end");
    for c in &COUNTS {
        check_eq(c.load(Ordering::SeqCst), 20, "interrupts of one vCPU in all");
    }
}

test!(init, "deadline/init_while_armed", cpus(2));
fn init() {
    static LEFT: AtomicU64 = AtomicU64::new(u64::MAX);
    fn armed() {
        to_x2apic();
        enable();
        write(LVTT, TSC_DEADLINE | 0x40);
        sti();
        arm(rdtsc() + us(AHEAD));
        DONE.fetch_add(1, Ordering::SeqCst);
        loop {
            pause();
        }
    }
    fn looks() {
        LEFT.store(deadline(), Ordering::SeqCst);
        check_eq(read(LVTT) as u64, MASKED as u64, "LVTT after INIT");
        write(LVTT, TSC_DEADLINE | 0x40);
        sti();
        DONE.fetch_add(1, Ordering::SeqCst);
        loop {
            pause();
        }
    }
    need_deadline();
    setup(false);
    smp::start(1);
    smp::run(1, armed);
    check(host::wait_ms(5000, || DONE.load(Ordering::SeqCst) == 1), "not armed");
    apic::icr(0x4500, 1);
    past_ahead();
    smp::start(1);
    smp::run(1, looks);
    check(host::wait_ms(5000, || DONE.load(Ordering::SeqCst) == 2), "not up again");
    host::wait_ms(3, || false);
    check_eq(LEFT.load(Ordering::SeqCst), 0, "MSR after INIT");
    check_eq(COUNTS[1].load(Ordering::SeqCst), 0, "a deadline outlived INIT");
}

// ---- one-shot and periodic ----

const DIVIDERS: [(u32, u32); 8] =
    [(0xb, 1), (0x0, 2), (0x1, 4), (0x2, 8), (0x3, 16), (0x8, 32), (0x9, 64), (0xa, 128)];

both!(shots, "timer/one_shot_all_dividers_xapic", "timer/one_shot_all_dividers_x2apic");
fn shots(x2: bool) {
    setup(x2);
    sti();
    write(LVTT, 0x40);
    for (n, (code, by)) in (1..).zip(DIVIDERS) {
        write(TMICT, 0);
        write(TDCR, code);
        check_eq(read(TDCR) as u64, code as u64, "TDCR");
        let start = rdtsc();
        write(TMICT, 1_000_000 / by);
        check(host::wait_ms(5000, || count() >= n), "no interrupt");
        // The bus clock is 1 GHz by the host's clock, which may differ a little from the TSC's.
        check(rdtsc() - start >= us(900), "fired early");
        check_eq(read(TMCCT) as u64, 0, "TMCCT after expiry");
        exactly(n, "one shot");
    }
}

test!(divider, "timer/divider_written_after_expiry");
fn divider() {
    setup(true);
    sti();
    write(LVTT, 0x40);
    write(TDCR, 0xb);
    write(TMICT, 100_000);
    exactly(1, "one shot");
    for (code, _) in DIVIDERS {
        write(TDCR, code);
    }
    exactly(1, "a stopped timer fired again");
}

both!(periods, "timer/periodic_all_dividers_xapic", "timer/periodic_all_dividers_x2apic");
fn periods(x2: bool) {
    setup(x2);
    sti();
    write(LVTT, PERIODIC | 0x40);
    for (code, by) in DIVIDERS {
        write(TDCR, code);
        let before = count();
        let start = rdtsc();
        write(TMICT, 2_000_000 / by);
        check(host::wait_ms(10_000, || count() >= before + 4), "no four periods");
        let n = count() - before;
        check(rdtsc() - start >= us(1800) * n, "more interrupts than periods");
        stops(5);
    }
}

test!(late, "timer/periods_missed_become_one");
fn late() {
    setup(true);
    write(TDCR, 0xb);
    write(LVTT, PERIODIC | 0x40);
    let start = rdtsc();
    write(TMICT, 5_000_000);
    for _ in 0..3 {
        // With IF clear, in the guest and in user space, several periods pass.
        host::must(op::SLEEP_US, &[12_000]);
        let limit = rdtsc() + us(12_000);
        spin_past(limit);
        check(host::wait_ms(5000, || apic::bit(IRR, 0x40)), "not requested");
        let before = count();
        let opened = rdtsc();
        sti();
        settle();
        cli();
        let n = count() - before;
        check(n >= 1, "no interrupt");
        // One for all that passed, and those of periods that ended since.
        check(n <= 1 + 1 + (rdtsc() - opened) / us(4500), "missed periods came one by one");
    }
    check(count() * us(4500) <= rdtsc() - start, "more interrupts than periods");
}

test!(tiny, "timer/tiny_period_leaves_time");
fn tiny() {
    setup(true);
    sti();
    write(TDCR, 0xb);
    write(LVTT, PERIODIC | 0x40);
    write(TMICT, 1);
    check(host::wait_ms(10_000, || count() >= 20), "no interrupts");
    let limit = rdtsc() + us(5000);
    spin_past(limit);
    stops(3);
}

test!(rewrite, "timer/count_rewritten_while_running");
fn rewrite() {
    setup(true);
    sti();
    write(TDCR, 0xb);
    write(LVTT, 0x40);
    for _ in 0..20 {
        write(TMICT, AHEAD as u32 * 1000);
        settle();
    }
    write(TMICT, 0);
    past_ahead();
    check_eq(count(), 0, "a count that was taken back fired");
    write(TMICT, 4_000_000_000);
    write(TMICT, 1_000_000);
    exactly(1, "the last one");
}

test!(shot_if0, "timer/one_shot_in_hlt_with_if_clear");
fn shot_if0() {
    setup(true);
    write(TDCR, 0xb);
    write(LVTT, 0x40);
    write(TMICT, 1_000_000);
    host::after(20_000, op::NMI, &[0]);
    hlt();
    check_eq(NMIS.load(Ordering::SeqCst), 1, "HLT ended without the NMI");
    check_eq(count(), 0, "delivered with IF clear");
    sti();
    exactly(1, "interrupts");
}

// ---- idle without exits ----

test!(idle_timer_x, "idle/timer_in_hlt_xapic", IDLE | BY_NAME);
fn idle_timer_x() {
    idle_timer(false)
}
test!(idle_timer_x2, "idle/timer_in_hlt_x2apic", IDLE | BY_NAME);
fn idle_timer_x2() {
    idle_timer(true)
}
/// HLT does not exit, and each of these wakes it: the deadline, a one-shot count, a message of a device, an NMI.
fn idle_timer(x2: bool) {
    deadline_setup(x2);
    let halts = host::must(op::HALTS, &[]);
    for n in 1..=20 {
        cli();
        arm(rdtsc() + us(200 * (n % 4)));
        while count() < n {
            // SAFETY: an interrupt ends it.
            unsafe { core::arch::asm!("sti", "hlt", "cli") };
        }
        check_eq(count(), n, "more than one interrupt of one deadline");
        check_eq(deadline(), 0, "MSR after firing");
    }
    write(LVTT, 0x40);
    write(TDCR, 0xb);
    for n in 21..=24 {
        write(TMICT, 300_000);
        while count() < n {
            unsafe { core::arch::asm!("sti", "hlt", "cli") };
        }
    }
    host::after(1000, op::MSI, &[0xfee0_0000, 0x30]);
    while OTHERS.load(Ordering::SeqCst) == 0 {
        unsafe { core::arch::asm!("sti", "hlt", "cli") };
    }
    host::after(1000, op::NMI, &[0]);
    while NMIS.load(Ordering::SeqCst) == 0 {
        // IF is clear: neither what wakes it nor what the host has to do meanwhile waits for that.
        unsafe { core::arch::asm!("hlt") };
    }
    check_eq(host::must(op::HALTS, &[]) - halts, 0, "HLT exits");
    check_eq(count(), 24, "interrupts of the timer");
}

test!(idle_deadlines, "idle/deadlines", IDLE | BY_NAME);
/// For about a second: each deadline wakes HLT once, and not before it has come.
fn idle_deadlines() {
    deadline_setup(true);
    for n in 1..=200 {
        cli();
        let at = rdtsc() + us(4000);
        arm(at);
        while count() < n {
            unsafe { core::arch::asm!("sti", "hlt", "cli") };
        }
        check(rdtsc() >= at, "too early");
        check_eq(count(), n, "interrupts of one deadline");
    }
}

test!(idle_exits, "idle/deadlines_come_without_exits", IDLE | BY_NAME);
fn idle_exits() {
    come_without_exits(1)
}
test!(idle_moved_exits, "idle/moved_deadlines_come_without_exits", IDLE | BY_NAME);
fn idle_moved_exits() {
    come_without_exits(3)
}
/// Where the host posts its timers, a deadline costs the exits that write it, each time later, and none when it comes, or would have
/// come. (Its handler has one of its own: it looks in which mode the APIC is. Some are the host's.)
fn come_without_exits(writes: u64) {
    const ROUNDS: u64 = 50;
    deadline_setup(true);
    let before = host::must(op::EXITS, &[]);
    for n in 1..=ROUNDS {
        cli();
        let now = rdtsc();
        for k in 1..=writes {
            arm(now + us(4000 * k));
        }
        while count() < n {
            unsafe { core::arch::asm!("sti", "hlt", "cli") };
        }
        check(rdtsc() >= now + us(4000 * writes), "too early");
    }
    let exits = host::must(op::EXITS, &[]) - before;
    check(exits < ROUNDS * (writes + 1) + ROUNDS / 2, "exits");
    check_eq(count(), ROUNDS, "interrupts");
}

test!(idle_ipi, "idle/ipi_in_hlt", cpus(2) | IDLE | BY_NAME);
/// Two CPUs that wake each other out of HLT, by turns: none is lost, none sleeps for ever.
fn idle_ipi() {
    static TURNS: AtomicU64 = AtomicU64::new(0);
    const ROUNDS: u64 = 200;
    fn turn(own: u64) {
        trap::on(0x30, other);
        loop {
            cli();
            let now = TURNS.load(Ordering::SeqCst);
            if now >= ROUNDS {
                return;
            }
            if now % 2 == own {
                TURNS.fetch_add(1, Ordering::SeqCst);
                icr(0x30, 1 - own as u32);
            } else {
                unsafe { core::arch::asm!("sti", "hlt", "cli") };
            }
        }
    }
    smp::start_all(2);
    smp::run(1, || turn(1));
    turn(0);
    check_eq(host::must(op::HALTS, &[]), 0, "HLT exits");
}
