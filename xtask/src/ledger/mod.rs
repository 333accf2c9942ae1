//! The ledger: what the host executes for one operation and what is dear on a CPU, counted by the emulator, and an estimate of its cycles.
//!
//! The emulator writes a line for each batch between two marks of the benchmark guest (docs/lab-bochs.md); the runner's record names
//! the mark of its fastest batch, whose line is its ledger. A key `family:detail` belongs to `family`, whose count is their sum.

mod costs;
mod page;

use std::{collections::BTreeMap, fs, ops::Range, path::Path};

use anyhow::{Context, Result};
use serde::Deserialize;

pub use costs::{Costs, Vendor};
pub use page::{Row, Side, prices, print, section};

/// Counts for one operation, by family and by `family:detail`.
pub type Ledger = BTreeMap<String, f64>;

/// One line of the emulator's file.
#[derive(Debug, Clone, Deserialize)]
struct Line {
    mark: u64,
    operations: u64,
    counts: BTreeMap<String, u64>,
}

/// All batches of a machine's run, by their marks.
#[derive(Debug, Default)]
pub struct Batches(BTreeMap<u64, Ledger>);

impl Batches {
    /// Reads the emulator's file; one that is not there has no batches.
    pub fn read(file: &Path) -> Result<Batches> {
        match fs::read_to_string(file) {
            Ok(text) => Batches::parse(&text).with_context(|| format!("in {}", file.display())),
            Err(_) => Ok(Batches::default()),
        }
    }

    pub fn parse(text: &str) -> Result<Batches> {
        let mut batches = BTreeMap::new();
        for line in text.lines() {
            let line: Line = serde_json::from_str(line).with_context(|| format!("`{line}` is no batch"))?;
            batches.insert(line.mark, per_operation(&line));
        }
        Ok(Batches(batches))
    }

    /// Of the batches with these marks the one that the host disturbed least.
    pub fn least(&self, marks: Range<u64>) -> Option<&Ledger> {
        let instructions = |ledger: &Ledger| ledger.get("instructions").copied().unwrap_or_default();
        let batches = marks.filter_map(|mark| self.0.get(&mark));
        batches.min_by(|a, b| instructions(a).total_cmp(&instructions(b)))
    }
}

fn per_operation(line: &Line) -> Ledger {
    let mut ledger = Ledger::new();
    for (key, count) in &line.counts {
        let each = *count as f64 / line.operations.max(1) as f64;
        *ledger.entry(key.clone()).or_default() += each;
        if let Some((family, _)) = key.split_once(':') {
            *ledger.entry(family.to_string()).or_default() += each;
        }
    }
    ledger
}

#[cfg(test)]
mod tests {
    use super::Batches;

    /// A family is the sum of its details, a mark finds its own batch, and counts are for one operation.
    #[test]
    fn batches_are_found_by_their_mark() {
        let text = r#"{"mark":5,"operations":250,"counts":{"vmread:0x4402":250,"vmread:0x681e":500,"locked":125}}
{"mark":6,"operations":250,"counts":{}}"#;
        let batches = Batches::parse(text).unwrap();
        let ledger = batches.least(5..6).unwrap();
        let of = |key: &str| ledger.get(key).copied();
        assert_eq!((of("vmread"), of("vmread:0x681e"), of("locked")), (Some(3.0), Some(2.0), Some(0.5)));
        assert!(batches.least(6..7).unwrap().is_empty() && batches.least(7..9).is_none());
        assert!(Batches::parse("{").is_err());
    }
}
