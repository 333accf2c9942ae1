//! The way into the guest and back; the code is in `linux/c/enter.c` and `linux/c/enter-svm.S`.

use crate::ffi;

/// SVM was turned off on this CPU (shutdown or crash) or the VMCB's address is bad: the guest did not run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NotEntered;

/// Runs the guest of one VMCB until its next exit.
///
/// `regs` holds the general registers in encoding order; slots 0 (rax) and 4 (rsp) belong to the VMCB and are neither
/// read nor written. The guest's FS, GS, TR, LDTR, STAR, LSTAR, CSTAR, SFMASK, KernelGSBase and SYSENTER registers are
/// loaded from the VMCB and saved to it. SPEC_CTRL is set to `guest_spec_ctrl` for the run on CPUs that do not
/// virtualise it: writes to it must then be intercepted. On return the host's SPEC_CTRL, return stack and branch
/// predictor are as its mitigations want them.
///
/// # Safety
/// Interrupts are off, GIF is set, SVM is on for this CPU. `vmcb_pa` is a valid VMCB that no other CPU uses.
/// `host_save_pa` holds a VMSAVE made on this CPU by this task since it was scheduled in. XCR0, XSS, debug registers
/// and FPU are the guest's already, and the caller brings the host's back.
#[inline]
pub unsafe fn svm(
    vmcb_pa: u64,
    regs: &mut [u64; 16],
    host_save_pa: u64,
    guest_spec_ctrl: u64,
) -> core::result::Result<(), NotEntered> {
    // SAFETY: the caller's promise; regs is 16 writable words.
    match unsafe { ffi::ex_svm_enter(vmcb_pa, regs.as_mut_ptr(), host_save_pa, guest_spec_ctrl) } {
        0 => Ok(()),
        _ => Err(NotEntered),
    }
}

/// VMSAVE of the host's state into the page that [`svm`] loads it back from: after each `ex_rs_sched_in` and load, before
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
