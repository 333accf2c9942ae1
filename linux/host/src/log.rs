//! The kernel log, one line at a time, through a buffer on the stack: no allocation, long lines are cut.

use crate::ffi;
use core::ffi::c_char;
use core::fmt::{self, Write};

/// The longest line in bytes.
pub const LINE_MAX: usize = 256;

/// How loud.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Level {
    /// What happened.
    Info,
    /// Something that should not, and goes on.
    Warn,
    /// Something that failed.
    Err,
}

/// A line being written. Writing past the end keeps what fits and forgets the rest.
pub struct Line {
    text: [u8; LINE_MAX],
    len: usize,
}

impl Line {
    /// An empty line.
    pub const fn new() -> Self {
        Line { text: [0; LINE_MAX], len: 0 }
    }

    /// What was written and fitted.
    pub fn bytes(&self) -> &[u8] {
        self.text.get(..self.len).unwrap_or(&[])
    }
}

impl Default for Line {
    fn default() -> Self {
        Self::new()
    }
}

impl Write for Line {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        let room = self.text.get_mut(self.len..).unwrap_or(&mut []);
        let n = room.len().min(s.len());
        for (to, from) in room.iter_mut().zip(s.as_bytes()) {
            *to = *from;
        }
        self.len += n;
        Ok(())
    }
}

/// Prints one line. Use the macros.
#[inline(never)]
pub fn print(level: Level, args: fmt::Arguments<'_>) {
    let mut line = Line::new();
    // A Display implementation that fails leaves what it wrote, which is still worth printing.
    let _ = line.write_fmt(args);
    emit(level, line.bytes());
}

/// Prints bytes as they are: for callers that must not format.
pub fn emit(level: Level, text: &[u8]) {
    let (ptr, len) = (text.as_ptr().cast::<c_char>(), text.len().min(LINE_MAX) as u32);
    // SAFETY: ptr and len name readable bytes of `text`; the helper prints exactly that many.
    unsafe {
        match level {
            Level::Info => ffi::ex_pr_info(ptr, len),
            Level::Warn => ffi::ex_pr_warn(ptr, len),
            Level::Err => ffi::ex_pr_err(ptr, len),
        }
    }
}

/// Prints at info level.
#[macro_export]
macro_rules! pr_info {
    ($($arg:tt)*) => { $crate::log::print($crate::log::Level::Info, ::core::format_args!($($arg)*)) };
}

/// Prints at warning level.
#[macro_export]
macro_rules! pr_warn {
    ($($arg:tt)*) => { $crate::log::print($crate::log::Level::Warn, ::core::format_args!($($arg)*)) };
}

/// Prints at error level.
#[macro_export]
macro_rules! pr_err {
    ($($arg:tt)*) => { $crate::log::print($crate::log::Level::Err, ::core::format_args!($($arg)*)) };
}
