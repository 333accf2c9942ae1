//! `exitctl set`: switches of one VM, of all, or of VMs to come; for once or at each load.

use crate::device::Device;
use crate::names::Names;
use anyhow::{Context, Result, bail};
use clap::Args;
use std::path::{Path, PathBuf};

/// Where modprobe finds parameters.
const MODPROBE: &str = "/etc/modprobe.d/exitless-mechanisms.conf";

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// NAME=on or NAME=off, in order; `all` stands for every mechanism.
    #[arg(required = true, value_name = "NAME=on|off")]
    changes: Vec<String>,
    /// This VM (its number in exitctl stat).
    #[arg(long, conflicts_with_all = ["all_vms", "default"])]
    vm: Option<u64>,
    /// Every VM that is running.
    #[arg(long, conflicts_with = "default")]
    all_vms: bool,
    /// VMs to come.
    #[arg(long)]
    default: bool,
    /// With --default: also when the module is loaded again (writes /etc/modprobe.d/exitless-mechanisms.conf).
    #[arg(long, requires = "default")]
    persist: bool,
    /// Say what would be done, and do nothing.
    #[arg(long)]
    dry_run: bool,
}

/// Bits to set and to clear.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Masks {
    on: u64,
    off: u64,
}

fn masks(names: &Names, changes: &[String]) -> Result<Masks> {
    let mut m = Masks::default();
    for change in changes {
        let Some((name, value)) = change.split_once('=') else {
            bail!("{change}: say {change}=on or {change}=off")
        };
        let bits = match name {
            "all" => (1 << names.mechanisms.len()) - 1,
            _ => names.bit(name).with_context(|| {
                let known: Vec<_> = names.mechanisms.iter().map(|m| m.name.as_str()).collect();
                format!("{name} is no mechanism of this module; there are {}", known.join(", "))
            })?,
        };
        match value {
            "on" => (m.on, m.off) = (m.on | bits, m.off & !bits),
            "off" => (m.on, m.off) = (m.on & !bits, m.off | bits),
            _ => bail!("{change}: a switch is on or off"),
        }
    }
    Ok(m)
}

pub(crate) fn run(o: &Options) -> Result<()> {
    if o.vm.is_none() && !o.all_vms && !o.default {
        bail!("for whom? --vm NUMBER, --all-vms, or --default for VMs to come");
    }
    let d = if o.dry_run { Device::open()? } else { Device::open_to_switch()? };
    let names = Names::read(&d)?;
    let m = masks(&names, &o.changes)?;
    let targets = match o.vm {
        Some(id) => vec![id],
        None if o.all_vms => d.vms()?.iter().map(|vm| vm.id).collect(),
        None => vec![0],
    };
    if targets.is_empty() {
        println!("no VM is running");
    }
    for id in targets {
        let whom = if id == 0 { "VMs to come".into() } else { format!("VM {id}") };
        println!("{whom}: {}", said(&names, m));
        if !o.dry_run {
            d.switch(id, m.on, m.off)?;
        }
    }
    if o.persist {
        // As the switches are now: the defaults with these changes.
        let line = modprobe_line(&names, m);
        println!("{MODPROBE}: {}", line.trim_end());
        if !o.dry_run {
            write_whole(Path::new(MODPROBE), &line)?;
        }
    }
    Ok(())
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

/// Old or new, never half of it.
fn write_whole(path: &Path, text: &str) -> Result<()> {
    let new = PathBuf::from(format!("{}.new", path.display()));
    let why = || format!("{}: only root writes there", path.display());
    std::fs::write(&new, text).with_context(why)?;
    std::fs::rename(&new, path).with_context(why)
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
        masks(&names(), &changes.iter().map(|c| (*c).into()).collect::<Vec<_>>())
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
        assert!(write_whole(Path::new("/nowhere/at/all"), "x").is_err());
    }
}
