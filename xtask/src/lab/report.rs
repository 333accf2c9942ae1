//! What a scenario printed, read into results: tests, records, and whether the kernel's log is clean.
//!
//! Marks on the console, one per line:
//! ```text
//! === BEGIN name                  a test starts
//! === END name rc=N secs=S        it ended; rc 0 is a pass, rc 4 a skip
//! === SKIP name why               it does not apply here
//! === JSON {...}                  a record
//! === BYE rc=N                    the script ran to its end
//! ```
//! The lab's programs print a line for each of their own tests: `test name ... ok`, `skipped (why)` or `FAILED (why)`, and
//! exit with 1 if one failed.

use std::{fs, path::Path, time::Duration};

use super::known::{self, Known};

/// A result of one test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It held.
    Pass,
    /// It did not.
    Fail,
    /// It does not apply.
    Skip,
}

/// One test's result.
#[derive(Debug, Clone)]
pub struct Test {
    /// Its name.
    pub name: String,
    /// Its result.
    pub verdict: Verdict,
    /// Time by the emulated host's clock.
    pub time: Duration,
    /// Why it failed or was skipped.
    pub why: String,
}

/// Numbers of passed, failed and skipped tests.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    /// Tests that held.
    pub passed: usize,
    /// Tests that did not.
    pub failed: usize,
    /// Tests that do not apply.
    pub skipped: usize,
}

impl Totals {
    /// Adds one result.
    pub fn count(&mut self, verdict: Verdict) {
        match verdict {
            Verdict::Pass => self.passed += 1,
            Verdict::Fail => self.failed += 1,
            Verdict::Skip => self.skipped += 1,
        }
    }

    /// Adds other totals.
    pub fn add(&mut self, other: Totals) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

impl std::fmt::Display for Totals {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped)
    }
}

/// Everything a scenario said.
#[derive(Debug, Default)]
pub struct Report {
    /// Results in order.
    pub tests: Vec<Test>,
    /// JSON records.
    pub json: Vec<String>,
    /// The script's exit code, once it ended.
    pub bye: Option<i32>,
    known: Vec<Known>,
    /// The open test's success is the machine's reset.
    reset: bool,
    panics: Option<String>,
    open: Option<String>,
    inner: Inner,
}

/// The failures of tests inside the open test: some known, all of them known?
#[derive(Debug, Default)]
struct Inner {
    known: bool,
    new: bool,
}

impl Report {
    /// An empty report of tests of which these are known to fail.
    pub fn knowing(known: Vec<Known>) -> Report {
        Report { known, ..Report::default() }
    }

    /// Of a machine that is to end by a reset, or to panic with these words.
    pub fn ending(self, reset: bool, panics: Option<String>) -> Report {
        Report { reset, panics, ..self }
    }

    /// The words of the panic that is asked for.
    pub fn panics(&self) -> Option<&str> {
        self.panics.as_deref()
    }

    /// Takes one console line; returns a test's result if the line completes one.
    pub fn line(&mut self, line: &str) -> Option<&Test> {
        if let Some(result) = line.strip_prefix("test ") {
            return self.subtest(result);
        }
        let mark = line.split_once("=== ").filter(|(before, _)| before.trim().is_empty())?.1;
        let (kind, rest) = mark.split_once(' ').unwrap_or((mark, ""));
        match kind {
            "BEGIN" => {
                self.open = Some(rest.trim().to_string());
                self.inner = Inner::default();
            }
            "END" => return Some(self.end(rest)),
            "SKIP" => return Some(self.skip(rest)),
            "JSON" => self.json.push(rest.to_string()),
            "BYE" => self.bye = Some(field(rest, "rc").and_then(|rc| rc.parse().ok()).unwrap_or(-1)),
            _ => {}
        }
        None
    }

    fn push(&mut self, test: Test) -> &Test {
        let failed = test.verdict == Verdict::Fail;
        let test = known::judged(&self.known, test);
        self.inner.known |= failed && test.verdict == Verdict::Skip;
        self.inner.new |= test.verdict == Verdict::Fail;
        let at = self.tests.len();
        self.tests.push(test);
        &self.tests[at]
    }

    fn end(&mut self, rest: &str) -> &Test {
        self.open = None;
        let name = rest.split_whitespace().next().unwrap_or("?").to_string();
        let code = field(rest, "rc").and_then(|rc| rc.parse::<i32>().ok());
        let secs = field(rest, "secs").and_then(|secs| secs.parse::<f64>().ok()).unwrap_or(0.0);
        let (verdict, why) = match code {
            Some(0) => (Verdict::Pass, String::new()),
            Some(1) if self.inner.known && !self.inner.new => {
                (Verdict::Pass, "failures are known".to_string())
            }
            Some(4) => (Verdict::Skip, "does not apply".to_string()),
            Some(137) => (Verdict::Fail, "took too long and was killed".to_string()),
            Some(code) => (Verdict::Fail, format!("exit code {code}")),
            None => (Verdict::Fail, "no exit code".to_string()),
        };
        self.push(Test { name, verdict, time: Duration::from_secs_f64(secs.max(0.0)), why })
    }

    fn skip(&mut self, rest: &str) -> &Test {
        let (name, why) = rest.split_once(' ').unwrap_or((rest, ""));
        self.push(Test { name: name.into(), verdict: Verdict::Skip, time: Duration::ZERO, why: why.into() })
    }

    /// `name ... ok`, `name ... skipped (why)` or `name ... FAILED (why)`.
    fn subtest(&mut self, rest: &str) -> Option<&Test> {
        let (name, result) = rest.split_once(" ... ")?;
        let (word, why) = result.split_once(' ').unwrap_or((result, ""));
        let verdict = match word {
            "ok" => Verdict::Pass,
            "FAILED" => Verdict::Fail,
            "skipped" => Verdict::Skip,
            _ => return None,
        };
        let why = why.trim_start_matches('(').trim_end_matches(')');
        Some(self.push(Test { name: name.into(), verdict, time: Duration::ZERO, why: why.into() }))
    }

    /// Adds a failed test that the machine, not the script, found.
    pub fn fail(&mut self, name: &str, why: impl Into<String>) {
        self.push(Test { name: name.into(), verdict: Verdict::Fail, time: Duration::ZERO, why: why.into() });
    }

    /// A test that began and never ended fails; so does a script that stopped in the middle. Where that is what was asked for,
    /// the machine must have ended by itself, and the script not have gone on.
    pub fn close(&mut self, ended: bool) {
        let open = self.open.take();
        if self.reset {
            return match open {
                Some(name) if ended && self.bye.is_none() => {
                    let why = "the machine was reset".to_string();
                    self.push(Test { name, verdict: Verdict::Pass, time: Duration::ZERO, why });
                }
                _ => self.fail("scenario", "the machine was not reset by the script's last test"),
            };
        }
        if let Some(name) = open {
            self.fail(&name, "did not end");
        }
        match self.bye {
            None => self.fail("scenario", "the script did not reach its end"),
            Some(0) => {}
            Some(code) => self.fail("scenario", format!("the script ended with {code}")),
        }
    }

    /// Passed, failed, skipped.
    pub fn totals(&self) -> Totals {
        let mut totals = Totals::default();
        self.tests.iter().for_each(|test| totals.count(test.verdict));
        totals
    }
}

fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.split_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
}

/// What the kernel prints when something is wrong with it.
const TROUBLE: &[&str] = &[
    "WARNING:",
    "BUG:",
    "BUG ",
    "Oops",
    "general protection",
    "KASAN",
    "UBSAN",
    "KCSAN",
    "Kernel panic",
    "kernel BUG",
    "detected stall",
    "self-detected stall",
    "rcu: INFO",
    "soft lockup",
    "hard LOCKUP",
    "blocked for more than",
    "Unable to handle",
    "unable to handle",
    "scheduling while atomic",
    "sleeping function called",
    "lockdep",
    "possible circular locking",
    "possible recursive locking",
    "inconsistent lock state",
    "suspicious RCU",
    "unreferenced object",
    "suspected memory leaks",
    "list_add corruption",
    "list_del corruption",
    "refcount_t:",
    "stack-protector",
    "bad page state",
    "Bad page state",
    "Bad rss-counter",
    "nobody cared",
    "Call Trace",
    "leaked ",
    // A parameter that the module does not have is not what was to be tested.
    ": unknown parameter '",
];

/// Lines with a word of trouble in them that are not trouble.
const HARMLESS: &[&str] = &[
    "Lock dependency validator",
    "lockdep is turned off because",
    "KASAN: KernelAddressSanitizer initialized",
    "KernelAddressSanitizer initialized",
    "RCU lockdep checking is enabled",
    "Spectre V2",
    "RETBleed: WARNING: Spectre v2 mitigation leaves CPU vulnerable",
    "Speculative Return Stack Overflow: WARNING: See",
    "kmemleak: Kernel memory leak detector initialized",
    "rcu: \tRCU",
    "lockdep checking",
    // No "BUG ", but an exit of KVM_RUN that a test names.
    "KVM_EXIT_DEBUG ",
    // Frames of a backtrace; what it is printed for has a line of its own.
    "? lockdep_",
    " lockdep_hardirqs_",
];

/// The lines of a kernel's log that tell of trouble. A panic that is asked for is none, nor the one backtrace it prints.
pub fn trouble<'a>(log: &'a str, panics: Option<&str>) -> Vec<&'a str> {
    let asked =
        |line: &&str| panics.is_some_and(|words| line.contains("Kernel panic") && line.contains(words));
    let mut backtraces = usize::from(log.lines().any(|line| asked(&line)));
    // The lab's own marks name checks after what they look for.
    let bad = |line: &&str| {
        !line.starts_with("===")
            && TROUBLE.iter().any(|word| line.contains(word))
            && !HARMLESS.iter().any(|word| line.contains(word))
    };
    let mut found: Vec<_> = log.lines().filter(bad).filter(|line| !asked(line)).collect();
    found.retain(|line| {
        let allowed = backtraces > 0 && line.contains("Call Trace");
        backtraces -= usize::from(allowed);
        !allowed
    });
    found
}

/// As [`trouble`], for files that may be missing.
pub fn trouble_in(files: &[&Path], panics: Option<&str>) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    for file in files {
        let text = fs::read(file).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        found.extend(trouble(&text, panics).into_iter().map(|line| line.trim().to_string()));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::{Report, Verdict, trouble};

    fn report(lines: &[&str]) -> Report {
        let mut report = Report::default();
        for line in lines {
            report.line(line);
        }
        report.close(true);
        report
    }

    /// A machine that is to be reset passes if it ended by itself inside the last test, and only then.
    #[test]
    fn a_reset_that_is_asked_for() {
        let with = |lines: &[&str], ended: bool| {
            let mut report = Report::default().ending(true, None);
            for line in lines {
                report.line(line);
            }
            report.close(ended);
            report.totals().to_string()
        };
        let lines = ["=== BEGIN load", "=== END load rc=0 secs=1", "=== BEGIN reset"];
        assert_eq!(with(&lines, true), "2 passed, 0 failed, 0 skipped");
        assert_eq!(with(&lines, false), "1 passed, 1 failed, 0 skipped");
        assert_eq!(with(&lines[..2], true), "1 passed, 1 failed, 0 skipped");
        let went_on = [&lines[..], &["=== END reset rc=0 secs=1", "=== BYE rc=0"]].concat();
        assert_eq!(with(&went_on, true), "2 passed, 1 failed, 0 skipped");
    }

    /// A panic that is asked for is no trouble, all else around it is: a second backtrace too.
    #[test]
    fn a_panic_that_is_asked_for() {
        let log = "Kernel panic - not syncing: sysrq triggered crash\nCall Trace:\n";
        assert_eq!(trouble(log, None).len(), 2);
        assert!(trouble(log, Some("sysrq triggered crash")).is_empty());
        let more = format!("{log}general protection fault: 0000\nCall Trace:\n");
        assert_eq!(trouble(&more, Some("sysrq triggered crash")).len(), 2);
        assert_eq!(trouble("Kernel panic - not syncing: other\nCall Trace:\n", Some("crash")).len(), 2);
    }

    /// A host that dies inside a test must not look like a shorter, passing run.
    #[test]
    fn a_test_that_never_ends_fails() {
        let r = report(&["=== BEGIN boot", "=== END boot rc=0 secs=1.5", "=== BEGIN work"]);
        let failed: Vec<_> =
            r.tests.iter().filter(|t| t.verdict == Verdict::Fail).map(|t| t.name.as_str()).collect();
        assert_eq!(failed, ["work", "scenario"]);
    }

    /// A complete run passes.
    #[test]
    fn a_complete_run_passes() {
        let r =
            report(&["=== BEGIN boot", "=== END boot rc=0 secs=1.5", "=== SKIP net no card", "=== BYE rc=0"]);
        assert_eq!(r.totals().to_string(), "1 passed, 0 failed, 1 skipped");
    }

    /// The lab's programs report test by test.
    #[test]
    fn tests_inside_a_test_count() {
        let r = report(&[
            "test a ... ok",
            "test b ... FAILED (no; exit)",
            "test c ... skipped (x)",
            "=== BYE rc=0",
        ]);
        assert_eq!(r.totals().to_string(), "1 passed, 1 failed, 1 skipped");
        assert_eq!(r.tests[1].why, "no; exit");
    }

    /// A program whose only failures are known ones has not failed; its exit code says nothing of its own.
    #[test]
    fn known_failures_do_not_fail_their_program() {
        let known = crate::lab::known::Known {
            test: "b".into(),
            machine: crate::lab::machine::Kind::Vmx,
            module: None,
            cpus: 0,
            unless: None,
            says: "no".into(),
            why: "emulator".into(),
            sometimes: false,
        };
        let verdicts = |lines: &[&str]| {
            let mut report = Report::knowing(vec![known.clone()]);
            for line in lines {
                report.line(line);
            }
            report.totals().to_string()
        };
        let (begin, end) = ("=== BEGIN run", "=== END run rc=1 secs=1.0");
        assert_eq!(verdicts(&[begin, "test b ... FAILED (no)", end]), "1 passed, 0 failed, 1 skipped");
        assert_eq!(
            verdicts(&[begin, "test a ... FAILED (no)", "test b ... FAILED (no)", end]),
            "0 passed, 2 failed, 1 skipped"
        );
        assert_eq!(verdicts(&[begin, end]), "0 passed, 1 failed, 0 skipped");
    }

    /// Exit code 137 is a kill by the time limit.
    #[test]
    fn a_killed_test_says_so() {
        let r = report(&["=== BEGIN a", "=== END a rc=137 secs=60.00", "=== BYE rc=0"]);
        assert!(r.tests[0].why.contains("too long"));
    }

    /// A warning in the kernel's log is found, the lock validator's greeting is not taken for one.
    #[test]
    fn trouble_is_told_from_greetings() {
        let log = "[1] Lock dependency validator: Copyright\n[2] WARNING: CPU: 1 PID: 3 at x.c:4\n[3] fine\n";
        assert_eq!(trouble(log, None), ["[2] WARNING: CPU: 1 PID: 3 at x.c:4"]);
        // A frame of a panic's backtrace on the debug kernel; what the validator itself says stays.
        assert!(trouble(" ? lockdep_hardirqs_on_prepare+0x17b/0x410\n", None).is_empty());
        assert_eq!(trouble("WARNING: possible circular locking\nlockdep: x\n", None).len(), 2);
    }

    /// insmod takes a mistyped parameter and the kernel only logs it.
    #[test]
    fn a_parameter_that_is_not_there_is_trouble() {
        let log = "[5.1] exitless: unknown parameter 'nosuch' ignored\n";
        assert_eq!(trouble(log, None).len(), 1);
        assert!(
            trouble("Unknown kernel command line parameters \"apicv=0\", will be passed\n", None).is_empty()
        );
    }
}
