//! KVM_SET_USER_MEMORY_REGION as a decision: what a region asks of the current table, or why it is refused.
//!
//! | slot exists | size | difference                       | answer            |
//! |-------------|------|----------------------------------|-------------------|
//! | no          | 0    |                                  | EINVAL            |
//! | no          | > 0  |                                  | Create            |
//! | yes         | 0    |                                  | Delete            |
//! | yes         | > 0  | size, hva or READONLY            | EINVAL            |
//! | yes         | > 0  | base_gfn (and maybe LOG_DIRTY)   | Move              |
//! | yes         | > 0  | LOG_DIRTY only                   | Flags             |
//! | yes         | > 0  | none                             | Nothing           |
//!
//! Create and Move are refused with EEXIST when they overlap another slot in guest physical space. Host ranges may
//! overlap freely: one host range behind two guest ranges is how VMMs alias their ROMs.

use exitless_kvm_abi::kvm_userspace_memory_region;

use crate::table::{GfnRange, Slot, SlotFlags};
use crate::{PAGE_SHIFT, PAGE_SIZE};

/// Slots that a VM may have, the value of KVM_CAP_NR_MEMSLOTS. Stock KVM offers 32764; VMMs fall back to 32 and the
/// biggest boot observed used 9. A change costs O(n), so the number stays small: 509, KVM's own number before 5.17.
pub const MAX_SLOTS: u32 = 509;

/// Most pages of one slot (KVM_MEM_MAX_NR_PAGES): dirty-log arithmetic of VMMs is 31 bit.
pub const MAX_SLOT_PAGES: u64 = (1 << 31) - 1;

const EINVAL: i32 = 22;
const EEXIST: i32 = 17;

/// `struct kvm_userspace_memory_region` as user space passed it: nothing is checked yet. Bits 31:16 of `slot` are an
/// address space, of which only 0 exists here (no SMM). Whether `userspace_addr` is a user address at all is the
/// caller's check (access_ok).
pub type Region = kvm_userspace_memory_region;

/// What the VM allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Slot numbers are below this.
    pub max_slots: u32,
    /// Guest physical address width in bits (MAXPHYADDR of the second level), 32..=52.
    pub phys_bits: u32,
}

impl Limits {
    /// `width`: bits of the CPU's physical addresses. `held`: bits that the second-level tables translate; with four levels
    /// that is less than the widest CPUs can address.
    pub const fn new(max_slots: u32, width: u32, held: u32) -> Self {
        Self { max_slots, phys_bits: if width < held { width } else { held } }
    }
}

/// Why a region is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Bits 31:16 of the slot field: only address space 0 exists.
    AddressSpace,
    /// The slot number is not below the limit.
    SlotNumber,
    /// A flag other than LOG_DIRTY and READONLY.
    UnknownFlag,
    /// Guest address, host address or size is not page aligned.
    Misaligned,
    /// More than [`MAX_SLOT_PAGES`] pages.
    TooManyPages,
    /// Guest range wraps, ends beyond MAXPHYADDR or beyond what the tables hold, or the host range wraps.
    OutOfRange,
    /// Deleting a slot that is not there.
    Missing,
    /// An existing slot cannot change its size.
    SizeChanged,
    /// An existing slot cannot change its host address.
    HvaChanged,
    /// An existing slot cannot become or stop being READONLY.
    ReadOnlyChanged,
    /// Guest frames belong to another slot already.
    Overlap,
}

impl Refusal {
    /// The errno (positive) of the ioctl: EEXIST for overlap, EINVAL for the rest.
    pub const fn errno(self) -> i32 {
        match self {
            Self::Overlap => EEXIST,
            _ => EINVAL,
        }
    }
}

/// What one ioctl call changes. `index` is the position of the old slot in the current table.
///
/// A new slot inherits the dirty bitmap handle of the old one when both log. When [`Change::needs_bitmap`] says so,
/// the caller puts a fresh handle into [`Change::new_slot_mut`] before [`apply`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// The region equals the slot.
    Nothing,
    /// A new slot.
    Create(Slot),
    /// The slot goes away.
    Delete {
        /// Where it is.
        index: usize,
    },
    /// The slot gets another `base_gfn`, and maybe another LOG_DIRTY.
    Move {
        /// Where the old one is.
        index: usize,
        /// The slot as it shall be.
        new: Slot,
    },
    /// Only LOG_DIRTY changes.
    Flags {
        /// Where the old one is.
        index: usize,
        /// The slot as it shall be.
        new: Slot,
    },
}

impl Change {
    /// The slot as it shall be, for Create, Move and Flags.
    pub const fn new_slot(&self) -> Option<&Slot> {
        match self {
            Self::Create(new) | Self::Move { new, .. } | Self::Flags { new, .. } => Some(new),
            Self::Nothing | Self::Delete { .. } => None,
        }
    }

    /// The same, to put a dirty bitmap handle in.
    pub const fn new_slot_mut(&mut self) -> Option<&mut Slot> {
        match self {
            Self::Create(new) | Self::Move { new, .. } | Self::Flags { new, .. } => Some(new),
            Self::Nothing | Self::Delete { .. } => None,
        }
    }

    /// Position of the old slot.
    pub const fn old_index(&self) -> Option<usize> {
        match self {
            Self::Delete { index } | Self::Move { index, .. } | Self::Flags { index, .. } => Some(*index),
            Self::Nothing | Self::Create(_) => None,
        }
    }

    /// Pages that a fresh dirty bitmap must cover, if the new slot logs and has no bitmap yet.
    pub fn needs_bitmap(&self) -> Option<u64> {
        self.new_slot().filter(|s| s.logs_dirty() && s.dirty == 0).map(|s| s.npages)
    }

    /// Handle of a bitmap that no table refers to once the new one is published: free it after the readers left.
    pub fn drops_bitmap(&self, current: &[Slot]) -> Option<u64> {
        let old = current.get(self.old_index()?)?;
        let kept = self.new_slot().map_or(0, |s| s.dirty);
        (old.dirty != 0 && old.dirty != kept).then_some(old.dirty)
    }

    /// Frames whose second-level mappings must go (Delete and Move): after publishing, before the ioctl returns.
    pub fn zap(&self, current: &[Slot]) -> Option<GfnRange> {
        match self {
            Self::Delete { index } | Self::Move { index, .. } => current.get(*index).map(Slot::gfns),
            _ => None,
        }
    }

    /// Frames where there is memory now and was none before (Create and Move).
    pub const fn appears(&self) -> Option<GfnRange> {
        match self {
            Self::Create(new) | Self::Move { new, .. } => Some(new.gfns()),
            _ => None,
        }
    }

    /// Frames that must lose write permission because logging starts on a live slot.
    pub fn write_protect(&self, current: &[Slot]) -> Option<GfnRange> {
        match self {
            // The flag that can change is LOG_DIRTY.
            Self::Flags { index, .. } => current.get(*index).filter(|old| !old.logs_dirty()).map(Slot::gfns),
            _ => None,
        }
    }
}

/// Decides what `region` does to `current` (sorted by `base_gfn`).
pub fn plan(current: &[Slot], region: &Region, limits: &Limits) -> Result<Change, Refusal> {
    let wanted = checked_slot(region, limits)?;
    let index = current.iter().position(|s| s.id == wanted.id);
    let old = index.and_then(|i| current.get(i).map(|s| (i, s)));
    let change = match old {
        None if wanted.npages == 0 => return Err(Refusal::Missing),
        None => Change::Create(wanted),
        Some((index, _)) if wanted.npages == 0 => Change::Delete { index },
        Some((index, old)) => modify(index, old, wanted)?,
    };
    let places = matches!(change, Change::Create(_) | Change::Move { .. });
    let gfns = wanted.gfns();
    if places && current.iter().any(|s| s.id != wanted.id && s.gfns().overlaps(&gfns)) {
        return Err(Refusal::Overlap);
    }
    Ok(change)
}

/// The checks that need no table. `npages` is 0 for a deletion.
fn checked_slot(region: &Region, limits: &Limits) -> Result<Slot, Refusal> {
    let Region { slot, flags, guest_phys_addr, memory_size, userspace_addr } = *region;
    if slot >> 16 != 0 {
        return Err(Refusal::AddressSpace);
    }
    if slot >= limits.max_slots {
        return Err(Refusal::SlotNumber);
    }
    if flags & !SlotFlags::ALL.0 != 0 {
        return Err(Refusal::UnknownFlag);
    }
    if (guest_phys_addr | memory_size | userspace_addr) & (PAGE_SIZE - 1) != 0 {
        return Err(Refusal::Misaligned);
    }
    let npages = memory_size >> PAGE_SHIFT;
    let end = guest_phys_addr.checked_add(memory_size).ok_or(Refusal::OutOfRange)?;
    userspace_addr.checked_add(memory_size).ok_or(Refusal::OutOfRange)?;
    if npages > MAX_SLOT_PAGES {
        return Err(Refusal::TooManyPages);
    }
    if npages != 0 && end > 1u64.checked_shl(limits.phys_bits).unwrap_or(u64::MAX) {
        return Err(Refusal::OutOfRange);
    }
    Ok(Slot {
        base_gfn: guest_phys_addr >> PAGE_SHIFT,
        npages,
        hva: userspace_addr,
        dirty: 0,
        id: slot,
        flags: SlotFlags(flags),
    })
}

/// An existing slot is asked to look like `new`.
fn modify(index: usize, old: &Slot, mut new: Slot) -> Result<Change, Refusal> {
    if new.npages != old.npages {
        return Err(Refusal::SizeChanged);
    }
    if new.hva != old.hva {
        return Err(Refusal::HvaChanged);
    }
    if new.writable() != old.writable() {
        return Err(Refusal::ReadOnlyChanged);
    }
    if new.logs_dirty() {
        new.dirty = old.dirty;
    }
    if new.base_gfn != old.base_gfn {
        return Ok(Change::Move { index, new });
    }
    Ok(if new.flags == old.flags { Change::Nothing } else { Change::Flags { index, new } })
}

/// Writes the table that results from `change` into `out`, sorted, and returns its number of slots. `None` when `out`
/// is too short (`current.len() + 1` always suffices) or `change` was planned for another table.
pub fn apply(current: &[Slot], change: &Change, out: &mut [Slot]) -> Option<usize> {
    let removed = change.old_index();
    if removed.is_some_and(|i| i >= current.len()) {
        return None;
    }
    let mut pending = change.new_slot().copied();
    let mut out = out.iter_mut();
    let mut count = 0;
    let mut push = |slot: Slot| {
        *out.next()? = slot;
        count += 1;
        Some(())
    };
    for (index, slot) in current.iter().enumerate() {
        if Some(index) == removed {
            continue;
        }
        if let Some(new) = pending.take_if(|new| new.base_gfn < slot.base_gfn) {
            push(new)?;
        }
        push(*slot)?;
    }
    if let Some(new) = pending {
        push(new)?;
    }
    Some(count)
}
