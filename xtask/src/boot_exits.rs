//! `cargo xtask boot-exits`: the same guest boots on stock KVM and on Exitless, on the same emulated machine in one run;
//! prints how often it left guest mode, by reason.
//!
//! Exitless counts by itself (debugfs). Stock KVM does not count by reason: a histogram on its `kvm_exit` tracepoint
//! does, keyed by the same exit numbers of the processor's manual. On VMX the tracepoint's own table names them.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Result, bail};
use exitless_x86::svm::ExitCode;

use crate::{
    lab::{
        self, Options, deps,
        machine::Kind,
        report::Report,
        scenario::{Module, Scenario},
    },
    paths, say,
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
    /// Boots on each module; the table shows the mean.
    #[arg(long, default_value = "3")]
    pub rounds: u32,
}

const SCRIPT: &str = r#"
GUEST_APPEND=exitless.hold=1
trace=/sys/kernel/tracing
mount -t tracefs tracefs $trace 2>/dev/null
boot_kvm() {
    sed -n 's/^print fmt:/=== JSON names/p' $trace/events/kvm/kvm_exit/format
    echo 'hist:keys=exit_reason' >$trace/events/kvm/kvm_exit/trigger || return 1
    guest $VCPUS boot 60 || return 1
    sed -n 's/^{ exit_reason: *\([0-9]*\) *} hitcount: *\([0-9]*\).*/=== JSON kvm \1 \2/p' $trace/events/kvm/kvm_exit/hist
    echo '!hist:keys=exit_reason' >$trace/events/kvm/kvm_exit/trigger
}
boot_exitless() {
    rm -f /tmp/exits
    sample_exits /tmp/exits &
    sampler=$!
    guest $VCPUS boot 60 || return 1
    kill $sampler
    sed 's/^/=== JSON exitless /' /tmp/exits
}
for MODULE in kvm exitless; do
    check load-$MODULE load_module
    round=0
    while [ $round -lt $ROUNDS ]; do
        round=$((round + 1))
        check boot-$MODULE-$round boot_$MODULE
        check unused wait_unused 5
    done
    check unload-$MODULE unload_module
done
"#;

/// Boots, prints the table.
pub fn run(choice: &Choice) -> Result<()> {
    deps::host_packages()?;
    let script = format!("VCPUS={} ROUNDS={}\n{SCRIPT}", choice.vcpus, choice.rounds);
    let scenario = Scenario {
        name: "boot-exits".into(),
        about: String::new(),
        cpus: choice.cpus,
        memory: 1536,
        timeout: Duration::from_secs(120 + 60 * u64::from(choice.rounds)),
        needs: vec!["guest".into()],
        modules: vec![Module::Kvm, Module::Exitless],
        script,
        ..Scenario::default()
    };
    let options = Options { module: Module::Exitless, machine: choice.machine, ..Options::default() };
    let kernel = deps::kernel(options.kernel)?;
    let dir = paths::made(paths::target().join("bench"))?;
    let Choice { vcpus, machine, cpus, rounds } = choice;
    println!("-> boot-exits ({machine}, {vcpus} vCPU on {cpus} CPU, {rounds} boots each)");
    let machine = lab::prepare(&scenario, &options, &kernel, choice.cpus, dir, None)?;
    let report = lab::watch(&machine, scenario.timeout * lab::patience(&options), false, Report::default())?;
    table(&counts(machine.kind, &report.json), choice.rounds);
    if report.totals().failed > 0 {
        bail!("a boot failed; the log is {}", paths::shown(&machine.serial_log()));
    }
    if choice.machine == Kind::Svm {
        say::note("docs/exits.md explains the differences");
    }
    Ok(())
}

/// Sums by reason: on Exitless, on stock KVM.
fn counts(machine: Kind, lines: &[String]) -> BTreeMap<String, (u64, u64)> {
    let mut sums = BTreeMap::<String, (u64, u64)>::new();
    let names = lines.iter().find_map(|line| line.strip_prefix("names ")).map(vmx_names).unwrap_or_default();
    let name_of = |code: u64| match machine {
        Kind::Svm => ExitCode(code).name().map(str::to_string),
        // Bits above 15 are flags.
        Kind::Vmx => names.get(&(code & 0xffff)).cloned(),
    };
    for line in lines {
        let mut words = line.split_whitespace();
        let Some(module) = words.next() else { continue };
        let rest: Vec<_> = words.collect();
        let Some((count, name)) = rest.split_last() else { continue };
        let Ok(count) = count.parse::<u64>() else { continue };
        if module == "kvm" {
            let Some(code) = name.first().and_then(|n| n.parse().ok()) else { continue };
            let name = name_of(code).unwrap_or_else(|| format!("exit_{code:#x}"));
            sums.entry(name).or_default().1 += count;
        } else {
            sums.entry(name.join(" ")).or_default().0 += count;
        }
    }
    sums
}

/// Numbers and names of VMX's exits, from the format of the `kvm_exit` tracepoint: its first symbolic table is VMX's.
fn vmx_names(format: &str) -> BTreeMap<u64, String> {
    let table = format.split("__print_symbolic(").nth(1).unwrap_or_default();
    let entry = |text: &str| {
        let (number, name) = text.split_once('}')?.0.split_once(',')?;
        Some((number.trim().parse().ok()?, name.trim().trim_matches('"').to_string()))
    };
    table.split('{').filter_map(entry).collect()
}

fn table(sums: &BTreeMap<String, (u64, u64)>, rounds: u32) {
    let mean = |n: u64| n as f64 / f64::from(rounds.max(1));
    println!("\n{:<24} {:>10} {:>10} {:>7}", "exits of one boot", "exitless", "kvm", "ratio");
    let total = sums.values().fold((0, 0), |t, v| (t.0 + v.0, t.1 + v.1));
    for (name, (ours, stock)) in sums.iter().map(|(n, v)| (n.as_str(), *v)).chain([("all", total)]) {
        let ratio = if stock == 0 { "-".into() } else { format!("{:.2}", ours as f64 / stock as f64) };
        println!("{name:<24} {:>10.1} {:>10.1} {ratio:>7}", mean(ours), mean(stock));
    }
    println!();
}

#[cfg(test)]
mod tests {
    use super::{Kind, counts};

    /// Both modules' lines meet in one row, whatever way they name the reason.
    #[test]
    fn rows_meet() {
        let lines = ["kvm 114 10".to_string(), "exitless cpuid 7".into(), "exitless DB excp 1".into()];
        let sums = counts(Kind::Svm, &lines);
        assert_eq!(sums["cpuid"], (7, 10));
        assert_eq!(sums["DB excp"], (1, 0));
    }

    /// VMX's names are those of the tracepoint, whose second table, SVM's, has other names for the same numbers.
    #[test]
    fn names_of_vmx() {
        let lines = [
            r#"names "reason %s", (REC->isa == 1) ? __print_symbolic(REC->exit_reason & 0xffff, { 0, "EXCEPTION_NMI" }, { 10, "CPUID" }) : __print_symbolic(REC->exit_reason, { 0x00a, "other" }), 0"#.to_string(),
            "kvm 10 6".into(),
            "exitless CPUID 7".into(),
        ];
        assert_eq!(counts(Kind::Vmx, &lines)["CPUID"], (7, 6));
    }
}
