//! Guests that send IPIs by themselves: when the ICR is theirs, that it never becomes so behind their back, and where a vCPU is found that
//! was stopped in its sequence.

use crate::fake::guest::*;
use crate::fake::{Env, Machine, Op};
use exitless_policy::{Invalid, Origin};
use exitless_vcpu::Request;
use exitless_vcpu::backend::{ApicKind, Backend};
use exitless_vcpu::chooser::{Mechanism, Reason, Set};
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

const DESCRIPTOR: u32 = 0x4558_4c01;
const SEQUENCE: u32 = 0x4558_4c02;
const PARTS: u32 = 0x4558_4c03;
const ICR: u32 = 0x4558_4c04;
const YES: u64 = u64::from_le_bytes(*b"Attended");
/// A destination that is nobody here, so that what exits is seen.
const IPI: u64 = 5 << 32 | 0x61;

/// *sends*, *found*.
fn flags(m: &Machine) -> [u64; 2] {
    // SAFETY: a descriptor is eight such words.
    let words = unsafe { &*core::ptr::from_ref(m.sh.apic.posted()).cast::<[AtomicU64; 8]>() };
    [words[5].load(SeqCst), words[6].load(SeqCst)]
}

/// With a sequence at `start`, of which `done` and `end` are parts.
fn asks(start: u64, done: u64, end: u64) -> Machine {
    let mut m = Machine::virtual_apic(true, [Op::Nop]);
    m.w.raw_allowed.set(true);
    m.go();
    let parts = wrmsr(PARTS, end << 16 | done);
    m.v.b.ops.extend([wrmsr(SEQUENCE, start), parts, wrmsr(DESCRIPTOR, 3)]);
    m
}

/// Commands that exited.
fn sent(m: &Machine) -> usize {
    m.w.ipis.borrow().len()
}

/// From the MSR to the return to user space, and from the next command that exits: the instruction behind it finds the ICR open.
#[test]
fn asked_and_departed() {
    let mut m = asks(0, 0, 0);
    m.then([wrmsr(0x830, IPI), Op::Nop]);
    assert_eq!(sent(&m), 0, "the ICR was the CPU's");
    assert!(m.sh.active(Mechanism::PvIpiRaw));
    // In user space.
    assert_eq!((m.v.vapic.kind, flags(&m)), (ApicKind::X2Apic, [0, YES]));
    m.then([Op::Nop, wrmsr(0x830, IPI), wrmsr(0x830, IPI)]);
    assert_eq!(sent(&m), 1, "one exited, the next did not");
    m.then([wrmsr(ICR, IPI), wrmsr(0x830, IPI), wrmsr(ICR, IPI)]);
    assert_eq!(sent(&m), 3, "its own MSR exits always");
    // User space has set registers: another kernel may be there.
    m.v.forget_sequence();
    m.then([wrmsr(0x830, IPI), wrmsr(0x830, IPI)]);
    assert_eq!(sent(&m), 5);
    assert_eq!(m.v.read_msr(&m.sh, &m.os, SEQUENCE, Origin::Guest), Ok(0));
}

/// The switch closes it at once. Back on, it opens with the guest's next command, not before: that may stand between a look at *sends* and a
/// write of the ICR.
#[test]
fn switched() {
    let mut m = asks(0, 0, 0);
    m.then([Op::Nop]);
    let off = Set::ALL.put(Mechanism::PvIpiRaw, false);
    m.w.wanted.set(off);
    m.happen(Env::Ask(Request::MECHANISMS));
    m.then([wrmsr(0x830, IPI), wrmsr(0x830, IPI), wrmsr(ICR, IPI)]);
    assert_eq!((sent(&m), flags(&m)[0]), (3, 0));
    m.w.wanted.set(Set::ALL);
    m.happen(Env::Ask(Request::MECHANISMS));
    m.then([Op::Nop, Op::Nop, wrmsr(0x830, IPI), wrmsr(0x830, IPI)]);
    assert_eq!(sent(&m), 4);
}

/// What CPUID does not tell of is #GP, and nobody is told where the administrator has not allowed it.
#[test]
fn refused() {
    let mut m = asks(0, 0, 0);
    m.w.raw_allowed.set(false);
    m.happen(Env::Ask(Request::MECHANISMS));
    m.v.b.ops.clear();
    m.then([Op::Nop]);
    for (msr, value) in [(DESCRIPTOR, 1), (DESCRIPTOR, 3), (SEQUENCE, 1), (PARTS, 1 << 16), (ICR, IPI)] {
        assert_eq!(m.v.write_msr_guest(&m.sh, &m.os, msr, value), Err(Invalid), "{msr:x}");
    }
    assert!(m.sh.chosen.facts().unwrap().has(Reason::NotAllowed));
}

/// Before *done* it is at the start again, from there on behind the end, and everybody looks at what it may have posted.
#[test]
fn put_back_or_through() {
    for (back, done, end) in [(1, 2, 0x20), (0x10, 0x10, 0x20), (0x10, 0x11, 0x11), (0, 1, 9), (9, 1, 9)] {
        let mut m = asks(0, 0, 0);
        m.then([Op::Nop]);
        // Where the next slice ends, the sequence has begun `back` bytes before.
        let rip = m.v.b.rip();
        let [a, b, c] = [(SEQUENCE, rip - back), (PARTS, end << 16 | done), (DESCRIPTOR, 3)];
        for (msr, value) in [a, b, c] {
            m.v.write_msr_guest(&m.sh, &m.os, msr, value).unwrap();
        }
        m.v.b.ops.clear();
        m.happen(Env::Ask(Request::MECHANISMS));
        m.go();
        let (at, looks) = match back {
            _ if back != 0 && back < done => (rip - back, 0),
            _ if (done..end).contains(&back) => (rip - back + end, 1),
            _ => (rip, 0),
        };
        assert_eq!((m.v.b.rip(), m.w.looks.get()), (at, looks), "{back} {done} {end}");
    }
}
