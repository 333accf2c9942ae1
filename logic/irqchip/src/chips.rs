//! The chips behind GSIs: one call raises a GSI on every pin that its routes name.

use crate::ioapic::{Ioapic, Raised};
use crate::lines::{LineStatus, Source};
use crate::pic::Pic;
use crate::routes::{Route, Target};
use bytemuck::Zeroable;
use exitless_x86::apic::InterruptMessage;

/// What raising a GSI asks the caller to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Deliver to the local APICs. The sink returns how many took it, 0 if it merged with a pending one.
    Deliver(InterruptMessage),
    /// The pair's output changed to this level (wake the boot CPU on true). The sink's result is ignored.
    PicChanged(bool),
}

/// The pair and the I/O APIC of a full irqchip, under one lock.
#[derive(Zeroable)]
pub struct IrqChips {
    /// The 8259 pair.
    pub pic: Pic,
    /// The I/O APIC.
    pub ioapic: Ioapic,
}

impl IrqChips {
    /// Power-on state of both.
    pub fn init(&mut self) {
        self.pic.init();
        self.ioapic.init();
    }

    /// One source drives the pins that `routes`, all of one GSI, name. The result is KVM_IRQ_LINE_STATUS's.
    ///
    /// A message is not for chips: see [`crate::routes::message`].
    pub fn set_pins(
        &mut self,
        routes: &[Route],
        source: Source,
        level: bool,
        sink: &mut impl FnMut(Effect) -> u32,
    ) -> LineStatus {
        let mut status = LineStatus::Ignored;
        for route in routes {
            let one = match route.target {
                Target::Pic(pin) => self.set_pic(pin, source, level, sink),
                Target::Ioapic(pin) => self.set_ioapic(pin, source, level, sink),
                Target::Msi(_) => LineStatus::Ignored,
            };
            status = status.merge(one);
        }
        status
    }

    fn set_pic(
        &mut self,
        pin: u8,
        source: Source,
        level: bool,
        sink: &mut impl FnMut(Effect) -> u32,
    ) -> LineStatus {
        let status = self.pic.set_irq(pin, source, level);
        if let Some(output) = self.pic.take_output_change() {
            sink(Effect::PicChanged(output));
        }
        status
    }

    fn set_ioapic(
        &mut self,
        pin: u8,
        source: Source,
        level: bool,
        sink: &mut impl FnMut(Effect) -> u32,
    ) -> LineStatus {
        match self.ioapic.set_irq(pin, source, level) {
            Raised::Nothing(status) => status,
            Raised::Deliver(message) => delivered(sink(Effect::Deliver(message))),
        }
    }
}

/// What a message came to that so many local APICs took; 0: it merged with a pending one.
pub fn delivered(count: u32) -> LineStatus {
    if count == 0 { LineStatus::Coalesced } else { LineStatus::Delivered(count) }
}
