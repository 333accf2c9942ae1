//! Scenarios: shell scripts in `lab/hosts/scenarios` whose first comment lines say what they need.
//!
//! ```text
//! # about: what it shows               (one sentence)
//! # cpus: 1 2 4                        (CPUs of the emulated host; one run for each number; default 2)
//! # cpu: pku spec-ctrl ipiv            (what the CPUs have besides: `machine::Extra`)
//! # odd cpu: svm=off                   (the last CPU has other features than the others; SVM machine only)
//! # memory: 1024                       (MiB of the emulated host)
//! # timeout: 60                        (seconds of real time on two idle cores)
//! # needs: guest runner suite swap     (QEMU with a Linux guest; the lab's own programs; modules for swap space; a module of the
//!                                      lab's own by its folder in lab/hosts/modules; Debian's perf, trace-cmd, bpftrace)
//! # modules: kvm exitless              (modules it is meant for; default both)
//! # not on vmx, ryzen: reason          (why it cannot run on these machines)
//! # in test: svm, vmx 2                (machines where it is part of `cargo xtask test`, with these CPUs only if there are
//!                                      numbers; default svm; `no`: nowhere)
//! # also on vmx 1: apicv=0             (one more scenario, `<name>-apicv=0`, there, with these parameters of Exitless; in the test
//!                                      where the plain one is)
//! # host: mitigations=auto              (more words for the host's kernel command line)
//! # ends by reset                      (the script's last test resets the machine, which is its success; nothing comes after)
//! # panics: sysrq triggered crash      (the words of a kernel panic that the script asks for, which is no trouble)
//! ```

use std::{fmt, fs, time::Duration};

use anyhow::{Context, Result, bail};

use super::machine::{Extra, Kind};
use crate::paths;

/// The module under test.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Module {
    /// Ours.
    Exitless,
    /// The stock kvm.ko and kvm-amd.ko or kvm-intel.ko of the same kernel.
    Kvm,
}

impl fmt::Display for Module {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Module::Exitless => "exitless",
            Module::Kvm => "kvm",
        })
    }
}

/// One script on one number of CPUs.
#[derive(Debug, Clone, Default)]
pub struct Scenario {
    /// File name, with `-<n>cpu` if the script asks for several numbers of CPUs, with the module's parameters if it has some.
    pub name: String,
    /// One sentence.
    pub about: String,
    /// CPUs of the emulated host.
    pub cpus: u32,
    /// What they have besides.
    pub cpu: Vec<Extra>,
    /// Features of the last CPU where they are not the others', as QEMU writes them.
    pub odd_cpu: Option<String>,
    /// Its memory in MiB.
    pub memory: u32,
    /// Real time it may take on two idle cores.
    pub timeout: Duration,
    /// `guest`, `runner`, `suite`, `swap`, ..
    pub needs: Vec<String>,
    /// Modules it is meant for.
    pub modules: Vec<Module>,
    /// Machines it cannot run on, and why.
    pub not_on: Vec<(Kind, String)>,
    /// Machines on which it is part of `cargo xtask test`.
    pub in_test: Vec<Kind>,
    /// Parameters for Exitless, as for insmod.
    pub params: String,
    /// Words for the kernel command line of the host.
    pub host: String,
    /// The machine ends by a reset that the script asks for, instead of being turned off after the script's end.
    pub reset: bool,
    /// Words of a kernel panic that is no trouble.
    pub panics: Option<String>,
    /// The script.
    pub script: String,
}

impl Scenario {
    /// Does the scenario need this?
    pub fn needs(&self, what: &str) -> bool {
        self.needs.iter().any(|need| need == what)
    }

    /// Is it meant for this module, and can it run on this machine?
    pub fn fits(&self, module: Module, machine: Kind) -> bool {
        self.modules.contains(&module) && self.why_not_on(machine).is_none()
    }

    /// Why it cannot run on this machine.
    pub fn why_not_on(&self, machine: Kind) -> Option<&str> {
        self.not_on.iter().find(|(kind, _)| *kind == machine).map(|(_, why)| why.as_str())
    }
}

/// Every scenario, by name.
pub fn all() -> Result<Vec<Scenario>> {
    let dir = paths::root().join("lab/hosts/scenarios");
    let mut found = Vec::new();
    for entry in fs::read_dir(&dir).with_context(|| format!("{} cannot be read", dir.display()))? {
        let path = entry?.path();
        if path.extension().is_some_and(|ext| ext == "sh") {
            let text = fs::read_to_string(&path)?;
            let name = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
            found.extend(parse(name, &text).with_context(|| path.display().to_string())?);
        }
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}

/// The scenarios whose name is `pattern`, or contains it; `all` means every one. A path to a `.sh` file is a scenario of
/// one's own.
pub fn matching(pattern: &str) -> Result<Vec<Scenario>> {
    if pattern.ends_with(".sh") {
        let text = fs::read_to_string(pattern).with_context(|| format!("{pattern} cannot be read"))?;
        return parse("own", &text);
    }
    let list = all()?;
    if pattern == "all" {
        return Ok(list);
    }
    let exact: Vec<_> = list.iter().filter(|s| s.name == pattern).cloned().collect();
    if !exact.is_empty() {
        return Ok(exact);
    }
    let found: Vec<_> = list.into_iter().filter(|s| s.name.contains(pattern)).collect();
    if found.is_empty() {
        bail!("no scenario is called {pattern}: see `cargo xtask lab list`");
    }
    Ok(found)
}

fn parse(name: &str, text: &str) -> Result<Vec<Scenario>> {
    let mut one = Scenario {
        name: name.to_string(),
        about: String::new(),
        cpus: 2,
        memory: 1024,
        timeout: Duration::from_secs(60),
        needs: Vec::new(),
        modules: vec![Module::Kvm, Module::Exitless],
        script: text.to_string(),
        ..Scenario::default()
    };
    let mut cpus = vec![2];
    let mut with_params = Vec::new();
    let mut in_test = vec![(Kind::Svm, Vec::new())];
    for line in
        text.lines().skip_while(|line| line.starts_with("#!")).take_while(|line| line.starts_with('#'))
    {
        let Some((key, value)) = line.trim_start_matches('#').split_once(':') else {
            one.reset |= line.trim_start_matches('#').trim() == "ends by reset";
            continue;
        };
        let value = value.trim();
        let number = || value.parse::<u32>().with_context(|| format!("`{line}` wants a number"));
        match key.trim() {
            "about" => one.about = value.to_string(),
            "cpus" => {
                cpus = value.split_whitespace().map(str::parse).collect::<Result<_, _>>().context("cpus")?
            }
            "cpu" => one.cpu = value.split_whitespace().map(Extra::named).collect::<Result<_>>()?,
            "odd cpu" => one.odd_cpu = Some(value.to_string()),
            "memory" => one.memory = number()?,
            "timeout" => one.timeout = Duration::from_secs(number()?.into()),
            "needs" => one.needs = value.split_whitespace().map(Into::into).collect(),
            "modules" => one.modules = value.split_whitespace().map(module).collect::<Result<_>>()?,
            "in test" => in_test = places(value)?,
            "host" => one.host = value.to_string(),
            "panics" => one.panics = Some(value.to_string()),
            key => match (key.strip_prefix("not on "), key.strip_prefix("also on ")) {
                (Some(names), _) => {
                    for name in names.split(',') {
                        one.not_on.push((machine(name.trim())?, value.to_string()));
                    }
                }
                (_, Some(at)) => with_params.push((place(at)?, value.to_string())),
                _ => bail!("`{key}` is no property of a scenario"),
            },
        }
    }
    let several = cpus.len() > 1;
    let variant = |cpus: u32| {
        let name = if several { format!("{name}-{cpus}cpu") } else { name.to_string() };
        let here = |(kind, numbers): &Place| (numbers.is_empty() || numbers.contains(&cpus)).then_some(*kind);
        Scenario { name, cpus, in_test: in_test.iter().filter_map(here).collect(), ..one.clone() }
    };
    let mut list = Vec::new();
    for one in cpus.into_iter().map(variant) {
        let here = |((_, numbers), _): &&(Place, String)| numbers.is_empty() || numbers.contains(&one.cpus);
        let more: Vec<_> =
            with_params.iter().filter(here).map(|((kind, _), p)| tuned(&one, *kind, p)).collect();
        list.push(one);
        list.extend(more);
    }
    Ok(list)
}

/// The scenario with these parameters of Exitless, on this machine only.
fn tuned(plain: &Scenario, kind: Kind, params: &str) -> Scenario {
    let mut one = plain.clone();
    one.name = format!("{}-{}", plain.name, params.replace(' ', "-"));
    one.params = params.to_string();
    one.modules = vec![Module::Exitless];
    one.in_test.retain(|k| *k == kind);
    let others = Kind::ALL.into_iter().filter(|other| *other != kind);
    one.not_on.extend(others.map(|other| (other, format!("{params} is for {kind}"))));
    one
}

/// A machine, and numbers of CPUs (none: all).
type Place = (Kind, Vec<u32>);

/// `svm, vmx 1 2`: machines, each with the numbers of CPUs that are meant (none: all).
fn places(text: &str) -> Result<Vec<Place>> {
    if text == "no" {
        return Ok(Vec::new());
    }
    text.split(',').map(place).collect()
}

fn place(text: &str) -> Result<Place> {
    let mut words = text.split_whitespace();
    let kind = machine(words.next().unwrap_or_default())?;
    Ok((kind, words.map(str::parse).collect::<Result<_, _>>().with_context(|| text.to_string())?))
}

fn module(name: &str) -> Result<Module> {
    match name {
        "exitless" => Ok(Module::Exitless),
        "kvm" => Ok(Module::Kvm),
        other => bail!("`{other}` is no module: exitless or kvm"),
    }
}

fn machine(name: &str) -> Result<Kind> {
    let found = Kind::ALL.into_iter().find(|kind| kind.to_string() == name);
    found.with_context(|| {
        format!("`{name}` is no machine: {}", Kind::ALL.map(|kind| kind.to_string()).join(", "))
    })
}

/// `cargo xtask lab list`.
pub fn list() -> Result<()> {
    for s in all()? {
        let modules: Vec<_> = s.modules.iter().map(ToString::to_string).collect();
        let in_test: Vec<_> = s.in_test.iter().map(ToString::to_string).collect();
        let (modules, in_test) = (modules.join("+"), in_test.join("+"));
        println!("{:<30} {} CPU  {modules:<12} in test: {in_test:<7} {}", s.name, s.cpus, s.about);
        for (machine, why) in &s.not_on {
            println!("{:<30} not on {machine}: {why}", "");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{Extra, Kind, Module, parse};

    /// One script on several numbers of CPUs is several scenarios, each with its own name.
    #[test]
    fn cpus_make_variants() {
        let list = parse("boot", "# about: Boots.\n# cpus: 1 2\n# modules: kvm\necho\n# cpus: 9\n").unwrap();
        let names: Vec<_> = list.iter().map(|s| (s.name.as_str(), s.cpus)).collect();
        assert_eq!(names, [("boot-1cpu", 1), ("boot-2cpu", 2)]);
        assert_eq!(list[0].modules, [Module::Kvm]);
    }

    /// A scenario runs on every machine that it gives no reason against.
    #[test]
    fn an_absent_machine_has_a_reason() {
        let list = parse("boot", "# not on svm, ryzen: no such chip\n# modules: kvm\n").unwrap();
        assert!(list[0].fits(Module::Kvm, Kind::Vmx));
        assert!(!list[0].fits(Module::Kvm, Kind::Ryzen));
        assert!(!list[0].fits(Module::Kvm, Kind::Svm) && !list[0].fits(Module::Exitless, Kind::Vmx));
        assert_eq!(list[0].why_not_on(Kind::Svm), Some("no such chip"));
    }

    /// What `cargo xtask test` runs is said machine by machine, and CPU number by CPU number where that matters.
    #[test]
    fn places_in_the_test() {
        let in_test = |line: &str| {
            let list = parse("boot", &format!("# cpus: 1 2\n{line}")).unwrap();
            list.into_iter().map(|s| s.in_test).collect::<Vec<_>>()
        };
        assert_eq!(in_test(""), [[Kind::Svm], [Kind::Svm]]);
        assert_eq!(in_test("# in test: svm, vmx 2\n"), [vec![Kind::Svm], vec![Kind::Svm, Kind::Vmx]]);
        assert_eq!(in_test("# in test: no\n"), [vec![], vec![]]);
        assert!(parse("boot", "# in test: arm\n").is_err());
    }

    /// A scenario with parameters is one of its own, on its machine and Exitless only, and is tested where the plain one is.
    #[test]
    fn parameters_make_variants() {
        let text = "# cpus: 1 2\n# in test: svm, vmx\n# also on vmx 1: apicv=0\n# also on vmx: a=1 b=2\n";
        let list = parse("runner", text).unwrap();
        let names: Vec<_> = list.iter().map(|s| s.name.as_str()).collect();
        assert_eq!(
            names,
            [
                "runner-1cpu",
                "runner-1cpu-apicv=0",
                "runner-1cpu-a=1-b=2",
                "runner-2cpu",
                "runner-2cpu-a=1-b=2"
            ]
        );
        assert_eq!((list[1].params.as_str(), list[1].in_test.as_slice()), ("apicv=0", &[Kind::Vmx][..]));
        assert!(list[1].fits(Module::Exitless, Kind::Vmx) && !list[1].fits(Module::Exitless, Kind::Svm));
        assert!(!list[1].fits(Module::Kvm, Kind::Vmx) && list[0].params.is_empty());
    }

    /// How the machine may end, and what it has, is said by the script.
    #[test]
    fn endings() {
        let text = "# ends by reset\n# panics: sysrq triggered crash\n# host: a=1 b\n# cpu: pku\n";
        let list = parse("emergency", text).unwrap();
        assert_eq!((list[0].host.as_str(), list[0].cpu.as_slice()), ("a=1 b", &[Extra::Pku][..]));
        assert!(parse("boot", "# cpu: warp\n").is_err());
        assert!(list[0].reset);
        assert_eq!(list[0].panics.as_deref(), Some("sysrq triggered crash"));
        assert!(!parse("boot", "# about: ends by reset\n").unwrap()[0].reset);
    }

    /// A misspelt property must not be taken for a comment.
    #[test]
    fn unknown_properties_are_refused() {
        assert!(parse("boot", "# timeuot: 3\n").is_err());
    }
}
