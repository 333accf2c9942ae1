//! One-shot timers on CLOCK_MONOTONIC that fire in hard interrupt context.
//!
//! ```text
//! init -> idle --start--> queued --expiry--> callback --u64::MAX--> idle
//!                 ^          |                   |
//!                 |       cancel               other value = next expiry: queued again
//! ```
//!
//! The callback is `ex_rs_timer_fired(cookie, kind)`.

use crate::ffi;
use crate::handle::{Handle, handle_type};
use crate::{Errno, Result};
use core::ffi::c_void;

/// What `ex_rs_timer_fired` returns to stop.
pub const STOP: u64 = u64::MAX;

/// Dropping cancels and waits for a running callback: not inside the callback.
pub struct Timer {
    handle: Handle,
}

handle_type!(Timer, ffi::ex_timer_free);

/// Some CPUs are isolated, and others keep house for them.
pub fn keeps_house() -> bool {
    // SAFETY: reads a variable.
    unsafe { ffi::ex_keeps_house() }
}

/// What [`Timer::try_cancel`] found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cancelled {
    /// It was queued and is not any more.
    Stopped,
    /// It was idle.
    Idle,
    /// The callback is running now and may queue it again.
    Running,
}

impl Timer {
    /// `cookie` and `kind` go to the callback; `cookie` must stay valid until the timer is dropped. Process context.
    pub fn init(&mut self, cookie: *mut c_void, kind: u32) -> Result<()> {
        if !self.handle.is_null() {
            return Err(Errno::EEXIST);
        }
        // SAFETY: returns null or a timer; the cookie is only handed back.
        self.handle.set(unsafe { ffi::ex_timer_new(cookie, kind) });
        if self.handle.is_null() { Err(Errno::ENOMEM) } else { Ok(()) }
    }

    /// Queues, or moves, the timer to an absolute CLOCK_MONOTONIC time; one in the past fires at once. `pinned` keeps it
    /// on this CPU. Any context but NMI, its own callback too: under a lock that other starters hold, the last one wins.
    #[inline]
    pub fn start(&self, expires_ns: u64, pinned: bool) {
        // SAFETY: the handle is live.
        unsafe { ffi::ex_timer_start(self.handle.get(), expires_ns, pinned) }
    }

    /// As [`Timer::start`], on a CPU that keeps house, in a moment. By one starter at a time, preemption off.
    #[inline]
    pub fn start_elsewhere(&self, expires_ns: u64) {
        // SAFETY: the handle is live.
        unsafe { ffi::ex_timer_start_elsewhere(self.handle.get(), expires_ns) }
    }

    /// As [`Timer::start`], on this CPU, in its callback: whoever else starts it meanwhile has the newer time, and the callback asks
    /// who that was.
    #[inline]
    pub fn start_again(&self, expires_ns: u64) {
        // SAFETY: the handle is live.
        unsafe { ffi::ex_timer_start_again(self.handle.get(), expires_ns) }
    }

    /// Stops it and waits for a running callback. True when it was queued. Not inside the callback, nor under a lock
    /// that the callback takes.
    pub fn cancel(&self) -> bool {
        // SAFETY: the handle is live.
        unsafe { ffi::ex_timer_cancel(self.handle.get()) }
    }

    /// Stops it without waiting.
    pub fn try_cancel(&self) -> Cancelled {
        // SAFETY: the handle is live.
        match unsafe { ffi::ex_timer_try_cancel(self.handle.get()) } {
            0 => Cancelled::Idle,
            n if n > 0 => Cancelled::Stopped,
            _ => Cancelled::Running,
        }
    }

    /// If it is queued, it fires on this CPU from now on. Process context, by its only starter; waits for a running callback, and
    /// not under a lock that the callback takes.
    pub fn bring(&self) {
        // SAFETY: the handle is live.
        unsafe { ffi::ex_timer_bring(self.handle.get()) }
    }

    /// The time last asked for.
    pub fn expires_ns(&self) -> u64 {
        // SAFETY: the handle is live.
        unsafe { ffi::ex_timer_expires(self.handle.get()) }
    }
}
