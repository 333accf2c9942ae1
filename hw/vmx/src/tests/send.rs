//! Writes of the ICR that are sent straight behind the exit.

use super::fake::{Bench, negotiate, skylake};
use crate::machine::switched;
use crate::vcpu::Vmx;
use exitless_vcpu::backend::{Backend, Exit, Sender, Sent, SysReg};
use exitless_x86::regs::{Gpr, rflags};
use exitless_x86::vmx::{field as f, interruptibility as block};
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::vec::Vec;

const ICR: u64 = 0x830;
const WRMSR: u32 = 32;
const CPUID: u32 = 10;

/// Commands, and whether they could move on.
type Got = Vec<(u64, bool)>;

/// Says what it is told to, and keeps what it got, and how often the guest went on behind it.
#[derive(Clone)]
struct Script(Rc<RefCell<(Vec<Sent>, Got)>>, Rc<Cell<usize>>);

impl Script {
    fn new(says: &[Sent]) -> Self {
        Self(Rc::new(RefCell::new((says.iter().rev().copied().collect(), Vec::new()))), Rc::default())
    }
    fn got(&self) -> Got {
        self.0.borrow().1.clone()
    }
}

impl Sender for Script {
    fn send(&mut self, icr: u64, first: impl FnOnce() -> bool) -> Sent {
        let (says, got) = &mut *self.0.borrow_mut();
        let sent = says.pop().unwrap();
        let moved = sent != Sent::No && first();
        got.push((icr, moved));
        if moved { sent } else { Sent::No }
    }
    fn goes_on(&mut self) {
        self.1.set(self.1.get() + 1);
    }
}

/// The guest runs from `rip` on and ends with a write of `value` to the MSR.
fn writes(b: &Bench, rip: u64, msr: u64, value: u64) {
    b.cpu.next(move |cpu, run| {
        assert_eq!(cpu.field(f::GUEST_RIP), rip);
        run.gprs.set(Gpr::Rcx, msr);
        run.gprs.set_edx_eax(value);
        cpu.store(f::EXIT_INSTRUCTION_LENGTH, 2);
        cpu.store(f::GUEST_RSP, 0x9000 + rip);
        (run.reason, run.interruption) = (WRMSR, 0);
        switched::EXIT
    });
}

fn at(rip: u64) -> Bench {
    let mut b = Bench::new();
    b.run(CPUID, 0);
    b.v.set_rip(rip);
    b.v.begin(b.percpu);
    b
}

fn enter(b: &mut Bench, script: &Script) -> Exit {
    b.v.enter(b.percpu, false, || script.clone())
}

/// Three in a row and what comes then, in one call: each command seen once, the registers are those of the last exit.
#[test]
fn again_and_again() {
    let mut b = at(0x1000);
    let script = Script::new(&[Sent::GoOn, Sent::GoOn, Sent::Waits]);
    for n in 0..3 {
        writes(&b, 0x1000 + 2 * n, ICR, n << 32 | 0x51);
    }
    assert_eq!(enter(&mut b, &script), Exit::Sent);
    assert_eq!(script.got(), [(0x51, true), (1 << 32 | 0x51, true), (2 << 32 | 0x51, true)]);
    assert_eq!(script.1.get(), 2, "the last is an exit of its own");
    assert_eq!((b.v.rip(), b.v.gprs().get(Gpr::Rsp)), (0x1006, 0x9000 + 0x1004));
    assert_eq!(b.v.exit_number(), Vmx::<crate::Hardware>::WRMSR);

    let script = Script::new(&[Sent::GoOn]);
    writes(&b, 0x1006, ICR, 0x51);
    b.cpu.exit(CPUID, 0);
    assert_eq!(enter(&mut b, &script), Exit::Cpuid);
    assert_eq!((b.v.rip(), b.v.exit_number()), (0x1008, u64::from(CPUID)));
}

/// What the sender does not take is an exit as any other, RIP where it was; other MSRs it does not see.
#[test]
fn not_taken() {
    let mut b = at(0x1000);
    let script = Script::new(&[Sent::No]);
    writes(&b, 0x1000, ICR, 0x51);
    assert_eq!((enter(&mut b, &script), b.v.rip()), (Exit::Wrmsr, 0x1000));
    assert_eq!(b.v.next_rip(), Some(0x1002));
    for msr in [0x83f, 0x80b, 0x6e0, 0x10] {
        writes(&b, 0x1000, msr, 0x51);
        assert_eq!((enter(&mut b, &script), b.v.rip()), (Exit::Wrmsr, 0x1000));
    }
    assert_eq!(script.got().len(), 1);
}

/// A shadow to end, a single step, RF or the end of 4 GiB: nothing is sent, and RIP stays.
#[test]
fn not_moved_on() {
    let shadow = |b: &Bench| b.cpu.store(f::GUEST_INTERRUPTIBILITY, block::STI);
    let tf = |b: &Bench| b.cpu.store(f::GUEST_RFLAGS, rflags::TF | 2);
    let rf = |b: &Bench| b.cpu.store(f::GUEST_RFLAGS, rflags::RF | 2);
    type Change<'a> = (u64, &'a dyn Fn(&Bench));
    let changes: [Change<'_>; 4] = [(0x1000, &shadow), (0x1000, &tf), (0x1000, &rf), (0xffff_fffe, &|_| ())];
    for (rip, change) in changes {
        let mut b = at(rip);
        let script = Script::new(&[Sent::GoOn]);
        change(&b);
        writes(&b, rip, ICR, 0x51);
        assert_eq!((enter(&mut b, &script), b.v.rip()), (Exit::Wrmsr, rip));
        assert_eq!(script.got(), [(0x51, false)]);
    }
}

/// Where more must be done around an entry than the loop does, it does nothing.
#[test]
fn not_beside_debug_registers() {
    let mut b = at(0x1000);
    b.v.set_dr_intercept(false);
    b.v.begin(b.percpu);
    let script = Script::new(&[]);
    writes(&b, 0x1000, ICR, 0x51);
    assert_eq!((enter(&mut b, &script), b.v.rip()), (Exit::Wrmsr, 0x1000));
}

/// The next entry fails, or VMX is off by then: the registers are those of the exit before, and so is the log of what it wrote.
#[test]
fn then_no_entry() {
    for (how, exit) in [(switched::FAILED, Exit::FailEntry(0)), (switched::OFF, Exit::Disabled)] {
        let mut b = at(0x1000);
        b.v.set_logging(true);
        let script = Script::new(&[Sent::GoOn]);
        writes(&b, 0x1000, ICR, 0x51);
        b.cpu.next(move |cpu, _| {
            cpu.store(f::VM_INSTRUCTION_ERROR, 0);
            cpu.store(f::PML_INDEX, 509);
            how
        });
        assert_eq!(enter(&mut b, &script), exit);
        assert_eq!((b.v.rip(), b.v.gprs().get(Gpr::Rsp)), (0x1002, 0x9000 + 0x1000));
        assert_eq!(b.v.take_log(), 2);
    }
}

/// The preemption timer is loaded for each of the entries; translations are dropped before the first alone.
#[test]
fn the_timer_counts_on() {
    let mut b = Bench::with(&negotiate(&skylake()).unwrap());
    b.load();
    b.run(CPUID, 0);
    b.v.set_rip(0x1000);
    b.cpu.tsc.set(0x10_0000);
    assert!(b.v.set_timer(Some(0x20_0000)));
    b.v.begin(b.percpu);
    let left = Rc::new(RefCell::new(Vec::new()));
    for n in 0..3u64 {
        let left = left.clone();
        b.cpu.next(move |cpu, run| {
            left.borrow_mut().push(cpu.field(f::PREEMPTION_TIMER_VALUE));
            cpu.tsc.set(cpu.tsc.get() + 0x4_0000);
            run.gprs.set(Gpr::Rcx, ICR);
            run.gprs.set_edx_eax(0x51);
            cpu.store(f::EXIT_INSTRUCTION_LENGTH, 2);
            (run.reason, run.interruption) = (if n == 2 { CPUID } else { WRMSR }, 0);
            switched::EXIT
        });
    }
    assert_eq!(enter(&mut b, &Script::new(&[Sent::GoOn, Sent::GoOn])), Exit::Cpuid);
    let left = left.borrow();
    assert!(left[0] > left[1] && left[1] > left[2], "{left:x?}");
    assert_eq!(b.v.sys_reg(SysReg::SpecCtrl), 0);
}
