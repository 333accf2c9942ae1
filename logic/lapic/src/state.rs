//! KVM_GET_LAPIC and KVM_SET_LAPIC: the registers as a 1024-byte page, each at its xAPIC offset.
//!
//! In x2APIC mode too ICR and ICR2 are two registers of the page, and LDR is written but ignored when read back. The TSC deadline
//! is not in the page: it travels as an MSR.

use crate::access::lvt_writable;
use crate::lapic::svr;
use crate::shared::Shared;
use crate::timer::Now;
use crate::{Lapic, Mode};
use exitless_x86::apic::{Icr, lvt, reg};

/// The page is not one that this APIC can have: an x2APIC id that is not the vCPU's. Nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadState;

/// Size of the page in bytes.
const PAGE: usize = 1024;

/// LVT entries in page order; the CMCI entry is saved apart because it may not exist.
const LVT_ENTRIES: [u32; 5] = [reg::LVT_THERMAL, reg::LVT_PC, reg::LVT_LINT0, reg::LVT_LINT1, reg::LVT_ERROR];

impl Lapic {
    /// Writes the registers. A one-shot timer that is due but whose interrupt is not posted yet saves TMCCT 1, so it fires after
    /// [`Lapic::load`]; a due deadline still shows in [`Lapic::tsc_deadline`].
    pub fn save(&self, s: &Shared, now: &Now, out: &mut [u8; PAGE]) {
        out.fill(0);
        put(out, reg::ID, self.id_to_save());
        put(out, reg::VERSION, self.version());
        put(out, reg::TPR, u32::from(self.tpr));
        put(out, reg::PPR, u32::from(self.ppr()));
        put(out, reg::LDR, self.ldr());
        put(out, reg::DFR, self.dfr);
        put(out, reg::SVR, self.svr);
        put(out, reg::ESR, self.esr);
        put(out, reg::ICR, self.icr as u32);
        put(out, reg::ICR2, (self.icr >> 32) as u32);
        for (index, word) in self.isr.0.iter().enumerate() {
            put(out, bank(reg::ISR, index), *word);
            put(out, bank(reg::TMR, index), s.tmr_word(index));
            put(out, bank(reg::IRR, index), s.irr_word(index));
        }
        put(out, reg::LVT_TIMER, self.lvt.timer);
        for offset in LVT_ENTRIES {
            put(out, offset, self.lvt.entry(offset).copied().unwrap_or(0));
        }
        if self.config.cmci {
            put(out, reg::LVT_CMCI, self.lvt.cmci);
        }
        put(out, reg::TMICT, self.timer.initial());
        put(out, reg::TMCCT, self.timer.current_to_save(now));
        put(out, reg::TDCR, self.timer.divide());
    }

    /// Takes over registers. IA32_APIC_BASE is to be restored before, IA32_TSC_DEADLINE after or before. The caller then looks at
    /// [`Lapic::pending`] and [`Lapic::armed`], and re-evaluates routing.
    pub fn load(&mut self, s: &Shared, regs: &[u8; PAGE], now: &Now) -> Result<(), BadState> {
        self.load_id(get(regs, reg::ID))?;
        self.tpr = get(regs, reg::TPR) as u8;
        self.logical_id = if self.mode() == Mode::X2Apic { 0 } else { (get(regs, reg::LDR) >> 24) as u8 };
        self.dfr = get(regs, reg::DFR) | 0x0fff_ffff;
        self.set_svr(get(regs, reg::SVR));
        self.esr = get(regs, reg::ESR);
        let icr = u64::from(get(regs, reg::ICR)) | u64::from(get(regs, reg::ICR2)) << 32;
        self.icr = Icr::from(icr).with_pending(false).into();
        self.load_lvt(regs);
        self.load_timer(regs, now);
        self.load_vectors(s, regs);
        self.update_ppr(s);
        self.publish(s);
        Ok(())
    }

    fn id_to_save(&self) -> u32 {
        match (self.mode(), self.config.x2apic_format) {
            (Mode::X2Apic, true) => self.vcpu_id,
            (Mode::X2Apic, false) => self.vcpu_id << 24,
            _ => u32::from(self.xapic_id) << 24,
        }
    }

    /// The x2APIC id is the vCPU's and cannot change; in the 8-bit format its upper bits are lost, so it is not compared.
    fn load_id(&mut self, id: u32) -> Result<(), BadState> {
        match (self.mode(), self.config.x2apic_format) {
            (Mode::X2Apic, true) if id != self.vcpu_id => return Err(BadState),
            (Mode::X2Apic, _) => (),
            _ => self.xapic_id = (id >> 24) as u8,
        }
        Ok(())
    }

    /// Masks of a software-disabled APIC are taken as saved: reset may leave LINT0 open.
    fn load_lvt(&mut self, regs: &[u8; PAGE]) {
        self.lvt.timer = get(regs, reg::LVT_TIMER) & self.lvt_timer_writable();
        for offset in LVT_ENTRIES {
            if let Some(entry) = self.lvt.entry_mut(offset) {
                *entry = get(regs, offset) & lvt_writable(offset);
            }
        }
        let cmci = get(regs, reg::LVT_CMCI) & lvt_writable(reg::LVT_CMCI);
        self.lvt.cmci = if self.config.cmci { cmci } else { lvt::MASKED };
    }

    fn load_timer(&mut self, regs: &[u8; PAGE], now: &Now) {
        let mode = self.lvt.timer & lvt::TIMER_MODE;
        let (initial, current) = (get(regs, reg::TMICT), get(regs, reg::TMCCT));
        self.timer.restore(mode, initial, get(regs, reg::TDCR), current, now);
    }

    /// As they are, illegal vectors too: those are of priority class 0, so never deliverable, and userspace reads them back.
    fn load_vectors(&mut self, s: &Shared, regs: &[u8; PAGE]) {
        for (index, word) in self.isr.0.iter_mut().enumerate() {
            *word = get(regs, bank(reg::ISR, index));
            s.set_words(index, get(regs, bank(reg::TMR, index)), get(regs, bank(reg::IRR, index)));
        }
    }

    /// SVR bit 8, whatever IA32_APIC_BASE says.
    pub fn sw_enabled(&self) -> bool {
        self.svr & svr::ENABLE != 0
    }
}

fn bank(first: u32, index: usize) -> u32 {
    first + (index as u32) * 16
}

fn put(page: &mut [u8; PAGE], offset: u32, value: u32) {
    let start = offset as usize;
    if let Some(bytes) = page.get_mut(start..start + 4) {
        bytes.copy_from_slice(&value.to_le_bytes());
    }
}

fn get(page: &[u8; PAGE], offset: u32) -> u32 {
    let start = offset as usize;
    page.get(start..start + 4).and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_le_bytes)
}
