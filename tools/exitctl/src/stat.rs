//! `exitctl stat`: the profile of exits, once or again and again.

use crate::device::Device;
use crate::out::{self, Format};
use crate::times::{ByName, Times, said};
use crate::view::{Counts, View, Vm, Watch, title};
use anyhow::Result;
use clap::{Args, ValueEnum};
use std::time::Duration;

/// Parts of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Part {
    /// Exits by reason.
    Reason,
    /// RDMSR and WRMSR exits by MSR.
    Msr,
    /// Port exits by port.
    Port,
    /// By vCPU: all, fast, to user space; where its time went, if that is measured.
    Vcpu,
    /// Where time went, and how long exits took, by reason: of VMs that `exitctl measure on` has measured.
    Time,
    /// Halts, polls, what woke vCPUs, waits for a CPU; how late timers and IPIs were, if that is measured.
    Wait,
    /// What mechanisms did.
    Mechanism,
    /// KVM's own counters.
    Counter,
}

#[derive(Debug, Args)]
pub(crate) struct Options {
    #[command(flatten)]
    which: crate::Which,
    /// What it is written as.
    #[arg(long, value_enum, default_value_t)]
    format: Format,
    /// Parts of the table.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Part::Reason, Part::Msr, Part::Port, Part::Time, Part::Wait, Part::Mechanism])]
    by: Vec<Part>,
    /// Seconds between looks; each shows what happened in between. Without it: one look, counts since each vCPU's creation.
    #[arg(long, value_parser = crate::seconds)]
    interval: Option<Duration>,
    /// How many intervals; without it for ever.
    #[arg(long, requires = "interval")]
    count: Option<u64>,
}

pub(crate) fn run(o: &Options) -> Result<()> {
    let mut watch = Watch::new(Device::open()?)?;
    let Some(interval) = o.interval else {
        out::print(&shown(o, &o.which.of(watch.look()?)?, true)?)?;
        return Ok(());
    };
    watch.since()?;
    let mut n = 0;
    while o.count.is_none_or(|count| n < count) {
        std::thread::sleep(interval);
        let view = if o.format == Format::Prometheus { watch.look()? } else { watch.since()? };
        if !out::print(&shown(o, &o.which.of(view)?, n == 0)?)? {
            return Ok(());
        }
        n += 1;
    }
    Ok(())
}

fn shown(o: &Options, view: &View, first: bool) -> Result<String> {
    Ok(match o.format {
        Format::Table if view.vms.is_empty() => "no VM is running\n".into(),
        Format::Table => view.vms.iter().map(|vm| profile(vm, &o.by, view.seconds)).collect(),
        Format::Json => serde_json::to_string(view)? + "\n",
        Format::Csv => out::csv(view, first)?,
        Format::Prometheus => out::prometheus(view)?,
    })
}

/// A VM for people.
fn profile(vm: &Vm, by: &[Part], seconds: Option<f64>) -> String {
    let (all, fast, user) = (vm.total(|v| v.exits), vm.total(|v| v.fast), vm.total(|v| v.user));
    let share = |n: u64| if all == 0 { 0.0 } else { 100.0 * n as f64 / all as f64 };
    let time = seconds.map_or("since their creation".into(), |s| format!("in {s:.2} s"));
    let mut text = format!("{}, {} vCPUs {time}\n", title(vm.id, &vm.name, vm.pid), vm.vcpus.len());
    text += &format!("{all} exits: {:.1} % fast, {:.1} % to user space\n\n", share(fast), share(user));
    for part in by {
        let section = match part {
            Part::Reason => out::counts("exit", &vm.exits, seconds),
            Part::Msr => out::counts("MSR", &vm.msrs, seconds),
            Part::Port => out::counts("port", &vm.ports, seconds),
            Part::Counter => out::counts("counter", &counted(vm), seconds),
            Part::Vcpu => vcpus(vm),
            Part::Time => vm.times.as_ref().map(profile_of_time).unwrap_or_default(),
            Part::Wait => waits(vm),
            Part::Mechanism => mechanisms(vm),
        };
        if !section.is_empty() {
            text += &section;
            text.push('\n');
        }
    }
    text
}

/// KVM's own names, but for times, which are said with waits.
fn counted(vm: &Vm) -> Counts {
    let times = |(name, n): (&String, &u64)| (!name.ends_with("_ns")).then(|| (name.clone(), *n));
    vm.counters.iter().filter_map(times).collect()
}

/// What time is spent on, in this order.
const SPENT: [&str; 6] = ["guest", "fast", "kernel", "user", "halted", "polled"];

fn percent(share: Option<f64>) -> String {
    share.map_or("-".into(), |s| format!("{s:.1} %"))
}

fn vcpus(vm: &Vm) -> String {
    let cpu = |n: i32| if n < 0 { "-".into() } else { n.to_string() };
    let rows = vm.vcpus.iter().map(|v| {
        let mut row = vec![
            v.id.to_string(),
            cpu(v.cpu),
            v.state.into(),
            v.exits.to_string(),
            v.fast.to_string(),
            v.user.to_string(),
        ];
        if let Some(t) = &vm.times {
            row.extend(SPENT.map(|what| percent(t.share(Some(v.id), what))));
        }
        row
    });
    let mut head = vec!["vCPU", "CPU", "state", "exits", "fast", "user"];
    head.extend(vm.times.iter().flat_map(|_| ["in guest", "fast", "kernel", "user", "halted", "polled"]));
    out::table(&head, &[0, 1, 3, 4, 5, 6, 7, 8, 9, 10, 11], rows)
}

/// Where time went, and how long exits took.
fn profile_of_time(t: &Times) -> String {
    let spent = SPENT.map(|what| format!("{what} {}", percent(t.share(None, what))));
    let note = if t.on { "" } else { ", measured until some time ago" };
    let text = format!(" time{note}: {}\n", spent.join(", "));
    text + &durations("exit", &t.exits, true)
}

/// A row for each; of exits those that took longest in sum first, with what came on top of that.
fn durations(head: &str, all: &ByName, exits: bool) -> String {
    if all.is_empty() {
        return String::new();
    }
    let (samples, total) = all.values().fold((0, 0), |(n, ns), d| (n + d.count, ns + d.total_ns()));
    let part = |n: u64, of: u64| percent((of != 0).then(|| 100.0 * n as f64 / of as f64));
    let mut order: Vec<_> = all.iter().collect();
    order.sort_by_key(|(_, d)| std::cmp::Reverse(d.total_ns()));
    let rows = order.into_iter().map(|(name, d)| {
        let mut row = vec![name.clone(), d.count.to_string()];
        if exits {
            row.extend([part(d.count, samples), part(d.total_ns(), total)]);
        }
        row.extend([said(d.min_ns()), said(d.mean_ns())]);
        row.extend(d.percentiles().map(said));
        row.push(said(d.max_ns()));
        if exits {
            row.extend([said(d.user_ns()), said(d.idle_ns())]);
        }
        row
    });
    let shares = if exits { &["exits", "time"][..] } else { &[] };
    let more = if exits { &["then user", "then idle"][..] } else { &[] };
    let head = [&[head, "samples"], shares, &["min", "mean", "p50", "p90", "p99", "p99.9", "max"], more];
    out::table(&head.concat(), &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12], rows)
}

/// Halts and what ended them.
fn waits(vm: &Vm) -> String {
    let n = |name: &str| vm.counters.get(name).copied().unwrap_or(0);
    let (polls, good) = (n("halt_attempted_poll"), n("halt_successful_poll"));
    let woken: Vec<_> = ["timer", "ipi", "device", "sibling", "other"]
        .map(|by| (by, n(&format!("wake_{by}"))))
        .into_iter()
        .filter(|(_, n)| *n != 0)
        .map(|(by, n)| format!("{by} {n}"))
        .collect();
    let mut text = String::new();
    if n("halt_exits") != 0 {
        text += &format!(
            " halts {}: asleep {}; {polls} polls, of which {good} brought a wake-up ({}), the others took {}\n",
            n("halt_exits"),
            said(n("halt_wait_ns")),
            said(n("halt_poll_success_ns")),
            said(n("halt_poll_fail_ns")),
        );
    }
    if !woken.is_empty() {
        text += &format!(" woken by: {}\n", woken.join(", "));
    }
    if n("steal_ns") != 0 {
        text += &format!(" waited for a CPU: {}\n", said(n("steal_ns")));
    }
    text + &vm.times.as_ref().map(|t| durations("late", &t.late, false)).unwrap_or_default()
}

/// Those that are active, or did something.
fn mechanisms(vm: &Vm) -> String {
    let shown = vm.mechanisms.iter().filter(|m| m.active != 0 || m.hits != 0);
    let rows = shown.map(|m| {
        let left: Vec<_> = m.fallbacks.iter().map(|(f, n)| format!("{f} {n}")).collect();
        let active = format!("{}/{}", m.active, vm.vcpus.len());
        vec![
            m.name.clone(),
            active,
            m.hits.to_string(),
            m.saved.to_string(),
            m.added.to_string(),
            left.join(" "),
        ]
    });
    out::table(&["mechanism", "active", "hits", "saved", "added", "left to others"], &[1, 2, 3, 4], rows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::tests::sample;

    #[test]
    fn a_profile_names_what_it_counts() {
        let all = [
            Part::Reason,
            Part::Msr,
            Part::Port,
            Part::Vcpu,
            Part::Time,
            Part::Wait,
            Part::Mechanism,
            Part::Counter,
        ];
        let text = profile(&sample(5, 2, 2), &all, Some(2.0));
        for part in [
            "VM 5 guest-5 (pid 1005), 2 vCPUs in 2.00 s",
            "401 exits: 59.9 % fast",
            "TSC_DEADLINE",
            "ipi_fastpath",
            "halt_exits",
            "guest 80.0 %, fast 10.0 %",
            "halts 40: asleep 10.000 us",
            "woken by: timer 18, ipi 2",
            "waited for a CPU: 4.000 us",
        ] {
            assert!(text.contains(part), "no {part} in\n{text}");
        }
        let words = |start: &str| -> Vec<String> {
            let line = text.lines().filter(|l| l.contains(" us") || l.contains(" ns"));
            let mut line = line.filter(|l| l.trim_start().starts_with(start));
            line.next()
                .unwrap_or_default()
                .split("  ")
                .map(|w| w.trim().into())
                .filter(|w: &String| !w.is_empty())
                .collect()
        };
        let hlt = words("hlt ");
        assert_eq!(hlt[..6], ["hlt", "2", "1.0 %", "5.5 %", "3.000 us", "3.500 us"], "{text}");
        assert_eq!(hlt[10..], ["4.000 us", "0 ns", "500.000 us"], "{text}");
        assert_eq!(words("timer ")[..4], ["timer", "1", "900 ns", "900 ns"], "{text}");
        assert!(!text.contains("boost"), "neither active nor hit:\n{text}");
    }
}
