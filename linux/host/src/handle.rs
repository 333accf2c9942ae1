//! An opaque pointer to an object that C owns.

use core::ffi::c_void;

/// Null until created. The type that wraps it frees the object in its `Drop`.
#[repr(transparent)]
pub(crate) struct Handle(*mut c_void);

impl Handle {
    /// The object. Stops the machine if `init` was never called: that is a bug of this module, never of a guest.
    #[inline]
    pub(crate) fn get(&self) -> *mut c_void {
        if self.0.is_null() {
            null_handle();
        }
        self.0
    }

    /// The object, null when it was never created. For `Drop`.
    pub(crate) fn raw(&self) -> *mut c_void {
        self.0
    }

    /// Keeps a fresh object. The caller has checked that none is there.
    pub(crate) fn set(&mut self, object: *mut c_void) {
        self.0 = object;
    }

    pub(crate) fn is_null(&self) -> bool {
        self.0.is_null()
    }
}

#[cold]
#[inline(never)]
fn null_handle() -> ! {
    crate::log::emit(crate::log::Level::Err, b"a handle was used before init");
    crate::trap()
}

/// A wrapper type around one [`Handle`]: zeroed state, freeing, and the right to move between threads.
macro_rules! handle_type {
    ($name:ident, $free:path) => {
        // SAFETY: all-zero is the null handle, "not created".
        unsafe impl bytemuck::Zeroable for $name {}
        // SAFETY: the C object has no thread affinity; its helpers lock for themselves.
        unsafe impl Send for $name {}
        // SAFETY: as for Send: shared use goes through helpers that lock for themselves.
        unsafe impl Sync for $name {}

        impl Drop for $name {
            fn drop(&mut self) {
                if !self.handle.is_null() {
                    // SAFETY: the object was created by this handle and is freed once, here.
                    unsafe { $free(self.handle.raw()) }
                }
            }
        }
    };
}
pub(crate) use handle_type;
