//! `cargo xtask bench`: instructions per operation on Exitless and on stock KVM, on the same emulated machine, and its ledger.
//!
//! The machine counts each instruction as one tick of its time-stamp counter (on SVM `-icount shift=0`; Bochs always
//! does), so figures repeat and can be compared from change to change. They are instructions, not nanoseconds: a world
//! switch costs one tick. What two vCPUs do together (`ipi_running`, `ipi_wake_hlt`) also counts the turns that the emulator
//! gives its CPUs one after the other: compare those between modules only. Bochs with several CPUs adds some tens of ticks
//! to whatever cuts a turn short, so there an operation is measured on as many CPUs as it has vCPUs. What is measured in windows
//! (docs/lab-bochs.md, "The ledger") is counted by the emulator for the CPU or CPUs that it concerns.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::{
    lab::{
        self, Options, deps,
        machine::{Extra, Kind},
        programs,
        report::Report,
        scenario::{Module, Scenario},
    },
    ledger::{self, Batches, Costs, Ledger, Row, Side, Vendor},
    paths, say, sh,
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
    /// CPUs of the emulated host. With one, two vCPUs that wait for each other wait for the scheduler. Default: as many as the operation
    /// has vCPUs; on svm at least 2.
    #[arg(long)]
    pub cpus: Option<u32>,
    /// Operations whose name contains one of these (`ipi_send timer`; default: all).
    pub patterns: Vec<String>,
    /// This module file, instead of building one.
    #[arg(long)]
    pub ko: Option<std::path::PathBuf>,
    /// Parameters of Exitless, as for insmod: it is measured without and with them, and the table shows the difference; the figures are
    /// printed only.
    #[arg(long, default_value = "", conflicts_with = "module")]
    pub module_args: String,
    /// What the CPUs have besides, as scenarios name it (`ipiv`); the figures are printed only.
    #[arg(long, value_parser = Extra::named)]
    pub cpu: Vec<Extra>,
    /// Exitless with this mechanism on, which records name (for `pvipi-raw` the host is in x2APIC mode).
    #[arg(long, value_parser = MECHANISMS.map(|(name, _)| name), conflicts_with = "module_args")]
    pub mechanism: Option<String>,
    /// More words for the emulated host's kernel command line (`mitigations=auto`); the figures are printed only.
    #[arg(long, default_value = "")]
    pub append: String,
    /// Seconds of real time for each machine.
    #[arg(long, default_value = "900")]
    pub limit: u64,
    /// The emulator writes down each instruction of some exits (`cargo xtask anatomy`).
    #[arg(skip)]
    pub trace: bool,
}

impl Choice {
    /// Both modules, these benchmarks by their whole names, each instruction of some exits written down.
    pub fn traced(machine: Kind, operations: &[String]) -> Choice {
        Choice {
            module: None,
            machine,
            cpus: None,
            patterns: operations.to_vec(),
            ko: None,
            module_args: String::new(),
            cpu: Vec::new(),
            mechanism: None,
            append: String::new(),
            limit: 900,
            trace: true,
        }
    }

    /// The two columns of the table.
    fn columns(&self) -> Vec<Column> {
        let stock = Column { module: Module::Kvm, params: String::new(), tuned: false };
        let plain = Column { module: Module::Exitless, params: self.switches().to_string(), tuned: false };
        match self.module {
            Some(Module::Kvm) => vec![stock],
            Some(Module::Exitless) => vec![plain],
            None if self.module_args.is_empty() => vec![stock, plain],
            None => {
                vec![
                    plain,
                    Column { module: Module::Exitless, params: self.module_args.clone(), tuned: true },
                ]
            }
        }
    }

    /// These operations on this machine, by this mechanism.
    pub fn of(machine: Kind, mechanism: Option<&str>, patterns: Vec<String>) -> Choice {
        let mechanism = mechanism.map(str::to_string);
        Choice { mechanism, trace: false, ..Choice::traced(machine, &patterns) }
    }

    /// Parameters for the mechanism.
    fn switches(&self) -> &'static str {
        let name = self.mechanism.as_deref();
        MECHANISMS.iter().find(|(known, _)| Some(*known) == name).map_or("", |(_, params)| params)
    }
}

/// What records name, and how Exitless is loaded for it.
const MECHANISMS: [(&str, &str); 5] = [
    ("timer-passthrough", "mechanisms=+timer_passthrough,+host_tsc"),
    ("timer-in-guest", "mechanisms=+timer_passthrough,+host_tsc,+timer_in_guest"),
    ("lazy-deadline", "mechanisms=+lazy_deadline"),
    ("pvipi-validated", "mechanisms=+ipi_validated"),
    (RAW, "raw_ipi=1 mechanisms=+pvipi_raw"),
];

/// The host must be in x2APIC mode.
const RAW: &str = "pvipi-raw";

/// A module with parameters.
#[derive(Debug, Clone)]
struct Column {
    module: Module,
    params: String,
    /// Exitless with parameters, beside itself without.
    tuned: bool,
}

/// The second column's name in records, where both are Exitless.
const TUNED: &str = "tuned";

impl Column {
    fn name(&self) -> String {
        if self.tuned { TUNED.into() } else { self.module.to_string() }
    }
}

/// One figure, as it stands in target/bench/latest.json.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq)]
pub struct Record {
    /// The machine's name.
    #[serde(default)]
    pub machine: String,
    /// `exitless` or `kvm`.
    #[serde(default)]
    pub module: String,
    /// The operation's name.
    pub op: String,
    /// Instructions for one operation, host and guest together; the host's alone where the emulator counts within windows.
    #[serde(default)]
    pub instructions: f64,
    /// Exits for one operation, if the module counts them.
    pub exits: Option<f64>,
    /// By which mechanism of ours the operation was done; empty for what stock KVM's guests do too.
    #[serde(default)]
    pub mechanism: String,
    /// Estimated cycles of a CPU for one operation (`xtask/src/ledger/costs.toml`), where there is a ledger.
    #[serde(default)]
    pub estimated_cycles: Option<f64>,
    /// What the host executed for one operation and what is dear on a CPU, in the fastest batch, if the emulator counts.
    #[serde(default)]
    pub ledger: Option<Ledger>,
    /// Ticks of the guest's TSC for one operation; none where only the emulator counts.
    #[serde(default, skip_serializing)]
    pub ticks: Option<f64>,
    /// The fastest batch's mark in the emulator's ledger; the first batch's where only the emulator counts.
    #[serde(default, skip_serializing)]
    pub mark: Option<u64>,
    /// Batches from that one on.
    #[serde(default, skip_serializing)]
    pub batches: u64,
}

/// Operations for which one machine is started, by its number of CPUs.
type Parts = BTreeMap<u32, Vec<String>>;

/// All that are asked for, of those that the runner has.
pub fn chosen(choice: &Choice) -> Result<Parts> {
    let runner = programs::built("exitless-runner")?;
    Ok(parts(choice, &sh::output(Command::new(runner).args(["list", "--vcpus"]))?))
}

/// `list` has a line `bench/<operation> <vCPUs>` for each.
fn parts(choice: &Choice, list: &str) -> Parts {
    let mut parts = Parts::new();
    for (name, vcpus) in list.lines().filter_map(|line| line.split_once(' ')) {
        let asked = |word: &String| match choice.trace {
            true => name.strip_prefix("bench/") == Some(word),
            false => name.contains(word),
        };
        let wanted = choice.patterns.is_empty() || choice.patterns.iter().any(asked);
        let Some(vcpus) = vcpus.parse().ok().filter(|_| wanted && name.starts_with("bench/")) else {
            continue;
        };
        let least = if choice.machine == Kind::Svm { 2 } else { 1 };
        let cpus = choice.cpus.unwrap_or(least.max(vcpus));
        parts.entry(cpus).or_default().push(name.to_string());
    }
    parts
}

const SCRIPT: &str = r#"
measure() {
    load_module || return 1
    # Size and address of the module's parts.
    sed -nE "s/^(exitless|kvm|kvm_intel|kvm_amd) ([0-9]+) .* (0x[0-9a-f]+).*/=== JSON $COLUMN module \2 \3/p" /proc/modules
    runner bench --json --exact $OPS | sed "s/^{/=== JSON $COLUMN {/" && unload_module
}
"#;

/// Measures, prints the table, writes target/bench/latest.json.
pub fn run(choice: &Choice) -> Result<()> {
    deps::host_packages()?;
    let dir = paths::made(paths::target().join("bench"))?;
    let mut measured = Vec::new();
    let mut failed = 0;
    for (cpus, ops) in &chosen(choice)? {
        let part = measure(choice, *cpus, ops, &dir)?;
        measured.extend(part.records);
        failed += part.failed;
    }
    table(&measured)?;
    if measured.is_empty() {
        bail!("nothing was measured; logs are in {}", paths::shown(&dir));
    }
    if choice.append.is_empty() && choice.module_args.is_empty() && choice.cpu.is_empty() {
        write(measured, &dir)?;
    }
    if failed > 0 {
        bail!("a measurement failed; logs are in {}", paths::shown(&dir));
    }
    Ok(())
}

/// Writes target/bench/latest.json.
fn write(measured: Vec<Record>, dir: &Path) -> Result<()> {
    let file = dir.join("latest.json");
    let others = fs::read_to_string(&file).unwrap_or_default();
    let all = kept(&measured, &others).into_iter().chain(measured);
    let lines: Vec<_> = all.map(|record| serde_json::to_string(&record)).collect::<Result<_, _>>()?;
    fs::write(&file, format!("[\n{}\n]\n", lines.join(",\n")))?;
    say::note(format!("written to {}", paths::shown(&file)));
    Ok(())
}

/// What one machine found.
pub struct Part {
    pub records: Vec<Record>,
    /// Tests that failed.
    pub failed: usize,
    /// Lines `<column> module <bytes> <address>`.
    pub modules: Vec<String>,
    /// Lines of the emulator's trace, if it was asked for.
    pub trace: std::path::PathBuf,
}

/// Starts one machine.
pub fn measure(choice: &Choice, cpus: u32, ops: &[String], dir: &Path) -> Result<Part> {
    let columns = choice.columns();
    let modules: Vec<_> = columns.iter().map(|column| column.module).collect();
    let names: Vec<_> = columns.iter().map(Column::name).collect();
    let mut script = format!("OPS='{}'\n{SCRIPT}", ops.join(" "));
    for column in &columns {
        let (Column { module, params, .. }, name) = (column, column.name());
        script =
            format!("{script}MODULE={module} PARAMS='{params}' COLUMN={name}\ncheck bench-{name} measure\n");
    }
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
    let options = Options {
        module,
        machine: choice.machine,
        ko: choice.ko.clone(),
        append: choice.append.clone(),
        cpu: choice.cpu.clone(),
        x2apic: choice.mechanism.as_deref() == Some(RAW),
        ..Options::default()
    };
    let kernel = deps::kernel(options.kernel)?;
    println!("-> bench {} ({}, {cpus} CPU, instructions counted)", names.join(" "), choice.machine);
    let mut machine = lab::prepare(&scenario, &options, &kernel, cpus, dir.to_path_buf(), None)?;
    // Instructions are counted by emulators only.
    machine.hardware = false;
    machine.icount = machine.kind == Kind::Svm;
    machine.traced = choice.trace;
    fs::remove_file(machine.ledger()).ok();
    let report = lab::watch(&machine, scenario.timeout, true, Report::default())?;
    let mut records = records(machine.kind, &report.json)?;
    for record in records.iter_mut().filter(|record| record.module != Module::Kvm.to_string()) {
        record.mechanism = choice.mechanism.clone().unwrap_or_default();
    }
    enter(&mut records, &Batches::read(&machine.ledger())?, &Costs::published()?);
    // QEMU does not count yet.
    if let Some(record) = records.iter().find(|record| record.ledger.is_none() && machine.kind != Kind::Svm) {
        bail!("the emulator counted nothing for {}: {}", record.op, paths::shown(&machine.ledger()));
    }
    let figureless = records.extract_if(.., |record| record.ticks.is_none() && record.ledger.is_none());
    let ops: BTreeSet<_> = figureless.map(|record| record.op).collect();
    if !ops.is_empty() {
        let ops: Vec<_> = ops.into_iter().collect();
        say::note(format!("no figure where the emulator does not count: {}", ops.join(" ")));
    }
    let modules = report.json.iter().filter(|line| line.contains(" module ")).cloned().collect();
    Ok(Part { records, failed: report.totals().failed, modules, trace: machine.trace() })
}

/// Gives each record the ledger of its fastest batch, its figures, and the estimate.
fn enter(records: &mut [Record], batches: &Batches, costs: &Costs) {
    for record in records {
        let marks = record.mark.map_or(0..0, |first| first..first + record.batches);
        record.ledger = batches.least(marks).cloned();
        if let Some(ticks) = record.ticks {
            record.instructions = ticks;
        } else if let Some(ledger) = &record.ledger {
            record.instructions = count(ledger, "instructions");
            record.exits = Some(count(ledger, "vmentry"));
        }
        let vendor = vendor(&record.machine);
        let cycles = |ledger| costs.estimate(vendor, record.instructions, ledger).round();
        record.estimated_cycles = record.ledger.as_ref().map(cycles);
    }
}

fn count(ledger: &Ledger, key: &str) -> f64 {
    ledger.get(key).copied().unwrap_or_default()
}

pub fn vendor(machine: &str) -> Vendor {
    if machine == Kind::Vmx.to_string() { Vendor::Intel } else { Vendor::Amd }
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

/// What the file already says of what was not measured now; a file that cannot be read says nothing.
fn kept(measured: &[Record], file: &str) -> Vec<Record> {
    let mut records: Vec<Record> = serde_json::from_str(file).unwrap_or_default();
    let key = |record: &Record| {
        (record.machine.clone(), record.module.clone(), record.mechanism.clone(), record.op.clone())
    };
    let new: BTreeSet<_> = measured.iter().map(key).collect();
    records.retain(|record| !new.contains(&key(record)));
    records
}

/// The two columns' records of each operation: ours and stock's, or with and without parameters.
fn rows(records: &[Record]) -> Vec<Row<'_>> {
    let mut rows: BTreeMap<&str, Row<'_>> = BTreeMap::new();
    let tuned = records.iter().any(|record| record.module == TUNED);
    for record in records {
        let row = rows.entry(&record.op).or_default();
        row.op = &record.op;
        let side = Side {
            instructions: record.instructions,
            exits: record.exits,
            cycles: record.estimated_cycles,
            ledger: record.ledger.as_ref(),
        };
        let theirs = if tuned { "exitless" } else { "kvm" };
        if record.module == theirs { row.stock = Some(side) } else { row.ours = Some(side) }
    }
    rows.into_values().collect()
}

/// Instructions of the host's kernel alone, where the emulator counts.
fn kernel(side: &Side<'_>) -> Option<f64> {
    side.ledger.map(|ledger| count(ledger, "instructions") - count(ledger, "user"))
}

fn table(records: &[Record]) -> Result<()> {
    let rows = rows(records);
    let tuned = records.iter().any(|record| record.module == TUNED);
    let (other, last) = if tuned { ("plain", "diff") } else { ("kvm's", "ratio") };
    let shown = |figure: Option<f64>, digits: usize| {
        figure.map_or("-".to_string(), |figure| format!("{figure:.digits$}"))
    };
    let compared = |pair: (Option<f64>, Option<f64>)| match ratio(pair) {
        Some(ratio) if tuned => format!("{:+.1}%", 100.0 * (ratio - 1.0)),
        ratio => shown(ratio, 2),
    };
    println!(
        "\n{:<22} {:>12} {other:>8} {last:>6} {:>12} {other:>8} {last:>6} {:>8} {other:>7} {:>16} {other:>8} {last:>6}",
        "for one operation", "instructions", "host kernel's", "exits", "cycles, estimate",
    );
    for Row { op, ours, stock } in &rows {
        let pair =
            |of: fn(&Side<'_>) -> Option<f64>| (ours.as_ref().and_then(of), stock.as_ref().and_then(of));
        let (instructions, kernel) = (pair(|side| Some(side.instructions)), pair(kernel));
        let (exits, cycles) = (pair(|side| side.exits), pair(|side| side.cycles));
        println!(
            "{op:<22} {:>12} {:>8} {:>6} {:>13} {:>8} {:>6} {:>8} {:>7} {:>16} {:>8} {:>6}",
            shown(instructions.0, 0),
            shown(instructions.1, 0),
            compared(instructions),
            shown(kernel.0, 0),
            shown(kernel.1, 0),
            compared(kernel),
            shown(exits.0, 2),
            shown(exits.1, 2),
            shown(cycles.0, 0),
            shown(cycles.1, 0),
            compared(cycles),
        );
    }
    println!();
    if rows.iter().any(|row| row.ours.is_some_and(|side| side.ledger.is_some())) {
        let names = if tuned { (TUNED, "exitless") } else { ("exitless", "kvm") };
        ledger::print(names, &rows, &Costs::published()?);
    }
    Ok(())
}

/// What the last measurements left.
pub fn kept_records() -> Result<Vec<Record>> {
    let file = paths::target().join("bench/latest.json");
    let text = fs::read_to_string(&file).context("`cargo xtask bench` first")?;
    serde_json::from_str(&text).context("target/bench/latest.json")
}

/// Writes docs/ledger.md from what the last measurements of each machine left.
pub fn page() -> Result<()> {
    let records = kept_records()?;
    let costs = Costs::published()?;
    let mut page = PAGE.to_string();
    let machines: BTreeSet<&str> = records.iter().map(|record| record.machine.as_str()).collect();
    for machine in machines {
        let of_it = records.iter().filter(|record| record.machine == machine && record.mechanism.is_empty());
        let of_it: Vec<_> = of_it.cloned().collect();
        if of_it.iter().any(|record| record.ledger.is_some()) {
            page = format!("{page}\n{}", ledger::section(machine, &rows(&of_it), &costs));
        }
    }
    page = format!("{page}\n## Prices\n\n{PRICES}\n{}", ledger::prices(&costs));
    let file = paths::root().join("docs/ledger.md");
    fs::write(&file, page)?;
    say::note(format!("written: {}", paths::shown(&file)));
    Ok(())
}

const PAGE: &str = "\
# The ledger

What the host executes for one operation of the benchmark and what is dear on a CPU: Exitless/stock KVM, **bold** where Exitless
stands above. Written by `cargo xtask ledger` from what `cargo xtask bench` measured last of each row; nothing here is written
by hand. How it is counted: [lab-bochs.md](lab-bochs.md#the-ledger). Why a column stands above stock: [exits.md](exits.md#above-stock).

Counts are of the fastest of five batches; a part of one is the host's own business meanwhile (its timer). *Cycles* are an **estimate**
(prices below), instructions of host and guest included. The entry, which both modules pay, is more than half of a fast exit's estimate and
presses its ratio toward 1.

`vmx` is Bochs's Skylake-X, `ryzen` Bochs's Ryzen ([lab-ryzen.md](lab-ryzen.md)); QEMU's machine counts none. Hosts start with
`mitigations=off`: VERW and flushes are empty here ([exits.md](exits.md#above-stock) has a word on `auto`). *not clean*: groups of the VMCB's
fields that the CPU has to read again. On `vmx` stock's `eoi` and `lapic_mmio_eoi` are EOIs with nothing in service, which exit there for
vector 0 and not for a real one: no gain of ours ([lab-bochs.md](lab-bochs.md)).
";

const PRICES: &str = "\
Cycles on top of those of any instruction (`xtask/src/ledger/costs.toml`). *read*: the source was read for this table; *recalled*: a
published figure whose text was not at hand; *assumed*: none was found, and the number was chosen after what the row says.
";

/// Ours to stock's.
fn ratio((ours, stock): (Option<f64>, Option<f64>)) -> Option<f64> {
    Some(ours? / stock.filter(|stock| *stock > 0.0)?)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::{Batches, Choice, Costs, Kind, enter, kept, parts, records};

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        choice: Choice,
    }

    /// An operation goes to the machine with a CPU for each of its vCPUs; no machine starts for nothing.
    #[test]
    fn operations_find_their_machine() {
        let list = "basic/two_cpus 2\nbench/cpuid 1\nbench/ipi_send 2\nbench/ipi_send_8 9\n";
        let parts = |words: &[&str]| {
            let line = Line::try_parse_from(["bench"].iter().chain(words)).unwrap();
            parts(&line.choice, list).into_iter().map(|(cpus, ops)| (cpus, ops.join(" "))).collect::<Vec<_>>()
        };
        let [cpuid, send, send_8] = ["bench/cpuid", "bench/ipi_send", "bench/ipi_send_8"].map(str::to_string);
        assert_eq!(
            parts(&["--machine", "vmx"]),
            [(1, cpuid.clone()), (2, send.clone()), (9, send_8.clone())]
        );
        assert_eq!(parts(&["send"]), [(2, send.clone()), (9, send_8.clone())]);
        assert_eq!(parts(&["--cpus", "4", "cpu", "_8"]), [(4, format!("{cpuid} {send_8}"))]);
        assert_eq!(parts(&["two"]), []);
    }

    /// What only the emulator counts is the host's part in the batch with the least, with its entries as exits.
    #[test]
    fn windows_are_figures() {
        let batch = |mark: u32, host: u32| {
            format!(
                "{{\"mark\":{mark},\"operations\":10,\"counts\":{{\"instructions\":{host},\"guest\":7,\"vmentry\":20}}}}\n"
            )
        };
        let batches = Batches::parse(&(batch(64, 900) + &batch(65, 800) + &batch(66, 100))).unwrap();
        let line = r#"kvm {"op":"ipi_send","ticks":null,"exits":null,"mark":64,"batches":2}"#.to_string();
        let mut found = records(Kind::Vmx, &[line]).unwrap();
        enter(&mut found, &batches, &Costs::published().unwrap());
        assert_eq!((found[0].instructions, found[0].exits), (80.0, Some(2.0)));
    }

    /// The runner does not know which module it measures; the script puts that in front.
    #[test]
    fn records_get_their_module() {
        let lines = [r#"kvm {"op":"cpuid","ticks":5664.0,"exits":1.000}"#.to_string(), "kvm noise".into()];
        let found = records(Kind::Vmx, &lines).unwrap();
        assert_eq!((found.len(), found[0].module.as_str(), found[0].exits), (1, "kvm", Some(1.0)));
        assert_eq!(found[0].machine, "vmx");
    }

    /// The ledger is that of the batch whose mark the record names, and latest.json has it; a record without one has no estimate.
    #[test]
    fn records_get_their_ledger() {
        let file = std::env::temp_dir().join(format!("exitless-ledger-{}", std::process::id()));
        let batch = |mark: u32, count: u32| {
            format!("{{\"mark\":{mark},\"operations\":250,\"counts\":{{\"locked\":{count}}}}}\n")
        };
        std::fs::write(&file, batch(70, 500) + &batch(71, 250)).unwrap();
        let batches = Batches::read(&file).unwrap();
        std::fs::remove_file(&file).unwrap();
        let lines = [
            r#"kvm {"op":"cpuid","ticks":100.0,"exits":1.000,"mark":71,"batches":1}"#.to_string(),
            r#"kvm {"op":"eoi","ticks":100.0,"exits":1.000,"mark":9,"batches":1}"#.to_string(),
        ];
        let mut found = records(Kind::Vmx, &lines).unwrap();
        enter(&mut found, &batches, &Costs::published().unwrap());
        let json = serde_json::to_string(&found[0]).unwrap();
        assert!(json.contains(r#""mechanism":"","#) && json.contains(r#""ledger":{"locked":1.0}"#), "{json}");
        assert!(found[0].estimated_cycles.is_some_and(|cycles| cycles > 50.0));
        assert_eq!((found[1].ledger.clone(), found[1].estimated_cycles), (None, None));
    }

    /// A run replaces the figures that it measured and keeps the others.
    #[test]
    fn what_was_not_measured_stays() {
        let file = r#"[
            {"machine":"svm","module":"kvm","op":"cpuid","instructions":5664.0,"exits":1.0},
            {"machine":"vmx","module":"kvm","op":"eoi","instructions":4.0,"exits":1.0},
            {"machine":"vmx","module":"kvm","op":"cpuid","instructions":3000.0,"exits":null}
        ]"#;
        let lines = [r#"kvm {"op":"cpuid","ticks":974.0,"exits":1.000}"#.to_string()];
        let measured = records(Kind::Vmx, &lines).unwrap();
        let left: Vec<_> =
            kept(&measured, file).into_iter().map(|record| (record.machine, record.op)).collect();
        assert_eq!(left, [("svm".into(), "cpuid".into()), ("vmx".into(), "eoi".into())]);
        assert_eq!(kept(&measured, "").len(), 0);
    }
}
