//! AVIC in the VMCB: which bits and maps an entry has, and what its exits say.

use super::{ALL, Machine};
use crate::vcpu::AvicPages;
use crate::{Caps, msr_bitmap};
use bytemuck::Zeroable;
use core::ptr::NonNull;
use exitless_vcpu::backend::{ApicKind, ApicPage, Backend, Exit, InterruptStatus, Opened};
use exitless_x86::apic::reg;
use exitless_x86::svm::avic::Incomplete;
use exitless_x86::svm::{clean, int_ctl, intercept1};
use std::boxed::Box;
use std::vec;

const CAPS: Caps = Caps { avic: true, avic_ipis: true, ..ALL };

/// What the module allocates on such CPUs.
pub(super) fn pages(caps: &Caps) -> Option<AvicPages> {
    caps.avic.then(|| AvicPages {
        backing: NonNull::from(Box::leak(Box::new(ApicPage::zeroed()))),
        backing_pa: 0x7000,
        physical_pa: 0x8000,
        logical_pa: 0x9000,
    })
}

const ON: u32 = int_ctl::AVIC | int_ctl::X2AVIC;

/// The addresses stand from the start, though nothing is on; each kind has its bits and its maps, and the CPU hears of the change.
#[test]
fn what_an_entry_has() {
    let mut m = Machine::new(&CAPS);
    let c = m.v.control();
    assert_eq!((c.avic_vapic_bar, c.avic_backing_page), (0xfee0_0000, 0x7000));
    assert_eq!((c.avic_physical_id, c.avic_logical_id), (0x8000 | 511, 0x9000));
    assert_eq!((c.int_ctl & ON, c.msrpm_base_pa), (0, 0x2000));
    assert!(m.v.virtualizes_apic() && m.v.apic_page().is_some());
    for (kind, bits, maps) in [
        (ApicKind::X2Apic, ON, 0x100_2000),
        (ApicKind::X2ApicIpis, ON, 0x200_2000),
        (ApicKind::Software, 0, 0x2000),
    ] {
        m.exit(0x72, 0, 0);
        m.v.set_apic(kind);
        assert_eq!((m.v.control().int_ctl & ON, m.v.control().msrpm_base_pa), (bits, maps));
        m.v.set_opened(Opened::SPEC_CTRL);
        assert_eq!(m.v.control().msrpm_base_pa, maps + 0x10_0000, "with what the guest has for itself");
        m.v.set_opened(Opened::NONE);
        m.enter(move |vmcb| {
            assert_eq!(vmcb.control.clean & clean::AVIC, clean::AVIC, "the addresses have not changed");
            vmcb.control.exit_code = 0x72;
        });
    }
    let m = Machine::new(&ALL);
    assert!(!m.v.virtualizes_apic() && m.v.apic_page().is_none());
    assert_eq!((m.v.control().avic_backing_page, m.v.control().avic_physical_id), (0, 0));
}

/// V_TPR follows the page when the hall hands the APIC over: VMRUN does not read it there.
#[test]
fn v_tpr_is_the_pages() {
    let mut m = Machine::new(&CAPS);
    m.v.set_apic(ApicKind::X2Apic);
    m.v.apic_page().unwrap().write(reg::TPR, 0x5a);
    m.v.set_interrupt_status(InterruptStatus::default());
    assert_eq!((m.v.cr8(), m.v.control().int_ctl & int_ctl::V_TPR), (5, 5));
    assert_eq!(m.v.control().int_ctl & ON, ON);
}

/// With AVIC there is no virtual interrupt: none is asked for, and one asked for before is gone.
#[test]
fn no_window() {
    let mut m = Machine::new(&CAPS);
    m.v.set_interrupt_window(true);
    assert_ne!(m.v.control().int_ctl & int_ctl::V_IRQ, 0);
    m.v.set_apic(ApicKind::X2ApicIpis);
    m.v.set_interrupt_window(true);
    assert_eq!(m.v.control().int_ctl & int_ctl::V_IRQ, 0);
    assert_eq!(m.v.control().intercept1 & intercept1::VINTR, 0);
}

/// What the two exits say; without AVIC they are nobody's.
#[test]
fn exits() {
    let mut m = Machine::new(&CAPS);
    for kind in [ApicKind::Software, ApicKind::X2Apic, ApicKind::X2ApicIpis] {
        m.v.set_apic(kind);
        let on = kind != ApicKind::Software;
        let told = |exit, code| if on { exit } else { Exit::Unknown(code) };
        let icr = 0x5_0000_40fd;
        let incomplete = Exit::IncompleteIpi(icr, Incomplete::INVALID_TARGET);
        assert_eq!(m.exit(0x401, icr, 2 << 32 | 0x1ff), told(incomplete, 0x401));
        assert_eq!(m.exit(0x402, 1 << 32 | 0xb0, 0x31), told(Exit::Unaccelerated(0xb0, true), 0x402));
        assert_eq!(m.exit(0x402, 0xf00f_0390, 0), told(Exit::Unaccelerated(0x390, false), 0x402));
    }
}

/// TPR is the guest's, and the end of an interrupt; the ICR where CPUs send, and only to write. Everything else exits as before.
#[test]
fn maps() {
    for ipis in [false, true] {
        let mut map = vec![0xff; msr_bitmap::SIZE];
        msr_bitmap::open_x2avic(&mut map, ipis);
        let bits = |msr| {
            let (byte, bit) = msr_bitmap::position(msr).unwrap();
            map[byte] >> bit & 3
        };
        for msr in 0x7f0..0x910 {
            let intercepted = match msr {
                0x808 => 0,
                0x80b => 1,
                0x830 if ipis => 1,
                _ => 3,
            };
            assert_eq!(bits(msr), intercepted, "{msr:#x}");
        }
    }
}
