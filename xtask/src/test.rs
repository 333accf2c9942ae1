//! `cargo xtask test`: everything, in the order in which it fails fastest, with the time of each step.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

use crate::{
    arch, checks, dead, gates,
    lab::{
        self, Options, deps,
        machine::Kind,
        report::{Totals, Verdict},
        scenario::{self, Module},
    },
    promises, say,
};

/// What to leave out.
#[derive(Debug, Default, Clone, clap::Args)]
pub struct Choice {
    /// Only what needs no emulated machine.
    #[arg(long)]
    pub no_lab: bool,
    /// Only the scenarios of this machine (default: all three machines).
    #[arg(long, value_enum)]
    pub machine: Option<Kind>,
    /// Run the lab's scenarios on stock KVM as well.
    #[arg(long)]
    pub with_kvm: bool,
}

#[derive(Default)]
struct Run {
    totals: Totals,
    times: Vec<(String, Duration, Totals)>,
    /// Names of the lab's tests that passed on Exitless.
    passed: BTreeSet<String>,
}

impl Run {
    /// One step; an error counts as one failed test, and the other steps still run.
    fn step(&mut self, name: &str, work: impl FnOnce() -> Result<Totals>) -> bool {
        println!("-> {name}");
        let start = Instant::now();
        let totals = work().unwrap_or_else(|error| {
            say::note(format!("FAILED: {error:#}"));
            Totals { failed: 1, ..Totals::default() }
        });
        say::note(format!("{name}: {totals} in {}", say::secs(start.elapsed())));
        self.totals.add(totals);
        self.times.push((name.to_string(), start.elapsed(), totals));
        totals.failed == 0
    }

    /// A step that either holds or does not.
    fn check(&mut self, name: &str, work: impl FnOnce() -> Result<()>) -> bool {
        self.step(name, || {
            work()?;
            let mut totals = Totals::default();
            totals.count(Verdict::Pass);
            Ok(totals)
        })
    }

    fn scenarios(&mut self, module: Module, machine: Kind) -> Result<()> {
        let options = lab::with_module(&Options { module, machine, ..Options::default() })?;
        for scenario in scenario::all()? {
            if scenario.in_test.contains(&machine) && scenario.fits(module, machine) {
                let name = format!("lab: {} on {module}, {machine}", scenario.name);
                let mut passed = Vec::new();
                self.step(&name, || {
                    let report = lab::run(&scenario, &options)?;
                    let held = report.tests.iter().filter(|test| test.verdict == Verdict::Pass);
                    passed.extend(held.map(|test| test.name.clone()));
                    Ok(report.totals())
                });
                if module == Module::Exitless {
                    self.passed.extend(passed);
                }
            }
        }
        Ok(())
    }

    fn finish(self, start: Instant) -> Result<()> {
        println!("\ntime      passed failed skipped  step");
        for (name, time, totals) in &self.times {
            let Totals { passed, failed, skipped } = totals;
            println!("{:>8}  {passed:>6} {failed:>6} {skipped:>7}  {name}", say::secs(*time));
        }
        println!("{:>8}  in all\n", say::secs(start.elapsed()));
        println!("{}", self.totals);
        if self.totals.failed > 0 {
            bail!("{} tests failed", self.totals.failed);
        }
        Ok(())
    }
}

/// Runs every step and prints the totals last.
pub fn all(choice: &Choice) -> Result<()> {
    let start = Instant::now();
    let mut run = Run::default();
    run.check("format", checks::formatted);
    run.check("arch: directions of dependencies", arch::check);
    run.check("promises: tests that documents name exist", promises::exist);
    run.check("dead: exported items without a user", dead::check);
    run.check("packages, toolchain and kernels", deps::all);
    run.check("clippy", checks::clippy);
    run.step("unit tests", checks::unit_tests);
    let built = run.step("module and its gates", gates_of_the_module);
    if !choice.no_lab {
        let modules = [(Module::Exitless, built), (Module::Kvm, choice.with_kvm)];
        for (module, _) in modules.into_iter().filter(|(_, wanted)| *wanted) {
            for machine in choice.machine.map_or(Kind::ALL.to_vec(), |machine| vec![machine]) {
                run.scenarios(module, machine)?;
            }
        }
    }
    if !choice.no_lab && choice.machine.is_none() && built {
        let passed = std::mem::take(&mut run.passed);
        run.check("promises: tests that documents name have passed", || promises::held(&passed));
    }
    run.finish(start)
}

/// For each kernel: the build is one test, what the gates hold it to is another.
fn gates_of_the_module() -> Result<Totals> {
    let mut totals = Totals::default();
    for flavour in [deps::Flavour::Stock, deps::Flavour::Backports] {
        let kernel = deps::kernel(flavour)?;
        for report in [gates::build(&kernel)?, gates::build_guest(&kernel)?] {
            totals.count(Verdict::Pass);
            totals.count(if report.passed() { Verdict::Pass } else { Verdict::Fail });
        }
    }
    Ok(totals)
}
