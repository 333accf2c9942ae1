//! `cargo xtask requests`: a Linux guest whose processes ask each other over loopback, each with a time limit for the answer, first without exitless-guest.ko and then with it
//! (job `requests` in `lab/hosts/guest/init`); prints exits for each transaction, those for writes of the TSC deadline among them.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::{
    lab::{
        self, Options, deps,
        machine::Kind,
        report::Report,
        scenario::{Module, Scenario},
    },
    paths,
};

/// Where, and how much.
#[derive(Debug, Clone, clap::Args)]
pub struct Choice {
    /// The emulated machine.
    #[arg(long, value_enum, default_value = "svm")]
    pub machine: Kind,
    /// CPUs of the emulated host.
    #[arg(long, default_value = "2")]
    pub cpus: u32,
    /// CPUs of the guest; two for each pair of processes.
    #[arg(long, default_value = "4")]
    pub vcpus: u32,
    /// Transactions of each pair.
    #[arg(long, default_value = "3000")]
    pub transactions: u32,
}

const SCRIPT: &str = r#"
counters() {
    deadline=$(cat /sys/kernel/debug/kvm/*-*/exits_by_msr | sed -n 's/^0x000006e0 //p')
    exits=$(cat /sys/kernel/debug/kvm/*-*/exits)
    halts=$(cat /sys/kernel/debug/kvm/*-*/halt_exits)
}
phase() {
    wait_line 300 /tmp/log "^--- GUEST begin $1" && counters || return 1
    begin_deadline=${deadline:-0} begin_exits=$exits begin_halts=$halts
    wait_line 600 /tmp/log "^--- GUEST end $1" && counters || return 1
    count=$(sed -n "s/^--- GUEST end $1 \\([0-9]*\\).*/\\1/p" /tmp/log)
    echo "=== JSON $1 {\"transactions\":$count,\"deadlines\":$((deadline - begin_deadline)),\"exits\":$((exits - begin_exits)),\"halts\":$((halts - begin_halts))}"
}
work() {
    GUEST_APPEND="exitless.loops=$TRANSACTIONS"
    start_guest $VCPUS requests /tmp/log
    phase off && phase on && wait_line 60 /tmp/log '^--- GUEST done' && guest_passed /tmp/log
}
guest_extras
check load load_module
check offer sh -c 'echo "0 +lazy_deadline" >/dev/exitless'
check work work
check unused wait_unused 20
check unload unload_module
"#;

/// Measures, prints the table.
pub fn run(choice: &Choice) -> Result<()> {
    deps::host_packages()?;
    let Choice { machine, cpus, vcpus, transactions } = choice;
    let scenario = Scenario {
        name: "requests".into(),
        cpus: *cpus,
        memory: 1024,
        timeout: Duration::from_secs(900),
        needs: ["guest", "exitless-guest", "load"].map(str::to_string).into(),
        modules: vec![Module::Exitless],
        script: format!("VCPUS={vcpus} TRANSACTIONS={transactions}\n{SCRIPT}"),
        ..Scenario::default()
    };
    let options = Options { module: Module::Exitless, machine: *machine, ..Options::default() };
    let kernel = deps::kernel(options.kernel)?;
    let dir = paths::made(paths::target().join("requests"))?;
    println!("-> requests ({machine}, a guest of {vcpus} vCPUs on {cpus} CPU)");
    let mut machine = lab::prepare(&scenario, &options, &kernel, *cpus, dir, None)?;
    // Time goes by instructions, as on Bochs: else a transaction takes longer than a tick of the guest's, and hardly a timer is moved
    // before it comes.
    machine.icount = machine.kind == Kind::Svm;
    let report = lab::watch(&machine, scenario.timeout * lab::patience(&options), false, Report::default())?;
    if report.totals().failed > 0 {
        bail!("a measurement failed; the log is {}", paths::shown(&machine.serial_log()));
    }
    print!("{}", table(&report.json)?);
    Ok(())
}

/// What the host counted between two marks of the guest's.
#[derive(Deserialize)]
struct Phase {
    transactions: f64,
    deadlines: f64,
    exits: f64,
    halts: f64,
}

fn phase(lines: &[String], name: &str) -> Result<Phase> {
    let line = lines.iter().filter_map(|line| line.split_once(' ')).find(|(n, _)| *n == name);
    let (_, json) = line.with_context(|| format!("{name} was not measured"))?;
    serde_json::from_str(json).with_context(|| format!("`{json}` is no measurement"))
}

fn table(lines: &[String]) -> Result<String> {
    let (off, on) = (phase(lines, "off")?, phase(lines, "on")?);
    let mut text = format!("\n{:<34} {:>10} {:>10} {:>9}\n", "for each transaction", "off", "lazy", "change");
    type Count = fn(&Phase) -> f64;
    let rows: [(&str, Count); 3] = [
        ("exits for writes of the deadline", |p| p.deadlines),
        ("exits for HLT", |p| p.halts),
        ("exits", |p| p.exits),
    ];
    for (name, count) in rows {
        let [off, on] = [&off, &on].map(|p| count(p) / p.transactions);
        text += &format!("{name:<34} {off:>10.3} {on:>10.3} {:>8.1}%\n", (on / off - 1.0) * 100.0);
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::table;

    #[test]
    fn for_each_transaction() {
        let lines = [
            r#"off {"transactions":100,"deadlines":300,"exits":1000,"halts":200}"#.to_string(),
            r#"on {"transactions":200,"deadlines":12,"exits":1000,"halts":400}"#.to_string(),
        ];
        let text = table(&lines).unwrap();
        for row in ["3.000      0.060    -98.0%", "2.000      2.000      0.0%", "10.000      5.000    -50.0%"]
        {
            assert!(text.contains(row), "{row} in {text}");
        }
        assert!(table(&lines[..1]).is_err());
    }
}
