//! The end of a Rust panic: say where, then `ud2`, which the kernel reports as an oops with a backtrace.

use crate::log::{Level, Line, emit};
use core::fmt::Write;
use core::panic::PanicInfo;

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    let mut line = Line::new();
    let _ = write!(line, "rust panic: {}", info.message());
    if let Some(at) = info.location() {
        let _ = write!(line, " at {}:{}", at.file(), at.line());
    }
    emit(Level::Err, line.bytes());
    crate::trap()
}
