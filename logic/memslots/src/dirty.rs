//! The dirty log of one slot: bits set by writers, harvested by KVM_GET_DIRTY_LOG and KVM_CLEAR_DIRTY_LOG.
//!
//! ```text
//!  guest write fault ─▶ make the frame writable ─▶ mark(bit)
//!  GET   (auto)   take(word) = swap 0 ─▶ write-protect these frames ─▶ flush TLB ─▶ copy to user
//!  GET   (manual) peek(word)                                                       ─▶ copy to user
//!  CLEAR (manual) clear(word, user's mask) ─▶ write-protect what was set ─▶ flush TLB
//! ```
//!
//! A bit is taken before its frame is write-protected and the flush comes last: a guest write in between is lost to
//! the log but its data is in the page before the ioctl returns, so user space copies it anyway.

use core::sync::atomic::{AtomicU64, Ordering};
use exitless_nospec::Guarded;

/// The bitmap of one slot. Bit `n` stands for frame `base_gfn + n`.
#[derive(Clone, Copy, Debug)]
pub struct DirtyBitmap<'a> {
    words: &'a [AtomicU64],
    npages: u64,
}

/// A checked KVM_CLEAR_DIRTY_LOG: words `first_word .. first_word + words`; `last_mask` limits the last one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClearRequest {
    /// First word of the bitmap that is concerned.
    pub first_word: u64,
    /// Words to read from user space.
    pub words: u64,
    /// Bits of the last word that lie inside the request.
    pub last_mask: u64,
}

impl ClearRequest {
    /// The rules of KVM_CLEAR_DIRTY_LOG: `first_page` is a multiple of 64, `num_pages` too unless it reaches the end of
    /// the slot, and both lie inside of it. `None` means EINVAL.
    pub fn check(first_page: u64, num_pages: u64, slot_pages: u64) -> Option<Self> {
        let room = slot_pages.checked_sub(first_page)?;
        let tail = num_pages % 64;
        if !first_page.is_multiple_of(64) || num_pages > room || (num_pages < room && tail != 0) {
            return None;
        }
        let last_mask = if tail == 0 { u64::MAX } else { (1 << tail) - 1 };
        Some(Self { first_word: first_page / 64, words: num_pages.div_ceil(64), last_mask })
    }

    /// The bits of `word` (an index into the slot's bitmap) that the request may clear.
    pub const fn mask(&self, word: u64) -> u64 {
        let offset = word.wrapping_sub(self.first_word);
        if offset >= self.words {
            0
        } else if offset + 1 == self.words {
            self.last_mask
        } else {
            u64::MAX
        }
    }
}

impl<'a> DirtyBitmap<'a> {
    /// Words that a bitmap for `npages` needs. Eight times that is also the size that GET_DIRTY_LOG copies.
    pub const fn words_for(npages: u64) -> u64 {
        npages.div_ceil(64)
    }

    /// A view of `words`, which should hold [`DirtyBitmap::words_for`]`(npages)` of them; missing words read as 0.
    pub const fn new(words: &'a [AtomicU64], npages: u64) -> Self {
        Self { words, npages }
    }

    /// Records a write to page `page` of the slot (`gfn - base_gfn`). Returns whether the bit is new. A page outside of
    /// the slot is ignored. Costs one load when the bit is set already.
    pub fn mark(&self, page: u64) -> bool {
        if page >= self.npages {
            return false;
        }
        let bit = 1 << (page % 64);
        let Some(word) = self.word(page / 64) else { return false };
        word.load(Ordering::Relaxed) & bit == 0 && word.fetch_or(bit, Ordering::AcqRel) & bit == 0
    }

    /// Word `index` as it is.
    pub fn peek(&self, index: u64) -> u64 {
        self.word(index).map_or(0, |w| w.load(Ordering::Acquire))
    }

    /// Word `index`, which becomes 0. The caller write-protects the frames of the returned bits.
    pub fn take(&self, index: u64) -> u64 {
        match self.word(index) {
            // A plain load first: most words of a log are 0 and stay in shared cache lines.
            Some(w) if w.load(Ordering::Relaxed) != 0 => w.swap(0, Ordering::AcqRel),
            _ => 0,
        }
    }

    /// Clears the bits of `mask` in word `index`. Returns those that were set: the frames to write-protect.
    pub fn clear(&self, index: u64, mask: u64) -> u64 {
        match self.word(index) {
            Some(w) if mask != 0 => w.fetch_and(!mask, Ordering::AcqRel) & mask,
            _ => 0,
        }
    }

    fn word(&self, index: u64) -> Option<&'a AtomicU64> {
        self.words.guarded(usize::try_from(index).ok()?)
    }
}
