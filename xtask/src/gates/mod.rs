//! Checks on the built module that no compiler makes: hardened branches, clean logs, no FPU use, small stack frames,
//! every place that can panic known by name, and every mitigation of the kernel's own KVM done or its absence explained.
//!
//! The Rust part is looked at before kbuild links it with C (`rustcore.o` beside the module): the C part has the
//! kernel's own compiler flags and checks.

mod code;
mod mitigations;
mod panics;

pub use panics::matches;

use std::{
    fmt, fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use crate::{
    kmod::{self, Built},
    lab::deps::KernelTree,
    paths, say,
};

/// What the gates found. Empty lists are good news.
#[derive(Debug, Default)]
pub struct Report {
    /// Indirect branches past the thunks, and bare returns.
    pub branches: Vec<String>,
    /// Lines of the build log with a warning of the compiler, objtool or modpost.
    pub warnings: Vec<String>,
    /// Instructions that use x87, MMX, SSE or AVX registers.
    pub vectors: Vec<String>,
    /// Functions whose frame is bigger than [`code::FRAME_MAX`].
    pub frames: Vec<String>,
    /// Functions that can panic and are not in `linux/panic-sites.toml`.
    pub unknown_panics: Vec<String>,
    /// Entries of `linux/panic-sites.toml` that match no function any more.
    pub stale_panics: Vec<String>,
    /// Functions that can panic and are listed, with how many calls: for reading.
    pub known_panics: Vec<String>,
    /// Differences to the kernel's own KVM modules that `linux/mitigations.toml` does not explain.
    pub mitigations: Vec<String>,
    /// Entries of `linux/mitigations.toml` that are not true any more.
    pub stale_mitigations: Vec<String>,
    /// Features and symbols that were compared, and entries that explained a difference.
    pub compared: usize,
    /// See `compared`.
    pub explained: usize,
    /// The biggest frames, for reading.
    pub biggest_frames: Vec<String>,
    /// Functions and instructions that were looked at.
    pub seen: (usize, usize),
}

impl Report {
    /// Did every gate hold?
    pub fn passed(&self) -> bool {
        self.gates().iter().all(|(_, found)| found.is_empty())
    }

    fn gates(&self) -> [(&'static str, &[String]); 6] {
        [
            ("unprotected branches", &self.branches),
            ("warnings in the build log", &self.warnings),
            ("FPU and vector instructions", &self.vectors),
            ("stack frames that are too big", &self.frames),
            ("panic sites that are not in linux/panic-sites.toml", &self.unknown_panics),
            ("mitigations that differ from KVM's and are not in linux/mitigations.toml", &self.mitigations),
        ]
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (functions, instructions) = self.seen;
        writeln!(f, "{functions} functions, {instructions} instructions")?;
        for (name, found) in self.gates() {
            writeln!(f, "{} {name}: {}", if found.is_empty() { "ok  " } else { "FAIL" }, found.len())?;
            for line in found {
                writeln!(f, "       {line}")?;
            }
        }
        writeln!(f, "note known panic sites: {}", self.known_panics.len())?;
        for stale in &self.stale_panics {
            writeln!(f, "note linux/panic-sites.toml: {stale} matches nothing any more")?;
        }
        let (compared, explained) = (self.compared, self.explained);
        writeln!(
            f,
            "note features and symbols compared with the kernel's KVM: {compared}, differences explained: {explained}"
        )?;
        for stale in &self.stale_mitigations {
            writeln!(f, "note {stale}")?;
        }
        write!(f, "note biggest frames: {}", self.biggest_frames.join(", "))
    }
}

/// Builds the module for a kernel, and prints what the gates say.
pub fn build(kernel: &KernelTree) -> Result<Report> {
    let built = kmod::build_with_log(&kernel.headers_dir, &paths::target().join("kmod"))?;
    say::note(paths::shown(&built.ko));
    let report = run(&built, kernel)?;
    for line in report.to_string().lines() {
        say::note(line);
    }
    Ok(report)
}

/// The guest's module, likewise. It has nothing to do with KVM, and no place that can panic.
pub fn build_guest(kernel: &KernelTree) -> Result<Report> {
    let built = kmod::build_guest(&kernel.headers_dir, &paths::target().join("kmod"))?;
    say::note(paths::shown(&built.ko));
    let (code, log) = read(&built)?;
    let mut report = Report { warnings: warnings(&log), ..Report::default() };
    code.check(&mut report);
    panics::check(&code, &[], &mut report);
    for line in report.to_string().lines() {
        say::note(line);
    }
    Ok(report)
}

/// The Rust object of a module, and its build's log.
fn read(built: &Built) -> Result<(code::Code, String)> {
    let object = rust_object(&built.ko);
    let bytes = fs::read(&object)
        .with_context(|| format!("cannot read {}: build the module first", object.display()))?;
    let log =
        fs::read_to_string(&built.log).with_context(|| format!("cannot read {}", built.log.display()))?;
    let code = code::Code::read(&bytes).with_context(|| format!("cannot read {}", object.display()))?;
    Ok((code, log))
}

/// Looks at a module (its Rust object lies beside it), at what its build printed, and at the modules of its kernel.
fn run(built: &Built, kernel: &KernelTree) -> Result<Report> {
    let (code, log) = read(built)?;
    let known = panics::read_list(&text("linux/panic-sites.toml")?)?;
    let mut report = Report { warnings: warnings(&log), ..Report::default() };
    code.check(&mut report);
    panics::check(&code, &known, &mut report);
    mitigations::check(
        &built.ko,
        kernel,
        &mitigations::read_list(&text("linux/mitigations.toml")?)?,
        &mut report,
    )?;
    Ok(report)
}

/// A file of the repository.
fn text(name: &str) -> Result<String> {
    let file = paths::root().join(name);
    fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))
}

fn rust_object(ko: &Path) -> PathBuf {
    ko.with_file_name("rustcore.o")
}

/// Every line that warns. A module made for another kernel has no type information, which is not one.
fn warnings(log: &str) -> Vec<String> {
    let bad = |line: &&str| {
        let lower = line.to_lowercase();
        (lower.contains("warning") || lower.contains("objtool:") || lower.contains("error:"))
            && !lower.contains("skipping btf generation")
    };
    log.lines().filter(bad).map(str::to_string).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// objtool only warns and the build goes on: this line once was all that said the unwind tables were wrong.
    #[test]
    fn objtool_lines_are_found() {
        let log =
            "  LD [M]  a.o\na.o: warning: objtool: f() falls through to next function g()\n  CC [M] b.o";
        assert_eq!(warnings(log).len(), 1);
        assert!(warnings("  CC [M]  helpers/fpu.o\nmake: Leaving directory").is_empty());
    }

    #[test]
    fn one_finding_fails_the_report() {
        assert!(Report::default().passed());
        assert!(!Report { frames: vec!["f".into()], ..Report::default() }.passed());
        assert!(Report { known_panics: vec!["f".into()], ..Report::default() }.passed());
    }
}
