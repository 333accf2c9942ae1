//! CPUID: what this host can offer (`supported`, by the table in `features`) and what a guest sees (`guest`).

mod emulated;
mod features;
mod guest;
mod supported;

pub use emulated::emulated;
pub use guest::{CpuidIndex, Dynamic, GuestCpuid, MAX_ENTRIES};
pub use supported::{Full, MAX_SUPPORTED, supported};

use exitless_x86::cpuid::CpuidResult;

/// The host's processor, as the filter sees it.
pub trait HostCpuid {
    /// The CPUID instruction on any host CPU.
    fn cpuid(&self, leaf: u32, sub: u32) -> CpuidResult;
    /// State components the host kernel lets its tasks use (its XCR0).
    fn xcr0(&self) -> u64;
    /// Bits of guest-physical addresses that the second-level tables translate.
    fn gpa_bits(&self) -> u32;
}
