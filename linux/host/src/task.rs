//! The task that is a virtual CPU: scheduler notices, blocking and waking, signals, directed yield, its address space.

use crate::errno::check;
use crate::ffi;
use crate::handle::{Handle, handle_type};
use crate::{Errno, Result};
use bytemuck::ZeroableInOption;
use core::ffi::c_void;
use core::marker::PhantomData;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// The scheduler's side of one vCPU.
///
/// ```text
/// load: this task's switches reach ex_rs_sched_out / ex_rs_sched_in ... put
/// block: sleeps until ex_rs_vcpu_wake_check says true (ask again after wake) or a signal comes
/// ```
pub struct VcpuTask {
    handle: Handle,
}

handle_type!(VcpuTask, ffi::ex_vcpu_free);

/// Why [`VcpuTask::block`] returned.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Woken {
    /// `ex_rs_vcpu_wake_check` said true.
    Condition,
    /// A signal is pending.
    Signal,
}

impl VcpuTask {
    /// `vcpu` goes to the callbacks and must stay valid until this is dropped. Process context.
    pub fn init(&mut self, vcpu: *mut c_void) -> Result<()> {
        if !self.handle.is_null() {
            return Err(Errno::EEXIST);
        }
        // SAFETY: returns null or an object; the pointer is only handed back.
        self.handle.set(unsafe { ffi::ex_vcpu_new(vcpu) });
        if self.handle.is_null() { Err(Errno::ENOMEM) } else { Ok(()) }
    }

    /// From here on the scheduler tells us when this task is switched out and in. Returns this CPU.
    ///
    /// # Safety
    /// Preemption is off; the vCPU is not loaded; the same task calls [`VcpuTask::put`] before the handle is dropped.
    pub unsafe fn load(&self) -> u32 {
        // SAFETY: the caller's promise: registering twice, or freeing while registered, would corrupt a list.
        unsafe { ffi::ex_vcpu_load(self.handle.get()) }
    }

    /// Ends [`VcpuTask::load`].
    ///
    /// # Safety
    /// Preemption is off; this task has loaded the vCPU.
    pub unsafe fn put(&self) {
        // SAFETY: the caller's promise.
        unsafe { ffi::ex_vcpu_put(self.handle.get()) }
    }

    /// Sleeps. Interrupts and preemption on; only the vCPU's own thread.
    pub fn block(&self) -> Woken {
        // SAFETY: the handle is live.
        match unsafe { ffi::ex_vcpu_block(self.handle.get()) } {
            0 => Woken::Condition,
            _ => Woken::Signal,
        }
    }

    /// Wakes the blocked thread, which asks `ex_rs_vcpu_wake_check` again: make the condition true first. Any context.
    /// True when somebody was blocked.
    #[inline]
    pub fn wake(&self) -> bool {
        // SAFETY: the handle is live.
        unsafe { ffi::ex_vcpu_wake(self.handle.get()) }
    }

    /// Remembers the current thread as the one to yield to. Under the vCPU's mutex; sleeps when the thread changed.
    pub fn record_current(&self) {
        // SAFETY: the handle is live; the mutex keeps others from recording.
        unsafe { ffi::ex_vcpu_record_current(self.handle.get()) }
    }

    /// Gives the rest of this thread's slice to the thread of that vCPU. `Ok(true)`: it took it; `ESRCH`: nobody there,
    /// or both CPUs have only one task.
    pub fn yield_to(&self, preempt: bool) -> Result<bool> {
        // SAFETY: the handle is live.
        check(unsafe { ffi::ex_vcpu_yield_to(self.handle.get(), preempt) }).map(|yielded| yielded > 0)
    }
}

/// The longest a halted vCPU may wait awake, ns: the module's parameter.
pub fn halt_poll_ns() -> u64 {
    // SAFETY: reads a parameter.
    unsafe { ffi::ex_halt_poll_ns() }
}

/// How early a running vCPU's timer runs out, ns, at most 5000; `None`: adaptive. The module's parameter.
pub fn timer_advance_ns() -> Option<u32> {
    // SAFETY: reads a parameter.
    u32::try_from(unsafe { ffi::ex_timer_advance_ns() }).ok().map(|ns| ns.min(5000))
}

/// SIGBUS, as if the task had read the page at `hva` and its memory had failed. Process context.
pub fn memory_error(hva: u64) {
    // SAFETY: the address goes to the signal's handler and is not looked at.
    unsafe { ffi::ex_send_memory_error(hva) }
}

/// Has the current task a signal?
#[inline]
pub fn signal_pending() -> bool {
    // SAFETY: reads thread flags.
    unsafe { ffi::ex_signal_pending() }
}

/// Does the scheduler want this CPU?
#[inline]
pub fn need_resched() -> bool {
    // SAFETY: reads thread flags.
    unsafe { ffi::ex_need_resched() }
}

/// Lets others run if they should. Process context, no lock held.
pub fn cond_resched() {
    // SAFETY: may sleep, which the caller allows.
    unsafe { ffi::ex_cond_resched() }
}

/// Is this task the only one that wants this CPU? For polling before a block.
#[inline]
pub fn single_task_running() -> bool {
    // SAFETY: reads the run queue's counter.
    unsafe { ffi::ex_single_task_running() }
}

/// Does that work. Interrupts on; may schedule. `EINTR`: leave KVM_RUN, a signal waits.
pub fn handle_guest_work() -> Result<()> {
    // SAFETY: process context with interrupts on.
    check(unsafe { ffi::ex_guest_work_handle() }).map(drop)
}

/// Where the kernel notes that the current task has work before it returns to a guest: what [`guest_work_pending`] asks,
/// without a call. For the thread that made it.
#[derive(Clone, Copy)]
pub struct WorkWord {
    word: NonNull<AtomicU64>,
    mask: u64,
}

impl WorkWord {
    /// Of the current task.
    pub fn current() -> Self {
        let mut mask = 0;
        // SAFETY: writes the mask; returns the address of a word of the current task.
        let word = unsafe { ffi::ex_guest_work_word(&mut mask) };
        Self { word: NonNull::new(word.cast_mut().cast()).unwrap_or(NonNull::dangling()), mask }
    }

    /// Such work waits.
    #[inline]
    pub fn pending(&self) -> bool {
        // SAFETY: the task lives while it runs this; it is `!Send` by its pointer.
        unsafe { self.word.as_ref() }.load(Relaxed) & self.mask != 0
    }
}

/// The current thread's number in the initial pid namespace.
pub fn current_pid() -> i32 {
    // SAFETY: reads the task.
    unsafe { ffi::ex_current_pid() }
}

/// The current thread's effective user id in the initial user namespace.
pub fn current_euid() -> u32 {
    // SAFETY: reads the task.
    unsafe { ffi::ex_current_euid() }
}

/// The current thread has CAP_SYS_ADMIN in the initial user namespace.
pub fn is_admin() -> bool {
    // SAFETY: asks about the task.
    unsafe { ffi::ex_is_admin() }
}

/// Is a 32-bit program calling? Then some structures have another layout.
pub fn in_compat_syscall() -> bool {
    // SAFETY: reads the task.
    unsafe { ffi::ex_in_compat_syscall() }
}

/// PAUSE, for spinning.
#[inline]
pub fn cpu_relax() {
    // SAFETY: executes PAUSE.
    unsafe { ffi::ex_cpu_relax() }
}

/// While this lives, the task's signal mask is another one (KVM_SET_SIGNAL_MASK during KVM_RUN).
#[must_use]
pub struct SignalMask(PhantomData<*mut ()>);

impl SignalMask {
    /// Bit `n - 1` blocks signal `n`; SIGKILL and SIGSTOP cannot be blocked.
    pub fn activate(blocked: u64) -> Self {
        // SAFETY: changes the current task's mask.
        unsafe { ffi::ex_sigset_activate(blocked) };
        SignalMask(PhantomData)
    }
}

impl Drop for SignalMask {
    fn drop(&mut self) {
        // SAFETY: the same task, which activate() changed.
        unsafe { ffi::ex_sigset_deactivate() }
    }
}

/// The identity of an address space; its mappings may go away while we hold it.
pub struct Mm(NonNull<c_void>);

// SAFETY: the reference count is atomic.
unsafe impl Send for Mm {}
// SAFETY: as for Send.
unsafe impl Sync for Mm {}
// SAFETY: the pointer is never null, so all-zero is None.
unsafe impl ZeroableInOption for Mm {}

impl Mm {
    /// Of the current task; `None` for a kernel thread.
    pub fn current() -> Option<Self> {
        // SAFETY: takes a reference on the current task's mm, or returns null.
        NonNull::new(unsafe { ffi::ex_mm_grab_current() }).map(Mm)
    }

    /// Is the current task in this address space? VM and vCPU ioctls from another one get `EIO`.
    #[inline]
    pub fn is_current(&self) -> bool {
        // SAFETY: reads the current task's pointer.
        unsafe { ffi::ex_mm_current() == self.0.as_ptr() }
    }

    pub(crate) fn as_raw(&self) -> *mut c_void {
        self.0.as_ptr()
    }
}

impl Drop for Mm {
    fn drop(&mut self) {
        // SAFETY: the reference is given back once, here.
        unsafe { ffi::ex_mm_drop(self.0.as_ptr()) }
    }
}

/// How long the current task has waited on run queues since it began, ns; 0 where the kernel does not count it.
pub fn run_delay_ns() -> u64 {
    // SAFETY: reads a field of the current task.
    unsafe { ffi::ex_run_delay_ns() }
}
