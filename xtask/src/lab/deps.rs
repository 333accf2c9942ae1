//! What the lab needs from Debian: programs on this machine, and kernels unpacked into the cache.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use super::apt;
use crate::{
    paths, say,
    sh::{self, cmd},
};

/// Programs of this machine that the lab and the module's build use.
const HOST_PACKAGES: &[&str] = &[
    "busybox-static",
    "make",
    "gcc",
    "gcc-12",
    "libc6-dev",
    "libelf1",
    "kmod",
    "xz-utils",
    "seabios",
    "libnuma1",
];

/// What people look at guests with: a scenario's word for it, its package, the program.
pub const TRACERS: &[(&str, &str, &str)] = &[
    ("perf", "linux-perf", "/usr/bin/perf"),
    ("trace-cmd", "trace-cmd", "/usr/bin/trace-cmd"),
    ("bpftrace", "bpftrace", "/usr/bin/bpftrace"),
];

/// A kernel of the lab.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Flavour {
    /// Debian's 6.1 cloud kernel, the one the module is for.
    Stock,
    /// Debian's 6.1 source with KASAN, lockdep and other checkers (`cargo xtask debug-kernel`).
    Debug,
    /// Debian's 6.12 cloud kernel from backports: the module builds for it, and its KVM is what the gates compare with.
    Backports,
}

impl fmt::Display for Flavour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Flavour::Stock => "stock",
            Flavour::Debug => "debug",
            Flavour::Backports => "backports",
        })
    }
}

/// An unpacked kernel.
#[derive(Debug, Clone)]
pub struct KernelTree {
    /// Its release, as `uname -r` prints it.
    pub release: String,
    /// The package version.
    pub version: String,
    /// The bootable image; absent for a set of headers.
    pub vmlinuz: Option<PathBuf>,
    /// `lib/modules/<release>`; absent for a set of headers.
    pub modules_dir: Option<PathBuf>,
    /// The folder for `make -C <headers_dir> M=<module>`.
    pub headers_dir: PathBuf,
}

impl KernelTree {
    /// A kernel that is not the lab's: its headers, and a folder with modules of it.
    pub fn other(headers_dir: PathBuf, modules_dir: Option<PathBuf>) -> Result<KernelTree> {
        let release = crate::kmod::kernel_release(&headers_dir)?;
        Ok(KernelTree { version: release.clone(), release, vmlinuz: None, modules_dir, headers_dir })
    }

    /// The bootable image.
    pub fn image(&self) -> Result<&Path> {
        self.vmlinuz.as_deref().with_context(|| format!("kernel {} has headers only", self.release))
    }

    /// The file of a module by its name (`kvm`, `kvm-amd`).
    pub fn module(&self, name: &str) -> Result<PathBuf> {
        let dir = self
            .modules_dir
            .as_deref()
            .with_context(|| format!("kernel {} has headers only", self.release))?;
        find(dir, &format!("{name}.ko"))
            .with_context(|| format!("kernel {} has no module {name}", self.release))
    }

    /// The named modules and all that they need, in an order in which they can be loaded. A name that this kernel has
    /// built in (or lacks) is left out.
    pub fn modules(&self, names: &[&str]) -> Result<Vec<(String, PathBuf)>> {
        let mut ordered = Vec::new();
        for name in names {
            self.add_module(name, &mut ordered)?;
        }
        Ok(ordered)
    }

    fn add_module(&self, name: &str, ordered: &mut Vec<(String, PathBuf)>) -> Result<()> {
        if ordered.iter().any(|(have, _)| have == name) {
            return Ok(());
        }
        let spellings = [name.to_string(), name.replace('_', "-")];
        let Some(file) = spellings.iter().find_map(|name| self.module(name).ok()) else { return Ok(()) };
        let needs = sh::output(cmd("modinfo", ["-F", "depends"]).arg(&file))?;
        for need in needs.trim().split(',').filter(|need| !need.is_empty()) {
            self.add_module(need, ordered)?;
        }
        ordered.push((name.to_string(), file));
        Ok(())
    }
}

fn find(dir: &Path, name: &str) -> Option<PathBuf> {
    for entry in fs::read_dir(dir).ok()?.flatten() {
        let path = entry.path();
        let kind = entry.file_type().ok()?;
        if kind.is_dir() {
            if let Some(found) = find(&path, name) {
                return Some(found);
            }
        } else if kind.is_file() && entry.file_name().to_str() == Some(name) {
            return Some(path);
        }
    }
    None
}

/// Programs the module's build and the lab need. Idempotent; needs root only when something is missing.
pub fn host_packages() -> Result<()> {
    if !sh::have("apt-get") || !sh::have("dpkg") {
        bail!("the lab takes its kernels and programs from Debian packages: run it on Debian 12");
    }
    apt::install(HOST_PACKAGES, None)?;
    // An earlier one has no SVM that works.
    apt::install_newer("qemu-system-x86", "qemu-system-x86_64", (10, 0))
}

/// A package of [`TRACERS`].
pub fn tracer(package: &str) -> Result<()> {
    apt::install(&[package], None)
}

/// The sources of `core`, from which the module's Rust is built for the kernel's target.
pub fn rust_src() -> Result<()> {
    let sysroot = sh::output(cmd("rustc", ["--print", "sysroot"]).current_dir(paths::root()))?;
    if Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library/core/src/lib.rs").exists() {
        return Ok(());
    }
    say::step("rustup component add rust-src", || {
        sh::quiet(cmd("rustup", ["component", "add", "rust-src"]).current_dir(paths::root()))
            .context("the module's build needs the component rust-src of this toolchain")
    })
}

/// Every tool, package and kernel that `demo` and `test` use.
pub fn all() -> Result<()> {
    host_packages()?;
    rust_src()?;
    kernel(Flavour::Stock)?;
    kernel(Flavour::Backports)?;
    rt_tests()?;
    // bpftrace's libraries are for who runs that scenario.
    for (_, package, _) in TRACERS.iter().filter(|(need, ..)| *need != "bpftrace") {
        tracer(package)?;
    }
    Ok(())
}

/// An unpacked kernel, fetched on first use.
pub fn kernel(flavour: Flavour) -> Result<KernelTree> {
    match flavour {
        Flavour::Stock => debian_kernel("6.1"),
        Flavour::Backports => debian_kernel("6.12"),
        Flavour::Debug => crate::debug_kernel::tree(),
    }
}

/// Debian's rt-tests, unpacked: the folder with `cyclictest` and `hackbench`.
pub fn rt_tests() -> Result<PathBuf> {
    let dir = cached("rt-tests", "rt-tests", |_| Ok(vec!["rt-tests".to_string()]), |_, _| Ok(()))?;
    Ok(dir.join("usr/bin"))
}

/// A folder of the cache that holds unpacked packages, complete or absent. The choice (which version) is recorded on
/// first use in `<name>.current`, so later runs ask apt nothing; remove that file to move to newer packages.
fn cached(
    name: &str,
    prefix: &str,
    packages: impl FnOnce(&str) -> Result<Vec<String>>,
    finish: impl FnOnce(&Path, &Path) -> Result<()>,
) -> Result<PathBuf> {
    let base = paths::made(paths::cache()?.join("debian"))?;
    let record = base.join(format!("{name}.current"));
    if let Ok(dir) = fs::read_to_string(&record) {
        let dir = base.join(dir.trim());
        if dir.is_dir() {
            return Ok(dir);
        }
    }
    say::step(&format!("fetch {name} from Debian"), || {
        let main = newest(prefix)?;
        let version = apt::candidate(&main).with_context(|| format!("apt offers no {main}"))?;
        let key: String =
            format!("{main}_{version}").chars().map(|c| if c == ':' { '-' } else { c }).collect();
        let dir = base.join(&key);
        if !dir.is_dir() {
            let packages = packages(&main)?;
            let part = base.join(format!("{key}.part-{}", std::process::id()));
            paths::made(part.clone())?;
            apt::unpack(&packages, &part)?;
            finish(&part, &dir)?;
            if fs::rename(&part, &dir).is_err() && dir.is_dir() {
                fs::remove_dir_all(&part)?; // Another run was faster.
            }
        }
        fs::write(&record, &key)?;
        say::note(format!("in {}", dir.display()));
        Ok(dir)
    })
}

/// The newest package that apt offers among those named `prefix`, or `prefix` with its `*` replaced by a version.
fn newest(prefix: &str) -> Result<String> {
    match newest_known(prefix)? {
        Some(name) => Ok(name),
        None => {
            apt::update()?;
            newest_known(prefix)?.with_context(|| format!("apt offers no package {prefix}: look at /etc/apt"))
        }
    }
}

fn newest_known(pattern: &str) -> Result<Option<String>> {
    let Some((before, after)) = pattern.split_once('*') else {
        return Ok(apt::candidate(pattern).map(|_| pattern.to_string()));
    };
    let mut found: Vec<(Vec<u32>, String)> = Vec::new();
    for name in apt::names(before)? {
        let middle = name.strip_prefix(before).and_then(|rest| rest.strip_suffix(after));
        let Some(middle) = middle.filter(|m| m.starts_with(|c: char| c.is_ascii_digit())) else { continue };
        let numbers = middle.split(['.', '-', '+']).filter_map(|part| part.parse().ok()).collect();
        found.push((numbers, name));
    }
    found.sort();
    let complete = |name: &str| {
        let image = name.replacen("linux-headers-", "linux-image-", 1);
        apt::candidate(name).is_some() && apt::candidate(&image).is_some()
    };
    Ok(found.into_iter().rev().map(|(_, name)| name).find(|name| complete(name)))
}

fn debian_kernel(series: &str) -> Result<KernelTree> {
    let pattern = format!("linux-headers-{series}.*-cloud-amd64");
    let packages = |headers: &str| -> Result<Vec<String>> {
        let mut list = vec![headers.to_string()];
        let wanted = |name: &String| name.ends_with("-common") || name.starts_with("linux-kbuild-");
        list.extend(apt::depends(headers)?.into_iter().filter(wanted));
        if list.len() != 3 {
            bail!("{headers} should depend on its common headers and on linux-kbuild; it names {list:?}");
        }
        list.push(headers.replacen("linux-headers-", "linux-image-", 1));
        Ok(list)
    };
    let dir = cached(&format!("linux-{series}"), &pattern, packages, relocate)?;
    tree_of(&dir)
}

fn tree_of(dir: &Path) -> Result<KernelTree> {
    let name = dir.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let (package, version) = name.split_once('_').context("the cache has a folder of an unknown form")?;
    let release = package.trim_start_matches("linux-headers-").to_string();
    let vmlinuz = Some(dir.join(format!("boot/vmlinuz-{release}"))).filter(|file| file.exists());
    let modules = ["lib/modules", "usr/lib/modules"].map(|below| dir.join(below).join(&release));
    Ok(KernelTree {
        vmlinuz: vmlinuz.clone(),
        modules_dir: modules.into_iter().find(|dir| dir.is_dir()).filter(|_| vmlinuz.is_some()),
        headers_dir: dir.join(format!("usr/src/linux-headers-{release}")),
        version: version.to_string(),
        release,
    })
}

/// Makes unpacked headers work where they are: the packages' makefiles name each other by absolute paths. Modules that the
/// package holds compressed (6.12) become plain files.
fn relocate(part: &Path, final_dir: &Path) -> Result<()> {
    let find = ["-name", "*.ko.xz", "-exec", "xz", "-d", "{}", "+"];
    sh::quiet(Command::new("find").arg(part).args(find))?;
    let sources = part.join("usr/src");
    let prefix = format!("{}/usr/", final_dir.display());
    for entry in fs::read_dir(&sources)? {
        let folder = entry?.path();
        for name in ["Makefile", ".kernelvariables"] {
            let file = folder.join(name);
            let Ok(text) = fs::read_to_string(&file) else { continue };
            if !file.is_symlink()
                && (text.contains("/usr/src/linux-headers") || text.contains("/usr/lib/linux-kbuild"))
            {
                let text = text.replace("/usr/src/linux-headers", &format!("{prefix}src/linux-headers"));
                fs::write(
                    &file,
                    text.replace("/usr/lib/linux-kbuild", &format!("{prefix}lib/linux-kbuild")),
                )?;
            }
        }
    }
    Ok(())
}
