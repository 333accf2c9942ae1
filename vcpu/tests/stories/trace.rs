//! What whoever traces hears: each entry and exit, and what exits amounted to, fast or slow, between them.

use crate::fake::guest::*;
use crate::fake::world::{CHIP_PORT, USER_MMIO};
use crate::fake::{Machine, Op};
use exitless_vcpu::backend::{Backend, Exit};
use exitless_vcpu::chooser::Set;
use exitless_vcpu::traced::{Asked, Mmio, Trace};
use exitless_x86::regs::cr4;

fn heard(m: &Machine) -> Vec<Trace> {
    let heard = m.w.heard.take();
    heard.into_iter().filter(|t| !matches!(t, Trace::Entry { .. } | Trace::Exit { .. })).collect()
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
        assert_eq!(heard[4], Trace::Pio { write: true, port: CHIP_PORT, size: 2, count: 1, data: 7 });
        assert_eq!(heard[5], Trace::Hypercall { number: 77, operands: [1, 2, 3, 4] });
        assert_eq!(heard.len(), 6, "{heard:x?}");
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
    m.v.asked = Some(Asked { exit: Exit::Cpuid, number, gprs: *m.v.b.gprs() });
    m.w.tracing.set(true);
    m.go();
    assert!(!m.w.heard.borrow().is_empty());
    assert_eq!(heard(&m), []);
}
