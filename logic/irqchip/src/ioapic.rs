//! The 24-pin I/O APIC (Intel 82093AA data sheet, order 290566), version 0x11.
//!
//! ```text
//!  edge:  pin rises ── unmasked ──> message           (masked: lost)
//!  level: pin high, unmasked, Remote IRR = 0 ──> message, Remote IRR = 1 ── EOI of the vector ──> Remote IRR = 0
//!         and again, while the pin is still high
//! ```
//!
//! Polarity bits are stored and ignored, as in KVM: a high line is an active one. An end of interrupt takes two
//! steps, because notifiers (resampling irqfds) lower their lines in between:
//! [`Ioapic::eoi`] names the pins, then [`Ioapic::eoi_redeliver`] sends again what is still high.
//! Version 0x11 has no EOI register (offset 0x40 came with version 0x20), so guests use none.

use crate::lines::{LineStatus, Lines, Source};
use crate::msi::VectorSet;
use bytemuck::Zeroable;
use exitless_kvm_abi::kvm_ioapic_state;
use exitless_nospec::Guarded;
use exitless_x86::apic::{DeliveryMode, InterruptMessage, Shorthand};

/// Number of pins and redirection entries.
pub const PINS: u8 = 24;
/// Where a PC has it, and what `kvm_ioapic_state.base_address` says after creation.
pub const DEFAULT_BASE: u64 = 0xfec0_0000;
/// Bytes of the register window.
pub const WINDOW_SIZE: u64 = 0x100;
/// Level interrupts sent again at once after EOI before a pause; a guest that never silences its device would
/// otherwise keep the host in this loop.
pub const STORM_LIMIT: u16 = 10_000;

const VERSION: u32 = 0x11 | ((PINS as u32 - 1) << 16);
const IOREGSEL: u64 = 0x00;
const IOWIN: u64 = 0x10;
const REG_ID: u8 = 0;
const REG_VERSION: u8 = 1;
const REG_ARBITRATION: u8 = 2;
const REG_TABLE: u8 = 0x10;

/// One redirection table entry, 82093AA data sheet 3.2.4.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Zeroable)]
#[repr(transparent)]
struct Entry(u64);

impl Entry {
    const DELIVERY_STATUS: u64 = 1 << 12;
    const REMOTE_IRR: u64 = 1 << 14;
    const LEVEL: u64 = 1 << 15;
    const MASKED: u64 = 1 << 16;
    /// Vector, delivery mode, destination mode, polarity, trigger, mask; destination.
    const WRITABLE: u64 = 0xff00_0000_0001_afff;
    const DEFINED: u64 = Self::WRITABLE | Self::DELIVERY_STATUS | Self::REMOTE_IRR;

    fn vector(self) -> u8 {
        self.0 as u8
    }

    fn level(self) -> bool {
        self.0 & Self::LEVEL != 0
    }

    fn masked(self) -> bool {
        self.0 & Self::MASKED != 0
    }

    fn remote_irr(self) -> bool {
        self.0 & Self::REMOTE_IRR != 0
    }

    fn message(self) -> InterruptMessage {
        InterruptMessage {
            destination: (self.0 >> 56) as u32,
            logical: self.0 & (1 << 11) != 0,
            mode: DeliveryMode((self.0 >> 8) as u8 & 7),
            vector: self.vector(),
            level: self.level(),
            assert: true,
            shorthand: Shorthand::None,
            x2apic: false,
        }
    }
}

/// What a change of a pin came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Raised {
    /// Nothing to deliver; the status says why.
    Nothing(LineStatus),
    /// Deliver this; the status is the number of local APICs that take it.
    Deliver(InterruptMessage),
}

/// What a register write asks the caller to do, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Written {
    /// This pin went from masked to unmasked; the PIT forgets lost ticks if it is its pin.
    pub unmasked: Option<u8>,
    /// A redirection entry changed: [`Ioapic::eoi_vectors`] must be computed again.
    pub rescan: bool,
    /// Deliver this.
    pub message: Option<InterruptMessage>,
}

/// The chip.
#[derive(Zeroable)]
pub struct Ioapic {
    base: u64,
    ioregsel: u8,
    /// Bits 27:24 of the identification register.
    id: u8,
    /// Pins that are high.
    irr: u32,
    /// Edge pins that are high and whose message went out.
    delivered: u32,
    /// Pins whose next delivery waits for [`Ioapic::eoi_delayed`].
    delayed: u32,
    entries: [Entry; PINS as usize],
    lines: Lines<{ PINS as usize }>,
    /// Level deliveries in a row that an EOI caused, per pin.
    successive: [u16; PINS as usize],
}

impl Ioapic {
    /// Reset state: every entry masked, all lines low, at [`DEFAULT_BASE`].
    pub fn init(&mut self) {
        self.base = DEFAULT_BASE;
        self.ioregsel = 0;
        self.id = 0;
        self.irr = 0;
        self.delivered = 0;
        self.delayed = 0;
        self.entries.fill(Entry(Entry::MASKED));
        self.lines.init();
        self.successive.fill(0);
    }

    /// Where the register window is.
    pub fn base(&self) -> u64 {
        self.base
    }

    /// The offset of a guest-physical address inside the register window, if it is there.
    pub fn offset_of(&self, address: u64) -> Option<u64> {
        address.checked_sub(self.base).filter(|offset| *offset < WINDOW_SIZE)
    }

    /// One source drives `pin` (0 to 23).
    pub fn set_irq(&mut self, pin: u8, source: Source, level: bool) -> Raised {
        if pin >= PINS {
            return Raised::Nothing(LineStatus::Ignored);
        }
        let level = self.lines.set(pin, source, level);
        self.set_level(pin, level)
    }

    fn set_level(&mut self, pin: u8, level: bool) -> Raised {
        let bit = bit(pin);
        if !level {
            self.irr &= !bit;
            self.delivered &= !bit;
            return Raised::Nothing(LineStatus::Delivered(1));
        }
        let was_high = self.irr & bit != 0;
        self.irr |= bit;
        if self.entry(pin).level() {
            return self.service(pin);
        }
        if was_high {
            return Raised::Nothing(LineStatus::Coalesced);
        }
        self.service(pin)
    }

    /// Sends the message of `pin` unless it is masked or waits for an EOI.
    fn service(&mut self, pin: u8) -> Raised {
        let Some(entry) = self.entries.get_mut(usize::from(pin)) else {
            return Raised::Nothing(LineStatus::Ignored);
        };
        if entry.masked() || (entry.level() && entry.remote_irr()) {
            return Raised::Nothing(LineStatus::Ignored);
        }
        if entry.level() {
            entry.0 |= Entry::REMOTE_IRR;
        } else {
            self.delivered |= bit(pin);
        }
        Raised::Deliver(entry.message())
    }

    /// The guest ended an interrupt of `vector` in a local APIC whose TMR said `level`. Returns the pins it belongs to,
    /// for notifiers; pass them on to [`Ioapic::eoi_redeliver`] afterwards. Edge pins are named as well: the PIT
    /// counts them.
    pub fn eoi(&mut self, vector: u8, level: bool) -> u32 {
        let mut pins = 0;
        for (pin, entry) in (0u8..).zip(self.entries.iter_mut()) {
            if entry.vector() != vector {
                continue;
            }
            pins |= bit(pin);
            if level && entry.level() {
                entry.0 &= !Entry::REMOTE_IRR;
            }
        }
        pins
    }

    /// Sends again the level interrupts among `pins` that are still high. Returns true if one of them must pause
    /// because it was re-sent [`STORM_LIMIT`] times in a row: call [`Ioapic::eoi_delayed`] after a pause,
    /// or the pin stays silent.
    pub fn eoi_redeliver(&mut self, pins: u32, sink: &mut impl FnMut(InterruptMessage)) -> bool {
        let mut pause = false;
        for pin in (0..PINS).filter(|pin| pins & bit(*pin) != 0) {
            pause |= self.redeliver(pin, sink);
        }
        pause
    }

    fn redeliver(&mut self, pin: u8, sink: &mut impl FnMut(InterruptMessage)) -> bool {
        let wants = self.wants_level(pin) && self.delayed & bit(pin) == 0;
        let Some(successive) = self.successive.get_mut(usize::from(pin)) else { return false };
        if !wants {
            *successive = 0;
            return false;
        }
        *successive += 1;
        if *successive >= STORM_LIMIT {
            *successive = 0;
            self.delayed |= bit(pin);
            return true;
        }
        self.send(pin, sink);
        false
    }

    /// The pause of a storming pin is over.
    pub fn eoi_delayed(&mut self, sink: &mut impl FnMut(InterruptMessage)) {
        let delayed = core::mem::take(&mut self.delayed);
        for pin in (0..PINS).filter(|pin| delayed & bit(*pin) != 0) {
            if self.wants_level(pin) {
                self.send(pin, sink);
            }
        }
    }

    fn send(&mut self, pin: u8, sink: &mut impl FnMut(InterruptMessage)) {
        if let Raised::Deliver(message) = self.service(pin) {
            sink(message);
        }
    }

    /// A level pin that is high, unmasked and not waiting for an EOI.
    fn wants_level(&self, pin: u8) -> bool {
        let entry = self.entry(pin);
        entry.level() && !entry.masked() && !entry.remote_irr() && self.irr & bit(pin) != 0
    }

    /// Vectors whose EOI the chip must hear of: those of level pins, and of `notified` pins (bit n = pin n) whatever
    /// their trigger. Destinations are not considered: a vector too many costs an exit, one too few a lost interrupt.
    pub fn eoi_vectors(&self, notified: u32) -> VectorSet {
        let mut vectors = VectorSet::default();
        for (pin, entry) in (0u8..).zip(self.entries.iter()) {
            if entry.level() || notified & bit(pin) != 0 {
                vectors.insert(entry.vector());
            }
        }
        vectors
    }

    /// One of the pins in `notified` sends edge-triggered interrupts: their EOIs are broadcast by nobody.
    pub fn notifies_edges(&self, notified: u32) -> bool {
        let edge = |(pin, entry): (u8, &Entry)| notified & bit(pin) != 0 && !entry.level() && !entry.masked();
        (0u8..).zip(self.entries.iter()).any(edge)
    }

    /// Reads `size` bytes (1, 2, 4 or 8) of the register at `offset` (0 to 0xff) of the window. Undefined offsets and
    /// registers read as zero, entries beyond the table as all ones.
    pub fn mmio_read(&self, offset: u64, size: u8) -> u64 {
        let value = match offset & !0xf {
            IOREGSEL => u32::from(self.ioregsel),
            IOWIN => self.read_register(),
            _ => 0,
        };
        match size {
            1 => u64::from(value & 0xff),
            2 => u64::from(value & 0xffff),
            _ => u64::from(value),
        }
    }

    /// Writes `size` bytes (1, 2, 4 or 8) to the register at `offset` of the window. Registers are 32 bits wide; a
    /// narrower write sets the rest to zero, a wider one loses its upper half.
    pub fn mmio_write(&mut self, offset: u64, size: u8, value: u64) -> Written {
        let value = match size {
            1 => value as u32 & 0xff,
            2 => value as u32 & 0xffff,
            _ => value as u32,
        };
        match offset & !0xf {
            IOREGSEL => self.ioregsel = value as u8,
            IOWIN => return self.write_register(value),
            _ => {}
        }
        Written::default()
    }

    fn read_register(&self) -> u32 {
        match self.ioregsel {
            REG_ID | REG_ARBITRATION => u32::from(self.id) << 24,
            REG_VERSION => VERSION,
            select if select >= REG_TABLE => self.read_entry(select - REG_TABLE),
            _ => 0,
        }
    }

    fn read_entry(&self, index: u8) -> u32 {
        let Some(entry) = self.entries.guarded(usize::from(index >> 1)) else { return u32::MAX };
        if index & 1 != 0 { (entry.0 >> 32) as u32 } else { entry.0 as u32 }
    }

    fn write_register(&mut self, value: u32) -> Written {
        match self.ioregsel {
            REG_ID => self.id = (value >> 24) as u8 & 0xf,
            select if select >= REG_TABLE => return self.write_entry(select - REG_TABLE, value),
            _ => {}
        }
        Written::default()
    }

    fn write_entry(&mut self, index: u8, value: u32) -> Written {
        let pin = index >> 1;
        let Some(entry) = self.entries.guarded_mut(usize::from(pin)) else { return Written::default() };
        let was_masked = entry.masked();
        let (keep, shift) = if index & 1 != 0 { (0xffff_ffff, 32) } else { (!0xffff_ffff, 0) };
        let written = (entry.0 & keep) | u64::from(value) << shift;
        entry.0 = (written & Entry::WRITABLE) | (entry.0 & (Entry::REMOTE_IRR | Entry::DELIVERY_STATUS));
        // Linux and Xen switch an entry to edge and back to get rid of a stuck Remote IRR, as on the chip.
        if !entry.level() {
            entry.0 &= !Entry::REMOTE_IRR;
        }
        let unmasked = was_masked && !entry.masked();
        let due = self.wants_level(pin) && self.delayed & bit(pin) == 0;
        let message = match due.then(|| self.service(pin)) {
            Some(Raised::Deliver(message)) => Some(message),
            _ => None,
        };
        Written { unmasked: unmasked.then_some(pin), rescan: true, message }
    }

    /// The state for KVM_GET_IRQCHIP, filled in place. A high edge pin whose message went out is not in `irr`: loading
    /// the state would send it twice.
    pub fn save(&self, state: &mut kvm_ioapic_state) {
        state.base_address = self.base;
        state.ioregsel = self.ioregsel.into();
        state.id = self.id.into();
        state.irr = self.irr;
        state.pad = 0;
        for (saved, entry) in state.redirtbl.iter_mut().zip(self.entries.iter()) {
            *saved = entry.0;
        }
        for pin in (0..PINS).filter(|pin| !self.entry(*pin).level()) {
            state.irr &= !(self.delivered & bit(pin));
        }
    }

    /// Puts a state in place (KVM_SET_IRQCHIP) and sends what its `irr` still asks for. Undefined bits are dropped.
    /// The levels that sources hold are not part of the state and stay. Afterwards compute
    /// [`Ioapic::eoi_vectors`] again.
    pub fn load(&mut self, state: &kvm_ioapic_state, sink: &mut impl FnMut(InterruptMessage)) {
        self.base = state.base_address;
        self.ioregsel = state.ioregsel as u8;
        self.id = state.id as u8 & 0xf;
        for (entry, saved) in self.entries.iter_mut().zip(state.redirtbl.iter()) {
            entry.0 = saved & Entry::DEFINED;
        }
        self.successive.fill(0);
        self.delayed = 0;
        self.irr = 0;
        self.delivered = 0;
        for pin in (0..PINS).filter(|pin| state.irr & bit(*pin) != 0) {
            if let Raised::Deliver(message) = self.set_level(pin, true) {
                sink(message);
            }
        }
    }

    fn entry(&self, pin: u8) -> Entry {
        self.entries.get(usize::from(pin)).copied().unwrap_or(Entry(Entry::MASKED))
    }
}

fn bit(pin: u8) -> u32 {
    1 << (pin & 31)
}
