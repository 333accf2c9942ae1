//! `/sys/kernel/debug/kvm/<vm>/`: text made by `ex_rs_debugfs_show`, and counters by address.

use crate::errno::check;
use crate::ffi;
use crate::handle::{Handle, handle_type};
use crate::{Errno, Result};
use core::ffi::{CStr, c_void};

/// One VM's folder. Dropping removes it and waits for readers inside the callback.
pub struct Dir {
    handle: Handle,
}

handle_type!(Dir, ffi::ex_debugfs_dir_free);

impl Dir {
    /// `name` is `<pid>-<fd>`, as KVM names it. Process context.
    pub fn init(&mut self, name: &CStr) -> Result<()> {
        if !self.handle.is_null() {
            return Err(Errno::EEXIST);
        }
        // SAFETY: name ends in NUL; returns null or a folder.
        self.handle.set(unsafe { ffi::ex_debugfs_dir_new(name.as_ptr()) });
        if self.handle.is_null() { Err(Errno::ENOMEM) } else { Ok(()) }
    }

    /// A text that `ex_rs_debugfs_show(cookie, kind, buf, len)` writes at each open. `cookie` must stay valid until the
    /// folder is dropped.
    pub fn text(&self, name: &CStr, cookie: *mut c_void, kind: u32) -> Result<()> {
        self.file(name, cookie, kind, false)
    }

    /// As [`Dir::text`]; whatever root writes to it, `ex_rs_debugfs_knock(cookie, kind)` is called.
    pub fn knocked_text(&self, name: &CStr, cookie: *mut c_void, kind: u32) -> Result<()> {
        self.file(name, cookie, kind, true)
    }

    fn file(&self, name: &CStr, cookie: *mut c_void, kind: u32, knocks: bool) -> Result<()> {
        // SAFETY: the handle is live; the cookie is only handed back.
        check(unsafe { ffi::ex_debugfs_text(self.handle.get(), name.as_ptr(), cookie, kind, knocks) })
            .map(drop)
    }

    /// A read-only counter.
    ///
    /// # Safety
    /// `value` stays readable until the folder is dropped.
    pub unsafe fn counter(&self, name: &CStr, value: *const u64) {
        // SAFETY: the handle is live; the file is read-only, so the kernel only reads the value.
        unsafe { ffi::ex_debugfs_u64(self.handle.get(), name.as_ptr(), value.cast_mut()) }
    }
}
