//! `exitless-suite list | run [pattern..]`, with `--device PATH`: tests of the /dev/kvm ABI from user space. And `gdb SOCKET`: a
//! session with a VMM's debugger stub.
//!
//! Each test runs in a process of its own and states what stock KVM (6.1, SVM) answers; where this module is meant to
//! answer otherwise, the test accepts both and its comment says why.

mod clock;
mod control;
mod debug;
mod env;
mod gdb;
mod host;
mod irq;
mod life;
mod memory;
mod msr;
mod odd;
mod run;
mod state;
mod stats;
mod system;
mod vm;

use std::process::exit;
use std::time::Duration;

use env::{Env, Stop};
use exitless_runner::harness::{self, Outcome, Summary};

const USAGE: &str = "usage: exitless-suite [--device PATH] list | run [PATTERN..] | gdb SOCKET";

fn main() {
    let mut device = "/dev/kvm".to_string();
    let mut words = Vec::new();
    let mut args = std::env::args().skip(1);
    while let Some(a) = args.next() {
        match a.as_str() {
            "--device" => device = args.next().unwrap_or(device),
            _ => words.push(a),
        }
    }
    let groups = [
        system::TESTS,
        vm::TESTS,
        memory::TESTS,
        odd::TESTS,
        irq::TESTS,
        state::TESTS,
        msr::TESTS,
        run::TESTS,
        debug::TESTS,
        life::TESTS,
        clock::TESTS,
        control::TESTS,
        stats::TESTS,
        host::TESTS,
    ];
    let tests = groups.iter().flat_map(|g| g.iter());
    match words.first().map(String::as_str) {
        Some("list") => tests.for_each(|(name, _)| println!("{name}")),
        Some("run") => {
            let env = Env { device };
            let mut summary = Summary::default();
            for (name, f) in tests.filter(|(name, _)| harness::selected(name, &words[1..])) {
                let (outcome, _) = harness::isolated(Duration::from_secs(120), |_| match f(&env) {
                    Ok(()) => Outcome::Passed,
                    Err(Stop::Skip(t)) => Outcome::Skipped(t),
                    Err(Stop::Fail(t)) => Outcome::Failed(t),
                });
                summary.record(name, &outcome);
            }
            exit(summary.finish())
        }
        Some("gdb") if words.len() == 2 => match gdb::session(&words[1]) {
            Ok(done) => println!("{done}"),
            Err(e) => {
                println!("gdb: {e}");
                exit(1)
            }
        },
        _ => {
            eprintln!("{USAGE}");
            exit(2)
        }
    }
}
