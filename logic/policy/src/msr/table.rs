//! THE table of MSRs: one row says who owns it, who may do what, and what it is after reset.

use super::MsrKind;
use crate::{GuestCaps, mtrr};
use exitless_pv_abi::{
    MSR_EXITLESS_DESCRIPTOR, MSR_EXITLESS_ICR, MSR_EXITLESS_LAZY_DEADLINE, MSR_EXITLESS_SEQUENCE,
    MSR_EXITLESS_SEQUENCE_PARTS, MSR_KVM_ASYNC_PF_ACK, MSR_KVM_ASYNC_PF_EN, MSR_KVM_ASYNC_PF_INT,
    MSR_KVM_POLL_CONTROL, MSR_KVM_PV_EOI_EN, MSR_KVM_STEAL_TIME, MSR_KVM_SYSTEM_TIME,
    MSR_KVM_SYSTEM_TIME_NEW, MSR_KVM_WALL_CLOCK, MSR_KVM_WALL_CLOCK_NEW, feature,
};
use exitless_x86::apic::apic_base;
use exitless_x86::msr::{Msr, de_cfg, feature_control, misc_enable, vm_cr};

/// What the guest may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guest {
    /// Read and write; a [`MsrKind::Const`] takes only its own value.
    ReadWrite,
    /// A write is #GP.
    ReadOnly,
    /// A read is #GP.
    WriteOnly,
    /// Any write is accepted and changes nothing.
    WriteDropped,
}

/// What the guest's CPUID (for the index list: the supported list) must have for the MSR to exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// It always exists.
    Nothing,
    /// TSC-deadline timer.
    TscDeadline,
    /// IA32_TSC_ADJUST.
    TscAdjust,
    /// RDTSCP or RDPID.
    TscAux,
    /// Any of SPEC_CTRL's bits.
    SpecCtrl,
    /// IA32_ARCH_CAPABILITIES.
    ArchCapabilities,
    /// IBPB.
    Ibpb,
    /// IA32_FLUSH_CMD.
    FlushL1d,
    /// XSAVES.
    Xsaves,
    /// Long mode.
    LongMode,
    /// AMD's six counters.
    PerfctrCore,
    /// These paravirtual feature bits.
    Pv(u32),
    /// Something no guest has: only the host's tools see the MSR.
    Absent,
}

impl Need {
    /// Whether `caps` has it.
    pub fn met(self, caps: &GuestCaps) -> bool {
        match self {
            Self::Nothing => true,
            Self::TscDeadline => caps.tsc_deadline,
            Self::TscAdjust => caps.tsc_adjust,
            Self::TscAux => caps.rdtscp || caps.rdpid,
            Self::SpecCtrl => caps.spec_ctrl != 0,
            Self::ArchCapabilities => caps.arch_capabilities,
            Self::Ibpb => caps.ibpb,
            Self::FlushL1d => caps.flush_l1d,
            Self::Absent => false,
            Self::Xsaves => caps.xsaves,
            Self::LongMode => caps.long_mode,
            Self::PerfctrCore => caps.perfctr_core,
            Self::Pv(bits) => caps.pv & bits == bits,
        }
    }
}

/// One MSR, or several in a row of the same kind.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// The first number.
    pub msr: Msr,
    /// How many numbers.
    pub count: u32,
    /// Of the first number; see [`super::find`] for the others.
    pub kind: MsrKind,
    /// The guest's access.
    pub guest: Guest,
    /// When it exists for the guest. The host may always access it.
    pub need: Need,
    /// In KVM_GET_MSR_INDEX_LIST.
    pub listed: bool,
    /// In KVM_GET_MSR_FEATURE_INDEX_LIST: its value tells what the host can do, whatever a vCPU's is.
    pub feature: bool,
    /// No exit on the guest's access.
    pub passthrough: bool,
    /// Value after reset, where the vCPU or the backend keeps one.
    pub reset: u64,
}

impl Row {
    /// Its numbers.
    pub fn numbers(&self) -> core::ops::Range<u32> {
        self.msr.0..self.msr.0 + self.count
    }
    const fn times(self, count: u32) -> Self {
        Self { count, ..self }
    }
    const fn guest(self, guest: Guest) -> Self {
        Self { guest, ..self }
    }
    const fn need(self, need: Need) -> Self {
        Self { need, ..self }
    }
    const fn reset(self, reset: u64) -> Self {
        Self { reset, ..self }
    }
    const fn listed(self) -> Self {
        Self { listed: true, ..self }
    }
    const fn feature(self) -> Self {
        Self { feature: true, ..self }
    }
    const fn passthrough(self) -> Self {
        Self { passthrough: true, ..self }
    }
}

/// An intercepted register the guest reads and writes.
const fn row(msr: Msr, kind: MsrKind) -> Row {
    let (guest, need) = (Guest::ReadWrite, Need::Nothing);
    Row { msr, count: 1, kind, guest, need, listed: false, feature: false, passthrough: false, reset: 0 }
}

/// Reads as `value`; writes must write that.
const fn fixed(msr: Msr, value: u64) -> Row {
    row(msr, MsrKind::Const(value))
}

/// Reads as zero, takes and forgets any write.
const fn ignored(msr: Msr) -> Row {
    row(msr, MsrKind::Const(0)).guest(Guest::WriteDropped)
}

const fn pv(msr: u32, kind: MsrKind, bits: u32) -> Row {
    row(Msr(msr), kind).need(Need::Pv(bits)).listed()
}

/// Sorted by number. The comment says what the row cannot.
#[rustfmt::skip]
pub static TABLE: &[Row] = &[
    row(Msr::TSC, MsrKind::Tsc).listed(),
    pv(MSR_KVM_WALL_CLOCK, MsrKind::PvWallClock(false), feature::CLOCKSOURCE),
    pv(MSR_KVM_SYSTEM_TIME, MsrKind::PvSystemTime(false), feature::CLOCKSOURCE),
    fixed(Msr::PLATFORM_ID, 0).guest(Guest::ReadOnly),
    // The boot processor has APIC_BASE.BSP besides.
    row(Msr::APIC_BASE, MsrKind::ApicBase).reset(apic_base::DEFAULT_ADDRESS | apic_base::ENABLE),
    fixed(Msr::EBL_CR_POWERON, 0).guest(Guest::ReadOnly),
    // Locked with VMX and SMX off.
    fixed(Msr::FEATURE_CONTROL, feature_control::LOCK).guest(Guest::ReadOnly),
    row(Msr::TSC_ADJUST, MsrKind::TscAdjust).need(Need::TscAdjust).listed(),
    row(Msr::SPEC_CTRL, MsrKind::SpecCtrl).need(Need::SpecCtrl).listed(),
    row(Msr::PRED_CMD, MsrKind::PredCmd).need(Need::Ibpb).guest(Guest::WriteOnly),
    ignored(Msr::BIOS_UPDT_TRIG),
    // The way to read the revision is to write 0, run CPUID and read. Intel looks at 63:32, AMD at 31:0.
    row(Msr::BIOS_SIGN_ID, MsrKind::UcodeRev).guest(Guest::WriteDropped).reset(1 << 32 | 0x0100_0065).listed().feature(),
    // There is no PMU; guests probe for one with these.
    ignored(Msr::PMC0).times(2),
    fixed(Msr::FSB_FREQ, 0).guest(Guest::ReadOnly),
    fixed(Msr::PLATFORM_INFO, 0).guest(Guest::ReadOnly),
    fixed(Msr::MTRRCAP, mtrr::CAP).guest(Guest::ReadOnly),
    // A new vCPU's is `crate::arch_capabilities`; the VMM restores what a guest was told elsewhere.
    row(Msr::ARCH_CAPABILITIES, MsrKind::ArchCapabilities).need(Need::ArchCapabilities).guest(Guest::ReadOnly)
        .listed().feature(),
    row(Msr::FLUSH_CMD, MsrKind::FlushCmd).need(Need::FlushL1d).guest(Guest::WriteOnly),
    fixed(Msr::MISC_FEATURES_ENABLES, 0),
    row(Msr::SYSENTER_CS, MsrKind::SysenterCs).listed().passthrough(),
    row(Msr::SYSENTER_ESP, MsrKind::SysenterEsp).listed().passthrough(),
    row(Msr::SYSENTER_EIP, MsrKind::SysenterEip).listed().passthrough(),
    row(Msr::MCG_CAP, MsrKind::McgCap).guest(Guest::ReadOnly),
    row(Msr::MCG_STATUS, MsrKind::McgStatus).listed(),
    row(Msr::MCG_CTL, MsrKind::McgCtl).listed(),
    ignored(Msr::PERFEVTSEL0).times(2),
    fixed(Msr::PERF_STATUS, 0).guest(Guest::ReadOnly),
    ignored(Msr::PERF_CTL),
    row(Msr::MISC_ENABLE, MsrKind::MiscEnable).listed()
        .reset(misc_enable::FAST_STRING | misc_enable::BTS_UNAVAILABLE | misc_enable::PEBS_UNAVAILABLE),
    row(Msr::DEBUGCTL, MsrKind::DebugCtl),
    fixed(Msr::LASTBRANCHFROMIP, 0).times(4).guest(Guest::ReadOnly),
    row(Msr::MTRR_PHYSBASE0, MsrKind::MtrrVariable(0)).times(2 * mtrr::VARIABLE as u32),
    row(Msr::MTRR_FIX64K_00000, MsrKind::MtrrFixed(0)),
    row(Msr::MTRR_FIX16K_80000, MsrKind::MtrrFixed(1)).times(2),
    row(Msr::MTRR_FIX4K_C0000, MsrKind::MtrrFixed(3)).times(8),
    row(Msr::PAT, MsrKind::Pat).listed().reset(mtrr::PAT_RESET),
    row(Msr::MTRR_DEF_TYPE, MsrKind::MtrrDefType),
    // There is no PMU, and so no PDCM in CPUID.
    fixed(Msr::PERF_CAPABILITIES, 0).need(Need::Absent).guest(Guest::ReadOnly).feature(),
    // Which banks exist is MCG_CAP's business.
    row(Msr::MC0_CTL, MsrKind::McBank(0)).times(4 * crate::mce::MAX_BANKS as u32),
    // Energy counters of a machine that uses none; Windows reads them unasked.
    fixed(Msr::RAPL_POWER_UNIT, 0).guest(Guest::ReadOnly),
    fixed(Msr::PKG_ENERGY_STATUS, 0).guest(Guest::ReadOnly),
    fixed(Msr::DRAM_ENERGY_STATUS, 0).guest(Guest::ReadOnly),
    fixed(Msr::PP0_ENERGY_STATUS, 0).guest(Guest::ReadOnly),
    fixed(Msr::PP1_ENERGY_STATUS, 0).guest(Guest::ReadOnly),
    row(Msr::TSC_DEADLINE, MsrKind::TscDeadline).need(Need::TscDeadline).listed(),
    // Whether the mode is on, and which registers exist, is the local APIC's business.
    row(Msr::X2APIC, MsrKind::X2Apic(0)).times(0x100),
    // Guests have none of its components.
    fixed(Msr::XSS, 0).need(Need::Xsaves).listed(),
    // Whether it can be enabled is the vCPU's business. No VMM saves it: guests enable it again.
    row(Msr(MSR_EXITLESS_LAZY_DEADLINE), MsrKind::LazyDeadline),
    row(Msr(MSR_EXITLESS_DESCRIPTOR), MsrKind::Descriptor),
    row(Msr(MSR_EXITLESS_SEQUENCE), MsrKind::Sequence),
    row(Msr(MSR_EXITLESS_SEQUENCE_PARTS), MsrKind::SequenceParts),
    row(Msr(MSR_EXITLESS_ICR), MsrKind::ExitlessIcr),
    pv(MSR_KVM_WALL_CLOCK_NEW, MsrKind::PvWallClock(true), feature::CLOCKSOURCE2),
    pv(MSR_KVM_SYSTEM_TIME_NEW, MsrKind::PvSystemTime(true), feature::CLOCKSOURCE2),
    pv(MSR_KVM_ASYNC_PF_EN, MsrKind::PvAsyncPf, feature::ASYNC_PF),
    pv(MSR_KVM_STEAL_TIME, MsrKind::PvStealTime, feature::STEAL_TIME),
    pv(MSR_KVM_PV_EOI_EN, MsrKind::PvEoi, feature::PV_EOI),
    pv(MSR_KVM_POLL_CONTROL, MsrKind::PvPollControl, feature::POLL_CONTROL).reset(1),
    pv(MSR_KVM_ASYNC_PF_INT, MsrKind::PvAsyncPfInt, feature::ASYNC_PF_INT),
    pv(MSR_KVM_ASYNC_PF_ACK, MsrKind::PvAsyncPfAck, feature::ASYNC_PF_INT),
    row(Msr::EFER, MsrKind::Efer),
    row(Msr::STAR, MsrKind::Star).listed().passthrough(),
    row(Msr::LSTAR, MsrKind::Lstar).need(Need::LongMode).listed().passthrough(),
    row(Msr::CSTAR, MsrKind::Cstar).need(Need::LongMode).listed().passthrough(),
    row(Msr::SFMASK, MsrKind::Sfmask).need(Need::LongMode).listed().passthrough(),
    row(Msr::FS_BASE, MsrKind::FsBase).need(Need::LongMode).passthrough(),
    row(Msr::GS_BASE, MsrKind::GsBase).need(Need::LongMode).passthrough(),
    row(Msr::KERNEL_GS_BASE, MsrKind::KernelGsBase).need(Need::LongMode).listed().passthrough(),
    row(Msr::TSC_AUX, MsrKind::TscAux).need(Need::TscAux).listed(),
    // Event selectors and counters: each processor of AMD's has them, CPUID or not. `crate::pmu` tells what RDPMC makes of them.
    ignored(Msr::K7_EVNTSEL0).times(8),
    ignored(Msr::SYSCFG),
    row(Msr::HWCR, MsrKind::Hwcr).listed(),
    ignored(Msr::NB_CFG),
    ignored(Msr::PATCH_LOADER),
    fixed(Msr::INT_PENDING_MSG, 0),
    // No MMCONFIG window of the processor's own.
    fixed(Msr::MMIO_CONF_BASE, 0),
    fixed(Msr::SMM_ADDR, 0),
    fixed(Msr::SMM_MASK, 0),
    fixed(Msr::VM_CR, vm_cr::LOCK | vm_cr::SVMDIS),
    ignored(Msr::IGNNE),
    fixed(Msr::VM_HSAVE_PA, 0),
    fixed(Msr::OSVW_ID_LENGTH, 0),
    fixed(Msr::OSVW_STATUS, 0),
    ignored(Msr::PERF_CTL0).times(12).need(Need::PerfctrCore),
    ignored(Msr::DC_CFG),
    // LFENCE serialises on every processor this runs on; Linux sets the bit itself and checks.
    fixed(Msr::DE_CFG, de_cfg::LFENCE_SERIALIZE).feature(),
    ignored(Msr::BU_CFG2),
    ignored(Msr::EX_CFG),
];
