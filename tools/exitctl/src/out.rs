//! Forms of output: tables for people, JSON, CSV, and the text of Prometheus.

use crate::times::Durations;
use crate::view::{Counts, View, Vm};
use anyhow::{Context, Result};
use clap::ValueEnum;
use comfy_table::{Attribute, Cell, CellAlignment, ContentArrangement, Table, presets};
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{EncodeMetric, MetricEncoder};
use prometheus_client::metrics::{MetricType, TypedMetric};
use prometheus_client::metrics::{counter::Counter, family::Family, gauge::Gauge};
use prometheus_client::registry::{Registry, Unit};
use std::io::Write;
use std::sync::Mutex;
use std::sync::atomic::AtomicU64;

/// A form.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people.
    #[default]
    Table,
    /// One object for each look.
    Json,
    /// vm,pid,name,kind,key,value: a line for each number.
    Csv,
    /// The text format of Prometheus (OpenMetrics): counts since each vCPU's creation.
    Prometheus,
}

/// On standard output; `false`: nobody reads it any more, which is an end and not an error.
pub(crate) fn print(text: &str) -> Result<bool> {
    print_to(&mut std::io::stdout().lock(), text)
}

fn print_to(out: &mut impl Write, text: &str) -> Result<bool> {
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Ok(false),
        Err(e) => Err(e).context("writing"),
    }
}

/// A table as wide as the terminal; the columns of `numbers` are set to the right.
pub(crate) fn table(head: &[&str], numbers: &[usize], rows: impl Iterator<Item = Vec<String>>) -> String {
    let mut t = Table::new();
    t.load_style(presets::NOTHING);
    fit(&mut t);
    t.set_header(head.iter().map(|h| Cell::new(h).add_attribute(Attribute::Bold)));
    for row in rows {
        t.add_row(row);
    }
    for n in numbers {
        if let Some(column) = t.column_mut(*n) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    format!("{t}\n")
}

/// Below this a terminal does not know its size (a serial console says 0), or no table fits: its lines are as long as they are.
const NARROW: u16 = 40;

fn fit(t: &mut Table) {
    if t.width().is_some_and(|w| w >= NARROW) {
        t.set_content_arrangement(ContentArrangement::Dynamic);
    }
}

/// Largest first, with shares of the whole.
pub(crate) fn counts(head: &str, of: &Counts, seconds: Option<f64>) -> String {
    if of.is_empty() {
        return String::new();
    }
    let all: u64 = of.values().sum();
    let rows = largest(of).into_iter().map(|(name, n)| {
        let share = 100.0 * n as f64 / all as f64;
        let mut row = vec![name.clone(), n.to_string(), format!("{share:.1} %")];
        row.extend(seconds.map(|s| format!("{:.0}", n as f64 / s)));
        row
    });
    let mut columns = vec![head, "count", "share"];
    columns.extend(seconds.map(|_| "per s"));
    table(&columns, &[1, 2, 3], rows)
}

/// Largest first.
pub(crate) fn largest(of: &Counts) -> Vec<(&String, u64)> {
    let mut rows: Vec<_> = of.iter().map(|(name, n)| (name, *n)).collect();
    rows.sort_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(b.0)));
    rows
}

/// Everything that is counted of a VM, as kind, key, value.
fn numbers(vm: &Vm) -> Vec<(&'static str, String, u64)> {
    let mut all = Vec::new();
    let kinds = [("exit", &vm.exits), ("msr", &vm.msrs), ("port", &vm.ports), ("counter", &vm.counters)];
    for (kind, counts) in kinds {
        all.extend(counts.iter().map(|(k, n)| (kind, k.clone(), *n)));
    }
    for v in &vm.vcpus {
        let each = [("exits", v.exits), ("fast", v.fast), ("user", v.user)];
        all.extend(each.map(|(what, n)| ("vcpu", format!("{}.{what}", v.id), n)));
    }
    for m in &vm.mechanisms {
        let each =
            [("active", u64::from(m.active)), ("hits", m.hits), ("saved", m.saved), ("added", m.added)];
        all.extend(each.map(|(what, n)| ("mechanism", format!("{}.{what}", m.name), n)));
        all.extend(m.fallbacks.iter().map(|(f, n)| ("mechanism", format!("{}.left.{f}", m.name), *n)));
    }
    let Some(t) = &vm.times else { return all };
    for (vcpu, spent) in &t.spent {
        all.extend(spent.iter().map(|(what, ns)| ("spent", format!("{vcpu}.{what}_ns"), *ns)));
    }
    for (kind, durations) in [("time", &t.exits), ("late", &t.late)] {
        for (name, d) in durations {
            let [p50, p90, p99, p999] = d.percentiles();
            let each = [
                ("count", d.count),
                ("total_ns", d.total_ns()),
                ("min_ns", d.min_ns()),
                ("mean_ns", d.mean_ns()),
                ("p50_ns", p50),
                ("p90_ns", p90),
                ("p99_ns", p99),
                ("p999_ns", p999),
                ("max_ns", d.max_ns()),
                ("user_ns", d.user_ns()),
                ("idle_ns", d.idle_ns()),
            ];
            all.extend(each.map(|(what, n)| (kind, format!("{name}.{what}"), n)));
        }
    }
    all
}

/// Lines of CSV; `head`: with the names of the columns.
pub(crate) fn csv(view: &View, head: bool) -> Result<String> {
    let mut w = csv::Writer::from_writer(Vec::new());
    if head {
        w.write_record(["vm", "pid", "name", "kind", "key", "value"])?;
    }
    for vm in &view.vms {
        for (kind, key, n) in numbers(vm) {
            w.write_record([&vm.id.to_string(), &vm.pid.to_string(), &vm.name, kind, &key, &n.to_string()])?;
        }
    }
    Ok(String::from_utf8(w.into_inner()?)?)
}

type Labels = Vec<(&'static str, String)>;

/// A duration's bounds for Prometheus, ns.
const BOUNDS: [u64; 16] = [
    250,
    500,
    1_000,
    2_000,
    5_000,
    10_000,
    20_000,
    50_000,
    100_000,
    200_000,
    500_000,
    1_000_000,
    10_000_000,
    100_000_000,
    1_000_000_000,
    10_000_000_000,
];

/// A histogram that others have counted.
#[derive(Debug, Default)]
struct Counted(Mutex<Durations>);

impl EncodeMetric for Counted {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> std::fmt::Result {
        let d = self.0.lock().map_err(|_| std::fmt::Error)?;
        let bounds = BOUNDS.iter().map(|ns| *ns as f64 / 1e9).chain([f64::INFINITY]);
        let buckets: Vec<(f64, u64)> = bounds.zip(d.up_to(&BOUNDS)).collect();
        encoder.encode_histogram::<Labels>(d.total_ns() as f64 / 1e9, d.count, &buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Histogram
    }
}

impl TypedMetric for Counted {
    const TYPE: MetricType = MetricType::Histogram;
}

/// The text that a Prometheus server reads.
pub(crate) fn prometheus(view: &View) -> Result<String> {
    let mut registry = Registry::with_prefix("exitless");
    let counter = |registry: &mut Registry, name: &str, help: &str| {
        let family = Family::<Labels, Counter>::default();
        registry.register(name, help, family.clone());
        family
    };
    let exits = counter(&mut registry, "exits", "Exits by reason");
    let msrs = counter(&mut registry, "msr_exits", "Exits of RDMSR and WRMSR by MSR");
    let ports = counter(&mut registry, "port_exits", "Exits of port instructions by port");
    let vcpus =
        counter(&mut registry, "vcpu_exits", "Exits by vCPU and how far they went: fast, kernel, user");
    let hits = counter(&mut registry, "mechanism_hits", "Cases that a mechanism took");
    let saved =
        counter(&mut registry, "mechanism_saved_exits", "Exits that there would have been without it");
    let added = counter(&mut registry, "mechanism_added_exits", "Exits that there were for it alone");
    let active = Family::<Labels, Gauge>::default();
    registry.register("mechanism_active_vcpus", "vCPUs in which a mechanism is active", active.clone());
    let mut durations = |name: &str, help: &str| {
        let family = Family::<Labels, Counted>::default();
        registry.register_with_unit(name, help, Unit::Seconds, family.clone());
        family
    };
    let handled =
        durations("exit_time", "From an exit to the next entry, without user space and sleep, by reason");
    let late = durations("late", "How late timers and IPIs were");
    let spent = Family::<Labels, Counter<f64, AtomicU64>>::default();
    registry.register_with_unit("vcpu_time", "What vCPUs spent their time on", Unit::Seconds, spent.clone());
    let halts = counter(&mut registry, "wakes", "What ended halts");
    let steal = Family::<Labels, Counter<f64, AtomicU64>>::default();
    registry.register_with_unit("steal", "vCPU threads waited for a CPU", Unit::Seconds, steal.clone());
    for vm in &view.vms {
        let vm_labels =
            || vec![("vm", vm.id.to_string()), ("pid", vm.pid.to_string()), ("name", vm.name.clone())];
        let with = |key, value: String| {
            let mut labels = vm_labels();
            labels.push((key, value));
            labels
        };
        for (family, key, counts) in
            [(&exits, "reason", &vm.exits), (&msrs, "msr", &vm.msrs), (&ports, "port", &vm.ports)]
        {
            for (k, n) in counts {
                family.get_or_create(&with(key, k.clone())).inc_by(*n);
            }
        }
        for v in &vm.vcpus {
            let kernel = v.exits.saturating_sub(v.fast).saturating_sub(v.user);
            for (how, n) in [("fast", v.fast), ("kernel", kernel), ("user", v.user)] {
                let mut labels = with("vcpu", v.id.to_string());
                labels.push(("class", how.into()));
                vcpus.get_or_create(&labels).inc_by(n);
            }
        }
        for m in &vm.mechanisms {
            let labels = with("mechanism", m.name.clone());
            hits.get_or_create(&labels).inc_by(m.hits);
            saved.get_or_create(&labels).inc_by(m.saved);
            added.get_or_create(&labels).inc_by(m.added);
            active.get_or_create(&labels).set(i64::from(m.active));
        }
        for (name, n) in &vm.counters {
            if let Some(by) = name.strip_prefix("wake_") {
                halts.get_or_create(&with("by", by.into())).inc_by(*n);
            } else if name == "steal_ns" {
                steal.get_or_create(&vm_labels()).inc_by(*n as f64 / 1e9);
            }
        }
        let Some(t) = &vm.times else { continue };
        for (family, key, all) in [(&handled, "reason", &t.exits), (&late, "what", &t.late)] {
            for (name, d) in all {
                if let Ok(mut known) = family.get_or_create(&with(key, name.clone())).0.lock() {
                    *known = d.clone();
                }
            }
        }
        for (vcpu, of) in &t.spent {
            for (what, ns) in of {
                let mut labels = with("vcpu", vcpu.to_string());
                labels.push(("state", what.clone()));
                spent.get_or_create(&labels).inc_by(*ns as f64 / 1e9);
            }
        }
    }
    let mut text = String::new();
    encode(&mut text, &registry)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::tests::sample;

    fn view() -> View {
        let mut vm = sample(3, 2, 2);
        vm.name = "a \"quoted\" name, with a comma".into();
        View { seconds: None, vms: vec![vm, sample(4, 1, 1)] }
    }

    /// Read by the parser of somebody else.
    #[test]
    fn prometheus_reads_it() {
        let text = prometheus(&view()).unwrap();
        let lines = text.lines().map(|l| Ok(l.to_owned()));
        let scrape = prometheus_parse::Scrape::parse(lines).unwrap();
        let value = |metric: &str, labels: &[(&str, &str)]| {
            let fits = |s: &&prometheus_parse::Sample| {
                s.metric == metric && labels.iter().all(|(k, v)| s.labels.get(k) == Some(v))
            };
            match scrape.samples.iter().find(fits).map(|s| &s.value) {
                Some(
                    prometheus_parse::Value::Counter(n)
                    | prometheus_parse::Value::Gauge(n)
                    | prometheus_parse::Value::Untyped(n),
                ) => *n,
                other => panic!("{metric}: {other:?} in {text}"),
            }
        };
        assert_eq!(value("exitless_exits_total", &[("vm", "3"), ("reason", "msr")]), 140.0);
        assert_eq!(
            value("exitless_vcpu_exits_total", &[("vm", "3"), ("vcpu", "1"), ("class", "kernel")]),
            77.0
        );
        let spent = [("vm", "3"), ("vcpu", "1"), ("state", "guest")];
        assert_eq!(value("exitless_vcpu_time_seconds_total", &spent), 16e-6);
        assert_eq!(value("exitless_wakes_total", &[("vm", "3"), ("by", "timer")]), 18.0);
        assert_eq!(value("exitless_steal_seconds_total", &[("vm", "3")]), 4e-6);
        let of = |reason: &str| {
            let fits = |s: &&prometheus_parse::Sample| {
                s.metric == "exitless_exit_time_seconds"
                    && (s.labels.get("vm"), s.labels.get("reason")) == (Some("3"), Some(reason))
            };
            match scrape.samples.iter().find(fits).map(|s| &s.value) {
                Some(prometheus_parse::Value::Histogram(all)) => {
                    all.iter().map(|b| (b.less_than, b.count)).collect::<Vec<_>>()
                }
                other => panic!("{other:?} in {text}"),
            }
        };
        let hlt = of("hlt");
        assert_eq!((hlt[3], hlt[4]), ((2e-6, 0.0), (5e-6, 2.0)), "{hlt:?}");
        assert_eq!(hlt.last().map(|(_, n)| *n), Some(2.0));
        assert!(text.contains("le=\"+Inf\""), "{text}");
        // Of 500 to 699 ns; those up to 511 are in a bucket whose middle is 480.
        assert_eq!(of("msr")[1..3], [(5e-7, 12.0), (1e-6, 200.0)]);
        assert_eq!(value("exitless_exit_time_seconds_count", &[("vm", "3"), ("reason", "hlt")]), 2.0);
        assert_eq!(
            value("exitless_mechanism_active_vcpus", &[("vm", "4"), ("mechanism", "ipi_fastpath")]),
            1.0
        );
    }

    /// A serial console says that it has no columns: words stay whole.
    #[test]
    fn no_size_is_no_limit() {
        let lines = |width| {
            let mut t = Table::new();
            t.set_width(width);
            fit(&mut t);
            t.add_row(["a word and another ".repeat(4), "exitless is loaded".into()]);
            t.to_string().lines().count()
        };
        assert_eq!((lines(0), lines(10)), (lines(200), lines(200)));
        assert!(lines(60) > lines(200));
    }

    #[test]
    fn a_pipe_that_closes_is_an_end() {
        let (reader, mut writer) = std::io::pipe().unwrap();
        assert!(print_to(&mut writer, "one").unwrap());
        drop(reader);
        assert!(!print_to(&mut writer, "two").unwrap());
        let mut no_room = [0; 2];
        assert!(print_to(&mut no_room.as_mut_slice(), "three").is_err());
    }

    #[test]
    fn csv_is_read_back() {
        let text = csv(&view(), true).unwrap();
        let mut r = csv::Reader::from_reader(text.as_bytes());
        let rows: Vec<csv::StringRecord> = r.records().map(Result::unwrap).collect();
        let find = |vm: &str, kind: &str, key: &str| {
            let row = rows.iter().find(|r| &r[0] == vm && &r[3] == kind && &r[4] == key);
            row.map(|r| (r[2].to_owned(), r[5].to_owned()))
        };
        assert_eq!(find("3", "exit", "hlt"), Some(("a \"quoted\" name, with a comma".into(), "40".into())));
        assert_eq!(find("4", "mechanism", "ipi_fastpath.left.form").unwrap().1, "3");
        assert_eq!(find("4", "vcpu", "0.fast").unwrap().1, "60");
        assert_eq!(find("4", "time", "hlt.mean_ns").unwrap().1, "3500");
        assert_eq!(find("3", "spent", "1.guest_ns").unwrap().1, "16000");
        assert_eq!(find("3", "late", "timer.max_ns").unwrap().1, "900");
    }

    #[test]
    fn counts_are_sorted_with_shares() {
        let text = counts("exit", &view().vms[0].exits, Some(2.0));
        let lines: Vec<_> = text.lines().skip(1).map(|l| l.split_whitespace().collect::<Vec<_>>()).collect();
        assert_eq!(lines[0], ["msr", "140", "70.0", "%", "70"]);
        assert_eq!(lines[2], ["npf", "20", "10.0", "%", "10"]);
        assert_eq!(counts("exit", &Counts::new(), None), "");
    }
}
