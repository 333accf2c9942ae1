//! Memory slots: the rules of KVM_SET_USER_MEMORY_REGION, lookup and dirty log.
//!
//! Vocabulary: a *gfn* is a guest frame number (guest physical address >> 12), an *hva* a host virtual address
//! in the VMM's address space. A *slot* says that `npages` frames from `base_gfn` are backed by the hvas from
//! `hva`. A *table* is all slots of a VM, sorted by `base_gfn`, without overlap, never changed once published.
//!
//! ```text
//!  ioctl ─▶ plan(current, region) ─▶ Change ─▶ apply(current, change, new memory) ─▶ publish the new table
//!                 │ Refusal                      (the caller waits for readers of the old one, then zaps and frees)
//!                 ▼
//!               errno
//! ```
//!
//! The caller owns all memory: tables, dirty bitmaps and the order of publishing. Nothing here allocates.
#![no_std]
#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)
)]

#[cfg(test)]
extern crate std;

pub mod change;
pub mod dirty;
pub mod table;

pub use change::{Change, Limits, MAX_SLOTS, Refusal, Region, apply, plan};
pub use dirty::{ClearRequest, DirtyBitmap};
pub use table::{GfnRange, HvaRanges, HvaSpan, Slot, SlotFlags, Table};

/// Bits of a byte offset inside a 4 KiB page.
pub const PAGE_SHIFT: u32 = 12;
/// Bytes of a page.
pub const PAGE_SIZE: u64 = 1 << PAGE_SHIFT;

#[cfg(test)]
mod tests;
