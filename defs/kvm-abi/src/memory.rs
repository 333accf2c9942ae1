//! Guest memory: slots, dirty logs, coalesced MMIO, memory attributes.

use bytemuck::{Pod, Zeroable};

/// KVM_SET_MEMORY_REGION, obsolete; kept for its ioctl number.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct kvm_memory_region {
    pub slot: u32,
    pub flags: u32,
    pub guest_phys_addr: u64,
    pub memory_size: u64,
}

/// KVM_SET_MEMORY_ALIAS, obsolete; kept for its ioctl number.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct kvm_memory_alias {
    pub slot: u32,
    pub flags: u32,
    pub guest_phys_addr: u64,
    pub memory_size: u64,
    pub target_phys_addr: u64,
}

/// KVM_SET_USER_MEMORY_REGION; sizes and addresses in bytes, size 0 deletes the slot.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct kvm_userspace_memory_region {
    /// Bits 15:0 the slot, bits 31:16 the address space.
    pub slot: u32,
    /// `KVM_MEM_*`.
    pub flags: u32,
    pub guest_phys_addr: u64,
    pub memory_size: u64,
    pub userspace_addr: u64,
}
pub const KVM_MEM_LOG_DIRTY_PAGES: u32 = 1 << 0;
pub const KVM_MEM_READONLY: u32 = 1 << 1;
/// Linux 6.8.
pub const KVM_MEM_GUEST_MEMFD: u32 = 1 << 2;

/// KVM_SET_USER_MEMORY_REGION2 (Linux 6.8).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct kvm_userspace_memory_region2 {
    pub slot: u32,
    pub flags: u32,
    pub guest_phys_addr: u64,
    pub memory_size: u64,
    pub userspace_addr: u64,
    pub guest_memfd_offset: u64,
    pub guest_memfd: u32,
    pub pad1: u32,
    pub pad2: [u64; 14],
}

/// KVM_SET_MEMORY_ATTRIBUTES (Linux 6.8).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct kvm_memory_attributes {
    pub address: u64,
    pub size: u64,
    pub attributes: u64,
    pub flags: u64,
}
pub const KVM_MEMORY_ATTRIBUTE_PRIVATE: u64 = 1 << 3;

/// KVM_CREATE_GUEST_MEMFD (Linux 6.8).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct kvm_create_guest_memfd {
    pub size: u64,
    pub flags: u64,
    pub reserved: [u64; 6],
}

/// KVM_PRE_FAULT_MEMORY (Linux 6.11).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct kvm_pre_fault_memory {
    pub gpa: u64,
    pub size: u64,
    pub flags: u64,
    pub padding: [u64; 5],
}

/// KVM_GET_DIRTY_LOG; `dirty_bitmap` is a user address of one bit per page.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct kvm_dirty_log {
    pub slot: u32,
    pub padding1: u32,
    pub dirty_bitmap: u64,
}

/// KVM_CLEAR_DIRTY_LOG; `first_page` and (but for the slot's end) `num_pages` are multiples of 64.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct kvm_clear_dirty_log {
    pub slot: u32,
    pub num_pages: u32,
    pub first_page: u64,
    pub dirty_bitmap: u64,
}
pub const KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE: u64 = 1 << 0;
pub const KVM_DIRTY_LOG_INITIALLY_SET: u64 = 1 << 1;

/// One entry of a vCPU's dirty ring, mapped from page [`KVM_DIRTY_LOG_PAGE_OFFSET`] on.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct kvm_dirty_gfn {
    pub flags: u32,
    pub slot: u32,
    pub offset: u64,
}
pub const KVM_DIRTY_GFN_F_DIRTY: u32 = 1 << 0;
pub const KVM_DIRTY_GFN_F_RESET: u32 = 1 << 1;
pub const KVM_DIRTY_GFN_F_MASK: u32 = 3;

/// Pages of a vCPU's mapping, counted from its start.
pub const KVM_PIO_PAGE_OFFSET: u32 = 1;
pub const KVM_COALESCED_MMIO_PAGE_OFFSET: u32 = 2;
pub const KVM_DIRTY_LOG_PAGE_OFFSET: u32 = 64;

/// KVM_REGISTER_COALESCED_MMIO and KVM_UNREGISTER_COALESCED_MMIO; `pio` nonzero means a port range.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct kvm_coalesced_mmio_zone {
    pub addr: u64,
    pub size: u32,
    pub pio: u32,
}

/// One entry of the coalesced ring.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct kvm_coalesced_mmio {
    pub phys_addr: u64,
    pub len: u32,
    pub pio: u32,
    pub data: [u8; 8],
}

/// The coalesced ring's header; [`KVM_COALESCED_MMIO_MAX`] entries follow in the same page.
/// User space advances `first`, the kernel `last`; equal means empty.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct kvm_coalesced_mmio_ring {
    pub first: u32,
    pub last: u32,
}
/// Entries of the ring in one 4 KiB page.
pub const KVM_COALESCED_MMIO_MAX: u32 = ((4096 - core::mem::size_of::<kvm_coalesced_mmio_ring>())
    / core::mem::size_of::<kvm_coalesced_mmio>()) as u32;
