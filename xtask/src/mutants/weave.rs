//! Every change of a file side by side in one text, each asleep until [`crate::mutants::judge`] wakes it by its number: one build
//! serves thousands of changes.
//!
//! `a + b` becomes `(if crate::__mutant::is(7) { a - b } else { a + b })`. What is not changed stands there as it was, so each
//! change is tried against the code that ships.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
};

use anyhow::{Context, Result};
use proc_macro2::LineColumn;
use serde::Deserialize;
use syn::{spanned::Spanned, visit::Visit};

/// The module that wakes changes; it goes to the end of a crate's first file.
pub const SWITCH: &str = include_str!("switch.rs.in");
/// What that module needs of the compiler, before the attributes of that file.
const FEATURES: &str = "#![feature(core_intrinsics, const_eval_select)] ";

/// One change as `cargo mutants --list --json` tells it.
#[derive(Deserialize, Clone, Debug)]
pub struct Mutant {
    pub name: String,
    pub file: String,
    genre: Genre,
    replacement: String,
    span: Place,
}

#[derive(Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
enum Genre {
    FnValue,
    BinaryOperator,
    UnaryOperator,
    MatchArm,
    MatchArmGuard,
    StructField,
}

#[derive(Deserialize, Clone, Copy, Debug)]
struct Place {
    start: Point,
    end: Point,
}

/// Both from 1; a column counts characters.
#[derive(Deserialize, Clone, Copy, Debug)]
struct Point {
    line: usize,
    column: usize,
}

/// A file with its changes.
#[derive(Debug, Default)]
pub struct Woven {
    pub text: String,
    /// Where the text of each change is.
    arms: Vec<(Range<usize>, usize)>,
    /// Where a changed expression is, and the changes of it.
    wraps: Vec<(Range<usize>, Vec<usize>)>,
    /// Changes that cannot stand beside the code that they change.
    pub alone: Vec<usize>,
    /// Changes of code that the compiler may run.
    pub constant: Vec<usize>,
}

impl Woven {
    /// The changes that a compiler's complaint about these places is about; the most likely ones only.
    pub fn blamed(&self, places: &[Range<usize>]) -> Vec<usize> {
        let within =
            |place: &Range<usize>, arm: &Range<usize>| arm.start <= place.start && place.end <= arm.end;
        for place in places {
            if let Some((_, mutant)) = self.arms.iter().find(|(arm, _)| within(place, arm)) {
                return vec![*mutant];
            }
        }
        let around =
            places.iter().flat_map(|place| self.wraps.iter().filter(|(wrap, _)| within(place, wrap)));
        if let Some((_, mutants)) = around.min_by_key(|(wrap, _)| wrap.len()) {
            return mutants.clone();
        }
        // A changed expression inside of what is complained about.
        let inside = |(wrap, _): &&(Range<usize>, Vec<usize>)| places.iter().any(|place| within(wrap, place));
        self.wraps.iter().filter(inside).flat_map(|(_, mutants)| mutants.clone()).collect()
    }

    fn assemble(&mut self, source: &str, insertions: &[Insertion]) -> Result<()> {
        let (mut from, mut open) = (0, Vec::new());
        for insertion in insertions {
            self.text.push_str(source.get(from..insertion.at).context("a place within a character")?);
            from = insertion.at;
            let start = self.text.len();
            self.text.push_str(&insertion.text);
            match &insertion.part {
                Part::Whole(id) => self.arms.push((start..self.text.len(), *id)),
                Part::Start(arms) => {
                    self.arms.extend(arms.iter().map(|(id, at)| (start + at.start..start + at.end, *id)));
                    open.push((start, arms.iter().map(|(id, _)| *id).collect()));
                }
                Part::End => {
                    let (start, ids) = open.pop().context("an end without a start")?;
                    self.wraps.push((start..self.text.len(), ids));
                }
                Part::Other => {}
            }
        }
        self.text.push_str(source.get(from..).unwrap_or_default());
        Ok(())
    }
}

/// `mutants` are those of this file, with their numbers. A crate's first file gets the switch for as many as `switch` says.
pub fn weave(source: &str, mutants: &[(usize, &Mutant)], switch: Option<usize>) -> Result<Woven> {
    let file = syn::parse_file(source)?;
    let lines = Lines::new(source);
    let mut shapes = Shapes::new(&lines);
    shapes.visit_file(&file);
    let mut woven = Woven::default();
    let mut insertions = Vec::new();
    let mut expressions: BTreeMap<(usize, usize), Vec<(usize, String)>> = BTreeMap::new();
    for (id, mutant) in mutants {
        let span = lines.place(mutant.span);
        if shapes.constant.iter().any(|range| range.contains(&span.start)) {
            woven.constant.push(*id);
        }
        let place = shapes.change(source, mutant, &span).with_context(|| mutant.name.clone())?;
        match place {
            Change::Alone => woven.alone.push(*id),
            Change::Expression(range, text) => {
                expressions.entry((range.start, range.end)).or_default().push((*id, text));
            }
            Change::Before(at) => {
                let text = format!("if crate::__mutant::is({id}) {{ return {}; }} ", mutant.replacement);
                insertions.push(Insertion { at, rank: (1, 0), text, part: Part::Whole(*id) });
            }
            Change::Guard(at) => {
                let text = format!(" if !crate::__mutant::is({id})");
                insertions.push(Insertion { at, rank: (1, 0), text, part: Part::Whole(*id) });
            }
        }
    }
    for ((start, end), changes) in expressions {
        wrap(start..end, &changes, &mut insertions);
    }
    if let Some(count) = switch {
        let (attributes, end) = (source.find("#![").context("a crate without attributes")?, source.len());
        insertions.push(Insertion { at: attributes, rank: (0, 0), text: FEATURES.into(), part: Part::Other });
        let text = SWITCH.replace("COUNT", &count.to_string());
        insertions.push(Insertion { at: end, rank: (3, 0), text, part: Part::Other });
    }
    insertions.sort_by_key(|insertion| (insertion.at, insertion.rank));
    woven.assemble(source, &insertions)?;
    Ok(woven)
}

/// Text that goes in at a place of the source.
struct Insertion {
    at: usize,
    /// Which goes first at the same place: ends of inner expressions, whole ones, starts of outer expressions.
    rank: (u8, isize),
    text: String,
    part: Part,
}

enum Part {
    /// A change by itself.
    Whole(usize),
    /// Before an expression: its changes, and where in the text they are.
    Start(Vec<(usize, Range<usize>)>),
    /// Behind the expression that was started last.
    End,
    Other,
}

fn wrap(range: Range<usize>, changes: &[(usize, String)], insertions: &mut Vec<Insertion>) {
    let mut text = String::from("(");
    let mut arms = Vec::new();
    for (id, change) in changes {
        let start = text.len();
        text.push_str(&format!("if crate::__mutant::is({id}) {{ {change} }}"));
        arms.push((*id, start..text.len()));
        text.push_str(" else ");
    }
    text.push_str("{ ");
    let len = isize::try_from(range.len()).unwrap_or(isize::MAX);
    insertions.push(Insertion { at: range.start, rank: (2, -len), text, part: Part::Start(arms) });
    insertions.push(Insertion { at: range.end, rank: (0, len), text: " })".into(), part: Part::End });
}

/// Where and how a change goes in.
enum Change {
    /// Another text for an expression.
    Expression(Range<usize>, String),
    /// An early return before a function's first statement.
    Before(usize),
    /// A guard for a match arm that has none.
    Guard(usize),
    Alone,
}

struct Binary {
    whole: Range<usize>,
    has_let: bool,
}

/// What the source is made of, by where cargo-mutants says that a change starts.
struct Shapes<'a> {
    lines: &'a Lines<'a>,
    /// By the operator's place.
    binaries: BTreeMap<usize, Binary>,
    /// Whole and operand.
    unaries: BTreeMap<usize, (Range<usize>, Range<usize>)>,
    /// End of the pattern, and the guard.
    arms: BTreeMap<usize, (usize, Option<Range<usize>>)>,
    /// Where the arms begin of a match that has no other for what they take.
    needed_arms: BTreeSet<usize>,
    guards: BTreeMap<usize, Range<usize>>,
    /// The struct expression, and where the next field or `..` begins.
    fields: BTreeMap<usize, (Range<usize>, usize)>,
    constant: Vec<Range<usize>>,
}

impl<'a> Shapes<'a> {
    fn new(lines: &'a Lines<'a>) -> Self {
        Self {
            lines,
            binaries: BTreeMap::new(),
            unaries: BTreeMap::new(),
            arms: BTreeMap::new(),
            needed_arms: BTreeSet::new(),
            guards: BTreeMap::new(),
            fields: BTreeMap::new(),
            constant: Vec::new(),
        }
    }

    fn range(&self, node: &impl Spanned) -> Range<usize> {
        self.lines.at(node.span().start())..self.lines.at(node.span().end())
    }

    fn change(&self, source: &str, mutant: &Mutant, span: &Range<usize>) -> Result<Change> {
        let text = |range: Range<usize>| source.get(range).unwrap_or_default();
        Ok(match mutant.genre {
            // `impl Iterator` is one type, whichever way the function returns.
            Genre::FnValue if mutant.replacement.starts_with("::std::iter::") => Change::Alone,
            Genre::FnValue => Change::Before(span.start),
            Genre::BinaryOperator => {
                let binary = self.binaries.get(&span.start).context("no operator there")?;
                let whole = binary.whole.clone();
                if binary.has_let {
                    return Ok(Change::Alone);
                }
                let left = text(whole.start..span.start);
                let right = text(span.end..whole.end);
                Change::Expression(whole, format!("{left}{}{right}", mutant.replacement))
            }
            Genre::UnaryOperator => {
                let (whole, operand) = self.unaries.get(&span.start).context("no operator there")?;
                Change::Expression(whole.clone(), text(operand.clone()).into())
            }
            Genre::MatchArm if self.needed_arms.contains(&span.start) => Change::Alone,
            Genre::MatchArm => match self.arms.get(&span.start).context("no arm there")? {
                (_, Some(guard)) => Change::Expression(guard.clone(), "false".into()),
                (at, None) => Change::Guard(*at),
            },
            Genre::MatchArmGuard => {
                let guard = self.guards.get(&span.start).context("no guard there")?;
                Change::Expression(guard.clone(), mutant.replacement.clone())
            }
            Genre::StructField => {
                let (whole, next) = self.fields.get(&span.start).context("no field there")?;
                let (before, after) = (text(whole.start..span.start), text(*next..whole.end));
                Change::Expression(whole.clone(), format!("{before}{after}"))
            }
        })
    }

    fn constant(&mut self, node: &impl Spanned) {
        let range = self.range(node);
        self.constant.push(range);
    }
}

impl<'ast> Visit<'ast> for Shapes<'_> {
    fn visit_expr_binary(&mut self, node: &'ast syn::ExprBinary) {
        let mut lets = Lets(false);
        lets.visit_expr_binary(node);
        let binary = Binary { whole: self.range(node), has_let: lets.0 };
        self.binaries.insert(self.range(&node.op).start, binary);
        syn::visit::visit_expr_binary(self, node);
    }

    fn visit_expr_unary(&mut self, node: &'ast syn::ExprUnary) {
        let shape = (self.range(node), self.range(&node.expr));
        self.unaries.insert(self.range(&node.op).start, shape);
        syn::visit::visit_expr_unary(self, node);
    }

    fn visit_expr_match(&mut self, node: &'ast syn::ExprMatch) {
        // `_ if ..` is no rest: each of the other arms is needed.
        let is_rest = |arm: &syn::Arm| arm.guard.is_none() && matches!(arm.pat, syn::Pat::Wild(_));
        if !node.arms.iter().any(is_rest) {
            let starts: Vec<_> = node.arms.iter().map(|arm| self.range(arm).start).collect();
            self.needed_arms.extend(starts);
        }
        syn::visit::visit_expr_match(self, node);
    }

    fn visit_arm(&mut self, node: &'ast syn::Arm) {
        let guard = node.guard.as_ref().map(|(_, guard)| self.range(guard));
        if let Some(guard) = &guard {
            self.guards.insert(guard.start, guard.clone());
        }
        let (start, pattern) = (self.range(node).start, self.range(&node.pat));
        self.arms.insert(start, (pattern.end, guard));
        syn::visit::visit_arm(self, node);
    }

    fn visit_expr_struct(&mut self, node: &'ast syn::ExprStruct) {
        let whole = self.range(node);
        let rest = node.dot2_token.as_ref().map_or(whole.end, |dots| self.range(dots).start);
        let starts: Vec<_> = node.fields.iter().map(|field| self.range(field).start).chain([rest]).collect();
        for pair in starts.windows(2) {
            if let [field, next] = pair {
                self.fields.insert(*field, (whole.clone(), *next));
            }
        }
        syn::visit::visit_expr_struct(self, node);
    }

    fn visit_item_fn(&mut self, node: &'ast syn::ItemFn) {
        if node.sig.constness.is_some() {
            self.constant(node);
        }
        syn::visit::visit_item_fn(self, node);
    }

    fn visit_impl_item_fn(&mut self, node: &'ast syn::ImplItemFn) {
        if node.sig.constness.is_some() {
            self.constant(node);
        }
        syn::visit::visit_impl_item_fn(self, node);
    }

    fn visit_item_const(&mut self, node: &'ast syn::ItemConst) {
        self.constant(node);
        syn::visit::visit_item_const(self, node);
    }

    fn visit_impl_item_const(&mut self, node: &'ast syn::ImplItemConst) {
        self.constant(node);
        syn::visit::visit_impl_item_const(self, node);
    }

    fn visit_trait_item_const(&mut self, node: &'ast syn::TraitItemConst) {
        self.constant(node);
        syn::visit::visit_trait_item_const(self, node);
    }

    fn visit_item_static(&mut self, node: &'ast syn::ItemStatic) {
        self.constant(node);
        syn::visit::visit_item_static(self, node);
    }
}

/// Is there a `let` in a chain of conditions? It binds for what follows it and cannot be moved into another expression.
struct Lets(bool);

impl<'ast> Visit<'ast> for Lets {
    fn visit_expr(&mut self, node: &'ast syn::Expr) {
        match node {
            syn::Expr::Let(_) => self.0 = true,
            syn::Expr::Binary(binary) => syn::visit::visit_expr_binary(self, binary),
            // A chain of its own, if any.
            _ => {}
        }
    }
}

/// From lines and columns to bytes.
struct Lines<'a> {
    source: &'a str,
    starts: Vec<usize>,
}

impl<'a> Lines<'a> {
    fn new(source: &'a str) -> Self {
        let starts = [0].into_iter().chain(source.match_indices('\n').map(|(at, _)| at + 1)).collect();
        Self { source, starts }
    }

    /// Lines from 1, columns from 0, as `syn` counts.
    fn at(&self, point: LineColumn) -> usize {
        let start = self.starts.get(point.line.saturating_sub(1)).copied().unwrap_or(self.source.len());
        let line = self.source.get(start..).unwrap_or_default();
        start + line.char_indices().nth(point.column).map_or(line.len(), |(at, _)| at)
    }

    fn place(&self, place: Place) -> Range<usize> {
        let at =
            |point: Point| self.at(LineColumn { line: point.line, column: point.column.saturating_sub(1) });
        at(place.start)..at(place.end)
    }
}

/// The changes of each file, with their numbers.
pub fn by_file(mutants: &[Mutant]) -> BTreeMap<&str, Vec<(usize, &Mutant)>> {
    let mut files: BTreeMap<&str, Vec<_>> = BTreeMap::new();
    for (id, mutant) in mutants.iter().enumerate() {
        files.entry(&mutant.file).or_default().push((id, mutant));
    }
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOURCE: &str = "\
#![no_std]
const fn f(a: u8, b: u8) -> bool {
    a & b == !3 && g(a | b)
}
fn g(a: u8) -> S {
    match a {
        1 | 2 => S { a, ..S::new() },
        3 if a != 4 => S::new(),
        _ => S::new(),
    }
}
";

    fn mutant(genre: &str, replacement: &str, (line, text): (usize, &str)) -> Mutant {
        let column = SOURCE.lines().nth(line - 1).unwrap().find(text).unwrap() + 1;
        let end = column + text.chars().count();
        serde_json::from_value(serde_json::json!({
            "name": "x", "file": "x.rs", "genre": genre, "replacement": replacement,
            "span": { "start": { "line": line, "column": column }, "end": { "line": line, "column": end } },
        }))
        .unwrap()
    }

    fn woven(mutants: &[Mutant], switch: Option<usize>) -> Woven {
        let numbered: Vec<_> = mutants.iter().enumerate().collect();
        let woven = weave(SOURCE, &numbered, switch).unwrap();
        syn::parse_file(&woven.text).unwrap();
        woven
    }

    #[test]
    fn each_kind_of_change_stands_beside_the_code() {
        for (kind, replacement, place, expected) in [
            ("FnValue", "true", (3, "a & b"), "{ return true; } a & b == "),
            ("BinaryOperator", "|", (3, "& "), "(if crate::__mutant::is(0) { a |b } else { a & b }) == !3"),
            (
                "BinaryOperator",
                "||",
                (3, "&&"),
                "{ a & b == !3 || g(a | b) } else { a & b == !3 && g(a | b) })",
            ),
            ("UnaryOperator", "", (3, "!"), "== (if crate::__mutant::is(0) { 3 } else { !3 })"),
            ("MatchArm", "", (7, "1 | 2 => S { a, ..S::new() }"), "1 | 2 if !crate::__mutant::is(0) =>"),
            (
                "MatchArm",
                "",
                (8, "3 if a != 4 => S::new()"),
                "3 if (if crate::__mutant::is(0) { false } else",
            ),
            (
                "MatchArmGuard",
                "true",
                (8, "a != 4"),
                "if (if crate::__mutant::is(0) { true } else { a != 4 })",
            ),
            (
                "StructField",
                "",
                (7, "a, "),
                "(if crate::__mutant::is(0) { S { ..S::new() } } else { S { a, ..",
            ),
        ] {
            let text = woven(&[mutant(kind, replacement, place)], None).text;
            assert!(text.contains(expected), "{kind}: {text}");
        }
    }

    #[test]
    fn changes_nest_and_each_has_its_place() {
        let mutants = [
            mutant("FnValue", "false", (3, "a & b")),
            mutant("BinaryOperator", "||", (3, "&&")),
            mutant("BinaryOperator", "|", (3, "&")),
            mutant("BinaryOperator", "^", (3, "&")),
            mutant("BinaryOperator", "&", (3, "|")),
        ];
        let woven = woven(&mutants, Some(5));
        assert!(woven.text.starts_with(FEATURES) && woven.text.contains("[AtomicBool; 5]"));
        assert_eq!(woven.constant, [0, 1, 2, 3, 4], "the compiler may run all of them");
        let at = |text: &str| {
            let start = woven.text.find(text).unwrap();
            start..start + text.len()
        };
        assert_eq!(woven.blamed(&[at("return false")]), [0]);
        assert_eq!(woven.blamed(&[at("{ a ^ b }")]), [3]);
        assert_eq!(woven.blamed(&[at("{ a & b }) ==")]), [1], "what is left is around it");
        assert_eq!(woven.blamed(&[at("{ a & b })")]), [2, 3]);
        assert_eq!(woven.blamed(&[at("match a")]), [] as [usize; 0]);
    }

    #[test]
    fn another_iterator_is_another_type() {
        let woven = woven(&[mutant("FnValue", "::std::iter::empty()", (3, "a & b"))], None);
        assert_eq!((woven.alone, woven.text.as_str()), (vec![0], SOURCE));
    }

    #[test]
    fn a_let_in_a_condition_stays_where_it_is() {
        let source = "fn f(a: Option<u8>) -> bool { if let Some(b) = a && b == 1 { true } else { false } }";
        let column = source.find("&&").unwrap() + 1;
        let mut change = mutant("BinaryOperator", "||", (3, "&&"));
        change.span = Place { start: Point { line: 1, column }, end: Point { line: 1, column: column + 2 } };
        let woven = weave(source, &[(7, &change)], None).unwrap();
        assert_eq!((woven.alone, woven.text.as_str()), (vec![7], source));
    }
}
