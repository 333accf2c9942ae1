//! Steal time, and the byte in it by which siblings see that the vCPU was preempted and leave it a TLB flush to do.
//!
//! ```text
//!              sched_out, at an instruction boundary (`VcpuShared::steal`)
//!   0, it runs ───────────────────────▶ PREEMPTED ──── a sibling, instead of an IPI ────▶ PREEMPTED | FLUSH_TLB
//!      ▲                                                                                       │
//!      └──── exchanged for 0 before the guest runs; FLUSH_TLB was there: what it had translated is dropped
//! ```

use crate::backend::Backend;
use crate::host::Host;
use crate::shared::VcpuShared;
use crate::vcpu::Vcpu;
use crate::vcpu::pv::enabled;
use core::mem::offset_of;
use exitless_chooser::Mechanism::PvTlbFlush;
use exitless_pv_abi::{KVM_STEAL_VALID_BITS, KVM_VCPU_FLUSH_TLB, feature, kvm_steal_time};

/// Where the byte is.
const BYTE: u64 = offset_of!(kvm_steal_time, preempted) as u64;
/// What is written at once, in front of it.
const COUNTED: usize = offset_of!(kvm_steal_time, preempted);

/// MSR_KVM_STEAL_TIME.
pub fn set<B: Backend>(v: &mut Vcpu<B>, sh: &VcpuShared, msr: u64) {
    v.pv.steal = msr;
    sh.steal.set(enabled(msr).then_some((msr & KVM_STEAL_VALID_BITS) + BYTE));
}

/// Siblings may hear that this one was preempted: what follows is that they leave TLB flushes to it. A guest that cannot still wants
/// to know for whom to wait.
pub fn tells<B: Backend>(v: &Vcpu<B>, sh: &VcpuShared) -> bool {
    sh.active(PvTlbFlush) || v.cpuid.caps().pv & feature::PV_TLB_FLUSH == 0
}

/// Adds the time this thread waited runnable; the vCPU is preempted no more.
pub fn write<B: Backend, H: Host<Cpu = B::Cpu>>(v: &mut Vcpu<B>, sh: &VcpuShared, host: &H) {
    if !enabled(v.pv.steal) {
        return;
    }
    let gpa = v.pv.steal & KVM_STEAL_VALID_BITS;
    let mut st: kvm_steal_time = bytemuck::Zeroable::zeroed();
    if !v.read_guest(host, gpa, bytemuck::bytes_of_mut(&mut st)) {
        // Whatever was left there cannot be seen.
        v.flush = true;
        return;
    }
    // Before the read above or behind it, the byte is ours until it is exchanged. Else who finds 0 has nothing to take back.
    let told = sh.steal.told();
    let left = (told || st.preempted != 0) && runs(v, host, gpa + BYTE, st.preempted);
    if told {
        sh.steal.taken_back();
    }
    if left {
        v.flush = true;
        sh.stats.tlb_flush.bump();
        if sh.active(PvTlbFlush) {
            sh.count_hit(PvTlbFlush);
            // The IPI that would have brought it out.
            sh.stats.deeds(PvTlbFlush).saved.bump();
        }
    }
    let delay = host.run_delay();
    let version = st.version.wrapping_add(1) | 1;
    st.version = version;
    st.steal = st.steal.wrapping_add(delay.wrapping_sub(v.pv.last_delay));
    v.pv.last_delay = delay;
    let bytes = bytemuck::bytes_of(&st);
    if v.write_guest(host, gpa, bytes.get(..COUNTED).unwrap_or(&[])) {
        v.write_guest(host, gpa + 8, &version.wrapping_add(1).to_le_bytes());
    }
}

/// Takes the byte back; `true`: a flush was left to us, or may have been. Others change it once, while it says preempted.
fn runs<B: Backend, H: Host<Cpu = B::Cpu>>(v: &Vcpu<B>, host: &H, byte: u64, mut seen: u8) -> bool {
    for _ in 0..3 {
        match host.cmpxchg_guest(byte, 1, seen.into(), 0) {
            Some(true) => return seen & KVM_VCPU_FLUSH_TLB != 0,
            Some(false) => {
                let mut now = [0];
                if !v.read_guest(host, byte, &mut now) {
                    return true;
                }
                [seen] = now;
            }
            None => return true,
        }
    }
    v.write_guest(host, byte, &[0]);
    true
}
