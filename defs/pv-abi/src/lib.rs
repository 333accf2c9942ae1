//! What a guest and its host share beyond the architecture: CPUID leaves, MSRs, hypercalls, and structures in guest
//! memory (`<asm/kvm_para.h>`, `<linux/kvm_para.h>`, and the pvclock ABI of Linux' `pvclock-abi.h`).
//!
//! Feature constants are bit masks of CPUID.40000001H:EAX, not bit numbers.
#![no_std]
#![forbid(unsafe_code)]
// The names are the headers' own; what they leave unsaid is said here.
#![allow(non_camel_case_types, missing_docs)]

use bytemuck::{Pod, Zeroable};

/// Leaf whose EAX is the highest hypervisor leaf and whose EBX, ECX, EDX hold [`KVM_SIGNATURE`].
pub const KVM_CPUID_SIGNATURE: u32 = 0x4000_0000;
/// Leaf with the `KVM_FEATURE_*` bits in EAX and the hints in EDX.
pub const KVM_CPUID_FEATURES: u32 = 0x4000_0001;
/// "KVMKVMKVM\0\0\0" as EBX, ECX, EDX.
pub const KVM_SIGNATURE: [u32; 3] =
    [u32::from_le_bytes(*b"KVMK"), u32::from_le_bytes(*b"VMKV"), u32::from_le_bytes(*b"M\0\0\0")];

/// Feature bits of [`KVM_CPUID_FEATURES`], as masks.
pub mod feature {
    pub const CLOCKSOURCE: u32 = 1 << 0;
    pub const NOP_IO_DELAY: u32 = 1 << 1;
    pub const MMU_OP: u32 = 1 << 2;
    /// kvmclock behind the MSRs at 0x4b564d00 on.
    pub const CLOCKSOURCE2: u32 = 1 << 3;
    pub const ASYNC_PF: u32 = 1 << 4;
    pub const STEAL_TIME: u32 = 1 << 5;
    pub const PV_EOI: u32 = 1 << 6;
    pub const PV_UNHALT: u32 = 1 << 7;
    pub const PV_TLB_FLUSH: u32 = 1 << 9;
    pub const ASYNC_PF_VMEXIT: u32 = 1 << 10;
    pub const PV_SEND_IPI: u32 = 1 << 11;
    pub const POLL_CONTROL: u32 = 1 << 12;
    pub const PV_SCHED_YIELD: u32 = 1 << 13;
    pub const ASYNC_PF_INT: u32 = 1 << 14;
    pub const MSI_EXT_DEST_ID: u32 = 1 << 15;
    pub const HC_MAP_GPA_RANGE: u32 = 1 << 16;
    pub const MIGRATION_CONTROL: u32 = 1 << 17;
    /// The guest may trust [`super::PVCLOCK_TSC_STABLE_BIT`].
    pub const CLOCKSOURCE_STABLE: u32 = 1 << 24;
}
/// Bit of EDX in [`KVM_CPUID_FEATURES`]: vCPUs are never preempted for long.
pub const KVM_HINTS_REALTIME: u32 = 1 << 0;

pub const MSR_KVM_WALL_CLOCK: u32 = 0x11;
pub const MSR_KVM_SYSTEM_TIME: u32 = 0x12;
pub const MSR_KVM_WALL_CLOCK_NEW: u32 = 0x4b56_4d00;
pub const MSR_KVM_SYSTEM_TIME_NEW: u32 = 0x4b56_4d01;
pub const MSR_KVM_ASYNC_PF_EN: u32 = 0x4b56_4d02;
pub const MSR_KVM_STEAL_TIME: u32 = 0x4b56_4d03;
pub const MSR_KVM_PV_EOI_EN: u32 = 0x4b56_4d04;
pub const MSR_KVM_POLL_CONTROL: u32 = 0x4b56_4d05;
pub const MSR_KVM_ASYNC_PF_INT: u32 = 0x4b56_4d06;
pub const MSR_KVM_ASYNC_PF_ACK: u32 = 0x4b56_4d07;
pub const MSR_KVM_MIGRATION_CONTROL: u32 = 0x4b56_4d08;

/// Bit 0 of the system-time, steal-time and PV-EOI MSRs: the address in the other bits is live.
pub const KVM_MSR_ENABLED: u64 = 1;
/// Bits of MSR_KVM_STEAL_TIME that hold the address (64-byte aligned).
pub const KVM_STEAL_VALID_BITS: u64 = !0 << 6;
/// Bits of MSR_KVM_STEAL_TIME that must be 0.
pub const KVM_STEAL_RESERVED_MASK: u64 = 0x1f << 1;
/// Bits of MSR_KVM_PV_EOI_EN that hold the address (4-byte aligned); bit 1 must be 0.
pub const KVM_PV_EOI_ADDRESS: u64 = !3;

/// Bits of MSR_KVM_ASYNC_PF_EN; the address in the others is 64-byte aligned.
pub const KVM_ASYNC_PF_ENABLED: u64 = 1 << 0;
/// Also at CPL 0.
pub const KVM_ASYNC_PF_SEND_ALWAYS: u64 = 1 << 1;
/// A guest hypervisor hears of it by an exit.
pub const KVM_ASYNC_PF_DELIVERY_AS_PF_VMEXIT: u64 = 1 << 2;
/// "Page ready" comes as an interrupt; without it nothing is told.
pub const KVM_ASYNC_PF_DELIVERY_AS_INT: u64 = 1 << 3;
/// Bits that must be 0.
pub const KVM_ASYNC_PF_RESERVED_MASK: u64 = 3 << 4;
/// Bits that hold the address.
pub const KVM_ASYNC_PF_ADDRESS: u64 = !0 << 6;
/// Bits of MSR_KVM_ASYNC_PF_INT that hold the vector; the others must be 0.
pub const KVM_ASYNC_PF_VEC_MASK: u64 = 0xff;

/// Asynchronous page faults of one vCPU, 64-byte aligned in guest memory.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct kvm_vcpu_pv_apf_data {
    /// Written by the host with a #PF that is none: KVM_PV_REASON_*. The guest takes it back to 0 in its handler.
    pub flags: u32,
    /// Written by the host with the interrupt: whose page is there. The guest takes it back to 0, then writes MSR_KVM_ASYNC_PF_ACK.
    pub token: u32,
    pub pad: [u8; 56],
    /// The guest's own.
    pub enabled: u32,
}
/// CR2 holds the token of the page that is not there.
pub const KVM_PV_REASON_PAGE_NOT_PRESENT: u32 = 1;

/// kvmclock of one vCPU, written by the host under a sequence lock.
///
/// Reader: take `version` (odd: retry), read, take `version` again (changed: retry). Time in ns is
/// `system_time + ((rdtsc - tsc_timestamp) << tsc_shift) * tsc_to_system_mul >> 32`; a negative shift goes right.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct pvclock_vcpu_time_info {
    /// Odd while an update is in progress.
    pub version: u32,
    pub pad0: u32,
    /// Guest TSC at `system_time`.
    pub tsc_timestamp: u64,
    /// ns.
    pub system_time: u64,
    pub tsc_to_system_mul: u32,
    pub tsc_shift: i8,
    /// `PVCLOCK_*`.
    pub flags: u8,
    pub pad: [u8; 2],
}
/// All vCPUs' readings are one monotonic clock.
pub const PVCLOCK_TSC_STABLE_BIT: u8 = 1 << 0;
/// The host stopped this guest for a while (KVM_KVMCLOCK_CTRL); the guest clears it.
pub const PVCLOCK_GUEST_STOPPED: u8 = 1 << 1;

/// The wall-clock time at which kvmclock was 0. `version` as in [`pvclock_vcpu_time_info`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct pvclock_wall_clock {
    pub version: u32,
    pub sec: u32,
    pub nsec: u32,
}

/// Time one vCPU waited for a CPU, in ns; 64-byte aligned in guest memory. `version` is odd during an update.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct kvm_steal_time {
    pub steal: u64,
    pub version: u32,
    pub flags: u32,
    /// `KVM_VCPU_*`; written by the host when it takes the CPU away.
    pub preempted: u8,
    pub u8_pad: [u8; 3],
    pub pad: [u32; 11],
}
pub const KVM_VCPU_PREEMPTED: u8 = 1 << 0;
/// Set by a guest's remote flush instead of an IPI; the host flushes before the vCPU runs again.
pub const KVM_VCPU_FLUSH_TLB: u8 = 1 << 1;

/// Result of [`KVM_HC_CLOCK_PAIRING`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct kvm_clock_pairing {
    pub sec: i64,
    pub nsec: i64,
    pub tsc: u64,
    pub flags: u32,
    pub pad: [u32; 9],
}
pub const KVM_CLOCK_PAIRING_WALLCLOCK: u32 = 0;

/// Bit 0 of the 32-bit PV EOI word: set by the host when the guest may skip the next EOI write, cleared by the guest
/// in place of that write.
pub const KVM_PV_EOI_BIT: u32 = 0;
pub const KVM_PV_EOI_MASK: u32 = 1 << KVM_PV_EOI_BIT;
pub const KVM_PV_EOI_ENABLED: u32 = KVM_PV_EOI_MASK;
pub const KVM_PV_EOI_DISABLED: u32 = 0;

pub const KVM_HC_VAPIC_POLL_IRQ: u64 = 1;
pub const KVM_HC_MMU_OP: u64 = 2;
pub const KVM_HC_FEATURES: u64 = 3;
pub const KVM_HC_KICK_CPU: u64 = 5;
pub const KVM_HC_CLOCK_PAIRING: u64 = 9;
pub const KVM_HC_SEND_IPI: u64 = 10;
pub const KVM_HC_SCHED_YIELD: u64 = 11;
pub const KVM_HC_MAP_GPA_RANGE: u64 = 12;

/// What a hypercall answers in RAX, as negative values of these.
pub const KVM_ENOSYS: i64 = 1000;
pub const KVM_EFAULT: i64 = 14;
pub const KVM_EINVAL: i64 = 22;
pub const KVM_E2BIG: i64 = 7;
pub const KVM_EPERM: i64 = 1;
pub const KVM_EOPNOTSUPP: i64 = 95;

/// First of the module's own leaves, as guests find hypervisors: EAX is the highest of them, EBX, ECX and EDX hold
/// [`EXITLESS_SIGNATURE`]. They are there while one of the mechanisms that they tell of is switched on.
pub const EXITLESS_CPUID_SIGNATURE: u32 = 0x4000_4500;
/// Leaf with `exitless_feature` bits in EAX and [`EXITLESS_VERSION`] in EBX.
pub const EXITLESS_CPUID_FEATURES: u32 = 0x4000_4501;
/// "ExitlessPV\0\0" as EBX, ECX, EDX.
pub const EXITLESS_SIGNATURE: [u32; 3] =
    [u32::from_le_bytes(*b"Exit"), u32::from_le_bytes(*b"less"), u32::from_le_bytes(*b"PV\0\0")];
/// Of what the features mean, MSRs and structures included: a guest that knows another one uses none of them.
pub const EXITLESS_VERSION: u32 = 1;

/// Feature bits of [`EXITLESS_CPUID_FEATURES`], as masks.
pub mod exitless_feature {
    /// [`super::MSR_EXITLESS_LAZY_DEADLINE`] is there.
    pub const LAZY_DEADLINE: u32 = 1 << 0;
    /// [`super::MSR_EXITLESS_DESCRIPTOR`] is there, and the window behind it.
    pub const SHARED_DESCRIPTOR: u32 = 1 << 1;
    /// [`super::EXITLESS_DESCRIPTOR_RAW`] may be set: the MSRs behind [`super::MSR_EXITLESS_DESCRIPTOR`] are there.
    pub const RAW_SEND: u32 = 1 << 2;
    /// [`super::EXITLESS_HOST_TICKS`] may be set in [`super::MSR_EXITLESS_LAZY_DEADLINE`].
    pub const HOST_TICKS: u32 = 1 << 3;
    /// [`super::EXITLESS_INSIDE`] may be set there.
    pub const TIMER_IN_GUEST: u32 = 1 << 4;
}

/// Where the vCPU's [`exitless_lazy_deadline`] lies: bit 0 enables it, bit 1 is [`EXITLESS_HOST_TICKS`], bits 63:6 are the address, the
/// others 0. Writing 0 always works on a host that knows it.
pub const MSR_EXITLESS_LAZY_DEADLINE: u32 = 0x4558_4c00;
/// Bits of [`MSR_EXITLESS_LAZY_DEADLINE`] that hold the address.
pub const EXITLESS_LAZY_ADDRESS: u64 = !0 << 6;
/// Bit of [`MSR_EXITLESS_LAZY_DEADLINE`]: the guest subtracts `offset` from what it writes to IA32_TSC_DEADLINE.
pub const EXITLESS_HOST_TICKS: u64 = 1 << 1;
/// Another: before it writes, it requests the timer's vector in its own descriptor in the window, where `inside` says so.
pub const EXITLESS_INSIDE: u64 = 1 << 2;

/// What guest and host share of one vCPU's timer, 64-byte aligned in guest memory (`docs/protocols/lazy-deadline.md`). The first two are
/// moments of the guest's TSC.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct exitless_lazy_deadline {
    /// Written by the host: what it has a timer for; 0: it does not look at `pending`.
    pub armed: u64,
    /// Written by the guest: what it wants.
    pub pending: u64,
    /// Written by the host: not 0: IA32_TSC_DEADLINE is in ticks of the host's TSC, which is the guest's less this.
    pub offset: u64,
    /// Written by the host: not 0: the guest requests its timer's vector before it writes, and bears that it comes early.
    pub inside: u64,
    /// Written by the guest: linear address of the first instruction of its sequence, and its length.
    pub sequence: u64,
    pub length: u64,
    pub reserved: [u64; 2],
}

/// Bit 0, [`EXITLESS_DESCRIPTOR_SHARED`]: the vCPU uses the window; bit 1, [`EXITLESS_DESCRIPTOR_RAW`]: it sends by itself. The
/// others are 0 (`docs/protocols/shared-descriptor.md`).
pub const MSR_EXITLESS_DESCRIPTOR: u32 = 0x4558_4c01;
/// Linear address of the first instruction of the sequence that sends.
pub const MSR_EXITLESS_SEQUENCE: u32 = 0x4558_4c02;
/// Bits 15:0: from there to the first instruction behind the one that sets the request; bits 31:16: to the first behind the
/// sequence; the others 0.
pub const MSR_EXITLESS_SEQUENCE_PARTS: u32 = 0x4558_4c03;
/// Written: as the interrupt command register in x2APIC mode, whoever has that. Not read.
pub const MSR_EXITLESS_ICR: u32 = 0x4558_4c04;

pub const EXITLESS_DESCRIPTOR_SHARED: u64 = 1 << 0;
pub const EXITLESS_DESCRIPTOR_RAW: u64 = 1 << 1;

/// Guest-physical address of the descriptor of the vCPU with APIC id 0; the next is 64 bytes behind. No VMM has memory there.
pub const EXITLESS_WINDOW: u64 = 0xfee1_0000;
/// How many descriptors the window has.
pub const EXITLESS_WINDOW_ENTRIES: u32 = 1024;
/// What a flag in the window reads when it is set. Where there is no window, reads are zeroes or ones.
pub const EXITLESS_YES: u64 = u64::from_le_bytes(*b"Attended");

/// A posted-interrupt descriptor (SDM vol. 3C, 30.6) in the window, with what software has in it.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct exitless_descriptor {
    /// A request bit for each vector.
    pub pir: [u64; 4],
    /// Bit 0 ON, bit 1 SN, bits 23:16 NV, bits 63:32 NDST (an x2APIC id of the host's).
    pub control: u64,
    /// [`EXITLESS_YES`]: this vCPU may send by itself. Written by the host.
    pub sends: u64,
    /// [`EXITLESS_YES`]: others may post to this vCPU. Written by the host.
    pub found: u64,
    pub reserved: u64,
}
