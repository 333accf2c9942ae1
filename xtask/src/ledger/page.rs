//! The ledger for people: lines on the terminal, and docs/ledger.md.

use std::{collections::BTreeSet, fmt::Write};

use super::{Costs, Ledger};

/// One operation on both modules, as far as measured.
#[derive(Debug, Clone, Copy, Default)]
pub struct Row<'a> {
    pub op: &'a str,
    pub ours: Option<Side<'a>>,
    pub stock: Option<Side<'a>>,
}

/// One operation on one module.
#[derive(Debug, Clone, Copy)]
pub struct Side<'a> {
    pub instructions: f64,
    pub exits: Option<f64>,
    pub cycles: Option<f64>,
    pub ledger: Option<&'a Ledger>,
}

/// A column, and the families that it adds up.
type Column = (&'static str, &'static [&'static str]);

const COLUMNS: [Column; 14] = [
    ("VM entries", &["vmentry"]),
    ("VMREAD", &["vmread"]),
    ("VMWRITE", &["vmwrite"]),
    ("not clean", &["not_clean"]),
    ("RDMSR", &["rdmsr"]),
    ("WRMSR", &["wrmsr"]),
    ("XSETBV", &["xsetbv"]),
    ("CR", &["mov_cr"]),
    ("DR", &["mov_dr"]),
    ("VERW", &["verw"]),
    ("INV*", &["invept", "invvpid", "invlpga", "invpcid", "invlpg"]),
    ("serialising", &["lfence", "mfence", "cpuid", "serialize", "iret", "wbinvd"]),
    ("locked", &["locked"]),
    ("IPIs", &["ipi"]),
];

/// A count that differs by less than this in a batch is the host's own business in it: its timer, a page fault.
const NOISE: f64 = 0.05;

/// One figure of both modules.
#[derive(Debug, Clone, PartialEq)]
pub struct Cell {
    pub name: String,
    pub ours: f64,
    pub stock: f64,
}

impl Cell {
    fn above(&self) -> bool {
        self.ours > self.stock + NOISE
    }

    fn is_empty(&self) -> bool {
        self.ours < NOISE && self.stock < NOISE
    }

    fn text(&self) -> String {
        format!("{}/{}", number(self.ours), number(self.stock))
    }
}

/// At most two decimals, none for what is a whole number but for noise.
fn number(count: f64) -> String {
    let count = count.abs(); // The sum of nothing is -0.
    if (count - count.round()).abs() < NOISE { format!("{count:.0}") } else { format!("{count:.2}") }
}

/// Every column, then the other families that have a price.
pub fn cells(ours: &Ledger, stock: &Ledger, costs: &Costs) -> Vec<Cell> {
    let sum = |ledger: &Ledger, families: &[&str]| -> f64 {
        families.iter().filter_map(|family| ledger.get(*family)).sum()
    };
    let cell = |name: &str, families: &[&str]| Cell {
        name: name.to_string(),
        ours: sum(ours, families),
        stock: sum(stock, families),
    };
    let listed: BTreeSet<&str> = COLUMNS.iter().flat_map(|(_, families)| families.iter().copied()).collect();
    let all: BTreeSet<&str> = ours.keys().chain(stock.keys()).map(String::as_str).collect();
    let others = all
        .into_iter()
        .filter(|key| !key.contains(':') && !listed.contains(key) && costs.knows(key))
        .map(|key| cell(key, &[key]));
    COLUMNS.iter().map(|(name, families)| cell(name, families)).chain(others).collect()
}

/// Prints a line for each row: every figure that is not 0, of both columns; those where the first stands above with a star.
pub fn print((first, second): (&str, &str), rows: &[Row<'_>], costs: &Costs) {
    println!("ledger: for one operation, in the host, {first}/{second}; * above {second}");
    for row in rows {
        let Some((ours, stock)) = both(row) else { continue };
        let shown: Vec<_> = cells(ours, stock, costs)
            .iter()
            .filter(|cell| !cell.is_empty())
            .map(|cell| format!("{}{} {}", if cell.above() { "*" } else { "" }, cell.name, cell.text()))
            .collect();
        println!("{:<28} {}", row.op, shown.join(", "));
        let details = details_above(ours, stock);
        if !details.is_empty() {
            println!("{:<28}   above: {}", "", details.join(", "));
        }
    }
    println!();
}

fn both<'a>(row: &Row<'a>) -> Option<(&'a Ledger, &'a Ledger)> {
    Some((row.ours?.ledger?, row.stock?.ledger?))
}

/// Which MSR, field, register, group, or instruction of a column of several it is that stands above stock.
fn details_above(ours: &Ledger, stock: &Ledger) -> Vec<String> {
    let shared =
        |key: &str| COLUMNS.iter().any(|(_, families)| families.len() > 1 && families.contains(&key));
    ours.iter()
        .filter(|(key, _)| key.contains(':') || shared(key))
        .map(|(key, count)| Cell {
            name: key.clone(),
            ours: *count,
            stock: stock.get(key).copied().unwrap_or(0.0),
        })
        .filter(Cell::above)
        .map(|cell| format!("{} {}", cell.name, cell.text()))
        .collect()
}

/// One machine's rows as a section of docs/ledger.md: the columns, then what stands above stock in each row.
pub fn section(machine: &str, rows: &[Row<'_>], costs: &Costs) -> String {
    let mut text = format!("## {machine}\n\n| operation | instructions | cycles, estimate | ratio |");
    for (name, _) in COLUMNS {
        write!(text, " {name} |").ok();
    }
    writeln!(text, "\n|{}", "---|".repeat(COLUMNS.len() + 4)).ok();
    for row in rows {
        line(&mut text, row, costs);
    }
    text.push_str("\nAbove stock, by the MSR, field, register or group:\n\n");
    for row in rows {
        let Some((ours, stock)) = both(row) else { continue };
        let mut above = details_above(ours, stock);
        let cells = cells(ours, stock, costs);
        let others = cells.iter().skip(COLUMNS.len()).filter(|cell| cell.above());
        above.extend(others.map(|cell| format!("{} {}", cell.name, cell.text())));
        if !above.is_empty() {
            writeln!(text, "- `{}`: {}", row.op, above.join(", ")).ok();
        }
    }
    text
}

fn line(text: &mut String, row: &Row<'_>, costs: &Costs) {
    let (Some(ours), Some(stock), Some(ledgers)) = (row.ours, row.stock, both(row)) else { return };
    let cycles = ours.cycles.zip(stock.cycles);
    let ratio = cycles
        .filter(|(_, stock)| *stock > 0.0)
        .map_or("-".to_string(), |(ours, stock)| format!("{:.2}", ours / stock));
    let cycles = cycles.map_or("-".to_string(), |(ours, stock)| format!("{ours:.0}/{stock:.0}"));
    write!(
        text,
        "| `{}` | {:.0}/{:.0} | {cycles} | {ratio} |",
        row.op, ours.instructions, stock.instructions
    )
    .ok();
    for cell in cells(ledgers.0, ledgers.1, costs).iter().take(COLUMNS.len()) {
        let shown = match cell {
            cell if cell.is_empty() => String::new(),
            cell if cell.above() => format!("**{}**", cell.text()),
            cell => cell.text(),
        };
        write!(text, " {shown} |").ok();
    }
    text.push('\n');
}

/// The table of costs, as it stands in docs/ledger.md.
pub fn prices(costs: &Costs) -> String {
    let mut text = "| counted | Intel | AMD | | source |\n|---|---|---|---|---|\n".to_string();
    for cost in costs.rows() {
        writeln!(
            text,
            "| {} | {} | {} | {} | {} |",
            cost.name(),
            cost.intel,
            cost.amd,
            cost.kind,
            cost.source
        )
        .ok();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::{Costs, Ledger, Row, Side, cells, number, section};

    fn ledger(counts: &[(&str, f64)]) -> Ledger {
        counts.iter().map(|(key, count)| (key.to_string(), *count)).collect()
    }

    /// What stands above stock is seen in its column and by its detail; what differs by a tick of the host's timer is not.
    #[test]
    fn above_stock_is_marked() {
        let costs = Costs::published().unwrap();
        let ours = ledger(&[
            ("vmread", 7.0),
            ("vmread:0x4402", 1.0),
            ("vmread:0x6400", 6.0),
            ("lfence", 2.0),
            ("locked", 2.01),
        ]);
        let stock =
            ledger(&[("vmread", 6.0), ("vmread:0x4402", 1.0), ("vmread:0x6400", 5.0), ("locked", 2.0)]);
        let above: Vec<_> = cells(&ours, &stock, &costs).into_iter().filter(|cell| cell.above()).collect();
        let above: Vec<_> = above.iter().map(|cell| cell.name.as_str()).collect();
        assert_eq!(above, ["VMREAD", "serialising"]);
        let side =
            |ledger| Some(Side { instructions: 10.0, exits: None, cycles: Some(20.0), ledger: Some(ledger) });
        let row = Row { op: "cpuid", ours: side(&ours), stock: side(&stock) };
        let text = section("vmx", &[row], &costs);
        assert!(
            text.contains("| **7/6** |") && text.contains("| 2/2 |") && text.contains("| 20/20 | 1.00 |")
        );
        assert!(text.contains("- `cpuid`: lfence 2/0, vmread:0x6400 6/5\n"));
    }

    #[test]
    fn numbers_are_short() {
        assert_eq!((number(3.01), number(0.25), number(-0.0)), ("3".into(), "0.25".into(), "0".into()));
    }
}
