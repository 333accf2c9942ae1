//! Unit tests of a published crate, as a program for the emulated host: its source comes from the registry that cargo uses.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use serde_json::Value;

use super::programs;
use crate::{paths, say, sh};

/// The crate that Rust VMMs speak to /dev/kvm with. Its own lock file fixes what it is built with.
const NAME: &str = "kvm-ioctls";
const VERSION: &str = "0.25.1";

/// The test program of the kvm-ioctls crate.
pub fn kvm_ioctls() -> Result<PathBuf> {
    let manifest = source()?;
    let mut build = programs::build("test");
    build.args(["--no-run", "--locked", "--message-format=json", "--manifest-path"]).arg(&manifest);
    let messages = sh::output(&mut build).with_context(|| format!("{NAME} does not build"))?;
    messages.lines().find_map(test_program).with_context(|| format!("cargo names no test program of {NAME}"))
}

/// The program that this message of cargo's names, if it is one with unit tests.
fn test_program(message: &str) -> Option<PathBuf> {
    let message: Value = serde_json::from_str(message).ok()?;
    let tests = message["profile"]["test"] == true;
    message["executable"].as_str().filter(|_| tests).map(PathBuf::from)
}

/// The manifest in the crate's source. Cargo fetches the source as a dependency of a package that has nothing else.
fn source() -> Result<PathBuf> {
    let dir = paths::made(paths::cache()?.join("crates").join(format!("{NAME}-{VERSION}")))?;
    let manifest = dir.join("Cargo.toml");
    if !manifest.exists() {
        let text = format!(
            "[package]\nname = \"source-of-{NAME}\"\nedition = \"2024\"\n\n[lib]\npath = \"lib.rs\"\n\n\
             [dependencies]\n{NAME} = \"={VERSION}\"\n\n[workspace]\n"
        );
        fs::write(dir.join("lib.rs"), "")?;
        fs::write(&manifest, text)?;
    }
    named(&manifest, true).or_else(|_| {
        say::step(&format!("fetch {NAME} {VERSION}"), || named(&manifest, false))
            .with_context(|| format!("cargo cannot fetch {NAME} {VERSION}"))
    })
}

fn named(from: &Path, offline: bool) -> Result<PathBuf> {
    let mut ask = sh::cmd("cargo", ["metadata", "--format-version=1", "--manifest-path"]);
    ask.current_dir(paths::root()).arg(from).args(offline.then_some("--offline"));
    let answer: Value = serde_json::from_str(&sh::output(&mut ask)?)?;
    let packages = answer["packages"].as_array().context("cargo metadata names no packages")?;
    let found = packages.iter().find(|p| p["name"] == NAME && p["version"] == VERSION);
    found
        .and_then(|p| p["manifest_path"].as_str())
        .map(PathBuf::from)
        .with_context(|| format!("cargo metadata does not name {NAME}"))
}

#[cfg(test)]
mod tests {
    use super::test_program;

    /// Only the program with the tests counts, not build scripts and libraries.
    #[test]
    fn the_test_program_is_found() {
        let message = |test: bool, program: &str| {
            test_program(&format!(r#"{{"profile":{{"test":{test}}},"executable":{program}}}"#))
        };
        assert_eq!(message(true, r#""/a""#).unwrap().to_str(), Some("/a"));
        assert_eq!(message(false, r#""/a""#), None);
        assert_eq!(message(true, "null"), None);
    }
}
