//! Sizes of leaves, and which size a piece of guest memory may get.

/// The size of a leaf.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, bytemuck::Zeroable)]
#[repr(u8)]
pub enum Level {
    /// 4 KiB, a page-table entry.
    #[default]
    Page4K = 0,
    /// 2 MiB, a page-directory entry with PS.
    Page2M = 1,
    /// 1 GiB, a page-directory-pointer entry with PS.
    Page1G = 2,
}

impl Level {
    /// All sizes, smallest first.
    pub const ALL: [Self; 3] = [Self::Page4K, Self::Page2M, Self::Page1G];

    /// The level with this number: 0 is 4K, 1 is 2M, 2 is 1G.
    pub const fn from_index(index: u32) -> Option<Self> {
        match index {
            0 => Some(Self::Page4K),
            1 => Some(Self::Page2M),
            2 => Some(Self::Page1G),
            _ => None,
        }
    }

    /// log2 of [`Level::size`].
    pub const fn shift(self) -> u32 {
        12 + 9 * self as u32
    }

    /// Bytes.
    pub const fn size(self) -> u64 {
        1 << self.shift()
    }

    /// 4 KiB frames.
    pub const fn pages(self) -> u64 {
        1 << (9 * self as u32)
    }

    /// The first address of the block of this size that holds `address`.
    pub const fn base(self, address: u64) -> u64 {
        address & !(self.size() - 1)
    }

    /// The next smaller size.
    pub const fn smaller(self) -> Option<Self> {
        match self {
            Self::Page4K => None,
            Self::Page2M => Some(Self::Page4K),
            Self::Page1G => Some(Self::Page2M),
        }
    }
}

/// What backs a guest frame: the bounds of its memory slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backing {
    /// First guest frame of the slot.
    pub base_gfn: u64,
    /// Frames of the slot.
    pub npages: u64,
    /// Host virtual address of the slot's first frame.
    pub hva: u64,
}

/// The biggest leaf for guest frame `gfn`, not above `limit`.
///
/// A block of guest memory may be one leaf when all of it lies in the slot, when guest and host addresses agree on
/// their offset inside the block (so that one host huge page lies behind it), and when the host itself maps
/// the memory with pages of at least that size (`host`). `limit` is what hardware and policy allow: 4K while
/// the slot's writes are logged. A `gfn` outside of the slot gets 4K.
pub fn max_level(gfn: u64, backing: &Backing, host: Level, limit: Level) -> Level {
    let mut level = host.min(limit);
    loop {
        let Some(smaller) = level.smaller() else { return level };
        if fits(gfn, backing, level) {
            return level;
        }
        level = smaller;
    }
}

fn fits(gfn: u64, backing: &Backing, level: Level) -> bool {
    let pages = level.pages();
    let first = gfn & !(pages - 1);
    let same_offset = (backing.base_gfn ^ (backing.hva >> 12)) & (pages - 1) == 0;
    let end = backing.base_gfn.saturating_add(backing.npages);
    same_offset
        && first >= backing.base_gfn
        && first.checked_add(pages).is_some_and(|block_end| block_end <= end)
}
