//! What whoever traces hears: each entry and exit, and what exits amounted to, fast or slow, between them.

use crate::fake::guest::*;
use crate::fake::world::{APIC, CHIP_PORT, USER_MMIO};
use crate::fake::{Env, Machine, Op};
use exitless_vcpu::backend::{Backend, Exit};
use exitless_vcpu::chooser::Set;
use exitless_vcpu::traced::{Asked, Mmio, Trace};
use exitless_x86::apic::reg;
use exitless_x86::regs::{cr4, rflags};

fn heard(m: &Machine) -> Vec<Trace> {
    let other = |t: &Trace| !matches!(t, Trace::Entry { .. } | Trace::Exit { .. } | Trace::Emulates { .. });
    m.w.heard.take().into_iter().filter(other).collect()
}

/// Entries and exits in turn, from the first to the last, whatever the exits were for.
#[test]
fn entries_and_exits_alternate() {
    let mut m = Machine::new([cpuid(0, 0), out(CHIP_PORT, 1, 7), rdmsr(0x1b), hypercall(1), Op::Nop]);
    m.w.tracing.set(true);
    m.go();
    let end = |t| match t {
        Trace::Entry { .. } => Some(true),
        Trace::Exit { .. } => Some(false),
        _ => None,
    };
    let ends: Vec<_> = m.w.heard.take().into_iter().filter_map(end).collect();
    assert!(ends.len() >= 10 && ends.len() % 2 == 0);
    assert!(ends.iter().enumerate().all(|(i, entry)| *entry == (i % 2 == 0)), "{ends:?}");
    assert_eq!(ends.len() as u64 / 2, m.sh.stats.exits.get());
}

/// The same with every mechanism on and off: what is answered in the slice is told as what is answered behind it.
#[test]
fn fast_and_slow_are_told_alike() {
    for wanted in [Set::ALL, Set::NONE] {
        let mut m = Machine::new([
            cpuid(0, 5),
            rdmsr(0x1b),
            wrmsr(0x174, 9),
            faulting(rdmsr(0xdead)),
            out(CHIP_PORT, 2, 0x1_0007),
            hypercall_with(77, [1, 2, 3, 4]),
            Op::Nop,
        ]);
        m.w.wanted.set(wanted);
        m.w.tracing.set(true);
        m.go();
        let heard = heard(&m);
        let Trace::Cpuid { function: 0, index: 5, answer: [0xd, ..], found: true, used_max_basic: false } =
            heard[0]
        else {
            panic!("{heard:x?}")
        };
        let Trace::Msr { write: false, index: 0x1b, data: 0xfee0_0900, refused: false } = heard[1] else {
            panic!("{heard:x?}")
        };
        assert_eq!(heard[2], Trace::Msr { write: true, index: 0x174, data: 9, refused: false });
        assert_eq!(heard[3], Trace::Msr { write: false, index: 0xdead, data: 0, refused: true });
        assert_eq!(heard[4], Trace::Exception { vector: 13, error_code: Some(0), again: false });
        assert_eq!(heard[5], Trace::Pio { write: true, port: CHIP_PORT, size: 2, count: 1, data: 7 });
        assert_eq!(heard[6], Trace::Hypercall { number: 77, operands: [1, 2, 3, 4] });
        assert_eq!(heard.len(), 7, "{heard:x?}");
    }
}

/// A read of user space's is told when it is asked for and again with its answer; a write once.
#[test]
fn devices_of_user_space() {
    let mut m =
        Machine::new([store(USER_MMIO, 0x55), load(USER_MMIO + 8), input(0x80, 1), out(0x80, 1, 3), Op::Nop]);
    m.w.tracing.set(true);
    m.go();
    let heard = heard(&m);
    let kinds: Vec<_> = heard
        .iter()
        .map(|t| match t {
            Trace::Mmio { kind, gpa, .. } => (Some(*kind), *gpa),
            Trace::Pio { write, port, .. } => (None, u64::from(*port) | u64::from(*write) << 16),
            other => panic!("{other:?}"),
        })
        .collect();
    let write = |at| (Some(Mmio::Write), at);
    assert_eq!(
        kinds,
        [
            write(USER_MMIO),
            (Some(Mmio::UnsatisfiedRead), USER_MMIO + 8),
            (Some(Mmio::Read), USER_MMIO + 8),
            (None, 0x80),
            (None, 0x1_0080),
        ]
    );
    let Trace::Mmio { data: 0x55, len: 4, .. } = heard[0] else { panic!("{heard:x?}") };
}

/// Listeners run with the host's state and may use the FPU; the guest finds its own again, a PKRU too that it has changed meanwhile
/// without an exit.
#[test]
fn listeners_leave_the_guests_state() {
    let mut m =
        Machine::new([mov_cr4(cr4::PAE | cr4::OSXSAVE), xsetbv(0, 7), cpuid(0, 0), cpuid(1, 0), Op::Nop]);
    m.w.tracing.set(true);
    // The fake OS refuses a listener in the guest's state, and an entry without it.
    m.go();
    assert!(m.sh.stats.fast.get() >= 2);
}

/// An exit that was not answered when the last listener went is not told to the next one.
#[test]
fn a_pause_forgets() {
    let mut m = Machine::new([cpuid(0, 0), Op::Nop]);
    m.go();
    let number = m.sh.stats.exits.get() - 1;
    m.v.asked = Some(Asked { exit: Exit::Cpuid, number, gprs: *m.v.b.gprs(), in_service: None });
    m.w.tracing.set(true);
    m.go();
    assert!(!m.w.heard.borrow().is_empty());
    assert_eq!(heard(&m), []);
}

/// Software's APIC: each EOI with the vector that it ended, each command with its destination, in the slice and behind it, by MSR and in
/// the page; and the interrupts that go in.
#[test]
fn apic_registers() {
    for (wanted, x2apic) in [(Set::ALL, true), (Set::NONE, true), (Set::NONE, false)] {
        let write = |at: u32, value: u64| match x2apic {
            true => wrmsr(0x800 + (at >> 4), value),
            false => store(APIC + u64::from(at), value as u32),
        };
        let mut m = Machine::new([
            write(reg::EOI, 0),
            write(reg::ICR, (0x5_0000_0000 * u64::from(x2apic)) | 0x4031),
            Op::Nop,
        ]);
        if x2apic {
            m.set_x2apic();
        }
        m.w.wanted.set(wanted);
        m.w.tracing.set(true);
        m.v.b.rflags |= rflags::IF;
        m.w.schedule.borrow_mut().push_back((0, Env::Irq(0x55)));
        m.go();
        let heard = heard(&m);
        let position = |t: &Trace| {
            heard.iter().position(|h| h == t).unwrap_or_else(|| panic!("no {t:x?} in {heard:x?}"))
        };
        let injected = position(&Trace::Interrupt { vector: 0x55, soft: false, again: false });
        let ended = position(&Trace::Eoi { vector: 0x55 });
        let told = position(&Trace::Apic { write: true, register: reg::EOI, value: 0 });
        let destination = if x2apic { 5 } else { 0 };
        let sent = position(&Trace::Ipi { icr: 0x4031, destination });
        assert!(injected < told && told < ended && ended < sent, "{heard:x?}");
        let once = |f: fn(&Trace) -> bool| heard.iter().filter(|t| f(t)).count() == 1;
        assert!(
            once(|t| matches!(t, Trace::Eoi { .. })) && once(|t| matches!(t, Trace::Ipi { .. })),
            "{heard:x?}"
        );
    }
}

/// Once for each instruction, however often its replay begins anew.
#[test]
fn emulated_instructions() {
    let mut m = Machine::new([load(USER_MMIO + 8), Op::Nop]);
    m.w.tracing.set(true);
    m.go();
    let heard = m.w.heard.take();
    let emulated: Vec<_> = heard.iter().filter(|t| matches!(t, Trace::Emulates { .. })).collect();
    let [Trace::Emulates { rip: 0x1000, code: 0, length, flags, failed: false, bytes }] = emulated[..] else {
        panic!("{emulated:x?}")
    };
    assert!((1..15).contains(length) && *flags & 1 != 0 && bytes[0] != 0, "{emulated:x?}");
}

/// The last listener goes at any moment, also between an exit and the next entry: the guest is entered with its own state.
#[test]
fn a_listener_goes() {
    for hears in 1..30 {
        let ops = [
            mov_cr4(cr4::PAE | cr4::OSXSAVE),
            cpuid(0, 0),
            out(CHIP_PORT, 1, 7),
            hypercall(1),
            cpuid(1, 0),
            Op::Nop,
        ];
        let mut m = Machine::new(ops);
        m.w.tracing.set(true);
        m.w.hears.set(hears);
        m.go();
        assert!(m.w.heard.borrow().len() >= hears.min(10));
        assert!(m.v.outside.is_none());
    }
}
