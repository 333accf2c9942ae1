//! Threads of the kernel that wait for slow pages in a vCPU's place.

use crate::ffi;
use crate::handle::{Handle, handle_type};
use crate::{Errno, Result};
use core::ffi::c_void;

/// One vCPU's. Dropping does not wait for them; none says anything to the vCPU any more.
pub struct Workers {
    handle: Handle,
}

handle_type!(Workers, ffi::ex_workers_free);

impl Workers {
    /// `vcpu` goes to `ex_rs_page_brought` and must stay valid until this is dropped. Process context.
    pub fn init(&mut self, vcpu: *mut c_void) -> Result<()> {
        if !self.handle.is_null() {
            return Err(Errno::EEXIST);
        }
        // SAFETY: returns null or an object; the pointer is only handed back.
        self.handle.set(unsafe { ffi::ex_workers_new(vcpu) });
        if self.handle.is_null() { Err(Errno::ENOMEM) } else { Ok(()) }
    }

    /// A worker faults in the page at `hva` of the current address space and then calls `ex_rs_page_brought` with `place`, from another
    /// thread. `false`: there is none. Process context.
    pub fn bring(&self, hva: u64, write: bool, place: u8) -> bool {
        // SAFETY: the handle is live; the helper keeps what it needs of the address space.
        unsafe { ffi::ex_workers_bring(self.handle.get(), hva, write, place.into()) }
    }
}
