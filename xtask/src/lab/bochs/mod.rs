//! The lab's second machine: Bochs, which has VMX with APIC virtualization, posted interrupts and a preemption timer.
//!
//! Serial lines as on the other machine: line 1 the console with the scenario's marks, line 2 the kernel's log. Bochs
//! writes both to files; line 1 is read while it grows. The clock is instructions: the TSC counts them, at 100 MHz by its
//! own account, and one second of the machine's time is 100 million of them. A machine that does not end in time is asked
//! (SIGUSR1) where each of its CPUs is and gets an NMI on each, then is ended. What Bochs has to say about VM entries that
//! fail is in `bochs.log`.
//!
//! With one CPU runs repeat exactly: same build, same kernel, same initial RAM disk, same result, tick for tick (a fixed
//! seed for RDRAND and a fixed date see to it).

pub mod boot;
pub mod build;

use std::{
    fs::{self, File},
    io::{Read, Write},
    os::unix::fs::symlink,
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use super::machine::{Ending, Extra, Kind, Machine};
use crate::{paths, say, sh};

/// Ticks, and instructions of each CPU, in a microsecond of the machine's time. KVM uses the VMX preemption timer only
/// below 429: Bochs's timer counts every tick.
const MHZ: u32 = 100;
/// Instructions that a CPU executes before it is the next one's turn.
const QUANTUM: u32 = 64;
/// How much longer a scenario may take than on the other machine, and how many fewer repetitions it makes.
pub const SLOWNESS: u32 = 5;
/// MSRs that Bochs itself lacks: address, type, reset value, reserved bits, bits whose writes are ignored (each in two
/// halves).
const MSRS: &str = "\
# IA32_BIOS_SIGN_ID: a microcode revision with which Linux trusts this model's TSC-deadline timer.
0x08b 0 02007108 00000000 00000000 00000000 ffffffff ffffffff
# IA32_MISC_ENABLE: fast strings; no branch trace storage, no PEBS.
0x1a0 0 00000000 00001801 00000000 00000000 ffffffff ffffffff
# IA32_DEBUGCTL: KVM reads it at each VM entry.
0x1d9 0 00000000 00000000 00000000 00000000 ffffffff ffffffff
";
/// The emulated machine has no memory behind its PCI devices.
const MOST_MEMORY: u32 = 3072;

/// What a run needs in Bochs's working folder, written there: configuration, boot files.
fn prepare(machine: &Machine, bochs: &build::Bochs, dir: &Path) -> Result<()> {
    let kernel = boot::kernel(&machine.kernel)?;
    let initrd = fs::metadata(&machine.initrd)?.len();
    let memory = machine.memory.min(MOST_MEMORY);
    // The kernel unpacks the archive into memory before it lets go of it.
    let least = ((boot::INITRD + 2 * initrd) >> 20) as u32 + 128;
    if memory < least {
        bail!("the machine needs {least} MiB of memory for this scenario, it has {memory}");
    }
    for (name, target) in [
        ("vmlinux.bin", &kernel.file),
        ("initrd.cpio", &machine.initrd),
        ("bios.bin", &bochs.bios),
        ("vga.bin", &bochs.vga_bios),
    ] {
        fs::remove_file(dir.join(name)).ok();
        symlink(fs::canonicalize(target)?, dir.join(name))?;
    }
    boot::floppy(kernel.entry, &dir.join("boot.img"))?;
    let info = boot::start_info(u64::from(memory) << 20, initrd, &command_line(machine))?;
    fs::write(dir.join("info.bin"), info)?;
    fs::write(dir.join("msrs"), MSRS)?;
    fs::write(dir.join("bochsrc"), configuration(machine, memory, kernel.address))?;
    Ok(())
}

/// nokaslr: the kernel stands where it was linked. aperfmperf: the model has it in CPUID, reading its MSRs faults.
/// idle=halt: each MONITOR of one CPU ends the MWAIT of every other in Bochs, so idle CPUs keep each other awake.
fn command_line(machine: &Machine) -> String {
    let fixed = "console=ttyS0,115200 loglevel=5 tsc=reliable mitigations=off panic=-1 unknown_nmi_panic \
                 cryptomgr.notests clearcpuid=aperfmperf nokaslr idle=halt";
    format!("{fixed} {}", machine.append)
}

/// Bochs's name of the machine's CPU.
fn model(kind: Kind) -> &'static str {
    match kind {
        Kind::Ryzen => "ryzen",
        Kind::Svm | Kind::Vmx => "corei7_skylake_x",
    }
}

fn configuration(machine: &Machine, memory: u32, kernel: u64) -> String {
    let (cpus, model) = (machine.cpus, model(machine.kind));
    let ips = MHZ * 1_000_000;
    let errors: String = (0..cpus).map(|cpu| format!(", CPU{cpu}=report")).collect();
    format!(
        "romimage: file=bios.bin\n\
         vgaromimage: file=vga.bin\n\
         megs: {memory}\n\
         cpu: model={model}, count={cpus}, ips={ips}, quantum={QUANTUM}, reset_on_triple_fault=1, ignore_bad_msrs=1, msrs=msrs\n\
         clock: sync=none, time0=1700000000\n\
         optramimage1: file=vmlinux.bin, address={kernel}\n\
         optramimage2: file=initrd.cpio, address={}\n\
         optramimage3: file=info.bin, address={}\n\
         floppya: 1_44=boot.img, status=inserted\n\
         boot: floppy\n\
         com1: enabled=1, mode=file, dev=serial\n\
         com2: enabled=1, mode=file, dev=kernel\n\
         display_library: nogui\n\
         info: action=ignore\n\
         error: action=ignore{errors}\n\
         panic: action=fatal\n",
        boot::INITRD,
        boot::START_INFO,
    )
}

fn command(machine: &Machine, bochs: &build::Bochs, dir: &Path) -> Command {
    // Bochs ends with this process, however this process ends.
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]).arg(&bochs.program);
    command.args(["-q", "-f", "bochsrc", "-log", "bochs.log"]).current_dir(dir);
    command.env("BX_TSC_MHZ", MHZ.to_string()).env("BX_SEED", "1").env("BX_HANG_LOG", "hang.log");
    command.env("BX_LEDGER", "ledger").env_remove("BX_TRACE");
    if machine.traced {
        command.env("BX_TRACE", "trace");
    }
    command.env_remove("BX_HV").env_remove("BOCHSRC").env_remove("BXSHARE");
    for (extra, name) in [(Extra::SpecCtrl, "BX_SPEC_CTRL"), (Extra::Ipiv, "BX_IPIV")] {
        command.env_remove(name);
        if machine.cpu.contains(&extra) {
            command.env(name, "1");
        }
    }
    if machine.x2apic || machine.cpu.contains(&Extra::X2Apic) {
        command.env("BX_HV", "1");
    }
    command
}

/// Runs until the machine turns itself off or `limit` has passed; gives each console line to `on_line`.
pub fn run(machine: &Machine, limit: Duration, mut on_line: impl FnMut(&str)) -> Result<Ending> {
    let bochs = build::built()?;
    let dir = paths::made(machine.dir.join("bochs"))?;
    for old in ["serial", "kernel", "bochs.log", "hang.log", "ledger", "trace"] {
        fs::remove_file(dir.join(old)).ok();
    }
    prepare(machine, &bochs, &dir)?;
    let output = File::create(machine.dir.join("qemu.log"))?;
    let mut command = command(machine, &bochs, &dir);
    let child = command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output).spawn();
    let child = child.with_context(|| format!("cannot start `{}`", sh::shown(&command)))?;
    let mut running = Running { child, cpu_time: Duration::ZERO };
    let mut console = Console::new(&dir.join("serial"), &machine.serial_log())?;
    let deadline = Instant::now() + limit;
    let in_time = running.relay(&mut console, deadline, &mut on_line)?;
    if !in_time {
        let id = running.child.id().to_string();
        sh::quiet(&mut sh::cmd("kill", ["-USR1", &id])).ok();
        running.relay(&mut console, Instant::now() + Duration::from_secs(15), &mut on_line)?;
        running.child.kill().ok();
        running.child.wait()?;
        console.pass_on(&mut on_line)?;
    }
    say::note(format!("Bochs used {} of CPU time", say::secs(running.cpu_time)));
    let hang = machine.dir.join("hang.log");
    let kept = [
        ("kernel", machine.kernel_log()),
        ("hang.log", hang),
        ("ledger", machine.ledger()),
        ("trace", machine.trace()),
    ];
    for (from, to) in kept {
        fs::rename(dir.join(from), to).ok();
    }
    Ok(if in_time { ending(&dir) } else { Ending::TimedOut })
}

/// The last words in Bochs's log say why it ended.
fn ending(dir: &Path) -> Ending {
    let log = fs::read(dir.join("bochs.log")).unwrap_or_default();
    let log = String::from_utf8_lossy(&log);
    // As the host's way to its end: guests may have theirs.
    let last = log.lines().rev().find(|line| !line.contains("machine reset")).unwrap_or_default();
    if last.contains("exception with no resolution") {
        return Ending::Failed("a CPU ended in a triple fault".into());
    }
    if ["ACPI control: soft power off", "machine reset"].iter().any(|word| log.contains(word)) {
        return Ending::Off;
    }
    let last =
        log.lines().rev().find(|line| line.contains("PANIC") || line.contains(">>")).unwrap_or("no word");
    Ending::Failed(format!("Bochs ended by itself ({last}); see bochs/bochs.log and qemu.log"))
}

struct Running {
    child: Child,
    cpu_time: Duration,
}

impl Running {
    /// Passes console lines on until Bochs's end (true) or the deadline (false).
    fn relay(
        &mut self,
        console: &mut Console,
        deadline: Instant,
        on_line: &mut impl FnMut(&str),
    ) -> Result<bool> {
        loop {
            self.cpu_time = cpu_time(self.child.id()).unwrap_or(self.cpu_time);
            // Asked before the last look at the file, so that nothing is missed.
            let gone = self.child.try_wait()?.is_some();
            console.pass_on(on_line)?;
            if gone {
                return Ok(true);
            }
            if Instant::now() >= deadline {
                return Ok(false);
            }
            thread::sleep(Duration::from_millis(50));
        }
    }
}

/// User and system time of a process, from `/proc/<id>/stat`; ticks of 10 ms.
fn cpu_time(id: u32) -> Option<Duration> {
    let stat = fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
    // The name may have spaces: fields are counted from behind it; the twelfth and thirteenth are wanted.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let mut ticks = || fields.next()?.parse::<u64>().ok();
    let ticks = ticks()? + ticks()?;
    // A process that has ended and waits to be asked has all fields still, a reaped one none.
    (ticks > 0).then(|| Duration::from_millis(ticks * 10))
}

/// A growing file, read line by line.
struct Console {
    path: std::path::PathBuf,
    file: Option<File>,
    pending: Vec<u8>,
    log: File,
}

impl Console {
    fn new(path: &Path, log: &Path) -> Result<Console> {
        let log = File::create(log).context("cannot write the console's log")?;
        Ok(Console { path: path.to_path_buf(), file: None, pending: Vec::new(), log })
    }

    fn pass_on(&mut self, on_line: &mut impl FnMut(&str)) -> Result<()> {
        if self.file.is_none() {
            self.file = File::open(&self.path).ok();
        }
        let Some(file) = &mut self.file else { return Ok(()) };
        file.read_to_end(&mut self.pending)?;
        while let Some(end) = self.pending.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.pending.drain(..=end).collect();
            let text = String::from_utf8_lossy(&line).trim_end().to_string();
            writeln!(self.log, "{text}").ok();
            on_line(&text);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{Console, cpu_time};

    /// A line that arrives in two parts is one line; a mark must not be cut in two.
    #[test]
    fn lines_are_whole() {
        let dir = std::env::temp_dir();
        let path = dir.join(format!("exitless-console-{}", std::process::id()));
        let log = path.with_extension("log");
        let mut console = Console::new(&path, &log).unwrap();
        let mut seen = Vec::new();
        for text in ["=== BEG", "=== BEGIN a\r\n=== END a rc=0\r\n=== B"] {
            std::fs::write(&path, text).unwrap();
            console.pass_on(&mut |line: &str| seen.push(line.to_string())).unwrap();
        }
        std::fs::remove_file(&path).unwrap();
        std::fs::remove_file(&log).unwrap();
        assert_eq!(seen, ["=== BEGIN a", "=== END a rc=0"]);
    }

    /// The fields are the right ones: a process that worked has a time, and no more than it lived.
    #[test]
    fn cpu_time_is_read() {
        let start = std::time::Instant::now();
        let mut sum = 0u64;
        while start.elapsed().as_millis() < 60 {
            sum = sum.wrapping_add(std::hint::black_box(1));
        }
        let time = cpu_time(std::process::id());
        assert!(sum > 0 && time.is_some_and(|time| time.as_secs() < 3600));
    }
}
