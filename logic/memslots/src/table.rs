//! The published table of slots and its lookups: by guest frame, by guest address, by host range.

use bytemuck::{Pod, Zeroable};
use exitless_kvm_abi::{KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY};
use exitless_nospec::below;

use crate::{PAGE_SHIFT, PAGE_SIZE};

/// The flags of a slot: KVM_MEM_LOG_DIRTY_PAGES and KVM_MEM_READONLY, same bits as in the ioctl.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct SlotFlags(pub u32);

impl SlotFlags {
    /// KVM_MEM_LOG_DIRTY_PAGES: writes are recorded in the slot's dirty bitmap.
    pub const LOG_DIRTY: Self = Self(KVM_MEM_LOG_DIRTY_PAGES);
    /// KVM_MEM_READONLY: guest writes leave to user space as MMIO.
    pub const READONLY: Self = Self(KVM_MEM_READONLY);
    /// All bits that the ioctl accepts.
    pub const ALL: Self = Self(Self::LOG_DIRTY.0 | Self::READONLY.0);

    /// Whether every bit of `other` is set.
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

/// One memory slot. Plain data so that a table can live in zeroed kernel memory.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Slot {
    /// First guest frame.
    pub base_gfn: u64,
    /// Number of 4 KiB frames, 1..=2^31-1.
    pub npages: u64,
    /// Host virtual address of the first frame, page aligned.
    pub hva: u64,
    /// Opaque handle of the dirty bitmap, chosen by the caller; 0 means none. Non-zero only with LOG_DIRTY.
    pub dirty: u64,
    /// The ioctl's slot number, below [`crate::Limits::max_slots`].
    pub id: u32,
    /// LOG_DIRTY and READONLY.
    pub flags: SlotFlags,
}

impl Slot {
    /// The guest frames of the slot.
    pub const fn gfns(&self) -> GfnRange {
        GfnRange { start: self.base_gfn, end: self.base_gfn.saturating_add(self.npages) }
    }

    /// Whether `gfn` belongs to the slot.
    pub const fn contains(&self, gfn: u64) -> bool {
        gfn.wrapping_sub(self.base_gfn) < self.npages
    }

    /// Host virtual address of frame `gfn`, or `None` outside of the slot.
    pub fn hva_of(&self, gfn: u64) -> Option<u64> {
        let offset = gfn.wrapping_sub(self.base_gfn);
        // The guest chooses the frame.
        let guarded = below(offset as usize, self.npages as usize) as u64;
        (offset < self.npages).then(|| self.hva.wrapping_add(guarded << PAGE_SHIFT))
    }

    /// Whether the guest may write: not READONLY.
    pub const fn writable(&self) -> bool {
        !self.flags.has(SlotFlags::READONLY)
    }

    /// Whether writes are logged.
    pub const fn logs_dirty(&self) -> bool {
        self.flags.has(SlotFlags::LOG_DIRTY)
    }
}

/// Guest frames `start..end`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GfnRange {
    /// First frame.
    pub start: u64,
    /// One past the last frame.
    pub end: u64,
}

impl GfnRange {
    /// Whether the two ranges share a frame.
    pub const fn overlaps(&self, other: &Self) -> bool {
        self.start < other.end && other.start < self.end
    }
}

/// Where a guest physical address lives in the VMM's address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HvaSpan {
    /// Host virtual address of the byte.
    pub hva: u64,
    /// Bytes from there to the end of the slot, at least 1. The backing is contiguous for all of them.
    pub left: u64,
    /// False for READONLY slots.
    pub writable: bool,
}

/// All slots of a VM, sorted by `base_gfn`. Immutable: readers hold it under the caller's SRCU section.
#[derive(Clone, Copy, Debug)]
pub struct Table<'a> {
    slots: &'a [Slot],
}

impl<'a> Table<'a> {
    /// A table over `slots`, which must be sorted by `base_gfn` and free of overlap, as [`crate::apply`] leaves them.
    /// An unsorted slice makes lookups miss slots; it cannot make them return a wrong one.
    pub const fn new(slots: &'a [Slot]) -> Self {
        Self { slots }
    }

    /// The slots in order.
    pub const fn slots(&self) -> &'a [Slot] {
        self.slots
    }

    /// The slot that holds `gfn`. O(log n).
    pub fn find(&self, gfn: u64) -> Option<&'a Slot> {
        let after = self.slots.partition_point(|s| s.base_gfn <= gfn);
        self.slots.get(after.checked_sub(1)?).filter(|s| s.contains(gfn))
    }

    /// The slot with number `id`. O(n): for ioctls, not for exits.
    pub fn find_id(&self, id: u32) -> Option<&'a Slot> {
        self.slots.iter().find(|s| s.id == id)
    }

    /// Host address of guest physical address `gpa`.
    pub fn hva(&self, gpa: u64) -> Option<HvaSpan> {
        span(self.find(gpa >> PAGE_SHIFT)?, gpa)
    }

    /// Every part of every slot that is backed by a page of the host range `start..end` (bytes; partial pages count
    /// as whole). One host page may appear in several slots. For mmu notifiers. O(n).
    pub fn find_hva_range(&self, start: u64, end: u64) -> HvaRanges<'a> {
        HvaRanges { slots: self.slots.iter(), start, end }
    }

    /// The sorted, non-overlapping, non-empty invariant. For assertions and tests. O(n).
    pub fn is_well_formed(&self) -> bool {
        self.slots.iter().all(|s| s.npages != 0)
            && self.slots.iter().zip(self.slots.iter().skip(1)).all(|(a, b)| a.gfns().end <= b.base_gfn)
    }
}

fn span(slot: &Slot, gpa: u64) -> Option<HvaSpan> {
    let gfn = gpa >> PAGE_SHIFT;
    let in_page = gpa & (PAGE_SIZE - 1);
    let hva = slot.hva_of(gfn)? + in_page;
    let left = ((slot.gfns().end - gfn) << PAGE_SHIFT) - in_page;
    Some(HvaSpan { hva, left, writable: slot.writable() })
}

/// Iterator of [`Table::find_hva_range`].
#[derive(Clone, Debug)]
pub struct HvaRanges<'a> {
    slots: core::slice::Iter<'a, Slot>,
    start: u64,
    end: u64,
}

impl<'a> Iterator for HvaRanges<'a> {
    type Item = (&'a Slot, GfnRange);

    fn next(&mut self) -> Option<Self::Item> {
        let (start, end) = (self.start, self.end);
        self.slots.find_map(|slot| {
            let slot_end = slot.hva.saturating_add(slot.npages << PAGE_SHIFT);
            let (from, to) = (start.max(slot.hva), end.min(slot_end));
            if from >= to {
                return None;
            }
            let first = (from - slot.hva) >> PAGE_SHIFT;
            // `to` is above `from`, so the last byte exists.
            let last = (to - 1 - slot.hva) >> PAGE_SHIFT;
            Some((slot, GfnRange { start: slot.base_gfn + first, end: slot.base_gfn + last + 1 }))
        })
    }
}
