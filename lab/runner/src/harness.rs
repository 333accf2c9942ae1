//! Running tests: one child process each, with a time limit, and one line of report each.
//!
//! A test that hangs in user space is killed and reported; one that hangs in the kernel is reported and left behind.

use std::io::{Read, Write};
use std::os::fd::FromRawFd;
use std::time::{Duration, Instant};

/// What a test says at its end.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// All checks held.
    Passed,
    /// The environment lacks something the test needs.
    Skipped(String),
    /// A check did not hold.
    Failed(String),
}

/// Counts of a whole run.
#[derive(Default, Debug)]
pub struct Summary {
    /// Tests that passed.
    pub passed: u32,
    /// Tests that failed or were killed.
    pub failed: u32,
    /// Tests that did not apply.
    pub skipped: u32,
}

/// Runs a closure in a child process and gives back what it said, with everything it printed by `extra`.
pub fn isolated(limit: Duration, f: impl FnOnce(&mut dyn Write) -> Outcome) -> (Outcome, String) {
    let mut fds = [0; 2];
    // SAFETY: room for two descriptors.
    if unsafe { libc::pipe2(fds.as_mut_ptr(), libc::O_CLOEXEC) } != 0 {
        return (Outcome::Failed("pipe".into()), String::new());
    }
    // SAFETY: this process has one thread, so the child may go on as usual.
    let pid = unsafe { libc::fork() };
    // SAFETY: both ends are ours; each process keeps one.
    let (mut reader, mut writer) =
        unsafe { (std::fs::File::from_raw_fd(fds[0]), std::fs::File::from_raw_fd(fds[1])) };
    if pid == 0 {
        drop(reader);
        // SAFETY: an own process group, so that the parent can end the grandchildren too.
        unsafe { libc::setpgid(0, 0) };
        let result = f(&mut writer);
        let (tag, text) = match &result {
            Outcome::Passed => ('P', ""),
            Outcome::Skipped(t) => ('S', t.as_str()),
            Outcome::Failed(t) => ('F', t.as_str()),
        };
        let _ = write!(writer, "\0{tag}{text}");
        let _ = writer.flush();
        // SAFETY: ends the child without the parent's exit handlers.
        unsafe { libc::_exit(0) };
    }
    drop(writer);
    let end = Instant::now() + limit;
    let mut text = Vec::new();
    let mut killed = false;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let mut p = libc::pollfd { fd: fds[0], events: libc::POLLIN, revents: 0 };
        // SAFETY: one valid descriptor.
        let n = unsafe { libc::poll(&mut p, 1, left.as_millis() as i32) };
        if n == 0 {
            killed = true;
            break;
        }
        let mut b = [0; 4096];
        match reader.read(&mut b) {
            Ok(0) => break,
            Ok(n) => text.extend_from_slice(&b[..n]),
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(_) => break,
        }
    }
    // SAFETY: only the child's own process group.
    unsafe { libc::kill(-pid, libc::SIGKILL) };
    let mut status = 0;
    let grace = Instant::now() + Duration::from_secs(if killed { 10 } else { 60 });
    let gone = loop {
        // SAFETY: our own child.
        match unsafe { libc::waitpid(pid, &mut status, libc::WNOHANG) } {
            0 if Instant::now() < grace => std::thread::sleep(Duration::from_millis(2)),
            0 => break false,
            _ => break true,
        }
    };
    let split = text.iter().position(|&b| b == 0);
    let (extra, verdict) = text.split_at(split.unwrap_or(text.len()));
    let extra = String::from_utf8_lossy(extra).into_owned();
    let message = || String::from_utf8_lossy(verdict.get(2..).unwrap_or(b"")).into_owned();
    let outcome = match verdict.get(1) {
        Some(b'P') => Outcome::Passed,
        Some(b'S') => Outcome::Skipped(message()),
        Some(b'F') => Outcome::Failed(message()),
        _ if killed => Outcome::Failed(format!("no end after {} s", limit.as_secs())),
        _ if libc::WIFSIGNALED(status) => {
            Outcome::Failed(format!("killed by signal {}", libc::WTERMSIG(status)))
        }
        _ => Outcome::Failed("ended without a verdict".into()),
    };
    if !gone {
        return (Outcome::Failed("the process cannot be ended: stuck in the kernel".into()), extra);
    }
    (outcome, extra)
}

impl Summary {
    /// Prints one test's line and counts it.
    pub fn record(&mut self, name: &str, outcome: &Outcome) {
        let one_line = |t: &str| t.trim().replace('\n', "; ");
        match outcome {
            Outcome::Passed => {
                self.passed += 1;
                println!("test {name} ... ok");
            }
            Outcome::Skipped(t) => {
                self.skipped += 1;
                println!("test {name} ... skipped ({})", one_line(t));
            }
            Outcome::Failed(t) => {
                self.failed += 1;
                println!("test {name} ... FAILED ({})", one_line(t));
            }
        }
        let _ = std::io::stdout().flush();
    }

    /// Prints the closing line; the exit code of the process.
    pub fn finish(&self) -> i32 {
        println!("{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped);
        i32::from(self.failed != 0 || self.passed + self.skipped == 0)
    }
}

/// True when a name matches any of the patterns (substring; all when there is none).
pub fn selected(name: &str, patterns: &[String]) -> bool {
    patterns.is_empty() || patterns.iter().any(|p| name.contains(p.as_str()))
}
