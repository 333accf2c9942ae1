//! `exitctl check PID`: is all well with a VM that runs? Two looks at its vCPUs, and what cannot be right, or costs more than it should.

use crate::device::Device;
use anyhow::Result;
use exitless_control_abi::{HealthRecord, health};
use serde::Serialize;
use std::time::Duration;

/// Between two looks.
const BETWEEN: Duration = Duration::from_millis(300);
/// What waits longer than this does not come any more, or far too late, ns.
const PATIENCE: u64 = 100_000_000;
/// More halts of one vCPU in a second are a storm.
const STORM: f64 = 20_000.0;
/// Clocks that are further apart than this were not meant to agree, or do not, ns.
const APART: u64 = 1000;

/// What is wrong with a vCPU.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Trouble {
    pub(crate) vcpu: u32,
    pub(crate) what: String,
    /// What to do, or to look at.
    pub(crate) advice: &'static str,
}

/// The vCPUs at a moment of CLOCK_MONOTONIC, ns.
#[derive(Clone, Debug)]
pub(crate) struct Look {
    at: u64,
    vcpus: Vec<HealthRecord>,
}

impl Look {
    fn take(d: &Device, vm: u64, vcpus: u32) -> Result<Self> {
        let vcpus = d.health(vm, vcpus + 16)?;
        Ok(Self { at: crate::device::monotonic_ns(), vcpus })
    }
}

/// Looks twice.
pub(crate) fn of(d: &Device, vm: u64, vcpus: u32, khz: u32) -> Result<Vec<Trouble>> {
    let first = Look::take(d, vm, vcpus)?;
    std::thread::sleep(BETWEEN);
    Ok(judge(&first, &Look::take(d, vm, vcpus)?, khz))
}

fn judge(first: &Look, second: &Look, khz: u32) -> Vec<Trouble> {
    let mut found = Vec::new();
    for now in &second.vcpus {
        if let Some(before) = first.vcpus.iter().find(|v| v.id == now.id) {
            let each = [lost(before, now, second.at), overdue(before, now, second.at), unseen(before, now)];
            found.extend(each.into_iter().flatten());
            found.extend(storm(before, now, second.at.saturating_sub(first.at)));
        }
    }
    found.extend(apart(&second.vcpus, khz));
    found
}

/// Both looks found it in the same sleep.
fn same_sleep(before: &HealthRecord, now: &HealthRecord) -> bool {
    now.asleep != 0 && now.asleep == before.asleep
}

/// An interrupt waits, the vCPU could take it, and sleeps.
fn lost(before: &HealthRecord, now: &HealthRecord, at: u64) -> Option<Trouble> {
    let all = health::HALTED | health::OPEN | health::PENDING;
    let waits = |v: &HealthRecord| v.flags & all == all;
    let slept = at.saturating_sub(now.asleep);
    let wrong = same_sleep(before, now) && waits(before) && waits(now) && slept > PATIENCE;
    wrong.then(|| Trouble {
        vcpu: now.id,
        what: format!("halted for {} ms with interrupts enabled, and one is pending", slept / 1_000_000),
        advice: "a lost wake-up, unless the guest halts in a handler or with its task priority raised: report it; an NMI (QEMU: nmi) wakes it",
    })
}

/// Its timer was due, and it sleeps.
fn overdue(before: &HealthRecord, now: &HealthRecord, at: u64) -> Option<Trouble> {
    let late = at.saturating_sub(now.wakes_at);
    let wrong = same_sleep(before, now) && now.wakes_at != 0 && late > PATIENCE;
    wrong.then(|| Trouble {
        vcpu: now.id,
        what: format!("its timer was due {} ms ago, and it sleeps", late / 1_000_000),
        advice: "no timer of the host's is behind the deadline, or the host's CPU is stuck (dmesg): report it",
    })
}

/// It was asked to look at something, and sleeps.
fn unseen(before: &HealthRecord, now: &HealthRecord) -> Option<Trouble> {
    let wrong = same_sleep(before, now) && before.requests & now.requests != 0;
    wrong.then(|| Trouble {
        vcpu: now.id,
        what: format!("it sleeps with requests {:#x}", now.requests),
        advice: "nobody woke it for them: report it",
    })
}

fn storm(before: &HealthRecord, now: &HealthRecord, ns: u64) -> Option<Trouble> {
    let rate = now.halts.saturating_sub(before.halts) as f64 * 1e9 / ns.max(1) as f64;
    (rate > STORM).then(|| Trouble {
        vcpu: now.id,
        what: format!("a storm of halts: {rate:.0} in a second"),
        advice: "the guest sleeps for less than that costs: let it wait awake (haltpoll in the guest, QEMU's -cpu +kvm-poll-control, or a longer halt_poll_ns)",
    })
}

/// TSCs of the same rate that do not agree with the first vCPU's.
fn apart(vcpus: &[HealthRecord], khz: u32) -> Vec<Trouble> {
    let Some(first) = vcpus.first() else { return Vec::new() };
    let ns = |v: &HealthRecord| {
        let ticks = (v.tsc_offset.wrapping_sub(first.tsc_offset) as i64).unsigned_abs();
        (u128::from(ticks) * 1_000_000 / u128::from(khz.max(1))) as u64
    };
    let trouble = |v: &HealthRecord, what| Trouble {
        vcpu: v.id,
        what,
        advice: "unless the guest or its VMM has set them so, clocks in it jump where threads move: KVM_SET_TSC_KHZ and TSC of all vCPUs alike",
    };
    let of = |v: &HealthRecord| match v.tsc_ratio == first.tsc_ratio {
        false => Some(trouble(v, format!("its TSC counts at another rate than vCPU {}'s", first.id))),
        true => (ns(v) > APART)
            .then(|| trouble(v, format!("its TSC is {} ns away from vCPU {}'s", ns(v), first.id))),
    };
    vcpus.iter().filter_map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const KHZ: u32 = 2_000_000;
    const NOW: u64 = 10_000_000_000;
    const RATIO: u64 = 1 << 48;

    fn vcpu(id: u32) -> HealthRecord {
        HealthRecord { id, tsc_ratio: RATIO, tsc_offset: 77, exits: 100, halts: 50, ..Default::default() }
    }

    /// Two looks at vCPU 0, and at vCPU 1, with which all is well.
    fn found(before: HealthRecord, now: HealthRecord) -> Vec<Trouble> {
        let look = |at, v| Look { at, vcpus: vec![vcpu(1), v] };
        judge(&look(NOW - 300_000_000, before), &look(NOW, now), KHZ)
    }

    fn asleep(flags: u32) -> HealthRecord {
        HealthRecord { flags: health::HALTED | flags, asleep: NOW - 500_000_000, ..vcpu(0) }
    }

    fn one(found: &[Trouble], words: &str) {
        assert!(found.len() == 1 && found[0].vcpu == 0 && found[0].what.contains(words), "{found:?}");
    }

    #[test]
    fn a_lost_wake_up() {
        let v = asleep(health::OPEN | health::PENDING);
        one(&found(v, v), "halted for 500 ms with interrupts enabled, and one is pending");
        // Interrupts are masked; nothing waits; it has just come; it has slept twice; it was no interrupt before.
        let (masked, idle) = (asleep(health::PENDING), asleep(health::OPEN));
        let short = HealthRecord { asleep: NOW - 50_000_000, ..v };
        let again = HealthRecord { asleep: NOW - 200_000_000, ..v };
        for (before, now) in [(masked, masked), (idle, idle), (short, short), (v, again), (idle, v)] {
            assert_eq!(found(before, now), [], "{before:?} {now:?}");
        }
        assert_eq!(found(vcpu(0), vcpu(0)), []);
    }

    #[test]
    fn a_deadline_without_a_timer() {
        let due = |wakes_at| HealthRecord { wakes_at, ..asleep(health::OPEN) };
        one(&found(due(NOW - 250_000_000), due(NOW - 250_000_000)), "its timer was due 250 ms ago");
        for fine in [0, NOW - 50_000_000, NOW + 1] {
            assert_eq!(found(due(fine), due(fine)), []);
        }
        let awake = HealthRecord { asleep: 0, ..due(1) };
        assert_eq!(found(awake, awake), [], "what it was when it last slept");
    }

    #[test]
    fn a_request_that_woke_nobody() {
        let v = HealthRecord { requests: 9, ..asleep(0) };
        one(&found(v, v), "sleeps with requests 0x9");
        assert_eq!(found(v, HealthRecord { requests: 0, ..v }), []);
    }

    #[test]
    fn a_storm_of_halts() {
        let after = |halts: u64| HealthRecord { halts: 50 + halts, ..vcpu(0) };
        one(&found(vcpu(0), after(9000)), "a storm of halts: 30000 in a second");
        assert_eq!(found(vcpu(0), after(3000)), []);
    }

    #[test]
    fn clocks_that_are_apart() {
        let offset = |ticks: u64| HealthRecord { tsc_offset: 77u64.wrapping_add(ticks), ..vcpu(0) };
        one(&found(offset(8000), offset(8000)), "its TSC is 4000 ns away from vCPU 1's");
        one(&found(offset(0), offset(8000u64.wrapping_neg())), "its TSC is 4000 ns away");
        assert_eq!(found(offset(0), offset(1999)), [], "less than a microsecond");
        let slow = HealthRecord { tsc_ratio: RATIO / 2, ..vcpu(0) };
        one(&found(slow, slow), "counts at another rate than vCPU 1's");
    }
}
