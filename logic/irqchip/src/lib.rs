//! The platform interrupt chips (8259 pair, I/O APIC, 8254) and the GSI routes between them, as pure decisions.
//!
//! Vocabulary: a *GSI* is the number user space raises (KVM_IRQ_LINE, irqfd, the PIT); a *route* maps it to
//! *pins* of chips or to an MSI; a *source* is one of the parties that share a pin by wired-OR; a *message* is what
//! reaches local APICs. A *notifier* is a party told about the guest's end of interrupt (EOI): the PIT and
//! resampling irqfds.
//!
//! ```text
//!  GSI ────── routes ──┬─> Pic (0x20, 0xa0, 0x4d0) ── output level ──> LINT0 of the boot CPU (ExtINT)
//!                      ├─> Ioapic (0xfec00000)     ── InterruptMessage ──> local APICs
//!                      └─> MSI (without a chip)    ── InterruptMessage ──> local APICs
//!  Pit (0x40, 0x61) ── edge on GSI 0
//! ```
//!
//! Every state structure is valid when all-zero and is built in place: zeroed memory, then `init`. Nothing allocates,
//! every loop is bounded by the pins of a chip or by `log2` of the routes, so callers may hold a spinlock with
//! interrupts off. Time always comes in as nanoseconds of one monotonic clock.
#![no_std]
#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)
)]

#[cfg(test)]
extern crate std;

pub mod chips;
pub mod ioapic;
pub mod lines;
pub mod msi;
pub mod pic;
pub mod pit;
pub mod routes;
