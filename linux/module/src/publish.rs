//! Tables that readers see without a lock: built aside, published by one pointer, freed after all readers left.

use core::ptr;
use core::sync::atomic::{AtomicPtr, Ordering};
use exitless_host::mem::KBox;

/// A pointer to an immutable table, or nothing.
///
/// # Invariants
/// A non-null pointer came from `KBox::into_raw`. It is freed only after every reader that could have loaded it has
/// left its read section (or when nobody can read any more).
#[derive(bytemuck::Zeroable)]
#[repr(transparent)]
pub struct Published<T>(AtomicPtr<T>);

impl<T: bytemuck::Zeroable> Published<T> {
    /// The table of this moment.
    ///
    /// # Safety
    /// The caller is inside a read section of the VM (or holds the VM's update lock) for as long as it uses the
    /// result.
    pub unsafe fn get(&self) -> Option<&T> {
        // SAFETY: type invariant; the caller's read section keeps the table from being freed.
        unsafe { self.0.load(Ordering::Acquire).as_ref() }
    }

    /// Publishes a new table and returns the old one, to be dropped after `synchronize`.
    pub fn replace(&self, new: Option<KBox<T>>) -> Option<KBox<T>> {
        let new = new.map_or(ptr::null_mut(), KBox::into_raw);
        let old = self.0.swap(new, Ordering::AcqRel);
        // SAFETY: type invariant: a non-null pointer came from `into_raw` and left the cell just now, once.
        unsafe { KBox::from_raw(old) }
    }
}

/// A box that is made once and stays for as long as this does.
///
/// # Invariants
/// A non-null pointer came from `KBox::into_raw`, and does not change until this drops.
#[derive(bytemuck::Zeroable)]
#[repr(transparent)]
pub struct Once<T>(AtomicPtr<T>);

impl<T: bytemuck::Zeroable> Once<T> {
    /// What is there.
    pub fn get(&self) -> Option<&T> {
        // SAFETY: type invariant; `self` is borrowed for as long as the result.
        unsafe { self.0.load(Ordering::Acquire).as_ref() }
    }

    /// Makes it, all zero, unless it is there. Process context. `None`: no memory.
    pub fn make(&self) -> Option<&T> {
        self.make_by(|_| Some(()))
    }

    /// The same; `fill` makes of the zeroes what it is to be, or has no memory for that.
    pub fn make_by(&self, fill: impl FnOnce(&mut T) -> Option<()>) -> Option<&T> {
        if self.get().is_none() {
            let mut new = KBox::<T>::zeroed()?;
            fill(&mut new)?;
            let new = KBox::into_raw(new);
            let first = self.0.compare_exchange(ptr::null_mut(), new, Ordering::AcqRel, Ordering::Acquire);
            if first.is_err() {
                // SAFETY: it came from `into_raw` just now, and nobody else knows it.
                drop(unsafe { KBox::from_raw(new) });
            }
        }
        self.get()
    }
}

impl<T> Drop for Once<T> {
    fn drop(&mut self) {
        // SAFETY: type invariant; nobody else has `self`, so nobody has what `get` gave.
        drop(unsafe { KBox::from_raw(*self.0.get_mut()) });
    }
}
