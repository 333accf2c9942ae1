//! Bochs from source (`source`), and the firmware that Debian's source comes without.

use std::{env, fs, path::PathBuf};

use anyhow::Result;

use crate::{
    lab::{
        apt,
        source::{Source, jobs},
    },
    paths,
    sh::{self, cmd},
};

const SOURCE: Source = Source {
    name: "Bochs 3.0",
    folder: "bochs",
    path: "pool/main/b/bochs/bochs_3.0+dfsg.orig.tar.xz",
    sha256: "78f6c73d4a6472d5130a87ab9dc306d02c7c71ed8e25b3a8ef642e2a7acd282b",
    edits: "lab/bochs/edits.toml",
};

/// Programs that the build and the boot files need, besides those of the other machine.
const PACKAGES: &[&str] = &["g++", "make", "binutils", "xz-utils", "lz4"];
/// Firmware, which the source comes without; unpacked, not installed.
const FIRMWARE: &[&str] = &["bochsbios", "vgabios"];

const CXXFLAGS: &str = "-O3 -march=native -fomit-frame-pointer";
const CONFIGURE: &[&str] = &[
    "--enable-smp",
    "--enable-vmx=2",
    "--enable-x86-64",
    "--enable-cpu-level=6",
    "--enable-svm",
    "--enable-pci",
    "--enable-avx",
    "--enable-evex",
    "--enable-cet",
    "--enable-uintr",
    "--enable-protection-keys",
    "--enable-memtype",
    "--enable-all-optimizations",
    "--with-nogui",
    // The figure is printed from a signal handler.
    "--disable-show-ips",
    "--disable-docbook",
    "--enable-instrumentation=instrument/ledger",
];

/// What counts for the ledger, a folder of Bochs's `instrument`.
const LEDGER: [(&str, &str); 2] = [
    ("instrument.h", include_str!("../../../../lab/bochs/ledger/instrument.h")),
    ("instrument.cc", include_str!("../../../../lab/bochs/ledger/instrument.cc")),
];

/// A folder with another emulator and its firmware, as the cache has them, in place of the lab's own.
const OTHER: &str = "EXITLESS_LAB_BOCHS";

/// A built Bochs.
#[derive(Debug, Clone)]
pub struct Bochs {
    /// The program.
    pub program: PathBuf,
    /// The system BIOS.
    pub bios: PathBuf,
    /// The video BIOS.
    pub vga_bios: PathBuf,
}

/// The program and its firmware, built on first use.
pub fn built() -> Result<Bochs> {
    let dir = env::var_os(OTHER).map_or_else(folder, |other| Ok(other.into()))?;
    let firmware = dir.join("firmware/usr/share");
    Ok(Bochs {
        program: dir.join("bochs"),
        bios: firmware.join("bochs/BIOS-bochs-latest"),
        vga_bios: firmware.join("vgabios/vgabios.stdvga.bin"),
    })
}

fn folder() -> Result<PathBuf> {
    apt::install(PACKAGES, None)?;
    // What -march=native means differs from machine to machine.
    let native = sh::output(&mut cmd("g++", ["-march=native", "-Q", "--help=target"]))?;
    let compiler = sh::output(&mut cmd("g++", ["--version"]))?;
    let ledger = LEDGER.map(|(_, text)| text).concat();
    let recipe = format!("{CXXFLAGS}\n{}\n{compiler}\n{native}\n{ledger}", CONFIGURE.join(" "));
    SOURCE.built(&recipe, |tree, to| {
        let counters = paths::made(tree.join("instrument/ledger"))?;
        fs::copy(tree.join("instrument/stubs/Makefile.in"), counters.join("Makefile.in"))?;
        for (name, text) in LEDGER {
            fs::write(counters.join(name), text)?;
        }
        sh::quiet(cmd("sh", ["configure"]).args(CONFIGURE).env("CXXFLAGS", CXXFLAGS).current_dir(tree))?;
        sh::quiet(
            cmd("make", ["-s".to_string(), format!("-j{}", jobs()), "bochs".to_string()]).current_dir(tree),
        )?;
        fs::copy(tree.join("bochs"), to.join("bochs"))?;
        let firmware: Vec<_> = FIRMWARE.iter().map(ToString::to_string).collect();
        apt::unpack(&firmware, &paths::made(to.join("firmware"))?)
    })
}
