//! Registers: segments and their unusable bit, masks and shadows, the cache, the MSR bitmaps, CR8.

use super::fake::{Bench, negotiate, skylake};
use crate::msr_bitmap;
use crate::state::{access_rights, attributes};
use exitless_vcpu::backend::{Backend, Instructions, SysReg};
use exitless_x86::regs::{Gpr, SegReg, Segment, TableReg, cr0, cr4, efer, rflags};
use exitless_x86::vmx::access_rights as ar;
use exitless_x86::vmx::caps::msr;
use exitless_x86::vmx::control::{entry, primary, secondary};
use exitless_x86::vmx::field as f;
use std::vec;

const ALL: [SegReg; 8] =
    [SegReg::Es, SegReg::Cs, SegReg::Ss, SegReg::Ds, SegReg::Fs, SegReg::Gs, SegReg::Ldtr, SegReg::Tr];

/// Every packed attribute of a present, accessed segment comes back as it was.
#[test]
fn attributes_round_trip() {
    for attrib in 0..0x1000u16 {
        let s = Segment { attrib, ..Segment::default() };
        let rights = access_rights(SegReg::Tr, &s);
        assert_eq!(rights & 0xf00, 0, "reserved bits");
        assert_eq!(rights & ar::UNUSABLE != 0, !s.present());
        assert_eq!(attributes(rights), attrib);
    }
}

/// VM entry refuses usable code and data segments without the accessed bit; user space may set such ones.
#[test]
fn accessed_bit() {
    let s = Segment { attrib: Segment::P | Segment::S | 2, ..Segment::default() };
    assert_eq!(access_rights(SegReg::Ds, &s) & 15, 3);
    assert_eq!(access_rights(SegReg::Tr, &s) & 15, 2);
    let gone = Segment { attrib: Segment::S | 2, ..Segment::default() };
    assert_eq!(access_rights(SegReg::Ds, &gone) & 15, 2);
}

/// A null SS in 64-bit mode is unusable, and its DPL is still the CPL.
#[test]
fn unusable_ss_keeps_the_cpl() {
    let mut b = Bench::new();
    b.cpu.next(|cpu, run| {
        cpu.store(f::GUEST_SS_ACCESS_RIGHTS, ar::UNUSABLE | 3 << ar::DPL_SHIFT | ar::P);
        run.reason = 10;
        crate::machine::switched::EXIT
    });
    b.enter(false);
    assert_eq!(b.v.cpl(), 3);
    assert!(!b.v.segment(SegReg::Ss).present());
    assert_eq!(b.v.segment(SegReg::Ss).dpl(), 3);
}

/// Each register goes to its own fields and comes back from them.
#[test]
fn segments_through_the_vmcs() {
    let mut b = Bench::new();
    for (i, r) in ALL.into_iter().enumerate() {
        let n = i as u64 + 1;
        let attrib = Segment::P | 3 | if i < 6 { Segment::S } else { 0 };
        b.v.set_segment(r, &Segment { base: n << 12, limit: n as u32, selector: n as u16 * 8, attrib });
    }
    b.run(10, 0);
    assert_eq!(b.cpu.field(f::GUEST_CS_SELECTOR), 16);
    assert_eq!(b.cpu.field(f::GUEST_LDTR_BASE), 7 << 12);
    assert_eq!(b.cpu.field(f::GUEST_TR_LIMIT), 8);
    assert_eq!(b.cpu.field(f::GUEST_FS_ACCESS_RIGHTS), 0x93);
    for (i, r) in ALL.into_iter().enumerate() {
        let s = b.v.segment(r);
        assert_eq!((s.base, s.limit, s.selector), ((i as u64 + 1) << 12, i as u32 + 1, (i as u16 + 1) * 8));
    }
}

#[test]
fn tables() {
    let mut b = Bench::new();
    b.v.set_gdtr(&TableReg { base: 0x1234, limit: 0x7f, reserved: 0 });
    b.v.set_idtr(&TableReg { base: 0x5678, limit: 0xfff, reserved: 0 });
    b.run(10, 0);
    assert_eq!((b.v.gdtr().base, b.v.gdtr().limit), (0x1234, 0x7f));
    assert_eq!((b.v.idtr().base, b.v.idtr().limit), (0x5678, 0xfff));
}

/// The guest sees what it wrote; hardware runs with NE and without CD and NW.
#[test]
fn cr0() {
    let mut b = Bench::new();
    let value = cr0::PE | cr0::ET | cr0::CD | cr0::NW;
    b.v.set_cr0(value);
    b.run(10, 0);
    assert_eq!(b.v.cr0(), value);
    assert_eq!(b.cpu.field(f::GUEST_CR0), cr0::PE | cr0::ET | cr0::NE);
    assert_eq!(b.cpu.field(f::CR0_SHADOW), value);
    // CLTS and the like change hardware's bits without an exit.
    b.cpu.next(|cpu, run| {
        cpu.store(f::GUEST_CR0, cpu.field(f::GUEST_CR0) | cr0::TS | cr0::MP);
        run.reason = 10;
        crate::machine::switched::EXIT
    });
    b.enter(false);
    assert_eq!(b.v.cr0(), value | cr0::TS | cr0::MP);
    assert_eq!(b.cpu.field(f::CR0_MASK) & (cr0::TS | cr0::MP | cr0::NE | cr0::PG), cr0::NE | cr0::PG);
}

/// VMXE is on in hardware and nowhere to be seen.
#[test]
fn cr4() {
    let mut b = Bench::new();
    b.v.set_cr4(cr4::PAE);
    b.run(10, 0);
    assert_eq!(b.v.cr4(), cr4::PAE);
    assert_eq!(b.cpu.field(f::GUEST_CR4), cr4::PAE | cr4::VMXE);
    assert_ne!(b.cpu.field(f::CR4_MASK) & cr4::VMXE, 0, "a guest that sets VMXE exits");
    b.cpu.next(|cpu, run| {
        cpu.store(f::GUEST_CR4, cpu.field(f::GUEST_CR4) | cr4::PGE);
        run.reason = 10;
        crate::machine::switched::EXIT
    });
    b.enter(false);
    assert_eq!(b.v.cr4(), cr4::PAE | cr4::PGE);
}

/// A CPU without UMIP takes no such bit, and lets what it forbids exit instead.
#[test]
fn umip() {
    let mut table = skylake();
    for hardware in [true, false] {
        if !hardware {
            *table.get_mut(&msr::CR4_FIXED1).unwrap() &= !cr4::UMIP;
        }
        let caps = negotiate(&table).unwrap();
        assert_eq!(caps.emulates_umip(), !hardware);
        let mut b = Bench::with(&caps);
        b.load();
        for on in [false, true, false] {
            let guest = cr4::PAE | if on { cr4::UMIP } else { 0 };
            b.v.set_cr4(guest);
            b.run(10, 0);
            assert_eq!(b.v.cr4(), guest);
            assert_eq!(b.cpu.field(f::GUEST_CR4) & cr4::UMIP != 0, on && hardware);
            let exits = b.cpu.field(f::SECONDARY_CONTROLS) & secondary::DESCRIPTOR_TABLE_EXITING != 0;
            assert_eq!(exits, on && !hardware);
        }
    }
    // Without the exits there is no UMIP.
    *table.get_mut(&msr::PROCBASED_CTLS2).unwrap() &= !(u64::from(secondary::DESCRIPTOR_TABLE_EXITING) << 32);
    assert!(!negotiate(&table).unwrap().emulates_umip());
}

/// What the guest's CPUID hides faults, from the first entry on; RDTSCP and RDPID go together.
#[test]
fn hidden_instructions() {
    use secondary::*;
    const ALL: u32 = ENABLE_RDTSCP | ENABLE_INVPCID | RDRAND_EXITING | RDSEED_EXITING;
    const HIDDEN: u32 = RDRAND_EXITING | RDSEED_EXITING;
    let none = Instructions::default();
    let mut b = Bench::new();
    b.run(10, 0);
    assert_eq!(b.cpu.field(f::SECONDARY_CONTROLS) & ALL, HIDDEN);
    for (shown, controls) in [
        (Instructions { rdtscp: true, ..none }, HIDDEN | ENABLE_RDTSCP),
        (Instructions { rdpid: true, ..none }, HIDDEN | ENABLE_RDTSCP),
        (Instructions { invpcid: true, ..none }, HIDDEN | ENABLE_INVPCID),
        (Instructions { rdrand: true, ..none }, RDSEED_EXITING),
        (Instructions { rdseed: true, ..none }, RDRAND_EXITING),
        (none, HIDDEN),
    ] {
        b.v.set_instructions(shown);
        b.run(10, 0);
        assert_eq!(b.cpu.field(f::SECONDARY_CONTROLS) & ALL, controls, "{shown:?}");
    }
    // Shown or not, what the CPU lacks stays off.
    let mut table = skylake();
    *table.get_mut(&msr::PROCBASED_CTLS2).unwrap() &= !(u64::from(ALL) << 32);
    let mut b = Bench::with(&negotiate(&table).unwrap());
    b.load();
    for shown in [none, Instructions { rdtscp: true, rdpid: true, invpcid: true, ..none }] {
        b.v.set_instructions(shown);
        b.run(10, 0);
        assert_eq!(b.cpu.field(f::SECONDARY_CONTROLS) & ALL, 0);
    }
}

#[test]
fn long_mode_is_an_entry_control() {
    let mut b = Bench::new();
    b.v.set_efer(efer::LME | efer::LMA);
    b.run(10, 0);
    assert_ne!(b.cpu.field(f::ENTRY_CONTROLS) & entry::IA32E_MODE_GUEST, 0);
    assert_eq!(b.cpu.field(f::GUEST_EFER), efer::LME | efer::LMA);
    b.v.set_efer(efer::LME);
    b.run(10, 0);
    assert_eq!(b.cpu.field(f::ENTRY_CONTROLS) & entry::IA32E_MODE_GUEST, 0);
}

#[test]
fn pdptes_belong_to_pae_paging() {
    let mut b = Bench::new();
    b.v.set_cr4(cr4::PAE);
    assert!(!b.v.uses_pdptes());
    b.v.set_cr4(0);
    b.v.set_cr0(cr0::PE | cr0::PG);
    assert!(!b.v.uses_pdptes());
    b.v.set_cr4(cr4::PAE);
    assert!(b.v.uses_pdptes());
    b.v.set_pdptes([1, 2, 3, 4]);
    b.run(10, 0);
    assert_eq!((b.cpu.field(f::GUEST_PDPTE0), b.cpu.field(f::GUEST_PDPTE3)), (1, 4));
    b.v.set_efer(efer::LME | efer::LMA);
    assert!(!b.v.uses_pdptes());
}

/// Read once, then from memory until the guest ran again.
#[test]
fn fields_are_read_once() {
    let mut b = Bench::new();
    b.run(10, 0);
    b.cpu.clear_logs();
    for _ in 0..3 {
        let _ = (b.v.rflags(), b.v.segment(SegReg::Cs));
    }
    assert_eq!(b.cpu.read_count(f::GUEST_RFLAGS), 1);
    assert_eq!(b.cpu.read_count(f::GUEST_CS_ACCESS_RIGHTS), 1);
    b.run(10, 0);
    let _ = b.v.rflags();
    assert_eq!(b.cpu.read_count(f::GUEST_RFLAGS), 2);
    assert_eq!(b.cpu.read_count(f::PRIMARY_CONTROLS), 0, "ours, never read");
}

/// Only what changed is written; a value set again is no change.
#[test]
fn changes_are_written_once() {
    let mut b = Bench::new();
    b.run(10, 0);
    b.cpu.clear_logs();
    b.v.set_rip(b.v.rip() + 2);
    let flags = b.v.rflags();
    b.v.set_rflags(flags | rflags::FIXED);
    b.run(10, 0);
    assert_eq!(
        *b.cpu.writes.borrow(),
        vec![f::GUEST_RFLAGS.encoding(), f::GUEST_RIP.encoding()][..]
            .iter()
            .rev()
            .copied()
            .collect::<vec::Vec<_>>()
    );
    b.cpu.clear_logs();
    b.run(10, 0);
    assert!(b.cpu.writes.borrow().is_empty(), "nothing changed: {:x?}", b.cpu.writes.borrow());
}

/// After `sync` the registers can be read, and written, with the VMCS loaded nowhere.
#[test]
fn synced_registers_need_no_vmcs() {
    let mut b = Bench::new();
    b.v.set_rip(0x1000);
    b.run(10, 0);
    b.v.sync();
    b.at.clear_here(&b.m, b.percpu);
    b.cpu.clear_logs();
    assert_eq!(b.v.rip(), 0x1000);
    b.v.set_rip(0x2000);
    assert!(b.cpu.reads.borrow().is_empty() && b.cpu.writes.borrow().is_empty());
    b.load();
    b.run(10, 0);
    assert_eq!(b.cpu.field(f::GUEST_RIP), 0x2000);
}

/// RSP stands among the general registers for the hall, and is a field for hardware.
#[test]
fn rsp() {
    let mut b = Bench::new();
    b.v.gprs_mut().set(Gpr::Rsp, 0x8000);
    b.cpu.next(|cpu, run| {
        assert_eq!(cpu.field(f::GUEST_RSP), 0x8000);
        cpu.store(f::GUEST_RSP, 0x7ff8);
        run.reason = 10;
        crate::machine::switched::EXIT
    });
    b.enter(false);
    assert_eq!(b.v.gprs().get(Gpr::Rsp), 0x7ff8);
    b.cpu.clear_logs();
    b.run(10, 0);
    assert!(!b.cpu.wrote(f::GUEST_RSP));
}

#[test]
fn windows_and_intercepts() {
    let mut b = Bench::new();
    b.run(10, 0);
    assert_ne!(b.cpu.field(f::PRIMARY_CONTROLS) & primary::MOV_DR_EXITING, 0);
    b.v.set_interrupt_window(true);
    b.v.set_nmi_window(true);
    b.v.set_cr8_intercept(true);
    b.v.set_dr_intercept(false);
    b.run(10, 0);
    let on = primary::INTERRUPT_WINDOW_EXITING | primary::NMI_WINDOW_EXITING | primary::CR8_LOAD_EXITING;
    assert_eq!(b.cpu.field(f::PRIMARY_CONTROLS) & (on | primary::MOV_DR_EXITING), on);
    b.v.set_interrupt_window(false);
    b.v.set_nmi_window(false);
    b.v.set_cr8_intercept(false);
    b.run(10, 0);
    assert_eq!(b.cpu.field(f::PRIMARY_CONTROLS) & on, 0);
}

/// An NMI behind `sti`: the NMI window may open in the shadow, where the hall cannot inject and would ask again for ever.
#[test]
fn nmi_window_in_the_shadow_of_sti() {
    let window = |b: &Bench| {
        b.cpu.field(f::PRIMARY_CONTROLS) & (primary::INTERRUPT_WINDOW_EXITING | primary::NMI_WINDOW_EXITING)
    };
    let mut b = Bench::new();
    b.v.set_rflags(rflags::IF);
    b.v.set_interrupt_shadow(true);
    b.v.set_nmi_window(true);
    // What the hall does next, with no interrupt to wait for.
    b.v.set_interrupt_window(false);
    b.run(7, 0);
    assert_eq!(window(&b), primary::INTERRUPT_WINDOW_EXITING);
    b.v.set_interrupt_window(false);
    b.v.set_interrupt_shadow(false);
    b.v.set_nmi_window(true);
    b.run(8, 0);
    assert_eq!(window(&b), primary::NMI_WINDOW_EXITING);
    b.v.set_nmi_window(false);
    b.run(10, 0);
    assert_eq!(window(&b), 0);
}

#[test]
fn cr8_lives_in_the_virtual_apic_page() {
    let mut b = Bench::new();
    assert_eq!(b.v.cr8(), 0);
    b.v.set_cr8(9);
    assert_eq!(b.v.cr8(), 9);
    b.v.set_cr8(0xff);
    assert_eq!(b.v.cr8(), 15);
}

/// In an interrupt shadow VM entry demands that a pending single-step agrees with TF and BTF.
#[test]
fn shadow_and_single_step() {
    let mut b = Bench::new();
    b.v.set_rflags(rflags::IF | rflags::TF);
    b.v.set_interrupt_shadow(true);
    b.run(10, 0);
    assert_eq!(b.cpu.field(f::GUEST_INTERRUPTIBILITY), 1, "STI");
    assert_eq!(b.cpu.field(f::GUEST_PENDING_DEBUG), 1 << 14);
    b.v.set_sys_reg(SysReg::DebugCtl, 2);
    b.run(10, 0);
    assert_eq!(b.cpu.field(f::GUEST_PENDING_DEBUG), 0, "BTF: branches are stepped, not instructions");
    b.v.set_sys_reg(SysReg::DebugCtl, 0);
    b.run(10, 0);
    b.v.set_interrupt_shadow(false);
    b.run(10, 0);
    assert_eq!((b.cpu.field(f::GUEST_INTERRUPTIBILITY), b.cpu.field(f::GUEST_PENDING_DEBUG)), (0, 0));
    b.v.set_rflags(0);
    b.v.set_interrupt_shadow(true);
    b.run(10, 0);
    assert_eq!(b.cpu.field(f::GUEST_INTERRUPTIBILITY), 2, "with IF clear only MOV SS casts a shadow");
    assert_eq!(b.cpu.field(f::GUEST_PENDING_DEBUG), 0, "no step");
    b.v.set_interrupt_shadow(false);
    b.v.set_rflags(rflags::TF);
    b.run(10, 0);
    assert_eq!(b.cpu.field(f::GUEST_PENDING_DEBUG), 0, "no shadow");
    b.v.set_interrupt_shadow(true);
    b.run(10, 0);
    assert_eq!(b.cpu.field(f::GUEST_PENDING_DEBUG), 1 << 14, "whoever casts it");
}

/// A debugger steps: TF is set, nobody sees it, and no instruction is skipped as if it were not.
#[test]
fn debugger_steps() {
    for guests in [0, rflags::TF] {
        let mut b = Bench::new();
        b.v.set_rflags(2 | guests);
        b.v.set_step(true);
        assert_eq!((b.v.rflags(), b.v.stepping()), (2 | guests, true));
        b.run(10, 0);
        assert_eq!(b.cpu.field(f::GUEST_RFLAGS), 0x102);
        assert!(!b.v.skip_instruction());
        b.v.set_rflags(0x202 | guests);
        assert_eq!((b.v.rflags(), b.v.stepping()), (0x202 | guests, true), "registers were written");
        b.v.set_step(false);
        assert_eq!((b.v.rflags(), b.v.stepping()), (0x202 | guests, false));
        b.run(10, 0);
        assert_eq!(b.cpu.field(f::GUEST_RFLAGS), 0x202 | guests);
    }
    let mut b = Bench::new();
    b.v.set_step(true);
    b.run(10, 0);
    b.cpu.store(f::GUEST_RFLAGS, 2);
    b.run(10, 0);
    b.cpu.next(|cpu, run| {
        cpu.store(f::GUEST_RFLAGS, 2);
        run.reason = 10;
        crate::machine::switched::EXIT
    });
    b.enter(false);
    assert!(!b.v.stepping(), "a handler runs");
    b.v.set_step(true);
    assert!(b.v.stepping(), "once more");
}

/// A step from behind STI ends behind the next instruction: with the shadow VM entry would want the trap pending, and it would
/// come at once. Behind MOV SS a pending trap waits for that instruction.
#[test]
fn debugger_steps_in_a_shadow() {
    for (open, mov_ss, shadow, pending) in [
        (rflags::IF, false, 0, 0),
        (0, false, 2, 1 << 14),
        (rflags::IF, true, 2, 1 << 14),
        (0, true, 2, 1 << 14),
    ] {
        let mut b = Bench::new();
        b.v.set_rflags(open);
        if mov_ss {
            b.v.hold_by_mov_ss();
        } else {
            b.v.set_interrupt_shadow(true);
        }
        b.v.set_step(true);
        b.run(10, 0);
        assert_eq!(b.cpu.field(f::GUEST_INTERRUPTIBILITY), shadow, "IF {open:#x}, MOV SS: {mov_ss}");
        assert_eq!(b.cpu.field(f::GUEST_PENDING_DEBUG), pending);
    }
}

/// An emulated MOV SS casts its own shadow whatever IF is: the guest's single-step trap waits for the next instruction.
#[test]
fn mov_ss_holds_traps_back() {
    for open in [rflags::IF, 0] {
        let mut b = Bench::new();
        b.v.set_rflags(open | rflags::TF);
        b.v.hold_by_mov_ss();
        assert_eq!((b.v.interrupt_shadow(), b.v.shadow_of()), (true, (true, false)));
        b.run(10, 0);
        assert_eq!(b.cpu.field(f::GUEST_INTERRUPTIBILITY), 2);
        assert_eq!(b.cpu.field(f::GUEST_PENDING_DEBUG), 1 << 14);
        b.v.set_interrupt_shadow(false);
        assert_eq!(b.v.shadow_of(), (false, false));
    }
    let mut b = Bench::new();
    b.v.set_rflags(rflags::IF);
    b.v.set_interrupt_shadow(true);
    assert_eq!(b.v.shadow_of(), (false, true));
}

/// INT3 exits while a debugger plants it, from the next slice on.
#[test]
fn debugger_breakpoints() {
    let mut b = Bench::new();
    for on in [true, false] {
        b.v.set_bp_intercept(on);
        b.run(10, 0);
        assert_eq!(b.cpu.field(f::EXCEPTION_BITMAP) >> 3 & 1, u32::from(on));
    }
}

/// DR6 is in the CPU only while the guest has the debug registers, and the host finds none of its bits.
#[test]
fn dr6_travels_with_the_debug_registers() {
    let mut b = Bench::new();
    b.cpu.dr6.set(0xffff_0ff0);
    b.v.set_dr6(0xffff_0ff1);
    b.run(10, 0);
    assert_eq!(b.cpu.dr6.get(), 0xffff_0ff0);
    b.v.set_dr_intercept(false);
    b.cpu.next(|cpu, run| {
        assert_eq!(cpu.dr6.get(), 0xffff_0ff1);
        cpu.dr6.set(0xffff_0ff4);
        run.reason = 10;
        crate::machine::switched::EXIT
    });
    b.enter(false);
    assert_eq!(b.v.dr6(), 0xffff_0ff4);
    assert_eq!(b.cpu.dr6.get(), 0xffff_0ff0);
}

/// The manual's corners of the four bitmaps.
#[test]
fn msr_bitmaps() {
    assert_eq!(msr_bitmap::position(0), Some((0, 0)));
    assert_eq!(msr_bitmap::position(0x1fff), Some((0x3ff, 7)));
    assert_eq!(msr_bitmap::position(0xc000_0000), Some((0x400, 0)));
    assert_eq!(msr_bitmap::position(0xc000_1fff), Some((0x7ff, 7)));
    for outside in [0x2000, 0xbfff_ffff, 0xc000_2000, 0xc001_0015, u32::MAX] {
        assert_eq!(msr_bitmap::position(outside), None);
    }
    let mut map = vec![0; msr_bitmap::SIZE];
    msr_bitmap::fill(&mut map, [0x174, 0xc000_0102, 0x4b56_4d00].into_iter());
    assert_eq!(map.iter().map(|b| b.count_zeros()).sum::<u32>(), 4);
    assert_eq!(map[0x174 / 8] & 1 << (0x174 % 8), 0);
    assert_eq!(map[0x800 + 0x174 / 8] & 1 << (0x174 % 8), 0);
    assert_eq!(map[0x400 + 0x102 / 8] & 1 << 2, 0);
    assert_eq!(map[0xc00 + 0x102 / 8] & 1 << 2, 0);
}

/// The host's CR4.MCE is on while the guest runs, and the guest sees what it wrote: without it a machine check would shut the
/// host down.
#[test]
fn machine_checks_stay_on() {
    let mut b = Bench::new();
    b.cpu.cr4.set(Some(0x2060));
    for guest in [0x20, 0x60, 0] {
        b.v.set_cr4(guest);
        b.run(10, 0);
        assert_eq!(b.v.cr4(), guest);
        assert_eq!(b.cpu.field(f::GUEST_CR4), guest | 0x2040);
        assert_eq!(b.cpu.field(f::CR4_SHADOW), guest);
        assert_ne!(b.cpu.field(f::CR4_MASK) & 0x40, 0, "the guest's writes exit");
    }
}

/// Without a shadow a single step's trap may wait all the same, behind an exit that is a trap itself. A reset, and user space's new
/// state, end it too: nothing of it may come behind the first entry.
#[test]
fn no_shadow_ends_a_pending_trap() {
    let mut b = Bench::new();
    b.run(10, 0);
    b.cpu.store(f::GUEST_PENDING_DEBUG, 1 << 14);
    b.v.set_interrupt_shadow(false);
    b.run(10, 0);
    assert_eq!(b.cpu.field(f::GUEST_PENDING_DEBUG), 0);
}

/// Each register has its place, and comes back from there.
#[test]
fn system_registers() {
    use exitless_vcpu::backend::SysReg as S;
    let mut b = Bench::new();
    let travelling = [S::Star, S::Lstar, S::Cstar, S::Sfmask, S::KernelGsBase, S::TscAux];
    let fields = [S::FsBase, S::GsBase, S::SysenterCs, S::SysenterEsp, S::SysenterEip, S::Pat, S::SpecCtrl];
    let all = || travelling.into_iter().chain(fields).zip(0x10u64..);
    for (r, v) in all() {
        b.v.set_sys_reg(r, v);
    }
    b.v.set_tsc_offset(0x77);
    b.run(10, 0);
    for (r, v) in all() {
        assert_eq!(b.v.sys_reg(r), v, "{r:?}");
    }
    let c = b.cpu;
    assert_eq!(
        [c.field(f::GUEST_FS_BASE), c.field(f::GUEST_GS_BASE), c.field(f::GUEST_SYSENTER_CS).into()],
        [0x16, 0x17, 0x18]
    );
    assert_eq!(
        [c.field(f::GUEST_SYSENTER_ESP), c.field(f::GUEST_SYSENTER_EIP), c.field(f::GUEST_PAT)],
        [0x19, 0x1a, 0x1b]
    );
    assert_eq!((c.field(f::TSC_OFFSET), b.v.run.spec_ctrl), (0x77, 0x1c));
    assert_eq!([0xc000_0081, 0xc000_0083, 0xc000_0102].map(|n| c.msr(n)), [0x10, 0x12, 0x14]);
}

/// What is no exit's business comes back from the VMCS, or from where the world switch keeps it.
#[test]
fn cr2_cr3_and_dr7() {
    let mut b = Bench::new();
    b.v.set_cr2(0x1111);
    b.v.set_cr3(0x2000);
    b.v.set_dr7(0x700);
    b.run(10, 0);
    assert_eq!((b.cpu.field(f::GUEST_CR3), b.cpu.field(f::GUEST_DR7)), (0x2000, 0x700));
    assert_eq!(b.v.run.cr2, 0x1111);
    b.cpu.next(|cpu, run| {
        cpu.store(f::GUEST_CR3, 0x3000);
        cpu.store(f::GUEST_DR7, 0x455);
        cpu.store(f::GUEST_CS_ACCESS_RIGHTS, 0xa09b);
        run.cr2 = 0x2222;
        run.reason = 10;
        crate::machine::switched::EXIT
    });
    b.enter(false);
    assert_eq!((b.v.cr2(), b.v.cr3(), b.v.dr7()), (0x2222, 0x3000, 0x455));
    assert_eq!((b.v.code_attributes(), b.v.segment(SegReg::Cs).attrib), (0xa9b, 0xa9b));
}

/// What the guest may change without an exit is not asked for; the rest is known.
#[test]
fn watched_bits_of_cr4() {
    let mut b = Bench::new();
    b.v.set_cr4(cr4::PAE | cr4::OSXSAVE | cr4::OSFXSR | cr4::PGE);
    assert_eq!(b.v.cr4_watched(), cr4::PAE | cr4::OSXSAVE);
}

/// A set of the old value after the guest changed it is a change.
#[test]
fn an_old_value_is_written_again() {
    let mut b = Bench::new();
    b.v.set_rip(0x1000);
    b.cpu.next(|cpu, run| {
        cpu.store(f::GUEST_RIP, 0x2000);
        run.reason = 10;
        crate::machine::switched::EXIT
    });
    b.enter(false);
    b.v.set_rip(0x1000);
    b.run(10, 0);
    assert_eq!(b.cpu.field(f::GUEST_RIP), 0x1000);
    b.v.set_rip(0x3000);
    b.v.sync();
    assert_eq!(b.v.rip(), 0x3000, "what waits to be written is not read over");
}

/// CR0 bits that this CPU never has stay out of hardware's, and the guest sees them all the same.
#[test]
fn cr0_bits_that_the_cpu_lacks() {
    let mut t = skylake();
    *t.get_mut(&msr::CR0_FIXED1).unwrap() &= !cr0::AM;
    let mut b = Bench::with(&negotiate(&t).unwrap());
    b.load();
    for on in [0, cr0::AM] {
        b.v.set_cr0(cr0::PE | on);
        b.run(10, 0);
        assert_eq!(b.cpu.field(f::GUEST_CR0), cr0::PE | cr0::NE);
        assert_eq!(b.v.cr0() & cr0::AM, on);
    }
}

/// NMIs are masked by the guest's state, or by one that is about to be delivered; by no other event.
#[test]
fn masked_nmis() {
    use exitless_vcpu::backend::Event;
    let mut b = Bench::new();
    b.v.set_rflags(rflags::IF);
    b.v.set_interrupt_shadow(true);
    for on in [true, false] {
        b.v.set_nmi_masked(on);
        b.run(10, 0);
        assert_eq!(b.cpu.field(f::GUEST_INTERRUPTIBILITY), if on { 9 } else { 1 });
        assert_eq!(b.v.nmi_masked(), on);
    }
    b.v.set_interrupt_shadow(false);
    b.v.set_nmi_masked(true);
    assert!(!b.v.interrupt_shadow(), "that is no shadow");
    b.v.set_nmi_masked(false);
    b.v.inject(Event::Interrupt(0x31));
    assert!(!b.v.nmi_masked());
    b.v.inject(Event::Nmi);
    assert!(b.v.nmi_masked());
    b.run(10, 0);
    assert!(!b.v.nmi_masked(), "the fake delivers nothing");
}

/// XSAVES executes where the CPU has it and the guest's CPUID shows it.
#[test]
fn xsaves_executes_where_it_is_shown() {
    let mut t = skylake();
    for able in [true, false] {
        if !able {
            *t.get_mut(&msr::PROCBASED_CTLS2).unwrap() &= !(u64::from(secondary::ENABLE_XSAVES) << 32);
        }
        let mut b = Bench::with(&negotiate(&t).unwrap());
        b.load();
        for shown in [false, true] {
            b.v.set_instructions(Instructions { xsaves: shown, ..Instructions::default() });
            b.run(10, 0);
            assert_eq!(b.v.executes_xsaves(), able && shown);
            let control = b.cpu.field(f::SECONDARY_CONTROLS) & secondary::ENABLE_XSAVES != 0;
            assert_eq!(control, able && shown);
        }
    }
}

/// The window of a loop of PAUSEs follows what the hall says, whatever KVM_RUN does in between.
#[test]
fn pause_window() {
    let mut b = Bench::new();
    b.run(10, 0);
    assert_eq!(b.cpu.field(f::PLE_WINDOW), 4096);
    for (longer, window) in [(true, 8192), (true, 16384), (false, 4096), (false, 4096)] {
        let written = b.cpu.field(f::PLE_WINDOW) != window;
        b.v.spin_longer(longer);
        for written in [written, false] {
            b.put();
            b.load();
            b.cpu.clear_logs();
            b.run(10, 0);
            assert_eq!((b.cpu.field(f::PLE_WINDOW), b.cpu.wrote(f::PLE_WINDOW)), (window, written));
        }
    }
    let mut t = skylake();
    *t.get_mut(&msr::PROCBASED_CTLS2).unwrap() &= !(u64::from(secondary::PAUSE_LOOP_EXITING) << 32);
    let mut b = Bench::with(&negotiate(&t).unwrap());
    b.load();
    b.run(10, 0);
    assert!(!b.cpu.wrote(f::PLE_WINDOW) && !b.cpu.wrote(f::PLE_GAP));
}

/// The ENCLS bitmap exists with its control.
#[test]
fn encls_bitmap() {
    for able in [true, false] {
        let mut t = skylake();
        if !able {
            *t.get_mut(&msr::PROCBASED_CTLS2).unwrap() &= !(u64::from(secondary::ENABLE_ENCLS_EXITING) << 32);
        }
        let mut b = Bench::with(&negotiate(&t).unwrap());
        b.load();
        b.run(10, 0);
        assert_eq!(b.cpu.wrote(f::ENCLS_EXITING_BITMAP), able);
    }
}

/// Exceptions push no error code in real mode, and an entry that says otherwise fails.
#[test]
fn error_codes_are_protected_modes() {
    use exitless_x86::exception::Exception;
    for (mode, code) in [(0, false), (cr0::PE, true)] {
        let mut b = Bench::new();
        b.v.set_cr0(mode | cr0::ET | cr0::WP);
        b.v.inject(exitless_vcpu::backend::Event::Exception(Exception::gp(8)));
        b.run(10, 0);
        assert_eq!(b.cpu.field(f::ENTRY_INTERRUPTION_INFO) >> 11 & 1 != 0, code);
    }
}

/// What the guest does by its owner's wish without an exit, each by itself: no other control moves. One that halts is woken by what
/// changes its registers or goes in: entries refuse most of that in the HLT state.
#[test]
fn in_guest() {
    use exitless_vcpu::backend::{Backend, Event, InGuest};
    use exitless_x86::vmx::control::{primary as p, secondary as s};
    let caps = negotiate(&skylake()).unwrap();
    let rest = (caps.primary, caps.secondary);
    let hlt = caps.leaving(InGuest { hlt: true, ..InGuest::default() });
    assert_eq!((hlt.primary, hlt.secondary), (rest.0 & !p::HLT_EXITING, rest.1));
    let mwait = caps.leaving(InGuest { mwait: true, ..InGuest::default() });
    assert_eq!((mwait.primary, mwait.secondary), (rest.0 & !(p::MWAIT_EXITING | p::MONITOR_EXITING), rest.1));
    let pause = caps.leaving(InGuest { pause: true, ..InGuest::default() });
    assert_eq!((pause.primary, pause.secondary), (rest.0, rest.1 & !s::PAUSE_LOOP_EXITING));
    assert!(!pause.pause_loop());
    let wakes: [fn(&mut Bench); 3] =
        [|b| b.v.inject(Event::Nmi), |b| b.v.set_rip(0x2000), |b| b.v.set_interrupt_shadow(true)];
    for halts in [true, false] {
        for wake in wakes {
            let mut b = Bench::new();
            b.v.halts = halts;
            b.run(12, 0);
            b.cpu.store(f::GUEST_ACTIVITY, 1);
            wake(&mut b);
            assert_eq!(b.cpu.field(f::GUEST_ACTIVITY) == 0, halts);
        }
    }
}
