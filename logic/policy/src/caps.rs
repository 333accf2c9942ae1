//! What the guest's CPUID allows, condensed once at KVM_SET_CPUID2 and asked on every check after it.

use crate::cpuid::GuestCpuid;
use bytemuck::Zeroable;
use exitless_pv_abi::KVM_CPUID_FEATURES;
use exitless_x86::cpuid::{
    CpuidResult, ext1_ecx, ext1_edx, ext8_ebx, ext21_eax, leaf, leaf1_ecx, leaf1_edx, leaf7_ebx, leaf7_ecx,
    leaf7_edx, leafd_1_eax, vendor, xcr0,
};
use exitless_x86::msr::spec_ctrl;
use exitless_x86::regs::{cr4, efer};

/// Whose rules the guest's CPU follows where the vendors differ.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Zeroable)]
#[repr(u8)]
pub enum Vendor {
    /// Intel, and any string we do not know.
    #[default]
    Intel = 0,
    /// AMD and Hygon.
    Amd = 1,
}

/// The guest's abilities, set with [`GuestCaps::compute`]: from no entries when the vCPU is created (nothing optional
/// exists then), again at each KVM_SET_CPUID2. All-zero allows nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Zeroable)]
#[repr(C)]
pub struct GuestCaps {
    /// CR4 bits the guest may set.
    pub cr4_allowed: u64,
    /// EFER bits the guest may set (LMA included; it is read-only besides).
    pub efer_allowed: u64,
    /// XCR0 bits the guest may set; 0 without XSAVE.
    pub xcr0: u64,
    /// SPEC_CTRL bits the guest may set; 0: the MSR does not exist.
    pub spec_ctrl: u64,
    /// SPEC_CTRL bits that the processor takes, whatever the guest's CPUID says.
    pub spec_ctrl_hardware: u64,
    /// `exitless_pv_abi::feature` bits.
    pub pv: u32,
    maxphyaddr: u8,
    /// Where the vendors differ.
    pub vendor: Vendor,
    /// The processor's own vendor, whatever the guest's CPUID says.
    pub hardware: Vendor,
    /// The processor has 57-bit linear addresses, whatever the guest's CPUID says: WRMSR calls an address canonical by that.
    pub wide: bool,
    /// 57-bit linear addresses may be switched on.
    pub la57: bool,
    /// Local APIC in x2APIC mode.
    pub x2apic: bool,
    /// The APIC timer's TSC-deadline mode.
    pub tsc_deadline: bool,
    /// IA32_TSC_ADJUST.
    pub tsc_adjust: bool,
    /// RDTSCP.
    pub rdtscp: bool,
    /// RDPID.
    pub rdpid: bool,
    /// MOVBE.
    pub movbe: bool,
    /// IA32_ARCH_CAPABILITIES.
    pub arch_capabilities: bool,
    /// Transactions.
    pub rtm: bool,
    /// IBPB through PRED_CMD.
    pub ibpb: bool,
    /// FLUSH_CMD.
    pub flush_l1d: bool,
    /// XSAVE and XSETBV.
    pub xsave: bool,
    /// XSAVES and IA32_XSS.
    pub xsaves: bool,
    /// Long mode.
    pub long_mode: bool,
    /// EFER.NXE.
    pub nx: bool,
    /// 1 GiB pages.
    pub pages_1g: bool,
    /// CR4.PCIDE.
    pub pcid: bool,
    /// INVPCID.
    pub invpcid: bool,
    /// RDRAND.
    pub rdrand: bool,
    /// RDSEED.
    pub rdseed: bool,
    /// AMD's six counters beside the four that every processor of theirs has.
    pub perfctr_core: bool,
    /// CR4.FSGSBASE.
    pub fsgsbase: bool,
    /// CR4.SMEP.
    pub smep: bool,
    /// CR4.SMAP.
    pub smap: bool,
    /// CR4.UMIP.
    pub umip: bool,
    /// CR4.PKE.
    pub pku: bool,
    /// Machine-check registers.
    pub mce: bool,
}

/// CR4 bits every guest may set: they are as old as the processors we run on.
const CR4_ALWAYS: u64 = cr4::VME
    | cr4::PVI
    | cr4::TSD
    | cr4::DE
    | cr4::PSE
    | cr4::PAE
    | cr4::MCE
    | cr4::PGE
    | cr4::PCE
    | cr4::OSFXSR
    | cr4::OSXMMEXCPT;

impl GuestCaps {
    /// Width of guest-physical addresses in bits: 36 when the guest's CPUID does not say (SDM vol. 3A, 4.1.4).
    pub fn maxphyaddr(&self) -> u8 {
        if self.maxphyaddr == 0 { 36 } else { self.maxphyaddr.min(52) }
    }

    /// Guest-physical address bits that must be zero.
    pub fn phys_reserved(&self) -> u64 {
        !0 << self.maxphyaddr()
    }

    /// Condenses the guest's CPUID. `host` is the summary of the supported list and bounds what ends up in registers:
    /// a VMM may advertise a bit the processor lacks, but the guest cannot then crash the entry with it.
    pub fn compute(&mut self, cpuid: GuestCpuid<'_>, host: Option<&GuestCaps>) {
        let get = |leaf, sub| cpuid.find(leaf, sub).unwrap_or_default();
        let l1: CpuidResult = get(leaf::FEATURES, 0);
        let l7 = get(leaf::STRUCTURED_FEATURES, 0);
        let e1 = get(leaf::EXTENDED_FEATURES, 0);
        let e8 = get(leaf::ADDRESS_SIZES, 0);
        let id = get(leaf::VENDOR, 0);
        let amd = [vendor::AMD, vendor::HYGON].contains(&[id.ebx, id.ecx, id.edx]);
        let vendor = if amd { Vendor::Amd } else { Vendor::Intel };
        let la57 = l7.ecx & leaf7_ecx::LA57 != 0;
        *self = Self {
            vendor,
            hardware: host.map_or(vendor, |h| h.vendor),
            wide: host.map_or(la57, |h| h.la57),
            maxphyaddr: e8.eax as u8,
            la57,
            x2apic: l1.ecx & leaf1_ecx::X2APIC != 0,
            tsc_deadline: l1.ecx & leaf1_ecx::TSC_DEADLINE != 0,
            tsc_adjust: l7.ebx & leaf7_ebx::TSC_ADJUST != 0,
            rdtscp: e1.edx & ext1_edx::RDTSCP != 0,
            rdpid: l7.ecx & leaf7_ecx::RDPID != 0,
            movbe: l1.ecx & leaf1_ecx::MOVBE != 0,
            arch_capabilities: l7.edx & leaf7_edx::ARCH_CAPABILITIES != 0,
            rtm: l7.ebx & leaf7_ebx::RTM != 0,
            ibpb: l7.edx & leaf7_edx::SPEC_CTRL != 0 || e8.ebx & ext8_ebx::IBPB != 0,
            flush_l1d: l7.edx & leaf7_edx::L1D_FLUSH != 0,
            xsave: l1.ecx & leaf1_ecx::XSAVE != 0,
            xsaves: get(leaf::XSAVE, 1).eax & leafd_1_eax::XSAVES != 0 && l1.ecx & leaf1_ecx::XSAVE != 0,
            long_mode: e1.edx & ext1_edx::LM != 0,
            nx: e1.edx & ext1_edx::NX != 0,
            pages_1g: e1.edx & ext1_edx::PAGE_1G != 0,
            pcid: l1.ecx & leaf1_ecx::PCID != 0,
            invpcid: l7.ebx & leaf7_ebx::INVPCID != 0,
            rdrand: l1.ecx & leaf1_ecx::RDRAND != 0,
            rdseed: l7.ebx & leaf7_ebx::RDSEED != 0,
            perfctr_core: e1.ecx & ext1_ecx::PERFCTR_CORE != 0,
            fsgsbase: l7.ebx & leaf7_ebx::FSGSBASE != 0,
            smep: l7.ebx & leaf7_ebx::SMEP != 0,
            smap: l7.ebx & leaf7_ebx::SMAP != 0,
            umip: l7.ecx & leaf7_ecx::UMIP != 0,
            pku: l7.ecx & leaf7_ecx::PKU != 0,
            mce: l1.edx & (leaf1_edx::MCE | leaf1_edx::MCA) != 0,
            pv: get(KVM_CPUID_FEATURES, 0).eax,
            spec_ctrl: spec_ctrl_bits(&l7, &e8),
            spec_ctrl_hardware: spec_ctrl_bits(&l7, &e8),
            ..Self::default()
        };
        self.cr4_allowed = self.cr4_bits();
        self.efer_allowed = self.efer_bits(&e1, get(leaf::EXTENDED_FEATURES_2, 0));
        self.xcr0 = if self.xsave { xcr0_bits(get(leaf::XSAVE, 0)) } else { 0 };
        if let Some(host) = host {
            self.limit(host);
        }
    }

    fn limit(&mut self, host: &GuestCaps) {
        self.cr4_allowed &= host.cr4_allowed;
        self.efer_allowed &= host.efer_allowed;
        self.xcr0 &= host.xcr0;
        self.spec_ctrl &= host.spec_ctrl;
        self.spec_ctrl_hardware = host.spec_ctrl_hardware;
        self.pv &= host.pv;
        self.la57 &= host.la57;
        self.rdtscp &= host.rdtscp;
        // Without the instruction it is emulated, if its register exists.
        self.rdpid &= host.rdpid || host.rdtscp;
        self.ibpb &= host.ibpb;
        self.flush_l1d &= host.flush_l1d;
        self.xsaves &= host.xsaves;
    }

    fn cr4_bits(&self) -> u64 {
        [
            (self.umip, cr4::UMIP),
            (self.la57, cr4::LA57),
            (self.fsgsbase, cr4::FSGSBASE),
            (self.pcid, cr4::PCIDE),
            (self.xsave, cr4::OSXSAVE),
            (self.smep, cr4::SMEP),
            (self.smap, cr4::SMAP),
            (self.pku, cr4::PKE),
        ]
        .into_iter()
        .fold(CR4_ALWAYS, |bits, (has, bit)| if has { bits | bit } else { bits })
    }

    fn efer_bits(&self, e1: &CpuidResult, e21: CpuidResult) -> u64 {
        [
            (self.long_mode || e1.edx & ext1_edx::SYSCALL != 0, efer::SCE),
            (self.long_mode, efer::LME | efer::LMA),
            (self.nx, efer::NXE),
            (e1.edx & ext1_edx::FFXSR != 0, efer::FFXSR),
            (e21.eax & ext21_eax::AUTOMATIC_IBRS != 0, efer::AUTOIBRS),
            (e1.ecx & ext1_ecx::SVM != 0, efer::SVME),
        ]
        .into_iter()
        .fold(0, |bits, (has, bit)| if has { bits | bit } else { bits })
    }
}

/// Intel's bits in leaf 7 and AMD's in leaf 8000_0008 name the same register.
fn spec_ctrl_bits(l7: &CpuidResult, e8: &CpuidResult) -> u64 {
    [
        (l7.edx & leaf7_edx::SPEC_CTRL != 0 || e8.ebx & ext8_ebx::IBRS != 0, spec_ctrl::IBRS),
        (l7.edx & leaf7_edx::STIBP != 0 || e8.ebx & ext8_ebx::STIBP != 0, spec_ctrl::STIBP),
        (l7.edx & leaf7_edx::SSBD != 0 || e8.ebx & ext8_ebx::SSBD != 0, spec_ctrl::SSBD),
        (e8.ebx & ext8_ebx::PSFD != 0, spec_ctrl::PSFD),
    ]
    .into_iter()
    .fold(0, |bits, (has, bit)| if has { bits | bit } else { bits })
}

fn xcr0_bits(d0: CpuidResult) -> u64 {
    (u64::from(d0.edx) << 32 | u64::from(d0.eax)) & !(1 << 63) | xcr0::X87
}
