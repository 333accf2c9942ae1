//! Writes of the ICR that are sent straight behind the exit.

use super::{ALL, Machine, PLAY};
use crate::Caps;
use exitless_vcpu::backend::{Backend, Event, Exit, Sender, Sent};
use exitless_x86::regs::{Gpr, rflags};
use exitless_x86::svm::{INT_STATE_SHADOW, Vmcb, tlb_control};
use std::boxed::Box;
use std::vec::Vec;

const ICR: u64 = 0x830;
const RCX: usize = Gpr::Rcx as usize;
const RDX: usize = Gpr::Rdx as usize;

/// Says what it is told to, and keeps the commands that it sent, and behind how many the guest went on.
struct Script<'a>(&'a [Sent], &'a mut Vec<u64>, &'a mut usize);

impl Sender for Script<'_> {
    fn send(&mut self, icr: u64, first: impl FnOnce() -> bool) -> Sent {
        let (says, rest) = self.0.split_first().unwrap();
        self.0 = rest;
        if *says == Sent::No || !first() {
            return Sent::No;
        }
        self.1.push(icr);
        *says
    }
    fn goes_on(&mut self) {
        *self.2 += 1;
    }
}

/// #VMEXIT for a write of `value` to the MSR, by an instruction of two bytes.
fn wrote(vmcb: &mut Vmcb, gprs: &mut [u64; 16], msr: u64, value: u64) {
    (vmcb.control.exit_code, vmcb.control.exit_info_1) = (0x7c, 1);
    vmcb.control.next_rip = vmcb.save.rip + 2;
    (gprs[RCX], gprs[RDX], vmcb.save.rax) = (msr, value >> 32, value & 0xffff_ffff);
    vmcb.save.rsp += 8;
}

/// Entries of which the last ends with CPUID, those before with the ICR.
fn entries(n: u64) {
    PLAY.set(Some(Box::new(move |vmcb, gprs| {
        if n == 0 {
            (vmcb.control.exit_code, vmcb.control.next_rip) = (0x72, vmcb.save.rip + 2);
        } else {
            wrote(vmcb, gprs, ICR, n << 32 | 0x51);
            entries(n - 1);
        }
        false
    })));
}

fn enter(m: &mut Machine, flush: bool, says: &[Sent]) -> (Exit, Vec<u64>) {
    let (mut sent, mut alone) = (Vec::new(), 0);
    let exit = m.v.enter(&m.cpu, flush, || Script(says, &mut sent, &mut alone));
    assert_eq!(alone, sent.len() - usize::from(exit == Exit::Sent), "an exit each, and no more");
    (exit, sent)
}

/// Three in a row and what comes then, in one call; translations and events are of the first entry alone.
#[test]
fn again_and_again() {
    let mut m = Machine::new(&ALL);
    m.v.gprs_mut().set(Gpr::Rsp, 0x100);
    m.v.inject(Event::Interrupt(0x41));
    entries(3);
    let (exit, sent) = enter(&mut m, true, &[Sent::GoOn; 3]);
    assert_eq!((exit, sent), (Exit::Cpuid, std::vec![3 << 32 | 0x51, 2 << 32 | 0x51, 1 << 32 | 0x51]));
    assert_eq!((m.v.rip(), m.v.gprs().get(Gpr::Rsp), m.v.gprs().get(Gpr::Rax)), (0x1006, 0x118, 0x51));
    for (flush, first) in [(true, tlb_control::FLUSH_ASID), (false, tlb_control::NONE)] {
        PLAY.set(Some(Box::new(move |vmcb, gprs| {
            assert_eq!(vmcb.control.tlb_control, first);
            wrote(vmcb, gprs, ICR, 0x51);
            PLAY.set(Some(Box::new(|vmcb, gprs| {
                assert_eq!((vmcb.control.tlb_control, vmcb.control.event_inj), (tlb_control::NONE, 0));
                wrote(vmcb, gprs, ICR, 0x52);
                false
            })));
            false
        })));
        if !flush {
            m.v.inject(Event::Nmi);
            m.v.set_nmi_masked(false);
        }
        assert_eq!(enter(&mut m, flush, &[Sent::GoOn, Sent::Waits]), (Exit::Sent, std::vec![0x51, 0x52]));
        assert_eq!(m.v.exit_number(), 0x7c);
    }
}

/// What the sender does not take, what cannot be stepped over, and what is no write of the ICR: exits as any other.
#[test]
fn exits_as_any_other() {
    type Change = fn(&mut Vmcb, &mut [u64; 16]);
    let changes: [(Change, bool); 7] = [
        (|_, _| (), true),
        (|vmcb, _| vmcb.save.rflags |= rflags::TF, true),
        (|vmcb, _| vmcb.save.rflags |= rflags::RF, true),
        (|vmcb, _| vmcb.control.int_state |= INT_STATE_SHADOW, true),
        (|_, gprs| gprs[RCX] = 0x83f, true),
        (|vmcb, _| vmcb.control.exit_info_1 = 0, true),
        (|_, _| (), false),
    ];
    for (n, (change, next_rip)) in changes.into_iter().enumerate() {
        let mut m = Machine::new(&Caps { next_rip, ..ALL });
        PLAY.set(Some(Box::new(move |vmcb, gprs| {
            wrote(vmcb, gprs, ICR, 0x51);
            change(vmcb, gprs);
            false
        })));
        let says: &[Sent] = if n == 0 { &[Sent::No] } else { &[Sent::GoOn] };
        let want = if n == 5 { Exit::Rdmsr } else { Exit::Wrmsr };
        assert_eq!(enter(&mut m, false, says), (want, Vec::new()), "{n}");
        assert_eq!(m.v.rip(), 0x1000, "{n}");
    }
}

/// While NMIs are masked each exit tells whether they still are.
#[test]
fn not_while_nmis_are_masked() {
    let mut m = Machine::new(&ALL);
    m.v.set_nmi_masked(true);
    PLAY.set(Some(Box::new(|vmcb, gprs| {
        wrote(vmcb, gprs, ICR, 0x51);
        false
    })));
    assert_eq!(enter(&mut m, false, &[]), (Exit::Wrmsr, Vec::new()));
}

/// SVM is off by then.
#[test]
fn then_no_entry() {
    let mut m = Machine::new(&ALL);
    PLAY.set(Some(Box::new(|vmcb, gprs| {
        wrote(vmcb, gprs, ICR, 0x51);
        PLAY.set(Some(Box::new(|_, _| true)));
        false
    })));
    assert_eq!(enter(&mut m, false, &[Sent::GoOn]), (Exit::Disabled, std::vec![0x51]));
    assert_eq!(m.v.rip(), 0x1002);
}
