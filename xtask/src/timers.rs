//! `cargo xtask timers`: what arming and firing of the APIC timer cost on Intel's machine by each mechanism, beside what they are to cost,
//! and what that makes of the workloads that were measured.

use anyhow::Result;

use crate::{
    bench::{self, Record},
    lab::{deps, machine::Kind, scenario::Module},
    say, workloads,
};

/// Whether to measure.
#[derive(Debug, Clone, clap::Args)]
pub struct Choice {
    /// Of the figures that are there: of `bench --machine vmx`, without and with `--mechanism`, and of `workloads`.
    #[arg(long)]
    pub kept: bool,
}

/// Rows of the benchmark.
const ARM: &str = "tscdeadline_far";
const FIRE: &str = "timer_fire";

/// Row, mechanism (empty: none), operation, what to reach (instructions of the guest and the host; of firing the host's alone).
static GOALS: [[&str; 4]; 7] = [
    ["deadline written, none", "", ARM, ""],
    ["deadline written, passthrough", "timer-passthrough", ARM, "0 exits, at most 30 instr."],
    ["deadline written, in the guest", "timer-in-guest", ARM, "0 exits"],
    ["deadline set again, lazy", "lazy-deadline", ARM, "0 exits"],
    ["armed and fired, none", "", FIRE, ""],
    ["armed and fired, passthrough", "timer-passthrough", FIRE, "1 exit"],
    ["armed and fired, in the guest", "timer-in-guest", FIRE, "0 exits"],
];

/// Measures, unless it is not to, and prints the table.
pub fn run(choice: &Choice) -> Result<()> {
    if !choice.kept {
        deps::host_packages()?;
        for mechanism in [None, Some("timer-passthrough"), Some("timer-in-guest"), Some("lazy-deadline")] {
            let patterns = vec![ARM.to_string(), FIRE.to_string()];
            bench::run(&bench::Choice::of(Kind::Vmx, mechanism, patterns))?;
        }
    }
    print!("\n{}", table(&bench::kept_records()?));
    say::note(
        "a slice with the register lent: 2 RDMSR and 2 WRMSR (backend test `a_slice_and_what_it_costs`)",
    );
    workloads::timers()
}

fn table(records: &[Record]) -> String {
    let mut text = row(&["", "stock", "", "Exitless", "", "to reach"]);
    text += &row(&["", "exits", "instr.", "exits", "instr.", ""]);
    for [name, mechanism, op, goal] in &GOALS {
        let of = |module: Module, mechanism: &str| {
            let found = records.iter().find(|r| {
                r.machine == Kind::Vmx.to_string()
                    && r.module == module.to_string()
                    && (r.op.as_str(), r.mechanism.as_str()) == (*op, mechanism)
            });
            let number = |n: Option<f64>| n.map_or("-".into(), |n| format!("{n:.2}"));
            [number(found.and_then(|r| r.exits)), number(found.map(|r| r.instructions))]
        };
        let ([a, b], [c, d]) = (of(Module::Kvm, ""), of(Module::Exitless, mechanism));
        text += &row(&[name, &a, &b, &c, &d, goal]);
    }
    text
}

fn row(cells: &[&str; 6]) -> String {
    let [name, a, b, c, d, goal] = cells;
    format!("{name:<32} {a:>8} {b:>9} {c:>10} {d:>9}   {goal}").trim_end().to_string() + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_measured_is_said() {
        let record = |module: &str, mechanism: &str, op: &str, exits, instructions| Record {
            machine: "vmx".into(),
            module: module.into(),
            mechanism: mechanism.into(),
            op: op.into(),
            exits: Some(exits),
            instructions,
            estimated_cycles: None,
            ledger: None,
            ticks: None,
            mark: None,
            batches: 0,
        };
        let records = [
            record("kvm", "", ARM, 1.0, 1466.0),
            record("exitless", "timer-passthrough", ARM, 0.0, 5.0),
            record("exitless", "lazy-deadline", FIRE, 7.0, 7.0),
        ];
        let text = table(&records);
        let line = |name: &str| {
            text.lines()
                .find(|l| l.starts_with(name))
                .unwrap()
                .split_whitespace()
                .collect::<Vec<_>>()
                .join(" ")
        };
        assert_eq!(
            line("deadline written, passthrough"),
            "deadline written, passthrough 1.00 1466.00 0.00 5.00 0 exits, at most 30 instr."
        );
        assert_eq!(line("deadline set"), "deadline set again, lazy 1.00 1466.00 - - 0 exits");
        assert_eq!(text.lines().count(), 2 + GOALS.len());
    }
}
