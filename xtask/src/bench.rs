//! `cargo xtask bench`: instructions per operation on Exitless and on stock KVM, on the same emulated machine.
//!
//! The machine counts each instruction as one tick of its time-stamp counter (on SVM `-icount shift=0`; Bochs always
//! does), so figures repeat and can be compared from change to change. They are instructions, not nanoseconds: a world
//! switch costs one tick. What two vCPUs do together (`ipi_running`, `ipi_wake_hlt`) also counts the turns that the emulator
//! gives its CPUs one after the other: compare those between modules only. Bochs with several CPUs adds some tens of ticks
//! to whatever cuts a turn short, so there all but these two are measured on a host with one CPU.

use std::{collections::BTreeMap, fs, path::Path, time::Duration};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::{
    lab::{
        self, Options, deps,
        machine::Kind,
        report::Report,
        scenario::{Module, Scenario},
    },
    paths, say,
};

/// What to measure.
#[derive(Debug, Clone, clap::Args)]
pub struct Choice {
    /// Measure this module only (default: both).
    #[arg(long, value_enum)]
    pub module: Option<Module>,
    /// The emulated machine.
    #[arg(long, value_enum, default_value = "svm")]
    pub machine: Kind,
    /// CPUs of the emulated host. With one, two vCPUs that wait for each other wait for the scheduler. Default: 2; on vmx 1,
    /// and 2 for what two vCPUs do together.
    #[arg(long)]
    pub cpus: Option<u32>,
    /// Operations whose name contains this.
    #[arg(default_value = "")]
    pub pattern: String,
    /// This module file, instead of building one.
    #[arg(long)]
    pub ko: Option<std::path::PathBuf>,
    /// Seconds of real time for each machine.
    #[arg(long, default_value = "900")]
    pub limit: u64,
}

/// One figure, as it stands in target/bench/latest.json.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq)]
pub struct Record {
    /// `svm` or `vmx`.
    #[serde(default)]
    pub machine: String,
    /// `exitless` or `kvm`.
    #[serde(default)]
    pub module: String,
    /// The operation's name.
    pub op: String,
    /// Instructions for one operation, host and guest together.
    pub instructions: f64,
    /// Exits for one operation, if the module counts them.
    pub exits: Option<f64>,
}

/// Host CPUs, and the shell's filter for operations: a machine that is started.
type Part = (u32, &'static str);

/// The machines for a table, one after the other.
fn parts(machine: Kind, cpus: Option<u32>) -> Vec<Part> {
    match (machine, cpus) {
        (_, Some(cpus)) => vec![(cpus, "cat")],
        (Kind::Svm, None) => vec![(2, "cat")],
        (Kind::Vmx, None) => vec![(1, "grep -v ^bench/ipi_"), (2, "grep ^bench/ipi_")],
    }
}

const SCRIPT: &str = r#"
OPS=$(runner list | grep ^bench/ | grep -e "$PATTERN" | $FILTER)
measure() { load_module && runner bench --json $OPS | sed "s/^{/=== JSON $MODULE {/" && unload_module; }
for MODULE in ${OPS:+$MODULES}; do
    check bench-$MODULE measure
done
"#;

/// Measures, prints the table, writes target/bench/latest.json.
pub fn run(choice: &Choice) -> Result<()> {
    deps::host_packages()?;
    let dir = paths::made(paths::target().join("bench"))?;
    let mut measured = Vec::new();
    let mut failed = 0;
    for part in parts(choice.machine, choice.cpus) {
        let (records, failures) = measure(choice, part, &dir)?;
        measured.extend(records);
        failed += failures;
    }
    table(&measured);
    if measured.is_empty() {
        bail!("nothing was measured; logs are in {}", paths::shown(&dir));
    }
    let file = dir.join("latest.json");
    let others = fs::read_to_string(&file).unwrap_or_default();
    let all = kept(choice.machine, &others).into_iter().chain(measured);
    let lines: Vec<_> = all.map(|record| serde_json::to_string(&record)).collect::<Result<_, _>>()?;
    fs::write(&file, format!("[\n{}\n]\n", lines.join(",\n")))?;
    say::note(format!("written to {}", paths::shown(&file)));
    if failed > 0 {
        bail!("a measurement failed; logs are in {}", paths::shown(&dir));
    }
    Ok(())
}

/// Starts one machine; its records and the number of tests that failed.
fn measure(choice: &Choice, (cpus, filter): Part, dir: &Path) -> Result<(Vec<Record>, usize)> {
    let modules = choice.module.map_or(vec![Module::Kvm, Module::Exitless], |module| vec![module]);
    let names: Vec<_> = modules.iter().map(ToString::to_string).collect();
    let (names, pattern) = (names.join(" "), &choice.pattern);
    let script = format!("MODULES='{names}' PATTERN='{pattern}' FILTER='{filter}'\n{SCRIPT}");
    let scenario = Scenario {
        name: "bench".into(),
        about: String::new(),
        cpus,
        memory: 1024,
        timeout: Duration::from_secs(choice.limit),
        needs: vec!["runner".into()],
        modules: modules.clone(),
        script,
        ..Scenario::default()
    };
    let module = if modules.contains(&Module::Exitless) { Module::Exitless } else { Module::Kvm };
    let options = Options { module, machine: choice.machine, ko: choice.ko.clone(), ..Options::default() };
    let kernel = deps::kernel(options.kernel)?;
    println!("-> bench {names} ({}, {cpus} CPU, instructions counted)", choice.machine);
    let mut machine = lab::prepare(&scenario, &options, &kernel, cpus, dir.to_path_buf(), None)?;
    // Instructions are counted by emulators only.
    machine.hardware = false;
    machine.icount = machine.kind == Kind::Svm;
    let report = lab::watch(&machine, scenario.timeout, true, Report::default())?;
    Ok((records(machine.kind, &report.json)?, report.totals().failed))
}

/// Lines `<module> {"op":...}`.
fn records(machine: Kind, lines: &[String]) -> Result<Vec<Record>> {
    let mut records = Vec::new();
    for line in lines {
        let Some((module, json)) = line.split_once(' ').filter(|(_, json)| json.starts_with('{')) else {
            continue;
        };
        let record: Record = serde_json::from_str(json).with_context(|| format!("`{json}` is no record"))?;
        records.push(Record { machine: machine.to_string(), module: module.into(), ..record });
    }
    Ok(records)
}

/// What the file already says of other machines; a file that cannot be read says nothing.
fn kept(measured: Kind, file: &str) -> Vec<Record> {
    let mut records: Vec<Record> = serde_json::from_str(file).unwrap_or_default();
    records.retain(|record| record.machine != measured.to_string());
    records
}

fn table(records: &[Record]) {
    let mut rows: BTreeMap<&str, (Option<&Record>, Option<&Record>)> = BTreeMap::new();
    for record in records {
        let row = rows.entry(&record.op).or_default();
        if record.module == "kvm" { row.1 = Some(record) } else { row.0 = Some(record) }
    }
    let instructions = |r: Option<&Record>| r.map_or("-".to_string(), |r| format!("{:.0}", r.instructions));
    let exits =
        |r: Option<&Record>| r.and_then(|r| r.exits).map_or("-".to_string(), |exits| format!("{exits:.2}"));
    println!(
        "\n{:<28} {:>10} {:>10} {:>7} {:>9} {:>9}",
        "instructions for one", "exitless", "kvm", "ratio", "exits", "kvm's"
    );
    for (op, (ours, stock)) in rows {
        let ratio = match (ours, stock) {
            (Some(ours), Some(stock)) if ours.instructions > 0.0 => {
                format!("{:.2}", stock.instructions / ours.instructions)
            }
            _ => "-".to_string(),
        };
        println!(
            "{op:<28} {:>10} {:>10} {ratio:>7} {:>9} {:>9}",
            instructions(ours),
            instructions(stock),
            exits(ours),
            exits(stock)
        );
    }
    println!();
}

#[cfg(test)]
mod tests {
    use super::{Kind, kept, records};

    /// The runner does not know which module it measures; the script puts that in front.
    #[test]
    fn records_get_their_module() {
        let lines =
            [r#"kvm {"op":"cpuid","instructions":5664.0,"exits":1.000}"#.to_string(), "kvm noise".into()];
        let found = records(Kind::Vmx, &lines).unwrap();
        assert_eq!((found.len(), found[0].module.as_str(), found[0].exits), (1, "kvm", Some(1.0)));
        assert_eq!(found[0].machine, "vmx");
    }

    /// A run on one machine replaces that machine's figures and keeps the other's.
    #[test]
    fn the_other_machine_stays() {
        let file = r#"[
            {"machine":"svm","module":"kvm","op":"cpuid","instructions":5664.0,"exits":1.0},
            {"machine":"vmx","module":"kvm","op":"cpuid","instructions":3000.0,"exits":null}
        ]"#;
        let left = kept(Kind::Vmx, file);
        assert_eq!((left.len(), left[0].machine.as_str()), (1, "svm"));
        assert!(kept(Kind::Vmx, "").is_empty());
    }
}
