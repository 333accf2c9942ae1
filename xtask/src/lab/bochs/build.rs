//! Bochs from source: fetched from the machine's own Debian mirror, edited, built, kept in the cache.
//!
//! `lab/bochs/edits.toml` lists the edits. The cached program is named by a checksum over everything that it is made of:
//! the source's checksum, the edits, the options, and what `-march=native` means on this machine.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::{
    lab::apt,
    paths, say,
    sh::{self, cmd},
};

/// The pool's path of the source, below the mirror's address.
const SOURCE: &str = "pool/main/b/bochs/bochs_3.0+dfsg.orig.tar.xz";
const SOURCE_SHA256: &str = "78f6c73d4a6472d5130a87ab9dc306d02c7c71ed8e25b3a8ef642e2a7acd282b";

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
    "--enable-memtype",
    "--enable-all-optimizations",
    "--with-nogui",
    // The figure is printed from a signal handler.
    "--disable-show-ips",
    "--disable-docbook",
];

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

#[derive(Debug, Clone, Deserialize)]
struct Edits {
    edit: Vec<Edit>,
}

/// One change of one source file.
#[derive(Debug, Clone, Deserialize)]
struct Edit {
    file: String,
    why: String,
    find: String,
    replace: String,
}

impl Edit {
    /// The text after the edit; an error if `find` does not occur exactly once.
    fn applied(&self, text: &str) -> Result<String> {
        match text.matches(&self.find).count() {
            1 => Ok(text.replacen(&self.find, &self.replace, 1)),
            count => bail!("{}: an edit fits {count} times, not once ({})", self.file, self.why),
        }
    }
}

/// The program and its firmware, built on first use.
pub fn built() -> Result<Bochs> {
    apt::install(PACKAGES, None)?;
    let edits = fs::read_to_string(paths::root().join("lab/bochs/edits.toml"))?;
    let base = paths::made(paths::cache()?.join("bochs"))?;
    let dir = base.join(key(&edits)?);
    if !dir.is_dir() {
        let edits: Edits = toml::from_str(&edits).context("lab/bochs/edits.toml")?;
        let source = source(&base)?;
        say::step("build Bochs 3.0", || build(&source, &edits, &dir))?;
    }
    let firmware = dir.join("firmware/usr/share");
    Ok(Bochs {
        program: dir.join("bochs"),
        bios: firmware.join("bochs/BIOS-bochs-latest"),
        vga_bios: firmware.join("vgabios/vgabios.stdvga.bin"),
    })
}

fn key(edits: &str) -> Result<String> {
    let native = sh::output(&mut cmd("g++", ["-march=native", "-Q", "--help=target"]))?;
    let compiler = sh::output(&mut cmd("g++", ["--version"]))?;
    let text = format!("{SOURCE_SHA256}\n{CXXFLAGS}\n{}\n{edits}\n{compiler}\n{native}", CONFIGURE.join(" "));
    let scratch = env::temp_dir().join(format!("exitless-bochs-{}", std::process::id()));
    fs::write(&scratch, text)?;
    let sums = sh::sha256(&[&scratch]);
    fs::remove_file(&scratch)?;
    let sum = sums?.first().and_then(|sum| sum.get(..16)).map(str::to_string).context("no checksum")?;
    Ok(format!("3.0-{sum}"))
}

/// The source's tarball, from the cache or from the mirror that this machine takes Debian from.
fn source(base: &Path) -> Result<PathBuf> {
    let file = base.join("bochs_3.0+dfsg.orig.tar.xz");
    if file.exists() && sh::sha256(&[&file])?.first().is_some_and(|sum| sum == SOURCE_SHA256) {
        return Ok(file);
    }
    say::step("fetch the source of Bochs 3.0 from Debian", || {
        let mirror = apt::mirror()?;
        // Some proxies want the plus sign in one form, some in the other.
        let addresses = [format!("{mirror}{SOURCE}"), format!("{mirror}{}", SOURCE.replace('+', "%2B"))];
        let mut last = Ok(());
        for address in &addresses {
            let mut fetch = cmd("/usr/lib/apt/apt-helper", ["download-file", address]);
            last = sh::quiet(fetch.arg(&file).arg(format!("SHA256:{SOURCE_SHA256}")));
            if last.is_ok() {
                say::note(address);
                break;
            }
        }
        last.with_context(|| {
            format!("put bochs_3.0+dfsg.orig.tar.xz into {}, then run this command again", base.display())
        })
    })?;
    Ok(file)
}

fn build(source: &Path, edits: &Edits, to: &Path) -> Result<()> {
    let part = to.with_extension(format!("part-{}", std::process::id()));
    let tree = paths::made(part.join("source"))?;
    sh::quiet(cmd("tar", ["--strip-components=1", "-xf"]).arg(source).arg("-C").arg(&tree))?;
    for edit in &edits.edit {
        let file = tree.join(&edit.file);
        let text = fs::read_to_string(&file).with_context(|| format!("{} is missing", edit.file))?;
        fs::write(&file, edit.applied(&text)?)?;
    }
    say::note(format!("{} edits made", edits.edit.len()));
    sh::quiet(cmd("sh", ["configure"]).args(CONFIGURE).env("CXXFLAGS", CXXFLAGS).current_dir(&tree))?;
    let jobs = std::thread::available_parallelism().map_or(1, usize::from);
    sh::quiet(cmd("make", ["-s".to_string(), format!("-j{jobs}"), "bochs".to_string()]).current_dir(&tree))?;
    fs::copy(tree.join("bochs"), part.join("bochs"))?;
    fs::remove_dir_all(&tree)?;
    let firmware: Vec<_> = FIRMWARE.iter().map(ToString::to_string).collect();
    apt::unpack(&firmware, &paths::made(part.join("firmware"))?)?;
    if fs::rename(&part, to).is_err() && to.is_dir() {
        fs::remove_dir_all(&part)?; // Another run was faster.
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{Edit, Edits};

    fn edit(find: &str) -> Edit {
        Edit { file: "a.cc".into(), why: "w".into(), find: find.into(), replace: "new".into() }
    }

    /// An edit that fits twice may change the wrong place; one that fits nowhere is silently lost.
    #[test]
    fn an_edit_fits_exactly_once() {
        assert_eq!(edit("old").applied("an old word").unwrap(), "an new word");
        assert!(edit("old").applied("old and old").is_err());
        assert!(edit("old").applied("none").is_err());
    }

    /// The list of edits is well formed, and none of them leaves the text as it was.
    #[test]
    fn the_list_can_be_read() {
        let edits: Edits = toml::from_str(include_str!("../../../../lab/bochs/edits.toml")).unwrap();
        assert!(edits.edit.iter().all(|edit| edit.find != edit.replace && !edit.why.is_empty()));
        assert!(edits.edit.len() > 10);
    }
}
