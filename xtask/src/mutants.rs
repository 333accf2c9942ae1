//! `cargo xtask mutants`: would a test notice? Small changes to the code, one at a time, by cargo-mutants; those that no test
//! notices are killed by a new test, or listed with the reason in docs/mutants.toml. Hours of work: not part of the tests.

use std::{fs, path::Path};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::{
    gates::matches,
    paths, say,
    sh::{self, cmd},
};

const VERSION: &str = "27.1.0";
/// Crates whose tests decide by themselves, without an emulated machine.
const PACKAGES: &[&str] = &[
    "exitless-lapic",
    "exitless-irqchip",
    "exitless-insn",
    "exitless-memslots",
    "exitless-posted",
    "exitless-policy",
    "exitless-vcpu",
    "exitless-slat",
    "exitless-svm",
    "exitless-vmx",
];

/// What to change.
#[derive(Debug, Clone, clap::Args)]
pub struct Choice {
    /// Only this package (`exitless-posted`); may be given more than once. Default: every one, for many hours.
    #[arg(long, short)]
    package: Vec<String>,
    /// Only files that match this glob (`vcpu/src/run.rs`).
    #[arg(long)]
    file: Option<String>,
    /// Only part K of N of the changes, `K/N`, K from 0.
    #[arg(long)]
    shard: Option<String>,
}

/// A change that no test notices, and why that is right.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Survivor {
    /// File and change as cargo-mutants words it, without line and column; `*` is any text.
    mutant: String,
    reason: String,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct List {
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
    let (mut tried, mut missed) = (0, String::new());
    for package in packages {
        let (some, more) = change(package, choice, &out)?;
        tried += some;
        missed.push_str(&more);
    }
    let tried = at_least_one(tried)?;
    let survivors: Vec<_> = missed.lines().map(|line| (line, without_place(line))).collect();
    let unexplained: Vec<_> = survivors
        .iter()
        .filter(|(_, mutant)| !known.iter().any(|k| matches(&k.mutant, mutant)))
        .map(|(line, _)| *line)
        .collect();
    println!(
        "   {tried} changes: {} were not noticed, {} of them unexplained",
        survivors.len(),
        unexplained.len()
    );
    if !unexplained.is_empty() {
        bail!(
            "write a test that notices, or the reason into docs/mutants.toml:\n  {}",
            unexplained.join("\n  ")
        );
    }
    Ok(())
}

/// Whose tests judge a package: its own, and of what only others use, theirs.
fn judges(package: &str) -> &'static [&'static str] {
    match package {
        // The models have memory of their own; the real one is the APIC's.
        "exitless-posted" => &["exitless-posted", "exitless-lapic", "exitless-vcpu"],
        "exitless-lapic" => &["exitless-lapic", "exitless-vcpu"],
        _ => &[],
    }
}

/// Tries the changes of one package: how many there were, and those that no test noticed, a line each.
fn change(package: &str, choice: &Choice, out: &Path) -> Result<(usize, String)> {
    let mut mutants = cmd("cargo", ["mutants", "--no-shuffle", "--colors", "never", "--timeout", "120"]);
    mutants.current_dir(paths::root()).arg("--output").arg(out);
    mutants.args(["--package", package]);
    for judge in judges(package) {
        mutants.args(["--test-package", judge]);
    }
    if let Some(file) = &choice.file {
        mutants.args(["--file", file]);
    }
    if let Some(shard) = &choice.shard {
        mutants.args(["--shard", shard]);
    }
    let answers = out.join("mutants.out/outcomes.json");
    // 0: every change was noticed; 2: some were not; 3: some ran out of time. Others are its own failures.
    let status = mutants.status().context("cargo mutants cannot be started")?;
    if !std::matches!(status.code(), Some(0 | 2 | 3)) {
        bail!("cargo mutants failed: {status}");
    }
    let tried = counted(&fs::read_to_string(answers).unwrap_or_default())?;
    Ok((tried, fs::read_to_string(out.join("mutants.out/missed.txt")).unwrap_or_default()))
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

/// What the file with the outcomes says.
#[derive(Deserialize)]
struct Outcomes {
    total_mutants: usize,
}

/// How many changes were tried; cargo-mutants writes no file where there were none.
fn counted(outcomes: &str) -> Result<usize> {
    if outcomes.is_empty() {
        return Ok(0);
    }
    Ok(serde_json::from_str::<Outcomes>(outcomes).context("cargo-mutants' outcomes.json")?.total_mutants)
}

/// No change at all is a failure, as then nothing was looked at.
fn at_least_one(tried: usize) -> Result<usize> {
    if tried == 0 {
        bail!("nothing was changed: does --file name a file of the packages, and has the shard any changes?");
    }
    Ok(tried)
}

fn list() -> Result<Vec<Survivor>> {
    let path = paths::root().join("docs/mutants.toml");
    let list: List = toml::from_str(&fs::read_to_string(&path)?).context("docs/mutants.toml")?;
    if let Some(bare) = list.survivor.iter().find(|s| s.reason.trim().is_empty()) {
        bail!("docs/mutants.toml: {} has no reason", bare.mutant);
    }
    Ok(list.survivor)
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
        let tried = |text| super::counted(text).and_then(super::at_least_one);
        assert_eq!(tried(r#"{"outcomes":[],"total_mutants":3,"missed":1}"#).unwrap(), 3);
        tried(r#"{"outcomes":[],"total_mutants":0}"#).unwrap_err();
        tried("").unwrap_err();
    }

    #[test]
    fn the_list_is_readable() {
        super::list().unwrap();
    }
}
