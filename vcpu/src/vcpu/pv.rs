//! What the guest's paravirtual MSRs hold.

use exitless_pv_abi::KVM_MSR_ENABLED;

/// The MSRs' values and what the host remembers beside them.
#[derive(Clone, Copy, Debug, Default, bytemuck::Zeroable)]
#[repr(C)]
pub struct Pv {
    /// MSR_KVM_SYSTEM_TIME(_NEW): address and enable bit.
    pub system_time: u64,
    /// MSR_KVM_WALL_CLOCK(_NEW).
    pub wall_clock: u64,
    /// MSR_KVM_STEAL_TIME.
    pub steal: u64,
    /// MSR_KVM_PV_EOI_EN.
    pub eoi: u64,
    /// MSR_KVM_ASYNC_PF_EN.
    pub async_pf: u64,
    /// MSR_KVM_ASYNC_PF_INT.
    pub async_pf_int: u64,
    /// The guest was told it may skip an EOI.
    pub eoi_offered: bool,
    /// KVM_KVMCLOCK_CTRL: tell the guest that it was stopped.
    pub stopped: bool,
    /// MSR_KVM_POLL_CONTROL is 0: the guest waits awake before it halts, so the host need not.
    pub polls_itself: bool,
    pad: [u8; 5],
    /// MSR_EXITLESS_LAZY_DEADLINE.
    pub lazy_deadline: u64,
    /// What is attended of it.
    pub lazy: exitless_lazy::Host,
    /// What it wants of the window to descriptors.
    pub raw: super::raw::Raw,
    /// Run delay already accounted, ns.
    pub last_delay: u64,
}

/// The enable bit of such an MSR.
pub fn enabled(msr: u64) -> bool {
    msr & KVM_MSR_ENABLED != 0
}
