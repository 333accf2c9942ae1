//! Message-signalled interrupts: address and data to [`InterruptMessage`] and back (SDM vol. 3A, 11.11).

use bytemuck::Zeroable;
use exitless_x86::apic::{DeliveryMode, InterruptMessage, Shorthand};

/// Address bits 31:20 of every MSI.
const ADDRESS_BASE: u32 = 0xfee0_0000;
const ADDRESS_LOGICAL: u32 = 1 << 2;
const ADDRESS_REDIRECTION_HINT: u32 = 1 << 3;
const DATA_ASSERT: u32 = 1 << 14;
const DATA_LEVEL: u32 = 1 << 15;

/// How destinations above 254 are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DestinationFormat {
    /// Eight bits, address 19:12. Everything else is ignored.
    #[default]
    Xapic,
    /// KVM_X2APIC_API_USE_32BIT_IDS: destination bits 31:8 stand in `address_hi` 31:8.
    X2apic,
    /// KVM_FEATURE_MSI_EXT_DEST_ID as the guest writes it: destination bits 14:8 stand in address 11:5.
    /// User space normally translates this into [`DestinationFormat::X2apic`] before it reaches KVM.
    Extended,
}

/// An MSI as it stands in a device's registers, in KVM_SIGNAL_MSI and in an MSI route.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Zeroable)]
#[repr(C)]
pub struct Msi {
    /// Address bits 31:0.
    pub address: u32,
    /// Address bits 63:32.
    pub address_hi: u32,
    /// Data.
    pub data: u32,
}

impl Msi {
    /// `address_hi` bits 7:0 are reserved in the x2APIC format; KVM refuses such MSIs.
    pub fn is_valid(self, format: DestinationFormat) -> bool {
        format != DestinationFormat::X2apic || self.address_hi & 0xff == 0
    }

    /// Level (true) or edge triggered.
    pub fn level(self) -> bool {
        self.data & DATA_LEVEL != 0
    }

    /// The vector.
    pub fn vector(self) -> u8 {
        self.data as u8
    }

    /// Decodes the message. The redirection hint asks for one destination out of many, which is what lowest-priority
    /// delivery means, so a fixed message with the hint becomes [`DeliveryMode::LOWEST`]; other modes ignore it.
    ///
    /// A destination that fits in eight bits is marked as an xAPIC one (255 broadcasts), whatever the format.
    pub fn message(self, format: DestinationFormat) -> InterruptMessage {
        let low = (self.address >> 12) & 0xff;
        let destination = match format {
            DestinationFormat::Xapic => low,
            DestinationFormat::X2apic => low | (self.address_hi & !0xff),
            DestinationFormat::Extended => low | (((self.address >> 5) & 0x7f) << 8),
        };
        let mode = DeliveryMode(((self.data >> 8) & 7) as u8);
        let hinted = self.address & ADDRESS_REDIRECTION_HINT != 0 && mode == DeliveryMode::FIXED;
        InterruptMessage {
            destination,
            logical: self.address & ADDRESS_LOGICAL != 0,
            mode: if hinted { DeliveryMode::LOWEST } else { mode },
            vector: self.vector(),
            level: self.level(),
            // An MSI has no de-assert worth delivering (INIT level de-assert is an IPI matter).
            assert: true,
            shorthand: Shorthand::None,
            x2apic: destination > 0xff,
        }
    }

    /// The MSI a device would send for `message`; the inverse of [`Msi::message`] for destinations that fit `format`.
    pub fn encode(message: &InterruptMessage, format: DestinationFormat) -> Self {
        let mut msi = Self {
            address: ADDRESS_BASE | ((message.destination & 0xff) << 12),
            address_hi: 0,
            data: u32::from(message.vector) | (u32::from(message.mode.0 & 7) << 8) | DATA_ASSERT,
        };
        match format {
            DestinationFormat::Xapic => {}
            DestinationFormat::X2apic => msi.address_hi = message.destination & !0xff,
            DestinationFormat::Extended => msi.address |= ((message.destination >> 8) & 0x7f) << 5,
        }
        if message.logical {
            msi.address |= ADDRESS_LOGICAL;
        }
        if message.level {
            msi.data |= DATA_LEVEL;
        }
        msi
    }
}

/// A set of the 256 vectors, bit `n % 64` of word `n / 64`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Zeroable)]
pub struct VectorSet(pub [u64; 4]);

impl VectorSet {
    /// Adds a vector.
    pub fn insert(&mut self, vector: u8) {
        if let Some(word) = self.0.get_mut(usize::from(vector >> 6)) {
            *word |= 1 << (vector & 63);
        }
    }

    /// Whether the vector is in the set.
    pub fn contains(&self, vector: u8) -> bool {
        self.0.get(usize::from(vector >> 6)).is_some_and(|word| word >> (vector & 63) & 1 != 0)
    }

    /// Adds every vector of `other`.
    pub fn extend(&mut self, other: &Self) {
        for (word, more) in self.0.iter_mut().zip(other.0) {
            *word |= more;
        }
    }
}
