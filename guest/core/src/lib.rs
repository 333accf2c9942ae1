//! exitless-guest.ko: what it finds in a guest, and each deadline's way. The C part (`guest/c`) owns every kernel structure.
//!
//! ```text
//! module.c ──> find            is this guest on Exitless, and what does it offer?
//!         └──> set, write, wrote   instead of the kernel's function that sets the APIC's timer, on each CPU with interrupts off
//! ```
#![no_std]
#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)
)]

#[cfg(test)]
extern crate std;

mod callbacks;
mod cpu;
mod find;
#[cfg(target_os = "none")]
mod panic;

pub use cpu::Cpu;
pub use find::{Found, find};
