//! `cargo xtask mutants`: would a test notice? Small changes to the code, found by cargo-mutants; those that no test notices are
//! killed by a new test, or listed with the reason in docs/mutants.toml. Not part of the tests: minutes for a crate whose tests are
//! quick, hours for all.
//!
//! cargo-mutants itself builds once for each change, ten thousand times; here every change of a crate is in one build ([`weave`]),
//! and only the tests that reach a change are run for it ([`judge`]).

mod judge;
mod weave;

use std::{fs, path::Path};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use judge::Verdicts;
use weave::Mutant;

use crate::{
    gates::matches,
    paths, say,
    sh::{self, cmd},
};

const VERSION: &str = "27.1.0";
/// Crates whose tests decide by themselves, without an emulated machine.
const PACKAGES: &[&str] = &[
    "exitless-async-pf",
    "exitless-lapic",
    "exitless-irqchip",
    "exitless-insn",
    "exitless-bus",
    "exitless-chooser",
    "exitless-deadline",
    "exitless-ipi",
    "exitless-memslots",
    "exitless-posted",
    "exitless-policy",
    "exitless-yielding",
    "exitless-vcpu",
    "exitless-slat",
    "exitless-svm",
    "exitless-vmx",
];

/// What to change.
#[derive(Debug, Clone, clap::Args)]
pub struct Choice {
    /// Only this package (`exitless-posted`); may be given more than once. Default: every one.
    #[arg(long, short)]
    package: Vec<String>,
    /// Only files that match this glob (`vcpu/src/run.rs`).
    #[arg(long)]
    file: Option<String>,
    /// Only part K of N of the changes, `K/N`, K from 0.
    #[arg(long)]
    shard: Option<String>,
    /// Not those of what the compiler computes, which need a build each.
    #[arg(long)]
    no_constants: bool,
}

/// A change that no test notices, and why that is right.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Survivor {
    /// File and change as cargo-mutants words it, without line and column; `*` is any text.
    mutant: String,
    reason: String,
}

/// A package that was run as a whole, and what came out.
#[derive(Deserialize)]
struct Whole {
    package: String,
    /// `2026-11-27`.
    date: String,
    #[serde(flatten)]
    result: Outcome,
}

/// In numbers: how many changes there are, and what became of them.
#[derive(Deserialize, Serialize, Debug, PartialEq, Eq)]
struct Outcome {
    changes: usize,
    /// By a test that failed or did not end.
    noticed: usize,
    /// Refused by the compiler.
    unbuilt: usize,
    explained: usize,
    unexplained: usize,
    /// Of what the compiler computes, with `--no-constants`.
    undecided: usize,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct List {
    #[serde(default)]
    whole: Vec<Whole>,
    #[serde(default)]
    survivor: Vec<Survivor>,
}

/// See the file's head.
pub fn run(choice: &Choice) -> Result<()> {
    let packages = packages(&choice.package)?;
    if sh::output(&mut cmd("cargo", ["mutants", "--version"])).is_err() {
        say::step("install cargo-mutants", || {
            sh::quiet(&mut cmd(
                "cargo",
                ["install", "--quiet", "--locked", "cargo-mutants", "--version", VERSION],
            ))
        })?;
    }
    let out = paths::made(paths::target().join("mutants"))?;
    let known = list()?;
    let (mut tried, mut unexplained) = (0, Vec::new());
    for package in packages {
        let verdicts = change(package, choice, &out)?;
        let (explained, open): (Vec<_>, Vec<_>) =
            verdicts.missed.iter().cloned().partition(|line| known.explain(&without_place(line)));
        let result = Outcome {
            changes: verdicts.count(),
            noticed: verdicts.noticed + verdicts.endless,
            unbuilt: verdicts.unbuilt.len(),
            explained: explained.len(),
            unexplained: open.len(),
            undecided: verdicts.undecided.len(),
        };
        println!("   {package}, {} of them by a test that does not end:", verdicts.endless);
        println!("{}", toml_lines(&result)?);
        if choice.file.is_none() && choice.shard.is_none() {
            known.compare(package, &result);
        }
        tried += result.changes;
        unexplained.extend(open);
    }
    at_least_one(tried)?;
    if !unexplained.is_empty() {
        bail!(
            "write a test that notices, or the reason into docs/mutants.toml:\n  {}",
            unexplained.join("\n  ")
        );
    }
    Ok(())
}

impl List {
    /// Is there a reason why no test notices?
    fn explain(&self, mutant: &str) -> bool {
        self.survivor.iter().any(|known| matches(&known.mutant, mutant))
    }

    /// Says whether the list is up to date on a package that was run as a whole.
    fn compare(&self, package: &str, result: &Outcome) {
        match self.whole.iter().find(|whole| whole.package == package) {
            Some(whole) if whole.result == *result => {}
            Some(whole) => say::note(format!("docs/mutants.toml has other numbers, of {}", whole.date)),
            None => say::note("docs/mutants.toml has no [[whole]] of it yet"),
        }
    }
}

/// As docs/mutants.toml has it.
fn toml_lines(result: &Outcome) -> Result<String> {
    let json = serde_json::to_value(result)?;
    let lines = json.as_object().into_iter().flatten().map(|(name, value)| format!("{name} = {value}"));
    Ok(lines.collect::<Vec<_>>().join("\n"))
}

/// Whose tests judge a package: its own, and of what only others use, theirs.
fn judges(package: &'static str) -> Vec<&'static str> {
    let others: &[&str] = match package {
        // The models have memory of their own; the real one is the APIC's.
        "exitless-posted" => &["exitless-lapic", "exitless-vcpu"],
        "exitless-lapic" => &["exitless-vcpu"],
        _ => &[],
    };
    [&[package], others].concat()
}

/// Tries the changes of one package.
fn change(package: &'static str, choice: &Choice, out: &Path) -> Result<Verdicts> {
    let mut list = cmd("cargo", ["mutants", "--list", "--json", "--package", package]);
    list.current_dir(paths::root());
    if let Some(file) = &choice.file {
        list.args(["--file", file]);
    }
    if let Some(shard) = &choice.shard {
        list.args(["--shard", shard]);
    }
    let mutants: Vec<Mutant> =
        serde_json::from_str(&sh::output(&mut list)?).context("cargo mutants --list --json")?;
    if mutants.is_empty() {
        return Ok(Verdicts::default());
    }
    let verdicts = judge::Tree::new(out, package, &judges(package))?.judge(&mutants, !choice.no_constants)?;
    fs::write(out.join(format!("{package}.missed")), verdicts.missed.join("\n"))?;
    fs::write(out.join(format!("{package}.undecided")), verdicts.undecided.join("\n"))?;
    fs::write(out.join(format!("{package}.unbuilt")), verdicts.unbuilt.join("\n"))?;
    Ok(verdicts)
}

/// The chosen packages, every one if none is; each must be one of [`PACKAGES`].
fn packages(chosen: &[String]) -> Result<Vec<&'static str>> {
    if chosen.is_empty() {
        return Ok(PACKAGES.to_vec());
    }
    let known = |name: &String| {
        PACKAGES
            .iter()
            .copied()
            .find(|package| package == name)
            .with_context(|| format!("no package {name} to change: there are {}", PACKAGES.join(", ")))
    };
    chosen.iter().map(known).collect()
}

/// No change at all is a failure, as then nothing was looked at.
fn at_least_one(tried: usize) -> Result<()> {
    if tried == 0 {
        bail!("nothing was changed: does --file name a file of the packages, and has the shard any changes?");
    }
    Ok(())
}

fn list() -> Result<List> {
    let path = paths::root().join("docs/mutants.toml");
    let list: List = toml::from_str(&fs::read_to_string(&path)?).context("docs/mutants.toml")?;
    if let Some(bare) = list.survivor.iter().find(|s| s.reason.trim().is_empty()) {
        bail!("docs/mutants.toml: {} has no reason", bare.mutant);
    }
    if let Some(whole) = list.whole.iter().find(|whole| !PACKAGES.contains(&whole.package.as_str())) {
        bail!("docs/mutants.toml: no package {} to change", whole.package);
    }
    Ok(list)
}

/// `a/b.rs:12:3: replace x with y` without line and column, which change with every edit above.
fn without_place(line: &str) -> String {
    let mut parts = line.splitn(4, ':');
    match (parts.next(), parts.next(), parts.next(), parts.next()) {
        (Some(file), Some(_), Some(_), Some(change)) => format!("{file}:{change}"),
        _ => line.to_string(),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn places_are_left_out() {
        let line = "vcpu/src/run.rs:150:44: replace || with && in slice";
        assert_eq!(super::without_place(line), "vcpu/src/run.rs: replace || with && in slice");
    }

    #[test]
    fn a_mistyped_package_is_told() {
        assert_eq!(super::packages(&[]).unwrap(), super::PACKAGES);
        assert_eq!(super::packages(&["exitless-vcpu".into()]).unwrap(), ["exitless-vcpu"]);
        super::packages(&["exitless-vcpu".into(), "exitless-vpcu".into()]).unwrap_err();
    }

    #[test]
    fn a_run_without_changes_fails() {
        super::at_least_one(3).unwrap();
        super::at_least_one(0).unwrap_err();
    }

    #[test]
    fn the_list_is_readable_and_adds_up() {
        for whole in super::list().unwrap().whole {
            let r = &whole.result;
            assert_eq!(
                r.changes,
                r.noticed + r.unbuilt + r.explained + r.unexplained + r.undecided,
                "{}",
                whole.package
            );
        }
    }
}
