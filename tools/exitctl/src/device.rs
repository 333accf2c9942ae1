//! `/dev/exitless`: its ioctls as functions. The only unsafe code here.

use anyhow::{Context, Result, bail};
use bytemuck::{Pod, Zeroable};
use exitless_control_abi as abi;
use std::error::Error;
use std::ffi::c_ulong;
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::fd::AsRawFd;

/// Where the module shows itself.
pub(crate) const PATH: &str = "/dev/exitless";

/// There is no such file.
#[derive(Debug)]
pub(crate) struct Absent;

impl fmt::Display for Absent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "there is no {PATH}: the module is not loaded (modprobe exitless, or insmod exitless.ko), or stock KVM is"
        )
    }
}

impl Error for Absent {}

/// The device, opened.
pub(crate) struct Device(File);

impl Device {
    /// For looking.
    pub(crate) fn open() -> Result<Self> {
        Self::open_as(false)
    }

    /// For switching too.
    pub(crate) fn open_to_switch() -> Result<Self> {
        Self::open_as(true)
    }

    fn open_as(write: bool) -> Result<Self> {
        let file = OpenOptions::new().read(true).write(write).open(PATH).map_err(|e| advice(&e))?;
        let d = Self(file);
        // SAFETY: takes no argument.
        let version = unsafe { d.ioctl(abi::EXITLESS_GET_VERSION, 0) }?;
        if version != abi::VERSION as i32 {
            bail!(
                "{PATH} speaks version {version}, this program version {}: use those of one release",
                abi::VERSION
            );
        }
        Ok(d)
    }

    /// # Safety
    /// `arg` is what the ioctl takes: a number, or the address of a structure whose own addresses have room for what is asked.
    unsafe fn ioctl(&self, number: u32, arg: usize) -> io::Result<i32> {
        // SAFETY: the caller's contract.
        let r = unsafe { libc::ioctl(self.0.as_raw_fd(), c_ulong::from(number), arg) };
        if r < 0 { Err(io::Error::last_os_error()) } else { Ok(r) }
    }

    /// An ioctl that has no addresses in its structure.
    fn plain<T: Pod>(&self, number: u32, arg: &mut T) -> io::Result<i32> {
        // SAFETY: the structure is the ioctl's, whose number has its size, and lives until it returns.
        unsafe { self.ioctl(number, core::ptr::from_mut(arg) as usize) }
    }

    /// A list: `ask` makes the structure from the address of the records and the room there, `count` finds in it how many came.
    fn list<R: Pod, T: Pod>(
        &self,
        number: u32,
        room: u32,
        ask: impl Fn(u64, u32, u32) -> T,
        count: impl Fn(&T) -> u32,
    ) -> io::Result<Vec<R>> {
        let mut records = vec![R::zeroed(); room as usize];
        let mut asked = ask(records.as_mut_ptr() as u64, size_of::<R>() as u32, room);
        self.plain(number, &mut asked)?;
        records.truncate(count(&asked) as usize);
        Ok(records)
    }

    /// What a number stands for; `None`: there is no such number.
    pub(crate) fn words(&self, kind: u32, number: u32) -> Result<Option<abi::Words>> {
        let mut w = abi::Words { kind, number, ..Zeroable::zeroed() };
        match self.plain(abi::EXITLESS_GET_WORDS, &mut w) {
            Ok(_) => Ok(Some(w)),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e).context("the names of the module"),
        }
    }

    /// All VMs, by id.
    pub(crate) fn vms(&self) -> Result<Vec<abi::VmRecord>> {
        const ROOM: u32 = 256;
        let mut all: Vec<abi::VmRecord> = Vec::new();
        loop {
            let from = all.last().map_or(0, |vm| vm.id + 1);
            let ask = |address, record, count| abi::Vms { from, address, record, count };
            let some = self.list(abi::EXITLESS_LIST_VMS, ROOM, ask, |v| v.count)?;
            all.extend(&some);
            if some.len() < ROOM as usize {
                return Ok(all);
            }
        }
    }

    /// A VM's vCPUs.
    pub(crate) fn vcpus(&self, vm: u64, room: u32) -> io::Result<Vec<abi::VcpuRecord>> {
        let ask = |address, record, count| abi::Vcpus { vm, address, record, count, from: 0, reserved: 0 };
        self.list(abi::EXITLESS_LIST_VCPUS, room, ask, |v| v.count)
    }

    /// What of its vCPUs tells whether all is well.
    pub(crate) fn health(&self, vm: u64, room: u32) -> io::Result<Vec<abi::HealthRecord>> {
        let ask = |address, record, count| abi::Vcpus { vm, address, record, count, from: 0, reserved: 0 };
        self.list(abi::EXITLESS_LIST_HEALTH, room, ask, |v| v.count)
    }

    /// What mechanisms are to a VM, all its vCPUs together.
    pub(crate) fn states(&self, vm: u64) -> io::Result<Vec<abi::State>> {
        let vcpu = abi::ALL_VCPUS;
        let ask = |address, record, count| abi::States { vm, address, record, count, vcpu, reserved: 0 };
        self.list(abi::EXITLESS_GET_STATES, 64, ask, |s| s.count)
    }

    /// Counters of one kind.
    pub(crate) fn counters(&self, vm: u64, vcpu: u32, what: u32) -> io::Result<Vec<abi::Counter>> {
        let ask = |address, record, count| abi::Counters { vm, address, record, count, vcpu, what };
        // Times of 24 reasons with all their buckets, or what a thousand vCPUs spent theirs on, fit.
        self.list(abi::EXITLESS_GET_COUNTERS, 8192, ask, |c| c.count)
    }

    /// Whether a VM's time is measured, from now on: [`abi::measure`].
    pub(crate) fn measure(&self, vm: u64, set: u32) -> Result<abi::Measure> {
        let mut m = abi::Measure { vm, set, ..Zeroable::zeroed() };
        match self.plain(abi::EXITLESS_MEASURE, &mut m) {
            Ok(_) => Ok(m),
            Err(e) if set == abi::measure::LOOK => Err(e.into()),
            Err(e) => Err(refused(e, vm)),
        }
    }

    /// Does it to one VM, or to each that is there; one that ends meanwhile is not missed.
    pub(crate) fn each(&self, one: Option<u64>, mut f: impl FnMut(u64) -> Result<()>) -> Result<()> {
        if let Some(id) = one {
            return f(id);
        }
        for vm in self.vms()? {
            if let Err(e) = f(vm.id)
                && self.vms()?.iter().any(|v| v.id == vm.id)
            {
                return Err(e);
            }
        }
        Ok(())
    }

    /// Moves switches; VM 0: those of VMs to come.
    pub(crate) fn switch(&self, vm: u64, on: u64, off: u64) -> Result<()> {
        let mut s = abi::Switch { vm, on, off, reserved: 0 };
        self.plain(abi::EXITLESS_SWITCH, &mut s).map(drop).map_err(|e| refused(e, vm))
    }
}

/// Why something was not switched.
fn refused(e: io::Error, vm: u64) -> anyhow::Error {
    let who = "root, or the VM's user with the device's descriptor; some mechanisms are root's alone (docs/control.md)";
    match e.kind() {
        ErrorKind::PermissionDenied => anyhow::anyhow!("this is not yours to switch: {who}"),
        ErrorKind::NotFound => anyhow::anyhow!("there is no VM {vm} (any more): exitctl stat lists them"),
        _ => anyhow::Error::new(e).context("switching"),
    }
}

fn advice(e: &io::Error) -> anyhow::Error {
    match e.kind() {
        ErrorKind::NotFound => Absent.into(),
        ErrorKind::PermissionDenied => anyhow::anyhow!(
            "{PATH} is root's: use sudo, or let a group read it (chgrp kvm {PATH}; chmod g+r {PATH})"
        ),
        _ => anyhow::anyhow!("{PATH}: {e}"),
    }
}

/// CLOCK_MONOTONIC, ns.
pub(crate) fn monotonic_ns() -> u64 {
    let mut t = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the structure is the call's to fill.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut t) };
    t.tv_sec as u64 * 1_000_000_000 + t.tv_nsec as u64
}

/// A name or text as the device pads it.
pub(crate) fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::fd::{FromRawFd, OwnedFd};
    use std::process::{Child, Command};
    use std::time::Duration;

    /// A pseudo terminal.
    pub(crate) struct Pty {
        master: File,
        slave: OwnedFd,
    }

    impl Pty {
        pub(crate) fn open(rows: u16, columns: u16) -> Self {
            let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
            let (mut master, mut slave) = (-1, -1);
            let none = core::ptr::null_mut();
            // SAFETY: two places for descriptors, no name, the default modes, a size.
            let r = unsafe { libc::openpty(&mut master, &mut slave, none, none.cast(), &size) };
            assert_eq!(r, 0, "{}", io::Error::last_os_error());
            // SAFETY: new descriptors, owned by nobody else.
            let (master, slave) = unsafe { (File::from_raw_fd(master), OwnedFd::from_raw_fd(slave)) };
            Self { master, slave }
        }

        /// With the terminal as all three of its streams.
        pub(crate) fn spawn(&self, c: &mut Command) -> Child {
            let end = || self.slave.try_clone().unwrap();
            c.stdin(end()).stdout(end()).stderr(end()).spawn().unwrap()
        }

        pub(crate) fn write(&mut self, keys: &[u8]) {
            self.master.write_all(keys).unwrap();
        }

        /// What is there, waiting for it so long.
        pub(crate) fn read(&mut self, wait: Duration) -> Vec<u8> {
            let mut p = libc::pollfd { fd: self.master.as_raw_fd(), events: libc::POLLIN, revents: 0 };
            // SAFETY: one structure.
            if unsafe { libc::poll(&mut p, 1, wait.as_millis() as i32) } <= 0 {
                return Vec::new();
            }
            let mut buffer = vec![0; 65536];
            let n = self.master.read(&mut buffer).unwrap_or(0);
            buffer.truncate(n);
            buffer
        }
    }

    /// Of this thread.
    pub(crate) fn cpu_time() -> Duration {
        let mut t = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: the structure is the call's to fill.
        unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut t) };
        Duration::new(t.tv_sec as u64, t.tv_nsec as u32)
    }
}
