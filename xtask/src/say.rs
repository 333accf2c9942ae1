//! What the tool prints: named steps with their time, and notes below them.

use std::time::{Duration, Instant};

use anyhow::Result;

/// Seconds with one decimal, for people.
pub fn secs(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}

/// Bytes in the unit that fits.
pub fn size(bytes: u64) -> String {
    match bytes {
        0..=9_999 => format!("{bytes} B"),
        10_000..=9_999_999 => format!("{} KB", bytes / 1_000),
        _ => format!("{} MB", bytes / 1_000_000),
    }
}

/// One line below the current step.
pub fn note(text: impl AsRef<str>) {
    println!("   {}", text.as_ref());
}

/// Runs `work` as a named step and prints how long it took.
pub fn step<T>(name: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    println!("-> {name}");
    let start = Instant::now();
    let result = work();
    match &result {
        Ok(_) => note(format!("{name}: done in {}", secs(start.elapsed()))),
        Err(_) => note(format!("{name}: FAILED after {}", secs(start.elapsed()))),
    }
    result
}
