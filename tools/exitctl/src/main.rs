//! exitctl: see where virtual machines on Exitless spend their exits, choose what spares them.
//! `docs/exitctl.md`.

mod anatomy;
mod bench;
mod check;
mod device;
mod export;
mod health;
mod host;
mod measure;
mod names;
mod out;
mod plot;
mod set;
mod stat;
mod times;
mod top;
mod view;

use anyhow::{Result, bail, ensure};
use clap::{Args, CommandFactory, Parser, Subcommand};
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// `check` found something that does not work.
const FOUND: u8 = 3;
const ENDS: &str = "Ends with 0: done; 1: it failed; 2: the command line is wrong; 3: check found something that does not work.";

/// See where virtual machines on Exitless spend their exits, choose what spares them.
#[derive(Debug, Parser)]
#[command(version, arg_required_else_help = true, after_help = ENDS)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Is this host ready, and what is each mechanism to each running VM: active, or why not and what changes it.
    ///
    /// Of a VM that is named also whether all is well with it: halted with an interrupt that it could take, a deadline that nobody wakes
    /// it for, clocks apart, storms of halts. Ends with 3 if something does not work, or VMs cannot be seen.
    Check {
        /// As --pid.
        #[arg(value_name = "PID", conflicts_with = "pid")]
        process: Option<i32>,
        #[command(flatten)]
        which: Which,
        /// What it is written as.
        #[arg(long, value_enum, default_value_t)]
        format: check::Format,
    },
    /// Exits by reason, MSR, port and vCPU, and what mechanisms did.
    Stat(stat::Options),
    /// The same live, on the whole terminal.
    Top(top::Options),
    /// Have the time that exits take measured, or not any more: what stat and top show of it.
    Measure(measure::Options),
    /// Switch mechanisms, while guests run.
    Set(set::Options),
    /// Measure what exits cost on this host, with the module that is loaded; compare measurements, draw them.
    Bench(bench::Options),
    /// Draw what one exit is made of, from the file of `cargo xtask anatomy`.
    Anatomy(anatomy::Options),
    /// Serve the counts to Prometheus.
    ///
    /// Whoever can connect sees every VM's counts, pid and name, although the device itself is root's.
    Exporter {
        /// Address and port; the default is reached from this host alone.
        #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:9404", value_parser = export::address)]
        listen: String,
    },
    /// Completions for a shell, on standard output.
    Completions {
        /// Whose.
        shell: clap_complete::Shell,
    },
    /// Manual pages, into a folder.
    Man {
        /// It is made if it is not there.
        folder: PathBuf,
    },
}

/// Which VMs.
#[derive(Debug, Default, Args)]
pub(crate) struct Which {
    /// Only this VM.
    #[arg(long, value_name = "NUMBER")]
    vm: Option<u64>,
    /// Only VMs of this process.
    #[arg(long)]
    pid: Option<i32>,
}

impl Which {
    /// One was named.
    pub(crate) fn named(&self) -> bool {
        self.vm.is_some() || self.pid.is_some()
    }

    /// Those that were asked for; an error if one was named that is not there.
    pub(crate) fn of(&self, mut view: view::View) -> Result<view::View> {
        view.vms
            .retain(|vm| self.vm.is_none_or(|id| vm.id == id) && self.pid.is_none_or(|pid| vm.pid == pid));
        if view.vms.is_empty() && self.named() {
            let whom = self.vm.map(|n| format!("VM {n}")).into_iter();
            let of = self.pid.map(|n| format!("VM of process {n}"));
            let whom: Vec<_> = whom.chain(of).collect();
            bail!("no {} is running: exitctl stat without --vm and --pid lists all", whom.join(", or "));
        }
        Ok(view)
    }
}

/// A VM's number, as `exitctl stat` lists it.
pub(crate) fn vm_number(text: &str) -> Result<u64> {
    let id = text.parse()?;
    ensure!(
        id != 0,
        "no VM has the number 0: exitctl stat lists them; VMs to come are --default of exitctl set"
    );
    Ok(id)
}

/// Seconds, as a person writes them.
pub(crate) fn seconds(text: &str) -> Result<Duration> {
    let s: f64 = text.parse()?;
    ensure!((0.05..=86_400.0).contains(&s), "0.05 to 86400 seconds");
    Ok(Duration::from_secs_f64(s))
}

fn run() -> Result<ExitCode> {
    match &Cli::parse().command {
        Command::Check { process, which, format } => {
            let which = Which { vm: which.vm, pid: process.or(which.pid) };
            if !check::run(*format, &which)? {
                return Ok(ExitCode::from(FOUND));
            }
        }
        Command::Stat(o) => stat::run(o)?,
        Command::Top(o) => top::run(o)?,
        Command::Measure(o) => measure::run(o)?,
        Command::Set(o) => set::run(o)?,
        Command::Bench(o) => bench::run(o)?,
        Command::Anatomy(o) => anatomy::run(o)?,
        Command::Exporter { listen } => export::run(listen)?,
        Command::Completions { shell } => {
            let mut text = Vec::new();
            clap_complete::generate(*shell, &mut Cli::command(), "exitctl", &mut text);
            out::print(&String::from_utf8(text)?)?;
        }
        Command::Man { folder } => {
            std::fs::create_dir_all(folder)?;
            clap_mangen::generate_to(Cli::command(), folder)?;
            out::print(&format!("{}\n", folder.display()))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn main() -> ExitCode {
    match run() {
        Ok(code) => code,
        Err(e) => {
            let more = if e.is::<device::Absent>() { "; exitctl check says more" } else { "" };
            // With nobody to tell it to, it has failed all the same.
            let _ = writeln!(std::io::stderr(), "exitctl: {e:#}{more}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    /// What is wrong in a command line is said before anything is looked for.
    #[test]
    fn a_command_line_is_refused_as_a_whole() {
        let parsed = |line: &str| Cli::try_parse_from(line.split_whitespace()).map(drop);
        for good in [
            "exitctl set boost=on all=off --vm 3 --dry-run",
            "exitctl set boost=on --default --persist",
            "exitctl set boost=on --all-vms",
            "exitctl measure on --vm 1",
            "exitctl measure off --all-vms",
            "exitctl check 7 --format json",
            "exitctl bench compare a b --plot x.svg --plot y.png",
            "exitctl anatomy a --plot x.svg",
            "exitctl exporter --listen [::1]:9404",
            "exitctl exporter --listen localhost:0",
        ] {
            assert!(parsed(good).is_ok(), "{good}: {:?}", parsed(good));
        }
        for bad in [
            "exitctl set boost=on",
            "exitctl set boost --default",
            "exitctl set boost=yes --default",
            "exitctl set =on --default",
            "exitctl set boost=on --vm 0",
            "exitctl set boost=on --vm 1 --default",
            "exitctl set boost=on --vm 1 --all-vms",
            "exitctl set boost=on --vm 1 --persist",
            "exitctl measure on",
            "exitctl measure on --vm 0",
            "exitctl measure on --vm 1 --all-vms",
            "exitctl check --format csv",
            "exitctl check --format prometheus",
            "exitctl bench compare a b --plot x.gif",
            "exitctl anatomy a --plot x",
            "exitctl exporter --listen nonsense",
            "exitctl exporter --listen 127.0.0.1:65536",
            "exitctl exporter --listen :80",
        ] {
            assert_eq!(parsed(bad).map_err(|e| e.exit_code()), Err(2), "{bad}");
        }
        let zero = parsed("exitctl set boost=on --vm 0").unwrap_err().to_string();
        assert!(zero.contains("VMs to come are --default"), "{zero}");
    }

    /// Each argument and value is explained.
    #[test]
    fn help_has_words_for_each() {
        fn walk(c: &clap::Command) {
            for arg in c.get_arguments().filter(|a| !a.is_hide_set()) {
                assert!(arg.get_help().is_some(), "{} {}", c.get_name(), arg.get_id());
            }
            c.get_subcommands().for_each(walk);
        }
        walk(&Cli::command());
    }

    #[test]
    fn times() {
        assert_eq!(seconds("0.5").unwrap(), Duration::from_millis(500));
        for bad in ["0", "-1", "nan", "1e9", "x"] {
            assert!(seconds(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn one_vm_of_several() {
        use view::tests::sample;
        let all = || view::View { seconds: None, vms: vec![sample(1, 1, 1), sample(2, 1, 1)] };
        assert_eq!(Which { vm: Some(2), pid: None }.of(all()).unwrap().vms.len(), 1);
        assert_eq!(Which { vm: None, pid: Some(1001) }.of(all()).unwrap().vms[0].id, 1);
        assert!(Which { vm: Some(3), pid: None }.of(all()).is_err());
        assert_eq!(Which::default().of(all()).unwrap().vms.len(), 2);
    }
}
