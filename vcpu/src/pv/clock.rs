//! kvmclock: the clock page of a vCPU, the wall clock of the boot, and the wall clock of now (KVM_HC_CLOCK_PAIRING).

use crate::backend::Backend;
use crate::host::Host;
use crate::vcpu::Vcpu;
use crate::vcpu::pv::enabled;
use exitless_pv_abi::{
    KVM_EFAULT, KVM_EOPNOTSUPP, KVM_MSR_ENABLED, PVCLOCK_GUEST_STOPPED, PVCLOCK_TSC_STABLE_BIT,
    kvm_clock_pairing, pvclock_vcpu_time_info, pvclock_wall_clock,
};

/// Writes this vCPU's clock page. The version is odd while the rest changes (ABI: pvclock).
pub fn write<B: Backend, H: Host<Cpu = B::Cpu>>(v: &mut Vcpu<B>, host: &H) {
    if !enabled(v.pv.system_time) {
        return;
    }
    let gpa = v.pv.system_time & !KVM_MSR_ENABLED;
    let m = host.master_clock();
    let mut info: pvclock_vcpu_time_info = bytemuck::Zeroable::zeroed();
    if !v.read_guest(host, gpa, bytemuck::bytes_of_mut(&mut info)) {
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
    if !v.write_guest(host, gpa, &info.version.to_le_bytes())
        || !v.write_guest(host, gpa, bytemuck::bytes_of(&info))
    {
        return;
    }
    v.write_guest(host, gpa, &info.version.wrapping_add(1).to_le_bytes());
    v.pv.stopped = false;
}

/// The guest was stopped: it hears so with its clock page, if it has one.
pub fn note_stopped<B: Backend>(v: &mut Vcpu<B>) {
    v.pv.stopped = enabled(v.pv.system_time);
}

/// The guest asked for the wall-clock time of its boot.
pub fn write_wall<B: Backend, H: Host<Cpu = B::Cpu>>(v: &mut Vcpu<B>, host: &H) {
    let gpa = v.pv.wall_clock;
    let mut version = [0; 4];
    if gpa == 0 || !v.read_guest(host, gpa, &mut version) {
        return;
    }
    let old = u32::from_le_bytes(version);
    let odd = old.wrapping_add(1) | 1;
    let ns = host.wall_clock_base();
    let mut wc: pvclock_wall_clock = bytemuck::Zeroable::zeroed();
    wc.version = odd;
    wc.sec = (ns / 1_000_000_000) as u32;
    wc.nsec = (ns % 1_000_000_000) as u32;
    if v.write_guest(host, gpa, bytemuck::bytes_of(&wc)) {
        v.write_guest(host, gpa, &odd.wrapping_add(1).to_le_bytes());
    }
}

/// Writes what the host's wall clock and the guest's TSC are at one moment; 0, or a negative error.
pub fn pair<B: Backend, H: Host<Cpu = B::Cpu>>(v: &Vcpu<B>, host: &H, gpa: u64) -> i64 {
    let Some((ns, tsc)) = host.wall_clock_pair() else { return -KVM_EOPNOTSUPP };
    let mut pair: kvm_clock_pairing = bytemuck::Zeroable::zeroed();
    pair.sec = (ns / 1_000_000_000) as i64;
    pair.nsec = (ns % 1_000_000_000) as i64;
    pair.tsc = v.guest_tsc(tsc);
    if v.write_guest(host, gpa, bytemuck::bytes_of(&pair)) { 0 } else { -KVM_EFAULT }
}
