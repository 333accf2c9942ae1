//! A small VMM for micro guests, and the plain view of the /dev/kvm API that the lab's test programs share.
//!
//! `kvm` is the API as system calls, `elf` the guests' image, `machine` one small VM and its vCPU threads, `devices`
//! what lies behind ports and MMIO, `service` what a guest may ask for, `moves` its way into another VM, `harness` isolation and reports.

pub mod devices;
pub mod elf;
pub mod harness;
pub mod kvm;
pub mod machine;
mod moves;
mod service;
pub mod switches;

/// The configuration word, memory map and services, shared with the guests by inclusion.
#[allow(missing_docs)]
#[path = "../../guests/src/config.rs"]
pub mod config;
