//! Lazy deadlines: which of the guest's deadlines exit, when the last one comes, and that nobody who changes how the timer works, or
//! takes the vCPU elsewhere, leaves a guest that waits for ever.

use crate::fake::guest::*;
use crate::fake::machine::{TIMER_LIMIT, TIMER_VECTOR};
use crate::fake::{Env, Machine, Op};
use exitless_policy::Origin;
use exitless_vcpu::Request;
use exitless_vcpu::backend::{Event, Exit};
use exitless_vcpu::chooser::Mechanism::LazyDeadline;
use exitless_vcpu::chooser::{Reason, Set};
use exitless_x86::apic::{lvt, reg};

const MSR: u32 = 0x4558_4c00;
const DEADLINE: u32 = 0x6e0;
const PAGE: u64 = 0x5_0040;
const PENDING: u64 = PAGE + 8;
const TIMER: Event = Event::Interrupt(TIMER_VECTOR);
const TIMER_LVT: u32 = TIMER_VECTOR as u32 | lvt::TIMER_DEADLINE;

fn time(ns: u64) -> Op {
    Op::World(Env::Time(ns))
}

/// The guest runs, and the host's timers have their turn.
fn look() -> Op {
    Op::Event(Exit::HostEvent)
}

fn peek(at: u64, value: u64) -> Op {
    Op::World(Env::Peek(at, value))
}

/// A guest that has asked for it and runs `ops`: with the APIC in hardware beside a timer of the CPU's, and in software.
fn both(ops: &[Op], check: impl Fn(Machine)) {
    for apic in [true, false] {
        let mut m = Machine::new([wrmsr(MSR, PAGE | 1)]);
        if apic {
            m = Machine::virtual_apic(false, [wrmsr(MSR, PAGE | 1)]);
            assert_eq!(m.v.b.timer_limit, Some(TIMER_LIMIT));
        }
        m.go();
        assert_eq!(m.v.read_msr(&m.sh, &m.os, MSR, Origin::Guest), Ok(PAGE | 1));
        m.w.lazy.set(Some(PAGE));
        m.v.b.ops.extend(ops.iter().cloned());
        check(m);
    }
}

/// Exits for writes of the deadline.
fn written(m: &Machine) -> u64 {
    m.sh.stats.by_msr.rows().find(|(msr, _)| *msr == DEADLINE).map_or(0, |(_, n)| n)
}

fn armed(m: &Machine) -> u64 {
    m.w.u64_at(PAGE)
}

/// The leaves are there while the switch is on, and not where user space has leaves of that number; the MSR goes with them. Who does
/// not ask has nothing.
#[test]
fn found_by_cpuid() {
    let show = |m: &mut Machine, leaf: u32| m.v.cpuid.execute(leaf, 0, &Default::default());
    let mut m = Machine::new([Op::Nop]);
    m.go();
    let r = show(&mut m, 0x4000_4500);
    let name: Vec<u8> = [r.ebx, r.ecx, r.edx].iter().flat_map(|w| w.to_le_bytes()).collect();
    assert_eq!((name.as_slice(), r.eax), (&b"ExitlessPV\0\0"[..], 0x4000_4501));
    let r = show(&mut m, 0x4000_4501);
    assert_eq!((r.eax, r.ebx), (1, 1));
    assert!(!m.sh.active(LazyDeadline));
    m.then([wrmsr(MSR, PAGE | 1), Op::Nop]);
    assert!(m.sh.active(LazyDeadline));
    m.happen(Env::Switch(Set::ALL.put(LazyDeadline, false).0));
    m.happen(Env::Ask(Request::MECHANISMS));
    m.then([Op::Nop]);
    assert_eq!(show(&mut m, 0x4000_4501).ebx, 0);
    assert!(!m.sh.active(LazyDeadline));
    m.then([faulting(wrmsr(MSR, PAGE | 1)), wrmsr(MSR, 0), Op::Nop]);
    m.happen(Env::Switch(Set::ALL.0));
    m.happen(Env::Ask(Request::MECHANISMS));
    m.then([Op::Nop]);
    assert_eq!(show(&mut m, 0x4000_4501).eax, 1);
    assert!(m.sh.chosen.facts().unwrap().has(Reason::NotAsked));
    let mut theirs = Machine::power_up(true, true);
    theirs.set_cpuid_with(|e| {
        if e.function == 0x8000_0008 {
            e.function = 0x4000_4501;
        }
    });
    theirs.boot();
    theirs.then([faulting(wrmsr(MSR, PAGE | 1)), Op::Nop]);
}

/// From 0 and 0: the first deadline exits, the same and later ones do not, an earlier one does. At the end the APIC's deadline is the
/// guest's last, and the next one exits.
#[test]
fn later_ones_do_not_exit() {
    let ops =
        [Op::Deadline(50_000), Op::Deadline(60_000), Op::Deadline(90_000), Op::Deadline(70_000), Op::Nop];
    both(&ops, |mut m| {
        m.go();
        assert_eq!((written(&m), armed(&m), m.events()), (1, 0, vec![]));
        assert_eq!(m.v.lapic.tsc_deadline(), m.w.u64_at(PENDING));
        m.then([Op::Deadline(60_000), Op::Deadline(40_000), Op::Deadline(45_000), Op::Nop]);
        assert_eq!(written(&m), 3);
        m.then([time(46_000), look(), look(), look()]);
        assert_eq!((m.events(), m.v.lapic.tsc_deadline()), (vec![TIMER], 0));
    });
}

/// What was armed comes: nothing for the guest, which has its interrupt at its last deadline, once.
#[test]
fn comes_at_the_last() {
    both(
        &[
            Op::Deadline(10_000),
            Op::Deadline(30_000),
            time(12_000),
            look(),
            look(),
            look(),
            time(10_000),
            look(),
            look(),
        ],
        |mut m| {
            m.go();
            assert_eq!(m.events(), []);
            let deeds = m.sh.stats.deeds(LazyDeadline);
            assert_eq!((deeds.hits.get(), deeds.saved.get(), deeds.added.get()), (1, 1, 1));
            m.then([time(10_000), look(), look(), look()]);
            assert_eq!((m.events(), written(&m)), (vec![TIMER], 1));
        },
    );
}

/// Both are past when it is looked at: one interrupt, and the guest's next deadline exits.
#[test]
fn pending_has_passed_too() {
    let ops = [
        Op::Deadline(10_000),
        Op::Deadline(20_000),
        time(30_000),
        look(),
        look(),
        peek(PAGE, 0),
        Op::Deadline(9_000),
        Op::Nop,
    ];
    both(&ops, |mut m| {
        m.go();
        assert_eq!((m.events(), written(&m)), (vec![TIMER], 2));
    });
}

/// A guest that never sets its timer again: one interrupt, and *armed* is 0 behind it.
#[test]
fn never_set_again() {
    both(&[Op::Deadline(10_000), time(12_000), look(), look(), peek(PAGE, 0), Op::Nop], |mut m| {
        m.go();
        assert_eq!(m.events(), [TIMER]);
    });
}

/// Asleep the guest is not woken for what was armed, but the thread is: what is armed stays, for a guest that idles often sets its timer to
/// the same moments again when it wakes.
#[test]
fn sleeps_until_the_last() {
    both(&[Op::Deadline(10_000), Op::Deadline(50_000), hlt(), Op::Nop, Op::Nop], |mut m| {
        let begin = m.w.ns.get();
        m.go();
        let took = m.w.ns.get() - begin;
        assert!((50_000..56_000).contains(&took), "{took}");
        assert_eq!((m.events(), m.w.blocks.get()), (vec![TIMER], 2));
    });
}

/// Where the host would post the timer from another CPU, which does not look at the page: not while a deadline is attended.
#[test]
fn not_posted_while_attended() {
    let mut m = Machine::virtual_apic(true, [wrmsr(MSR, PAGE | 1)]);
    m.w.idles_in_guest.set(true);
    m.w.housekeeping.set(true);
    m.go();
    m.w.lazy.set(Some(PAGE));
    m.then([Op::Deadline(10_000), Op::Deadline(30_000), time(12_000), look(), look()]);
    assert_eq!((m.events(), m.w.posts.get()), (vec![], 0));
    m.then([time(20_000), look(), look()]);
    assert_eq!(m.events(), [TIMER]);
}

/// Each thing that ends the attending: *armed* is 0 then, the next deadline, though later than what was armed, exits and comes.
#[test]
fn whatever_ends_it() {
    let write = |at, value| store(crate::fake::world::APIC + u64::from(at), value);
    let masked = TIMER_LVT | lvt::MASKED;
    let one_shot = u32::from(TIMER_VECTOR);
    let ends: Vec<(&str, Vec<Op>)> = vec![
        (
            "LVTT masked, and not",
            vec![write(reg::LVT_TIMER, masked), peek(PAGE, 0), write(reg::LVT_TIMER, TIMER_LVT)],
        ),
        (
            "another mode, and back",
            vec![write(reg::LVT_TIMER, one_shot), peek(PAGE, 0), write(reg::LVT_TIMER, TIMER_LVT)],
        ),
        ("a deadline that has passed", vec![Op::Deadline(0), look(), look()]),
        ("disarmed", vec![wrmsr(DEADLINE, 0)]),
        ("off and on", vec![wrmsr(MSR, 0), peek(PAGE, 0), wrmsr(MSR, PAGE | 1)]),
        ("TSC_ADJUST", vec![wrmsr(0x3b, 7)]),
        ("the TSC", vec![wrmsr(0x10, 1_000)]),
        ("a departure", vec![input(0x80, 1)]),
        ("a knock", vec![Op::World(Env::Ask(Request::LAZY)), Op::Nop]),
        (
            "a switch",
            vec![
                Op::World(Env::Switch(Set::ALL.put(LazyDeadline, false).0)),
                Op::World(Env::Ask(Request::MECHANISMS)),
                Op::Nop,
                peek(PAGE, 0),
                Op::World(Env::Switch(Set::ALL.0)),
                Op::World(Env::Ask(Request::MECHANISMS)),
                Op::Nop,
            ],
        ),
        (
            "software-disabled",
            vec![
                write(reg::SVR, 0xff),
                peek(PAGE, 0),
                write(reg::SVR, 0x1ff),
                write(reg::LVT_TIMER, TIMER_LVT),
            ],
        ),
        (
            "the APIC is inhibited",
            vec![Op::Inhibit, write(reg::SVR, 0x1ff), write(reg::LVT_TIMER, TIMER_LVT)],
        ),
    ];
    for (what, end) in ends {
        let ops: Vec<Op> = [Op::Deadline(20_000), Op::Deadline(30_000)]
            .into_iter()
            .chain(end)
            .chain([peek(PAGE, 0)])
            .collect();
        both(&ops, |mut m| {
            m.go();
            let before = written(&m);
            m.events();
            m.then([Op::Deadline(40_000), Op::Nop]);
            assert_eq!(written(&m), before + 1, "{what}: not written");
            m.then([time(41_000), look(), look(), look()]);
            assert_eq!(m.events(), [TIMER], "{what}");
        });
    }
}

/// INIT: the page is let go of, and whoever runs then has its own timer.
#[test]
fn init() {
    both(&[Op::Deadline(10_000), Op::World(Env::Init), Op::Nop, Op::Nop], |mut m| {
        m.go();
        assert_eq!((m.v.pv.lazy_deadline, armed(&m)), (0, 0));
    });
}

/// Masked when it is written: the guest's next one exits.
#[test]
fn written_while_masked() {
    let masked = store(crate::fake::world::APIC + u64::from(reg::LVT_TIMER), TIMER_LVT | lvt::MASKED);
    both(&[masked, Op::Deadline(10_000), peek(PAGE, 0), Op::Deadline(20_000), Op::Nop], |mut m| {
        m.go();
        assert_eq!(written(&m), 2);
    });
}

/// What the guest writes into *armed* is nothing to the host, and garbage in *pending* costs the guest its own timer at most.
#[test]
fn hostile_words() {
    for garbage in [0, 1, 1 << 40, u64::MAX] {
        both(
            &[
                Op::Deadline(10_000),
                Op::World(Env::Poke(PAGE, garbage)),
                time(12_000),
                look(),
                look(),
                peek(PAGE, 0),
                Op::Nop,
            ],
            |mut m| {
                m.go();
                assert_eq!(m.events(), [TIMER]);
            },
        );
        both(
            &[Op::Deadline(10_000), Op::World(Env::Poke(PENDING, garbage)), time(12_000), look(), look()],
            |mut m| {
                m.w.timer_owed.set(false);
                m.go();
                let put_off = garbage >= 1 << 40;
                assert_eq!(m.events().len(), usize::from(!put_off), "{garbage:#x}");
                assert_eq!(m.v.lapic.tsc_deadline() != 0, put_off);
            },
        );
    }
}

/// Somebody writes the MSR who has never heard of the page, as the kernel behind a kexec: the deadline is that, whatever stands there.
#[test]
fn of_somebody_else() {
    both(&[Op::Deadline(10_000), Op::World(Env::Poke(PENDING, 1 << 40)), Op::Nop], |mut m| {
        m.w.lazy.set(None);
        m.v.b.ops.extend([Op::Deadline(20_000), peek(PAGE, 0), time(21_000), look(), look()]);
        m.go();
        assert_eq!(m.events(), [TIMER]);
    });
}

/// User space writes the value that stands in *pending*, between two KVM_RUN: whoever saves the memory then saves an *armed* of 0. The
/// deadline comes, and the guest's next one exits.
#[test]
fn written_by_user_space() {
    both(&[Op::Deadline(10_000), Op::Deadline(30_000), Op::Nop], |mut m| {
        m.go();
        let pending = m.w.u64_at(PENDING);
        m.user_msr(DEADLINE, pending);
        assert_eq!((armed(&m), m.v.lapic.tsc_deadline()), (0, pending));
        m.then([peek(PAGE, 0), Op::Deadline(35_000), Op::Nop]);
        assert_eq!(written(&m), 2);
        m.then([time(36_000), look(), look(), look()]);
        assert_eq!(m.events(), [TIMER]);
    });
}

/// Addresses that are no memory, or none that can be written: #GP, and what was there before stays off.
#[test]
fn bad_addresses() {
    for at in [crate::fake::world::ROM, 0xffff_ffff_f000, crate::fake::world::APIC] {
        both(
            &[Op::Deadline(10_000), faulting(wrmsr(MSR, at | 1)), Op::Deadline(20_000), Op::Nop],
            |mut m| {
                m.go();
                assert_eq!((m.v.pv.lazy_deadline, written(&m)), (PAGE | 1, 2), "{at:#x}");
            },
        );
    }
    both(&[faulting(wrmsr(MSR, PAGE | 8 | 1)), Op::Nop], |mut m| {
        m.go();
    });
}

/// Who cannot have the CPU's timer, or may not, is offered no offset.
#[test]
fn no_offset_where_nothing_is_lent() {
    let mut m = Machine::new([faulting(wrmsr(MSR, PAGE | 3)), wrmsr(MSR, PAGE | 1), Op::Nop]);
    m.go();
    let mut m = Machine::virtual_apic(true, [faulting(wrmsr(MSR, PAGE | 3)), Op::Nop]);
    m.w.wanted.set(Set::ALL.put(exitless_vcpu::chooser::Mechanism::TimerPassthrough, false));
    m.go();
}

/// Not resident: what a slice cannot write is written before the guest goes on.
#[test]
fn swapped_out() {
    let ops = [
        Op::Deadline(10_000),
        Op::Deadline(9_000),
        Op::Deadline(30_000),
        Op::Nop,
        Op::Deadline(8_000),
        Op::Deadline(40_000),
        Op::Nop,
    ];
    both(&ops, |mut m| {
        m.w.swapped.set(true);
        m.go();
        assert_eq!(armed(&m), 0);
        m.then([time(50_000), look(), look(), look()]);
        assert_eq!(m.events(), [TIMER]);
    });
}

/// Attended, and not resident when a slice would write it: the guest does not go on before it is written.
#[test]
fn swapped_out_while_attended() {
    let ops = [
        Op::Deadline(10_000),
        Op::World(Env::Swap(true)),
        Op::Deadline(8_000),
        peek(PAGE, 0),
        look(),
        look(),
    ];
    both(&ops, |mut m| {
        m.go();
        m.then([time(9_000), look(), look(), look()]);
        assert_eq!(m.events(), [TIMER]);
    });
}

/// The page is gone when the deadline comes: the interrupt comes, and *armed* is 0 before the guest runs on a page that is back.
#[test]
fn gone_and_back() {
    let gone = Op::World(Env::Lose(Some(PAGE >> 12)));
    let back = [Op::World(Env::Lose(None)), Op::World(Env::Ask(Request::QUIESCE)), Op::Nop, peek(PAGE, 0)];
    let ops: Vec<Op> = [Op::Deadline(10_000), Op::Deadline(20_000), gone, time(12_000), look(), look()]
        .into_iter()
        .chain(back)
        .collect();
    both(&ops, |mut m| {
        m.w.timer_not_before.set(0);
        m.go();
        assert_eq!(m.events(), [TIMER]);
    });
}
