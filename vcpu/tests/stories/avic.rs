//! AVIC: when entries are with it, who finds the APIC, and what its exits ask for. What it shares with the other vendor's is in `vapic`.

use crate::fake::guest::*;
use crate::fake::machine::BACKING;
use crate::fake::world::APIC;
use crate::fake::{Env, Machine, Op};
use exitless_vcpu::backend::{ApicKind, Event, Exit};
use exitless_vcpu::chooser::{Mechanism, Set};
use exitless_vcpu::host::Host;
use exitless_vcpu::{Request, timer};
use exitless_x86::apic::{DeliveryMode, Shorthand, reg};
use exitless_x86::regs::Gpr;
use std::sync::atomic::Ordering::SeqCst;

const VALID: u64 = 1 << 63;

fn icr(v: u64) -> Op {
    wrmsr(0x830, v)
}

/// The vCPU's entry in the table.
fn entry(m: &Machine) -> u64 {
    m.w.entry.get().unwrap().load(SeqCst)
}

/// KVM_GET_LAPIC: the register at `offset`.
fn saved(m: &Machine, offset: u32) -> u32 {
    let mut page = [0; 1024];
    m.v.lapic.save(&m.sh.apic, &timer::now(&m.v, m.os.now()), &mut page);
    let at = offset as usize;
    u32::from_le_bytes(page[at..at + 4].try_into().unwrap())
}

/// In x2APIC mode and enabled, and every other vCPU too: the CPU sends. Otherwise it delivers only, or nothing, and hardware senders
/// find it while it takes interrupts.
#[test]
fn kinds() {
    let mut m = Machine::avic([Op::Nop]);
    assert_eq!(entry(&m), 0);
    m.go();
    assert_eq!((m.v.b.apic.kind, entry(&m), m.w.found.get()), (ApicKind::X2ApicIpis, VALID | BACKING, true));
    assert!(m.sh.active(Mechanism::Avic));
    m.w.unfound.set(true);
    m.then([wbinvd(), Op::Nop]);
    assert_eq!((m.v.b.apic.kind, entry(&m)), (ApicKind::X2Apic, VALID | BACKING));
    // Somebody listens to the EOIs of edges: AVIC would not tell.
    m.w.edge_eois.set(true);
    m.then([wbinvd(), Op::Nop]);
    assert_eq!((m.v.b.apic.kind, entry(&m)), (ApicKind::Software, VALID | BACKING));
    assert!(!m.sh.active(Mechanism::Avic));
    m.w.edge_eois.set(false);
    m.w.unfound.set(false);
    // Switched off and on.
    m.w.wanted.set(Set::ALL.put(Mechanism::Avic, false));
    m.happen(Env::Ask(Request::MECHANISMS));
    m.then([Op::Nop]);
    assert_eq!((m.v.b.apic.kind, entry(&m)), (ApicKind::Software, VALID | BACKING));
    m.w.wanted.set(Set::ALL);
    m.happen(Env::Ask(Request::MECHANISMS));
    m.then([Op::Nop]);
    // Software-disabled.
    m.then([wrmsr(0x80f, 0xff), Op::Nop]);
    assert_eq!((m.v.b.apic.kind, entry(&m), m.w.found.get()), (ApicKind::Software, 0, false));
    assert!(!m.sh.active(Mechanism::Avic));
    m.then([wrmsr(0x80f, 0x1ff), Op::Nop]);
    assert_eq!((m.v.b.apic.kind, entry(&m), m.w.found.get()), (ApicKind::X2ApicIpis, VALID | BACKING, true));
    // Off, and on with a page: software's.
    m.then([Op::ApicBase(APIC | 0x100), Op::Nop, Op::ApicBase(APIC | 0x900), Op::Nop]);
    assert_eq!((m.v.b.apic.kind, entry(&m), m.w.found.get()), (ApicKind::Software, 0, false));
}

/// INIT: no hardware sender finds the APIC from before it forgets what is pending; one that comes later would leave a bit there.
#[test]
fn init_retires() {
    let mut m = Machine::avic([Op::Nop, Op::World(Env::Init), Op::Nop]);
    m.v.b.handlers = false;
    m.go();
    assert_eq!((entry(&m), m.w.found.get(), m.sh.apic.top_irr()), (0, false, None));
}

/// An IPI to one who does not run: hardware has set the bit, so nobody sends it again, and the target is told. The registers read back
/// what was written. With software behind it that posts, a target that was quick would take it twice.
#[test]
fn target_not_running() {
    let mut m = Machine::avic([Op::Ipi(5), Op::Nop, Op::ReadCount, Op::Nop]);
    m.go();
    let told = *m.w.ipis.borrow().first().unwrap();
    assert_eq!((told.destination, told.vector, told.x2apic), (5, 0x77, true));
    assert_eq!(m.w.ipis.borrow().len(), 1);
    assert_eq!((saved(&m, reg::ICR), saved(&m, reg::ICR2)), (0x77, 5));
    m.then([rdmsr(0x830), Op::Nop]);
    assert_eq!((m.v.b.gprs.get(Gpr::Rax), m.v.b.gprs.get(Gpr::Rdx)), (0x77, 5));
}

/// What is not fixed and edge-triggered hardware leaves alone: software sends it, once.
#[test]
fn other_types_are_sent() {
    for (value, mode) in
        [(3 << 32 | 4 << 8, DeliveryMode::NMI), (3 << 32 | 5 << 8 | 1 << 14, DeliveryMode::INIT)]
    {
        let mut m = Machine::avic([Op::Nop, icr(value), Op::Nop]);
        m.go();
        let sent: Vec<_> = m.w.ipis.borrow().iter().map(|i| (i.destination, i.mode)).collect();
        assert_eq!(sent, [(3, mode)]);
        assert_eq!(saved(&m, reg::ICR2), 3);
    }
}

/// Its own CPU sends to itself without an exit, by shorthand and by id; the vector is there once.
#[test]
fn to_itself() {
    for value in [1 << 18 | 0x61, 0x61] {
        let mut m = Machine::avic([Op::Nop]);
        m.go();
        let entries = m.v.b.entries;
        m.then([icr(value), Op::Nop, Op::Nop]);
        assert_eq!((m.events(), m.v.b.entries), (vec![Event::Interrupt(0x61)], entries + 1));
    }
}

/// Where another APIC is not found, or IPIs are not the CPU's, a write of the ICR exits and software sends.
#[test]
fn ipis_of_software() {
    let mut m = Machine::avic([Op::Ipi(5), Op::Nop]);
    m.w.unfound.set(true);
    m.go();
    assert_eq!((m.v.b.apic.kind, m.w.ipis.borrow()[0].shorthand), (ApicKind::X2Apic, Shorthand::None));
}

/// Sent by a CPU at any moment: around entries, on the way to sleep, over moves to another CPU, and while the guest disables its APIC.
/// Whoever looks at the entry finds us running and rings, or tells us.
#[test]
fn sent_by_a_cpu() {
    for (points, gap) in (0..24).flat_map(|p| (0..6).map(move |g| (p, g))) {
        for ops in [
            vec![wbinvd(), Op::Nop, cpuid(0, 0), Op::Nop, wbinvd(), Op::Nop],
            vec![Op::Nop, hlt(), Op::Nop, Op::Nop],
            vec![Op::World(Env::Move(2)), Op::Nop, hlt(), Op::Nop, Op::World(Env::Move(1)), Op::Nop],
            vec![Op::World(Env::Pic(8)), Op::Nop, hlt(), Op::Nop, Op::Nop],
        ] {
            let mut m = Machine::avic([Op::Nop]);
            m.go();
            m.later(points, Env::SentByCpu(0x41, gap));
            m.later(points / 2, Env::SentByCpu(0x91, gap));
            m.then(ops);
            m.finish();
            let all: Vec<_> = m.events().into_iter().filter(|e| *e != Event::Interrupt(8)).collect();
            let mut sorted = all.clone();
            sorted.sort_by_key(|e| *e == Event::Interrupt(0x91));
            assert_eq!(sorted, [Event::Interrupt(0x41), Event::Interrupt(0x91)], "{points}, {gap}");
        }
    }
}

/// Exits of accesses that AVIC leaves to us: a trap is done and has its effect; before RDMSR and WRMSR the instruction is to be done.
#[test]
fn unaccelerated() {
    let mut m = Machine::avic([Op::Nop]);
    m.go();
    m.v.b.apic.stops = true;
    m.then([Op::SelfIpi(0x61), Op::Nop, Op::Nop]);
    assert_eq!(m.events(), [Event::Interrupt(0x61)]);
    let Op::Exit(mut read) = rdmsr(0x803) else { panic!() };
    read.exit = Exit::Unaccelerated(reg::VERSION, false);
    m.then([Op::Exit(read), Op::Nop]);
    assert_eq!(m.v.b.gprs.get(Gpr::Rax), 0x50014);
    m.then([wrmsr(0x837, 0x1_00fe), Op::Nop]);
    assert_eq!(saved(&m, reg::LVT_ERROR), 0x1_00fe);
}
