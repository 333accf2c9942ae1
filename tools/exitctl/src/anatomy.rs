//! `exitctl anatomy`: one picture of what exits are made of, from what `cargo xtask anatomy` has counted.

use crate::out;
use crate::plot::{self, Anchor, Colour, FAINT, PALETTE, Picture, step};
use anyhow::{Context, Result, bail, ensure};
use clap::{Args, ValueEnum};
use serde::Deserialize;
use std::cmp::Reverse;
use std::fs;
use std::path::{Path, PathBuf};

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// What `cargo xtask anatomy` wrote: target/anatomy/latest.json.
    file: PathBuf,
    /// The picture, .svg or .png; may be given several times.
    #[arg(long, required = true, value_parser = plot::file)]
    plot: Vec<PathBuf>,
    /// What a box is as wide as.
    #[arg(long, value_enum, default_value_t)]
    by: By,
    /// Only these operations.
    #[arg(long, value_name = "OPERATION")]
    only: Vec<String>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum By {
    /// Counted.
    #[default]
    Instructions,
    /// Estimated.
    Cycles,
}

#[derive(Debug, Deserialize)]
struct Exit {
    machine: String,
    op: String,
    module: String,
    exit: usize,
    sections: Vec<Section>,
}

#[derive(Debug, Deserialize)]
struct Section {
    name: String,
    instructions: f64,
    cycles: f64,
}

impl Section {
    fn size(&self, by: By) -> f64 {
        match by {
            By::Instructions => self.instructions,
            By::Cycles => self.cycles,
        }
    }
}

impl Exit {
    fn sum(&self, by: By) -> f64 {
        self.sections.iter().map(|section| section.size(by)).sum()
    }

    fn title(&self) -> String {
        if self.exit == 0 { self.op.clone() } else { format!("{}, exit {}", self.op, self.exit + 1) }
    }
}

pub(crate) fn run(o: &Options) -> Result<()> {
    let exits = read(&o.file, &o.only)?;
    for path in &o.plot {
        picture(&exits, o.by).save(path)?;
        out::print(&format!("{}\n", path.display()))?;
    }
    Ok(())
}

/// The file's exits, or only those of some operations.
fn read(file: &Path, only: &[String]) -> Result<Vec<Exit>> {
    let name = file.display();
    let text = fs::read_to_string(file).with_context(|| {
        format!("{name}: cargo xtask anatomy writes such a file, target/anatomy/latest.json")
    })?;
    let mut exits: Vec<Exit> =
        serde_json::from_str(&text).with_context(|| format!("{name} is no file of cargo xtask anatomy"))?;
    let mut ops: Vec<_> = exits.iter().map(|exit| exit.op.clone()).collect();
    ensure!(!ops.is_empty(), "{name} has no exit");
    ops.dedup();
    if let Some(op) = only.iter().find(|op| !ops.contains(op)) {
        bail!("{name}: there is no {op}; there are {}", ops.join(", "));
    }
    exits.retain(|exit| only.is_empty() || only.contains(&exit.op));
    Ok(exits)
}

const WIDTH: f32 = 1000.0;
const LEFT: f32 = 190.0;
/// For the sums behind the longest lane.
const RIGHT: f32 = 190.0;
const LANE: f32 = 20.0;

/// A lane for each module, under the operation's name; sections in their order, each in the colour of the legend.
fn picture(exits: &[Exit], by: By) -> Picture {
    let mut titles = Vec::new();
    for exit in exits {
        if !titles.contains(&exit.title()) {
            titles.push(exit.title());
        }
    }
    let names = legend_of(exits);
    let legend = 60.0 + 20.0 * names.len().div_ceil(2) as f32;
    let group = 2.0 * LANE + 26.0;
    let bottom = legend + group * titles.len() as f32;
    let mut p = Picture::new(WIDTH, bottom + 50.0);
    let machine = exits.first().map_or("", |exit| exit.machine.as_str());
    let unit = if by == By::Instructions { "instructions of the host" } else { "estimated cycles" };
    p.words(
        20.0,
        28.0,
        18.0,
        Anchor::Start,
        format!("What one exit is made of ({machine}): {unit}, in their order"),
    );
    for (n, name) in names.iter().enumerate() {
        let (x, y) = (20.0 + 490.0 * (n % 2) as f32, 44.0 + 20.0 * (n / 2) as f32);
        p.rectangle(x, y, 14.0, 14.0, colour(n));
        p.words(x + 20.0, y + 12.0, 13.0, Anchor::Start, name);
    }
    let most = exits.iter().map(|exit| exit.sum(by)).fold(1.0, f64::max);
    let scale = f64::from(WIDTH - LEFT - RIGHT) / most;
    let mut tick = 0.0;
    while tick <= most {
        let x = LEFT + (tick * scale) as f32;
        p.rectangle(x, legend, 1.0, bottom - legend, FAINT);
        p.words(x, bottom + 18.0, 12.0, Anchor::Middle, format!("{tick:.0}"));
        tick += step(most);
    }
    for exit in exits {
        let row = titles.iter().position(|title| *title == exit.title()).unwrap_or(0);
        let lane = if exit.module == "kvm" { 0.0 } else { 1.0 };
        let y = legend + 8.0 + group * row as f32 + lane * (LANE + 2.0);
        if lane == 0.0 {
            p.words(20.0, y + 15.0, 13.0, Anchor::Start, exit.title());
        }
        let module = if lane == 0.0 { "stock" } else { "Exitless" };
        p.words(LEFT - 8.0, y + 15.0, 12.0, Anchor::End, module);
        let mut x = LEFT;
        for section in &exit.sections {
            let width = (section.size(by) * scale) as f32;
            let n = names.iter().position(|name| *name == section.name).unwrap_or(0);
            p.rectangle(x, y, width, LANE, colour(n));
            x += width;
        }
        let sum = format!("{:.0} (about {:.0} cycles)", exit.sum(By::Instructions), exit.sum(By::Cycles));
        p.words(x + 6.0, y + 15.0, 12.0, Anchor::Start, sum);
    }
    p
}

/// All sections' names, in the order of the exits that have most of them.
fn legend_of(exits: &[Exit]) -> Vec<String> {
    let mut longest: Vec<_> = exits.iter().collect();
    longest.sort_by_key(|exit| Reverse(exit.sections.len()));
    let mut names = Vec::new();
    for section in longest.iter().flat_map(|exit| &exit.sections) {
        if !names.contains(&section.name) {
            names.push(section.name.clone());
        }
    }
    names
}

fn colour(n: usize) -> Colour {
    let [r, g, b] = PALETTE[n % PALETTE.len()];
    // A second round is darker.
    if n < PALETTE.len() { [r, g, b] } else { [r / 2, g / 2, b / 2] }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is wrong with a file, or what it has, is said.
    #[test]
    fn files_and_operations() {
        let file = std::env::temp_dir().join(format!("exitctl-anatomy-{}", std::process::id()));
        let said =
            |only: &[&str]| match read(&file, &only.iter().map(|op| op.to_string()).collect::<Vec<_>>()) {
                Ok(exits) => exits.iter().map(Exit::title).collect::<Vec<_>>().join(" "),
                Err(e) => e.to_string(),
            };
        assert!(said(&[]).contains("cargo xtask anatomy writes such a file"), "{}", said(&[]));
        fs::write(&file, "{}").unwrap();
        assert!(said(&[]).ends_with("is no file of cargo xtask anatomy"), "{}", said(&[]));
        fs::write(&file, "[]").unwrap();
        assert!(said(&[]).ends_with("has no exit"), "{}", said(&[]));
        let exit = |op| format!(r#"{{"machine":"vmx","op":"{op}","module":"kvm","exit":0,"sections":[]}}"#);
        fs::write(&file, format!("[{},{},{}]", exit("cpuid"), exit("cpuid"), exit("hlt"))).unwrap();
        assert_eq!((said(&[]).as_str(), said(&["hlt"]).as_str()), ("cpuid cpuid hlt", "hlt"));
        assert!(
            said(&["hlt", "foo"]).ends_with("there is no foo; there are cpuid, hlt"),
            "{}",
            said(&["foo"])
        );
        fs::remove_file(file).unwrap();
    }

    /// A box is as wide as its share, lanes are told apart, and the legend has the order of the longest exit.
    #[test]
    fn a_lane_for_each_module() {
        let exit = |module: &str, sections: &[(&str, f64)]| Exit {
            machine: "vmx".into(),
            op: "hlt".into(),
            module: module.into(),
            exit: 0,
            sections: sections
                .iter()
                .map(|(name, n)| Section { name: name.to_string(), instructions: *n, cycles: 2.0 * n })
                .collect(),
        };
        let exits = [exit("exitless", &[("answer", 50.0)]), exit("kvm", &[("exit", 60.0), ("entry", 40.0)])];
        assert_eq!(legend_of(&exits), ["exit", "entry", "answer"]);
        let shown = format!("{:?}", picture(&exits, By::Instructions));
        let width = WIDTH - LEFT - RIGHT;
        for part in [0.6, 0.4, 0.5].map(|share| format!("w: {:?}", width * share)) {
            assert!(shown.contains(&part), "{part} in {shown}");
        }
        assert!(shown.contains("100 (about 200 cycles)"), "{shown}");
    }
}
