//! `cargo xtask overcommit`: two guests of 4 vCPUs on a host with 2 CPUs, one whose vCPUs wait for each other beside one that only
//! computes (`lab/guests/src/bench/overcommit.rs`), on stock KVM and on Exitless; prints the work done for each second of CPU time that
//! the first guest took.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::{
    lab::{Options, machine::Kind},
    measure,
};

/// Where, and how often.
#[derive(Debug, Clone, clap::Args)]
pub struct Choice {
    /// The emulated machine.
    #[arg(long, value_enum, default_value = "vmx")]
    pub machine: Kind,
    /// CPUs of the emulated host.
    #[arg(long, default_value = "2")]
    pub cpus: u32,
    /// Measurements of two seconds of the machine on each module.
    #[arg(long, default_value = "3")]
    pub rounds: u32,
    /// The vCPUs ask the host by hypercall to let those run that have not answered.
    #[arg(long)]
    pub hypercall: bool,
    /// This module file, instead of building one.
    #[arg(long)]
    pub ko: Option<std::path::PathBuf>,
    /// Parameters of Exitless, as for insmod.
    #[arg(long, default_value = "")]
    pub module_args: String,
}

const SCRIPT: &str = r#"
work() { runner bench --json --exact overcommit/$WORK | sed "s/^{/=== JSON $MODULE {/"; }
for MODULE in kvm exitless; do
    [ $MODULE = kvm ] && PARAMS= || PARAMS=$ARGS
    check load-$MODULE load_module
    runner run overcommit/spin >/tmp/spin 2>&1 &
    sleep 0.5
    round=0
    while [ $round -lt $ROUNDS ]; do
        round=$((round + 1))
        check work-$MODULE-$round work
    done
    killall runner
    check unused wait_unused 20
    check unload-$MODULE unload_module
done
"#;

/// Measures, prints the table.
pub fn run(choice: &Choice) -> Result<()> {
    let Choice { machine, cpus, rounds, hypercall, ko, module_args } = choice;
    let work_of = if *hypercall { "work_yield" } else { "work" };
    let script = format!("ROUNDS={rounds} WORK={work_of} ARGS='{module_args}'\n{SCRIPT}");
    let timeout = 120 + 60 * u64::from(*rounds);
    let scenario = measure::scenario("overcommit", *cpus, timeout, &["runner"], script);
    let options = Options { ko: ko.clone(), ..Options::default() };
    let what = format!("2 guests of 4 vCPUs, {rounds} rounds on each module");
    table(&work(&measure::records(&scenario, *machine, false, options, &what)?)?)
}

/// What the runner says: CPU time for one round of work, in nanoseconds.
#[derive(Deserialize)]
struct Line {
    ticks: f64,
}

/// Rounds of work for a second of CPU time, of each measurement, by module.
type Work = BTreeMap<String, Vec<f64>>;

fn work(lines: &[String]) -> Result<Work> {
    let mut work = Work::new();
    for (module, json) in lines.iter().filter_map(|line| line.split_once(' ')) {
        let line: Line = serde_json::from_str(json).with_context(|| format!("`{json}` is no measurement"))?;
        work.entry(module.into()).or_default().push(1e9 / line.ticks);
    }
    Ok(work)
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

fn ratio(work: &Work) -> Option<f64> {
    Some(mean(work.get("exitless")?) / mean(work.get("kvm")?))
}

fn table(work: &Work) -> Result<()> {
    println!("\n{:<10} {:>28}   each", "module", "rounds of work per CPU-second");
    for (module, values) in work {
        let each: Vec<_> = values.iter().map(|value| format!("{value:.0}")).collect();
        println!("{module:<10} {:>28.0}   {}", mean(values), each.join(" "));
    }
    println!("ratio to stock: {:.2}\n", ratio(work).context("one module was not measured")?);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{ratio, work};

    /// Less CPU time for a round is more work for a second.
    #[test]
    fn work_is_the_inverse_of_time() {
        let lines = [
            r#"kvm {"op":"overcommit","ticks":20000.0,"exits":null,"mark":0,"batches":1}"#.to_string(),
            r#"exitless {"op":"overcommit","ticks":10000.0,"exits":null,"mark":0,"batches":1}"#.to_string(),
            r#"exitless {"op":"overcommit","ticks":20000.0,"exits":null,"mark":0,"batches":1}"#.to_string(),
        ];
        let work = work(&lines).unwrap();
        assert_eq!((work["kvm"].as_slice(), ratio(&work)), (&[50_000.0][..], Some(1.5)));
        assert_eq!(ratio(&Default::default()), None);
    }
}
