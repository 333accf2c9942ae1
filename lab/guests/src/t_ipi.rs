//! IPIs at their edges: destinations that are nobody's, illegal vectors and reserved bits, senders that meet, targets that are
//! anything but running.

use crate::apic::{self, *};
use crate::config::*;
use crate::cpu::*;
use crate::report::*;
use crate::t_smp::{HITS, READY, hits, irq, open, open_x2};
use crate::trap::{self, Frame, expect};
use crate::{host, smp, test};
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

static GO: AtomicU32 = AtomicU32::new(0);

fn all_hits() -> u64 {
    (0..4).map(hits).sum()
}
fn ready() -> u32 {
    READY.load(Ordering::SeqCst)
}
fn start(n: usize, f: fn()) {
    trap::on(0x40, irq);
    smp::start_all(n);
    for i in 1..n {
        smp::run(i, f);
    }
    check(host::wait_ms(10_000, || ready() == n as u32 - 1), "the others are not ready");
}
/// Nothing comes for some time.
fn quiet(n: u64, what: &str) {
    host::wait_ms(2, || false);
    check_eq(all_hits(), n, what);
}
fn settle() {
    for _ in 0..20 {
        pause();
    }
}

// ---- to oneself ----

fn open_x2apic() {
    trap::on(0x40, irq);
    to_x2apic();
    enable();
    sti();
}

test!(self_reserved, "ipi/self_ipi_reserved_bits");
fn self_reserved() {
    open_x2apic();
    for bit in 8..64 {
        expect(13, 0, "SELF_IPI with a reserved bit", || wrmsr(0x83f, 1 << bit | 0x40));
    }
    check_eq(hits(0), 0, "a write that faults sends nothing");
    wrmsr(0x83f, 0x40);
    check_eq(hits(0), 1, "a good one");
    wrmsr(MSR_APIC_BASE, 0xfee0_0100);
    expect(13, 0, "SELF_IPI while the APIC is off", || wrmsr(0x83f, 0x40));
}

test!(icr_reserved, "ipi/x2apic_icr_reserved_bits");
fn icr_reserved() {
    open_x2apic();
    for bit in [13, 16, 17, 20, 21, 24, 30, 31] {
        expect(13, 0, "ICR with a reserved bit", || wrmsr(0x830, 1 << bit | 0x4_4040));
    }
    check_eq(hits(0), 0, "a write that faults sends nothing");
    // Delivery status is written by software of old.
    wrmsr(0x830, 0x4_4040 | 1 << 12);
    check_eq(hits(0), 1, "a good one");
    check_eq(rdmsr(0x830) & 1 << 12, 0, "delivery status");
}

test!(xapic_reserved, "ipi/xapic_icr_reserved_bits_are_ignored");
fn xapic_reserved() {
    trap::on(0x40, irq);
    enable();
    sti();
    write(ICR2, 0x00ff_ffff);
    write(ICR, 0x4_4040 | 1 << 12 | 1 << 13 | 0xfff0_0000);
    check_eq(hits(0), 1, "interrupts");
    check_eq(read(ICR) as u64 & 1 << 12, 0, "delivery status");
}

test!(illegal, "ipi/vectors_below_16", cpus(2));
fn illegal() {
    fn send_all(x2: bool) {
        for v in 0..16 {
            apic::icr(0x4_4000 | v, 0);
            apic::icr(0x4000 | v, 0);
            apic::icr(0x4000 | v, 1);
            apic::icr(0xc_4000 | v, 0);
            if x2 {
                wrmsr(0x83f, v as u64);
            }
        }
    }
    // Handlers of exceptions would end the test.
    start(2, open);
    sti();
    send_all(false);
    to_x2apic();
    send_all(true);
    quiet(0, "interrupts");
    apic::icr(0x4_4040, 0);
    apic::icr(0x4040, 1);
    check(host::wait_ms(5000, || hits(0) == 1 && hits(1) == 1), "legal ones come after illegal ones");
}

// ---- forms ----

fn expected(want: [u64; 4], what: &str) {
    check(host::wait_ms(5000, || (0..4).all(|i| hits(i) >= want[i])), what);
    host::wait_ms(1, || false);
    for (i, n) in want.into_iter().enumerate() {
        check_eq(hits(i), n, what);
    }
}

test!(icr_order, "ipi/icr2_then_icr", cpus(4));
fn icr_order() {
    start(4, open);
    sti();
    write(ICR2, 2 << 24);
    settle();
    check_eq((0..4).map(hits).sum(), 0, "the upper half alone sends nothing");
    write(ICR, 0x4040);
    expected([0, 0, 1, 0], "to the destination written before");
    write(ICR, 0x4040);
    expected([0, 0, 2, 0], "the destination stays");
    write(ICR2, 3 << 24);
    write(ICR2, 1 << 24);
    write(ICR, 0x4040);
    expected([0, 1, 2, 0], "the last destination counts");
    write(ICR, 0x4_4040);
    expected([1, 1, 2, 0], "a shorthand does not look at it");
    check_eq(read(ICR2) as u64, 1 << 24, "and leaves it");
}

// Found the upper half lost where the CPU takes its writes without an exit: the next KVM_RUN put the old value back.
test!(icr2_user, "ipi/icr2_kept_over_user_space", cpus(4));
fn icr2_user() {
    start(4, open);
    sti();
    write(ICR2, 2 << 24);
    host::must(op::SLEEP_US, &[100]);
    check_eq(read(ICR2) as u64, 2 << 24, "ICR2 after an exit to user space");
    write(ICR, 0x4040);
    expected([0, 0, 1, 0], "to the destination written before the exit");
    write(ICR2, 3 << 24);
    check_eq(host::must(op::GET_LAPIC, &[ICR2 as u64]), 3 << 24, "KVM_GET_LAPIC");
    host::must(op::STATE_ROUND_TRIP, &[]);
    write(ICR, 0x4040);
    expected([0, 0, 1, 1], "to the destination that user space read and set");
}

test!(nobody, "ipi/destinations_of_nobody", cpus(2));
fn nobody() {
    start(2, open_x2);
    sti();
    for id in [2, 3, 4, 0x10, 0x7f, 0xf0, 0xfe] {
        apic::icr(0x4040, id);
    }
    quiet(0, "xAPIC ids");
    to_x2apic();
    for id in [2, 4, 0xfe, 0xff, 0x100, 0x101, 0x1_0000, 0x1_0001, 0x7fff_ffff, 0x8000_0001, 0xffff_fffe] {
        apic::icr(0x4040, id);
    }
    quiet(0, "x2APIC ids: 32 bits count, and ff is no broadcast");
    for id in [0x4, 0xfffc, 0x1_0001, 0x1_0003, 0xfffe_0003] {
        apic::icr(0x4840, id);
    }
    quiet(0, "x2APIC logical ids of other clusters");
}

test!(renamed, "ipi/xapic_id_changed_by_the_guest", cpus(3));
fn renamed() {
    fn other_name() {
        write(ID, (index() as u32 + 6) << 24);
        open()
    }
    start(3, other_name);
    sti();
    expected([0, 0, 0, 0], "nothing yet");
    apic::icr(0x4040, 7);
    expected([0, 1, 0, 0], "the new id of the first");
    apic::icr(0x4040, 8);
    expected([0, 1, 1, 0], "the new id of the second");
    apic::icr(0x4040, 1);
    apic::icr(0x4040, 2);
    expected([0, 1, 1, 0], "the old ids are nobody's");
    apic::icr(0xc_4040, 0);
    expected([0, 2, 2, 0], "all excluding self");
    apic::icr(0x4040, 0xff);
    expected([1, 3, 3, 0], "broadcast");
}

test!(mixed, "ipi/xapic_and_x2apic_vcpus", cpus(4));
fn mixed() {
    static DEST: AtomicU32 = AtomicU32::new(0);
    fn sender() {
        if index() & 1 == 1 {
            to_x2apic();
        }
        sti();
        READY.fetch_add(1, Ordering::SeqCst);
        loop {
            if GO.load(Ordering::SeqCst) == index() as u32 {
                apic::icr(0x4040, DEST.load(Ordering::SeqCst));
                GO.store(0, Ordering::SeqCst);
            }
            pause();
        }
    }
    start(4, sender);
    sti();
    for from in 0..4 {
        for to in 0..4 {
            let before = (hits(to), all_hits());
            if from == 0 {
                apic::icr(0x4040, to as u32);
            } else {
                DEST.store(to as u32, Ordering::SeqCst);
                GO.store(from, Ordering::SeqCst);
            }
            check(host::wait_ms(5000, || hits(to) > before.0), "physical destination");
            quiet(before.1 + 1, "one interrupt");
        }
    }
}

test!(other_modes, "ipi/delivery_modes_that_do_nothing", cpus(2));
fn other_modes() {
    fn counts() {
        sti();
        loop {
            READY.fetch_add(1, Ordering::SeqCst);
            pause();
        }
    }
    trap::on(0x40, irq);
    smp::start_all(2);
    smp::run(1, counts);
    check(host::wait_ms(5000, || ready() > 0), "not ready");
    sti();
    // Reserved, external interrupt, INIT level de-assert.
    for low in [0x4340, 0x4740, 0x8500, 0x8_8500] {
        apic::icr(low, 1);
        let before = ready();
        check(host::wait_ms(5000, || ready() > before + 10), "the other vCPU stopped");
    }
    quiet(0, "interrupts");
    check_eq(smp::UP[1].load(Ordering::SeqCst) as u64, 1, "starts of the other vCPU");
    apic::icr(0x4040, 1);
    check(host::wait_ms(5000, || hits(1) == 1), "and it takes interrupts");
}

// ---- senders that meet ----

test!(two_senders, "ipi/two_senders_one_vector", cpus(3));
fn two_senders() {
    const ROUNDS: u32 = 40;
    fn sender() {
        to_x2apic();
        READY.fetch_add(1, Ordering::SeqCst);
        for round in 1..=ROUNDS {
            while GO.load(Ordering::SeqCst) < round {
                pause();
            }
            apic::icr(0x4040, 0);
            READY.fetch_add(1, Ordering::SeqCst);
        }
        loop {
            pause();
        }
    }
    start(3, sender);
    to_x2apic();
    let mut sum = 0;
    for round in 1..=ROUNDS {
        // Even rounds with IF set: one or two; odd ones with IF clear: exactly one.
        let shut = round & 1 == 1;
        if shut {
            cli()
        } else {
            sti()
        }
        GO.store(round, Ordering::SeqCst);
        check(host::wait_ms(5000, || ready() == 2 + 2 * round), "the senders are stuck");
        if shut {
            check_eq(hits(0), sum, "delivered with IF clear");
        }
        sti();
        settle();
        cli();
        let n = hits(0) - sum;
        check(n == 1 || n == 2 && !shut, "interrupts of two senders");
        sum += n;
    }
    quiet(sum, "interrupts at the end");
}

static SEEN: [AtomicU32; 256] = [const { AtomicU32::new(0) }; 256];
static LAST: AtomicU32 = AtomicU32::new(u32::MAX);
const FIRST: u32 = 0x20;

/// All vectors from three senders, and from oneself.
fn every_vector() {
    for v in FIRST..=0xff {
        apic::icr(0x4000 | v, 0);
    }
}
fn storm_sender() {
    to_x2apic();
    READY.fetch_add(1, Ordering::SeqCst);
    for round in 1..=5 {
        while GO.load(Ordering::SeqCst) < round {
            pause();
        }
        every_vector();
        READY.fetch_add(1, Ordering::SeqCst);
    }
    loop {
        pause();
    }
}
fn see(f: &mut Frame) {
    SEEN[f.vector as usize & 255].fetch_add(1, Ordering::SeqCst);
    LAST.store(f.vector as u32, Ordering::SeqCst);
    eoi();
}
fn seen_once(what: &str) {
    for s in &SEEN[FIRST as usize..] {
        check_eq(s.swap(0, Ordering::SeqCst) as u64, 1, what);
    }
}

test!(storm, "ipi/storm_of_all_vectors", cpus(4));
fn storm() {
    fn ordered(f: &mut Frame) {
        check((f.vector as u32) < LAST.load(Ordering::SeqCst), "a lower vector came first");
        see(f);
    }
    start(4, storm_sender);
    to_x2apic();
    let round = |n: u32| {
        GO.store(n, Ordering::SeqCst);
        check(host::wait_ms(20_000, || ready() == 3 + 3 * n), "the senders are stuck");
    };
    // IF clear: each vector once, the highest first.
    for v in FIRST..=0xff {
        trap::on(v as u8, ordered);
    }
    for n in 1..=2 {
        round(n);
        every_vector();
        LAST.store(u32::MAX, Ordering::SeqCst);
        sti();
        settle();
        cli();
        seen_once("interrupts of one vector");
    }
    // IF set, while halted and while running: each at least once, and no more than were sent.
    for v in FIRST..=0xff {
        trap::on(v as u8, see);
    }
    for n in 3..=5 {
        GO.store(n, Ordering::SeqCst);
        if n == 4 {
            sti_hlt();
        }
        sti();
        check(host::wait_ms(20_000, || ready() == 3 + 3 * n), "the senders are stuck");
        settle();
        cli();
        for s in &SEEN[FIRST as usize..] {
            let got = s.swap(0, Ordering::SeqCst);
            check((1..=4).contains(&got), "interrupts of one vector");
        }
    }
}

// ---- targets ----

test!(to_init, "ipi/to_a_vcpu_in_init", cpus(2));
fn to_init() {
    start(2, open);
    for round in 1..=3 {
        apic::icr(0x4500, 1);
        for _ in 0..5 {
            apic::icr(0x4040, 1);
            apic::icr(0xc_4040, 0);
        }
        host::wait_ms(1, || false);
        smp::start(1);
        smp::run(1, open);
        check(host::wait_ms(5000, || ready() == 1 + round), "not up again");
        host::wait_ms(2, || false);
        check_eq(hits(1), round as u64 - 1, "an interrupt outlived INIT");
        apic::icr(0x4040, 1);
        check(host::wait_ms(5000, || hits(1) == round as u64), "and it takes interrupts");
    }
}

test!(init_pending, "ipi/init_drops_what_is_requested", cpus(2));
fn init_pending() {
    fn shut() {
        cli();
        READY.fetch_add(1, Ordering::SeqCst);
        loop {
            pause();
        }
    }
    start(2, shut);
    apic::icr(0x4040, 1);
    host::wait_ms(1, || false);
    smp::start(1);
    smp::run(1, open);
    check(host::wait_ms(5000, || ready() == 2), "not up again");
    quiet(0, "a requested interrupt outlived INIT");
}

test!(to_user, "ipi/to_a_vcpu_in_user_space", cpus(2));
fn to_user() {
    fn sleeper() {
        to_x2apic();
        sti();
        loop {
            READY.fetch_add(1, Ordering::SeqCst);
            host::must(op::SLEEP_US, &[3000]);
        }
    }
    trap::on(0x40, irq);
    smp::start_all(2);
    smp::run(1, sleeper);
    to_x2apic();
    for n in 1..=10 {
        let before = ready();
        check(host::wait_ms(5000, || ready() > before), "the sleeper is stuck");
        apic::icr(0x4040, 1);
        check(host::wait_ms(5000, || hits(1) >= n), "no interrupt");
        check_eq(hits(1), n, "interrupts");
    }
}

test!(to_moving, "ipi/to_a_vcpu_that_moves", cpus(2));
fn to_moving() {
    static CPUS: AtomicU64 = AtomicU64::new(1);
    fn mover() {
        to_x2apic();
        sti();
        loop {
            let n = READY.fetch_add(1, Ordering::SeqCst) as u64;
            host::must(op::MIGRATE, &[n % CPUS.load(Ordering::SeqCst)]);
        }
    }
    CPUS.store(host::must(op::HOST_CPUS, &[]), Ordering::SeqCst);
    trap::on(0x40, irq);
    smp::start_all(2);
    smp::run(1, mover);
    to_x2apic();
    for n in 1..=100 {
        apic::icr(0x4040, 1);
        check(host::wait_ms(5000, || hits(1) >= n), "no interrupt");
        check_eq(hits(1), n, "interrupts");
    }
}

test!(sleeping, "ipi/sent_while_the_target_goes_to_sleep", cpus(2));
fn sleeping() {
    // The moment of the IPI is swept over the target's HLT: one that is lost leaves it asleep.
    fn sleeper() {
        to_x2apic();
        for n in 1..=200u64 {
            cli();
            READY.fetch_add(1, Ordering::SeqCst);
            for _ in 0..n % 7 {
                pause();
            }
            sti_hlt();
            while hits(1) < n {
                pause();
            }
        }
        loop {
            sti_hlt();
        }
    }
    trap::on(0x40, irq);
    smp::start_all(2);
    smp::run(1, sleeper);
    to_x2apic();
    for n in 1..=200 {
        check(host::wait_ms(5000, || ready() >= n), "the target sleeps on");
        for _ in 0..n * 13 % 100 {
            pause();
        }
        apic::icr(0x4040, 1);
        check(host::wait_ms(5000, || hits(1) >= n as u64), "no interrupt");
    }
    check_eq(hits(1), 200, "interrupts");
}

test!(halted_all, "ipi/rounds_to_halted_vcpus", cpus(4));
fn halted_all() {
    // More vCPUs than CPUs on the lab's machines: most are asleep or wait for a CPU.
    const ROUNDS: u64 = 60;
    static NEXT: [AtomicU64; 4] = [const { AtomicU64::new(0) }; 4];
    fn pass_on(_: &mut Frame) {
        apic::icr(0x4042, index() as u32 % 3 + 1);
        HITS[index()].fetch_add(1, Ordering::SeqCst);
        eoi();
    }
    fn passed(_: &mut Frame) {
        NEXT[index()].fetch_add(1, Ordering::SeqCst);
        eoi();
    }
    fn halts() {
        to_x2apic();
        READY.fetch_add(1, Ordering::SeqCst);
        loop {
            sti_hlt();
            cli();
        }
    }
    trap::on(0x41, pass_on);
    trap::on(0x42, passed);
    start(4, halts);
    to_x2apic();
    for n in 1..=ROUNDS {
        apic::icr(0xc_4041, 0);
        let all = |of: &[AtomicU64; 4]| (1..4).all(|i| of[i].load(Ordering::SeqCst) >= n);
        check(host::wait_ms(10_000, || all(&HITS)), "a wake-up got lost");
        check(host::wait_ms(10_000, || all(&NEXT)), "a wake-up by a neighbour got lost");
    }
    host::wait_ms(2, || false);
    for i in 1..4 {
        check_eq(hits(i), ROUNDS, "interrupts");
        check_eq(NEXT[i].load(Ordering::SeqCst), ROUNDS, "interrupts by the neighbour");
    }
}

// ---- whatever the command says ----

/// How often each vector came, by vCPU.
static CAME: [[AtomicU32; 256]; 2] = [const { [const { AtomicU32::new(0) }; 256] }; 2];

fn came(cpu: usize, vector: u64) -> u32 {
    CAME[cpu][vector as usize].load(Ordering::SeqCst)
}
fn came_at_all() -> u32 {
    CAME.iter().flatten().map(|n| n.load(Ordering::SeqCst)).sum()
}
fn note(frame: &mut Frame) {
    CAME[index()][frame.vector as usize].fetch_add(1, Ordering::SeqCst);
    if frame.vector != 2 {
        eoi();
    }
}

/// Destinations that are nobody's, in each delivery mode, destination mode and level, with each vector; then each legal vector to the one
/// that it is for. Spurious vectors and those of exceptions count as any other.
test!(hostile, "ipi/hostile_commands", cpus(2));
fn hostile() {
    start(2, open_x2);
    (0..=255u8)
        .filter(|v| !matches!(v, 8 | 10..=14 | 17 | 18 | 21 | 29 | 30))
        .for_each(|v| trap::on(v, note));
    to_x2apic();
    enable();
    sti();
    for low in (0..32u64).map(|form| (form & 7) << 8 | (form >> 3 & 1) << 11 | (form >> 4 & 1) << 15) {
        let logical = low & 1 << 11 != 0;
        let nobody =
            if logical { [0x4, 0xfff0, 0x1_ffff, 0xffff_0001] } else { [2, 0xfe, 0x100, 0xffff_fffe] };
        for vector in 0..256 {
            let destination = nobody[vector as usize % 4];
            wrmsr(0x830, destination << 32 | low | 0x4000 | vector);
        }
    }
    host::wait_ms(2, || false);
    check_eq(came_at_all() as u64, 0, "interrupts for nobody");
    // 16 to 31 may carry error codes as exceptions.
    let mut sent = 0;
    for vector in 32..256u64 {
        for command in
            [1 << 32 | vector, 2 << 32 | 0x800 | vector, 0xc_0000 | vector, 2 << 32 | 0x900 | vector]
        {
            wrmsr(0x830, command);
            sent += 1;
            check(host::wait_ms(5000, || came_at_all() >= sent), "an interrupt got lost");
        }
        check_eq(came(1, vector) as u64, 4, "of that vector, there");
    }
    host::wait_ms(2, || false);
    check_eq(came_at_all() as u64, sent as u64, "interrupts");
    check_eq((32..256).map(|v| came(0, v)).sum::<u32>() as u64, 0, "at the sender");
}
