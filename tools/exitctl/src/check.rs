//! `exitctl check`: is this host ready, and what is each mechanism to each running VM.

use crate::device::Device;
use crate::host::{Fact, Host, Mark};
use crate::out::{self, Format};
use crate::view::{View, Vm, Watch, title};
use anyhow::Result;
use serde::Serialize;
use std::path::Path;

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
    let seen = Device::open().and_then(Watch::new).and_then(|mut w| Ok((w.look()?, w)));
    let (unseen, vms) = match seen {
        Ok((view, _)) => (None, findings(&only.of(view)?)),
        Err(e) => (Some(format!("{e:#}")), Vec::new()),
    };
    let good = host.iter().all(|f| f.mark != Mark::Bad) && unseen.is_none();
    let report = Report { host, unseen, vms };
    match format {
        Format::Json => out::print(&(serde_json::to_string_pretty(&report)? + "\n"))?,
        _ => out::print(&shown(&report))?,
    };
    Ok(good)
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
            let advice = if m.on || m.active != 0 {
                String::new()
            } else {
                format!("exitctl set {}=on --vm {}", m.name, vm.id)
            };
            Finding { name: m.name.clone(), state, reason: m.reason.clone(), advice }
        });
        Findings { id: vm.id, pid: vm.pid, name: vm.name.clone(), mechanisms: mechanisms.collect() }
    };
    view.vms.iter().map(of).collect()
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
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::tests::sample;

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
        let text = shown(&Report {
            host: Vec::new(),
            unseen: None,
            vms: findings(&View { seconds: None, vms: vec![sample(7, 4, 1)] }),
        });
        assert!(text.contains("VM 7 guest-7 (pid 1007)") && text.contains("switched off"), "{text}");
    }
}
