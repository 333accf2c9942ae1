//! The global allocator, for one user: the instruction decoder builds its tables when the module loads.
//!
//! Nothing on a run path may allocate through it: it may sleep, and running out of memory is a panic. VMs and vCPUs use
//! [`crate::mem`], which reports failure and charges the caller's cgroup.
//!
//! The decoder keeps its tables in statics that nobody drops. So every block is on a list, and unloading the module frees
//! what is still there ([`free_all`]).
//!
//! ```text
//! HEAD -> [prev next | pad to the alignment | the caller's bytes] <-> [...]
//! ```

use crate::ffi;
use core::alloc::{GlobalAlloc, Layout};
use core::ptr::null_mut;
use core::sync::atomic::{AtomicBool, AtomicPtr, Ordering};

/// In front of each block.
#[repr(C)]
struct Header {
    prev: *mut Header,
    next: *mut Header,
}

static HEAD: AtomicPtr<Header> = AtomicPtr::new(null_mut());
static BUSY: AtomicBool = AtomicBool::new(false);

/// Bytes from the block's begin to the caller's: room for the header, and the caller's alignment.
fn lead(layout: &Layout) -> usize {
    layout.align().max(size_of::<Header>())
}

/// Runs `f` with the list to itself. The list is used while the module loads and unloads, so nobody waits for long.
fn locked<R>(f: impl FnOnce() -> R) -> R {
    while BUSY.swap(true, Ordering::Acquire) {
        core::hint::spin_loop();
    }
    let result = f();
    BUSY.store(false, Ordering::Release);
    result
}

/// # Safety
/// `block` starts with room for a header, is live and not on the list.
unsafe fn link(block: *mut Header) {
    locked(|| {
        let first = HEAD.load(Ordering::Relaxed);
        // SAFETY: the caller's promise for `block`; `first` is null or a live block on the list, which is ours alone now.
        unsafe {
            block.write(Header { prev: null_mut(), next: first });
            if let Some(first) = first.as_mut() {
                first.prev = block;
            }
        }
        HEAD.store(block, Ordering::Relaxed);
    });
}

/// # Safety
/// `block` is on the list.
unsafe fn unlink(block: *mut Header) {
    locked(|| {
        // SAFETY: `block` and its neighbours are live blocks on the list, which is ours alone now.
        unsafe {
            let Header { prev, next } = block.read();
            match prev.as_mut() {
                Some(prev) => prev.next = next,
                None => HEAD.store(next, Ordering::Relaxed),
            }
            if let Some(next) = next.as_mut() {
                next.prev = prev;
            }
        }
    });
}

/// Frees every block that is left. For the end of the module's life.
///
/// # Safety
/// Nothing that was allocated here is used afterwards: the decoder decodes no more.
pub unsafe fn free_all() {
    loop {
        let block = HEAD.load(Ordering::Acquire);
        if block.is_null() {
            return;
        }
        // SAFETY: `block` is on the list; it came from the helper below and is freed once, here.
        unsafe {
            unlink(block);
            ffi::ex_kvfree(block.cast());
        }
    }
}

struct Kvmalloc;

// SAFETY: kvmalloc returns null or a block of at least the asked size, and the helper pads so that the block has the asked
// alignment (up to a page, above that it returns null); `lead` keeps that alignment and leaves room for the header.
unsafe impl GlobalAlloc for Kvmalloc {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let lead = lead(&layout);
        let Some(size) = layout.size().checked_add(lead) else { return null_mut() };
        // SAFETY: the helper checks size and alignment itself.
        let block: *mut u8 = unsafe { ffi::ex_kvmalloc_module(size, lead).cast() };
        if block.is_null() {
            return block;
        }
        // SAFETY: the block is fresh, aligned for a header and has `lead` bytes in front of the caller's.
        unsafe {
            link(block.cast());
            block.add(lead)
        }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: ptr came from alloc above with the same layout, so its block begins `lead` bytes in front.
        unsafe {
            let block = ptr.sub(lead(&layout));
            unlink(block.cast());
            ffi::ex_kvfree(block.cast());
        }
    }
}

#[global_allocator]
static ALLOCATOR: Kvmalloc = Kvmalloc;
