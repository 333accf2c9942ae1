//! `cargo xtask demo`: from a bare machine to a Linux guest on Exitless, and a table of its exits.

use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::{
    lab::{self, Options, deps, machine::Kind, report::Report, scenario},
    say,
};

/// What the emulated machine's kernels and the QEMU on it say each time.
const EXPECTED: &str = "expected, and no faults: warnings about tsc, mtrr, PCI config space, SMP cpus, CPUID, and a tainted kernel";

/// Installs what is missing, builds the module, boots the emulated host and the guest, prints the guest's exits.
pub fn run(options: &Options) -> Result<()> {
    let start = Instant::now();
    deps::all()?;
    let scenario =
        scenario::all()?.into_iter().find(|s| s.name == "demo").context("lab/hosts/scenarios/demo.sh")?;
    if options.machine == Kind::Svm {
        say::note(EXPECTED);
    }
    let options = Options { verbose: true, ..options.clone() };
    let report = lab::run(&scenario, &options)?;
    exits(&report);
    println!("{} in {}", report.totals(), say::secs(start.elapsed()));
    if report.totals().failed > 0 {
        bail!("the demo failed; its logs are in target/lab");
    }
    Ok(())
}

/// The table of exits by reason, largest first.
fn exits(report: &Report) {
    let Some(rows) = report.tables.get("exits") else {
        println!("   the module counted no exits");
        return;
    };
    let counts: Vec<(&str, u64)> =
        rows.iter().filter_map(|(name, count)| Some((name.as_str(), count.trim().parse().ok()?))).collect();
    let sum: u64 =
        counts.iter().filter(|(name, _)| *name != "total" && *name != "exits").map(|(_, count)| count).sum();
    println!("\nThe guest's exits by reason");
    println!("{:<32} {:>12} {:>7}", "reason", "exits", "share");
    for (name, count) in &counts {
        let share = *count as f64 * 100.0 / sum.max(1) as f64;
        println!("{name:<32} {count:>12} {share:>6.1}%");
    }
    println!();
}
