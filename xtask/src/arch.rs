//! The directions of the house: which room may depend on which, read from the manifests.

use std::{fs, path::Path};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::{
    circles,
    dead::sources,
    paths,
    sh::{self, cmd},
};

/// A folder at the repository's root, and the rooms its crates may use. Crates of one room see each other where the
/// room is in its own list.
const ROOMS: &[(&str, &[&str])] = &[
    ("defs", &["defs"]),
    // The APIC's pending interrupts are a posted-interrupt descriptor, and what messages are compared with is its address.
    ("logic", &["defs", "logic/posted", "logic/ipi"]),
    ("vcpu", &["defs", "logic"]),
    ("hw", &["defs", "vcpu", "hw/ops", "hw/slat"]),
    ("linux", &["defs", "logic", "vcpu", "hw", "linux"]),
    ("guest", &["defs", "logic"]),
    ("tools", &["defs", "logic", "tools"]),
    ("lab", &["defs", "logic", "lab"]),
    ("bench", &["defs", "logic", "bench"]),
    ("xtask", &["defs", "logic"]),
];

/// Rooms whose crates end in the kernel, and the crates from outside that may come along.
const IN_KERNEL: &[&str] = &["defs", "logic", "vcpu", "hw", "linux", "guest"];
const OUTSIDE_IN_KERNEL: &[&str] = &["bytemuck", "bitfield-struct", "iced-x86"];

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    manifest_path: String,
    dependencies: Vec<Dependency>,
}

#[derive(Deserialize)]
struct Dependency {
    name: String,
    /// `None` for a normal dependency, else `dev` or `build`.
    kind: Option<String>,
    /// The folder of a crate of ours.
    path: Option<String>,
}

/// Reads every manifest of the workspace and fails with all arrows that run the wrong way.
pub fn check() -> Result<()> {
    let mut metadata = cmd("cargo", ["metadata", "--format-version", "1", "--no-deps"]);
    let text = sh::output(metadata.current_dir(paths::root())).context("cargo cannot read the workspace")?;
    let metadata: Metadata = serde_json::from_str(&text)?;
    let root = paths::root();
    let mut wrong = Vec::new();
    for package in &metadata.packages {
        let at = folder_of(&package.manifest_path, &root);
        for dependency in &package.dependencies {
            let to = dependency.path.as_ref().map(|path| inside(Path::new(path), &root));
            let test_only = dependency.kind.as_deref() == Some("dev");
            if let Some(why) = objection(&at, &dependency.name, to.as_deref(), test_only) {
                wrong.push(format!("{} ({at}) -> {}: {why}", package.name, dependency.name));
            }
        }
    }
    for room in IN_KERNEL {
        for file in sources(&root.join(room), "rs")? {
            if fs::read_to_string(&file)?.lines().any(|line| line.trim() == "extern crate alloc;") {
                wrong.push(format!(
                    "{}: allocates; kernel memory comes from linux/host",
                    inside(&file, &root)
                ));
            }
        }
    }
    wrong.extend(circles::find()?);
    if !wrong.is_empty() {
        bail!("{} arrows run against HOUSE.md:\n  {}", wrong.len(), wrong.join("\n  "));
    }
    println!("   {} crates, every arrow runs the right way", metadata.packages.len());
    Ok(())
}

fn folder_of(manifest: &str, root: &Path) -> String {
    inside(Path::new(manifest).parent().unwrap_or(root), root)
}

/// A path below `root`, as text.
pub fn inside(path: &Path, root: &Path) -> String {
    path.strip_prefix(root).unwrap_or(path).display().to_string()
}

fn room(folder: &str) -> &str {
    folder.split('/').next().unwrap_or(folder)
}

/// Why a crate in folder `at` may not depend on the crate `name` in folder `to` (`None`: from outside).
fn objection(at: &str, name: &str, to: Option<&str>, test_only: bool) -> Option<String> {
    let Some((_, allowed)) = ROOMS.iter().find(|(room_name, _)| *room_name == room(at)) else {
        return Some(format!("the folder {at} is no room of the house"));
    };
    match to {
        None if test_only || !IN_KERNEL.contains(&room(at)) || OUTSIDE_IN_KERNEL.contains(&name) => None,
        None => Some("not among the outside crates that may enter the kernel".into()),
        Some(to) if allowed.iter().any(|room_name| *room_name == room(to) || *room_name == to) => None,
        Some(to) => Some(format!("{} may use {} only, not {to}", room(at), allowed.join(", "))),
    }
}

#[cfg(test)]
mod tests {
    use super::objection;

    fn allowed(at: &str, to: &str) -> bool {
        objection(at, "x", Some(to), false).is_none()
    }

    /// The arrows of the house's table.
    #[test]
    fn arrows_of_the_house() {
        assert!(allowed("vcpu", "logic/lapic"));
        assert!(allowed("hw/svm", "vcpu"));
        assert!(allowed("linux/module", "hw/svm"));
        assert!(!allowed("logic/lapic", "vcpu"));
        assert!(!allowed("vcpu", "hw/svm"), "the hall knows the CPU only through its own trait");
        assert!(!allowed("hw/svm", "logic/lapic"));
        assert!(!allowed("hw/vmx", "hw/svm"), "the twins never see each other");
        assert!(!allowed("logic/lapic", "lab/runner"));
        assert!(!allowed("cellar/wine", "defs/x86"));
    }

    /// A test may use what it likes; the module may not.
    #[test]
    fn outside_crates() {
        assert!(objection("logic/lapic", "proptest", None, true).is_none());
        assert!(objection("logic/lapic", "rand", None, false).is_some());
        assert!(objection("logic/insn", "iced-x86", None, false).is_none());
        assert!(objection("xtask", "clap", None, false).is_none());
    }
}
