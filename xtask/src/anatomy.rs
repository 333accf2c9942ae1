//! `cargo xtask anatomy`: what one exit is made of, on Exitless and on stock KVM: the emulator writes down each instruction that the host
//! executes from an exit to the next entry, and neither module is changed for it.
//!
//! An exit is cut where both modules can be seen to pass: interrupts on again, out of the module, user space entered and left, into the
//! module, interrupts off, entry. An exit that stays with interrupts off is cut where its reason is read alone. Instructions repeat
//! exactly; cycles are estimated from published figures, as everywhere (`xtask/src/ledger/costs.toml`).

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader},
    ops::Range,
    path::Path,
};

use anyhow::{Context, Result, bail};
use serde::Serialize;

use crate::{
    bench,
    lab::{deps, machine::Kind},
    ledger::{Costs, Ledger, Vendor},
    paths, say,
};

/// What to take apart.
#[derive(Debug, Clone, clap::Args)]
pub struct Choice {
    /// The emulated machine, one of Bochs's.
    #[arg(long, value_enum, default_value = "vmx")]
    pub machine: Kind,
    /// Benchmarks, by their whole names (`cargo xtask bench` has them).
    #[arg(default_values = OPERATIONS)]
    pub operations: Vec<String>,
}

/// PIO, MMIO, ICR, deadline, HLT.
const OPERATIONS: [&str; 7] = [
    "pio_write_user",
    "pio_read_kernel",
    "mmio_write_user",
    "ipi_send",
    "tscdeadline_far",
    "hlt_pending",
    "sleep_until",
];

/// An instruction of the host's: address, who executed it, what is dear about it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Step {
    address: u64,
    who: Who,
    key: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Who {
    User,
    /// The kernel with interrupts on.
    Open,
    /// The kernel with interrupts off.
    Closed,
}

impl Step {
    /// `ffffffffc0201234 i vmread:0x4402`.
    fn parse(line: &str) -> Option<Step> {
        let mut words = line.split(' ');
        let address = u64::from_str_radix(words.next()?, 16).ok()?;
        let who = match words.next()? {
            "u" => Who::User,
            "k" => Who::Open,
            "i" => Who::Closed,
            _ => return None,
        };
        Some(Step { address, who, key: words.next().unwrap_or_default().to_string() })
    }
}

/// A part of an exit.
#[derive(Debug, Clone, Serialize)]
pub struct Section {
    /// What is done in it.
    pub name: &'static str,
    pub instructions: usize,
    /// Estimated for a CPU.
    pub cycles: f64,
    /// What of it is dear on a CPU, by family.
    pub dear: BTreeMap<String, usize>,
}

/// One exit.
#[derive(Debug, Clone, Serialize)]
pub struct Exit {
    pub machine: String,
    pub op: String,
    pub module: String,
    /// Of the operation's exits, from 0.
    pub exit: usize,
    pub sections: Vec<Section>,
}

impl Exit {
    fn instructions(&self) -> usize {
        self.sections.iter().map(|section| section.instructions).sum()
    }

    fn cycles(&self) -> f64 {
        self.sections.iter().map(|section| section.cycles).sum()
    }
}

const CONTROL: &str = "exit: the host has control";
const HANDLER: &str = "handler, device looked for";
const OUT: &str = "host state restored, out";
const USER: &str = "user space";
const BACK: &str = "back into the module";
const RELOAD: &str = "guest state reloaded";
const ENTRY: &str = "entry";
const ANSWER: &str = "answer, entry; interrupts off throughout";
const NAMES: [&str; 8] = [CONTROL, HANDLER, OUT, USER, BACK, RELOAD, ENTRY, ANSWER];

/// The field of VMX's exit reason.
const REASON: &str = "vmread:0x4402";

/// Where an exit is cut, in order: each name with its steps.
fn cut(steps: &[Step], in_module: impl Fn(u64) -> bool) -> Vec<(&'static str, Range<usize>)> {
    let end = steps.len();
    let at = |who: Who| steps.iter().position(|step| step.who == who);
    // Back to where the last step with interrupts on is: from there on they are off.
    let off = steps.iter().rposition(|step| step.who != Who::Closed).map_or(end, |last| last + 1);
    let Some(on) = steps.iter().position(|step| step.who != Who::Closed) else {
        let read = steps.iter().position(|step| step.key == REASON).unwrap_or(0);
        return vec![(CONTROL, 0..read), (ANSWER, read..end)];
    };
    let Some(user) = at(Who::User) else {
        return vec![(CONTROL, 0..on), (HANDLER, on..off), (ENTRY, off..end)];
    };
    let left = steps.iter().rposition(|step| step.who == Who::User).map_or(user, |last| last + 1);
    let module = |range: Range<usize>| {
        let mut inside = steps[range.clone()].iter().map(|step| in_module(step.address));
        (
            range.start + inside.clone().rposition(|is| is).map_or(0, |last| last + 1),
            range.start + inside.position(|is| is).unwrap_or(0),
        )
    };
    let out = module(on..user).0;
    let into = module(left..off).1;
    vec![
        (CONTROL, 0..on),
        (HANDLER, on..out),
        (OUT, out..user),
        (USER, user..left),
        (BACK, left..into),
        (RELOAD, into..off),
        (ENTRY, off..end),
    ]
}

fn section(name: &'static str, steps: &[Step], costs: &Costs, vendor: Vendor) -> Section {
    let mut ledger = Ledger::new();
    let mut dear = BTreeMap::new();
    for step in steps.iter().filter(|step| !step.key.is_empty()) {
        *ledger.entry(step.key.clone()).or_default() += 1.0;
        let family = step.key.split(':').next().unwrap_or_default();
        *dear.entry(family.to_string()).or_default() += 1;
    }
    let cycles = costs.estimate(vendor, steps.len() as f64, &ledger).round();
    Section { name, instructions: steps.len(), cycles, dear }
}

/// The exits of each batch: those behind an entry up to the next.
fn batches(trace: &Path) -> Result<BTreeMap<u64, Vec<Vec<Step>>>> {
    let file = fs::File::open(trace).context("the emulator wrote no trace")?;
    let mut all = BTreeMap::<u64, Vec<Vec<Step>>>::new();
    let mut batch = None;
    let mut open = Vec::new();
    for line in BufReader::new(file).lines() {
        let line = line?;
        if let Some(number) = line.strip_prefix("batch ") {
            batch = number.parse().ok();
            open.clear();
            continue;
        }
        let (Some(batch), Some(step)) = (batch, Step::parse(&line)) else { continue };
        let entry = step.key.starts_with("vmentry");
        open.push(step);
        if entry {
            all.entry(batch).or_default().push(std::mem::take(&mut open));
        }
    }
    Ok(all)
}

/// Where each column's module is.
fn modules(lines: &[String], column: &str) -> Vec<Range<u64>> {
    let range = |line: &String| {
        let mut words = line.strip_prefix(column)?.strip_prefix(" module ")?.split(' ');
        let bytes: u64 = words.next()?.parse().ok()?;
        let start = u64::from_str_radix(words.next()?.strip_prefix("0x")?, 16).ok()?;
        Some(start..start + bytes)
    };
    lines.iter().filter_map(range).collect()
}

/// Of the record's batches the shortest, cut.
fn exits(
    record: &bench::Record,
    part: &bench::Part,
    batches: &BTreeMap<u64, Vec<Vec<Step>>>,
    costs: &Costs,
) -> Vec<Exit> {
    let Some(first) = record.mark else { return Vec::new() };
    let ranges = modules(&part.modules, &record.module);
    let in_module = |address: u64| ranges.iter().any(|range| range.contains(&address));
    let vendor = bench::vendor(&record.machine);
    let all = (first..first + record.batches).filter_map(|mark| batches.get(&mark));
    let length = |exits: &Vec<Vec<Step>>| exits.iter().map(Vec::len).sum::<usize>();
    let Some(shortest) = all.min_by_key(|exits| length(exits)) else { return Vec::new() };
    let count = record.exits.map_or(1, |exits| (exits.round() as usize).clamp(1, 2));
    let exit = |(exit, steps): (usize, &Vec<Step>)| Exit {
        machine: record.machine.clone(),
        op: record.op.clone(),
        module: record.module.clone(),
        exit,
        sections: cut(steps, in_module)
            .into_iter()
            .map(|(name, range)| section(name, &steps[range], costs, vendor))
            .collect(),
    };
    shortest.iter().take(count).enumerate().map(exit).collect()
}

/// Traces, prints the table, writes target/anatomy/latest.json.
pub fn run(choice: &Choice) -> Result<()> {
    if !choice.machine.by_bochs() {
        bail!("only Bochs writes down instructions: --machine vmx or ryzen");
    }
    deps::host_packages()?;
    let dir = paths::made(paths::target().join("anatomy"))?;
    let bench = bench::Choice::traced(choice.machine, &choice.operations);
    let costs = Costs::published()?;
    let mut all = Vec::new();
    for (cpus, ops) in &bench::chosen(&bench)? {
        let part = bench::measure(&bench, *cpus, ops, &dir)?;
        let batches = batches(&part.trace)?;
        all.extend(part.records.iter().flat_map(|record| exits(record, &part, &batches, &costs)));
        if part.failed > 0 {
            bail!("a measurement failed; logs are in {}", paths::shown(&dir));
        }
    }
    for op in &choice.operations {
        print!("{}", table(op, &all));
    }
    let file = dir.join("latest.json");
    let lines: Vec<_> = all.iter().map(serde_json::to_string).collect::<Result<_, _>>()?;
    fs::write(&file, format!("[\n{}\n]\n", lines.join(",\n")))?;
    say::note(format!("written to {}; `exitctl anatomy` draws it", paths::shown(&file)));
    Ok(())
}

fn table(op: &str, all: &[Exit]) -> String {
    let mut text = String::new();
    for exit in 0..2 {
        let find = |module: &str| all.iter().find(|e| e.op == op && e.exit == exit && e.module == module);
        let sides = [find("kvm"), find("exitless")];
        if sides.iter().all(Option::is_none) {
            continue;
        }
        let which = if exit == 0 { String::new() } else { format!(", exit {}", exit + 1) };
        text += &format!(
            "\n{:<44} {:>12} {:>9}   {:>12} {:>9}\n",
            format!("{op}{which}"),
            "stock: instr.",
            "cycles",
            "exitless",
            "cycles"
        );
        let row = |name: &str, cells: [Option<(usize, f64)>; 2]| {
            let cell = |cell: Option<(usize, f64)>| match cell {
                Some((instructions, cycles)) => format!("{instructions:>12} {cycles:>9}"),
                None => format!("{:>12} {:>9}", "-", "-"),
            };
            format!("{name:<44} {}   {}\n", cell(cells[0]), cell(cells[1]))
        };
        for name in NAMES {
            let of = |side: Option<&Exit>| {
                let section = side?.sections.iter().find(|section| section.name == name)?;
                Some((section.instructions, section.cycles))
            };
            let cells = sides.map(of);
            if cells.iter().any(Option::is_some) {
                text += &row(name, cells);
            }
        }
        text += &row("all", sides.map(|side| side.map(|exit| (exit.instructions(), exit.cycles()))));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::{ANSWER, BACK, CONTROL, ENTRY, HANDLER, OUT, RELOAD, Step, USER, batches, cut};

    const MODULE: u64 = 0xffff_ffff_c000_0000;
    fn in_module(address: u64) -> bool {
        address >= MODULE
    }

    /// `m` in the module, other letters in the kernel; capitals with interrupts on; `u` user space, `r` the read of the reason.
    fn steps(text: &str) -> Vec<Step> {
        let line = |c: char| match c {
            'r' => format!("{MODULE:x} i vmread:0x4402"),
            'm' => format!("{MODULE:x} i"),
            'M' => format!("{MODULE:x} k"),
            'k' => "ffffffff81000000 i".into(),
            'K' => "ffffffff81000000 k".into(),
            _ => "401000 u".into(),
        };
        text.chars().map(|c| Step::parse(&line(c)).unwrap()).collect()
    }

    fn sections(text: &str) -> Vec<(&'static str, usize)> {
        cut(&steps(text), in_module).into_iter().map(|(name, range)| (name, range.len())).collect()
    }

    /// To user space and back: what the module calls in the kernel is the module's, what is around it is not.
    #[test]
    fn by_user_space() {
        let exit = "mrm MMKKM KKk uu kK KMKM mkm".replace(' ', "");
        let expected = [(CONTROL, 3), (HANDLER, 5), (OUT, 3), (USER, 2), (BACK, 3), (RELOAD, 3), (ENTRY, 3)];
        assert_eq!(sections(&exit), expected);
    }

    /// In the kernel with interrupts on, or off throughout.
    #[test]
    fn in_the_kernel() {
        assert_eq!(sections("mrmMkKKMmm"), [(CONTROL, 3), (HANDLER, 5), (ENTRY, 2)]);
        assert_eq!(sections("mmrmmm"), [(CONTROL, 2), (ANSWER, 4)]);
        assert_eq!(sections(""), [(CONTROL, 0), (ANSWER, 0)]);
    }

    /// Each batch has its own exits, which end with their entry; one that does not end is left out.
    #[test]
    fn exits_end_with_an_entry() {
        let file = std::env::temp_dir().join(format!("exitless-trace-{}", std::process::id()));
        let text =
            "batch 5\nff i vmread:0x4402\nff i vmentry\nff k\nfe i vmentry\nff i\nbatch 6\nfd i vmentry\n";
        std::fs::write(&file, text).unwrap();
        let all = batches(&file).unwrap();
        std::fs::remove_file(&file).unwrap();
        assert_eq!(all[&5].iter().map(Vec::len).collect::<Vec<_>>(), [2, 2]);
        assert_eq!(all[&6][0][0], Step::parse("fd i vmentry").unwrap());
        assert!(Step::parse("zz i").is_none() && Step::parse("ff x").is_none());
    }
}
