//! The protocol on a posted-interrupt descriptor: who may post, take, suppress, block and move, in which order.
//!
//! Vocabulary (SDM vol. 3C, 30.6): *PIR* one request bit per vector; *ON* something was posted since the last take;
//! *SN* hardware must not notify; *NV*, *NDST* which vector on which CPU notifies. ON, SN, NV and NDST share one 64-bit
//! word and are read and written as one.
//!
//! ```text
//!              load(cpu)                    wait, block(cpu)
//!    ┌─────┐ ─────────────▶ ┌─────────┐ ─────────────────▶ ┌─────────┐
//!    │ Out │                │ Running │                    │ Blocked │
//!    │ SN  │ ◀───────────── │ NV=post │ ◀───────────────── │ NV=wake │
//!    └─────┘     put        └─────────┘     load(cpu)      └─────────┘
//!       └──────────────────── block(cpu) ──────────────────────▲
//! ```
//! Whose CPU goes away while it is blocked is woken, loads where it comes to, and waits there.
//!
//! Only the vCPU's own thread loads, puts, blocks and takes. Anyone posts, at any time: other vCPUs, devices through
//! interrupt remapping, the CPU's own IPI virtualisation.
//!
//! # Rules, and what breaks without them (`tests.rs` shows each with loom)
//! * A sender sets the PIR bit, then ON, and takes NV and NDST from the very read-modify-write that set ON. From two
//!   reads they could be the wake-up vector and the CPU of before: the wake-up goes to a list that the vCPU is not on.
//! * The owner clears ON before it takes the PIR. The other way round a post in between finds ON set, sends nothing,
//!   and ON is gone.
//! * NV, NDST and SN change by compare-and-exchange that keeps ON: a plain store forgets a post.
//! * Who blocks does not sleep if ON was set before its exchange: that sender has notified the old CPU.
//! * While SN is set hardware sets the PIR bit only, *not* ON. So "something pending" is ON or any PIR bit
//!   ([`Descriptor::has_pending`]), and who clears SN looks at the PIR afterwards.
//! * Between a change of the control word and the look at the PIR stands a full barrier, because hardware senders set
//!   the PIR bit and then *read* the control word ([`Barrier`]).
//! * A guest that sees the descriptor sends as software does, but takes NV and NDST from one load behind the exchange that set ON.
//!   It may also write anything: so nothing here loops until it stops, and NV and NDST are for the CPU and for guests. What the host sends
//!   itself goes where its own records say.
//! * A guest may stop between the request and ON, or between ON and its notification. Where it sees the descriptor the host's senders take
//!   neither for told ([`Posted::owes`]).
#![no_std]
#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)
)]

#[cfg(test)]
extern crate std;

mod descriptor;
mod memory;
mod pointer;

pub use descriptor::{Block, Descriptor, Flag, Place, Posted};
pub use memory::{Barrier, Memory, Native, Word};
pub use pointer::PidPointer;

#[cfg(test)]
mod tests;
