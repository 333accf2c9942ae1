//! Descriptors: reserve a number, make the file, install it last.
//!
//! ```text
//! FdSlot::reserve -> open -> OpenFd::install      user space may use and close the descriptor at once
//!      |drop            |drop
//!   number back      number back, release callback runs on the object
//! ```

use crate::errno::check;
use crate::ffi;
use crate::{Errno, Result};
use core::ffi::{CStr, c_void};
use core::mem::forget;
use core::ptr::NonNull;

const O_RDONLY: u32 = 0;
const O_RDWR: u32 = 2;
const O_CLOEXEC: u32 = 0o2000000;

/// What a descriptor is; decides which `ex_rs_*` callbacks serve it. Order as in `linux/c/helpers/fd.c`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum FdKind {
    /// `ex_rs_vm_ioctl`, `ex_rs_vm_release`.
    Vm = 0,
    /// `ex_rs_vcpu_ioctl`, `ex_rs_vcpu_release`, `ex_rs_vcpu_fault`.
    Vcpu = 1,
    /// `ex_rs_vm_stats`, `ex_rs_vm_stats_release`; only read.
    VmStats = 2,
    /// `ex_rs_vcpu_stats`, `ex_rs_vcpu_release`; only read.
    VcpuStats = 3,
}

/// A descriptor number that nothing stands behind yet.
#[must_use]
pub struct FdSlot(i32);

impl FdSlot {
    /// Close-on-exec. `EMFILE`: the task has too many.
    pub fn reserve() -> Result<Self> {
        // SAFETY: takes a number from the current task.
        check(unsafe { ffi::ex_fd_reserve(O_CLOEXEC) }).map(FdSlot)
    }

    /// The number user space will see.
    pub fn number(&self) -> i32 {
        self.0
    }

    /// Makes the file. On error `object` is still the caller's; on success the release callback of `kind` owns it,
    /// whether the file is installed or dropped. `name` shows in /proc, "kvm-vm" or "kvm-vcpu:0".
    ///
    /// # Safety
    /// `object` is what the callbacks of `kind` expect and stays valid until the release callback.
    pub unsafe fn open(self, kind: FdKind, name: &CStr, object: *mut c_void) -> Result<OpenFd> {
        let mut err = 0;
        let mode = if matches!(kind, FdKind::VmStats | FdKind::VcpuStats) { O_RDONLY } else { O_RDWR };
        // SAFETY: name ends in NUL; err is ours; the object is the caller's promise.
        let file = unsafe { ffi::ex_fd_open(kind as u32, name.as_ptr(), object, mode, &raw mut err) };
        let file = NonNull::new(file).ok_or(Errno::from_ret(err))?;
        Ok(OpenFd { slot: self, file })
    }
}

impl Drop for FdSlot {
    fn drop(&mut self) {
        // SAFETY: the number is reserved and nothing was installed.
        unsafe { ffi::ex_fd_unreserve(self.0) }
    }
}

/// A file with a number, not yet visible to user space.
#[must_use]
pub struct OpenFd {
    slot: FdSlot,
    file: NonNull<c_void>,
}

impl OpenFd {
    /// The number user space will see.
    pub fn number(&self) -> i32 {
        self.slot.0
    }

    /// The last step: another thread may close the descriptor before this returns.
    pub fn install(self) -> i32 {
        let fd = self.slot.0;
        // SAFETY: number and file are ours and are handed over together, once.
        unsafe { ffi::ex_fd_install(fd, self.file.as_ptr()) };
        forget(self);
        fd
    }
}

impl Drop for OpenFd {
    fn drop(&mut self) {
        // SAFETY: the file is ours; the slot's own drop returns the number.
        unsafe { ffi::ex_fd_close(self.file.as_ptr()) }
    }
}
