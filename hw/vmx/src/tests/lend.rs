//! The CPU's APIC timer in the guest's hands, register by register.

use super::fake::{Bench, DEADLINE, Fake, LVTT, negotiate, skylake};
use crate::machine::{Machine, host_timer, switched};
use crate::{PerCpu, msr_bitmap};
use exitless_vcpu::backend::{ApicKind, Backend, Exit, NoSender, Sender, Sent};
use exitless_vcpu::timer::Found;
use exitless_x86::regs::Gpr;
use exitless_x86::vmx::caps::msr;
use exitless_x86::vmx::control::{interruption as i, pin, secondary};
use exitless_x86::vmx::field as f;
use std::collections::BTreeSet;

/// The host's vector.
const VECTOR: u8 = 0xec;
/// Steps of this CPU's preemption timer, ticks.
const STEP: u64 = 128;

/// A vCPU whose interrupts the CPU delivers, at TSC 0x1000 with the host's tick due `ahead` later.
fn bench(ahead: u64) -> Bench {
    let mut msrs = skylake();
    *msrs.get_mut(&msr::PROCBASED_CTLS2).unwrap() |=
        u64::from(secondary::APIC_REGISTER_VIRTUALIZATION | secondary::VIRTUAL_INTERRUPT_DELIVERY) << 32;
    let mut b = Bench::with(&negotiate(&msrs).unwrap());
    b.load();
    b.v.set_apic(ApicKind::X2Apic);
    b.cpu.lvtt.set(host_timer::DEADLINE | u32::from(VECTOR));
    b.cpu.tsc.set(0x1000);
    b.m.wrmsr(DEADLINE, 0x1000 + ahead);
    b.run(10, 0);
    b.cpu.clear_logs();
    b
}

/// The guest runs for some ticks, and what it does ends with an exit for an interrupt of this vector; 0: for CPUID.
fn runs(b: &mut Bench, ticks: u64, writes: Option<u64>, vector: u8) -> Exit {
    b.cpu.next(move |cpu, run| {
        assert_eq!(cpu.field(f::MSR_BITMAPS) & 0xf000, 0x4000, "open only while it is lent");
        if let Some(deadline) = writes {
            cpu.msrs.borrow_mut().insert(DEADLINE, deadline);
        }
        cpu.tsc.set(cpu.tsc.get() + ticks);
        cpu.tick();
        let info = i::VALID | i::TYPE_EXTERNAL | u32::from(vector);
        cpu.store(f::EXIT_INTERRUPTION_INFO, info);
        cpu.requested.set(cpu.requested.get() && vector != VECTOR);
        (run.reason, run.interruption) = (if vector == 0 { 10 } else { 1 }, 0);
        switched::EXIT
    });
    b.v.enter(b.percpu, false, || NoSender)
}

/// A slice: two reads, two writes, however many exits; the bitmaps are written where that changes.
#[test]
fn a_slice_and_what_it_costs() {
    let mut b = bench(10 * STEP);
    b.v.begin(b.percpu);
    assert!(b.v.lend_timer(b.percpu, 0x1200, true) && b.v.timer_lent(b.percpu) && b.cpu.lent.get());
    assert_eq!(b.cpu.msr(DEADLINE), 0x1200);
    let first = b.cpu.writes.borrow().len();
    assert_eq!(runs(&mut b, 10, None, 0), Exit::Cpuid);
    assert_ne!(b.cpu.field(f::PIN_CONTROLS) & pin::PREEMPTION_TIMER, 0);
    assert_eq!(b.cpu.field(f::PREEMPTION_TIMER_VALUE), 10, "the host's, while the guest has the other");
    assert!(b.cpu.writes.borrow().len() > first);
    b.cpu.writes.borrow_mut().clear();
    for n in 1..5 {
        assert_eq!(runs(&mut b, 10, Some(0x2000 + n), 0), Exit::Cpuid);
    }
    assert_eq!(b.cpu.writes.borrow().len(), 4, "the count, at each entry");
    assert_eq!(
        b.v.take_timer_back(b.percpu),
        Some(Found { deadline: 0x2004, rang: false, wrote: true, inside: false })
    );
    assert_eq!(b.cpu.msr(DEADLINE), 0x1000 + 10 * STEP);
    let deadline = |log: &std::cell::RefCell<std::vec::Vec<u32>>| {
        log.borrow().iter().filter(|m| **m == DEADLINE).count()
    };
    assert_eq!((deadline(&b.cpu.rdmsrs), deadline(&b.cpu.wrmsrs)), (2, 2));
    assert_eq!(b.cpu.looks.get(), 0, "at the IRR");
    assert!(!b.cpu.lent.get());
    // Not lent again: the next entry's bitmaps are closed, and the timer is the guest's of software again.
    b.run(10, 0);
    assert_eq!(b.cpu.field(f::MSR_BITMAPS) & 0xf000, 0x1000);
    assert_eq!(b.cpu.field(f::PREEMPTION_TIMER_VALUE), u32::MAX);
    assert_eq!(b.v.take_timer_back(b.percpu), None);
}

/// The exit that acknowledges the guest's expiry is not the host's to hear of: it is ended here, and no handler runs.
#[test]
fn the_guests_expiry_is_ended_for_it() {
    let mut b = bench(10 * STEP);
    b.v.begin(b.percpu);
    assert!(b.v.lend_timer(b.percpu, 0x1100, true));
    assert_eq!(runs(&mut b, 0x100, None, VECTOR), Exit::Deadline);
    assert_eq!(b.cpu.ended.get(), 1);
    assert!(b.v.timer_rang(b.percpu) && !b.v.timer_rang(b.percpu), "told once");
    // Another interrupt is the host's, as ever.
    assert_eq!(runs(&mut b, 1, Some(0x1180), 0xf0), Exit::ExternalInterrupt);
    assert_eq!(
        b.v.take_timer_back(b.percpu),
        Some(Found { deadline: 0x1180, rang: false, wrote: true, inside: false })
    );
    assert_eq!((b.cpu.ended.get(), b.v.acknowledged), (1, 0xf0));
}

/// The timer's vector, while nothing is lent, is the host's.
#[test]
fn the_hosts_expiry_is_the_hosts() {
    let mut b = bench(10 * STEP);
    b.v.begin(b.percpu);
    b.cpu.next(|cpu, run| {
        cpu.store(f::EXIT_INTERRUPTION_INFO, i::VALID | i::TYPE_EXTERNAL | u32::from(VECTOR));
        (run.reason, run.interruption) = (1, 0);
        switched::EXIT
    });
    assert_eq!(b.v.enter(b.percpu, false, || NoSender), Exit::ExternalInterrupt);
    assert_eq!((b.cpu.ended.get(), b.v.acknowledged), (0, VECTOR));
}

/// Fault 3 of the published patches: what was left until the host's deadline was cut to 32 bits, so that a far one ended guest mode at
/// once. The largest count is loaded, and again at the next entry. A deadline that passes is never counted short.
#[test]
fn far_deadlines_of_the_host_do_not_wrap() {
    for steps in [1, 5, u64::from(u32::MAX), 1 << 32, (1 << 32) + 7, 1 << 40] {
        let mut b = bench(steps * STEP);
        b.v.begin(b.percpu);
        assert!(b.v.lend_timer(b.percpu, 0, true));
        assert_eq!(runs(&mut b, 0, None, 0), Exit::Cpuid);
        let want = steps.min(u64::from(u32::MAX)) as u32;
        assert_eq!(b.cpu.field(f::PREEMPTION_TIMER_VALUE), want, "{steps}");
        b.v.take_timer_back(b.percpu);
    }
}

/// Inside: LVTT names the notification while it is lent, and its own vector again before the host's deadline is back, also for the kernel in
/// between; a vector of the host's that exits is the host's.
#[test]
fn inside() {
    let mut b = bench(10 * STEP);
    b.v.begin(b.percpu);
    let timers = |b: &Bench| {
        let log = b.cpu.wrmsrs.take();
        (
            log.into_iter().filter(|m| [LVTT, DEADLINE].contains(m)).collect::<std::vec::Vec<_>>(),
            b.cpu.lvtt.get() as u8,
        )
    };
    for kernel in [false, true] {
        assert!(b.v.lend_timer_inside(b.percpu, 0x1100));
        assert_eq!(timers(&b), (std::vec![LVTT, DEADLINE], crate::vapic::NOTIFICATION));
        assert_eq!(runs(&mut b, 1, None, VECTOR), Exit::ExternalInterrupt, "the host's");
        assert_eq!((b.cpu.ended.get(), b.v.acknowledged), (0, VECTOR));
        // It comes, and nothing exits for it; another is written.
        assert_eq!(runs(&mut b, 0x100, None, 0), Exit::Cpuid);
        assert_eq!(runs(&mut b, 1, Some(0x1180 + 0x80 * u64::from(kernel)), 0), Exit::Cpuid);
        let left = b.cpu.msr(DEADLINE);
        if kernel {
            b.percpu.give_timer_back(&b.m);
        }
        assert_eq!(
            b.v.take_timer_back(b.percpu),
            Some(Found { deadline: left, rang: false, wrote: true, inside: true })
        );
        assert_eq!(timers(&b), (std::vec![LVTT, DEADLINE], VECTOR));
        assert_eq!((b.cpu.looks.get(), b.cpu.requested.get()), (0, false));
        b.cpu.tsc.set(0x1000);
        b.m.wrmsr(DEADLINE, 0x1000 + 10 * STEP);
        b.cpu.clear_logs();
    }
    // The host's deadline is too near, or comes meanwhile.
    b.cpu.tsc.set(0x1000 + 10 * STEP);
    assert!(!b.v.lend_timer_inside(b.percpu, 0));
    assert_eq!(timers(&b), (std::vec![], VECTOR));
}

/// The machine crashes in the middle of a slice: the timer is the host's, by its own vector.
#[test]
fn back_in_an_emergency() {
    for inside in [false, true] {
        let mut b = bench(10 * STEP);
        b.v.begin(b.percpu);
        let lent = if inside {
            b.v.lend_timer_inside(b.percpu, 0x1100)
        } else {
            b.v.lend_timer(b.percpu, 0x1100, true)
        };
        assert!(lent);
        // SAFETY: the bench is alive.
        assert!(unsafe { b.percpu.disable(&b.m) });
        let now = (b.cpu.msr(DEADLINE), b.cpu.lvtt.get() as u8, b.cpu.lent.get());
        assert_eq!(now, (0x1000 + 10 * STEP, VECTOR, false), "{inside}");
    }
}

/// The kernel starts a timer in the middle of a slice: the register is its own, the next entry finds the bitmaps closed, and the
/// guest's is told when the slice ends.
#[test]
fn the_kernel_takes_it_back() {
    let mut b = bench(10 * STEP);
    b.v.begin(b.percpu);
    assert!(b.v.lend_timer(b.percpu, 0x1200, true));
    assert_eq!(runs(&mut b, 1, None, 0), Exit::Cpuid);
    b.percpu.give_timer_back(&b.m);
    b.percpu.give_timer_back(&b.m);
    assert!(!b.v.timer_lent(b.percpu) && !b.cpu.lent.get());
    assert_eq!(b.cpu.msr(DEADLINE), 0x1000 + 10 * STEP);
    b.m.wrmsr(DEADLINE, 0x1100);
    b.cpu.exit(10, 0);
    b.v.enter(b.percpu, false, || NoSender);
    assert_eq!(b.cpu.field(f::MSR_BITMAPS) & 0xf000, 0x1000);
    assert_eq!(
        b.v.take_timer_back(b.percpu),
        Some(Found { deadline: 0x1200, rang: false, wrote: false, inside: false })
    );
    assert_eq!(b.cpu.msr(DEADLINE), 0x1100);
}

/// Wakes somebody, for which the kernel starts a timer.
struct Wakes(&'static PerCpu, Fake);

impl Sender for Wakes {
    fn send(&mut self, _icr: u64, first: impl FnOnce() -> bool) -> Sent {
        assert!(first());
        self.0.give_timer_back(&self.1);
        Sent::GoOn
    }
    fn goes_on(&mut self) {
        panic!("the slice counts it, and settles whose the timer is");
    }
}

/// The same where a command is sent straight behind the exit: that one is an exit of its own, once.
#[test]
fn a_sender_wakes_somebody() {
    let mut b = bench(10 * STEP);
    b.v.begin(b.percpu);
    assert!(b.v.lend_timer(b.percpu, 0x1200, true));
    b.cpu.next(|cpu, run| {
        run.gprs.set(Gpr::Rcx, 0x830);
        run.gprs.set_edx_eax(0x51);
        cpu.store(f::EXIT_INSTRUCTION_LENGTH, 2);
        (run.reason, run.interruption) = (32, 0);
        switched::EXIT
    });
    let sender = Wakes(b.percpu, b.m);
    assert_eq!(b.v.enter(b.percpu, false, || sender), Exit::Sent);
    assert!(!b.v.timer_lent(b.percpu));
}

/// A timer of another kind, one that is stopped, and one whose moment has passed are not lent; what LVTT says is looked at when the
/// thread comes to the CPU, or each time where the kernel stops its timer under running threads.
#[test]
fn what_is_not_lent() {
    let mut b = bench(10 * STEP);
    b.v.begin(b.percpu);
    assert!(b.v.lend_timer(b.percpu, 0, true));
    b.v.take_timer_back(b.percpu);
    b.cpu.lvtt.set(u32::from(VECTOR));
    assert!(b.v.lend_timer(b.percpu, 0, true), "known");
    b.v.take_timer_back(b.percpu);
    b.put();
    b.load();
    b.v.begin(b.percpu);
    assert!(!b.v.lend_timer(b.percpu, 0, true), "came anew");
    for (lvtt, lends) in [(host_timer::DEADLINE, true), (0, false), (host_timer::DEADLINE, true)] {
        b.put();
        b.load();
        b.cpu.lvtt.set(lvtt | host_timer::MAY_STOP | u32::from(VECTOR));
        b.v.begin(b.percpu);
        for _ in 0..2 {
            assert_eq!(b.v.lend_timer(b.percpu, 0, true), lends);
            b.v.take_timer_back(b.percpu);
        }
        b.cpu.lvtt.set(host_timer::MAY_STOP | u32::from(VECTOR));
        assert!(!b.v.lend_timer(b.percpu, 0, true), "stopped meanwhile");
    }
    b.cpu.lvtt.set(host_timer::DEADLINE | u32::from(VECTOR));
    b.cpu.tsc.set(0x1000 + 10 * STEP);
    assert!(!b.v.lend_timer(b.percpu, 0, true), "the host's is due");
    b.cpu.tick();
    assert!(!b.v.lend_timer(b.percpu, 0, true), "and nothing is armed");
    // Without APICv exits leave the interrupt pending, and whose it was cannot be told.
    let mut b = Bench::new();
    b.cpu.lvtt.set(host_timer::DEADLINE | u32::from(VECTOR));
    b.m.wrmsr(DEADLINE, 0x5000);
    b.v.begin(b.percpu);
    assert!(!b.v.lend_timer(b.percpu, 0, true));
}

/// Whatever delivers the guest's interrupts, a register that is lent is open: a write that exits would be lost when it comes back.
#[test]
fn open_while_lent_in_every_kind() {
    for (kind, bitmaps) in [
        (ApicKind::XApic, [0, 3]),
        (ApicKind::X2Apic, [1, 4]),
        (ApicKind::X2ApicIpis, [1, 4]),
        (ApicKind::X2ApicRaw, [5, 6]),
    ] {
        let mut b = bench(10 * STEP);
        b.v.set_apic(kind);
        b.v.begin(b.percpu);
        let entered = |b: &mut Bench| {
            b.cpu.exit(10, 0);
            b.v.enter(b.percpu, false, || NoSender);
            b.cpu.field(f::MSR_BITMAPS) >> 12 & 7
        };
        assert_eq!(entered(&mut b), bitmaps[0], "{kind:?}");
        assert!(b.v.lend_timer(b.percpu, 0, true));
        assert_eq!(entered(&mut b), bitmaps[1], "{kind:?}");
        b.v.take_timer_back(b.percpu);
        assert_eq!(entered(&mut b), bitmaps[0], "{kind:?}");
    }
}

/// One register more than the other bitmaps have open, for reads and writes.
#[test]
fn the_bitmap_opens_one_register() {
    let mut map = [0xff; msr_bitmap::SIZE];
    msr_bitmap::open_deadline(&mut map);
    let open: BTreeSet<usize> = (0..map.len() * 8).filter(|bit| map[bit / 8] & 1 << (bit % 8) == 0).collect();
    assert_eq!(open, BTreeSet::from([0x6e0, 0x800 * 8 + 0x6e0]));
}
