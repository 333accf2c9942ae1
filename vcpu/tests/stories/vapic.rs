//! The local APIC while the CPU virtualises it: who posts, where the registers are, and what comes back.

use crate::fake::guest::*;
use crate::fake::machine::TIMER_VECTOR;
use crate::fake::world::APIC;
use crate::fake::{Env, Machine, Op};
use exitless_vcpu::RunExit;
use exitless_vcpu::backend::{ApicKind, Event, Exit, SlatFault};
use exitless_vcpu::host::Host;
use exitless_vcpu::timer;
use exitless_x86::apic::{lvt, reg};
use exitless_x86::exception::Exception;
use std::sync::atomic::Ordering::SeqCst;

/// IA32_APIC_BASE of a boot CPU.
const DISABLED: u64 = APIC | 0x100;
const XAPIC: u64 = DISABLED | 0x800;
const X2APIC: u64 = XAPIC | 0x400;

const FAULT: Exit = Exit::Slat(SlatFault {
    gpa: 0x5000,
    write: true,
    fetch: false,
    present: false,
    table_walk: false,
    marked: false,
});

fn int(v: u8) -> Event {
    Event::Interrupt(v)
}

fn irq(v: u8) -> Op {
    Op::World(Env::Irq(v))
}

fn store_apic(at: u32, v: u32) -> Op {
    store(APIC + u64::from(at), v)
}

/// SVR: software-disabled, and back with what that masked.
fn off() -> Op {
    store_apic(reg::SVR, 0xff)
}

fn on() -> [Op; 3] {
    let timer = u32::from(TIMER_VECTOR) | lvt::TIMER_DEADLINE;
    [store_apic(reg::SVR, 0x1ff), store_apic(reg::LVT_TIMER, timer), store_apic(reg::LVT_LINT0, 7 << 8)]
}

/// In both flavours.
fn both(ops: &[Op], check: impl Fn(Machine)) {
    for x2apic in [false, true] {
        check(Machine::virtual_apic(x2apic, ops.iter().cloned()));
    }
}

/// And on CPUs with AVIC.
fn each(ops: &[Op], check: impl Fn(Machine)) {
    both(ops, &check);
    check(Machine::avic(ops.iter().cloned()));
}

/// KVM_GET_LAPIC: the register at `offset`.
fn saved(m: &Machine, offset: u32) -> u32 {
    let mut page = [0; 1024];
    m.v.lapic.save(&m.sh.apic, &timer::now(&m.v, m.os.now()), &mut page);
    let at = offset as usize;
    u32::from_le_bytes(page[at..at + 4].try_into().unwrap())
}

/// The bit of `v` in a bank.
fn saved_bit(m: &Machine, bank: u32, v: u8) -> bool {
    saved(m, bank + u32::from(v / 32) * 16) >> (v % 32) & 1 != 0
}

/// Posted before KVM_RUN, with a request: the entry finds it in the page, and the CPU delivers it. If only announced vectors
/// went into the page, it would wait for the next one.
#[test]
fn posted_outside() {
    each(&[Op::Nop, Op::Nop], |mut m| {
        m.happen(Env::Irq(0x41));
        m.go();
        assert_eq!((m.events(), &m.v.b.apic.virtually[..]), (vec![int(0x41)], &[0x41][..]));
        assert_eq!(m.v.b.entries, 1, "EOI without an exit");
    });
}

/// Posted while the guest runs: a notification, no request, no exit. With a request the guest would come out each time.
#[test]
fn posted_in_the_guest() {
    each(&[Op::Nop, irq(0x41), Op::Nop, irq(0x42), Op::Nop, Op::Nop], |mut m| {
        m.go();
        assert_eq!(m.events(), [int(0x41), int(0x42)]);
        assert_eq!((m.v.b.entries, m.v.b.apic.virtually.len()), (1, 2));
    });
}

/// Level triggered or not, as the guest reads it in the TMR, though nobody but hardware handles the vector.
#[test]
fn trigger_mode_in_the_page() {
    each(&[Op::Nop, irq(0x41), Op::Nop, Op::Nop], |mut m| {
        m.w.level.set(true);
        m.go();
        assert!(m.v.b.apic.has(reg::TMR, 0x41));
        m.w.level.set(false);
        m.then([Op::Nop, irq(0x41), irq(0x42), Op::Nop, Op::Nop]);
        assert!(!m.v.b.apic.has(reg::TMR, 0x41) && !saved_bit(&m, reg::TMR, 0x41));
        assert_eq!(m.v.b.apic.virtually.len(), 3);
    });
}

/// Posted at any point around an entry, by a sender of any slowness: with a look at the descriptor only before IN_GUEST, what
/// comes between would lie there with nobody told.
#[test]
fn posted_around_the_entry() {
    for (points, gap) in (0..24).flat_map(|p| (0..5).map(move |g| (p, g))) {
        each(&[wbinvd(), Op::Nop, cpuid(0, 0), Op::Nop, wbinvd(), Op::Nop], |mut m| {
            m.later(points, Env::SlowIrq(0x41, gap));
            m.later(points / 2, Env::SlowIrq(0x91, gap));
            m.go();
            m.finish();
            let mut all = m.events();
            all.sort_by_key(|e| *e == int(0x91));
            assert_eq!(all, [int(0x41), int(0x91)], "{points}, {gap}");
        });
    }
}

/// Posted at any point of the way to sleep, by a sender of any slowness: who sleeps on an announcement that came behind the last
/// look, from a sender that took it for running, sleeps for ever.
#[test]
fn posted_while_going_to_sleep() {
    for (points, gap) in (0..24).flat_map(|p| (0..6).map(move |g| (p, g))) {
        each(&[Op::Nop, hlt(), Op::Nop, Op::Nop], |mut m| {
            m.later(points, Env::SlowIrq(0x41, gap));
            m.go();
            assert_eq!(m.events(), [int(0x41)], "{points}, {gap}");
        });
    }
}

/// STI; HLT with a vector that hardware already has in the page: HLT ends at once. Looking at the descriptor only, the vCPU would
/// sleep on it.
#[test]
fn halt_in_the_shadow() {
    each(&[Op::Cli, irq(0x41), Op::Nop, Op::Sti, hlt(), Op::Nop, Op::Nop], |mut m| {
        m.go();
        assert_eq!((m.events(), m.w.blocks.get()), (vec![int(0x41)], 0));
    });
}

/// The TPR holds a vector back and lets it in without an exit. If the page's TPR were not the guest's, it would come early or
/// never.
#[test]
fn masked_by_tpr() {
    for lower in [Op::Cr8(3), Op::Tpr(0x3f)] {
        each(&[Op::Cr8(4), irq(0x41), Op::Nop, Op::Nop], |mut m| {
            m.go();
            assert_eq!(m.events(), []);
            assert!(saved_bit(&m, reg::IRR, 0x41));
            let entries = m.v.b.entries;
            m.then([lower.clone(), Op::Nop]);
            assert_eq!(m.events(), [int(0x41)]);
            assert_eq!(m.v.b.entries, entries + 1);
        });
    }
}

/// One after the other by priority, a higher one into the handler of a lower one: RVI must be the highest after each merge.
#[test]
fn by_priority() {
    each(&[Op::Cli, irq(0x41), irq(0x92), irq(0x93), Op::Sti, Op::Nop, Op::Nop, Op::Nop], |mut m| {
        m.go();
        assert_eq!(m.events(), [int(0x93), int(0x92), int(0x41)]);
    });
    let nested = [irq(0x41), Op::Nop, Op::Sti, Op::Nop, irq(0x35), irq(0x92), Op::Nop, Op::Nop];
    each(&nested, |mut m| {
        m.v.b.handlers = false;
        m.go();
        assert_eq!(m.events(), [int(0x41), int(0x92)]);
        m.then([Op::Eoi, Op::Iret, Op::Eoi, Op::Iret, Op::Nop]);
        assert_eq!(m.events(), [int(0x35)]);
    });
}

/// A lower one comes from outside while a higher one waits in the page: RVI stays the higher one's.
#[test]
fn lower_behind_higher() {
    for points in 0..16 {
        each(&[irq(0x92), wbinvd(), Op::Nop, wbinvd(), Op::Nop], |mut m| {
            m.v.b.rflags &= !exitless_x86::regs::rflags::IF;
            m.later(points, Env::Irq(0x31));
            m.later(0, Env::Irq(0x41));
            m.go();
            m.finish();
            m.then([Op::Sti, Op::Nop, Op::Nop]);
            assert_eq!(m.events(), [int(0x92), int(0x41), int(0x31)], "{points}");
        });
    }
}

/// The TPR that the guest set while software had the APIC holds in hardware.
#[test]
fn tpr_of_software() {
    let mut m = Machine::virtual_apic(false, [off(), Op::Nop, Op::Tpr(0x4a), Op::Nop]);
    m.then(on().into_iter().chain([Op::Nop, irq(0x45), Op::Nop]));
    assert_eq!((m.events(), saved(&m, reg::TPR)), (vec![], 0x4a));
    m.then([Op::Cr8(3), Op::Nop]);
    assert_eq!((&m.v.b.apic.virtually[..], saved(&m, reg::TPR)), (&[0x45][..], 0x30));
}

/// The same vector again before its turn is one interrupt; again in its handler is another.
#[test]
fn same_vector_again() {
    each(&[Op::Cli, irq(0x41), Op::Nop, irq(0x41), Op::Sti, Op::Nop, Op::Nop], |mut m| {
        m.go();
        assert_eq!(m.events(), [int(0x41)]);
        m.v.b.handlers = false;
        m.then([irq(0x41), Op::Nop, irq(0x41), Op::Nop, Op::Eoi, Op::Iret, Op::Nop, Op::Eoi, Op::Iret]);
        assert_eq!(m.events(), [int(0x41), int(0x41)]);
    });
}

/// The end of a level-triggered interrupt exits, and the I/O APIC hears of it, once; of an edge it does not. Without the bit in
/// the bitmap its pin would never fire again.
#[test]
fn level_eoi() {
    for split in [false, true] {
        each(&[Op::Nop, irq(0x41), Op::Nop, Op::Nop], |mut m| {
            m.w.split.set(split);
            m.w.wanted_eoi.set(Some(0x52));
            m.happen(Env::Irq(0x52));
            m.sh.apic.post(0x52, true);
            if split {
                assert_eq!(m.go(), RunExit::IoapicEoi { vector: 0x52 });
                assert!(!saved_bit(&m, reg::ISR, 0x52));
            }
            assert_eq!(m.go(), RunExit::Interrupted);
            assert_eq!(m.events(), [int(0x52), int(0x41)]);
            assert_eq!(*m.w.eois.borrow(), [(0x52, true)]);
        });
    }
}

/// A chip begins to listen while its vector is in service: the vCPU is asked to look, and the EOI exits.
#[test]
fn listener_comes_late() {
    each(&[irq(0x52), Op::Nop], |mut m| {
        m.v.b.handlers = false;
        m.go();
        m.w.wanted_eoi.set(Some(0x52));
        m.w.edge_eois.set(true);
        m.happen(Env::Ask(exitless_vcpu::Request::EVENT));
        m.then([Op::Eoi, Op::Iret, Op::Nop]);
        assert_eq!(*m.w.eois.borrow(), [(0x52, false)]);
    });
}

/// Software looks in the middle of everything: one in service, one behind it, one below the TPR, one just posted. KVM_GET_LAPIC
/// tells all, and all of it goes back: each arrives once. A page that stayed home would show old registers; one not emptied
/// would deliver twice.
#[test]
fn software_looks() {
    let ops = [irq(0x91), Op::Nop, Op::Tpr(0x2b), irq(0x41), irq(0x21), Op::Nop];
    for look in
        [Op::ReadCount, Op::World(Env::Signal), load(crate::fake::world::USER_MMIO), Op::Deadline(1 << 20)]
    {
        each(&ops, |mut m| {
            m.v.b.handlers = false;
            m.then([look.clone(), irq(0x92)]);
            assert_eq!(m.events(), [int(0x91)], "{look:?}");
            for v in [0x21, 0x41, 0x92] {
                assert!(saved_bit(&m, reg::IRR, v) && !saved_bit(&m, reg::ISR, v), "{v:x}");
            }
            assert!(saved_bit(&m, reg::ISR, 0x91) && !saved_bit(&m, reg::IRR, 0x91));
            assert_eq!((saved(&m, reg::TPR), saved(&m, reg::PPR)), (0x2b, 0x90));
            m.then([
                look.clone(),
                Op::Eoi,
                Op::Iret,
                Op::Nop,
                look.clone(),
                Op::Nop,
                Op::Eoi,
                Op::Iret,
                Op::Nop,
            ]);
            m.then([
                look.clone(),
                Op::Eoi,
                Op::Iret,
                Op::Cr8(0),
                Op::Nop,
                look.clone(),
                Op::Eoi,
                Op::Iret,
                Op::Nop,
            ]);
            assert_eq!(m.events(), [int(0x92), int(0x41), int(0x21)], "{look:?}");
        });
    }
}

/// The guest sends itself an interrupt, without an exit; while software has the APIC it arrives the same way.
#[test]
fn self_ipi() {
    both(&[Op::SelfIpi(0x61), Op::Nop, Op::Nop], |mut m| {
        m.go();
        assert_eq!((m.events(), m.v.b.entries), (vec![int(0x61)], 1));
    });
    each(&[Op::Nop, Op::SelfIpi(0x61), Op::Nop, Op::Nop], |mut m| {
        m.v.b.apic.able = false;
        m.go();
        assert_eq!(m.events(), [int(0x61)]);
    });
}

/// Between the two halves of the ICR comes a signal, an MMIO exit, a look at the timer: the IPI goes where the guest said. Hardware
/// takes the upper half without telling; when software did not take it back, the next page had the one of the IPI before.
#[test]
fn icr_in_two_halves() {
    let user = load(crate::fake::world::USER_MMIO);
    for between in [Op::Nop, Op::ReadCount, Op::World(Env::Signal), user, Op::Deadline(5000)] {
        let icr = |v| store_apic(reg::ICR, v);
        let first =
            [store_apic(reg::ICR2, 3 << 24), icr(0x77), store_apic(reg::ICR2, 5 << 24), between.clone()];
        let mut m = Machine::virtual_apic(false, first);
        m.go();
        assert_eq!(saved(&m, reg::ICR2), 5 << 24, "{between:?}");
        m.then([icr(0x78), Op::Nop]);
        let sent: Vec<_> = m.w.ipis.borrow().iter().map(|i| (i.destination, i.vector)).collect();
        assert_eq!(sent, [(3, 0x77), (5, 0x78)], "{between:?}");
    }
}

/// Software-disabled and enabled again with something pending and something in service: software goes on where the CPU stopped,
/// and the CPU where software did. Hardware does not know the bit in SVR, so left to it a disabled APIC would work on.
#[test]
fn software_disabled_and_back() {
    let pending = [Op::Cli, irq(0x41), off(), Op::Sti, Op::Nop, Op::Nop];
    let mut m = Machine::virtual_apic(false, pending);
    m.go();
    assert_eq!((m.events(), m.v.b.apic.virtually.len()), (vec![int(0x41)], 0));
    assert_eq!((m.v.b.apic.kind, m.sh.delivers.load(SeqCst)), (ApicKind::Software, false));
    m.then([irq(0x42), Op::Nop]);
    assert_eq!(m.events(), [], "a disabled APIC accepts nothing");
    m.then(on().into_iter().chain([Op::Nop, irq(0x43), Op::Nop]));
    assert_eq!((m.events(), &m.v.b.apic.virtually[..]), (vec![int(0x43)], &[0x43][..]));
    assert_eq!((m.v.b.apic.kind, m.sh.delivers.load(SeqCst)), (ApicKind::XApic, true));

    // As MSRs: the CPU goes on, without self-IPIs.
    let pending = [Op::Cli, irq(0x41), wrmsr(0x80f, 0xff), Op::Sti, Op::Nop, Op::Nop];
    let mut m = Machine::virtual_apic(true, pending);
    m.go();
    assert_eq!((m.events(), &m.v.b.apic.virtually[..]), (vec![int(0x41)], &[0x41][..]));
    assert_eq!((m.v.b.apic.kind, m.sh.delivers.load(SeqCst)), (ApicKind::X2ApicOff, true));
    m.then([irq(0x42), Op::Nop]);
    assert_eq!(m.events(), [], "a disabled APIC accepts nothing");

    // In service across both changes, with one waiting behind it.
    let mut m = Machine::virtual_apic(false, [irq(0x91), Op::Nop, irq(0x41), off(), Op::Nop]);
    m.v.b.handlers = false;
    m.then(on());
    assert_eq!(m.events(), [int(0x91)]);
    m.then([Op::Eoi, Op::Iret, Op::Nop, Op::Eoi, Op::Iret, Op::Nop]);
    assert_eq!(m.events(), [int(0x41)]);
}

/// A sender that saw the CPU deliver, and is slow, while the guest disables its APIC, runs on and halts: its vector was accepted
/// before and must arrive. It announced to one who no longer listens for announcements.
#[test]
fn slow_sender_and_the_switch() {
    for (points, gap) in (0..40).flat_map(|p| (0..12).map(move |g| (p, g))) {
        let ops = [Op::Nop, wbinvd(), off(), Op::Nop, wbinvd(), Op::Nop, Op::Nop];
        let mut m = Machine::virtual_apic(false, ops);
        m.later(points, Env::SlowIrq(0x41, gap));
        m.go();
        let early = m.w.irr.borrow().contains(&0x41);
        m.w.finish_senders();
        m.then([Op::Nop, Op::Nop]);
        let got = m.events();
        assert!(got == [int(0x41)] || got.is_empty() && !early, "{points}, {gap}: {got:?}");
    }
}

/// The same with the look at the mode before the announcement, as weak memory may have it: the notification was for a slice that
/// is over. Before entry and before sleep the announcement counts like a request, whether the CPU delivers (any more) or not.
#[test]
fn announced_to_one_who_left() {
    for (points, off) in (0..40).flat_map(|p| [(p, vec![Op::Nop]), (p, vec![off()])]) {
        let ops = [Op::Nop, wbinvd(), Op::Nop, wbinvd(), Op::Nop, hlt(), Op::Nop, Op::Nop];
        let mut m = Machine::virtual_apic(false, off.into_iter().chain(ops));
        m.later(points, Env::LateIrq(0x41));
        m.go();
        m.finish();
        assert_eq!(m.events(), [int(0x41)], "{points}");
    }
}

/// xAPIC to x2APIC: what is pending arrives. Disabled: it is gone, and stays gone when the APIC comes back.
#[test]
fn mode_changes() {
    let ops = [irq(0x91), Op::Nop, Op::Cli, irq(0x41), Op::ApicBase(X2APIC), Op::Nop];
    let mut m = Machine::virtual_apic(false, ops);
    m.v.b.handlers = false;
    m.go();
    assert_eq!((m.events(), m.v.b.apic.kind), (vec![int(0x91)], ApicKind::X2Apic));
    m.then([Op::Eoi, Op::Iret, Op::Nop, Op::Eoi, Op::Iret]);
    assert_eq!((m.events(), m.v.b.apic.virtually.len()), (vec![int(0x41)], 2));

    both(&[irq(0x91), Op::Nop, irq(0x41), Op::ApicBase(DISABLED), Op::Nop], |mut m| {
        m.v.b.handlers = false;
        m.go();
        assert_eq!((m.events(), m.v.b.apic.kind), (vec![int(0x91)], ApicKind::Software));
        m.then([Op::Iret, Op::Nop, irq(0x42), Op::ApicBase(XAPIC)]);
        m.then(on().into_iter().chain([Op::Nop, Op::Nop]));
        assert_eq!(m.events(), []);
        assert_eq!(m.v.b.apic.kind, ApicKind::XApic);
        m.then([irq(0x43), Op::Nop]);
        assert_eq!(m.events(), [int(0x43)]);
        assert!(!saved_bit(&m, reg::ISR, 0x91));
    });
}

/// INIT with one in service and one pending, while the page is home: all of it is gone, and does not come back from the page.
#[test]
fn init_empties_the_page() {
    each(&[irq(0x91), Op::Nop, irq(0x41), Op::Nop, Op::World(Env::Init), Op::Nop], |mut m| {
        m.v.b.handlers = false;
        m.go();
        assert_eq!(m.events(), [int(0x91)]);
        assert!(matches!(m.v.b.apic.kind, ApicKind::Software | ApicKind::X2ApicOff));
        assert_eq!((m.sh.apic.top_irr(), m.v.lapic.top_isr()), (None, None));
    });
}

/// An instruction that hardware does not read the page for: software reads what hardware wrote there last.
#[test]
fn emulated_read() {
    let mut m =
        Machine::virtual_apic(false, [irq(0x91), Op::Nop, irq(0x41), apic_movs(reg::ISR + 0x40, 0x8000)]);
    m.v.b.handlers = false;
    m.then([apic_movs(reg::IRR + 0x20, 0x8004), Op::Eoi, Op::Iret, Op::Nop]);
    assert_eq!((m.w.u32_at(0x8000), m.w.u32_at(0x8004)), (1 << 17, 1 << 1));
    assert_eq!(m.events(), [int(0x91), int(0x41)]);
}

/// The delivery of a virtual interrupt runs into an exit: it is in the ISR already, and goes in once, as an event, whatever comes
/// between. Acknowledged again it would vanish; not injected it would be in service for ever.
#[test]
fn interrupted_virtual_delivery() {
    for (exit, points) in [FAULT, Exit::ExternalInterrupt, Exit::Nmi, Exit::HostEvent]
        .into_iter()
        .flat_map(|e| (0..12).map(move |p| (e, p)))
    {
        each(&[irq(0x41), Op::Nop, Op::Nop, wbinvd(), Op::Nop], |mut m| {
            m.v.b.breaks.extend([Some(exit), Some(exit)]);
            m.later(points, Env::Signal);
            m.later(points / 2, Env::Irq(0x91));
            m.go();
            m.finish();
            let mut all = m.events();
            all.sort_by_key(|e| *e == int(0x91));
            assert_eq!(all, [int(0x41), int(0x91)], "{exit:?}, {points}");
            assert_eq!((m.v.b.apic.taken, m.v.b.breaks.len()), (None, 0));
        });
    }
}

/// The 8259 pair beside the APIC: its vector is injected, with a window, and the CPU delivers the APIC's by itself.
#[test]
fn ext_int_beside() {
    each(&[Op::Cli, irq(0x91), Op::World(Env::Pic(8)), Op::Sti, Op::Nop, Op::Nop], |mut m| {
        m.go();
        assert_eq!(m.events(), [int(8), int(0x91)]);
        assert_eq!(m.v.b.apic.virtually, [0x91]);
        assert!(!m.v.b.window, "the window is withdrawn");
    });
}

/// An exception on its way does not hold up what the CPU delivers behind it, nor does it get lost.
#[test]
fn exception_beside() {
    each(&[irq(0x41), Op::Nop, Op::Nop], |mut m| {
        m.v.exception = Some(Exception::ud());
        m.happen(Env::Irq(0x91));
        m.go();
        let all = m.events();
        assert_eq!(all.len(), 3, "{all:?}");
        assert_eq!(all[0], Event::Exception(Exception::ud()));
    });
}

/// PV EOI is not offered: hardware would never see that EOI. An offer made while software had the APIC is withdrawn.
#[test]
fn no_pv_eoi() {
    each(&[irq(0x41), Op::Nop, Op::Nop], |mut m| {
        m.enable_pv_eoi();
        m.go();
        assert_eq!(m.events(), [int(0x41)]);
        assert!(m.w.written.borrow().iter().all(|(_, data)| data != &[1]));
    });
    let [svr, ..] = on();
    let ops =
        [Op::Cli, irq(0x41), off(), Op::Sti, Op::Nop, Op::Nop, Op::Nop, svr, Op::Nop, Op::PvEoi, Op::Iret];
    let mut m = Machine::virtual_apic(false, ops);
    m.enable_pv_eoi();
    m.v.b.handlers = false;
    m.go();
    assert!(m.w.written.borrow().iter().any(|(_, data)| data == &[1]), "offered by software");
    assert_eq!(m.v.lapic.top_isr(), None);
}

/// A write that hardware leaves to software is done once, behind the instruction; and the page reads back what the register
/// keeps, not what was written.
#[test]
fn apic_write_exits() {
    let mut m = Machine::virtual_apic(false, [store_apic(reg::LVT_ERROR, !0), apic_load(reg::LVT_ERROR)]);
    m.go();
    assert_eq!(m.v.b.gprs.get(exitless_x86::regs::Gpr::Rax), u64::from(lvt::MASKED | 0xff));
    assert_eq!(saved(&m, reg::LVT_ERROR), lvt::MASKED | 0xff);
}
