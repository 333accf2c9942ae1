//! Waiting awake: in HLT for a moment, before the thread sleeps; and giving way to a vCPU that may hold what we spin on.
//!
//! How long HLT waits follows what it brings, as on stock KVM, between 0 and a limit (the module's `halt_poll_ns`, or the
//! VM's own by KVM_CAP_HALT_POLL): it grows while
//! wake-ups come soon after the thread went to sleep, and ends when they come late.

use super::VcpuObj;
use crate::vm::Vm;
use core::sync::atomic::Ordering::Relaxed;
use exitless_host::task::WorkWord;
use exitless_host::{task, time, trace};
use exitless_yielding::Seen;

/// The first step from 0, ns.
const FIRST_NS: u64 = 10_000;
/// Waits at most until `until` (ns). `true`: the vCPU has something to do.
pub fn halted(v: &VcpuObj, work: &WorkWord, until: u64) -> bool {
    let limit = v.poll_ns.load(Relaxed).min(most(v));
    if limit == 0 || !task::single_task_running() {
        return false;
    }
    let stats = &v.shared.stats;
    stats.halt_polls.bump();
    let begin = time::monotonic_ns();
    let end = begin.saturating_add(limit).min(until);
    loop {
        let now = time::monotonic_ns();
        if v.shared.must_wake() {
            let ns = now.saturating_sub(begin);
            stats.halt_poll_success_ns.add(ns);
            stats.polls_won.note(ns);
            if trace::wanted() {
                trace::wakeup(ns, false, true);
            }
            return true;
        }
        if work.pending() || now >= end {
            let ns = now.saturating_sub(begin);
            stats.halt_poll_fail_ns.add(ns);
            stats.polls_lost.note(ns);
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
    if trace::wanted() && next != now {
        trace::halt_poll(v.id, next, now);
    }
}

/// `me` spins: lets a vCPU of its VM run that is ready; `false`: found none. Touches nothing of the others but what they publish.
pub fn spins(vm: &Vm, me: &VcpuObj) -> bool {
    let look = |i: usize| {
        let v = vm.vcpu(i)?;
        Seen::of(&v.shared.hints, || v.shared.apic.has_irr() || v.shared.apic.has_nmis())
    };
    let hints = &me.shared.hints;
    let few = vm.turns.choose(me.index as usize, vm.vcpu_count(), hints.take_receiver(), look);
    hints.spins(true);
    let yielded = few.iter().filter_map(|i| vm.vcpu(i)).any(yield_to);
    hints.spins(false);
    yielded
}

/// Lets `v` run in this thread's place if it is ready; `true`: it does.
pub fn yield_to(v: &VcpuObj) -> bool {
    v.shared.hints.is_ready() && v.task.yield_to(true) == Ok(true)
}
