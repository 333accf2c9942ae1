//! Guests that send IPIs by themselves: when the ICR is theirs, that it never becomes so behind their back, and where a vCPU is found that
//! was stopped in its sequence.

use crate::fake::guest::*;
use crate::fake::{Env, Machine, Op};
use exitless_policy::{Invalid, Origin};
use exitless_vcpu::Request;
use exitless_vcpu::backend::{ApicKind, Backend};
use exitless_vcpu::chooser::{Mechanism, Reason, Set};
use exitless_x86::regs::efer;
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
    m.long_mode();
    m.go();
    let parts = wrmsr(PARTS, end << 16 | done);
    m.v.b.ops.extend([wrmsr(SEQUENCE, start), parts, wrmsr(DESCRIPTOR, 3)]);
    m
}

/// Commands that exited.
fn sent(m: &Machine) -> usize {
    m.w.ipis.borrow().len()
}

/// From the MSR to the return to user space, and from the next command by its own MSR: the instruction behind it finds the ICR open. The x2APIC's
/// never opens it, wherever its exit is answered: who stands between a look at *sends* and that register means the virtual one.
#[test]
fn asked_and_departed() {
    let mut m = asks(0, 0, 0);
    m.then([wrmsr(0x830, IPI), Op::Nop]);
    assert_eq!(sent(&m), 0, "the ICR was the CPU's");
    assert!(m.sh.active(Mechanism::PvIpiRaw));
    // In user space.
    assert_eq!((m.v.vapic.kind, flags(&m)), (ApicKind::X2Apic, [0, YES]));
    m.then([Op::Nop, wrmsr(0x830, IPI), told(wrmsr(0x830, IPI)), wrmsr(0x830, IPI)]);
    assert_eq!((sent(&m), flags(&m)[0]), (3, 0), "not by the x2APIC's");
    for icr in [wrmsr(ICR, IPI), told(wrmsr(ICR, IPI))] {
        let before = sent(&m);
        m.then([icr, wrmsr(0x830, IPI), wrmsr(0x830, IPI), wrmsr(ICR, IPI)]);
        assert_eq!(sent(&m) - before, 2, "its own MSR exits always, the other does not any more");
    }
    // User space has set registers: another kernel may be there.
    m.v.forget_sequence();
    m.then([wrmsr(0x830, IPI), wrmsr(0x830, IPI)]);
    assert_eq!(sent(&m), 9);
    assert_eq!(m.v.read_msr(&m.sh, &m.os, SEQUENCE, Origin::Guest), Ok(0));
}

/// The switch closes it at once. Back on, it opens with the guest's next command by its own MSR, not before: that may stand between a look at *sends* and a
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
    m.then([Op::Nop, Op::Nop, wrmsr(0x830, IPI), wrmsr(ICR, IPI), wrmsr(0x830, IPI)]);
    assert_eq!(sent(&m), 5);
}

/// User space can take it away, not give it: at any moment the guest may stand in front of a register that it takes for the virtual ICR.
#[test]
fn never_by_user_space() {
    for asked in [false, true] {
        let mut m = asks(0, 0, 0);
        if !asked {
            m.v.b.ops.clear();
            m.v.b.ops.extend([Op::Nop]);
        }
        m.go();
        // Not kept by `sent`, and behind a return to user space either way.
        for (msr, value) in [(ICR, IPI), (0x830, IPI), (DESCRIPTOR, 3)] {
            let caps = *m.v.cpuid.caps();
            m.v.write_msr(&m.sh, &m.os, msr, value, Origin::Host, &caps).unwrap();
            let before = sent(&m);
            m.then([wrmsr(0x830, IPI), wrmsr(0x830, IPI)]);
            assert_eq!((sent(&m) - before, flags(&m)[0]), (2, 0), "{msr:x} {asked}");
        }
        assert_eq!(m.v.read_msr(&m.sh, &m.os, DESCRIPTOR, Origin::Guest), Ok(1));
        m.then([wrmsr(DESCRIPTOR, 3), wrmsr(0x830, IPI)]);
        assert!(m.sh.active(Mechanism::PvIpiRaw), "the guest's own word");
    }
}

/// Where the CPU posts to some vCPUs of a VM, none is told of the window: not the one that has no entry in the CPU's table either.
#[test]
fn hardware_posts_to_others() {
    let mut m = asks(0, 0, 0);
    m.w.hardware_posts.set(true);
    m.happen(Env::Ask(Request::MECHANISMS));
    m.v.b.ops.clear();
    m.then([Op::Nop]);
    assert!(m.sh.chosen.facts().unwrap().has(Reason::HardwarePosts));
    assert_eq!(m.v.write_msr_guest(&m.sh, &m.os, DESCRIPTOR, 3), Err(Invalid));
}

/// What CPUID does not tell of is #GP, and nobody is told where the administrator has not allowed it.
#[test]
fn refused() {
    let mut m = asks(0, 0, 0);
    m.w.raw_allowed.set(false);
    // Which shows the window too.
    m.w.wanted.set(Set::ALL.put(Mechanism::TimerInGuest, false));
    m.happen(Env::Ask(Request::MECHANISMS));
    m.v.b.ops.clear();
    m.then([Op::Nop]);
    for (msr, value) in [(DESCRIPTOR, 1), (DESCRIPTOR, 3), (SEQUENCE, 1), (PARTS, 1 << 16), (ICR, IPI)] {
        assert_eq!(m.v.write_msr_guest(&m.sh, &m.os, msr, value), Err(Invalid), "{msr:x}");
    }
    assert!(m.sh.chosen.facts().unwrap().has(Reason::NotAllowed));
}

/// The sender's thread gives up its CPU between *done* and end: siblings would stop behind its ON. Everybody looks, and it goes on where it was.
#[test]
fn pauses_behind_on() {
    for (back, looks) in [(0, 0), (1, 0), (0x10, 1), (0x1f, 1), (0x20, 0)] {
        let mut m = asks(0, 0, 0);
        m.then([Op::Nop]);
        let rip = m.v.b.rip();
        for (msr, value) in [(SEQUENCE, rip - back), (PARTS, 0x20 << 16 | 0x10), (DESCRIPTOR, 3)] {
            m.v.write_msr_guest(&m.sh, &m.os, msr, value).unwrap();
        }
        m.v.vapic.kind = ApicKind::X2ApicRaw;
        exitless_vcpu::apic::raw::pauses(&m.v, &m.os);
        assert_eq!((m.v.b.rip(), m.w.looks.get()), (rip, looks), "{back}");
    }
}

/// Outside of 64-bit mode nothing is the sequence, and it does not end where no address is: RIP would be one that no entry takes.
#[test]
fn only_addresses() {
    let mut m = asks(0, 0, 0);
    m.then([Op::Nop]);
    let last = (1 << 47) - 0x20;
    m.v.write_msr_guest(&m.sh, &m.os, PARTS, 0).unwrap();
    m.v.write_msr_guest(&m.sh, &m.os, SEQUENCE, last).unwrap();
    assert_eq!(m.v.write_msr_guest(&m.sh, &m.os, PARTS, 0x20 << 16), Err(Invalid));
    m.v.write_msr_guest(&m.sh, &m.os, PARTS, 0x1f << 16).unwrap();
    assert_eq!(m.v.write_msr_guest(&m.sh, &m.os, SEQUENCE, last + 1), Err(Invalid));
    let rip = m.v.b.rip();
    m.v.write_msr_guest(&m.sh, &m.os, SEQUENCE, rip - 8).unwrap();
    m.v.vapic.kind = ApicKind::X2ApicRaw;
    let long = m.v.b.efer();
    m.v.b.set_efer(long & !efer::LMA);
    exitless_vcpu::apic::raw::depart(&mut m.v, &m.sh, &m.os);
    assert_eq!((m.v.b.rip(), m.w.looks.get()), (rip, 0));
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
            // Before the thread may have to wait for the CPU, and before user space.
            _ if (done..end).contains(&back) => (rip - back + end, 2),
            _ => (rip, 0),
        };
        assert_eq!((m.v.b.rip(), m.w.looks.get()), (at, looks), "{back} {done} {end}");
    }
}
