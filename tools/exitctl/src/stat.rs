//! `exitctl stat`: the profile of exits, once or again and again.

use crate::device::Device;
use crate::out::{self, Format};
use crate::view::{View, Vm, Watch, title};
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
    /// By vCPU: all, fast, to user space.
    Vcpu,
    /// What mechanisms did.
    Mechanism,
    /// KVM's own counters.
    Counter,
}

#[derive(Debug, Args)]
pub(crate) struct Options {
    #[command(flatten)]
    which: crate::Which,
    #[arg(long, value_enum, default_value_t)]
    format: Format,
    /// Parts of the table.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Part::Reason, Part::Msr, Part::Port, Part::Mechanism])]
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
            Part::Counter => out::counts("counter", &vm.counters, seconds),
            Part::Vcpu => vcpus(vm),
            Part::Mechanism => mechanisms(vm),
        };
        if !section.is_empty() {
            text += &section;
            text.push('\n');
        }
    }
    text
}

fn vcpus(vm: &Vm) -> String {
    let cpu = |n: i32| if n < 0 { "-".into() } else { n.to_string() };
    let rows = vm.vcpus.iter().map(|v| {
        vec![
            v.id.to_string(),
            cpu(v.cpu),
            v.state.into(),
            v.exits.to_string(),
            v.fast.to_string(),
            v.user.to_string(),
        ]
    });
    out::table(&["vCPU", "CPU", "state", "exits", "fast", "user"], &[0, 1, 3, 4, 5], rows)
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
        let all = [Part::Reason, Part::Msr, Part::Port, Part::Vcpu, Part::Mechanism, Part::Counter];
        let text = profile(&sample(5, 2, 2), &all, Some(2.0));
        for part in [
            "VM 5 guest-5 (pid 1005), 2 vCPUs in 2.00 s",
            "401 exits: 59.9 % fast",
            "TSC_DEADLINE",
            "ipi_fastpath",
            "halt_exits",
        ] {
            assert!(text.contains(part), "no {part} in\n{text}");
        }
        assert!(!text.contains("boost"), "neither active nor hit:\n{text}");
    }
}
