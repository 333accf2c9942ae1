//! The CPU's APIC timer in the guest's hands, while the host counts its ticks by it.

use crate::fake::guest::*;
use crate::fake::machine::TIMER_VECTOR;
use crate::fake::world::TICKS;
use crate::fake::{Env, Machine, Op};
use exitless_lapic::Armed;
use exitless_vcpu::Request;
use exitless_vcpu::backend::{Event, Exit};
use exitless_vcpu::chooser::{Mechanism, Reason, Set};

const DEADLINE: u32 = 0x6e0;
const TIMER: Event = Event::Interrupt(TIMER_VECTOR);
const M: Mechanism = Mechanism::TimerPassthrough;

fn time(ns: u64) -> Op {
    Op::World(Env::Time(ns))
}

/// A host whose tick comes each `period` ns.
fn machine(period: u64, ops: impl IntoIterator<Item = Op>) -> Machine {
    let m = Machine::virtual_apic(true, ops);
    m.w.start_tick(period * TICKS);
    m
}

/// Twenty deadlines, each moved to an earlier moment, which comes.
fn twenty() -> Vec<Op> {
    let one = |n: u64| {
        [Op::Deadline(2000 + n), Op::Deadline(1000), time(900), Op::Nop, time(600), Op::Nop, Op::Nop]
    };
    (0..20).flat_map(one).collect()
}

/// Exits of the guest's, without those that end a script.
fn exits(m: &Machine) -> u64 {
    m.sh.stats.exits.get()
}

/// The first write exits and opens, the others do not; each deadline that comes is one exit, and one interrupt.
#[test]
fn armed_without_an_exit_fired_with_one() {
    let mut m = machine(1_000_000, [Op::Deadline(5000), time(6000), Op::Nop, Op::Nop]);
    m.go();
    assert_eq!((m.events(), m.w.tick.loans.get() > 0), (vec![TIMER], true));
    let before = exits(&m);
    let mut ops = vec![];
    for n in 0..20 {
        ops.extend([Op::Deadline(2000 + n), Op::Deadline(1000), time(1500), Op::Nop, Op::Nop]);
    }
    m.then(ops);
    assert_eq!(m.events(), vec![TIMER; 20]);
    assert_eq!(exits(&m) - before, 20 + 1, "one for each that came, and the script's end");
    assert_eq!(m.sh.stats.deeds(M).hits.get(), 21);
}

/// Armed, and the slice ends: the APIC has it, to the tick, for whoever saves or sleeps; cancelled, nothing is left. (Fault 1 of the
/// published patches: a cancelled deadline stayed, and fired later.)
#[test]
fn the_apic_has_what_the_guest_left() {
    let mut m = machine(1_000_000, [Op::Deadline(900_000), wrmsr(DEADLINE, 0x1234_5678_9abc), Op::Nop]);
    m.go();
    assert_eq!(m.v.lapic.armed(), Armed::AtTsc(0x1234_5678_9abc));
    assert!(!m.w.tick.loan.is_lent() && m.sh.timer.is_cpu());
    m.w.timer_owed.set(false);
    m.then([wrmsr(DEADLINE, 0), Op::Nop]);
    assert_eq!(m.v.lapic.armed(), Armed::None);
    m.then([time(500_000), Op::Nop, time(500_000), Op::Nop]);
    assert_eq!(m.events(), vec![]);
}

/// The vCPU sleeps with an armed timer: the host's timer wakes it. (Nothing in the CPU counts for it then.)
#[test]
fn armed_and_asleep() {
    let ops = [Op::Deadline(500), time(600), Op::Nop, Op::Deadline(50_000), hlt(), Op::Nop, Op::Nop];
    let mut m = machine(1_000_000, ops);
    m.go();
    assert_eq!(m.events(), vec![TIMER, TIMER]);
    assert!(m.w.blocks.get() > 0 && m.w.tick.loans.get() > 1);
}

/// Fault 2: the host's deadline was forgotten if it had passed and another exit came first. Whatever the guest does, storms of deadlines
/// that have passed among it, the host's tick comes with the exit that its moment brings.
#[test]
fn the_hosts_tick_comes_in_any_storm() {
    let mut m = machine(3000, [Op::Deadline(10_000_000), Op::Nop]);
    m.v.b.handlers = false;
    m.go();
    let begin = m.w.ns.get();
    let mut ops = vec![];
    for n in 0..3000u64 {
        ops.push(wrmsr(DEADLINE, if n % 3 == 2 { u64::MAX - n } else { 1 + n % 2 }));
        if n % 7 == 0 {
            ops.push(cpuid(0, 0));
        }
    }
    // Interrupts stay closed: whose vectors they are the fake CPU would ask.
    m.v.b.rflags &= !0x200;
    m.then(ops);
    let took = m.w.ns.get() - begin;
    assert!(took > 20_000 && m.w.tick.loans.get() >= 6, "{took}, {}", m.w.tick.loans.get());
    assert!(u64::from(m.w.tick.ticks.get()) > took / 3000 / 2, "{} in {took} ns", m.w.tick.ticks.get());
    assert!(m.w.tick.latest.get() < 200 * TICKS, "a tick came {} late", m.w.tick.latest.get());
}

/// Fault 5: a masked timer, another mode, an APIC that is off: hardware knows nothing of the guest's LVTT, so nothing is lent, and the
/// chooser says why. Fault 7: nor with an offset or another rate, and one that comes while it is armed ends it.
#[test]
fn not_lent_where_hardware_would_be_wrong() {
    let go = |ops: &[Op]| {
        let mut m =
            machine(1_000_000, [Op::Deadline(500), time(600), Op::Nop, Op::Deadline(1 << 40), Op::Nop]);
        m.go();
        assert!(m.sh.active(M));
        let loans = m.w.tick.loans.get();
        m.w.timer_owed.set(false);
        m.then(ops.iter().cloned().chain([Op::Nop, wrmsr(DEADLINE, u64::MAX), Op::Nop]));
        (m.w.tick.loans.get() - loans, m)
    };
    let vector = u64::from(TIMER_VECTOR);
    for lvtt in [vector | 1 << 16 | 1 << 18, vector, vector | 1 << 17] {
        let (loans, m) = go(&[wrmsr(0x832, lvtt)]);
        assert!(!m.sh.active(M) && m.sh.chosen.facts().unwrap().has(Reason::OtherTimer), "{lvtt:#x}");
        assert!(loans <= 1, "before the write of LVTT, not behind it");
    }
    let (_, m) = go(&[wrmsr(0x80f, 0xff)]);
    assert!(!m.sh.active(M));
    // TSC_ADJUST: the guest's TSC is not the host's any more, and the deadline moves with it.
    let (_, m) = go(&[wrmsr(0x3b, 1000)]);
    assert!(!m.sh.active(M) && m.sh.chosen.facts().unwrap().has(Reason::ApartTsc));
    assert_eq!(m.v.lapic.armed(), Armed::AtTsc(u64::MAX));
    let (loans, m) = go(&[]);
    assert!(m.sh.active(M) && loans >= 1);
}

/// Idle in the guest the CPU's timer for guest mode may stand still, and the host's tick with it.
#[test]
fn idle_in_the_guest() {
    for mwait in [false, true] {
        let mut m = machine(1_000_000, [Op::Deadline(1 << 40), Op::Nop, Op::Nop]);
        (m.v.in_guest.hlt, m.v.in_guest.mwait) = (!mwait, mwait);
        m.go();
        assert_eq!(m.w.tick.loans.get(), 0);
        assert!(m.sh.chosen.facts().unwrap().has(Reason::IdlesInside));
    }
}

/// Whoever does not arm pays for nothing; whoever stops to arm soon does not either, and begins again with one exit.
#[test]
fn open_while_it_is_used() {
    let mut m = machine(1_000_000, [Op::Nop, Op::Nop]);
    for _ in 0..5 {
        m.then([cpuid(0, 0), Op::Nop]);
    }
    assert_eq!(m.w.tick.loans.get(), 0);
    m.then([Op::Deadline(1 << 40), Op::Nop]);
    for _ in 0..40 {
        m.then([Op::Nop]);
    }
    let loans = m.w.tick.loans.get();
    assert!((2..15).contains(&loans), "{loans}");
    m.then([Op::Deadline(1 << 40), Op::Nop]);
    assert_eq!(m.w.tick.loans.get(), loans + 1);
}

/// A fast path that wakes another vCPU makes the kernel use its timer: it has it, and the guest's goes on behind it.
#[test]
fn the_kernel_wakes_somebody_in_between() {
    let mut m = machine(1_000_000, [Op::Deadline(500), time(600), Op::Nop]);
    m.go();
    m.w.few.set(true);
    let before = exits(&m);
    m.then([
        Op::Deadline(4000),
        wrmsr(0x830, 1 << 32 | 0x77),
        Op::Deadline(3000),
        wrmsr(0x830, 1 << 32 | 0x78),
        time(3500),
        Op::Nop,
        Op::Nop,
    ]);
    assert_eq!(m.events(), vec![TIMER, TIMER]);
    assert_eq!(exits(&m) - before, 4, "two IPIs, the timer, the end");
}

/// Switched off and on while a deadline is armed: it comes once, wherever it is.
#[test]
fn switched_while_armed() {
    for (first, then) in [(Set::ALL, Set::NONE), (Set::NONE, Set::ALL), (Set::ALL, Set::ALL.put(M, false))] {
        let mut m = machine(1_000_000, [Op::Deadline(500), time(600), Op::Nop]);
        m.w.wanted.set(first);
        m.go();
        let mut ops = vec![];
        for _ in 0..5 {
            ops.extend([
                Op::Deadline(3000),
                Op::World(Env::Switch(then.0)),
                Op::Nop,
                time(3500),
                Op::Nop,
                Op::Nop,
            ]);
            ops.extend([
                Op::Deadline(3000),
                Op::World(Env::Switch(first.0)),
                Op::Nop,
                time(3500),
                Op::Nop,
                Op::Nop,
            ]);
        }
        m.then(ops);
        assert_eq!(m.events(), vec![TIMER; 11]);
    }
}

/// The thread comes to another CPU with a deadline armed: that CPU's timer has it, and the one it left is the host's alone.
#[test]
fn moved_while_armed() {
    let mut m = machine(1_000_000, [Op::Deadline(500), time(600), Op::Nop, Op::Deadline(9000), Op::Nop]);
    m.go();
    m.w.next_cpu.set(1);
    m.happen(Env::Ask(Request::EVENT));
    m.then([Op::Nop, time(10_000), Op::Nop, Op::Nop]);
    assert_eq!(m.events(), vec![TIMER, TIMER]);
}

/// A guest that asked for lazy deadlines, on a host that lends its timer, and on one that stops to: whoever has the writes, each deadline
/// comes, and what the page says of an armed one is never left behind by the other.
#[test]
fn beside_lazy_deadlines() {
    const PAGE: u64 = 0x5_0040;
    let mut m = machine(1_000_000, [wrmsr(0x4558_4c00, PAGE | 1)]);
    m.w.wanted.set(Set::ALL.put(M, false));
    m.go();
    m.w.lazy.set(Some(PAGE));
    m.then([Op::Deadline(50_000), Op::Deadline(60_000), Op::World(Env::Switch(Set::ALL.0)), Op::Nop]);
    assert_eq!(m.w.tick.loans.get(), 0);
    // Earlier: it exits, and opens; from here on nothing is attended.
    m.then([
        Op::Deadline(5000),
        Op::Deadline(9000),
        Op::World(Env::Peek(PAGE, 0)),
        time(10_000),
        Op::Nop,
        Op::Nop,
    ]);
    assert!(m.w.tick.loans.get() > 0);
    let first = m.events();
    assert_eq!(first, vec![TIMER]);
    // The host's tick is far, and then not there: the guest's are attended again.
    let loans = m.w.tick.loans.get();
    m.w.tick.register.set(0);
    m.w.tick.period.set(0);
    m.then([
        Op::Deadline(5000),
        Op::Deadline(9000),
        Op::Deadline(12_000),
        time(13_000),
        Op::Nop,
        Op::Nop,
        Op::Nop,
    ]);
    assert_eq!((m.events(), m.w.tick.loans.get()), (vec![TIMER], loans));
}

/// It comes around an exit of another kind, before it, behind it or when the slice is over: the IRR tells what no exit does, and the guest
/// has its interrupt once.
#[test]
fn comes_around_another_exit() {
    for ns in 1..60 {
        let mut m =
            machine(1_000_000, [Op::Deadline(500), time(600), Op::Nop, Op::Deadline(1 << 40), Op::Nop]);
        m.go();
        assert_eq!(m.events(), vec![TIMER]);
        m.w.timer_owed.set(false);
        m.then([Op::Deadline(ns), Op::Event(Exit::HostEvent), time(100), Op::Nop, Op::Nop]);
        assert_eq!(m.events(), vec![TIMER], "{ns}");
        // In the middle of a slice the kernel takes the timer back, and what was requested stays so: it is not the next one's.
        m.w.few.set(true);
        let hits = m.sh.stats.deeds(M).hits.get();
        m.then([Op::Deadline(ns), wrmsr(0x830, 1 << 32 | 0x77), Op::Nop, time(100), Op::Nop, Op::Nop]);
        assert_eq!(m.events(), vec![TIMER], "{ns}, an IPI");
        assert!(
            m.sh.stats.deeds(M).hits.get() - hits <= 1,
            "{ns}: twice, and one only because both were requested at once"
        );
    }
}

const PAGE: u64 = 0x5_0040;
const OFFSET: u64 = PAGE + 16;

/// A guest whose TSC is `offset` ticks ahead of the host's, and which has agreed to subtract that.
fn apart(offset: u64) -> Machine {
    let mut m = machine(1_000_000, [wrmsr(0x4558_4c00, PAGE | 3)]);
    m.go();
    m.v.set_tsc_offset(&m.sh, offset);
    m.w.lazy.set(Some(PAGE));
    m.w.shifts.set(true);
    m.then([Op::Nop]);
    assert!(m.sh.active(M) && !m.sh.active(Mechanism::HostTsc));
    m
}

fn by(offset: u64) -> exitless_lazy::Told {
    exitless_lazy::Told { offset, inside: 0 }
}

const OFFSETS: [u64; 4] = [1, 1 << 40, 1u64.wrapping_neg(), (1u64 << 20).wrapping_neg()];

/// Fault 7, for guests that subtract: after the first write, which is told the offset and comes again, each arms without an exit, and comes
/// when it is due.
#[test]
fn with_an_offset() {
    for offset in OFFSETS {
        let mut m = apart(offset);
        m.w.ns.set(1 << 30);
        let before = exits(&m);
        m.then([
            Op::Deadline(5000),
            time(2000),
            Op::Nop,
            Op::World(Env::Peek(OFFSET, offset)),
            time(4000),
            Op::Nop,
        ]);
        assert_eq!((m.events(), m.w.tick.loans.get()), (vec![TIMER], 1), "{offset:#x}");
        assert_eq!(exits(&m) - before, 3, "the first write, the deadline, the end");
        let before = exits(&m);
        m.then(twenty());
        assert_eq!(m.events(), vec![TIMER; 20]);
        // Whatever left for user space between has taken the offset back: one more for the first.
        assert_eq!(exits(&m) - before, 20 + 2, "one for each that came, the first write, the script's end");
    }
}

/// Whoever has it next finds the deadline in the guest's ticks, and a guest that subtracts nothing; also one that is stopped between its
/// look and its write, whose next look shows it. And user space's own deadlines are as they ever were.
#[test]
fn nobody_takes_one_ticks_for_the_others() {
    for offset in OFFSETS {
        let mut m = apart(offset);
        m.w.ns.set(1 << 30);
        m.then([Op::Deadline(900_000), Op::Deadline(800_000), Op::Nop]);
        let at = m.w.timer_last.get();
        assert_eq!((m.v.lapic.armed(), m.w.u64_at(OFFSET)), (Armed::AtTsc(at), 0), "{offset:#x}");
        // Told again; it leaves between a look and the write.
        m.then([Op::Deadline(700_000), Op::World(Env::Peek(OFFSET, offset)), Op::Nop]);
        let at = m.w.timer_last.get();
        let stale = at.wrapping_sub(offset);
        m.then([wrmsr(DEADLINE, stale), Op::Again(at, by(offset)), Op::Nop]);
        assert_eq!((m.v.lapic.armed(), m.w.u64_at(OFFSET)), (Armed::AtTsc(at), 0), "{offset:#x}");
        let user = at + 5;
        m.v.write_msr(&m.sh, &m.os, DEADLINE, user, exitless_policy::Origin::Host, &Default::default())
            .unwrap();
        assert_eq!(m.v.lapic.armed(), Armed::AtTsc(user));
        m.w.timer_owed.set(false);
    }
}

/// Each of them takes the offset back, and the guest's next deadline comes in time: LVTT written, the TSC moved, the MSR, the switch.
#[test]
fn the_offset_is_taken_back() {
    let lvtt = u64::from(TIMER_VECTOR) | 1 << 18;
    let ops: [(&str, Vec<Op>); 4] = [
        ("LVTT", vec![wrmsr(0x832, lvtt | 1 << 16), Op::World(Env::Peek(OFFSET, 0)), wrmsr(0x832, lvtt)]),
        ("TSC_ADJUST", vec![wrmsr(0x3b, 5000)]),
        ("the MSR", vec![wrmsr(0x4558_4c00, 0), wrmsr(0x4558_4c00, PAGE | 3)]),
        (
            "the switch",
            vec![
                Op::World(Env::Switch(Set::ALL.put(M, false).0)),
                Op::World(Env::Ask(Request::MECHANISMS)),
                Op::Nop,
            ],
        ),
    ];
    for (what, ops) in ops {
        let mut m = apart(1 << 40);
        m.w.ns.set(1 << 30);
        let told = [Op::Deadline(900_000), Op::Deadline(800_000), Op::World(Env::Peek(OFFSET, 1 << 40))];
        m.w.timer_owed.set(false);
        m.then(told.into_iter().chain(ops).chain([Op::World(Env::Peek(OFFSET, 0)), Op::Nop]));
        m.w.timer_owed.set(false);
        m.then([Op::Deadline(5000), time(4900), Op::Nop, time(300), Op::Nop, Op::Nop, Op::Nop]);
        assert_eq!(m.events(), vec![TIMER], "{what}");
    }
}

/// The host's timer was left queued for the guest's deadline (`sleep_until`), which comes between the closing of interrupts and the loan, and
/// is stopped there: the kernel's own interrupt may be requested by then, and must not be taken for one more of the guest's (the fake looks).
#[test]
fn stopped_right_before_the_loan() {
    let far = [Op::Deadline(500), time(600), Op::Nop, Op::Deadline(5_000_000), hlt(), Op::Nop];
    let mut m = machine(100_000_000, far);
    m.later(9, Env::Irq(0x55));
    m.go();
    assert!(m.w.timer.get().is_some());
    m.w.tick.passes.set(5_000_000);
    m.then([Op::Nop, Op::Nop]);
    assert_eq!(m.events(), vec![TIMER, Event::Interrupt(0x55), TIMER]);
    assert!(m.w.timer.get().is_none());
}

/// The guest's page is gone for good, with what is to be taken back in it: the guest goes on, whether the host spares its timer or not.
#[test]
fn a_page_that_is_gone_stops_nobody() {
    let gone = Op::World(Env::Lose(Some(PAGE >> 12)));
    for spares in [true, false] {
        let mut m = machine(1_000_000, [wrmsr(0x4558_4c00, PAGE | 1)]);
        m.w.wanted.set(Set::ALL.put(M, false));
        m.go();
        m.w.lazy.set(Some(PAGE));
        m.then([Op::Deadline(50_000), gone.clone(), Op::World(Env::Switch(Set::ALL.0)), Op::Nop]);
        assert!(m.sh.active(M));
        if !spares {
            m.w.tick.register.set(0);
            m.w.tick.period.set(0);
        }
        m.then([wrmsr(DEADLINE, 1 << 50), Op::Nop, wrmsr(DEADLINE, 1 << 40), Op::Nop, Op::Nop]);
        assert_eq!(m.v.lapic.armed(), Armed::AtTsc(1 << 40), "{spares}");
    }
    for offset in OFFSETS {
        let mut m = apart(offset);
        m.w.ns.set(1 << 30);
        m.then([
            Op::Deadline(900_000),
            Op::Deadline(800_000),
            gone.clone(),
            Op::World(Env::Ask(Request::EVENT)),
        ]);
        m.then([Op::Nop, cpuid(0, 0), Op::Nop, wrmsr(DEADLINE, 1 << 50), Op::Nop, Op::Nop]);
        assert_eq!(m.v.lapic.armed(), Armed::AtTsc(1 << 50), "{offset:#x}");
    }
}

const INSIDE: u64 = PAGE + 24;
const IN_GUEST: Mechanism = Mechanism::TimerInGuest;

/// A guest that has agreed to request its vector, and to bear it early; whose TSC is `offset` ticks ahead.
fn asks(offset: u64) -> Machine {
    let mut m = machine(1_000_000, [wrmsr(0x4558_4c00, PAGE | 7)]);
    m.long_mode();
    m.go();
    m.v.set_tsc_offset(&m.sh, offset);
    m.w.lazy.set(Some(PAGE));
    m.w.asks.set(true);
    m.then([Op::Nop]);
    assert!(m.sh.active(M) && m.sh.active(IN_GUEST));
    m
}

/// Armed and fired without an exit.
#[test]
fn fires_without_an_exit() {
    for offset in [0, 1 << 40] {
        let mut m = asks(offset);
        let before = exits(&m);
        m.then([
            Op::Deadline(5000),
            time(2000),
            Op::Nop,
            Op::World(Env::Peek(INSIDE, 1)),
            time(4000),
            Op::Nop,
            Op::Nop,
        ]);
        assert_eq!((m.events(), exits(&m) - before), (vec![TIMER], 2), "the first write, the end");
        let before = exits(&m);
        m.then(twenty());
        assert_eq!(m.events(), vec![TIMER; 20]);
        assert_eq!(exits(&m) - before, 2, "the first write behind a departure, the end");
        assert_eq!(m.sh.stats.deeds(IN_GUEST).added.get(), 0, "early ones");
        assert!(!m.w.tick.notifies.get());
    }
}

/// It comes around an exit of another kind, before it, behind it or when the slice is over: it is told by the request that is still there.
#[test]
fn fires_around_another_exit() {
    for ns in 1..60 {
        let mut m = asks(0);
        m.then([Op::Deadline(1 << 40), Op::Nop]);
        m.w.timer_owed.set(false);
        m.then([
            Op::Deadline(1 << 40),
            Op::Deadline(ns),
            Op::Event(Exit::HostEvent),
            time(100),
            Op::Nop,
            Op::Nop,
        ]);
        assert_eq!(m.events(), vec![TIMER], "{ns}");
        assert!(!m.sh.apic.posted().has_pending(), "{ns}");
    }
}

/// Armed, the vCPU leaves or sleeps: the request is taken back, and the APIC has the deadline, which comes once.
#[test]
fn armed_inside_and_gone() {
    let mut m = asks(1 << 40);
    m.then([Op::Deadline(900_000), Op::Deadline(800_000), Op::Nop]);
    let at = m.w.timer_last.get();
    assert_eq!((m.v.lapic.armed(), m.w.u64_at(INSIDE)), (Armed::AtTsc(at), 0));
    assert!(!m.sh.apic.posted().has_pending());
    m.then([Op::Deadline(900_000), Op::Deadline(50_000), hlt(), Op::Nop, Op::Nop]);
    assert_eq!((m.events(), m.w.blocks.get() > 0), (vec![TIMER], true));
}

/// Found between its look at *inside* and its write, by whoever ends that, the guest begins anew: on another host the descriptor may be anything.
#[test]
fn put_back_to_the_start() {
    for (at, length, back) in [(0, 8, true), (7, 8, true), (8, 8, false), (3, 0, false)] {
        let mut m = asks(0);
        let run = |m: &mut Machine| {
            m.then([Op::Deadline(900_000), Op::Deadline(900_000), Op::World(Env::Peek(INSIDE, 1)), Op::Nop]);
            m.v.b.rip
        };
        let first = run(&mut m);
        let second = run(&mut m);
        // Where the next one ends.
        let end = second + (second - first);
        let start: u64 = end - at;
        assert!(m.w.write_ram(PAGE + 32, &start.to_le_bytes()));
        assert!(m.w.write_ram(PAGE + 40, &u64::to_le_bytes(length)));
        assert_eq!(run(&mut m), if back { start } else { end }, "{at}");
        m.w.timer_owed.set(false);
    }
}

/// The vector comes early where no loan takes it back, and a guest that was still to request it would be interrupted for ever, asleep too.
#[test]
fn early_without_a_loan() {
    let mut m = asks(0);
    m.then([Op::Deadline(900_000), Op::Deadline(800_000), Op::World(Env::Peek(INSIDE, 1)), Op::Nop]);
    m.w.timer_owed.set(false);
    let before = exits(&m);
    let mut ops = vec![Op::Deadline(900_000), Op::Deadline(800_000), Op::World(Env::Peek(INSIDE, 1))];
    ops.extend([Op::World(Env::NoTick), Op::Deadline(700_000), Op::Event(Exit::HostEvent)]);
    ops.extend([Op::World(Env::Peek(INSIDE, 0)), Op::Deadline(50_000)]);
    ops.extend([hlt(), hlt(), hlt(), hlt(), hlt(), hlt(), hlt(), hlt()]);
    m.then(ops);
    assert!(
        m.w.early.get() <= 1 && exits(&m) - before < 10,
        "{} early, {} exits",
        m.w.early.get(),
        exits(&m) - before
    );
    // Closed: whoever does not write is not to request either.
    let mut m = asks(0);
    let mut ops = vec![Op::Deadline(900_000), Op::Deadline(800_000)];
    ops.extend([const { Op::Event(Exit::HostEvent) }; 10]);
    ops.push(Op::World(Env::Peek(INSIDE, 0)));
    m.then(ops);
    m.w.timer_owed.set(false);
}

/// What takes *inside* back cannot read where the sequence is, as it must not sleep, or as nobody can: that is looked at before the guest runs
/// on, and before user space has the vCPU.
#[test]
fn put_back_later() {
    // To where its sequence begins, so far before the script's end.
    let asks = |begin: u64| {
        let mut m = asks(0);
        let first = told(&mut m, &[]);
        let end = 2 * told(&mut m, &[]) - first;
        assert!(m.w.write_ram(PAGE + 32, &(end - begin).to_le_bytes()));
        assert!(m.w.write_ram(PAGE + 40, &8u64.to_le_bytes()));
        (m, end)
    };
    let (mut m, end) = asks(4);
    let off = [Env::Swap(true), Env::Switch(Set::ALL.put(IN_GUEST, false).0)];
    assert_eq!(told(&mut m, &off), end - 3, "and one byte of NOP");
    let (mut m, end) = asks(3);
    assert_eq!(told(&mut m, &[Env::Lose(Some(PAGE >> 12))]), end);
    m.happen(Env::Lose(None));
    m.happen(Env::Signal);
    m.run();
    assert_eq!(m.v.b.rip, end - 3);
}

/// Told, what happens, and a last instruction: where that ends.
fn told(m: &mut Machine, more: &[Env]) -> u64 {
    let ops = [Op::Deadline(900_000), Op::Deadline(900_000), Op::World(Env::Peek(INSIDE, 1))];
    m.then(ops.into_iter().chain(more.iter().copied().map(Op::World)).chain([Op::Nop]));
    m.w.timer_owed.set(false);
    m.v.b.rip
}

/// What the guest has requested while nothing was lent is gone with the rest of its IRR when it is reset.
#[test]
fn requests_end_with_the_guest() {
    let mut m = asks(0);
    assert!(m.sh.apic.posted().request(TIMER_VECTOR) && m.sh.apic.posted().has_pending());
    m.v.reset(&m.sh, &m.os, true);
    assert!(!m.sh.apic.posted().has_pending() && !m.v.pv.lazy.strays());
}
