//! Lazy deadlines: a guest that moves its timer later does not write the MSR; the host looks when the earlier deadline comes.
//!
//! Vocabulary: guest and host share two words for each vCPU. *pending*, which only the guest writes: the deadline it wants. *armed*,
//! which only the host writes: the deadline that it has a timer for, 0 if it does not look at *pending*. The host *attends* while
//! its own copy of *armed* is not 0; it never reads the shared one. *offset*, which only the host writes: where it is not 0 what the guest
//! writes to the MSR is in ticks of the host's TSC.
//!
//! ```text
//!                       WRMSR of what stands in pending
//!   not attended, armed = 0 ───────────────────────────▶ attended, armed = deadline ◀─┐ pending is later, and still to come:
//!             ▲                                              │        │               │ that is the deadline now
//!             └── whoever ends it looks at pending once more ┘        └─ armed comes ─┘
//! ```
//!
//! # Rules, and what breaks without them (`tests.rs` shows each with loom)
//! * The guest stores *pending*, then a full barrier, then loads *armed*; 0, or later than what it wants: it writes the MSR.
//! * The host takes 0 into *armed*, then a full barrier, then looks at *pending*. So a deadline that the guest did not write is
//!   seen, or the guest sees 0 and writes. Without one of the barriers both may see the other's past: the deadline is lost.
//! * The host re-arms only after that, never in one step: between its look at *pending* and the store of the new *armed* the guest
//!   may have moved the deadline to before the new one, believing in the old.
//! * Whoever gives the vCPU away (to user space, so perhaps to a host that has never heard of this) ends the attending, and the
//!   deadline in IA32_TSC_DEADLINE is the guest's last.
//! * *offset* is for the guest that looks again behind its write: what it wrote by an *offset* that is gone is wrong for as long. It becomes
//!   another than 0 only by a write of what *pending* holds, in the guest's own ticks: so it is never the same again between two looks.
//! * A write of the MSR that *pending* does not hold is of somebody who does not use this (the kernel behind a kexec): not attended.
#![no_std]
#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)
)]

#[cfg(test)]
extern crate std;

mod guest;
mod host;
#[cfg(test)]
mod tests;

pub use guest::{GuestPage, set, write};
pub use host::{Host, HostPage, Told};
