//! `exitctl check`: is this host ready, and what is each mechanism to each running VM.

use crate::device::{Absent, Device, PATH};
use crate::health::{self, Trouble};
use crate::host::{Fact, Host, Mark};
use crate::out;
use crate::view::{View, Vm, Watch, title};
use anyhow::Result;
use clap::ValueEnum;
use exitless_control_abi::measure;
use serde::Serialize;
use std::path::Path;

/// A form.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people.
    #[default]
    Table,
    /// One object.
    Json,
}

/// What was found.
#[derive(Serialize)]
struct Report {
    host: Vec<Fact>,
    /// Why VMs could not be looked at.
    #[serde(skip_serializing_if = "Option::is_none")]
    unseen: Option<String>,
    vms: Vec<Findings>,
}

/// What mechanisms are to a VM.
#[derive(Serialize)]
struct Findings {
    id: u64,
    pid: i32,
    name: String,
    mechanisms: Vec<Finding>,
    /// If it was named: what is wrong with it.
    #[serde(skip_serializing_if = "Option::is_none")]
    troubles: Option<Vec<Trouble>>,
}

#[derive(Serialize)]
struct Finding {
    name: String,
    state: &'static str,
    reason: String,
    /// The command or setting that changes it; empty: there is none.
    advice: String,
}

/// `false`: something is bad.
pub(crate) fn run(format: Format, only: &crate::Which) -> Result<bool> {
    let host = Host::new(Path::new("/")).facts();
    let (unseen, vms) = match seen(only)? {
        Ok(vms) => (None, vms),
        Err(why) => (Some(why), Vec::new()),
    };
    let well = vms.iter().all(|vm| vm.troubles.as_ref().is_none_or(Vec::is_empty));
    let good = host.iter().all(|f| f.mark != Mark::Bad) && unseen.is_none() && well;
    let report = Report { host, unseen, vms };
    match format {
        Format::Json => out::print(&(serde_json::to_string_pretty(&report)? + "\n"))?,
        Format::Table => out::print(&shown(&report))?,
    };
    Ok(good)
}

/// The VMs, or why they cannot be looked at.
fn seen(only: &crate::Which) -> Result<Result<Vec<Findings>, String>> {
    let found = Device::open().and_then(Watch::new).and_then(|mut w| Ok((w.look()?, w)));
    let (view, watch) = match found {
        Ok(found) => found,
        Err(e) => return Ok(Err(unseen(&e))),
    };
    let view = only.of(view)?;
    let mut all = findings(&view);
    if only.named() {
        let d = watch.device();
        for (of, vm) in all.iter_mut().zip(&view.vms) {
            let khz = d.measure(vm.id, measure::LOOK)?.khz;
            of.troubles = Some(health::of(d, vm.id, vm.vcpus.len() as u32, khz)?);
        }
    }
    Ok(Ok(all))
}

/// Of a device that is not there, the host's facts say more than opening it does.
fn unseen(e: &anyhow::Error) -> String {
    if e.is::<Absent>() { format!("there is no {PATH}; see *module* above") } else { format!("{e:#}") }
}

fn findings(view: &View) -> Vec<Findings> {
    let of = |vm: &Vm| {
        let total = vm.vcpus.len() as u32;
        let mechanisms = vm.mechanisms.iter().map(|m| {
            let state = match (m.active, m.on) {
                (0, false) => "off",
                (0, true) => "not active",
                (n, _) if n < total => "partly",
                _ => "active",
            };
            let advice = match (m.active < total, m.on) {
                (false, _) => String::new(),
                (true, false) => format!("exitctl set {}=on --vm {}", m.name, vm.id),
                (true, true) => advice(m.why).into(),
            };
            Finding { name: m.name.clone(), state, reason: m.reason.clone(), advice }
        });
        let (mechanisms, name) = (mechanisms.collect(), vm.name.clone());
        Findings { id: vm.id, pid: vm.pid, name, mechanisms, troubles: None }
    };
    view.vms.iter().map(of).collect()
}

/// What changes it, where that is one command or setting, by the reason's number, which is never reused.
fn advice(reason: u32) -> &'static str {
    match reason {
        4 => "QEMU: -machine kernel-irqchip=on",
        7 => "QEMU: -cpu ..,+tsc-deadline",
        9 => "QEMU: -overcommit cpu-pm=on, for guests that own their CPUs",
        10 => "the host's command line: nohz_full=LIST",
        12 => "rmmod exitless; insmod exitless.ko avic=1 (untested on hardware)",
        14 => "QEMU: -global kvm-pit.lost_tick_policy=discard",
        15 => "in the guest: insmod exitless-guest.ko",
        16 | 21 => "exitctl set host_tsc=on --default, then start the VM anew",
        18 => "QEMU: without -overcommit cpu-pm=on",
        20 => "rmmod exitless; insmod exitless.ko ipiv=1 (untested on hardware)",
        _ => "",
    }
}

fn shown(r: &Report) -> String {
    let mark = |m: Mark| match m {
        Mark::Good => "ok",
        Mark::Less => "less",
        Mark::Bad => "BAD",
    };
    let rows =
        r.host.iter().map(|f| vec![f.what.into(), mark(f.mark).into(), f.found.clone(), f.advice.clone()]);
    let mut text = out::table(&["host", "", "found", "what to do"], &[], rows);
    if let Some(why) = &r.unseen {
        text += &format!("\nVMs cannot be seen: {why}\n");
    } else if r.vms.is_empty() {
        text += "\nno VM is running\n";
    }
    for vm in &r.vms {
        text += &format!("\n{}\n", title(vm.id, &vm.name, vm.pid));
        let rows = vm.mechanisms.iter().map(|m| {
            let why = if m.state == "active" { String::new() } else { m.reason.clone() };
            vec![m.name.clone(), m.state.into(), why, m.advice.clone()]
        });
        text += &out::table(&["mechanism", "state", "why", "what to do"], &[], rows);
        match &vm.troubles {
            None => {}
            Some(none) if none.is_empty() => {
                text += "all is well: no interrupt, deadline or request waits for a vCPU that sleeps, clocks agree, no storm of halts\n";
            }
            Some(all) => {
                let rows = all.iter().map(|t| vec![t.vcpu.to_string(), t.what.clone(), t.advice.into()]);
                text += &out::table(&["vCPU", "BAD", "what to do"], &[0], rows);
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::tests::sample;

    /// `check` does not send to `check`.
    #[test]
    fn why_no_vm_is_seen() {
        assert_eq!(unseen(&Absent.into()), "there is no /dev/exitless; see *module* above");
        assert_eq!(unseen(&anyhow::anyhow!("a").context("b")), "b: a");
        assert!(!Absent.to_string().contains("check"));
    }

    #[test]
    fn each_mechanism_has_a_state_and_what_changes_it() {
        let mut vm = sample(7, 4, 1);
        vm.mechanisms[0].active = 3;
        let f = &findings(&View { seconds: None, vms: vec![vm] })[0];
        assert_eq!((f.mechanisms[0].state, f.mechanisms[0].advice.as_str()), ("partly", ""));
        assert_eq!(
            (f.mechanisms[1].state, f.mechanisms[1].advice.as_str()),
            ("off", "exitctl set boost=on --vm 7")
        );
        let on = |why| {
            let mut vm = sample(7, 4, 1);
            (vm.mechanisms[0].active, vm.mechanisms[0].why) = (0, why);
            let mut f = findings(&View { seconds: None, vms: vec![vm] });
            std::mem::take(&mut f[0].mechanisms[0].advice)
        };
        assert_eq!(on(16), "exitctl set host_tsc=on --default, then start the VM anew");
        assert_eq!((on(15).as_str(), on(2).as_str()), ("in the guest: insmod exitless-guest.ko", ""));
        let text = shown(&Report {
            host: Vec::new(),
            unseen: None,
            vms: findings(&View { seconds: None, vms: vec![sample(7, 4, 1)] }),
        });
        assert!(text.contains("VM 7 guest-7 (pid 1007)") && text.contains("switched off"), "{text}");
    }
}
