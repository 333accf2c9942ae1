//! Time stamps in the run loop, and what ends a halt.

use crate::fake::guest::*;
use crate::fake::world::TICKS;
use crate::fake::{Env, Machine, Op};
use exitless_control_abi::times::field;
use exitless_vcpu::stats::waker;
use exitless_vcpu::times::{Late, Spent, Times};

const DEADLINE: u32 = 0x6e0;

fn spent(t: &Times) -> [u64; 6] {
    Spent::ALL.map(|s| t.spent[s as usize].get())
}

fn late(t: &Times, what: Late) -> u64 {
    t.late().find(|(l, _)| *l == what).map_or(0, |(_, h)| count(h.fields()))
}

fn count(mut fields: impl Iterator<Item = (u32, u64)>) -> u64 {
    fields.find(|(f, _)| *f == field::COUNT).map_or(0, |(_, n)| n)
}

/// How many exits have a time, of all reasons.
fn timed(t: &Times) -> u64 {
    t.rows().map(|r| count(r.fields())).sum()
}

/// The guest arms its timer and halts.
fn machine() -> Machine {
    let mut m = Machine::new([]);
    let deadline = (m.w.ns.get() + 50_000) * TICKS + m.v.tsc_offset;
    m.w.timer_not_before.set(deadline);
    m.w.timer_arms.set(1);
    let ops = [cpuid(1, 0), cpuid(1, 0), wrmsr(DEADLINE, deadline), hlt(), Op::Nop, cpuid(1, 0), Op::Nop];
    m.v.b.ops.extend(ops);
    m
}

/// Every tick from the first border to the last is in one place, and every exit that an entry followed has its time.
#[test]
fn each_tick_is_somewhere() {
    let mut m = machine();
    m.measure(true);
    m.go();
    let t = &m.w.times;
    let [guest, fast, kernel, user, halted, polled] = spent(t);
    assert!(guest > 0 && fast > 0 && kernel > 0 && halted > 0 && polled > 0, "{:?}", spent(t));
    assert_eq!(user, 0, "user space has not been waited for yet");
    assert_eq!(timed(t) + 1, m.sh.stats.exits.get(), "the last has no entry behind it");
    assert_eq!(late(t, Late::Timer), 1);
    let before: u64 = spent(t).iter().sum();
    let from = m.w.ns.get();
    m.then([cpuid(1, 0), Op::Nop]);
    let t = &m.w.times;
    assert!(spent(t)[Spent::User as usize] > 0);
    let passed = spent(t).iter().sum::<u64>() - before;
    assert!(passed >= (m.w.ns.get() - from) * TICKS * 9 / 10, "{passed} of {} ns", m.w.ns.get() - from);
}

/// Nothing is stamped while nobody measures, and what was measured before stays.
#[test]
fn nothing_while_nobody_measures() {
    let mut m = machine();
    m.go();
    assert_eq!((spent(&m.w.times), timed(&m.w.times)), ([0; 6], 0));
    m.measure(true);
    m.then([cpuid(1, 0), Op::Nop]);
    let (then, exits) = (spent(&m.w.times), timed(&m.w.times));
    assert!(exits > 0);
    m.measure(false);
    m.then([cpuid(1, 0), cpuid(1, 0), Op::Nop]);
    assert_eq!((spent(&m.w.times), timed(&m.w.times)), (then, exits));
}

/// Its own timer ends the halt; or what came last, as who sent it has said; or nobody who is known.
#[test]
fn what_ends_a_halt() {
    let wakes = |m: &Machine| m.sh.stats.wakes.each_ref().map(|c| c.get());
    let of = |by: u8| std::array::from_fn(|n| u64::from(n == usize::from(by)));
    let mut m = machine();
    m.go();
    assert_eq!(wakes(&m), of(waker::TIMER));
    let mut m = Machine::new([hlt(), Op::Nop]);
    m.happen(Env::Irq(0x41));
    m.go();
    assert_eq!(wakes(&m).iter().sum::<u64>(), m.sh.stats.halt_wakeup.get());
}
