//! Builds a package with every change woven in, learns which test reaches which change, and runs those tests with one change awake.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    ops::Range,
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use super::weave::{self, Mutant, Woven};
use crate::{
    paths, say,
    sh::{self, cmd},
};

/// A test above this runs in a process of its own, after the others.
const QUICK: Duration = Duration::from_millis(50);
/// Seconds on top of what the tests take without a change; more is a loop without end.
const PATIENCE: u64 = 2;
const SIGXCPU: i32 = 24;

/// What became of each change.
#[derive(Default)]
pub struct Verdicts {
    pub noticed: usize,
    /// Noticed because a test did not end.
    pub endless: usize,
    /// The compiler refuses it beside the rest.
    pub unbuilt: Vec<String>,
    pub missed: Vec<String>,
    /// Changes of what the compiler computes: nobody notices them at run time, and they were not tried by a build each.
    pub undecided: Vec<String>,
}

impl Verdicts {
    fn count_noticed(&mut self, noticed: Noticed) -> bool {
        match noticed {
            Noticed::Yes => self.noticed += 1,
            Noticed::Endless => self.endless += 1,
            Noticed::No => return false,
        }
        true
    }

    /// How many changes there were.
    pub fn count(&self) -> usize {
        self.noticed + self.endless + self.unbuilt.len() + self.missed.len() + self.undecided.len()
    }
}

/// A copy of the sources, with changes in those of one package.
pub struct Tree {
    root: PathBuf,
    build: PathBuf,
    /// The package, and the packages whose tests judge.
    package: String,
    /// Where the package is, in the sources.
    folder: PathBuf,
    judges: Vec<String>,
}

/// A test program and where it runs.
struct Program {
    path: PathBuf,
    folder: PathBuf,
    own: bool,
}

struct Test {
    program: usize,
    name: String,
    time: Duration,
    /// It expects a panic, or catches one.
    panics: bool,
}

/// Failing cases are not looked into, and not kept: what one change taught must not judge the next.
const PROPTEST: [(&str, &str); 2] =
    [("PROPTEST_MAX_SHRINK_ITERS", "0"), ("PROPTEST_DISABLE_FAILURE_PERSISTENCE", "1")];

/// Removes the files below `folder` that `files`, relative to `root`, does not name.
fn remove_others(root: &Path, folder: &Path, files: &BTreeSet<&str>) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            remove_others(root, &path, files)?;
        } else if path.strip_prefix(root).ok().and_then(Path::to_str).is_none_or(|file| !files.contains(file))
        {
            fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
        }
    }
    Ok(())
}

impl Tree {
    /// Copies what has changed since the last copy.
    pub fn new(out: &Path, package: &str, judges: &[&str]) -> Result<Self> {
        let root = paths::made(out.join("tree"))?;
        let tree = Self {
            root,
            build: out.join("build"),
            package: package.into(),
            folder: folder(package)?,
            judges: judges.iter().map(ToString::to_string).collect(),
        };
        let mut git = cmd("git", ["ls-files", "-z", "--cached", "--others", "--exclude-standard"]);
        let files = sh::output(git.current_dir(paths::root()))?;
        let files: BTreeSet<_> = files.split('\0').filter(|file| !file.is_empty()).collect();
        // A test that is gone must not go on judging.
        remove_others(&tree.root, &tree.root, &files)?;
        for file in files {
            // A file that is deleted, but not in the index yet.
            if let Ok(content) = fs::read(paths::root().join(file)) {
                tree.put(file, &content)?;
            }
        }
        Ok(tree)
    }

    /// Leaves a file that is the same already, and its date, alone.
    fn put(&self, file: &str, content: &[u8]) -> Result<()> {
        let path = self.root.join(file);
        if fs::read(&path).is_ok_and(|there| there == content) {
            return Ok(());
        }
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        fs::write(&path, content).with_context(|| format!("cannot write {}", path.display()))
    }

    /// Tries every change; those of what the compiler computes by a build each, if `constants`.
    pub fn judge(&self, mutants: &[Mutant], constants: bool) -> Result<Verdicts> {
        let mut refused = BTreeSet::new();
        let (programs, constant) = say::step(&format!("{}: build", self.package), || {
            self.build_without_refused(mutants, &mut refused)
        })?;
        let tests =
            say::step(&format!("{}: which test reaches what", self.package), || self.watch(&programs))?;
        let mut verdicts = Verdicts::default();
        let mut silent = Vec::new();
        say::step(&format!("{}: {} changes", self.package, mutants.len() - refused.len()), || {
            for (id, mutant) in mutants.iter().enumerate() {
                if id > 0 && id % 500 == 0 {
                    say::note(format!("{id}"));
                }
                if refused.contains(&id) {
                    verdicts.unbuilt.push(mutant.name.clone());
                    continue;
                }
                let noticed = tests.run(id, &programs, tests.that_reach(id))?;
                if !verdicts.count_noticed(noticed) {
                    // At once: a run that is stopped has shown these.
                    say::note(&mutant.name);
                    silent.push(id);
                }
            }
            Ok(())
        })?;
        let (computed, others): (Vec<_>, Vec<_>) = silent.into_iter().partition(|id| constant.contains(id));
        let name = |id: &usize| mutants.get(*id).map(|mutant| mutant.name.clone()).unwrap_or_default();
        verdicts.missed = others.iter().map(name).collect();
        if !constants {
            verdicts.undecided = computed.iter().map(name).collect();
            return Ok(verdicts);
        }
        say::step(&format!("{}: {} changes of constants", self.package, computed.len()), || {
            for id in &computed {
                if !verdicts.count_noticed(self.run_constant(*id, &tests)?) {
                    verdicts.missed.push(name(id));
                }
            }
            Ok(())
        })?;
        Ok(verdicts)
    }

    fn build_without_refused(
        &self,
        mutants: &[Mutant],
        refused: &mut BTreeSet<usize>,
    ) -> Result<(Vec<Program>, BTreeSet<usize>)> {
        let mut files = weave::by_file(mutants);
        let first = self.folder.join("src/lib.rs").strip_prefix(paths::root())?.display().to_string();
        files.entry(&first).or_default();
        loop {
            let mut woven = BTreeMap::new();
            for (file, all) in &files {
                let source = fs::read_to_string(paths::root().join(file))?;
                let left: Vec<_> = all.iter().copied().filter(|(id, _)| !refused.contains(id)).collect();
                let switch = (*file == first).then_some(mutants.len());
                woven.insert(file.to_string(), weave::weave(&source, &left, switch)?);
            }
            refused.extend(woven.values().flat_map(|woven| woven.alone.iter()));
            for (file, woven) in &woven {
                self.put(file, woven.text.as_bytes())?;
            }
            let answer = self.cargo(None)?;
            if answer.errors.is_empty() {
                let constant = woven.into_values().flat_map(|woven| woven.constant).collect();
                return Ok((answer.programs, constant));
            }
            let blamed: BTreeSet<usize> =
                answer.errors.iter().flat_map(|error| error.blamed(&woven)).collect();
            if blamed.is_empty() {
                let all: Vec<_> = answer.errors.into_iter().filter_map(|error| error.rendered).collect();
                bail!("{} does not build, and no change is at fault:\n{}", self.package, all.join("\n"));
            }
            say::note(format!("{} changes do not build", blamed.len()));
            refused.extend(blamed);
        }
    }

    fn cargo(&self, constant: Option<usize>) -> Result<Answer> {
        let mut cargo =
            cmd("cargo", ["test", "--no-run", "--lib", "--tests", "--message-format", "json", "--quiet"]);
        for judge in &self.judges {
            cargo.args(["--package", judge]);
        }
        cargo.current_dir(&self.root).env("CARGO_TARGET_DIR", &self.build);
        // Changed code has warnings; the switch needs what is not stable yet.
        cargo.env("RUSTFLAGS", "--cap-lints allow").env("RUSTC_BOOTSTRAP", self.package.replace('-', "_"));
        cargo.env("CARGO_PROFILE_DEV_DEBUG", "0").env("CARGO_PROFILE_DEV_OPT_LEVEL", "1");
        if let Some(id) = constant {
            cargo.env("MUTANT_CONST", id.to_string());
        }
        let output = cargo.stdin(Stdio::null()).output().context("cargo cannot be started")?;
        let mut answer = Answer::default();
        for line in String::from_utf8_lossy(&output.stdout).lines() {
            if let Ok(message) = serde_json::from_str(line) {
                self.hear(message, &mut answer);
            }
        }
        // Cargo tells them as they are ready; tests know theirs by its number.
        answer.programs.sort_by(|a, b| a.path.cmp(&b.path));
        if !output.status.success() && answer.errors.is_empty() {
            bail!("cargo test --no-run: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(answer)
    }

    fn hear(&self, message: Message, answer: &mut Answer) {
        let is_error = |message: &Complaint| message.level == "error" && !message.spans.is_empty();
        answer.errors.extend(message.message.filter(is_error));
        if let (Some(path), Some(manifest)) = (message.executable, message.manifest_path) {
            let folder = manifest.parent().map(Path::to_path_buf).unwrap_or_default();
            let own = self.folder.strip_prefix(paths::root()).ok() == folder.strip_prefix(&self.root).ok();
            answer.programs.push(Program { path, folder, own });
        }
    }

    /// Runs each test once without a change; for each change, the tests that reach it.
    fn watch(&self, programs: &[Program]) -> Result<Tests> {
        let notes = self.build.join("notes");
        let mut tests = Tests::default();
        for (number, program) in programs.iter().enumerate() {
            let list = sh::output(cmd_of(program).args(["--list", "--format", "terse"]))?;
            for name in list.lines().filter_map(|line| line.strip_suffix(": test")) {
                let _ = fs::remove_file(&notes);
                let start = Instant::now();
                let mut test = cmd_of(program);
                test.args(["--exact", name, "--test-threads", "1"]).env("MUTANT_NOTES", &notes);
                sh::quiet(&mut test).context("a test fails without a change")?;
                let time = start.elapsed();
                let noted = fs::read_to_string(&notes).unwrap_or_default();
                let panics = noted.lines().any(|line| line == "panic");
                for id in noted.lines().filter_map(|line| line.parse().ok()) {
                    tests.reach.entry(id).or_default().push(tests.all.len());
                }
                tests.all.push(Test { program: number, name: name.into(), time, panics });
            }
        }
        say::note(format!("{} tests", tests.all.len()));
        Ok(tests)
    }

    /// A change of what the compiler computes needs a build of its own; the compiler may notice it too.
    fn run_constant(&self, id: usize, tests: &Tests) -> Result<Noticed> {
        let answer = self.cargo(Some(id))?;
        if !answer.errors.is_empty() {
            return Ok(Noticed::Yes);
        }
        tests.run(id, &answer.programs, tests.all.iter().collect())
    }
}

fn folder(package: &str) -> Result<PathBuf> {
    let text = sh::output(cmd("cargo", ["pkgid", "--package", package]).current_dir(paths::root()))?;
    let path = text.trim().trim_start_matches("path+file://").split('#').next().unwrap_or_default();
    Ok(PathBuf::from(path))
}

fn cmd_of(program: &Program) -> Command {
    let mut command = Command::new(&program.path);
    command.current_dir(&program.folder).envs(PROPTEST);
    command
}

/// Runs tests of a program with a change awake.
fn once(program: &Program, id: usize, tests: &[&Test], panics: bool) -> Result<Noticed> {
    let time: Duration = tests.iter().map(|test| test.time).sum();
    let limit = time.as_secs() * 3 + PATIENCE;
    let script = r#"ulimit -t "$1"; ulimit -v 16777216; shift; exec timeout "$@""#;
    // By the clock it may take long on a busy machine; what sleeps for ever is rare.
    let mut test = cmd("sh", ["-c", script, "sh", &limit.to_string(), &(limit * 20 + 240).to_string()]);
    test.arg(&program.path).args(["--test-threads", "1", "--quiet", "--exact"]);
    test.args(tests.iter().map(|test| &test.name)).env("MUTANT", id.to_string());
    test.current_dir(&program.folder).envs(PROPTEST);
    if panics {
        test.env("MUTANT_PATIENT", "1");
    }
    let status = test.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status()?;
    Ok(match (status.code(), status.signal()) {
        (Some(0), _) => Noticed::No,
        (Some(124), _) | (_, Some(SIGXCPU)) => Noticed::Endless,
        (Some(code), _) if code == 128 + SIGXCPU => Noticed::Endless,
        (Some(126 | 127), _) => bail!("{} cannot be started", program.path.display()),
        _ => Noticed::Yes,
    })
}

enum Noticed {
    Yes,
    Endless,
    No,
}

#[derive(Default)]
struct Tests {
    all: Vec<Test>,
    /// By change, the tests that reach it.
    reach: BTreeMap<usize, Vec<usize>>,
}

impl Tests {
    fn that_reach(&self, id: usize) -> Vec<&Test> {
        let reach = self.reach.get(&id).into_iter().flatten();
        reach.filter_map(|number| self.all.get(*number)).collect()
    }

    /// Runs these with a change awake until one notices: own ones before those of other packages, quick ones together, then slow
    /// ones one by one.
    fn run(&self, id: usize, programs: &[Program], tests: Vec<&Test>) -> Result<Noticed> {
        let mut groups: BTreeMap<(bool, bool, Duration, bool, usize), Vec<&Test>> = BTreeMap::new();
        for test in tests {
            let own = programs.get(test.program).is_some_and(|program| program.own);
            let slow = test.time > QUICK;
            let time = if slow { test.time } else { Duration::ZERO };
            groups.entry((!own, slow, time, test.panics, test.program)).or_default().push(test);
        }
        for ((.., panics, program), group) in groups {
            let Some(program) = programs.get(program) else { continue };
            match once(program, id, &group, panics)? {
                Noticed::No => {}
                noticed => return Ok(noticed),
            }
        }
        Ok(Noticed::No)
    }
}

#[derive(Default)]
struct Answer {
    programs: Vec<Program>,
    errors: Vec<Complaint>,
}

/// A line of cargo's JSON.
#[derive(Deserialize)]
struct Message {
    message: Option<Complaint>,
    executable: Option<PathBuf>,
    manifest_path: Option<PathBuf>,
}

#[derive(Deserialize)]
struct Complaint {
    level: String,
    #[serde(default)]
    rendered: Option<String>,
    spans: Vec<Span>,
    #[serde(default)]
    children: Vec<Complaint>,
}

#[derive(Deserialize)]
struct Span {
    file_name: String,
    byte_start: usize,
    byte_end: usize,
    is_primary: bool,
}

impl Complaint {
    /// The changes that it is about.
    fn blamed(&self, woven: &BTreeMap<String, Woven>) -> Vec<usize> {
        let spans = || self.spans.iter().chain(self.children.iter().flat_map(|child| &child.spans));
        let mut places: BTreeMap<&str, Vec<Range<usize>>> = BTreeMap::new();
        for span in spans().filter(|span| span.is_primary).chain(spans().filter(|span| !span.is_primary)) {
            places.entry(&span.file_name).or_default().push(span.byte_start..span.byte_end);
        }
        let blamed = |(file, places): (&&str, &Vec<Range<usize>>)| Some(woven.get(*file)?.blamed(places));
        places.iter().filter_map(blamed).flatten().collect()
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, fs};

    #[test]
    fn files_of_other_runs_go() {
        let root = std::env::temp_dir().join(format!("exitless-tree-{}", std::process::id()));
        fs::create_dir_all(root.join("a/b")).unwrap();
        for file in ["a/kept.rs", "a/b/gone.rs", "gone.txt"] {
            fs::write(root.join(file), "").unwrap();
        }
        super::remove_others(&root, &root, &BTreeSet::from(["a/kept.rs"])).unwrap();
        let left = ["a/kept.rs", "a/b/gone.rs", "gone.txt"].map(|file| root.join(file).exists());
        fs::remove_dir_all(&root).unwrap();
        assert_eq!(left, [true, false, false]);
    }
}
