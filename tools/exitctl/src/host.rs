//! Facts about the host that decide what Exitless can do here, from files that every user may read.

use serde::Serialize;
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// How well a fact suits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Mark {
    /// As it should be.
    Good,
    /// It works; something is slower or not there.
    Less,
    /// It does not work.
    Bad,
}

/// One fact.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Fact {
    pub(crate) what: &'static str,
    pub(crate) mark: Mark,
    /// What was found.
    pub(crate) found: String,
    /// What to do; empty: nothing.
    pub(crate) advice: String,
}

impl Fact {
    /// Good, or `otherwise` with advice.
    fn judged(
        what: &'static str,
        good: bool,
        otherwise: Mark,
        found: impl Into<String>,
        advice: &str,
    ) -> Self {
        let (mark, advice) = if good { (Mark::Good, "") } else { (otherwise, advice) };
        Self { what, mark, found: found.into(), advice: advice.into() }
    }
}

fn or_unknown(found: String) -> String {
    if found.is_empty() { "unknown".into() } else { found }
}

/// The files; the root is another one in tests.
pub(crate) struct Host(PathBuf);

/// Releases of kernels that the module was run on.
const KERNELS: [(u32, u32); 2] = [(6, 1), (6, 12)];
/// Of others the module may be built.
const BUILDS: Range<(u32, u32)> = (6, 1)..(6, 19);

const NOHZ: &str = "for guests that own their CPUs: nohz_full=LIST on the kernel's command line";
const AVIC: &str = "load with avic=1 to try it: untested on hardware";

impl Host {
    pub(crate) fn new(root: &Path) -> Self {
        Self(root.to_path_buf())
    }

    fn read(&self, file: &str) -> Option<String> {
        fs::read_to_string(self.0.join(file)).ok().map(|text| text.trim_end().to_owned())
    }

    fn has(&self, file: &str) -> bool {
        self.0.join(file).exists()
    }

    fn module(&self, name: &str) -> bool {
        self.has(&format!("sys/module/{name}"))
    }

    /// Words of a line of /proc/cpuinfo, of its first CPU.
    fn flags(&self, line: &str) -> Vec<String> {
        let text = self.read("proc/cpuinfo").unwrap_or_default();
        let of = |l: &str| l.split_once(':').filter(|(k, _)| k.trim() == line).map(|(_, v)| v.to_owned());
        let words = text.lines().find_map(of).unwrap_or_default();
        words.split_whitespace().map(Into::into).collect()
    }

    /// Everything that `exitctl check` tells of the host.
    pub(crate) fn facts(&self) -> Vec<Fact> {
        vec![
            self.loaded(),
            self.others(),
            self.kernel(),
            self.cpu(),
            self.delivery(),
            self.tsc(),
            self.clock_event(),
            self.x2apic(),
            self.housekeeping(),
            self.lockdown(),
        ]
    }

    fn loaded(&self) -> Fact {
        let there = self.module("exitless");
        Fact::judged(
            "module",
            there,
            Mark::Bad,
            if there { "exitless is loaded" } else { "exitless is not loaded" },
            "rmmod kvm_intel kvm_amd kvm; modprobe exitless, or insmod exitless.ko, which reads nothing of /etc/modprobe.d",
        )
    }

    /// Who else wants VMX or SVM.
    fn others(&self) -> Fact {
        let all = ["kvm_intel", "kvm_amd", "kvm_pvm", "kvm", "vboxdrv", "vmmon"];
        // A module has this file; what is built in has parameters alone.
        if self.module("kvm") && !self.has("sys/module/kvm/initstate") {
            return Fact {
                what: "other hypervisors",
                mark: Mark::Bad,
                found: "KVM is built into this kernel".into(),
                advice: "a kernel with CONFIG_KVM=m is needed (docs/admin.md)".into(),
            };
        }
        let there: Vec<_> = all.into_iter().filter(|m| self.module(m)).collect();
        let there_ = there.join(", ");
        let none = there.is_empty();
        Fact {
            what: "other hypervisors",
            mark: if none { Mark::Good } else { Mark::Bad },
            found: if none { "none is loaded".into() } else { format!("{there_} is loaded") },
            advice: if none {
                String::new()
            } else {
                format!(
                    "end their VMs, rmmod {}; keep them out: a file of /etc/modprobe.d with lines \"blacklist NAME\"",
                    there.join(" ")
                )
            },
        }
    }

    fn kernel(&self) -> Fact {
        let found = self.read("proc/sys/kernel/osrelease").unwrap_or_default();
        let release = {
            let mut numbers = found.split(|c: char| !c.is_ascii_digit()).map_while(|n| n.parse::<u32>().ok());
            numbers.next().zip(numbers.next())
        };
        let (mark, advice) = match release {
            Some(release) if KERNELS.contains(&release) => (Mark::Good, ""),
            Some(release) if !BUILDS.contains(&release) => {
                (Mark::Bad, "it takes a kernel from 6.1.80 on and before 6.19 (docs/admin.md)")
            }
            _ => (
                Mark::Less,
                "tested on 6.1 and 6.12; from 6.1.80 on and before 6.19 others may work (docs/admin.md)",
            ),
        };
        Fact {
            what: "kernel",
            mark,
            found: if found.is_empty() { "unknown".into() } else { found },
            advice: advice.into(),
        }
    }

    fn cpu(&self) -> Fact {
        let flags = self.flags("flags");
        let has = |f: &str| flags.iter().any(|x| x == f);
        let (found, good) = match (has("vmx"), has("svm")) {
            (true, _) if has("fred") => {
                ("Intel, VMX; the kernel takes its events by FRED, which the module refuses", false)
            }
            (true, _) if !self.vmx("ept") => ("Intel, VMX without EPT", false),
            (true, _) if !self.vmx("unrestricted_guest") => ("Intel, VMX without unrestricted guests", false),
            (true, _) => ("Intel, VMX", true),
            (_, true) => ("AMD, SVM", has("npt")),
            _ => ("neither VMX nor SVM", false),
        };
        let advice = match has("fred") {
            true => "start the kernel with fred=off",
            false => {
                "turn on VMX (Intel) or SVM (AMD) in the firmware; EPT with unrestricted guests, or NPT, must be there"
            }
        };
        Fact::judged("CPU", good, Mark::Bad, found, advice)
    }

    fn vmx(&self, flag: &str) -> bool {
        self.flags("vmx flags").iter().any(|f| f == flag)
    }

    /// A kernel that is locked down loads no module that is not signed, and closes debugfs.
    fn lockdown(&self) -> Fact {
        let text = self.read("sys/kernel/security/lockdown").unwrap_or_default();
        let level = text.split('[').nth(1).and_then(|l| l.split(']').next()).unwrap_or("none").to_owned();
        Fact::judged(
            "lockdown",
            level == "none",
            Mark::Less,
            level,
            "the module must be signed with a key that the machine's owner has enrolled (docs/admin.md), and debugfs is closed: use /dev/exitless",
        )
    }

    /// What a parameter of the loaded module says; none: it is not loaded, or has none of this name.
    fn parameter(&self, name: &str) -> Option<bool> {
        let text = self.read(&format!("sys/module/exitless/parameters/{name}"))?;
        Some(matches!(text.as_str(), "Y" | "1"))
    }

    /// Interrupts without exits.
    fn delivery(&self) -> Fact {
        let flags = self.flags("flags");
        let has = |f: &str| flags.iter().any(|x| x == f);
        let (mark, found, advice) = match (has("vmx"), has("svm")) {
            (true, _) => self.delivery_vmx(),
            (_, true) => self.delivery_svm(),
            _ => (Mark::Less, "not known: neither VMX nor SVM".into(), String::new()),
        };
        Fact { what: "interrupt delivery", mark, found, advice }
    }

    fn delivery_vmx(&self) -> (Mark, String, String) {
        let flags = self.flags("vmx flags");
        let can = |f: &str| flags.iter().any(|x| x == f);
        let of = |flag, name| (can(flag), self.parameter(name));
        let (posted, posted_is, apicv) = match of("posted_intr", "apicv") {
            (false, _) => {
                (false, "no posted interrupts: each interrupt of a running guest costs an exit", "")
            }
            (true, Some(false)) => {
                (false, "posted interrupts are switched off (apicv=N)", "load with apicv=1")
            }
            (true, Some(true)) => (true, "posted interrupts (apicv=Y)", ""),
            (true, None) => (true, "the CPU has posted interrupts", ""),
        };
        let (timer, timer_is, preemption) = match of("preemption_timer", "preemption_timer") {
            (false, _) => (false, "no preemption timer", ""),
            (true, Some(false)) => (
                false,
                "the preemption timer is switched off (preemption_timer=N)",
                "load with preemption_timer=1",
            ),
            (true, Some(true)) => (true, "preemption timer (preemption_timer=Y)", ""),
            (true, None) => (true, "a preemption timer", ""),
        };
        // Whether the CPU can is in no file.
        let ipis = match self.parameter("ipiv") {
            Some(true) => "; IPI virtualization is asked for (ipiv=Y, untested on hardware)",
            Some(false) => "; IPI virtualization is not asked for (ipiv=N)",
            None => "",
        };
        let mark = if posted && timer { Mark::Good } else { Mark::Less };
        let both = if apicv.is_empty() || preemption.is_empty() { "" } else { ", " };
        (mark, format!("{posted_is}; {timer_is}{ipis}"), format!("{apicv}{both}{preemption}"))
    }

    fn delivery_svm(&self) -> (Mark, String, String) {
        let can = self.flags("flags").iter().any(|x| x == "x2avic");
        let (mark, found, advice) = match (can, self.parameter("avic")) {
            (false, _) => (Mark::Less, "no x2AVIC: interrupts, IPIs and EOIs cost exits", ""),
            (true, Some(true)) => (Mark::Good, "x2AVIC is asked for (avic=Y, untested on hardware)", ""),
            (true, Some(false)) => {
                (Mark::Less, "x2AVIC is not used (avic=N): interrupts, IPIs and EOIs cost exits", AVIC)
            }
            (true, None) => (Mark::Less, "the CPU has x2AVIC, which is off if not asked for", AVIC),
        };
        (mark, found.into(), advice.into())
    }

    fn tsc(&self) -> Fact {
        let source =
            self.read("sys/devices/system/clocksource/clocksource0/current_clocksource").unwrap_or_default();
        Fact::judged(
            "clock source",
            source == "tsc",
            Mark::Less,
            or_unknown(source),
            "guests' clocks are slower and timers less exact: see why the kernel distrusts the TSC (dmesg | grep -i tsc)",
        )
    }

    fn clock_event(&self) -> Fact {
        let found =
            self.read("sys/devices/system/clockevents/clockevent0/current_device").unwrap_or_default();
        Fact::judged(
            "clock event device",
            found == "lapic-deadline",
            Mark::Less,
            or_unknown(found),
            "the CPU has no TSC-deadline timer, or the kernel does not use it",
        )
    }

    fn x2apic(&self) -> Fact {
        let can = self.flags("flags").iter().any(|f| f == "x2apic");
        let off = self.read("proc/cmdline").unwrap_or_default().split_whitespace().any(|w| w == "nox2apic");
        let (mark, found, advice) = match (can, off) {
            (true, false) => {
                (Mark::Good, "the CPU has it; nothing on the kernel's command line forbids it", "")
            }
            (true, true) => (Mark::Less, "switched off", "take nox2apic from the kernel's command line"),
            (false, _) => (Mark::Less, "the CPU has none", ""),
        };
        Fact { what: "x2APIC of the host", mark, found: found.into(), advice: advice.into() }
    }

    fn housekeeping(&self) -> Fact {
        let list = |f: &str| {
            self.read(&format!("sys/devices/system/cpu/{f}")).filter(|l| !l.is_empty() && l != "(null)")
        };
        // Timers go elsewhere by nohz_full= alone.
        let (mark, found, advice) = match (list("nohz_full"), list("isolated")) {
            (Some(cpus), _) => (Mark::Good, format!("CPUs {cpus} are kept free of it"), ""),
            (None, Some(cpus)) => {
                (Mark::Less, format!("CPUs {cpus} are isolated, but their timers are not elsewhere"), NOHZ)
            }
            (None, None) => (Mark::Less, "every CPU does it".into(), NOHZ),
        };
        Fact { what: "housekeeping", mark, found, advice: advice.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(files: &[(&str, &str)]) -> (PathBuf, Host) {
        use std::sync::atomic::{AtomicU32, Ordering};
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let root = std::env::temp_dir().join(format!("exitctl-{}-{n}", std::process::id()));
        for (name, text) in files {
            let path = root.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        (root.clone(), Host::new(&root))
    }

    fn marks(h: &Host) -> Vec<(&'static str, Mark)> {
        h.facts().into_iter().map(|f| (f.what, f.mark)).collect()
    }

    #[test]
    fn an_intel_host_that_is_ready() {
        let cpu = "processor\t: 0\nflags\t\t: fpu vmx x2apic tsc\nvmx flags\t: ept unrestricted_guest posted_intr preemption_timer\n";
        let (root, h) = host(&[
            ("proc/cpuinfo", cpu),
            ("proc/sys/kernel/osrelease", "6.1.0-56-cloud-amd64\n"),
            ("proc/cmdline", "quiet\n"),
            ("sys/module/exitless/parameters/apicv", "Y\n"),
            ("sys/module/exitless/parameters/preemption_timer", "Y\n"),
            ("sys/module/exitless/parameters/ipiv", "N\n"),
            ("sys/devices/system/clocksource/clocksource0/current_clocksource", "tsc\n"),
            ("sys/devices/system/clockevents/clockevent0/current_device", "lapic-deadline\n"),
            ("sys/devices/system/cpu/nohz_full", "2-7\n"),
        ]);
        assert!(marks(&h).iter().all(|(_, m)| *m == Mark::Good), "{:?}", h.facts());
        fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn an_amd_host_with_stock_kvm() {
        let cpu = "processor\t: 0\nflags\t\t: fpu svm npt x2apic\n\nprocessor\t: 1\nflags\t\t: vmx\n";
        let (root, h) = host(&[
            ("proc/cpuinfo", cpu),
            ("proc/sys/kernel/osrelease", "6.8.1\n"),
            ("proc/cmdline", "nox2apic quiet\n"),
            ("sys/module/kvm_amd/refcnt", "0\n"),
            ("sys/devices/system/cpu/nohz_full", "(null)\n"),
        ]);
        let facts = h.facts();
        let of = |what: &str| facts.iter().find(|f| f.what == what).unwrap();
        assert_eq!(of("module").mark, Mark::Bad);
        assert_eq!(of("other hypervisors").mark, Mark::Bad);
        assert!(of("other hypervisors").advice.contains("rmmod kvm_amd"));
        assert_eq!((of("CPU").mark, of("CPU").found.as_str()), (Mark::Good, "AMD, SVM"));
        assert_eq!(of("kernel").mark, Mark::Less);
        assert_eq!((of("x2APIC of the host").mark, of("housekeeping").mark), (Mark::Less, Mark::Less));
        fs::remove_dir_all(root).unwrap();
    }

    /// What the CPU could do counts for nothing where the module was told not to use it.
    #[test]
    fn parameters_of_the_loaded_module_decide() {
        let delivery = |cpu: &str, parameters: &[(&str, &str)]| {
            let names: Vec<_> =
                parameters.iter().map(|(n, _)| format!("sys/module/exitless/parameters/{n}")).collect();
            let mut files = vec![("proc/cpuinfo", cpu)];
            files.extend(names.iter().zip(parameters).map(|(n, (_, value))| (n.as_str(), *value)));
            let (root, h) = host(&files);
            let f = h.delivery();
            fs::remove_dir_all(root).unwrap();
            f
        };
        let intel = "flags\t: vmx\nvmx flags\t: posted_intr preemption_timer\n";
        let f = delivery(intel, &[]);
        assert_eq!((f.mark, f.advice.as_str()), (Mark::Good, ""));
        let f = delivery(intel, &[("apicv", "N\n"), ("preemption_timer", "Y\n"), ("ipiv", "Y\n")]);
        assert_eq!((f.mark, f.advice.as_str()), (Mark::Less, "load with apicv=1"));
        assert!(f.found.contains("switched off (apicv=N)") && f.found.contains("ipiv=Y"), "{}", f.found);
        let f = delivery(intel, &[("apicv", "Y\n"), ("preemption_timer", "N\n")]);
        assert_eq!((f.mark, f.advice.as_str()), (Mark::Less, "load with preemption_timer=1"));
        let f = delivery(intel, &[("apicv", "N\n"), ("preemption_timer", "N\n")]);
        assert_eq!(f.advice, "load with apicv=1, load with preemption_timer=1");
        let f = delivery("flags\t: vmx\n", &[("apicv", "Y\n"), ("preemption_timer", "Y\n")]);
        assert_eq!(f.mark, Mark::Less, "a parameter makes no CPU");

        let amd = "flags\t: svm x2avic\n";
        assert_eq!(delivery(amd, &[("avic", "Y\n")]).mark, Mark::Good);
        for off in [&[("avic", "N\n")][..], &[]] {
            let f = delivery(amd, off);
            assert_eq!((f.mark, f.advice.as_str()), (Mark::Less, AVIC));
        }
        assert_eq!(delivery("flags\t: svm\n", &[("avic", "Y\n")]).mark, Mark::Less);
        let f = delivery("flags\t: fpu\n", &[]);
        assert_eq!((f.found.as_str(), f.advice.as_str()), ("not known: neither VMX nor SVM", ""));
    }

    /// What the module refuses at load is said before, and what is locked.
    #[test]
    fn what_load_would_refuse() {
        let facts = |cpu: &str, lockdown: &str| {
            let (root, h) = host(&[("proc/cpuinfo", cpu), ("sys/kernel/security/lockdown", lockdown)]);
            let all = [h.cpu(), h.lockdown()];
            fs::remove_dir_all(root).unwrap();
            all
        };
        let intel = "flags\t: vmx\nvmx flags\t: ept unrestricted_guest\n";
        let [cpu, lockdown] = facts(intel, "[none] integrity confidentiality\n");
        assert_eq!((cpu.mark, lockdown.mark), (Mark::Good, Mark::Good));
        let [cpu, lockdown] = facts("flags\t: vmx\nvmx flags\t: ept\n", "none [integrity] confidentiality\n");
        assert_eq!((cpu.mark, lockdown.mark), (Mark::Bad, Mark::Less));
        assert!(cpu.found.contains("without unrestricted guests"), "{}", cpu.found);
        assert!(lockdown.found == "integrity" && lockdown.advice.contains("signed"), "{lockdown:?}");
        let [cpu, _] = facts(&intel.replace("vmx\n", "vmx fred\n"), "");
        assert_eq!((cpu.mark, cpu.advice.as_str()), (Mark::Bad, "start the kernel with fred=off"));
    }

    /// A kernel that KVM cannot be taken out of, and one that the module is not built for.
    #[test]
    fn kernels() {
        let facts = |release: &str, files: &[(&str, &str)]| {
            let mut all = vec![("proc/sys/kernel/osrelease", release)];
            all.extend(files);
            let (root, h) = host(&all);
            let facts = (h.kernel().mark, h.others());
            fs::remove_dir_all(root).unwrap();
            facts
        };
        for (release, mark) in [
            ("6.1.0-56-cloud-amd64\n", Mark::Good),
            ("6.12.9+\n", Mark::Good),
            ("6.18-rc1\n", Mark::Less),
            ("6.10.1\n", Mark::Less),
            ("strange\n", Mark::Less),
            ("6.19.0\n", Mark::Bad),
            ("7.0\n", Mark::Bad),
            ("6.0.19\n", Mark::Bad),
            ("5.15.1\n", Mark::Bad),
        ] {
            assert_eq!(facts(release, &[]).0, mark, "{release}");
        }
        let (_, f) = facts("6.1.1\n", &[("sys/module/kvm/parameters/halt_poll_ns", "1\n")]);
        assert_eq!((f.mark, f.found.as_str()), (Mark::Bad, "KVM is built into this kernel"));
        let modules = [("sys/module/kvm/initstate", "live\n"), ("sys/module/kvm_pvm/initstate", "live\n")];
        let (_, f) = facts("6.1.1\n", &modules);
        assert!(f.mark == Mark::Bad && f.advice.contains("rmmod kvm_pvm kvm;"), "{f:?}");
    }

    /// The module asks whether timers are elsewhere, which isolation alone does not do.
    #[test]
    fn isolation_is_not_housekeeping() {
        let fact = |files: &[(&str, &str)]| {
            let (root, h) = host(files);
            let fact = h.housekeeping();
            let _ = fs::remove_dir_all(root);
            fact
        };
        let isolated = ("sys/devices/system/cpu/isolated", "2-3\n");
        let f = fact(&[isolated]);
        assert!(f.mark == Mark::Less && f.found.starts_with("CPUs 2-3 are isolated"), "{f:?}");
        assert_eq!(f.advice, NOHZ);
        assert_eq!(fact(&[isolated, ("sys/devices/system/cpu/nohz_full", "2\n")]).mark, Mark::Good);
        assert_eq!(fact(&[]).found, "every CPU does it");
    }

    #[test]
    fn no_file_at_all_is_no_panic() {
        let (_, h) = host(&[]);
        assert!(
            h.facts()
                .iter()
                .all(|f| f.mark != Mark::Good || ["other hypervisors", "lockdown"].contains(&f.what)),
            "{:?}",
            h.facts()
        );
    }
}
