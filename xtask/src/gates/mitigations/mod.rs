//! What the kernel's own KVM does against CPU faults, and what this module does: each difference has its reason in
//! `linux/mitigations.toml`.
//!
//! The kernel's modules for the same kernel are the yardstick, read as binaries: a mitigation is a place patched for a CPU
//! feature, a thunk that is called, or a variable of the kernel's that says what was chosen at boot. Compared are the two
//! world switches, function by function, and all modules together. What cannot be seen that way is in `docs/security.md`.

mod module;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use iced_x86::Mnemonic;
use serde::Deserialize;

use self::module::{Found, Module};
use super::Report;
use crate::lab::deps::KernelTree;

/// A world switch: what runs between the last C code before the guest and the first behind it.
struct Switch {
    name: &'static str,
    /// The kernel's module.
    stock: &'static str,
    /// Its functions, the one that enters the guest first: all that run with the guest's state or decide on what is cleared.
    theirs: &'static [&'static str],
    ours: &'static [&'static str],
    /// Our function that enters the guest, its instructions that do, and the features for which it clears buffers before.
    entry: (&'static str, &'static [Mnemonic], &'static [&'static str]),
}

const SWITCHES: &[Switch] = &[
    Switch {
        name: "vmx",
        stock: "kvm-intel",
        theirs: &["__vmx_vcpu_run", "vmx_vcpu_enter_exit", "vmx_spec_ctrl_restore_host", "vmx_l1d_flush"],
        ours: &["ex_vmx_run_asm", "ex_vmx_enter"],
        entry: (
            "ex_vmx_run_asm",
            &[Mnemonic::Vmresume, Mnemonic::Vmlaunch],
            &["X86_FEATURE_CLEAR_CPU_BUF", "X86_FEATURE_CLEAR_CPU_BUF_VM"],
        ),
    },
    Switch {
        name: "svm",
        stock: "kvm-amd",
        theirs: &["__svm_vcpu_run", "svm_vcpu_enter_exit"],
        ours: &["ex_svm_run_asm", "ex_svm_enter"],
        entry: ("ex_svm_run_asm", &[Mnemonic::Vmrun], &["X86_FEATURE_CLEAR_CPU_BUF_VM"]),
    },
];

/// Words in the names of the kernel's variables and functions that belong to a mitigation, or keep the host's performance
/// counters and traces out of guests.
const WORDS: &[&str] = &[
    "amd_pmu_",
    "bhb",
    "buf_vm_clear",
    "clear_cpu_buf",
    "divider",
    "entry_ibpb",
    "gds_",
    "guest_info_callbacks",
    "ibpb",
    "itlb",
    "its_",
    "l1d",
    "l1tf",
    "mds_",
    "mitigation",
    "mmio_stale",
    "perf_guest_",
    "pred_cmd",
    "pt_handle_vmx",
    "rethunk",
    "return_thunk",
    "smt",
    "spec_ctrl",
    "spec_store",
    "srso",
    "stibp",
    "taa_",
    "thunk",
    "tsx",
    "untrain",
    "verw",
    "vmscape",
];

/// One entry of `linux/mitigations.toml`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Difference {
    /// `vmx`, `svm`, or `modules`: all of the kernel's KVM modules against the whole of ours.
    pub place: String,
    /// `lack` or `add`: seen from this module.
    pub we: String,
    /// Names of features, `!` before those patched where the feature is absent, or of symbols; `*` at an end stands for any text.
    pub what: Vec<String>,
    /// Only on kernels whose release begins so.
    #[serde(default)]
    pub kernel: String,
    /// Why that is right.
    pub reason: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct List {
    #[serde(default)]
    difference: Vec<Difference>,
}

/// Reads the list; an entry without a reason is an error.
pub fn read_list(text: &str) -> Result<Vec<Difference>> {
    let list: List = toml::from_str(text).context("linux/mitigations.toml")?;
    for entry in &list.difference {
        let known = matches!(entry.place.as_str(), "vmx" | "svm" | "modules")
            && matches!(entry.we.as_str(), "lack" | "add");
        if entry.reason.trim().is_empty() || !known {
            bail!("linux/mitigations.toml: {:?} needs a reason, a known place and `we`", entry.what);
        }
    }
    Ok(list.difference)
}

/// Compares the module at `ko` with the modules of its kernel.
pub fn check(ko: &Path, kernel: &KernelTree, list: &[Difference], report: &mut Report) -> Result<()> {
    let names = feature_names(&kernel.headers_dir)?;
    let ours = Module::read(&fs::read(ko).with_context(|| format!("cannot read {}", ko.display()))?)?;
    let read = |name: &str| -> Result<Module> { Module::read(&fs::read(kernel.module(name)?)?) };
    let mut comparison =
        Comparison { kernel: &kernel.release, names: &names, list, used: vec![false; list.len()], report };
    let mut stock = Vec::new();
    for switch in SWITCHES {
        let theirs = read(switch.stock)?;
        comparison.compare(switch.name, theirs.of_functions(switch.theirs)?, ours.of_functions(switch.ours)?);
        let (function, ..) = switch.entry;
        let first = switch.theirs.first().map_or(Vec::new(), |name| theirs.order(name));
        comparison.ordered(switch.name, &first, &ours.order(function));
        comparison.cleared_last(&ours, switch);
        stock.push(theirs);
    }
    stock.push(read("kvm")?);
    comparison.compare("modules", whole(&stock), whole(std::slice::from_ref(&ours)));
    let unlisted = ours.unlisted_thunks();
    comparison
        .report
        .mitigations
        .extend(unlisted.into_iter().map(|at| format!("{at}: the kernel cannot patch this call")));
    comparison.finish();
    Ok(())
}

/// All features of some modules, their lists of places to patch, and the symbols that sound like a mitigation.
fn whole(modules: &[Module]) -> Found {
    let features: BTreeSet<_> = modules.iter().flat_map(Module::features).collect();
    let symbols = modules.iter().flat_map(Module::symbols);
    let mitigating = symbols.filter(|name| WORDS.iter().any(|word| name.contains(word)));
    (features.into_iter().collect(), mitigating.chain(modules.iter().flat_map(Module::lists)).collect())
}

struct Comparison<'a> {
    kernel: &'a str,
    names: &'a BTreeMap<u16, Vec<String>>,
    list: &'a [Difference],
    used: Vec<bool>,
    report: &'a mut Report,
}

impl Comparison<'_> {
    fn compare(&mut self, place: &str, theirs: Found, ours: Found) {
        let (theirs, ours) = (self.all_of(&theirs), self.all_of(&ours));
        self.report.compared += theirs.union(&ours).count();
        self.differ(place, "lack", theirs.difference(&ours));
        self.differ(place, "add", ours.difference(&theirs));
    }

    fn all_of(&self, (features, symbols): &Found) -> BTreeSet<String> {
        self.names_of(features).union(symbols).cloned().collect()
    }

    /// A feature's second place is "X (2)", and so on: one that is patched at the entry only is found to lack the exit.
    fn names_of(&self, features: &[(u16, bool)]) -> BTreeSet<String> {
        let mut found = BTreeSet::new();
        for feature in features {
            let name = self.name_of(*feature);
            let others = (2..).map(|n| format!("{name} ({n})"));
            found.extend(std::iter::once(name.clone()).chain(others).find(|name| !found.contains(name)));
        }
        // Patched on every CPU: how the compiler's `cpu_has` is written, and no mitigation.
        found.retain(|name| !name.contains("X86_FEATURE_ALWAYS"));
        found
    }

    fn name_of(&self, (feature, inverted): (u16, bool)) -> String {
        format!("{}{}", if inverted { "!" } else { "" }, name(self.names, feature))
    }

    /// What both do, they do in one order: the return stack is filled before SPEC_CTRL changes back, and so on.
    fn ordered(&mut self, place: &str, theirs: &[(u16, bool)], ours: &[(u16, bool)]) {
        let of = |these: &[(u16, bool)], others: &[(u16, bool)]| -> Vec<String> {
            let both = these.iter().filter(|feature| others.contains(feature));
            both.map(|feature| self.name_of(*feature)).collect()
        };
        let (stock, here) = (of(theirs, ours), of(ours, theirs));
        if stock != here {
            let line = format!("{place}, {}: the order is {here:?}, KVM's is {stock:?}", self.kernel);
            self.report.mitigations.push(line);
        }
    }

    fn differ<'s>(&mut self, place: &str, we: &str, what: impl Iterator<Item = &'s String>) {
        for what in what {
            let at = self.list.iter().position(|entry| {
                entry.place == place
                    && entry.we == we
                    && self.kernel.starts_with(&entry.kernel)
                    && entry.what.iter().any(|pattern| fits(pattern, what))
            });
            match at {
                Some(at) => self.used[at] = true,
                None => self.report.mitigations.push(format!("{place}, {}: we {we} {what}", self.kernel)),
            }
        }
    }

    /// Nothing may fill the CPU's buffers again between VERW and the guest.
    fn cleared_last(&mut self, ours: &Module, switch: &Switch) {
        let (function, entries, wanted) = &switch.entry;
        let features =
            self.names.iter().filter(|(_, names)| names.iter().any(|name| wanted.contains(&name.as_str())));
        let cleared: Vec<_> =
            features.map(|(feature, _)| ours.memory_behind(function, *feature, entries)).collect();
        if cleared.iter().all(Result::is_err) {
            self.report
                .mitigations
                .push(format!("{function} does not clear the CPU's buffers: no VERW before the guest"));
        }
        for touched in cleared.into_iter().flatten().flatten() {
            self.report.mitigations.push(format!("{touched} touches memory between VERW and the guest"));
        }
    }

    fn finish(self) {
        self.report.explained += self.used.iter().filter(|used| **used).count();
        let unused = self
            .list
            .iter()
            .zip(self.used)
            .filter(|(entry, used)| !used && self.kernel.starts_with(&entry.kernel));
        for (entry, _) in unused {
            let line = format!(
                "linux/mitigations.toml: {}, we {} {:?} is not so on {}",
                entry.place, entry.we, entry.what, self.kernel
            );
            self.report.stale_mitigations.push(line);
        }
    }
}

fn fits(pattern: &str, name: &str) -> bool {
    pattern.strip_suffix('*').map_or(pattern == name, |head| name.starts_with(head))
}

fn name(names: &BTreeMap<u16, Vec<String>>, feature: u16) -> String {
    let known = names.get(&feature).and_then(|names| names.first());
    known.cloned().unwrap_or_else(|| format!("{}*32+{}", feature / 32, feature % 32))
}

/// The kernel's names of its feature words' bits, the bits for bugs among them.
fn feature_names(headers: &Path) -> Result<BTreeMap<u16, Vec<String>>> {
    let makefile = fs::read_to_string(headers.join("Makefile")).unwrap_or_default();
    // Debian's headers of one flavour name the common ones.
    let common = makefile.lines().find_map(|line| line.strip_prefix("include ")?.strip_suffix("/Makefile"));
    let dirs = [common.map(Into::into), Some(headers.to_path_buf()), Some(headers.join("source"))];
    let file = "arch/x86/include/asm/cpufeatures.h";
    let text = dirs.into_iter().flatten().find_map(|dir: PathBuf| fs::read_to_string(dir.join(file)).ok());
    let names = names_in(&text.with_context(|| format!("{} has no {file}", headers.display()))?);
    if names.len() < 100 {
        bail!("{file} is not in the form that this gate reads");
    }
    Ok(names)
}

/// From lines such as `#define X86_FEATURE_X ( 3*32+21)` and `#define X86_BUG_Y X86_BUG(4)`.
fn names_in(text: &str) -> BTreeMap<u16, Vec<String>> {
    let words = |name: &str| {
        text.lines().find_map(|line| {
            line.strip_prefix("#define ")?
                .trim()
                .strip_prefix(name)?
                .split_whitespace()
                .next()?
                .parse::<u16>()
                .ok()
        })
    };
    let bugs = words("NCAPINTS").map(|words| words * 32);
    let mut found: BTreeMap<u16, Vec<String>> = BTreeMap::new();
    for line in text.lines().filter_map(|line| line.strip_prefix("#define ")) {
        let Some((name, value)) = line.split_once(char::is_whitespace) else { continue };
        let base = if name.starts_with("X86_BUG_") { bugs } else { Some(0) };
        let value = value.trim().trim_start_matches("X86_BUG").trim_start_matches('(');
        let Some((value, _)) = value.split_once(')') else { continue };
        let number = |text: &str| text.trim().parse::<u16>().ok();
        let within = match value.split_once("*32") {
            Some((word, bit)) => number(word)
                .zip(number(bit.trim().trim_start_matches('+')))
                .map(|(word, bit)| word * 32 + bit),
            None if name.starts_with("X86_BUG_") => number(value),
            None => None,
        };
        let bit = within.zip(base).map(|(bit, base)| base + bit);
        if let Some(bit) = bit.filter(|_| name.starts_with("X86_")) {
            found.entry(bit).or_default().push(name.to_string());
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_features_and_bugs() {
        let text = "#define NCAPINTS\t\t\t22\t   /* N */\n#define X86_FEATURE_FPU\t\t( 0*32+ 0) /* F */\n\
                    #define X86_FEATURE_L (11*32+18)\n#define X86_BUG(x)\t(NCAPINTS*32 + (x))\n#define X86_BUG_MDS X86_BUG(19)\n\
                    #define X86_BUG_DIV0\t X86_BUG(1*32 + 1) /* D */\n";
        let names = names_in(text);
        assert_eq!(name(&names, 0), "X86_FEATURE_FPU");
        assert_eq!(name(&names, 11 * 32 + 18), "X86_FEATURE_L");
        assert_eq!(name(&names, 22 * 32 + 19), "X86_BUG_MDS");
        assert_eq!(name(&names, 23 * 32 + 1), "X86_BUG_DIV0");
        assert_eq!(name(&names, 33), "1*32+1");
        assert_eq!(names.len(), 4);
    }

    #[test]
    fn a_reason_is_needed() {
        let entry = |reason: &str| {
            format!("[[difference]]\nplace = \"vmx\"\nwe = \"lack\"\nwhat = [\"f\"]\nreason = \"{reason}\"")
        };
        assert!(read_list(&entry(" ")).is_err());
        assert_eq!(read_list(&entry("r")).map(|list| list.len()).ok(), Some(1));
        assert!(read_list(&entry("r").replace("vmx", "VMX")).is_err());
    }

    /// The fault that this gate was made for: VERW hung on a feature that Intel's CPUs never have.
    #[test]
    fn a_feature_of_theirs_that_we_lack_fails() {
        let names = BTreeMap::from([(370, vec!["A".to_string()]), (685, vec!["B".to_string()])]);
        let list = read_list("[[difference]]\nplace = \"vmx\"\nwe = \"add\"\nwhat = [\"B\"]\nreason = \"r\"")
            .expect("parses");
        let mut report = Report::default();
        let set = |bits: &[u16]| (bits.iter().map(|bit| (*bit, false)).collect::<Vec<_>>(), BTreeSet::new());
        let mut comparison =
            Comparison { kernel: "6.1", names: &names, list: &list, used: vec![false], report: &mut report };
        comparison.compare("vmx", set(&[370]), set(&[685]));
        comparison.finish();
        assert_eq!(report.mitigations, ["vmx, 6.1: we lack A"]);
        assert!(!report.passed() && report.stale_mitigations.is_empty() && report.explained == 1);
    }
}
