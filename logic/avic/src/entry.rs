//! One vCPU's entry in the physical table; the rules are in the crate's head.

use core::sync::atomic::{AtomicU64, Ordering};
use exitless_x86::svm::avic::{DOORBELL_ID, PhysicalEntry};

/// A word that hardware reads.
pub trait Word {
    /// Replaces it; what was written before is seen by who sees it.
    fn store(&self, v: u64);
    /// The same, locked.
    fn swap(&self, v: u64);
}

impl Word for AtomicU64 {
    fn store(&self, v: u64) {
        self.store(v, Ordering::Release);
    }
    fn swap(&self, v: u64) {
        self.swap(v, Ordering::AcqRel);
    }
}

/// What the protocol is written against.
pub trait Memory {
    /// The entry.
    type Word: Word;
    /// A full barrier, store to load included, behind the store that clears IsRunning.
    fn barrier();
}

/// The machine.
#[derive(Clone, Copy, Debug)]
pub enum Native {}

impl Memory for Native {
    type Word = AtomicU64;

    fn barrier() {
        // On x86 the locked instruction before it is the barrier already (APM vol. 2, 7.1.3); the compiler must keep the order too.
        #[cfg(target_arch = "x86_64")]
        core::sync::atomic::compiler_fence(Ordering::SeqCst);
        #[cfg(not(target_arch = "x86_64"))]
        core::sync::atomic::fence(Ordering::SeqCst);
    }
}

/// See the file's head. All-zero: not valid.
#[derive(Debug, bytemuck::Zeroable)]
#[zeroable(bound = "M::Word: bytemuck::Zeroable")]
#[repr(transparent)]
pub struct Entry<M: Memory = Native>(pub(crate) M::Word);

/// The bits that an entry has of a page's number.
const BACKING: u64 = (1 << 40) - 1;

/// Of a vCPU that is not running.
fn there(page: u64) -> PhysicalEntry {
    // As many bits as there are: no room for a panic.
    PhysicalEntry::new().with_backing(page >> 12 & BACKING).with_valid(true)
}

impl<M: Memory> Entry<M> {
    /// The guest's APIC takes interrupts, in the backing page at `page`.
    pub fn admit(&self, page: u64) {
        self.0.store(there(page).into_bits());
    }

    /// It takes none any more: hardware senders exit.
    pub fn retire(&self) {
        self.0.swap(0);
        M::barrier();
    }

    /// The vCPU is about to enter the guest on the CPU with this APIC id. Until [`Entry::stop`] it stays on it.
    pub fn run(&self, page: u64, host_id: u32) {
        let entry = there(page).with_host_id((host_id & DOORBELL_ID) as u16).with_is_running(true);
        self.0.store(entry.into_bits());
    }

    /// It has left the guest: what hardware sends from now on makes the sender exit; what it sent before is in the IRR.
    pub fn stop(&self, page: u64) {
        self.0.swap(there(page).into_bits());
        M::barrier();
    }
}
