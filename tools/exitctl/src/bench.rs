//! `exitctl bench`: what exits cost here, by the lab's runner and its micro guests, with whatever module is loaded; and what differs
//! between two measurements, beyond noise.

use crate::device::Device;
use crate::names::Names;
use crate::out;
use crate::plot::{self, Anchor, FAINT, INK, PALETTE, Picture, step};
use anyhow::{Context, Result, bail, ensure};
use clap::{Args, Subcommand};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::{env, fs};

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Options {
    #[command(subcommand)]
    compare: Option<What>,
    #[command(flatten)]
    measure: Measure,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Ratios of two measurements, and which are more than noise.
    Compare {
        /// The first, of `exitctl bench --json`.
        a: PathBuf,
        /// The second, which is told beside the first.
        b: PathBuf,
        /// Draw it: .svg or .png; may be given several times.
        #[arg(long, value_parser = plot::file)]
        plot: Vec<PathBuf>,
    },
}

#[derive(Debug, Args)]
struct Measure {
    /// Operations whose name contains one of these (default: all that a clock can measure).
    patterns: Vec<String>,
    /// Write the measurement here, for `compare`.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Each operation so often, in runs of their own.
    #[arg(long, default_value = "5", value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// With every mechanism off (root): the switches of VMs to come are moved, and moved back at the end.
    #[arg(long)]
    off: bool,
    /// exitless-runner (default: beside this program, or in PATH).
    #[arg(long)]
    runner: Option<PathBuf>,
}

/// What was measured, where, and with what.
#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq)]
struct Measurement {
    cpu: String,
    kernel: String,
    /// Words of the kernel's command line that choose the CPU's mitigations; empty: the kernel's own choice.
    mitigations: String,
    /// `exitless` or `kvm`.
    module: String,
    /// Mechanisms that new VMs have on; empty on stock KVM.
    mechanisms: Vec<String>,
    /// What each operation took in each round, in ticks of the TSC.
    ticks: BTreeMap<String, Vec<f64>>,
    /// Exits for one operation, where the module counts them.
    exits: BTreeMap<String, f64>,
}

impl Measurement {
    fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
        let read: Self = serde_json::from_str(&text)
            .with_context(|| format!("{} is no measurement of exitctl bench", path.display()))?;
        // Ratios are of numbers.
        let none = |ticks: &Vec<f64>| ticks.is_empty() || ticks.iter().any(|n| *n <= 0.0);
        if let Some((op, _)) = read.ticks.iter().find(|(_, ticks)| none(ticks)) {
            bail!("{}: {op} has no ticks", path.display());
        }
        Ok(read)
    }

    /// Names of what was measured.
    fn ops(&self) -> String {
        let all: Vec<_> = self.ticks.keys().map(String::as_str).collect();
        if all.is_empty() { "none".into() } else { all.join(", ") }
    }

    fn name(&self) -> String {
        match (self.module.as_str(), self.mechanisms.len()) {
            ("kvm", _) => "stock KVM".into(),
            (module, 0) => format!("{module}, all off"),
            (module, n) => format!("{module}, {n} mechanisms on"),
        }
    }
}

/// A line of the runner's.
#[derive(Deserialize)]
struct Record {
    op: String,
    ticks: Option<f64>,
    exits: Option<f64>,
}

pub(crate) fn run(o: &Options) -> Result<()> {
    match &o.compare {
        Some(What::Compare { a, b, plot }) => {
            let (a, b) = (Measurement::read(a)?, Measurement::read(b)?);
            let rows = compared(&a, &b);
            ensure!(
                !rows.is_empty(),
                "the two have no operation in common: A has {}, B has {}; measure both with the same PATTERNS",
                a.ops(),
                b.ops()
            );
            out::print(&report(&a, &b, &rows))?;
            plot.iter().try_for_each(|path| picture(&a, &b, &rows).save(path))
        }
        None => measure(&o.measure),
    }
}

const SWAP: &str = "\nThe other module, with no VM running (docs/admin.md):\n  \
    rmmod kvm_intel kvm; insmod target/kmod/$(uname -r)/exitless.ko   # to Exitless (AMD: kvm_amd; installed: modprobe exitless)\n  \
    rmmod exitless; modprobe kvm_intel   # and back (AMD: kvm_amd)\n\
    then: exitctl bench --json OTHER.json; exitctl bench compare THIS.json OTHER.json\n";

fn measure(o: &Measure) -> Result<()> {
    let module = ["exitless", "kvm"].into_iter().find(|name| Path::new("/sys/module").join(name).exists());
    let module = module.context("neither exitless nor kvm is loaded")?;
    let runner = runner(o.runner.as_deref())?;
    // Ends the runner, or the round after it, and not this program before the switches are back.
    let ended = Arc::new(AtomicBool::new(false));
    for signal in [libc::SIGINT, libc::SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&ended))?;
    }
    let switches = (o.off && module == "exitless").then(Switches::all_off).transpose()?;
    let mut found = Measurement {
        cpu: cpu(),
        kernel: fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().into(),
        mitigations: mitigations(&fs::read_to_string("/proc/cmdline").unwrap_or_default()),
        module: module.into(),
        mechanisms: if module == "exitless" && !o.off { wanted()? } else { Vec::new() },
        ..Measurement::default()
    };
    for round in 0..o.rounds {
        ensure!(!ended.load(Ordering::Relaxed), "ended by a signal");
        add(&mut found, &one_round(&runner, &o.patterns).with_context(|| format!("round {}", round + 1))?)?;
    }
    if let Some(switches) = switches {
        switches.back()?;
    }
    ensure!(!found.ticks.is_empty(), "no operation has such a name: {} list names all", runner.display());
    let rows = found.ticks.iter().map(|(op, ticks)| {
        let (least, most) = range(ticks);
        let exits = found.exits.get(op).map_or("-".into(), |exits| format!("{exits:.2}"));
        vec![op.clone(), format!("{:.0}", median(ticks)), format!("{least:.0} - {most:.0}"), exits]
    });
    let table = out::table(&["operation", "ticks", "from - to", "exits"], &[1, 2, 3], rows);
    out::print(&format!("{} on {}, Linux {}\n{table}{SWAP}", found.name(), found.cpu, found.kernel))?;
    if let Some(path) = &o.json {
        fs::write(path, serde_json::to_string_pretty(&found)? + "\n")
            .with_context(|| path.display().to_string())?;
    }
    Ok(())
}

/// The defaults as they were, for their way back also where a measurement fails.
struct Switches {
    on: u64,
    done: bool,
}

impl Switches {
    fn all_off() -> Result<Self> {
        let d = Device::open_to_switch()?;
        let names = Names::read(&d)?;
        let on =
            names.mechanisms.iter().enumerate().filter(|(_, m)| m.default).fold(0, |on, (n, _)| on | 1 << n);
        let all = (1 << names.mechanisms.len()) - 1;
        d.switch(0, 0, all)?;
        Ok(Self { on, done: false })
    }

    fn back(mut self) -> Result<()> {
        self.done = true;
        self.restore()
    }

    fn restore(&self) -> Result<()> {
        Device::open_to_switch()?.switch(0, self.on, 0)
    }
}

impl Drop for Switches {
    fn drop(&mut self) {
        if !self.done
            && let Err(e) = self.restore()
        {
            eprintln!("exitctl: mechanisms of VMs to come are still off: {e:#}");
        }
    }
}

/// Mechanisms that VMs to come have on.
fn wanted() -> Result<Vec<String>> {
    let names = Names::read(&Device::open()?)?;
    Ok(names.mechanisms.into_iter().filter(|m| m.default).map(|m| m.name).collect())
}

fn cpu() -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    model.map_or("an unknown CPU".into(), |(_, name)| name.trim().to_string())
}

fn mitigations(cmdline: &str) -> String {
    let words =
        cmdline.split_whitespace().filter(|word| word.contains("mitigations") || word.contains("spectre"));
    words.collect::<Vec<_>>().join(" ")
}

const RUNNER: &str = "exitless-runner";

fn runner(named: Option<&Path>) -> Result<PathBuf> {
    let own = env::current_exe().ok();
    found(named, own.as_deref().and_then(Path::parent), &env::var_os("PATH").unwrap_or_default())
}

/// The runner that was named, or the one beside this program, or the first in PATH.
fn found(named: Option<&Path>, beside: Option<&Path>, path: &OsStr) -> Result<PathBuf> {
    let is = |file: &PathBuf| file.is_file();
    let in_path = |name: &Path| env::split_paths(path).map(|folder| folder.join(name)).find(is);
    if let Some(named) = named {
        let file = named.canonicalize().ok().filter(is).or_else(|| in_path(named));
        return file.with_context(|| format!("{}: there is no such runner", named.display()));
    }
    let file = beside.map(|folder| folder.join(RUNNER)).filter(is).or_else(|| in_path(Path::new(RUNNER)));
    file.with_context(|| {
        format!(
            "{RUNNER} is neither beside exitctl nor in PATH: cargo build --release -p {RUNNER}, then copy target/release/{RUNNER} beside it, or name it with --runner"
        )
    })
}

fn one_round(runner: &Path, patterns: &[String]) -> Result<String> {
    let out = Command::new(runner).args(["bench", "--json"]).args(patterns).output();
    let out = out.with_context(|| runner.display().to_string())?;
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    if !out.status.success() {
        bail!("the runner failed:\n{text}{}", String::from_utf8_lossy(&out.stderr));
    }
    Ok(text)
}

/// One round's lines; what only an emulator counts has no ticks.
fn add(to: &mut Measurement, lines: &str) -> Result<()> {
    for line in lines.lines().filter(|line| line.starts_with('{')) {
        let record: Record = serde_json::from_str(line).with_context(|| format!("`{line}` is no record"))?;
        let Some(ticks) = record.ticks else { continue };
        to.ticks.entry(record.op.clone()).or_default().push(ticks);
        to.exits.extend(record.exits.map(|exits| (record.op, exits)));
    }
    Ok(())
}

fn range(of: &[f64]) -> (f64, f64) {
    of.iter().fold((f64::INFINITY, 0.0), |(least, most), n| (n.min(least), n.max(most)))
}

fn median(of: &[f64]) -> f64 {
    let mut sorted = of.to_vec();
    sorted.sort_by(f64::total_cmp);
    let (low, high) = (sorted.get((sorted.len().max(1) - 1) / 2), sorted.get(sorted.len() / 2));
    (low.copied().unwrap_or_default() + high.copied().unwrap_or_default()) / 2.0
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Faster,
    Slower,
    Noise,
    /// Too few rounds to tell noise from anything.
    Few,
}

impl Verdict {
    fn words(self) -> &'static str {
        match self {
            Self::Faster => "faster",
            Self::Slower => "slower",
            Self::Noise => "within noise",
            Self::Few => "too few rounds",
        }
    }
}

/// An operation that both have.
struct Row {
    op: String,
    a: f64,
    b: f64,
    verdict: Verdict,
}

/// All rounds of one below all of the other is no chance with so many in each: of 2 in C(8, 4) orders, 3 %.
const ENOUGH: usize = 4;

fn verdict(a: &[f64], b: &[f64]) -> Verdict {
    if a.len().min(b.len()) < ENOUGH {
        return Verdict::Few;
    }
    match (range(a), range(b)) {
        ((least, _), (_, most)) if most < least => Verdict::Faster,
        ((_, most), (least, _)) if least > most => Verdict::Slower,
        _ => Verdict::Noise,
    }
}

fn compared(a: &Measurement, b: &Measurement) -> Vec<Row> {
    let row = |(op, a): (&String, &Vec<f64>)| {
        let b = b.ticks.get(op)?;
        Some(Row { op: op.clone(), a: median(a), b: median(b), verdict: verdict(a, b) })
    };
    a.ticks.iter().filter_map(row).collect()
}

fn report(a: &Measurement, b: &Measurement, rows: &[Row]) -> String {
    let mut text = format!("A: {}\nB: {}\n", a.name(), b.name());
    let host = |of: &Measurement| {
        format!("{}, Linux {} {}", of.cpu, of.kernel, of.mitigations).trim_end().to_owned()
    };
    if host(a) != host(b) {
        text += &format!(
            "the hosts are not the same: {}; {}; ratios then say nothing of the modules\n",
            host(a),
            host(b)
        );
    }
    let exits =
        |of: &Measurement, op: &str| of.exits.get(op).map_or("-".into(), |exits| format!("{exits:.2}"));
    let cells = rows.iter().map(|row| {
        let ratio = format!("{:.2}", row.b / row.a);
        let ticks = [row.a, row.b].map(|ticks| format!("{ticks:.0}"));
        let [of_a, of_b] = ticks;
        vec![
            row.op.clone(),
            of_a,
            of_b,
            ratio,
            exits(a, &row.op),
            exits(b, &row.op),
            row.verdict.words().into(),
        ]
    });
    text +=
        &out::table(&["operation", "A", "B", "B/A", "exits A", "exits B", "B is"], &[1, 2, 3, 4, 5], cells);
    let count = |verdict| rows.iter().filter(|row| row.verdict == verdict).count();
    let [faster, slower, noise, few] =
        [Verdict::Faster, Verdict::Slower, Verdict::Noise, Verdict::Few].map(count);
    text += &format!("B is faster in {faster}, slower in {slower}; {noise} within noise");
    if few > 0 {
        text += &format!("; {few} with fewer than {ENOUGH} rounds, which tell nothing");
    }
    text + ". Faster and slower: every round of one below every round of the other.\n"
}

const WIDTH: f32 = 1000.0;
const LEFT: f32 = 210.0;
const RIGHT: f32 = 150.0;

/// Two bars for each operation, with the ratio where it is more than noise, and the range of the rounds.
fn picture(a: &Measurement, b: &Measurement, rows: &[Row]) -> Picture {
    const BAR: f32 = 12.0;
    let group = 2.0 * BAR + 10.0;
    let top = 84.0;
    let bottom = top + group * rows.len() as f32;
    let mut p = Picture::new(WIDTH, bottom + 40.0);
    p.words(
        20.0,
        28.0,
        18.0,
        Anchor::Start,
        "Ticks of the TSC for one operation: median of the rounds, line from least to most",
    );
    let colours = [PALETTE[0], PALETTE[6]];
    for (n, (of, colour)) in [a, b].into_iter().zip(colours).enumerate() {
        let x = 20.0 + 400.0 * n as f32;
        p.rectangle(x, 46.0, 14.0, 14.0, colour);
        p.words(x + 20.0, 58.0, 13.0, Anchor::Start, of.name());
    }
    let most_of = |of: &Measurement, op: &str| of.ticks.get(op).map_or((0.0, 0.0), |ticks| range(ticks));
    let most = rows.iter().flat_map(|row| [most_of(a, &row.op).1, most_of(b, &row.op).1]).fold(1.0, f64::max);
    let scale = f64::from(WIDTH - LEFT - RIGHT) / most;
    let mut tick = 0.0;
    while tick <= most {
        let x = LEFT + (tick * scale) as f32;
        p.rectangle(x, top - 8.0, 1.0, bottom - top + 8.0, FAINT);
        p.words(x, bottom + 18.0, 12.0, Anchor::Middle, format!("{tick:.0}"));
        tick += step(most);
    }
    for (n, row) in rows.iter().enumerate() {
        let y = top + group * n as f32;
        p.words(LEFT - 10.0, y + BAR + 5.0, 13.0, Anchor::End, &row.op);
        let mut end = LEFT;
        for (n, (of, median)) in [(a, row.a), (b, row.b)].into_iter().enumerate() {
            let y = y + BAR * n as f32;
            p.rectangle(LEFT, y, (median * scale) as f32, BAR - 1.0, colours[n]);
            let (least, most) = most_of(of, &row.op);
            let place = |ticks: f64| LEFT + (ticks * scale) as f32;
            p.rectangle(place(least), y + BAR / 2.0 - 1.0, place(most) - place(least), 1.5, INK);
            end = end.max(place(most));
        }
        let said = match row.verdict {
            Verdict::Faster | Verdict::Slower => format!("x {:.2}", row.b / row.a),
            other => other.words().into(),
        };
        p.words(end + 8.0, y + BAR + 4.0, 12.0, Anchor::Start, said);
    }
    p
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measurement(module: &str, ticks: &[(&str, &[f64])]) -> Measurement {
        let ticks = ticks.iter().map(|(op, ticks)| (op.to_string(), ticks.to_vec())).collect();
        Measurement { module: module.into(), ticks, ..Measurement::default() }
    }

    /// What overlaps is noise, whatever the medians say; three rounds tell nothing.
    #[test]
    fn noise_is_told() {
        let a = [100.0, 101.0, 102.0, 130.0];
        assert_eq!(verdict(&a, &[90.0, 91.0, 92.0, 99.0]), Verdict::Faster);
        assert_eq!(verdict(&a, &[90.0, 91.0, 92.0, 100.0]), Verdict::Noise);
        assert_eq!(verdict(&a, &[131.0, 140.0, 150.0, 160.0]), Verdict::Slower);
        assert_eq!(verdict(&a, &[1.0, 1.0, 1.0]), Verdict::Few);
        assert_eq!((median(&[3.0, 1.0, 2.0]), median(&[4.0, 1.0, 2.0, 3.0])), (2.0, 2.5));
    }

    /// Lines of the runner's, among others; what has no ticks is left out.
    #[test]
    fn rounds_are_added_up() {
        let mut found = Measurement::default();
        let line = r#"{"op":"cpuid","ticks":1200.5,"exits":1.000,"mark":5,"batches":1}"#;
        let emulators = r#"{"op":"ipi_send","ticks":null,"exits":null,"mark":9,"batches":32}"#;
        add(&mut found, &format!("{line}\n{emulators}\n1 passed\n")).unwrap();
        add(&mut found, line).unwrap();
        assert_eq!(found.ticks, BTreeMap::from([("cpuid".into(), vec![1200.5, 1200.5])]));
        assert_eq!(found.exits["cpuid"], 1.0);
        assert!(add(&mut found, "{").is_err());
    }

    /// Looked for before anything is switched or measured; what to do is said.
    #[test]
    fn the_runner_is_found_or_missed() {
        let root = env::temp_dir().join(format!("exitctl-bench-{}", std::process::id()));
        let [beside, in_path, nowhere] = ["beside", "path", "nowhere"].map(|name| root.join(name));
        for folder in [&beside, &in_path] {
            fs::create_dir_all(folder).unwrap();
            fs::write(folder.join(RUNNER), "").unwrap();
        }
        let path = env::join_paths([&nowhere, &in_path]).unwrap();
        let none = OsStr::new("");
        assert_eq!(found(None, Some(&beside), &path).unwrap(), beside.join(RUNNER));
        assert_eq!(found(None, Some(&nowhere), &path).unwrap(), in_path.join(RUNNER));
        let named = in_path.join(RUNNER);
        assert_eq!(found(Some(&named), Some(&beside), none).unwrap(), named.canonicalize().unwrap());
        assert_eq!(found(Some(Path::new(RUNNER)), None, &path).unwrap(), named);
        let missed = found(None, Some(&nowhere), nowhere.as_os_str()).unwrap_err().to_string();
        assert!(
            missed.contains("neither beside exitctl nor in PATH") && missed.contains("--runner"),
            "{missed}"
        );
        let missed = found(Some(&nowhere.join("x")), Some(&beside), &path).unwrap_err().to_string();
        assert!(missed.contains("nowhere/x"), "{missed}");
        fs::remove_dir_all(root).unwrap();
    }

    /// Of no ticks, or of none at all, there is no ratio.
    #[test]
    fn a_file_without_ticks() {
        let path = env::temp_dir().join(format!("exitctl-bench-ticks-{}", std::process::id()));
        for ticks in [&[][..], &[0.0], &[5.0, 0.0]] {
            let text = serde_json::to_string(&measurement("kvm", &[("a", &[1.0]), ("hlt", ticks)])).unwrap();
            fs::write(&path, text).unwrap();
            let e = Measurement::read(&path).unwrap_err().to_string();
            assert!(e.ends_with(": hlt has no ticks"), "{e}");
        }
        let good = measurement("kvm", &[("a", &[1.0])]);
        fs::write(&path, serde_json::to_string(&good).unwrap()).unwrap();
        assert_eq!(Measurement::read(&path).unwrap(), good);
        // What two files have not in common is named.
        let other = path.with_extension("b");
        fs::write(&other, serde_json::to_string(&measurement("kvm", &[("b", &[1.0])])).unwrap()).unwrap();
        let what = What::Compare { a: path.clone(), b: other.clone(), plot: Vec::new() };
        let measure = Measure { patterns: Vec::new(), json: None, rounds: 1, off: false, runner: None };
        let e = run(&Options { compare: Some(what), measure }).unwrap_err().to_string();
        assert!(e.contains("in common: A has a, B has b; measure both"), "{e}");
        for file in [path, other] {
            fs::remove_file(file).unwrap();
        }
    }

    /// The table has the operations of both, and the file is what was measured.
    #[test]
    fn two_are_compared() {
        let a = measurement("kvm", &[("cpuid", &[100.0; 5]), ("hlt", &[9.0; 5])]);
        let b = measurement("exitless", &[("cpuid", &[80.0; 5]), ("other", &[1.0; 5])]);
        let rows = compared(&a, &b);
        let text = report(&a, &b, &rows);
        assert_eq!(rows.len(), 1);
        assert!(text.contains("B is faster in 1, slower in 0; 0 within noise"), "{text}");
        assert!(text.contains("A: stock KVM\nB: exitless, all off"), "{text}");
        let elsewhere = Measurement { cpu: "other".into(), ..b.clone() };
        let text = report(&a, &elsewhere, &rows);
        assert!(text.contains("not the same: , Linux; other, Linux; ratios then say nothing"), "{text}");
        let back: Measurement = serde_json::from_str(&serde_json::to_string(&a).unwrap()).unwrap();
        assert_eq!(back, a);
    }
}
