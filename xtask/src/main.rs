//! The one door for developers: `cargo xtask --help`.

// A program has no API of its own: `pub` here means "for the other modules".
#![allow(unreachable_pub)]

mod debug_kernel;
mod lab;
mod paths;
mod say;
mod sh;

use std::process::ExitCode;

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
    /// Install and fetch everything that the other tasks need.
    Deps,
    /// Emulated machines with SVM.
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
        options: lab::Options,
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
        Task::Deps => lab::deps::all(),
        Task::Lab { task: LabTask::List } => lab::scenario::list(),
        Task::Lab { task: LabTask::Run { pattern, options } } => lab::run_matching(&pattern, &options),
        Task::Shell { options, small } => lab::shell(&options, !small),
    }
}
