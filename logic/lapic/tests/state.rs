//! KVM_GET_LAPIC and KVM_SET_LAPIC: page format, nothing lost on the way.
#![allow(unused_must_use)]

mod common;
use common::*;
use exitless_lapic::*;
use exitless_x86::apic::*;
use proptest::prelude::*;

fn config(x2apic_format: bool) -> Config {
    Config { x2apic_format, ..Config::default() }
}

fn x2apic_with(id: u32, x2apic_format: bool) -> Cpu {
    let mut cpu = Cpu::raw(id, false, config(x2apic_format));
    cpu.host_base(0xfee0_0c00).unwrap();
    cpu.wrmsr(reg::SVR, 0x1ff).unwrap();
    cpu
}

/// The id's place in the page by mode and by KVM_X2APIC_API_USE_32BIT_IDS.
#[test]
fn id_formats() {
    assert_eq!(at(&Cpu::xapic(3).save(), reg::ID), 3 << 24);
    assert_eq!(at(&x2apic_with(3, false).save(), reg::ID), 3 << 24);
    assert_eq!(at(&x2apic_with(0x103, true).save(), reg::ID), 0x103);
    assert_eq!(at(&x2apic_with(0x103, true).save(), reg::LDR), 0x10_0008);
    // The plain format refuses another id, and changes nothing.
    let mut cpu = x2apic_with(3, true);
    let before = cpu.save();
    let mut page = before;
    put(&mut page, reg::ID, 4);
    put(&mut page, reg::TPR, 0x55);
    assert_eq!(cpu.load(&page), Err(BadState));
    assert_eq!(cpu.save(), before);
    // The 8-bit format ignores it (KVM selftest: the x2APIC id is read-only), and LDR stays derived.
    let mut cpu = x2apic_with(3, false);
    for id in 0..=0xff {
        put(&mut page, reg::ID, id << 24);
        put(&mut page, reg::LDR, 0xffff_ffff);
        cpu.load(&page).unwrap();
        assert_eq!((at(&cpu.save(), reg::ID), cpu.rdmsr(reg::LDR)), (3 << 24, Ok(8)));
    }
    // xAPIC mode takes what the guest had written.
    let mut cpu = Cpu::xapic(3);
    put(&mut page, reg::ID, 77 << 24);
    cpu.load(&page).unwrap();
    assert!(cpu.s.address().names(&fixed(77, 0x40)) && !cpu.s.address().names(&fixed(3, 0x40)));
}

/// The id of xAPIC mode is what was written or restored until that mode is entered again, which brings the first one back.
#[test]
fn an_id_lasts_until_its_mode_is_entered_again() {
    let mut cpu = Cpu::xapic(3);
    let mut page = cpu.save();
    put(&mut page, reg::ID, 77 << 24);
    cpu.load(&page).unwrap();
    cpu.host_base(0xfee0_0000).unwrap();
    assert_eq!(at(&cpu.save(), reg::ID), 77 << 24);
    cpu.host_base(0xfee0_0800).unwrap();
    assert_eq!(at(&cpu.save(), reg::ID), 3 << 24);
}

/// A page goes back where it came from, in each format, and whatever the guest had made of its xAPIC id before.
#[test]
fn x2apic_pages_go_back() {
    for x2apic_format in [false, true] {
        let mut cpu = Cpu::raw(3, false, config(x2apic_format));
        cpu.write(reg::ID, 0x77 << 24);
        cpu.host_base(0xfee0_0c00).unwrap();
        let page = cpu.save();
        assert_eq!(at(&page, reg::ID), if x2apic_format { 3 } else { 3 << 24 });
        assert_eq!(cpu.load(&page), Ok(()));
        assert_eq!(cpu.save(), page);
    }
}

/// Only what the entry has is taken from a page.
#[test]
fn a_loaded_cmci_entry_has_its_bits() {
    for cmci in [false, true] {
        let mut cpu = Cpu::raw(0, false, Config { cmci, ..Config::default() });
        let mut page = cpu.save();
        put(&mut page, reg::LVT_CMCI, 0xfffe_ff42);
        cpu.load(&page).unwrap();
        assert_eq!(cpu.read(reg::LVT_CMCI), if cmci { 0x742 } else { 0 });
    }
}

/// VMMs read the page, set LINT0 and LINT1, and write it back before the vCPU runs, APIC software-disabled: entries must stick.
#[test]
fn vmm_sets_lint_entries() {
    let mut cpu = Cpu::raw(1, false, Config::default());
    let mut page = cpu.save();
    put(&mut page, reg::LVT_LINT0, 0x700);
    put(&mut page, reg::LVT_LINT1, 0x400);
    cpu.load(&page).unwrap();
    assert_eq!((cpu.read(reg::LVT_LINT0), cpu.read(reg::LVT_LINT1)), (0x700, 0x400));
    assert!(cpu.s.accepts_ext_int());
}

/// The KVM selftest passes data to its guest in IRR words 0 and 1, vectors 0..16 included, and expects them unchanged.
#[test]
fn irr_is_taken_as_it_is() {
    for value in [0u64, 1, 0xa5a5_a5a5_a5a5_a5a5, u64::MAX] {
        let mut cpu = x2apic_with(0, false);
        let mut page = cpu.save();
        put(&mut page, reg::IRR, value as u32);
        put(&mut page, reg::IRR + 16, (value >> 32) as u32);
        cpu.load(&page).unwrap();
        let low = cpu.rdmsr(reg::IRR).unwrap();
        assert_eq!(low | cpu.rdmsr(reg::IRR + 16).unwrap() << 32, value);
        assert!(cpu.pending().is_none_or(|vector| vector >= 16), "class 0 is never deliverable");
    }
}

/// Pending, in service and priority agree after a load: what was deliverable still is, what was blocked still is.
#[test]
fn pending_survives() {
    let mut cpu = Cpu::xapic(0);
    cpu.s.post(0x61, true);
    cpu.take();
    cpu.s.post(0x55, false);
    cpu.s.post(0x72, true);
    let page = cpu.save();
    let mut copy = Cpu::raw(0, false, Config::default());
    copy.load(&page).unwrap();
    assert_eq!(copy.take(), Some(0x72));
    assert_eq!(copy.pending(), None);
    assert_eq!(copy.eoi(), Some(EoiWork { vector: 0x72, level: true, broadcast: true }));
    assert_eq!(copy.pending(), None, "0x61 is in service");
    assert_eq!(copy.s.arbitration_priority(), 0x60);
    assert_eq!(copy.eoi(), Some(EoiWork { vector: 0x61, level: true, broadcast: true }));
    assert_eq!(copy.take(), Some(0x55));
    assert_eq!(copy.s.accept(&fixed(0, 0x99)), Accepted::Event, "published again: accepts");
}

/// A timer that is armed, due, or finished at the time of saving.
#[test]
fn one_shot_survives() {
    for (wait, fires_after) in
        [(0, Some(4000)), (1000, Some(3000)), (1001, Some(3000)), (4000, Some(4)), (9000, Some(4))]
    {
        let mut cpu = Cpu::xapic(0);
        cpu.write(reg::LVT_TIMER, 0x30);
        cpu.write(reg::TDCR, 1);
        cpu.write(reg::TMICT, 1000);
        cpu.now.ns += wait;
        let page = cpu.save();
        let mut copy = Cpu::raw(0, false, Config::default());
        copy.now.ns = 77;
        copy.load(&page).unwrap();
        let expected = fires_after.map_or(Armed::None, |ns| Armed::AtNs(77 + ns));
        assert_eq!(copy.l.armed(), expected, "saved after {wait} ns");
        assert_eq!(copy.save(), page);
    }
    let mut cpu = Cpu::xapic(0);
    cpu.write(reg::LVT_TIMER, 0x30);
    cpu.write(reg::TMICT, 1000);
    cpu.now.ns += 2000;
    assert!(cpu.expire());
    let page = cpu.save();
    let mut copy = Cpu::raw(0, false, Config::default());
    copy.load(&page).unwrap();
    assert_eq!((copy.l.armed(), copy.pending()), (Armed::None, Some(0x30)), "fired once, not twice");
}

#[test]
fn periodic_survives() {
    let mut cpu = Cpu::xapic(0);
    cpu.write(reg::LVT_TIMER, lvt::TIMER_PERIODIC | 0x30);
    cpu.write(reg::TDCR, 0xb);
    cpu.write(reg::TMICT, 1_000_000);
    cpu.now.ns += 300_000;
    let page = cpu.save();
    let mut copy = Cpu::raw(0, false, Config::default());
    copy.load(&page).unwrap();
    assert_eq!(copy.l.armed(), Armed::AtNs(T0.ns + 700_000));
    copy.now.ns += 700_000;
    assert!(copy.expire());
    assert_eq!(copy.l.armed(), Armed::AtNs(T0.ns + 1_700_000));
    // A page without a current count (other hypervisors) starts a whole period.
    let mut page = page;
    put(&mut page, reg::TMCCT, 0);
    copy.load(&page).unwrap();
    assert_eq!(copy.l.armed(), Armed::AtNs(copy.now.ns + 1_000_000));
}

/// The deadline travels as an MSR written after the page; one that passed meanwhile fires at once. Reloading the page keeps it.
#[test]
fn deadline_survives() {
    let mut cpu = Cpu::xapic(0);
    cpu.write(reg::LVT_TIMER, lvt::TIMER_DEADLINE | 0x30);
    cpu.deadline(6_000_000);
    let (page, deadline) = (cpu.save(), cpu.l.tsc_deadline());
    cpu.load(&page).unwrap();
    assert_eq!(cpu.l.armed(), Armed::AtTsc(6_000_000));
    let mut copy = Cpu::raw(0, false, Config::default());
    copy.now.guest_tsc = 6_000_001;
    copy.load(&page).unwrap();
    assert_eq!(copy.l.armed(), Armed::None);
    assert!(copy.deadline(deadline).rescan);
    assert_eq!((copy.take(), copy.l.tsc_deadline()), (Some(0x30), 0));
    // A page in another mode disarms.
    let other = Cpu::xapic(0).save();
    cpu.load(&other).unwrap();
    assert_eq!((cpu.l.armed(), cpu.l.tsc_deadline()), (Armed::None, 0));
}

/// Some VMMs restore the MSR before the page, when the APIC is not in the mode yet: a timer that was armed is armed again. Whatever else
/// changes the mode forgets it, and so does a page of another mode.
#[test]
fn deadline_before_the_page() {
    let mut cpu = Cpu::xapic(0);
    cpu.write(reg::LVT_TIMER, lvt::TIMER_DEADLINE | 0x30);
    let page = cpu.save();
    let early = || {
        let mut copy = Cpu::raw(0, false, Config::default());
        assert!(!copy.l.takes_tsc_deadline());
        copy.l.keep_tsc_deadline(6_000_000);
        assert_eq!((copy.l.armed(), copy.l.tsc_deadline()), (Armed::None, 0));
        copy
    };
    let mut copy = early();
    copy.load(&page).unwrap();
    assert_eq!((copy.l.armed(), copy.l.tsc_deadline()), (Armed::AtTsc(6_000_000), 6_000_000));
    copy.load(&page).unwrap();
    assert_eq!(copy.l.armed(), Armed::AtTsc(6_000_000), "the page again");
    let mut copy = early();
    copy.load(&Cpu::xapic(0).save()).unwrap();
    copy.write(reg::LVT_TIMER, lvt::TIMER_DEADLINE | 0x30);
    assert_eq!(copy.l.armed(), Armed::None, "of a page in another mode");
    let mut copy = early();
    copy.write(reg::SVR, 0x1ff);
    copy.write(reg::LVT_TIMER, lvt::TIMER_DEADLINE | 0x30);
    assert_eq!(copy.l.armed(), Armed::None, "the guest's own mode");
    copy.load(&page).unwrap();
    assert_eq!(copy.l.armed(), Armed::None);
    let mut copy = early();
    copy.l.keep_tsc_deadline(0);
    copy.load(&page).unwrap();
    assert_eq!(copy.l.armed(), Armed::None, "it was zero");
}

/// What a guest can do to its APIC.
#[derive(Clone, Debug)]
enum Op {
    Write(u32, u32),
    Post(u8, bool),
    Take,
    Eoi,
    Wait(u64),
    Deadline(u64),
}

fn any_op() -> impl Strategy<Value = Op> {
    let offset = prop_oneof![
        prop::sample::select(vec![
            reg::ID,
            reg::TPR,
            reg::LDR,
            reg::DFR,
            reg::SVR,
            reg::ESR,
            reg::ICR,
            reg::ICR2,
            reg::LVT_TIMER,
            reg::LVT_THERMAL,
            reg::LVT_PC,
            reg::LVT_LINT0,
            reg::LVT_LINT1,
            reg::LVT_ERROR,
            reg::TMICT,
            reg::TDCR,
            reg::EOI,
        ]),
        0u32..0x400,
    ];
    let value = prop_oneof![any::<u32>(), 0u32..0x200, Just(0x1ff)];
    prop_oneof![
        8 => (offset, value).prop_map(|(o, v)| Op::Write(o, v)),
        2 => (any::<u8>(), any::<bool>()).prop_map(|(v, l)| Op::Post(v, l)),
        2 => Just(Op::Take),
        1 => Just(Op::Eoi),
        2 => (0u64..10_000_000_000).prop_map(Op::Wait),
        1 => (0u64..20_000_000_000).prop_map(Op::Deadline),
    ]
}

fn apply(cpu: &mut Cpu, op: &Op) {
    match *op {
        Op::Write(offset, value) => _ = cpu.write(offset, value),
        Op::Post(vector, level) => _ = cpu.s.accept(&InterruptMessage { level, ..fixed(0, vector) }),
        Op::Take => _ = cpu.take(),
        Op::Eoi => _ = cpu.eoi(),
        Op::Wait(ns) => {
            cpu.now.ns += ns;
            cpu.now.guest_tsc += ns * 2;
            cpu.expire();
        }
        Op::Deadline(tsc) => _ = cpu.deadline(tsc),
    }
}

fn expiry(cpu: &Cpu) -> Option<u64> {
    match cpu.l.armed() {
        Armed::None => None,
        Armed::AtNs(ns) => Some(ns),
        Armed::AtTsc(tsc) => Some(tsc),
    }
}

proptest! {
    /// Any reachable state, saved and loaded into a fresh vCPU, saves as the same page, delivers the same vectors in the same
    /// order, and expires at the same time up to one count of the timer.
    #[test]
    fn round_trip(ops in prop::collection::vec(any_op(), 0..60)) {
        let mut cpu = Cpu::xapic(5);
        ops.iter().for_each(|op| apply(&mut cpu, op));
        let page = cpu.save();
        // The page cannot say "periodic, count set, but stopped" (a one-shot ran out, then LVTT was switched): such a timer starts.
        let periodic = at(&page, reg::LVT_TIMER) & lvt::TIMER_MODE == lvt::TIMER_PERIODIC;
        prop_assume!(!periodic || at(&page, reg::TMICT) == 0 || cpu.l.armed() != Armed::None);
        let mut copy = Cpu::raw(5, false, Config::default());
        copy.now = cpu.now;
        copy.load(&page).unwrap();
        let deadline = cpu.l.tsc_deadline();
        if deadline != 0 {
            copy.deadline(deadline);
        }
        prop_assert_eq!(&copy.save()[..], &page[..]);
        prop_assert_eq!(expiry(&cpu).is_some(), expiry(&copy).is_some());
        let (a, b) = (expiry(&cpu).unwrap_or(0), expiry(&copy).unwrap_or(0));
        let due = cpu.l.armed().is_due(&cpu.now);
        // What is left of a stretched period (the minimum) may exceed TMICT, which TMCCT cannot: then it ends early, never late.
        let stretched = at(&page, reg::TMCCT) == at(&page, reg::TMICT);
        prop_assert!(a.abs_diff(b) < 128 || due || (stretched && b < a), "{} {}", a, b);
        loop {
            let taken = cpu.take();
            prop_assert_eq!(copy.take(), taken);
            if taken.is_none() && cpu.eoi().is_none() {
                break;
            }
            if taken.is_none() {
                copy.eoi();
            }
        }
        prop_assert_eq!(copy.s.top_irr(), cpu.s.top_irr());
    }

    /// A hostile page never panics and leaves a usable APIC.
    #[test]
    fn hostile_page(bytes in prop::collection::vec(any::<u8>(), 1024), x2apic: bool, now: u64) {
        let mut cpu = if x2apic { x2apic_with(1, false) } else { Cpu::xapic(1) };
        let page: [u8; 1024] = bytes.try_into().unwrap();
        cpu.now.ns = now;
        cpu.load(&page).unwrap();
        let first = cpu.save();
        cpu.load(&first).unwrap();
        prop_assert_eq!(cpu.save(), first, "loading what was saved changes nothing");
        while cpu.take().is_some() || cpu.eoi().is_some() {}
        cpu.now.ns = u64::MAX;
        cpu.expire();
    }
}

/// With a page that hardware works on the TMR is there, from the moment a vector is pending.
#[test]
fn tmr_in_the_page() {
    let page: &'static ApicPage = Box::leak(Box::new(bytemuck::Zeroable::zeroed()));
    let mut s: Shared = bytemuck::Zeroable::zeroed();
    s.use_page(page);
    for level in [true, false, true] {
        s.post(0x91, level);
        assert_eq!(page.read(reg::TMR + 0x40), u32::from(level) << 17);
        assert_eq!(s.is_level(0x91), level);
    }
    assert_eq!(page.read(reg::IRR + 0x40), 0, "requests are the descriptor's");
}
