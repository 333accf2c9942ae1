//! The initial RAM disks of the emulated host and of the guests on it.
//!
//! ```text
//! guest.cpio   busybox, rt-tests, virtio modules, lab/hosts/guest/init
//! base.cpio    busybox, KVM's modules                           (scenarios that bring their own guests)
//! full.cpio    base + QEMU, its libraries and firmware, the guest's kernel and guest.cpio
//! job.cpio     lab/hosts/{init,lib.sh}, the scenario, exitless.ko, runner and suite; written anew for each run
//! initrd       base or full, then job
//! ```

use std::{
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use super::{
    cpio::Tree,
    deps::{self, KernelTree},
};
use crate::{
    paths, say,
    sh::{self, cmd},
};

const BUSYBOX: &str = "/bin/busybox";
const QEMU: &str = "/usr/bin/qemu-system-x86_64";
/// The folder in the image where the lab's own files live.
const LAB: &str = "/lab";
/// Modules of the stock kernel for a guest's virtio devices.
const GUEST_MODULES: &[&str] = &["virtio_mmio", "virtio_pci", "virtio_blk", "virtio_net"];
/// What QEMU loads for its machine types `microvm` and `q35`.
const FIRMWARE: &[&str] = &[
    "seabios/bios-256k.bin",
    "seabios/bios-microvm.bin",
    "seabios/vgabios-stdvga.bin",
    "qemu/kvmvapic.bin",
    "qemu/linuxboot_dma.bin",
    "qemu/pvh.bin",
    "qemu/qboot.rom",
];

/// The changing part of an image.
#[derive(Debug, Default)]
pub struct Job {
    /// Shell variables for the scripts, `NAME=value`.
    pub env: Vec<(String, String)>,
    /// The script that the host runs.
    pub script: String,
    /// Files for `/lab`, by name: modules, test programs.
    pub files: Vec<(String, PathBuf)>,
    /// Programs of this machine, which come with their libraries.
    pub programs: Vec<&'static str>,
}

/// Writes the host's initial RAM disk for one run to `to`.
pub fn host(kernel: &KernelTree, with_qemu: bool, job: &Job, to: &Path) -> Result<()> {
    let big = if with_qemu { full(kernel)? } else { base(kernel)? };
    let part = to.with_extension("job");
    job_tree(job)?.write(&part)?;
    let mut out = fs::File::create(to).with_context(|| format!("cannot write {}", to.display()))?;
    for file in [&big, &part] {
        io::copy(&mut fs::File::open(file)?, &mut out)?;
    }
    out.flush()?;
    fs::remove_file(&part)?;
    Ok(())
}

fn hosts_dir() -> PathBuf {
    paths::root().join("lab/hosts")
}

fn job_tree(job: &Job) -> Result<Tree> {
    let mut tree = Tree::default();
    tree.file("/init", &hosts_dir().join("init"))?;
    tree.file(&format!("{LAB}/lib.sh"), &hosts_dir().join("lib.sh"))?;
    let env: String = job.env.iter().map(|(name, value)| format!("{name}='{value}'\n")).collect();
    tree.text(&format!("{LAB}/env"), env, 0o644);
    tree.text(&format!("{LAB}/run.sh"), job.script.as_str(), 0o755);
    for (name, source) in &job.files {
        tree.file(&format!("{LAB}/{name}"), source)?;
    }
    for program in &job.programs {
        tree.program(program, Path::new(program))?;
    }
    Ok(tree)
}

/// Busybox under all its names, and the folders and devices that an init expects.
fn busybox(tree: &mut Tree) -> Result<()> {
    tree.file("/bin/busybox", Path::new(BUSYBOX))?;
    for applet in sh::output(&mut cmd(BUSYBOX, ["--list"]))?.lines().filter(|name| *name != "busybox") {
        tree.link(&format!("/bin/{applet}"), "busybox");
    }
    for dir in ["/proc", "/sys", "/dev", "/tmp", "/run", "/var", "/root", "/etc", "/sbin"] {
        tree.dir(dir);
    }
    tree.device("/dev/console", 5, 1);
    tree.device("/dev/null", 1, 3);
    Ok(())
}

fn kvm_modules(tree: &mut Tree, kernel: &KernelTree) -> Result<()> {
    for name in ["irqbypass", "kvm", "kvm-amd", "kvm-intel"] {
        if let Ok(file) = kernel.module(name) {
            tree.file(&format!("/modules/{name}.ko"), &file)?;
        }
    }
    Ok(())
}

fn base(kernel: &KernelTree) -> Result<PathBuf> {
    let mut tree = Tree::default();
    busybox(&mut tree)?;
    kvm_modules(&mut tree, kernel)?;
    cached("base", &tree)
}

fn full(kernel: &KernelTree) -> Result<PathBuf> {
    // Guests run the stock kernel whatever the host runs.
    let stock = deps::kernel(deps::Flavour::Stock)?;
    let mut tree = Tree::default();
    busybox(&mut tree)?;
    kvm_modules(&mut tree, kernel)?;
    tree.program(QEMU, Path::new(QEMU))?;
    for file in FIRMWARE {
        let file = format!("/usr/share/{file}");
        tree.file(&file, Path::new(&file))?;
    }
    tree.file("/guest/vmlinuz", stock.image()?)?;
    tree.file("/guest/initrd", &guest(&stock)?)?;
    cached("full", &tree)
}

fn guest(kernel: &KernelTree) -> Result<PathBuf> {
    let rt_tests = deps::rt_tests()?;
    let mut tree = Tree::default();
    busybox(&mut tree)?;
    tree.file("/init", &hosts_dir().join("guest/init"))?;
    for program in ["cyclictest", "hackbench"] {
        tree.program(&format!("/bin/{program}"), &rt_tests.join(program))?;
    }
    let mut order = String::new();
    for (name, file) in kernel.modules(GUEST_MODULES)? {
        tree.file(&format!("/modules/{name}.ko"), &file)?;
        order.push_str(&format!("/modules/{name}.ko\n"));
    }
    tree.text("/modules/order", order, 0o644);
    cached("guest", &tree)
}

/// The archive of `tree`, written unless one with the same content is in the cache.
fn cached(name: &str, tree: &Tree) -> Result<PathBuf> {
    let dir = paths::made(paths::cache()?.join("images"))?;
    let path = dir.join(format!("{name}-{}.cpio", tree.key()?));
    if path.exists() {
        return Ok(path);
    }
    let part = dir.join(format!("{name}.part-{}", std::process::id()));
    let bytes = say::step(&format!("write image {name}"), || tree.write(&part))?;
    say::note(format!("{} in {}", say::size(bytes), path.display()));
    for old in fs::read_dir(&dir)?.flatten().map(|entry| entry.path()) {
        // One generation is kept: another run may be reading the one before.
        let stale = fs::metadata(&old)?.modified()?.elapsed().is_ok_and(|age| age.as_secs() > 86_400);
        if stale {
            fs::remove_file(&old)?;
        }
    }
    fs::rename(&part, &path)?;
    Ok(path)
}
