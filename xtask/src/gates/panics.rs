//! Every function of the module that can panic, against the list of those that may.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use super::{Report, code::Code};

/// One entry of `linux/panic-sites.toml`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Site {
    /// Name of the function as the report prints it; `*` stands for any text.
    pub function: String,
    /// Why the panic cannot happen, or why it is right.
    pub reason: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct List {
    #[serde(default)]
    site: Vec<Site>,
}

/// Reads the list; an entry without a reason is an error.
pub fn read_list(text: &str) -> Result<Vec<Site>> {
    let list: List = toml::from_str(text).context("linux/panic-sites.toml")?;
    for site in &list.site {
        if site.reason.trim().is_empty() {
            bail!("linux/panic-sites.toml: {} has no reason", site.function);
        }
    }
    Ok(list.site)
}

/// Sorts the functions that call a panic into known and unknown.
pub fn check(code: &Code, known: &[Site], report: &mut Report) {
    let mut sites: BTreeMap<&str, BTreeMap<&str, usize>> = BTreeMap::new();
    for function in code.functions.iter().filter(|function| !is_panic(&function.name)) {
        for callee in function.calls.iter().filter(|callee| is_panic(callee)) {
            *sites.entry(&function.name).or_default().entry(callee).or_default() += 1;
        }
    }
    let mut used = vec![false; known.len()];
    for (function, callees) in &sites {
        let callees: Vec<_> = callees.iter().map(|(callee, n)| format!("{n} x {callee}")).collect();
        let line = format!("{function}: {}", callees.join(", "));
        match known.iter().position(|site| matches(&site.function, function)) {
            Some(at) => {
                used[at] = true;
                report.known_panics.push(line);
            }
            None => report.unknown_panics.push(line),
        }
    }
    let stale = known.iter().zip(used).filter(|(_, used)| !used);
    report.stale_panics = stale.map(|(site, _)| site.function.clone()).collect();
}

/// Is a call to this function a panic?
fn is_panic(name: &str) -> bool {
    const PREFIXES: &[&str] = &[
        "core::panicking::",
        "core::option::unwrap_failed",
        "core::option::expect_failed",
        "core::result::unwrap_failed",
        "core::slice::index::slice_",
        "core::slice::copy_from_slice_impl::len_mismatch_fail",
        "core::str::slice_error_fail",
        "core::cell::panic_already_",
        "core::cell::panic_not_",
        "alloc::alloc::handle_alloc_error",
        "alloc::raw_vec::handle_error",
        "alloc::raw_vec::capacity_overflow",
    ];
    name.contains("rust_begin_unwind")
        || name.contains("assert_failed")
        || name.contains("len_mismatch_fail")
        || PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

/// Does the whole name fit the pattern? `*` stands for any text, also none.
pub fn matches(pattern: &str, name: &str) -> bool {
    let Some((head, rest)) = pattern.split_once('*') else { return pattern == name };
    let Some(name) = name.strip_prefix(head) else { return false };
    (0..=name.len()).filter(|&at| name.is_char_boundary(at)).any(|at| matches(rest, &name[at..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        assert!(matches("iced_x86::*", "iced_x86::decoder::f"));
        assert!(matches("<*>::grow_one", "<alloc::raw_vec::RawVec<u8>>::grow_one"));
        assert!(!matches("iced_x86::*::g", "iced_x86::decoder::f"));
        assert!(!matches("f", "ff"));
    }

    #[test]
    fn a_reason_is_needed() {
        assert!(read_list("[[site]]\nfunction = \"f\"\nreason = \" \"").is_err());
        assert_eq!(
            read_list("[[site]]\nfunction = \"f\"\nreason = \"r\"").map(|list| list.len()).ok(),
            Some(1)
        );
    }
}
