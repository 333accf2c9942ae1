//! The kernel's own KVM selftests, built from Debian's source package and kept in the cache.
//!
//! ```text
//! ~/.cache/exitless/selftests/<key>/<test>     static, stripped; <key> is the checksum of version and recipe
//! docs/selftests.md                            which tests run, how long they may take, what each module should answer
//! /lab/selftests/{plan,<test>}                 in the image: that table for the module under test, and its programs
//! /lab/selftests.sh                            lab/hosts/selftests.sh: runs the plan
//! ```

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use super::{apt, image::Job, scenario::Module};
use crate::{
    paths, say,
    sh::{self, cmd},
};

const PACKAGE: &str = "linux-source-6.1";
/// What the tests' makefile reads of the kernel's source.
const PARTS: &[&str] = &[
    "Makefile",
    "Kbuild",
    "Kconfig",
    "tools",
    "include",
    "arch/x86",
    "scripts",
    "virt",
    "usr/include",
    "kernel/Makefile",
];
/// Two sources do not compile as they are: one uses a macro by the name of a later kernel, one leaves out a header.
const PATCHES: &[(&str, &str, &str)] = &[
    ("dirty_log_test.c", "TEST_ASSERT_EQ(", "ASSERT_EQ("),
    ("steal_time.c", "#include <asm/kvm.h>", "#include <linux/stddef.h>\n#include <asm/kvm.h>"),
];
/// The host of the lab has no libraries.
const LINK: &str = "LDFLAGS=-static -pthread -no-pie";
/// The folder in the image, below `/lab`.
const FOLDER: &str = "selftests";

/// What a module should answer to a test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expected {
    Pass,
    Skip,
    Fail,
}

impl Expected {
    fn parse(word: &str) -> Result<Self> {
        match word {
            "pass" => Ok(Expected::Pass),
            "skip" => Ok(Expected::Skip),
            "fail" => Ok(Expected::Fail),
            other => bail!("`{other}` is no result: pass, skip or fail"),
        }
    }

    fn word(self) -> &'static str {
        match self {
            Expected::Pass => "pass",
            Expected::Skip => "skip",
            Expected::Fail => "fail",
        }
    }
}

/// One row of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Row {
    /// Program and arguments.
    command: String,
    /// A: on every change; B: the long ones.
    group: String,
    /// Seconds that it may take.
    limit: u32,
    kvm: Expected,
    exitless: Expected,
    /// Why a module does not pass; may be empty where both do.
    why: String,
}

impl Row {
    fn program(&self) -> &str {
        self.command.split(' ').next().unwrap_or_default()
    }

    fn expected(&self, module: Module) -> Expected {
        match module {
            Module::Kvm => self.kvm,
            Module::Exitless => self.exitless,
        }
    }
}

/// Puts the programs and the plan for `module` into the image; `dir` is a folder for this run.
pub fn add(module: Module, dir: &Path, job: &mut Job) -> Result<()> {
    let table = fs::read_to_string(paths::root().join("docs/selftests.md"))?;
    let rows = rows(&table).context("docs/selftests.md")?;
    let programs = built()?;
    let plan = dir.join("selftests.plan");
    fs::write(&plan, plan_for(&rows, module))?;
    job.files.push((format!("{FOLDER}/plan"), plan));
    job.files.push(("selftests.sh".into(), paths::root().join("lab/hosts/selftests.sh")));
    for row in &rows {
        let (name, file) = (format!("{FOLDER}/{}", row.program()), programs.join(row.program()));
        if !job.files.iter().any(|(have, _)| *have == name) {
            job.files.push((name, file));
        }
    }
    Ok(())
}

/// Lines of fields separated by tabs, for the shell: group, limit, expected result, command, reason.
fn plan_for(rows: &[Row], module: Module) -> String {
    let line = |row: &Row| {
        let why = if row.why.is_empty() { "-" } else { &row.why };
        format!("{}\t{}\t{}\t{}\t{why}\n", row.group, row.limit, row.expected(module).word(), row.command)
    };
    rows.iter().map(line).collect()
}

/// The rows of the table whose first cell is a command in backquotes.
fn rows(text: &str) -> Result<Vec<Row>> {
    let mut found = Vec::new();
    for line in text.lines().filter(|line| line.starts_with("| `")) {
        found.push(row(line).with_context(|| line.to_string())?);
    }
    if found.is_empty() {
        bail!("there is no table of tests");
    }
    Ok(found)
}

fn row(line: &str) -> Result<Row> {
    let cells: Vec<_> = line.trim_matches('|').split('|').map(str::trim).collect();
    let [command, group, limit, kvm, exitless, why] = cells[..] else { bail!("a row has six cells") };
    let row = Row {
        command: command.trim_matches('`').to_string(),
        group: group.to_string(),
        limit: limit.parse().context("the limit is a number of seconds")?,
        kvm: Expected::parse(kvm)?,
        exitless: Expected::parse(exitless)?,
        why: why.to_string(),
    };
    if row.kvm == Expected::Pass && row.exitless != Expected::Pass && row.why.is_empty() {
        bail!("a test that only stock KVM passes needs a reason");
    }
    Ok(row)
}

/// The folder with every test's program, built on first use.
fn built() -> Result<PathBuf> {
    let base = paths::made(paths::cache()?.join("selftests"))?;
    // The version is asked once: remove this file to move to a newer source.
    let record = base.join("current");
    if let Ok(version) = fs::read_to_string(&record) {
        let dir = base.join(key(version.trim())?);
        if dir.is_dir() {
            return Ok(dir);
        }
    }
    apt::install(&["linux-libc-dev", "binutils"], None)?;
    if apt::candidate(PACKAGE).is_none() {
        apt::update()?;
    }
    let version = apt::candidate(PACKAGE).with_context(|| format!("apt offers no {PACKAGE}"))?;
    let dir = base.join(key(&version)?);
    if !dir.is_dir() {
        let part = paths::made(base.join(format!("part-{}", std::process::id())))?;
        let made = make(&part);
        if made.is_ok() {
            fs::rename(part.join("programs"), &dir)
                .or_else(|e| if dir.is_dir() { Ok(()) } else { Err(e) })?;
        }
        fs::remove_dir_all(&part)?;
        made?;
    }
    fs::write(&record, &version)?;
    say::note(format!("in {}", dir.display()));
    Ok(dir)
}

/// Names the programs by what they are made of.
fn key(version: &str) -> Result<String> {
    let scratch = std::env::temp_dir().join(format!("exitless-selftests-{}", std::process::id()));
    fs::write(&scratch, format!("{PACKAGE} {version} {PARTS:?} {PATCHES:?} {LINK}"))?;
    let sums = sh::sha256(&[&scratch]);
    fs::remove_file(&scratch)?;
    sums?.first().and_then(|sum| sum.get(..16)).map(Into::into).context("no checksum")
}

/// Fetches and builds below `part`; leaves the programs in `part/programs`.
fn make(part: &Path) -> Result<()> {
    let tree = part.join(PACKAGE);
    say::step(&format!("fetch {PACKAGE} from Debian"), || {
        let package = part.join("package");
        apt::unpack(&[PACKAGE.to_string()], &paths::made(package.clone())?)?;
        let archive = package.join(format!("usr/src/{PACKAGE}.tar.xz"));
        let parts = PARTS.iter().map(|below| format!("{PACKAGE}/{below}"));
        sh::quiet(cmd("tar", ["-xJf"]).arg(archive).arg("-C").arg(part).args(parts))
    })?;
    let source = tree.join("tools/testing/selftests/kvm");
    for (file, from, to) in PATCHES {
        let file = source.join(file);
        let text = fs::read_to_string(&file)?;
        fs::write(&file, text.replace(from, to))?;
    }
    say::step("build the KVM selftests", || compile(&source, &part.join("programs")))
}

fn compile(source: &Path, programs: &Path) -> Result<()> {
    let out = paths::made(source.join("out"))?;
    let jobs = std::thread::available_parallelism().map_or(2, usize::from);
    let mut make = Command::new("make");
    make.current_dir(source).args(["-k", &format!("-j{jobs}"), "OUTPUT=out", LINK]);
    make.env_remove("MAKEFLAGS").env_remove("CARGO_MAKEFLAGS");
    sh::quiet(&mut make).context("the KVM selftests do not build")?;
    paths::made(programs.to_path_buf())?;
    for folder in [out.clone(), out.join("x86_64")] {
        for entry in fs::read_dir(&folder)?.flatten() {
            let path = entry.path();
            let plain = path.extension().is_none() && entry.file_type()?.is_file();
            if plain {
                sh::quiet(Command::new("strip").arg("-o").arg(programs.join(entry.file_name())).arg(&path))?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{Expected, Module, plan_for, row, rows};

    /// The table in the book is one this file can read.
    #[test]
    fn the_books_table_is_readable() {
        let text = std::fs::read_to_string(crate::paths::root().join("docs/selftests.md")).unwrap();
        let rows = rows(&text).unwrap();
        assert!(rows.iter().any(|row| row.program() == "cpuid_test" && row.exitless == Expected::Pass));
        assert!(rows.iter().any(|row| row.group == "B"));
    }

    /// A test that only stock KVM passes is a defect unless somebody wrote down why.
    #[test]
    fn a_difference_needs_a_reason() {
        assert!(row("| `x_test` | A | 5 | pass | fail |  |").is_err());
        assert!(row("| `x_test` | A | 5 | pass | skip | no such capability |").is_ok());
        assert!(row("| `x_test` | A | 5 | skip | skip |  |").is_ok());
    }

    /// Each module gets its own column.
    #[test]
    fn the_plan_is_the_modules_own() {
        let rows = rows("| `x_test -i 3` | B | 5 | pass | skip | why |\n").unwrap();
        assert_eq!(plan_for(&rows, Module::Kvm), "B\t5\tpass\tx_test -i 3\twhy\n");
        assert_eq!(plan_for(&rows, Module::Exitless), "B\t5\tskip\tx_test -i 3\twhy\n");
    }
}
