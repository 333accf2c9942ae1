//! The QEMU that emulates hosts with SVM: built from source (`source`), as the packaged one loses and repeats interrupts on
//! machines with several CPUs (`lab/qemu/edits.toml` says how). The packaged one serves inside of hosts, as the VMM.

use std::{env, fs, path::PathBuf, process::Command};

use anyhow::{Context, Result};

use super::{
    apt,
    source::{Source, jobs},
};
use crate::{
    paths,
    sh::{self, cmd},
};

const SOURCE: Source = Source {
    name: "QEMU 10.0.2",
    folder: "qemu",
    path: "pool/main/q/qemu/qemu_10.0.2+ds.orig.tar.xz",
    sha256: "0901da33844a331bf8b3602b9c1fbd178e60b737c8e3ade678255bd090c9b9f1",
    edits: "lab/qemu/edits.toml",
};

/// For the build, besides what the lab needs anyway; the packaged QEMU brings the libraries that the program needs.
const PACKAGES: &[&str] =
    &["ninja-build", "pkg-config", "python3-venv", "libglib2.0-dev", "libfdt-dev", "zlib1g-dev"];
const CONFIGURE: &[&str] = &[
    // Where Debian's meson is a module of.
    "--python=/usr/bin/python3",
    "--target-list=x86_64-softmmu",
    "--without-default-features",
    "--enable-tcg",
    "--disable-install-blobs",
    "--disable-werror",
];
/// Where Debian's packages put the firmware.
const FIRMWARE: &[&str] = &["/usr/share/seabios", "/usr/share/qemu"];

/// The program, built on first use.
fn built() -> Result<PathBuf> {
    let compiler = sh::output(&mut cmd("gcc", ["--version"]))?;
    let recipe = format!("{}\n{compiler}", CONFIGURE.join(" "));
    let dir = SOURCE.built(&recipe, |tree, to| {
        apt::install(PACKAGES, None)?;
        apt::install_newer("meson", "meson", (1, 5))?;
        let build = paths::made(tree.join("build"))?;
        sh::quiet(cmd("../configure", CONFIGURE).current_dir(&build))?;
        sh::quiet(
            cmd("ninja", [format!("-j{}", jobs()), "qemu-system-x86_64".to_string()]).current_dir(&build),
        )?;
        fs::copy(build.join("qemu-system-x86_64"), to.join("qemu-system-x86_64"))?;
        Ok(())
    })?;
    Ok(dir.join("qemu-system-x86_64"))
}

/// Another emulator, in place of the lab's own.
const OTHER: &str = "EXITLESS_LAB_QEMU";

/// The program, to be completed by the machine's description; it ends with this process, however this process ends. `packaged`: the one
/// that Debian has, where what the edits mend cannot happen.
pub fn emulator(packaged: bool) -> Result<Command> {
    let mut command = cmd("setpriv", ["--pdeathsig", "KILL", "--"]);
    if let Some(other) = env::var_os(OTHER) {
        command.arg(other);
    } else if packaged {
        command.arg("qemu-system-x86_64");
    } else {
        command.arg(built().with_context(|| {
            format!(
                "the lab's own QEMU is missing; {OTHER}=qemu-system-x86_64 takes the packaged one, \
                 with which hosts with several CPUs break down or hang now and then"
            )
        })?);
        for folder in FIRMWARE {
            command.args(["-L", folder]);
        }
    }
    Ok(command)
}
