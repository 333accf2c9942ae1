//! Asynchronous page faults: the host brings a page that takes time while the guest does something else.
//!
//! # Vocabulary
//! * **slow** page: the host has to wait for it: for a disk, or for user space (userfaultfd).
//! * **worker**: a thread of the host's that waits for one page in the vCPU's place. It says with one bit that it has ended.
//! * **told**: the guest has heard that the page is not there (#PF, whose CR2 is the page's *token*), and will hear when it is, by
//!   interrupt. Otherwise the vCPU *waits*: it halts, as far as interrupts go, until the page is there.
//!
//! ```text
//!           begin                       the worker's bit
//!   free ─────────▶ brought, not told ──────────────────────────────────────────────▶ free
//!                      │ tell      ▲ forget: reset, switched off, another VM
//!                      ▼           │
//!                   brought, told ─┴─ the worker's bit, and the guest's token word is free ──▶ free, the token is told
//! ```
//! A place stays taken as long as its worker lives, whatever the guest does meanwhile: no guest has more workers than [`MOST`], and no bit
//! is taken for another page's.
#![no_std]
#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)
)]

#[cfg(test)]
extern crate std;

mod pages;
mod pot;
mod wish;

pub use pages::{Ended, MOST, Pages, WAKE_ALL};
pub use pot::Pot;
pub use wish::{Guest, Wish};

#[cfg(test)]
mod tests;
