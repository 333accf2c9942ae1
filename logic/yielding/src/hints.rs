//! What a vCPU shows those that wait for it. Atomics only; each is written where it is known.

use bytemuck::Zeroable;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};

/// See the file's head. All-zero: not ready. On a line of its own: wakers write it, and who spins reads it.
#[derive(Debug, Default, Zeroable)]
#[repr(C, align(64))]
pub struct Hints {
    /// The last vCPU that it sent an IPI to, one more than its index; 0: none.
    receiver: AtomicU32,
    ready: AtomicBool,
    in_kernel: AtomicBool,
    spinning: AtomicBool,
    _pad: u8,
}

impl Hints {
    /// Its thread left its CPU; `runnable`: because another took it.
    pub fn left(&self, runnable: bool) {
        if runnable {
            self.ready.store(true, Relaxed);
        }
    }

    /// Its thread slept and was woken.
    pub fn woken(&self) {
        self.ready.store(true, Relaxed);
    }

    /// Its thread has a CPU.
    pub fn came(&self) {
        self.ready.store(false, Relaxed);
    }

    /// Where the guest was when it last came out: in its kernel?
    pub fn came_out(&self, in_kernel: bool) {
        if self.in_kernel.load(Relaxed) != in_kernel {
            self.in_kernel.store(in_kernel, Relaxed);
        }
    }

    /// It begins, or ends, to look for somebody to run in its place.
    pub fn spins(&self, spinning: bool) {
        self.spinning.store(spinning, Relaxed);
    }

    /// It sent an IPI to the vCPU at `index`.
    pub fn sent_to(&self, index: usize) {
        self.receiver.store(index as u32 + 1, Relaxed);
    }

    /// Whom it sent its last IPI to. Told once: the next look knows no more than the others.
    pub fn take_receiver(&self) -> Option<usize> {
        let receiver = self.receiver.load(Relaxed).checked_sub(1)?;
        self.receiver.store(0, Relaxed);
        Some(receiver as usize)
    }

    /// Its thread could run and has no CPU.
    pub fn is_ready(&self) -> bool {
        self.ready.load(Relaxed)
    }

    /// The guest was in its kernel.
    pub fn was_in_kernel(&self) -> bool {
        self.in_kernel.load(Relaxed)
    }

    /// It waits for somebody itself.
    pub fn is_spinning(&self) -> bool {
        self.spinning.load(Relaxed)
    }
}
