//! Numbers and bits of model-specific registers (SDM vol. 4; APM vol. 2, appendix A, and AMD's PPRs).

/// The number of a model-specific register. Open: a guest may name any 32-bit number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Msr(pub u32);

#[allow(missing_docs)]
impl Msr {
    // --- time, identity, control ---
    pub const TSC: Self = Self(0x10);
    pub const PLATFORM_ID: Self = Self(0x17);
    pub const APIC_BASE: Self = Self(0x1b);
    pub const EBL_CR_POWERON: Self = Self(0x2a);
    pub const FEATURE_CONTROL: Self = Self(0x3a);
    pub const TSC_ADJUST: Self = Self(0x3b);
    pub const SPEC_CTRL: Self = Self(0x48);
    pub const PRED_CMD: Self = Self(0x49);
    pub const BIOS_UPDT_TRIG: Self = Self(0x79);
    /// Intel: IA32_BIOS_SIGN_ID, revision in 63:32. AMD: PATCH_LEVEL, revision in 31:0.
    pub const BIOS_SIGN_ID: Self = Self(0x8b);
    pub const PMC0: Self = Self(0xc1);
    pub const FSB_FREQ: Self = Self(0xcd);
    pub const PLATFORM_INFO: Self = Self(0xce);
    pub const MTRRCAP: Self = Self(0xfe);
    pub const ARCH_CAPABILITIES: Self = Self(0x10a);
    pub const FLUSH_CMD: Self = Self(0x10b);
    pub const MISC_FEATURES_ENABLES: Self = Self(0x140);
    pub const SYSENTER_CS: Self = Self(0x174);
    pub const SYSENTER_ESP: Self = Self(0x175);
    pub const SYSENTER_EIP: Self = Self(0x176);
    pub const MCG_CAP: Self = Self(0x179);
    pub const MCG_STATUS: Self = Self(0x17a);
    pub const MCG_CTL: Self = Self(0x17b);
    pub const PERFEVTSEL0: Self = Self(0x186);
    pub const PERF_STATUS: Self = Self(0x198);
    pub const PERF_CTL: Self = Self(0x199);
    pub const MISC_ENABLE: Self = Self(0x1a0);
    pub const CORE_C3_RESIDENCY: Self = Self(0x3fc);
    pub const CORE_C6_RESIDENCY: Self = Self(0x3fd);
    pub const CORE_C7_RESIDENCY: Self = Self(0x3fe);
    pub const CORE_C1_RESIDENCY: Self = Self(0x660);
    pub const DEBUGCTL: Self = Self(0x1d9);
    pub const LASTBRANCHFROMIP: Self = Self(0x1db);
    pub const LASTBRANCHTOIP: Self = Self(0x1dc);
    pub const LASTINTFROMIP: Self = Self(0x1dd);
    pub const LASTINTTOIP: Self = Self(0x1de);

    // --- memory types ---
    /// First of 16: base 0, mask 0, base 1, ...
    pub const MTRR_PHYSBASE0: Self = Self(0x200);
    pub const MTRR_FIX64K_00000: Self = Self(0x250);
    pub const MTRR_FIX16K_80000: Self = Self(0x258);
    pub const MTRR_FIX16K_A0000: Self = Self(0x259);
    /// First of eight.
    pub const MTRR_FIX4K_C0000: Self = Self(0x268);
    pub const PAT: Self = Self(0x277);
    pub const MTRR_DEF_TYPE: Self = Self(0x2ff);
    pub const PERF_CAPABILITIES: Self = Self(0x345);

    // --- performance monitoring ---
    pub const PERF_GLOBAL_CTRL: Self = Self(0x38f);
    pub const PEBS_ENABLE: Self = Self(0x3f1);

    // --- machine check, power, APIC, extended state ---
    /// First of four per bank: CTL, STATUS, ADDR, MISC.
    pub const MC0_CTL: Self = Self(0x400);
    pub const RAPL_POWER_UNIT: Self = Self(0x606);
    pub const PKG_ENERGY_STATUS: Self = Self(0x611);
    pub const DRAM_ENERGY_STATUS: Self = Self(0x619);
    pub const PP0_ENERGY_STATUS: Self = Self(0x639);
    pub const PP1_ENERGY_STATUS: Self = Self(0x641);
    pub const TSC_DEADLINE: Self = Self(0x6e0);
    /// First of 256: register offset / 16.
    pub const X2APIC: Self = Self(0x800);
    pub const X2APIC_EOI: Self = Self(0x80b);
    pub const X2APIC_ICR: Self = Self(0x830);
    pub const X2APIC_SELF_IPI: Self = Self(0x83f);
    pub const XSS: Self = Self(0xda0);

    // --- x86-64 ---
    pub const EFER: Self = Self(0xc000_0080);
    pub const STAR: Self = Self(0xc000_0081);
    pub const LSTAR: Self = Self(0xc000_0082);
    pub const CSTAR: Self = Self(0xc000_0083);
    pub const SFMASK: Self = Self(0xc000_0084);
    pub const FS_BASE: Self = Self(0xc000_0100);
    pub const GS_BASE: Self = Self(0xc000_0101);
    pub const KERNEL_GS_BASE: Self = Self(0xc000_0102);
    pub const TSC_AUX: Self = Self(0xc000_0103);

    // --- AMD ---
    /// First of four; the four counters follow at +4.
    pub const K7_EVNTSEL0: Self = Self(0xc001_0000);
    pub const SYSCFG: Self = Self(0xc001_0010);
    pub const HWCR: Self = Self(0xc001_0015);
    pub const NB_CFG: Self = Self(0xc001_001f);
    pub const PATCH_LOADER: Self = Self(0xc001_0020);
    pub const INT_PENDING_MSG: Self = Self(0xc001_0055);
    pub const MMIO_CONF_BASE: Self = Self(0xc001_0058);
    pub const SMM_ADDR: Self = Self(0xc001_0112);
    pub const SMM_MASK: Self = Self(0xc001_0113);
    pub const VM_CR: Self = Self(0xc001_0114);
    pub const IGNNE: Self = Self(0xc001_0115);
    pub const VM_HSAVE_PA: Self = Self(0xc001_0117);
    pub const AVIC_DOORBELL: Self = Self(0xc001_011b);
    pub const OSVW_ID_LENGTH: Self = Self(0xc001_0140);
    pub const OSVW_STATUS: Self = Self(0xc001_0141);
    /// First of twelve: control and counter alternate.
    pub const PERF_CTL0: Self = Self(0xc001_0200);
    pub const DC_CFG: Self = Self(0xc001_1022);
    pub const DE_CFG: Self = Self(0xc001_1029);
    pub const BU_CFG2: Self = Self(0xc001_102a);
    pub const EX_CFG: Self = Self(0xc001_102c);
}

/// IA32_SPEC_CTRL bits (SDM vol. 4, table 2-2).
#[allow(missing_docs)]
pub mod spec_ctrl {
    pub const IBRS: u64 = 1 << 0;
    pub const STIBP: u64 = 1 << 1;
    pub const SSBD: u64 = 1 << 2;
    pub const PSFD: u64 = 1 << 7;
}

/// IA32_PRED_CMD bits.
#[allow(missing_docs)]
pub mod pred_cmd {
    pub const IBPB: u64 = 1 << 0;
}

/// IA32_FLUSH_CMD bits.
#[allow(missing_docs)]
pub mod flush_cmd {
    pub const L1D_FLUSH: u64 = 1 << 0;
}

/// IA32_FEATURE_CONTROL bits.
#[allow(missing_docs)]
pub mod feature_control {
    pub const LOCK: u64 = 1 << 0;
}

/// IA32_MISC_ENABLE bits.
#[allow(missing_docs)]
pub mod misc_enable {
    pub const FAST_STRING: u64 = 1 << 0;
    pub const BTS_UNAVAILABLE: u64 = 1 << 11;
    pub const PEBS_UNAVAILABLE: u64 = 1 << 12;
    pub const MWAIT: u64 = 1 << 18;
}

/// IA32_DEBUGCTL bits (SDM vol. 3B, 17.4.1; APM vol. 2, 13.1.1.6).
#[allow(missing_docs)]
pub mod debugctl {
    pub const LBR: u64 = 1 << 0;
    pub const BTF: u64 = 1 << 1;
    /// Intel: counters and last-branch records stand still in system-management mode.
    pub const FREEZE_WHILE_SMM: u64 = 1 << 14;
}

/// IA32_MTRRCAP and IA32_MTRR_DEF_TYPE bits (SDM vol. 3A, 12.11).
#[allow(missing_docs)]
pub mod mtrr {
    pub const CAP_VCNT: u64 = 0xff;
    pub const CAP_FIX: u64 = 1 << 8;
    pub const CAP_WC: u64 = 1 << 10;
    pub const DEF_TYPE: u64 = 0xff;
    pub const DEF_FE: u64 = 1 << 10;
    pub const DEF_E: u64 = 1 << 11;
    pub const MASK_V: u64 = 1 << 11;
}

/// IA32_MCG_CAP bits (SDM vol. 3B, 16.3.1).
#[allow(missing_docs)]
pub mod mcg_cap {
    pub const COUNT: u64 = 0xff;
    pub const CTL_P: u64 = 1 << 8;
    pub const EXT_CNT: u64 = 0xff << 16;
    pub const SER_P: u64 = 1 << 24;
}

/// HWCR bits (AMD PPR, MSRC001_0015).
#[allow(missing_docs)]
pub mod hwcr {
    pub const TLB_CACHE_DIS: u64 = 1 << 3;
    pub const FF_DIS: u64 = 1 << 6;
    pub const IGNNE_EM: u64 = 1 << 8;
    pub const MC_STATUS_WR_EN: u64 = 1 << 18;
    pub const TSC_FREQ_SEL: u64 = 1 << 24;
}

/// VM_CR bits (APM vol. 2, 15.30.1).
#[allow(missing_docs)]
pub mod vm_cr {
    pub const LOCK: u64 = 1 << 3;
    pub const SVMDIS: u64 = 1 << 4;
}

/// IA32_ARCH_CAPABILITIES bits (SDM vol. 4, table 2-2).
#[allow(missing_docs)]
pub mod arch_capabilities {
    pub const RDCL_NO: u64 = 1 << 0;
    pub const IBRS_ALL: u64 = 1 << 1;
    pub const RSBA: u64 = 1 << 2;
    pub const SKIP_L1DFL_VMENTRY: u64 = 1 << 3;
    pub const SSB_NO: u64 = 1 << 4;
    pub const MDS_NO: u64 = 1 << 5;
    pub const PSCHANGE_MC_NO: u64 = 1 << 6;
    pub const TSX_CTRL: u64 = 1 << 7;
    pub const TAA_NO: u64 = 1 << 8;
    pub const SBDR_SSDP_NO: u64 = 1 << 13;
    pub const FBSDP_NO: u64 = 1 << 14;
    pub const PSDP_NO: u64 = 1 << 15;
    pub const FB_CLEAR: u64 = 1 << 17;
    pub const FB_CLEAR_CTRL: u64 = 1 << 18;
    pub const RRSBA: u64 = 1 << 19;
    pub const BHI_NO: u64 = 1 << 20;
    pub const PBRSB_NO: u64 = 1 << 24;
    pub const GDS_CTRL: u64 = 1 << 25;
    pub const GDS_NO: u64 = 1 << 26;
    pub const RFDS_NO: u64 = 1 << 27;
    pub const RFDS_CLEAR: u64 = 1 << 28;
    pub const ITS_NO: u64 = 1 << 62;
}

/// DE_CFG bits (AMD, MSRC001_1029).
#[allow(missing_docs)]
pub mod de_cfg {
    pub const LFENCE_SERIALIZE: u64 = 1 << 1;
}

/// Memory types in MTRRs and the PAT (SDM vol. 3A, table 12-2).
#[allow(missing_docs)]
pub mod memory_type {
    pub const UC: u8 = 0;
    pub const WC: u8 = 1;
    pub const WT: u8 = 4;
    pub const WP: u8 = 5;
    pub const WB: u8 = 6;
    /// UC-, in the PAT only.
    pub const UC_MINUS: u8 = 7;
}
