//! Interrupts, NMIs and exceptions on their way into the guest.

use crate::fake::guest::*;
use crate::fake::world::APIC;
use crate::fake::{Env, Machine, Op};
use exitless_vcpu::backend::{Backend, By, Event, Exit, SlatFault};
use exitless_vcpu::{Request, RunExit};
use exitless_x86::exception::{Exception, Vector};
use exitless_x86::regs::rflags;

/// A second-level fault on RAM: what most often interrupts a delivery.
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

fn exc(x: Exception) -> Event {
    Event::Exception(x)
}

fn irq(v: u8) -> Op {
    Op::World(Env::Irq(v))
}

fn nmi() -> Op {
    Op::World(Env::Nmi)
}

fn hits(x: Exception) -> Op {
    Op::Event(Exit::Exception(x))
}

/// A device interrupts a running guest: the kick makes it come out, the vector goes in, the handler ends it.
#[test]
fn interrupt_while_running() {
    let mut m = Machine::new([Op::Nop, irq(0x41), Op::Nop]);
    assert_eq!(m.go(), RunExit::Interrupted);
    assert_eq!(m.events(), [int(0x41)]);
    assert!(m.w.isr.borrow().is_empty() && m.w.irr.borrow().is_empty());
}

/// Interrupts closed: nothing is injected until STI and one instruction more, then the window opens.
#[test]
fn interrupt_window() {
    let mut m = Machine::new([Op::Cli, irq(0x41), Op::Nop, Op::Nop]);
    m.go();
    assert_eq!(m.events(), []);
    assert!(m.v.b.window);
    m.then([Op::Sti, Op::Nop, Op::Nop]);
    assert_eq!(m.events(), [int(0x41)]);
    assert!(!m.v.b.window, "the window is withdrawn");
    assert_eq!(m.sh.stats.irq_window_exits.get(), 1);
}

/// Two vectors at once: the higher goes first; the lower one waits for its EOI.
#[test]
fn two_interrupts_by_priority() {
    let mut m = Machine::new([Op::Cli, irq(0x41), irq(0x92), Op::Sti, Op::Nop, Op::Nop, Op::Nop]);
    m.go();
    assert_eq!(m.events(), [int(0x92), int(0x41)]);
}

/// The TPR holds a vector back; lowering it with CR8, in APIC terms or not at all intercepted, lets it in.
#[test]
fn tpr_holds_back() {
    let mut m = Machine::new([Op::Cr8(4), irq(0x41), Op::Nop]);
    m.go();
    assert_eq!(m.events(), []);
    assert!(m.v.b.cr8_intercept, "CR8 writes are watched while something waits");
    m.then([Op::Cr8(3), Op::Nop]);
    assert_eq!(m.events(), [int(0x41)]);
    assert!(!m.v.b.cr8_intercept);
    assert_eq!(m.v.lapic.tpr(), 0x30);
    // CR8 above 15 is #GP.
    m.then([irq(0x21), Op::Nop, Op::Cr8(16), Op::Nop]);
    assert_eq!(m.events(), [exc(Exception::gp(0))]);
}

/// The TPR written in the APIC's page is CR8, and all of its 8 bits stay while CR8 does not change.
#[test]
fn tpr_through_the_page() {
    let mut m = Machine::new([Op::Tpr(0x57), irq(0x51), Op::Nop]);
    m.go();
    assert_eq!((m.v.b.cr8, m.v.lapic.tpr(), m.events().len()), (5, 0x57, 0));
    m.then([Op::Cr8(5), Op::Nop, Op::Tpr(0x4f), Op::Nop]);
    assert_eq!((m.v.b.cr8, m.events()), (4, vec![int(0x51)]));
}

/// The 8259 pair goes through LINT0, before any vector of the APIC.
#[test]
fn pic_through_lint0() {
    let mut m = Machine::new([Op::Cli, irq(0x91), Op::World(Env::Pic(0x08)), Op::Sti, Op::Nop, Op::Nop]);
    m.go();
    assert_eq!(m.events(), [int(0x08), int(0x91)]);
    assert_eq!(m.w.pic.get(), None);
}

/// An NMI goes before an interrupt; a second one waits for the handler's IRET; a third is lost.
#[test]
fn nmis_latch_once() {
    let mut m = Machine::new([Op::Cli, irq(0x41), nmi(), nmi(), nmi(), Op::Iret, Op::Iret, Op::Nop]);
    m.v.b.handlers = false;
    m.go();
    assert_eq!(m.events(), [Event::Nmi, Event::Nmi]);
    m.v.b.handlers = true;
    m.then([Op::Sti, Op::Nop, Op::Nop]);
    assert_eq!(m.events(), [int(0x41)]);
    assert!(!m.v.b.nmi_window, "the NMI window is withdrawn");
}

/// STI blocks NMIs for one instruction too.
#[test]
fn nmi_in_shadow() {
    let mut m = Machine::new([Op::Cli, Op::Sti, nmi(), Op::Nop, Op::Nop]);
    m.go();
    assert_eq!(m.events(), [Event::Nmi]);
}

/// Whatever interrupts a delivery, the same event is delivered next, once.
#[test]
fn interrupted_deliveries_repeat() {
    for (happening, event) in [
        (irq(0x41), int(0x41)),
        (nmi(), Event::Nmi),
        (Op::World(Env::Pic(0x0b)), int(0x0b)),
        (hits(Exception::gp(3)), exc(Exception::gp(3))),
    ] {
        for exit in [FAULT, Exit::ExternalInterrupt, Exit::Nmi, Exit::HostEvent] {
            let mut m = Machine::new([happening.clone(), Op::Nop, Op::Nop]);
            m.v.b.breaks.extend([Some(exit), Some(exit)]);
            m.go();
            assert_eq!(m.events(), [event], "{exit:?}");
            assert_eq!(m.v.b.breaks.len(), 0);
        }
    }
}

/// While an interrupt's delivery is repeated a higher vector arrives: it does not overtake, and both arrive.
#[test]
fn repeated_delivery_is_not_overtaken() {
    let mut m = Machine::new([irq(0x41), Op::Nop, Op::Nop]);
    m.v.b.breaks.push_back(Some(FAULT));
    m.later(8, Env::Irq(0x91));
    m.go();
    assert_eq!(m.events().len(), 2);
    assert!(m.w.irr.borrow().is_empty());
}

/// An NMI that comes while an exception is on its way is not forgotten behind it.
#[test]
fn nmi_behind_an_exception() {
    let mut m = Machine::new([wbinvd(), Op::Nop]);
    m.v.exception = Some(Exception::gp(0));
    m.v.b.poor_nmi_window = true;
    m.happen(Env::Nmi);
    m.go();
    assert_eq!(m.events(), [exc(Exception::gp(0)), Event::Nmi]);
}

/// The same, while an interrupted delivery is repeated; on a CPU too that tells of open NMI windows only around IRET.
#[test]
fn nmi_behind_a_repeated_interrupt() {
    for (points, poor) in (0..20).flat_map(|p| [(p, false), (p, true)]) {
        let mut m = Machine::new([irq(0x41), Op::Nop, wbinvd(), Op::Nop]);
        m.v.b.poor_nmi_window = poor;
        m.v.b.breaks.push_back(Some(FAULT));
        m.later(points, Env::Nmi);
        m.go();
        m.finish();
        let mut all = m.events();
        all.sort_by_key(|e| *e == Event::Nmi);
        assert_eq!(all, [int(0x41), Event::Nmi], "{points}");
    }
}

/// The delivery of an interrupt, an NMI or an INT n makes an exception, and would again: the exception takes its place, as
/// without a hypervisor. The INT n runs again; NMIs are masked, as the NMI's delivery had begun.
#[test]
fn exception_instead_of_a_delivery() {
    let ac = Exception { vector: Vector::AC, error_code: Some(0), payload: 0 };
    let int_n = Event::Software(By::IntN, 0x80, 2);
    for (happening, event) in [(irq(0x41), int(0x41)), (nmi(), Event::Nmi), (Op::Event(FAULT), int_n)] {
        let mut m = Machine::new([happening, Op::Nop, Op::Nop]);
        m.v.b.handlers = false;
        if event == int_n {
            m.v.reinject = Some(event);
        }
        m.v.b.breaks.push_back(Some(Exit::Exception(ac)));
        m.go();
        assert_eq!(m.events(), [exc(ac)], "{event:?}");
        assert_eq!(m.v.b.nmi_masked, event == Event::Nmi);
    }
}

/// An INT n whose delivery takes an exit goes before an interrupt that has waited for it, however often that happens.
#[test]
fn software_events_go_first() {
    let int_n = Event::Software(By::IntN, 0x80, 2);
    for exits in 1..4 {
        let mut m = Machine::new([Op::Nop, Op::Nop]);
        m.happen(Env::Irq(0x41));
        m.v.reinject = Some(int_n);
        m.v.b.breaks.extend(vec![Some(FAULT); exits]);
        m.go();
        assert_eq!(m.events(), [int_n, int(0x41)]);
    }
}

/// INT1 is delivered once, as an event of its own kind: no exception, so DR6 and RF stay.
#[test]
fn int1_is_delivered_once() {
    let mut m = Machine::new([Op::Event(Exit::Int1(2)), Op::Nop]);
    m.v.b.dr6 = 0xffff_4ff1;
    m.v.b.handlers = false;
    m.go();
    assert_eq!(m.events(), [Event::Software(By::Int1, 1, 2)]);
    assert_eq!((m.v.b.dr6, m.v.b.rflags & rflags::RF), (0xffff_4ff1, 0));
}

/// User space makes the guest go on elsewhere: an INT n that was to be delivered again was the old place's.
#[test]
fn software_events_stay_where_they_were() {
    let mut m = Machine::new([Op::Nop]);
    m.v.reinject = Some(Event::Software(By::IntN, 0x80, 2));
    m.v.forget_instruction();
    m.go();
    assert_eq!(m.events(), []);
}

/// The same when the entry that was to deliver an event never came: user space takes an INT n back by going on elsewhere, and any
/// event by saying what is to be delivered (KVM_SET_VCPU_EVENTS), which left it programmed.
#[test]
fn programmed_events_are_taken_back() {
    for event in [Event::Software(By::IntN, 0x80, 2), exc(Exception::gp(0)), Event::Nmi] {
        for elsewhere in [true, false] {
            let mut m = Machine::new([Op::Nop]);
            m.v.b.inject(event);
            m.v.injecting = Some(event);
            if elsewhere {
                m.v.forget_instruction()
            } else {
                m.v.restore_delivery(None, false)
            }
            m.go();
            let stays = elsewhere && !matches!(event, Event::Software(..));
            assert_eq!(m.events(), if stays { vec![event] } else { vec![] });
        }
    }
}

/// User space reads what is on its way and says it again, after a repeated delivery and after an entry that never came. The NMI on
/// its way masks no other yet, and comes even if it is said to.
#[test]
fn events_on_their_way_are_said_again() {
    for event in [Event::Nmi, exc(Exception::gp(0))] {
        for (programmed, claim) in [(true, false), (false, false), (true, true), (false, true)] {
            let mut m = Machine::new([Op::Nop]);
            if programmed {
                m.v.b.inject(event);
                m.v.injecting = Some(event);
            } else {
                m.v.reinject = Some(event);
            }
            let (read, masked) = (m.v.delivery(), m.v.nmi_masked());
            assert_eq!((read, masked), (Some(event), false));
            m.v.restore_delivery(read, masked || claim);
            let claimed = claim && event != Event::Nmi;
            assert_eq!((m.v.delivery(), m.v.nmi_masked()), (Some(event), claimed));
            m.go();
            assert_eq!(m.events(), [event], "programmed: {programmed}, said to mask: {claim}");
        }
    }
}

/// #GP while delivering #NP: double fault, error code 0; #GP while delivering that: triple fault, to user space.
#[test]
fn double_and_triple_fault() {
    let np = Exception { vector: Vector::NP, error_code: Some(8), payload: 0 };
    let df = Exception { vector: Vector::DF, error_code: Some(0), payload: 0 };
    let gp = Exit::Exception(Exception::gp(0));
    let mut m = Machine::new([hits(np), Op::Nop]);
    m.v.b.breaks.push_back(Some(gp));
    m.go();
    assert_eq!(m.events(), [exc(df)]);

    let mut m = Machine::new([hits(np), Op::Nop]);
    m.v.b.breaks.extend([Some(gp), Some(gp)]);
    assert_eq!(m.go(), RunExit::Shutdown);
    assert_eq!(m.events(), []);
}

/// The pairs of SDM vol. 3A, table 6-5: which second exception makes a double fault.
#[test]
fn which_pairs_double() {
    let benign = Exception::ud();
    let contributory = Exception::gp(0);
    let page = Exception::pf(2, 0x1234);
    for (first, second, double) in [
        (benign, benign, false),
        (benign, contributory, false),
        (benign, page, false),
        (contributory, benign, false),
        (contributory, contributory, true),
        (contributory, page, false),
        (page, benign, false),
        (page, contributory, true),
        (page, page, true),
    ] {
        let mut m = Machine::new([hits(first), Op::Nop, wbinvd()]);
        m.v.b.breaks.push_back(Some(Exit::Exception(second)));
        m.go();
        let last = *m.events().last().unwrap();
        let Event::Exception(got) = last else { panic!("{last:?}") };
        assert_eq!(got.vector == Vector::DF, double, "{first:?} then {second:?}");
        if !double {
            assert_eq!(got, second, "the second exception is not lost behind {first:?}");
        }
        assert!(m.v.exception.is_none() && m.v.reinject.is_none());
    }
}

/// #PF carries its address to CR2; faults push RF, #DB does not.
#[test]
fn what_exceptions_leave() {
    let mut m = Machine::new([hits(Exception::pf(6, 0xdead_f000))]);
    m.v.b.handlers = false;
    m.v.b.ops.push_back(Op::Nop);
    m.go();
    assert_eq!(m.v.b.cr2, 0xdead_f000);

    let mut m = Machine::new([hits(Exception { payload: 0x4001, ..Exception::plain(Vector::DB) }), Op::Nop]);
    m.v.b.dr6 = 0xffff_2ff2;
    m.v.b.dr7 = 0x2402;
    m.go();
    assert_eq!(m.v.b.dr6, 0xffff_6ff1, "BD stays until software clears it, B1 is of the #DB before");
    assert_eq!(m.v.b.dr7, 0x402, "GD is cleared");
    let Event::Exception(x) = m.events()[0] else { panic!() };
    assert_eq!(x.payload, 0x4001);
}

/// The address of a #PF is in CR2 before the #PF is delivered, where a save finds it, and when the pair makes a double fault.
#[test]
fn page_faults_tell_where_at_once() {
    for first in [None, Some(Exception::pf(2, 0x1234)), Some(Exception::gp(0))] {
        let mut m = Machine::new([Op::Nop]);
        m.v.exception = first;
        assert!(m.v.raise(Exception::pf(6, 0xdead_f000)));
        assert_eq!(m.v.b.cr2, 0xdead_f000, "{first:?}");
        // What user space writes then stands, also when the #PF is delivered.
        m.v.b.cr2 = 0xbeef_f000;
        m.go();
        assert_eq!(m.v.b.cr2, 0xbeef_f000, "{first:?}");
    }
}

/// A machine check in the guest's time was the host's: the guest sees nothing. #AC keeps its zero error code.
#[test]
fn machine_check_and_alignment() {
    let mut m =
        Machine::new([hits(Exception::plain(Vector::MC)), hits(Exception::plain(Vector::AC)), Op::Nop]);
    m.go();
    assert_eq!(m.events(), [exc(Exception { vector: Vector::AC, error_code: Some(0), payload: 0 })]);
}

/// Single-stepping: after an instruction the hall finished, hardware's #DB is missing and the hall supplies it, whether
/// the instruction was skipped or emulated.
#[test]
fn single_step_over_exits() {
    for op in
        [wbinvd(), cpuid(0, 0), load(0xd000_0000), out(0x20, 1, 1), input(0x80, 2), store(0xd000_0000, 1)]
    {
        let mut m = Machine::new([op.clone(), Op::Cli]);
        m.v.b.rflags |= rflags::TF;
        m.go();
        let events = m.events();
        let [Event::Exception(x)] = events[..] else { panic!("{op:?}: {events:?}") };
        assert_eq!((x.vector, x.payload), (Vector::DB, 1 << 14), "{op:?}");
        assert_eq!(m.v.b.dr6 & 1 << 14, 1 << 14);
    }
}

/// User space has the interrupt controllers: its vector goes in when it can, and it hears of the open window.
#[test]
fn user_interrupt() {
    let mut m = Machine::without_irqchip([Op::Cli, Op::Nop]);
    m.v.user_interrupt = Some(0x33);
    m.v.b.rflags &= !rflags::IF;
    m.go();
    assert_eq!(m.events(), []);
    m.then([Op::Sti, Op::Nop, Op::Nop]);
    assert_eq!(m.events(), [int(0x33)]);

    m.v.want_window = true;
    assert_eq!(m.run(), RunExit::IrqWindowOpen);
    m.v.b.rflags &= !rflags::IF;
    m.v.b.ops.extend([Op::Nop, Op::Sti, Op::Nop, Op::Nop]);
    assert_eq!(m.run(), RunExit::IrqWindowOpen);
    assert_eq!(m.v.b.ops.len(), 1, "told as soon as the shadow ended");
}

/// Only the APIC is in the kernel: a vector of user space's 8259 pair waits for LINT0, and so does the window for the next.
#[test]
fn split_ext_int() {
    const LINT0: u64 = APIC + 0x350;
    let mut m = Machine::new([store(LINT0, 1 << 16 | 7 << 8), Op::Nop]);
    m.w.split.set(true);
    m.go();
    m.v.user_interrupt = Some(0x33);
    m.w.pic_acked.set(Some(0x33));
    m.v.want_window = true;
    assert_eq!(m.then([Op::Nop, Op::Nop]), RunExit::Interrupted);
    assert_eq!(m.events(), []);
    assert_eq!(m.then([store(LINT0, 7 << 8), Op::Nop, Op::Nop]), RunExit::IrqWindowOpen);
    assert_eq!((m.events(), m.v.user_interrupt), (vec![int(0x33)], None));
}

/// Only the APIC is in the kernel: user space hears of the end of its I/O APIC's level-triggered interrupt, once, and of
/// no other.
#[test]
fn split_level_eoi() {
    let mut m = Machine::new([irq(0x41), Op::Sti, Op::Nop, Op::Nop]);
    m.v.b.rflags &= !rflags::IF;
    m.w.split.set(true);
    m.happen(Env::Irq(0x52));
    m.sh.apic.post(0x52, true);
    assert_eq!(m.go(), RunExit::IoapicEoi { vector: 0x52 });
    assert_eq!(m.then([Op::Nop, Op::Nop]), RunExit::Interrupted);
    assert_eq!(m.events(), [int(0x52), int(0x41)]);
    assert_eq!(*m.w.eois.borrow(), [(0x52, true)]);
}

/// A request just before entry, after the event was chosen: the entry is called off, the event is not injected twice.
#[test]
fn entry_called_off() {
    for points in 0..24 {
        let mut m = Machine::new([irq(0x41), Op::Nop, Op::Nop, Op::Nop]);
        m.later(points, Env::Ask(Request::QUIESCE));
        m.later(0, Env::Irq(0x91));
        m.later(0, Env::Nmi);
        m.go();
        m.finish();
        let all = m.events();
        assert_eq!(all.len(), 3, "{points}: {all:?}");
        assert!([int(0x41), int(0x91), Event::Nmi].iter().all(|e| all.contains(e)), "{points}: {all:?}");
    }
}

/// A signal between injection and entry: KVM_RUN returns; the event is still there the next time, once.
#[test]
fn signal_keeps_the_event() {
    for points in 0..24 {
        let mut m = Machine::new([irq(0x41), Op::Nop, Op::Nop]);
        m.later(points, Env::Signal);
        m.go();
        m.finish();
        assert_eq!(m.events(), [int(0x41)], "{points}");
    }
}
