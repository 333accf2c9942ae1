//! Names of numbers: what the module calls its own, read once, and MSRs that guests touch often.

use crate::device::{Device, text};
use anyhow::Result;
use exitless_control_abi::{OTHERS, about, kind};
use std::collections::HashMap;

/// A mechanism, as the module describes it.
#[derive(Clone, Debug)]
pub(crate) struct Mechanism {
    pub(crate) name: String,
    /// New VMs have it on.
    pub(crate) default: bool,
    /// Only root switches it.
    pub(crate) root: bool,
}

/// What the module calls its numbers.
#[derive(Clone, Debug, Default)]
pub(crate) struct Names {
    pub(crate) mechanisms: Vec<Mechanism>,
    reasons: Vec<String>,
    fallbacks: Vec<String>,
    counters: Vec<String>,
    spent: Vec<String>,
    late: Vec<String>,
    exits: HashMap<u64, String>,
}

impl Names {
    /// Asks the module.
    pub(crate) fn read(d: &Device) -> Result<Self> {
        let all = |of: u32| -> Result<Vec<_>> {
            let mut found = Vec::new();
            while let Some(w) = d.words(of, found.len() as u32)? {
                found.push(w);
            }
            Ok(found)
        };
        let mechanism = |w: &exitless_control_abi::Words| Mechanism {
            name: text(&w.name),
            default: w.flags & about::DEFAULT != 0,
            root: w.flags & about::ROOT != 0,
        };
        Ok(Self {
            mechanisms: all(kind::MECHANISM)?.iter().map(mechanism).collect(),
            reasons: all(kind::REASON)?.iter().map(|w| text(&w.text)).collect(),
            fallbacks: all(kind::FALLBACK)?.iter().map(|w| text(&w.name)).collect(),
            counters: all(kind::COUNTER)?.iter().map(|w| text(&w.name)).collect(),
            spent: all(kind::SPENT)?.iter().map(|w| text(&w.name)).collect(),
            late: all(kind::LATE)?.iter().map(|w| text(&w.name)).collect(),
            exits: HashMap::new(),
        })
    }

    /// Why a mechanism is not active.
    pub(crate) fn reason(&self, n: u32) -> String {
        self.reasons.get(n as usize).cloned().unwrap_or_else(|| format!("reason {n}"))
    }

    pub(crate) fn fallback(&self, n: usize) -> String {
        self.fallbacks.get(n).cloned().unwrap_or_else(|| format!("fallback_{n}"))
    }

    pub(crate) fn counter(&self, n: u64) -> String {
        self.counters.get(n as usize).cloned().unwrap_or_else(|| format!("counter_{n}"))
    }

    /// What time is spent on.
    pub(crate) fn spent(&self, n: u32) -> String {
        self.spent.get(n as usize).cloned().unwrap_or_else(|| format!("spent_{n}"))
    }

    /// What is late.
    pub(crate) fn late(&self, n: u32) -> String {
        self.late.get(n as usize).cloned().unwrap_or_else(|| format!("late_{n}"))
    }

    /// An exit's, asked for when it first appears.
    pub(crate) fn exit(&mut self, d: &Device, number: u64) -> Result<String> {
        if let Some(known) = self.exits.get(&number) {
            return Ok(known.clone());
        }
        let words = if number == OTHERS { None } else { d.words(kind::EXIT, number as u32)? };
        let name = match words {
            Some(w) => text(&w.name),
            None if number == OTHERS => "others".into(),
            None => format!("exit_{number:#x}"),
        };
        self.exits.insert(number, name.clone());
        Ok(name)
    }

    /// The bit of a mechanism in a switch.
    pub(crate) fn bit(&self, name: &str) -> Option<u64> {
        self.mechanisms.iter().position(|m| m.name == name).map(|n| 1 << n)
    }
}

#[cfg(test)]
impl Names {
    /// Of a module that has these.
    pub(crate) fn of(mechanisms: Vec<Mechanism>) -> Self {
        Self { mechanisms, ..Self::default() }
    }
}

/// Names in the SDM's volume 4, the APM's volume 2, and KVM's documentation.
static MSRS: [(u32, &str); 30] = [
    (0x10, "TSC"),
    (0x1b, "APIC_BASE"),
    (0x3b, "TSC_ADJUST"),
    (0x48, "SPEC_CTRL"),
    (0x49, "PRED_CMD"),
    (0x8b, "BIOS_SIGN_ID"),
    (0x10a, "ARCH_CAPABILITIES"),
    (0x10b, "FLUSH_CMD"),
    (0x1a0, "MISC_ENABLE"),
    (0x1d9, "DEBUGCTL"),
    (0x277, "PAT"),
    (0x6e0, "TSC_DEADLINE"),
    (0x808, "x2APIC TPR"),
    (0x80b, "x2APIC EOI"),
    (0x80f, "x2APIC SVR"),
    (0x830, "x2APIC ICR"),
    (0x832, "x2APIC LVT timer"),
    (0x838, "x2APIC timer initial count"),
    (0x839, "x2APIC timer current count"),
    (0x83f, "x2APIC self-IPI"),
    (0x4b56_4d00, "KVM_WALL_CLOCK_NEW"),
    (0x4b56_4d01, "KVM_SYSTEM_TIME_NEW"),
    (0x4b56_4d02, "KVM_ASYNC_PF_EN"),
    (0x4b56_4d03, "KVM_STEAL_TIME"),
    (0x4b56_4d04, "KVM_PV_EOI_EN"),
    (0x4b56_4d05, "KVM_POLL_CONTROL"),
    (0xc000_0080, "EFER"),
    (0xc000_0103, "TSC_AUX"),
    (0xc001_0015, "HWCR"),
    (0xc001_011f, "VIRT_SPEC_CTRL"),
];

/// An MSR's name, or its number.
pub(crate) fn msr(number: u64) -> String {
    if number == OTHERS {
        return "others".into();
    }
    let known = MSRS.iter().find(|(n, _)| u64::from(*n) == number);
    known.map_or_else(|| format!("{number:#010x}"), |(_, name)| (*name).into())
}

/// A port's number.
pub(crate) fn port(number: u64) -> String {
    if number == OTHERS { "others".into() } else { format!("{number:#06x}") }
}
