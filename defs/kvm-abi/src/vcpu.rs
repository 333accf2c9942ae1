//! The state of one vCPU as the VMM reads and writes it.

use bytemuck::{Pod, Zeroable};

pub const KVM_NR_INTERRUPTS: usize = 256;
pub const KVM_APIC_REG_SIZE: usize = 0x400;
pub const KVM_MAX_XCRS: usize = 16;

/// KVM_GET_REGS and KVM_SET_REGS.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct kvm_regs {
    pub rax: u64,
    pub rbx: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rsi: u64,
    pub rdi: u64,
    pub rsp: u64,
    pub rbp: u64,
    pub r8: u64,
    pub r9: u64,
    pub r10: u64,
    pub r11: u64,
    pub r12: u64,
    pub r13: u64,
    pub r14: u64,
    pub r15: u64,
    pub rip: u64,
    pub rflags: u64,
}

/// KVM_GET_LAPIC and KVM_SET_LAPIC: the first 1 KiB of the register page in xAPIC layout.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
pub struct kvm_lapic_state {
    pub regs: [u8; KVM_APIC_REG_SIZE],
}

/// One segment register; `limit` is in bytes, `type_` is the header's `type`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct kvm_segment {
    pub base: u64,
    pub limit: u32,
    pub selector: u16,
    pub type_: u8,
    pub present: u8,
    pub dpl: u8,
    pub db: u8,
    pub s: u8,
    pub l: u8,
    pub g: u8,
    pub avl: u8,
    pub unusable: u8,
    pub padding: u8,
}

/// GDTR or IDTR.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct kvm_dtable {
    pub base: u64,
    pub limit: u16,
    pub padding: [u16; 3],
}

/// KVM_GET_SREGS and KVM_SET_SREGS.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct kvm_sregs {
    pub cs: kvm_segment,
    pub ds: kvm_segment,
    pub es: kvm_segment,
    pub fs: kvm_segment,
    pub gs: kvm_segment,
    pub ss: kvm_segment,
    pub tr: kvm_segment,
    pub ldt: kvm_segment,
    pub gdt: kvm_dtable,
    pub idt: kvm_dtable,
    pub cr0: u64,
    pub cr2: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub cr8: u64,
    pub efer: u64,
    pub apic_base: u64,
    /// The external interrupt waiting for injection, as at most one bit.
    pub interrupt_bitmap: [u64; KVM_NR_INTERRUPTS / 64],
}

/// KVM_GET_SREGS2 and KVM_SET_SREGS2.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct kvm_sregs2 {
    pub cs: kvm_segment,
    pub ds: kvm_segment,
    pub es: kvm_segment,
    pub fs: kvm_segment,
    pub gs: kvm_segment,
    pub ss: kvm_segment,
    pub tr: kvm_segment,
    pub ldt: kvm_segment,
    pub gdt: kvm_dtable,
    pub idt: kvm_dtable,
    pub cr0: u64,
    pub cr2: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub cr8: u64,
    pub efer: u64,
    pub apic_base: u64,
    pub flags: u64,
    pub pdptrs: [u64; 4],
}
pub const KVM_SREGS2_FLAGS_PDPTRS_VALID: u64 = 1;

/// KVM_GET_FPU and KVM_SET_FPU.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct kvm_fpu {
    pub fpr: [[u8; 16]; 8],
    pub fcw: u16,
    pub fsw: u16,
    /// Tag word in the abridged FXSAVE form.
    pub ftwx: u8,
    pub pad1: u8,
    pub last_opcode: u16,
    pub last_ip: u64,
    pub last_dp: u64,
    pub xmm: [[u8; 16]; 16],
    pub mxcsr: u32,
    pub pad2: u32,
}

/// KVM_GET_MSRS and KVM_SET_MSRS: the header; `nmsrs` entries of [`kvm_msr_entry`] follow.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct kvm_msrs {
    pub nmsrs: u32,
    pub pad: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct kvm_msr_entry {
    pub index: u32,
    pub reserved: u32,
    pub data: u64,
}

/// KVM_GET_MSR_INDEX_LIST: the header; `nmsrs` indices of 4 bytes follow.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct kvm_msr_list {
    pub nmsrs: u32,
}

/// KVM_SET_CPUID: the header; `nent` entries of [`kvm_cpuid_entry`] follow.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct kvm_cpuid {
    pub nent: u32,
    pub padding: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct kvm_cpuid_entry {
    pub function: u32,
    pub eax: u32,
    pub ebx: u32,
    pub ecx: u32,
    pub edx: u32,
    pub padding: u32,
}

/// KVM_SET_CPUID2 and its kin: the header; `nent` entries of [`kvm_cpuid_entry2`] follow.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct kvm_cpuid2 {
    pub nent: u32,
    pub padding: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct kvm_cpuid_entry2 {
    pub function: u32,
    /// Compared with ECX only if `flags` has [`KVM_CPUID_FLAG_SIGNIFCANT_INDEX`].
    pub index: u32,
    pub flags: u32,
    pub eax: u32,
    pub ebx: u32,
    pub ecx: u32,
    pub edx: u32,
    pub padding: [u32; 3],
}
/// The spelling is the header's.
pub const KVM_CPUID_FLAG_SIGNIFCANT_INDEX: u32 = 1 << 0;
pub const KVM_CPUID_FLAG_STATEFUL_FUNC: u32 = 1 << 1;
pub const KVM_CPUID_FLAG_STATE_READ_NEXT: u32 = 1 << 2;

/// KVM_TRANSLATE.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct kvm_translation {
    pub linear_address: u64,
    pub physical_address: u64,
    pub valid: u8,
    pub writeable: u8,
    pub usermode: u8,
    pub pad: [u8; 5],
}

/// KVM_INTERRUPT.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct kvm_interrupt {
    pub irq: u32,
}

/// KVM_SET_SIGNAL_MASK: the header; `len` bytes of signal set follow.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct kvm_signal_mask {
    pub len: u32,
}

/// KVM_TPR_ACCESS_REPORTING.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct kvm_tpr_access_ctl {
    pub enabled: u32,
    pub flags: u32,
    pub reserved: [u32; 8],
}

/// KVM_SET_VAPIC_ADDR.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct kvm_vapic_addr {
    pub vapic_addr: u64,
}

/// KVM_GET_MP_STATE and KVM_SET_MP_STATE.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct kvm_mp_state {
    pub mp_state: u32,
}
pub const KVM_MP_STATE_RUNNABLE: u32 = 0;
pub const KVM_MP_STATE_UNINITIALIZED: u32 = 1;
pub const KVM_MP_STATE_INIT_RECEIVED: u32 = 2;
pub const KVM_MP_STATE_HALTED: u32 = 3;
pub const KVM_MP_STATE_SIPI_RECEIVED: u32 = 4;
pub const KVM_MP_STATE_AP_RESET_HOLD: u32 = 9;

/// KVM_SET_GUEST_DEBUG; `debugreg` is the header's `arch.debugreg`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct kvm_guest_debug {
    pub control: u32,
    pub pad: u32,
    pub debugreg: [u64; 8],
}
pub const KVM_GUESTDBG_ENABLE: u32 = 0x1;
pub const KVM_GUESTDBG_SINGLESTEP: u32 = 0x2;
pub const KVM_GUESTDBG_USE_SW_BP: u32 = 0x1_0000;
pub const KVM_GUESTDBG_USE_HW_BP: u32 = 0x2_0000;
pub const KVM_GUESTDBG_INJECT_DB: u32 = 0x4_0000;
pub const KVM_GUESTDBG_INJECT_BP: u32 = 0x8_0000;
pub const KVM_GUESTDBG_BLOCKIRQ: u32 = 0x10_0000;

/// `exception` of [`kvm_vcpu_events`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct kvm_vcpu_events_exception {
    pub injected: u8,
    pub nr: u8,
    pub has_error_code: u8,
    pub pending: u8,
    pub error_code: u32,
}

/// `interrupt` of [`kvm_vcpu_events`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct kvm_vcpu_events_interrupt {
    pub injected: u8,
    pub nr: u8,
    pub soft: u8,
    /// `KVM_X86_SHADOW_INT_*`.
    pub shadow: u8,
}

/// `nmi` of [`kvm_vcpu_events`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct kvm_vcpu_events_nmi {
    pub injected: u8,
    pub pending: u8,
    pub masked: u8,
    pub pad: u8,
}

/// `smi` of [`kvm_vcpu_events`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct kvm_vcpu_events_smi {
    pub smm: u8,
    pub pending: u8,
    pub smm_inside_nmi: u8,
    pub latched_init: u8,
}

/// KVM_GET_VCPU_EVENTS and KVM_SET_VCPU_EVENTS.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct kvm_vcpu_events {
    pub exception: kvm_vcpu_events_exception,
    pub interrupt: kvm_vcpu_events_interrupt,
    pub nmi: kvm_vcpu_events_nmi,
    pub sipi_vector: u32,
    /// `KVM_VCPUEVENT_VALID_*`.
    pub flags: u32,
    pub smi: kvm_vcpu_events_smi,
    /// The header's `triple_fault.pending`.
    pub triple_fault_pending: u8,
    pub reserved: [u8; 26],
    pub exception_has_payload: u8,
    pub exception_payload: u64,
}
pub const KVM_VCPUEVENT_VALID_NMI_PENDING: u32 = 0x01;
pub const KVM_VCPUEVENT_VALID_SIPI_VECTOR: u32 = 0x02;
pub const KVM_VCPUEVENT_VALID_SHADOW: u32 = 0x04;
pub const KVM_VCPUEVENT_VALID_SMM: u32 = 0x08;
pub const KVM_VCPUEVENT_VALID_PAYLOAD: u32 = 0x10;
pub const KVM_VCPUEVENT_VALID_TRIPLE_FAULT: u32 = 0x20;
pub const KVM_X86_SHADOW_INT_MOV_SS: u8 = 0x01;
pub const KVM_X86_SHADOW_INT_STI: u8 = 0x02;

/// KVM_GET_DEBUGREGS and KVM_SET_DEBUGREGS.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct kvm_debugregs {
    pub db: [u64; 4],
    pub dr6: u64,
    pub dr7: u64,
    pub flags: u64,
    pub reserved: [u64; 9],
}

/// KVM_GET_XSAVE, KVM_SET_XSAVE: the first 4096 bytes; with KVM_CAP_XSAVE2 above 4096 more words follow.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
pub struct kvm_xsave {
    pub region: [u32; 1024],
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct kvm_xcr {
    pub xcr: u32,
    pub reserved: u32,
    pub value: u64,
}

/// KVM_GET_XCRS and KVM_SET_XCRS.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct kvm_xcrs {
    pub nr_xcrs: u32,
    pub flags: u32,
    pub xcrs: [kvm_xcr; KVM_MAX_XCRS],
    pub padding: [u64; 16],
}

/// The `regs` member of `kvm_run.s`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct kvm_sync_regs {
    pub regs: kvm_regs,
    pub sregs: kvm_sregs,
    pub events: kvm_vcpu_events,
}
pub const KVM_SYNC_X86_REGS: u64 = 1 << 0;
pub const KVM_SYNC_X86_SREGS: u64 = 1 << 1;
pub const KVM_SYNC_X86_EVENTS: u64 = 1 << 2;
pub const KVM_SYNC_X86_VALID_FIELDS: u64 = KVM_SYNC_X86_REGS | KVM_SYNC_X86_SREGS | KVM_SYNC_X86_EVENTS;

/// KVM_X86_SET_MCE.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct kvm_x86_mce {
    pub status: u64,
    pub addr: u64,
    pub misc: u64,
    pub mcg_status: u64,
    pub bank: u8,
    pub pad1: [u8; 7],
    pub pad2: [u64; 3],
}

/// KVM_GET_NESTED_STATE and KVM_SET_NESTED_STATE: the header of 128 bytes; `hdr` is a union of the vendors'.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
pub struct kvm_nested_state {
    pub flags: u16,
    pub format: u16,
    /// Bytes of header and data together.
    pub size: u32,
    pub hdr: [u64; 15],
}
pub const KVM_STATE_NESTED_FORMAT_VMX: u16 = 0;
pub const KVM_STATE_NESTED_FORMAT_SVM: u16 = 1;
pub const KVM_STATE_NESTED_GUEST_MODE: u16 = 0x0001;
pub const KVM_STATE_NESTED_RUN_PENDING: u16 = 0x0002;
pub const KVM_STATE_NESTED_EVMCS: u16 = 0x0004;
pub const KVM_STATE_NESTED_MTF_PENDING: u16 = 0x0008;
pub const KVM_STATE_NESTED_GIF_SET: u16 = 0x0100;

/// Device attribute group and attribute of a vCPU: the TSC offset.
pub const KVM_VCPU_TSC_CTRL: u32 = 0;
pub const KVM_VCPU_TSC_OFFSET: u64 = 0;
