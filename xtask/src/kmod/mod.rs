//! Builds exitless.ko for one kernel: the Rust crates to one object, linux/c around it, kbuild, and a log for the gates.
//!
//! ```text
//! linux/module --cargo, kernel-target.json--> libexitless_module.a --ld -r -u ex_rs_*--> --objcopy--> rustcore.bin
//! linux/c --copy, probe.sh--> <out>/<kernel>/ --kbuild--> <out>/<kernel>/exitless.ko, build.log
//! ```

mod link;
#[cfg(test)]
mod parameters;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use crate::{paths, sh};

/// What makes Rust code fit for a hardened kernel: retpolines, return thunks, no straight-line speculation, no jump
/// tables, and ENDBR and padding for kernels that want them. No red zone, no unwind tables (objtool makes ORC data).
const RUSTFLAGS: &[&str] = &[
    "-Zretpoline-external-thunk",
    "-Zindirect-branch-cs-prefix",
    "-Zfunction-return=thunk-extern",
    "-Zcf-protection=branch",
    "-Zpatchable-function-entry=16,16",
    "-Zmin-function-alignment=16",
    "-Cjump-tables=n",
    "-Cforce-unwind-tables=n",
    "-Csymbol-mangling-version=v0",
    "-Cno-redzone=y",
];

/// A module of ours: a crate, and the C around it.
struct Parts {
    package: &'static str,
    sources: &'static str,
    /// Which callbacks C calls.
    header: &'static str,
    name: &'static str,
}

const HOST: Parts =
    Parts { package: "exitless-module", sources: "linux/c", header: "ex.h", name: "exitless" };
const GUEST: Parts =
    Parts { package: "exitless-guest", sources: "guest/c", header: "exg.h", name: "exitless-guest" };

/// The built module and what the build said, for the gates.
pub struct Built {
    /// `<out>/<kernel>/exitless.ko`, or the guest's.
    pub ko: PathBuf,
    /// Everything that kbuild, objtool and modpost printed.
    pub log: PathBuf,
}

/// Builds for the kernel whose headers are in `kdir` into `out/<kernel release>/`.
pub fn build(kdir: &Path, out: &Path) -> Result<PathBuf> {
    build_with_log(kdir, out).map(|built| built.ko)
}

/// As [`build`], and tells where the log is.
pub fn build_with_log(kdir: &Path, out: &Path) -> Result<Built> {
    build_parts(&HOST, kdir, out, &paths::made(out.join(kernel_release(kdir)?))?)
}

/// The guest's module, into `<out>/<kernel>/guest/`.
pub fn build_guest(kdir: &Path, out: &Path) -> Result<Built> {
    build_parts(&GUEST, kdir, out, &paths::made(out.join(kernel_release(kdir)?).join("guest"))?)
}

fn build_parts(parts: &Parts, kdir: &Path, out: &Path, dir: &Path) -> Result<Built> {
    let root = paths::root();
    let archive = rust_archive(&root, parts.package, &out.join("rust"))?;
    let sources = root.join(parts.sources);
    link::rust_object(&archive, &sources.join(parts.header), &dir.join("rustcore.bin"))?;
    copy_sources(&sources, dir)?;
    write_if_changed(&dir.join("ex_config.h"), &probe(&root, kdir)?)?;
    let (log, name) = (dir.join("build.log"), parts.name);
    // objtool and modpost warn only while they look at an object: look each time.
    for old in [&format!("{name}.ko"), &format!("{name}.o"), "rustcore.o", ".rustcore.o.cmd"] {
        let _ = fs::remove_file(dir.join(old));
    }
    kbuild(kdir, dir, &log)?;
    Ok(Built { ko: dir.join(format!("{name}.ko")), log })
}

/// The release of the kernel that `kdir` builds for: what `uname -r` says there.
pub fn kernel_release(kdir: &Path) -> Result<String> {
    // Debian's headers override what the kernel's own build wrote.
    let debian = fs::read_to_string(kdir.join(".kernelvariables")).unwrap_or_default();
    if let Some(release) = debian.lines().find_map(|line| line.strip_prefix("override KERNELRELEASE = ")) {
        return Ok(release.trim().to_string());
    }
    let file = kdir.join("include/config/kernel.release");
    let text = fs::read_to_string(&file).with_context(|| {
        format!(
            "{} has no kernel's headers: for the running kernel give /lib/modules/$(uname -r)/build, from Debian's package \
             linux-headers-$(uname -r)",
            kdir.display()
        )
    })?;
    Ok(text.trim().to_string())
}

/// The static library with our crates, `core` and `alloc`, built for the kernel.
fn rust_archive(root: &Path, package: &str, target_dir: &Path) -> Result<PathBuf> {
    let target_dir = paths::made(target_dir.to_path_buf())?;
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo
        .current_dir(root)
        .args(["rustc", "--quiet", "--release", "-p", package, "--crate-type", "staticlib"])
        .args(["--target", "linux/kernel-target.json", "-Zjson-target-spec"])
        .arg("-Zbuild-std=core,alloc,compiler_builtins")
        .arg("--target-dir")
        .arg(&target_dir)
        .env("RUSTC_BOOTSTRAP", "1")
        .env("RUSTFLAGS", RUSTFLAGS.join(" "))
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env_remove("CARGO_TARGET_DIR");
    sh::run(&mut cargo).context("the Rust part did not build")?;
    Ok(target_dir.join(format!("kernel-target/release/lib{}.a", package.replace('-', "_"))))
}

/// Copies linux/c, leaving unchanged files alone so that kbuild does not rebuild them.
fn copy_sources(from: &Path, to: &Path) -> Result<()> {
    for entry in fs::read_dir(from).with_context(|| format!("cannot read {}", from.display()))? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_sources(&entry.path(), &paths::made(target)?)?;
        } else {
            write_if_changed(&target, &fs::read(entry.path())?)?;
        }
    }
    Ok(())
}

fn write_if_changed(path: &Path, bytes: &[u8]) -> Result<()> {
    if fs::read(path).is_ok_and(|old| old == bytes) {
        return Ok(());
    }
    fs::write(path, bytes).with_context(|| format!("cannot write {}", path.display()))
}

/// What this kernel offers, as `ex_config.h`.
fn probe(root: &Path, kdir: &Path) -> Result<Vec<u8>> {
    let text = sh::output(Command::new("sh").arg(root.join("linux/c/probe.sh")).arg(kdir))?;
    Ok(text.into_bytes())
}

/// Builds a module of plain C, one of the lab's, for the kernel whose headers are in `kdir`.
pub fn build_plain(name: &str, from: &Path, kdir: &Path, out: &Path) -> Result<PathBuf> {
    let dir = paths::made(out.join(kernel_release(kdir)?).join(name))?;
    copy_sources(from, &dir)?;
    kbuild(kdir, &dir, &dir.join("build.log"))?;
    Ok(dir.join(format!("{name}.ko")))
}

/// The kernel's own build. Its output goes to the log; it is shown when the build fails.
fn kbuild(kdir: &Path, dir: &Path, log: &Path) -> Result<()> {
    let module = dir.canonicalize()?;
    let mut make = Command::new("make");
    make.arg("-C").arg(kdir).arg(format!("M={}", module.display())).arg("modules");
    if !sh::have("pahole") {
        // Type information for BPF is made by pahole and is only for debugging.
        make.arg("CONFIG_DEBUG_INFO_BTF_MODULES=");
    }
    make.env_remove("MAKEFLAGS").env_remove("CARGO_MAKEFLAGS");
    let out = make.output().context("cannot start make: install it, or run `cargo xtask deps`")?;
    let mut text = String::from_utf8_lossy(&out.stdout).into_owned();
    text.push_str(&String::from_utf8_lossy(&out.stderr));
    fs::write(log, &text).with_context(|| format!("cannot write {}", log.display()))?;
    if !out.status.success() {
        bail!("kbuild failed in {}:\n{text}", dir.display());
    }
    Ok(())
}
