//! vCPUs that sleep while hardware may post to them: the CPU that gets the wake-up vector looks whom it was for.

use crate::ffi;
use crate::handle::{Handle, handle_type};
use crate::{Errno, Result};
use core::ffi::c_void;

/// One vCPU's place on the lists.
///
/// ```text
/// on no list --add--> on the list of the CPU that called; `ex_rs_posted` for each that is there when the vector comes --remove--> on none
/// ```
/// `ex_rs_sleeps_elsewhere`: that CPU goes away.
pub struct Sleeper {
    handle: Handle,
}

handle_type!(Sleeper, ffi::ex_sleeper_free);

impl Sleeper {
    /// `vcpu` goes to the callbacks and must stay valid until this is dropped. Process context.
    pub fn init(&mut self, vcpu: *mut c_void) -> Result<()> {
        if !self.handle.is_null() {
            return Err(Errno::EEXIST);
        }
        // SAFETY: returns null or an object; the pointer is only handed back.
        self.handle.set(unsafe { ffi::ex_sleeper_new(vcpu) });
        if self.handle.is_null() { Err(Errno::ENOMEM) } else { Ok(()) }
    }

    /// [`Sleeper::init`] was done: hardware may post to this vCPU.
    pub fn there(&self) -> bool {
        !self.handle.is_null()
    }

    /// Onto this CPU's list. `false`: it is there, but the CPU goes away, and nobody may sleep on it.
    ///
    /// # Safety
    /// Preemption is off, interrupts are on; it is on no list, and is off it again before it is dropped.
    pub unsafe fn add(&self) -> bool {
        // SAFETY: the handle is live; contract.
        unsafe { ffi::ex_sleeper_add(self.handle.get()) }
    }

    /// Off its list, whichever CPU's that is.
    ///
    /// # Safety
    /// Interrupts are on; it is on a list.
    pub unsafe fn remove(&self) {
        // SAFETY: the handle is live; contract.
        unsafe { ffi::ex_sleeper_remove(self.handle.get()) }
    }
}

/// The wake-up vector is ours: hardware may post to vCPUs.
pub fn listens() -> bool {
    // SAFETY: reads a flag.
    unsafe { ffi::ex_sleepers_listen() }
}
