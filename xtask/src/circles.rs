//! Directions inside a crate: files do not import each other in a circle, nor do rooms (folders, and files beside them).
//!
//! An import is a `use`, or a path in the code, that begins with `crate`, `self` or `super`, or with a module that the file declares.
//! What tests import does not count.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use anyhow::{Context, Result};
use syn::{Attribute, Item, UseTree, visit::Visit};

use crate::{arch::inside, dead::sources, paths};

/// Crates without circles.
const JUDGED: &[&str] =
    &["vcpu", "logic/avic", "logic/bus", "logic/chooser", "logic/deadline", "logic/irqchip", "logic/posted"];

/// A file's place in its crate: `[]` for the root, `[a, b]` for `a/b.rs` or `a/b/mod.rs`.
type Place = Vec<String>;
type Graph = BTreeMap<Place, BTreeSet<Place>>;

/// What goes in a circle, one line each.
pub fn find() -> Result<Vec<String>> {
    let root = paths::root();
    let mut wrong = Vec::new();
    for room in JUDGED {
        let graph = read(&root.join(room).join("src"))?;
        let rooms = fold(&graph);
        let said = |kind: &str, circle: Vec<Place>| {
            let names: Vec<_> = circle.iter().map(shown).collect();
            format!("{room}: {kind} import each other: {}", names.join(" -> "))
        };
        wrong.extend(circle(&graph).map(|c| said("files", c)));
        wrong.extend(circle(&rooms).map(|c| said("rooms", c)));
    }
    Ok(wrong)
}

fn shown(place: &Place) -> String {
    if place.is_empty() { "lib".into() } else { place.join("::") }
}

fn read(src: &Path) -> Result<Graph> {
    let mut files = BTreeMap::new();
    for file in sources(src, "rs")? {
        let text = fs::read_to_string(&file)?;
        let parsed = syn::parse_file(&text).with_context(|| format!("{} does not parse", file.display()))?;
        files.insert(place(&inside(&file, src)), parsed);
    }
    let known: BTreeSet<Place> = files.keys().cloned().collect();
    Ok(files.into_iter().map(|(at, file)| (at.clone(), imports(&at, &file.items, &known))).collect())
}

fn place(file: &str) -> Place {
    let path = file.trim_end_matches(".rs");
    let mut parts: Place = path.split('/').map(String::from).collect();
    if matches!(parts.last().map(String::as_str), Some("mod" | "lib")) {
        parts.pop();
    }
    parts
}

struct Imports<'a> {
    at: &'a Place,
    known: &'a BTreeSet<Place>,
    children: BTreeSet<String>,
    found: BTreeSet<Place>,
}

fn imports(at: &Place, items: &[Item], known: &BTreeSet<Place>) -> BTreeSet<Place> {
    let children = items.iter().filter_map(|item| match item {
        Item::Mod(m) if m.content.is_none() && !for_tests(&m.attrs) => Some(m.ident.to_string()),
        _ => None,
    });
    let mut look = Imports { at, known, children: children.collect(), found: BTreeSet::new() };
    for item in items {
        look.visit_item(item);
    }
    look.found.remove(at);
    look.found
}

fn for_tests(attrs: &[Attribute]) -> bool {
    attrs.iter().any(|a| {
        a.path().is_ident("test")
            || a.path().is_ident("cfg") && a.parse_args::<syn::Path>().is_ok_and(|p| p.is_ident("test"))
    })
}

impl Imports<'_> {
    /// Notes the file that a path leads to: the longest part of it that is one.
    fn note(&mut self, path: &[String]) {
        let Some(first) = path.first() else { return };
        let (mut to, mut rest) = match first.as_str() {
            "crate" => (Place::new(), &path[1..]),
            "self" => (self.at.clone(), &path[1..]),
            "super" => (self.at.clone(), path),
            name if self.children.contains(name) => (self.at.clone(), path),
            _ => return,
        };
        while rest.first().is_some_and(|part| part == "super") {
            to.pop();
            rest = &rest[1..];
        }
        for part in rest {
            to.push(part.clone());
            if !self.known.contains(&to) {
                to.pop();
                break;
            }
        }
        self.found.insert(to);
    }

    fn note_use(&mut self, tree: &UseTree, mut path: Vec<String>) {
        match tree {
            UseTree::Path(p) => {
                path.push(p.ident.to_string());
                self.note_use(&p.tree, path);
            }
            UseTree::Name(n) => {
                path.push(n.ident.to_string());
                self.note(&path);
            }
            UseTree::Rename(r) => {
                path.push(r.ident.to_string());
                self.note(&path);
            }
            UseTree::Glob(_) => self.note(&path),
            UseTree::Group(g) => g.items.iter().for_each(|tree| self.note_use(tree, path.clone())),
        }
    }
}

impl<'ast> Visit<'ast> for Imports<'_> {
    fn visit_item_mod(&mut self, m: &'ast syn::ItemMod) {
        if !for_tests(&m.attrs) {
            syn::visit::visit_item_mod(self, m);
        }
    }

    fn visit_item_use(&mut self, u: &'ast syn::ItemUse) {
        if !for_tests(&u.attrs) {
            self.note_use(&u.tree, Vec::new());
        }
    }

    fn visit_path(&mut self, p: &'ast syn::Path) {
        let path: Vec<_> = p.segments.iter().map(|s| s.ident.to_string()).collect();
        // One name alone is a local one.
        if path.len() > 1 {
            self.note(&path);
        }
        syn::visit::visit_path(self, p);
    }
}

/// The same between rooms; the crate's root is none.
fn fold(graph: &Graph) -> Graph {
    let room = |place: &Place| place.iter().take(1).cloned().collect::<Place>();
    let mut rooms = Graph::new();
    for (from, to) in graph.iter().filter(|(from, _)| !from.is_empty()) {
        let to = to.iter().map(room).filter(|to| *to != room(from));
        rooms.entry(room(from)).or_default().extend(to);
    }
    rooms
}

/// One circle, if there is any: its places in order, the first once more at the end.
fn circle(graph: &Graph) -> Option<Vec<Place>> {
    let mut done = BTreeSet::new();
    graph.keys().find_map(|start| walk(graph, start, &mut Vec::new(), &mut done))
}

fn walk(graph: &Graph, at: &Place, way: &mut Vec<Place>, done: &mut BTreeSet<Place>) -> Option<Vec<Place>> {
    if let Some(first) = way.iter().position(|place| place == at) {
        let mut found = way[first..].to_vec();
        found.push(at.clone());
        return Some(found);
    }
    if done.contains(at) {
        return None;
    }
    way.push(at.clone());
    let found = graph.get(at).into_iter().flatten().find_map(|to| walk(graph, to, way, done));
    way.pop();
    done.insert(at.clone());
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn graph(files: &[(&str, &str)]) -> Graph {
        let known: BTreeSet<Place> = files.iter().map(|(file, _)| place(file)).collect();
        let read = |(file, text): &(&str, &str)| {
            let at = place(file);
            let items = syn::parse_file(text).unwrap().items;
            (at.clone(), imports(&at, &items, &known))
        };
        files.iter().map(read).collect()
    }

    fn files(g: &Graph) -> Option<String> {
        circle(g).map(|c| c.iter().map(shown).collect::<Vec<_>>().join(" "))
    }

    /// By `use` in each of its shapes, by a path in the code, by `super` and by a declared module.
    #[test]
    fn circles_are_found() {
        let ways = [
            "use crate::b::X;",
            "use crate::{b::{self, X}};",
            "fn f() { crate::b::g() }",
            "use super::b as c;",
        ];
        for way in ways {
            let g = graph(&[("lib.rs", "mod a; mod b;"), ("a.rs", way), ("b.rs", "use crate::a::Y;")]);
            assert_eq!(files(&g).as_deref(), Some("a b a"), "{way}");
        }
        let child = graph(&[("a/mod.rs", "mod b; fn f() { b::g() }"), ("a/b.rs", "use super::X;")]);
        assert_eq!(files(&child).as_deref(), Some("a a::b a"));
    }

    /// Files in one direction may still be rooms that go both ways.
    #[test]
    fn rooms_are_looked_at_as_well() {
        let g = graph(&[
            ("a/mod.rs", ""),
            ("b/mod.rs", ""),
            ("a/y.rs", ""),
            ("a/x.rs", "use crate::b::x::Z;"),
            ("b/x.rs", "use crate::a::y::Z;"),
        ]);
        assert_eq!(files(&g), None);
        assert_eq!(files(&fold(&g)).as_deref(), Some("a b a"));
    }

    #[test]
    fn tests_do_not_count() {
        let test = "#[cfg(test)] mod tests { use crate::b::X; }";
        assert_eq!(files(&graph(&[("a.rs", test), ("b.rs", "use crate::a::Y;")])), None);
    }
}
