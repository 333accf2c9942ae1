//! The host's side of guest memory: from a user address to a page, the size of its mapping, and notices of change.

use crate::errno::check;
use crate::ffi;
use crate::task::Mm;
use crate::{Errno, Result};
use bytemuck::ZeroableInOption;
use core::ffi::c_void;
use core::ptr::NonNull;

/// A page found behind a user address. Dropping gives the reference back and marks it accessed.
///
/// The mapping made from it stays right only as long as no invalidation of the address has begun: compare the
/// invalidation count before and after, as `ex_rs_mmu_invalidate_start` describes.
#[must_use]
pub struct HostPage {
    pfn: u64,
    writable: bool,
    counted: bool,
}

impl HostPage {
    /// Page frame number: physical address >> 12.
    pub fn pfn(&self) -> u64 {
        self.pfn
    }

    /// May the guest write through it now?
    pub fn writable(&self) -> bool {
        self.writable
    }

    /// An ordinary page with a reference count; false for device memory mapped by a driver.
    pub fn counted(&self) -> bool {
        self.counted
    }

    /// Gives the reference back; `dirty` when the guest got a writable mapping. Process context.
    pub fn release(mut self, dirty: bool) {
        self.put(dirty);
    }

    fn put(&mut self, dirty: bool) {
        if self.counted {
            self.counted = false;
            // SAFETY: the page was returned with a reference, given back once.
            unsafe { ffi::ex_page_release(self.pfn, dirty, true) }
        }
    }
}

impl Drop for HostPage {
    fn drop(&mut self) {
        self.put(false);
    }
}

/// The page behind `hva` in the current address space, faulting it in. Asks for write permission when `write`; when only reading, still
/// reports whether writing would do. `EFAULT`: none; `EBUSY`: it takes time, and the caller does not `wait` for it; `EHWPOISON`: the page has a
/// memory error; `EINTR`: the task is being killed.
pub fn page_of(hva: u64, write: bool, waits: bool) -> Result<HostPage> {
    let mut found = ffi::GupResult::default();
    // SAFETY: found is ours to fill; the helper checks the address.
    check(unsafe { ffi::ex_gup(hva, write, waits, &raw mut found) })?;
    Ok(HostPage { pfn: found.pfn, writable: found.writable != 0, counted: found.counted != 0 })
}

/// How big a page the host maps an address with.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum HostLevel {
    /// 4 KiB.
    Page4K = 1,
    /// 2 MiB.
    Page2M = 2,
    /// 1 GiB.
    Page1G = 3,
}

/// How `mm` maps `hva` now; `None` when it does not. Any context. The same caution as for [`HostPage`].
pub fn host_level(mm: &Mm, hva: u64) -> Option<HostLevel> {
    // SAFETY: the mm is alive; the helper walks with interrupts off, which holds off freeing of tables.
    match unsafe { ffi::ex_host_level(mm.as_raw(), hva) } {
        1 => Some(HostLevel::Page4K),
        2 => Some(HostLevel::Page2M),
        3 => Some(HostLevel::Page1G),
        _ => None,
    }
}

/// Is the frame ordinary memory (write-back for the guest), not a device?
pub fn is_ram(pfn: u64) -> bool {
    // SAFETY: the helper checks that the frame has a struct page.
    unsafe { ffi::ex_pfn_is_ram(pfn) }
}

/// Notices about an address space: `ex_rs_mmu_invalidate_start`, `_end`, `ex_rs_mmu_age`, `ex_rs_mmu_release`.
pub struct MmuNotifier(NonNull<c_void>);

// SAFETY: the C object locks for itself.
unsafe impl Send for MmuNotifier {}
// SAFETY: as for Send.
unsafe impl Sync for MmuNotifier {}
// SAFETY: the pointer is never null, so all-zero is None.
unsafe impl ZeroableInOption for MmuNotifier {}

impl MmuNotifier {
    /// On the current address space; `vm` goes to the callbacks, which may run before this returns, and must stay valid
    /// until the drop returns. `ENOMEM`, `EINTR`.
    pub fn register(vm: *mut c_void) -> Result<Self> {
        let mut err = 0;
        // SAFETY: err is ours to fill; the pointer is only handed back.
        let notifier = unsafe { ffi::ex_mmu_notifier_new(vm, &raw mut err) };
        NonNull::new(notifier).map(MmuNotifier).ok_or(Errno::from_ret(err))
    }
}

impl Drop for MmuNotifier {
    /// Calls `ex_rs_mmu_release` if the address space still lives, and waits for running callbacks. Sleeps.
    fn drop(&mut self) {
        // SAFETY: unregistered and freed once, here.
        unsafe { ffi::ex_mmu_notifier_free(self.0.as_ptr()) }
    }
}
