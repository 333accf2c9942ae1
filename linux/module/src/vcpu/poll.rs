//! Waiting awake: in HLT for a moment, before the thread sleeps; and giving way to a vCPU that may hold what we spin on.
//!
//! How long HLT waits follows what it brings, as on stock KVM, between 0 and a limit (the module's `halt_poll_ns`, or the
//! VM's own by KVM_CAP_HALT_POLL): it grows while
//! wake-ups come soon after the thread went to sleep, and ends when they come late.

use super::VcpuObj;
use crate::vm::Vm;
use core::sync::atomic::Ordering::Relaxed;
use exitless_host::task::WorkWord;
use exitless_host::{task, time};

/// The first step from 0, ns.
const FIRST_NS: u64 = 10_000;
/// Yields that fail before a spinning vCPU goes on.
const TRIES: u32 = 3;

/// Waits at most until `until` (ns). `true`: the vCPU has something to do.
pub fn halted(v: &VcpuObj, work: &WorkWord, until: u64) -> bool {
    let limit = v.poll_ns.load(Relaxed).min(most(v));
    if limit == 0 || !task::single_task_running() {
        return false;
    }
    let end = time::monotonic_ns().saturating_add(limit).min(until);
    loop {
        if v.shared.must_wake() {
            return true;
        }
        if work.pending() || time::monotonic_ns() >= end {
            return false;
        }
        task::cpu_relax();
    }
}

/// The longest wait, ns: the VM's, if its owner set one, else the module's.
fn most(v: &VcpuObj) -> u64 {
    match v.vm().halt_poll_ns.load(Relaxed) {
        u32::MAX => task::halt_poll_ns(),
        own => u64::from(own),
    }
}

/// The thread slept for so long, ns.
pub fn slept(v: &VcpuObj, ns: u64) {
    let (now, most) = (v.poll_ns.load(Relaxed), most(v));
    let next = if ns > most { 0 } else { (now * 2).clamp(FIRST_NS, most.max(FIRST_NS)).min(most) };
    v.poll_ns.store(next, Relaxed);
}

/// `me` spins: lets a vCPU run that was preempted, the next one after the last that got the chance.
pub fn spins(vm: &Vm, me: &VcpuObj) {
    let n = vm.vcpu_count();
    let first = vm.last_boosted.load(Relaxed) as usize + 1;
    let mut tries = 0;
    for i in (first..first + n).map(|i| i % n.max(1)) {
        let Some(v) = vm.vcpu(i).filter(|v| v.index != me.index && v.preempted.load(Relaxed)) else {
            continue;
        };
        match v.task.yield_to(true) {
            Ok(true) => return vm.last_boosted.store(i as u32, Relaxed),
            _ if tries == TRIES => return,
            _ => tries += 1,
        }
    }
}
