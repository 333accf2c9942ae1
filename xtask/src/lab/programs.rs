//! The lab's own programs, linked statically so that they run on the emulated host without libraries.

use std::{path::PathBuf, process::Command};

use anyhow::{Context, Result};

use crate::{paths, sh};

const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Builds a package of the workspace and returns its program.
pub fn built(package: &str) -> Result<PathBuf> {
    let mut build = build("build");
    build.args(["-p", package]);
    sh::run(&mut build).with_context(|| format!("{package} does not build"))?;
    Ok(folder().join(TARGET).join("release").join(package))
}

/// Cargo's command that builds a program for the emulated host.
pub fn build(command: &str) -> Command {
    let mut build = sh::cmd("cargo", [command, "--quiet", "--release", "--target", TARGET]);
    build.current_dir(paths::root()).env("RUSTFLAGS", "-C target-feature=+crt-static");
    // The lab's programs are not the module: they need no whole-program optimization.
    build.env("CARGO_PROFILE_RELEASE_LTO", "off").env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "16");
    build.arg("--target-dir").arg(folder());
    build
}

fn folder() -> PathBuf {
    paths::cargo_target().join("lab-programs")
}
