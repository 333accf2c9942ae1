//! `exitless-runner list [--vcpus] | run [--exits] [--switch] [--idle] [--swap COMMAND] [pattern..] | bench [--json] [--exact] [pattern..]`, with `--device PATH`.
//!
//! With `--exits` a line `exits TEST REASON COUNT` before each test's result tells of each reason for which its VM left guest
//! mode, if the module counts by reason. With `--switch` all mechanisms are switched at random meanwhile. With `--idle` guests idle
//! without exits, all of them. With `--swap` guests that move (`move/*`) come to another module, which COMMAND loads.

use std::io::Write;
use std::process::exit;
use std::time::Duration;

use exitless_runner::config::{BENCH, BY_NAME, CPUS_SHIFT, IDLE, TIMEOUT_SHIFT};
use exitless_runner::elf::{self, Test};
use exitless_runner::harness::{self, Outcome, Summary};
use exitless_runner::machine::{Machine, Measurement};
use exitless_runner::switches;

const USAGE: &str = "usage: exitless-runner [--device PATH] [--timeout SECONDS] list [--vcpus] | run [--exits] [--switch] [--idle] [--swap COMMAND] [PATTERN..] | bench [--json] [--exact] [PATTERN..]";

struct Options {
    device: String,
    json: bool,
    exits: bool,
    switch: bool,
    idle: bool,
    vcpus: bool,
    exact: bool,
    swap: Option<String>,
    timeout: u64,
    words: Vec<String>,
}

fn options() -> Options {
    let mut o = Options {
        device: "/dev/kvm".into(),
        json: false,
        exits: false,
        switch: false,
        idle: false,
        vcpus: false,
        exact: false,
        swap: None,
        timeout: 30,
        words: Vec::new(),
    };
    let mut args = std::env::args().skip(1);
    while let Some(a) = args.next() {
        match a.as_str() {
            "--json" => o.json = true,
            "--exits" => o.exits = true,
            "--switch" => o.switch = true,
            "--idle" => o.idle = true,
            "--vcpus" => o.vcpus = true,
            "--exact" => o.exact = true,
            "--device" | "--timeout" | "--swap" => {
                let Some(v) = args.next() else {
                    eprintln!("{a} needs a value\n{USAGE}");
                    exit(2)
                };
                if a == "--device" {
                    o.device = v
                } else if a == "--swap" {
                    o.swap = Some(v)
                } else if let Ok(n) = v.parse() {
                    o.timeout = n
                }
            }
            "--help" | "-h" => {
                println!("{USAGE}");
                exit(0)
            }
            _ => o.words.push(a),
        }
    }
    o
}

/// One measurement as a line of JSON.
fn record(m: &Measurement) -> String {
    let per = |n: u64| n as f64 / m.count as f64;
    let ticks = m.ticks.map_or("null".into(), |ticks| format!("{:.1}", per(ticks)));
    let exits = m.exits.map_or("null".into(), |exits| format!("{:.3}", per(exits)));
    let Measurement { op, mark, batches, .. } = m;
    format!(r#"{{"op":"{op}","ticks":{ticks},"exits":{exits},"mark":{mark},"batches":{batches}}}"#)
}

/// One measurement for people.
fn shown(m: &Measurement) -> String {
    let per = |n: u64| n as f64 / m.count as f64;
    let Some(ticks) = m.ticks else { return format!("{:24} only an emulator counts it", m.op) };
    let exits = m.exits.map_or("-".into(), |exits| format!("{:.3}", per(exits)));
    format!("{:24} {:12.1} ticks {exits:>8} exits", m.op, per(ticks))
}

fn run_one(o: &Options, test: &Test) -> (Outcome, String) {
    let own = test.config >> TIMEOUT_SHIFT & 0xff;
    let limit = Duration::from_secs(if own != 0 { own } else { o.timeout });
    let Options { json, exits, switch, idle, .. } = *o;
    harness::isolated(limit + Duration::from_secs(45), |extra: &mut dyn Write| {
        let config = test.config | if idle { IDLE } else { 0 };
        let machine = match Machine::new(&o.device, &Test { config, ..test.clone() }) {
            Ok(m) => m,
            Err(e) => return Outcome::Failed(e),
        };
        if let Some(command) = &o.swap {
            let _ = machine.swap.set(command.clone());
        }
        if switch {
            switches::storm(&machine);
        }
        let outcome = machine.execute(limit);
        for m in machine.measurements() {
            let _ = writeln!(extra, "{}", if json { record(&m) } else { shown(&m) });
        }
        if exits && let Ok(text) = machine.statistics("exits_by_reason") {
            for line in text.lines() {
                let _ = writeln!(extra, "exits {} {line}", test.name);
            }
        }
        outcome
    })
}

fn run(o: &Options, patterns: &[String], bench: bool) -> i32 {
    let mut summary = Summary::default();
    for test in elf::tests() {
        let asked = if o.exact || test.config & BY_NAME != 0 {
            patterns.contains(&test.name)
        } else {
            harness::selected(&test.name, patterns)
        };
        if (test.config & BENCH != 0) != bench || !asked {
            continue;
        }
        let (outcome, extra) = run_one(o, test);
        print!("{extra}");
        if bench && matches!(outcome, Outcome::Passed) {
            summary.passed += 1;
        } else {
            summary.record(&test.name, &outcome);
        }
    }
    if bench && o.json && summary.failed == 0 {
        return 0;
    }
    summary.finish()
}

fn main() {
    let o = options();
    let code = match o.words.first().map(String::as_str) {
        Some("list") => {
            for t in elf::tests() {
                match o.vcpus {
                    true => println!("{} {}", t.name, (t.config >> CPUS_SHIFT & 0xf) + 1),
                    false => println!("{}", t.name),
                }
            }
            0
        }
        Some("run") => run(&o, &o.words[1..], false),
        Some("bench") => run(&o, &o.words[1..], true),
        _ => {
            eprintln!("{USAGE}");
            2
        }
    };
    exit(code)
}
