//! How one APIC is addressed, and which destinations name it.

use bitfield_struct::bitfield;
use bytemuck::Zeroable;
use exitless_x86::apic::InterruptMessage;
#[cfg(doc)]
use exitless_x86::apic::apic_base;

/// What senders compare destinations with; one word, so that it is read and published as one. Zero: an absent APIC.
#[bitfield(u64)]
#[derive(PartialEq, Eq, Zeroable)]
pub struct Address {
    /// The id in xAPIC mode.
    pub xapic_id: u8,
    /// LDR bits 31:24 in xAPIC mode.
    pub logical_id: u8,
    /// DFR: the flat model, not the cluster model.
    pub flat: bool,
    /// Enabled in IA32_APIC_BASE: it takes part in message delivery.
    pub hw_enabled: bool,
    /// Enabled in the SVR.
    pub sw_enabled: bool,
    /// In x2APIC mode.
    pub x2apic: bool,
    /// The registers are a page at [`apic_base::DEFAULT_ADDRESS`].
    pub default_page: bool,
    #[bits(11)]
    __: u16,
    /// The immutable id.
    pub x2apic_id: u32,
}

impl Address {
    /// It accepts fixed and lowest-priority interrupts: enabled in IA32_APIC_BASE and in the SVR.
    pub fn listens(self) -> bool {
        self.hw_enabled() && self.sw_enabled()
    }

    /// In x2APIC mode, or to be started in spite of an id that xAPIC mode has no room for: 32 bits name it.
    #[inline]
    fn knows_wide_ids(self) -> bool {
        self.x2apic() || self.x2apic_id() > 0xff
    }

    /// The one physical id that names it. In xAPIC mode it is what the guest sees and may change, unless the immutable id is above
    /// 0xff: the lower 8 bits of that are another vCPU's, and an INIT or SIPI to them is for that one. This holds in every VM: on a
    /// machine that has only xAPICs nobody has such an id.
    #[inline]
    pub fn physical_id(self) -> u32 {
        if self.knows_wide_ids() { self.x2apic_id() } else { self.xapic_id().into() }
    }

    /// The destination (not the shorthand) of `msg` names this APIC. An APIC disabled in IA32_APIC_BASE is never named.
    ///
    /// An xAPIC sender's or device's 0xff is a broadcast for every target; an x2APIC sender's 0xff is one for targets in xAPIC mode
    /// whose ids have 8 bits, and 0xffff_ffff for all.
    #[inline]
    pub fn names(self, msg: &InterruptMessage) -> bool {
        if !self.hw_enabled() {
            return false;
        }
        if is_broadcast(msg, self.knows_wide_ids()) {
            return true;
        }
        match (msg.logical, self.x2apic()) {
            (false, _) => msg.destination == self.physical_id(),
            (true, true) => in_cluster(x2apic_ldr(self.x2apic_id()), msg.destination, 16),
            (true, false) if self.flat() => u32::from(self.logical_id()) & msg.destination != 0,
            (true, false) => in_cluster(self.logical_id().into(), msg.destination, 4),
        }
    }
}

/// The logical id that x2APIC mode derives from the id (SDM vol. 3A, 11.12.10.2): cluster in 31:16, one bit in 15:0.
pub const fn x2apic_ldr(id: u32) -> u32 {
    (id >> 4) << 16 | 1 << (id & 0xf)
}

/// The destination is every APIC that 32 bits name (`wide`), or 8.
pub(crate) fn is_broadcast(msg: &InterruptMessage, wide: bool) -> bool {
    match msg.destination {
        0xff => !(msg.x2apic && wide),
        u32::MAX => msg.x2apic,
        _ => false,
    }
}

/// Same cluster above `bits`, and a common member bit below (SDM vol. 3A, 11.6.2.2).
fn in_cluster(logical_id: u32, destination: u32, bits: u32) -> bool {
    let members = (1 << bits) - 1;
    logical_id >> bits == destination >> bits && logical_id & destination & members != 0
}
