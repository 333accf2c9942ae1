//! THE table of CPUID feature bits: which a guest may have because the hardware has them, and which we make ourselves.
//!
//! A bit that is in no row is not offered. Absent on purpose: VMX and SVM (no nesting), MONITOR and MWAITX (MWAIT
//! exits are useless without a hint protocol), PMU, PT, SGX, RDT, MPX, AMX, CET, XFD, SMX, DS and BTS, thermal and power
//! bits, OSVW, IBS, LWP.
//! Set by the run loop, not here: OSXSAVE, OSPKE, APIC (see `guest::Dynamic`).

use exitless_x86::cpuid::{
    CpuidResult, ext1_ecx, ext1_edx, ext7_edx, ext8_ebx, ext21_eax, leaf, leaf1_ecx, leaf1_edx, leaf6_eax,
    leaf7_1_eax, leaf7_1_edx, leaf7_ebx, leaf7_ecx, leaf7_edx, leafd_1_eax, xcr0,
};

/// One of CPUID's four result registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reg {
    Eax,
    Ebx,
    Ecx,
    Edx,
}

/// The rule for one feature register.
pub(super) struct Word {
    pub(super) leaf: u32,
    pub(super) sub: u32,
    pub(super) reg: Reg,
    /// Offered when the hardware has the bit.
    pub(super) pass: u32,
    /// Offered on any hardware: software makes the feature.
    pub(super) emulated: u32,
}

const fn word(leaf: u32, sub: u32, reg: Reg, pass: u32, emulated: u32) -> Word {
    Word { leaf, sub, reg, pass, emulated }
}

/// The bits of 1:EDX that AMD repeats in 8000_0001:EDX.
const COMMON_EDX: u32 = leaf1_edx::FPU
    | leaf1_edx::VME
    | leaf1_edx::DE
    | leaf1_edx::PSE
    | leaf1_edx::TSC
    | leaf1_edx::MSR
    | leaf1_edx::PAE
    | leaf1_edx::MCE
    | leaf1_edx::CX8
    | leaf1_edx::APIC
    | leaf1_edx::MTRR
    | leaf1_edx::PGE
    | leaf1_edx::MCA
    | leaf1_edx::CMOV
    | leaf1_edx::PAT
    | leaf1_edx::PSE36
    | leaf1_edx::MMX
    | leaf1_edx::FXSR;

#[rustfmt::skip]
pub(super) static WORDS: [Word; 14] = [
    word(leaf::FEATURES, 0, Reg::Ecx,
        leaf1_ecx::SSE3 | leaf1_ecx::PCLMULQDQ | leaf1_ecx::SSSE3 | leaf1_ecx::FMA | leaf1_ecx::CMPXCHG16B
            | leaf1_ecx::PCID | leaf1_ecx::SSE4_1 | leaf1_ecx::SSE4_2 | leaf1_ecx::MOVBE | leaf1_ecx::POPCNT
            | leaf1_ecx::AESNI | leaf1_ecx::XSAVE | leaf1_ecx::AVX | leaf1_ecx::F16C | leaf1_ecx::RDRAND,
        leaf1_ecx::X2APIC | leaf1_ecx::TSC_DEADLINE | leaf1_ecx::HYPERVISOR),
    word(leaf::FEATURES, 0, Reg::Edx,
        COMMON_EDX | leaf1_edx::SEP | leaf1_edx::CLFSH | leaf1_edx::SSE | leaf1_edx::SSE2 | leaf1_edx::SS,
        leaf1_edx::APIC),
    word(leaf::THERMAL_POWER, 0, Reg::Eax, 0, leaf6_eax::ARAT),
    word(leaf::STRUCTURED_FEATURES, 0, Reg::Ebx,
        leaf7_ebx::FSGSBASE | leaf7_ebx::BMI1 | leaf7_ebx::HLE | leaf7_ebx::AVX2 | leaf7_ebx::FDP_EXCPTN_ONLY
            | leaf7_ebx::SMEP | leaf7_ebx::BMI2 | leaf7_ebx::ERMS | leaf7_ebx::INVPCID | leaf7_ebx::RTM
            | leaf7_ebx::FCS_FDS_DEPRECATED | leaf7_ebx::AVX512F | leaf7_ebx::AVX512DQ | leaf7_ebx::RDSEED
            | leaf7_ebx::ADX | leaf7_ebx::SMAP | leaf7_ebx::AVX512_IFMA | leaf7_ebx::CLFLUSHOPT | leaf7_ebx::CLWB
            | leaf7_ebx::AVX512PF | leaf7_ebx::AVX512ER | leaf7_ebx::AVX512CD | leaf7_ebx::SHA
            | leaf7_ebx::AVX512BW | leaf7_ebx::AVX512VL,
        leaf7_ebx::TSC_ADJUST),
    word(leaf::STRUCTURED_FEATURES, 0, Reg::Ecx,
        leaf7_ecx::AVX512_VBMI | leaf7_ecx::UMIP | leaf7_ecx::PKU | leaf7_ecx::AVX512_VBMI2 | leaf7_ecx::GFNI
            | leaf7_ecx::VAES | leaf7_ecx::VPCLMULQDQ | leaf7_ecx::AVX512_VNNI | leaf7_ecx::AVX512_BITALG
            | leaf7_ecx::AVX512_VPOPCNTDQ | leaf7_ecx::LA57 | leaf7_ecx::RDPID | leaf7_ecx::CLDEMOTE
            | leaf7_ecx::MOVDIRI | leaf7_ecx::MOVDIR64B,
        0),
    word(leaf::STRUCTURED_FEATURES, 0, Reg::Edx,
        leaf7_edx::AVX512_4VNNIW | leaf7_edx::AVX512_4FMAPS | leaf7_edx::FSRM | leaf7_edx::AVX512_VP2INTERSECT
            | leaf7_edx::MD_CLEAR | leaf7_edx::SERIALIZE | leaf7_edx::TSXLDTRK | leaf7_edx::AVX512_FP16
            | leaf7_edx::SPEC_CTRL | leaf7_edx::STIBP | leaf7_edx::SSBD | leaf7_edx::L1D_FLUSH,
        // On Intel's only: see `supported`.
        leaf7_edx::ARCH_CAPABILITIES),
    word(leaf::STRUCTURED_FEATURES, 1, Reg::Eax,
        leaf7_1_eax::AVX_VNNI | leaf7_1_eax::AVX512_BF16 | leaf7_1_eax::FZRM | leaf7_1_eax::FSRS
            | leaf7_1_eax::FSRC | leaf7_1_eax::AVX_IFMA,
        0),
    word(leaf::STRUCTURED_FEATURES, 1, Reg::Edx,
        leaf7_1_edx::AVX_VNNI_INT8 | leaf7_1_edx::AVX_NE_CONVERT | leaf7_1_edx::PREFETCHI,
        0),
    word(leaf::XSAVE, 1, Reg::Eax,
        leafd_1_eax::XSAVEOPT | leafd_1_eax::XSAVEC | leafd_1_eax::XGETBV_ECX1 | leafd_1_eax::XSAVES,
        0),
    word(leaf::EXTENDED_FEATURES, 0, Reg::Ecx,
        ext1_ecx::LAHF_SAHF | ext1_ecx::ALT_MOV_CR8 | ext1_ecx::ABM | ext1_ecx::SSE4A | ext1_ecx::MISALIGN_SSE
            | ext1_ecx::PREFETCHW | ext1_ecx::XOP | ext1_ecx::FMA4 | ext1_ecx::TBM | ext1_ecx::TOPOEXT,
        0),
    word(leaf::EXTENDED_FEATURES, 0, Reg::Edx,
        COMMON_EDX | ext1_edx::SYSCALL | ext1_edx::NX | ext1_edx::MMXEXT | ext1_edx::FFXSR | ext1_edx::PAGE_1G
            | ext1_edx::RDTSCP | ext1_edx::LM | ext1_edx::EXT_3DNOW | ext1_edx::AMD_3DNOW,
        0),
    word(leaf::POWER_RAS, 0, Reg::Edx, ext7_edx::TSC_INVARIANT, 0),
    word(leaf::ADDRESS_SIZES, 0, Reg::Ebx,
        ext8_ebx::CLZERO | ext8_ebx::RST_FP_ERR_PTRS | ext8_ebx::WBNOINVD | ext8_ebx::IBPB | ext8_ebx::IBRS
            | ext8_ebx::STIBP | ext8_ebx::STIBP_ALWAYS_ON | ext8_ebx::SSBD | ext8_ebx::SSB_NO | ext8_ebx::PSFD
            | ext8_ebx::BTC_NO,
        0),
    word(leaf::EXTENDED_FEATURES_2, 0, Reg::Eax,
        ext21_eax::NO_NESTED_DATA_BP | ext21_eax::LFENCE_ALWAYS_SERIALIZING | ext21_eax::NULL_SELECT_CLEARS_BASE
            | ext21_eax::AUTOMATIC_IBRS,
        // There is no SMM, so there is no SMM_CTL MSR.
        ext21_eax::NO_SMM_CTL_MSR),
];

/// Bits that mean nothing without their state component: offered only if XCR0 may hold `xcr0`.
struct NeedsState {
    leaf: u32,
    sub: u32,
    reg: Reg,
    bits: u32,
    xcr0: u64,
}

const fn needs(leaf: u32, sub: u32, reg: Reg, bits: u32, xcr0: u64) -> NeedsState {
    NeedsState { leaf, sub, reg, bits, xcr0 }
}

#[rustfmt::skip]
static STATE: [NeedsState; 13] = [
    needs(leaf::FEATURES, 0, Reg::Ecx, leaf1_ecx::XSAVE, xcr0::SSE),
    needs(leaf::FEATURES, 0, Reg::Ecx, leaf1_ecx::AVX | leaf1_ecx::FMA | leaf1_ecx::F16C, xcr0::AVX),
    needs(leaf::STRUCTURED_FEATURES, 0, Reg::Ebx, leaf7_ebx::AVX2, xcr0::AVX),
    needs(leaf::STRUCTURED_FEATURES, 0, Reg::Ebx,
        leaf7_ebx::AVX512F | leaf7_ebx::AVX512DQ | leaf7_ebx::AVX512_IFMA | leaf7_ebx::AVX512PF | leaf7_ebx::AVX512ER
            | leaf7_ebx::AVX512CD | leaf7_ebx::AVX512BW | leaf7_ebx::AVX512VL, xcr0::AVX512),
    needs(leaf::STRUCTURED_FEATURES, 0, Reg::Ecx, leaf7_ecx::VAES | leaf7_ecx::VPCLMULQDQ, xcr0::AVX),
    needs(leaf::STRUCTURED_FEATURES, 0, Reg::Ecx, leaf7_ecx::PKU, xcr0::PKRU),
    needs(leaf::STRUCTURED_FEATURES, 0, Reg::Ecx,
        leaf7_ecx::AVX512_VBMI | leaf7_ecx::AVX512_VBMI2 | leaf7_ecx::AVX512_VNNI | leaf7_ecx::AVX512_BITALG
            | leaf7_ecx::AVX512_VPOPCNTDQ, xcr0::AVX512),
    needs(leaf::STRUCTURED_FEATURES, 0, Reg::Edx,
        leaf7_edx::AVX512_4VNNIW | leaf7_edx::AVX512_4FMAPS | leaf7_edx::AVX512_VP2INTERSECT | leaf7_edx::AVX512_FP16,
        xcr0::AVX512),
    needs(leaf::STRUCTURED_FEATURES, 1, Reg::Eax, leaf7_1_eax::AVX_VNNI | leaf7_1_eax::AVX_IFMA, xcr0::AVX),
    needs(leaf::STRUCTURED_FEATURES, 1, Reg::Eax, leaf7_1_eax::AVX512_BF16, xcr0::AVX512),
    needs(leaf::STRUCTURED_FEATURES, 1, Reg::Edx, leaf7_1_edx::AVX_VNNI_INT8 | leaf7_1_edx::AVX_NE_CONVERT, xcr0::AVX),
    needs(leaf::XSAVE, 1, Reg::Eax, !0, xcr0::SSE),
    needs(leaf::EXTENDED_FEATURES, 0, Reg::Ecx, ext1_ecx::XOP | ext1_ecx::FMA4, xcr0::AVX),
];

/// One feature register of the supported list: the table's rule applied to `hardware`, with `xcr0` on offer.
pub(super) fn filter(leaf: u32, sub: u32, reg: Reg, hardware: u32, xcr0: u64) -> u32 {
    let here = |l, s, r| (l, s, r) == (leaf, sub, reg);
    let kept =
        WORDS.iter().find(|w| here(w.leaf, w.sub, w.reg)).map_or(0, |w| hardware & w.pass | w.emulated);
    STATE
        .iter()
        .filter(|n| here(n.leaf, n.sub, n.reg) && xcr0 & n.xcr0 != n.xcr0)
        .fold(kept, |bits, n| bits & !n.bits)
}

/// Intel's leaf 7 and AMD's leaf 8000_0008 name the same speculation controls: each vendor's bits are translated into
/// the other's, so that a guest model of either kind finds them.
pub(super) fn translate_speculation(l7: &mut CpuidResult, e8: &mut CpuidResult) {
    let amd_ibrs_ibpb = ext8_ebx::IBRS | ext8_ebx::IBPB;
    let both = [
        (leaf7_edx::SPEC_CTRL, amd_ibrs_ibpb),
        (leaf7_edx::STIBP, ext8_ebx::STIBP),
        (leaf7_edx::SSBD, ext8_ebx::SSBD),
    ];
    for (intel, amd) in both {
        let (has_intel, has_amd) = (l7.edx & intel == intel, e8.ebx & amd == amd);
        if has_intel {
            e8.ebx |= amd;
        }
        if has_amd {
            l7.edx |= intel;
        }
    }
}
