//! The page of registers that hardware works on while it virtualises the APIC.

use core::sync::atomic::AtomicU32;
use core::sync::atomic::Ordering::Relaxed;
use exitless_nospec::Guarded;

/// Each 32-bit register at its xAPIC offset. Atomics because hardware writes it, though only while the vCPU is in the guest, and
/// senders write the TMR.
#[derive(Debug, bytemuck::Zeroable)]
#[repr(C, align(4096))]
pub struct ApicPage([AtomicU32; 1024]);

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
        self.0.guarded(offset as usize / 4)
    }
}
