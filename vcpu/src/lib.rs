//! The hall: the run loop of one virtual CPU, its exits and fast paths.
//!
//! Generic over [`backend::Backend`] (the CPU vendor) and [`host::Host`] (the operating system); knows neither.
//!
//! ```text
//! run::run ──> request (interrupts on) ──> entry: choose and inject events
//!     ^                                         │
//!     │                                  slice: interrupts off
//!     │                                  enter ──> fastpath ──> enter ...
//!     └── exits::handle (interrupts on) <───────┘
//! ```
#![no_std]
#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)
)]

#[cfg(test)]
extern crate std;

pub mod apic;
pub mod backend;
pub mod clock;
pub mod control;
pub mod cpuid;
pub mod debug;
pub mod emul;
pub mod entry;
pub mod exits;
pub mod fastpath;
pub mod host;
mod ipi;
pub mod journal;
pub mod mechanisms;
pub mod memory;
pub mod msr;
pub mod outcome;
pub mod pdptes;
pub mod pv;
pub mod request;
pub mod reset;
pub mod run;
pub mod section;
pub mod shared;
pub mod skip;
pub mod stats;
pub mod timer;
pub mod times;
pub mod trace;
pub mod traced;
pub mod vcpu;

pub use exitless_chooser as chooser;
pub use outcome::RunExit;
pub use run::run;
pub use shared::{Request, VcpuShared};
pub use vcpu::Vcpu;
