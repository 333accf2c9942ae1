//! Facts of the x86 architecture that decisions and backends share, each with its manual section.
//!
//! Names are the SDM's and the APM's own words. Nothing here decides anything.
#![no_std]
#![forbid(unsafe_code)]

pub mod apic;
pub mod cpuid;
pub mod exception;
pub mod msr;
pub mod paging;
pub mod regs;
pub mod svm;
pub mod vmx;
