//! Halting, waking, INIT and SIPI, signals, death, moves between CPUs.

use crate::fake::guest::*;
use crate::fake::machine::TIMER_VECTOR;
use crate::fake::os::HVA;
use crate::fake::{Env, Machine, Op};
use exitless_vcpu::backend::{Event, Exit};
use exitless_vcpu::shared::mp;
use exitless_vcpu::{Request, RunExit};
use exitless_x86::regs::{SegReg, rflags};

const DEADLINE: u32 = 0x6e0;

/// HLT sleeps until an interrupt comes and the guest goes on behind it.
#[test]
fn halt_until_interrupt() {
    let mut m = Machine::new([hlt(), Op::Nop]);
    m.later(30, Env::Irq(0x41));
    m.go();
    assert_eq!(m.events(), [Event::Interrupt(0x41)]);
    assert!(m.w.blocks.get() > 0);
    assert_eq!(m.sh.stats.halt_wakeup.get(), 1);
}

/// HLT with interrupts closed sleeps through interrupts; an NMI wakes it.
#[test]
fn halt_until_nmi() {
    let mut m = Machine::new([Op::Cli, hlt(), Op::Nop]);
    m.later(30, Env::Irq(0x41));
    m.later(30, Env::Nmi);
    m.go();
    assert_eq!(m.events(), [Event::Nmi]);
    assert_eq!(m.v.mp_state, mp::RUNNABLE);
}

/// STI; HLT with an NMI or an interrupt already there: HLT ends at once and the event is delivered behind it.
#[test]
fn halt_in_the_shadow() {
    for e in [Env::Nmi, Env::Irq(0x41)] {
        let mut m = Machine::new([Op::Cli, Op::Sti, Op::World(e), hlt(), Op::Nop, Op::Nop]);
        m.go();
        assert_eq!(m.events().len(), 1, "{e:?}");
        assert_eq!(m.w.blocks.get(), 0);
    }
}

/// The TSC deadline wakes the halted guest, not a tick before.
#[test]
fn halt_until_deadline() {
    let mut m = Machine::new([]);
    let deadline = (m.w.ns.get() + 50_000) * 2 + m.v.tsc_offset;
    m.w.timer_not_before.set(deadline);
    m.w.timer_arms.set(1);
    m.then([wrmsr(DEADLINE, deadline), hlt(), Op::Nop]);
    assert_eq!(m.events(), [Event::Interrupt(TIMER_VECTOR)]);
    assert_eq!(m.w.timer.get(), None);
}

/// A deadline in the past or now fires with the next entry; 0 disarms.
#[test]
fn deadline_past_now_and_never() {
    for deadline in [1, 2_000_000] {
        let mut m = Machine::new([wrmsr(DEADLINE, deadline), Op::Nop]);
        m.w.timer_arms.set(1);
        m.go();
        assert_eq!(m.events(), [Event::Interrupt(TIMER_VECTOR)], "{deadline}");
    }
    let mut m = Machine::new([wrmsr(DEADLINE, 1 << 40), wrmsr(DEADLINE, 0), Op::Nop]);
    m.go();
    assert!(!m.sh.timer.is_host());
    m.happen(Env::Time(1 << 41));
    m.then([Op::Nop]);
    assert_eq!(m.events(), []);
}

/// The host's timer fires early (its clock is not the TSC): nothing reaches the guest, the rest of the time is armed.
#[test]
fn host_timer_early() {
    let mut m = Machine::new([wrmsr(DEADLINE, 1 << 40), Op::World(Env::Ask(Request::TIMER)), Op::Nop]);
    m.go();
    assert_eq!(m.events(), []);
    assert!(m.w.timer.get().is_some_and(|t| t >= (1 << 39)));
}

/// The guest moves its TSC: the armed deadline moves in real time.
#[test]
fn tsc_write_moves_the_deadline() {
    let mut m = Machine::new([wrmsr(DEADLINE, 1 << 40), wrmsr(0x10, (1 << 40) - 1000), Op::Nop]);
    m.go();
    let left = m.w.timer.get().unwrap_or(0).saturating_sub(m.w.ns.get());
    assert!(left <= 500, "{left}");
    assert_eq!(m.v.tsc_offset, m.v.b.tsc_offset);
}

/// An AP: waits, ignores SIPI before INIT, starts at the page of the SIPI after it, ignores the next SIPI.
#[test]
fn startup_of_an_ap() {
    let mut m = Machine::power_up(false, true);
    assert_eq!(m.v.mp_state, mp::UNINITIALIZED);
    m.happen(Env::Sipi(9));
    assert_eq!(m.go(), RunExit::Interrupted);
    assert_eq!((m.v.mp_state, m.v.b.entries), (mp::UNINITIALIZED, 0));
    m.happen(Env::Init);
    m.go();
    assert_eq!(m.v.mp_state, mp::INIT_RECEIVED);
    m.happen(Env::Sipi(0x9a));
    m.go();
    assert_eq!((m.v.mp_state, m.v.b.rip), (mp::RUNNABLE, 0));
    use exitless_vcpu::backend::Backend;
    let cs = m.v.b.segment(SegReg::Cs);
    assert_eq!((cs.selector, cs.base), (0x9a00, 0x9a000));
    m.v.b.rip = 0x55;
    m.happen(Env::Sipi(1));
    m.go();
    assert_eq!(m.v.b.rip, 0x55);
}

/// INIT and SIPI before the thread looks: both count, in order.
#[test]
fn init_and_sipi_at_once() {
    let mut m = Machine::power_up(false, true);
    m.happen(Env::Init);
    m.happen(Env::Sipi(4));
    m.go();
    assert_eq!(m.v.mp_state, mp::RUNNABLE);
}

/// INIT of the boot CPU: table 10-1, running at the reset vector; caches stay as they were.
#[test]
fn init_of_the_boot_cpu() {
    let mut m = Machine::new([hlt()]);
    m.v.b.cr0 |= 1 << 30;
    m.go();
    assert!(m.halted());
    m.w.tpr.set(0);
    m.v.b.forget();
    m.happen(Env::Init);
    m.go();
    use exitless_vcpu::backend::Backend;
    assert_eq!((m.v.mp_state, m.v.b.rip, m.v.b.cr0), (mp::RUNNABLE, 0xfff0, 1 << 30 | 0x10));
    assert_eq!(m.v.b.segment(SegReg::Cs).base, 0xffff_0000);
    assert_eq!(m.w.moved_apic.get(), 1);
    assert!(m.v.b.flushes > 0);
}

/// INIT hits after an event was chosen and before it could enter: the event dies with the old state.
#[test]
fn init_forgets_the_chosen_event() {
    for (points, e) in (0..16).flat_map(|p| [(p, Env::Irq(0x41)), (p, Env::Nmi)]) {
        let mut m = Machine::new([Op::Nop, Op::Nop, Op::Nop]);
        m.v.b.handlers = false;
        m.happen(e);
        m.later(points, Env::Init);
        m.go();
        for (_, e) in m.w.schedule.take() {
            m.happen(e);
        }
        m.v.b.forget();
        m.go();
        assert_eq!(m.w.moved_apic.get(), 1);
        assert!(!m.v.b.nmi_masked);
        assert_eq!((m.v.b.event, m.v.injecting), (None, None), "point {points}, {e:?}");
        assert!(m.events().len() < 2);
    }
}

/// INIT ends what the guest had told the host about its memory: the new owner of the CPU did not.
#[test]
fn init_ends_paravirtual_features() {
    let mut m = Machine::new([]);
    m.v.pv.system_time = 0x4_0001;
    m.v.pv.steal = 0x4_1001;
    m.enable_pv_eoi();
    m.v.b.forget();
    m.happen(Env::Init);
    m.go();
    assert_eq!((m.v.pv.system_time, m.v.pv.steal, m.v.pv.eoi), (0, 0, 0));
    m.w.ram.borrow_mut().fill(0x5a);
    m.happen(Env::Ask(Request::CLOCK));
    m.happen(Env::Ask(Request::STEAL));
    m.go();
    assert_eq!((m.w.u32_at(0x4_0000), m.w.u32_at(0x4_1000)), (0x5a5a_5a5a, 0x5a5a_5a5a));
}

/// Without controllers in the kernel every vCPU runs from the start, and HLT is user space's.
#[test]
fn halt_without_irqchip() {
    let m = Machine::power_up(false, false);
    assert_eq!(m.v.mp_state, mp::RUNNABLE);
    let mut m = Machine::without_irqchip([hlt(), Op::Nop]);
    assert_eq!(m.go(), RunExit::Hlt);
    assert_eq!((m.v.mp_state, m.v.b.rip), (mp::RUNNABLE, 0x1001));
    m.v.user_interrupt = Some(0x20);
    m.go();
    assert_eq!(m.events(), [Event::Interrupt(0x20)]);
}

/// A dead VM: every run fails, before the guest is entered.
#[test]
fn dead() {
    let mut m = Machine::new([Op::Nop]);
    m.happen(Env::Ask(Request::DEAD));
    for _ in 0..3 {
        assert_eq!(m.run(), RunExit::Error(-5));
    }
    assert_eq!(m.v.b.entries, 0);
}

/// Exits that end the run, with what they carry.
#[test]
fn exits_to_user_space() {
    for (exit, run) in [
        (Exit::Shutdown, RunExit::Shutdown),
        (Exit::FailEntry(!0), RunExit::FailEntry(!0)),
        (Exit::Disabled, RunExit::Error(-5)),
    ] {
        let mut m = Machine::new([Op::Event(exit)]);
        assert_eq!(m.run(), run);
    }
    let mut m = Machine::new([Op::Event(Exit::Unknown(0x99))]);
    let RunExit::Internal { suberror: 4, data, .. } = m.run() else { panic!() };
    assert_eq!(data[0], 0x99);
}

/// A flush asked at any moment is done before the guest runs on: never on old translations (asserted at each operation).
#[test]
fn flush_at_any_moment() {
    for points in 0..40 {
        let mut m = Machine::new([Op::Nop, cpuid(0, 0), Op::Nop, wbinvd(), out(0x20, 1, 1), Op::Nop]);
        m.later(points, Env::TlbFlush);
        m.go();
        m.finish();
        assert!(!m.w.flush_owed.get());
    }
}

/// The thread moves between slices at any moment: each entry has the part of the CPU it runs on (asserted there).
#[test]
fn moves() {
    for points in 0..40 {
        let mut m = Machine::new([Op::Nop, cpuid(0, 0), wbinvd(), input(0x80, 1), Op::Nop]);
        m.later(points, Env::Move(3));
        m.later(3, Env::Move(1));
        m.go();
        m.finish();
        assert_eq!(m.w.cpu.get(), 1);
    }
}

/// QUIESCE gives up the lock once and goes on.
#[test]
fn quiesce() {
    let mut m = Machine::new([Op::Nop, Op::World(Env::Ask(Request::QUIESCE)), Op::Nop]);
    m.go();
    assert_eq!(m.w.quiesced.get(), 1);
}

/// A signal at any moment returns EINTR without harm; work that is none does not leave.
#[test]
fn signals_and_work() {
    for points in 0..30 {
        let mut m = Machine::new([Op::Nop, wbinvd(), Op::Nop]);
        m.later(points, Env::Signal);
        assert_eq!(m.go(), RunExit::Interrupted);
        m.then([Op::Nop]);
        assert!(m.v.b.idle());
        let mut m = Machine::new([Op::Nop, wbinvd(), Op::Nop]);
        m.later(points, Env::Work);
        assert_eq!(m.run(), RunExit::Interrupted);
        assert!(m.w.script_over.get(), "left early for work that is done in the kernel");
    }
}

/// A page with a memory error: user space gets the signal with the page's address, and the guest none of it. Whether user space
/// mends it or only looks away, the guest goes on where it was.
#[test]
fn memory_error() {
    let mut m = Machine::new([Op::Nop, Op::Ram(0x9123), Op::Nop]);
    m.w.poisoned.set(Some(9));
    for told in 1..=3 {
        assert_eq!(m.run(), RunExit::Interrupted);
        assert_eq!(*m.w.memory_errors.borrow(), vec![HVA + 0x9000; told]);
        m.w.signal.set(false);
    }
    m.w.poisoned.set(None);
    m.go();
    assert_eq!(m.w.memory_errors.borrow().len(), 3);
    assert_eq!(m.events(), []);
}

/// Single-stepping over HLT: the #DB wakes it.
#[test]
fn step_over_halt() {
    let mut m = Machine::new([hlt(), Op::Cli]);
    m.v.b.rflags |= rflags::TF;
    m.go();
    assert!(matches!(m.events()[..], [Event::Exception(_)]));
}
