//! The local APIC between its registers (`exitless_lapic`) and the CPU.

pub mod avic;
pub mod choose;
pub mod eoi;
pub mod ipiv;
pub mod page;
pub mod raw;
pub mod vapic;
pub mod work;
