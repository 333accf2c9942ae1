//! The SVM backend: one AMD-V virtual CPU behind the hall's [`Backend`] trait.
//!
//! Twin of `hw/vmx`: same file names, same verbs. What SVM lacks says so where it would stand:
//! there is no preemption timer, and no acknowledge-on-exit (a host interrupt stays pending until interrupts are on).
#![no_std]

mod avic;
pub mod caps;
pub mod enter;
pub mod exit;
pub mod inject;
pub mod msr_bitmap;
pub mod percpu;
pub mod state;
pub mod vcpu;
mod vmcb;

pub use avic::MsrMaps;
pub use caps::Caps;
pub use percpu::PerCpu;
pub use vcpu::{AvicPages, Pages, Svm};

#[cfg(test)]
mod tests;

#[cfg(test)]
extern crate std;
