//! The backend without a CPU: a VMCB on the heap, and a world switch that plays the CPU.

use crate::inject::{encode, vectoring};
use crate::percpu::PerCpu;
use crate::vcpu::{Pages, SpecCtrl, Svm};
use crate::{Caps, caps, msr_bitmap};
use bytemuck::Zeroable;
use core::ptr::NonNull;
use core::sync::atomic::Ordering::Relaxed;
use exitless_vcpu::backend::InGuest;
use exitless_vcpu::backend::{
    Backend, By, Event, Exit, Instructions, IoAccess, NoSender, Opened, SlatFault, Stopped, SysReg,
    TaskSource, TaskSwitch,
};
use exitless_x86::cpuid::CpuidResult;
use exitless_x86::exception::{Exception, Vector};
use exitless_x86::regs::{Gpr, SegReg, Segment, rflags};
use exitless_x86::svm::{Vmcb, event_inj, int_ctl, intercept1, intercept2, tlb_control};
use std::boxed::Box;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::vec::Vec;

mod avic;
mod clean;
mod hands;
mod registers;
mod send;

/// The run loop's fakes, as far as a backend can use them.
#[path = "../../../vcpu/tests/fake/bare.rs"]
mod bare;
#[path = "../../../vcpu/tests/fake/os.rs"]
#[allow(dead_code)]
mod os;
#[path = "../../../vcpu/tests/fake/world.rs"]
#[allow(dead_code)]
mod world;

/// What the CPU does in one entry: looks at the VMCB as VMRUN finds it, and leaves it as #VMEXIT does. Answers whether VMRUN
/// faulted.
type Play = Box<dyn FnOnce(&mut Vmcb, &mut [u64; 16]) -> bool>;

std::thread_local! {
    static PLAY: RefCell<Option<Play>> = const { RefCell::new(None) };
    static BARRIERS: Cell<u32> = const { Cell::new(0) };
    static DEBUGCTL: Cell<u64> = const { Cell::new(0) };
    static DEBUGCTL_WRITES: Cell<u32> = const { Cell::new(0) };
    static CACHED: RefCell<HashMap<u64, clean::Cached>> = RefCell::default();
    /// SPEC_CTRL as the world switch got it, and what a guest that has it for itself left.
    static SPEC_CTRL: RefCell<(SpecCtrl, u64)> = RefCell::default();
    /// What else happens around the run loop, where the test has one.
    static OUTSIDE: RefCell<Option<Rc<world::World>>> = const { RefCell::new(None) };
}

#[unsafe(no_mangle)]
extern "C" fn ex_svm_enter(
    vmcb: *const Vmcb,
    vmcb_pa: u64,
    gprs: *mut u64,
    host: u64,
    spec_ctrl: *mut SpecCtrl,
    host_debugctl: u64,
) -> u32 {
    assert_eq!(vmcb as u64, vmcb_pa);
    // SAFETY: `Machine` gives addresses as physical addresses, and both objects are the caller's alone.
    let (vmcb, gprs) = unsafe { (&mut *(vmcb_pa as *mut Vmcb), &mut *gprs.cast::<[u64; 16]>()) };
    let play = PLAY.take().expect("an entry nobody planned");
    clean::before(vmcb, host);
    let failed = play(vmcb, gprs);
    // SAFETY: as above.
    SPEC_CTRL.with_borrow_mut(|(entered, left)| unsafe {
        *entered = *spec_ctrl;
        if entered.open != 0 {
            (*spec_ctrl).guest = *left;
        }
    });
    clean::after(vmcb, host, failed);
    if host_debugctl != 0 {
        ex_svm_set_debugctl(host_debugctl);
    }
    u32::from(failed)
}

#[unsafe(no_mangle)]
extern "C" fn ex_svm_debugctl() -> u64 {
    DEBUGCTL.get()
}

#[unsafe(no_mangle)]
extern "C" fn ex_svm_set_debugctl(value: u64) {
    DEBUGCTL.set(value);
    DEBUGCTL_WRITES.set(DEBUGCTL_WRITES.get() + 1);
}

#[unsafe(no_mangle)]
extern "C" fn ex_ibpb() {
    BARRIERS.set(BARRIERS.get() + 1);
}

#[unsafe(no_mangle)]
extern "C" fn ex_call_on_user_return() {}

#[unsafe(no_mangle)]
extern "C" fn ex_machine_check() {
    OUTSIDE.with_borrow(|w| {
        if let Some(w) = w {
            w.host_runs(world::Hand::MachineCheck);
        }
    });
}

/// A vCPU over a VMCB of its own.
struct Machine {
    v: Svm,
    cpu: PerCpu,
    // The VMCB is reached through the vCPU.
    vmcb: NonNull<Vmcb>,
}

const ALL: Caps = Caps {
    asids: 16,
    next_rip: true,
    decode_assists: true,
    flush_by_asid: true,
    tsc_rate: true,
    pause_filter: true,
    invpcid: true,
    spec_ctrl: false,
    machine_checks: false,
    avic: false,
    avic_ipis: false,
};

impl Machine {
    fn new(caps: &Caps) -> Self {
        Self::with(caps, InGuest::default())
    }

    fn with(caps: &Caps, own: InGuest) -> Self {
        let vmcb = NonNull::from(Box::leak(Box::new(Vmcb::zeroed())));
        let mut v = Svm::zeroed();
        let vmcb_pa = vmcb.as_ptr() as u64;
        let msrpm_pa = core::array::from_fn(|set| {
            core::array::from_fn(|apic| 0x2000 + set as u64 * 0x10_0000 + apic as u64 * 0x100_0000)
        });
        v.init(Pages { vmcb, vmcb_pa, msrpm_pa, iopm_pa: 0x3000, avic: avic::pages(caps) }, caps, own);
        let cpu = PerCpu::zeroed();
        cpu.enable(0, caps.asids, 0);
        v.set_rip(0x1000);
        v.set_rflags(2);
        Self { v, cpu, vmcb }
    }

    /// One entry that `play`s.
    fn enter(&mut self, play: impl FnOnce(&mut Vmcb) + 'static) -> Exit {
        self.enter_with(false, move |vmcb, _| {
            play(vmcb);
            false
        })
    }

    fn enter_with(
        &mut self,
        flush: bool,
        play: impl FnOnce(&mut Vmcb, &mut [u64; 16]) -> bool + 'static,
    ) -> Exit {
        PLAY.set(Some(Box::new(play)));
        self.v.enter(&self.cpu, flush, || NoSender)
    }

    /// The exit for a code.
    fn exit(&mut self, code: u64, info1: u64, info2: u64) -> Exit {
        self.enter(move |vmcb| {
            vmcb.control.exit_code = code;
            vmcb.control.exit_info_1 = info1;
            vmcb.control.exit_info_2 = info2;
        })
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // SAFETY: leaked in `new`; the vCPU does not touch it any more.
        drop(unsafe { Box::from_raw(self.vmcb.as_ptr()) });
    }
}

fn exception(vector: u8) -> Exception {
    let vector = Vector(vector);
    Exception { vector, error_code: vector.has_error_code().then_some(0x1234), payload: 0 }
}

/// A guest that has SPEC_CTRL for itself: its maps, and its value behind each exit. Where the CPU switches it by the VMCB, the world
/// switch has nothing to read.
#[test]
fn own_spec_ctrl() {
    let mut m = Machine::new(&ALL);
    m.v.set_sys_reg(SysReg::SpecCtrl, 1);
    m.exit(0x72, 0, 0);
    assert_eq!(SPEC_CTRL.with_borrow(|s| s.0), SpecCtrl { guest: 1, open: 0 });
    m.v.set_opened(Opened::SPEC_CTRL);
    SPEC_CTRL.with_borrow_mut(|s| s.1 = 4);
    m.exit(0x72, 0, 0);
    assert_eq!(SPEC_CTRL.with_borrow(|s| s.0), SpecCtrl { guest: 1, open: 1 });
    assert_eq!((m.v.sys_reg(SysReg::SpecCtrl), m.v.control().msrpm_base_pa), (4, 0x10_2000));
    m.v.set_opened(Opened::NONE);
    assert_eq!(m.v.control().msrpm_base_pa, 0x2000);
    assert!(!m.v.switches_spec_ctrl());

    let mut m = Machine::new(&Caps { spec_ctrl: true, ..ALL });
    assert!(m.v.switches_spec_ctrl());
    m.v.set_opened(Opened::SPEC_CTRL);
    m.v.set_sys_reg(SysReg::SpecCtrl, 1);
    m.enter(|vmcb| vmcb.save.spec_ctrl = 2);
    assert_eq!(SPEC_CTRL.with_borrow(|s| s.0), SpecCtrl { guest: 1, open: 0 });
    assert_eq!(m.v.sys_reg(SysReg::SpecCtrl), 2);
}

/// TSC_AUX was read once and written twice for each time a thread came to a CPU. It stays a guest's until the CPU returns to user mode,
/// and is written only where it changes.
#[test]
fn tsc_aux_is_lent() {
    let cpu = PerCpu::none();
    cpu.enable(0, 16, 7);
    assert_eq!(cpu.return_tsc_aux(), None, "nothing is lent");
    assert_eq!(cpu.lend_tsc_aux(7), (false, false), "the host's value");
    assert_eq!(cpu.lend_tsc_aux(9), (true, true), "the way back is arranged once");
    assert_eq!(cpu.lend_tsc_aux(9), (false, false), "the thread slept and woke");
    assert_eq!(cpu.lend_tsc_aux(8), (true, false), "another guest");
    assert_eq!((cpu.return_tsc_aux(), cpu.return_tsc_aux()), (Some(7), None));
    assert_eq!(cpu.lend_tsc_aux(8), (true, true));
    // By way of the host's value: the way back may be arranged again, which is no harm.
    assert_eq!((cpu.lend_tsc_aux(7), cpu.return_tsc_aux()), ((true, false), None));
    assert_eq!(cpu.lend_tsc_aux(8), (true, true));
}

/// What one guest trained must not steer the next one on the same CPU; a thread that comes back to its CPU pays nothing.
#[test]
fn another_vcpu_brings_a_barrier() {
    let cpu = PerCpu::none();
    let barriers = |identity| {
        // SAFETY: a test has no scheduler, and without TSC_AUX and ratio no register is touched.
        unsafe { crate::enter::load(&cpu, identity, None, None) };
        BARRIERS.take()
    };
    assert_eq!([7, 7, 8, 7, 7].map(barriers), [1, 0, 1, 1, 0]);
}

/// Every event comes back as it went, when its delivery was interrupted.
#[test]
fn events_round_trip() {
    for v in 0..=255 {
        for event in [Event::Interrupt(v), Event::Software(By::IntN, v, 0)] {
            let (word, code) = encode(event);
            assert_eq!(vectoring(word, code, 0), Some(event));
        }
    }
    let (word, code) = encode(Event::Nmi);
    assert_eq!((word, vectoring(word, code, 0)), (0x8000_0202, Some(Event::Nmi)));
    for v in (0..32).filter(|v| ![2, 3, 4].contains(v)) {
        let x = exception(v);
        let (word, code) = encode(Event::Exception(x));
        assert_eq!(word >> 11 & 1, u32::from(x.error_code.is_some()), "error code valid");
        let payload = if v == 14 { 0xabc } else { 0 };
        assert_eq!(vectoring(word, code, 0xabc), Some(Event::Exception(Exception { payload, ..x })));
    }
}

/// INT3 and INTO are told as exceptions; invalid words and reserved types are nothing.
#[test]
fn what_was_under_delivery() {
    for v in [3, 4] {
        let word = encode(Event::Exception(exception(v))).0;
        assert_eq!(vectoring(word, 0, 0), Some(Event::Software(By::Int3OrInto, v, 0)));
        // The guest's own executes again.
        let mut m = Machine::new(&ALL);
        m.enter(move |vmcb| vmcb.control.exit_int_info = word);
        assert_eq!(m.v.take_interrupted(), None);
    }
    for kind in [1, 5, 6, 7] {
        assert_eq!(vectoring(event_inj::VALID | kind << 8 | 0x20, 0, 0), None);
    }
    assert_eq!(vectoring(encode(Event::Interrupt(0x20)).0 & !event_inj::VALID, 0, 0), None);
}

/// An event is programmed for one entry. Interrupted, it is told once; INT n is not, because it executes again.
#[test]
fn inject_and_take_back() {
    let mut m = Machine::new(&ALL);
    m.v.set_cr2(0xbeef_0000);
    m.v.inject(Event::Exception(Exception::pf(6, 0xdead_0000)));
    assert_eq!(m.v.cr2(), 0xbeef_0000, "user space may have written it since");
    m.enter(|vmcb| {
        assert_eq!((vmcb.control.event_inj, vmcb.control.event_inj_err), (0x8000_0b0e, 6));
        vmcb.control.exit_code = 0x60;
        vmcb.control.exit_int_info = vmcb.control.event_inj;
        vmcb.control.exit_int_info_err = 6;
    });
    let again = Event::Exception(Exception::pf(6, 0xbeef_0000));
    assert_eq!((m.v.take_interrupted(), m.v.take_interrupted()), (Some(again), None));
    m.enter(|vmcb| {
        assert_eq!(vmcb.control.event_inj, 0, "once");
        vmcb.control.exit_code = 0x400;
        vmcb.control.exit_int_info = encode(Event::Software(By::IntN, 0x80, 2)).0;
    });
    assert!(!m.v.runs_again());
    assert_eq!((m.v.take_interrupted(), m.v.runs_again()), (None, true));
    m.v.inject(Event::Interrupt(0x41));
    m.v.withdraw();
    m.enter(|vmcb| assert_eq!(vmcb.control.event_inj, 0));
}

/// Injecting an NMI masks NMIs and watches IRET; an interrupted delivery undoes both.
#[test]
fn nmi_masks() {
    let mut m = Machine::new(&ALL);
    m.v.inject(Event::Nmi);
    assert!(m.v.nmi_masked());
    m.enter(|vmcb| {
        assert_ne!(vmcb.control.intercept1 & intercept1::IRET, 0);
        vmcb.control.exit_code = 0x400;
        vmcb.control.exit_int_info = vmcb.control.event_inj;
    });
    assert_eq!(m.v.take_interrupted(), Some(Event::Nmi));
    assert!(!m.v.nmi_masked());
    m.enter(|vmcb| assert_eq!(vmcb.control.intercept1 & intercept1::IRET, 0));
}

/// A machine in its NMI handler, at the intercepted IRET.
fn at_iret() -> Machine {
    let mut m = Machine::new(&ALL);
    m.v.inject(Event::Nmi);
    let exit = m.enter(|vmcb| {
        vmcb.save.rip = 0x5000;
        vmcb.control.exit_code = 0x74;
    });
    assert_eq!(exit, Exit::NmiWindow);
    assert!(m.v.nmi_masked(), "IRET has not run yet");
    m
}

/// No second NMI waits: NMIs unmask when an exit shows that IRET is behind, and not while RIP is still there.
#[test]
fn iret_unmasks() {
    let mut m = at_iret();
    m.enter(|vmcb| {
        assert_eq!(vmcb.control.intercept1 & intercept1::IRET, 0, "it must run now");
        assert_eq!(vmcb.save.rflags & rflags::TF, 0);
        vmcb.control.exit_code = 0x60;
    });
    assert!(m.v.nmi_masked());
    m.enter(|vmcb| {
        vmcb.save.rip = 0x1234;
        vmcb.control.exit_code = 0x60;
    });
    assert!(!m.v.nmi_masked());
}

/// A second NMI waits: the guest is stepped over IRET. Its #DB is ours, and nobody sees TF.
#[test]
fn iret_stepped() {
    let mut m = at_iret();
    m.v.set_nmi_window(true);
    assert_eq!(m.v.rflags() & rflags::TF, 0, "planted, not shown");
    let exit = m.enter(|vmcb| {
        assert_ne!(vmcb.save.rflags & rflags::TF, 0);
        // IRET pops the guest's flags.
        (vmcb.save.rip, vmcb.save.rflags) = (0x1234, 0x202);
        vmcb.save.dr6 = 0xffff_4ff0;
        vmcb.control.exit_code = 0x41;
    });
    assert_eq!(exit, Exit::NmiWindow);
    assert!(!m.v.nmi_masked());
    assert_eq!((m.v.rflags(), m.v.dr6() & 1 << 14), (0x202, 0));
}

/// The step is cut short by another exit: TF is taken out again, NMIs stay masked.
#[test]
fn step_cut_short() {
    let mut m = at_iret();
    m.v.set_nmi_window(true);
    let exit = m.enter(|vmcb| vmcb.control.exit_code = 0x60);
    assert_eq!(exit, Exit::ExternalInterrupt);
    assert!(m.v.nmi_masked());
    m.enter(|vmcb| assert_eq!(vmcb.save.rflags & rflags::TF, 0));
    // The guest's own TF, popped by the IRET, stays.
    let mut m = at_iret();
    m.v.set_nmi_window(true);
    m.enter(|vmcb| {
        (vmcb.save.rip, vmcb.save.rflags) = (0x1234, 0x302);
        vmcb.control.exit_code = 0x400;
    });
    assert_eq!(m.v.rflags(), 0x302);
}

/// An event goes in while the step is planned: TF must not end up on the guest's stack.
#[test]
fn step_gives_way_to_an_event() {
    let mut m = at_iret();
    m.v.set_nmi_window(true);
    m.v.inject(Event::Exception(exception(13)));
    m.enter(|vmcb| {
        assert_eq!(vmcb.save.rflags & rflags::TF, 0);
        vmcb.control.exit_code = 0x60;
    });
    assert_eq!(m.v.rflags() & rflags::TF, 0);
    // The guest's own stays.
    let mut m = at_iret();
    m.v.set_rflags(2 | rflags::TF);
    m.v.set_nmi_window(true);
    m.v.inject(Event::Interrupt(0x41));
    m.enter(|vmcb| assert_ne!(vmcb.save.rflags & rflags::TF, 0));
}

/// An NMI waits in an interrupt shadow: one instruction is stepped, then the window is open.
#[test]
fn shadow_stepped() {
    let mut m = Machine::new(&ALL);
    m.v.set_interrupt_shadow(true);
    m.v.set_nmi_window(true);
    let exit = m.enter(|vmcb| {
        assert_ne!(vmcb.save.rflags & rflags::TF, 0);
        vmcb.save.rip = 0x1001;
        vmcb.save.dr6 |= 1 << 14;
        vmcb.control.int_state = 0;
        vmcb.control.exit_code = 0x41;
    });
    assert_eq!(exit, Exit::NmiWindow);
    assert_eq!((m.v.rflags(), m.v.interrupt_shadow()), (2, false));
}

fn db(payload: u64) -> Exit {
    Exit::Exception(Exception { payload, ..Exception::plain(Vector::DB) })
}

/// Ends in #DB, with DR6 as hardware leaves it.
fn debug_exception(m: &mut Machine, conditions: u64, then: fn(&mut Vmcb)) -> Exit {
    m.enter(move |vmcb| {
        vmcb.save.dr6 |= conditions;
        vmcb.control.exit_code = 0x41;
        then(vmcb);
    })
}

/// #DB that nobody planted is the guest's. What it is about comes with it; DR6 has it only if the guest's is in the VMCB, which
/// otherwise has a neutral one.
#[test]
fn debug_exceptions_of_the_guest() {
    let mut m = Machine::new(&ALL);
    m.v.set_dr6(0xffff_2ff1);
    assert_eq!(debug_exception(&mut m, 0x4002, |_| ()), db(0x4002));
    assert_eq!(m.v.dr6(), 0xffff_2ff1);
    m.enter(|vmcb| assert_eq!(vmcb.save.dr6, 0xffff_0ff0));
    m.v.set_dr_intercept(false);
    assert_eq!(debug_exception(&mut m, 0x4000, |vmcb| assert_eq!(vmcb.save.dr6, 0xffff_6ff1)), db(0x6001));
    assert_eq!(m.v.dr6(), 0xffff_6ff1);
}

/// An NMI's step over IRET ends in the same #DB as a step of the guest's own, or a breakpoint: only the NMI's share is kept.
#[test]
fn step_shares_its_exception() {
    let mut m = at_iret();
    m.v.set_nmi_window(true);
    assert_eq!(debug_exception(&mut m, 0x4001, |_| ()), db(1));
    assert!(!m.v.nmi_masked());
    let mut m = at_iret();
    m.v.set_rflags(2 | rflags::TF);
    m.v.set_nmi_window(true);
    assert_eq!(debug_exception(&mut m, 0x4000, |_| ()), db(0x4000));
}

/// The guest's own DR6, where the CPU holds it, shows nothing of the NMI's step.
#[test]
fn step_leaves_no_trace_in_dr6() {
    let mut m = at_iret();
    m.v.set_dr6(0xffff_0ff0);
    m.v.set_dr_intercept(false);
    m.v.set_nmi_window(true);
    assert_eq!(debug_exception(&mut m, 0x4000, |_| ()), Exit::NmiWindow);
    assert_eq!(m.v.dr6(), 0xffff_0ff0);
}

/// A breakpoint on IRET comes before it: NMIs stay masked.
#[test]
fn breakpoint_before_the_step() {
    let mut m = at_iret();
    m.v.set_nmi_window(true);
    assert_eq!(debug_exception(&mut m, 1, |_| ()), db(1));
    assert!(m.v.nmi_masked());
    assert_eq!(m.v.rflags() & rflags::TF, 0);
}

/// A debugger steps: TF is set, nobody sees it, and it is there until the debugger takes it out again; unless the guest's own
/// doing took it away.
#[test]
fn debugger_steps() {
    for guests in [0, rflags::TF] {
        let mut m = Machine::new(&ALL);
        m.v.set_rflags(2 | guests);
        m.v.set_step(true);
        assert_eq!((m.v.rflags(), m.v.stepping()), (2 | guests, true));
        assert_eq!(debug_exception(&mut m, 0x4000, |vmcb| assert_eq!(vmcb.save.rflags, 0x102)), db(0x4000));
        m.v.set_rflags(0x202 | guests);
        assert_eq!((m.v.rflags(), m.v.stepping()), (0x202 | guests, true), "registers were written");
        m.enter(|vmcb| assert_eq!(vmcb.save.rflags, 0x302));
        m.v.set_step(false);
        assert_eq!((m.v.rflags(), m.v.stepping()), (0x202 | guests, false));
        m.enter(move |vmcb| assert_eq!(vmcb.save.rflags, 0x202 | guests));
    }
    let mut m = Machine::new(&ALL);
    m.v.set_step(true);
    m.enter(|vmcb| vmcb.save.rflags = 2);
    assert!(!m.v.stepping(), "a handler runs");
    m.v.set_rflags(0x202);
    m.enter(|vmcb| {
        assert_eq!(vmcb.save.rflags, 0x202);
        vmcb.save.rflags = 0x302;
    });
    assert_eq!((m.v.rflags(), m.v.stepping()), (0x202, true), "it returned");
    m.v.set_rflags(2);
    m.enter(|vmcb| vmcb.save.rflags = 2);
    m.v.set_step(true);
    assert!(m.v.stepping(), "once more");
}

/// Two steps at once, over IRET for an NMI and for a debugger: the #DB is the debugger's too, and each takes out its own TF.
#[test]
fn debugger_steps_over_iret() {
    let mut m = at_iret();
    m.v.set_step(true);
    m.v.set_nmi_window(true);
    assert_eq!((m.v.rflags() & rflags::TF, m.v.stepping()), (0, true));
    assert_eq!(debug_exception(&mut m, 0x4000, |vmcb| vmcb.save.rip = 0x1234), db(0x4000));
    assert!(!m.v.nmi_masked() && m.v.stepping());
    m.v.set_step(false);
    m.enter(|vmcb| assert_eq!(vmcb.save.rflags & rflags::TF, 0));
    // The other way round, and an event that puts the NMI's step off.
    let mut m = at_iret();
    m.v.set_nmi_window(true);
    m.v.set_step(true);
    m.v.inject(Event::Exception(exception(13)));
    m.enter(|vmcb| assert_ne!(vmcb.save.rflags & rflags::TF, 0));
    assert!(m.v.stepping());
    m.v.set_step(false);
    assert_eq!(m.v.rflags() & rflags::TF, 0);
}

/// INT3 exits while a debugger plants it.
#[test]
fn debugger_breakpoints() {
    let mut m = Machine::new(&ALL);
    for on in [true, false] {
        m.v.set_bp_intercept(on);
        m.enter(move |vmcb| assert_eq!(vmcb.control.intercept_exceptions >> 3 & 1, u32::from(on)));
    }
    assert_eq!(m.exit(0x43, 0, 0), Exit::Exception(Exception::plain(Vector::BP)));
}

/// The event of an instruction pushes RIP behind it, by the VMCB's next RIP, or on old CPUs by RIP itself. An exit in the middle
/// of the delivery leaves RIP at the instruction, and the event comes again.
#[test]
fn events_of_instructions() {
    const INT3: u32 = 0x8000_0303;
    const INT_N: u32 = 0x8000_0403;
    for (event, word, length) in
        [(Event::Software(By::Int3OrInto, 3, 1), INT3, 1), (Event::Software(By::IntN, 3, 2), INT_N, 2)]
    {
        for next_rip in [true, false] {
            for interrupted in [true, false] {
                let mut m = Machine::new(&Caps { next_rip, ..ALL });
                m.v.inject(event);
                let (rip, next) = if next_rip { (0x1000, 0x1000 + length) } else { (0x1000 + length, 0) };
                m.enter(move |vmcb| {
                    assert_eq!(vmcb.control.event_inj, word);
                    assert_eq!((vmcb.save.rip, vmcb.control.next_rip), (rip, next));
                    if interrupted {
                        vmcb.control.exit_int_info = word;
                    } else {
                        vmcb.save.rip = 0x5000;
                    }
                });
                assert_eq!(m.v.take_interrupted(), interrupted.then_some(event));
                assert_eq!(m.v.rip(), if interrupted { 0x1000 } else { 0x5000 });
                m.enter(|_| ());
                assert_eq!(m.v.rip(), if interrupted { 0x1000 } else { 0x5000 }, "once");
            }
        }
    }
}

/// The event of an instruction was delivered, and in the same entry the guest met another of its own, in whose delivery is the
/// exit: it executes again. It was taken for the first one, with its length.
#[test]
fn an_own_event_after_a_delivered_one() {
    let injected = Event::Software(By::IntN, 0x80, 3);
    let word = encode(injected).0;
    for next_rip in [true, false] {
        // (vector, CS base, RIP): another vector at the same place, the same vector elsewhere, the same RIP in another segment.
        let rip = if next_rip { 0x1000 } else { 0x1003 };
        for (own, base, at) in [(0x81, 0, rip), (0x80, 0, 0x5000), (0x80, 0x10, rip)] {
            let mut m = Machine::new(&Caps { next_rip, ..ALL });
            m.v.inject(injected);
            m.enter(move |vmcb| {
                assert_eq!((vmcb.control.event_inj, vmcb.save.rip), (word, rip));
                (vmcb.save.rip, vmcb.save.cs.base) = (at, base);
                vmcb.control.exit_int_info = encode(Event::Software(By::IntN, own, 2)).0;
            });
            assert_eq!((m.v.take_interrupted(), m.v.runs_again()), (None, true), "{own:x} {base:x} {at:x}");
            assert_eq!(m.v.rip(), at);
        }
    }
    // INT 3 was given, INT3 is the guest's own: the same vector, of another type.
    let mut m = Machine::new(&Caps { next_rip: true, ..ALL });
    m.v.inject(Event::Software(By::IntN, 3, 2));
    m.enter(|vmcb| vmcb.control.exit_int_info = encode(Event::Software(By::Int3OrInto, 3, 1)).0);
    assert_eq!((m.v.take_interrupted(), m.v.runs_again()), (None, true));
}

/// CALL, JMP and IRET by EXITINFO2; an event in EXITINTINFO met a task gate. INT3 and INTO are told as exceptions.
#[test]
fn task_switches() {
    let mut m = Machine::new(&ALL);
    let mut exit = |info2: u64, word: u32, code: u32| {
        let exit = m.enter(move |vmcb| {
            let c = &mut vmcb.control;
            (c.exit_code, c.exit_info_1, c.exit_info_2) = (0x7d, 0xdead_0000_0048, info2);
            (c.exit_int_info, c.exit_int_info_err) = (word, code);
        });
        (exit, m.v.next_rip(), m.v.take_interrupted())
    };
    let switch = |source, error_code, resume| {
        Exit::TaskSwitch(TaskSwitch { selector: 0x48, source, error_code, resume })
    };
    assert_eq!(exit(0xdead, 0, 0), (switch(TaskSource::Call, None, false), None, None));
    assert_eq!(exit(1 << 38, 0, 0), (switch(TaskSource::Jump, None, false), None, None));
    assert_eq!(exit(1 << 36 | 1 << 48, 0, 0), (switch(TaskSource::Iret, None, true), None, None));
    let gp = Event::Exception(Exception::gp(0x18));
    let (word, code) = encode(gp);
    let out = (switch(TaskSource::Gate(gp), Some(0x18), true), None, Some(gp));
    assert_eq!(exit(1 << 48 | 1 << 44 | 0x18, word, code), out);
    for event in [Event::Interrupt(0x41), Event::Nmi] {
        let out = (switch(TaskSource::Gate(event), None, false), None, Some(event));
        assert_eq!(exit(0, encode(event).0, 0), out);
    }
    let source = TaskSource::Gate(Event::Software(By::IntN, 0x30, 0));
    assert_eq!(
        exit(0, encode(Event::Software(By::IntN, 0x30, 0)).0, 0),
        (switch(source, None, false), None, None)
    );
    for v in [3, 4] {
        let word = encode(Event::Exception(Exception::plain(Vector(v)))).0;
        let source = TaskSource::Gate(Event::Software(By::Int3OrInto, v, 0));
        assert_eq!(exit(0, word, 0), (switch(source, None, false), None, None));
    }
}

/// The exit codes of APM vol. 2, appendix C, that we ask for.
#[test]
fn exits_decoded() {
    let io = |port, size, input, string, rep| Exit::Io(IoAccess { port, size, input, string, rep });
    let slat = |gpa, write, fetch, present, table_walk| {
        Exit::Slat(SlatFault { gpa, write, fetch, present, table_walk, marked: false })
    };
    let mark =
        SlatFault { gpa: 0xd000_0000, write: true, present: true, marked: true, ..SlatFault::default() };
    let mut m = Machine::new(&ALL);
    for (code, info1, info2, exit) in [
        (0x10, 0, 0, Exit::CrAccess),
        (0x14, 0, 0, Exit::CrAccess),
        (0x18, 0, 0, Exit::Cr8Write),
        (0x65, 0, 0, Exit::CrAccess),
        (0x20, 0, 0, Exit::DrAccess),
        (0x37, 0, 0, Exit::DrAccess),
        (0x51, 0, 0, Exit::Exception(Exception { vector: Vector::AC, error_code: Some(0), payload: 0 })),
        (0x4e, 5, 0x7000, Exit::Exception(Exception::pf(5, 0x7000))),
        (0x46, 5, 0x7000, Exit::Exception(Exception::ud())),
        (0x60, 0, 0, Exit::ExternalInterrupt),
        (0x61, 0, 0, Exit::Nmi),
        (0x62, 0, 0, Exit::HostEvent),
        (0x63, 0, 0, Exit::HostEvent),
        (0x64, 0, 0, Exit::InterruptWindow),
        (0x6f, 0, 0, Exit::Rdpmc),
        (0x72, 0, 0, Exit::Cpuid),
        (0x76, 0, 0, Exit::Invd),
        (0x77, 0, 0, Exit::Pause),
        (0x78, 0, 0, Exit::Hlt),
        (0x7a, 0, 0, Exit::VirtInstruction),
        (0x7b, 0x03f8_0010, 0x1001, io(0x3f8, 1, false, false, false)),
        (0x7b, 0xcfc0_0041, 0x1001, io(0xcfc0, 4, true, false, false)),
        (0x7b, 0x0170_002d, 0x1001, io(0x170, 2, true, true, true)),
        (0x7c, 0, 0, Exit::Rdmsr),
        (0x7c, 1, 0, Exit::Wrmsr),
        (0x7f, 0, 0, Exit::Shutdown),
        (0x80, 0, 0, Exit::VirtInstruction),
        (0x81, 0, 0, Exit::Hypercall),
        (0x86, 0, 0, Exit::VirtInstruction),
        (0x89, 0, 0, Exit::Wbinvd),
        (0x8a, 0, 0, Exit::Monitor),
        (0x8b, 0, 0, Exit::Mwait),
        (0x8c, 0, 0, Exit::Mwait),
        (0x8d, 0, 0, Exit::Xsetbv),
        (0x8e, 0, 0, Exit::Rdpru),
        (0x400, 1 << 32 | 6, 0xb8000, slat(0xb8000, true, false, false, false)),
        (0x400, 1 << 33 | 5, 0x1000, slat(0x1000, false, false, true, true)),
        (0x400, 1 << 32 | 0x14, 0xfee0_0000, slat(0xfee0_0000, false, true, false, false)),
        (0x400, 1 << 32 | 0xf, 0xd000_0000, Exit::Slat(mark)),
        (u64::MAX, 0, 0, Exit::FailEntry(u64::MAX)),
        (0x402, 0, 0, Exit::Unknown(0x402)),
        (0xf000_0000, 0, 0, Exit::Unknown(0xf000_0000)),
    ] {
        assert_eq!(m.exit(code, info1, info2), exit, "{code:#x}");
        assert_eq!(m.v.exit_number(), code);
    }
    for code in (0..0x500).chain([0xffff_fffe]) {
        m.exit(code, !0, !0);
        m.v.set_nmi_masked(false);
    }
}

/// Where the next instruction lies: port exits always tell, others with next-RIP save; never after a fault that has none.
#[test]
fn next_rip() {
    let mut m = Machine::new(&ALL);
    m.exit(0x7b, 0x03f8_0010, 0x1002);
    assert_eq!(m.v.next_rip(), Some(0x1002));
    m.enter(|vmcb| (vmcb.control.exit_code, vmcb.control.next_rip) = (0x72, 0x1003));
    assert_eq!(m.v.next_rip(), Some(0x1003));
    m.enter(|vmcb| (vmcb.control.exit_code, vmcb.control.next_rip) = (0x400, 0));
    assert_eq!(m.v.next_rip(), None);
    let mut m = Machine::new(&Caps { next_rip: false, ..ALL });
    m.enter(|vmcb| (vmcb.control.exit_code, vmcb.control.next_rip) = (0x72, 0x1003));
    assert_eq!(m.v.next_rip(), None);
}

/// Decode assists: as many bytes as the CPU says, at most 15; none without the feature.
#[test]
fn fetched_bytes() {
    for (caps, n, want) in [
        (ALL, 3, 3),
        (ALL, 15, 15),
        (ALL, 0, 0),
        (ALL, 200, 15),
        (Caps { decode_assists: false, ..ALL }, 9, 0),
    ] {
        let mut m = Machine::new(&caps);
        m.enter(move |vmcb| (vmcb.control.insn_len, vmcb.control.insn_bytes) = (n, [0x90; 15]));
        assert_eq!(m.v.fetched(), &[0x90; 15][..want]);
        let mut bytes = [0; 15];
        bytes[..want].fill(0x90);
        let told = Stopped { rip: m.v.rip(), code: m.v.code_attributes(), length: 0, bytes };
        assert_eq!(m.v.stopped(), (want != 0).then_some(told));
    }
}

/// RAX and RSP live in the VMCB while the guest runs, the others in the array; VMRUN that faults means SVM is off.
#[test]
fn registers_around_an_entry() {
    let mut m = Machine::new(&ALL);
    m.v.gprs_mut().set(Gpr::Rax, 1);
    m.v.gprs_mut().set(Gpr::Rsp, 2);
    m.v.gprs_mut().set(Gpr::R15, 3);
    m.enter_with(false, |vmcb, gprs| {
        assert_eq!((vmcb.save.rax, vmcb.save.rsp, gprs[15]), (1, 2, 3));
        (vmcb.save.rax, vmcb.save.rsp, gprs[15]) = (4, 5, 6);
        false
    });
    let g = m.v.gprs();
    assert_eq!((g.get(Gpr::Rax), g.get(Gpr::Rsp), g.get(Gpr::R15)), (4, 5, 6));
    assert_eq!(m.enter_with(false, |_, _| true), Exit::Disabled);
}

/// What the guest must not see or lose: SVME in EFER, the fixed bit of RFLAGS, CPL in SS.
#[test]
fn hidden_register_bits() {
    let mut m = Machine::new(&ALL);
    m.v.set_efer(0x500);
    assert_eq!(m.v.efer(), 0x500);
    m.v.set_rflags(0);
    assert_eq!(m.v.rflags(), 2);
    m.enter(|vmcb| assert_eq!((vmcb.save.efer, vmcb.save.rflags), (0x1500, 2)));
    for dpl in 0..4 {
        m.v.set_segment(
            SegReg::Ss,
            &Segment { base: 0, limit: !0, selector: 0x10, attrib: 0xc93 | dpl << 5 },
        );
        assert_eq!(u16::from(m.v.cpl()), dpl);
    }
}

/// Every segment register is its own, with its hidden part; FS and GS bases are the MSRs too.
#[test]
fn segments_round_trip() {
    let mut m = Machine::new(&ALL);
    let all =
        [SegReg::Es, SegReg::Cs, SegReg::Ss, SegReg::Ds, SegReg::Fs, SegReg::Gs, SegReg::Ldtr, SegReg::Tr];
    let value = |r: SegReg| {
        let i = r as u16 + 1;
        Segment { base: u64::from(i) << 40, limit: u32::from(i), selector: i * 8, attrib: Segment::P | i }
    };
    all.into_iter().for_each(|r| m.v.set_segment(r, &value(r)));
    assert!(all.into_iter().all(|r| m.v.segment(r) == value(r)));
    assert_eq!((m.v.sys_reg(SysReg::FsBase), m.v.sys_reg(SysReg::GsBase)), (5 << 40, 6 << 40));
    m.v.set_sys_reg(SysReg::GsBase, 7);
    assert_eq!(m.v.segment(SegReg::Gs), Segment { base: 7, ..value(SegReg::Gs) });
}

/// Every system register keeps its own value.
#[test]
fn system_registers_do_not_alias() {
    use SysReg::*;
    let all = [
        Star,
        Lstar,
        Cstar,
        Sfmask,
        KernelGsBase,
        FsBase,
        GsBase,
        SysenterCs,
        SysenterEsp,
        SysenterEip,
        Pat,
        DebugCtl,
        LastBranchFrom,
        LastBranchTo,
        LastIntFrom,
        LastIntTo,
        SpecCtrl,
        TscAux,
    ];
    let mut m = Machine::new(&ALL);
    all.into_iter().enumerate().for_each(|(i, r)| m.v.set_sys_reg(r, i as u64 + 100));
    all.into_iter().enumerate().for_each(|(i, r)| assert_eq!(m.v.sys_reg(r), i as u64 + 100, "{r:?}"));
}

/// Windows, shadow, TPR and intercepts share words; none disturbs another.
#[test]
fn controls_do_not_disturb_each_other() {
    let mut m = Machine::new(&ALL);
    m.v.set_cr8(9);
    m.v.set_interrupt_window(true);
    m.v.set_cr8_intercept(true);
    m.v.set_dr_intercept(false);
    m.v.set_interrupt_shadow(true);
    assert_eq!((m.v.cr8(), m.v.interrupt_shadow()), (9, true));
    m.enter(|vmcb| {
        let c = &vmcb.control;
        let window = int_ctl::V_IRQ | int_ctl::V_INTR_PRIO | int_ctl::V_IGN_TPR;
        assert_eq!(c.int_ctl, int_ctl::V_INTR_MASKING | window | 9);
        assert_ne!(c.intercept1 & intercept1::VINTR, 0);
        assert_eq!(c.intercept_cr_write, 1 << 8 | 1 << 4);
        assert_eq!((c.intercept_dr_read, c.intercept_dr_write, c.int_state), (0, 0, 1));
    });
    m.v.set_interrupt_window(false);
    m.v.set_cr8_intercept(false);
    m.v.set_dr_intercept(true);
    m.v.set_interrupt_shadow(false);
    m.v.set_cr8(0);
    m.enter(|vmcb| {
        let c = &vmcb.control;
        assert_eq!(c.int_ctl, int_ctl::V_INTR_MASKING);
        assert_eq!((c.intercept1 & intercept1::VINTR, c.intercept_cr_write, c.int_state), (0, 1 << 4, 0));
        assert_eq!((c.intercept_dr_read, c.intercept_dr_write), (0xffff, 0xffff));
    });
}

/// What a guest must never execute unseen: one line per intercept that protects the host.
#[test]
fn host_is_protected() {
    let mut m = Machine::new(&ALL);
    m.enter(|vmcb| {
        let c = &vmcb.control;
        let one = [
            intercept1::INTR,
            intercept1::NMI,
            intercept1::SMI,
            intercept1::INIT,
            intercept1::IOIO_PROT,
            intercept1::MSR_PROT,
            intercept1::SHUTDOWN,
            intercept1::HLT,
            intercept1::INVLPGA,
            intercept1::INVD,
            intercept1::TASK_SWITCH,
            intercept1::CPUID,
            intercept1::CR0_SEL_WRITE,
            intercept1::RDPMC,
            intercept1::PAUSE,
        ];
        assert!(one.iter().all(|bit| c.intercept1 & bit != 0));
        let two = [
            intercept2::VMRUN,
            intercept2::VMLOAD,
            intercept2::VMSAVE,
            intercept2::STGI,
            intercept2::CLGI,
            intercept2::SKINIT,
            intercept2::WBINVD,
            intercept2::XSETBV,
            intercept2::MONITOR,
            intercept2::MWAIT,
            intercept2::VMMCALL,
            intercept2::RDPRU,
        ];
        assert!(two.iter().all(|bit| c.intercept2 & bit != 0));
        for vector in [1, 17, 18] {
            assert_ne!(c.intercept_exceptions & 1 << vector, 0);
        }
        assert_eq!(
            c.int_ctl & int_ctl::V_INTR_MASKING,
            int_ctl::V_INTR_MASKING,
            "the guest's IF is not the host's"
        );
        assert_eq!((c.nested_ctl & 1, c.msrpm_base_pa, c.iopm_base_pa), (1, 0x2000, 0x3000));
        assert_ne!(c.asid, 0, "ASID 0 is the host's");
    });
}

/// A flush drops one ASID, or all where the CPU cannot; without a flush nothing is dropped.
#[test]
fn flushes() {
    for (by_asid, want) in [(true, tlb_control::FLUSH_ASID), (false, tlb_control::FLUSH_ALL)] {
        let mut m = Machine::new(&Caps { flush_by_asid: by_asid, ..ALL });
        m.enter_with(false, |vmcb, _| {
            assert_eq!(vmcb.control.tlb_control, tlb_control::FLUSH_ALL, "a generation begins");
            false
        });
        m.enter_with(false, |vmcb, _| {
            assert_eq!(vmcb.control.tlb_control, tlb_control::NONE);
            false
        });
        m.enter_with(true, move |vmcb, _| {
            assert_eq!(vmcb.control.tlb_control, want);
            false
        });
        m.enter_with(false, |vmcb, _| {
            assert_eq!(vmcb.control.tlb_control, tlb_control::NONE);
            false
        });
    }
}

/// Seven vCPUs wander over three CPUs with few ASIDs, their tables change, CPUs are switched off and on: nobody ever finds a
/// translation in a TLB that is not his own and of now.
#[test]
fn nobody_sees_stale_translations() {
    for (asids, by_asid) in [(2, true), (2, false), (5, true), (5, false), (100, true)] {
        let caps = Caps { asids, flush_by_asid: by_asid, ..ALL };
        let mut vcpus: Vec<Machine> = (0..7).map(|_| Machine::new(&caps)).collect();
        let cpus: Vec<PerCpu> = (0..3).map(|_| PerCpu::zeroed()).collect();
        cpus.iter().enumerate().for_each(|(i, c)| c.enable(i as u32, asids, 0));
        // Per CPU: whose translations each ASID holds, and of which time.
        let mut tlbs: Vec<HashMap<u32, (usize, u32)>> = (0..3).map(|_| HashMap::new()).collect();
        let mut now = [0u32; 7];
        let mut random = 12345u32;
        let mut below = |n: u32| {
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (random >> 8) % n
        };
        // Flushes still owed, as the hall keeps them: per vCPU, until its next entry.
        let mut owed = [false; 7];
        for _ in 0..20_000 {
            let (who, at) = (below(7) as usize, below(3) as usize);
            match below(20) {
                0 => {
                    now[who] += 1;
                    owed[who] = true;
                }
                1 if below(10) == 0 => cpus[at].enable(at as u32, asids, 0),
                _ => {
                    let flush = core::mem::take(&mut owed[who]);
                    let m = &mut vcpus[who];
                    let seen = std::rc::Rc::new(core::cell::Cell::new((0, 0)));
                    let see = seen.clone();
                    PLAY.set(Some(Box::new(move |vmcb, _| {
                        see.set((vmcb.control.asid, vmcb.control.tlb_control));
                        false
                    })));
                    m.v.enter(&cpus[at], flush, || NoSender);
                    let (asid, control) = seen.get();
                    assert!((1..asids).contains(&asid), "ASID {asid}");
                    match control {
                        tlb_control::FLUSH_ALL => tlbs[at].clear(),
                        tlb_control::FLUSH_ASID => _ = tlbs[at].remove(&asid),
                        _ => {}
                    }
                    let mine = (who, now[who]);
                    assert_eq!(*tlbs[at].entry(asid).or_insert(mine), mine);
                }
            }
        }
    }
}

/// Generations of different CPUs never meet.
#[test]
fn generations_are_of_one_cpu() {
    let cpus: Vec<PerCpu> = (0..4).map(|_| PerCpu::zeroed()).collect();
    cpus.iter().enumerate().for_each(|(i, c)| c.enable(i as u32, 3, 0));
    for _ in 0..1000 {
        cpus.iter().for_each(|c| _ = c.take());
    }
    for (i, c) in cpus.iter().enumerate() {
        assert_eq!(c.generation.load(Relaxed) >> 44, i as u64);
        assert_ne!(c.generation.load(Relaxed), 0, "0 is a vCPU that has none");
    }
}

/// The places of APM vol. 2, 15.11, at the ends of each range; numbers in between have none.
#[test]
fn msr_map_positions() {
    for (msr, place) in [
        (0, Some((0, 0))),
        (1, Some((0, 2))),
        (4, Some((1, 0))),
        (0x1fff, Some((0x7ff, 6))),
        (0x2000, None),
        (0xbfff_ffff, None),
        (0xc000_0000, Some((0x800, 0))),
        (0xc000_0080, Some((0x820, 0))),
        (0xc000_1fff, Some((0xfff, 6))),
        (0xc000_2000, None),
        (0xc001_0000, Some((0x1000, 0))),
        (0xc001_1fff, Some((0x17ff, 6))),
        (0xc001_2000, None),
        (u32::MAX, None),
    ] {
        assert_eq!(msr_bitmap::position(msr), place, "{msr:#x}");
    }
}

/// The map intercepts all but what was named, reads and writes alike.
#[test]
fn msr_map_filled() {
    let mut map = [0; msr_bitmap::SIZE];
    let open = [0x174, 0xc000_0081, 0xc000_0102, 0xc001_1029, 0x4b56_4d00];
    msr_bitmap::fill(&mut map, open.into_iter());
    for msr in (0..0x2000).chain(0xc000_0000..0xc000_2000).chain(0xc001_0000..0xc001_2000) {
        let (byte, bit) = msr_bitmap::position(msr).unwrap();
        let want = if open.contains(&msr) { 0 } else { 3 };
        assert_eq!(map[byte] >> bit & 3, want, "{msr:#x}");
    }
    assert!(map[0x1800..].iter().all(|b| *b == 0xff), "reserved part");
}

/// CPUID as a function of what it answers for SVM's leaves.
fn negotiate(max: u32, svm: u32, f: CpuidResult, vm_cr: u64) -> Result<Caps, caps::Missing> {
    let cpuid = move |leaf| match leaf {
        0x8000_0000 => CpuidResult { eax: max, ..CpuidResult::default() },
        0x8000_0001 => CpuidResult { ecx: svm, ..CpuidResult::default() },
        0x8000_000a => f,
        0 => CpuidResult { eax: 7, ..CpuidResult::default() },
        7 => CpuidResult { ebx: 1 << 10, ..CpuidResult::default() },
        _ => panic!("asked for leaf {leaf:#x}"),
    };
    Caps::negotiate(cpuid, || vm_cr)
}

/// What the guest's CPUID hides is #UD, where there is an intercept: not of INVPCID on a CPU without it.
#[test]
fn hidden_instructions() {
    let none = Instructions::default();
    for invpcid in [true, false] {
        let mut m = Machine::new(&Caps { invpcid, ..ALL });
        let shown = [
            (none, true, true),
            (Instructions { rdtscp: true, ..none }, false, true),
            (Instructions { invpcid: true, ..none }, true, false),
            (none, true, true),
        ];
        for (shown, no_rdtscp, no_invpcid) in shown {
            m.v.set_instructions(shown);
            m.enter(move |vmcb| {
                let c = &mut vmcb.control;
                assert_eq!(c.intercept2 >> 7 & 1 != 0, no_rdtscp);
                assert_eq!(c.intercept3, u32::from(no_invpcid && invpcid) << 2);
                c.exit_code = 0x72;
            });
        }
        for code in [0x87, 0xa2] {
            assert_eq!(m.exit(code, 0, 0), Exit::VirtInstruction);
        }
    }
}

/// Refusals, each with its reason; VM_CR is not touched on a CPU that may not have it.
#[test]
fn refusals() {
    use caps::Missing;
    let good = CpuidResult { ebx: 8, edx: !0, ..CpuidResult::default() };
    assert_eq!(negotiate(0x8000_0008, 4, good, 0).err(), Some(Missing::Svm));
    assert_eq!(negotiate(0x8000_001f, !4, good, 0).err(), Some(Missing::Svm));
    assert_eq!(negotiate(0x8000_001f, 4, good, 1 << 4).err(), Some(Missing::DisabledByFirmware));
    assert_eq!(
        negotiate(0x8000_001f, 4, CpuidResult { edx: !1, ..good }, 0).err(),
        Some(Missing::NestedPaging)
    );
    assert_eq!(negotiate(0x8000_001f, 4, CpuidResult { ebx: 1, ..good }, 0).err(), Some(Missing::Asids));
    assert!(negotiate(0x8000_000a, 4, good, 0).is_ok());
    assert!(negotiate(0x8000_000a, 4, CpuidResult { ebx: 2, ..good }, 0).is_ok());
    for (why, names) in [
        (Missing::Svm, "ECX bit 2"),
        (Missing::DisabledByFirmware, "BIOS"),
        (Missing::NestedPaging, "nested paging"),
        (Missing::Asids, "ASIDs"),
    ] {
        assert!(why.message().contains(names));
    }
    let zeros = |_| CpuidResult::default();
    assert!(Caps::negotiate(zeros, || panic!("VM_CR read without SVM")).is_err());
}

/// INVPCID is looked for where leaf 7 exists, and there alone.
#[test]
fn invpcid_has_its_leaf() {
    let with = |leaves: u32, bits: u32| {
        let cpuid = move |leaf| match leaf {
            0x8000_0000 => CpuidResult { eax: 0x8000_000a, ..CpuidResult::default() },
            0x8000_0001 => CpuidResult { ecx: 4, ..CpuidResult::default() },
            0x8000_000a => CpuidResult { ebx: 8, edx: 1 | 1 << 4, ..CpuidResult::default() },
            0 => CpuidResult { eax: leaves, ..CpuidResult::default() },
            7 => CpuidResult { ebx: bits, ..CpuidResult::default() },
            _ => panic!("asked for leaf {leaf:#x}"),
        };
        Caps::negotiate(cpuid, || 0).unwrap()
    };
    assert!(with(7, 1 << 10).invpcid && with(0x10, 1 << 10).invpcid);
    assert!(!with(6, 1 << 10).invpcid && !with(7, !(1 << 10)).invpcid);
    assert!(with(7, 0).tsc_scaling().is_some() && !with(7, 0).next_rip);
    assert!(Caps { tsc_rate: false, ..with(7, 0) }.tsc_scaling().is_none());
}

/// Each optional feature follows its own bit; PAUSE filtering needs the threshold too.
#[test]
fn optional_features() {
    let with = |edx: u32| {
        negotiate(0x8000_001f, 4, CpuidResult { ebx: 64, edx: edx | 1, ..CpuidResult::default() }, 0).unwrap()
    };
    let none = with(0);
    assert_eq!(none.asids, 64);
    let bits = |c: Caps| [c.next_rip, c.decode_assists, c.flush_by_asid, c.tsc_rate, c.pause_filter];
    assert_eq!(bits(none), [false; 5]);
    for (edx, i) in [(1 << 3, 0), (1 << 7, 1), (1 << 6, 2), (1 << 4, 3), (1 << 10 | 1 << 12, 4)] {
        let mut want = [false; 5];
        want[i] = true;
        assert_eq!(bits(with(edx)), want);
    }
    assert_eq!(bits(with(1 << 10)), [false; 5]);
}

/// A CPU that comes online must do for each VMCB what the first one does.
#[test]
fn another_cpu() {
    let with = |ebx, edx: u32| {
        negotiate(0x8000_001f, 4, CpuidResult { ebx, edx: edx | 1, ..CpuidResult::default() }, 0).unwrap()
    };
    let all = 1 << 3 | 1 << 4 | 1 << 6 | 1 << 7 | 1 << 10 | 1 << 12 | 1 << 20;
    let first = with(64, all);
    assert_eq!(first.difference(&with(64, all)), None);
    assert_eq!(first.difference(&with(64, !0)), None, "what nobody here uses");
    assert_eq!(first.difference(&with(32, all)), Some("the number of ASIDs"));
    for (bit, what) in [
        (1 << 3, "next-RIP save"),
        (1 << 4, "the TSC ratio MSR"),
        (1 << 6, "flush by ASID"),
        (1 << 7, "decode assists"),
        (1 << 10, "the PAUSE filter"),
        (1 << 20, "SPEC_CTRL by the VMCB"),
    ] {
        assert_eq!(first.difference(&with(64, all & !bit)), Some(what));
        assert_eq!(with(64, all & !bit).difference(&first), Some(what), "more is no better");
    }
    let deaf = Caps { machine_checks: !first.machine_checks, ..first };
    assert_eq!(first.difference(&deaf), Some("the host's CR4.MCE"));
}

/// The host's CR4.MCE is on while the guest runs, and the guest sees what it wrote: without it a machine check would shut the
/// host down.
#[test]
fn machine_checks_stay_on() {
    const READ_CR4: u16 = 1 << 4;
    let mut m = Machine::new(&Caps { machine_checks: true, ..ALL });
    for (guest, watched) in [(0x20, true), (0x60, false), (0x40, false), (0, true)] {
        m.v.set_cr4(guest);
        assert_eq!((m.v.cr4(), m.v.save().cr4), (guest, guest | 0x40));
        assert_eq!(m.v.control().intercept_cr_read & READ_CR4 != 0, watched, "the guest reads CR4 by itself");
    }
    let mut m = Machine::new(&ALL);
    m.v.set_cr4(0x20);
    assert_eq!((m.v.cr4(), m.v.save().cr4, m.v.control().intercept_cr_read & READ_CR4), (0x20, 0x20, 0));
}

/// VMRUN leaves the host's DEBUGCTL in the CPU: a guest's TF then steps by branches, and a bus lock of its traps.
#[test]
fn the_hosts_debugctl_stays_out_of_guests() {
    let mut m = Machine::new(&ALL);
    // Nothing to hide costs nothing.
    m.v.begin(&m.cpu);
    m.exit(0x72, 0, 0);
    assert_eq!(DEBUGCTL_WRITES.get(), 0);
    DEBUGCTL.set(0x6);
    m.v.begin(&m.cpu);
    for _ in 0..2 {
        m.enter(|vmcb| {
            assert_eq!(DEBUGCTL.get(), 0, "in the guest");
            vmcb.control.exit_code = 0x72;
        });
        assert_eq!(DEBUGCTL.get(), 0x6);
    }
    // The next slice sees what the host has made of it.
    DEBUGCTL.set(0);
    m.v.begin(&m.cpu);
    m.exit(0x72, 0, 0);
    assert_eq!((DEBUGCTL.get(), DEBUGCTL_WRITES.get()), (0, 4));
}
