//! The local APIC's registers and the messages between APICs (SDM vol. 3A, chapter 11; APM vol. 2, chapter 16).

use bitfield_struct::bitfield;

/// Delivery modes (SDM vol. 3A, 11.6.1). Open: value 3 is reserved, 7 is ExtINT in an LVT only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeliveryMode(pub u8);

#[allow(missing_docs)]
impl DeliveryMode {
    pub const FIXED: Self = Self(0);
    pub const LOWEST: Self = Self(1);
    pub const SMI: Self = Self(2);
    pub const NMI: Self = Self(4);
    pub const INIT: Self = Self(5);
    pub const STARTUP: Self = Self(6);
    pub const EXTINT: Self = Self(7);
}

/// Destination shorthand of an ICR write (SDM vol. 3A, 11.6.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Shorthand {
    None,
    SelfOnly,
    All,
    AllButSelf,
}

/// An interrupt on its way to one or more local APICs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InterruptMessage {
    /// xAPIC: 8-bit destination (0xff = broadcast). x2APIC sender: 32-bit (0xffff_ffff = broadcast).
    pub destination: u32,
    /// Logical (true) or physical destination mode.
    pub logical: bool,
    /// How to deliver.
    pub mode: DeliveryMode,
    /// The vector (SIPI: the start page).
    pub vector: u8,
    /// Level (true) or edge triggered.
    pub level: bool,
    /// Assert (true) or de-assert; only INIT level de-assert is false.
    pub assert: bool,
    /// Destination shorthand; `None` for devices.
    pub shorthand: Shorthand,
    /// The sender uses 32-bit x2APIC destinations.
    pub x2apic: bool,
}

/// Interrupt command register, x2APIC layout (SDM vol. 3A, figure 11-28); xAPIC puts the destination at 63:56.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct Icr {
    pub vector: u8,
    #[bits(3)]
    pub delivery_mode: u8,
    pub logical: bool,
    pub pending: bool,
    __: bool,
    pub assert: bool,
    pub level: bool,
    #[bits(2)]
    __: u8,
    #[bits(2)]
    pub shorthand: u8,
    #[bits(12)]
    __: u16,
    pub destination: u32,
}

impl Icr {
    /// Decodes the value written; `x2apic` says where the destination stands.
    pub fn message(self, x2apic: bool) -> InterruptMessage {
        let shorthand = match self.shorthand() {
            0 => Shorthand::None,
            1 => Shorthand::SelfOnly,
            2 => Shorthand::All,
            _ => Shorthand::AllButSelf,
        };
        InterruptMessage {
            destination: if x2apic { self.destination() } else { self.destination() >> 24 },
            logical: self.logical(),
            mode: DeliveryMode(self.delivery_mode()),
            vector: self.vector(),
            level: self.level(),
            assert: self.assert(),
            shorthand,
            x2apic,
        }
    }
}

/// IA32_APIC_BASE bits (SDM vol. 3A, 11.4.4).
#[allow(missing_docs)]
pub mod apic_base {
    pub const BSP: u64 = 1 << 8;
    pub const X2APIC: u64 = 1 << 10;
    pub const ENABLE: u64 = 1 << 11;
    pub const DEFAULT_ADDRESS: u64 = 0xfee0_0000;
}

/// Register offsets in the xAPIC page (SDM vol. 3A, table 11-1); x2APIC MSR = 0x800 + offset / 16.
#[allow(missing_docs)]
pub mod reg {
    pub const ID: u32 = 0x20;
    pub const VERSION: u32 = 0x30;
    pub const TPR: u32 = 0x80;
    pub const APR: u32 = 0x90;
    pub const PPR: u32 = 0xa0;
    pub const EOI: u32 = 0xb0;
    pub const RRD: u32 = 0xc0;
    pub const LDR: u32 = 0xd0;
    pub const DFR: u32 = 0xe0;
    pub const SVR: u32 = 0xf0;
    pub const ISR: u32 = 0x100;
    pub const TMR: u32 = 0x180;
    pub const IRR: u32 = 0x200;
    pub const ESR: u32 = 0x280;
    pub const LVT_CMCI: u32 = 0x2f0;
    pub const ICR: u32 = 0x300;
    pub const ICR2: u32 = 0x310;
    pub const LVT_TIMER: u32 = 0x320;
    pub const LVT_THERMAL: u32 = 0x330;
    pub const LVT_PC: u32 = 0x340;
    pub const LVT_LINT0: u32 = 0x350;
    pub const LVT_LINT1: u32 = 0x360;
    pub const LVT_ERROR: u32 = 0x370;
    pub const TMICT: u32 = 0x380;
    pub const TMCCT: u32 = 0x390;
    pub const TDCR: u32 = 0x3e0;
    pub const SELF_IPI: u32 = 0x3f0;
}

/// LVT entry bits (SDM vol. 3A, figure 11-8).
#[allow(missing_docs)]
pub mod lvt {
    pub const VECTOR: u32 = 0xff;
    pub const MODE: u32 = 7 << 8;
    pub const PENDING: u32 = 1 << 12;
    pub const POLARITY: u32 = 1 << 13;
    pub const REMOTE_IRR: u32 = 1 << 14;
    pub const LEVEL: u32 = 1 << 15;
    pub const MASKED: u32 = 1 << 16;
    pub const TIMER_MODE: u32 = 3 << 17;
    pub const TIMER_ONESHOT: u32 = 0 << 17;
    pub const TIMER_PERIODIC: u32 = 1 << 17;
    pub const TIMER_DEADLINE: u32 = 2 << 17;
}
