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

/// From here on this CPU's time belongs to the guest's account. Interrupts off; once around several entries.
#[inline]
pub fn timing_begin() {
    // SAFETY: accounting of the current task.
    unsafe { ffi::ex_guest_timing_enter() }
}

/// Ends [`timing_begin`], after [`irq_window`], so that a tick during guest time counts as guest time. Interrupts off.
#[inline]
pub fn timing_end() {
    // SAFETY: accounting of the current task.
    unsafe { ffi::ex_guest_timing_exit() }
}

/// Interrupts on for one instruction: what made the guest exit is served. Interrupts off before and after.
#[inline]
pub fn irq_window() {
    // SAFETY: process context that turned interrupts off itself; host state is loaded.
    unsafe { ffi::ex_irq_window() }
}
