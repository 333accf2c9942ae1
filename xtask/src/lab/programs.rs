//! The lab's own programs, linked statically so that they run on the emulated host without libraries.

use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::{paths, sh};

const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Builds a package of the workspace and returns its program.
pub fn built(package: &str) -> Result<PathBuf> {
    let target_dir = paths::cargo_target();
    let mut build = sh::cmd("cargo", ["build", "--quiet", "--release", "--target", TARGET, "-p", package]);
    build.current_dir(paths::root()).env("RUSTFLAGS", "-C target-feature=+crt-static");
    // The lab's programs are not the module: they need no whole-program optimization.
    build.env("CARGO_PROFILE_RELEASE_LTO", "off").env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "16");
    build.arg("--target-dir").arg(target_dir.join("lab-programs"));
    sh::run(&mut build).with_context(|| format!("{package} does not build"))?;
    Ok(target_dir.join("lab-programs").join(TARGET).join("release").join(package))
}
