//! The APIC timer: one test per rule of SDM vol. 3A, 11.5.4, and per way it went wrong elsewhere.
// Most accesses are made for their effect on the registers, not for their `Work`.
#![allow(unused_must_use)]

mod common;
use common::*;
use exitless_lapic::*;
use exitless_x86::apic::*;

fn timer(mode: u32) -> Cpu {
    let mut cpu = Cpu::xapic(0);
    cpu.write(reg::LVT_TIMER, mode | 0x30);
    cpu.write(reg::TDCR, 0xb);
    cpu
}

fn fired(cpu: &mut Cpu) -> bool {
    let vector = cpu.take();
    if vector.is_some() {
        assert_eq!(cpu.eoi(), Some(EoiWork { vector: 0x30, level: false, broadcast: false }));
    }
    vector == Some(0x30)
}

#[test]
fn one_shot_counts_down_and_fires_once() {
    let mut cpu = timer(lvt::TIMER_ONESHOT);
    assert!(cpu.write(reg::TMICT, 1000).timer_changed);
    assert_eq!(cpu.l.armed(), Armed::AtNs(T0.ns + 1000));
    assert_eq!(cpu.read(reg::TMCCT), 1000);
    cpu.now.ns += 999;
    assert_eq!(cpu.read(reg::TMCCT), 1);
    assert!(!cpu.expire(), "too early: nothing happens");
    assert_eq!(cpu.l.armed(), Armed::AtNs(T0.ns + 1000));
    cpu.now.ns += 1;
    assert_eq!(cpu.read(reg::TMCCT), 0);
    assert!(cpu.expire() && fired(&mut cpu));
    assert!(!cpu.expire() && !fired(&mut cpu));
    assert_eq!((cpu.l.armed(), cpu.read(reg::TMCCT), cpu.read(reg::TMICT)), (Armed::None, 0, 1000));
}

/// Figure 11-10: the divider codes.
#[test]
fn divider() {
    for (code, divide) in [(0, 2), (1, 4), (2, 8), (3, 16), (8, 32), (9, 64), (0xa, 128), (0xb, 1)] {
        let mut cpu = timer(lvt::TIMER_ONESHOT);
        cpu.write(reg::TDCR, code | 0xffff_fff4);
        assert_eq!(cpu.read(reg::TDCR), code);
        cpu.write(reg::TMICT, u32::MAX);
        assert_eq!(cpu.l.armed(), Armed::AtNs(T0.ns + u64::from(u32::MAX) * divide));
        cpu.now.ns += divide - 1;
        assert_eq!(cpu.read(reg::TMCCT), u32::MAX, "a count lasts {divide} ns");
        cpu.now.ns += 1;
        assert_eq!(cpu.read(reg::TMCCT), u32::MAX - 1);
    }
}

/// Changing the divider while counting keeps the counts that are left.
#[test]
fn divider_change_rescales() {
    let mut cpu = timer(lvt::TIMER_ONESHOT);
    cpu.write(reg::TMICT, 1000);
    cpu.now.ns += 400;
    assert!(cpu.write(reg::TDCR, 3).timer_changed);
    assert_eq!(cpu.read(reg::TMCCT), 600);
    assert_eq!(cpu.l.armed(), Armed::AtNs(T0.ns + 400 + 600 * 16));
    cpu.write(reg::TDCR, 0xb);
    assert_eq!((cpu.read(reg::TMCCT), cpu.l.armed()), (600, Armed::AtNs(T0.ns + 1000)));
}

/// From any divider to any other, also when neither is 1.
#[test]
fn divider_changes_between_powers() {
    let mut cpu = timer(lvt::TIMER_ONESHOT);
    cpu.write(reg::TDCR, 1);
    cpu.write(reg::TMICT, 1000);
    cpu.now.ns += 4 * 400;
    cpu.write(reg::TDCR, 2);
    assert_eq!(cpu.read(reg::TMCCT), 600);
    assert_eq!(cpu.l.armed(), Armed::AtNs(T0.ns + 4 * 400 + 8 * 600));
}

/// A periodic timer that is due, but not told yet: its count has begun the next rounds, and a write of the divider moves no grid.
#[test]
fn an_overdue_period_counts_on() {
    let mut cpu = timer(lvt::TIMER_PERIODIC);
    cpu.write(reg::TMICT, 1_000_000);
    for (late, count) in [(0, 1_000_000), (1, 999_999), (300_000, 700_000), (1_300_000, 700_000)] {
        cpu.now.ns = T0.ns + 1_000_000 + late;
        assert_eq!(cpu.read(reg::TMCCT), count, "{late}");
    }
    cpu.write(reg::TDCR, 0xb);
    assert_eq!(cpu.l.armed(), Armed::AtNs(T0.ns + 1_000_000));
    assert!(cpu.expire());
    assert_eq!(cpu.l.armed(), Armed::AtNs(T0.ns + 3_000_000));
}

/// TMICT 0 stops any counting mode.
#[test]
fn zero_count_stops() {
    for mode in [lvt::TIMER_ONESHOT, lvt::TIMER_PERIODIC] {
        let mut cpu = timer(mode);
        cpu.write(reg::TMICT, 1_000_000);
        cpu.write(reg::TMICT, 0);
        cpu.now.ns += 10_000_000;
        assert_eq!((cpu.l.armed(), cpu.expire(), cpu.read(reg::TMCCT)), (Armed::None, false, 0));
    }
}

/// Expiries stay on the grid however late the host is.
#[test]
fn periodic_does_not_drift() {
    let mut cpu = timer(lvt::TIMER_PERIODIC);
    cpu.write(reg::TMICT, 1_000_000);
    for round in 1..=100u64 {
        assert_eq!(cpu.l.armed(), Armed::AtNs(T0.ns + round * 1_000_000));
        cpu.now.ns = T0.ns + round * 1_000_000 + round * 7919 % 900_000;
        assert!(cpu.expire() && fired(&mut cpu));
    }
}

/// A vCPU that was stopped for an hour (or for ever) gets one interrupt and then the grid again: no storm, no long loop.
#[test]
fn periodic_catches_up_in_one() {
    for pause in [3_600_000_000_000, u64::MAX - T0.ns] {
        let mut cpu = timer(lvt::TIMER_PERIODIC);
        cpu.write(reg::TMICT, 1_000_000);
        cpu.now.ns += pause;
        assert!(cpu.read(reg::TMCCT) <= 1_000_000);
        assert!(cpu.expire() && fired(&mut cpu));
        if pause != u64::MAX - T0.ns {
            assert!(!cpu.expire());
            let Armed::AtNs(next) = cpu.l.armed() else { panic!("still periodic") };
            assert!(
                next > cpu.now.ns
                    && next <= cpu.now.ns + 1_000_000
                    && (next - T0.ns).is_multiple_of(1_000_000)
            );
        }
    }
}

/// A guest cannot have host timers every nanosecond: short periods are stretched, one-shots are not.
#[test]
fn periodic_minimum() {
    let mut cpu = timer(lvt::TIMER_PERIODIC);
    cpu.write(reg::TMICT, 1);
    assert_eq!(cpu.l.armed(), Armed::AtNs(T0.ns + Config::MIN_PERIOD_NS));
    assert_eq!(cpu.read(reg::TMCCT), 1, "never above TMICT");
    let mut cpu = timer(lvt::TIMER_ONESHOT);
    cpu.write(reg::TMICT, 1);
    assert_eq!(cpu.l.armed(), Armed::AtNs(T0.ns + 1));
    let mut cpu = timer(lvt::TIMER_PERIODIC);
    cpu.l.set_config(Config { min_period_ns: 0, ..Config::default() });
    cpu.write(reg::TMICT, 1);
    assert_eq!(cpu.l.armed(), Armed::AtNs(T0.ns + 1));
}

/// kvm-unit-tests: a deadline equal to now fires exactly once and then reads 0.
#[test]
fn deadline_now_fires_once() {
    let mut cpu = timer(lvt::TIMER_DEADLINE);
    for past in [0, 1, 4_999_999] {
        let work = cpu.deadline(cpu.now.guest_tsc - past);
        assert!(work.rescan && work.timer_changed);
        assert_eq!((cpu.l.tsc_deadline(), cpu.l.armed()), (0, Armed::None));
        assert!(fired(&mut cpu));
        assert!(!cpu.expire() && !fired(&mut cpu));
    }
}

#[test]
fn deadline_arms_rearms_and_disarms() {
    let mut cpu = timer(lvt::TIMER_DEADLINE);
    for deadline in [6_000_000, 5_500_000, 7_000_000, 7_000_000, 1 << 63, u64::MAX] {
        assert_eq!(cpu.deadline(deadline), Work { timer_changed: true, ..Work::default() });
        assert_eq!((cpu.l.tsc_deadline(), cpu.l.armed()), (deadline, Armed::AtTsc(deadline)));
        assert!(!cpu.expire());
    }
    cpu.deadline(0);
    cpu.now.guest_tsc = u64::MAX;
    assert_eq!(
        (cpu.l.armed(), cpu.expire(), fired(&mut cpu)),
        (Armed::None, false, false),
        "disarmed is disarmed"
    );
    cpu.now = T0;
    cpu.deadline(6_000_000);
    cpu.now.guest_tsc = 5_999_999;
    assert!(!cpu.expire());
    cpu.now.guest_tsc = 6_000_000;
    assert_eq!(cpu.l.tsc_deadline(), 6_000_000, "reads back until expired");
    assert!(cpu.expire() && fired(&mut cpu));
    assert_eq!(cpu.l.tsc_deadline(), 0);
}

/// Rewriting the deadline in the handler, before EOI, yields a second interrupt after EOI.
#[test]
fn deadline_in_handler() {
    let mut cpu = timer(lvt::TIMER_DEADLINE);
    cpu.deadline(1);
    assert_eq!(cpu.take(), Some(0x30));
    cpu.deadline(1);
    assert_eq!(cpu.pending(), None);
    cpu.eoi();
    assert!(fired(&mut cpu) && !fired(&mut cpu));
}

/// A masked entry delivers nothing, but the timer runs out and the deadline reads 0.
#[test]
fn masked() {
    let mut cpu = timer(lvt::TIMER_DEADLINE | lvt::MASKED);
    cpu.deadline(1);
    assert_eq!((cpu.l.tsc_deadline(), cpu.s.has_irr()), (0, false));
    let mut cpu = timer(lvt::TIMER_ONESHOT);
    cpu.write(reg::TMICT, 10);
    cpu.write(reg::LVT_TIMER, lvt::MASKED | 0x30);
    cpu.now.ns += 10;
    assert!(cpu.expire());
    cpu.write(reg::LVT_TIMER, 0x30);
    assert!(!fired(&mut cpu), "unmasking does not replay");
    let mut cpu = timer(lvt::TIMER_DEADLINE);
    cpu.deadline(6_000_000);
    cpu.write(reg::LVT_TIMER, lvt::TIMER_DEADLINE | 0x31);
    cpu.now.guest_tsc = 6_000_000;
    assert!(cpu.expire());
    assert_eq!(cpu.take(), Some(0x31), "the vector at expiry counts");
}

/// Entering or leaving TSC-deadline mode disarms; one-shot to periodic keeps counting.
#[test]
fn mode_switches() {
    for other in [lvt::TIMER_ONESHOT, lvt::TIMER_PERIODIC, 3 << 17] {
        let mut cpu = timer(lvt::TIMER_DEADLINE);
        cpu.deadline(6_000_000);
        assert!(cpu.write(reg::LVT_TIMER, other | 0x30).timer_changed);
        assert_eq!((cpu.l.armed(), cpu.l.tsc_deadline()), (Armed::None, 0));
        cpu.write(reg::LVT_TIMER, lvt::TIMER_DEADLINE | 0x30);
        assert_eq!((cpu.l.armed(), cpu.l.tsc_deadline()), (Armed::None, 0));
        let mut cpu = timer(other);
        cpu.write(reg::TMICT, 1_000_000);
        cpu.write(reg::LVT_TIMER, lvt::TIMER_DEADLINE | 0x30);
        assert_eq!((cpu.l.armed(), cpu.read(reg::TMICT), cpu.read(reg::TMCCT)), (Armed::None, 0, 0));
    }
    let mut cpu = timer(lvt::TIMER_ONESHOT);
    cpu.write(reg::TMICT, 1_000_000);
    cpu.write(reg::LVT_TIMER, lvt::TIMER_PERIODIC | 0x30);
    assert_eq!(cpu.l.armed(), Armed::AtNs(T0.ns + 1_000_000));
    cpu.now.ns += 1_000_000;
    assert!(cpu.expire());
    assert_eq!(cpu.l.armed(), Armed::AtNs(T0.ns + 2_000_000));
    cpu.write(reg::LVT_TIMER, lvt::TIMER_ONESHOT | 0x30);
    cpu.now.ns += 1_000_000;
    assert!(cpu.expire());
    assert_eq!(cpu.l.armed(), Armed::None);
}

/// The deadline MSR is ignored and reads 0 outside its mode; TMICT is ignored and TMCCT reads 0 inside it.
#[test]
fn registers_of_the_other_mode() {
    let mut cpu = timer(lvt::TIMER_ONESHOT);
    assert_eq!(cpu.deadline(1), Work::default());
    assert_eq!((cpu.l.tsc_deadline(), cpu.s.has_irr(), cpu.l.armed()), (0, false, Armed::None));
    let mut cpu = timer(lvt::TIMER_DEADLINE);
    cpu.write(reg::TMICT, 1000);
    assert_eq!((cpu.read(reg::TMICT), cpu.read(reg::TMCCT), cpu.l.armed()), (0, 0, Armed::None));
}

/// INIT and power-up reset disarm every mode.
#[test]
fn reset_disarms() {
    for kind in [Reset::Init, Reset::PowerUp] {
        let mut cpu = timer(lvt::TIMER_DEADLINE);
        cpu.deadline(6_000_000);
        cpu.l.reset(&cpu.s, kind);
        assert_eq!((cpu.l.armed(), cpu.l.tsc_deadline()), (Armed::None, 0));
        let mut cpu = timer(lvt::TIMER_PERIODIC);
        cpu.write(reg::TMICT, 1000);
        cpu.l.reset(&cpu.s, kind);
        assert_eq!((cpu.l.armed(), cpu.read(reg::TMICT)), (Armed::None, 0));
    }
}

/// The periodic limit survives resets (a guest could otherwise lift it with INIT).
#[test]
fn reset_keeps_minimum() {
    let mut cpu = timer(lvt::TIMER_PERIODIC);
    cpu.l.reset(&cpu.s, Reset::Init);
    cpu.write(reg::SVR, 0x1ff);
    cpu.write(reg::LVT_TIMER, lvt::TIMER_PERIODIC | 0x30);
    cpu.write(reg::TMICT, 1);
    assert_eq!(cpu.l.armed(), Armed::AtNs(T0.ns + Config::MIN_PERIOD_NS));
}

/// A guest that rewrites past deadlines in a loop gets one pending interrupt, not a queue.
#[test]
fn past_deadline_storm_coalesces() {
    let mut cpu = timer(lvt::TIMER_DEADLINE);
    for tsc in 1..1000 {
        cpu.deadline(tsc);
        assert_eq!(cpu.l.armed(), Armed::None);
    }
    assert!(fired(&mut cpu) && !fired(&mut cpu));
}

/// Clocks that step backwards (guest TSC written, host clock of another CPU) neither fire early nor panic.
#[test]
fn backward_clocks() {
    let mut cpu = timer(lvt::TIMER_PERIODIC);
    cpu.write(reg::TMICT, 1_000_000);
    cpu.now.ns = 0;
    assert!(!cpu.expire());
    assert_eq!(cpu.read(reg::TMCCT), 1_000_000);
    cpu.write(reg::TDCR, 0);
    let mut cpu = timer(lvt::TIMER_DEADLINE);
    cpu.deadline(6_000_000);
    cpu.now.guest_tsc = 0;
    assert!(!cpu.expire());
    assert_eq!(cpu.l.armed(), Armed::AtTsc(6_000_000));
}
