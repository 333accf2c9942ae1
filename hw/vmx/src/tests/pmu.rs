//! What the host's performance counters find in the CPU: in the guest, and behind the exit.

use super::fake::{Bench, negotiate, skylake};
use crate::machine::switched;
use crate::pmu::{LONGEST, Switched};
use exitless_vcpu::backend::{Backend, Exit, NoSender, SysReg};
use exitless_x86::vmx::caps::msr;
use exitless_x86::vmx::control::{entry, exit};
use exitless_x86::vmx::field as f;
use std::vec;
use std::vec::Vec;

const GLOBAL_CTRL: u32 = 0x38f;
const PEBS_ENABLE: u32 = 0x3f1;
const EVENT_SELECT: u32 = 0x186;

fn row(msr: u32, host: u64, guest: u64) -> Switched {
    Switched { msr: u64::from(msr), host, guest }
}

/// One entry; what the guest finds in these registers.
fn in_guest(b: &mut Bench, msrs: &[u32]) -> Vec<u64> {
    see(b, msrs);
    b.enter(false);
    seen(b)
}

fn see(b: &Bench, msrs: &[u32]) {
    let msrs = msrs.to_vec();
    b.cpu.next(move |cpu, run| {
        cpu.seen.replace(msrs.iter().map(|&n| cpu.msr(n)).collect());
        run.reason = 10;
        switched::EXIT
    });
}

fn seen(b: &Bench) -> Vec<u64> {
    b.cpu.seen.take()
}

/// Without perf nothing is exchanged, and an entry costs one look for the whole slice.
#[test]
fn idle_counters_cost_nothing() {
    let mut b = Bench::new();
    b.run(10, 0);
    b.cpu.clear_logs();
    b.cpu.pmu_looks.set(0);
    b.v.begin(b.percpu);
    for _ in 0..5 {
        b.cpu.exit(10, 0);
        b.v.enter(b.percpu, false, || NoSender);
    }
    assert_eq!(b.cpu.pmu_looks.get(), 1);
    assert!(b.cpu.wrmsrs.borrow().is_empty());
    assert_eq!(b.cpu.field(f::EXIT_CONTROLS) & exit::LOAD_PERF_GLOBAL_CTRL, 0);
    assert_eq!(b.cpu.field(f::ENTRY_CONTROLS) & entry::LOAD_PERF_GLOBAL_CTRL, 0);
    assert_eq!((b.cpu.field(f::ENTRY_MSR_LOAD_COUNT), b.cpu.field(f::EXIT_MSR_LOAD_COUNT)), (0, 0));
}

/// `perf record` on the host excludes guests: the counter stops with the entry and goes on with the exit. Once it counted the
/// guest, and with PEBS wrote its records through the guest's page tables.
#[test]
fn a_counter_that_excludes_guests() {
    let mut b = Bench::new();
    b.cpu.msrs.borrow_mut().insert(GLOBAL_CTRL, 0x7_0000_000f);
    b.cpu.pmu.replace(vec![row(GLOBAL_CTRL, 0x7_0000_000f, 0x7_0000_000e)]);
    assert_eq!(in_guest(&mut b, &[GLOBAL_CTRL]), [0x7_0000_000e]);
    assert_eq!(b.cpu.msr(GLOBAL_CTRL), 0x7_0000_000f);
    assert_eq!(b.cpu.field(f::ENTRY_MSR_LOAD_COUNT), 0, "the control does it");

    // And one that counts guests alone; the values change, the controls stay.
    b.cpu.pmu.replace(vec![row(GLOBAL_CTRL, 0x7_0000_000d, 0x7_0000_000f)]);
    b.cpu.clear_logs();
    assert_eq!(in_guest(&mut b, &[GLOBAL_CTRL]), [0x7_0000_000f]);
    assert_eq!(b.cpu.msr(GLOBAL_CTRL), 0x7_0000_000d);
    assert!(!b.cpu.wrote(f::EXIT_CONTROLS) && !b.cpu.wrote(f::ENTRY_CONTROLS));
    b.cpu.clear_logs();
    in_guest(&mut b, &[]);
    assert!(!b.cpu.wrote(f::HOST_PERF_GLOBAL_CTRL) && !b.cpu.wrote(f::GUEST_PERF_GLOBAL_CTRL));

    // The profile is over: perf's own value must not be overwritten by one of ours.
    b.cpu.pmu.take();
    b.cpu.msrs.borrow_mut().insert(GLOBAL_CTRL, 0x7_0000_00ff);
    assert_eq!(in_guest(&mut b, &[GLOBAL_CTRL]), [0x7_0000_00ff]);
    assert_eq!(b.cpu.msr(GLOBAL_CTRL), 0x7_0000_00ff);
    assert_eq!(b.cpu.field(f::EXIT_CONTROLS), b.v.caps.exit);
}

/// "IA-32e mode guest" and the control for the counters share a field.
#[test]
fn the_entry_control_survives_a_change_of_mode() {
    let mut b = Bench::new();
    b.cpu.pmu.replace(vec![row(GLOBAL_CTRL, 1, 0)]);
    b.run(10, 0);
    b.v.set_efer(0x500);
    assert_eq!(in_guest(&mut b, &[GLOBAL_CTRL]), [0]);
    let controls = b.cpu.field(f::ENTRY_CONTROLS);
    assert!(controls & entry::LOAD_PERF_GLOBAL_CTRL != 0 && controls & entry::IA32E_MODE_GUEST != 0);
}

/// Where PEBS does not wait for the switch, the register is cleared some time before each entry, and the exit gives it back.
#[test]
fn pebs_is_quiet_before_each_entry() {
    let mut b = Bench::new();
    b.cpu.msrs.borrow_mut().insert(PEBS_ENABLE, 3);
    b.cpu.pmu.replace(vec![row(GLOBAL_CTRL, 0xf, 0xc), row(PEBS_ENABLE, 3, 0)]);
    b.v.begin(b.percpu);
    for _ in 0..2 {
        b.cpu.wrmsrs.borrow_mut().clear();
        see(&b, &[PEBS_ENABLE, GLOBAL_CTRL]);
        b.v.enter(b.percpu, false, || NoSender);
        assert_eq!(seen(&b), [0, 0xc]);
        assert_eq!(*b.cpu.wrmsrs.borrow(), [PEBS_ENABLE], "not left to the area alone");
        assert_eq!(b.cpu.msr(PEBS_ENABLE), 3);
    }
    assert_eq!((b.cpu.field(f::ENTRY_MSR_LOAD_COUNT), b.cpu.field(f::EXIT_MSR_LOAD_COUNT)), (1, 1));
    // Off again.
    b.cpu.pmu.take();
    b.cpu.wrmsrs.borrow_mut().clear();
    b.run(10, 0);
    assert_eq!((b.cpu.field(f::ENTRY_MSR_LOAD_COUNT), b.cpu.field(f::EXIT_MSR_LOAD_COUNT)), (0, 0));
    assert!(b.cpu.wrmsrs.borrow().is_empty());
}

/// An entry that fails early has no exit that would load the host's value; one that fails late has.
#[test]
fn pebs_survives_a_failed_entry() {
    let mut b = Bench::new();
    b.cpu.msrs.borrow_mut().insert(PEBS_ENABLE, 3);
    b.cpu.pmu.replace(vec![row(PEBS_ENABLE, 3, 0)]);
    for ended in [switched::FAILED, switched::OFF] {
        b.cpu.next(move |_, _| ended);
        b.enter(false);
        assert_eq!(b.cpu.msr(PEBS_ENABLE), 3, "{ended}");
    }
    b.run(1 << 31 | 34, 0);
    assert_eq!(b.cpu.msr(PEBS_ENABLE), 3);
}

/// An overflow between two entries of a slice may stop an event, in an NMI: an exit must not bring back what the list said
/// when the slice began.
#[test]
fn the_list_is_followed_within_a_slice() {
    let mut b = Bench::new();
    b.cpu.msrs.borrow_mut().insert(PEBS_ENABLE, 3);
    b.cpu.pmu.replace(vec![row(GLOBAL_CTRL, 0xf, 0xc), row(PEBS_ENABLE, 3, 0)]);
    b.v.begin(b.percpu);
    b.cpu.exit(10, 0);
    b.v.enter(b.percpu, false, || NoSender);
    b.cpu.pmu.replace(vec![row(GLOBAL_CTRL, 0xf, 0xd), row(PEBS_ENABLE, 2, 0)]);
    b.cpu.msrs.borrow_mut().insert(PEBS_ENABLE, 2);
    see(&b, &[GLOBAL_CTRL]);
    b.v.enter(b.percpu, false, || NoSender);
    assert_eq!(seen(&b), [0xd]);
    assert_eq!(b.cpu.msr(PEBS_ENABLE), 2);
    b.cpu.pmu.take();
    b.cpu.msrs.borrow_mut().insert(PEBS_ENABLE, 0);
    b.cpu.exit(10, 0);
    b.v.enter(b.percpu, false, || NoSender);
    assert_eq!(b.cpu.msr(PEBS_ENABLE), 0);
}

/// CPUs without the controls, or with an erratum in them, exchange all by the areas. So do counters without a global control.
#[test]
fn without_the_controls() {
    let mut t = skylake();
    *t.get_mut(&msr::TRUE_EXIT_CTLS).unwrap() &= !(u64::from(exit::LOAD_PERF_GLOBAL_CTRL) << 32);
    let mut b = Bench::with(&negotiate(&t).unwrap());
    b.load();
    let selects = (0..8).map(|i| row(EVENT_SELECT + i, 0x43_0000 | u64::from(i), u64::from(i)));
    b.cpu.pmu.replace([row(GLOBAL_CTRL, 0xf, 0xe)].into_iter().chain(selects).collect());
    assert_eq!(in_guest(&mut b, &[GLOBAL_CTRL, EVENT_SELECT, EVENT_SELECT + 7]), [0xe, 0, 7]);
    assert_eq!((b.cpu.msr(GLOBAL_CTRL), b.cpu.msr(EVENT_SELECT + 7)), (0xf, 0x43_0007));
    assert_eq!(b.cpu.field(f::ENTRY_CONTROLS) & entry::LOAD_PERF_GLOBAL_CTRL, 0);

    // The longest list that the host's side hands over.
    b.cpu.pmu.replace((0..LONGEST as u32).map(|i| row(EVENT_SELECT + i, 1, 2)).collect());
    assert_eq!(in_guest(&mut b, &[EVENT_SELECT + LONGEST as u32 - 1]), [2]);
    assert_eq!(b.cpu.field(f::EXIT_MSR_LOAD_COUNT), LONGEST as u32);
}

/// The areas are read by the CPU: aligned to 16 bytes (SDM vol. 3C, 27.2.1.2, 27.2.1.3), and in one page.
#[test]
fn places_of_the_areas() {
    let mut b = Bench::new();
    b.run(10, 0);
    let (entry, exit) = (b.cpu.field(f::ENTRY_MSR_LOAD_ADDRESS), b.cpu.field(f::EXIT_MSR_LOAD_ADDRESS));
    assert!(entry % 16 == 0 && exit % 16 == 0 && exit - entry >= 16 * LONGEST as u64);
    assert!(
        size_of::<crate::pmu::MsrAreas>() <= 4096 && entry >> 12 == (exit + 16 * LONGEST as u64 - 1) >> 12
    );
}

/// Perf may begin to record branches on this CPU while the thread stays here; the value of the last load would end that.
#[test]
fn debugctl_of_this_slice_comes_back() {
    let mut b = Bench::new();
    b.run(10, 0);
    b.cpu.msrs.borrow_mut().insert(0x1d9, 0x801);
    b.cpu.next(|cpu, run| {
        cpu.msrs.borrow_mut().insert(0x1d9, 0);
        run.reason = 10;
        switched::EXIT
    });
    assert_eq!(b.enter(false), Exit::Cpuid);
    assert_eq!(b.cpu.msr(0x1d9), 0x801);
}

/// The host's wish that counters stand still in SMM holds while a guest runs; the guest sees nothing of it.
#[test]
fn freeze_in_smm_holds_in_guests() {
    const FREEZE: u64 = 1 << 14;
    let mut b = Bench::new();
    b.cpu.msrs.borrow_mut().insert(0x1d9, FREEZE | 1);
    b.run(10, 0);
    assert_eq!(b.cpu.field(f::GUEST_DEBUGCTL), FREEZE);
    assert_eq!(b.v.sys_reg(SysReg::DebugCtl), 0);
    b.v.set_sys_reg(SysReg::DebugCtl, 2);
    b.run(10, 0);
    assert_eq!(b.cpu.field(f::GUEST_DEBUGCTL), FREEZE | 2);
    assert_eq!(b.v.sys_reg(SysReg::DebugCtl), 2);
    b.cpu.msrs.borrow_mut().insert(0x1d9, 0);
    b.run(10, 0);
    assert_eq!(b.cpu.field(f::GUEST_DEBUGCTL), 2);
}
