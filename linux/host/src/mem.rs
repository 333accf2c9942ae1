//! Memory: zeroed boxes, slices and shared boxes charged to the caller's cgroup, and physical pages.
//!
//! Everything is allocated zeroed and used in place, so no big value ever crosses the 16 KiB stack.

use crate::ffi;
use bytemuck::{Zeroable, ZeroableInOption};
use core::ffi::c_void;
use core::mem::{align_of, size_of};
use core::ops::{Deref, DerefMut};
use core::ptr::NonNull;
use core::sync::atomic::{AtomicUsize, Ordering, fence};

/// 4096.
pub const PAGE_SIZE: usize = 4096;

/// Zeroed memory for `n` values of `T`. Process context, may sleep. `None`: no memory, or more than 2 GiB.
fn zeroed_block<T>(n: usize) -> Option<NonNull<T>> {
    let size = size_of::<T>().checked_mul(n)?.max(1);
    // SAFETY: the helper checks size and alignment and returns null or a zeroed block that fits both.
    let block = NonNull::new(unsafe { ffi::ex_kvzalloc(size, align_of::<T>()) }.cast());
    LIVE_BLOCKS.fetch_add(usize::from(block.is_some()), Ordering::Relaxed);
    block
}

static LIVE_BLOCKS: AtomicUsize = AtomicUsize::new(0);
static LIVE_PAGES: AtomicUsize = AtomicUsize::new(0);

/// What is allocated and not yet freed: heap blocks, and runs of pages. Both are 0 when the module has given everything
/// back.
pub fn live() -> (usize, usize) {
    (LIVE_BLOCKS.load(Ordering::Relaxed), LIVE_PAGES.load(Ordering::Relaxed))
}

/// # Safety
/// `ptr` came from [`zeroed_block`] and is not used again.
unsafe fn free_block<T>(ptr: NonNull<T>) {
    LIVE_BLOCKS.fetch_sub(1, Ordering::Relaxed);
    // SAFETY: the caller's promise.
    unsafe { ffi::ex_kvfree(ptr.as_ptr().cast()) }
}

/// One value on the kernel's heap.
pub struct KBox<T>(NonNull<T>);

// SAFETY: a KBox owns its value, as Box does.
unsafe impl<T: Send> Send for KBox<T> {}
// SAFETY: as for Send.
unsafe impl<T: Sync> Sync for KBox<T> {}
// SAFETY: the pointer is never null, so all-zero is None.
unsafe impl<T> ZeroableInOption for KBox<T> {}

impl<T: Zeroable> KBox<T> {
    /// All zero. Process context. `None`: no memory.
    pub fn zeroed() -> Option<Self> {
        zeroed_block::<T>(1).map(KBox)
    }
}

impl<T> KBox<T> {
    /// Gives up ownership; [`KBox::from_raw`] takes it back.
    pub fn into_raw(this: Self) -> *mut T {
        let ptr = this.0.as_ptr();
        core::mem::forget(this);
        ptr
    }

    /// # Safety
    /// `ptr` came from [`KBox::into_raw`] and is taken back once.
    pub unsafe fn from_raw(ptr: *mut T) -> Option<Self> {
        NonNull::new(ptr).map(KBox)
    }

    /// The address, for hardware or C.
    pub fn as_ptr(&self) -> *mut T {
        self.0.as_ptr()
    }
}

impl<T> Deref for KBox<T> {
    type Target = T;
    fn deref(&self) -> &T {
        // SAFETY: the block holds a T (zeroed or changed through us) and lives as long as self.
        unsafe { self.0.as_ref() }
    }
}

impl<T> DerefMut for KBox<T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as in deref, and &mut self makes it unique.
        unsafe { self.0.as_mut() }
    }
}

impl<T> Drop for KBox<T> {
    fn drop(&mut self) {
        // SAFETY: self owns the value and the block, and both end here.
        unsafe {
            core::ptr::drop_in_place(self.0.as_ptr());
            free_block(self.0);
        }
    }
}

/// A slice of fixed length on the kernel's heap. All-zero is the empty slice.
pub struct KSlice<T> {
    ptr: *mut T,
    len: usize,
}

// SAFETY: null and 0 is the empty slice.
unsafe impl<T> Zeroable for KSlice<T> {}
// SAFETY: a KSlice owns its values.
unsafe impl<T: Send> Send for KSlice<T> {}
// SAFETY: as for Send.
unsafe impl<T: Sync> Sync for KSlice<T> {}

impl<T> KSlice<T> {
    /// No values, no memory.
    pub const fn empty() -> Self {
        KSlice { ptr: core::ptr::null_mut(), len: 0 }
    }
}

impl<T: Zeroable> KSlice<T> {
    /// `n` zeroed values. Process context. `None`: no memory, or more than 2 GiB.
    pub fn zeroed(n: usize) -> Option<Self> {
        if n == 0 {
            return Some(Self::empty());
        }
        let ptr = zeroed_block::<T>(n)?.as_ptr();
        Some(KSlice { ptr, len: n })
    }
}

impl<T> Deref for KSlice<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        if self.ptr.is_null() {
            return &[];
        }
        // SAFETY: ptr holds len values of T and lives as long as self.
        unsafe { core::slice::from_raw_parts(self.ptr, self.len) }
    }
}

impl<T> DerefMut for KSlice<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        if self.ptr.is_null() {
            return &mut [];
        }
        // SAFETY: as in deref, and &mut self makes it unique.
        unsafe { core::slice::from_raw_parts_mut(self.ptr, self.len) }
    }
}

impl<T> Drop for KSlice<T> {
    fn drop(&mut self) {
        if let Some(ptr) = NonNull::new(self.ptr) {
            // SAFETY: self owns the values and the block, and both end here.
            unsafe {
                core::ptr::drop_in_place(core::ptr::slice_from_raw_parts_mut(self.ptr, self.len));
                free_block(ptr);
            }
        }
    }
}

#[repr(C)]
struct Shared<T> {
    refs: AtomicUsize,
    value: T,
}

/// One value with counted owners, as `Arc`. Dropping the last one may sleep if `T`'s drop does.
pub struct KArc<T>(NonNull<Shared<T>>);

// SAFETY: as for Arc: owners in several threads share &T and one of them drops it.
unsafe impl<T: Send + Sync> Send for KArc<T> {}
// SAFETY: as for Send.
unsafe impl<T: Send + Sync> Sync for KArc<T> {}
// SAFETY: the pointer is never null, so all-zero is None.
unsafe impl<T> ZeroableInOption for KArc<T> {}

impl<T: Zeroable> KArc<T> {
    /// All zero, one owner. Process context. `None`: no memory.
    pub fn zeroed() -> Option<Self> {
        let block = zeroed_block::<Shared<T>>(1)?;
        // SAFETY: the block is zeroed, and zero is a valid AtomicUsize and T.
        unsafe { block.as_ref() }.refs.store(1, Ordering::Relaxed);
        Some(KArc(block))
    }
}

impl<T> KArc<T> {
    fn shared(&self) -> &Shared<T> {
        // SAFETY: the block lives while an owner exists, and self is one.
        unsafe { self.0.as_ref() }
    }

    /// The value, if this is the only owner: for building it in place.
    pub fn get_mut(&mut self) -> Option<&mut T> {
        if self.shared().refs.load(Ordering::Acquire) != 1 {
            return None;
        }
        // SAFETY: one owner, borrowed mutably: nobody else can reach the value.
        Some(unsafe { &mut self.0.as_mut().value })
    }

    /// The address of the value: stable while any owner lives. Does not change the count.
    pub fn as_ptr(this: &Self) -> *const T {
        &raw const this.shared().value
    }

    /// Gives one ownership away as a raw pointer to the value; [`KArc::from_raw`] takes it back.
    pub fn into_raw(this: Self) -> *const T {
        let ptr = Self::as_ptr(&this);
        core::mem::forget(this);
        ptr
    }

    /// # Safety
    /// `ptr` came from [`KArc::into_raw`]; each such pointer is taken back once.
    pub unsafe fn from_raw(ptr: *const T) -> Option<Self> {
        if ptr.is_null() {
            return None;
        }
        let offset = core::mem::offset_of!(Shared<T>, value);
        // SAFETY: ptr points at the value inside a Shared<T>.
        NonNull::new(unsafe { ptr.byte_sub(offset) } as *mut Shared<T>).map(KArc)
    }

    /// One more owner, from a raw pointer that stays valid.
    ///
    /// # Safety
    /// `ptr` is the address of a value that some other owner keeps alive during the call.
    pub unsafe fn clone_raw(ptr: *const T) -> Option<Self> {
        // SAFETY: the caller's promise; the extra count makes the result an owner of its own.
        let this = unsafe { Self::from_raw(ptr) }?;
        this.shared().refs.fetch_add(1, Ordering::Relaxed);
        Some(this)
    }

    /// One more owner, from a raw pointer to a value that may be losing its last. `None`: it has.
    ///
    /// # Safety
    /// `ptr` is the address of a value that is not freed during the call.
    pub unsafe fn try_clone_raw(ptr: *const T) -> Option<Self> {
        // SAFETY: the caller's promise; an owner that is none yet must not drop.
        let this = core::mem::ManuallyDrop::new(unsafe { Self::from_raw(ptr) }?);
        let more = |refs: usize| if refs == 0 { None } else { refs.checked_add(1) };
        this.shared().refs.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok()?;
        Some(core::mem::ManuallyDrop::into_inner(this))
    }
}

impl<T> Clone for KArc<T> {
    fn clone(&self) -> Self {
        self.shared().refs.fetch_add(1, Ordering::Relaxed);
        KArc(self.0)
    }
}

impl<T> Deref for KArc<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.shared().value
    }
}

impl<T> Drop for KArc<T> {
    fn drop(&mut self) {
        if self.shared().refs.fetch_sub(1, Ordering::Release) != 1 {
            return;
        }
        // Every use by the other owners happened before their decrement; see them all before dropping.
        fence(Ordering::Acquire);
        // SAFETY: the count reached zero here, so nobody else can reach the block.
        unsafe {
            core::ptr::drop_in_place(&raw mut (*self.0.as_ptr()).value);
            free_block(self.0);
        }
    }
}

/// `2^order` physically contiguous pages, zeroed at first, below no particular address.
pub struct Pages {
    virt: NonNull<u8>,
    order: u32,
}

// SAFETY: Pages owns its memory.
unsafe impl Send for Pages {}
// SAFETY: shared access reads only.
unsafe impl Sync for Pages {}
// SAFETY: virt is never null, so all-zero is None.
unsafe impl ZeroableInOption for Pages {}

impl Pages {
    /// Process context. Pages that user space will map must have order 0 each.
    pub fn zeroed(order: u32) -> Option<Self> {
        if order > 10 {
            return None;
        }
        // SAFETY: the helper returns null or the direct-map address of 2^order zeroed pages.
        Self::counted(NonNull::new(unsafe { ffi::ex_pages_alloc(order) }.cast()), order)
    }

    fn counted(virt: Option<NonNull<u8>>, order: u32) -> Option<Self> {
        let virt = virt?;
        LIVE_PAGES.fetch_add(1, Ordering::Relaxed);
        Some(Pages { virt, order })
    }

    /// Physical address of the first byte, without the memory encryption bit.
    pub fn phys(&self) -> u64 {
        phys_of(self.virt.as_ptr())
    }

    /// The same with the memory encryption bit: what control blocks and registers of the CPU must hold.
    pub fn hardware_address(&self) -> u64 {
        self.phys() | encryption_bit()
    }

    /// Kernel address of the first byte.
    pub fn as_ptr(&self) -> *mut u8 {
        self.virt.as_ptr()
    }

    /// Log2 of the number of pages.
    pub fn order(&self) -> u32 {
        self.order
    }

    /// Bytes in all pages.
    pub fn size(&self) -> usize {
        PAGE_SIZE << self.order
    }

    /// The content. Not for pages that hardware or user space writes meanwhile.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: size() bytes from virt belong to self and are initialised.
        unsafe { core::slice::from_raw_parts(self.virt.as_ptr(), self.size()) }
    }

    /// The content, to change. Not for pages that hardware or user space uses meanwhile.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in bytes, and &mut self makes it unique.
        unsafe { core::slice::from_raw_parts_mut(self.virt.as_ptr(), self.size()) }
    }

    /// The `struct page` of page `index`, for `ex_rs_vcpu_fault`. Null past the end.
    pub fn page(&self, index: usize) -> *mut c_void {
        if index >> self.order != 0 {
            return core::ptr::null_mut();
        }
        // SAFETY: the address lies inside our pages, which are in the direct map.
        unsafe { ffi::ex_page_of(self.virt.as_ptr().add(index * PAGE_SIZE).cast()) }
    }

    /// Gives up ownership; [`Pages::from_raw`] takes it back.
    pub fn into_raw(self) -> (*mut u8, u32) {
        let parts = (self.virt.as_ptr(), self.order);
        core::mem::forget(self);
        parts
    }

    /// # Safety
    /// The parts came from [`Pages::into_raw`] and are taken back once.
    pub unsafe fn from_raw(virt: *mut u8, order: u32) -> Option<Self> {
        NonNull::new(virt).map(|virt| Pages { virt, order })
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        LIVE_PAGES.fetch_sub(1, Ordering::Relaxed);
        // SAFETY: allocated with this order by ex_pages_alloc, freed once, here.
        unsafe { ffi::ex_pages_free(self.virt.as_ptr().cast(), self.order) }
    }
}

/// Physical address of a kernel address, also of vmalloc memory (then for that one page only).
pub fn phys_of<T>(ptr: *const T) -> u64 {
    // SAFETY: the helper only translates; it does not read through the pointer.
    unsafe { ffi::ex_phys_of(ptr.cast()) }
}

/// Kernel address of a physical address in the direct map (memory from [`Pages`]).
pub fn virt_of(phys: u64) -> *mut u8 {
    // SAFETY: pure arithmetic.
    unsafe { ffi::ex_virt_of(phys) }.cast()
}

/// The bit that marks encrypted memory in page tables (SME), 0 on most machines.
pub fn encryption_bit() -> u64 {
    // SAFETY: reads one variable.
    unsafe { ffi::ex_sme_mask() }
}
