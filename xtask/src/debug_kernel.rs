//! A kernel that checks itself, built from Debian's source and kept in the cache: KASAN, lockdep, kmemleak and others.
//!
//! Everything that the lab does not use is left out (`allnoconfig` and the list in `lab/hosts/debug.config`), so that it
//! builds in minutes; what shapes the module's code (speculation controls, preemption counting) is as in Debian's kernel.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use crate::{
    lab::{
        apt,
        deps::{self, KernelTree},
    },
    paths, say,
    sh::{self, cmd},
};

const BUILD_PACKAGES: &[&str] =
    &["flex", "bison", "bc", "libelf-dev", "libssl-dev", "lz4", "xz-utils", "make", "gcc-12", "rsync"];

/// `cargo xtask debug-kernel`.
pub fn build() -> Result<()> {
    deps::host_packages()?;
    apt::install(BUILD_PACKAGES, None)?;
    let dir = folder()?;
    if finished(&dir)? {
        say::note(format!("the debug kernel is in {}", dir.display()));
        return Ok(());
    }
    let source = source(&dir)?;
    let out = paths::made(dir.join("build"))?;
    let config = config_file();
    say::step("configure the debug kernel", || configure(&source, &out, &config))?;
    say::step("build the debug kernel", || {
        let jobs = std::thread::available_parallelism().map_or(2, usize::from);
        make(&source, &out, &[&format!("-j{jobs}"), "bzImage", "modules"])
    })?;
    fs::copy(&config, dir.join("finished.config"))?;
    say::note(format!("the debug kernel is in {}", dir.display()));
    Ok(())
}

/// The built debug kernel.
pub fn tree() -> Result<KernelTree> {
    let dir = folder()?;
    if !finished(&dir)? {
        bail!("there is no debug kernel for this configuration yet: run `cargo xtask debug-kernel`");
    }
    let build = dir.join("build");
    let release = fs::read_to_string(build.join("include/config/kernel.release"))?.trim().to_string();
    Ok(KernelTree {
        vmlinuz: Some(build.join("arch/x86/boot/bzImage")),
        modules_dir: Some(build.clone()),
        headers_dir: build,
        version: "debug".into(),
        release,
    })
}

fn folder() -> Result<PathBuf> {
    paths::made(paths::cache()?.join("debug-kernel"))
}

fn config_file() -> PathBuf {
    paths::root().join("lab/hosts/debug.config")
}

/// Was the last build a full one, with today's configuration?
fn finished(dir: &Path) -> Result<bool> {
    Ok(fs::read(dir.join("finished.config")).ok() == Some(fs::read(config_file())?))
}

/// The unpacked source; 1.3 GB.
fn source(dir: &Path) -> Result<PathBuf> {
    let source = dir.join("source");
    if source.join("Makefile").exists() {
        return Ok(source);
    }
    say::step("fetch linux-source-6.1 from Debian", || {
        let package = dir.join("package");
        apt::unpack(&["linux-source-6.1".to_string()], &package)?;
        let part = paths::made(dir.join("source.part"))?;
        let archive = package.join("usr/src/linux-source-6.1.tar.xz");
        sh::quiet(cmd("tar", ["-xJf"]).arg(archive).args(["--strip-components=1", "-C"]).arg(&part))?;
        fs::rename(&part, &source)?;
        fs::remove_dir_all(&package)?;
        Ok(source.clone())
    })
}

fn configure(source: &Path, out: &Path, config: &Path) -> Result<()> {
    let all = format!("KCONFIG_ALLCONFIG={}", config.display());
    make(source, out, &[&all, "allnoconfig"])?;
    let got = fs::read_to_string(out.join(".config"))?;
    let wanted = fs::read_to_string(config)?;
    let lost: Vec<_> = wanted
        .lines()
        .filter(|line| line.starts_with("CONFIG_") && !got.lines().any(|g| g == *line))
        .collect();
    if !lost.is_empty() {
        bail!("the kernel's configuration refuses lines of {}:\n{}", paths::shown(config), lost.join("\n"));
    }
    Ok(())
}

fn make(source: &Path, out: &Path, targets: &[&str]) -> Result<()> {
    let mut make = Command::new("make");
    make.arg("-C").arg(source).arg(format!("O={}", out.display())).arg("CC=gcc-12").args(targets);
    make.env_remove("MAKEFLAGS").env_remove("CARGO_MAKEFLAGS");
    sh::quiet(&mut make).context("the kernel does not build")
}
