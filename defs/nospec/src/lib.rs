//! Spectre v1 (CVE-2017-5753): an index that a guest or a user process chooses, behind its bounds check.
//!
//! A CPU that mispredicts the check goes on with the index as it is, loads from beyond the table, and what it loads can be seen by a
//! side channel if a second load depends on it. Rust's own checks are branches, so they do not help. Here the index also goes through
//! arithmetic that the CPU does not predict: beyond the end it is 0, whatever the branch was thought to be.
//!
//! Needed where a number from outside selects an element of host memory. Not needed where the number is cut by a mask or comes from a
//! search, nor where memory of users is read by the kernel's accessors, which do the same to the address.
#![no_std]

use core::arch::asm;

/// `index` if it is below `len`, else 0, without a branch: two instructions (CMP, SBB) and an AND.
#[inline(always)]
pub fn below(index: usize, len: usize) -> usize {
    let mask: usize;
    // SAFETY: reads and writes registers alone. Not `pure`: each use has a mask of its own, computed where it stands. SBB of a register with itself is 0 or -1 by the carry that CMP leaves, whatever the
    // register held.
    unsafe {
        asm!("cmp {index}, {len}", "sbb {mask}, {mask}", index = in(reg) index, len = in(reg) len, mask = out(reg) mask,
            options(nomem, nostack));
    }
    index & mask
}

/// Slices by an index from outside.
pub trait Guarded<T> {
    /// As `get`, and no element beyond the end is read on the way of a mispredicted check.
    fn guarded(&self, index: usize) -> Option<&T>;
    /// As `get_mut`, likewise.
    fn guarded_mut(&mut self, index: usize) -> Option<&mut T>;
}

impl<T> Guarded<T> for [T] {
    #[inline(always)]
    fn guarded(&self, index: usize) -> Option<&T> {
        if index < self.len() { self.get(below(index, self.len())) } else { None }
    }

    #[inline(always)]
    fn guarded_mut(&mut self, index: usize) -> Option<&mut T> {
        if index < self.len() { self.get_mut(below(index, self.len())) } else { None }
    }
}

#[cfg(test)]
mod tests {
    use super::{Guarded, below};

    #[test]
    fn below_is_the_index_or_zero() {
        const EDGES: [usize; 9] = [0, 1, 2, 7, 8, 9, isize::MAX as usize, 1 << 63, usize::MAX];
        for index in EDGES {
            for len in EDGES {
                assert_eq!(below(index, len), if index < len { index } else { 0 }, "{index} of {len}");
            }
        }
    }

    #[test]
    fn guarded_is_get() {
        let mut table = [10, 11, 12];
        for index in [0, 1, 2, 3, 4, usize::MAX] {
            assert_eq!(table.guarded(index), table.get(index));
            assert_eq!(table.guarded_mut(index).copied(), table.get(index).copied());
        }
        assert_eq!([0u8; 0].guarded(0), None);
    }
}
