//! `cargo xtask demo`: from a bare machine to the same Linux guest at work on stock KVM, on Exitless with every mechanism off, and with all
//! on that the machine has; its exits for each unit of work, by reason.

use std::time::Instant;

use anyhow::{Result, bail};

use crate::{
    lab::{self, Options, deps, machine::Kind, report::Report},
    measure::Names,
    paths, say,
    workloads::{Choice, Column, Figure, figures, tables},
};

/// Requests and their answers between processes, and messages between many: some ten seconds in each column.
const WORK: &str = "tcp_rr:200,hackbench:10";
/// A guest whose tick stops when it is idle, as most kernels' do, and starts again behind: two deadlines each time.
const APPEND: &str = "cpuidle_haltpoll.force=1 cpuidle.governor=ladder";

/// Installs what is missing, builds the modules, boots the emulated host and on it the guest three times, prints the table.
pub fn run(options: &Options) -> Result<()> {
    let start = Instant::now();
    deps::host_packages()?;
    deps::rust_src()?;
    let kernel = deps::kernel(options.kernel)?;
    let choice = Choice {
        machine: options.machine,
        cpus: options.cpus.unwrap_or(1),
        append: APPEND.into(),
        ..Choice::default()
    };
    let scenario = choice.scenario("demo", WORK);
    let dir = paths::made(paths::target().join("demo"))?;
    println!(
        "-> demo ({}, a guest of {} vCPUs on {} CPU, Linux {} both)",
        choice.machine, choice.vcpus, choice.cpus, kernel.release
    );
    let mut machine = lab::prepare(&scenario, options, &kernel, choice.cpus, dir, None)?;
    machine.packaged = machine.kind == Kind::Svm && choice.cpus == 1;
    let limit = scenario.timeout * lab::patience(options);
    let report = lab::watch(&machine, limit, options.verbose, Report::default())?;
    if report.totals().failed == 0 {
        let figures = figures(&report.json, &Names::of(machine.kind, &report.json), &choice)?;
        println!("\n{}{}\n", tables(&figures), sentence(&figures).unwrap_or_default());
    }
    println!("{} in {}", report.totals(), say::secs(start.elapsed()));
    if report.totals().failed > 0 {
        bail!("the demo failed; its logs are in {}", paths::shown(&machine.dir));
    }
    Ok(())
}

/// What the table says, in a sentence.
fn sentence(figures: &[Figure]) -> Option<String> {
    let each = |column| figures.iter().find_map(|figure| figure.each("tcp_rr", column));
    let (stock, off, on) = (each(Column::Stock)?, each(Column::Off)?, each(Column::On)?);
    let change = (on / stock - 1.0) * 100.0;
    Some(format!(
        "For a request and its answer the guest left guest mode {stock:.1} times on stock KVM, {off:.1} times on Exitless with its mechanisms\n\
         off, {on:.1} times with them on ({change:+.0} % against stock): most of what is gone are writes of the timer's deadline."
    ))
}

#[cfg(test)]
mod tests {
    use super::{Choice, Kind, Names, figures, sentence};

    #[test]
    fn the_sentence_says_what_was_counted() {
        let lines = [
            "stock tcp_rr end exit 124 600",
            "off tcp_rr end exit msr 590",
            "on tcp_rr begin exit msr 100",
            "on tcp_rr end exit msr 400",
            "on tcp_rr end mechanism lazy_deadline 4",
        ];
        let units = ["stock", "off", "on"].map(|column| format!("{column} tcp_rr end work transaction 100"));
        let lines: Vec<_> = lines.iter().map(|line| line.to_string()).chain(units).collect();
        let choice = Choice { machine: Kind::Svm, ..Choice::default() };
        let figures = figures(&lines, &Names::of(Kind::Svm, &lines), &choice).unwrap();
        let text = sentence(&figures).unwrap();
        for part in ["6.0 times on stock", "5.9 times on Exitless", "3.0 times with them on (-50 %"] {
            assert!(text.contains(part), "{part} in {text}");
        }
        assert!(sentence(&figures[..2]).is_none());
    }
}
