//! One emulated machine: QEMU's translator with SVM, its serial line read, its time limit kept.
//!
//! Serial line 1 is the console and carries the scenario's marks. Serial line 2 carries the kernel's log, so that log
//! lines never cut a mark in two. A machine that does not end in time is asked, through QEMU's monitor, where each of its
//! CPUs is, then gets an NMI (the kernel prints a backtrace), then is ended.

use std::{
    fmt,
    fs::{self, File},
    io::{BufRead, BufReader, Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        atomic::{AtomicU32, Ordering},
        mpsc::{Receiver, RecvTimeoutError, channel},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use super::{bochs, qemu};
use crate::sh;

/// Which emulated machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// With AMD's SVM, emulated by QEMU.
    Svm,
    /// With Intel's VMX, emulated by Bochs.
    Vmx,
    /// With AMD's SVM as CPUs have it (next RIP, decode assists, clean bits), emulated by Bochs.
    Ryzen,
}

impl Kind {
    /// Every machine, in the order of their invention.
    pub const ALL: [Kind; 3] = [Kind::Svm, Kind::Vmx, Kind::Ryzen];

    /// Who emulates it: Bochs, or else QEMU.
    pub fn by_bochs(self) -> bool {
        match self {
            Kind::Svm => false,
            Kind::Vmx | Kind::Ryzen => true,
        }
    }

    /// The vendor of its CPUs, as stock KVM's modules spell it.
    pub fn vendor(self) -> &'static str {
        match self {
            Kind::Svm | Kind::Ryzen => "amd",
            Kind::Vmx => "intel",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Svm => "svm",
            Kind::Vmx => "vmx",
            Kind::Ryzen => "ryzen",
        })
    }
}

/// What an emulated machine's CPUs can have besides what their model has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extra {
    /// Protection keys; not Bochs's CPUs, whose own let supervisors through, and end in a triple fault on stock KVM too.
    Pku,
    /// SPEC_CTRL, PRED_CMD and, on Intel's, FLUSH_CMD (machines of Bochs's only).
    SpecCtrl,
    /// IPI virtualization (the VMX machine only).
    Ipiv,
    /// The host's kernel uses x2APIC mode (the VMX machine only): it then sees a hypervisor in CPUID, too.
    X2Apic,
}

impl Extra {
    /// As scenarios write it.
    pub fn named(name: &str) -> Result<Extra> {
        match name {
            "pku" => Ok(Extra::Pku),
            "spec-ctrl" => Ok(Extra::SpecCtrl),
            "ipiv" => Ok(Extra::Ipiv),
            "x2apic" => Ok(Extra::X2Apic),
            other => bail!("no CPU can have `{other}` besides: pku, spec-ctrl, ipiv, x2apic"),
        }
    }
}

/// Who executes the machine's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Accel {
    /// This machine's CPUs where its KVM offers nesting, else an emulator.
    Auto,
    /// An emulator, always.
    Emulated,
}

/// This machine's KVM lets guests have virtualization of this kind.
pub fn nests(kind: Kind) -> bool {
    // The third machine is there for what its emulator shows.
    let path = format!("/sys/module/kvm_{}/parameters/nested", kind.vendor());
    kind != Kind::Ryzen
        && nests_by(&fs::read_to_string(path).unwrap_or_default())
        && File::options().read(true).write(true).open("/dev/kvm").is_ok()
}

/// The module's parameter, a number once and a truth value since.
fn nests_by(parameter: &str) -> bool {
    matches!(parameter.trim(), "Y" | "1")
}

/// What to emulate.
#[derive(Debug, Clone)]
pub struct Machine {
    /// Which machine.
    pub kind: Kind,
    /// This machine's CPUs execute it, with KVM: `kind` is theirs.
    pub hardware: bool,
    /// Let the kernel use x2APIC mode. `Vmx` only: it then also sees a hypervisor in CPUID.
    pub x2apic: bool,
    /// CPUs of the emulated host.
    pub cpus: u32,
    /// What they have besides their model's.
    pub cpu: Vec<Extra>,
    /// Features of the last of them where they are not the others' (`Svm` only).
    pub odd_cpu: Option<String>,
    /// Memory in MiB.
    pub memory: u32,
    /// The kernel's bootable image.
    pub kernel: PathBuf,
    /// Its initial RAM disk.
    pub initrd: PathBuf,
    /// More words for the kernel's command line.
    pub append: String,
    /// Let the time-stamp counter count instructions, the same on each run (one thread, four times slower).
    pub icount: bool,
    /// `Svm` only: by the QEMU that Debian has, which takes no building. For machines with one CPU and without `icount` (docs/lab.md, "The
    /// packaged QEMU").
    pub packaged: bool,
    /// Write down each instruction of some exits (Bochs's machines only).
    pub traced: bool,
    /// The folder for logs.
    pub dir: PathBuf,
}

/// How a machine ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ending {
    /// It turned itself off (a panic also ends here; the log tells).
    Off,
    /// It was ended at its time limit.
    TimedOut,
    /// QEMU itself failed.
    Failed(String),
}

impl Machine {
    /// The console's log.
    pub fn serial_log(&self) -> PathBuf {
        self.dir.join("serial.log")
    }

    /// The kernel's log.
    pub fn kernel_log(&self) -> PathBuf {
        self.dir.join("kernel.log")
    }

    /// What the emulator counted between marks, a line for each batch of a benchmark.
    pub fn ledger(&self) -> PathBuf {
        self.dir.join("ledger.jsonl")
    }

    /// Each instruction of some exits between marks (docs/lab-bochs.md).
    pub fn trace(&self) -> PathBuf {
        self.dir.join("trace")
    }

    fn socket(&self, name: &str) -> PathBuf {
        // A socket's path is limited to 107 bytes, the repository's is not.
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        std::env::temp_dir().join(format!("exitless-{name}-{}-{count}", std::process::id()))
    }

    /// As QEMU writes them, behind others.
    fn more_features(&self) -> Result<String> {
        let word = |extra: &Extra| match extra {
            Extra::Pku => Ok(",pku=on"),
            Extra::SpecCtrl => bail!("QEMU's translator has no SPEC_CTRL"),
            Extra::Ipiv => bail!("IPI virtualization is Intel's"),
            Extra::X2Apic => bail!("scenarios on this machine have no use for an x2APIC"),
        };
        self.cpu.iter().map(word).collect()
    }

    fn qemu(&self) -> Result<Command> {
        let mut command = qemu::emulator(self.hardware || self.packaged)?;
        if self.hardware {
            command.args(["-accel", "kvm", "-cpu", "host"]);
        } else if self.icount {
            command.args(["-accel", "tcg,thread=single", "-icount", "shift=0,sleep=off"]);
        } else {
            command.args(["-accel", "tcg,thread=multi"]);
        }
        if !self.hardware {
            command.args(["-cpu", &format!("EPYC,svm=on,x2apic=on{}", self.more_features()?)]);
        }
        if let Some(features) = &self.odd_cpu {
            let alike = self.cpus.saturating_sub(1);
            command.args(["-smp", &format!("{alike},maxcpus={cpus},cores={cpus}", cpus = self.cpus)]);
            let place = format!("socket-id=0,core-id={alike},thread-id=0");
            let more = self.more_features()?;
            command.args(["-device", &format!("EPYC-x86_64-cpu,{features}{more},{place}")]);
        } else {
            command.args(["-smp", &self.cpus.to_string()]);
        }
        command.args(["-m", &self.memory.to_string()]);
        command.args(["-nodefaults", "-display", "none", "-no-reboot"]);
        command.arg("-kernel").arg(&self.kernel).arg("-initrd").arg(&self.initrd);
        let fixed = "console=ttyS0,115200 loglevel=5 tsc=reliable no_timer_check mitigations=off panic=-1 unknown_nmi_panic cryptomgr.notests";
        command.args(["-append", &format!("{fixed} {}", self.append)]);
        command.args(["-serial", "stdio"]);
        Ok(command)
    }

    /// Runs with the terminal as its console, until it is turned off.
    pub fn interactive(&self) -> Result<()> {
        sh::run(self.qemu()?.args(["-serial", "null"]))
    }

    /// Runs until it turns itself off or `limit` has passed; gives each console line to `on_line`.
    pub fn run(&self, limit: Duration, mut on_line: impl FnMut(&str)) -> Result<Ending> {
        if self.kind.by_bochs() && !self.hardware {
            return bochs::run(self, limit, on_line);
        }
        let mut command = self.qemu()?;
        command.arg("-serial").arg(format!("file:{}", self.kernel_log().display()));
        // A triple fault, with the registers, in `qemu.log`.
        command.args(["-d", "cpu_reset"]);
        let monitor = self.socket("monitor");
        command.arg("-monitor").arg(format!("unix:{},server=on,wait=off", monitor.display()));
        let mut log = File::create(self.serial_log()).context("cannot write the console's log")?;
        let errors = File::create(self.dir.join("qemu.log"))?;
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(errors)
            .spawn()
            .with_context(|| format!("cannot start `{}`", sh::shown(&command)))?;
        let lines = lines_of(child.stdout.take().context("QEMU has no output")?);
        let deadline = Instant::now() + limit;
        let in_time = relay(&lines, deadline, &mut log, &mut on_line);
        if !in_time {
            let text = interrogate(&monitor)
                .unwrap_or_else(|error| format!("the monitor does not answer: {error:#}\n"));
            fs::write(self.dir.join("hang.log"), text)?;
            relay(&lines, Instant::now() + Duration::from_secs(5), &mut log, &mut on_line);
        }
        let ending = self.end(&mut child, in_time)?;
        fs::remove_file(&monitor).ok();
        Ok(ending)
    }

    fn end(&self, child: &mut Child, in_time: bool) -> Result<Ending> {
        if !in_time {
            child.kill().ok();
            child.wait()?;
            return Ok(Ending::TimedOut);
        }
        let status = child.wait()?;
        let log = fs::read(self.dir.join("qemu.log")).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        // QEMU calls neither a failure.
        if log.contains("Triple fault") {
            return Ok(Ending::Failed("a CPU ended in a triple fault; see qemu.log".into()));
        }
        let word = |line: &&str| line.contains("terminating on signal");
        if let Some(line) = log.lines().find(word) {
            return Ok(Ending::Failed(line.into()));
        }
        if status.success() {
            return Ok(Ending::Off);
        }
        let last = log.lines().last().unwrap_or_default();
        Ok(Ending::Failed(format!("QEMU ended with {status}: {last}; see qemu.log")))
    }
}

fn lines_of(output: impl Read + Send + 'static) -> Receiver<String> {
    let (to, from) = channel();
    thread::spawn(move || {
        let mut reader = BufReader::new(output);
        let mut line = Vec::new();
        while reader.read_until(b'\n', &mut line).is_ok_and(|count| count > 0) {
            let text = String::from_utf8_lossy(&line).trim_end().to_string();
            line.clear();
            if to.send(text).is_err() {
                return;
            }
        }
    });
    from
}

/// Passes lines on until the machine's end (true) or the deadline (false).
fn relay(
    lines: &Receiver<String>,
    deadline: Instant,
    log: &mut File,
    on_line: &mut impl FnMut(&str),
) -> bool {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match lines.recv_timeout(left) {
            Ok(line) => {
                writeln!(log, "{line}").ok();
                on_line(&line);
            }
            Err(RecvTimeoutError::Disconnected) => return true,
            Err(RecvTimeoutError::Timeout) => return false,
        }
    }
}

/// Where is every CPU? Then an NMI, at which the kernel prints where it is and stops.
fn interrogate(monitor: &Path) -> Result<String> {
    let mut socket = UnixStream::connect(monitor)?;
    socket.set_read_timeout(Some(Duration::from_secs(2)))?;
    socket.write_all(b"info registers -a\ninfo lapic\nnmi\n")?;
    let mut text = Vec::new();
    let mut part = [0; 4096];
    while let Ok(count) = socket.read(&mut part) {
        if count == 0 {
            break;
        }
        text.extend_from_slice(part.get(..count).unwrap_or_default());
    }
    Ok(String::from_utf8_lossy(&text).into_owned())
}

#[cfg(test)]
mod tests {
    use super::nests_by;

    #[test]
    fn the_parameter_in_both_spellings() {
        assert!(nests_by("Y\n") && nests_by("1\n"));
        assert!(!nests_by("N\n") && !nests_by("0\n") && !nests_by(""));
    }
}
