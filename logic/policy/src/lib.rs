//! The tables of MSRs, CPUID leaves and XSAVE components: who owns what, and which values are valid.
//!
//! Vocabulary: the *supported list* is what this host can offer (KVM_GET_SUPPORTED_CPUID); the *guest's CPUID* is what
//! the VMM chose of it (KVM_SET_CPUID2); [`GuestCaps`] is the guest's CPUID condensed to the questions the run loop
//! asks, never more than the host can do. Everything here is a pure function of its arguments.
#![no_std]
#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)
)]

#[cfg(test)]
extern crate std;

mod caps;
pub mod control;
pub mod cpuid;
mod immunity;
pub mod mce;
pub mod msr;
pub mod mtrr;
pub mod nested;
pub mod pmu;
pub mod xsave;

pub use caps::{GuestCaps, Vendor};
pub use immunity::{arch_capabilities, hide_unused_controls};

/// The access or the value is not allowed: #GP(0) to a guest; to the VMM -EINVAL or a short count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Invalid;

/// Who reads or writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// An instruction of the guest: the guest's CPUID decides what exists.
    Guest,
    /// The VMM, restoring state: what the guest's CPUID hides may still be read and written.
    Host,
}

/// A linear address that sign-extends from bit 47, or from bit 56 where addresses have 57 bits.
pub fn canonical(address: u64, la57: bool) -> bool {
    sign_extended(address, la57) == address
}

/// The canonical address with the same lower bits.
fn sign_extended(address: u64, la57: bool) -> u64 {
    let unused = if la57 { 7 } else { 16 };
    ((address << unused) as i64 >> unused) as u64
}
