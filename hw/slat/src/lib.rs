//! Second-level page tables: walk, map, zap, age, write-protect; NPT and EPT formats.
//!
//! Vocabulary: a *table* is a page of 512 entries. A *leaf* is an entry that maps memory, at [`Level`] 4K, 2M or 1G.
//! Other present entries link to the table one level below. *Zap* removes leaves; *drop* is what happens to one leaf.
//!
//! Who touches a table at the same time:
//! - writers: one at a time, under the VM's mmu lock (hence `&mut self`);
//! - hardware: walks at any time and sets accessed and dirty bits with locked read-modify-write cycles. So entries are
//!   atomics, and a leaf goes away by an atomic swap: whatever bits hardware set until then are in the swapped value.
//!
//! ```text
//!   top up the frame cache          (may sleep, no lock)
//!   lock ─▶ map / zap / protect ─▶ flush TLBs if told so ─▶ unlock or not ─▶ free the FreeList's pages
//!                                        └── before this, hardware may still read unlinked tables
//! ```
//!
//! Tables are found through [`Frames`], which the operating system side implements; this crate holds no pointer and has
//! no unsafe code. Operations over ranges take a budget and say where to continue, so that the caller can let go of
//! its lock in between.
#![no_std]
#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)
)]

#[cfg(test)]
extern crate std;

pub mod ept;
pub mod format;
pub mod frames;
pub mod level;
mod map;
pub mod npt;
mod sweep;
pub mod tables;
mod zap;

pub use ept::Ept;
pub use format::{Format, Grant, MemType, Perm};
pub use frames::{Entries, Frames, FreeList, TableAddr, TablePage};
pub use level::{Backing, Level, max_level};
pub use map::{MapError, Mapped, Mapping};
pub use npt::Npt;
pub use sweep::{Aged, Swept};
pub use tables::{Counts, Dropped, Leaf, Slat, TABLES_PER_MAP, gpa_bits};

#[cfg(test)]
mod tests;
