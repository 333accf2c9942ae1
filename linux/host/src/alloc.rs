//! The global allocator, for one user: the instruction decoder builds its tables when the module loads.
//!
//! Nothing on a run path may allocate through it: it may sleep, and running out of memory is a panic. VMs and vCPUs use
//! [`crate::mem`], which reports failure and charges the caller's cgroup.

use crate::ffi;
use core::alloc::{GlobalAlloc, Layout};

struct Kvmalloc;

// SAFETY: kvmalloc returns null or a block of at least the asked size; the helper pads so that the block has the
// asked alignment (up to a page, above that it returns null); kvfree takes any such block.
unsafe impl GlobalAlloc for Kvmalloc {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the helper checks size and alignment itself.
        unsafe { ffi::ex_kvmalloc_module(layout.size(), layout.align()).cast() }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, _layout: Layout) {
        // SAFETY: ptr came from alloc above.
        unsafe { ffi::ex_kvfree(ptr.cast()) }
    }
}

#[global_allocator]
static ALLOCATOR: Kvmalloc = Kvmalloc;
