//! Intel's IPI virtualization: when entries are with it, who finds the APIC, and what its exits ask for.

use crate::fake::guest::*;
use crate::fake::machine::MAILBOX;
use crate::fake::world::APIC;
use crate::fake::{Env, Machine, Op};
use exitless_vcpu::backend::{ApicKind, Event};
use exitless_vcpu::chooser::{Mechanism, Reason, Set};
use exitless_vcpu::host::Host;
use exitless_vcpu::{Request, timer};
use exitless_x86::apic::{DeliveryMode, Shorthand, reg};
use exitless_x86::regs::Gpr;
use std::sync::atomic::Ordering::SeqCst;

fn icr(v: u64) -> Op {
    wrmsr(0x830, v)
}

/// The vCPU's entry in the table.
fn entry(m: &Machine) -> u64 {
    m.w.pid.get().unwrap().load(SeqCst)
}

/// KVM_GET_LAPIC: the ICR.
fn saved(m: &Machine) -> (u32, u32) {
    let mut page = [0; 1024];
    m.v.lapic.save(&m.sh.apic, &timer::now(&m.v, m.os.now()), &mut page);
    let at = |offset: u32| u32::from_le_bytes(page[offset as usize..][..4].try_into().unwrap());
    (at(reg::ICR), at(reg::ICR2))
}

/// In x2APIC mode and enabled, and wanted: the CPU sends. Senders find the APIC whether it sends or not, while it takes interrupts.
#[test]
fn kinds() {
    let mut m = Machine::ipiv([Op::Nop]);
    assert_eq!(entry(&m), 0);
    m.go();
    assert_eq!((m.v.b.apic.kind, entry(&m)), (ApicKind::X2ApicIpis, MAILBOX | 1));
    assert!(m.sh.active(Mechanism::IpiVirtualization));
    // Switched off and on.
    m.w.wanted.set(Set::ALL.put(Mechanism::IpiVirtualization, false));
    m.happen(Env::Ask(Request::MECHANISMS));
    m.then([Op::Nop]);
    assert_eq!((m.v.b.apic.kind, entry(&m)), (ApicKind::X2Apic, MAILBOX | 1));
    assert!(!m.sh.active(Mechanism::IpiVirtualization));
    m.w.wanted.set(Set::ALL);
    m.happen(Env::Ask(Request::MECHANISMS));
    m.then([Op::Nop]);
    // Software-disabled.
    m.then([wrmsr(0x80f, 0xff), Op::Nop]);
    assert_eq!((m.v.b.apic.kind, entry(&m)), (ApicKind::X2ApicOff, 0));
    m.then([wbinvd(), Op::Nop]);
    assert!(!m.sh.active(Mechanism::IpiVirtualization) && m.sh.chosen.facts().unwrap().has(Reason::NoX2Apic));
    m.then([wrmsr(0x80f, 0x1ff), Op::Nop]);
    assert_eq!((m.v.b.apic.kind, entry(&m)), (ApicKind::X2ApicIpis, MAILBOX | 1));
    // Off, and on with a page, software-disabled.
    m.then([Op::ApicBase(APIC | 0x100), Op::Nop, Op::ApicBase(APIC | 0x900), Op::Nop]);
    assert_eq!((m.v.b.apic.kind, entry(&m)), (ApicKind::Software, 0));
}

/// INIT: no sender finds the APIC from before it forgets what is pending.
#[test]
fn init_retires() {
    let mut m = Machine::ipiv([Op::Nop, Op::World(Env::Init), Op::Nop]);
    m.v.b.handlers = false;
    m.go();
    assert_eq!((entry(&m), m.sh.apic.top_irr()), (0, None));
}

/// A plain one that the table has costs no exit, and the ICR reads back what was written, also after the switch went off.
#[test]
fn sent_without_an_exit() {
    let mut m = Machine::ipiv([Op::Nop]);
    m.go();
    let entries = m.v.b.entries;
    m.then([icr(0x61), Op::Nop, Op::Nop]);
    assert_eq!((m.events(), m.v.b.entries), (vec![Event::Interrupt(0x61)], entries + 1));
    m.then([rdmsr(0x830), Op::Nop]);
    assert_eq!((m.v.b.gprs.get(Gpr::Rax), m.v.b.gprs.get(Gpr::Rdx)), (0x61, 0));
    m.w.wanted.set(Set::NONE);
    m.happen(Env::Ask(Request::MECHANISMS));
    m.then([Op::Nop, rdmsr(0x830), Op::Nop]);
    assert_eq!((m.v.b.gprs.get(Gpr::Rax), saved(&m)), (0x61, (0x61, 0)));
    assert!(m.w.ipis.borrow().is_empty());
}

/// What hardware leaves is sent once, by the whole command, whether the fast path is on or not.
#[test]
fn the_rest_is_sent() {
    for (value, mode, shorthand) in [
        (5 << 32 | 0x77, DeliveryMode::FIXED, Shorthand::None),
        (3 << 32 | 4 << 8, DeliveryMode::NMI, Shorthand::None),
        (3 << 32 | 5 << 8 | 1 << 14, DeliveryMode::INIT, Shorthand::None),
        (3 << 18 | 0x55, DeliveryMode::FIXED, Shorthand::AllButSelf),
        (1 << 11 | 0x1_0002 << 32 | 0x56, DeliveryMode::FIXED, Shorthand::None),
    ] {
        for fast in [true, false] {
            let mut m = Machine::ipiv([Op::Nop, icr(value), Op::Nop]);
            m.w.wanted.set(Set::ALL.put(Mechanism::IpiFastpath, fast));
            m.go();
            let sent: Vec<_> =
                m.w.ipis.borrow().iter().map(|i| (i.destination, i.mode, i.shorthand)).collect();
            assert_eq!(sent, [((value >> 32) as u32, mode, shorthand)], "{value:#x}");
            assert_eq!(saved(&m), (value as u32, (value >> 32) as u32));
        }
    }
    // To itself by shorthand: nobody else is asked.
    let mut m = Machine::ipiv([Op::Nop, icr(1 << 18 | 0x61), Op::Nop, Op::Nop]);
    m.go();
    assert_eq!(m.events(), vec![Event::Interrupt(0x61)]);
    assert!(m.w.ipis.borrow().is_empty());
}

/// Sent to itself and then halted: the vector is there.
#[test]
fn a_guest_that_idles_takes_what_comes() {
    let mut m = Machine::ipiv([Op::Nop, icr(0x62), hlt(), Op::Nop, Op::Nop]);
    m.go();
    assert_eq!(m.events(), vec![Event::Interrupt(0x62)]);
}
