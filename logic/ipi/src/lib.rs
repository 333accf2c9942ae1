//! Whom an interrupt message names.
//!
//! # Vocabulary
//! * **address**: what a message's destination is compared with, of one APIC: its ids, its mode, whether it listens ([`Address`]).
//! * **place**: one value that a destination can have: an id, a bit of the flat model, a bit of one cluster.
//! * **map**: for each place the vCPU that stands there ([`Map`]), so that nobody asks all vCPUs.
//!
//! ```text
//!  message ──Map::resolve──▶ at most 16 vCPUs ──Address::names──▶ those that it names
//!                       └──▶ None: several stand at one place, or more than 16 ──▶ every vCPU is asked
//! ```
//! The address is the truth; the map only says whom to ask. So a map that is a moment old names nobody wrongly.
//!
//! # Ordering
//! The map is changed in place and never freed: readers hold nothing, in whatever context they are, and no writer waits for them.
//! * A place is one word that goes from one right value to the next by one store. Whoever does not move is found at any moment,
//!   whatever moves around it. (Emptying a place first, to fill it again, would lose it for a moment.)
//! * A vCPU publishes its address, then changes the map, then goes on. Whoever learns that it has gone on finds it at its new place;
//!   until then it is found at either, or at none, as by a message under way on a bus.
//! * Stores are Release and loads Acquire: who reads an index sees the vCPU that was created before it.
//! * Two vCPUs that move at once take turns ([`Claims`] is behind the VM's lock): each changes the counts of the places that it left or took,
//!   and a place says what its count does.
//!
//! `tests.rs` holds this with loom.
#![no_std]
#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)
)]

#[cfg(test)]
extern crate std;

mod address;
mod few;
mod map;
mod plain;

pub use address::{Address, x2apic_ldr};
pub use few::Few;
pub use map::{Claim, Claims, Map, Slot, Whole};
pub use plain::{PlainIpi, To};

#[cfg(test)]
mod tests;
