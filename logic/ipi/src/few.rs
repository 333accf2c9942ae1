//! A short list of vCPUs.

/// At most [`Few::MOST`] different vCPUs' indices.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Few {
    indices: [u16; Few::MOST],
    len: usize,
    /// Bit n: one whose index is n, modulo 64.
    seen: u64,
}

impl Few {
    /// As many as one message of x2APIC's logical mode can name.
    pub const MOST: usize = 16;

    /// All below `vcpus`, but one.
    pub(crate) fn all(vcpus: usize, but: Option<usize>) -> Option<Self> {
        let mut few = Self::default();
        if vcpus > Self::MOST + 1 {
            return None;
        }
        for index in (0..vcpus).filter(|&index| but != Some(index)) {
            few.push(index as u16)?;
        }
        Some(few)
    }

    /// `None`: no room.
    pub(crate) fn add(&mut self, index: u16) -> Option<()> {
        let bit = 1 << (index % 64);
        if self.seen & bit != 0 && self.iter().any(|known| known == usize::from(index)) {
            return Some(());
        }
        self.seen |= bit;
        self.push(index)
    }

    fn push(&mut self, index: u16) -> Option<()> {
        *self.indices.get_mut(self.len)? = index;
        self.len += 1;
        Some(())
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Nobody.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The vCPU at a position below [`Few::len`].
    pub fn nth(&self, position: usize) -> Option<usize> {
        self.indices.get(..self.len)?.get(position).map(|&index| index.into())
    }

    /// All of them, in no particular order.
    pub fn iter(&self) -> impl Iterator<Item = usize> {
        self.indices.get(..self.len).unwrap_or_default().iter().map(|&index| index.into())
    }
}
