//! `cargo xtask boot-exits`: the same guest boots on stock KVM and on Exitless, on the same emulated machine in one run;
//! prints how often it left guest mode, by reason.
//!
//! Exitless counts by itself (debugfs). Stock KVM does not count by reason: a histogram on its `kvm_exit` tracepoint
//! does, keyed by the same exit numbers of the processor's manual. On VMX the tracepoint's own table names them.

use std::{cmp::Ordering, collections::BTreeMap};

use anyhow::Result;

use crate::{
    lab::{Options, machine::Kind},
    measure::{self, Names},
    say,
};

/// What to boot.
#[derive(Debug, Clone, clap::Args)]
pub struct Choice {
    /// vCPUs of the guest.
    #[arg(long, default_value = "4")]
    pub vcpus: u32,
    /// The emulated machine.
    #[arg(long, value_enum, default_value = "svm")]
    pub machine: Kind,
    /// CPUs of the emulated host.
    #[arg(long, default_value = "2")]
    pub cpus: u32,
    /// Boots on each module; the table shows mean and range.
    #[arg(long, default_value = "3")]
    pub rounds: u32,
}

const SCRIPT: &str = r#"
GUEST_APPEND=exitless.hold=3
# Counters are read once, at the same moment on both: reading them takes time from the guest.
boot() {
    [ $MODULE = exitless ] || sed -n 's/^print fmt:/=== JSON names/p' $kvm_events/kvm_exit/format
    trace_exits || return 1
    start_guest $VCPUS boot /tmp/log
    wait_line 60 /tmp/log '^--- GUEST job boot rc=0' || return 1
    counted_exits | sed -n "s/^exit /=== JSON $MODULE /p" >/tmp/counts
    [ -s /tmp/counts ] || { echo "the guest ended before its exits could be read"; return 1; }
    echo "=== JSON $MODULE boot"
    cat /tmp/counts
    wait $guest_pid
    untrace_exits
    guest_passed /tmp/log
}
for MODULE in kvm exitless; do
    check load-$MODULE load_module
    round=0
    while [ $round -lt $ROUNDS ]; do
        round=$((round + 1))
        check boot-$MODULE-$round boot
        check unused wait_unused 5
    done
    check unload-$MODULE unload_module
done
"#;

/// Boots, prints the table.
pub fn run(choice: &Choice) -> Result<()> {
    let Choice { vcpus, machine, cpus, rounds } = *choice;
    let script = format!("VCPUS={vcpus} ROUNDS={rounds}\n{SCRIPT}");
    let timeout = 120 + 60 * u64::from(rounds);
    let mut scenario = measure::scenario("boot-exits", cpus, timeout, &["guest"], script);
    scenario.memory = 1536;
    let what = format!("{vcpus} vCPU, {rounds} boots on each module");
    let records = measure::records(&scenario, machine, false, Options::default(), &what)?;
    table(&counts(machine, &records));
    say::note("docs/exits.md explains the differences");
    Ok(())
}

/// Exits of each boot.
type Boots = Vec<u64>;

/// By reason: on Exitless, on stock KVM. A line `<module> boot` begins a boot.
fn counts(machine: Kind, lines: &[String]) -> BTreeMap<String, [Boots; 2]> {
    let mut all = BTreeMap::<String, [Boots; 2]>::new();
    let mut boots = [0; 2];
    let names = Names::of(machine, lines);
    for line in lines {
        let mut words = line.split_whitespace();
        let Some(module) = words.next() else { continue };
        let stock = module == "kvm";
        let rest: Vec<_> = words.collect();
        let Some((count, name)) = rest.split_last() else { continue };
        if *count == "boot" {
            boots[usize::from(stock)] += 1;
            continue;
        }
        let Ok(count) = count.parse::<u64>() else { continue };
        let name = match name.first().and_then(|n| n.parse().ok()) {
            Some(code) if stock => names.get(code),
            None if stock => continue,
            _ => name.join(" "),
        };
        let list = &mut all.entry(name).or_default()[usize::from(stock)];
        list.resize(boots[usize::from(stock)].max(1), 0);
        if let Some(last) = list.last_mut() {
            *last += count;
        }
    }
    for lists in all.values_mut() {
        for (list, boots) in lists.iter_mut().zip(boots) {
            list.resize(boots.max(1), 0);
        }
    }
    all
}

fn table(all: &BTreeMap<String, [Boots; 2]>) {
    println!(
        "\n{:<20} {:>24}   {:>24} {:>7}",
        "exits of one boot", "exitless (from-to)", "kvm (from-to)", "ratio"
    );
    let mut total = [Boots::new(), Boots::new()];
    for lists in all.values() {
        for (sum, list) in total.iter_mut().zip(lists) {
            sum.resize(list.len().max(sum.len()), 0);
            sum.iter_mut().zip(list).for_each(|(sum, count)| *sum += count);
        }
    }
    for (name, [ours, stock]) in all.iter().map(|(n, v)| (n.as_str(), v)).chain([("all", &total)]) {
        let ratio = if mean(stock) == 0.0 { "-".into() } else { format!("{:.2}", mean(ours) / mean(stock)) };
        println!("{name:<20} {:>24}   {:>24} {ratio:>7}", shown(ours), shown(stock));
    }
    let [ours, stock] = total.each_ref().map(mean);
    println!("\nin total {}\n", verdict(ours, stock));
}

fn verdict(ours: f64, stock: f64) -> &'static str {
    match ours.total_cmp(&stock) {
        Ordering::Less => "Exitless takes fewer exits than stock KVM",
        Ordering::Equal => "both take the same number of exits",
        Ordering::Greater => "Exitless takes MORE exits than stock KVM",
    }
}

fn mean(boots: &Boots) -> f64 {
    boots.iter().sum::<u64>() as f64 / boots.len().max(1) as f64
}

/// The mean, and the range where there is one.
fn shown(boots: &Boots) -> String {
    match (boots.iter().min(), boots.iter().max()) {
        (Some(least), Some(most)) if least != most => format!("{:.1} ({least}-{most})", mean(boots)),
        _ => format!("{:.0}", mean(boots)),
    }
}

#[cfg(test)]
mod tests {
    use super::{Kind, counts, shown};

    /// Both modules' lines meet in one row, whatever way they name the reason.
    #[test]
    fn rows_meet() {
        let lines = [
            "kvm boot",
            "kvm 114 10",
            "exitless boot",
            "exitless cpuid 7",
            "exitless boot",
            "exitless cpuid 9",
            "exitless DB excp 1",
        ];
        let all = counts(Kind::Svm, &lines.map(str::to_string));
        assert_eq!(all["cpuid"], [vec![7, 9], vec![10]]);
        assert_eq!(all["DB excp"], [vec![0, 1], vec![0]], "a boot without it counts as well");
        assert_eq!((shown(&all["cpuid"][0]), shown(&all["cpuid"][1])), ("8.0 (7-9)".into(), "10".into()));
    }

    /// VMX's names are those of the tracepoint, whose second table, SVM's, has other names for the same numbers.
    #[test]
    fn names_of_vmx() {
        let lines = [
            r#"names "reason %s", (REC->isa == 1) ? __print_symbolic(REC->exit_reason & 0xffff, { 0, "EXCEPTION_NMI" }, { 10, "CPUID" }) : __print_symbolic(REC->exit_reason, { 0x00a, "other" }), 0"#.to_string(),
            "kvm 10 6".into(),
            "exitless CPUID 7".into(),
        ];
        assert_eq!(counts(Kind::Vmx, &lines)["CPUID"], [vec![7], vec![6]]);
    }
}
