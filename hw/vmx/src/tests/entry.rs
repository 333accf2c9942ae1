//! Entries: what a fresh VMCS gets, what follows the host, translations, the L1 data cache.

use super::fake::{Bench, host, negotiate, skylake};
use crate::machine::switched;
use exitless_vcpu::backend::{Backend, Exit};
use exitless_x86::vmx::caps::msr;
use exitless_x86::vmx::control::{entry, exit, pin, primary, secondary};
use exitless_x86::vmx::field as f;

/// EFER changes hands by the controls, and only while guest and host have different ones.
#[test]
fn efer_where_it_differs() {
    let mut b = Bench::new();
    let controls = |b: &Bench| {
        let (on_entry, on_exit) = (b.cpu.field(f::ENTRY_CONTROLS), b.cpu.field(f::EXIT_CONTROLS));
        (
            on_entry & entry::LOAD_EFER != 0,
            on_exit & exit::LOAD_EFER != 0,
            on_entry & entry::IA32E_MODE_GUEST != 0,
        )
    };
    b.v.set_efer(0x500);
    b.run(10, 0);
    assert_eq!(controls(&b), (true, true, true));
    assert_eq!((b.cpu.field(f::GUEST_EFER), b.cpu.field(f::HOST_EFER)), (0x500, host().efer));
    b.v.set_efer(host().efer);
    b.run(10, 0);
    assert_eq!(controls(&b), (false, false, true));
    b.cpu.clear_logs();
    b.run(10, 0);
    assert!(!b.cpu.wrote(f::EXIT_CONTROLS) && !b.cpu.wrote(f::ENTRY_CONTROLS));
    assert_eq!(b.v.efer(), host().efer, "nothing is read from where nothing is saved");
    // To 32-bit code, with the same control as what the mode needs.
    b.v.set_efer(0x801);
    b.run(10, 0);
    assert_eq!(controls(&b), (true, true, false));
}

/// Everything that VM entry looks at is written before the first one; nothing is left to what the region held.
#[test]
fn a_fresh_vmcs_is_complete() {
    let mut b = Bench::new();
    b.v.set_slat_root(0x12_3000);
    b.run(10, 0);
    let (c, h) = (b.cpu, host());
    assert_eq!(c.field(f::PIN_CONTROLS) & (pin::PREEMPTION_TIMER | pin::POSTED_INTERRUPTS), 0);
    assert_ne!(c.field(f::PIN_CONTROLS) & pin::VIRTUAL_NMIS, 0);
    assert_ne!(c.field(f::PRIMARY_CONTROLS) & primary::UNCONDITIONAL_IO_EXITING, 0);
    assert_ne!(c.field(f::SECONDARY_CONTROLS) & secondary::UNRESTRICTED_GUEST, 0);
    assert_ne!(c.field(f::EXIT_CONTROLS) & exit::HOST_ADDRESS_SPACE_SIZE, 0);
    assert_ne!(c.field(f::ENTRY_CONTROLS) & entry::LOAD_EFER, 0);
    assert_eq!(c.field(f::EXCEPTION_BITMAP), 1 << 1 | 1 << 6 | 1 << 17 | 1 << 18);
    assert_eq!(c.field(f::VMCS_LINK_POINTER), u64::MAX);
    assert_eq!((c.field(f::VIRTUAL_APIC_ADDRESS), c.field(f::MSR_BITMAPS)), (0x5000, 0x10_0000));
    assert_eq!(c.field(f::EPT_POINTER), 0x12_305e, "write-back, four levels, accessed and dirty bits");
    assert_eq!(c.field(f::ENCLS_EXITING_BITMAP), u64::MAX);
    assert_eq!(c.field(f::HOST_RIP), 0xe817);
    assert_eq!((c.field(f::HOST_CR0), c.field(f::HOST_CR4)), (h.cr0, 0x2020));
    assert_eq!((c.field(f::HOST_CS_SELECTOR), c.field(f::HOST_TR_SELECTOR)), (0x10, 0x40));
    for always in
        [f::EXIT_MSR_STORE_COUNT, f::EXIT_MSR_LOAD_COUNT, f::ENTRY_MSR_LOAD_COUNT, f::CR3_TARGET_COUNT]
    {
        assert!(c.wrote(always));
    }
    assert!(c.wrote(f::GUEST_INTERRUPTIBILITY) && c.wrote(f::GUEST_ACTIVITY) && c.wrote(f::TSC_OFFSET));
    assert!(
        c.wrote(f::ENTRY_INTERRUPTION_INFO) && c.wrote(f::GUEST_PENDING_DEBUG) && c.wrote(f::GUEST_DEBUGCTL)
    );
    assert_ne!(c.field(f::VPID), 0, "VPID 0 is the host's");
    assert_eq!(c.field(f::TSC_MULTIPLIER), 1 << 48, "the host's rate");
}

/// The ratio is the VMCS's; a CPU without one has no such field, and nobody writes it.
#[test]
fn the_tsc_is_scaled_where_the_cpu_can() {
    let mut b = Bench::new();
    b.v.set_tsc_ratio(3 << 47);
    b.run(10, 0);
    assert_eq!(b.cpu.field(f::TSC_MULTIPLIER), 3 << 47);
    b.v.set_tsc_ratio(1 << 47);
    b.run(10, 0);
    assert_eq!(b.cpu.field(f::TSC_MULTIPLIER), 1 << 47);

    let mut msrs = skylake();
    *msrs.get_mut(&msr::PROCBASED_CTLS2).unwrap() &= !(u64::from(secondary::USE_TSC_SCALING) << 32);
    let mut b = Bench::with(&negotiate(&msrs).unwrap());
    b.load();
    b.v.set_tsc_ratio(3 << 47);
    b.run(10, 0);
    assert!(!b.cpu.wrote(f::TSC_MULTIPLIER));
    assert_eq!(b.cpu.field(f::SECONDARY_CONTROLS) & secondary::USE_TSC_SCALING, 0);
}

/// A CPUID exit that the fast path answers costs few VMX instructions.
#[test]
fn a_fast_exit_is_cheap() {
    let mut b = Bench::new();
    b.run(10, 0);
    b.cpu.next(|cpu, run| {
        cpu.store(f::GUEST_RIP, 0x1000);
        cpu.store(f::EXIT_INSTRUCTION_LENGTH, 2);
        run.reason = 10;
        switched::EXIT
    });
    b.cpu.clear_logs();
    b.enter(false);
    // What the hall does between the exit and the next entry.
    let _ = (b.v.cr8(), b.v.take_interrupted(), b.v.rflags(), b.v.interrupt_shadow());
    let next = b.v.next_rip().unwrap();
    b.v.set_rip(next);
    b.run(10, 0);
    // RSP (twice), RFLAGS, interruptibility, RIP, length; the exit reason is the world switch's.
    assert_eq!(b.cpu.reads.borrow().len(), 6, "{:x?}", b.cpu.reads.borrow());
    assert_eq!(*b.cpu.writes.borrow(), [f::GUEST_RIP.encoding()]);
}

/// The host's address space changes with every task and, by PCID, even without one.
#[test]
fn host_cr3_is_followed() {
    let mut b = Bench::new();
    b.cpu.cr3.set(0x1000);
    b.run(10, 0);
    assert_eq!(b.cpu.field(f::HOST_CR3), 0x1000);
    b.cpu.cr3.set(0x1001);
    b.run(10, 0);
    assert_eq!(b.cpu.field(f::HOST_CR3), 0x1001);
    b.cpu.clear_logs();
    b.run(10, 0);
    assert!(!b.cpu.wrote(f::HOST_CR3));
}

/// An exit clears DEBUGCTL; the host may have set it.
#[test]
fn host_debugctl_comes_back() {
    let mut b = Bench::new();
    b.cpu.msrs.borrow_mut().insert(0x1d9, 0x4000);
    b.cpu.next(|cpu, run| {
        cpu.msrs.borrow_mut().insert(0x1d9, 0);
        run.reason = 10;
        switched::EXIT
    });
    b.enter(false);
    assert_eq!(b.cpu.msr(0x1d9), 0x4000);
}

#[test]
fn flushes() {
    let mut b = Bench::new();
    b.v.set_slat_root(0x12_3000);
    b.run(10, 0);
    assert_eq!(*b.cpu.invepts.borrow(), [(1, 0x12_305e)], "the CPU may remember another VM with this root");
    b.cpu.clear_logs();
    b.run(10, 0);
    assert!(b.cpu.invepts.borrow().is_empty());
    b.cpu.exit(10, 0);
    b.enter(true);
    assert_eq!(*b.cpu.invepts.borrow(), [(1, 0x12_305e)]);
    b.cpu.clear_logs();
    b.v.set_slat_root(0x45_6000);
    b.run(10, 0);
    assert_eq!(*b.cpu.invepts.borrow(), [(1, 0x45_605e)]);
}

/// CPUs without INVEPT of one context flush them all; without VPID the field does not exist.
#[test]
fn poorer_processors() {
    let mut t = skylake();
    *t.get_mut(&msr::EPT_VPID_CAP).unwrap() &= !(1 << 25);
    *t.get_mut(&msr::PROCBASED_CTLS2).unwrap() &= !(1 << (32 + 5));
    *t.get_mut(&msr::TRUE_PROCBASED_CTLS).unwrap() &= !(1 << (32 + 28));
    let mut b = Bench::with(&negotiate(&t).unwrap());
    b.load();
    b.run(10, 0);
    assert_eq!(b.cpu.invepts.borrow()[0].0, 2);
    assert!(!b.cpu.wrote(f::VPID) && !b.cpu.wrote(f::MSR_BITMAPS));
}

/// L1TF: who came to this CPU finds what ran there before, and what the hall's handlers touch is theirs to say.
#[test]
fn l1d_flush_hint() {
    let mut b = Bench::new();
    b.run(10, 0);
    assert!(b.cpu.flushed_l1d.get(), "the first entry since the thread came here");
    b.run(48, 0);
    assert!(!b.cpu.flushed_l1d.get(), "nobody said anything");
    b.v.dirty_l1d();
    b.run(10, 0);
    assert!(b.cpu.flushed_l1d.get());
    b.run(10, 0);
    assert!(!b.cpu.flushed_l1d.get(), "once");
    b.put();
    b.load();
    b.run(10, 0);
    assert!(b.cpu.flushed_l1d.get(), "the thread was elsewhere, or in user space");
}

/// Entering without having been loaded is an error, not a crash.
#[test]
fn not_loaded() {
    let mut b = Bench::cold();
    assert_eq!(b.enter(false), Exit::Disabled);
    b.load();
    assert_eq!(b.run(10, 0), Exit::Cpuid);
    b.at.clear_here(&b.m, b.percpu);
    assert_eq!(b.enter(false), Exit::Disabled);
}

/// VMLAUNCH once, then VMRESUME (the fake insists); a late failure does not launch.
#[test]
fn launch_state() {
    let mut b = Bench::new();
    assert!(matches!(b.run(1 << 31 | 34, 0), Exit::FailEntry(_)));
    b.run(10, 0);
    b.run(10, 0);
    b.at.clear_here(&b.m, b.percpu);
    b.load();
    b.run(10, 0);
}
