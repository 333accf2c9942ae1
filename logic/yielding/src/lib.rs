//! Which vCPU of its VM a spinning one lets run.
//!
//! # Vocabulary
//! * **ready**: its thread could run and has no CPU: the scheduler took it away ([`Hints::left`]), or somebody woke it ([`Hints::woken`]).
//! * **spinner**: who asks. It waits for another vCPU: for one that holds a lock, or for the answer to an IPI.
//! * **window**: the vCPUs that one look asks, at most [`WINDOW`] from the [`Rotation`]'s place on, and the last receiver.
//! * **rank**: how likely it is that the spinner waits for this one ([`Rank`]).
//!
//! ```text
//!  each vCPU: Hints ──look──▶ Seen ──rank──▶ the best few of the window ──▶ the spinner tries them in this order
//! ```
//! # Fairness
//! Every fourth look forgets ranks: the first ready one of the window, and the window begins behind whom that look tried. A window in
//! which nobody is ready is left behind by any look. So whoever stays ready is tried, however many of a better rank there are.
//!
//! All that is published here is a hint, a moment old when it is read: a wrong one costs a yield that fails.
#![no_std]
#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)
)]

#[cfg(test)]
extern crate std;

mod hints;
mod turn;

pub use hints::Hints;
pub use turn::{Few, Rank, Rotation, Seen, WINDOW};

#[cfg(test)]
mod tests;
