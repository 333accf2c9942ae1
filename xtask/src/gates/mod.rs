//! Checks on the built module that no compiler makes: hardened branches, clean logs, no FPU use, small stack frames,
//! and every place that can panic known by name.
//!
//! The Rust part is looked at before kbuild links it with C (`rustcore.o` beside the module): the C part has the
//! kernel's own compiler flags and checks.

mod code;
mod panics;

use std::{
    fmt, fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

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

    fn gates(&self) -> [(&'static str, &[String]); 5] {
        [
            ("unprotected branches", &self.branches),
            ("warnings in the build log", &self.warnings),
            ("FPU and vector instructions", &self.vectors),
            ("stack frames that are too big", &self.frames),
            ("panic sites that are not in linux/panic-sites.toml", &self.unknown_panics),
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
        write!(f, "note biggest frames: {}", self.biggest_frames.join(", "))
    }
}

/// Looks at the module `ko` (its Rust object lies beside it) and at what its build printed.
pub fn run(ko: &Path, build_log: &Path) -> Result<Report> {
    let object = rust_object(ko);
    let bytes = fs::read(&object)
        .with_context(|| format!("cannot read {}: build the module first", object.display()))?;
    let log =
        fs::read_to_string(build_log).with_context(|| format!("cannot read {}", build_log.display()))?;
    let list = crate::paths::root().join("linux/panic-sites.toml");
    let list = fs::read_to_string(&list).with_context(|| format!("cannot read {}", list.display()))?;

    let code = code::Code::read(&bytes).with_context(|| format!("cannot read {}", object.display()))?;
    let known = panics::read_list(&list)?;
    let mut report = Report { warnings: warnings(&log), ..Report::default() };
    code.check(&mut report);
    panics::check(&code, &known, &mut report);
    Ok(report)
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
