//! Published cycles of dear instructions (costs.toml), and the estimate that they give.

use std::{collections::BTreeMap, fmt};

use anyhow::{Context, Result};
use serde::Deserialize;

use super::Ledger;

/// The table.
#[derive(Debug, Clone, Deserialize)]
pub struct Costs {
    cost: Vec<Cost>,
}

/// Cycles of some keys, on top of what every instruction costs.
#[derive(Debug, Clone, Deserialize)]
pub struct Cost {
    keys: Vec<String>,
    /// Cycles on Intel's CPUs.
    pub intel: f64,
    /// Cycles on AMD's.
    pub amd: f64,
    /// How the figure was come by.
    pub kind: Kind,
    /// Where it stands, or after what it was chosen.
    pub source: String,
}

impl Cost {
    /// Its keys, for people.
    pub fn name(&self) -> String {
        self.keys.join(", ")
    }
}

/// How a figure was come by (head of costs.toml).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    Read,
    Recalled,
    Assumed,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Read => "read",
            Kind::Recalled => "recalled",
            Kind::Assumed => "assumed",
        })
    }
}

/// Whose CPU the cycles are of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Vendor {
    Intel,
    Amd,
}

/// The key for what any instruction costs.
const INSTRUCTION: &str = "instruction";

impl Costs {
    /// The repository's table.
    pub fn published() -> Result<Costs> {
        toml::from_str(include_str!("costs.toml")).context("costs.toml")
    }

    /// Estimated cycles of one operation with so many instructions, host and guest together.
    pub fn estimate(&self, vendor: Vendor, instructions: f64, ledger: &Ledger) -> f64 {
        let cycles = self.cycles(vendor);
        let of = |key: &str| cycles.get(key).copied();
        let dear: f64 = ledger
            .iter()
            .filter(|(key, _)| !is_sum(key, ledger))
            .map(|(key, count)| {
                let family = key.split_once(':').map_or(key.as_str(), |(family, _)| family);
                count * of(key).or_else(|| of(family)).unwrap_or(0.0)
            })
            .sum();
        instructions * of(INSTRUCTION).unwrap_or(1.0) + dear
    }

    /// Has this family, or one of its details, a price?
    pub fn knows(&self, family: &str) -> bool {
        self.cost
            .iter()
            .flat_map(|cost| &cost.keys)
            .any(|key| key.strip_prefix(family).is_some_and(|rest| rest.is_empty() || rest.starts_with(':')))
    }

    /// The rows, in the table's order.
    pub fn rows(&self) -> &[Cost] {
        &self.cost
    }

    fn cycles(&self, vendor: Vendor) -> BTreeMap<&str, f64> {
        let of = |cost: &Cost| if vendor == Vendor::Intel { cost.intel } else { cost.amd };
        self.cost.iter().flat_map(|cost| cost.keys.iter().map(move |key| (key.as_str(), of(cost)))).collect()
    }
}

/// A family that is the sum of its details.
fn is_sum(key: &str, ledger: &Ledger) -> bool {
    !key.contains(':')
        && ledger.keys().any(|other| other.strip_prefix(key).is_some_and(|rest| rest.starts_with(':')))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::{Costs, Vendor};
    use crate::ledger::Ledger;

    fn costs() -> Costs {
        let row = |keys: &str, intel: u32, amd: u32| {
            format!(
                "[[cost]]\nkeys = [{keys}]\nintel = {intel}\namd = {amd}\nkind = \"read\"\nsource = \"s\"\n"
            )
        };
        let rows = [
            row("\"instruction\"", 1, 2),
            row("\"wrmsr\"", 100, 200),
            row("\"wrmsr:0x830\"", 10, 20),
            row("\"locked\"", 5, 6),
        ];
        toml::from_str(&rows.concat()).unwrap()
    }

    /// A detail's own price goes before its family's, a family's sum is not counted again, what has no price is an instruction.
    #[test]
    fn details_are_counted_once() {
        let counts =
            [("wrmsr", 3.0), ("wrmsr:0x48", 1.0), ("wrmsr:0x830", 2.0), ("locked", 2.0), ("interrupt", 9.0)];
        let ledger: Ledger = counts.into_iter().map(|(key, count)| (key.to_string(), count)).collect();
        assert_eq!(costs().estimate(Vendor::Intel, 50.0, &ledger), 50.0 + 100.0 + 20.0 + 10.0);
        assert_eq!(costs().estimate(Vendor::Amd, 50.0, &ledger), 100.0 + 200.0 + 40.0 + 12.0);
    }

    #[test]
    fn a_family_is_known_by_a_detail() {
        assert!(costs().knows("wrmsr") && costs().knows("locked"));
        assert!(!costs().knows("wrms") && !costs().knows("lock"));
    }

    /// The table: no key twice, each figure with its source.
    #[test]
    fn the_table_is_well_formed() {
        let costs = Costs::published().unwrap();
        let keys: Vec<_> = costs.rows().iter().flat_map(|cost| &cost.keys).collect();
        assert_eq!(keys.iter().collect::<BTreeSet<_>>().len(), keys.len());
        assert!(keys.iter().any(|key| *key == super::INSTRUCTION));
        assert!(costs.rows().iter().all(|cost| cost.source.len() > 3));
    }
}
