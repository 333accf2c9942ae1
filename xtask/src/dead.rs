//! Exported items that nobody uses: the compiler warns of private ones only.
//!
//! An item is dead if its name stands nowhere but where it is defined: not in any other place of the code that ships. Tests do
//! not count. A name that something else has too hides an item from this look; that is the price of looking at names.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use proc_macro2::{TokenStream, TokenTree};
use quote::ToTokens;
use syn::{Attribute, ImplItem, Item, TraitItem, UseTree, Visibility};

use crate::paths;

/// Rooms whose exported items must have a user. `defs` may name facts that nobody needs yet: registers come as whole tables.
const JUDGED: &[&str] = &["logic", "vcpu", "hw", "linux"];
/// Rooms whose code uses them.
const USERS: &[&str] = &["defs", "logic", "vcpu", "hw", "linux", "lab/runner", "lab/suite", "xtask"];

/// Exported for tests only, or for a reader outside of the code, and why.
const EXCUSED: &[(&str, &str)] = &[
    ("peek", "KVM_CLEAR_DIRTY_LOG, which is not there yet (docs/kvm-api.md), reads without clearing"),
    ("has_pending", "the models' question; the run loop asks for the parts"),
    ("is_well_formed", "the invariant of a table, for the tests of other files"),
    ("RWX", "tests spell permissions"),
    ("RX", "the same"),
    ("SIZE", "the owner's allocation is checked by the tests of the bitmaps"),
];

#[derive(Default)]
struct Names {
    /// How often a name is defined.
    defined: BTreeMap<String, usize>,
    /// How often it stands anywhere.
    seen: BTreeMap<String, usize>,
    /// Where exported ones of the judged rooms are.
    exported: BTreeMap<String, BTreeSet<String>>,
}

/// Fails with every dead item.
pub fn check() -> Result<()> {
    let root = paths::root();
    let mut names = Names::default();
    for room in USERS {
        for file in sources(&root.join(room), "rs")? {
            let text = fs::read_to_string(&file)?;
            let parsed =
                syn::parse_file(&text).with_context(|| format!("{} does not parse", file.display()))?;
            let shown = file.strip_prefix(&root).unwrap_or(&file).display().to_string();
            let judged = JUDGED.iter().any(|room| shown.starts_with(&format!("{room}/")));
            names.items(&parsed.items, judged.then_some(shown.as_str()));
        }
    }
    let c = c_words(&root.join("linux/c"))?;
    let mut dead: Vec<_> = names
        .exported
        .iter()
        .filter(|(name, _)| {
            let uses = names.seen.get(*name).copied().unwrap_or(0);
            let definitions = names.defined.get(*name).copied().unwrap_or(0);
            uses <= definitions
                && !c.contains_key(*name)
                && EXCUSED.iter().all(|(excused, _)| excused != *name)
        })
        .map(|(name, files)| {
            format!("{name}: {}", files.iter().map(String::as_str).collect::<Vec<_>>().join(", "))
        })
        .collect();
    // A helper of the C side has a definition and a declaration at least; a third place uses it.
    let helpers = c.iter().filter(|(name, count)| name.starts_with("ex_") && **count <= 2);
    // In Rust the declaration stands once more.
    dead.extend(
        helpers
            .filter(|(name, _)| names.seen.get(*name).copied().unwrap_or(0) <= 1 && is_function(name, &root))
            .map(|(name, _)| format!("{name}: linux/c")),
    );
    for (excused, reason) in EXCUSED {
        if !names.exported.contains_key(*excused) {
            dead.push(format!("{excused}: excused ({reason}), and there is no such item"));
        }
    }
    if !dead.is_empty() {
        bail!(
            "exported and used by nobody (remove it, or make it private to its tests):\n  {}",
            dead.join("\n  ")
        );
    }
    println!("   {} exported names, every one used", names.exported.len());
    Ok(())
}

/// Files with this ending below a folder; none of tests or of what a build made.
pub fn sources(dir: &Path, ending: &str) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).with_context(|| format!("{} cannot be read", dir.display()))? {
        let path = entry?.path();
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        if path.is_dir() {
            if !matches!(name, "target" | "tests" | "benches") {
                found.extend(sources(&path, ending)?);
            }
        } else if path.extension().is_some_and(|e| e == ending) && !matches!(name, "tests.rs" | "fake.rs") {
            found.push(path);
        }
    }
    Ok(found)
}

/// Is it built for tests only?
fn for_tests(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|a| a.path().is_ident("test") || is_cfg_test(a))
}

fn is_cfg_test(a: &Attribute) -> bool {
    a.path().is_ident("cfg") && {
        let words = a.meta.to_token_stream().to_string();
        words.contains("test") && !words.contains("not")
    }
}

impl Names {
    fn define(&mut self, name: &syn::Ident, exported: Option<&str>) {
        let name = name.to_string();
        *self.defined.entry(name.clone()).or_default() += 1;
        if let Some(file) = exported.filter(|_| !name.starts_with('_')) {
            self.exported.entry(name).or_default().insert(file.to_string());
        }
    }

    fn count(&mut self, tokens: TokenStream) {
        for token in tokens {
            match token {
                TokenTree::Ident(i) => *self.seen.entry(i.to_string()).or_default() += 1,
                TokenTree::Group(g) => self.count(g.stream()),
                _ => {}
            }
        }
    }

    /// What is only handed on has no user yet; what gets another name is used under that.
    fn renamed(&mut self, tree: &UseTree) {
        match tree {
            UseTree::Path(p) => {
                // Modules and enums on the way are used.
                *self.seen.entry(p.ident.to_string()).or_default() += 1;
                self.renamed(&p.tree);
            }
            UseTree::Rename(r) => *self.seen.entry(r.ident.to_string()).or_default() += 1,
            UseTree::Group(g) => g.items.iter().for_each(|t| self.renamed(t)),
            _ => {}
        }
    }

    /// `file`: where exported items are to be judged.
    fn items(&mut self, items: &[Item], file: Option<&str>) {
        let open = |v: &Visibility| !matches!(v, Visibility::Inherited);
        for item in items {
            let attributes = match item {
                Item::Fn(i) => &i.attrs,
                Item::Mod(i) => &i.attrs,
                Item::Impl(i) => &i.attrs,
                Item::Const(i) => &i.attrs,
                Item::Struct(i) => &i.attrs,
                Item::Use(i) => &i.attrs,
                Item::Macro(i) => &i.attrs,
                _ => &Vec::new(),
            };
            if for_tests(attributes) {
                continue;
            }
            match item {
                Item::Fn(i) => self.define(&i.sig.ident, file.filter(|_| open(&i.vis))),
                Item::Const(i) => self.define(&i.ident, file.filter(|_| open(&i.vis))),
                Item::Static(i) => self.define(&i.ident, file.filter(|_| open(&i.vis))),
                Item::Struct(i) => self.define(&i.ident, file.filter(|_| open(&i.vis))),
                Item::Type(i) => self.define(&i.ident, file.filter(|_| open(&i.vis))),
                Item::Enum(i) => {
                    self.define(&i.ident, file.filter(|_| open(&i.vis)));
                    i.variants.iter().for_each(|v| self.define(&v.ident, file.filter(|_| open(&i.vis))));
                }
                Item::Trait(i) => {
                    self.define(&i.ident, file.filter(|_| open(&i.vis)));
                    for item in &i.items {
                        match item {
                            TraitItem::Fn(f) => self.define(&f.sig.ident, file.filter(|_| open(&i.vis))),
                            TraitItem::Const(c) => self.define(&c.ident, file.filter(|_| open(&i.vis))),
                            _ => {}
                        }
                    }
                }
                Item::Impl(i) => {
                    for item in &i.items {
                        match item {
                            ImplItem::Fn(f) if !for_tests(&f.attrs) => {
                                self.define(&f.sig.ident, file.filter(|_| open(&f.vis)))
                            }
                            ImplItem::Const(c) => self.define(&c.ident, file.filter(|_| open(&c.vis))),
                            _ => {}
                        }
                        let tests = matches!(item, ImplItem::Fn(f) if for_tests(&f.attrs));
                        if !tests {
                            self.count(item.to_token_stream());
                        }
                    }
                    self.count(i.self_ty.to_token_stream());
                    i.trait_.iter().for_each(|(_, path, _)| self.count(path.to_token_stream()));
                    continue;
                }
                Item::Mod(i) => {
                    if let Some((_, inside)) = &i.content {
                        self.items(inside, file);
                    }
                    continue;
                }
                Item::Use(i) => {
                    self.renamed(&i.tree);
                    continue;
                }
                _ => {}
            }
            self.count(item.to_token_stream());
        }
    }
}

/// Every word of the C side, and how often.
fn c_words(dir: &Path) -> Result<BTreeMap<String, usize>> {
    let mut words = BTreeMap::new();
    for ending in ["c", "h", "S"] {
        for file in sources(dir, ending)? {
            let text = fs::read_to_string(file)?;
            for word in text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').filter(|w| !w.is_empty())
            {
                *words.entry(word.to_string()).or_default() += 1;
            }
        }
    }
    Ok(words)
}

/// Declared as a function in the helpers' header.
fn is_function(name: &str, root: &Path) -> bool {
    fs::read_to_string(root.join("linux/c/helpers/helpers.h"))
        .is_ok_and(|text| text.contains(&format!("{name}(")))
}
