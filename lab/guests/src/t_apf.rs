//! Asynchronous page faults. Pages that take time are missing pages of a userfaultfd: they come when the runner is told so.

use crate::apic;
use crate::config::*;
use crate::cpu::*;
use crate::mem::{self, FREE_VA, P, U, W, r32, r64, w32};
use crate::report::*;
use crate::trap::{self, Frame, Shared};
use crate::{host, smp, test};
use core::sync::atomic::{AtomicU64, Ordering};

const EN: u32 = 0x4b56_4d02;
const INT: u32 = 0x4b56_4d06;
const ACK: u32 = 0x4b56_4d07;
const ON: u64 = 1 | 8;
const ALWAYS: u64 = 2;
/// "Page ready".
const VECTOR: u8 = 0x61;
/// Something else that happens.
const OTHER: u8 = 0x62;
/// Where the slow pages are for the guest.
const SLOW: u64 = 0xe000_0000;
/// Outstanding faults of one vCPU, at most.
const MOST: u64 = 64;

#[repr(C, align(64))]
struct Area([u32; 32]);
static AREA: Shared<Area> = Shared::new(Area([0; 32]));
/// Tokens that came with the interrupt, in this order, and how many.
static READY: Shared<[u32; 128]> = Shared::new([0; 128]);
static READIES: AtomicU64 = AtomicU64::new(0);

fn area() -> u64 {
    AREA.get() as *mut _ as u64
}

fn ready(_: &mut Frame) {
    let n = READIES.load(Ordering::SeqCst);
    READY.get()[n as usize & 127] = r32(area() + 4);
    READIES.store(n + 1, Ordering::SeqCst);
    w32(area() + 4, 0);
    wrmsr(ACK, 1);
    apic::eoi();
}

fn readies() -> u64 {
    READIES.load(Ordering::SeqCst)
}

fn wait_for(n: u64) {
    check(host::wait_ms(20_000, || readies() >= n), "\"page ready\" does not come");
    check_eq(readies(), n, "\"page ready\"");
}

/// A guest with `pages` slow pages. The interrupt of switching it on was taken.
fn on(pages: u64, how: u64) {
    let features = cpuid(0x4000_0001, 0)[0];
    check(features & 1 << 4 != 0 && features & 1 << 14 != 0, "not in CPUID");
    slow(pages);
    trap::on(VECTOR, ready);
    apic::enable();
    wrmsr(INT, VECTOR.into());
    wrmsr(EN, area() | ON | how);
    sti();
    wait_for(1);
    check_eq(READY.get()[0].into(), 0xffff_ffff, "the token of switching it on");
}

fn slow(pages: u64) {
    if host::call(op::SLOW_PAGES, &[0, pages << 12]) < 0 {
        skip("no userfaultfd")
    }
    host::must(op::SLOT_SET, &[FREE_SLOT, SLOW, pages << 12, 0, 0]);
}

fn page(n: u64) -> u64 {
    SLOW + (n << 12)
}

fn comes(n: u64) {
    host::must(op::PAGE_COMES, &[n << 12]);
}

/// Touches a page that is not there: the token.
fn told(n: u64) -> u32 {
    let Some(c) = trap::catch(|| _ = r64(page(n))) else { fail_eq("not told of page", n, !0) };
    check_eq(c.vector, 14, "vector");
    check_eq(c.error, 0, "error code");
    check_eq(u64::from(r32(area())), 1, "reason");
    w32(area(), 0);
    check(c.cr2 != 0 && c.cr2 >> 32 == 0 && c.cr2 != 0xffff_ffff, "token in CR2");
    c.cr2 as u32
}

/// Nobody was told of anything.
fn quiet(what: &str) {
    check_eq(readies(), 1, what);
    check_eq(u64::from(r32(area())), 0, what);
}

test!(both, "apf/not_there_and_there");
fn both() {
    on(2, ALWAYS);
    let tokens = [told(0), told(1)];
    check(tokens[0] != tokens[1], "two pages, one token");
    // The vCPU does something else meanwhile: this is it.
    host::must(op::SLEEP_US, &[2000]);
    check_eq(readies(), 1, "nothing has come");
    for n in [1, 0] {
        comes(n);
        wait_for(3 - n);
        check_eq(READY.get()[2 - n as usize].into(), tokens[n as usize].into(), "token");
        check_eq(r64(page(n)), 0, "content");
    }
    check_eq(u64::from(r32(area())), 0, "told once");
}

test!(one_by_one, "apf/one_token_at_a_time");
fn one_by_one() {
    on(2, ALWAYS);
    let mut tokens = [told(0), told(1)];
    cli();
    comes(0);
    comes(1);
    // The first was told perhaps, and waits in the APIC; the other has to wait for its end.
    host::must(op::SLEEP_US, &[20_000]);
    check(host::wait_ms(20_000, || r32(area() + 4) != 0), "no token");
    let first = r32(area() + 4);
    host::must(op::SLEEP_US, &[20_000]);
    check_eq(r32(area() + 4).into(), first.into(), "the token before it was taken");
    sti();
    wait_for(3);
    let mut got = [READY.get()[1], READY.get()[2]];
    got.sort_unstable();
    tokens.sort_unstable();
    check(got == tokens, "tokens");
}

test!(many, "apf/as_many_as_there_may_be");
fn many() {
    on(MOST + 1, ALWAYS);
    let mut tokens = [0; MOST as usize];
    for n in 0..MOST {
        tokens[n as usize] = told(n);
        check(!tokens[..n as usize].contains(&tokens[n as usize]), "a token twice");
    }
    // One more is waited for.
    host::after(20_000, op::PAGE_COMES, &[MOST << 12]);
    check(trap::catch(|| _ = r64(page(MOST))).is_none(), "told of one too many");
    quiet("nothing has come");
    for n in 0..MOST {
        comes(n);
        wait_for(n + 2);
        check_eq(READY.get()[n as usize + 1].into(), tokens[n as usize].into(), "token");
    }
}

test!(closed, "apf/interrupts_closed");
fn closed() {
    on(1, ALWAYS);
    cli();
    host::after(20_000, op::PAGE_COMES, &[0]);
    check(trap::catch(|| _ = r64(page(0))).is_none(), "told with interrupts closed");
    sti();
    quiet("told of a page that was waited for");
}

fn brings(_: &mut Frame) {
    comes(0);
    apic::eoi();
}

/// The kernel is not told unless it asks for it: the vCPU halts, and takes interrupts. Here one brings the page.
fn halted() {
    trap::on(OTHER, brings);
    host::after(20_000, op::MSI, &[0xfee0_0000, OTHER.into()]);
    check(trap::catch(|| _ = r64(page(0))).is_none(), "told");
    check_eq(r64(page(0)), 0, "content");
}

test!(kernel, "apf/kernel_halts");
fn kernel() {
    on(1, 0);
    halted();
    quiet("told of a page that was halted for");
}

test!(never_asked, "apf/halts_unasked");
fn never_asked() {
    slow(1);
    apic::enable();
    sti();
    halted();
}

static TOLD: AtomicU64 = AtomicU64::new(0);
fn user_told(_: &mut Frame) {
    TOLD.fetch_add(1, Ordering::SeqCst);
    check_eq(u64::from(r32(area())), 1, "reason");
    w32(area(), 0);
    READY.get()[127] = cr2() as u32;
    host::after(20_000, op::PAGE_COMES, &[0]);
}

test!(user, "apf/user_is_told");
fn user() {
    on(1, 0);
    let (text, stack) = (mem::page(), mem::page());
    mem::map(FREE_VA, text, P | U);
    mem::map(FREE_VA + 0x1000, stack, P | W | U);
    mem::map(FREE_VA + 0x2000, page(0), P | W | U);
    unsafe { *(PML4 as *mut u64).add((FREE_VA >> 39) as usize & 511) |= U };
    // mov rax, [rax]; int 0x80
    for (i, b) in [0x48, 0x8b, 0x00, 0xcd, 0x80].into_iter().enumerate() {
        mem::w8(text + i as u64, b);
    }
    trap::on(14, user_told);
    trap::set_gate(0x80, trap::stub(0x80), 0xe, 3, 0);
    let c = trap::user(FREE_VA, FREE_VA + 0x1ff0, FREE_VA + 0x2000);
    check_eq(c.vector, 0x80, "how it came back");
    check_eq(TOLD.load(Ordering::SeqCst), 1, "times told");
    wait_for(2);
    check_eq(READY.get()[1].into(), READY.get()[127].into(), "token");
}

test!(off, "apf/switched_off_meanwhile");
fn off() {
    on(2, ALWAYS);
    told(0);
    // Stock KVM waits for it here.
    host::after(20_000, op::PAGE_COMES, &[0]);
    wrmsr(EN, 0);
    check(host::wait_ms(20_000, || host::call(op::POOL_READ, &[0]) == 0), "the page");
    host::must(op::SLEEP_US, &[20_000]);
    quiet("told of what was switched off");
    check_eq(r32(area() + 4).into(), 0, "token");
    wrmsr(EN, area() | ON | ALWAYS);
    wait_for(2);
    check_eq(READY.get()[1].into(), 0xffff_ffff, "the token of switching it on again");
    let token = told(1);
    comes(1);
    wait_for(3);
    check_eq(READY.get()[2].into(), token.into(), "token");
}

test!(moved, "apf/moved_meanwhile");
fn moved() {
    on(2, ALWAYS);
    let lost = told(0);
    // Stock KVM's old VM does not go before it has come. It may come before the guest goes, too.
    host::after(100_000, op::PAGE_COMES, &[0]);
    host::must(op::MOVE, &[1]);
    check(host::wait_ms(20_000, || host::must(op::MOVES, &[]) == 1), "the move");
    let last = || READY.get()[readies() as usize - 1];
    let all = || readies() > 1 && last() == 0xffff_ffff;
    check(host::wait_ms(20_000, all), "whoever waits wakes up at the new place");
    let seen = readies();
    check(seen == 2 || seen == 3 && READY.get()[1] == lost, "what was told");
    check_eq(host::must(op::POOL_READ, &[0]), 0, "the runner waits for it, too");
    check_eq(r64(page(0)), 0, "content");
    check_eq(rdmsr(EN), area() | ON | ALWAYS, "the MSR");
    check_eq(rdmsr(INT), VECTOR.into(), "the vector");
    let token = told(1);
    comes(1);
    wait_for(seen + 1);
    check_eq(last().into(), token.into(), "token");
}

/// For ever.
fn waits() {
    sti();
    r64(page(1));
    fail("a page that nobody has brought");
}

// Stock KVM waits for the page when the VM ends, and the page for the descriptor that is closed behind it.
test!(ends, "apf/ends_meanwhile", cpus(2) | BY_NAME);
fn ends() {
    on(2, ALWAYS);
    smp::start_all(2);
    smp::run(1, waits);
    told(0);
    host::must(op::SLEEP_US, &[50_000]);
}

test!(msrs, "apf/msrs");
fn msrs() {
    check_eq(rdmsr(EN), 0, "at first");
    check_eq(rdmsr(INT), 0, "the vector at first");
    let refused = |msr, value| {
        trap::expect(13, 0, "a value that is not allowed", || wrmsr(msr, value));
    };
    refused(EN, area() | 0x10);
    refused(EN, area() | 0x20);
    // No memory is there.
    refused(EN, 0x8000_0000 | ON);
    refused(INT, 0x100);
    refused(INT, 1 << 63);
    wrmsr(INT, VECTOR.into());
    check_eq(rdmsr(INT), VECTOR.into(), "the vector");
    for value in [1, 2, 8, 0] {
        wrmsr(EN, area() | value);
        check_eq(rdmsr(EN), area() | value, "the value");
    }
    wrmsr(ACK, 0);
    wrmsr(ACK, !0);
    check_eq(rdmsr(ACK), 0, "ACK");
}
