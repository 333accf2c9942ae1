//! The lab: emulated machines that run SVM or VMX, and scenarios on them.

pub mod apt;
pub mod bochs;
pub mod cpio;
pub mod crates;
pub mod deps;
pub mod image;
pub mod known;
pub mod kvmtool;
pub mod machine;
pub mod programs;
pub mod qemu;
pub mod report;
pub mod scenario;
pub mod selftests;
pub mod source;

use std::{
    collections::VecDeque,
    env, fs,
    io::Write,
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context, Result, bail};

use self::{
    deps::{Flavour, KernelTree},
    machine::{Accel, Ending, Extra, Kind, Machine},
    report::{Report, Totals, Verdict},
    scenario::{Module, Scenario},
};
use crate::{kmod, paths, say};

/// What a run may change about a scenario.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// The module under test.
    #[arg(long, value_enum, default_value = "exitless")]
    pub module: Module,
    /// The emulated machine.
    #[arg(long, value_enum, default_value = "svm")]
    pub machine: Kind,
    /// Who executes the machine: an emulator, unless this machine's own KVM offers nesting of that kind.
    #[arg(long, value_enum, default_value = "auto")]
    pub accel: Accel,
    /// Let the emulated host's kernel use x2APIC mode (vmx only; it then sees a hypervisor in CPUID).
    #[arg(long)]
    pub x2apic: bool,
    /// What the CPUs have besides, with what the scenario asks for: pku, spec-ctrl, ipiv.
    #[arg(long, value_parser = Extra::named)]
    pub cpu: Vec<Extra>,
    /// CPUs of the emulated host (default: the scenario's).
    #[arg(long)]
    pub cpus: Option<u32>,
    /// Memory of the emulated host in MiB (default: the scenario's).
    #[arg(long)]
    pub memory: Option<u32>,
    /// The emulated host's kernel.
    #[arg(long, value_enum, default_value = "stock")]
    pub kernel: Flavour,
    /// This module file, instead of building one.
    #[arg(long)]
    pub ko: Option<PathBuf>,
    /// More words for the emulated host's kernel command line.
    #[arg(long, default_value = "")]
    pub append: String,
    /// Parameters for the module, as for insmod.
    #[arg(long, default_value = "")]
    pub params: String,
    /// Print every line of the console, not only marks.
    #[arg(long, short)]
    pub verbose: bool,
    /// Multiply time limits: for loaded or slow machines.
    #[arg(long, env = "EXITLESS_LAB_PATIENCE", default_value = "1")]
    pub patience: u32,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            module: Module::Exitless,
            machine: Kind::Svm,
            accel: Accel::Auto,
            x2apic: false,
            cpu: Vec::new(),
            cpus: None,
            memory: None,
            kernel: Flavour::Stock,
            ko: None,
            append: String::new(),
            params: String::new(),
            verbose: false,
            patience: env::var("EXITLESS_LAB_PATIENCE").ok().and_then(|text| text.parse().ok()).unwrap_or(1),
        }
    }
}

/// `cargo xtask lab run`.
pub fn run_matching(pattern: &str, options: &Options) -> Result<()> {
    deps::host_packages()?;
    let found = scenario::matching(pattern)?;
    for scenario in &found {
        if let Some(why) = scenario.why_not_on(options.machine) {
            println!("-> {} does not run on {}: {why}", scenario.name, options.machine);
        }
    }
    let list: Vec<_> = found.into_iter().filter(|s| s.fits(options.module, options.machine)).collect();
    if list.is_empty() {
        bail!("no scenario matching {pattern} is meant for {} on {}", options.module, options.machine);
    }
    let mut totals = Totals::default();
    let options = &with_module(options)?;
    for scenario in &list {
        totals.add(run(scenario, options)?.totals());
    }
    println!("{totals}");
    if totals.failed > 0 {
        bail!("the lab found failures; logs are in {}", paths::shown(&paths::target().join("lab")));
    }
    Ok(())
}

/// Runs one scenario to its end and returns what it reported. A failing test is no error here.
pub fn run(scenario: &Scenario, options: &Options) -> Result<Report> {
    let start = Instant::now();
    let kernel = deps::kernel(options.kernel)?;
    let cpus = options.cpus.unwrap_or(scenario.cpus);
    let on = match options.machine {
        Kind::Svm => String::new(),
        machine => format!(", {machine}{}", if options.x2apic { ", x2apic" } else { "" }),
    };
    let hardware = by_hardware(options);
    let by = if hardware { ", this machine's own virtualization" } else { "" };
    let label =
        format!("{} on {} ({cpus} CPU, {} kernel{on}{by})", scenario.name, options.module, options.kernel);
    println!("-> {label}");
    say::note(format!("host kernel {} ({})", kernel.release, kernel.version));
    let suffix =
        if options.kernel == Flavour::Stock { String::new() } else { format!("-{}", options.kernel) };
    let on_machine =
        if options.machine == Kind::Svm { String::new() } else { format!("-{}", options.machine) };
    let suffix = format!("{suffix}{on_machine}");
    let dir = paths::made(
        paths::target().join("lab").join(format!("{}-{}{suffix}", scenario.name, options.module)),
    )?;
    let limit = scenario.timeout * patience(options) * if options.kernel == Flavour::Debug { 8 } else { 1 };
    let params = all_params(scenario, options);
    let known = known::of(options.machine, options.module, cpus, &params)?;
    for old in LOGS {
        fs::remove_file(dir.join(old)).ok();
    }
    let machine = prepare(scenario, options, &kernel, cpus, dir.clone(), None)?;
    let report = Report::knowing(known).ending(scenario.reset, scenario.panics.clone());
    let report = watch(&machine, limit, options.verbose, report)?;
    let failed = report.totals().failed;
    let verdict = if failed == 0 { "passed" } else { "FAILED" };
    say::note(format!("{label}: {verdict} in {} ({})", say::secs(start.elapsed()), report.totals()));
    if failed > 0 {
        let kept = keep_logs(&dir).with_context(|| format!("cannot keep the logs of {label}"))?;
        say::note(format!("logs: {}", paths::shown(&kept)));
    }
    Ok(report)
}

/// What a run leaves in its folder.
const LOGS: [&str; 4] = ["serial.log", "kernel.log", "qemu.log", "hang.log"];

/// Moves the logs to where the next run does not write over them; there is one such place for each second.
fn keep_logs(dir: &Path) -> Result<PathBuf> {
    let second = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    let kept = paths::made(dir.join(format!("failed-{second}")))?;
    for log in LOGS.iter().filter(|log| dir.join(log).exists()) {
        fs::rename(dir.join(log), kept.join(log))?;
    }
    Ok(kept)
}

/// Parameters for the module: the scenario's and the caller's.
fn all_params(scenario: &Scenario, options: &Options) -> String {
    format!("{} {}", scenario.params, options.params).trim().to_string()
}

/// Multiplier of time limits, inside the emulated host and outside.
pub fn patience(options: &Options) -> u32 {
    options.patience * slowness(options.machine)
}

/// Does this machine's own virtualization execute the host, instead of an emulator?
fn by_hardware(options: &Options) -> bool {
    options.accel == Accel::Auto && machine::nests(options.machine)
}

/// How much longer things take than on the first machine.
fn slowness(machine: Kind) -> u32 {
    if machine.by_bochs() { bochs::SLOWNESS } else { 1 }
}

/// `cargo xtask shell`: the emulated host with a shell on this terminal.
pub fn shell(options: &Options, with_guest: bool) -> Result<()> {
    if options.machine.by_bochs() && !by_hardware(options) {
        bail!(
            "this machine has no keyboard: use `cargo xtask lab run my.sh --machine {} -v`",
            options.machine
        );
    }
    deps::host_packages()?;
    let needs = ["runner", "suite", "exitctl", if with_guest { "guest" } else { "" }];
    let scenario = Scenario {
        name: "shell".into(),
        about: String::new(),
        cpus: 2,
        memory: 2048,
        timeout: Duration::ZERO,
        needs: needs.into_iter().filter(|need| !need.is_empty()).map(Into::into).collect(),
        modules: vec![options.module],
        script:
            "load_module; echo; echo 'Commands: guest, load_module, unload_module; /lab has the programs; \
                 poweroff -f ends.'; setsid cttyhack sh\n"
                .into(),
        ..Scenario::default()
    };
    let kernel = deps::kernel(options.kernel)?;
    let cpus = options.cpus.unwrap_or(scenario.cpus);
    let dir = paths::made(paths::target().join("lab/shell"))?;
    println!("-> booting; QEMU's own keys: Ctrl-C ends the machine");
    prepare(&scenario, options, &kernel, cpus, dir, None)?.interactive()
}

/// Builds what the scenario needs and writes its image.
pub fn prepare(
    scenario: &Scenario,
    options: &Options,
    kernel: &KernelTree,
    cpus: u32,
    dir: PathBuf,
    more: Option<(&str, &str)>,
) -> Result<Machine> {
    let mut job = image::Job { script: scenario.script.clone(), ..Default::default() };
    let module_needed = scenario.modules.contains(&Module::Exitless) && options.module == Module::Exitless;
    if module_needed {
        job.files.push(("exitless.ko".into(), module_file(options, kernel)?));
    }
    for (need, package) in [
        ("runner", "exitless-runner"),
        ("suite", "exitless-suite"),
        ("load", "exitless-load"),
        ("exitctl", "exitctl"),
    ] {
        if scenario.needs(need) {
            job.files.push((need.to_string(), programs::built(package)?));
        }
    }
    for need in &scenario.needs {
        let source = paths::root().join("lab/hosts/modules").join(need);
        if source.is_dir() {
            let file = kmod::build_plain(need, &source, &kernel.headers_dir, &paths::target().join("kmod"))?;
            job.files.push((format!("{need}.ko"), file));
        }
    }
    if scenario.needs("exitless-guest") {
        deps::rust_src()?;
        // Guests run the stock kernel whatever the host runs.
        let stock = deps::kernel(Flavour::Stock)?;
        let built = kmod::build_guest(&stock.headers_dir, &paths::target().join("kmod"))?;
        job.files.push(("exitless-guest.ko".into(), built.ko));
    }
    if scenario.needs("selftests") {
        selftests::add(options.module, &dir, &mut job)?;
    }
    if scenario.needs("kvm-ioctls") {
        job.files.push(("kvm-ioctls".into(), crates::kvm_ioctls()?));
    }
    for (need, package, program) in deps::TRACERS {
        if scenario.needs(need) {
            deps::tracer(package)?;
            job.programs.push(program);
        }
    }
    if scenario.needs("kvmtool") {
        kvmtool::add(&mut job)?;
    }
    let mut swap = Vec::new();
    if scenario.needs("swap") {
        for (name, file) in kernel.modules(&["lzo", "lzo-rle", "zram"])? {
            job.files.push((format!("{name}.ko"), file));
            swap.push(format!("{name}.ko"));
        }
    }
    let variables = [
        ("SWAP_MODULES", swap.join(" ")),
        ("MODULE", options.module.to_string()),
        ("PARAMS", all_params(scenario, options)),
        ("SCENARIO", scenario.name.clone()),
        ("CPUS", cpus.to_string()),
        ("KERNEL", options.kernel.to_string()),
        ("PATIENCE", patience(options).to_string()),
        ("SLOW", slowness(options.machine).to_string()),
        ("VENDOR", options.machine.vendor().to_string()),
    ];
    job.env = variables.into_iter().map(|(name, value)| (name.to_string(), value)).collect();
    job.env.extend(more.map(|(name, value)| (name.to_string(), value.to_string())));
    let initrd = dir.join("initrd");
    image::host(kernel, scenario.needs("guest"), &job, &initrd)?;
    if options.machine.by_bochs() {
        bochs::boot::add_unsigned_modules(kernel, &initrd)?;
    }
    Ok(Machine {
        kind: options.machine,
        hardware: by_hardware(options),
        x2apic: options.x2apic,
        cpus,
        cpu: scenario.cpu.iter().chain(&options.cpu).copied().collect(),
        odd_cpu: scenario.odd_cpu.clone(),
        // KASAN's shadow and its quarantine take their part.
        memory: options
            .memory
            .unwrap_or(scenario.memory * if options.kernel == Flavour::Debug { 2 } else { 1 }),
        kernel: kernel.image()?.to_path_buf(),
        initrd,
        append: format!("{} {}", scenario.host, options.append),
        icount: false,
        packaged: false,
        traced: false,
        dir,
    })
}

/// Lines of a failing test that are printed; all are in the log.
const LAST_WORDS: usize = 30;

/// Runs the machine, prints its progress, and reads its marks.
pub fn watch(machine: &Machine, limit: Duration, verbose: bool, mut report: Report) -> Result<Report> {
    let start = Instant::now();
    let mut last = VecDeque::new();
    let ending = machine.run(limit, |line| {
        if let Some(test) = report.line(line) {
            if test.verdict == Verdict::Fail && !verbose {
                last.drain(..).for_each(|line| say::note(format!("  | {line}")));
            }
            let word = match test.verdict {
                Verdict::Pass => "ok  ",
                Verdict::Fail => "FAIL",
                Verdict::Skip => "skip",
            };
            let time = if test.time.is_zero() { String::new() } else { format!(" {}", say::secs(test.time)) };
            say::note(format!("{word} {}{time} {}", test.name, test.why).trim_end());
        } else if verbose || line.starts_with("=== HOST") || line.starts_with("=== NOTE") {
            say::note(format!("[{:6.1}] {line}", start.elapsed().as_secs_f64()));
        } else {
            last.push_back(line.to_string());
        }
        if line.starts_with("=== BEGIN") || line.starts_with("test ") {
            last.clear();
        } else if last.len() > LAST_WORDS {
            last.pop_front();
        }
        std::io::stdout().flush().ok();
    })?;
    fs::remove_file(&machine.initrd).ok();
    report.close(ending == Ending::Off);
    match ending {
        Ending::Off => {}
        Ending::TimedOut => report.fail("time limit", format!("{} passed; see hang.log", say::secs(limit))),
        Ending::Failed(why) => report.fail("machine", why),
    }
    let trouble = report::trouble_in(&[&machine.kernel_log(), &machine.serial_log()], report.panics());
    if let Some(first) = trouble.first() {
        report.fail("kernel log", format!("{} lines of trouble, first: {first}", trouble.len()));
    }
    let from = report.tests.iter().filter(|test| test.verdict == Verdict::Fail);
    for test in from {
        say::note(format!("FAIL {}: {}", test.name, test.why));
    }
    Ok(report)
}

/// The same options with the module built now, so that every scenario of a run has the same one, whoever builds meanwhile.
pub fn with_module(options: &Options) -> Result<Options> {
    if options.module == Module::Kvm || options.ko.is_some() {
        return Ok(options.clone());
    }
    let built = module_file(options, &deps::kernel(options.kernel)?)?;
    let dir = paths::made(paths::target().join("lab"))?;
    let kept = dir.join(format!("exitless-{}.ko", options.kernel));
    fs::copy(&built, &kept)?;
    Ok(Options { ko: Some(kept), ..options.clone() })
}

/// The module's file for this kernel: the one named, or a fresh build.
fn module_file(options: &Options, kernel: &KernelTree) -> Result<PathBuf> {
    if let Some(file) = &options.ko {
        if !file.exists() {
            bail!("{} is missing", file.display());
        }
        return Ok(file.clone());
    }
    deps::rust_src()?;
    say::step("build exitless.ko", || kmod::build(&kernel.headers_dir, &paths::target().join("kmod")))
}
