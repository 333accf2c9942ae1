//! Registers in the VMCB, what of them is hidden, and the controls that stand from the start.

use super::{ALL, Machine};
use crate::PerCpu;
use crate::msr_bitmap::{SIZE, fill, open, position};
use exitless_vcpu::backend::{Backend, Opened};
use exitless_x86::regs::{SegReg, Segment, TableReg, cr0};
use exitless_x86::svm::intercept1;
use std::vec;
use std::vec::Vec;

#[test]
fn tables() {
    let mut m = Machine::new(&ALL);
    let (gdt, idt) = (
        TableReg { base: 0x1234_5000, limit: 0x57, reserved: 0 },
        TableReg { base: 0x6789_a000, limit: 0xfff, reserved: 0 },
    );
    m.v.set_gdtr(&gdt);
    m.v.set_idtr(&idt);
    assert_eq!((m.v.gdtr().base, m.v.gdtr().limit), (gdt.base, gdt.limit));
    assert_eq!((m.v.idtr().base, m.v.idtr().limit), (idt.base, idt.limit));
    // Hardware may leave more in the 32 bits than a limit has.
    m.enter(|vmcb| vmcb.save.gdtr.limit = 0xabcd_0057);
    assert_eq!(m.v.gdtr().limit, 0x57);
}

#[test]
fn plain_registers() {
    let mut m = Machine::new(&ALL);
    m.v.set_cr3(0x1234_5018);
    m.v.set_dr7(0x455);
    assert_eq!((m.v.cr3(), m.v.dr7(), m.v.fault_linear()), (0x1234_5018, 0x455, None));
    m.enter(|vmcb| {
        assert_eq!((vmcb.save.cr3, vmcb.save.dr7), (0x1234_5018, 0x455));
        vmcb.save.cr3 = 0x7000;
    });
    assert_eq!(m.v.cr3(), 0x7000);
}

/// CD and NW are kept aside, and CR0 is watched exactly while one of them is set; other intercepts of control registers stay.
#[test]
fn cache_bits_are_kept_aside() {
    const PLAIN: u64 = cr0::PE | cr0::PG | cr0::WP;
    for others in [false, true] {
        let mut m = Machine::new(&ALL);
        m.v.set_cr8_intercept(others);
        let writes = m.v.control().intercept_cr_write;
        for (hidden, watched) in [(0, 0), (cr0::CD, 1), (cr0::NW, 1), (cr0::CD | cr0::NW, 1), (0, 0)] {
            m.v.set_cr0(PLAIN | hidden);
            assert_eq!((m.v.cr0(), m.v.save().cr0), (PLAIN | hidden, PLAIN));
            let c = m.v.control();
            assert_eq!((c.intercept_cr_read, c.intercept_cr_write), (watched, writes | watched));
        }
    }
}

/// TR alone has no attributes when it is not present.
#[test]
fn absent_segments() {
    let mut m = Machine::new(&ALL);
    for (r, attrib) in [(SegReg::Tr, 0), (SegReg::Ldtr, 0x2), (SegReg::Fs, 0x2)] {
        m.v.set_segment(r, &Segment { attrib: 0x2, limit: 5, base: 6, selector: 7 });
        assert_eq!(m.v.segment(r), Segment { attrib, limit: 5, base: 6, selector: 7 });
    }
}

/// What exits from the start besides the instructions and events of `host_is_protected`.
#[test]
fn intercepts_from_the_start() {
    let m = Machine::new(&ALL);
    let c = m.v.control();
    assert_eq!((c.intercept_cr_write, c.intercept_dr_read, c.intercept_dr_write), (1 << 4, 0xffff, 0xffff));
    assert_eq!(c.intercept_exceptions, 0x6_0042);
}

/// NMIs are held off by the intercept of IRET.
#[test]
fn masked_nmis_wait_for_iret() {
    let mut m = Machine::new(&ALL);
    for on in [true, false] {
        m.v.set_nmi_masked(on);
        assert_eq!((m.v.nmi_masked(), m.v.control().intercept1 & intercept1::IRET != 0), (on, on));
    }
}

/// A window for NMIs is a step over the one instruction in the way: an IRET that has been seen, or the end of a shadow.
#[test]
fn windows_for_nmis() {
    for (masked, shadow, asked, steps) in [
        (false, true, true, true),
        (false, true, false, false),
        (false, false, true, false),
        (true, true, true, false),
        (true, false, true, false),
    ] {
        let mut m = Machine::new(&ALL);
        m.v.set_nmi_masked(masked);
        m.v.set_interrupt_shadow(shadow);
        m.v.set_nmi_window(asked);
        m.enter(move |vmcb| assert_eq!(vmcb.save.rflags & 0x100 != 0, steps, "{masked} {shadow} {asked}"));
    }
}

/// An opened MSR is written without an exit, SPEC_CTRL read too; nothing else opens.
#[test]
fn opened_msrs() {
    for set in Opened::all() {
        let (mut closed, mut map) = (vec![0; SIZE], vec![0; SIZE]);
        fill(&mut closed, [].into_iter());
        fill(&mut map, [].into_iter());
        open(&mut map, set);
        let mut wanted = closed;
        for (one, msr, bits) in
            [(Opened::SPEC_CTRL, 0x48, 3), (Opened::PRED_CMD, 0x49, 2), (Opened::FLUSH_CMD, 0x10b, 2)]
        {
            let (byte, bit) = position(msr).unwrap();
            if set.has(one) {
                wanted[byte] &= !(bits << bit);
            }
        }
        assert!(map == wanted, "{set:?}");
    }
}

/// ASIDs are given once in a generation, from 1 to the last; then a new one begins, with a flush.
#[test]
fn asids_of_a_generation() {
    let cpu = PerCpu::none();
    cpu.enable(0, 4, 0);
    let taken: Vec<_> = (0..7).map(|_| cpu.take()).map(|a| (a.asid, a.flush_all, a.generation)).collect();
    let first = taken[0].2;
    let wanted = [
        (1, true, 0),
        (2, false, 0),
        (3, false, 0),
        (1, true, 1),
        (2, false, 1),
        (3, false, 1),
        (1, true, 2),
    ];
    assert_eq!(taken, wanted.map(|(asid, flush, generation)| (asid, flush, first + generation)));
}

/// What is on already stays on.
#[test]
fn asked_twice() {
    let mut m = Machine::new(&ALL);
    for _ in 0..2 {
        m.v.set_interrupt_shadow(true);
        m.v.set_bp_intercept(true);
        assert!(m.v.interrupt_shadow());
        assert_ne!(m.v.control().intercept_exceptions & 1 << 3, 0);
    }
    m.v.set_interrupt_shadow(false);
    m.v.set_bp_intercept(false);
    assert_eq!((m.v.interrupt_shadow(), m.v.control().intercept_exceptions & 1 << 3), (false, 0));
}

/// A debugger's step traps also where the guest steps itself.
#[test]
fn a_step_of_both() {
    let mut m = Machine::new(&ALL);
    m.v.set_step(true);
    for flags in [0x102, 2] {
        m.v.set_rflags(flags);
        assert_eq!(m.v.rflags(), flags);
        m.enter(|vmcb| assert_ne!(vmcb.save.rflags & 0x100, 0));
    }
}

/// What the guest does by its owner's wish without an exit, each by itself: no other intercept moves.
#[test]
fn in_guest() {
    use exitless_vcpu::backend::InGuest;
    use exitless_x86::svm::{intercept1, intercept2};
    let intercepts = |own| {
        let m = Machine::with(&ALL, own);
        (m.v.control().intercept1, m.v.control().intercept2)
    };
    let (one, two) = intercepts(InGuest::default());
    assert!(one & intercept1::HLT != 0 && one & intercept1::PAUSE != 0 && two & intercept2::MWAIT != 0);
    let own = InGuest::default();
    assert_eq!(intercepts(InGuest { hlt: true, ..own }), (one & !intercept1::HLT, two));
    assert_eq!(intercepts(InGuest { pause: true, ..own }), (one & !intercept1::PAUSE, two));
    let monitor = intercept2::MONITOR | intercept2::MWAIT;
    assert_eq!(intercepts(InGuest { mwait: true, ..own }), (one, two & !monitor));
    // Residencies are Intel's: the maps stay as they are.
    let mut m = Machine::with(&ALL, InGuest { cstates: true, ..own });
    for (set, maps) in [(Opened::CSTATES, 0x2000), (Opened::CSTATES.put(Opened::SPEC_CTRL, true), 0x10_2000)]
    {
        m.v.set_opened(set);
        assert_eq!(m.v.control().msrpm_base_pa, maps);
    }
}

/// The filter of PAUSE loops follows what the hall says, as far as its 16 bits go; where there is none, nothing is written.
#[test]
fn pause_filter() {
    use exitless_vcpu::backend::InGuest;
    let mut m = Machine::new(&ALL);
    for (longer, count) in [(true, 6000), (true, 12000), (false, 3000)] {
        m.v.spin_longer(longer);
        assert_eq!(m.v.control().pause_filter_count, count);
    }
    (0..40).for_each(|_| m.v.spin_longer(true));
    assert_eq!(m.v.control().pause_filter_count, u16::MAX);
    let mut m = Machine::with(&ALL, InGuest { pause: true, ..InGuest::default() });
    m.v.spin_longer(false);
    assert_eq!(m.v.control().pause_filter_count, 0);
}

/// RIP moves behind the instruction by itself where nothing but RIP moves.
#[test]
fn steps_over_where_nothing_follows() {
    let mut m = Machine::new(&ALL);
    m.v.set_rip(0x1000);
    m.enter(|vmcb| (vmcb.control.exit_code, vmcb.control.next_rip) = (0x72, 0x1002));
    assert!(m.v.skip_instruction());
    assert_eq!(m.v.rip(), 0x1002);
    for flags in [0x100u64, 0x1_0000] {
        m.v.set_rflags(flags | 2);
        assert!(!m.v.skip_instruction());
    }
    m.v.set_rflags(2);
    m.v.set_interrupt_shadow(true);
    assert!(!m.v.skip_instruction());
    assert_eq!(m.v.rip(), 0x1002);
}
