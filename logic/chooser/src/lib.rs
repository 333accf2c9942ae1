//! The mechanisms that spare exits: one table, and for each vCPU which of them are active, and why the others are not.
//!
//! Vocabulary: a mechanism is *wanted* if its switch is on (the VM's, which begins as the module's default); it is *active* in a
//! vCPU if it is wanted and no [`Reason`] stands against it there. Switches move at any time; reasons follow from [`Facts`].
//!
//! ```text
//!  module's default ─▶ VM's switches (wanted) ─┐
//!                                              ├─ choose() ─▶ active set of the vCPU, a reason for each other mechanism
//!  facts of VM, vCPU and host ─────────────────┘
//! ```
//! Every mechanism is right whichever value of its switch it sees, at each exit anew: switched off, what comes next goes the way
//! there always is. So nobody needs to see a switch move at the same moment as anything else.
#![no_std]
#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)
)]

#[cfg(test)]
extern crate std;

mod choose;
mod fallback;
mod reason;
mod set;
mod table;

pub use choose::{Facts, active, shown};
pub use fallback::Fallback;
pub use reason::Reason;
pub use set::{NotAMechanism, Set};
pub use table::{COUNT, Mechanism, Row, Scope, TABLE, Who};
