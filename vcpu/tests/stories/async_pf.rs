//! Asynchronous page faults: a page that takes time, and a guest that goes on meanwhile, or halts.

use crate::fake::guest::*;
use crate::fake::{Env, Machine, Op};
use exitless_policy::{Invalid, Origin};
use exitless_pv_abi::{MSR_KVM_ASYNC_PF_ACK as ACK, MSR_KVM_ASYNC_PF_EN as EN, MSR_KVM_ASYNC_PF_INT as INT};
use exitless_vcpu::backend::Event;
use exitless_vcpu::chooser::Mechanism::AsyncPf;
use exitless_vcpu::chooser::Set;
use exitless_x86::exception::{Exception, Vector};
use exitless_x86::regs::{cr0, cr4};

const AREA: u64 = 0x5_0000;
const TABLES: u64 = 0x6_0000;
const VECTOR: u8 = 0x61;
const READY: Event = Event::Interrupt(VECTOR);
/// Two pages of the guest's.
const SLOW: u64 = 0x20_0000;
const OTHER: u64 = 0x20_1000;
const ON: u64 = AREA | 1 | 8;
const ALWAYS: u64 = 2;

/// A guest that wants to be told at CPL 0 too, or not, has heard that it is on, and has taken the token of that.
fn told(always: u64) -> Machine {
    let mut m = Machine::new([]);
    // Pages of 4 MiB, each at its own address.
    for (i, entry) in (0..1024u32).map(|i| (u64::from(i), i << 22 | 0x87)) {
        m.w.write_ram(TABLES + i * 4, &entry.to_le_bytes());
    }
    (m.v.b.cr3, m.v.b.cr4) = (TABLES, cr4::PSE);
    m.v.b.cr0 |= cr0::PG;
    m.w.tokens.set(Some((AREA + 4, VECTOR)));
    m.user_msr(EN, ON | always);
    m.user_msr(INT, VECTOR.into());
    m.go();
    assert_eq!(
        (m.events(), m.w.u32_at(AREA + 4)),
        (vec![READY], !0),
        "whoever waits since another place wakes up"
    );
    take(&mut m);
    m.go();
    assert_eq!(m.events(), [], "once");
    m.w.slow_pages.borrow_mut().extend([SLOW >> 12, OTHER >> 12]);
    m
}

/// The guest takes the token.
fn take(m: &mut Machine) {
    m.w.write_ram(AREA + 4, &[0; 4]);
    m.user_msr(ACK, 1);
}

fn token_of(event: &Event) -> u32 {
    match event {
        Event::Exception(Exception { vector: Vector::PF, error_code: Some(0), payload }) => *payload as u32,
        other => panic!("{other:?}"),
    }
}

fn workers(m: &Machine) -> Vec<(u64, bool, u8)> {
    m.w.workers.borrow().clone()
}

/// Told that the page is not there (#PF, the token in CR2, the reason in memory), and by interrupt that it is; the same token. Behind that
/// the instruction finds its page mapped.
#[test]
fn not_there_and_there() {
    let mut m = told(ALWAYS);
    m.then([Op::Ram(SLOW)]);
    let events = m.events();
    let token = token_of(&events[0]);
    assert_eq!((events.len(), m.v.b.cr2, m.w.u32_at(AREA)), (1, token.into(), 1));
    assert_eq!(workers(&m), [(SLOW, true, 0)]);
    assert!(m.w.blocks.get() != 0 && m.w.polls.get() == 0, "the same page again: the vCPU waits, asleep");
    m.happen(Env::WorkerEnds(true));
    assert!(!m.w.mapped.borrow().contains(&(SLOW >> 12)));
    m.go();
    assert_eq!((m.events(), m.w.u32_at(AREA + 4)), (vec![READY], token));
    assert!(m.w.mapped.borrow().contains(&(SLOW >> 12)));
    assert_eq!((m.w.waited.get(), m.sh.stats.deeds(AsyncPf).hits.get()), (0, 1));
    assert_eq!(m.sh.stats.pf_taken.get(), 2 + 2, "the first, the one that found it on its way, and two EOIs");
}

/// With interrupts closed, at the instruction behind STI, with the switch off, under a debugger, or where no worker is to be had, the
/// thread waits itself: nothing is told.
#[test]
fn waits_in_place() {
    let in_place = |change: fn(&mut Machine), ops: &[Op]| {
        let mut m = told(ALWAYS);
        change(&mut m);
        m.then(ops.iter().cloned().chain([Op::Ram(SLOW)]));
        assert_eq!((m.events(), workers(&m), m.w.waited.get()), (vec![], vec![], 1));
    };
    in_place(|_| (), &[Op::Cli]);
    in_place(|_| (), &[Op::Cli, Op::Sti]);
    in_place(|m| m.w.no_workers.set(true), &[]);
    in_place(|m| m.happen(Env::Switch(Set::ALL.put(AsyncPf, false).0)), &[Op::Nop]);
    in_place(|m| m.v.in_guest.hlt = true, &[Op::Cli]);
}

/// Who cannot be told halts, as far as interrupts go: the kernel if only the rest wants to be told, real mode, who has not asked. A guest
/// that halts without an exit does not halt for this.
#[test]
fn halts_instead() {
    let halts = |always: u64, change: fn(&mut Machine), hlt: bool| {
        let mut m = told(always);
        change(&mut m);
        m.v.in_guest.hlt = hlt;
        m.then([Op::Ram(SLOW)]);
        assert_eq!((m.events(), m.w.u32_at(AREA)), (vec![], 0));
        assert_eq!((workers(&m).len(), m.w.waited.get()), if hlt { (0, 1) } else { (1, 0) });
        if hlt {
            return;
        }
        m.happen(Env::Irq(0x41));
        m.go();
        assert_eq!(m.events(), [Event::Interrupt(0x41)], "interrupts go in meanwhile");
        assert_eq!(workers(&m).len(), 1);
        m.happen(Env::WorkerEnds(true));
        m.go();
        assert_eq!(m.events(), [], "nobody was told");
        assert!(m.w.mapped.borrow().contains(&(SLOW >> 12)));
    };
    for hlt in [false, true] {
        halts(0, |_| (), hlt);
        halts(ALWAYS, |m| m.v.b.cr0 &= !cr0::PG, hlt);
        halts(ALWAYS, |m| m.user_msr(EN, 0), hlt);
    }
}

/// At CPL 3 it is told without SEND_ALWAYS.
#[test]
fn told_at_cpl_3() {
    let mut m = told(0);
    m.set_cpl(3);
    m.then([Op::Ram(SLOW)]);
    assert_eq!(m.events().len(), 1);
    assert_eq!(m.w.u32_at(AREA), 1);
}

/// One token at a time: the next comes when the guest has taken the last, and says so.
#[test]
fn one_token_at_a_time() {
    let mut m = told(ALWAYS);
    m.then([Op::Ram(SLOW), Op::Ram(OTHER)]);
    let first = token_of(&m.events()[0]);
    m.happen(Env::WorkerEnds(true));
    m.go();
    let events = m.events();
    let second = token_of(&events[1]);
    assert_eq!((events[0], m.w.u32_at(AREA + 4)), (READY, first));
    assert_ne!(first, second);
    m.happen(Env::WorkerEnds(true));
    assert!(!m.w.ipi.get(), "it has not even taken the first");
    m.then([Op::Nop]);
    assert_eq!((m.events(), m.w.u32_at(AREA + 4)), (vec![], first));
    take(&mut m);
    m.then([Op::Nop]);
    assert_eq!((m.events(), m.w.u32_at(AREA + 4)), (vec![READY], second));
    assert_eq!(m.w.waited.get(), 0);
}

/// The words' page cannot be written when the token is to be told: whoever waits for it is woken with all others when it can. Nothing goes
/// round in circles meanwhile.
#[test]
fn words_that_cannot_be_written() {
    let mut m = told(ALWAYS);
    m.then([Op::Ram(SLOW)]);
    assert_eq!(m.events().len(), 1);
    m.w.read_only.set(Some(AREA >> 12));
    m.happen(Env::WorkerEnds(true));
    m.then([Op::Nop]);
    assert_eq!((m.events(), m.w.u32_at(AREA + 4)), (vec![], 0));
    m.w.read_only.set(None);
    take(&mut m);
    m.then([Op::Nop]);
    assert_eq!((m.events(), m.w.u32_at(AREA + 4)), (vec![READY], !0));
}

/// A worker that gets nothing: the guest's next attempt waits, and user space hears why.
#[test]
fn a_page_that_does_not_come() {
    let mut m = told(0);
    m.then([Op::Ram(SLOW)]);
    m.happen(Env::WorkerEnds(false));
    m.go();
    assert_eq!((workers(&m), m.w.waited.get()), (vec![], 1));
}

/// INIT, or switching it off, forgets whom the guest has told of; the workers' ends are nobody's, and their places free.
#[test]
fn forgotten_by_init() {
    for by_init in [true, false] {
        let mut m = told(ALWAYS);
        m.then([Op::Ram(SLOW)]);
        assert_eq!(m.events().len(), 1);
        if by_init {
            m.happen(Env::Init);
            m.v.b.ops.clear();
            m.go();
            assert_eq!((m.v.pv.async_pf, m.v.pv.async_pf_int), (0, 0));
        } else {
            m.user_msr(EN, 0);
        }
        m.happen(Env::WorkerEnds(true));
        m.go();
        assert_eq!((m.events(), m.w.u32_at(AREA + 4)), (vec![], 0));
        assert_eq!(m.sh.pages.ended(), (0, 0));
    }
}

/// A signal ends the wait for user space; the next run finds the page on its way, and nobody is told twice.
#[test]
fn a_signal_meanwhile() {
    let mut m = told(0);
    m.later(2, Env::Signal);
    m.then([Op::Ram(SLOW)]);
    m.go();
    assert_eq!(workers(&m).len(), 1);
    m.happen(Env::WorkerEnds(true));
    m.then([Op::Nop]);
    assert!(m.w.mapped.borrow().contains(&(SLOW >> 12)));
    assert_eq!(m.w.waited.get(), 0);
}

/// The timer runs out while the vCPU waits: it is the host's then (the thread sleeps), and its interrupt goes in.
#[test]
fn the_timer_meanwhile() {
    let mut m = Machine::virtual_apic(false, [Op::Deadline(50_000), Op::Ram(SLOW)]);
    m.w.slow_pages.borrow_mut().insert(SLOW >> 12);
    m.go();
    assert_eq!(m.events(), [Event::Interrupt(crate::fake::machine::TIMER_VECTOR)]);
    assert_eq!(workers(&m).len(), 1);
}

/// Without an APIC in the kernel there is nothing to tell by; a page that is no memory cannot hold the words.
#[test]
fn refused_values() {
    let set = |m: &mut Machine, msr, value| {
        let caps = *m.v.cpuid.caps();
        m.v.write_msr(&m.sh, &m.os, msr, value, Origin::Host, &caps)
    };
    let mut m = Machine::without_irqchip([]);
    assert_eq!(set(&mut m, EN, ON), Err(Invalid));
    assert_eq!(set(&mut m, INT, 0x61), Err(Invalid));
    assert_eq!(set(&mut m, EN, 0), Ok(()));
    let mut m = Machine::new([]);
    assert_eq!(set(&mut m, EN, 0xf000_0000 | 9), Err(Invalid));
    assert_eq!(set(&mut m, EN, 0xf000_0000 | 1), Ok(()), "nothing is written there");
    m.then([wrmsr(ACK, 1), faulting(wrmsr(EN, AREA | 0x10)), faulting(wrmsr(INT, 0x100)), Op::Cli]);
    assert_eq!(m.events(), [Event::Exception(Exception::gp(0)); 2]);
}
