//! exitless.ko: where hardware, decisions and Linux meet. Wiring, no decisions.
//!
//! ```text
//! module.c ──> callbacks ──> dev (KVM_* on /dev/kvm)   vm (a VM's fd)   vcpu (a vCPU's fd) ──> exitless_vcpu::run
//! ```
#![no_std]
#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)
)]

pub mod callbacks;
pub mod control;
pub mod dev;
pub mod global;
pub mod publish;
pub mod runpage;
pub mod stats;
pub mod statsfd;
pub mod user;
pub mod vcpu;
pub mod vendor;
pub mod vm;
