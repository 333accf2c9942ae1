//! The 8259A pair of a PC: master at 0x20, slave at 0xa0 behind the master's pin 2, ELCR at 0x4d0.
//!
//! Words and rules: Intel 8259A data sheet (order 231468); the edge/level control registers: Intel PIIX3 data sheet,
//! 2.5.8. Names of the registers:
//!
//! * **IRR** requests seen, **ISR** requests the CPU has taken and not ended, **IMR** masks.
//! * **ICW1-4** initialize a chip; **OCW1** is the IMR, **OCW2** ends interrupts and rotates priorities, **OCW3**
//!   chooses what a read returns, polls, and sets the special mask mode.
//! * **ELCR** chooses level (1) or edge (0) per pin; it replaces ICW1's LTIM bit, which the PC ignores.
//!
//! ```text
//!   ICW1 ─> ExpectIcw2 ─> ExpectIcw3 (unless ICW1.SNGL) ─> ExpectIcw4 (if ICW1.IC4) ─> Ready
//!   pin rises: IRR=1 ── highest unmasked above ISR ──> output ── INTA (`ack`) ──> ISR=1 ── EOI ──> ISR=0, notified
//! ```
//!
//! Differences from the chip, on purpose: an edge request stays latched when its pin falls before INTA, because
//! user space pulses lines (high then low at once) and expects one interrupt from it. The slave's INT drives pin 2
//! of the master as a level. Port accesses wider than a byte act as consecutive byte accesses, as the ISA bus does.

use crate::lines::{LineStatus, Lines, Source};
use bytemuck::Zeroable;
use exitless_kvm_abi::kvm_pic_state;

/// The master's pin that the slave's INT drives.
pub const CASCADE_PIN: u8 = 2;
/// Pins of the pair; pin 8 is the slave's pin 0.
pub const PINS: u8 = 16;

const MASTER_COMMAND: u16 = 0x20;
const MASTER_DATA: u16 = 0x21;
const SLAVE_COMMAND: u16 = 0xa0;
const SLAVE_DATA: u16 = 0xa1;
const MASTER_ELCR: u16 = 0x4d0;
const SLAVE_ELCR: u16 = 0x4d1;

/// Pins that may be level triggered: not the timer, the keyboard and the cascade.
const MASTER_ELCR_MASK: u8 = 0xf8;
/// Pins that may be level triggered: not the RTC (8) and the coprocessor error (13).
const SLAVE_ELCR_MASK: u8 = 0xde;

const CASCADE: u8 = 1 << CASCADE_PIN;

/// Which of the two chips.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PicId {
    /// KVM_IRQCHIP_PIC_MASTER.
    Master,
    /// KVM_IRQCHIP_PIC_SLAVE.
    Slave,
}

/// The next byte a chip's data port takes. The numbers are those of `kvm_pic_state.init_state`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Zeroable)]
#[repr(u8)]
enum Expect {
    Ocw1 = 0,
    Icw2 = 1,
    Icw3 = 2,
    Icw4 = 3,
}

/// One 8259A.
#[derive(Zeroable)]
struct Chip {
    /// Pin levels at the last change, for edge detection.
    last_irr: u8,
    irr: u8,
    imr: u8,
    isr: u8,
    /// The pin of highest priority.
    priority_add: u8,
    /// Vector of pin 0 (ICW2; user space may restore one that is no multiple of 8).
    irq_base: u8,
    /// Reads of the command port return the ISR, not the IRR.
    read_isr: bool,
    /// The next read is a poll.
    poll: bool,
    special_mask: bool,
    auto_eoi: bool,
    rotate_on_auto_eoi: bool,
    special_fully_nested: bool,
    expect: u8,
    /// ICW1 announced an ICW4.
    init4: bool,
    /// ICW1 said there is no other chip, so no ICW3 follows. Not part of `kvm_pic_state`.
    single: bool,
    elcr: u8,
    /// Pins that the guest may make level triggered: the wiring's, or what user space restored.
    elcr_mask: u8,
    is_master: bool,
    /// Pins whose interrupt ended since the last [`Pic::take_eoi`].
    ended: u8,
    /// Pins unmasked since the last [`Pic::take_unmasked`].
    unmasked: u8,
}

impl Chip {
    /// Distance of the highest-priority pin in `pins` from the top; 8 if there is none.
    fn rank(&self, pins: u8) -> u32 {
        pins.rotate_right(u32::from(self.priority_add)).trailing_zeros()
    }

    fn pin_of_rank(&self, rank: u32) -> u8 {
        (rank as u8).wrapping_add(self.priority_add) & 7
    }

    /// The pin this chip asks the CPU (or the master) to take, if any.
    fn request(&self) -> Option<u8> {
        let mut in_service = self.isr;
        if self.special_mask {
            in_service &= !self.imr;
        }
        // Special fully nested mode lets the slave interrupt its own lower-priority requests. The slave's own
        // flag means nothing, so its pin 2 is not excepted.
        if self.special_fully_nested && self.is_master {
            in_service &= !CASCADE;
        }
        let rank = self.rank(self.irr & !self.imr);
        (rank < self.rank(in_service)).then(|| self.pin_of_rank(rank))
    }

    fn set_pin(&mut self, pin: u8, level: bool) -> LineStatus {
        let bit = 1 << (pin & 7);
        let mut new_request = true;
        if !level {
            self.last_irr &= !bit;
            if self.elcr & bit != 0 {
                self.irr &= !bit;
            }
        } else {
            if self.elcr & bit != 0 || self.last_irr & bit == 0 {
                new_request = self.irr & bit == 0;
                self.irr |= bit;
            }
            self.last_irr |= bit;
        }
        match (self.imr & bit != 0, new_request) {
            (true, _) => LineStatus::Ignored,
            (false, false) => LineStatus::Coalesced,
            (false, true) => LineStatus::Delivered(1),
        }
    }

    /// The CPU takes the request on `pin` (INTA, or a poll).
    fn take(&mut self, pin: u8) {
        let bit = 1 << (pin & 7);
        if self.elcr & bit == 0 {
            self.irr &= !bit;
        }
        self.isr |= bit;
        if self.auto_eoi {
            self.end(pin, self.rotate_on_auto_eoi);
        }
    }

    /// Ends the interrupt on `pin`; with `rotate` the pin becomes the lowest in priority.
    fn end(&mut self, pin: u8, rotate: bool) {
        let bit = 1 << (pin & 7);
        self.ended |= self.isr & bit;
        self.isr &= !bit;
        if rotate {
            self.priority_add = pin.wrapping_add(1) & 7;
        }
    }

    /// The pin that a non-specific EOI ends: the highest in service. The special mask mode hides masked pins.
    fn highest_in_service(&self) -> Option<u8> {
        let in_service = if self.special_mask { self.isr & !self.imr } else { self.isr };
        (in_service != 0).then(|| self.pin_of_rank(self.rank(in_service)))
    }

    /// ICW1 clears masks, priorities and edge memory. Edge requests and interrupts in service are forgotten; whoever
    /// waits for their EOI is told so, else a PIT that waits for its EOI would never tick again.
    fn icw1(&mut self, value: u8) {
        self.ended |= self.isr | (self.irr & !self.elcr);
        self.unmasked |= self.imr;
        self.last_irr = 0;
        self.irr &= self.elcr;
        self.imr = 0;
        self.isr = 0;
        self.priority_add = 0;
        self.special_mask = false;
        self.read_isr = false;
        self.poll = false;
        self.init4 = value & 1 != 0;
        self.single = value & 2 != 0;
        if !self.init4 {
            self.special_fully_nested = false;
            self.auto_eoi = false;
        }
        self.rotate_on_auto_eoi = false;
        self.expect = Expect::Icw2 as u8;
    }

    fn ocw2(&mut self, value: u8) {
        let pin = value & 7;
        match value >> 5 {
            0b000 => self.rotate_on_auto_eoi = false,
            0b100 => self.rotate_on_auto_eoi = true,
            command @ (0b001 | 0b101) => {
                if let Some(pin) = self.highest_in_service() {
                    self.end(pin, command == 0b101);
                }
            }
            0b011 => self.end(pin, false),
            0b111 => self.end(pin, true),
            0b110 => self.priority_add = pin.wrapping_add(1) & 7,
            // 0b010 is "no operation".
            _ => {}
        }
    }

    fn ocw3(&mut self, value: u8) {
        if value & 0x04 != 0 {
            self.poll = true;
        }
        if value & 0x02 != 0 {
            self.read_isr = value & 0x01 != 0;
        }
        if value & 0x40 != 0 {
            self.special_mask = value & 0x20 != 0;
        }
    }

    fn write_command(&mut self, value: u8) {
        match value & 0x18 {
            0x00 => self.ocw2(value),
            0x08 => self.ocw3(value),
            _ => self.icw1(value),
        }
    }

    fn write_data(&mut self, value: u8) {
        let after_icw3 = if self.init4 { Expect::Icw4 } else { Expect::Ocw1 };
        let next = match self.expect {
            1 => {
                self.irq_base = value & 0xf8;
                if self.single { after_icw3 } else { Expect::Icw3 }
            }
            // The wiring of the pair is fixed, so the cascade word says nothing new.
            2 => after_icw3,
            3 => {
                self.special_fully_nested = value & 0x10 != 0;
                self.auto_eoi = value & 0x02 != 0;
                Expect::Ocw1
            }
            _ => {
                self.unmasked |= self.imr & !value;
                self.imr = value;
                Expect::Ocw1
            }
        };
        self.expect = next as u8;
    }

    /// A poll takes the request as an INTA would: bit 7 says there was one, bits 2:0 name the pin.
    fn poll_read(&mut self) -> u8 {
        self.poll = false;
        match self.request() {
            Some(pin) => {
                self.take(pin);
                0x80 | pin
            }
            None => 0,
        }
    }

    fn read_command(&mut self) -> u8 {
        match (self.poll, self.read_isr) {
            (true, _) => self.poll_read(),
            (false, true) => self.isr,
            (false, false) => self.irr,
        }
    }

    fn read_data(&mut self) -> u8 {
        if self.poll { self.poll_read() } else { self.imr }
    }

    /// A pin that becomes level triggered requests what its line says (`high`), not what an edge left behind: such
    /// a request would come back for ever.
    fn write_elcr(&mut self, value: u8, high: u8) {
        let elcr = value & self.elcr_mask;
        let becomes_level = elcr & !self.elcr;
        self.irr = (self.irr & !becomes_level) | ((high | self.last_irr) & becomes_level);
        self.elcr = elcr;
    }

    fn save(&self) -> kvm_pic_state {
        kvm_pic_state {
            last_irr: self.last_irr,
            irr: self.irr,
            imr: self.imr,
            isr: self.isr,
            priority_add: self.priority_add,
            irq_base: self.irq_base,
            read_reg_select: self.read_isr.into(),
            poll: self.poll.into(),
            special_mask: self.special_mask.into(),
            init_state: self.expect,
            auto_eoi: self.auto_eoi.into(),
            rotate_on_auto_eoi: self.rotate_on_auto_eoi.into(),
            special_fully_nested_mode: self.special_fully_nested.into(),
            init4: self.init4.into(),
            elcr: self.elcr,
            elcr_mask: self.elcr_mask,
        }
    }

    /// Takes any bytes; those that mean something come back as they were.
    fn load(&mut self, state: &kvm_pic_state) {
        self.last_irr = state.last_irr;
        self.irr = state.irr;
        self.imr = state.imr;
        self.isr = state.isr;
        self.priority_add = state.priority_add & 7;
        self.irq_base = state.irq_base;
        self.read_isr = state.read_reg_select != 0;
        self.poll = state.poll != 0;
        self.special_mask = state.special_mask != 0;
        self.expect = state.init_state & 3;
        self.auto_eoi = state.auto_eoi != 0;
        self.rotate_on_auto_eoi = state.rotate_on_auto_eoi != 0;
        self.special_fully_nested = state.special_fully_nested_mode != 0;
        self.init4 = state.init4 != 0;
        self.single = false;
        self.elcr = state.elcr;
        self.elcr_mask = state.elcr_mask;
        self.ended = 0;
        self.unmasked = 0;
    }
}

/// The pair, its wiring and its pins' sources.
#[derive(Zeroable)]
pub struct Pic {
    master: Chip,
    slave: Chip,
    lines: Lines<16>,
    output: bool,
    /// The output as the caller last heard of it.
    reported: bool,
}

impl Pic {
    /// Power-on state: everything cleared, all pins edge triggered and unmasked, vector base 0.
    pub fn init(&mut self) {
        *self = Zeroable::zeroed();
        self.master.elcr_mask = MASTER_ELCR_MASK;
        self.slave.elcr_mask = SLAVE_ELCR_MASK;
        self.master.is_master = true;
    }

    /// Whether [`Pic::io_read`] and [`Pic::io_write`] answer this port.
    pub fn claims(port: u16) -> bool {
        matches!(port, MASTER_COMMAND | MASTER_DATA | SLAVE_COMMAND | SLAVE_DATA | MASTER_ELCR | SLAVE_ELCR)
    }

    /// The level of the pair's INT pin, which LINT0 (or virtual wire) sees.
    pub fn output(&self) -> bool {
        self.output
    }

    /// The new level of the output if it differs from the one reported last. Look here after every call that
    /// may change it: an I/O access, a pin, an acknowledge, a load.
    pub fn take_output_change(&mut self) -> Option<bool> {
        let changed = self.output != self.reported;
        self.reported = self.output;
        changed.then_some(self.output)
    }

    /// One source drives `pin` (0 to 15). Pin 2 belongs to the cascade and ignores sources.
    pub fn set_irq(&mut self, pin: u8, source: Source, level: bool) -> LineStatus {
        if pin >= PINS || pin == CASCADE_PIN {
            return LineStatus::Ignored;
        }
        let level = self.lines.set(pin, source, level);
        let status = self.chip_of(pin).set_pin(pin & 7, level);
        self.update();
        status
    }

    /// The CPU acknowledges (INTA): returns the vector. With no request standing it is the spurious one, IRQ 7 of
    /// the master, which sets no ISR bit.
    pub fn ack(&mut self) -> u8 {
        let vector = match self.master.request() {
            Some(CASCADE_PIN) => {
                self.master.take(CASCADE_PIN);
                self.slave_vector()
            }
            Some(pin) => {
                self.master.take(pin);
                self.master.irq_base.wrapping_add(pin)
            }
            None => self.master.irq_base.wrapping_add(7),
        };
        self.update();
        vector
    }

    /// The slave's half of INTA; without a request it answers with its own spurious IRQ 15.
    fn slave_vector(&mut self) -> u8 {
        let pin = self.slave.request();
        if let Some(pin) = pin {
            self.slave.take(pin);
        }
        self.slave.irq_base.wrapping_add(pin.unwrap_or(7))
    }

    /// Pins whose interrupt the guest ended since the last call (bit n = pin n), for notifiers.
    pub fn take_eoi(&mut self) -> u16 {
        let ended = u16::from(self.master.ended) | u16::from(self.slave.ended) << 8;
        self.master.ended = 0;
        self.slave.ended = 0;
        ended & !u16::from(CASCADE)
    }

    /// Pins the guest unmasked since the last call; the PIT forgets lost ticks then.
    pub fn take_unmasked(&mut self) -> u16 {
        let unmasked = u16::from(self.master.unmasked) | u16::from(self.slave.unmasked) << 8;
        self.master.unmasked = 0;
        self.slave.unmasked = 0;
        unmasked
    }

    /// One chip's state for KVM_GET_IRQCHIP.
    pub fn save(&self, id: PicId) -> kvm_pic_state {
        match id {
            PicId::Master => self.master.save(),
            PicId::Slave => self.slave.save(),
        }
    }

    /// Puts one chip's state in place (KVM_SET_IRQCHIP); any bytes are accepted. The levels that sources hold are not
    /// part of the state and stay. The master's IRR bit of the cascade follows from the slave, whichever comes first.
    pub fn load(&mut self, id: PicId, state: &kvm_pic_state) {
        match id {
            PicId::Master => self.master.load(state),
            PicId::Slave => self.slave.load(state),
        }
        self.update();
    }

    /// Reads `size` bytes (1, 2 or 4) from `port` on; ports that are not the pair's read as 0xff.
    pub fn io_read(&mut self, port: u16, size: u8) -> u32 {
        let mut value = 0;
        for i in 0..size.min(4) {
            let byte = self.read_byte(port.wrapping_add(u16::from(i)));
            value |= u32::from(byte) << (8 * i);
        }
        self.update();
        value
    }

    /// Writes `size` bytes (1, 2 or 4) from `port` on. Afterwards look at [`Pic::take_output_change`],
    /// [`Pic::take_eoi`] and [`Pic::take_unmasked`].
    pub fn io_write(&mut self, port: u16, size: u8, value: u32) {
        for i in 0..size.min(4) {
            self.write_byte(port.wrapping_add(u16::from(i)), (value >> (8 * i)) as u8);
        }
        self.update();
    }

    fn read_byte(&mut self, port: u16) -> u8 {
        match port {
            MASTER_COMMAND => self.master.read_command(),
            MASTER_DATA => self.master.read_data(),
            SLAVE_COMMAND => self.slave.read_command(),
            SLAVE_DATA => self.slave.read_data(),
            MASTER_ELCR => self.master.elcr,
            SLAVE_ELCR => self.slave.elcr,
            _ => 0xff,
        }
    }

    fn write_byte(&mut self, port: u16, value: u8) {
        let [master_high, slave_high, ..] = self.lines.high().to_le_bytes();
        match port {
            MASTER_COMMAND => self.master.write_command(value),
            MASTER_DATA => self.master.write_data(value),
            SLAVE_COMMAND => self.slave.write_command(value),
            SLAVE_DATA => self.slave.write_data(value),
            MASTER_ELCR => self.master.write_elcr(value, master_high),
            SLAVE_ELCR => self.slave.write_elcr(value, slave_high),
            _ => {}
        }
    }

    fn chip_of(&mut self, pin: u8) -> &mut Chip {
        if pin < 8 { &mut self.master } else { &mut self.slave }
    }

    /// Carries the slave's INT to the master and recomputes the output.
    fn update(&mut self) {
        if self.slave.request().is_some() {
            self.master.irr |= CASCADE;
        } else {
            self.master.irr &= !CASCADE;
        }
        self.output = self.master.request().is_some();
    }
}
