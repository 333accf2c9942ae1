//! What is asked of a VM as a whole: clock, capabilities to enable, filters.

use bytemuck::{Pod, Zeroable};

/// KVM_GET_CLOCK and KVM_SET_CLOCK; all times in nanoseconds.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct kvm_clock_data {
    pub clock: u64,
    /// `KVM_CLOCK_*`.
    pub flags: u32,
    pub pad0: u32,
    pub realtime: u64,
    pub host_tsc: u64,
    pub pad: [u32; 4],
}
pub const KVM_CLOCK_TSC_STABLE: u32 = 2;
pub const KVM_CLOCK_REALTIME: u32 = 1 << 2;
pub const KVM_CLOCK_HOST_TSC: u32 = 1 << 3;

/// KVM_ENABLE_CAP on a VM or a vCPU.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
pub struct kvm_enable_cap {
    pub cap: u32,
    pub flags: u32,
    pub args: [u64; 4],
    pub pad: [u8; 64],
}
pub const KVM_X86_DISABLE_EXITS_MWAIT: u64 = 1 << 0;
pub const KVM_X86_DISABLE_EXITS_HLT: u64 = 1 << 1;
pub const KVM_X86_DISABLE_EXITS_PAUSE: u64 = 1 << 2;
pub const KVM_X86_DISABLE_EXITS_CSTATE: u64 = 1 << 3;
pub const KVM_X86_DISABLE_VALID_EXITS: u64 = KVM_X86_DISABLE_EXITS_MWAIT
    | KVM_X86_DISABLE_EXITS_HLT
    | KVM_X86_DISABLE_EXITS_PAUSE
    | KVM_X86_DISABLE_EXITS_CSTATE;
pub const KVM_X2APIC_API_USE_32BIT_IDS: u64 = 1 << 0;
pub const KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK: u64 = 1 << 1;
pub const KVM_BUS_LOCK_DETECTION_OFF: u64 = 1 << 0;
pub const KVM_BUS_LOCK_DETECTION_EXIT: u64 = 1 << 1;
pub const KVM_PMU_CAP_DISABLE: u64 = 1 << 0;
pub const KVM_X86_NOTIFY_VMEXIT_ENABLED: u64 = 1 << 0;
pub const KVM_X86_NOTIFY_VMEXIT_USER: u64 = 1 << 1;
pub const KVM_X86_QUIRK_LINT0_REENABLED: u64 = 1 << 0;
pub const KVM_X86_QUIRK_CD_NW_CLEARED: u64 = 1 << 1;
pub const KVM_X86_QUIRK_LAPIC_MMIO_HOLE: u64 = 1 << 2;
pub const KVM_X86_QUIRK_OUT_7E_INC_RIP: u64 = 1 << 3;
pub const KVM_X86_QUIRK_MISC_ENABLE_NO_MWAIT: u64 = 1 << 4;
pub const KVM_X86_QUIRK_FIX_HYPERCALL_INSN: u64 = 1 << 5;
pub const KVM_X86_QUIRK_MWAIT_NEVER_UD_FAULTS: u64 = 1 << 6;

/// KVM_X86_SET_MSR_FILTER.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
pub struct kvm_msr_filter {
    /// `KVM_MSR_FILTER_DEFAULT_*`.
    pub flags: u32,
    pub pad: u32,
    pub ranges: [kvm_msr_filter_range; KVM_MSR_FILTER_MAX_RANGES],
}
pub const KVM_MSR_FILTER_MAX_RANGES: usize = 16;
pub const KVM_MSR_FILTER_MAX_BITMAP_SIZE: u32 = 0x600;
pub const KVM_MSR_FILTER_DEFAULT_ALLOW: u32 = 0;
pub const KVM_MSR_FILTER_DEFAULT_DENY: u32 = 1;

/// One range; a set bit of `bitmap` (a user address) allows, a clear one denies what `flags` names.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct kvm_msr_filter_range {
    /// [`KVM_MSR_FILTER_READ`], [`KVM_MSR_FILTER_WRITE`].
    pub flags: u32,
    pub nmsrs: u32,
    pub base: u32,
    pub pad: u32,
    pub bitmap: u64,
}
pub const KVM_MSR_FILTER_READ: u32 = 1 << 0;
pub const KVM_MSR_FILTER_WRITE: u32 = 1 << 1;

/// KVM_SET_PMU_EVENT_FILTER: the header; `nevents` words of 8 bytes follow.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct kvm_pmu_event_filter {
    pub action: u32,
    pub nevents: u32,
    pub fixed_counter_bitmap: u32,
    pub flags: u32,
    pub pad: [u32; 4],
}
pub const KVM_PMU_EVENT_ALLOW: u32 = 0;
pub const KVM_PMU_EVENT_DENY: u32 = 1;

/// KVM_XEN_HVM_CONFIG; kept for its ioctl number.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct kvm_xen_hvm_config {
    pub flags: u32,
    pub msr: u32,
    pub blob_addr_32: u64,
    pub blob_addr_64: u64,
    pub blob_size_32: u8,
    pub blob_size_64: u8,
    pub pad2: [u8; 30],
}

/// KVM_HYPERV_EVENTFD; kept for its ioctl number.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct kvm_hyperv_eventfd {
    pub conn_id: u32,
    pub fd: i32,
    pub flags: u32,
    pub padding: [u32; 3],
}

/// KVM_MEMORY_ENCRYPT_REG_REGION and its counterpart; kept for their ioctl numbers.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct kvm_enc_region {
    pub addr: u64,
    pub size: u64,
}

/// KVM_GET_ONE_REG and KVM_SET_ONE_REG; not used on x86 before Linux 6.18, kept for their ioctl numbers.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct kvm_one_reg {
    pub id: u64,
    pub addr: u64,
}
