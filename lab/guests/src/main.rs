//! The micro guests: one bare-metal image that holds every test; the runner starts one of them per small VM.
//!
//! Vocabulary: a *test* is a record in section `.tests` (name, entry, configuration) that the runner reads from the
//! ELF file. *Long* tests are Rust functions called on CPU 0 in 64-bit mode with a flat identity map of 4 GiB; the
//! other start modes are assembly (`real.S`, `prot.S`). A guest reports through three ports (`report.rs`) and asks
//! the user space that runs it for services through a fourth (`host.rs`), so each test states by itself what has
//! to happen and passes or fails alike on every implementation of the API.
#![no_std]
#![no_main]
#![allow(missing_docs, clippy::missing_safety_doc)]

mod apic;
mod config;
mod cpu;
mod host;
mod mem;
mod own;
mod report;
mod smp;
mod trap;

mod bench;
mod t_apf;
mod t_basic;
mod t_clock;
mod t_cpuid;
mod t_cr;
mod t_exc;
mod t_fpu;
mod t_inject;
mod t_ioapic;
mod t_ipi;
mod t_keys;
mod t_lapic;
mod t_lazy;
mod t_mem;
mod t_mmio;
mod t_move;
mod t_msr;
mod t_pio;
mod t_pv;
mod t_raw;
mod t_smp;
mod t_soak;
mod t_spec;
mod t_storm;
mod t_timer;
mod t_tsc;

use core::panic::PanicInfo;

/// One record of the test table, the same layout as the `GUEST_TEST` macro of `macros.inc`.
#[repr(C, align(16))]
pub struct Test {
    name: [u8; 64],
    entry: fn(),
    config: u64,
}

impl Test {
    pub const fn new(name: &str, config: u64, entry: fn()) -> Test {
        let bytes = name.as_bytes();
        let mut out = [0; 64];
        let mut i = 0;
        while i < bytes.len() {
            out[i] = bytes[i];
            i += 1;
        }
        Test { name: out, entry, config }
    }
}

/// Declares a test: `test!(function, "group/name", configuration)`.
#[macro_export]
macro_rules! test {
    ($f:ident, $name:expr, $config:expr) => {
        const _: () = {
            #[used]
            #[unsafe(link_section = ".tests")]
            static RECORD: $crate::Test = $crate::Test::new($name, $config, $f);
        };
    };
    ($f:ident, $name:expr) => {
        $crate::test!($f, $name, 0);
    };
}

/// Declares a test in both access forms of the APIC: `both!(function, "group/name_xapic", "group/name_x2apic")`; the function is
/// told whether it is x2APIC.
#[macro_export]
macro_rules! both {
    ($f:ident, $x:literal, $x2:literal) => {
        $crate::both!($f, $x, $x2, 0);
    };
    ($f:ident, $x:literal, $x2:literal, $config:expr) => {
        const _: () = {
            fn xapic() {
                $f(false)
            }
            fn x2apic() {
                $f(true)
            }
            $crate::test!(xapic, $x, $config);
            $crate::test!(x2apic, $x2, $config);
        };
    };
}

#[unsafe(no_mangle)]
extern "C" fn bsp_main(test: extern "C" fn()) -> ! {
    trap::init();
    test();
    report::pass()
}

#[panic_handler]
fn panic(info: &PanicInfo) -> ! {
    let (file, line) = info.location().map_or(("?", 0), |l| (l.file(), l.line()));
    report::log("panic at ");
    report::log(file);
    report::log_num(":", line as u64);
    report::exit(report::FAIL)
}

/// Referenced by the precompiled core library; nothing unwinds here.
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}
