//! Sleepable RCU: readers of a VM's slot and route tables never wait; the writer waits for old readers.

use crate::ffi;
use crate::handle::{Handle, handle_type};
use crate::{Errno, Result};
use core::marker::PhantomData;

/// One grace-period domain, usually one per VM.
pub struct Srcu {
    handle: Handle,
}

handle_type!(Srcu, ffi::ex_srcu_free);

impl Srcu {
    /// Process context.
    pub fn init(&mut self) -> Result<()> {
        if !self.handle.is_null() {
            return Err(Errno::EEXIST);
        }
        // SAFETY: returns null or a live srcu_struct.
        self.handle.set(unsafe { ffi::ex_srcu_new() });
        if self.handle.is_null() { Err(Errno::ENOMEM) } else { Ok(()) }
    }

    /// Enters a read section. Any context but NMI.
    #[inline]
    pub fn read(&self) -> SrcuGuard<'_> {
        SrcuGuard { srcu: self, idx: self.read_lock(), marker: PhantomData }
    }

    /// Enters a read section by hand, for a section that opens and closes in different places.
    #[inline]
    pub fn read_lock(&self) -> i32 {
        // SAFETY: the handle is live.
        unsafe { ffi::ex_srcu_read_lock(self.handle.get()) }
    }

    /// Leaves the section that `read_lock` opened on this thread.
    #[inline]
    pub fn read_unlock(&self, idx: i32) {
        // SAFETY: the handle is live. The kernel knows two indices; any other bit would miscount, so mask it.
        unsafe { ffi::ex_srcu_read_unlock(self.handle.get(), idx & 1) }
    }

    /// Returns when every reader that was inside has left. Sleeps; not from inside a read section.
    pub fn synchronize(&self) {
        // SAFETY: the handle is live.
        unsafe { ffi::ex_srcu_synchronize(self.handle.get()) }
    }

    /// The same, sooner and with more work for the CPU.
    pub fn synchronize_expedited(&self) {
        // SAFETY: the handle is live.
        unsafe { ffi::ex_srcu_synchronize_expedited(self.handle.get()) }
    }
}

/// Leaves the read section when dropped.
#[must_use]
pub struct SrcuGuard<'a> {
    srcu: &'a Srcu,
    idx: i32,
    marker: PhantomData<*mut ()>,
}

impl Drop for SrcuGuard<'_> {
    #[inline]
    fn drop(&mut self) {
        self.srcu.read_unlock(self.idx);
    }
}
