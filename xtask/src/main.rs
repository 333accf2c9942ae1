//! The one door for developers: `cargo xtask --help`.

// A program has no API of its own: `pub` here means "for the other modules".
#![allow(unreachable_pub)]

mod anatomy;
mod arch;
mod bench;
mod boot_exits;
mod checks;
mod circles;
mod dead;
mod debug_kernel;
mod demo;
mod gates;
mod kmod;
mod lab;
mod ledger;
mod measure;
mod mutants;
mod overcommit;
mod paths;
mod promises;
mod say;
mod sh;
mod test;
mod timers;
mod workloads;

use std::{path::PathBuf, process::ExitCode};

use anyhow::Result;
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(about = "Exitless: build, demo, test, lab, bench, checks.", disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Install what is missing, build the module, run the same Linux guest on stock KVM and on it on an emulated machine, print its exits.
    Demo {
        #[command(flatten)]
        options: lab::Options,
    },
    /// Unit tests, gates, and the scenarios of each machine that say `in test`: about 40 minutes on two CPUs; prints the totals last.
    Test {
        #[command(flatten)]
        choice: test::Choice,
    },
    /// Exits of a guest's boot by reason, Exitless and stock KVM side by side.
    BootExits {
        #[command(flatten)]
        choice: boot_exits::Choice,
    },
    /// Instructions per operation, Exitless and stock KVM side by side, and what of them is dear on a CPU.
    Bench {
        #[command(flatten)]
        choice: bench::Choice,
    },
    /// What one exit is made of, on Exitless and on stock KVM, instruction by instruction (Bochs's machines).
    Anatomy {
        #[command(flatten)]
        choice: anatomy::Choice,
    },
    /// Linux guests at work on stock KVM, on Exitless with all off and with all on: exits for each unit of work, by reason.
    Workloads {
        #[command(flatten)]
        choice: workloads::Choice,
    },
    /// The APIC timer by each mechanism on Intel's machine: exits and instructions to arm and to fire, beside what they are to be, and of the
    /// workloads that were measured.
    Timers {
        #[command(flatten)]
        choice: timers::Choice,
    },
    /// Of `workloads` the requests with a time limit: with all off, and with lazy deadlines alone.
    Requests {
        #[command(flatten)]
        choice: workloads::Requests,
    },
    /// Work of a guest whose vCPUs wait for each other, beside a guest that computes, with more vCPUs than CPUs; ratio to stock KVM.
    Overcommit {
        #[command(flatten)]
        choice: overcommit::Choice,
    },
    /// Write docs/ledger.md from the last figures of `bench` on each machine.
    Ledger,
    /// Build exitless.ko for a kernel of the lab and hold it to the gates, or only build it for the headers in KDIR.
    Build {
        /// A kernel's headers: `/lib/modules/$(uname -r)/build` for the running one.
        kdir: Option<PathBuf>,
        #[arg(long, value_enum, default_value_t = lab::deps::Flavour::Stock, conflicts_with = "kdir")]
        kernel: lab::deps::Flavour,
        /// Hold it to the gates for KDIR too: a folder with that kernel's kvm.ko, kvm-intel.ko and kvm-amd.ko, not compressed.
        #[arg(long, value_name = "FOLDER", requires = "kdir")]
        kvm: Option<PathBuf>,
    },
    /// Build the kernel that checks itself (KASAN, lockdep, kmemleak), for `lab run --kernel debug`.
    DebugKernel,
    /// Check that dependencies run the right way, that exported items have users, that tests which documents name exist.
    Arch,
    /// Change the code in small ways and see whether a test notices (hours; not part of `test`).
    Mutants {
        #[command(flatten)]
        choice: mutants::Choice,
    },
    /// Format every file.
    Fmt,
    /// Format check, clippy, arch.
    Lint,
    /// Install and fetch everything that the other tasks need.
    Deps,
    /// Emulated machines with SVM or VMX.
    Lab {
        #[command(subcommand)]
        task: LabTask,
    },
    /// A shell on the emulated host, the module loaded.
    Shell {
        #[command(flatten)]
        options: lab::Options,
        /// Leave out QEMU and the Linux guest: boots faster.
        #[arg(long)]
        small: bool,
    },
}

#[derive(Subcommand)]
enum LabTask {
    /// Print every scenario.
    List,
    /// Run the scenarios whose name contains the pattern; `all` runs every one.
    Run {
        pattern: String,
        #[command(flatten)]
        options: Box<lab::Options>,
    },
}

fn main() -> ExitCode {
    match run(Cli::parse().task) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: Task) -> Result<()> {
    match task {
        Task::Demo { options } => demo::run(&options),
        Task::Test { choice } => test::all(&choice),
        Task::Bench { choice } => bench::run(&choice),
        Task::Anatomy { choice } => anatomy::run(&choice),
        Task::Requests { choice } => workloads::requests(&choice),
        Task::Workloads { choice } => workloads::run(&choice),
        Task::Timers { choice } => timers::run(&choice),
        Task::Overcommit { choice } => overcommit::run(&choice),
        Task::Ledger => bench::page(),
        Task::BootExits { choice } => boot_exits::run(&choice),
        Task::Build { kdir, kernel, kvm } => build(kdir, kernel, kvm),
        Task::DebugKernel => debug_kernel::build(),
        Task::Arch => arch::check().and_then(|()| dead::check()).and_then(|()| promises::exist()),
        Task::Mutants { choice } => mutants::run(&choice),
        Task::Fmt => checks::format(),
        Task::Lint => say::step("format", checks::formatted)
            .and_then(|()| say::step("arch", arch::check))
            .and_then(|()| say::step("dead", dead::check))
            .and_then(|()| say::step("promises", promises::exist))
            .and_then(|()| say::step("clippy", checks::clippy)),
        Task::Deps => lab::deps::all(),
        Task::Lab { task: LabTask::List } => lab::scenario::list(),
        Task::Lab { task: LabTask::Run { pattern, options } } => lab::run_matching(&pattern, &options),
        Task::Shell { options, small } => lab::shell(&options, !small),
    }
}

/// The gates compare with KVM's modules: of the lab's kernel, or the given ones of another.
fn build(kdir: Option<PathBuf>, kernel: lab::deps::Flavour, kvm: Option<PathBuf>) -> Result<()> {
    lab::deps::rust_src()?;
    let tree = match kdir {
        None => {
            lab::deps::host_packages()?;
            lab::deps::kernel(kernel)?
        }
        Some(kdir) if kvm.is_some() => lab::deps::KernelTree::other(kdir, kvm)?,
        Some(kdir) => {
            let module =
                say::step("build exitless.ko", || kmod::build(&kdir, &paths::target().join("kmod")))?;
            say::note(paths::shown(&module));
            let guest = kmod::build_guest(&kdir, &paths::target().join("kmod"))?;
            say::note(paths::shown(&guest.ko));
            return Ok(());
        }
    };
    let report = say::step("build exitless.ko", || gates::build(&tree))?;
    let guest = say::step("build exitless-guest.ko", || gates::build_guest(&tree))?;
    anyhow::ensure!(report.passed() && guest.passed(), "the modules were built, and the gates found faults");
    Ok(())
}
