//! Steal time.

use crate::backend::Backend;
use crate::host::Host;
use crate::vcpu::Vcpu;
use crate::vcpu::pv::enabled;
use exitless_pv_abi::{KVM_STEAL_VALID_BITS, kvm_steal_time};

/// Adds the time this thread waited runnable.
pub fn write<B: Backend, H: Host<Cpu = B::Cpu>>(v: &mut Vcpu<B>, host: &H) {
    if !enabled(v.pv.steal) {
        return;
    }
    let gpa = v.pv.steal & KVM_STEAL_VALID_BITS;
    let mut st: kvm_steal_time = bytemuck::Zeroable::zeroed();
    if !v.read_guest(host, gpa, bytemuck::bytes_of_mut(&mut st)) {
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
    if v.write_guest(host, gpa, bytes.get(..17).unwrap_or(&[])) {
        v.write_guest(host, gpa + 8, &version.wrapping_add(1).to_le_bytes());
    }
}
