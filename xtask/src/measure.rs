//! What commands that measure have in common: a script of their own on an emulated machine, whose records they read.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Result, bail};
use exitless_x86::svm::ExitCode;

use crate::{
    lab::{
        self, Options, deps,
        machine::Kind,
        report::Report,
        scenario::{Module, Scenario},
    },
    paths,
};

/// A scenario that measures: on both modules if its script says so.
pub fn scenario(name: &str, cpus: u32, timeout: u64, needs: &[&str], script: String) -> Scenario {
    Scenario {
        name: name.into(),
        cpus,
        memory: 1024,
        timeout: Duration::from_secs(timeout),
        needs: needs.iter().map(|need| need.to_string()).collect(),
        modules: vec![Module::Kvm, Module::Exitless],
        script,
        ..Scenario::default()
    }
}

/// Runs it and returns its records. With `by_instructions` the SVM machine's time goes by instructions, as Bochs's always does.
pub fn records(
    scenario: &Scenario,
    machine: Kind,
    by_instructions: bool,
    options: Options,
    what: &str,
) -> Result<Vec<String>> {
    deps::host_packages()?;
    let options = Options { module: Module::Exitless, machine, ..options };
    let kernel = deps::kernel(options.kernel)?;
    let dir = paths::made(paths::target().join(&scenario.name))?;
    println!("-> {} ({machine}, {what} on {} CPU)", scenario.name, scenario.cpus);
    let mut machine = lab::prepare(scenario, &options, &kernel, scenario.cpus, dir, None)?;
    machine.icount = by_instructions && machine.kind == Kind::Svm;
    let report = lab::watch(&machine, scenario.timeout * lab::patience(&options), false, Report::default())?;
    if report.totals().failed > 0 {
        bail!("a measurement failed; the log is {}", paths::shown(&machine.serial_log()));
    }
    Ok(report.json)
}

/// What stock KVM's exits are called: its tracepoint has the processor's numbers.
pub struct Names {
    machine: Kind,
    vmx: BTreeMap<u64, String>,
}

impl Names {
    /// From the records, of which one is `names` and the format of the tracepoint `kvm_exit`, whose first symbolic table is VMX's.
    pub fn of(machine: Kind, records: &[String]) -> Names {
        let format = records.iter().find_map(|line| line.strip_prefix("names ")).unwrap_or_default();
        let table = format.split("__print_symbolic(").nth(1).unwrap_or_default();
        let entry = |text: &str| {
            let (number, name) = text.split_once('}')?.0.split_once(',')?;
            Some((number.trim().parse().ok()?, name.trim().trim_matches('"').to_string()))
        };
        Names { machine, vmx: table.split('{').filter_map(entry).collect() }
    }

    /// The name of this number.
    pub fn get(&self, code: u64) -> String {
        let name = match self.machine {
            Kind::Svm | Kind::Ryzen => ExitCode(code).name().map(str::to_string),
            // Bits above 15 are flags.
            Kind::Vmx => self.vmx.get(&(code & 0xffff)).cloned(),
        };
        name.unwrap_or_else(|| format!("exit_{code:#x}"))
    }
}
