//! The module's parameters and `docs/admin.md`: each has one row, with its default and whether it may be written.

use std::{collections::BTreeMap, fs, path::Path};

use crate::paths;

/// Default, and `writable` or `fixed`.
type Said = (String, &'static str);

fn sources(folder: &Path, out: &mut Vec<String>) {
    for entry in fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()) {
        if entry.is_dir() {
            sources(&entry, out);
        } else if entry.extension().is_some_and(|e| e == "c") {
            out.push(fs::read_to_string(entry).unwrap());
        }
    }
}

/// What the declaration of a parameter's variable starts it with, as a table says it.
fn default_of(text: &str, variable: &str) -> String {
    let line = text.lines().find(|l| {
        let name = l.split([';', '=']).next().unwrap_or_default();
        l.starts_with("static ") && name.trim_end().ends_with(variable)
    });
    let value = line.and_then(|l| l.split_once('=')).map_or("false", |(_, v)| v.trim().trim_end_matches(';'));
    match value {
        "true" => "on".into(),
        "false" => "off".into(),
        other => other.trim_matches('"').into(),
    }
}

/// `module_param(name, type, mode)`, `module_param_named(name, variable, type, mode)`, `module_param_cb(name, ops, argument, mode)`.
fn in_code(folder: &Path) -> BTreeMap<String, Said> {
    let (mut all, mut found) = (Vec::new(), BTreeMap::new());
    sources(folder, &mut all);
    for text in &all {
        for call in text.split("module_param").skip(1) {
            let Some((kind, rest)) = call.split_once('(') else { continue };
            let words: Vec<_> = rest.split(')').next().unwrap().split(',').map(str::trim).collect();
            let (name, mode) = (words[0], *words.last().unwrap());
            let default = match kind {
                "" => default_of(text, name),
                "_named" => default_of(text, words[1]),
                "_cb" => String::new(),
                other => panic!("module_param{other} is not known here"),
            };
            let writable = match mode {
                "0444" => "fixed",
                "0644" => "writable",
                other => panic!("{name}: mode {other}"),
            };
            assert!(found.insert(name.to_string(), (default, writable)).is_none(), "{name} twice");
        }
    }
    found
}

fn in_document(text: &str) -> BTreeMap<String, Said> {
    let section = text.split("\n## Parameters\n").nth(1).unwrap().split("\n## ").next().unwrap();
    let mut found = BTreeMap::new();
    for row in section.lines().filter(|l| l.starts_with("| `")) {
        let cells: Vec<_> = row.trim_matches('|').split(" | ").map(str::trim).collect();
        let [name, default, meaning, loaded] = cells[..] else { panic!("not four columns: {row}") };
        assert!(meaning.len() > 20, "{name}: what for?");
        let loaded = if loaded == "writable" { "writable" } else { "fixed" };
        let before = found.insert(name.trim_matches('`').to_string(), (default.to_string(), loaded));
        assert!(before.is_none(), "{name} twice");
    }
    found
}

#[test]
fn each_parameter_is_in_the_administrators_table() {
    let code = in_code(&paths::root().join("linux/c"));
    let said = in_document(&fs::read_to_string(paths::root().join("docs/admin.md")).unwrap());
    assert!(code.len() >= 11, "{code:?}");
    let names = |of: &BTreeMap<String, Said>| of.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&code), names(&said), "code and docs/admin.md");
    for (name, (default, writable)) in &code {
        let (d, w) = &said[name];
        assert_eq!(writable, w, "{name}");
        // A callback's default is words.
        assert!(default.is_empty() || default == d, "{name}: {default} in the code, {d} in the document");
    }
}
