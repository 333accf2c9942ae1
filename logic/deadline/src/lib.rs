//! The APIC timer's deadline: where it is watched, who has it at a moment, how early to look at it.
#![no_std]
#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)
)]

#[cfg(test)]
extern crate std;

mod advance;
mod home;
mod owner;
pub mod passthrough;
mod queue;
#[cfg(test)]
mod tests;

pub use advance::Advance;
pub use home::{Facts, Place, place};
pub use owner::{Due, Found, Home, Owner};
pub use queue::Queue;
