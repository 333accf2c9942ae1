//! The memory that the protocol runs on: the machine's, or loom's model of it.

use core::sync::atomic::{AtomicU64, Ordering};

/// A shared 64-bit word.
pub trait Word {
    /// Plain load.
    fn load(&self, order: Ordering) -> u64;
    /// Sets bits; the value before.
    fn fetch_or(&self, bits: u64, order: Ordering) -> u64;
    /// Keeps only these bits; the value before.
    fn fetch_and(&self, bits: u64, order: Ordering) -> u64;
    /// Replaces; the value before.
    fn swap(&self, new: u64, order: Ordering) -> u64;
    /// Replaces `old` by `new`, or fails with the value found. Release and acquire on success, acquire on failure.
    fn exchange(&self, old: u64, new: u64) -> Result<u64, u64>;
}

impl Word for AtomicU64 {
    fn load(&self, order: Ordering) -> u64 {
        self.load(order)
    }
    fn fetch_or(&self, bits: u64, order: Ordering) -> u64 {
        self.fetch_or(bits, order)
    }
    fn fetch_and(&self, bits: u64, order: Ordering) -> u64 {
        self.fetch_and(bits, order)
    }
    fn swap(&self, new: u64, order: Ordering) -> u64 {
        self.swap(new, order)
    }
    fn exchange(&self, old: u64, new: u64) -> Result<u64, u64> {
        self.compare_exchange_weak(old, new, Ordering::AcqRel, Ordering::Acquire)
    }
}

/// The places where a store to the control word must be visible before the PIR is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Barrier {
    /// [`crate::Descriptor::load`] cleared SN.
    Load,
    /// [`crate::Descriptor::block`] cleared SN and turned notifications into wake-ups.
    Block,
    /// [`crate::Descriptor::take`] cleared ON.
    Take,
}

/// What the protocol is written against.
pub trait Memory {
    /// A word of the descriptor.
    type Word: Word;
    /// A full barrier, store to load included.
    fn barrier(at: Barrier);
}

/// The machine.
#[derive(Clone, Copy, Debug)]
pub enum Native {}

impl Memory for Native {
    type Word = AtomicU64;

    fn barrier(_: Barrier) {
        // On x86 the locked instruction before each of these places is the full barrier already (SDM vol. 3A, 9.2.2);
        // the compiler must keep the order too.
        #[cfg(target_arch = "x86_64")]
        core::sync::atomic::compiler_fence(Ordering::SeqCst);
        #[cfg(not(target_arch = "x86_64"))]
        core::sync::atomic::fence(Ordering::SeqCst);
    }
}
