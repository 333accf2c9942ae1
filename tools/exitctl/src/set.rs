//! `exitctl set`: switches of one VM, of all, or of VMs to come; for once or at each load.

use crate::device::Device;
use crate::names::Names;
use crate::out;
use anyhow::{Context, Result, bail, ensure};
use clap::{ArgGroup, Args};
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where modprobe, not insmod, finds parameters.
const FOLDER: &str = "/etc/modprobe.d";
const FILE: &str = "exitless-mechanisms.conf";

#[derive(Debug, Args)]
#[command(group(ArgGroup::new("whom").required(true).args(["vm", "all_vms", "default"])))]
pub(crate) struct Options {
    /// NAME=on or NAME=off, in order; `all` stands for every mechanism.
    #[arg(required = true, value_name = "NAME=on|off", value_parser = change)]
    changes: Vec<Change>,
    /// This VM (its number in exitctl stat).
    #[arg(long, value_name = "NUMBER", value_parser = crate::vm_number)]
    vm: Option<u64>,
    /// Every VM that is running.
    #[arg(long)]
    all_vms: bool,
    /// VMs to come.
    #[arg(long)]
    default: bool,
    /// With --default: also when modprobe loads the module again (writes /etc/modprobe.d/exitless-mechanisms.conf).
    ///
    /// insmod reads nothing there. Options in a file whose name sorts behind, as exitless.conf does, come later and win.
    // `requires` alone is not asked for beside what conflicts with it.
    #[arg(long, requires = "default", conflicts_with_all = ["vm", "all_vms"])]
    persist: bool,
    /// Say what would be done, and do nothing.
    #[arg(long)]
    dry_run: bool,
}

/// NAME=on or NAME=off.
#[derive(Clone, Debug)]
struct Change {
    name: String,
    on: bool,
}

fn change(text: &str) -> Result<Change> {
    let Some((name, value)) = text.split_once('=') else { bail!("say {text}=on or {text}=off") };
    ensure!(!name.is_empty(), "which mechanism?");
    let on = match value {
        "on" => true,
        "off" => false,
        _ => bail!("a switch is on or off"),
    };
    Ok(Change { name: name.into(), on })
}

/// Bits to set and to clear.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Masks {
    on: u64,
    off: u64,
}

fn masks(names: &Names, changes: &[Change]) -> Result<Masks> {
    let mut m = Masks::default();
    for Change { name, on } in changes {
        let bits = match name.as_str() {
            "all" => (1 << names.mechanisms.len()) - 1,
            name => names.bit(name).with_context(|| {
                let known: Vec<_> = names.mechanisms.iter().map(|m| m.name.as_str()).collect();
                format!("{name} is no mechanism of this module; there are {}", known.join(", "))
            })?,
        };
        match on {
            true => (m.on, m.off) = (m.on | bits, m.off & !bits),
            false => (m.on, m.off) = (m.on & !bits, m.off | bits),
        }
    }
    Ok(m)
}

pub(crate) fn run(o: &Options) -> Result<()> {
    let d = if o.dry_run { Device::open()? } else { Device::open_to_switch()? };
    let names = Names::read(&d)?;
    let m = masks(&names, &o.changes)?;
    let mut none = true;
    let one = if o.default { Some(0) } else { o.vm };
    d.each(one, |id| {
        none = false;
        let whom = if id == 0 { "VMs to come".into() } else { format!("VM {id}") };
        if o.dry_run {
            return out::print(&format!("{whom}: would be {}\n", said(&names, m))).map(drop);
        }
        d.switch(id, m.on, m.off)?;
        out::print(&format!("{whom}: {}\n", said(&names, m)))?;
        out::print(&states(&d, &names, id, m)?).map(drop)
    })?;
    if none {
        out::print("no VM is running\n")?;
    }
    if o.persist {
        // As the switches are now: the defaults with these changes.
        let line = modprobe_line(&names, m);
        let folder = Path::new(FOLDER);
        let path = folder.join(FILE);
        out::print(&format!("{} (for modprobe; insmod does not read it): {line}", path.display()))?;
        for wins in later(folder) {
            out::print(&format!("{} has mechanisms too, is read later and wins\n", wins.display()))?;
        }
        if !o.dry_run {
            write_whole(&path, &line)
                .with_context(|| format!("not kept for the next load: {}", path.display()))?;
        }
    }
    Ok(())
}

/// What that makes of a VM that runs: each that was switched, or, of VMs to come, nothing.
fn states(d: &Device, names: &Names, id: u64, m: Masks) -> Result<String> {
    if id == 0 {
        return Ok(String::new());
    }
    let moved = |n: u32| (m.on | m.off) >> n & 1 == 1;
    // Each vCPU looks when it next enters the guest; those that run are made to.
    std::thread::sleep(Duration::from_millis(50));
    let vcpus = d.vms()?.iter().find(|vm| vm.id == id).map_or(0, |vm| vm.vcpus);
    let all = d.states(id)?;
    let lines = all.iter().filter(|s| moved(s.mechanism)).map(|s| {
        let name = names.mechanisms.get(s.mechanism as usize).map_or("?", |m| m.name.as_str());
        let why = if s.active == vcpus { String::new() } else { format!(": {}", names.reason(s.reason)) };
        format!("  {name} active in {} of {vcpus} vCPUs{why}\n", s.active)
    });
    Ok(lines.collect())
}

/// What is switched, in words; what only root switches is said.
fn said(names: &Names, m: Masks) -> String {
    let each = names.mechanisms.iter().enumerate().filter_map(|(n, x)| {
        let to = match (m.on >> n & 1, m.off >> n & 1) {
            (1, _) => "on",
            (_, 1) => "off",
            _ => return None,
        };
        let roots = if x.root { " (root's)" } else { "" };
        Some(format!("{} {to}{roots}", x.name))
    });
    each.collect::<Vec<_>>().join(", ")
}

/// The whole state of the defaults, so that a second call does not lose the first.
fn modprobe_line(names: &Names, m: Masks) -> String {
    let each = names.mechanisms.iter().enumerate().map(|(n, x)| {
        let on = m.on >> n & 1 == 1 || (x.default && m.off >> n & 1 == 0);
        format!("{}{}", if on { '+' } else { '-' }, x.name)
    });
    format!(
        "# Written by exitctl set --default --persist.\noptions exitless mechanisms={}\n",
        each.collect::<Vec<_>>().join(",")
    )
}

/// Files of the folder that set mechanisms too and whose names sort behind: modprobe hands options over in this order.
fn later(folder: &Path) -> Vec<PathBuf> {
    let sets = |path: &PathBuf| {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        text.lines().any(|line| {
            let mut words = line.split_whitespace();
            words.next() == Some("options")
                && words.next() == Some("exitless")
                && words.any(|w| w.starts_with("mechanisms="))
        })
    };
    let behind = |path: &PathBuf| {
        path.extension().is_some_and(|e| e == "conf")
            && path.file_name().is_some_and(|name| name > OsStr::new(FILE))
    };
    let all = std::fs::read_dir(folder).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()));
    let mut found: Vec<_> = all.filter(behind).filter(sets).collect();
    found.sort();
    found
}

/// Old or new, never half of it, also where the power fails: what is renamed is on the disk, and so is the name after it.
fn write_whole(path: &Path, text: &str) -> io::Result<()> {
    let new = PathBuf::from(format!("{}.new", path.display()));
    let write = || {
        let mut file = File::create(&new)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&new, path)
    };
    write().inspect_err(|_| _ = std::fs::remove_file(&new))?;
    File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::Mechanism;

    fn names() -> Names {
        let of = |name: &str, default, root| Mechanism { name: name.into(), default, root };
        let mechanisms =
            vec![of("ipi_fastpath", true, false), of("boost", true, false), of("posted_timer", false, true)];
        Names::of(mechanisms)
    }

    fn parsed(changes: &[&str]) -> Result<Masks> {
        masks(&names(), &changes.iter().map(|c| change(c)).collect::<Result<Vec<_>>>()?)
    }

    #[test]
    fn changes_are_done_in_order() {
        assert_eq!(parsed(&["all=off", "boost=on"]).unwrap(), Masks { on: 2, off: 5 });
        assert_eq!(parsed(&["boost=on", "all=off"]).unwrap(), Masks { on: 0, off: 7 });
        for bad in ["boost", "boost=yes", "bost=on", "=on", ""] {
            assert!(parsed(&[bad]).is_err(), "{bad}");
        }
        assert!(parsed(&["bost=on"]).unwrap_err().to_string().contains("ipi_fastpath, boost, posted_timer"));
    }

    #[test]
    fn what_is_kept_is_the_whole() {
        let m = parsed(&["boost=off", "posted_timer=on"]).unwrap();
        let line = modprobe_line(&names(), m);
        assert!(line.ends_with("options exitless mechanisms=+ipi_fastpath,-boost,+posted_timer\n"), "{line}");
        assert_eq!(said(&names(), m), "boost off, posted_timer on (root's)");
    }

    #[test]
    fn a_file_is_written_whole() {
        let path = std::env::temp_dir().join(format!("exitctl-set-{}", std::process::id()));
        for text in ["one\n", "two\n"] {
            write_whole(&path, text).unwrap();
            assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
        }
        std::fs::remove_file(path).unwrap();
    }

    /// The cause is said, and nothing is left over.
    #[test]
    fn a_file_that_cannot_be_written() {
        let cause = write_whole(Path::new("/nowhere/at/all"), "x").unwrap_err();
        assert_eq!(cause.kind(), io::ErrorKind::NotFound);
        let folder = std::env::temp_dir().join(format!("exitctl-set-folder-{}", std::process::id()));
        std::fs::create_dir_all(folder.join("a/b")).unwrap();
        assert_eq!(write_whole(&folder.join("a"), "x").unwrap_err().kind(), io::ErrorKind::IsADirectory);
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 1);
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn who_is_read_later_is_named() {
        let folder = std::env::temp_dir().join(format!("exitctl-set-later-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        for (name, text) in [
            (FILE, "options exitless mechanisms=-all\n"),
            ("exitless.conf", "blacklist kvm_intel\n options  exitless apicv=0 mechanisms=-boost\n"),
            ("a.conf", "options exitless mechanisms=-all\n"),
            ("exitless.conf.new", "options exitless mechanisms=-all\n"),
            ("y.conf", "options exitless apicv=0\noptions kvm mechanisms=1\n"),
            ("z.conf", "#options exitless mechanisms=-all\n"),
        ] {
            std::fs::write(folder.join(name), text).unwrap();
        }
        assert_eq!(later(&folder), [folder.join("exitless.conf")]);
        std::fs::remove_dir_all(folder).unwrap();
    }
}
