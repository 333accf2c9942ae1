//! Builds the micro guests: assembly through gcc, Rust through the compiler that builds this crate.
//!
//! The guests are compiled for the host's own target with the precompiled `core`, without a red zone and at fixed
//! addresses, so that neither another target nor the standard library's source has to be installed.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

fn run(command: &mut Command) {
    let status = command.status().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(status.success(), "{command:?} failed");
}

fn main() {
    let guests = Path::new("../guests").canonicalize().expect("lab/guests beside lab/runner");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("OUT_DIR"));
    let src = guests.join("src");
    println!("cargo:rerun-if-changed={}", src.display());
    println!("cargo:rerun-if-changed={}", guests.join("link.ld").display());

    let mut rustc = Command::new(env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
    rustc.args(["--edition", "2024", "--crate-type", "bin", "--crate-name", "guests"]);
    rustc.args(["--target", "x86_64-unknown-linux-gnu", "--cap-lints", "warn"]);
    for option in [
        "panic=abort",
        "opt-level=2",
        "codegen-units=1",
        "relocation-model=static",
        "no-redzone=yes",
        "force-unwind-tables=no",
        "linker-features=-lld",
        "link-args=-nostdlib -nostartfiles -static -no-pie -Wl,--build-id=none -Wl,-z,max-page-size=4096",
    ] {
        rustc.args(["-C", option]);
    }
    rustc.arg(format!("-Clink-arg=-Wl,-T,{}", guests.join("link.ld").display()));

    let mut sources: Vec<PathBuf> = std::fs::read_dir(&src)
        .expect("guest sources")
        .map(|e| e.expect("directory entry").path())
        .filter(|p| p.extension().is_some_and(|e| e == "S"))
        .collect();
    sources.sort();
    for source in sources {
        println!("cargo:rerun-if-changed={}", source.display());
        let object = out.join(source.file_stem().expect("file name")).with_extension("o");
        run(Command::new("gcc").arg("-c").arg("-I").arg(&src).arg(&source).arg("-o").arg(&object));
        rustc.arg(format!("-Clink-arg={}", object.display()));
    }
    // Flags meant for the runner itself (static linking, say) must not reach the guests.
    rustc.env_remove("RUSTFLAGS").env_remove("CARGO_ENCODED_RUSTFLAGS");
    run(rustc.arg(src.join("main.rs")).arg("-o").arg(out.join("guests.elf")));
}
