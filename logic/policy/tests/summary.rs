//! The summary of a guest's CPUID: which bit each ability hangs on, and what the host takes away again.
mod fake;

use exitless_kvm_abi::{KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};
use exitless_policy::GuestCaps;
use exitless_x86::msr::spec_ctrl;
use exitless_x86::regs::{cr4, efer};
use fake::caps;

/// Leaf, sub-leaf, register (EAX to EDX) and bit.
type Bit = (u32, u32, usize, u32);
const EAX: usize = 0;
const EBX: usize = 1;
const ECX: usize = 2;
const EDX: usize = 3;

/// A list with these bits and no others.
fn with(bits: &[Bit]) -> Vec<kvm_cpuid_entry2> {
    let mut entries: Vec<kvm_cpuid_entry2> = vec![];
    for &(leaf, sub, reg, bit) in bits {
        let at = entries.iter().position(|e| (e.function, e.index) == (leaf, sub)).unwrap_or_else(|| {
            let flags = if matches!(leaf, 7 | 0xd) { KVM_CPUID_FLAG_SIGNIFCANT_INDEX } else { 0 };
            entries.push(kvm_cpuid_entry2 { function: leaf, index: sub, flags, ..Default::default() });
            entries.len() - 1
        });
        let e = &mut entries[at];
        *[&mut e.eax, &mut e.ebx, &mut e.ecx, &mut e.edx][reg] |= 1 << bit;
    }
    entries
}

type Ability = (&'static str, &'static [Bit], fn(&GuestCaps) -> bool);
const E1: u32 = 0x8000_0001;
const E8: u32 = 0x8000_0008;

/// Each is there with any of its bits.
#[rustfmt::skip]
const ABILITIES: &[Ability] = &[
    ("la57", &[(7, 0, ECX, 16)], |c| c.la57 && c.wide && c.cr4_allowed & cr4::LA57 != 0),
    ("x2apic", &[(1, 0, ECX, 21)], |c| c.x2apic),
    ("tsc_deadline", &[(1, 0, ECX, 24)], |c| c.tsc_deadline),
    ("tsc_adjust", &[(7, 0, EBX, 1)], |c| c.tsc_adjust),
    ("rdtscp", &[(E1, 0, EDX, 27)], |c| c.rdtscp),
    ("rdpid", &[(7, 0, ECX, 22)], |c| c.rdpid),
    ("movbe", &[(1, 0, ECX, 22)], |c| c.movbe),
    ("arch_capabilities", &[(7, 0, EDX, 29)], |c| c.arch_capabilities),
    ("rtm", &[(7, 0, EBX, 11)], |c| c.rtm),
    ("ibpb", &[(7, 0, EDX, 26), (E8, 0, EBX, 12)], |c| c.ibpb),
    ("flush_l1d", &[(7, 0, EDX, 28)], |c| c.flush_l1d),
    ("xsave", &[(1, 0, ECX, 26)], |c| c.xsave && c.cr4_allowed & cr4::OSXSAVE != 0),
    ("long_mode", &[(E1, 0, EDX, 29)], |c| {
        c.long_mode && c.efer_allowed & (efer::LME | efer::LMA) == efer::LME | efer::LMA
    }),
    ("nx", &[(E1, 0, EDX, 20)], |c| c.nx && c.efer_allowed & efer::NXE != 0),
    ("pages_1g", &[(E1, 0, EDX, 26)], |c| c.pages_1g),
    ("pcid", &[(1, 0, ECX, 17)], |c| c.pcid && c.cr4_allowed & cr4::PCIDE != 0),
    ("invpcid", &[(7, 0, EBX, 10)], |c| c.invpcid),
    ("rdrand", &[(1, 0, ECX, 30)], |c| c.rdrand),
    ("rdseed", &[(7, 0, EBX, 18)], |c| c.rdseed),
    ("perfctr_core", &[(E1, 0, ECX, 23)], |c| c.perfctr_core),
    ("fsgsbase", &[(7, 0, EBX, 0)], |c| c.fsgsbase && c.cr4_allowed & cr4::FSGSBASE != 0),
    ("smep", &[(7, 0, EBX, 7)], |c| c.smep && c.cr4_allowed & cr4::SMEP != 0),
    ("smap", &[(7, 0, EBX, 20)], |c| c.smap && c.cr4_allowed & cr4::SMAP != 0),
    ("umip", &[(7, 0, ECX, 2)], |c| c.umip && c.cr4_allowed & cr4::UMIP != 0),
    ("pku", &[(7, 0, ECX, 3)], |c| c.pku && c.cr4_allowed & cr4::PKE != 0),
    ("mce", &[(1, 0, EDX, 7), (1, 0, EDX, 14)], |c| c.mce),
    ("EFER.SCE", &[(E1, 0, EDX, 11), (E1, 0, EDX, 29)], |c| c.efer_allowed & efer::SCE != 0),
    ("EFER.FFXSR", &[(E1, 0, EDX, 25)], |c| c.efer_allowed & efer::FFXSR != 0),
    ("EFER.SVME", &[(E1, 0, ECX, 2)], |c| c.efer_allowed & efer::SVME != 0),
    ("EFER.AUTOIBRS", &[(0x8000_0021, 0, EAX, 8)], |c| c.efer_allowed & efer::AUTOIBRS != 0),
    ("IBRS", &[(7, 0, EDX, 26), (E8, 0, EBX, 14)], |c| in_spec_ctrl(c, spec_ctrl::IBRS)),
    ("STIBP", &[(7, 0, EDX, 27), (E8, 0, EBX, 15)], |c| in_spec_ctrl(c, spec_ctrl::STIBP)),
    ("SSBD", &[(7, 0, EDX, 31), (E8, 0, EBX, 24)], |c| in_spec_ctrl(c, spec_ctrl::SSBD)),
    ("PSFD", &[(E8, 0, EBX, 28)], |c| in_spec_ctrl(c, spec_ctrl::PSFD)),
];

fn in_spec_ctrl(c: &GuestCaps, bit: u64) -> bool {
    c.spec_ctrl & bit != 0 && c.spec_ctrl_hardware & bit != 0
}

/// An ability that hangs on a wrong bit is one that guests lose, or one they get though the VMM hid it.
#[test]
fn each_ability_hangs_on_its_bits() {
    for (name, own, has) in ABILITIES {
        assert!(!has(&caps(&with(&[]), None)), "{name} without a bit");
        for bit in *own {
            assert!(has(&caps(&with(&[*bit]), None)), "{name} by {bit:x?}");
        }
        let registers = ABILITIES.iter().flat_map(|(_, bits, _)| bits.iter());
        let others: Vec<Bit> = registers
            .flat_map(|&(leaf, sub, reg, _)| (0..32).map(move |bit| (leaf, sub, reg, bit)))
            .filter(|bit| !own.contains(bit))
            .collect();
        assert!(!has(&caps(&with(&others), None)), "{name} by another bit");
    }
    let xsaves = (0xd, 1, EAX, 3);
    assert!(!caps(&with(&[xsaves]), None).xsaves, "XSAVES without XSAVE");
    assert!(!caps(&with(&[(1, 0, ECX, 26), (0xd, 1, EAX, 2)]), None).xsaves);
    assert!(caps(&with(&[(1, 0, ECX, 26), xsaves]), None).xsaves);
    let high = [(1, 0, ECX, 26), (0xd, 0, EDX, 1), (0xd, 0, EDX, 31)];
    assert_eq!(caps(&with(&high), None).xcr0, 1 << 33 | 1, "bit 63 is no component");
}

/// What would end up in registers the host does not have.
#[test]
fn the_host_bounds_the_guest() {
    let more = [(1, 0, ECX, 26), (0xd, 0, EAX, 2), (0xd, 1, EAX, 3), (0x4000_0001, 0, EAX, 5)];
    let bits = ABILITIES.iter().flat_map(|(_, bits, _)| bits.iter().copied());
    let list = with(&bits.chain(more).collect::<Vec<_>>());
    let (all, none) = (caps(&list, None), GuestCaps::default());
    let words = |c: &GuestCaps| {
        let flags = [c.la57, c.rdtscp, c.rdpid, c.ibpb, c.flush_l1d, c.xsaves];
        ([c.cr4_allowed, c.efer_allowed, c.xcr0, c.spec_ctrl, c.spec_ctrl_hardware, c.pv.into()], flags)
    };
    assert_eq!(words(&caps(&list, Some(&none))), ([0; 6], [false; 6]));
    assert_eq!(words(&caps(&list, Some(&all))), words(&all));
    let (mut bounded, free) = (caps(&with(&[]), Some(&all)), caps(&with(&[]), None));
    assert_eq!(bounded.spec_ctrl_hardware, all.spec_ctrl, "the processor takes it, whatever the guest sees");
    bounded.spec_ctrl_hardware = 0;
    assert_eq!(words(&bounded), words(&free));
    // RDPID is emulated where its register exists.
    for (rdtscp, rdpid) in [(true, false), (false, true)] {
        let mut host = none;
        (host.rdtscp, host.rdpid) = (rdtscp, rdpid);
        assert!(caps(&list, Some(&host)).rdpid, "{rdtscp} {rdpid}");
    }
}
