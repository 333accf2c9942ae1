//! The MSR table and its rules, MTRRs and machine check.
mod fake;

use exitless_policy::mce::{MAX_BANKS, Mce, SUPPORTED};
use exitless_policy::msr::{
    Guest, MsrKind, TABLE, check_read, check_write, feature_list, find, index_list, lookup, passthrough,
};
use exitless_policy::mtrr::{CAP, Mtrrs, PAT_RESET, pat_valid};
use exitless_policy::{GuestCaps, Invalid, Origin, canonical};
use exitless_x86::cpuid::vendor;
use exitless_x86::msr::Msr;
use fake::{everything, host_caps, nothing, zen3};
use proptest::prelude::*;
use std::collections::BTreeSet;

/// The lookup is a binary search: a row out of order, or two for one number, would make MSRs vanish.
#[test]
fn the_table_is_sorted_without_overlap() {
    for w in TABLE.windows(2) {
        assert!(w[0].numbers().end <= w[1].msr.0, "{:?} and {:?}", w[0].msr, w[1].msr);
    }
}

/// The shortcuts of the lookup say what the table says.
#[test]
fn lookup_agrees_with_the_table() {
    for msr in TABLE.iter().flat_map(|r| r.numbers()) {
        assert_eq!(Some(lookup(msr)), find(msr).map(|(_, k)| k), "{msr:#x}");
    }
    assert_eq!(lookup(0x6e0), MsrKind::TscDeadline);
    assert_eq!(lookup(0x830), MsrKind::X2Apic(0x30));
    assert_eq!(lookup(0x8ff), MsrKind::X2Apic(0xff));
    assert_eq!(lookup(0x900), MsrKind::Unknown);
    assert_eq!(lookup(0x7ff), MsrKind::Unknown);
    assert_eq!(lookup(0x20f), MsrKind::MtrrVariable(15));
    assert_eq!(lookup(0x210), MsrKind::Unknown);
    assert_eq!(lookup(0x259), MsrKind::MtrrFixed(2));
    assert_eq!(lookup(0x26f), MsrKind::MtrrFixed(10));
    assert_eq!(lookup(0x47f), MsrKind::McBank(127));
    assert_eq!(lookup(0x4b56_4d01), MsrKind::PvSystemTime(true));
    assert_eq!(lookup(0), MsrKind::Unknown);
    assert_eq!(lookup(u32::MAX), MsrKind::Unknown);
    assert_eq!(lookup(0x9e), MsrKind::Unknown, "SMBASE must not be listed without SMM");
}

/// What the list promises to every VMM: at most 228 entries, no duplicates, each readable, and settable to what it
/// reads after reset (QEMU aborts on the first it cannot set) and to zero (QEMU's initial value of most).
#[test]
fn index_list_is_short_readable_and_settable() {
    for host in [host_caps(&zen3()), host_caps(&everything(vendor::INTEL)), host_caps(&nothing())] {
        let list: Vec<u32> = index_list(&host).collect();
        assert!(list.len() <= 228 && !list.is_empty());
        assert_eq!(list.iter().collect::<BTreeSet<_>>().len(), list.len());
        for &msr in &list {
            let (row, kind) = find(msr).expect("listed");
            assert_eq!(check_read(msr, Origin::Host, &GuestCaps::default()), Ok(kind));
            for value in [row.reset, 0] {
                let stored = check_write(msr, value, Origin::Host, &GuestCaps::default());
                assert!(stored.is_ok() || kind == MsrKind::Pat && value == 0, "{msr:#x} = {value:#x}");
            }
        }
    }
    let list: BTreeSet<u32> = index_list(&host_caps(&zen3())).collect();
    for expected in
        [0x10, 0x11, 0x12, 0x3b, 0x48, 0x8b, 0x174, 0x1a0, 0x277, 0x6e0, 0xda0, 0xc000_0082, 0xc000_0103]
    {
        assert!(list.contains(&expected), "{expected:#x}");
    }
    // Seen with another module: listing 0x10A and refusing its value aborts `-cpu host`.
    for hidden in [0x9e, 0x34, 0x10a, 0xcf, 0x345, 0x49, 0x10b, 0x122, 0xc000_0104] {
        assert!(!list.contains(&hidden), "{hidden:#x}");
    }
    assert!(!index_list(&host_caps(&nothing())).any(|m| m == 0x48), "no SPEC_CTRL without hardware");
}

/// IA32_XSS has no component that guests could have, and exists with XSAVES; user space may always clear it.
#[test]
fn xss() {
    let has = host_caps(&zen3());
    let mut lacks = has;
    lacks.xsaves = false;
    for origin in [Origin::Guest, Origin::Host] {
        assert_eq!(check_write(0xda0, 0, origin, &has), Ok((MsrKind::Const(0), 0)));
        assert_eq!(check_write(0xda0, 1 << 11, origin, &has), Err(Invalid));
        assert_eq!(check_read(0xda0, origin, &has), Ok(MsrKind::Const(0)));
    }
    assert_eq!(check_read(0xda0, Origin::Guest, &lacks), Err(Invalid));
    assert!(check_write(0xda0, 0, Origin::Host, &lacks).is_ok());
}

/// A guest that reaches SPEC_CTRL without an exit may set what its CPUID hides: user space can bring that elsewhere, as far as the
/// CPU there takes it.
#[test]
fn spec_ctrl_comes_back() {
    let mut caps = host_caps(&zen3());
    (caps.spec_ctrl, caps.spec_ctrl_hardware) = (1, 0x407);
    assert!(check_write(0x48, 0x406, Origin::Host, &caps).is_ok());
    assert_eq!(check_write(0x48, 0x406, Origin::Guest, &caps), Err(Invalid));
    assert_eq!(check_write(0x48, 0x8, Origin::Host, &caps), Err(Invalid));
}

/// QEMU asserts that the feature list is not empty. Guests read IA32_ARCH_CAPABILITIES if their CPUID has it, never write it, and
/// PERF_CAPABILITIES not at all; user space may do both, with what another host told the guest.
#[test]
fn feature_msrs() {
    let list = |amd| feature_list(amd).map(|m| m.0).collect::<Vec<_>>();
    assert_eq!((list(false), list(true)), (vec![0x8b, 0x10a, 0x345], vec![0x8b, 0x10a, 0x345, 0xc001_1029]));
    let has = host_caps(&everything(vendor::INTEL));
    let lacks = host_caps(&zen3());
    assert!(index_list(&has).any(|m| m == 0x10a));
    assert_eq!(check_read(0x10a, Origin::Guest, &has), Ok(MsrKind::ArchCapabilities));
    assert_eq!(check_read(0x10a, Origin::Guest, &lacks), Err(Invalid));
    assert_eq!(check_write(0x10a, 1, Origin::Guest, &has), Err(Invalid));
    assert_eq!(check_write(0x10a, 8, Origin::Host, &lacks), Ok((MsrKind::ArchCapabilities, 8)));
    assert_eq!(check_read(0x345, Origin::Guest, &has), Err(Invalid));
    assert_eq!(check_read(0x345, Origin::Host, &has), Ok(MsrKind::Const(0)));
}

/// The boot sets of kvmtool, Firecracker and Cloud Hypervisor, and QEMU's reset set: each write accepted.
#[test]
fn vmm_boot_writes_are_accepted() {
    let caps = host_caps(&zen3());
    let ones = !0u64;
    let mut sets = vec![(0x1a0, 1), (0x2ff, 0x806), (0x10, 0), (0x1b, 0xfee0_0900), (0x277, PAT_RESET)];
    sets.extend([0x174, 0x175, 0x176, 0xc000_0081, 0xc000_0082, 0xc000_0083, 0xc000_0084].map(|m| (m, 0)));
    sets.extend([0xc000_0102, 0x3b, 0x48, 0xc000_0103, 0xc001_0015, 0xc001_0117, 0x11, 0x12].map(|m| (m, 0)));
    sets.extend([0x4b56_4d03, 0x4b56_4d04, 0x17a, 0x6e0].map(|m| (m, 0)));
    sets.extend((0x400..0x428).step_by(4).map(|m| (m, ones)));
    sets.push((0x17b, ones));
    for (msr, value) in sets {
        for origin in [Origin::Host, Origin::Guest] {
            assert!(check_write(msr, value, origin, &caps).is_ok(), "{msr:#x} = {value:#x} by {origin:?}");
        }
    }
}

/// What Linux does on AMD at boot without a net under it (rdmsr, not rdmsr_safe): refusing logs a splat.
#[test]
fn linux_finds_what_it_reads_unchecked() {
    let caps = host_caps(&zen3());
    for msr in [0x8b, 0xc001_0015, 0xc001_0010, 0xc001_1029, 0xfe, 0x179, 0x1b, 0xc000_0080, 0x277] {
        assert!(check_read(msr, Origin::Guest, &caps).is_ok(), "{msr:#x}");
    }
    assert_eq!(check_read(0xc001_1029, Origin::Guest, &caps), Ok(MsrKind::Const(2)), "LFENCE serialises");
    assert!(check_write(0xc001_1029, 2, Origin::Guest, &caps).is_ok());
    assert_eq!(check_write(0xc001_1029, 0x200, Origin::Guest, &caps), Err(Invalid));
    assert_eq!(check_read(0xc001_0114, Origin::Guest, &caps), Ok(MsrKind::Const(0x18)), "SVM off and locked");
    // With LS_CFG readable Linux would try to switch SSBD through it.
    assert_eq!(check_read(0xc001_1020, Origin::Guest, &caps), Err(Invalid));
}

/// The guest's CPUID decides for the guest and not for the VMM that restores it.
#[test]
fn hidden_features_hide_their_msrs() {
    let none = GuestCaps::default();
    for msr in [0x48, 0x3b, 0x6e0, 0xc000_0103, 0x4b56_4d01, 0x12, 0x4b56_4d03, 0xc000_0082] {
        assert_eq!(check_read(msr, Origin::Guest, &none), Err(Invalid), "{msr:#x}");
        assert_eq!(check_write(msr, 0, Origin::Guest, &none), Err(Invalid), "{msr:#x}");
        assert!(
            check_read(msr, Origin::Host, &none).is_ok() && check_write(msr, 0, Origin::Host, &none).is_ok()
        );
    }
    assert_eq!(check_write(0x49, 1, Origin::Guest, &none), Err(Invalid));
    assert_eq!(check_read(0x49, Origin::Host, &host_caps(&zen3())), Err(Invalid), "PRED_CMD cannot be read");
}

/// One line per value rule: (MSR, accepted, stored as, refused).
#[test]
fn value_rules() {
    let caps = host_caps(&zen3());
    let hole = 0x0000_8000_0000_0000u64;
    for (msr, good, stored, bad) in [
        (Msr::LSTAR, 0xffff_8000_0000_0000, 0xffff_8000_0000_0000, hole),
        (Msr::CSTAR, 0x7fff_ffff_ffff, 0x7fff_ffff_ffff, hole),
        (Msr::KERNEL_GS_BASE, !0, !0, hole),
        (Msr::PAT, 0x0007_0401_0506_0001, 0x0007_0401_0506_0001, 2),
        (Msr::SPEC_CTRL, 0x87, 0x87, 0x8),
        (Msr::PRED_CMD, 1, 1, 2),
        (Msr::DEBUGCTL, 3, 0, 4),
        (Msr::HWCR, 1 << 24 | 1 << 3, 1 << 24, 1 << 30),
        (Msr::HWCR, 1 << 18 | 1 << 6 | 1 << 8, 1 << 18, 1 << 4),
        (Msr(0x4b56_4d02), 0x104f, 0x104f, 0x1011),
        (Msr(0x4b56_4d02), 0, 0, 0x1021),
        (Msr(0x4b56_4d06), 0xff, 0xff, 0x100),
        (Msr(0x4b56_4d03), 0x1041, 0x1041, 0x1003),
        (Msr(0x4b56_4d04), 0x1005, 0x1005, 0x1003),
        (Msr::MISC_FEATURES_ENABLES, 0, 0, 1),
    ] {
        assert_eq!(check_write(msr.0, good, Origin::Guest, &caps), Ok((lookup(msr.0), stored)), "{msr:?}");
        assert_eq!(check_write(msr.0, bad, Origin::Guest, &caps), Err(Invalid), "{msr:?}");
    }
    assert_eq!(check_write(Msr::BIOS_SIGN_ID.0, 5, Origin::Guest, &caps), Ok((MsrKind::Const(0), 0)));
    assert_eq!(check_write(Msr::BIOS_SIGN_ID.0, 5, Origin::Host, &caps), Ok((MsrKind::UcodeRev, 5)));
    assert_eq!(check_write(Msr::MTRRCAP.0, CAP, Origin::Guest, &caps), Err(Invalid));
    assert_eq!(check_write(Msr::MTRRCAP.0, CAP, Origin::Host, &caps), Ok((MsrKind::Const(CAP), CAP)));
    assert_eq!(
        check_write(Msr::MTRRCAP.0, 0, Origin::Host, &caps),
        Ok((MsrKind::Const(CAP), 0)),
        "saved elsewhere"
    );
    assert_eq!(
        check_write(Msr::MCG_CAP.0, SUPPORTED | 1, Origin::Host, &caps),
        Err(Invalid),
        "KVM_X86_SETUP_MCE's"
    );
    assert!(
        check_write(Msr::K7_EVNTSEL0.0, 0x53_0076, Origin::Guest, &caps).is_ok(),
        "PMU probes are dropped"
    );
    assert!(check_write(Msr::K7_EVNTSEL0.0, 0x53_0076, Origin::Host, &caps).is_ok());
    assert!(canonical(0x00ff_ffff_ffff_ffff, true) && !canonical(0x00ff_ffff_ffff_ffff, false));
}

/// Registers that hang on one ability, with the values that they take.
#[test]
fn registers_of_one_ability() {
    let mut caps = GuestCaps::default();
    // Asynchronous page faults without the interrupt are a feature of their own.
    caps.pv = 1 << 4;
    for (value, origin, taken) in
        [(9, Origin::Guest, false), (1, Origin::Guest, true), (9, Origin::Host, true)]
    {
        assert_eq!(check_write(0x4b56_4d02, value, origin, &caps).is_ok(), taken);
    }
    assert_eq!(check_read(0x4b56_4d07, Origin::Guest, &caps), Err(Invalid));
    caps.pv = 0;
    assert_eq!(check_write(0x4b56_4d02, 0, Origin::Guest, &caps), Err(Invalid));
    assert_eq!(check_write(Msr::FLUSH_CMD.0, 1, Origin::Guest, &caps), Err(Invalid));
    caps.flush_l1d = true;
    for (value, ok) in [(0, true), (1, true), (2, false)] {
        assert_eq!(check_write(Msr::FLUSH_CMD.0, value, Origin::Guest, &caps).is_ok(), ok, "{value}");
    }
    for (rdtscp, rdpid) in [(true, false), (false, true)] {
        (caps.rdtscp, caps.rdpid) = (rdtscp, rdpid);
        let write =
            |value| check_write(Msr::TSC_AUX.0, value, Origin::Guest, &caps).map(|(_, stored)| stored);
        assert_eq!([write(5), write(1 << 32)], [Ok(5), Err(Invalid)], "{rdtscp} {rdpid}");
    }
}

/// A guest writes these without an exit, so what its processor takes must be settable: AMD's takes any SYSENTER address, and its VMM
/// may bring one to an Intel host, whose next entry would fail with it. A processor with 57-bit addresses takes those from a guest
/// that has 48.
#[test]
fn what_hardware_took_can_be_set() {
    let odd = 0x1234_8765_4321_5678;
    let amd = host_caps(&zen3());
    let intel = host_caps(&everything(vendor::INTEL));
    let (mut narrow, mut only_hardware) = (intel, intel);
    (narrow.wide, only_hardware.la57) = (false, false);
    for m in [Msr::SYSENTER_ESP, Msr::SYSENTER_EIP] {
        let write = |origin, caps: &GuestCaps| check_write(m.0, odd, origin, caps).map(|(_, stored)| stored);
        assert_eq!([Origin::Guest, Origin::Host].map(|o| write(o, &amd)), [Ok(odd); 2]);
        assert_eq!(write(Origin::Guest, &narrow), Err(Invalid));
        assert!(check_write(m.0, 0x7fff_ffff_ffff, Origin::Guest, &narrow).is_ok());
        assert_eq!(write(Origin::Host, &narrow), Ok(0xffff_8765_4321_5678));
        assert_eq!(write(Origin::Host, &intel), Ok(0x0034_8765_4321_5678), "57 bits");
    }
    let wide = 0x00ff_ffff_ffff_fff8;
    for m in [Msr::LSTAR, Msr::CSTAR, Msr::KERNEL_GS_BASE, Msr::FS_BASE, Msr::GS_BASE] {
        let write = |caps: &GuestCaps| check_write(m.0, wide, Origin::Host, caps).is_ok();
        assert!(write(&only_hardware) && !write(&narrow) && !write(&amd), "{m:?}");
    }
    let write =
        |m: Msr, caps: &GuestCaps| check_write(m.0, !0, Origin::Guest, caps).map(|(_, stored)| stored);
    assert_eq!([&amd, &intel].map(|c| write(Msr::SFMASK, c)), [Ok(!0), Ok(0xffff_ffff)]);
    assert_eq!([&amd, &intel].map(|c| write(Msr::TSC_AUX, c)), [Ok(0xffff_ffff), Err(Invalid)]);
}

/// An exit saved must not be a hole: only registers that hardware switches with the guest and that no value can make
/// harmful are passed through; the timer, the APIC, SPEC_CTRL and EFER never are.
#[test]
fn passthrough_is_what_the_backend_switches() {
    let open: BTreeSet<u32> = passthrough().collect();
    let expected =
        [0x174, 0x175, 0x176, 0xc000_0081, 0xc000_0082, 0xc000_0083, 0xc000_0084, 0xc000_0100, 0xc000_0101];
    assert_eq!(open, expected.into_iter().chain([0xc000_0102]).collect());
    for row in TABLE.iter().filter(|r| r.passthrough) {
        assert_eq!(row.guest, Guest::ReadWrite);
    }
}

proptest! {
    /// Any number, any value, anyone: an answer, and what was stored is accepted again (save and restore).
    #[test]
    fn any_access_has_an_answer(msr: u32, value: u64, pick in 0usize..TABLE.len(), near: bool, host: bool) {
        let caps = host_caps(&zen3());
        let msr = if near { TABLE[pick].msr.0 + msr % TABLE[pick].count } else { msr };
        let origin = if host { Origin::Host } else { Origin::Guest };
        let _ = check_read(msr, origin, &caps);
        if let Ok((kind, stored)) = check_write(msr, value, origin, &caps)
            && kind == lookup(msr)
        {
            prop_assert_eq!(check_write(msr, stored, Origin::Host, &caps), Ok((kind, stored)));
        }
    }

    /// What an MTRR accepted reads back, and is accepted again.
    #[test]
    fn mtrrs_round_trip(i in 0u8..16, fixed in 0u8..11, value: u64) {
        let mut m = Mtrrs::default();
        for kind in [MsrKind::MtrrVariable(i), MsrKind::MtrrFixed(fixed), MsrKind::MtrrDefType] {
            let before = m.read(kind);
            match m.write(kind, value, 48) {
                Ok(()) => prop_assert_eq!(m.read(kind), Ok(value)),
                Err(Invalid) => prop_assert_eq!(m.read(kind), before),
            }
        }
    }
}

/// The SDM's validity rules, at their edges.
#[test]
fn mtrr_rules() {
    let mut m = Mtrrs::default();
    for (kind, value, ok) in [
        (MsrKind::MtrrDefType, 0x806, true),
        (MsrKind::MtrrDefType, 0xc06, true),
        (MsrKind::MtrrDefType, 0xc02, false),
        (MsrKind::MtrrDefType, 0x1006, false),
        (MsrKind::MtrrFixed(0), 0x0605_0401_0006_0606, true),
        (MsrKind::MtrrFixed(0), 0x0607_0401_0006_0606, false),
        (MsrKind::MtrrFixed(11), 0, false),
        (MsrKind::MtrrVariable(0), 0xc000_0006, true),
        (MsrKind::MtrrVariable(0), 0xc000_0106, false),
        (MsrKind::MtrrVariable(0), 1 << 40, false),
        (MsrKind::MtrrVariable(1), 0xff_c000_0800, true),
        (MsrKind::MtrrVariable(1), 0x1ff_c000_0800, false),
        (MsrKind::MtrrVariable(1), 0xc000_0801, false),
        (MsrKind::MtrrVariable(1), 0xc000_0400, false),
        (MsrKind::MtrrVariable(16), 0, false),
        (MsrKind::Tsc, 0, false),
    ] {
        assert_eq!(m.write(kind, value, 40).is_ok(), ok, "{kind:?} = {value:#x}");
    }
    let read = |kind| m.read(kind).ok();
    let kinds =
        [MsrKind::MtrrDefType, MsrKind::MtrrFixed(0), MsrKind::MtrrVariable(0), MsrKind::MtrrVariable(1)];
    let stored = [0xc06, 0x0605_0401_0006_0606, 0xc000_0006, 0xff_c000_0800].map(Some);
    assert_eq!(kinds.map(read), stored);
    assert_eq!([MsrKind::MtrrFixed(11), MsrKind::MtrrVariable(16), MsrKind::Tsc].map(read), [None; 3]);
    assert!(pat_valid(PAT_RESET) && pat_valid(0x0007_0601_0405_0600));
    assert!(!pat_valid(2) && !pat_valid(3 << 56) && !pat_valid(8 << 8));
}

/// QEMU's sequence: SETUP_MCE with ten banks, MCG_CTL and each bank's CTL all ones, the rest zero.
#[test]
fn machine_check_as_qemu_sets_it_up() {
    let mut m: Mce = bytemuck::Zeroable::zeroed();
    m.init();
    assert_eq!(m.cap() & 0xff, MAX_BANKS as u64);
    assert_eq!(m.setup(0x0100_010a & SUPPORTED | 10), Ok(()));
    assert_eq!(m.read(MsrKind::McgCap, Origin::Guest), Ok(0x0100_010a));
    assert_eq!(m.read(MsrKind::McBank(36), Origin::Guest), Ok(!0));
    assert_eq!(m.read(MsrKind::McBank(40), Origin::Guest), Err(Invalid), "the eleventh bank");
    assert_eq!(m.write(MsrKind::McBank(40), 0, Origin::Host, false), Err(Invalid));
    assert_eq!(m.write(MsrKind::McgCtl, !0, Origin::Host, false), Ok(()));
    assert_eq!(m.write(MsrKind::McgCtl, 5, Origin::Host, false), Err(Invalid));
    assert_eq!(m.write(MsrKind::McBank(0), !0 ^ 1 << 10, Origin::Guest, false), Ok(()));
    assert_eq!(m.write(MsrKind::McBank(0), 2, Origin::Guest, false), Err(Invalid));
    assert_eq!(m.write(MsrKind::McBank(1), 5, Origin::Guest, false), Err(Invalid));
    assert_eq!(m.write(MsrKind::McBank(1), 5, Origin::Guest, true), Ok(()), "HWCR.McStatusWrEn");
    assert_eq!(m.write(MsrKind::McBank(2), 5, Origin::Guest, false), Ok(()));
    for good in [!0, !0 ^ 1] {
        assert_eq!(m.write(MsrKind::McBank(0), good, Origin::Guest, false), Ok(()));
    }
    for status in [(0, Origin::Guest, false), (7, Origin::Host, false)] {
        assert_eq!(m.write(MsrKind::McBank(1), status.0, status.1, status.2), Ok(()), "{status:?}");
    }
    assert_eq!(m.write(MsrKind::McgStatus, 4, Origin::Guest, false), Ok(()));
    assert_eq!(m.read(MsrKind::McgStatus, Origin::Guest), Ok(4));
    let registers = (1..40).filter(|i| i % 4 != 0).map(MsrKind::McBank);
    for (kind, value) in registers.clone().zip(100..) {
        assert_eq!(m.write(kind, value, Origin::Host, false), Ok(()));
    }
    for (kind, value) in registers.zip(100..) {
        assert_eq!(m.read(kind, Origin::Guest), Ok(value), "{kind:?}");
    }
    for bad in [0, 33, 1 << 9 | 1, 1 << 27 | 1] {
        assert_eq!(m.setup(bad), Err(Invalid), "{bad:#x}");
    }
    m.init();
    assert_eq!(m.read(MsrKind::McgCtl, Origin::Guest), Err(Invalid), "MCG_CTL_P is clear");
    assert_eq!(m.read(MsrKind::McgCtl, Origin::Host), Ok(0), "but it is listed");
    assert_eq!(m.setup(MAX_BANKS as u64), Ok(()));
    assert_eq!(m.read(MsrKind::McgCtl, Origin::Host), Ok(0), "no MCG_CTL to set up");
    assert_eq!(m.setup(SUPPORTED | 1), Ok(()));
    assert_eq!(m.read(MsrKind::McgCtl, Origin::Guest), Ok(!0));
}

/// CPUID, RDPMC and the MSRs tell the same of counters: what RDPMC finds is an MSR that reads so, and what CPUID hides is neither.
#[test]
fn counters_agree() {
    use exitless_policy::Vendor;
    use exitless_policy::pmu::rdpmc;
    for (vendor, perfctr_core, count) in
        [(Vendor::Amd, false, 4), (Vendor::Amd, true, 6), (Vendor::Intel, false, 0), (Vendor::Intel, true, 0)]
    {
        let mut caps = GuestCaps::default();
        (caps.vendor, caps.perfctr_core) = (vendor, perfctr_core);
        for index in (0..16).chain([0x4000_0000, 0x8000_0000, u32::MAX]) {
            assert_eq!(rdpmc(index, &caps).is_ok(), index < count, "{vendor:?} {index}");
        }
        for index in 0..6 {
            let core = check_read(0xc001_0201 + 2 * index, Origin::Guest, &caps);
            assert_eq!(core, if perfctr_core { Ok(MsrKind::Const(0)) } else { Err(Invalid) });
            if let Ok(value) = rdpmc(index, &caps) {
                let msr = if index < 4 { 0xc001_0004 + index } else { 0xc001_0201 + 2 * index };
                assert_eq!(check_read(msr, Origin::Guest, &caps), Ok(MsrKind::Const(value)));
            }
        }
    }
}
