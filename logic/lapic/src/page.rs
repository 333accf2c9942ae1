//! The page of registers that hardware works on while it virtualises the APIC.

use core::sync::atomic::AtomicU32;
use core::sync::atomic::Ordering::Relaxed;

/// Registers in a page.
const REGISTERS: usize = 1024;

/// Each 32-bit register at its xAPIC offset. Atomics because hardware writes it, though only while the vCPU is in the guest, and
/// senders write the TMR.
#[derive(Debug, bytemuck::Zeroable)]
#[repr(C, align(4096))]
pub struct ApicPage([AtomicU32; REGISTERS]);

impl ApicPage {
    /// The register at `offset` in bytes; 0 beyond the page.
    pub fn read(&self, offset: u32) -> u32 {
        self.register(offset).map_or(0, |r| r.load(Relaxed))
    }
    /// Writes it.
    pub fn write(&self, offset: u32, value: u32) {
        if let Some(r) = self.register(offset) {
            r.store(value, Relaxed);
        }
    }
    pub(crate) fn register(&self, offset: u32) -> Option<&AtomicU32> {
        // A guest chooses some offsets: the modulus keeps them in the page whatever is predicted of a check, and costs nothing where the
        // offset is constant.
        self.0.get(offset as usize / 4 % REGISTERS).filter(|_| offset as usize / 4 < REGISTERS)
    }
}

#[cfg(test)]
mod tests {
    use super::ApicPage;

    #[test]
    fn nothing_is_beyond_the_page() {
        let page: ApicPage = bytemuck::Zeroable::zeroed();
        page.write(0, 7);
        page.write(0xffc, 8);
        for beyond in [0x1000, 0x1ffc, u32::MAX] {
            page.write(beyond, 9);
            assert_eq!(page.read(beyond), 0);
        }
        assert_eq!((page.read(0), page.read(0xffc)), (7, 8));
    }
}
