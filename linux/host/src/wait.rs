//! Sleep until somebody says that something has changed.

use crate::ffi;
use crate::handle::{Handle, handle_type};
use crate::{Errno, Result};

/// ```text
/// sleeper: loop { seen = seen(); what I wait for is so, or its maker knows that I wait? ; wait(seen) }
/// maker:   make it so; wake()
/// ```
/// A wake between `seen` and `wait` is not lost.
pub struct WaitQueue {
    handle: Handle,
}

handle_type!(WaitQueue, ffi::ex_wait_free);

impl WaitQueue {
    /// Process context.
    pub fn init(&mut self) -> Result<()> {
        if !self.handle.is_null() {
            return Err(Errno::EEXIST);
        }
        // SAFETY: returns null or a queue.
        self.handle.set(unsafe { ffi::ex_wait_new() });
        if self.handle.is_null() { Err(Errno::ENOMEM) } else { Ok(()) }
    }

    /// How many wakes there were so far. Before the look at what is waited for.
    pub fn seen(&self) -> u32 {
        // SAFETY: the handle is live.
        unsafe { ffi::ex_wait_seen(self.handle.get()) }
    }

    /// Sleeps until there was one more than that. Process context.
    pub fn wait(&self, seen: u32) {
        // SAFETY: the handle is live.
        unsafe { ffi::ex_wait_sleep(self.handle.get(), seen) }
    }

    /// Any context but NMI.
    pub fn wake(&self) {
        // SAFETY: the handle is live.
        unsafe { ffi::ex_wait_wake(self.handle.get()) }
    }
}
