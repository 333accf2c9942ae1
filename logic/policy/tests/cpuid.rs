//! The supported list, the guest's lookup and the summary.
mod fake;

use exitless_kvm_abi::{KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};
use exitless_policy::cpuid::{
    CpuidIndex, Dynamic, Full, GuestCpuid, HostCpuid, MAX_SUPPORTED, emulated, supported,
};
use exitless_policy::{GuestCaps, Vendor};
use exitless_x86::cpuid::{CpuidResult, leaf, vendor, xcr0};
use exitless_x86::regs::{cr4, efer};
use fake::{Host, caps, everything, host_caps, index, list, nothing, r, zen3};
use proptest::prelude::*;

/// The entry for a leaf and sub-leaf in a list, `None` if absent.
fn get(l: &[kvm_cpuid_entry2], leaf: u32, sub: u32) -> Option<CpuidResult> {
    GuestCpuid::new(l, &index(l)).find(leaf, sub)
}

fn must(l: &[kvm_cpuid_entry2], leaf: u32, sub: u32) -> CpuidResult {
    get(l, leaf, sub).unwrap_or_else(|| panic!("leaf {leaf:#x}.{sub} is missing"))
}

/// What a guest may be given beyond the hardware's: RDPID only where its register exists.
#[test]
fn the_emulated_list() {
    for rdtscp in [false, true] {
        let mut host = GuestCaps::default();
        host.rdtscp = rdtscp;
        let list = emulated(&host);
        let words = list.map(|e| (e.function, e.flags, e.eax, e.ebx, e.ecx, e.edx));
        let rdpid = if rdtscp { 1 << 22 } else { 0 };
        assert_eq!(words, [(0, 0, 7, 0, 0, 0), (1, 0, 0, 0, 1 << 22, 0), (7, 1, 0, 0, rdpid, 0)]);
    }
}

/// A bit that slips through is a promise the module does not keep: a guest that sees VMX tries VMXON, one that sees a
/// PMU programs it, one that sees AMX overruns `kvm_xsave`.
#[test]
fn nothing_leaks_from_hardware_that_has_everything() {
    for v in [vendor::INTEL, vendor::AMD] {
        let l = list(&everything(v));
        let l1 = must(&l, 1, 0);
        // MONITOR, DTES64, DS-CPL, VMX, SMX, EIST, TM2, CNXT-ID, SDBG, xTPR, PDCM, DCA, OSXSAVE
        assert_eq!(l1.ecx & (0x8 | 0x4 | 0x10 | 0x20 | 0x40 | 0x80 | 0x100 | 0x400 | 0x800 | 0x4000), 0);
        assert_eq!(l1.ecx & (1 << 15 | 1 << 18 | 1 << 27), 0);
        // PSN, DS, ACPI, HTT, TM, IA64, PBE
        assert_eq!(l1.edx & (1 << 18 | 1 << 21 | 1 << 22 | 1 << 28 | 1 << 29 | 1 << 30 | 1 << 31), 0);
        assert_eq!(l1.ebx & 0xffff_0000, 0, "the host's APIC id");
        let l7 = must(&l, 7, 0);
        // SGX, RDT-M, MPX, RDT-A, Intel PT
        assert_eq!(l7.ebx & (1 << 2 | 1 << 12 | 1 << 14 | 1 << 15 | 1 << 22 | 1 << 25), 0);
        // OSPKE, WAITPKG, CET, TME, MAWAU, KL, bus lock, ENQCMD, SGX_LC, PKS
        assert_eq!(
            l7.ecx & (1 << 4 | 1 << 5 | 1 << 7 | 1 << 13 | 0x1f << 17 | 1 << 23 | 1 << 24 | 7 << 29),
            0
        );
        // AMX, CET_IBT, hybrid, CORE_CAPABILITIES
        assert_eq!(l7.edx & (1 << 22 | 1 << 24 | 1 << 25 | 1 << 20 | 1 << 15 | 1 << 30), 0);
        assert_eq!(l7.edx >> 29 & 1 == 1, v == vendor::INTEL, "ARCH_CAPABILITIES");
        assert_eq!(must(&l, 6, 0), r(4, 0, 0, 0), "only ARAT");
        assert_eq!(must(&l, 0xa, 0), r(0, 0, 0, 0), "no PMU");
        assert_eq!(must(&l, 5, 0), r(0, 0, 0, 0), "no MWAIT");
        let d1 = must(&l, 0xd, 1);
        assert_eq!((d1.eax, d1.ecx, d1.edx), (15, 0, 0), "no XFD, no supervisor components");
        let e1 = must(&l, 0x8000_0001, 0);
        // SVM, EXTAPIC, OSVW, IBS, SKINIT, WDT, LWP, TCE, NODEID, PERFCTR, ..., MWAITX
        assert_eq!(e1.ecx & (1 << 2 | 1 << 3 | 1 << 9 | 1 << 10 | 1 << 12 | 1 << 13 | 1 << 15 | 1 << 17), 0);
        assert_eq!(e1.ecx & 0xff80_0000, 0);
        assert_eq!(must(&l, 0x8000_0007, 0), r(0, 0, 0, 1 << 8));
        assert!(l.iter().all(|e| e.padding == [0; 3]));
        for absent in
            [8, 9, 0xc, 0xe, 0xf, 0x10, 0x12, 0x14, 0x1d, 0x1e, 0x8000_000a, 0x8000_001b, 0x8000_001f]
        {
            assert_eq!(get(&l, absent, 0), None, "leaf {absent:#x}");
        }
    }
}

/// Emulated features are there on any hardware, and nothing else is: AVX without its bit would be #UD in the guest.
#[test]
fn hardware_that_has_nothing_gets_what_we_make() {
    let l = list(&nothing());
    let l1 = must(&l, 1, 0);
    assert_eq!(l1.ecx, 1 << 21 | 1 << 24 | 1 << 31, "x2APIC, TSC deadline, hypervisor");
    assert_eq!(l1.edx, 1 << 9, "APIC");
    // The host's maximum is 1; leaf 7 must not show the highest basic leaf instead.
    assert_eq!(must(&l, 7, 0), r(0, 2, 0, 1 << 29), "TSC_ADJUST, ARCH_CAPABILITIES");
    assert_eq!(must(&l, 0xd, 0), r(0, 0, 0, 0));
    assert_eq!(
        must(&l, 0x4000_0001, 0).eax,
        1 | 2 | 8 | 1 << 4 | 0x20 | 0x40 | 1 << 7 | 1 << 9 | 1 << 11 | 1 << 12 | 1 << 13 | 1 << 14 | 1 << 24
    );
    let c = host_caps(&nothing());
    assert!(c.x2apic && c.tsc_deadline && c.tsc_adjust && c.long_mode && !c.xsave && !c.rdtscp);
    assert_eq!(c.xcr0, 0);
    assert_eq!(c.maxphyaddr(), 36);
}

/// kvmtool asks with room for 100 entries and treats E2BIG as fatal; QEMU doubles its room until it fits.
#[test]
fn the_list_fits_and_says_when_it_does_not() {
    for n in [list(&everything(vendor::INTEL)).len(), list(&everything(vendor::AMD)).len()] {
        assert!(n <= MAX_SUPPORTED, "{n}");
    }
    let need = list(&zen3()).len();
    for room in 0..need {
        assert_eq!(supported(&zen3(), &mut vec![kvm_cpuid_entry2::default(); room]), Err(Full));
    }
    assert_eq!(supported(&zen3(), &mut vec![kvm_cpuid_entry2::default(); need]), Ok(need));
}

/// Firecracker exits when a leaf it normalises is missing; Cloud Hypervisor asserts leaf 1; zeros are fine for them.
#[test]
fn leaves_vmms_insist_on() {
    for host in [list(&everything(vendor::INTEL)), list(&zen3()), list(&nothing())] {
        for l in [0, 1, 6, 7, 0xa, 0xb, 0xd] {
            must(&host, l, 0);
        }
        for l in 0x8000_0000..=0x8000_0008u32 {
            must(&host, l, 0);
        }
        assert!(must(&host, 0, 0).eax >= 0xd);
        let sig = must(&host, 0x4000_0000, 0);
        assert_eq!((sig.eax, sig.ebx, sig.ecx, sig.edx), (0x4000_0001, 0x4b4d_564b, 0x564b_4d56, 0x4d));
    }
    for l in [0x8000_001d, 0x8000_001e, 0x8000_0021] {
        must(&list(&zen3()), l, 0);
    }
}

/// Zen 3 hides its speculation controls in 8000_0008; a Linux guest with an Intel model looks for them in leaf 7.
#[test]
fn zen3_as_offered() {
    let l = list(&zen3());
    let l7 = must(&l, 7, 0);
    assert_eq!(l7.edx, 0x10 | 1 << 26 | 1 << 27 | 1 << 31, "FSRM and IBRS, STIBP, SSBD translated");
    assert_ne!(l7.ecx & 1 << 3, 0, "PKU, because XCR0 can hold PKRU");
    assert_eq!(must(&l, 0xd, 0), r(0x207, 576, 0x988, 0));
    assert_eq!(must(&l, 0xd, 9), r(8, 0x980, 0, 0));
    assert_eq!(get(&l, 0xd, 11), None, "CET_U is supervisor state and not offered");
    assert_eq!(must(&l, 0x8000_0008, 0).eax, 0x3030);
    assert_eq!(must(&l, 0x8000_0008, 0).ecx, 0, "the host's core count");
    assert_eq!(must(&l, 0x8000_001d, 3).eax, 0x163, "an L3, without who shares it");
    assert_eq!(must(&l, 0x8000_001d, 4).eax, 0);
    assert_eq!(must(&l, 0x8000_001e, 0), r(0, 0, 0, 0));
    assert_eq!(must(&l, 0x8000_0021, 0).eax, 0x45 | 1 << 9);
    let c = caps(&l, None);
    assert_eq!(c.vendor, Vendor::Amd);
    assert_eq!(c.spec_ctrl, 7 | 1 << 7);
    assert!(c.rdtscp && c.rdpid && c.pcid && c.fsgsbase && c.smep && c.smap && c.umip && c.pku && !c.la57);
    assert_eq!(c.maxphyaddr(), 48);
    assert_eq!(c.xcr0, 0x207);
    assert_ne!(c.efer_allowed & efer::NXE, 0);
    assert_eq!(c.efer_allowed & (efer::SVME | efer::AUTOIBRS | efer::LMSLE | efer::TCE), 0);
}

/// An Intel client: what the leaves hold that no feature's row fills.
#[test]
fn intel_as_offered() {
    let cpu = Host(
        |leaf, sub| match (leaf, sub) {
            (0, _) => r(0x1f, vendor::INTEL[0], vendor::INTEL[1], vendor::INTEL[2]),
            (1, _) => r(0x906e9, 0x0110_0800, 1 << 26 | 1 << 28, 0),
            (2, _) => r(0x7603_6301, 0xf0_b5ff, 0, 0xc3_0000),
            (4, 0..=2) => r(0x1c00_4121 + sub, 0x01c0_003f, 0x3f, 0),
            (7, 0) => r(1, 0, 0, 1 << 26 | 1 << 27 | 1 << 31),
            (7, 1) => r(1 << 10, 0, 0, 0),
            (0xd, 0) => r(7, 832, 832, 0),
            (0xd, 1) => r(0xf, 832, 0, 0),
            (0xd, 2) => r(256, 576, 7, 5),
            (0x8000_0000, _) => r(0x8000_0028, 0, 0, 0),
            (0x8000_0001, _) => r(0x5555, 0x6666, 1, 0),
            _ => r(0, 0, 0, 0),
        },
        7,
    );
    let l = list(&cpu);
    assert_eq!((must(&l, 1, 0).eax, must(&l, 1, 0).ebx), (0x906e9, 0x0800));
    assert_eq!(must(&l, 2, 0), r(0x7603_6301, 0xf0_b5ff, 0, 0xc3_0000));
    let caches = [0, 1, 2].map(|sub| must(&l, 4, sub));
    assert_eq!(caches, [0x121, 0x122, 0x123].map(|eax| r(eax, 0x01c0_003f, 0x3f, 0)));
    assert_eq!((get(&l, 4, 3), get(&l, 4, 4)), (Some(r(0, 0, 0, 0)), None), "up to the first that is none");
    assert_eq!((must(&l, 7, 0).eax, must(&l, 7, 1).eax), (1, 1 << 10));
    assert_eq!((must(&l, 0xd, 1).ebx, must(&l, 0xd, 2)), (576, r(256, 576, 2, 0)));
    assert!([0x15, 0x16, 0x1f].iter().all(|&leaf| get(&l, leaf, 0) == Some(r(0, 0, 0, 0))));
    assert_eq!(must(&l, 0x8000_0000, 0).eax, 0x8000_0008);
    assert_eq!((must(&l, 0x8000_0001, 0).eax, must(&l, 0x8000_0001, 0).ebx), (0x5555, 0x6666));
    let amd_names = 1 << 12 | 1 << 14 | 1 << 15 | 1 << 24;
    assert_eq!(must(&l, 0x8000_0008, 0).ebx, amd_names, "IBPB, IBRS, STIBP and SSBD translated");
    let zen = list(&zen3());
    assert!([0x15, 0x16, 0x1f].iter().all(|&leaf| get(&zen, leaf, 0).is_none()), "AMD has none of these");
    assert_eq!((get(&zen, 7, 1), must(&zen, 0x8000_0000, 0).eax), (None, 0x8000_0021));
    assert!(get(&zen, 0x8000_0019, 0).is_some() && get(&zen, 0x8000_001a, 0).is_some());
    assert_eq!(get(&zen, 0x8000_001d, 5), None, "up to the first that is none");
}

/// Tables of four levels under a CPU with 52-bit addresses: firmware must not place a BAR where nothing can be mapped.
#[test]
fn what_can_be_mapped() {
    for (host, offered) in
        [(0x3934, 0x30_3934), (0x30_3934, 0x30_3934), (0x3030, 0x3030), (0x20_302e, 0x302e)]
    {
        let cpu = zen3();
        let answer = |l, sub| {
            let r = cpu.cpuid(l, sub);
            if l == 0x8000_0008 { CpuidResult { eax: host, ..r } } else { r }
        };
        assert_eq!(must(&list(&Host(answer, cpu.xcr0())), 0x8000_0008, 0).eax, offered, "{host:#x}");
    }
}

/// A host kernel without AVX or PKRU state must not have a guest use them, though CPUID has the bits.
#[test]
fn features_follow_their_state() {
    struct Less<H>(H, u64);
    impl<H: HostCpuid> HostCpuid for Less<H> {
        fn gpa_bits(&self) -> u32 {
            self.0.gpa_bits()
        }
        fn cpuid(&self, leaf: u32, sub: u32) -> CpuidResult {
            self.0.cpuid(leaf, sub)
        }
        fn xcr0(&self) -> u64 {
            self.1
        }
    }
    let l = list(&Less(everything(vendor::INTEL), 0x7));
    assert_eq!(must(&l, 7, 0).ebx & 0xdc23_0000, 0, "AVX-512");
    assert_ne!(must(&l, 7, 0).ebx & 1 << 5, 0, "AVX2");
    assert_eq!(must(&l, 7, 0).ecx & 1 << 3, 0, "PKU");
    let l = list(&Less(everything(vendor::INTEL), 0x3));
    assert_eq!(must(&l, 1, 0).ecx & 1 << 28, 0, "AVX");
    assert_ne!(must(&l, 1, 0).ecx & 1 << 26, 0, "XSAVE stays");
    assert_eq!(must(&l, 0xd, 0).eax, 3);
    let l = list(&Less(everything(vendor::INTEL), 0));
    assert_eq!(must(&l, 1, 0).ecx & 1 << 26, 0, "no XSAVE without state");
    assert_eq!((must(&l, 0xd, 0), get(&l, 0xd, 1)), (r(0, 0, 0, 0), None));
}

/// A VMM may claim any feature; what reaches control registers is bounded by the host, or VM entry would fail on it.
#[test]
fn claims_beyond_the_host_change_nothing() {
    let claims = list(&everything(vendor::INTEL));
    let host = host_caps(&zen3());
    let (free, bounded) = (caps(&claims, None), caps(&claims, Some(&host)));
    assert!(free.la57 && !bounded.la57);
    assert_eq!(free.cr4_allowed & cr4::LA57, cr4::LA57);
    assert_eq!(bounded.cr4_allowed & !host.cr4_allowed, 0);
    let auto_ibrs = caps(&list(&everything(vendor::AMD)), None).efer_allowed & efer::AUTOIBRS;
    assert_eq!(auto_ibrs, efer::AUTOIBRS);
    assert_eq!(caps(&list(&everything(vendor::AMD)), Some(&host)).efer_allowed & efer::AUTOIBRS, 0);
    assert_eq!((free.xcr0, bounded.xcr0), (0x2e7, 0x207));
    assert_eq!(caps(&claims, Some(&host_caps(&nothing()))).spec_ctrl, 0);
}

/// On the machine at hand: the list claims nothing the processor lacks but what we emulate.
#[test]
fn this_machine() {
    let real = Host(
        |l, s| {
            let c = std::arch::x86_64::__cpuid_count(l, s);
            r(c.eax, c.ebx, c.ecx, c.edx)
        },
        0x2e7,
    );
    let l = list(&real);
    let (ours, hw) = (must(&l, 1, 0), real.cpuid(1, 0));
    assert_eq!(ours.ecx & !hw.ecx & !(1 << 21 | 1 << 24 | 1 << 31), 0);
    assert_eq!(ours.edx & !hw.edx & !(1 << 9), 0);
    let (ours, hw) = (must(&l, 7, 0), real.cpuid(7, 0));
    assert_eq!((ours.ebx & !hw.ebx & !2, ours.ecx & !hw.ecx), (0, 0));
    let c = caps(&l, None);
    assert!(c.long_mode && c.nx);
}

fn entry(function: u32, index: u32, indexed: bool, eax: u32) -> kvm_cpuid_entry2 {
    let flags = if indexed { KVM_CPUID_FLAG_SIGNIFCANT_INDEX } else { 0 };
    kvm_cpuid_entry2 { function, index, flags, eax, ..Default::default() }
}

proptest! {
    /// VMMs give entries in any order, with duplicates and with sub-leaves that count or not: the index finds what a
    /// plain search from the front would.
    #[test]
    fn find_is_a_search_from_the_front(
        raw in prop::collection::vec((0u32..6, 0u32..3, any::<bool>()), 0..256),
        leaf in 0u32..7,
        sub in 0u32..4,
    ) {
        let entries: Vec<_> = raw.iter().enumerate().map(|(i, &(f, s, x))| entry(f, s, x, i as u32)).collect();
        let index = index(&entries);
        let plain = entries
            .iter()
            .find(|e| e.function == leaf && (e.flags == 0 || e.index == sub))
            .map(|e| r(e.eax, 0, 0, 0));
        prop_assert_eq!(GuestCpuid::new(&entries, &index).find(leaf, sub), plain);
    }

    /// User space may give anything: no leaf makes the lookup or the summary fail.
    #[test]
    fn any_entries_any_leaf(
        raw in prop::collection::vec(any::<(u32, u32, bool, u32)>(), 0..300),
        leaf: u32, sub: u32, cr4: u64, xcr0: u64,
    ) {
        let entries: Vec<_> = raw.iter().map(|&(f, s, x, v)| kvm_cpuid_entry2 {
            ebx: v.rotate_left(8), ecx: !v, edx: v ^ f, ..entry(f, s, x, v)
        }).collect();
        let index = index(&entries);
        let c = GuestCpuid::new(&entries, &index);
        c.answer(leaf, sub, &Dynamic { cr4, xcr0, apic_enabled: true });
        c.answer(0xd, 0, &Dynamic { cr4, xcr0, apic_enabled: true });
        c.answer(0xd, 1, &Dynamic { cr4, xcr0, apic_enabled: true });
        let host = host_caps(&zen3());
        let caps = caps(&entries, Some(&host));
        prop_assert_eq!(caps.cr4_allowed & !host.cr4_allowed, 0);
        prop_assert_eq!(caps.efer_allowed & !host.efer_allowed, 0);
        prop_assert_eq!(caps.xcr0 & !host.xcr0, 0);
        prop_assert!(caps.maxphyaddr() <= 52);
    }
}

/// Beyond the last leaf Intel repeats the highest basic leaf and AMD answers zeros; Windows probes both ways.
#[test]
fn leaves_that_are_not_there() {
    let now = Dynamic::default();
    let mut entries = vec![
        entry(0, 0, false, 7),
        entry(1, 0, false, 0x11),
        entry(7, 0, true, 0x77),
        entry(7, 1, true, 0x78),
    ];
    entries.push(entry(0x4000_0000, 0, false, 0x4000_0001));
    entries.push(entry(0x8000_0000, 0, false, 0x8000_0001));
    let answer =
        |entries: &[kvm_cpuid_entry2], l, s| GuestCpuid::new(entries, &index(entries)).answer(l, s, &now).eax;
    assert_eq!(answer(&entries, 8, 0), 0x77);
    assert_eq!(answer(&entries, 0x8000_0005, 1), 0x78, "with the caller's sub-leaf");
    assert_eq!(answer(&entries, 0xc000_0000, 0), 0x77, "a range that does not exist");
    assert_eq!(answer(&entries, 4, 0), 0, "within the range, not given: zeros");
    assert_eq!(answer(&entries, 0x4000_0001, 0), 0);
    assert_eq!(answer(&entries, 0x4000_0002, 0), 0x77);
    let centaur = [&entries[..], &[entry(0xc000_0000, 0, false, 0xc000_0004)]].concat();
    assert_eq!([0xc000_0001, 0xc000_0005].map(|l| answer(&centaur, l, 0)), [0, 0x77]);
    let follows = |l, s| GuestCpuid::new(&entries, &index(&entries)).follows_registers(l, s);
    assert_eq!([0, 0x4000_0000, 0x8000_0000].map(|l| follows(l, 0)), [false; 3]);
    assert_eq!([1, 7, 0xd, 0x8000_0001, 8].map(|l| follows(l, 0)), [true; 5], "registers, or made up");
    let [ebx, ecx, edx] = vendor::AMD;
    entries[0] = kvm_cpuid_entry2 { ebx, ecx, edx, ..entries[0] };
    for l in [8, 0x8000_0005, 0xc000_0000, 0x4000_0002] {
        assert_eq!(answer(&entries, l, 0), 0, "{l:#x}");
    }
    assert_eq!(answer(&[], 0, 0), 0);
    assert_eq!(answer(&[], 0x8000_0000, 0), 0);
}

/// x2APIC guests read their id from any sub-leaf of 0BH, also beyond the last.
#[test]
fn topology_tells_the_id_everywhere() {
    let e =
        [entry(0, 0, false, 0xb), kvm_cpuid_entry2 { ebx: 1, ecx: 0x100, edx: 5, ..entry(0xb, 0, true, 1) }];
    let i = index(&e);
    let c = GuestCpuid::new(&e, &i);
    assert_eq!(c.answer(0xb, 7, &Dynamic::default()), r(0, 0, 7, 5));
    assert_eq!(c.answer(0xb, 0, &Dynamic::default()), r(1, 1, 0x100, 5));
}

/// Bits that follow registers: an OS that set CR4.OSXSAVE looks for OSXSAVE before it uses AVX, and sizes its buffers
/// by what 0DH says for the XCR0 it just wrote.
#[test]
fn bits_that_follow_registers() {
    let l = list(&zen3());
    let i = index(&l);
    let c = GuestCpuid::new(&l, &i);
    let off = Dynamic { cr4: 0, xcr0: 1, apic_enabled: false };
    let on =
        Dynamic { cr4: cr4::OSXSAVE | cr4::PKE, xcr0: xcr0::X87 | xcr0::SSE | xcr0::AVX, apic_enabled: true };
    assert_eq!(c.answer(1, 0, &off).ecx & 1 << 27, 0);
    assert_ne!(c.answer(1, 0, &on).ecx & 1 << 27, 0);
    assert_eq!(c.answer(1, 0, &off).edx & 1 << 9, 0);
    assert_ne!(c.answer(1, 0, &on).edx & 1 << 9, 0);
    assert_eq!(c.answer(0x8000_0001, 0, &off).edx & 1 << 9, 0, "AMD repeats the APIC bit");
    assert_eq!(c.answer(7, 0, &off).ecx & 1 << 4, 0);
    assert_ne!(c.answer(7, 0, &on).ecx & 1 << 4, 0);
    assert_eq!(c.answer(0xd, 0, &off).ebx, 576);
    assert_eq!(c.answer(0xd, 0, &on).ebx, 576 + 256);
    assert_eq!(c.answer(0xd, 1, &on).ebx, 576 + 256);
    assert_eq!(c.answer(0xd, 0, &Dynamic { xcr0: 0x207, ..on }).ebx, 0x988);
    assert_eq!(c.answer(0xd, 1, &Dynamic { xcr0: 0x207, ..on }).ebx, 576 + 256 + 8);
    assert_ne!(c.answer(0x8000_0001, 0, &on).edx & 1 << 9, 0);
    // Without its features the area's size is what the VMM said.
    for (sub, eax, follows) in
        [(0, 0, false), (0, 1, true), (1, 0, false), (1, 1, false), (1, 2, true), (1, 8, true)]
    {
        let e = [kvm_cpuid_entry2 { ebx: 7, ..entry(0xd, sub, true, eax) }];
        let size = GuestCpuid::new(&e, &index(&e)).answer(0xd, sub, &on).ebx;
        assert_eq!(size, if follows { 576 } else { 7 }, "{sub} {eax}");
    }
    // The bit that AMD repeats means nothing of the kind to others.
    for (vendor, off_too) in [(vendor::AMD, false), (vendor::INTEL, true)] {
        let [ebx, ecx, edx] = vendor;
        for bit in [0, 1 << 9] {
            let e = [
                kvm_cpuid_entry2 { ebx, ecx, edx, ..entry(0, 0, false, 1) },
                kvm_cpuid_entry2 { edx: bit | 1, ..entry(0x8000_0001, 0, false, 0) },
            ];
            let answer = |now| GuestCpuid::new(&e, &index(&e)).answer(0x8000_0001, 0, now).edx;
            assert_eq!([answer(&on), answer(&off)], [bit | 1, if off_too { bit | 1 } else { 1 }]);
        }
    }
    // A VMM that hides XSAVE and PKU hides their dynamic halves.
    let e = [entry(leaf::FEATURES, 0, false, 0), entry(7, 0, true, 0)];
    let i = index(&e);
    assert_eq!(GuestCpuid::new(&e, &i).answer(1, 0, &on), r(0, 0, 0, 0));
    assert_eq!(GuestCpuid::new(&e, &i).answer(7, 0, &on), r(0, 0, 0, 0));
}

/// KVM_SET_CPUID2 takes 256 entries; the order array counts in bytes, and the 256th must not wrap.
#[test]
fn the_last_entry_is_found() {
    let entries: Vec<_> = (0..300).map(|i| entry(i, 0, false, i + 1)).collect();
    let i: CpuidIndex = index(&entries);
    let c = GuestCpuid::new(&entries, &i);
    assert_eq!(c.find(255, 0).map(|r| r.eax), Some(256));
    assert_eq!(c.find(0, 0).map(|r| r.eax), Some(1));
    assert_eq!(c.find(256, 0), None);
}
