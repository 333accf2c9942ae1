//! `exitctl measure`: time stamps in VMs, on and off.

use crate::device::Device;
use crate::out;
use anyhow::Result;
use clap::{ArgGroup, Args, ValueEnum};
use exitless_control_abi::measure;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum To {
    On,
    Off,
}

#[derive(Debug, Args)]
#[command(group(ArgGroup::new("whom").required(true).args(["vm", "all_vms"])))]
pub(crate) struct Options {
    /// on or off; what was measured stays.
    to: To,
    /// This VM (its number in exitctl stat).
    #[arg(long, value_name = "NUMBER", value_parser = crate::vm_number)]
    vm: Option<u64>,
    /// Every VM that is running.
    #[arg(long)]
    all_vms: bool,
}

pub(crate) fn run(o: &Options) -> Result<()> {
    let d = Device::open_to_switch()?;
    let mut none = true;
    d.each(o.vm, |id| {
        let on = d.measure(id, if o.to == To::On { measure::ON } else { measure::OFF })?.on != 0;
        none = false;
        out::print(&format!("VM {id}: its time is {}measured\n", if on { "" } else { "not " })).map(drop)
    })?;
    if none {
        out::print("no VM is running\n")?;
    }
    Ok(())
}
