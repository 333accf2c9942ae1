//! The Rust static library as one relocatable object that holds what C can reach, and nothing that a kernel dislikes.

use std::{fs, path::Path, process::Command};

use anyhow::{Context, Result, bail};

use crate::sh;

/// Sections without use in a kernel: bitcode of LTO, unwind tables (objtool makes ORC data), notes.
const DROPPED: &[&str] = &[
    ".llvmbc",
    ".llvmcmd",
    ".eh_frame",
    ".rela.eh_frame",
    ".comment",
    ".note.gnu.property",
    "__patchable_function_entries",
    ".rela__patchable_function_entries",
];

/// Links `archive` from the callbacks that `header` declares. Not the whole archive: that would pull in a second
/// memcpy and a stack probe with a bare return.
pub fn rust_object(archive: &Path, header: &Path, object: &Path) -> Result<()> {
    let text = fs::read_to_string(header).with_context(|| format!("cannot read {}", header.display()))?;
    let roots = callbacks(&text);
    if roots.is_empty() {
        bail!("{} declares no ex_rs_ callback", header.display());
    }
    let linked = object.with_extension("linked");
    let mut ld = Command::new("ld");
    ld.args(["-r", "-o"]).arg(&linked);
    for root in &roots {
        ld.args(["-u", root]);
    }
    ld.arg(archive);
    sh::quiet(&mut ld)?;

    let stripped = object.with_extension("stripped");
    let mut objcopy = Command::new("objcopy");
    objcopy.arg("--strip-debug");
    for section in DROPPED {
        objcopy.args(["-R", section]);
    }
    sh::quiet(objcopy.arg(&linked).arg(&stripped))?;

    let fresh = fs::read(&stripped)?;
    if fs::read(object).ok().as_deref() != Some(&fresh[..]) {
        fs::write(object, fresh)?;
    }
    fs::remove_file(&linked)?;
    fs::remove_file(&stripped)?;
    Ok(())
}

/// The names that C calls: every `ex_rs_...(` of the header.
pub fn callbacks(header: &str) -> Vec<String> {
    let mut names: Vec<String> = header
        .match_indices("ex_rs_")
        .filter_map(|(at, _)| {
            let rest = header.get(at..)?;
            let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_')?;
            rest.get(end..)?.starts_with('(').then(|| rest.get(..end).map(str::to_string))?
        })
        .collect();
    names.sort();
    names.dedup();
    names
}

#[cfg(test)]
mod tests {
    use super::callbacks;

    /// A comment that says `ex_rs_*` must not become a linker root: ld would then keep an undefined symbol.
    #[test]
    fn only_declarations_count() {
        let header = "/* Rust defines ex_rs_*. */\nint ex_rs_init(void);\nvoid ex_rs_exit(void);\nint ex_rs_init(void);";
        assert_eq!(callbacks(header), ["ex_rs_exit", "ex_rs_init"]);
    }
}
