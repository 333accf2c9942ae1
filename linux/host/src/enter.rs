//! The way into the guest and back; the code is in `linux/c/enter.c` and `linux/c/enter-svm.S`.

use crate::ffi;

/// SVM was turned off on this CPU (shutdown or crash) or the VMCB's address is bad: the guest did not run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NotEntered;

/// VMSAVE of the host's state into the page that `ex_svm_enter` loads it back from: after each `ex_rs_sched_in` and load, before
/// the next entry. A plain VMSAVE instruction would be an oops when a shutdown turns SVM off just before it.
///
/// # Safety
/// Preemption is off; `host_save_pa` is this CPU's page and nothing else.
#[inline]
pub unsafe fn save_host(host_save_pa: u64) -> core::result::Result<(), NotEntered> {
    // SAFETY: the caller's promise; the fault of a disabled SVM is caught.
    match unsafe { ffi::ex_svm_save_host(host_save_pa) } {
        0 => Ok(()),
        _ => Err(NotEntered),
    }
}

/// Preemption and interrupts off: from here on this CPU's time belongs to the guest's account. Once around several entries.
#[inline]
pub fn slice_begin() {
    // SAFETY: process context with interrupts on; `slice_end` follows.
    unsafe { ffi::ex_slice_begin() }
}

/// Ends [`slice_begin`]. What made the guest exit is served while the time is still the guest's; the host's state is loaded.
#[inline]
pub fn slice_end() {
    // SAFETY: the pair of `slice_begin`.
    unsafe { ffi::ex_slice_end() }
}
