//! Paravirtual features of the KVM ABI: kvmclock, wall clock, steal time, PV EOI. All in guest memory that the guest
//! named by MSR; a bad address hurts only the guest.

use crate::backend::Backend;
use crate::host::Host;
use crate::shared::VcpuShared;
use crate::vcpu::Vcpu;
use exitless_pv_abi::{
    KVM_MSR_ENABLED, KVM_PV_EOI_ADDRESS, KVM_STEAL_VALID_BITS, PVCLOCK_GUEST_STOPPED, PVCLOCK_TSC_STABLE_BIT,
    kvm_steal_time, pvclock_vcpu_time_info, pvclock_wall_clock,
};

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
    /// The guest was told it may skip an EOI.
    pub eoi_offered: bool,
    /// KVM_KVMCLOCK_CTRL: tell the guest that it was stopped.
    pub stopped: bool,
    pad: [u8; 6],
    /// Run delay already accounted, ns.
    pub last_delay: u64,
}

fn enabled(msr: u64) -> bool {
    msr & KVM_MSR_ENABLED != 0
}

/// Writes this vCPU's clock page. The version is odd while the rest changes (ABI: pvclock).
pub fn write_clock<B: Backend, H: Host<Cpu = B::Cpu>>(v: &mut Vcpu<B>, host: &H) {
    if !enabled(v.pv.system_time) {
        return;
    }
    let gpa = v.pv.system_time & !KVM_MSR_ENABLED;
    let m = host.master_clock();
    let mut info: pvclock_vcpu_time_info = bytemuck::Zeroable::zeroed();
    if !host.read_guest(gpa, bytemuck::bytes_of_mut(&mut info)) {
        return;
    }
    // Who is told that it was stopped clears that flag itself, when it has seen it.
    let mut flags = info.flags & PVCLOCK_GUEST_STOPPED;
    if v.pv.stopped {
        flags |= PVCLOCK_GUEST_STOPPED;
    }
    if m.stable {
        flags |= PVCLOCK_TSC_STABLE_BIT;
    }
    info.version = info.version.wrapping_add(1) | 1;
    info.tsc_timestamp = v.guest_tsc(m.tsc);
    info.system_time = m.ns;
    (info.tsc_to_system_mul, info.tsc_shift) = v.rate.clock_factors();
    info.flags = flags;
    // Odd version first and alone, then everything, then the even version: readers retry on odd or changed.
    if !host.write_guest(gpa, &info.version.to_le_bytes())
        || !host.write_guest(gpa, bytemuck::bytes_of(&info))
    {
        return;
    }
    host.write_guest(gpa, &info.version.wrapping_add(1).to_le_bytes());
    v.pv.stopped = false;
}

/// The guest was stopped: it hears so with its clock page, if it has one.
pub fn note_stopped<B: Backend>(v: &mut Vcpu<B>) {
    v.pv.stopped = enabled(v.pv.system_time);
}

/// The guest asked for the wall-clock time of its boot.
pub fn write_wall_clock<B: Backend, H: Host<Cpu = B::Cpu>>(v: &mut Vcpu<B>, host: &H) {
    let gpa = v.pv.wall_clock;
    let mut version = [0; 4];
    if gpa == 0 || !host.read_guest(gpa, &mut version) {
        return;
    }
    let old = u32::from_le_bytes(version);
    let odd = old.wrapping_add(1) | 1;
    let ns = host.wall_clock_base();
    let mut wc: pvclock_wall_clock = bytemuck::Zeroable::zeroed();
    wc.version = odd;
    wc.sec = (ns / 1_000_000_000) as u32;
    wc.nsec = (ns % 1_000_000_000) as u32;
    if host.write_guest(gpa, bytemuck::bytes_of(&wc)) {
        host.write_guest(gpa, &odd.wrapping_add(1).to_le_bytes());
    }
}

/// Adds the time this thread waited runnable.
pub fn write_steal<B: Backend, H: Host<Cpu = B::Cpu>>(v: &mut Vcpu<B>, host: &H) {
    if !enabled(v.pv.steal) {
        return;
    }
    let gpa = v.pv.steal & KVM_STEAL_VALID_BITS;
    let mut st: kvm_steal_time = bytemuck::Zeroable::zeroed();
    if !host.read_guest(gpa, bytemuck::bytes_of_mut(&mut st)) {
        return;
    }
    let delay = host.run_delay();
    let version = st.version.wrapping_add(1) | 1;
    st.version = version;
    st.steal = st.steal.wrapping_add(delay.wrapping_sub(v.pv.last_delay));
    st.preempted = 0;
    v.pv.last_delay = delay;
    let bytes = bytemuck::bytes_of(&st);
    // Only the fields that are ours: steal, version, flags and the preempted byte.
    if host.write_guest(gpa, bytes.get(..17).unwrap_or(&[])) {
        host.write_guest(gpa + 8, &version.wrapping_add(1).to_le_bytes());
    }
}

/// After injection: lets the guest skip the EOI of an edge-triggered interrupt behind which nothing waits.
pub fn offer_eoi<B: Backend, H: Host<Cpu = B::Cpu>>(v: &mut Vcpu<B>, sh: &VcpuShared, host: &H) {
    if !enabled(v.pv.eoi) {
        return;
    }
    let want = v.lapic.can_pv_eoi(&sh.apic).is_some_and(|vector| !host.wants_eoi(vector));
    if want == v.pv.eoi_offered {
        return;
    }
    let byte = [u8::from(want)];
    if host.write_guest(v.pv.eoi & KVM_PV_EOI_ADDRESS, &byte) {
        v.pv.eoi_offered = want;
    }
}

/// Before user space may look: takes back an offer that was not used, so that the APIC's registers tell all. The next
/// entry offers again.
pub fn withdraw_eoi<B: Backend, H: Host<Cpu = B::Cpu>>(v: &mut Vcpu<B>, host: &H) {
    if core::mem::take(&mut v.pv.eoi_offered) {
        host.write_guest(v.pv.eoi & KVM_PV_EOI_ADDRESS, &[0]);
    }
}

/// After a slice, before anything looks at the APIC: did the guest use the offer?
pub fn collect_eoi<B: Backend, H: Host<Cpu = B::Cpu>>(v: &mut Vcpu<B>, sh: &VcpuShared, host: &H) {
    if !v.pv.eoi_offered {
        return;
    }
    let gpa = v.pv.eoi & KVM_PV_EOI_ADDRESS;
    let mut byte = [0];
    if !host.read_guest(gpa, &mut byte) {
        return;
    }
    if byte[0] & 1 == 0 {
        v.pv.eoi_offered = false;
        crate::vapic::take_back(v, sh);
        // Only edge-triggered interrupts are offered: no I/O APIC waits for this EOI.
        let _ = v.lapic.eoi(&sh.apic);
        v.event_dirty = true;
    }
}
