//! Commands of an APIC in x2APIC mode that are nothing but an interrupt, as by far the most are.

use crate::address::Address;
use exitless_x86::apic::Icr;

/// A fixed, edge-triggered interrupt with a legal vector, and no bit that is reserved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlainIpi {
    /// Its vector, not below 16.
    pub vector: u8,
    /// Whom it is for.
    pub to: To,
}

/// Whom a [`PlainIpi`] command names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum To {
    /// One physical id, which is no broadcast.
    Id(u32),
    /// Of the 16 ids from the first on those whose bit is set.
    Cluster(u32, u16),
    /// All but the sender.
    Others,
}

/// Bits 31:0 of the ICR, by which all of these are alike: but for the vector, the level (which an edge has not) and the destination.
const FORM: u64 = 0xffff_ffff & !0xff & !Icr::new().with_assert(true).into_bits();
const PHYSICAL: u64 = 0;
const LOGICAL: u64 = Icr::new().with_logical(true).into_bits();
const ALL_BUT_SELF: u64 = Icr::new().with_shorthand(3).into_bits();
/// Vectors below are exceptions'.
const FIRST_LEGAL_VECTOR: u8 = 16;

impl PlainIpi {
    /// A write of `icr` sends that. `None`: something else, or nothing.
    #[inline(always)]
    pub fn of(icr: u64) -> Option<Self> {
        let (vector, destination) = (icr as u8, (icr >> 32) as u32);
        if vector < FIRST_LEGAL_VECTOR {
            return None;
        }
        let to = match icr & FORM {
            PHYSICAL if !matches!(destination, 0xff | u32::MAX) => To::Id(destination),
            // 0xff and 0xffff_ffff are broadcasts here too, the first for whoever is in xAPIC mode.
            LOGICAL if destination != u32::MAX => To::Cluster(destination >> 16 << 4, destination as u16),
            ALL_BUT_SELF => To::Others,
            _ => return None,
        };
        Some(Self { vector, to })
    }
}

impl Address {
    /// In x2APIC mode with this id, and listening: a [`PlainIpi`] command to it is taken.
    #[inline(always)]
    pub fn takes(self, id: u32) -> bool {
        self.x2apic() && self.listens() && self.x2apic_id() == id
    }

    /// The same of one of a cluster ([`To::Cluster`]).
    #[inline(always)]
    pub fn is_member(self, from: u32, members: u16) -> bool {
        let id = self.x2apic_id();
        self.x2apic() && self.listens() && id & !15 == from && members >> (id & 15) & 1 != 0
    }
}
