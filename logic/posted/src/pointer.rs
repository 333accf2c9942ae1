//! An entry of the table by which CPUs that send IPIs find descriptors (SDM vol. 3C, 30.1.6: the PID-pointer table).

use core::sync::atomic::{AtomicU64, Ordering::Release};

/// Entry n is that of the vCPU with APIC id n. All-zero: it is not found, and who sends to it exits.
#[derive(Debug, bytemuck::Zeroable)]
#[repr(transparent)]
pub struct PidPointer(AtomicU64);

/// The entry is valid; bits 5:1 are reserved.
const VALID: u64 = 1;

impl PidPointer {
    /// Senders find the descriptor at this physical address, a multiple of 64.
    pub fn admit(&self, descriptor: u64) {
        self.0.store(descriptor & !63 | VALID, Release);
    }

    /// They do not find it any more. Who has read the entry before may still post: as on hardware a message that is on its way arrives.
    pub fn retire(&self) {
        self.0.store(0, Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::sync::atomic::Ordering::Relaxed;

    #[test]
    fn an_entry_is_an_address_and_a_bit() {
        let p: PidPointer = bytemuck::Zeroable::zeroed();
        p.admit(0x1234_5640);
        assert_eq!(p.0.load(Relaxed), 0x1234_5641);
        p.admit(0x1234_567f);
        assert_eq!(p.0.load(Relaxed), 0x1234_5641, "reserved bits stay clear");
        p.retire();
        assert_eq!(p.0.load(Relaxed), 0);
    }
}
