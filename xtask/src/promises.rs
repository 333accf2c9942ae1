//! The tests that documents name: each exists, and each test of the lab that a document names held on some machine.
//!
//! A name in backquotes with a slash, `deadline/now` or `pv/*`, is a test of the lab: a micro guest or one of the suite. After a run
//! on all machines at least one test of such a name must have passed: one that is skipped everywhere holds no promise. A name with
//! `::` is a Rust test or a file of tests.

use std::{collections::BTreeSet, fs, path::Path};

use anyhow::{Context, Result, bail};

use crate::{gates::matches, paths};

/// Where promises and their holders stand.
const DOCUMENTS: &[&str] = &["docs/must-test.md", "SPECIFICATION.md"];
/// Folders with Rust tests.
const ROOMS: &[&str] = &["defs", "logic", "vcpu", "hw", "linux", "lab", "xtask"];

/// A name, and the line it stands in.
struct Named {
    name: String,
    at: String,
}

/// What is in backquotes.
fn named() -> Result<Vec<Named>> {
    let mut all = Vec::new();
    for document in DOCUMENTS {
        let text = fs::read_to_string(paths::root().join(document)).with_context(|| document.to_string())?;
        for (number, line) in text.lines().enumerate() {
            let words = line.split('`').skip(1).step_by(2);
            all.extend(
                words.map(|w| Named { name: w.to_string(), at: format!("{document}:{}", number + 1) }),
            );
        }
    }
    Ok(all)
}

fn is_name(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "_*".contains(c))
}

/// Every test of the lab that a document names passed somewhere. `passed`: the names that did, of all machines.
pub fn held(passed: &BTreeSet<String>) -> Result<()> {
    let groups: BTreeSet<_> = passed.iter().filter_map(|name| name.split_once('/')).map(|(g, _)| g).collect();
    let (mut broken, mut kept) = (Vec::new(), 0);
    for Named { name, at } in named()? {
        let is_test =
            name.split_once('/').is_some_and(|(group, test)| groups.contains(group) && is_name(test));
        if is_test && !passed.iter().any(|p| matches(&name, p)) {
            broken.push(format!("{at}: {name} passed on no machine"));
        }
        kept += usize::from(is_test);
    }
    if !broken.is_empty() {
        bail!("documents name tests that hold nothing:\n  {}", broken.join("\n  "));
    }
    println!("   {kept} tests of the lab are named by documents, each passed on some machine");
    Ok(())
}

/// Every Rust test that a document names is there.
pub fn exist() -> Result<()> {
    let mut functions = BTreeSet::new();
    for room in ROOMS {
        words(&paths::root().join(room), &mut functions)?;
    }
    let missing: Vec<_> = named()?
        .into_iter()
        .filter(|n| n.name.contains("::") && n.name.split("::").all(is_name))
        .filter(|n| {
            let last = n.name.rsplit("::").next().unwrap_or_default();
            !functions.iter().any(|f| matches(last, f))
        })
        .map(|n| format!("{}: {}", n.at, n.name))
        .collect();
    if !missing.is_empty() {
        bail!("documents name tests that are not there:\n  {}", missing.join("\n  "));
    }
    Ok(())
}

/// Names of functions, modules and files of the sources below a folder.
fn words(dir: &Path, found: &mut BTreeSet<String>) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("{} cannot be read", dir.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            if path.file_name().is_none_or(|name| name != "target") {
                words(&path, found)?;
            }
            continue;
        }
        if path.extension().is_some_and(|e| e == "rs") {
            found.extend(path.file_stem().and_then(|s| s.to_str()).map(str::to_string));
            let text = fs::read_to_string(&path)?;
            let behind = |word: &'static str| text.split(word).skip(1).map(name_at).collect::<Vec<_>>();
            found.extend(behind("fn "));
            found.extend(behind("mod "));
        }
    }
    Ok(())
}

/// The name at the beginning of a text.
fn name_at(text: &str) -> String {
    text.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect()
}
