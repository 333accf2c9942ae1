//! The registers while hardware has them: APIC virtualisation works on a page of its own (SDM vol. 3C, 30.1), laid out like
//! the xAPIC's. This side hands the registers out and takes them back.

use crate::bitmap::Bitmap;
use crate::shared::Shared;
use crate::{Lapic, Mode};
use exitless_x86::apic::reg;

impl Lapic {
    /// The ISR, word n for vectors `32 * n` upwards.
    pub fn in_service(&self) -> [u32; 8] {
        self.isr.0
    }

    /// Takes back what hardware changes by itself.
    pub fn adopt(&mut self, s: &Shared, tpr: u8, isr: [u32; 8]) {
        self.tpr = tpr;
        self.isr = Bitmap(isr);
        self.update_ppr(s);
    }

    /// Takes back the ICR of the page: hardware takes writes of its upper half, and of self-IPIs (AVIC: of others too), without
    /// telling. Sends nothing.
    pub fn adopt_icr(&mut self, low: u32, high: u32) {
        let high = if self.mode() == Mode::X2Apic { high } else { high & 0xff00_0000 };
        let icr = u64::from(low) | u64::from(high) << 32;
        self.keep_icr(icr);
    }

    /// Shows the registers that change only when software writes them, each at its offset in the page. Not among them: TPR,
    /// ISR, IRR, TMR, and the current count, which runs.
    pub fn show(&self, mut put: impl FnMut(u32, u32)) {
        let x2apic = self.mode() == Mode::X2Apic;
        put(reg::ID, if x2apic { self.vcpu_id } else { u32::from(self.xapic_id) << 24 });
        put(reg::VERSION, self.version());
        put(reg::LDR, self.ldr());
        put(reg::DFR, self.dfr);
        put(reg::SVR, self.svr);
        put(reg::ESR, self.esr);
        put(reg::ICR, self.icr as u32);
        put(reg::ICR2, (self.icr >> 32) as u32);
        let entries =
            [reg::LVT_TIMER, reg::LVT_THERMAL, reg::LVT_PC, reg::LVT_LINT0, reg::LVT_LINT1, reg::LVT_ERROR];
        for offset in entries {
            put(offset, self.lvt.entry(offset).copied().unwrap_or(0));
        }
        put(reg::LVT_CMCI, if self.config.cmci { self.lvt.cmci } else { 0 });
        put(reg::TMICT, self.timer.initial());
        put(reg::TDCR, self.timer.divide());
    }
}
