//! What is seen at a moment, and what happened between two.

use crate::device::Device;
use crate::names::{self, Names};
use crate::times::Times;
use anyhow::Result;
use exitless_control_abi::{ALL_VCPUS, kind, state};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::time::Instant;

/// Counts by name.
pub(crate) type Counts = BTreeMap<String, u64>;

/// A mechanism in a VM.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Mechanism {
    pub(crate) name: String,
    /// Its switch.
    pub(crate) on: bool,
    /// In so many vCPUs.
    pub(crate) active: u32,
    /// Why not in all.
    pub(crate) reason: String,
    /// Its number.
    #[serde(skip)]
    pub(crate) why: u32,
    /// Cases that it took.
    pub(crate) hits: u64,
    /// Exits that there would have been without it.
    pub(crate) saved: u64,
    /// Exits that there were for it alone.
    pub(crate) added: u64,
    /// Cases that it left to the way there always is.
    pub(crate) fallbacks: Counts,
}

/// A vCPU.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Vcpu {
    pub(crate) id: u32,
    /// The host CPU that has it; -1: none.
    pub(crate) cpu: i32,
    pub(crate) state: &'static str,
    pub(crate) exits: u64,
    /// Of them, answered straight after the exit.
    pub(crate) fast: u64,
    /// Of them, returned to user space.
    pub(crate) user: u64,
}

/// A VM.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Vm {
    pub(crate) id: u64,
    /// Of the thread that created it.
    pub(crate) pid: i32,
    pub(crate) uid: u32,
    /// The process's name for it: QEMU's `-name`, or the command; without control characters.
    pub(crate) name: String,
    pub(crate) vcpus: Vec<Vcpu>,
    /// Exits by reason.
    pub(crate) exits: Counts,
    pub(crate) msrs: Counts,
    pub(crate) ports: Counts,
    /// KVM's own names.
    pub(crate) counters: Counts,
    pub(crate) mechanisms: Vec<Mechanism>,
    /// If its time was ever measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) times: Option<Times>,
}

impl Vm {
    pub(crate) fn total(&self, of: fn(&Vcpu) -> u64) -> u64 {
        self.vcpus.iter().map(of).sum()
    }
}

/// All VMs at a moment, or what they did in a time.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct View {
    /// What the counts are of: seconds between two looks; none: since each vCPU was created.
    pub(crate) seconds: Option<f64>,
    pub(crate) vms: Vec<Vm>,
}

/// Looks again and again.
pub(crate) struct Watch {
    device: Device,
    names: Names,
    last: Option<(Instant, View)>,
}

impl Watch {
    pub(crate) fn new(device: Device) -> Result<Self> {
        let names = Names::read(&device)?;
        Ok(Self { device, names, last: None })
    }

    pub(crate) fn device(&self) -> &Device {
        &self.device
    }

    /// What is there. A VM that ends meanwhile is left out.
    pub(crate) fn look(&mut self) -> Result<View> {
        let mut vms = Vec::new();
        for record in self.device.vms()? {
            let (id, pid) = (record.id, record.pid);
            match self.vm(id, pid, record.uid, record.vcpus) {
                Ok(vm) => vms.push(vm),
                Err(e) if ended(&e) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(View { seconds: None, vms })
    }

    /// What happened since the last time; the first time, since the beginning.
    pub(crate) fn since(&mut self) -> Result<View> {
        let (now, view) = (Instant::now(), self.look()?);
        let before = self.last.replace((now, view.clone()));
        Ok(match before {
            Some((then, old)) => view.minus(&old, (now - then).as_secs_f64()),
            None => view,
        })
    }

    fn vm(&mut self, id: u64, pid: i32, uid: u32, vcpus: u32) -> Result<Vm> {
        let d = &self.device;
        // Some more: vCPUs may have come since the list.
        let vcpus = d.vcpus(id, vcpus + 16)?;
        let mut exits = Counts::new();
        for c in d.counters(id, ALL_VCPUS, kind::EXIT)? {
            exits.insert(self.names.exit(d, c.key)?, c.count);
        }
        let keyed = |what, name: fn(u64) -> String| -> Result<Counts> {
            Ok(d.counters(id, ALL_VCPUS, what)?.iter().map(|c| (name(c.key), c.count)).collect())
        };
        let (msrs, ports) = (keyed(kind::MSR, names::msr)?, keyed(kind::PORT, names::port)?);
        let counters = d.counters(id, ALL_VCPUS, kind::COUNTER)?;
        let counters = counters.iter().map(|c| (self.names.counter(c.key), c.count)).collect();
        let states = d.states(id)?;
        let known = states.iter().zip(&self.names.mechanisms);
        let mechanisms = known.map(|(s, m)| self.mechanism(s, &m.name)).collect();
        let vcpus = vcpus.iter().map(vcpu).collect();
        let times = Times::read(d, &mut self.names, id)?;
        let name = process_name(pid, uid);
        Ok(Vm { id, pid, uid, name, vcpus, exits, msrs, ports, counters, mechanisms, times })
    }

    fn mechanism(&self, s: &exitless_control_abi::State, name: &str) -> Mechanism {
        let left = s.fallbacks.iter().enumerate().filter(|(_, n)| **n != 0);
        Mechanism {
            name: name.into(),
            on: s.flags & state::WANTED != 0,
            active: s.active,
            reason: self.names.reason(s.reason),
            why: s.reason,
            hits: s.hits,
            saved: s.saved,
            added: s.added,
            fallbacks: left.map(|(i, n)| (self.names.fallback(i), *n)).collect(),
        }
    }
}

fn ended(e: &anyhow::Error) -> bool {
    e.downcast_ref::<std::io::Error>().is_some_and(|e| e.kind() == std::io::ErrorKind::NotFound)
}

fn vcpu(r: &exitless_control_abi::VcpuRecord) -> Vcpu {
    let state = match (r.in_guest, r.mp_state) {
        (1, _) => "guest",
        (_, 0) => "runnable",
        (_, 1) => "uninitialized",
        (_, 2) => "init",
        (_, 3) => "halted",
        (_, 4) => "sipi",
        _ => "?",
    };
    Vcpu { id: r.id, cpu: r.cpu, state, exits: r.exits, fast: r.fast, user: r.user }
}

/// QEMU's `-name`, its first word, or the command; empty where the process is out of sight, or another user's than the VM: the number is
/// that of the thread which created the VM, and once it has ended another's.
fn process_name(pid: i32, uid: u32) -> String {
    let of = || -> std::io::Result<Option<String>> {
        // Held open, so that what is read is of the process whose owner was looked at.
        let process = File::open(format!("/proc/{pid}"))?;
        if process.metadata()?.uid() != uid {
            return Ok(None);
        }
        let read = |what| {
            let file = File::open(format!("/proc/self/fd/{}/{what}", process.as_raw_fd()))?;
            let mut bytes = Vec::new();
            file.take(1 << 20).read_to_end(&mut bytes).map(|_| bytes)
        };
        let command = || Ok(read("comm").map(|c| String::from_utf8_lossy(&c).trim_end().to_owned()).ok());
        name_in(&read("cmdline")?).map_or_else(command, |name| Ok(Some(name)))
    };
    printable(&of().ok().flatten().unwrap_or_default())
}

fn name_in(line: &[u8]) -> Option<String> {
    let mut words = line.split(|b| *b == 0);
    words.find(|w| *w == b"-name")?;
    let name = String::from_utf8_lossy(words.next()?).into_owned();
    let first = name.split(',').find(|part| !part.is_empty())?;
    Some(first.strip_prefix("guest=").unwrap_or(first).to_owned())
}

/// The longest name that is shown, in characters.
const NAME: usize = 64;

/// A name that any user chose, fit for the terminal of root: `?` for control characters (C0, DEL, C1) and for those that change the
/// direction or the lines of the text around them.
fn printable(name: &str) -> String {
    let turns = |c| matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    name.chars().take(NAME).map(|c| if c.is_control() || turns(c) { '?' } else { c }).collect()
}

/// How a VM is called to people.
pub(crate) fn title(id: u64, name: &str, pid: i32) -> String {
    let space = if name.is_empty() { "" } else { " " };
    format!("VM {id}{space}{name} (pid {pid})")
}

/// What came since `before`.
pub(crate) fn less(now: &Counts, before: &Counts) -> Counts {
    let rest = now.iter().map(|(k, n)| (k.clone(), n.wrapping_sub(before.get(k).copied().unwrap_or(0))));
    // What gave its row away counts on under `others`, and from zero if it comes back.
    rest.filter(|(_, n)| *n != 0 && *n < 1 << 63).collect()
}

impl View {
    /// What happened since `old`. VMs and vCPUs that are new count from their creation.
    pub(crate) fn minus(&self, old: &Self, seconds: f64) -> Self {
        let vm = |now: &Vm| match old.vms.iter().find(|b| b.id == now.id) {
            None => now.clone(),
            Some(before) => now.minus(before),
        };
        Self { seconds: Some(seconds), vms: self.vms.iter().map(vm).collect() }
    }
}

impl Vm {
    fn minus(&self, old: &Self) -> Self {
        let vcpu = |now: &Vcpu| {
            let before = old.vcpus.iter().find(|b| b.id == now.id);
            let since = |of: fn(&Vcpu) -> u64| of(now).wrapping_sub(before.map_or(0, of));
            Vcpu {
                exits: since(|v| v.exits),
                fast: since(|v| v.fast),
                user: since(|v| v.user),
                ..now.clone()
            }
        };
        let mechanism = |now: &Mechanism| {
            let before = old.mechanisms.iter().find(|b| b.name == now.name);
            let since = |of: fn(&Mechanism) -> u64| of(now).wrapping_sub(before.map_or(0, of));
            let none = Counts::new();
            Mechanism {
                hits: since(|m| m.hits),
                saved: since(|m| m.saved),
                added: since(|m| m.added),
                fallbacks: less(&now.fallbacks, before.map_or(&none, |b| &b.fallbacks)),
                ..now.clone()
            }
        };
        Self {
            vcpus: self.vcpus.iter().map(vcpu).collect(),
            exits: less(&self.exits, &old.exits),
            msrs: less(&self.msrs, &old.msrs),
            ports: less(&self.ports, &old.ports),
            counters: less(&self.counters, &old.counters),
            mechanisms: self.mechanisms.iter().map(mechanism).collect(),
            times: self.times.as_ref().map(|now| old.times.as_ref().map_or(now.clone(), |t| now.minus(t))),
            ..self.clone()
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A VM with so many vCPUs, whose numbers grow with `n`.
    pub(crate) fn sample(id: u64, vcpus: u32, n: u64) -> Vm {
        let counts = |of: &[(&str, u64)]| of.iter().map(|(k, c)| ((*k).into(), c * n)).collect::<Counts>();
        let each = (0..vcpus).map(|v| Vcpu {
            id: v,
            cpu: v as i32,
            state: "guest",
            exits: 100 * n + u64::from(v),
            fast: 60 * n,
            user: 2 * n,
        });
        let mechanism = |name: &str, on, active, hits| Mechanism {
            name: name.into(),
            on,
            active,
            reason: if active != 0 { "active" } else { "switched off: for this VM" }.into(),
            why: u32::from(active == 0),
            hits,
            saved: hits / 2,
            added: 0,
            fallbacks: counts(&[("form", 3)]),
        };
        Vm {
            id,
            pid: 1000 + id as i32,
            uid: 0,
            name: format!("guest-{id}"),
            vcpus: each.collect(),
            exits: counts(&[("hlt", 20), ("msr", 70), ("npf", 10)]),
            msrs: counts(&[("TSC_DEADLINE", 60), ("x2APIC ICR", 10)]),
            ports: Counts::new(),
            counters: counts(&[
                ("exits", 100),
                ("halt_exits", 20),
                ("halt_wait_ns", 5000),
                ("steal_ns", 2000),
                ("wake_ipi", 1),
                ("wake_timer", 9),
            ]),
            mechanisms: vec![mechanism("ipi_fastpath", true, vcpus, 10 * n), mechanism("boost", false, 0, 0)],
            times: Some(crate::times::tests::sample(vcpus, n)),
        }
    }

    #[test]
    fn a_difference_counts_what_happened_since() {
        let (old, new) = (sample(1, 2, 1), sample(1, 2, 4));
        let old = View { seconds: None, vms: vec![old] };
        let new = View { seconds: None, vms: vec![new, sample(2, 1, 1)] };
        let d = new.minus(&old, 0.5);
        assert_eq!(d.seconds, Some(0.5));
        assert_eq!(
            d.vms[0].exits,
            Counts::from([("hlt".into(), 60), ("msr".into(), 210), ("npf".into(), 30)])
        );
        assert_eq!(d.vms[0].total(|v| v.exits), 600);
        assert_eq!((d.vms[0].mechanisms[0].hits, d.vms[0].mechanisms[0].active), (30, 2));
        assert_eq!(d.vms[0].mechanisms[0].fallbacks["form"], 9);
        assert_eq!(d.vms[1], sample(2, 1, 1), "a new VM counts from its creation");
    }

    /// A key of the module's small tables may give its row away and come back with less.
    #[test]
    fn what_fell_is_left_out() {
        let now = Counts::from([("a".into(), 5), ("b".into(), 7)]);
        let old = Counts::from([("a".into(), 9), ("b".into(), 7)]);
        assert_eq!(less(&now, &old), Counts::new());
    }

    #[test]
    fn names_of_qemu() {
        assert_eq!(name_in(b"qemu\0-name\0guest=web,debug-threads=on\0-S").as_deref(), Some("web"));
        assert_eq!(name_in(b"qemu\0-name\0db\0").as_deref(), Some("db"));
        assert_eq!(name_in(b"firecracker\0--id\0x"), None);
        assert_eq!(name_in(b"qemu\0-name"), None);
    }

    #[test]
    fn names_move_no_terminal() {
        assert_eq!(printable("\x1b]0;x\x07a\nb\x7f\u{9b}2J"), "?]0;x?a?b??2J");
        assert_eq!(printable("\u{202e}\u{2066}\u{2028}w\u{eb}b-1 \u{540d}"), "???w\u{eb}b-1 \u{540d}");
        assert_eq!(printable(&"x".repeat(9999)).len(), NAME);
        assert_eq!((title(3, "", 4).as_str(), title(3, "a", 4).as_str()), ("VM 3 (pid 4)", "VM 3 a (pid 4)"));
    }

    /// Of a process that asks for the terminal's attention, and only as long as it is the VM's user's.
    #[test]
    fn names_of_processes() {
        use std::process::{Command, Stdio};
        let shell = |args: &[&str]| {
            let mut c = Command::new("sh");
            c.args(["-c", "echo; read x", "sh"]).args(args).stdin(Stdio::piped()).stdout(Stdio::piped());
            let mut child = c.spawn().unwrap();
            // It runs, and is no longer a copy of this process.
            child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
            child
        };
        let (mut named, mut nameless) = (shell(&["-name", "guest=\x1b[2Jweb,x=y"]), shell(&[]));
        let of = |pid: u32, uid| process_name(pid as i32, uid);
        let uid = std::fs::metadata(format!("/proc/{}", named.id())).unwrap().uid();
        assert_eq!(of(named.id(), uid), "?[2Jweb");
        assert_eq!(of(nameless.id(), uid), "sh");
        assert_eq!((of(named.id(), uid + 1), of(nameless.id(), uid + 1)), (String::new(), String::new()));
        for child in [&mut named, &mut nameless] {
            drop(child.stdin.take());
            child.wait().unwrap();
        }
        assert_eq!(of(named.id(), uid), "", "it has ended");
    }
}
