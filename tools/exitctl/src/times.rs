//! Durations as the module counts them, in buckets; and where vCPUs' time went.

use crate::device::Device;
use crate::names::Names;
use crate::view::{Counts, less};
use anyhow::Result;
use exitless_control_abi::times::{self, field};
use exitless_control_abi::{ALL_VCPUS, kind, measure};
use serde::Serialize;
use std::collections::BTreeMap;

/// Ticks of the host's TSC in nanoseconds.
fn ns(ticks: u64, khz: u32) -> u64 {
    (u128::from(ticks) * 1_000_000 / u128::from(khz.max(1))) as u64
}

/// Many durations. What is said of one is wrong by at most an eighth of it; number, sum, and since the beginning the shortest and the
/// longest, are exact.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(into = "Said")]
pub(crate) struct Durations {
    khz: u32,
    pub(crate) count: u64,
    ticks: u64,
    min: u64,
    max: u64,
    user: u64,
    idle: u64,
    buckets: BTreeMap<u32, u64>,
}

/// The same for programs.
#[derive(Serialize)]
struct Said {
    count: u64,
    total_ns: u64,
    min_ns: u64,
    mean_ns: u64,
    p50_ns: u64,
    p90_ns: u64,
    p99_ns: u64,
    p999_ns: u64,
    max_ns: u64,
    user_ns: u64,
    idle_ns: u64,
}

impl From<Durations> for Said {
    fn from(d: Durations) -> Self {
        let [p50_ns, p90_ns, p99_ns, p999_ns] = d.percentiles();
        let (min_ns, mean_ns, max_ns) = (d.ns(d.min), d.mean_ns(), d.ns(d.max));
        let (total_ns, user_ns, idle_ns) = (d.total_ns(), d.user_ns(), d.idle_ns());
        Self {
            count: d.count,
            total_ns,
            min_ns,
            mean_ns,
            p50_ns,
            p90_ns,
            p99_ns,
            p999_ns,
            max_ns,
            user_ns,
            idle_ns,
        }
    }
}

impl Durations {
    fn put(&mut self, of: u32, n: u64) {
        match of {
            field::COUNT => self.count = n,
            field::TICKS => self.ticks = n,
            field::MIN => self.min = n,
            field::MAX => self.max = n,
            field::USER => self.user = n,
            field::IDLE => self.idle = n,
            field::BUCKET.. => _ = self.buckets.insert(of - field::BUCKET, n),
            // Of a newer module.
            _ => {}
        }
    }

    fn ns(&self, ticks: u64) -> u64 {
        ns(ticks, self.khz)
    }
    pub(crate) fn total_ns(&self) -> u64 {
        self.ns(self.ticks)
    }
    /// Of exits: in user space on top.
    pub(crate) fn user_ns(&self) -> u64 {
        self.ns(self.user)
    }
    /// Of exits: asleep or polling on top.
    pub(crate) fn idle_ns(&self) -> u64 {
        self.ns(self.idle)
    }
    pub(crate) fn mean_ns(&self) -> u64 {
        self.ns(self.ticks.checked_div(self.count).unwrap_or(0))
    }
    pub(crate) fn min_ns(&self) -> u64 {
        self.ns(self.min)
    }
    pub(crate) fn max_ns(&self) -> u64 {
        self.ns(self.max)
    }

    /// The duration that this many of a thousand do not exceed, ns.
    fn percentile(&self, of_thousand: u64) -> u64 {
        let all: u64 = self.buckets.values().sum();
        let rank = (all * of_thousand).div_ceil(1000).max(1);
        let mut seen = 0;
        for (b, n) in &self.buckets {
            seen += n;
            if seen >= rank {
                return self.ns(times::middle(*b as usize).clamp(self.min, self.max));
            }
        }
        0
    }

    /// p50, p90, p99 and p99.9, ns.
    pub(crate) fn percentiles(&self) -> [u64; 4] {
        [500, 900, 990, 999].map(|p| self.percentile(p))
    }

    /// How many are at most as long as each of these, ns, by their buckets' middles; not those that were counted before.
    pub(crate) fn up_to(&self, bounds: &[u64]) -> Vec<u64> {
        let mut found = vec![0; bounds.len() + 1];
        for (b, n) in &self.buckets {
            let ns = self.ns(times::middle(*b as usize));
            let at = bounds.iter().position(|bound| ns <= *bound).unwrap_or(bounds.len());
            found[at] += n;
        }
        found
    }

    /// What came since `old`. The shortest and the longest of it are known by their buckets.
    fn minus(&self, old: &Self) -> Self {
        let mut d = self.clone();
        d.count = self.count.saturating_sub(old.count);
        d.ticks = self.ticks.saturating_sub(old.ticks);
        d.user = self.user.saturating_sub(old.user);
        d.idle = self.idle.saturating_sub(old.idle);
        for (b, n) in &old.buckets {
            if let Some(now) = d.buckets.get_mut(b) {
                *now = now.saturating_sub(*n);
            }
        }
        d.buckets.retain(|_, n| *n != 0);
        if old.count != 0 {
            let ends = (d.buckets.keys().next(), d.buckets.keys().next_back());
            let (Some(low), Some(high)) = ends else { return Self::default() };
            d.min = times::floor(*low as usize).max(self.min);
            d.max = times::floor(*high as usize + 1).saturating_sub(1).min(self.max);
        }
        d
    }
}

/// Durations by name.
pub(crate) type ByName = BTreeMap<String, Durations>;

/// Where a VM's time went, as long as it was measured.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Times {
    /// It is measured now.
    pub(crate) on: bool,
    /// For each vCPU what it spent its time on, ns.
    pub(crate) spent: BTreeMap<u32, Counts>,
    /// Exits by reason.
    pub(crate) exits: ByName,
    /// How late timers and IPIs were.
    pub(crate) late: ByName,
}

impl Times {
    /// Of a VM. `None`: it was never measured.
    pub(crate) fn read(d: &Device, names: &mut Names, vm: u64) -> Result<Option<Self>> {
        let m = d.measure(vm, measure::LOOK)?;
        let mut t = Self { on: m.on != 0, ..Self::default() };
        for c in d.counters(vm, ALL_VCPUS, kind::SPENT)? {
            let (vcpu, what) = times::spent_parts(c.key);
            t.spent.entry(vcpu).or_default().insert(names.spent(what), ns(c.count, m.khz));
        }
        if t.spent.is_empty() {
            return Ok(None);
        }
        for (what, of) in [(kind::TIME, &mut t.exits), (kind::LATE, &mut t.late)] {
            for c in d.counters(vm, ALL_VCPUS, what)? {
                let (row, field) = times::parts(c.key);
                let name = if what == kind::TIME { names.exit(d, wide(row))? } else { names.late(row) };
                let known =
                    of.entry(name).or_insert_with(|| Durations { khz: m.khz, ..Durations::default() });
                known.put(field, c.count);
            }
        }
        Ok(Some(t))
    }

    pub(crate) fn minus(&self, old: &Self) -> Self {
        let none = Counts::new();
        let spent = self.spent.iter().map(|(id, now)| (*id, less(now, old.spent.get(id).unwrap_or(&none))));
        let by_name = |now: &ByName, old: &ByName| -> ByName {
            let since = now.iter().map(|(k, d)| (k.clone(), old.get(k).map_or(d.clone(), |o| d.minus(o))));
            since.filter(|(_, d)| d.count != 0).collect()
        };
        Self {
            on: self.on,
            spent: spent.collect(),
            exits: by_name(&self.exits, &old.exits),
            late: by_name(&self.late, &old.late),
        }
    }

    /// What a vCPU, or all of them, spent its time on, ns.
    pub(crate) fn spent(&self, vcpu: Option<u32>) -> Counts {
        let mut sum = Counts::new();
        for (_, of) in self.spent.iter().filter(|(id, _)| vcpu.is_none_or(|v| v == **id)) {
            for (what, ns) in of {
                *sum.entry(what.clone()).or_default() += ns;
            }
        }
        sum
    }

    /// The part of that time, in percent; `None`: there was none.
    pub(crate) fn share(&self, vcpu: Option<u32>, what: &str) -> Option<f64> {
        let spent = self.spent(vcpu);
        let all: u64 = spent.values().sum();
        let this = spent.get(what).copied().unwrap_or(0);
        (all != 0).then(|| 100.0 * this as f64 / all as f64)
    }
}

/// An exit's number as counters have it.
fn wide(row: u32) -> u64 {
    if row == u32::MAX { exitless_control_abi::OTHERS } else { u64::from(row) }
}

/// A duration for people.
pub(crate) fn said(ns: u64) -> String {
    let n = ns as f64;
    match ns {
        0..1_000 => format!("{ns} ns"),
        1_000..1_000_000 => format!("{:.3} us", n / 1e3),
        1_000_000..1_000_000_000 => format!("{:.3} ms", n / 1e6),
        _ => format!("{:.3} s", n / 1e9),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// At 2 GHz.
    pub(crate) fn of(all: &[u64]) -> Durations {
        let mut d = Durations { khz: 2_000_000, ..Durations::default() };
        for ns in all {
            let ticks = ns * 2;
            d.min = if d.count == 0 { ticks } else { d.min.min(ticks) };
            d.max = d.max.max(ticks);
            d.count += 1;
            d.ticks += ticks;
            *d.buckets.entry(times::bucket(ticks) as u32).or_default() += 1;
        }
        d
    }

    pub(crate) fn sample(vcpus: u32, n: u64) -> Times {
        let spent = |ns: [(&str, u64); 4]| ns.into_iter().map(|(k, ns)| (k.into(), ns * n)).collect();
        let all: Vec<u64> = (0..100 * n).map(|i| 500 + i).collect();
        let mut hlt = of(&[3000, 4000]);
        hlt.idle = 1_000_000;
        Times {
            on: true,
            spent: (0..vcpus)
                .map(|v| (v, spent([("guest", 8000), ("fast", 1000), ("kernel", 500), ("halted", 500)])))
                .collect(),
            exits: [("msr".into(), of(&all)), ("hlt".into(), hlt)].into(),
            late: [("timer".into(), of(&[900]))].into(),
        }
    }

    fn near(said: u64, is: u64) -> bool {
        said.abs_diff(is) * 8 <= is
    }

    /// Each percentile is within an eighth of what sorting says; the ends are exact.
    #[test]
    fn percentiles_have_a_bounded_error() {
        let mut all: Vec<u64> = (1..=10_000).map(|i| 100 + i * i / 97).collect();
        let d = of(&all);
        all.sort_unstable();
        for (p, said) in [(5000, 0), (9000, 1), (9900, 2), (9990, 3)].map(|(r, i)| (r, d.percentiles()[i])) {
            assert!(near(said, all[p - 1]), "{said} for {}", all[p - 1]);
        }
        assert_eq!((d.min_ns(), d.max_ns()), (all[0], all[9999]));
        assert_eq!(d.mean_ns(), all.iter().sum::<u64>() / 10_000);
        assert_eq!(of(&[7]).percentiles(), [7; 4]);
        assert_eq!(Durations::default().percentiles(), [0; 4]);
    }

    /// Between two looks only what came in between counts, also for the ends.
    #[test]
    fn what_came_since() {
        let (early, late) = ([10, 1_000_000], [10, 1_000_000, 2000, 3000]);
        let d = of(&late).minus(&of(&early));
        assert_eq!((d.count, d.total_ns()), (2, 5000));
        assert!(near(d.min_ns(), 2000) && d.max_ns() >= 3000 && near(d.max_ns(), 3000), "{d:?}");
        assert_eq!(of(&early).minus(&of(&early)).count, 0);
        let (old, new) = (sample(2, 1), sample(2, 3));
        let since = new.minus(&old);
        assert_eq!(since.exits.keys().collect::<Vec<_>>(), ["msr"], "nothing came of HLT");
        assert_eq!(since.exits["msr"].count, 200);
        assert_eq!(since.share(Some(1), "guest"), Some(80.0));
        assert_eq!(since.spent(None)["guest"], 2 * 16_000);
    }

    #[test]
    fn bounds_for_prometheus() {
        assert_eq!(of(&[10, 100, 5000, 900_000]).up_to(&[1000, 10_000]), [2, 1, 1]);
    }
}
