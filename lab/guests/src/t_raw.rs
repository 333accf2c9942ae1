//! IPIs that the guest sends by itself (`docs/protocols/shared-descriptor.md`), on a host that offers them (mechanism `pvipi_raw`); on others
//! the same sends go the old way. Each is counted: it comes once, to the right vCPU.

use crate::apic::{self, *};
use crate::config::*;
use crate::cpu::*;
use crate::own::*;
use crate::report::*;
use crate::trap::{self, Frame, expect};
use crate::{host, smp, test};
use core::arch::global_asm;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering::SeqCst};

/// The window, and sends by oneself.
const FEATURES: u32 = 6;
const YES: u64 = u64::from_le_bytes(*b"Attended");
const SENDS: u64 = 40;
/// The vector of IPIs from vCPU 0; the next vCPU's is the next.
const FIRST: u8 = 0x50;

// RDI: the sender's descriptor, RSI: the target's, RDX: the vector. RAX: 0 sent, 1 the sender may not, 2 the target is not found.
global_asm!(
    ".globl raw_send, raw_start, raw_done, raw_end, raw_places",
    "raw_send:",
    "movabs r8, {yes}",
    "raw_start:",
    "cmp [rdi + 40], r8",
    "2: jne 20f",
    "3: cmp [rsi + 48], r8",
    "4: jne 21f",
    "5: lock bts [rsi], rdx",
    "raw_done:",
    "jc raw_end",
    "7: lock bts dword ptr [rsi + 32], 0",
    "8: jc raw_end",
    "9: mov rax, [rsi + 32]",
    "10: test al, 2",
    "11: jnz raw_end",
    "12: mov rdx, rax",
    "13: shr rdx, 32",
    "14: shr eax, 16",
    "15: movzx eax, al",
    "16: mov ecx, 0x830",
    "17: wrmsr",
    "raw_end:",
    "xor eax, eax",
    "ret",
    "20: mov eax, 1",
    "ret",
    "21: mov eax, 2",
    "ret",
    ".balign 8",
    "raw_places:",
    ".quad raw_start, 2b, 3b, 4b, 5b, raw_done, 7b, 8b, 9b, 10b, 11b, 12b, 13b, 14b, 15b, 16b, 17b, raw_end",
    yes = const YES,
);
const PLACES: usize = 18;

unsafe extern "C" {
    fn raw_send(own: u64, target: u64, vector: u64) -> u64;
    static raw_start: u8;
    static raw_done: u8;
    static raw_end: u8;
    static raw_places: [u64; PLACES];
}

/// By target and sender.
static HITS: [[AtomicU64; MAX_CPUS]; MAX_CPUS] =
    [const { [const { AtomicU64::new(0) }; MAX_CPUS] }; MAX_CPUS];
static RAW: AtomicU64 = AtomicU64::new(0);
static READY: AtomicU32 = AtomicU32::new(0);
static DONE: AtomicU32 = AtomicU32::new(0);
static STOP: AtomicU32 = AtomicU32::new(0);

fn hits(target: usize, sender: usize) -> u64 {
    HITS[target][sender].load(SeqCst)
}
fn irq(f: &mut Frame) {
    HITS[index()][(f.vector as usize).wrapping_sub(FIRST as usize) % MAX_CPUS].fetch_add(1, SeqCst);
    eoi();
}
fn word(i: usize, at: u64) -> *mut u64 {
    (descriptor(i) + at) as *mut u64
}
pub(crate) fn offered() -> bool {
    offers(FEATURES)
}
/// Whether this vCPU may send.
fn sends() -> bool {
    // SAFETY: the window, or nobody's: then zeroes or ones.
    offered() && unsafe { word(index(), SENDS).read_volatile() } == YES
}
/// This vCPU asks, where there is somebody to ask. It may be taken back at any moment.
pub(crate) fn ask() {
    trap::catch(|| {
        let at = &raw const raw_start as u64;
        wrmsr(MSR_SEQUENCE, at);
        wrmsr(MSR_PARTS, (&raw const raw_done as u64 - at) | (&raw const raw_end as u64 - at) << 16);
        wrmsr(MSR_DESCRIPTOR, 3);
    });
}
/// One command by the host. Who has asked never writes the x2APIC's ICR outside of the sequence: between a look at *sends* and that write it may
/// become the host's. Where the register is not there, nobody has asked.
fn plain(command: u32, target: usize) {
    if trap::catch(|| wrmsr(MSR_ICR, (target as u64) << 32 | u64::from(command))).is_some() {
        apic::icr(command, target as u32);
    }
}
/// One IPI; whether without an exit, as far as the guest can tell.
pub(crate) fn send(vector: u8, target: usize) -> bool {
    let open = flags() & 0x200 != 0;
    cli();
    // SAFETY: both are in the window; where it is not there the first is read, no more.
    let how = unsafe { raw_send(descriptor(index()), descriptor(target), vector.into()) };
    match how {
        0 => RAW.fetch_add(1, SeqCst),
        _ => {
            plain(0x4000 | u32::from(vector), target);
            0
        }
    };
    if open {
        sti();
    }
    how == 0
}
fn vector() -> u8 {
    FIRST + index() as u8
}
fn setup() {
    to_x2apic();
    enable();
    for i in 0..MAX_CPUS {
        trap::on(FIRST + i as u8, irq);
    }
    ask();
    sti();
}
fn runs() {
    setup();
    READY.fetch_add(1, SeqCst);
    loop {
        pause();
    }
}
fn halts() {
    setup();
    READY.fetch_add(1, SeqCst);
    loop {
        cli();
        sti_hlt();
    }
}
fn start(n: usize, f: fn()) {
    smp::start_all(n);
    setup();
    for i in 1..n {
        smp::run(i, f);
    }
    check(host::wait_ms(10_000, || READY.load(SeqCst) == n as u32 - 1), "the others are not ready");
}
/// Each of `due` has come, and nothing else.
fn exactly(sender: usize, due: &[u64], what: &str) {
    check(host::wait_ms(20_000, || due.iter().enumerate().all(|(i, n)| hits(i, sender) >= *n)), what);
    for _ in 0..1000 {
        pause();
    }
    for (i, n) in due.iter().enumerate() {
        check_eq(hits(i, sender), *n, what);
    }
}

test!(found, "raw/found_or_not");
fn found() {
    to_x2apic();
    enable();
    trap::on(FIRST, irq);
    sti();
    if !offered() {
        for msr in [MSR_DESCRIPTOR, MSR_ICR] {
            expect(13, 0, "WRMSR of what is not offered", || wrmsr(msr, 3));
        }
        // SAFETY: nobody's memory.
        check(unsafe { word(0, SENDS).read_volatile() } != YES, "sends, without a host that says so");
        return;
    }
    for bad in [2, 4, 1 << 63] {
        expect(13, 0, "a reserved bit, or raw without the window", || wrmsr(MSR_DESCRIPTOR, bad));
    }
    for bad in [0x10_0011, 1 << 32] {
        expect(13, 0, "parts that are none", || wrmsr(MSR_PARTS, bad));
    }
    expect(13, 0, "no address", || wrmsr(MSR_SEQUENCE, 1 << 63));
    expect(13, 0, "ICR is not read", || drop(rdmsr(MSR_ICR)));
    check(!sends(), "sends, unasked");
    setup();
    check(sends(), "does not send");
    check_eq(rdmsr(MSR_DESCRIPTOR), 3, "MSR");
    check(send(FIRST, 0), "to itself, with an exit");
    exactly(0, &[1], "to itself");
    wrmsr(MSR_ICR, 0x4_4000 | u64::from(FIRST));
    exactly(0, &[2], "the ICR's own MSR");
    expect(13, 0, "a reserved bit of the ICR", || wrmsr(MSR_ICR, 1 << 20 | u64::from(FIRST)));
    wrmsr(MSR_DESCRIPTOR, 1);
    check(!sends(), "sends, after it said no more");
    apic::icr(0x4_4000 | u32::from(FIRST), 0);
    check(!sends(), "sends, because something exited");
    exactly(0, &[3], "the ICR");
    // Back from user space it may not, and may again once it has sent something by its own register: not by the x2APIC's.
    ask();
    host::call(op::HOST_CPUS, &[]);
    check(!sends(), "sends, straight from user space");
    apic::icr(0x4_4000 | u32::from(FIRST), 0);
    check(!sends(), "sends, because of the x2APIC's ICR");
    exactly(0, &[4], "the x2APIC's ICR");
    check(!send(FIRST, 0) && sends(), "not again");
    exactly(0, &[5], "behind user space");
    // Memory there hides it, and lets it be seen again.
    host::must(op::SLOT_SET, &[FREE_SLOT, WINDOW, 0x1000, 0, 0]);
    ask();
    check(!sends(), "sends, by what stands in memory of the guest's");
    check(!send(FIRST, 0), "by somebody's memory");
    exactly(0, &[6], "behind memory");
    host::must(op::SLOT_SET, &[FREE_SLOT, WINDOW, 0, 0, 0]);
    ask();
    check(sends() && send(FIRST, 0), "without the memory");
    exactly(0, &[7], "without the memory");
    wrmsr(MSR_APIC_BASE, 0xfee0_0100);
    check(!sends(), "sends, without an APIC");
}

/// A hundred to each, one by one, none without its handler; how many went without an exit.
fn one_by_one(n: usize, target: fn()) {
    start(n, target);
    if !offered() {
        skip("nobody offers it")
    }
    let mut due = [0; MAX_CPUS];
    ask();
    let before = RAW.load(SeqCst);
    for round in 0..100 {
        let to = 1 + round % (n - 1);
        send(vector(), to);
        due[to] += 1;
        while hits(to, 0) != due[to] {
            pause();
        }
    }
    check_eq(RAW.load(SeqCst) - before, 100, "sent without an exit");
    exactly(0, &due[..n], "one by one");
}
test!(to_running, "raw/to_running", cpus(2));
fn to_running() {
    one_by_one(2, runs)
}
test!(to_halted, "raw/to_halted", cpus(2));
fn to_halted() {
    one_by_one(2, halts)
}
test!(to_preempted, "raw/to_preempted", cpus(6) | timeout(60));
fn to_preempted() {
    one_by_one(6, runs)
}

test!(others, "raw/all_but_self", cpus(8) | timeout(60));
fn others() {
    start(8, halts);
    ask();
    for round in 1..=20 {
        for to in 1..8 {
            send(vector(), to);
        }
        check(host::wait_ms(20_000, || (1..8).all(|i| hits(i, 0) == round)), "all but self");
    }
    exactly(0, &[0, 20, 20, 20, 20, 20, 20, 20], "all but self");
}

/// Everybody to everybody, each waits for its own.
fn everybody() {
    let me = index();
    for round in 1..=ROUNDS {
        for to in (0..STORM).filter(|to| *to != me) {
            send(vector(), to);
            check(host::wait_ms(60_000, || hits(to, me) >= round), "lost in the storm");
            check_eq(hits(to, me), round, "too many in the storm");
        }
        if round % 8 == 0 && !sends() {
            ask();
        }
    }
    DONE.fetch_add(1, SeqCst);
}
const ROUNDS: u64 = 60;
const STORM: usize = 4;
fn storms() {
    setup();
    READY.fetch_add(1, SeqCst);
    while STOP.load(SeqCst) == 0 {
        pause();
    }
    everybody();
    loop {
        cli();
        sti_hlt();
    }
}
fn storm(moves: u64) {
    start(STORM, storms);
    if moves != 0 {
        host::must(op::MOVE, &[moves]);
    }
    STOP.store(1, SeqCst);
    everybody();
    check(host::wait_ms(60_000, || DONE.load(SeqCst) == STORM as u32), "the others have not finished");
    while moves != 0 && host::must(op::MOVES, &[]) < moves {}
    for me in 0..STORM {
        exactly(
            me,
            &core::array::from_fn::<u64, STORM, _>(|i| if i == me { 0 } else { ROUNDS }),
            "the storm",
        );
    }
}
test!(stormy, "raw/storm", cpus(4) | timeout(120));
fn stormy() {
    storm(0)
}
/// The same, moved to other VMs meanwhile, with and without.
test!(moved, "raw/storm_that_moves", cpus(4) | timeout(150));
fn moved() {
    storm(12)
}

/// The sender comes to user space in front of each instruction of the sequence, and goes on there, or in another VM. It is before the sequence
/// then, or behind it, and the interrupt comes once.
fn stopped(target: fn(), moves: bool) {
    start(2, target);
    let mut due = 0;
    // SAFETY: written by the assembler.
    for place in unsafe { raw_places } {
        host::must(op::STOP_AT, &[place, moves.into()]);
        // Switched off and on meanwhile it has to be asked again.
        let answered = (0..100).any(|_| {
            ask();
            !offered() || sends()
        });
        check(moves || answered, "does not send");
        send(vector(), 1);
        due += 1;
        exactly(0, &[0, due], "stopped in the sequence");
    }
}
test!(stopped_1, "raw/stopped_at_each_instruction_target_runs", cpus(2) | timeout(60));
fn stopped_1() {
    stopped(runs, false)
}
test!(stopped_2, "raw/stopped_at_each_instruction_target_halts", cpus(2) | timeout(60));
fn stopped_2() {
    stopped(halts, false)
}
test!(stopped_3, "raw/moved_at_each_instruction", cpus(2) | timeout(150));
fn stopped_3() {
    stopped(halts, true)
}

fn scribbles() {
    setup();
    READY.fetch_add(1, SeqCst);
    let mut x = 0x9e37_79b9_7f4a_7c15_u64;
    while STOP.load(SeqCst) == 0 {
        x = xorshift(x);
        // Vectors of handlers that there are: others would be exceptions, which end the test.
        let (at, value) = match x >> 60 {
            0..4 => (8, (x & 0xf) << 16),
            4..10 => (32, x),
            _ => (40, 0),
        };
        // SAFETY: one of the vCPUs' descriptors, in the window.
        unsafe { word((x >> 8) as usize % 2 * 2, at).write_volatile(value) };
    }
    DONE.fetch_add(1, SeqCst);
    loop {
        pause();
    }
}
/// One vCPU writes what it likes into the descriptors of two others, which are sent interrupts the old way and sleep in between. They may lose
/// some, no more; once it stops, all come again.
test!(scribbled, "raw/scribbled", cpus(3) | timeout(60));
fn scribbled() {
    smp::start_all(3);
    setup();
    smp::run(1, scribbles);
    smp::run(2, halts);
    check(host::wait_ms(10_000, || READY.load(SeqCst) == 2), "the others are not ready");
    if !offered() {
        skip("nobody offers it")
    }
    for _ in 0..300 {
        apic::icr(0x4000 | u32::from(vector()), 2);
        for _ in 0..200 {
            pause();
        }
        if host::call(op::HOST_CPUS, &[]) <= 0 {
            fail("the runner")
        }
    }
    STOP.store(1, SeqCst);
    check(host::wait_ms(20_000, || DONE.load(SeqCst) == 1), "the scribbler does not stop");
    // What it left wakes up for nothing, or does not: a NMI looks after that.
    for _ in 0..2 {
        apic::icr(0x4000 | u32::from(vector()), 2);
    }
    host::call(op::KICK, &[2, 3, 1000]);
    host::wait_ms(50, || false);
    let before = hits(2, 0);
    for n in 1..=20 {
        apic::icr(0x4000 | u32::from(vector()), 2);
        check(host::wait_ms(20_000, || hits(2, 0) >= before + n), "lost, though nobody scribbles");
    }
}
