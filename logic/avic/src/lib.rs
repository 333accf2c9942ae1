//! AVIC (APM vol. 2, 15.29): interrupts that AMD's CPUs deliver, and IPIs that they send, without an exit.
//!
//! Vocabulary: the *backing page* has a vCPU's APIC registers; the *physical table* tells for each APIC id of a VM where its backing
//! page is, and where to ring; the *doorbell* has a CPU in guest mode look at its backing page again. A CPU that is not in guest
//! mode ignores it: VMRUN looks anyway.
//!
//! ```text
//!  sender, in hardware (ICR)                      the target's thread
//!  entry valid? ── no ──▶ exit                    Out ──run(cpu)──▶ Running ──VMRUN: IRR?, or doorbell: IRR?──▶ ...
//!  IRR bit of its backing page                     ▲                   │
//!  IsRunning? ── yes ──▶ doorbell there            └─────── stop ──────┘ ──▶ IRR? before it sleeps
//!         └──── no ───▶ exit: software tells it
//! ```
//! The IRR is in the backing page whoever has the other registers: hardware senders know no other place. So it is the mailbox, as
//! the posted-interrupt descriptor is on other CPUs, and software senders post there too.
//!
//! # Rules, and what breaks without them (`tests.rs` shows each with loom)
//! * Only the vCPU's thread writes its entry, in one piece: from two stores a sender may see IsRunning with the CPU of before, and ring
//!   where nobody is.
//! * Between the store that clears IsRunning and the look at the IRR stands a full barrier: the sender sets the bit, then reads
//!   IsRunning.
//! * A CPU that may take a just cleared IsRunning for set (erratum 1235) never gets to see it set.
//! * Who rings in software asks once more, after it has seen the target in the guest, whether that runs with AVIC: without, a CPU
//!   ignores the doorbell.
//! * Who exits because a target is not running tells it as any software sender does: request, then wake-up or kick.
//!
//! Nobody has run this on hardware, and no emulator at hand has AVIC.
#![no_std]
#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)
)]

#[cfg(test)]
extern crate std;

mod entry;
mod exits;
mod offer;

pub use entry::{Entry, Memory, Native, Word};
pub use exits::{Access, Owed, incomplete, unaccelerated};
pub use offer::{Absent, Inhibit, State, inhibit, offer};

#[cfg(test)]
mod tests;
