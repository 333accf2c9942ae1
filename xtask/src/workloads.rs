//! `cargo xtask workloads`: Linux guests do the same work on stock KVM, on Exitless with every mechanism off, and with all on;
//! prints exits for each unit of work, by reason (jobs `work_*` in `lab/hosts/guest/init`), and keeps them in `target/workloads`.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::PathBuf,
};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use crate::{
    lab::{
        Options,
        machine::{Extra, Kind},
        scenario::{Module, Scenario},
    },
    measure::{self, Names},
    paths, say,
};

/// What to measure.
#[derive(Debug, Clone, clap::Args)]
pub struct Choice {
    /// The emulated machine.
    #[arg(long, value_enum, default_value = "svm")]
    pub machine: Kind,
    /// CPUs of the emulated host.
    #[arg(long, default_value = "4")]
    pub cpus: u32,
    /// CPUs of the guest.
    #[arg(long, default_value = "4")]
    pub vcpus: u32,
    /// What the CPUs have besides, as scenarios name it: `ipiv` adds `ipi_virtualization` to all that is on, and a column of stock KVM with it.
    #[arg(long, value_parser = Extra::named)]
    pub cpu: Vec<Extra>,
    /// Instead of stock, off and on: also `lazy` (off, and lazy deadlines alone) and `default`.
    #[arg(long, value_enum, value_delimiter = ',')]
    pub columns: Vec<Column>,
    /// Multiplies the work.
    #[arg(long, default_value = "1")]
    pub times: u32,
    /// This module file, instead of building one.
    #[arg(long)]
    pub ko: Option<PathBuf>,
    /// More words for the guest's kernel command line.
    #[arg(long, default_value = "")]
    pub append: String,
    /// Measure nothing: write docs/workloads.md from the figures of the last runs.
    #[arg(long)]
    pub page: bool,
    /// Work by name; all of it if none is given.
    pub names: Vec<String>,
}

/// `cargo xtask requests`: requests with a time limit, without exitless-guest.ko and with it.
#[derive(Debug, Clone, clap::Args)]
pub struct Requests {
    /// The emulated machine.
    #[arg(long, value_enum, default_value = "svm")]
    pub machine: Kind,
    /// CPUs of the emulated host.
    #[arg(long, default_value = "2")]
    pub cpus: u32,
    /// CPUs of the guest; two for each pair of processes.
    #[arg(long, default_value = "4")]
    pub vcpus: u32,
}

/// A piece of work: its name, and its size for a run of some ten seconds.
const WORK: [(&str, u32); 9] = [
    ("tcp_rr", 3000),
    ("requests", 3000),
    ("cyclictest", 500),
    ("hackbench", 50),
    ("wake", 1000),
    ("map", 300),
    ("fork", 200),
    ("disk", 1000),
    ("net", 500),
];

/// How a guest is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Column {
    /// Stock KVM, without IPI virtualization where the CPU has it.
    Stock,
    /// Stock KVM with IPI virtualization.
    StockIpiv,
    /// Exitless, every mechanism off.
    Off,
    /// Exitless as it is loaded.
    Default,
    /// Exitless, lazy deadlines alone on, exitless-guest.ko in the guest.
    Lazy,
    /// Exitless, all on that this machine has, exitless-guest.ko in the guest.
    On,
}

/// Of those, what the machine has.
const ON_AMD: &[&str] = &["lazy_deadline"];
const ON_INTEL: &[&str] = &["lazy_deadline", "timer_passthrough", "host_tsc"];
const IPIV: &str = "ipi_virtualization";

impl Column {
    fn module(self) -> Module {
        if matches!(self, Column::Stock | Column::StockIpiv) { Module::Kvm } else { Module::Exitless }
    }

    /// Mechanisms that are on in it and are not by default; each must be active when the work ends.
    fn mechanisms(self, choice: &Choice) -> Vec<&'static str> {
        match self {
            Column::Lazy => vec!["lazy_deadline"],
            Column::On => {
                let on = if choice.machine == Kind::Vmx { ON_INTEL } else { ON_AMD };
                on.iter().copied().chain(choice.ipiv().then_some(IPIV)).collect()
            }
            _ => Vec::new(),
        }
    }

    /// The module's parameters.
    fn params(self, choice: &Choice) -> String {
        let on: String = self.mechanisms(choice).iter().map(|name| format!(",+{name}")).collect();
        let ipiv = if choice.ipiv() { " ipiv=1" } else { "" };
        match self {
            Column::Stock if choice.ipiv() => "enable_ipiv=0".into(),
            Column::Stock | Column::StockIpiv | Column::Default => String::new(),
            Column::Off | Column::Lazy => format!("mechanisms=-all{on}"),
            Column::On => format!("mechanisms=default{on}{ipiv}"),
        }
    }

    /// As tables and scripts call it.
    fn name(self) -> &'static str {
        match self {
            Column::Stock => "stock",
            Column::StockIpiv => "stock-ipiv",
            Column::Off => "off",
            Column::Default => "default",
            Column::Lazy => "lazy",
            Column::On => "on",
        }
    }
}

impl Default for Choice {
    fn default() -> Self {
        Choice {
            machine: Kind::Svm,
            cpus: 4,
            vcpus: 4,
            cpu: Vec::new(),
            columns: Vec::new(),
            times: 1,
            ko: None,
            append: String::new(),
            page: false,
            names: Vec::new(),
        }
    }
}

impl Choice {
    fn ipiv(&self) -> bool {
        self.cpu.contains(&Extra::Ipiv)
    }

    fn columns(&self) -> Vec<Column> {
        if !self.columns.is_empty() {
            return self.columns.clone();
        }
        let all = [Column::Stock, Column::StockIpiv, Column::Off, Column::On];
        all.into_iter().filter(|column| *column != Column::StockIpiv || self.ipiv()).collect()
    }

    /// The guest's list of work, `name:size,..`.
    fn work(&self) -> Result<String> {
        for name in &self.names {
            ensure!(
                WORK.iter().any(|(known, _)| known == name),
                "{name} is none of {:?}",
                WORK.map(|(n, _)| n)
            );
        }
        let wanted = |name: &str| self.names.is_empty() || self.names.iter().any(|n| n == name);
        let list = WORK.iter().filter(|(name, _)| wanted(name));
        Ok(list.map(|(name, size)| format!("{name}:{}", size * self.times)).collect::<Vec<_>>().join(","))
    }

    /// All columns of the guest's list of work, to be run on one machine.
    pub fn scenario(&self, name: &str, work: &str) -> Scenario {
        let mut script = format!("VCPUS={} WORK={work} APPEND='{}'\n{SCRIPT}", self.vcpus, self.append);
        for column in self.columns() {
            let module = if column.mechanisms(self).contains(&"lazy_deadline") { "on" } else { "off" };
            let params = column.params(self);
            script += &format!("column {} {} '{params}' {module}\n", column.name(), column.module());
        }
        let needs = ["guest", "exitless-guest", "load"];
        let scenario = measure::scenario(name, self.cpus, 900 * u64::from(self.times), &needs, script);
        Scenario { memory: 1536, ..scenario }
    }

    /// Where the figures are comparable.
    fn place(&self) -> Place {
        let ipiv = if self.ipiv() { " with IPI virtualization" } else { "" };
        let machine = format!("{}{ipiv}", self.machine);
        Place { machine, vcpus: self.vcpus, cpus: self.cpus, append: self.append.clone() }
    }
}

const SCRIPT: &str = r#"
column() {
    MODULE=$2 PARAMS=$3
    check load-$1 load_module
    [ $MODULE = exitless ] || sed -n 's/^print fmt:/=== JSON names/p' $kvm_events/kvm_exit/format
    GUEST_APPEND="exitless.module=$4 $APPEND"
    load serve 7100 & served=$!
    check $1 work_guest $VCPUS /tmp/log $(mmio_devices /tmp/disk)
    kill $served 2>/dev/null
    sed "s/^/=== JSON $1 /" /tmp/log.figures
    check unused-$1 wait_unused 20
    check unload-$1 unload_module
}
guest_extras
make_disk /tmp/disk
"#;

/// Measures, keeps the figures, prints the table; or writes the page.
pub fn run(choice: &Choice) -> Result<()> {
    if choice.page {
        return page();
    }
    let scenario = choice.scenario("workloads", &choice.work()?);
    let options = Options { ko: choice.ko.clone(), cpu: choice.cpu.clone(), ..Options::default() };
    let what = format!("a guest of {} vCPUs", choice.vcpus);
    let records = measure::records(&scenario, choice.machine, true, options, &what)?;
    let new = figures(&records, &Names::of(choice.machine, &records), choice)?;
    print!("\n{}", tables(&new));
    keep(new)
}

/// Of the figures that are there, by how much each piece of work has fewer exits with lazy deadlines alone, and with all on.
pub fn timers() -> Result<()> {
    let list = read()?;
    let less = |of: &dyn Fn(&Figure) -> f64, from: &Figure, to: &Figure| {
        let (from, to) = (of(from) / from.units, of(to) / to.units);
        if from < LEAST { "-".into() } else { format!("{:+.1} %", (to / from - 1.0) * 100.0) }
    };
    println!(
        "\n{:<46} {:>18} {:>12}",
        "for each unit of work, against all off", "deadline exits", "all exits"
    );
    for off in list.iter().filter(|figure| figure.column == Column::Off) {
        for to in list.iter().filter(|f| f.work == off.work && f.place == off.place) {
            if !matches!(to.column, Column::Lazy | Column::On) {
                continue;
            }
            let name = format!(
                "{}, {}, {} vCPU: {}",
                off.work,
                off.place.machine,
                off.place.vcpus,
                to.column.name()
            );
            let (writes, all) = (less(&|f| f.msr(0x6e0), off, to), less(&Figure::all, off, to));
            println!("{name:<46} {writes:>18} {all:>12}");
        }
    }
    if list.is_empty() {
        println!("none yet: cargo xtask workloads");
    }
    Ok(())
}

/// `cargo xtask requests`.
pub fn requests(choice: &Requests) -> Result<()> {
    let Requests { machine, cpus, vcpus } = *choice;
    let columns = vec![Column::Off, Column::Lazy];
    let names = vec!["requests".into()];
    run(&Choice { machine, cpus, vcpus, columns, names, ..Choice::default() })
}

/// A machine and a guest whose figures stand in one table.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Place {
    machine: String,
    vcpus: u32,
    cpus: u32,
    /// More words of the guest's kernel command line.
    append: String,
}

/// One piece of work in one column.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Figure {
    #[serde(flatten)]
    place: Place,
    work: String,
    column: Column,
    /// What is counted, and how many there were.
    unit: String,
    units: f64,
    /// By the host's clock.
    seconds: f64,
    exits: BTreeMap<String, f64>,
    /// Accesses that exited, by number.
    msrs: BTreeMap<String, f64>,
    /// In how many vCPUs each that is on was active at the end.
    mechanisms: BTreeMap<String, f64>,
}

impl Figure {
    /// Exits for each unit, if it is this work in this column.
    pub fn each(&self, work: &str, column: Column) -> Option<f64> {
        (self.work == work && self.column == column).then(|| self.all() / self.units)
    }

    fn all(&self) -> f64 {
        self.exits.values().sum()
    }

    fn msr(&self, number: u32) -> f64 {
        self.msrs.get(&format!("{number:#010x}")).copied().unwrap_or(0.0)
    }
}

/// Of each column and work, the counters' difference between its two marks.
pub fn figures(records: &[String], names: &Names, choice: &Choice) -> Result<Vec<Figure>> {
    let mut list = Vec::new();
    for column in choice.columns() {
        let of_column = records.iter().filter_map(|line| line.strip_prefix(column.name())?.strip_prefix(' '));
        let of_column: Vec<Vec<&str>> = of_column.map(|line| line.split(' ').collect()).collect();
        let works: BTreeSet<&str> = of_column.iter().filter_map(|words| words.first().copied()).collect();
        for work in works {
            list.push(
                figure(&of_column, work, column, names, choice)
                    .with_context(|| format!("{work}, {}", column.name()))?,
            );
        }
    }
    Ok(list)
}

fn figure(lines: &[Vec<&str>], work: &str, column: Column, names: &Names, choice: &Choice) -> Result<Figure> {
    let mut figure = Figure {
        place: choice.place(),
        work: work.into(),
        column,
        unit: String::new(),
        units: 0.0,
        seconds: 0.0,
        exits: BTreeMap::new(),
        msrs: BTreeMap::new(),
        mechanisms: BTreeMap::new(),
    };
    for words in lines.iter().filter(|words| words.first() == Some(&work)) {
        let [_, when, what, key @ .., count] = words.as_slice() else { bail!("`{words:?}` is no figure") };
        let count: f64 = count.parse().with_context(|| format!("`{words:?}` is no figure"))?;
        let sign = if *when == "end" { 1.0 } else { -1.0 };
        let key = key.join(" ");
        match *what {
            "work" => (figure.unit, figure.units) = (key, count),
            "at" => figure.seconds += sign * count / 100.0,
            "mechanism" if *when == "end" => _ = figure.mechanisms.insert(key, count),
            "mechanism" => {}
            "exit" if matches!(key.as_str(), "total" | "exits") => {}
            "exit" => {
                let name = if column.module() == Module::Kvm { names.get(key.parse()?) } else { key };
                *figure.exits.entry(name).or_default() += sign * count;
            }
            "msr" => {
                let number = u32::from_str_radix(key.trim_start_matches("0x"), 16)?;
                *figure.msrs.entry(format!("{number:#010x}")).or_default() += sign * count;
            }
            other => bail!("`{other}` is not counted"),
        }
    }
    ensure!(figure.units > 0.0, "it has not ended");
    for name in column.mechanisms(choice) {
        ensure!(figure.mechanisms.get(name).is_some_and(|vcpus| *vcpus > 0.0), "{name} was not active");
    }
    Ok(figure)
}

/// Exits that are told by name besides the reasons.
const MSRS: [(&str, u32); 2] = [("writes of the deadline", 0x6e0), ("writes of the ICR", 0x830)];

/// Rows below this are left out.
const LEAST: f64 = 0.005;

/// For each place a table in Markdown, which is readable as it is.
pub fn tables(list: &[Figure]) -> String {
    let mut text = String::new();
    for place in list.iter().map(|figure| &figure.place).collect::<BTreeSet<_>>() {
        let here: Vec<_> = list.iter().filter(|figure| figure.place == *place).collect();
        text += &format!("### {}, a guest of {} vCPU on {} CPU", place.machine, place.vcpus, place.cpus);
        text += &if place.append.is_empty() { "\n\n".into() } else { format!(", `{}`\n\n", place.append) };
        text += &table(&here);
        text.push('\n');
    }
    text
}

fn table(list: &[&Figure]) -> String {
    let columns: BTreeSet<Column> = list.iter().map(|figure| figure.column).collect();
    let mut rows = vec![header(&columns)];
    for (work, _) in WORK {
        let of_work: Vec<_> = columns
            .iter()
            .map(|column| list.iter().find(|f| f.work == work && f.column == *column).copied())
            .collect();
        let Some(any) = of_work.iter().flatten().next() else { continue };
        let mut put = |name: String, count: &dyn Fn(&Figure) -> f64| {
            let each: Vec<_> = of_work.iter().map(|f| f.map(|f| count(f) / f.units)).collect();
            rows.push(row(name, &each));
        };
        put(format!("**{work}**: exits for each {}", any.unit), &Figure::all);
        for (name, number) in MSRS {
            put(name.into(), &|f| f.msr(number));
        }
        let reasons: BTreeSet<&String> = of_work.iter().flatten().flat_map(|f| f.exits.keys()).collect();
        let count = |f: &Figure, reason: &str| f.exits.get(reason).copied().unwrap_or(0.0);
        let mut reasons: Vec<_> = reasons
            .into_iter()
            .map(|reason| {
                let most = of_work.iter().flatten().map(|f| count(f, reason) / f.units).fold(0.0, f64::max);
                (most, reason)
            })
            .filter(|(most, _)| *most >= LEAST)
            .collect();
        reasons.sort_by(|a, b| b.0.total_cmp(&a.0));
        for (_, reason) in reasons {
            put(reason.clone(), &|f| count(f, reason));
        }
    }
    let widths: Vec<usize> = (0..rows[0].len())
        .map(|at| rows.iter().filter_map(|row| row.get(at)).map(|cell| cell.len()).max().unwrap_or(0))
        .collect();
    let shown = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).enumerate();
        let cells = cells.map(|(at, (cell, width))| match at {
            0 => format!("{cell:<width$}"),
            _ => format!("{cell:>width$}"),
        });
        format!("| {} |\n", cells.collect::<Vec<_>>().join(" | "))
    };
    let line: Vec<_> = widths
        .iter()
        .enumerate()
        .map(|(at, width)| if at == 0 { "-".repeat(*width) } else { format!("{}:", "-".repeat(width - 1)) })
        .collect();
    rows.insert(1, line);
    rows.iter().map(shown).collect()
}

fn header(columns: &BTreeSet<Column>) -> Vec<String> {
    let names = columns.iter().map(|column| column.name().to_string());
    std::iter::once("for each unit of work".into()).chain(names).chain(["change".into()]).collect()
}

/// The change is the last column's against the first.
fn row(name: String, each: &[Option<f64>]) -> Vec<String> {
    let change = match (each.first().copied().flatten(), each.last().copied().flatten()) {
        (Some(first), Some(last)) if first >= LEAST => format!("{:+.1} %", (last / first - 1.0) * 100.0),
        _ => String::new(),
    };
    let cells = each.iter().map(|value| value.map_or("-".into(), |value| format!("{value:.3}")));
    std::iter::once(name).chain(cells).chain([change]).collect()
}

fn kept() -> Result<PathBuf> {
    Ok(paths::made(paths::target().join("workloads"))?.join("figures.json"))
}

/// The figures of the last runs.
fn read() -> Result<Vec<Figure>> {
    let file = kept()?;
    match fs::read(&file) {
        Ok(text) => serde_json::from_slice(&text).with_context(|| format!("{} is not ours", file.display())),
        Err(_) => Ok(Vec::new()),
    }
}

/// A run replaces what it measured and keeps the rest.
fn merged(old: Vec<Figure>, new: Vec<Figure>) -> Vec<Figure> {
    let again =
        |f: &Figure| new.iter().any(|n| n.place == f.place && n.work == f.work && n.column == f.column);
    let mut list: Vec<_> = old.into_iter().filter(|f| !again(f)).collect();
    list.extend(new);
    list
}

fn keep(new: Vec<Figure>) -> Result<()> {
    let file = kept()?;
    fs::write(&file, serde_json::to_string_pretty(&merged(read()?, new))?)?;
    say::note(format!("figures are in {}", paths::shown(&file)));
    Ok(())
}

/// Where the tables begin in the page.
const MARK: &str = "<!-- Below: written by `cargo xtask workloads --page`. -->\n";

fn page() -> Result<()> {
    let file = paths::root().join("docs/workloads.md");
    let text = fs::read_to_string(&file).with_context(|| format!("{} cannot be read", file.display()))?;
    let (before, _) = text.split_once(MARK).context("docs/workloads.md has no place for tables")?;
    let list = read()?;
    ensure!(!list.is_empty(), "nothing was measured yet");
    fs::write(&file, format!("{before}{MARK}\n{}", tables(&list).trim_end().to_string() + "\n"))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choice(columns: &[Column]) -> Choice {
        Choice { machine: Kind::Vmx, columns: columns.to_vec(), ..Choice::default() }
    }

    const LINES: [&str; 17] = [
        r#"names "..", __print_symbolic(REC->exit_reason & 0xffff, { 12, "HLT" }, { 32, "MSR_WRITE" })"#,
        "stock tcp_rr begin exit 12 10",
        "stock tcp_rr begin at 100",
        "stock tcp_rr end exit 12 210",
        "stock tcp_rr end exit 32 300",
        "stock tcp_rr end msr 0x6e0 290",
        "stock tcp_rr end at 300",
        "stock tcp_rr end work transaction 100",
        "on tcp_rr begin exit HLT 5",
        "on tcp_rr end exit HLT 205",
        "on tcp_rr end exit MSR_WRITE 30",
        "on tcp_rr end exit total 235",
        "on tcp_rr end msr 0x000006e0 29",
        "on tcp_rr end mechanism lazy_deadline 4",
        "on tcp_rr end mechanism timer_passthrough 4",
        "on tcp_rr end mechanism host_tsc 4",
        "on tcp_rr end work transaction 100",
    ];

    fn measured(lines: &[&str]) -> Result<Vec<Figure>> {
        let records: Vec<String> = lines.iter().map(|line| line.to_string()).collect();
        figures(&records, &Names::of(Kind::Vmx, &records), &choice(&[Column::Stock, Column::On]))
    }

    /// What was counted before the work does not count, and both modules' names meet in one row.
    #[test]
    fn for_each_unit() {
        let list = measured(&LINES).unwrap();
        assert_eq!((list[0].seconds, list[0].exits["HLT"], list[1].exits["HLT"]), (2.0, 200.0, 200.0));
        let text = tables(&list);
        for row in ["5.000 | 2.300 | -54.0 %", "2.900 | 0.290 | -90.0 %", "2.000 | 2.000 |  +0.0 %"] {
            assert!(text.contains(row), "{row} in\n{text}");
        }
    }

    /// A column that claims what was not there is no figure, nor is work that has not ended.
    #[test]
    fn what_was_not_on_is_no_figure() {
        let without: Vec<_> = LINES.iter().filter(|line| !line.contains("timer_pass")).copied().collect();
        assert!(measured(&without).is_err());
        let none = LINES.map(|line| {
            if line.ends_with("deadline 4") { "on tcp_rr end mechanism lazy_deadline 0" } else { line }
        });
        assert!(measured(&none).is_err());
        assert!(measured(&LINES[..LINES.len() - 1]).is_err());
    }

    #[test]
    fn a_run_replaces_its_own() {
        let list = measured(&LINES).unwrap();
        let mut new = vec![list[1].clone()];
        new[0].units = 7.0;
        let merged = merged(list.clone(), new.clone());
        assert_eq!(merged, [list[0].clone(), new[0].clone()]);
        let text = serde_json::to_string(&merged).unwrap();
        assert_eq!(serde_json::from_str::<Vec<Figure>>(&text).unwrap(), merged);
    }
}
