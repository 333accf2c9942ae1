//! CPUID leaves and feature bits (SDM vol. 2A, CPUID; APM vol. 3, appendix E).

/// What CPUID leaves in the four registers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Zeroable)]
#[allow(missing_docs)]
pub struct CpuidResult {
    pub eax: u32,
    pub ebx: u32,
    pub ecx: u32,
    pub edx: u32,
}

/// The family that leaf 1's EAX tells (APM vol. 3, E.3.2).
pub const fn family(eax: u32) -> u32 {
    let base = eax >> 8 & 0xf;
    if base == 0xf { base + (eax >> 20 & 0xff) } else { base }
}

/// Leaf numbers.
#[allow(missing_docs)]
pub mod leaf {
    pub const VENDOR: u32 = 0;
    pub const FEATURES: u32 = 1;
    pub const CACHE_DESCRIPTORS: u32 = 2;
    pub const CACHE_PARAMETERS: u32 = 4;
    pub const MONITOR: u32 = 5;
    pub const THERMAL_POWER: u32 = 6;
    pub const STRUCTURED_FEATURES: u32 = 7;
    pub const PERFORMANCE_MONITORING: u32 = 0xa;
    pub const TOPOLOGY: u32 = 0xb;
    pub const XSAVE: u32 = 0xd;
    pub const TSC: u32 = 0x15;
    pub const FREQUENCY: u32 = 0x16;
    pub const TOPOLOGY_V2: u32 = 0x1f;
    pub const HYPERVISOR: u32 = 0x4000_0000;
    pub const EXTENDED: u32 = 0x8000_0000;
    pub const EXTENDED_FEATURES: u32 = 0x8000_0001;
    pub const BRAND_0: u32 = 0x8000_0002;
    pub const BRAND_2: u32 = 0x8000_0004;
    pub const L1_CACHE_TLB: u32 = 0x8000_0005;
    pub const L2_L3_CACHE_TLB: u32 = 0x8000_0006;
    pub const POWER_RAS: u32 = 0x8000_0007;
    pub const ADDRESS_SIZES: u32 = 0x8000_0008;
    pub const TLB_1G: u32 = 0x8000_0019;
    pub const PERFORMANCE_HINTS: u32 = 0x8000_001a;
    pub const CACHE_TOPOLOGY: u32 = 0x8000_001d;
    pub const PROCESSOR_TOPOLOGY: u32 = 0x8000_001e;
    pub const EXTENDED_FEATURES_2: u32 = 0x8000_0021;
}

/// CPUID.01H:ECX.
#[allow(missing_docs)]
pub mod leaf1_ecx {
    pub const SSE3: u32 = 1 << 0;
    pub const PCLMULQDQ: u32 = 1 << 1;
    pub const MONITOR: u32 = 1 << 3;
    pub const VMX: u32 = 1 << 5;
    pub const SSSE3: u32 = 1 << 9;
    pub const FMA: u32 = 1 << 12;
    pub const CMPXCHG16B: u32 = 1 << 13;
    pub const PDCM: u32 = 1 << 15;
    pub const PCID: u32 = 1 << 17;
    pub const SSE4_1: u32 = 1 << 19;
    pub const SSE4_2: u32 = 1 << 20;
    pub const X2APIC: u32 = 1 << 21;
    pub const MOVBE: u32 = 1 << 22;
    pub const POPCNT: u32 = 1 << 23;
    pub const TSC_DEADLINE: u32 = 1 << 24;
    pub const AESNI: u32 = 1 << 25;
    pub const XSAVE: u32 = 1 << 26;
    pub const OSXSAVE: u32 = 1 << 27;
    pub const AVX: u32 = 1 << 28;
    pub const F16C: u32 = 1 << 29;
    pub const RDRAND: u32 = 1 << 30;
    pub const HYPERVISOR: u32 = 1 << 31;
}

/// CPUID.01H:EDX; AMD repeats bits 9:0, 17:12, 24:23 in 8000_0001:EDX.
#[allow(missing_docs)]
pub mod leaf1_edx {
    pub const FPU: u32 = 1 << 0;
    pub const VME: u32 = 1 << 1;
    pub const DE: u32 = 1 << 2;
    pub const PSE: u32 = 1 << 3;
    pub const TSC: u32 = 1 << 4;
    pub const MSR: u32 = 1 << 5;
    pub const PAE: u32 = 1 << 6;
    pub const MCE: u32 = 1 << 7;
    pub const CX8: u32 = 1 << 8;
    pub const APIC: u32 = 1 << 9;
    pub const SEP: u32 = 1 << 11;
    pub const MTRR: u32 = 1 << 12;
    pub const PGE: u32 = 1 << 13;
    pub const MCA: u32 = 1 << 14;
    pub const CMOV: u32 = 1 << 15;
    pub const PAT: u32 = 1 << 16;
    pub const PSE36: u32 = 1 << 17;
    pub const CLFSH: u32 = 1 << 19;
    pub const MMX: u32 = 1 << 23;
    pub const FXSR: u32 = 1 << 24;
    pub const SSE: u32 = 1 << 25;
    pub const SSE2: u32 = 1 << 26;
    pub const SS: u32 = 1 << 27;
    pub const HTT: u32 = 1 << 28;
}

/// CPUID.06H:EAX.
#[allow(missing_docs)]
pub mod leaf6_eax {
    pub const ARAT: u32 = 1 << 2;
}

/// CPUID.(07H,0):EBX.
#[allow(missing_docs)]
pub mod leaf7_ebx {
    pub const FSGSBASE: u32 = 1 << 0;
    pub const TSC_ADJUST: u32 = 1 << 1;
    pub const SGX: u32 = 1 << 2;
    pub const BMI1: u32 = 1 << 3;
    pub const HLE: u32 = 1 << 4;
    pub const AVX2: u32 = 1 << 5;
    pub const FDP_EXCPTN_ONLY: u32 = 1 << 6;
    pub const SMEP: u32 = 1 << 7;
    pub const BMI2: u32 = 1 << 8;
    pub const ERMS: u32 = 1 << 9;
    pub const INVPCID: u32 = 1 << 10;
    pub const RTM: u32 = 1 << 11;
    pub const FCS_FDS_DEPRECATED: u32 = 1 << 13;
    pub const MPX: u32 = 1 << 14;
    pub const AVX512F: u32 = 1 << 16;
    pub const AVX512DQ: u32 = 1 << 17;
    pub const RDSEED: u32 = 1 << 18;
    pub const ADX: u32 = 1 << 19;
    pub const SMAP: u32 = 1 << 20;
    pub const AVX512_IFMA: u32 = 1 << 21;
    pub const CLFLUSHOPT: u32 = 1 << 23;
    pub const CLWB: u32 = 1 << 24;
    pub const AVX512PF: u32 = 1 << 26;
    pub const AVX512ER: u32 = 1 << 27;
    pub const AVX512CD: u32 = 1 << 28;
    pub const SHA: u32 = 1 << 29;
    pub const AVX512BW: u32 = 1 << 30;
    pub const AVX512VL: u32 = 1 << 31;
}

/// CPUID.(07H,0):ECX.
#[allow(missing_docs)]
pub mod leaf7_ecx {
    pub const AVX512_VBMI: u32 = 1 << 1;
    pub const UMIP: u32 = 1 << 2;
    pub const PKU: u32 = 1 << 3;
    pub const OSPKE: u32 = 1 << 4;
    pub const WAITPKG: u32 = 1 << 5;
    pub const AVX512_VBMI2: u32 = 1 << 6;
    pub const CET_SS: u32 = 1 << 7;
    pub const GFNI: u32 = 1 << 8;
    pub const VAES: u32 = 1 << 9;
    pub const VPCLMULQDQ: u32 = 1 << 10;
    pub const AVX512_VNNI: u32 = 1 << 11;
    pub const AVX512_BITALG: u32 = 1 << 12;
    pub const AVX512_VPOPCNTDQ: u32 = 1 << 14;
    pub const LA57: u32 = 1 << 16;
    pub const RDPID: u32 = 1 << 22;
    pub const CLDEMOTE: u32 = 1 << 25;
    pub const MOVDIRI: u32 = 1 << 27;
    pub const MOVDIR64B: u32 = 1 << 28;
}

/// CPUID.(07H,0):EDX.
#[allow(missing_docs)]
pub mod leaf7_edx {
    pub const AVX512_4VNNIW: u32 = 1 << 2;
    pub const AVX512_4FMAPS: u32 = 1 << 3;
    pub const FSRM: u32 = 1 << 4;
    pub const AVX512_VP2INTERSECT: u32 = 1 << 8;
    pub const MD_CLEAR: u32 = 1 << 10;
    pub const SERIALIZE: u32 = 1 << 14;
    pub const TSXLDTRK: u32 = 1 << 16;
    pub const AMX_BF16: u32 = 1 << 22;
    pub const AVX512_FP16: u32 = 1 << 23;
    pub const AMX_TILE: u32 = 1 << 24;
    pub const AMX_INT8: u32 = 1 << 25;
    /// IBRS and IBPB.
    pub const SPEC_CTRL: u32 = 1 << 26;
    pub const STIBP: u32 = 1 << 27;
    pub const L1D_FLUSH: u32 = 1 << 28;
    pub const ARCH_CAPABILITIES: u32 = 1 << 29;
    pub const SSBD: u32 = 1 << 31;
}

/// CPUID.(07H,1):EAX.
#[allow(missing_docs)]
pub mod leaf7_1_eax {
    pub const AVX_VNNI: u32 = 1 << 4;
    pub const AVX512_BF16: u32 = 1 << 5;
    pub const FZRM: u32 = 1 << 10;
    pub const FSRS: u32 = 1 << 11;
    pub const FSRC: u32 = 1 << 12;
    pub const AVX_IFMA: u32 = 1 << 23;
}

/// CPUID.(07H,1):EDX.
#[allow(missing_docs)]
pub mod leaf7_1_edx {
    pub const AVX_VNNI_INT8: u32 = 1 << 4;
    pub const AVX_NE_CONVERT: u32 = 1 << 5;
    pub const PREFETCHI: u32 = 1 << 14;
}

/// CPUID.(0DH,1):EAX.
#[allow(missing_docs)]
pub mod leafd_1_eax {
    pub const XSAVEOPT: u32 = 1 << 0;
    pub const XSAVEC: u32 = 1 << 1;
    pub const XGETBV_ECX1: u32 = 1 << 2;
    pub const XSAVES: u32 = 1 << 3;
    pub const XFD: u32 = 1 << 4;
}

/// CPUID.80000001H:ECX.
#[allow(missing_docs)]
pub mod ext1_ecx {
    pub const LAHF_SAHF: u32 = 1 << 0;
    pub const CMP_LEGACY: u32 = 1 << 1;
    pub const SVM: u32 = 1 << 2;
    pub const ALT_MOV_CR8: u32 = 1 << 4;
    pub const ABM: u32 = 1 << 5;
    pub const SSE4A: u32 = 1 << 6;
    pub const MISALIGN_SSE: u32 = 1 << 7;
    pub const PREFETCHW: u32 = 1 << 8;
    pub const OSVW: u32 = 1 << 9;
    pub const XOP: u32 = 1 << 11;
    pub const FMA4: u32 = 1 << 16;
    pub const TBM: u32 = 1 << 21;
    pub const TOPOEXT: u32 = 1 << 22;
    pub const PERFCTR_CORE: u32 = 1 << 23;
}

/// CPUID.80000001H:EDX, the bits that leaf 1 has not.
#[allow(missing_docs)]
pub mod ext1_edx {
    pub const SYSCALL: u32 = 1 << 11;
    pub const NX: u32 = 1 << 20;
    pub const MMXEXT: u32 = 1 << 22;
    pub const FFXSR: u32 = 1 << 25;
    pub const PAGE_1G: u32 = 1 << 26;
    pub const RDTSCP: u32 = 1 << 27;
    pub const LM: u32 = 1 << 29;
    pub const EXT_3DNOW: u32 = 1 << 30;
    pub const AMD_3DNOW: u32 = 1 << 31;
}

/// CPUID.80000007H:EDX.
#[allow(missing_docs)]
pub mod ext7_edx {
    pub const TSC_INVARIANT: u32 = 1 << 8;
}

/// CPUID.80000008H:EBX.
#[allow(missing_docs)]
pub mod ext8_ebx {
    pub const CLZERO: u32 = 1 << 0;
    pub const RST_FP_ERR_PTRS: u32 = 1 << 2;
    pub const WBNOINVD: u32 = 1 << 9;
    pub const IBPB: u32 = 1 << 12;
    pub const IBRS: u32 = 1 << 14;
    pub const STIBP: u32 = 1 << 15;
    pub const STIBP_ALWAYS_ON: u32 = 1 << 17;
    pub const SSBD: u32 = 1 << 24;
    pub const VIRT_SSBD: u32 = 1 << 25;
    pub const SSB_NO: u32 = 1 << 26;
    pub const PSFD: u32 = 1 << 28;
    pub const BTC_NO: u32 = 1 << 29;
}

/// CPUID.80000021H:EAX.
#[allow(missing_docs)]
pub mod ext21_eax {
    pub const NO_NESTED_DATA_BP: u32 = 1 << 0;
    pub const LFENCE_ALWAYS_SERIALIZING: u32 = 1 << 2;
    pub const NULL_SELECT_CLEARS_BASE: u32 = 1 << 6;
    pub const AUTOMATIC_IBRS: u32 = 1 << 8;
    pub const NO_SMM_CTL_MSR: u32 = 1 << 9;
}

/// XCR0 bits: state components (SDM vol. 1, 13.1).
#[allow(missing_docs)]
pub mod xcr0 {
    pub const X87: u64 = 1 << 0;
    pub const SSE: u64 = 1 << 1;
    pub const AVX: u64 = 1 << 2;
    pub const BNDREGS: u64 = 1 << 3;
    pub const BNDCSR: u64 = 1 << 4;
    pub const OPMASK: u64 = 1 << 5;
    pub const ZMM_HI256: u64 = 1 << 6;
    pub const HI16_ZMM: u64 = 1 << 7;
    pub const PKRU: u64 = 1 << 9;
    pub const XTILECFG: u64 = 1 << 17;
    pub const XTILEDATA: u64 = 1 << 18;
    /// The three components AVX-512 needs together.
    pub const AVX512: u64 = OPMASK | ZMM_HI256 | HI16_ZMM;
}

/// Vendor strings as EBX, ECX, EDX of leaf 0.
#[allow(missing_docs)]
pub mod vendor {
    const fn words(s: &[u8; 12]) -> [u32; 3] {
        // The string's order is EBX, EDX, ECX.
        [
            u32::from_le_bytes([s[0], s[1], s[2], s[3]]),
            u32::from_le_bytes([s[8], s[9], s[10], s[11]]),
            u32::from_le_bytes([s[4], s[5], s[6], s[7]]),
        ]
    }
    pub const INTEL: [u32; 3] = words(b"GenuineIntel");
    pub const AMD: [u32; 3] = words(b"AuthenticAMD");
    pub const HYGON: [u32; 3] = words(b"HygonGenuine");
}
