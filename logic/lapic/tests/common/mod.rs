//! One vCPU's APIC for the tests, with the plumbing that the vCPU would do.
#![allow(dead_code, unreachable_pub, unused_must_use)]

use bytemuck::Zeroable;
use exitless_lapic::*;
use exitless_x86::apic::*;

pub const T0: Now = Now { ns: 1_000_000, guest_tsc: 5_000_000 };
pub const CAPS: BaseCaps = BaseCaps { x2apic: true, maxphyaddr: 40 };

/// Both halves of one APIC and a clock.
pub struct Cpu {
    pub s: Box<Shared>,
    pub l: Box<Lapic>,
    pub now: Now,
}

impl Cpu {
    /// Power-up state.
    pub fn raw(id: u32, bsp: bool, config: Config) -> Self {
        let mut cpu = Self { s: Box::new(Shared::zeroed()), l: Box::new(Lapic::zeroed()), now: T0 };
        cpu.l.init(&cpu.s, id, bsp, config);
        cpu
    }

    /// Software-enabled, xAPIC mode.
    pub fn xapic(id: u32) -> Self {
        let mut cpu = Self::raw(id, false, Config::default());
        cpu.write(reg::SVR, 0x1ff);
        cpu
    }

    /// Software-enabled, x2APIC mode.
    pub fn x2apic(id: u32) -> Self {
        let mut cpu = Self::xapic(id);
        cpu.base(cpu.l.apic_base() | apic_base::X2APIC).unwrap();
        cpu
    }

    pub fn read(&self, offset: u32) -> u32 {
        self.l.mmio_read(&self.s, offset, &self.now)
    }

    pub fn write(&mut self, offset: u32, value: u32) -> Work {
        self.l.mmio_write(&self.s, offset, value, &self.now)
    }

    pub fn rdmsr(&self, offset: u32) -> Result<u64, Gp> {
        self.l.msr_read(&self.s, 0x800 + offset / 16, &self.now)
    }

    pub fn wrmsr(&mut self, offset: u32, value: u64) -> Result<Work, Gp> {
        self.l.msr_write(&self.s, 0x800 + offset / 16, value, &self.now)
    }

    /// Guest write of IA32_APIC_BASE.
    pub fn base(&mut self, value: u64) -> Result<Work, Gp> {
        self.l.set_apic_base(&self.s, value, CAPS, false)
    }

    /// Host write of IA32_APIC_BASE.
    pub fn host_base(&mut self, value: u64) -> Result<Work, Gp> {
        self.l.set_apic_base(&self.s, value, CAPS, true)
    }

    pub fn pending(&self) -> Option<u8> {
        self.l.pending(&self.s)
    }

    /// Takes the pending vector, if any.
    pub fn take(&mut self) -> Option<u8> {
        let vector = self.pending()?;
        self.l.ack(&self.s, vector);
        Some(vector)
    }

    pub fn eoi(&mut self) -> Option<EoiWork> {
        self.l.eoi(&self.s)
    }

    pub fn deadline(&mut self, tsc: u64) -> Work {
        if !self.l.set_tsc_deadline(tsc) {
            return Work::default();
        }
        let rescan = self.l.expire(&self.s, &self.now);
        Work { timer_changed: true, rescan, ..Work::default() }
    }

    pub fn expire(&mut self) -> bool {
        self.l.expire(&self.s, &self.now)
    }

    pub fn save(&self) -> [u8; 1024] {
        let mut page = [0xaa; 1024];
        self.l.save(&self.s, &self.now, &mut page);
        page
    }

    pub fn load(&mut self, page: &[u8; 1024]) -> Result<(), BadState> {
        self.l.load(&self.s, page, &self.now)
    }
}

/// A device's fixed interrupt to physical id `destination`.
pub fn fixed(destination: u32, vector: u8) -> InterruptMessage {
    InterruptMessage {
        destination,
        logical: false,
        mode: DeliveryMode::FIXED,
        vector,
        level: false,
        assert: true,
        shorthand: Shorthand::None,
        x2apic: false,
    }
}

/// Little-endian register of a saved page.
pub fn at(page: &[u8; 1024], offset: u32) -> u32 {
    let start = offset as usize;
    u32::from_le_bytes(page[start..start + 4].try_into().unwrap())
}

pub fn put(page: &mut [u8; 1024], offset: u32, value: u32) {
    let start = offset as usize;
    page[start..start + 4].copy_from_slice(&value.to_le_bytes());
}
