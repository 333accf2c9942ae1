//! Several vCPUs: start-up, IPIs of all forms, NMIs, INIT, and shared memory.

use crate::apic::{self, eoi};
use crate::config::*;
use crate::cpu::*;
use crate::report::*;
use crate::trap::{self, Frame};
use crate::{host, smp, test};
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

pub(crate) static HITS: [AtomicU64; 4] = [const { AtomicU64::new(0) }; 4];
static NMIS: [AtomicU64; 4] = [const { AtomicU64::new(0) }; 4];
pub(crate) static READY: AtomicU32 = AtomicU32::new(0);

pub(crate) fn hits(i: usize) -> u64 {
    HITS[i].load(Ordering::SeqCst)
}
pub(crate) fn irq(_: &mut Frame) {
    HITS[index()].fetch_add(1, Ordering::SeqCst);
    eoi();
}
fn nmi(_: &mut Frame) {
    NMIS[index()].fetch_add(1, Ordering::SeqCst);
}
pub(crate) fn open() {
    sti();
    READY.fetch_add(1, Ordering::SeqCst);
    loop {
        pause();
    }
}
pub(crate) fn open_x2() {
    apic::to_x2apic();
    open()
}
fn halt() {
    READY.fetch_add(1, Ordering::SeqCst);
    loop {
        sti_hlt();
        cli();
    }
}
fn halt_x2() {
    apic::to_x2apic();
    halt()
}

fn start(n: usize, f: fn()) {
    trap::on(0x40, irq);
    trap::on(2, nmi);
    smp::start_all(n);
    for i in 1..n {
        smp::run(i, f);
    }
    check(host::wait_ms(10_000, || READY.load(Ordering::SeqCst) == n as u32 - 1), "the others are not ready");
}

/// Every CPU in the mask has exactly `n` hits, the others `m`.
fn expect_hits(mask: u32, n: u64, m: u64, what: &str) {
    let want = |i: usize| if mask >> i & 1 != 0 { n } else { m };
    let done = host::wait_ms(5000, || (0..4).all(|i| hits(i) >= want(i)));
    check(done, what);
    host::wait_ms(3, || false);
    for i in 0..4 {
        check_eq(hits(i), want(i), what);
    }
}
fn clear() {
    for h in &HITS {
        h.store(0, Ordering::SeqCst);
    }
}

fn forms(x2: bool) {
    sti();
    for i in 0..4u32 {
        clear();
        apic::icr(0x4040, i);
        expect_hits(1 << i, 1, 0, "physical destination");
    }
    clear();
    apic::icr(0x8_4040, 0);
    expect_hits(0xf, 1, 0, "all including self");
    clear();
    apic::icr(0xc_4040, 0);
    expect_hits(0xe, 1, 0, "all excluding self");
    clear();
    apic::icr(0x4040, if x2 { 0xffff_ffff } else { 0xff });
    expect_hits(0xf, 1, 0, "broadcast id");
}

test!(forms_x, "smp/ipi_forms_xapic", cpus(4));
fn forms_x() {
    start(4, open);
    forms(false);
}
test!(forms_x2, "smp/ipi_forms_x2apic", cpus(4));
fn forms_x2() {
    start(4, open_x2);
    apic::to_x2apic();
    forms(true);
}
test!(forms_hlt, "smp/ipi_forms_to_halted", cpus(4));
fn forms_hlt() {
    start(4, halt);
    forms(false);
}
test!(forms_hlt_x2, "smp/ipi_forms_to_halted_x2apic", cpus(4));
fn forms_hlt_x2() {
    start(4, halt_x2);
    apic::to_x2apic();
    forms(true);
}

static LDRS: [AtomicU32; 4] = [const { AtomicU32::new(0) }; 4];
static DFR: AtomicU32 = AtomicU32::new(0xffff_ffff);
fn logical_ap() {
    apic::write(apic::DFR, DFR.load(Ordering::SeqCst));
    apic::write(apic::LDR, LDRS[index()].load(Ordering::SeqCst) << 24);
    open()
}
fn logical_start(dfr: u32, ldrs: [u32; 4]) {
    DFR.store(dfr, Ordering::SeqCst);
    for (i, l) in ldrs.into_iter().enumerate() {
        LDRS[i].store(l, Ordering::SeqCst);
    }
    start(4, logical_ap);
    apic::write(apic::DFR, dfr);
    apic::write(apic::LDR, ldrs[0] << 24);
    sti();
}
fn logical(dest: u32, mask: u32, what: &str) {
    clear();
    apic::icr(0x4840, dest);
    expect_hits(mask, 1, 0, what);
}

test!(flat, "smp/logical_flat", cpus(4));
fn flat() {
    logical_start(0xffff_ffff, [1, 2, 4, 8]);
    for m in 1..16 {
        logical(m, m, "flat logical set");
    }
    logical(0x10, 0, "no such CPU");
    logical(0xff, 0xf, "all bits");
}

test!(cluster, "smp/logical_cluster", cpus(4));
fn cluster() {
    logical_start(0x0fff_ffff, [0x11, 0x12, 0x21, 0x22]);
    logical(0x11, 1, "cluster 1, first");
    logical(0x13, 3, "cluster 1, both");
    logical(0x22, 8, "cluster 2, second");
    logical(0x33, 0, "no such cluster");
}

test!(x2_logical, "smp/logical_x2apic", cpus(4));
fn x2_logical() {
    start(4, open_x2);
    apic::to_x2apic();
    sti();
    for m in 1..16 {
        logical(m, m, "x2APIC logical set");
    }
    logical(0x1_0001, 0, "another cluster");
}

test!(lowest, "smp/lowest_priority", cpus(4));
fn lowest() {
    logical_start(0xffff_ffff, [1, 2, 4, 8]);
    for _ in 0..5 {
        clear();
        apic::icr(0x4940, 0xf);
        check(host::wait_ms(5000, || (0..4).map(hits).sum::<u64>() == 1), "exactly one takes it");
        host::wait_ms(3, || false);
        check_eq((0..4).map(hits).sum(), 1, "exactly one takes it");
    }
}

test!(nmi_ipi, "smp/nmi_ipi", cpus(2));
fn nmi_ipi() {
    start(2, halt);
    for i in 1..=5 {
        apic::icr(0x4400, 1);
        check(host::wait_ms(5000, || NMIS[1].load(Ordering::SeqCst) == i), "NMI to a halted CPU");
    }
}
test!(nmi_running, "smp/nmi_ipi_to_running", cpus(2));
fn nmi_running() {
    start(2, open);
    for i in 1..=5 {
        apic::icr(0x4400, 1);
        check(host::wait_ms(5000, || NMIS[1].load(Ordering::SeqCst) == i), "NMI to a running CPU");
    }
}

static TURN: AtomicU64 = AtomicU64::new(0);
fn ponger(_: &mut Frame) {
    eoi();
    if index() == 1 {
        apic::icr(0x4041, 0);
    } else {
        TURN.fetch_add(1, Ordering::SeqCst);
    }
}
fn pingpong(f: fn(), x2: bool) {
    trap::on(0x41, ponger);
    start(2, f);
    if x2 {
        apic::to_x2apic();
    }
    sti();
    for i in 1..=100 {
        apic::icr(0x4041, 1);
        check(host::wait_ms(5000, || TURN.load(Ordering::SeqCst) == i), "a ping got lost");
    }
}
test!(pp_run, "smp/ping_pong_running", cpus(2));
fn pp_run() {
    pingpong(open, false);
}
test!(pp_hlt, "smp/ping_pong_halted", cpus(2));
fn pp_hlt() {
    pingpong(halt, false);
}
test!(pp_hlt_x2, "smp/ping_pong_halted_x2apic", cpus(2));
fn pp_hlt_x2() {
    pingpong(halt_x2, true);
}

static RING: AtomicU64 = AtomicU64::new(0);
test!(ring, "smp/ring_of_four", cpus(4));
fn ring() {
    fn pass_on(_: &mut Frame) {
        eoi();
        let n = RING.fetch_add(1, Ordering::SeqCst);
        if n < 100 {
            apic::icr(0x4042, (index() as u32 + 1) & 3);
        }
    }
    trap::on(0x42, pass_on);
    start(4, halt);
    apic::icr(0x4042, 1);
    sti();
    check(host::wait_ms(15_000, || RING.load(Ordering::SeqCst) == 101), "the token got lost");
}

test!(storm, "smp/ipi_storm", cpus(4));
fn storm() {
    fn sender() {
        sti();
        READY.fetch_add(1, Ordering::SeqCst);
        for _ in 0..200 {
            apic::icr(0xc_4040, 0);
        }
        READY.fetch_add(16, Ordering::SeqCst);
        loop {
            pause();
        }
    }
    start_storm(sender);
    fn start_storm(f: fn()) {
        trap::on(0x40, irq);
        smp::start_all(4);
        for i in 1..4 {
            smp::run(i, f);
        }
    }
    sti();
    check(host::wait_ms(25_000, || READY.load(Ordering::SeqCst) >> 4 == 3), "the senders did not finish");
    // One that sent all of its own in one go and lost its CPU then takes those of the others when it is back.
    for i in 0..4 {
        check(host::wait_ms(10_000, || hits(i) > 0), "each CPU got some");
    }
}

test!(init_restart, "smp/init_and_sipi_again", cpus(2));
fn init_restart() {
    start(2, halt);
    for _ in 0..3 {
        READY.store(0, Ordering::SeqCst);
        smp::start(1);
        smp::run(1, halt);
        check(host::wait_ms(5000, || READY.load(Ordering::SeqCst) == 1), "restarted CPU runs");
    }
    clear();
    apic::icr(0x4040, 1);
    check(host::wait_ms(5000, || hits(1) == 1), "and takes interrupts");
}

test!(init_running, "smp/init_stops_a_running_cpu", cpus(2));
fn init_running() {
    static BEAT: AtomicU64 = AtomicU64::new(0);
    fn beat() {
        READY.fetch_add(1, Ordering::SeqCst);
        loop {
            BEAT.fetch_add(1, Ordering::SeqCst);
        }
    }
    start(2, beat);
    apic::icr(0x4500, 1);
    host::wait_ms(50, || false);
    let a = BEAT.load(Ordering::SeqCst);
    host::wait_ms(50, || false);
    check_eq(BEAT.load(Ordering::SeqCst), a, "the CPU still runs after INIT");
    smp::start(1);
}

test!(sipi_ignored, "smp/sipi_to_a_running_cpu_is_ignored", cpus(2));
fn sipi_ignored() {
    start(2, open);
    let before = smp::UP[1].load(Ordering::SeqCst);
    apic::icr(0x4600 | smp::sipi_vector(), 1);
    host::wait_ms(50, || false);
    check_eq(smp::UP[1].load(Ordering::SeqCst) as u64, before as u64, "it started again");
    apic::icr(0x4040, 1);
    check(host::wait_ms(5000, || hits(1) == 1), "it still takes interrupts");
}

test!(two_sipis, "smp/second_sipi_is_ignored", cpus(2));
fn two_sipis() {
    apic::enable();
    apic::icr(0x4500, 1);
    apic::icr(0x4600 | smp::sipi_vector(), 1);
    apic::icr(0x4600 | smp::sipi_vector(), 1);
    check(host::wait_ms(10_000, || smp::UP[1].load(Ordering::SeqCst) >= 1), "started");
    host::wait_ms(30, || false);
    check_eq(smp::UP[1].load(Ordering::SeqCst) as u64, 1, "starts");
}

test!(wait_state, "smp/ipi_to_a_cpu_waiting_for_sipi", cpus(2));
fn wait_state() {
    apic::enable();
    apic::icr(0x4040, 1);
    apic::icr(0x4400, 1);
    host::wait_ms(20, || false);
    smp::start(1);
}

test!(mp_state, "smp/mp_state_of_others", cpus(2));
fn mp_state() {
    // KVM_GET_MP_STATE of one's own: runnable.
    check_eq(host::must(op::MP_STATE, &[0]), 0, "own state");
}

static LOCK: AtomicU64 = AtomicU64::new(0);
static TOTAL: trap::Shared<u64> = trap::Shared::new(0);
static FINISHED: AtomicU32 = AtomicU32::new(0);
fn adder() {
    for _ in 0..2000 {
        while LOCK.swap(1, Ordering::Acquire) != 0 {
            pause();
        }
        *TOTAL.get() += 1;
        LOCK.store(0, Ordering::Release);
    }
    FINISHED.fetch_add(1, Ordering::SeqCst);
}
test!(locks, "smp/spin_lock", cpus(4));
fn locks() {
    smp::start_all(4);
    for i in 1..4 {
        smp::run(i, adder);
    }
    adder();
    check(host::wait_ms(25_000, || FINISHED.load(Ordering::SeqCst) == 4), "not finished");
    check_eq(*TOTAL.get(), 8000, "sum");
}

test!(shootdown, "smp/tlb_shootdown", cpus(2));
fn shootdown() {
    use crate::mem::{FREE_VA, map, page, w64};
    static SEEN: AtomicU64 = AtomicU64::new(0);
    static FLUSHED: AtomicU64 = AtomicU64::new(0);
    fn reader() {
        sti();
        READY.fetch_add(1, Ordering::SeqCst);
        loop {
            SEEN.store(crate::mem::r64(FREE_VA), Ordering::SeqCst);
        }
    }
    trap::on(0x43, |_| {
        invlpg(FREE_VA);
        FLUSHED.fetch_add(1, Ordering::SeqCst);
        eoi();
    });
    let pages = [page(), page()];
    w64(pages[0], 100);
    w64(pages[1], 200);
    map(FREE_VA, pages[0], 3);
    start(2, reader);
    for i in 0..10u64 {
        let p = (i & 1) as usize;
        map(FREE_VA, pages[p], 3);
        apic::icr(0x4043, 1);
        check(host::wait_ms(5000, || FLUSHED.load(Ordering::SeqCst) == i + 1), "no shootdown IPI");
        check(
            host::wait_ms(5000, || SEEN.load(Ordering::SeqCst) == 100 + 100 * p as u64),
            "the old page is still seen",
        );
    }
}

test!(aps_state, "smp/ap_reset_state", cpus(2));
fn aps_state() {
    static BASE: AtomicU64 = AtomicU64::new(0);
    fn note() {
        BASE.store(rdmsr(0x1b), Ordering::SeqCst);
        READY.store(1, Ordering::SeqCst);
        loop {
            pause();
        }
    }
    start(2, note);
    check_eq(BASE.load(Ordering::SeqCst), 0xfee0_0800, "APIC base of an AP: no BSP flag");
}
