//! Reports: text and results through the runner's ports, and the checks that tests are written with.

use crate::config::*;
use crate::cpu::{hlt, outb, outl};

pub const FAIL: u32 = EXIT_FAIL;

pub fn log(text: &str) {
    for b in text.bytes() {
        outb(PORT_LOG, b);
    }
}

pub fn log_num(text: &str, value: u64) {
    log(text);
    log("0x");
    let mut started = false;
    for i in (0..16).rev() {
        let d = (value >> (i * 4)) & 0xf;
        started |= d != 0 || i == 0;
        if started {
            outb(PORT_LOG, b"0123456789abcdef"[d as usize]);
        }
    }
}

pub fn exit(code: u32) -> ! {
    outl(PORT_EXIT, code);
    loop {
        hlt();
    }
}

pub fn pass() -> ! {
    exit(EXIT_PASS)
}

pub fn fail(what: &str) -> ! {
    log(what);
    exit(EXIT_FAIL)
}

pub fn skip(why: &str) -> ! {
    log(why);
    exit(EXIT_SKIP)
}

#[cold]
pub fn fail_eq(what: &str, got: u64, want: u64) -> ! {
    log(what);
    log_num(": got ", got);
    log_num(", want ", want);
    exit(EXIT_FAIL)
}

pub fn check(ok: bool, what: &str) {
    if !ok {
        fail(what)
    }
}

pub fn check_eq(got: u64, want: u64, what: &str) {
    if got != want {
        fail_eq(what, got, want)
    }
}
