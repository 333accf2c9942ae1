//! The file behind KVM_GET_STATS_FD: a header, an id string, descriptors, then the numbers (8 bytes each).

use bytemuck::{Pod, Zeroable};

/// At offset 0 of the file.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct kvm_stats_header {
    pub flags: u32,
    /// Bytes of each descriptor's name, its NUL included.
    pub name_size: u32,
    pub num_desc: u32,
    pub id_offset: u32,
    pub desc_offset: u32,
    pub data_offset: u32,
}

/// One statistic; `name_size` bytes of name follow it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct kvm_stats_desc {
    /// `KVM_STATS_TYPE_*`, `KVM_STATS_UNIT_*`, `KVM_STATS_BASE_*`, one of each.
    pub flags: u32,
    pub exponent: i16,
    /// How many numbers.
    pub size: u16,
    /// From the start of the data block.
    pub offset: u32,
    pub bucket_size: u32,
}
pub const KVM_STATS_TYPE_MASK: u32 = 0xf;
pub const KVM_STATS_TYPE_CUMULATIVE: u32 = 0;
pub const KVM_STATS_TYPE_INSTANT: u32 = 1;
pub const KVM_STATS_TYPE_PEAK: u32 = 2;
pub const KVM_STATS_TYPE_LINEAR_HIST: u32 = 3;
pub const KVM_STATS_TYPE_LOG_HIST: u32 = 4;
pub const KVM_STATS_UNIT_MASK: u32 = 0xf << 4;
pub const KVM_STATS_UNIT_NONE: u32 = 0 << 4;
pub const KVM_STATS_UNIT_BYTES: u32 = 1 << 4;
pub const KVM_STATS_UNIT_SECONDS: u32 = 2 << 4;
pub const KVM_STATS_UNIT_CYCLES: u32 = 3 << 4;
pub const KVM_STATS_UNIT_BOOLEAN: u32 = 4 << 4;
pub const KVM_STATS_BASE_MASK: u32 = 0xf << 8;
pub const KVM_STATS_BASE_POW10: u32 = 0 << 8;
pub const KVM_STATS_BASE_POW2: u32 = 1 << 8;
