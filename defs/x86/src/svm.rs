//! SVM facts: the VMCB's layout, intercept bits, exit codes (APM vol. 2, chapter 15 and appendices B and C).

pub mod avic;

use bytemuck::{Pod, Zeroable};
use core::mem::{offset_of, size_of};

/// A segment register as the VMCB stores it (APM vol. 2, table B-2).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[allow(missing_docs)]
pub struct VmcbSeg {
    pub selector: u16,
    pub attrib: u16,
    pub limit: u32,
    pub base: u64,
}

/// The control area, offsets 0 to 0x3ff (APM vol. 2, table B-1).
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[allow(missing_docs)]
pub struct VmcbControl {
    pub intercept_cr_read: u16,
    pub intercept_cr_write: u16,
    pub intercept_dr_read: u16,
    pub intercept_dr_write: u16,
    pub intercept_exceptions: u32,
    pub intercept1: u32,
    pub intercept2: u32,
    pub intercept3: u32,
    pub reserved_018: [u32; 9],
    pub pause_filter_threshold: u16,
    pub pause_filter_count: u16,
    pub iopm_base_pa: u64,
    pub msrpm_base_pa: u64,
    pub tsc_offset: u64,
    pub asid: u32,
    pub tlb_control: u8,
    pub reserved_05d: [u8; 3],
    pub int_ctl: u32,
    pub int_vector: u32,
    pub int_state: u32,
    pub reserved_06c: u32,
    pub exit_code: u64,
    pub exit_info_1: u64,
    pub exit_info_2: u64,
    pub exit_int_info: u32,
    pub exit_int_info_err: u32,
    pub nested_ctl: u64,
    pub avic_vapic_bar: u64,
    pub ghcb_pa: u64,
    pub event_inj: u32,
    pub event_inj_err: u32,
    pub nested_cr3: u64,
    pub virt_ext: u64,
    pub clean: u32,
    pub reserved_0c4: u32,
    pub next_rip: u64,
    pub insn_len: u8,
    pub insn_bytes: [u8; 15],
    pub avic_backing_page: u64,
    pub reserved_0e8: u64,
    pub avic_logical_id: u64,
    pub avic_physical_id: u64,
    pub reserved_100: [u64; 96],
}

/// The state save area, offsets 0x400 to 0x6e7 (APM vol. 2, table B-2).
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[allow(missing_docs)]
pub struct VmcbSave {
    pub es: VmcbSeg,
    pub cs: VmcbSeg,
    pub ss: VmcbSeg,
    pub ds: VmcbSeg,
    pub fs: VmcbSeg,
    pub gs: VmcbSeg,
    pub gdtr: VmcbSeg,
    pub ldtr: VmcbSeg,
    pub idtr: VmcbSeg,
    pub tr: VmcbSeg,
    pub reserved_4a0: [u8; 43],
    pub cpl: u8,
    pub reserved_4cc: u32,
    pub efer: u64,
    pub reserved_4d8: [u64; 14],
    pub cr4: u64,
    pub cr3: u64,
    pub cr0: u64,
    pub dr7: u64,
    pub dr6: u64,
    pub rflags: u64,
    pub rip: u64,
    pub reserved_580: [u64; 11],
    pub rsp: u64,
    pub s_cet: u64,
    pub ssp: u64,
    pub isst_addr: u64,
    pub rax: u64,
    pub star: u64,
    pub lstar: u64,
    pub cstar: u64,
    pub sfmask: u64,
    pub kernel_gs_base: u64,
    pub sysenter_cs: u64,
    pub sysenter_esp: u64,
    pub sysenter_eip: u64,
    pub cr2: u64,
    pub reserved_648: [u64; 4],
    pub g_pat: u64,
    pub dbgctl: u64,
    pub br_from: u64,
    pub br_to: u64,
    pub last_excp_from: u64,
    pub last_excp_to: u64,
    pub reserved_698: [u64; 9],
    pub spec_ctrl: u64,
}

/// One virtual machine control block: a 4 KiB page.
#[repr(C, align(4096))]
#[derive(Clone, Copy, Zeroable)]
#[allow(missing_docs)]
pub struct Vmcb {
    pub control: VmcbControl,
    pub save: VmcbSave,
    pub reserved: [u8; 0x1000 - 0x400 - size_of::<VmcbSave>()],
}

const _: () = {
    assert!(size_of::<VmcbControl>() == 0x400);
    assert!(size_of::<Vmcb>() == 0x1000);
    assert!(offset_of!(VmcbControl, pause_filter_threshold) == 0x03c);
    assert!(offset_of!(VmcbControl, tsc_offset) == 0x050);
    assert!(offset_of!(VmcbControl, int_ctl) == 0x060);
    assert!(offset_of!(VmcbControl, exit_code) == 0x070);
    assert!(offset_of!(VmcbControl, exit_int_info) == 0x088);
    assert!(offset_of!(VmcbControl, event_inj) == 0x0a8);
    assert!(offset_of!(VmcbControl, nested_cr3) == 0x0b0);
    assert!(offset_of!(VmcbControl, clean) == 0x0c0);
    assert!(offset_of!(VmcbControl, next_rip) == 0x0c8);
    assert!(offset_of!(VmcbControl, insn_bytes) == 0x0d1);
    assert!(offset_of!(VmcbControl, avic_vapic_bar) == 0x098);
    assert!(offset_of!(VmcbControl, avic_backing_page) == 0x0e0);
    assert!(offset_of!(VmcbControl, avic_logical_id) == 0x0f0);
    assert!(offset_of!(VmcbControl, avic_physical_id) == 0x0f8);
    assert!(offset_of!(VmcbSave, cpl) == 0x0cb);
    assert!(offset_of!(VmcbSave, efer) == 0x0d0);
    assert!(offset_of!(VmcbSave, cr4) == 0x148);
    assert!(offset_of!(VmcbSave, rip) == 0x178);
    assert!(offset_of!(VmcbSave, rsp) == 0x1d8);
    assert!(offset_of!(VmcbSave, rax) == 0x1f8);
    assert!(offset_of!(VmcbSave, sysenter_eip) == 0x238);
    assert!(offset_of!(VmcbSave, cr2) == 0x240);
    assert!(offset_of!(VmcbSave, g_pat) == 0x268);
    assert!(offset_of!(VmcbSave, spec_ctrl) == 0x2e0);
    assert!(offset_of!(VmcbSave, last_excp_to) == 0x290);
};

/// Bits of `intercept1` (VMCB offset 0x00c).
#[allow(missing_docs)]
pub mod intercept1 {
    pub const INTR: u32 = 1 << 0;
    pub const NMI: u32 = 1 << 1;
    pub const SMI: u32 = 1 << 2;
    pub const INIT: u32 = 1 << 3;
    pub const VINTR: u32 = 1 << 4;
    pub const CR0_SEL_WRITE: u32 = 1 << 5;
    pub const RDPMC: u32 = 1 << 15;
    pub const CPUID: u32 = 1 << 18;
    pub const RSM: u32 = 1 << 19;
    pub const IRET: u32 = 1 << 20;
    pub const INVD: u32 = 1 << 22;
    pub const PAUSE: u32 = 1 << 23;
    pub const HLT: u32 = 1 << 24;
    pub const INVLPGA: u32 = 1 << 26;
    pub const IOIO_PROT: u32 = 1 << 27;
    pub const MSR_PROT: u32 = 1 << 28;
    pub const TASK_SWITCH: u32 = 1 << 29;
    pub const SHUTDOWN: u32 = 1 << 31;
}

/// Bits of `intercept2` (VMCB offset 0x010).
#[allow(missing_docs)]
pub mod intercept2 {
    pub const VMRUN: u32 = 1 << 0;
    pub const VMMCALL: u32 = 1 << 1;
    pub const VMLOAD: u32 = 1 << 2;
    pub const VMSAVE: u32 = 1 << 3;
    pub const STGI: u32 = 1 << 4;
    pub const CLGI: u32 = 1 << 5;
    pub const SKINIT: u32 = 1 << 6;
    pub const RDTSCP: u32 = 1 << 7;
    pub const WBINVD: u32 = 1 << 9;
    pub const MONITOR: u32 = 1 << 10;
    pub const MWAIT: u32 = 1 << 11;
    pub const XSETBV: u32 = 1 << 13;
    pub const RDPRU: u32 = 1 << 14;
}

/// Bits of `intercept3` (VMCB offset 0x014).
#[allow(missing_docs)]
pub mod intercept3 {
    pub const INVPCID: u32 = 1 << 2;
}

/// Bits of `int_ctl` (VMCB offset 0x060).
#[allow(missing_docs)]
pub mod int_ctl {
    pub const V_TPR: u32 = 0xff;
    pub const V_IRQ: u32 = 1 << 8;
    pub const V_INTR_PRIO_SHIFT: u32 = 16;
    pub const V_INTR_PRIO: u32 = 15 << 16;
    pub const V_IGN_TPR: u32 = 1 << 20;
    pub const V_INTR_MASKING: u32 = 1 << 24;
    /// The guest's APIC is one of MSRs (APM vol. 2, 15.29.10).
    pub const X2AVIC: u32 = 1 << 30;
    pub const AVIC: u32 = 1 << 31;
}

/// Bits of EXITINFO2 of a task switch (APM vol. 2, 15.14.1); the low half is the error code.
#[allow(missing_docs)]
pub mod task_switch {
    pub const IRET: u64 = 1 << 36;
    pub const JUMP: u64 = 1 << 38;
    pub const ERROR_CODE: u64 = 1 << 44;
    pub const RF: u64 = 1 << 48;
}

/// Bits of EVENTINJ and EXITINTINFO (APM vol. 2, 15.20).
#[allow(missing_docs)]
pub mod event_inj {
    pub const VECTOR: u32 = 0xff;
    pub const TYPE: u32 = 7 << 8;
    pub const TYPE_INTR: u32 = 0 << 8;
    pub const TYPE_NMI: u32 = 2 << 8;
    pub const TYPE_EXCEPTION: u32 = 3 << 8;
    pub const TYPE_SOFT: u32 = 4 << 8;
    pub const ERROR_VALID: u32 = 1 << 11;
    pub const VALID: u32 = 1 << 31;
}

/// Values of TLB_CONTROL (APM vol. 2, 15.16.1).
#[allow(missing_docs)]
pub mod tlb_control {
    pub const NONE: u8 = 0;
    pub const FLUSH_ALL: u8 = 1;
    pub const FLUSH_ASID: u8 = 3;
}

/// Bits of the clean field, each a group of fields (APM vol. 2, 15.15.3, table 15-9). 1: not changed since the VMCB's last entry, which
/// was on this CPU.
#[allow(missing_docs)]
pub mod clean {
    pub const NONE: u32 = 0;
    /// All intercepts, the TSC's offset, the PAUSE filter.
    pub const INTERCEPTS: u32 = 1 << 0;
    /// The addresses of the I/O and MSR permission maps.
    pub const PERMISSION_MAPS: u32 = 1 << 1;
    pub const ASID: u32 = 1 << 2;
    /// `int_ctl` and `int_vector`.
    pub const TPR: u32 = 1 << 3;
    /// The nested tables' root and G_PAT.
    pub const NP: u32 = 1 << 4;
    /// CR0, CR3, CR4, EFER.
    pub const CRX: u32 = 1 << 5;
    /// DR6, DR7.
    pub const DRX: u32 = 1 << 6;
    /// GDTR, IDTR.
    pub const DT: u32 = 1 << 7;
    /// CS, DS, SS, ES and CPL.
    pub const SEG: u32 = 1 << 8;
    pub const CR2: u32 = 1 << 9;
    /// DEBUGCTL and the last branch's and exception's addresses.
    pub const LBR: u32 = 1 << 10;
    /// The addresses of AVIC's pages.
    pub const AVIC: u32 = 1 << 11;
    /// What this module keeps. Later CPUs have more bits, reserved on earlier ones.
    pub const ALL: u32 = (1 << 12) - 1;
}

/// NESTED_CTL bit 0: nested paging on.
pub const NESTED_CTL_NP: u64 = 1;
/// INT_STATE bit 0: the guest is in an interrupt shadow.
pub const INT_STATE_SHADOW: u32 = 1;

/// A #VMEXIT code (APM vol. 2, appendix C). Open: hardware may extend it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExitCode(pub u64);

#[allow(missing_docs)]
impl ExitCode {
    pub const CR0_READ: Self = Self(0x00);
    pub const CR15_WRITE: Self = Self(0x1f);
    pub const DR0_READ: Self = Self(0x20);
    pub const DR15_WRITE: Self = Self(0x3f);
    pub const EXCP_BASE: Self = Self(0x40);
    pub const EXCP_LAST: Self = Self(0x5f);
    pub const INTR: Self = Self(0x60);
    pub const NMI: Self = Self(0x61);
    pub const SMI: Self = Self(0x62);
    pub const INIT: Self = Self(0x63);
    pub const VINTR: Self = Self(0x64);
    pub const CR0_SEL_WRITE: Self = Self(0x65);
    pub const RDTSC: Self = Self(0x6e);
    pub const RDPMC: Self = Self(0x6f);
    pub const CPUID: Self = Self(0x72);
    pub const RSM: Self = Self(0x73);
    pub const IRET: Self = Self(0x74);
    pub const INVD: Self = Self(0x76);
    pub const PAUSE: Self = Self(0x77);
    pub const HLT: Self = Self(0x78);
    pub const INVLPG: Self = Self(0x79);
    pub const INVLPGA: Self = Self(0x7a);
    pub const IOIO: Self = Self(0x7b);
    pub const MSR: Self = Self(0x7c);
    pub const TASK_SWITCH: Self = Self(0x7d);
    pub const SHUTDOWN: Self = Self(0x7f);
    pub const VMRUN: Self = Self(0x80);
    pub const VMMCALL: Self = Self(0x81);
    pub const VMLOAD: Self = Self(0x82);
    pub const VMSAVE: Self = Self(0x83);
    pub const STGI: Self = Self(0x84);
    pub const CLGI: Self = Self(0x85);
    pub const SKINIT: Self = Self(0x86);
    pub const RDTSCP: Self = Self(0x87);
    pub const WBINVD: Self = Self(0x89);
    pub const MONITOR: Self = Self(0x8a);
    pub const MWAIT: Self = Self(0x8b);
    pub const MWAIT_ARMED: Self = Self(0x8c);
    pub const XSETBV: Self = Self(0x8d);
    pub const RDPRU: Self = Self(0x8e);
    pub const INVPCID: Self = Self(0xa2);
    pub const NPF: Self = Self(0x400);
    pub const AVIC_INCOMPLETE_IPI: Self = Self(0x401);
    pub const AVIC_NOACCEL: Self = Self(0x402);
    pub const INVALID: Self = Self(u64::MAX);

    /// VMRUN refused the guest's state. -1 is 64 bits wide on hardware; QEMU's emulation stores 32.
    pub fn is_invalid(self) -> bool {
        matches!(self, Self::INVALID | Self(0xffff_ffff))
    }

    /// The name, in the words KVM's tools use.
    pub fn name(self) -> Option<&'static str> {
        Some(match self {
            Self::INTR => "interrupt",
            Self::NMI => "nmi",
            Self::SMI => "smi",
            Self::INIT => "init",
            Self::VINTR => "vintr",
            Self::CR0_SEL_WRITE => "cr0_sel_write",
            Self(0x00) => "read_cr0",
            Self(0x10) => "write_cr0",
            Self(0x14) => "write_cr4",
            Self(0x46) => "UD excp",
            Self(0x18) => "write_cr8",
            Self(0x20..=0x2f) => "read_dr",
            Self(0x30..=0x3f) => "write_dr",
            Self(0x41) => "DB excp",
            Self(0x51) => "AC excp",
            Self(0x52) => "MC excp",
            Self::CPUID => "cpuid",
            Self::IRET => "iret",
            Self::INVD => "invd",
            Self::PAUSE => "pause",
            Self::HLT => "hlt",
            Self::INVLPGA => "invlpga",
            Self::IOIO => "io",
            Self::MSR => "msr",
            Self::TASK_SWITCH => "task_switch",
            Self::SHUTDOWN => "shutdown",
            Self::VMRUN => "vmrun",
            Self::VMMCALL => "hypercall",
            Self::RDPMC => "rdpmc",
            Self::WBINVD => "wbinvd",
            Self::MONITOR => "monitor",
            Self::MWAIT | Self::MWAIT_ARMED => "mwait",
            Self::XSETBV => "xsetbv",
            Self::RDPRU => "rdpru",
            Self::RDTSCP => "rdtscp",
            Self::INVPCID => "invpcid",
            Self::NPF => "npf",
            Self::AVIC_INCOMPLETE_IPI => "avic_incomplete_ipi",
            Self::AVIC_NOACCEL => "avic_unaccelerated_access",
            Self::INVALID => "invalid",
            _ => return None,
        })
    }
}

/// EXITINFO1 of an IOIO exit (APM vol. 2, 15.10.2).
#[allow(missing_docs)]
pub mod ioio {
    pub const TYPE_IN: u64 = 1 << 0;
    pub const STR: u64 = 1 << 2;
    pub const REP: u64 = 1 << 3;
    pub const SIZE_SHIFT: u32 = 4;
    pub const ADDR_SHIFT: u32 = 7;
    pub const SEG_SHIFT: u32 = 10;
    pub const PORT_SHIFT: u32 = 16;
}

/// EXITINFO1 of a nested page fault (APM vol. 2, 15.25.6).
#[allow(missing_docs)]
pub mod npf {
    pub const PRESENT: u64 = 1 << 0;
    pub const WRITE: u64 = 1 << 1;
    pub const USER: u64 = 1 << 2;
    pub const RSVD: u64 = 1 << 3;
    pub const FETCH: u64 = 1 << 4;
    pub const FINAL: u64 = 1 << 32;
    pub const WALK: u64 = 1 << 33;
}

/// CPUID 8000_000A.EDX feature bits (APM vol. 3, appendix E).
#[allow(missing_docs)]
pub mod feature {
    pub const NP: u32 = 1 << 0;
    pub const LBR_VIRT: u32 = 1 << 1;
    pub const NRIP_SAVE: u32 = 1 << 3;
    pub const TSC_RATE: u32 = 1 << 4;
    pub const VMCB_CLEAN: u32 = 1 << 5;
    pub const FLUSH_BY_ASID: u32 = 1 << 6;
    pub const DECODE_ASSISTS: u32 = 1 << 7;
    pub const PAUSE_FILTER: u32 = 1 << 10;
    pub const PAUSE_THRESHOLD: u32 = 1 << 12;
    pub const AVIC: u32 = 1 << 13;
    pub const VGIF: u32 = 1 << 16;
    pub const X2AVIC: u32 = 1 << 18;
    pub const SPEC_CTRL: u32 = 1 << 20;
}
