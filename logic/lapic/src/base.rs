//! IA32_APIC_BASE: modes and the transitions between them (SDM vol. 3A, 11.12.5, figure 11-27).
//!
//! ```text
//!           ENABLE                EXTD
//!  Disabled ──────▶ XApic ──────────────▶ X2Apic
//!      ▲              │                      │
//!      └──────────────┴──── ENABLE = 0 ──────┘      everything else, and EXTD without ENABLE, is #GP
//! ```

use crate::shared::Shared;
use crate::{Gp, Lapic, Work};
use exitless_x86::apic::apic_base;

/// What IA32_APIC_BASE says about the APIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// No local APIC: no registers, no messages, no timer; LINT0 is INTR and LINT1 is NMI.
    Disabled,
    /// Registers in memory, 8-bit ids.
    XApic,
    /// Registers as MSRs, 32-bit ids.
    X2Apic,
}

impl Mode {
    /// `None` for EXTD without ENABLE.
    fn of(base: u64) -> Option<Self> {
        match (base & apic_base::ENABLE != 0, base & apic_base::X2APIC != 0) {
            (false, false) => Some(Self::Disabled),
            (true, false) => Some(Self::XApic),
            (true, true) => Some(Self::X2Apic),
            (false, true) => None,
        }
    }

    fn guest_may_go(self, to: Self) -> bool {
        !matches!((self, to), (Self::Disabled, Self::X2Apic) | (Self::X2Apic, Self::XApic))
    }
}

/// Limits on IA32_APIC_BASE that the guest's CPUID sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BaseCaps {
    /// CPUID.1:ECX bit 21.
    pub x2apic: bool,
    /// Physical address width, 12..=52.
    pub maxphyaddr: u8,
}

impl Lapic {
    /// IA32_APIC_BASE.
    pub fn apic_base(&self) -> u64 {
        self.base
    }

    /// The present mode.
    pub fn mode(&self) -> Mode {
        Mode::of(self.base).unwrap_or(Mode::Disabled)
    }

    /// Physical address of the register page; `None` unless in xAPIC mode.
    pub fn mmio_base(&self) -> Option<u64> {
        (self.mode() == Mode::XApic).then_some(self.base & !0xfff)
    }

    /// Writes IA32_APIC_BASE. #GP for reserved bits, EXTD without ENABLE, and (guest only) transitions outside the diagram.
    ///
    /// A guest that disables the APIC loses its registers, pending interrupts and timer. The host (restoring a vCPU) may go from any
    /// mode to any other and keeps them.
    pub fn set_apic_base(&mut self, s: &Shared, value: u64, caps: BaseCaps, host: bool) -> Result<Work, Gp> {
        let from = self.mode();
        let to = Mode::of(value).ok_or(Gp)?;
        if value & reserved(caps) != 0 || !(host || from.guest_may_go(to)) {
            return Err(Gp);
        }
        self.base = value;
        if from == to {
            self.publish(s);
            return Ok(Work { routing_changed: true, ..Work::default() });
        }
        self.change_mode(s, to, host);
        self.publish(s);
        Ok(Work { timer_changed: true, rescan: true, routing_changed: true, ..Work::default() })
    }

    /// Into another mode than the present one.
    fn change_mode(&mut self, s: &Shared, to: Mode, host: bool) {
        if to == Mode::Disabled && !host {
            self.reset_registers(s);
        }
        if to == Mode::XApic {
            // The id becomes the initial one again; a logical id derived from an x2APIC id means nothing in xAPIC mode.
            self.xapic_id = self.vcpu_id as u8;
        }
        if to == Mode::X2Apic && !host {
            // ICR2 would read back as an x2APIC destination. A host that restores may have loaded the ICR already.
            self.icr &= 0xffff_ffff;
        }
    }
}

fn reserved(caps: BaseCaps) -> u64 {
    let flags = apic_base::BSP | apic_base::ENABLE | if caps.x2apic { apic_base::X2APIC } else { 0 };
    let address = (1u64 << caps.maxphyaddr.clamp(12, 52)) - 0x1000;
    !(flags | address)
}
