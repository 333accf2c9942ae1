//! The chips behind GSIs: one call raises a GSI on every target its routes name.

use crate::ioapic::{Ioapic, Raised};
use crate::lines::{LineStatus, Source};
use crate::msi::{DestinationFormat, Msi};
use crate::pic::Pic;
use crate::routes::{Route, Target, lookup};
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

    /// One source drives `gsi`. MSI routes fire on high and ignore low. The result is KVM_IRQ_LINE_STATUS's.
    pub fn set_gsi(
        &mut self,
        routes: &[Route],
        gsi: u32,
        source: Source,
        level: bool,
        format: DestinationFormat,
        sink: &mut impl FnMut(Effect) -> u32,
    ) -> LineStatus {
        let mut status = LineStatus::Ignored;
        for route in lookup(routes, gsi) {
            let one = match route.target {
                Target::Pic(pin) => self.set_pic(pin, source, level, sink),
                Target::Ioapic(pin) => self.set_ioapic(pin, source, level, sink),
                Target::Msi(msi) => send_msi(msi, level, format, sink),
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

/// Raises `gsi` where no chip is in the kernel (KVM_CAP_SPLIT_IRQCHIP): only MSI routes count.
pub fn set_msi_gsi(
    routes: &[Route],
    gsi: u32,
    level: bool,
    format: DestinationFormat,
    sink: &mut impl FnMut(Effect) -> u32,
) -> LineStatus {
    let mut status = LineStatus::Ignored;
    for route in lookup(routes, gsi) {
        if let Target::Msi(msi) = route.target {
            status = status.merge(send_msi(msi, level, format, sink));
        }
    }
    status
}

/// Delivers one MSI (an MSI route, or KVM_SIGNAL_MSI with `level` true).
pub fn send_msi(
    msi: Msi,
    level: bool,
    format: DestinationFormat,
    sink: &mut impl FnMut(Effect) -> u32,
) -> LineStatus {
    if !level {
        return LineStatus::Ignored;
    }
    delivered(sink(Effect::Deliver(msi.message(format))))
}

fn delivered(count: u32) -> LineStatus {
    if count == 0 { LineStatus::Coalesced } else { LineStatus::Delivered(count) }
}
