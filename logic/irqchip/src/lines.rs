//! Wired-OR of several sources on each input pin of a chip.
//!
//! A pin is high while at least one source holds it high, so two devices that share a level-triggered GSI do not
//! lower each other's request.

use bytemuck::Zeroable;

/// A party that drives pins. KVM's interrupt source identifiers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Source(u8);

impl Source {
    /// KVM_IRQ_LINE, KVM_IRQ_LINE_STATUS and edge irqfds.
    pub const USERSPACE: Self = Self(0);
    /// Resampling irqfds: raised by the eventfd, lowered at EOI.
    pub const RESAMPLE: Self = Self(1);
    /// The in-kernel PIT.
    pub const PIT: Self = Self(2);

    /// KVM's number of it.
    pub fn number(self) -> u32 {
        self.0.into()
    }

    fn bit(self) -> u32 {
        1 << (self.0 & 31)
    }
}

/// What a request to change a line came to; [`LineStatus::code`] gives KVM_IRQ_LINE_STATUS's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LineStatus {
    /// Masked, not routed, or held back by an unfinished earlier interrupt.
    Ignored,
    /// The previous request of the same pin is still pending; the two merge.
    Coalesced,
    /// Delivered to this many destinations (a chip or a lowered line counts as one).
    Delivered(u32),
}

impl LineStatus {
    /// -1 ignored, 0 coalesced, n > 0 delivered (api.rst, KVM_IRQ_LINE_STATUS).
    pub fn code(self) -> i32 {
        match self {
            Self::Ignored => -1,
            Self::Coalesced => 0,
            Self::Delivered(n) => n.min(i32::MAX as u32) as i32,
        }
    }

    /// The status of one request that reached several targets: an ignored target does not count.
    pub fn merge(self, other: Self) -> Self {
        match (self, other) {
            (Self::Ignored, x) | (x, Self::Ignored) => x,
            (Self::Coalesced, x) | (x, Self::Coalesced) => x,
            (Self::Delivered(a), Self::Delivered(b)) => Self::Delivered(a.saturating_add(b)),
        }
    }
}

/// The levels of `N` pins, one bit per source.
#[derive(Zeroable)]
pub struct Lines<const N: usize> {
    asserted: [u32; N],
}

impl<const N: usize> Lines<N> {
    /// Lowers every line of every source.
    pub fn init(&mut self) {
        self.asserted.fill(0);
    }

    /// Records one source's level; returns the level of the pin. A pin outside the chip stays low.
    pub fn set(&mut self, pin: u8, source: Source, level: bool) -> bool {
        let Some(asserted) = self.asserted.get_mut(usize::from(pin)) else { return false };
        if level {
            *asserted |= source.bit();
        } else {
            *asserted &= !source.bit();
        }
        *asserted != 0
    }

    /// The pins that are high (bit n = pin n); `N` is at most 32.
    pub fn high(&self) -> u32 {
        let levels = self.asserted.iter().rev();
        levels.fold(0, |high, sources| (high << 1) | u32::from(*sources != 0))
    }
}
