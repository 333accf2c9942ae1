//! Event descriptors: signalled by us (ioeventfd, resample) or by others (irqfd).

use crate::errno::check;
use crate::ffi;
use crate::{Errno, Result};
use bytemuck::ZeroableInOption;
use core::ffi::c_void;
use core::ptr::NonNull;

/// Events may be signalled now: with interrupts off not on every kernel.
pub fn may_signal() -> bool {
    // SAFETY: reads a flag of the CPU.
    unsafe { ffi::ex_eventfd_may_signal() }
}

/// A counted reference to an eventfd, kept after its descriptor is closed.
pub struct EventFd(NonNull<c_void>);

// SAFETY: eventfd_ctx is reference counted and locks for itself.
unsafe impl Send for EventFd {}
// SAFETY: as for Send.
unsafe impl Sync for EventFd {}
// SAFETY: the pointer is never null, so all-zero is None.
unsafe impl ZeroableInOption for EventFd {}

impl EventFd {
    /// `EBADF`: no such descriptor; `EINVAL`: not an eventfd. Process context of its owner.
    pub fn from_fd(fd: i32) -> Result<Self> {
        let mut ctx = core::ptr::null_mut();
        // SAFETY: ctx is ours to fill.
        check(unsafe { ffi::ex_eventfd_get(fd, &raw mut ctx) })?;
        NonNull::new(ctx).map(EventFd).ok_or(Errno::EINVAL)
    }

    /// Adds one. Any context in which [`may_signal`] says so.
    pub fn signal(&self) {
        // SAFETY: we hold a reference.
        unsafe { ffi::ex_eventfd_signal(self.0.as_ptr()) }
    }

    /// The identity, for comparison only: two descriptors of one eventfd give the same.
    pub fn as_raw(&self) -> *const c_void {
        self.0.as_ptr()
    }
}

impl PartialEq for EventFd {
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}

impl Drop for EventFd {
    fn drop(&mut self) {
        // SAFETY: the reference is given back once, here.
        unsafe { ffi::ex_eventfd_put(self.0.as_ptr()) }
    }
}

/// An eventfd whose signal raises a guest interrupt.
///
/// Signals arrive in `ex_rs_irqfd_wakeup(vm, cookie)`, the close of the eventfd in `ex_rs_irqfd_hangup(vm, cookie)`.
/// Dropping is the deassign: it waits for running callbacks, so drop outside every lock that the callbacks take
/// (take it out of the list under the lock, drop it after). Inside the hangup callback dropping is legal.
pub struct Irqfd(NonNull<c_void>);

// SAFETY: the C object locks for itself.
unsafe impl Send for Irqfd {}
// SAFETY: as for Send.
unsafe impl Sync for Irqfd {}
// SAFETY: the pointer is never null, so all-zero is None.
unsafe impl ZeroableInOption for Irqfd {}

impl Irqfd {
    /// Callbacks may run before this returns; create it under the lock that the hangup callback takes, and put it in the
    /// list before unlocking. If the eventfd is already signalled, `ex_rs_irqfd_inject` is queued.
    ///
    /// `vm` must stay valid until the Irqfd is dropped and [`settle_hangups`] returned behind that. `EBADF`, `EINVAL` as in [`EventFd::from_fd`]; `ENOMEM`.
    pub fn create(vm: *mut c_void, cookie: usize, fd: i32) -> Result<Self> {
        let mut err = 0;
        // SAFETY: err is ours to fill; vm is only handed back to the callbacks.
        let irqfd = unsafe { ffi::ex_irqfd_new(vm, cookie, fd, &raw mut err) };
        NonNull::new(irqfd).map(Irqfd).ok_or(Errno::from_ret(err))
    }

    /// Is it bound to this eventfd?
    pub fn is_bound_to(&self, eventfd: &EventFd) -> bool {
        // SAFETY: the object is live; the other pointer is only compared.
        unsafe { ffi::ex_irqfd_is(self.0.as_ptr(), eventfd.as_raw()) }
    }
}

impl Drop for Irqfd {
    fn drop(&mut self) {
        // SAFETY: freed once, here; the helper waits for callbacks.
        unsafe { ffi::ex_irqfd_free(self.0.as_ptr()) }
    }
}

/// Waits until no hangup of an eventfd is being served that was told of before. Process context, not from one of them.
pub fn settle_hangups() {
    // SAFETY: no precondition; may sleep.
    unsafe { ffi::ex_irqfd_settle() }
}
