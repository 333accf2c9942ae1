//! What a guest has asked for that sends IPIs by itself, and where its sequence lies ([`crate::apic::raw`]).

use exitless_policy::msr::MsrKind;
use exitless_pv_abi::EXITLESS_DESCRIPTOR_RAW;

/// What the guest has asked for.
#[derive(Clone, Copy, Debug, Default, bytemuck::Zeroable)]
#[repr(C)]
pub struct Raw {
    /// MSR_EXITLESS_DESCRIPTOR.
    pub(crate) descriptor: u64,
    /// MSR_EXITLESS_SEQUENCE.
    pub(crate) start: u64,
    /// MSR_EXITLESS_SEQUENCE_PARTS.
    pub(crate) parts: u64,
    /// It was not in user space since it last wrote MSR_EXITLESS_DESCRIPTOR or MSR_EXITLESS_ICR.
    pub(crate) may: bool,
    pad: [u8; 7],
}

impl Raw {
    /// One of the MSRs.
    pub fn read(&self, kind: MsrKind) -> u64 {
        match kind {
            MsrKind::Descriptor => self.descriptor,
            MsrKind::Sequence => self.start,
            _ => self.parts,
        }
    }

    /// Whether it sends from the next slice on is not the guest's business any more.
    pub(crate) fn may(&self) -> bool {
        self.may && self.asked()
    }

    pub(crate) fn asked(&self) -> bool {
        self.descriptor & EXITLESS_DESCRIPTOR_RAW != 0
    }

    /// Where a vCPU that is found at `rip` goes on; `true`: it has requested something that nobody was notified of.
    pub(crate) fn leaves(&self, rip: u64) -> Option<(u64, bool)> {
        let at = rip.wrapping_sub(self.start);
        let (done, end) = (self.parts & 0xffff, self.parts >> 16);
        match at {
            1.. if at < done => Some((self.start, false)),
            _ if (done..end).contains(&at) => Some((self.start.wrapping_add(end), true)),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn before_it_or_behind_it() {
        let raw = Raw { start: 0x1000, parts: 0x30_0010, ..Raw::default() };
        for (rip, expected) in [
            (0xfff, None),
            (0x1000, None),
            (0x1001, Some((0x1000, false))),
            (0x100f, Some((0x1000, false))),
            (0x1010, Some((0x1030, true))),
            (0x102f, Some((0x1030, true))),
            (0x1030, None),
            (u64::MAX, None),
        ] {
            assert_eq!(raw.leaves(rip), expected, "{rip:x}");
        }
        assert_eq!(Raw::default().leaves(0), None, "nothing was registered");
        let wraps = Raw { start: u64::MAX - 1, parts: 0x4_0002, ..Raw::default() };
        assert_eq!(wraps.leaves(0), Some((2, true)));
    }
}
