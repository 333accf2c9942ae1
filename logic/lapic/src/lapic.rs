//! The owner's half of a local APIC: reset, priorities, acknowledge, EOI.
//!
//! ```text
//!  IRR ──ack──▶ ISR ──eoi──▶ (gone)      pending(): highest IRR vector whose class beats the PPR's
//!  PPR = max(TPR, highest ISR vector's class)
//! ```

use crate::bitmap::Bitmap;
use crate::shared::{FIRST_LEGAL_VECTOR, Shared};
use crate::timer::{Armed, Now, Timer};
use crate::{Config, EoiWork, Mode, Work};
use bytemuck::Zeroable;
use exitless_ipi::{Address, x2apic_ldr};
use exitless_x86::apic::{apic_base, lvt};

/// Which reset (SDM vol. 3A, 11.4.7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reset {
    /// Power-up or RESET: everything, IA32_APIC_BASE and id too.
    PowerUp,
    /// INIT: all registers but id and IA32_APIC_BASE.
    Init,
}

/// SVR bits.
pub(crate) mod svr {
    pub(crate) const ENABLE: u32 = 1 << 8;
    pub(crate) const FOCUS: u32 = 1 << 9;
    pub(crate) const SUPPRESS_EOI_BROADCAST: u32 = 1 << 12;
    pub(crate) const RESET: u32 = 0xff;
}

/// LVT0 of a boot CPU under the LINT0_REENABLED quirk: ExtINT, unmasked.
const LINT0_EXTINT: u32 = 7 << 8;

/// The local vector table.
#[derive(Clone, Copy, Debug, Zeroable)]
pub(crate) struct Lvt {
    pub(crate) timer: u32,
    pub(crate) thermal: u32,
    pub(crate) performance: u32,
    pub(crate) lint0: u32,
    pub(crate) lint1: u32,
    pub(crate) error: u32,
    pub(crate) cmci: u32,
}

impl Lvt {
    const RESET: Self = {
        const M: u32 = lvt::MASKED;
        Self { timer: M, thermal: M, performance: M, lint0: M, lint1: M, error: M, cmci: M }
    };

    fn mask_all(&mut self) {
        let Self { timer, thermal, performance, lint0, lint1, error, cmci } = self;
        for entry in [timer, thermal, performance, lint0, lint1, error, cmci] {
            *entry |= lvt::MASKED;
        }
    }
}

/// The part of a local APIC that only the vCPU's own thread touches. Every method that takes `s` means this vCPU's [`Shared`].
///
/// All zero until [`Lapic::init`].
#[derive(Debug, Zeroable)]
pub struct Lapic {
    pub(crate) vcpu_id: u32,
    pub(crate) bsp: bool,
    pub(crate) config: Config,
    /// IA32_APIC_BASE.
    pub(crate) base: u64,
    pub(crate) xapic_id: u8,
    /// xAPIC logical id, bits 31:24 of LDR. x2APIC mode derives LDR from the id instead.
    pub(crate) logical_id: u8,
    pub(crate) dfr: u32,
    pub(crate) svr: u32,
    pub(crate) tpr: u8,
    ppr: u8,
    /// Latched at the last ESR write.
    pub(crate) esr: u32,
    /// ICR as last written, delivery status clear: xAPIC keeps ICR2 in 63:32, x2APIC the 32-bit destination.
    pub(crate) icr: u64,
    pub(crate) lvt: Lvt,
    pub(crate) isr: Bitmap,
    pub(crate) timer: Timer,
}

impl Lapic {
    /// Puts a new vCPU's APIC in its power-up state. `vcpu_id` is the x2APIC id and, in its low 8 bits, the initial xAPIC id.
    pub fn init(&mut self, s: &Shared, vcpu_id: u32, bsp: bool, config: Config) {
        self.vcpu_id = vcpu_id;
        self.bsp = bsp;
        self.config = config;
        self.reset(s, Reset::PowerUp);
    }

    /// Replaces the configuration, as when the guest's CPUID is set. Registers stay.
    pub fn set_config(&mut self, config: Config) {
        self.config = config;
        self.timer.set_min_period(config.min_period_ns);
    }

    /// How [`Lapic::save`] writes, and [`Lapic::load`] reads, an id in x2APIC mode: [`Config::x2apic_format`].
    pub fn set_x2apic_format(&mut self, format: bool) {
        self.config.x2apic_format = format;
    }

    /// The configuration in force.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Resets. Forgets what is pending in the IRR; queued NMI, SMI, INIT and SIPI are the vCPU's business and stay.
    pub fn reset(&mut self, s: &Shared, kind: Reset) {
        if kind == Reset::PowerUp {
            let bsp = if self.bsp { apic_base::BSP } else { 0 };
            self.base = apic_base::DEFAULT_ADDRESS | apic_base::ENABLE | bsp;
            self.xapic_id = self.vcpu_id as u8;
        }
        self.reset_registers(s);
        self.publish(s);
    }

    /// The registers of SDM vol. 3A, 11.4.7.1.
    pub(crate) fn reset_registers(&mut self, s: &Shared) {
        self.logical_id = 0;
        self.dfr = u32::MAX;
        self.svr = svr::RESET;
        self.tpr = 0;
        self.esr = 0;
        self.icr = 0;
        self.lvt = Lvt::RESET;
        if self.bsp && self.config.lint0_reenabled {
            self.lvt.lint0 = LINT0_EXTINT;
        }
        self.isr = Bitmap::default();
        self.timer.reset(self.config.min_period_ns);
        s.clear_interrupts();
        self.update_ppr(s);
    }

    /// Shows senders everything they look at.
    pub(crate) fn publish(&self, s: &Shared) {
        let mode = self.mode();
        s.publish_lvt(self.lvt.lint0, self.lvt.lint1, self.lvt.error);
        let address = Address::new()
            .with_x2apic_id(self.vcpu_id)
            .with_xapic_id(self.xapic_id)
            .with_logical_id(self.logical_id)
            .with_flat(self.dfr >> 28 == 0xf)
            .with_hw_enabled(mode != Mode::Disabled)
            .with_sw_enabled(self.svr & svr::ENABLE != 0)
            .with_x2apic(mode == Mode::X2Apic)
            .with_default_page(self.mmio_base() == Some(apic_base::DEFAULT_ADDRESS));
        s.publish(address);
    }

    /// The id in the present mode.
    pub fn id(&self) -> u32 {
        if self.mode() == Mode::X2Apic { self.vcpu_id } else { u32::from(self.xapic_id) }
    }

    /// LDR as the present mode reads it.
    pub(crate) fn ldr(&self) -> u32 {
        if self.mode() == Mode::X2Apic { x2apic_ldr(self.vcpu_id) } else { u32::from(self.logical_id) << 24 }
    }

    /// Version register (SDM vol. 3A, 11.4.8): integrated APIC 0x14, LVT entries, EOI suppression.
    pub(crate) fn version(&self) -> u32 {
        let max_lvt_entry: u32 = if self.config.cmci { 6 } else { 5 };
        0x14 | max_lvt_entry << 16 | u32::from(self.config.directed_eoi) << 24
    }

    /// Task priority, 8 bits.
    pub fn tpr(&self) -> u8 {
        self.tpr
    }

    /// CR8: bits 7:4 of the TPR, 0..=15.
    pub fn cr8(&self) -> u8 {
        self.tpr >> 4
    }

    /// Processor priority, 8 bits.
    pub fn ppr(&self) -> u8 {
        self.ppr
    }

    /// Writes the TPR. Lowering it may make an interrupt deliverable.
    pub fn set_tpr(&mut self, s: &Shared, tpr: u8) -> Work {
        self.tpr = tpr;
        self.update_ppr(s);
        Work { rescan: true, ..Work::default() }
    }

    /// MOV to CR8 or KVM_RUN's `cr8`: bits 3:0 of `cr8` become TPR 7:4, the rest of the TPR 0. The caller checked reserved bits.
    pub fn set_cr8(&mut self, s: &Shared, cr8: u8) -> Work {
        self.set_tpr(s, cr8 << 4)
    }

    /// SDM vol. 3A, 11.8.3.1.
    pub(crate) fn update_ppr(&mut self, s: &Shared) {
        let in_service = self.isr.highest().unwrap_or(0);
        self.ppr = if self.tpr >> 4 >= in_service >> 4 { self.tpr } else { in_service & 0xf0 };
        s.publish_ppr(self.ppr);
    }

    /// The vector that the CPU should take now, if interrupts are open: the highest pending one if its class beats the PPR's.
    /// Reads the IRR: the owner clears its event request before calling.
    pub fn pending(&self, s: &Shared) -> Option<u8> {
        s.top_irr().filter(|vector| vector >> 4 > self.ppr >> 4 && self.mode() != Mode::Disabled)
    }

    /// Highest pending vector, whatever the PPR: what the hardware's TPR threshold must be compared with.
    pub fn top_irr(&self, s: &Shared) -> Option<u8> {
        s.top_irr()
    }

    /// Highest vector in service.
    pub fn top_isr(&self) -> Option<u8> {
        self.isr.highest()
    }

    /// The CPU takes `vector` (from [`Lapic::pending`]): IRR to ISR.
    pub fn ack(&mut self, s: &Shared, vector: u8) {
        s.take(vector);
        self.isr.insert(vector);
        self.update_ppr(s);
    }

    /// End of interrupt for the highest vector in service; `None` if there is none. Interrupts may be deliverable afterwards.
    pub fn eoi(&mut self, s: &Shared) -> Option<EoiWork> {
        let vector = self.isr.highest()?;
        self.isr.remove(vector);
        self.update_ppr(s);
        let level = s.is_level(vector);
        let suppressed = self.config.directed_eoi && self.svr & svr::SUPPRESS_EOI_BROADCAST != 0;
        Some(EoiWork { vector, level, broadcast: level && !suppressed })
    }

    /// The vector whose EOI the guest may skip (PV EOI): it is alone in service, edge triggered, and nothing waits in the IRR that
    /// the EOI would have to release. The caller also requires that no I/O APIC or notifier listens to it, asks again before each
    /// entry, and calls [`Lapic::eoi`] once the guest has cleared the flag.
    pub fn can_pv_eoi(&self, s: &Shared) -> Option<u8> {
        let vector = self.isr.highest()?;
        (self.isr.len() == 1 && !s.is_level(vector) && !s.has_irr()).then_some(vector)
    }

    /// Next expiry of the timer. `None` too while the APIC is disabled in IA32_APIC_BASE.
    pub fn armed(&self) -> Armed {
        if self.mode() == Mode::Disabled { Armed::None } else { self.timer.armed() }
    }

    /// The timer is in TSC-deadline mode, and what it expires for is delivered: the APIC is on, the entry is not masked.
    pub fn expires_by_deadline(&self) -> bool {
        self.mode() != Mode::Disabled && self.timer.is_deadline_mode() && self.lvt.timer & lvt::MASKED == 0
    }

    /// To be called when the host timer fired or the expiry may have passed. If it has: posts the LVTT vector unless masked, clears
    /// a deadline, moves a periodic expiry on, and returns true (look at `pending` and `armed` again). Otherwise changes nothing.
    pub fn expire(&mut self, s: &Shared, now: &Now) -> bool {
        self.expire_into(s, now, |vector| _ = s.post(vector, false))
    }

    /// As [`Lapic::expire`], by an owner who knows where the IRR is: `put` sets the vector's bit.
    pub fn expire_into(&mut self, s: &Shared, now: &Now, put: impl FnOnce(u8)) -> bool {
        let fired = self.mode() != Mode::Disabled && self.timer.expire(now);
        let vector = self.lvt.timer as u8;
        if fired && self.lvt.timer & lvt::MASKED == 0 && s.accept_own(vector) {
            put(vector);
        }
        fired
    }

    /// The vector, where the timer expires once, in TSC-deadline mode, with nothing to be computed then: not masked, a legal one.
    pub fn plain_deadline(&self) -> Option<u8> {
        let vector = self.lvt.timer as u8;
        let open = self.lvt.timer & lvt::MASKED == 0 && vector >= FIRST_LEGAL_VECTOR;
        (open && self.timer.is_deadline_mode() && self.mode() != Mode::Disabled).then_some(vector)
    }

    /// Somebody else has posted the vector of the deadline: that is over.
    pub fn deadline_posted(&mut self) {
        self.timer.set_deadline(0);
    }

    /// The timer's interrupt is masked.
    pub fn timer_masked(&self) -> bool {
        self.lvt.timer & lvt::MASKED != 0
    }

    /// The TSC-deadline MSR as the guest reads it: 0 when disarmed, expired, in another mode or with the APIC disabled.
    pub fn tsc_deadline(&self) -> u64 {
        if self.mode() == Mode::Disabled { 0 } else { self.timer.deadline() }
    }

    /// The APIC is on and in the mode that the TSC-deadline MSR is for.
    pub fn takes_tsc_deadline(&self) -> bool {
        self.mode() != Mode::Disabled && self.timer.is_deadline_mode()
    }

    /// Takes a write of the TSC-deadline MSR; false: ignored, in another mode or with the APIC disabled. A deadline that has passed fires
    /// at once: [`Lapic::expire`] follows, which then leaves the vector in the IRR and the MSR at 0.
    pub fn set_tsc_deadline(&mut self, deadline: u64) -> bool {
        let taken = self.takes_tsc_deadline();
        if taken {
            self.timer.set_deadline(deadline);
        }
        taken
    }

    /// User space has written the TSC-deadline MSR while [`Lapic::set_tsc_deadline`] ignores it: a VMM that restores the MSR before the
    /// registers. [`Lapic::load`] arms it, if it brings the mode; whatever else changes the mode forgets it.
    pub fn keep_tsc_deadline(&mut self, deadline: u64) {
        self.timer.keep_deadline(deadline);
    }

    /// SVR was written (SDM vol. 3A, 11.4.7.2): disabling masks the whole LVT.
    pub(crate) fn set_svr(&mut self, value: u32) {
        let suppress = if self.config.directed_eoi { svr::SUPPRESS_EOI_BROADCAST } else { 0 };
        self.svr = value & (0xff | svr::ENABLE | svr::FOCUS | suppress);
        if self.svr & svr::ENABLE == 0 {
            self.lvt.mask_all();
        }
    }
}
