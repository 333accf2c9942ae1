//! The window to the vCPUs' posted-interrupt descriptors: their memory, and whether the guest finds it
//! (`docs/protocols/shared-descriptor.md`).

use crate::publish::Once;
use core::sync::atomic::{AtomicBool, Ordering};
use exitless_host::mem::{PAGE_SIZE, Pages};
use exitless_host::{Errno, Result};
use exitless_nospec::Guarded;
use exitless_posted::Descriptor;
use exitless_pv_abi::{EXITLESS_WINDOW, EXITLESS_WINDOW_ENTRIES};

const BYTES: usize = size_of::<Descriptor>();
/// Descriptors of a page.
const PER_PAGE: usize = PAGE_SIZE / BYTES;
const PAGES: usize = EXITLESS_WINDOW_ENTRIES as usize / PER_PAGE;
const FIRST: u64 = EXITLESS_WINDOW >> 12;

/// The frame is the window's, open or not.
pub fn holds(gfn: u64) -> bool {
    (FIRST..FIRST + PAGES as u64).contains(&gfn)
}

/// So many frames from there on cover some of it.
pub fn is_below(first: u64, count: u64) -> bool {
    first < FIRST + PAGES as u64 && first.saturating_add(count) > FIRST
}

/// One page of it.
#[derive(bytemuck::Zeroable)]
struct Page {
    page: Option<Pages>,
}

/// The descriptors of one VM, in pages that are there once a vCPU needs them, until the VM goes.
#[derive(bytemuck::Zeroable)]
pub struct Window {
    pages: [Once<Page>; PAGES],
    /// The guest has asked for it.
    open: AtomicBool,
    /// Memory covers some of it.
    hidden: AtomicBool,
    _pad: [u8; 6],
}

impl Window {
    /// From now on accesses there find memory.
    pub fn open(&self) {
        self.open.store(true, Ordering::Release);
    }

    /// The guest may write descriptors.
    pub fn is_open(&self) -> bool {
        self.open.load(Ordering::Acquire)
    }

    /// Memory covers some of it, or not any more; `true`: that is new, and the vCPUs have to choose again.
    pub fn hide(&self, hidden: bool) -> bool {
        self.hidden.swap(hidden, Ordering::SeqCst) != hidden
    }

    /// Guests do not find it.
    pub fn is_hidden(&self) -> bool {
        self.hidden.load(Ordering::SeqCst)
    }

    fn page(&self, index: usize) -> Option<&Pages> {
        // The guest, or who makes vCPUs, chooses the page.
        self.pages.guarded(index)?.get()?.page.as_ref()
    }

    /// The physical address of what the guest finds at `gfn`.
    pub fn at(&self, gfn: u64) -> Option<u64> {
        let index = gfn.checked_sub(FIRST).filter(|i| *i < PAGES as u64 && self.is_open())?;
        self.page(index as usize).map(Pages::phys)
    }

    /// The descriptor of a new vCPU; `None`: the window is smaller. The caller holds the VM's `lock`.
    pub fn descriptor(&self, id: u32) -> Result<Option<&'static Descriptor>> {
        let (index, place) = (id as usize / PER_PAGE, id as usize % PER_PAGE);
        let Some(slot) = self.pages.guarded(index) else { return Ok(None) };
        let made = slot.make_by(|new| {
            new.page = Some(Pages::zeroed(0)?);
            Some(())
        });
        let page = made.and_then(|made| made.page.as_ref()).ok_or(Errno::ENOMEM)?;
        // SAFETY: a zeroed page is descriptors, which are atomics, and `place` is one of them. The page lives as long as the VM, which
        // frees its vCPUs first, and they alone keep the reference.
        let descriptor = unsafe { page.as_ptr().cast::<Descriptor>().add(place).as_ref() };
        if let Some(descriptor) = descriptor {
            descriptor.init();
        }
        Ok(descriptor)
    }
}
