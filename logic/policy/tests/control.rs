//! Control registers, EFER, XCR0, APIC_BASE: the manual's rules, each with the guest that breaks it.
mod fake;

use exitless_policy::control::{
    Cr0Write, Mode, check_cr0, check_cr3, check_cr4, check_dr6, check_dr7, check_state, check_xcr0,
    efer_write,
};
use exitless_policy::{GuestCaps, Invalid, Origin};
use exitless_x86::cpuid::vendor;
use exitless_x86::regs::{cr0, cr4, efer};
use fake::{everything, host_caps, zen3};
use proptest::prelude::*;

const PROTECTED: u64 = cr0::PE | cr0::ET;
const PAGED: u64 = PROTECTED | cr0::PG | cr0::WP;

fn caps() -> GuestCaps {
    host_caps(&zen3())
}

fn long() -> Mode {
    Mode { cr0: PAGED, cr3: 0x1000, cr4: cr4::PAE, efer: efer::LME | efer::LMA, cs_long: true }
}

/// The way every 64-bit kernel takes: PAE, LME, PG; LMA comes with PG and not with EFER.
#[test]
fn into_long_mode_and_out() {
    let c = caps();
    let mut m = Mode { cr0: PROTECTED, ..Mode::default() };
    assert_eq!(check_cr4(cr4::PAE, &m, &c), Ok(false));
    m.cr4 = cr4::PAE;
    m.efer = efer_write(0, efer::LME, m.cr0, Origin::Guest, &c).expect("LME");
    assert_eq!(m.efer, efer::LME);
    let w = check_cr0(PAGED, &m).expect("PG");
    assert_eq!(w, Cr0Write { cr0: PAGED, efer: efer::LME | efer::LMA, load_pdptes: false });
    m = Mode { cr0: w.cr0, efer: w.efer, ..m };
    assert_eq!(
        efer_write(m.efer, 0, m.cr0, Origin::Guest, &c),
        Err(Invalid),
        "LME cannot change under paging"
    );
    assert_eq!(
        efer_write(m.efer, efer::LME, m.cr0, Origin::Guest, &c),
        Ok(efer::LME | efer::LMA),
        "LMA stays"
    );
    let compat = check_cr0(PROTECTED, &m).expect("paging off in compatibility mode");
    assert_eq!(compat.efer, efer::LME);
    assert_eq!(check_cr0(PROTECTED, &Mode { cs_long: true, ..m }), Err(Invalid), "paging off in 64-bit mode");
}

/// Each refused combination of CR0, one line each.
#[test]
fn cr0_rules() {
    let real = Mode::default();
    assert!(check_cr0(0x6000_0010, &real).is_ok(), "the reset value");
    assert_eq!(check_cr0(1 << 32, &real), Err(Invalid));
    assert_eq!(check_cr0(cr0::PG, &real), Err(Invalid), "PG without PE");
    assert_eq!(check_cr0(cr0::NW, &real), Err(Invalid), "NW without CD");
    assert_eq!(check_cr0(1 << 7, &real).map(|w| w.cr0), Ok(cr0::ET), "undefined bits vanish, ET stays");
    let lme = Mode { cr0: PROTECTED, efer: efer::LME, ..real };
    assert_eq!(check_cr0(PAGED, &lme), Err(Invalid), "long mode without PAE");
    assert_eq!(
        check_cr0(PAGED, &Mode { cr4: cr4::PAE, cs_long: true, ..lme }),
        Err(Invalid),
        "from a long CS"
    );
    let pcid = Mode { cr4: cr4::PAE | cr4::PCIDE, cs_long: false, ..long() };
    assert_eq!(check_cr0(PROTECTED, &pcid), Err(Invalid), "paging off under PCIDE");
    let cet = Mode { cr4: cr4::PAE | cr4::CET, ..long() };
    assert_eq!(check_cr0(PAGED & !cr0::WP, &cet), Err(Invalid), "WP off under CET");
    let pae = Mode { cr0: PROTECTED, cr4: cr4::PAE, ..real };
    assert!(check_cr0(PAGED, &pae).expect("PAE paging").load_pdptes);
    assert!(!check_cr0(PAGED, &Mode { cr0: PAGED, ..pae }).expect("again").load_pdptes);
    assert!(check_cr0(PAGED | cr0::CD, &Mode { cr0: PAGED, ..pae }).expect("CD").load_pdptes);
}

/// Each refused combination of CR4.
#[test]
fn cr4_rules() {
    let c = caps();
    assert_eq!(check_cr4(cr4::PAE | cr4::LA57, &Mode::default(), &c), Err(Invalid), "no LA57 on this CPU");
    assert_eq!(check_cr4(cr4::VMXE, &Mode::default(), &c), Err(Invalid));
    assert_eq!(check_cr4(cr4::SMXE, &Mode::default(), &c), Err(Invalid));
    assert_eq!(check_cr4(1 << 40, &Mode::default(), &c), Err(Invalid));
    assert_eq!(check_cr4(0, &long(), &c), Err(Invalid), "PAE off in long mode");
    assert_eq!(check_cr4(cr4::PAE | cr4::PCIDE, &Mode { cr3: 0x1001, ..long() }, &c), Err(Invalid));
    assert_eq!(check_cr4(cr4::PAE | cr4::PCIDE, &long(), &c), Ok(false));
    assert_eq!(check_cr4(cr4::PCIDE, &Mode::default(), &c), Err(Invalid), "PCIDE outside long mode");
    // Once on, PCIDE stays valid with a PCID in CR3.
    let on = Mode { cr3: 0x1001, cr4: cr4::PAE | cr4::PCIDE, ..long() };
    assert_eq!(check_cr4(cr4::PAE | cr4::PCIDE | cr4::PGE, &on, &c), Ok(false));
    let mut wide = host_caps(&everything(vendor::INTEL));
    assert!(wide.la57);
    assert_eq!(check_cr4(cr4::PAE | cr4::LA57, &long(), &wide), Err(Invalid), "LA57 in long mode");
    assert_eq!(check_cr4(cr4::PAE | cr4::LA57, &Mode::default(), &wide), Ok(false));
    wide.cr4_allowed |= cr4::CET;
    assert_eq!(check_cr4(cr4::CET, &Mode::default(), &wide), Err(Invalid), "CET without WP");
    let pae = Mode { cr0: PAGED, cr4: cr4::PAE, ..Mode::default() };
    assert_eq!(check_cr4(cr4::PAE | cr4::PGE, &pae, &c), Ok(true), "PDPTEs are loaded again");
    assert_eq!(check_cr4(cr4::PAE | cr4::OSFXSR, &pae, &c), Ok(false));
    for bit in [cr4::PSE, cr4::SMEP] {
        assert_eq!(check_cr4(cr4::PAE | bit, &pae, &c), Ok(true), "{bit:#x}");
    }
    let legacy = Mode { cr0: PAGED, ..Mode::default() };
    assert_eq!(check_cr4(cr4::PGE, &legacy, &c), Ok(false), "without PAE there are none");
    assert_eq!(check_cr0(PROTECTED, &pae).map(|w| w.load_pdptes), Ok(false), "nor without paging");
}

/// CR3 and the debug registers.
#[test]
fn small_registers() {
    let c = caps();
    assert_eq!(check_cr3(1 << 48, &long(), &c), Err(Invalid));
    assert_eq!(check_cr3(1 << 47, &long(), &c).map(|w| w.cr3), Ok(1 << 47));
    assert_eq!(check_cr3(1 << 63, &long(), &c), Err(Invalid), "bit 63 without PCIDE");
    let pcid = Mode { cr4: cr4::PAE | cr4::PCIDE, ..long() };
    let w = check_cr3(1 << 63 | 0x2005, &pcid, &c).expect("keep translations");
    assert_eq!((w.cr3, w.no_flush), (0x2005, true));
    assert_eq!(check_cr3(0x2005, &pcid, &c).map(|w| w.no_flush), Ok(false));
    assert_eq!((check_dr6(0), check_dr7(0)), (Ok(0xffff_0ff0), Ok(0x400)));
    assert_eq!((check_dr6(1 << 32), check_dr7(1 << 63)), (Err(Invalid), Err(Invalid)));
    assert_eq!(check_dr7(0xffff_ffff), Ok(0xffff_27ff));
}

/// EFER bits the guest lacks are #GP; the VMM restores LMA as saved.
#[test]
fn efer_rules() {
    let c = caps();
    for bit in [efer::SVME, efer::LMSLE, efer::TCE, efer::AUTOIBRS, 1 << 1, 1 << 63] {
        assert_eq!(efer_write(0, bit, 0, Origin::Guest, &c), Err(Invalid), "{bit:#x}");
    }
    let all = efer::SCE | efer::NXE | efer::LME | efer::FFXSR;
    assert_eq!(efer_write(0, all, 0, Origin::Guest, &c), Ok(all));
    assert_eq!(efer_write(0, all | efer::LMA, cr0::PG, Origin::Host, &c), Ok(all | efer::LMA));
    assert_eq!(efer_write(0, efer::NXE, 0, Origin::Guest, &GuestCaps::default()), Err(Invalid));
}

/// XSETBV: what raises #GP on hardware raises it here, or the host's XSETBV would.
#[test]
fn xcr0_rules() {
    let mut c = caps();
    assert_eq!(check_xcr0(0, 0x207, &c), Ok(0x207));
    for (index, value) in [(1, 1), (0, 0), (0, 2), (0, 5), (0, 0xe7), (0, 1 << 63 | 1)] {
        assert_eq!(check_xcr0(index, value, &c), Err(Invalid), "{index} {value:#x}");
    }
    c.xcr0 = 0x2e7;
    for (value, ok) in [(0xe7, true), (0x67, false), (0xe3, false), (0x201, true), (0x7, true)] {
        assert_eq!(check_xcr0(0, value, &c).is_ok(), ok, "{value:#x}");
    }
    assert_eq!(check_xcr0(0, 1, &GuestCaps::default()), Ok(1), "the reset value can always be restored");
}

/// How VMMs start vCPUs: real mode, flat 32-bit, 64-bit paged; and states no CPU can be in.
#[test]
fn whole_states() {
    let c = caps();
    let real = Mode { cr0: 0x6000_0010, ..Mode::default() };
    let flat = Mode { cr0: PROTECTED, ..Mode::default() };
    for good in [real, flat, long(), Mode { efer: efer::LME, ..flat }] {
        assert_eq!(check_state(&good, &c, &c), Ok(()), "{good:?}");
    }
    for bad in [
        Mode { efer: efer::LME, ..long() },
        Mode { efer: efer::LMA, cs_long: false, ..flat },
        Mode { cs_long: true, ..flat },
        Mode { cr4: 0, ..long() },
        Mode { cr3: 1 << 50, ..long() },
        Mode { cr0: cr0::PG, ..real },
        Mode { cr0: 1 << 32, ..real },
        Mode { efer: efer::SVME, ..real },
        Mode { cr4: cr4::VMXE, ..real },
    ] {
        assert_eq!(check_state(&bad, &c, &c), Err(Invalid), "{bad:?}");
    }
    // A small VMM sets no CPUID at all and still enters long mode.
    assert_eq!(check_state(&long(), &fake::caps(&[], None), &c), Ok(()));
}

proptest! {
    /// Whatever a guest writes in whatever order, the registers stay in a state the VMM could restore: the same rules
    /// judged with and without history agree, and VM entry cannot fail on them.
    #[test]
    fn guest_writes_never_reach_an_impossible_state(
        writes in prop::collection::vec((0u8..4, prop_oneof![
            any::<u64>(),
            prop::sample::subsequence(
                vec![0u64, 4, 5, 6, 7, 8, 10, 11, 12, 16, 17, 20, 29, 30, 31], 0..10
            ).prop_map(|b| b.iter().fold(0, |v, i| v | 1 << i)),
        ]), 0..40),
    ) {
        let c = host_caps(&everything(vendor::INTEL));
        let mut m = Mode { cr0: 0x6000_0010, ..Mode::default() };
        for (which, value) in writes {
            match which {
                0 => if let Ok(w) = check_cr0(value, &m) {
                    m.cr0 = w.cr0;
                    m.efer = w.efer;
                },
                1 => if check_cr4(value, &m, &c).is_ok() {
                    m.cr4 = value;
                },
                2 => if let Ok(v) = efer_write(m.efer, value, m.cr0, Origin::Guest, &c) {
                    m.efer = v;
                },
                // A far jump into or out of 64-bit code; possible in long mode only.
                _ => m.cs_long = value & 1 != 0 && m.efer & efer::LMA != 0,
            }
            prop_assert_eq!(check_state(&m, &c, &c), Ok(()), "{:x?}", m);
            let lma = m.efer & efer::LME != 0 && m.cr0 & cr0::PG != 0;
            prop_assert_eq!(m.efer & efer::LMA != 0, lma);
        }
    }
}
