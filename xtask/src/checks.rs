//! Checks that need no emulated machine: format, lints, unit tests.

use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::{
    lab::report::{Totals, Verdict},
    paths,
    sh::{self, cmd},
};

fn cargo<const N: usize>(args: [&str; N]) -> Command {
    let mut command = cmd("cargo", args);
    command.current_dir(paths::root()).stdin(Stdio::null());
    command
}

/// `cargo fmt` over the workspace.
pub fn format() -> Result<()> {
    sh::run(&mut cargo(["fmt", "--all"]))
}

/// Is every file formatted?
pub fn formatted() -> Result<()> {
    sh::quiet(&mut cargo(["fmt", "--all", "--", "--check"])).context("run `cargo xtask fmt`")
}

/// Clippy over the default members and their tests; a warning is an error.
pub fn clippy() -> Result<()> {
    sh::quiet(&mut cargo(["clippy", "--quiet", "--workspace", "--all-targets", "--", "-D", "warnings"]))
}

/// Every test of the default members. Prints the output of a run with failures.
pub fn unit_tests() -> Result<Totals> {
    let nextest = sh::output(&mut cargo(["nextest", "--version"])).is_ok();
    let mut command = if nextest {
        cargo(["nextest", "run", "--no-fail-fast", "--hide-progress-bar"])
    } else {
        cargo(["test", "--quiet", "--no-fail-fast"])
    };
    let out = command.output().context("cannot start cargo")?;
    let text = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    let mut totals = if nextest { of_nextest(&text) } else { of_cargo_test(&text) };
    if !out.status.success() {
        println!("{text}");
        // A crate that does not compile has no totals of its own.
        if totals.failed == 0 {
            totals.count(Verdict::Fail);
        }
    } else if totals.passed == 0 {
        bail!("no test ran:\n{text}");
    }
    Ok(totals)
}

/// Sums `test result: ok. 3 passed; 0 failed; 1 ignored; ...` lines.
fn of_cargo_test(text: &str) -> Totals {
    let mut totals = Totals::default();
    for line in text.lines().filter(|line| line.starts_with("test result:")) {
        totals.add(Totals {
            passed: before(line, " passed"),
            failed: before(line, " failed"),
            skipped: before(line, " ignored"),
        });
    }
    totals
}

/// Reads `Summary [ 1.2s] 4 tests run: 3 passed, 1 failed, 2 skipped`.
fn of_nextest(text: &str) -> Totals {
    let line = text.lines().find(|line| line.trim_start().starts_with("Summary")).unwrap_or_default();
    Totals {
        passed: before(line, " passed"),
        failed: before(line, " failed"),
        skipped: before(line, " skipped"),
    }
}

/// The number that stands before `word`, 0 if there is none.
fn before(line: &str, word: &str) -> usize {
    let Some((left, _)) = line.split_once(word) else { return 0 };
    left.rsplit(' ').next().and_then(|number| number.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::{of_cargo_test, of_nextest};

    /// The totals line of `cargo xtask test` is only as true as this reading.
    #[test]
    fn totals_are_read_from_both_runners() {
        let cargo = "test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured\n\
                     test result: FAILED. 4 passed; 2 failed; 0 ignored; 0 measured\n";
        assert_eq!(of_cargo_test(cargo).to_string(), "7 passed, 2 failed, 1 skipped");
        let nextest = "     Summary [   0.8s] 4 tests run: 3 passed (1 slow), 1 failed, 2 skipped\n";
        assert_eq!(of_nextest(nextest).to_string(), "3 passed, 1 failed, 2 skipped");
    }
}
