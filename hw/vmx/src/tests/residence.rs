//! VMCSs on their way between CPUs, VPIDs, and the registers that change hands in software.

use super::fake::{Bench, Fake, online, residence};
use crate::machine::TaskSegments;
use crate::residence::LoadError;
use crate::{PerCpu, Residence};
use exitless_vcpu::backend::{Backend, NoSender, SysReg};
use exitless_x86::vmx::field as f;

const STAR: u32 = 0xc000_0081;
const LSTAR: u32 = 0xc000_0082;
const SFMASK: u32 = 0xc000_0084;
const KERNEL_GS: u32 = 0xc000_0102;
const DEBUGCTL: u32 = 0x1d9;
const TSC_AUX: u32 = 0xc000_0103;

fn load(at: &'static Residence, m: &Fake, cpu: &PerCpu) -> Result<(), LoadError> {
    // SAFETY: residences of tests are leaked.
    unsafe { at.load(m, cpu) }
}

#[test]
fn active_on_one_cpu_only() {
    let (m, cpu) = Fake::new();
    let (a, b) = (online(m, 0), online(m, 1));
    let at = residence(0x1000);
    assert_eq!(at.active_on(), None);
    load(at, &m, a).unwrap();
    assert_eq!(at.active_on(), Some(0));
    assert_eq!(load(at, &m, b), Err(LoadError::Elsewhere(0)));
    at.clear_here(&m, b);
    assert_eq!(at.active_on(), Some(0), "not active there: nothing happens");
    at.clear_here(&m, a);
    load(at, &m, b).unwrap();
    assert_eq!((at.active_on(), cpu.current.get()), (Some(1), 0x1000));
}

/// Two vCPUs take turns on one CPU: VMPTRLD, no VMCLEAR, and a barrier for the branch predictor each time.
#[test]
fn turns_on_one_cpu() {
    let (m, cpu) = Fake::new();
    let a = online(m, 0);
    let (one, two) = (residence(0x1000), residence(0x2000));
    for _ in 0..2 {
        load(one, &m, a).unwrap();
        assert_eq!(cpu.current.get(), 0x1000);
        load(two, &m, a).unwrap();
        assert_eq!(cpu.current.get(), 0x2000);
    }
    assert_eq!(cpu.barriers.get(), 4);
    load(two, &m, a).unwrap();
    assert_eq!(cpu.barriers.get(), 4, "the same vCPU again");
    // Out of the middle of the list, and its ends.
    let three = residence(0x3000);
    load(three, &m, a).unwrap();
    for at in [two, three, one] {
        at.clear_here(&m, a);
        assert_eq!(at.active_on(), None);
    }
    assert_eq!(cpu.current.get(), 0);
}

/// A guest's own barrier cleans the CPU that executes it; where the vCPU ran before, one follows when it comes back.
#[test]
fn own_barrier_counts_everywhere() {
    let (m, cpu) = Fake::new();
    let (a, b) = (online(m, 0), online(m, 1));
    let at = residence(0x1000);
    load(at, &m, a).unwrap();
    at.clear_here(&m, a);
    load(at, &m, b).unwrap();
    at.renew(b, 77);
    load(at, &m, b).unwrap();
    assert_eq!(cpu.barriers.get(), 2, "once on each CPU, none after its own");
    at.clear_here(&m, b);
    load(at, &m, a).unwrap();
    assert_eq!(cpu.barriers.get(), 3, "back where the old training is");
}

/// A CPU that goes offline keeps no VMCS; its vCPUs go on elsewhere, and it refuses new ones.
#[test]
fn offline() {
    let (m, _) = Fake::new();
    let (a, b) = (online(m, 0), online(m, 1));
    let (one, two) = (residence(0x1000), residence(0x2000));
    load(one, &m, a).unwrap();
    load(two, &m, a).unwrap();
    // SAFETY: residences of tests are leaked.
    assert!(unsafe { a.disable(&m) });
    assert_eq!((one.active_on(), two.active_on()), (None, None));
    assert_eq!(load(one, &m, a), Err(LoadError::Off));
    load(one, &m, b).unwrap();
    // SAFETY: as above.
    assert!(!unsafe { a.disable(&m) }, "twice is harmless");
}

/// On the new CPU: its own GDT, TSS and GS in the VMCS, no translation of an earlier visit, a fresh VPID.
#[test]
fn moving() {
    let mut b = Bench::new();
    b.run(10, 0);
    let first = b.cpu.field(f::VPID);
    let other = online(b.m, 1);
    b.put();
    b.at.clear_here(&b.m, b.percpu);
    load(b.at, &b.m, other).unwrap();
    b.cpu.clear_logs();
    b.cpu.exit(10, 0);
    b.v.begin(other);
    b.v.enter(other, false, || NoSender);
    assert!(b.cpu.wrote(f::HOST_GS_BASE) && b.cpu.wrote(f::HOST_TR_BASE) && b.cpu.wrote(f::VPID));
    assert_eq!(b.cpu.invepts.borrow().len(), 1);
    assert!(!b.cpu.wrote(f::PIN_CONTROLS), "controls stay in the VMCS");
    // And back: the old VPID may name stale translations there.
    b.put();
    b.at.clear_here(&b.m, other);
    b.load();
    b.run(10, 0);
    assert_ne!(b.cpu.field(f::VPID), first);
    assert_eq!(b.cpu.invepts.borrow().len(), 2);
}

/// VPIDs are unique within a generation; the next one begins with a flush and takes everybody along.
#[test]
fn vpids_run_out() {
    let mut b = Bench::new();
    b.run(10, 0);
    assert_eq!((b.cpu.field(f::VPID), b.cpu.invvpids.get()), (1, 1));
    let generation = b.percpu.take().generation;
    while b.percpu.take().generation == generation {}
    b.run(10, 0);
    assert_eq!(b.cpu.field(f::VPID), 2, "VPID 1 of the new generation is taken");
    let (x, y) = (online(b.m, 3), online(b.m, 4));
    assert!(x.take().generation != y.take().generation, "CPUs have generations of their own");
}

/// The guest's syscall MSRs are in the CPU from its first entry until the CPU returns to user mode, written only where they
/// differ, however often its thread comes and goes.
#[test]
fn msrs_change_hands() {
    let b = Bench::cold();
    b.cpu.msrs.borrow_mut().extend([(STAR, 1), (LSTAR, 2), (KERNEL_GS, 0x7fff_0000), (TSC_AUX, 7)]);
    let percpu = online(b.m, 0);
    let mut b = Bench { percpu, ..b };
    b.v.set_sys_reg(SysReg::Star, 1);
    b.v.set_sys_reg(SysReg::Lstar, 0x100);
    b.v.set_sys_reg(SysReg::KernelGsBase, 0x200);
    b.v.set_sys_reg(SysReg::TscAux, 9);
    b.load();
    assert_eq!(b.cpu.msr(LSTAR), 2, "loading alone changes nothing");
    b.cpu.clear_logs();
    b.run(10, 0);
    assert_eq!((b.cpu.msr(LSTAR), b.cpu.msr(KERNEL_GS), b.cpu.msr(TSC_AUX)), (0x100, 0x200, 9));
    assert!(!b.cpu.wrmsrs.borrow().contains(&STAR), "the same value on both sides");
    assert_eq!(b.cpu.user_returns.get(), 1);
    // The guest writes KERNEL_GS_BASE without an exit, the others with one.
    b.cpu.next(|cpu, run| {
        cpu.msrs.borrow_mut().insert(KERNEL_GS, 0x201);
        run.reason = 10;
        crate::machine::switched::EXIT
    });
    b.enter(false);
    assert_eq!(b.v.sys_reg(SysReg::KernelGsBase), 0x201);
    b.v.set_sys_reg(SysReg::Sfmask, 0x300);
    assert_eq!(b.cpu.msr(SFMASK), 0, "with the next entry");
    b.run(10, 0);
    assert_eq!(b.cpu.msr(SFMASK), 0x300);
    b.put();
    assert_eq!((b.cpu.msr(LSTAR), b.cpu.msr(KERNEL_GS), b.cpu.msr(TSC_AUX)), (0x100, 0x7fff_0000, 9));
    // Back on the CPU without user mode in between: nothing lent is written again.
    b.load();
    b.cpu.clear_logs();
    b.run(10, 0);
    b.put();
    // The kernel told the task's FS and GS bases; the guest's KERNEL_GS_BASE alone may be another by now.
    assert_eq!(*b.cpu.wrmsrs.borrow(), [KERNEL_GS, KERNEL_GS]);
    let read = b.cpu.rdmsrs.borrow();
    assert!(read.iter().filter(|&&msr| msr != DEBUGCTL).eq(&[KERNEL_GS]), "{read:x?}");
    drop(read);
    b.percpu.take_back_lent(&b.m);
    assert_eq!((b.cpu.msr(LSTAR), b.cpu.msr(SFMASK), b.cpu.msr(TSC_AUX)), (2, 0, 7));
    assert_eq!((b.v.sys_reg(SysReg::Lstar), b.v.sys_reg(SysReg::Sfmask)), (0x100, 0x300));
    b.load();
    b.run(10, 0);
    assert_eq!((b.cpu.msr(LSTAR), b.cpu.user_returns.get()), (0x100, 2));
}

/// A CPU that goes down, or loses the module, has the host's registers, though it may not have seen user mode since.
#[test]
fn a_cpu_that_goes_down_gives_back_what_is_lent() {
    let mut b = Bench::cold();
    b.v.set_sys_reg(SysReg::Lstar, 0x100);
    b.load();
    b.run(10, 0);
    b.put();
    assert_eq!(b.cpu.msr(LSTAR), 0x100);
    // SAFETY: the residence is leaked.
    assert!(unsafe { b.percpu.disable(&b.m) });
    assert_eq!(b.cpu.msr(LSTAR), 0);
}

/// What the guest writes at will must not be what stays in the CPU.
#[test]
fn lent_msrs_exit() {
    let mut map = [0u8; crate::msr_bitmap::SIZE];
    crate::msr_bitmap::fill(&mut map, [STAR, LSTAR, KERNEL_GS].into_iter());
    let open = |msr| {
        let (byte, bit) = crate::msr_bitmap::position(msr).unwrap();
        map[byte + 0x800] >> bit & 1 == 0
    };
    assert!(open(KERNEL_GS) && !open(STAR) && !open(LSTAR));
}

/// A task with selectors of its own gets them back, with the bases it had.
#[test]
fn selectors_come_back() {
    let mut b = Bench::cold();
    let s =
        TaskSegments { ds: 0x2b, es: 0x2b, fs: 0x63, gs: 0x6b, ldt: 0x50, fs_base: 0xf000, gs_base: 0x1111 };
    b.cpu.segments.set(s);
    b.cpu.msrs.borrow_mut().insert(KERNEL_GS, 0x1111);
    b.v.set_sys_reg(SysReg::KernelGsBase, 0x1111);
    b.load();
    b.run(10, 0);
    assert_eq!(b.cpu.field(f::HOST_FS_BASE), 0xf000);
    assert_eq!(b.cpu.field(f::HOST_DS_SELECTOR), 0, "RPL is not allowed there");
    b.put();
    assert_eq!(b.cpu.restored.get(), Some(s));
    assert_eq!(b.cpu.msr(KERNEL_GS), 0x1111, "in spite of loading GS");
    assert_eq!(b.v.sys_reg(SysReg::KernelGsBase), 0x1111);
}

/// A thread that never entered has nothing to give back.
#[test]
fn put_without_entry() {
    let b = Bench::new();
    b.cpu.clear_logs();
    b.put();
    assert!(b.cpu.wrmsrs.borrow().is_empty() && b.cpu.restored.get().is_none());
}

/// A vCPU by another name is a stranger wherever it ran.
#[test]
fn a_new_name_brings_a_barrier() {
    let (m, cpu) = Fake::new();
    let a = online(m, 0);
    let at = residence(0x1000);
    load(at, &m, a).unwrap();
    let before = cpu.barriers.get();
    at.rename(77);
    load(at, &m, a).unwrap();
    assert_eq!(cpu.barriers.get(), before + 1);
}

/// The CPU may remember VPIDs of the last time VMX was on here: they go before the first is used.
#[test]
fn the_first_vpid_flushes() {
    let mut b = Bench::new();
    b.run(10, 0);
    assert_eq!(b.cpu.invvpids.get(), 1);
    b.run(10, 0);
    assert_eq!(b.cpu.invvpids.get(), 1);
}

/// What is lent: the syscall MSRs, and TSC_AUX where the CPU has it.
#[test]
fn what_is_lent() {
    use crate::residence::Travelling as T;
    for tsc_aux in [true, false] {
        let (m, _) = Fake::new();
        let cpu = PerCpu::none();
        cpu.enable(&m, 0, &super::fake::host(), tsc_aux);
        let expected =
            [T::Star, T::Lstar, T::Cstar, T::Sfmask].into_iter().chain(tsc_aux.then_some(T::TscAux));
        assert!(cpu.lent().eq(expected), "{tsc_aux}");
    }
}
