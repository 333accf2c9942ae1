//! The APIC timer's homes: the CPU while the guest runs, the host while it sleeps.

use crate::fake::guest::*;
use crate::fake::machine::{TIMER_LIMIT, TIMER_VECTOR};
use crate::fake::world::{APIC, HOUSEKEEPER, TICKS};
use crate::fake::{Env, Machine, Op};
use exitless_deadline::Home;
use exitless_lapic::Armed;
use exitless_vcpu::Request;
use exitless_vcpu::backend::{Event, Exit};
use exitless_vcpu::clock::tsc::{Rate, Scaling};
use exitless_x86::apic::{lvt, reg};

const DEADLINE: u32 = 0x6e0;
const TIMER: Event = Event::Interrupt(TIMER_VECTOR);

fn time(ns: u64) -> Op {
    Op::World(Env::Time(ns))
}

/// With the APIC in hardware and in software.
fn both(ops: &[Op], check: impl Fn(Machine)) {
    for apic in [true, false] {
        let mut m = Machine::virtual_apic(false, ops.iter().cloned());
        m.v.b.apic.able = apic;
        check(m);
    }
}

/// The CPU has it, the host has it. The host's may be queued for nobody.
fn homes(m: &Machine) -> (bool, bool) {
    assert_eq!(m.w.cpu_timer.get().is_some(), m.sh.timer.is_cpu());
    assert!(m.w.timer.get().is_some() || !m.sh.timer.is_host());
    (m.sh.timer.is_cpu(), m.sh.timer.is_host())
}

/// It runs out in the guest: one exit, one vector, and no timer of the host's was ever armed.
#[test]
fn runs_out_in_the_guest() {
    both(&[Op::Deadline(10_000), Op::Nop], |mut m| {
        m.go();
        assert_eq!((m.events(), homes(&m)), (vec![], (true, false)));
        m.then([time(20_000), Op::Nop, Op::Nop]);
        assert_eq!((m.events(), homes(&m)), (vec![TIMER], (false, false)));
    });
}

/// Disarmed, the CPU's counter may still run out: the guest goes on at once and gets nothing.
#[test]
fn runs_out_for_nobody() {
    both(
        &[Op::Deadline(10_000), wrmsr(DEADLINE, 0), Op::Event(Exit::Timer), time(20_000), Op::Nop],
        |mut m| {
            m.w.timer_owed.set(false);
            m.go();
            assert_eq!((m.events(), homes(&m)), (vec![], (false, false)));
            assert_eq!(m.sh.stats.fast.get(), 3, "two writes, and the timer");
        },
    );
}

/// The counter ends a little early: nothing for the guest, and the rest is armed. Taken for due, it would fire early.
#[test]
fn runs_out_early() {
    both(&[Op::Deadline(10_000), Op::Event(Exit::Timer), Op::Nop], |mut m| {
        m.go();
        assert_eq!((m.events(), homes(&m)), (vec![], (true, false)));
        m.then([time(20_000), Op::Nop]);
        assert_eq!(m.events(), [TIMER]);
    });
}

/// Less is left than the advance when the counter ends: waited for in the slice, and the interrupt comes with that entry, not
/// before the deadline and not long after it. (The fake CPU refuses an early one.)
#[test]
fn waited_for_within_the_advance() {
    for ns in [300, 600, 900] {
        both(&[Op::Deadline(ns), Op::Event(Exit::Timer), Op::Nop, Op::Nop], |mut m| {
            let begin = m.w.ns.get();
            m.go();
            assert_eq!((m.events(), homes(&m)), (vec![TIMER], (false, false)), "{ns}");
            let took = m.w.ns.get() - begin;
            assert!((ns..ns + 150).contains(&took), "{took} for {ns}");
            // Not by entering over and over until it is time.
            assert!(m.v.b.entries <= 6, "{} entries for {ns}", m.v.b.entries);
        });
    }
}

/// The handler arms the next, and that one comes too: a counter left at zero would exit for ever, one switched off never.
#[test]
fn armed_again_in_the_handler() {
    let ops = [Op::Deadline(1000), time(2000), Op::Nop, Op::Deadline(5000), Op::Eoi, Op::Iret, Op::Nop];
    both(&ops, |mut m| {
        m.v.b.handlers = false;
        m.go();
        assert_eq!((m.events(), homes(&m)), (vec![TIMER], (true, false)));
        m.then([time(6000), Op::Nop, Op::Eoi, Op::Iret]);
        assert_eq!((m.events(), homes(&m)), (vec![TIMER], (false, false)));
    });
}

/// Due while the vCPU sleeps: the CPU does not count then, so the host's timer wakes it. Exactly one interrupt.
#[test]
fn due_while_blocked() {
    both(&[Op::Deadline(50_000), hlt(), Op::Nop, Op::Nop], |mut m| {
        m.go();
        assert_eq!((m.events(), homes(&m)), (vec![TIMER], (false, false)));
        assert!(m.w.blocks.get() > 0);
    });
}

/// A TSC that counts faster, slower, or at a rate that no ratio holds: the deadline is the guest's, the homes count the host's ticks.
#[test]
fn at_another_rate() {
    let host = (TICKS * 1_000_000) as u32;
    for khz in [host * 2, host / 2, host / 27 * 37 + 1] {
        for sleeps in [false, true] {
            let rest = if sleeps { hlt() } else { Op::Nop };
            both(&[Op::Deadline(50_000), rest, Op::Nop, Op::Nop], |mut m| {
                m.v.set_tsc_rate(
                    &m.sh,
                    Rate::asked(khz, host, Some(Scaling::VMX)).unwrap(),
                    Some(Scaling::VMX),
                );
                let begin = m.w.ns.get();
                m.go();
                if !sleeps {
                    assert_eq!((m.events(), homes(&m)), (vec![], (true, false)), "{khz}");
                    let left = m.w.cpu_timer.get().unwrap() / TICKS - begin;
                    assert!((48_000..=50_100).contains(&left), "{left} ns in the counter at {khz} kHz");
                    m.then([time(51_000), Op::Nop, Op::Nop]);
                }
                assert_eq!((m.events(), homes(&m)), (vec![TIMER], (false, false)), "{khz}");
                let took = m.w.ns.get() - begin;
                assert!((50_000..53_000).contains(&took), "{took} ns at {khz} kHz");
            });
        }
    }
}

/// The host's TSCs differ: a moment of one means nothing on the next CPU, so the host's timer has the deadline, also one
/// that the CPU had before that was known.
#[test]
fn unsteady_tsc() {
    for before in [true, false] {
        both(&[Op::Deadline(10_000), Op::Nop], |mut m| {
            m.w.unsteady.set(before);
            m.go();
            assert_eq!(homes(&m), (!before, before));
            m.w.unsteady.set(true);
            m.happen(Env::Ask(Request::TIMER));
            m.then([Op::Nop, hlt(), Op::Nop]);
            assert_eq!((m.events(), homes(&m)), (vec![TIMER], (false, false)));
            m.then([Op::Deadline(20_000), Op::Nop]);
            assert_eq!(homes(&m), (false, true), "awake again");
        });
    }
}

/// Due between HLT and sleep, at any point: the vCPU does not sleep.
#[test]
fn due_on_the_way_to_sleep() {
    for ns in 0..120 {
        both(&[Op::Deadline(ns), hlt(), Op::Nop, Op::Nop], |mut m| {
            m.go();
            assert_eq!((m.events(), homes(&m)), (vec![TIMER], (false, false)), "{ns}");
        });
    }
}

/// Something else ends HLT: the timer goes back to the CPU, and the host's is cancelled. Left armed on both it would exit twice.
#[test]
fn back_to_the_cpu() {
    both(&[Op::Deadline(5_000_000), hlt(), Op::Nop, Op::Nop], |mut m| {
        m.later(20, Env::Irq(0x41));
        m.go();
        assert_eq!((m.events(), homes(&m)), (vec![Event::Interrupt(0x41)], (true, false)));
        assert!(m.w.blocks.get() > 0);
        m.then([time(6_000_000), Op::Nop, Op::Nop]);
        assert_eq!((m.events(), homes(&m)), (vec![TIMER], (false, false)));
    });
}

/// Too far for the counter: it ends before, counts anew, and the vector comes once and at its time. The host's timer, which costs
/// more than all exits of other timers together, is not touched.
#[test]
fn too_far_for_the_counter() {
    let far = TIMER_LIMIT / TICKS * 3 + 1_000_000;
    both(&[Op::Deadline(far), Op::Nop], |mut m| {
        m.go();
        for _ in 0..3 {
            assert_eq!((m.events(), homes(&m)), (vec![], (true, false)));
            m.then([time(TIMER_LIMIT / TICKS), Op::Nop, Op::Nop]);
        }
        assert_eq!((m.events(), homes(&m)), (vec![], (true, false)));
        m.then([time(1_000_000), Op::Nop, Op::Nop]);
        assert_eq!((m.events(), homes(&m)), (vec![TIMER], (false, false)));
    });
}

/// The host has it, as CPUs' TSCs differ. The CPU's counter, which runs out for nobody, must not touch the host's timer:
/// cancelling may wait, and a slice does not.
#[test]
fn on_the_host() {
    const AT: u64 = 1_000_000;
    for later in [0, AT / 2, AT + 1000] {
        both(&[Op::Deadline(AT), Op::Nop], |mut m| {
            m.w.unsteady.set(true);
            m.go();
            assert_eq!(homes(&m), (false, true));
            m.then([time(later), Op::Event(Exit::Timer), Op::Nop, Op::Nop]);
            m.then([time(AT), Op::Nop]);
            m.then([Op::Nop, Op::Nop]);
            assert_eq!((m.events(), homes(&m)), (vec![TIMER], (false, false)), "{later}");
        });
    }
}

/// Periodic, in the CPU, and the thread comes back after many periods: one interrupt, and the next on the old grid.
#[test]
fn periodic_after_a_long_break() {
    const PERIOD: u64 = 1_000_000;
    let set = |at: u32, v: u32| store(APIC + u64::from(at), v);
    let lvtt = lvt::TIMER_PERIODIC | u32::from(TIMER_VECTOR);
    let ops = [set(reg::LVT_TIMER, lvtt), set(reg::TDCR, 0xb), set(reg::TMICT, PERIOD as u32), Op::Nop];
    both(&ops, |mut m| {
        m.w.timer_arms.set(100);
        m.w.timer_last.set(u64::MAX);
        m.go();
        let Armed::AtNs(first) = m.v.lapic.armed() else { panic!() };
        assert_eq!(homes(&m), (true, false));
        m.happen(Env::Time(10 * PERIOD + PERIOD / 2));
        m.then([Op::Nop, Op::Nop, Op::Nop]);
        assert_eq!((m.events(), homes(&m)), (vec![TIMER], (true, false)));
        let Armed::AtNs(next) = m.v.lapic.armed() else { panic!() };
        assert_eq!((next - first) % PERIOD, 0);
        assert!(next > m.w.ns.get() && next - m.w.ns.get() <= PERIOD);
        m.then([time(PERIOD), Op::Nop, time(PERIOD), Op::Nop]);
        assert_eq!(m.events(), [TIMER, TIMER]);
        // And through sleep.
        m.then([hlt(), Op::Nop, hlt(), Op::Nop]);
        assert_eq!((m.events(), homes(&m)), (vec![TIMER, TIMER], (true, false)));
    });
}

/// The guest moves its TSC while a deadline is armed in the CPU: the moment moves with it.
#[test]
fn tsc_moves_under_the_timer() {
    both(&[Op::Deadline(5_000_000), Op::Nop], |mut m| {
        m.go();
        let deadline = m.w.timer_last.get();
        m.then([wrmsr(0x10, deadline - 10_000), Op::Nop]);
        let left = m.w.cpu_timer.get().unwrap() - m.w.ns.get() * TICKS;
        assert!(left <= 10_000, "{left}");
        assert_eq!(m.events(), []);
        m.then([time(6000), Op::Nop]);
        assert_eq!((m.events(), homes(&m)), (vec![TIMER], (false, false)));
    });
}

/// INIT disarms: nothing is left to run out, in the CPU or in the host.
#[test]
fn init_cancels() {
    both(&[Op::Deadline(5_000_000), Op::Nop], |mut m| {
        m.go();
        assert_eq!(homes(&m), (true, false));
        m.v.b.forget();
        m.happen(Env::Init);
        m.go();
        assert_eq!(homes(&m), (false, false));
        m.happen(Env::Time(10_000_000));
        m.then([Op::Nop, Op::Nop]);
        assert_eq!(m.events(), []);
    });
}

/// KVM_RUN left, the deadline passes, KVM_RUN again: one interrupt with the first entry; asleep or not. Nothing of ours ran
/// meanwhile but, for the sleeper, the host's timer.
#[test]
fn due_in_user_space() {
    both(&[Op::Deadline(10_000), Op::Nop], |mut m| {
        m.go();
        m.happen(Env::Time(1_000_000));
        m.then([Op::Nop, Op::Nop]);
        assert_eq!((m.events(), homes(&m)), (vec![TIMER], (false, false)));
    });
    for points in 0..24 {
        both(&[Op::Deadline(10_000), hlt(), Op::Nop], |mut m| {
            m.later(points, Env::Signal);
            m.run();
            m.w.signal.set(false);
            m.happen(Env::Time(1_000_000));
            m.go();
            m.then([Op::Nop, Op::Nop]);
            assert_eq!((m.events(), homes(&m)), (vec![TIMER], (false, false)), "{points}");
        });
    }
}

/// The timer runs out while an event's delivery is interrupted: both arrive.
#[test]
fn runs_out_in_a_delivery() {
    both(&[Op::Deadline(5000), Op::World(Env::Irq(0x41)), Op::Nop, Op::Nop], |mut m| {
        m.v.b.breaks.push_back(Some(Exit::Timer));
        m.go();
        m.then([time(10_000), Op::Nop, Op::Nop]);
        assert_eq!(m.events(), [Event::Interrupt(0x41), TIMER]);
    });
}

/// Whatever the switches say, the deadline is met; a switch that moves is seen at the next entry, and what is off counts nothing.
#[test]
fn switches_of_the_fast_paths() {
    use exitless_vcpu::chooser::Mechanism::{DeadlineFastpath, TimerFastpath};
    use exitless_vcpu::chooser::Set;
    both(&[], |mut m| {
        let mut seen = |on: Set| {
            let switch = Op::World(Env::Switch(on.0));
            m.then([switch, Op::Deadline(20_000), time(21_000), Op::Nop, Op::Nop]);
            assert_eq!(m.events(), vec![TIMER]);
            assert_eq!(m.sh.active(TimerFastpath), on.has(TimerFastpath));
            let deeds = |x| m.sh.stats.deeds(x);
            (deeds(DeadlineFastpath).hits.get(), deeds(TimerFastpath).hits.get())
        };
        assert_eq!(seen(Set::NONE), (0, 0));
        assert_eq!(seen(Set::ALL.put(TimerFastpath, false)), (1, 0));
        assert_eq!(seen(Set::ALL), (2, 1));
    });
}

/// A CPU without a timer, as AMD's: a deadline and its end, one that has passed too, without leaving the slice; where nothing tells the
/// next RIP, with the instruction read from memory. The fake host refuses whatever could sleep there.
#[test]
fn on_the_host_in_a_slice() {
    let far = 1 << 40;
    let mut m = Machine::new([wrmsr(DEADLINE, far), wrmsr(DEADLINE, far + 1), wrmsr(DEADLINE, 0), Op::Nop]);
    m.go();
    assert_eq!((homes(&m), m.sh.stats.fast.get()), ((false, false), 3));
    m.w.timer_arms.set(1);
    m.then([wrmsr(DEADLINE, 1), Op::Nop]);
    assert_eq!((m.events(), homes(&m), m.sh.stats.fast.get()), (vec![TIMER], (false, false), 4));
}

/// Deadlines that move away leave the host's timer where it is queued, some time away; it asks when it fires, is queued for the rest,
/// and the guest has its interrupt once, at its deadline. A nearer one moves it.
#[test]
fn queued_for_an_earlier_one() {
    const MS: u64 = 1_000_000;
    let mut m = Machine::new([Op::Deadline(10 * MS), Op::Deadline(20 * MS), Op::Nop]);
    let begin = m.w.ns.get();
    m.go();
    let queued = m.w.timer.get().unwrap() - begin;
    assert!((10 * MS..10 * MS + 100).contains(&queued), "{queued}");
    m.then([time(11 * MS), Op::Nop, Op::Nop]);
    m.then([Op::Nop, Op::Nop]);
    assert_eq!((m.events(), homes(&m)), (vec![], (false, true)));
    let queued = m.w.timer.get().unwrap() - begin;
    assert!((20 * MS..20 * MS + 100).contains(&queued), "{queued}");
    m.then([Op::Deadline(3 * MS), Op::Nop]);
    assert!(m.w.timer.get().unwrap() < begin + 15 * MS);
    m.then([time(4 * MS), Op::Nop, Op::Nop]);
    m.then([Op::Nop, Op::Nop]);
    assert_eq!((m.events(), homes(&m)), (vec![TIMER], (false, false)));
}

/// Disarmed while it is queued far away: it fires for nobody, nobody is asked, and the next deadline behind that is queued anew.
#[test]
fn queued_for_nobody() {
    const MS: u64 = 1_000_000;
    let mut m = Machine::new([Op::Deadline(10 * MS), wrmsr(DEADLINE, 0), time(11 * MS), Op::Nop, Op::Nop]);
    m.go();
    assert_eq!((m.events(), homes(&m), m.w.timer.get()), (vec![], (false, false), None));
    m.w.timer_owed.set(false);
    m.w.timer_arms.set(0);
    m.then([Op::Deadline(10 * MS), hlt(), Op::Nop, Op::Nop]);
    assert_eq!((m.events(), homes(&m)), (vec![TIMER], (false, false)));
}

/// A vCPU that sleeps, wakes and sleeps again, its deadline moving away: the CPU has it while it runs, and the host's timer, queued
/// once, is neither stopped nor started for that.
#[test]
fn one_queue_for_many_sleeps() {
    const MS: u64 = 1_000_000;
    both(&[Op::Deadline(50 * MS), hlt(), Op::Nop], |mut m| {
        m.v.b.handlers = true;
        m.later(12, Env::Irq(0x41));
        m.go();
        for _ in 0..4 {
            assert_eq!(m.events(), [Event::Interrupt(0x41)]);
            assert_eq!((homes(&m), m.w.timer_starts.get()), ((true, false), 1));
            m.later(12, Env::Irq(0x41));
            m.then([Op::Deadline(50 * MS), hlt(), Op::Nop]);
        }
    });
}

/// A VM that idles without exits, on a host with CPUs that keep house for others.
fn posted(ops: &[Op], check: impl Fn(Machine)) {
    for x2apic in [false, true] {
        let m = Machine::virtual_apic(x2apic, ops.iter().cloned());
        m.w.idles_in_guest.set(true);
        m.w.housekeeping.set(true);
        check(m);
    }
}

/// It expires on a housekeeping CPU and is posted into the running guest: no exit for it, one vector, and the MSR reads 0 then. Whoever
/// leaves for user space meanwhile leaves it with the host's timer that asks.
#[test]
fn posted_into_the_guest() {
    posted(&[Op::Deadline(10_000), Op::Nop], |mut m| {
        m.go();
        assert_eq!((homes(&m), m.w.posts.get()), ((false, true), 0));
        assert_eq!(m.w.cpu_timer.get(), None);
        let slices = m.sh.stats.irq_exits.get();
        m.then([Op::Nop, time(20_000), Op::Nop, Op::Nop, Op::Nop]);
        assert_eq!((m.events(), m.w.posts.get()), (vec![TIMER], 1));
        // The one at the script's end.
        assert_eq!(m.sh.stats.irq_exits.get(), slices + 1, "an exit for the host's interrupt");
        assert_eq!(m.v.b.apic.virtually, [TIMER_VECTOR]);
        assert_eq!((homes(&m), m.v.lapic.armed()), ((false, false), Armed::None));
    });
}

/// Rewritten, disarmed, masked and unmasked, its vector changed, in each order with its end: what is armed last comes once, what was
/// replaced in time does not.
#[test]
fn posted_and_rewritten() {
    posted(&[Op::Deadline(10_000), Op::Deadline(500_000), time(20_000), Op::Nop], |mut m| {
        m.go();
        assert_eq!((m.events(), m.w.posts.get()), (vec![], 0));
        m.then([time(600_000), Op::Nop, Op::Nop]);
        assert_eq!((m.events(), m.w.posts.get()), (vec![TIMER], 1));
        m.then([Op::Deadline(10_000), wrmsr(DEADLINE, 0), time(20_000), Op::Nop, Op::Nop]);
        assert_eq!((m.events(), m.w.posts.get(), homes(&m)), (vec![], 1, (false, false)));
    });
}

/// A VM that sleeps in the host keeps the CPU's timer, although the host isolates CPUs: that it does so for others, packet processing
/// say, made every VM there lose the CPU's timer and its fast paths once.
#[test]
fn isolated_cpus_alone_change_nothing() {
    for idles in [false, true] {
        let mut m =
            Machine::virtual_apic(true, [Op::Deadline(10_000), time(20_000), Op::Nop, Op::Nop, Op::Nop]);
        m.w.housekeeping.set(true);
        m.w.idles_in_guest.set(idles);
        m.go();
        assert_eq!((m.events(), m.w.posts.get() == 1), (vec![TIMER], idles));
        assert_eq!(
            m.sh.stats.deeds(exitless_vcpu::chooser::Mechanism::TimerFastpath).hits.get() == 1,
            !idles
        );
    }
}

/// The switch moves while a deadline is armed, at any point on the way to its end: one vector, whoever has it.
#[test]
fn posting_switched_under_an_armed_timer() {
    use exitless_vcpu::chooser::{Mechanism::PostedTimer, Set};
    let off = Set::ALL.put(PostedTimer, false).0;
    for first in 0..40 {
        for second in [0, 3, 9] {
            posted(&[Op::Deadline(100), Op::Nop, Op::Nop, Op::Nop, Op::Nop, Op::Nop, Op::Nop], |mut m| {
                m.later(first, Env::Switch(off));
                m.later(second, Env::Switch(Set::ALL.0));
                m.later(second, Env::Switch(off));
                m.go();
                m.finish();
                m.happen(Env::Time(1000));
                m.then([Op::Nop, Op::Nop, Op::Nop]);
                assert_eq!((m.events(), homes(&m)), (vec![TIMER], (false, false)), "{first} {second}");
            });
        }
    }
}

/// INIT while it is armed: nothing comes behind it.
#[test]
fn posted_and_reset() {
    posted(&[Op::Deadline(5_000_000), Op::Nop], |mut m| {
        m.later(4, Env::Init);
        m.v.b.forget();
        m.go();
        m.finish();
        m.happen(Env::Time(10_000_000));
        m.then([Op::Nop, Op::Nop]);
        assert_eq!((m.events(), m.w.posts.get(), homes(&m)), (vec![], 0, (false, false)));
    });
}

/// Where HLT exits all the same (only MWAIT does not): who sleeps is woken by what is posted, as by any interrupt.
#[test]
fn posted_wakes_who_sleeps() {
    posted(&[Op::Deadline(10_000), hlt(), Op::Nop, Op::Nop], |mut m| {
        m.go();
        assert_eq!((m.events(), m.w.posts.get(), m.halted()), (vec![TIMER], 1, false));
    });
}

/// The thread moves to another CPU: the timer stays with whoever keeps house, and finds the vCPU there. At any point on the way.
#[test]
fn posted_to_who_has_moved() {
    posted(
        &[Op::Deadline(10_000), Op::Nop, Op::World(Env::Move(2)), Op::Nop, time(20_000), Op::Nop, Op::Nop],
        |mut m| {
            m.go();
            assert_eq!((m.events(), m.w.posts.get(), m.w.timer_starts.get()), (vec![TIMER], 1, 1));
        },
    );
    // In user space, with the timer that asks.
    posted(&[Op::Deadline(10_000_000), Op::Nop], |mut m| {
        m.go();
        m.happen(Env::Move(2));
        m.then([Op::Nop, Op::Nop]);
        assert_eq!((m.w.timer_cpu.get(), m.w.timer_starts.get()), (HOUSEKEEPER, 1));
    });
    for first in 0..30 {
        posted(&[Op::Deadline(2000), Op::Nop, Op::Nop, time(3000), Op::Nop, Op::Nop], |mut m| {
            m.later(first, Env::Move(2));
            m.later(2, Env::Move(1));
            m.go();
            m.finish();
            m.then([Op::Nop, Op::Nop]);
            assert_eq!(
                (m.events(), m.w.timer.get(), homes(&m)),
                (vec![TIMER], None, (false, false)),
                "{first}"
            );
        });
    }
}

/// The CPU delivers no interrupts for a while, as a debugger has them wait: the CPU's own timer takes over what is posted, and gives it
/// back. One vector, whichever of both it comes from.
#[test]
fn posted_without_delivery() {
    use exitless_kvm_abi::{KVM_GUESTDBG_BLOCKIRQ, KVM_GUESTDBG_ENABLE};
    for over in [false, true] {
        posted(&[Op::Deadline(50_000), Op::Nop], |mut m| {
            m.go();
            m.then([Op::Nop]);
            m.v.b.interrupts_blocked = true;
            m.v.set_guest_debug(KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_BLOCKIRQ, [0; 8]).unwrap();
            m.then([Op::Nop, time(if over { 60_000 } else { 100 }), Op::Nop]);
            assert_eq!((m.events(), m.w.posts.get()), (vec![], 0));
            m.v.b.interrupts_blocked = false;
            m.v.set_guest_debug(0, [0; 8]).unwrap();
            m.then([Op::Nop, time(60_000), Op::Nop, Op::Nop, Op::Nop]);
            assert_eq!((m.events(), m.w.posts.get()), (vec![TIMER], u32::from(!over)));
            assert_eq!(homes(&m), (false, false));
        });
    }
}

/// LVTT is masked while the timer is on its way: what comes before that comes, nothing behind it does. With another vector the new one
/// is posted.
#[test]
fn posted_and_lvtt_written() {
    let lvtt = u64::from(TIMER_VECTOR) | u64::from(lvt::TIMER_DEADLINE);
    let machine = |at, new: u64| {
        let m = Machine::virtual_apic(true, [Op::Deadline(2000), Op::Nop, time(at), wrmsr(0x832, new)]);
        m.w.idles_in_guest.set(true);
        m.w.housekeeping.set(true);
        m.w.timer_owed.set(false);
        m
    };
    let mut came = [0, 0];
    for at in (1800..2100).step_by(10) {
        let mut m = machine(at, lvtt | u64::from(lvt::MASKED));
        m.go();
        m.w.timer_owed.set(false);
        m.then([time(3000), Op::Nop, Op::Nop, Op::Nop]);
        let posted = m.w.posts.get() as usize;
        assert_eq!(m.events(), vec![TIMER; posted], "{at}");
        came[posted] += 1;
    }
    assert!(came[0] > 0 && came[1] > 0, "{came:?}");
    let mut m = machine(100, lvtt & !0xff | 0x61);
    m.w.timer_vector.set(0x61);
    m.go();
    m.then([time(3000), Op::Nop, Op::Nop, Op::Nop]);
    assert_eq!((m.events(), m.w.posts.get()), (vec![Event::Interrupt(0x61)], 1));
}

/// Deadlines that move away, and exits to user space meanwhile, leave the timer where it is queued, on the other CPU; it comes there
/// early, queues itself for the rest, and the guest hears of nothing but its deadline. A nearer one is queued anew.
#[test]
fn posted_from_an_earlier_one() {
    const MS: u64 = 1_000_000;
    posted(&[Op::Deadline(10 * MS), Op::Deadline(20 * MS), Op::Nop], |mut m| {
        m.go();
        m.then([Op::Nop, Op::Deadline(30 * MS), Op::Nop]);
        assert_eq!((m.w.timer_starts.get(), homes(&m)), (1, (false, true)));
        let slices = m.sh.stats.irq_exits.get();
        m.then([Op::Nop, time(11 * MS), Op::Nop, time(18 * MS), Op::Nop, time(2 * MS), Op::Nop, Op::Nop]);
        assert_eq!((m.events(), m.w.posts.get(), m.w.timer_starts.get()), (vec![TIMER], 1, 1));
        // The one at the script's end.
        assert_eq!(m.sh.stats.irq_exits.get(), slices + 1, "an exit for the host's interrupt");
        m.then([Op::Deadline(20 * MS), Op::Deadline(10 * MS), Op::Nop]);
        assert_eq!(m.w.timer_starts.get(), 3);
    });
}

/// The host sleeps with its TSC counting on: its timer's clock stood still, so what is queued would come late by all of that; the deadline
/// is met all the same, by the timer that asks and by the one that posts.
#[test]
fn the_host_slept() {
    const MS: u64 = 1_000_000;
    let slept = |mut m: Machine| {
        let begin = m.w.ns.get();
        m.go();
        let queued = m.w.timer.get().unwrap();
        m.w.timer.set(Some(queued + 1000 * MS));
        m.happen(Env::Ask(Request::SLEPT));
        m.then([Op::Nop]);
        let queued = m.w.timer.get().unwrap() - begin;
        assert!((10 * MS..10 * MS + 1000).contains(&queued), "{queued}");
        m.then([time(11 * MS), Op::Nop, Op::Nop]);
        m.then([Op::Nop, Op::Nop]);
        assert_eq!((m.events(), homes(&m)), (vec![TIMER], (false, false)));
    };
    slept(Machine::new([Op::Deadline(10 * MS), Op::Nop]));
    posted(&[Op::Deadline(10 * MS), Op::Nop], slept);
}

/// A guest that moves its deadline to just ahead again and again holds the host's interrupt for the patience in all, not for as long as
/// it does so.
#[test]
fn patience_has_an_end() {
    use exitless_vcpu::timer::{Due, host_fired};
    use std::cell::Cell;
    const PATIENCE: u64 = 1000;
    let m = Machine::new([]);
    let (now, again) = (Cell::new(0), Cell::new(0));
    m.sh.timer.give(Home::Posted(500), true);
    let tsc = || {
        now.set(now.get() + 10);
        assert!(now.get() < 10 * PATIENCE, "it waits and waits");
        m.sh.timer.give(Home::Posted(now.get() + 500), true);
        now.get()
    };
    let (due, _) = host_fired(&m.sh, tsc, PATIENCE, |left| again.set(left));
    assert_eq!((due, now.get() <= PATIENCE), (Due::Nothing, true));
    assert!((500..=516).contains(&again.get()), "{}", again.get());
}
