//! Register access: the xAPIC page and the x2APIC MSRs (SDM vol. 3A, tables 11-1 and 11-6).
//!
//! Differences: x2APIC checks reserved bits (#GP), has one 64-bit ICR, SELF_IPI and no DFR; xAPIC ignores what it does not know.

use crate::lapic::{Lvt, svr};
use crate::shared::{FIRST_LEGAL_VECTOR, Shared, esr};
use crate::timer::Now;
use crate::{Gp, Lapic, Mode, Work};
use exitless_x86::apic::{DeliveryMode, Icr, InterruptMessage, Shorthand, lvt, reg};

/// ICR bits that must be 0 in x2APIC mode; delivery status (12) is ignored.
const X2APIC_ICR_RESERVED: u64 = 0xfff3_2000;

/// First x2APIC MSR: register offset 0.
const X2APIC_MSR_BASE: u32 = 0x800;

impl Lapic {
    /// Reads the register at `offset` of the xAPIC page. Registers are 32 bits wide at multiples of 16; all else reads 0.
    /// Meaningless unless [`Lapic::mmio_base`] is `Some`.
    pub fn mmio_read(&self, s: &Shared, offset: u32, now: &Now) -> u32 {
        match offset {
            reg::ID => u32::from(self.xapic_id) << 24,
            reg::DFR => self.dfr,
            reg::ICR => self.icr as u32,
            reg::ICR2 => (self.icr >> 32) as u32,
            _ => self.read_common(s, offset, now).unwrap_or(0),
        }
    }

    /// Writes the register at `offset` of the xAPIC page; read-only and unknown registers ignore it.
    pub fn mmio_write(&mut self, s: &Shared, offset: u32, value: u32, now: &Now) -> Work {
        match offset {
            reg::ID => self.write_id(s, (value >> 24) as u8),
            reg::LDR => self.write_ldr(s, (value >> 24) as u8),
            reg::DFR => self.write_dfr(s, value),
            reg::ICR => self.write_icr(s, self.icr & !0xffff_ffff | u64::from(value)),
            reg::ICR2 => self.write_icr2(value),
            _ => self.write_common(s, offset, value, now).unwrap_or_default(),
        }
    }

    /// RDMSR of 0x800..=0x8ff. #GP outside x2APIC mode, for unknown and for write-only registers.
    pub fn msr_read(&self, s: &Shared, msr: u32, now: &Now) -> Result<u64, Gp> {
        let offset = self.x2apic_offset(msr)?;
        match offset {
            reg::ID => Ok(u64::from(self.vcpu_id)),
            reg::ICR => Ok(self.icr),
            _ => self.read_common(s, offset, now).map(u64::from).ok_or(Gp),
        }
    }

    /// WRMSR of 0x800..=0x8ff. #GP outside x2APIC mode, for unknown and read-only registers and for reserved bits.
    pub fn msr_write(&mut self, s: &Shared, msr: u32, value: u64, now: &Now) -> Result<Work, Gp> {
        let offset = self.x2apic_offset(msr)?;
        if value & self.x2apic_reserved(offset) != 0 {
            return Err(Gp);
        }
        match offset {
            reg::ICR => Ok(self.write_icr(s, value)),
            reg::SELF_IPI => Ok(self.write_self_ipi(s, value as u8)),
            _ => self.write_common(s, offset, value as u32, now).ok_or(Gp),
        }
    }

    fn x2apic_offset(&self, msr: u32) -> Result<u32, Gp> {
        let index = msr.checked_sub(X2APIC_MSR_BASE).filter(|index| *index <= 0xff).ok_or(Gp)?;
        if self.mode() == Mode::X2Apic { Ok(index << 4) } else { Err(Gp) }
    }

    /// Bits of an x2APIC register that a write must leave 0. Read-only bits of the LVT are ignored, not reserved.
    fn x2apic_reserved(&self, offset: u32) -> u64 {
        !match offset {
            reg::ICR => !X2APIC_ICR_RESERVED,
            reg::SELF_IPI | reg::TPR => 0xff,
            reg::SVR => u64::from(0xff | svr::ENABLE | svr::FOCUS | self.eoi_suppression()),
            reg::TDCR => 0xb,
            reg::TMICT => 0xffff_ffff,
            // What is no entry is EOI or ESR, which take 0 only, or is not written at all.
            _ => u64::from(lvt_writable(offset) | lvt_read_only(offset)),
        }
    }

    fn eoi_suppression(&self) -> u32 {
        if self.config.directed_eoi { svr::SUPPRESS_EOI_BROADCAST } else { 0 }
    }

    /// Registers that read alike in both modes.
    fn read_common(&self, s: &Shared, offset: u32, now: &Now) -> Option<u32> {
        Some(match offset {
            reg::VERSION => self.version(),
            reg::TPR => u32::from(self.tpr),
            reg::PPR => u32::from(self.ppr()),
            reg::LDR => self.ldr(),
            reg::SVR => self.svr,
            reg::ISR..0x180 => self.isr.0.get(bank_index(offset)?).copied()?,
            reg::TMR..0x200 => s.tmr_word(bank_index(offset)?),
            reg::IRR..0x280 => s.irr_word(bank_index(offset)?),
            reg::ESR => self.esr,
            reg::TMICT => self.timer.initial(),
            reg::TMCCT => self.timer.current(now),
            reg::TDCR => self.timer.divide(),
            reg::LVT_CMCI if !self.config.cmci => return None,
            _ => *self.lvt.entry(offset)?,
        })
    }

    /// Registers that write alike in both modes; `None`: there is no such register, or it is read-only.
    fn write_common(&mut self, s: &Shared, offset: u32, value: u32, now: &Now) -> Option<Work> {
        Some(match offset {
            reg::TPR => self.set_tpr(s, value as u8),
            reg::EOI => self.write_eoi(s),
            reg::SVR => self.write_svr(s, value),
            reg::ESR => self.write_esr(s),
            reg::TMICT => self.write_initial_count(value, now),
            reg::TDCR => self.write_divide(value, now),
            reg::LVT_TIMER => self.write_lvt_timer(value),
            reg::LVT_CMCI if !self.config.cmci => return None,
            _ => self.write_lvt(s, offset, value)?,
        })
    }

    fn write_eoi(&mut self, s: &Shared) -> Work {
        let eoi = self.eoi(s);
        Work { eoi, rescan: eoi.is_some(), ..Work::default() }
    }

    fn write_svr(&mut self, s: &Shared, value: u32) -> Work {
        self.set_svr(value);
        self.publish(s);
        Work { rescan: true, routing_changed: true, ..Work::default() }
    }

    /// Latches the errors since the last write and rearms the error interrupt (SDM vol. 3A, 11.5.3).
    fn write_esr(&mut self, s: &Shared) -> Work {
        self.esr = s.take_errors();
        Work::default()
    }

    fn write_id(&mut self, s: &Shared, id: u8) -> Work {
        self.xapic_id = id;
        self.readdressed(s)
    }

    fn write_ldr(&mut self, s: &Shared, logical_id: u8) -> Work {
        self.logical_id = logical_id;
        self.readdressed(s)
    }

    fn write_dfr(&mut self, s: &Shared, value: u32) -> Work {
        self.dfr = value | 0x0fff_ffff;
        self.readdressed(s)
    }

    fn readdressed(&mut self, s: &Shared) -> Work {
        self.publish(s);
        Work { routing_changed: true, ..Work::default() }
    }

    fn write_icr2(&mut self, value: u32) -> Work {
        self.keep_destination(value);
        Work::default()
    }

    /// The upper half of the xAPIC's ICR was written.
    pub fn keep_destination(&mut self, value: u32) {
        self.icr = self.icr & 0xffff_ffff | u64::from(value & 0xff00_0000) << 32;
    }

    /// Keeps the value with delivery status clear and sends what it says.
    fn write_icr(&mut self, s: &Shared, value: u64) -> Work {
        self.keep_icr(value);
        self.send(s, Icr::from(value).message(self.mode() == Mode::X2Apic))
    }

    /// The ICR.
    pub fn icr(&self) -> u64 {
        self.icr
    }

    /// What a write of `value` to the ICR sends. `None`: it does not just send, [`Lapic::msr_write`] and [`Lapic::mmio_write`]
    /// know the rest: reserved bits, an illegal vector.
    pub fn icr_message(&self, value: u64) -> Option<InterruptMessage> {
        let x2apic = self.mode() == Mode::X2Apic;
        let reserved = if x2apic { X2APIC_ICR_RESERVED } else { 0 };
        let mut message = Icr::from(value).message(x2apic);
        settle_trigger(&mut message);
        (value & reserved == 0 && !is_illegal(&message)).then_some(message)
    }

    /// The ICR was written, and its message is sent.
    pub fn keep_icr(&mut self, value: u64) {
        self.icr = Icr::from(value).with_pending(false).into();
    }

    /// The same of an [`exitless_ipi::PlainIpi`], which does not read back as pending.
    #[inline(always)]
    pub fn keep_sent(&mut self, plain: u64) {
        self.icr = plain;
    }

    fn write_self_ipi(&mut self, s: &Shared, vector: u8) -> Work {
        self.send(s, self_ipi(vector))
    }

    /// A write of `value` to SELF_IPI, if it is an interrupt for this APIC and nothing else: requested now. `false`: nothing was
    /// done, see [`Lapic::icr_message`].
    pub fn interrupt_self(&mut self, s: &Shared, value: u64) -> bool {
        let message = self_ipi(value as u8);
        let plain = value <= 0xff && self.mode() == Mode::X2Apic && !is_illegal(&message);
        if plain {
            s.accept(&message);
        }
        plain
    }

    fn send(&mut self, s: &Shared, mut message: InterruptMessage) -> Work {
        if is_illegal(&message) {
            s.raise_error(esr::SEND_ILLEGAL_VECTOR);
            return Work { rescan: true, ..Work::default() };
        }
        settle_trigger(&mut message);
        if message.shorthand == Shorthand::SelfOnly && message.mode == DeliveryMode::FIXED {
            s.accept(&message);
            return Work { rescan: true, ..Work::default() };
        }
        Work { ipi: Some(message), ..Work::default() }
    }

    fn write_initial_count(&mut self, value: u32, now: &Now) -> Work {
        self.timer.set_initial(value, now);
        Work { timer_changed: true, ..Work::default() }
    }

    fn write_divide(&mut self, value: u32, now: &Now) -> Work {
        self.timer.set_divide(value, now);
        Work { timer_changed: true, ..Work::default() }
    }

    fn write_lvt_timer(&mut self, value: u32) -> Work {
        self.lvt.timer = self.entry_to_keep(value, self.lvt_timer_writable());
        self.timer.set_mode(self.lvt.timer & lvt::TIMER_MODE);
        Work { timer_changed: true, ..Work::default() }
    }

    /// LVTT without the TSC-deadline feature has no bit 18.
    pub(crate) fn lvt_timer_writable(&self) -> u32 {
        let mode = if self.config.tsc_deadline { lvt::TIMER_MODE } else { lvt::TIMER_PERIODIC };
        lvt::VECTOR | lvt::MASKED | mode
    }

    fn write_lvt(&mut self, s: &Shared, offset: u32, value: u32) -> Option<Work> {
        let value = self.entry_to_keep(value, lvt_writable(offset));
        *self.lvt.entry_mut(offset)? = value;
        s.publish_lvt(self.lvt.lint0, self.lvt.lint1, self.lvt.error);
        Some(Work { rescan: offset == reg::LVT_LINT0, ..Work::default() })
    }

    /// A software-disabled APIC keeps its LVT masked (SDM vol. 3A, 11.4.7.2).
    fn entry_to_keep(&self, value: u32, writable: u32) -> u32 {
        let forced = if self.svr & svr::ENABLE == 0 { lvt::MASKED } else { 0 };
        value & writable | forced
    }
}

/// What SELF_IPI sends.
fn self_ipi(vector: u8) -> InterruptMessage {
    InterruptMessage {
        destination: 0,
        logical: false,
        mode: DeliveryMode::FIXED,
        vector,
        level: false,
        assert: true,
        shorthand: Shorthand::SelfOnly,
        x2apic: true,
    }
}

/// A vector that no APIC can take (SDM vol. 3A, 11.5.2).
fn is_illegal(message: &InterruptMessage) -> bool {
    let carries_vector = matches!(message.mode, DeliveryMode::FIXED | DeliveryMode::LOWEST);
    carries_vector && message.vector < FIRST_LEGAL_VECTOR
}

/// The trigger mode means something for INIT level de-assert only (SDM vol. 3A, 11.6.1).
fn settle_trigger(message: &mut InterruptMessage) {
    message.level &= message.mode == DeliveryMode::INIT;
}

impl Lvt {
    pub(crate) fn entry(&self, offset: u32) -> Option<&u32> {
        Some(match offset {
            reg::LVT_TIMER => &self.timer,
            reg::LVT_THERMAL => &self.thermal,
            reg::LVT_PC => &self.performance,
            reg::LVT_LINT0 => &self.lint0,
            reg::LVT_LINT1 => &self.lint1,
            reg::LVT_ERROR => &self.error,
            reg::LVT_CMCI => &self.cmci,
            _ => return None,
        })
    }

    /// Not the timer's entry, which comes with the timer's mode.
    pub(crate) fn entry_mut(&mut self, offset: u32) -> Option<&mut u32> {
        Some(match offset {
            reg::LVT_THERMAL => &mut self.thermal,
            reg::LVT_PC => &mut self.performance,
            reg::LVT_LINT0 => &mut self.lint0,
            reg::LVT_LINT1 => &mut self.lint1,
            reg::LVT_ERROR => &mut self.error,
            reg::LVT_CMCI => &mut self.cmci,
            _ => return None,
        })
    }
}

/// Writable bits per LVT entry (SDM vol. 3A, figure 11-8); 0 for what is not an entry.
pub(crate) fn lvt_writable(offset: u32) -> u32 {
    match offset {
        reg::LVT_TIMER => lvt::VECTOR | lvt::MASKED | lvt::TIMER_MODE,
        reg::LVT_THERMAL | reg::LVT_PC | reg::LVT_CMCI => lvt::VECTOR | lvt::MASKED | lvt::MODE,
        reg::LVT_LINT0 | reg::LVT_LINT1 => lvt::VECTOR | lvt::MASKED | lvt::MODE | lvt::POLARITY | lvt::LEVEL,
        reg::LVT_ERROR => lvt::VECTOR | lvt::MASKED,
        _ => 0,
    }
}

/// Bits per LVT entry that only the APIC writes.
fn lvt_read_only(offset: u32) -> u32 {
    match offset {
        reg::LVT_LINT0 | reg::LVT_LINT1 => lvt::PENDING | lvt::REMOTE_IRR,
        _ if lvt_writable(offset) != 0 => lvt::PENDING,
        _ => 0,
    }
}

/// Word of a 256-bit register bank; `None` between the registers.
fn bank_index(offset: u32) -> Option<usize> {
    (offset & 0xf == 0).then_some((offset as usize >> 4) & 7)
}
