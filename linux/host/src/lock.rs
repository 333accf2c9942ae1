//! Spin locks that turn interrupts off, and mutexes that sleep.

use crate::errno::check;
use crate::ffi;
use crate::handle::Handle;
use crate::{Errno, Result};
use bytemuck::Zeroable;
use core::cell::UnsafeCell;
use core::marker::PhantomData;
use core::ops::{Deref, DerefMut};

/// The kind of a lock. A debug kernel learns the order between kinds, so locks that are taken inside each other need
/// different kinds. The names are in `linux/c/helpers/lock.c`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
#[allow(missing_docs)] // The names say it.
pub enum LockClass {
    Other = 0,
    Vm,
    Slots,
    Mmu,
    Vcpu,
    Lapic,
    Irqchip,
    Routes,
    Irqfds,
    Ioeventfds,
    Pit,
    Clock,
    VmList,
    Stats,
}

/// A guard stays on the thread (and for spin locks on the CPU) that took the lock.
type NotSend = PhantomData<*mut ()>;

/// Data behind a raw spin lock; holding it keeps interrupts off. Any context.
pub struct SpinLock<T> {
    handle: Handle,
    data: UnsafeCell<T>,
}

// SAFETY: all-zero is "no lock yet" and T's own zero.
unsafe impl<T: Zeroable> Zeroable for SpinLock<T> {}
// SAFETY: the lock gives one thread at a time access to T.
unsafe impl<T: Send> Send for SpinLock<T> {}
// SAFETY: as for Send.
unsafe impl<T: Send> Sync for SpinLock<T> {}

impl<T> SpinLock<T> {
    /// Creates the lock around the data that is already in place. Process context.
    pub fn init(&mut self, class: LockClass) -> Result<()> {
        if !self.handle.is_null() {
            return Err(Errno::EEXIST);
        }
        // SAFETY: returns null or a lock.
        self.handle.set(unsafe { ffi::ex_spin_new(class as u32) });
        if self.handle.is_null() { Err(Errno::ENOMEM) } else { Ok(()) }
    }

    /// Spins until the lock is ours.
    #[inline]
    pub fn lock(&self) -> SpinGuard<'_, T> {
        // SAFETY: the handle is a live lock.
        let flags = unsafe { ffi::ex_spin_lock(self.handle.get()) };
        SpinGuard { lock: self, flags, marker: PhantomData }
    }

    /// The data without locking: we are its only user.
    pub fn get_mut(&mut self) -> &mut T {
        self.data.get_mut()
    }
}

impl<T> Drop for SpinLock<T> {
    fn drop(&mut self) {
        if !self.handle.is_null() {
            // SAFETY: created by init, freed once, here; &mut self says nobody holds it.
            unsafe { ffi::ex_spin_free(self.handle.raw()) }
        }
    }
}

/// Interrupts come back as they were when this is dropped.
#[must_use]
pub struct SpinGuard<'a, T> {
    lock: &'a SpinLock<T>,
    flags: usize,
    marker: NotSend,
}

impl<T> Deref for SpinGuard<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        // SAFETY: we hold the lock.
        unsafe { &*self.lock.data.get() }
    }
}

impl<T> DerefMut for SpinGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: we hold the lock, and &mut self makes the borrow unique.
        unsafe { &mut *self.lock.data.get() }
    }
}

impl<T> Drop for SpinGuard<'_, T> {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: we hold this lock, taken with these flags.
        unsafe { ffi::ex_spin_unlock(self.lock.handle.raw(), self.flags) }
    }
}

/// Data behind a sleeping lock. Process context only.
pub struct Mutex<T> {
    handle: Handle,
    data: UnsafeCell<T>,
}

// SAFETY: all-zero is "no lock yet" and T's own zero.
unsafe impl<T: Zeroable> Zeroable for Mutex<T> {}
// SAFETY: the lock gives one thread at a time access to T.
unsafe impl<T: Send> Send for Mutex<T> {}
// SAFETY: as for Send.
unsafe impl<T: Send> Sync for Mutex<T> {}

impl<T> Mutex<T> {
    /// Creates the lock around the data that is already in place. Process context.
    pub fn init(&mut self, class: LockClass) -> Result<()> {
        if !self.handle.is_null() {
            return Err(Errno::EEXIST);
        }
        // SAFETY: returns null or a lock.
        self.handle.set(unsafe { ffi::ex_mutex_new(class as u32) });
        if self.handle.is_null() { Err(Errno::ENOMEM) } else { Ok(()) }
    }

    /// Sleeps until the lock is ours.
    pub fn lock(&self) -> MutexGuard<'_, T> {
        // SAFETY: the handle is a live mutex.
        unsafe { ffi::ex_mutex_lock(self.handle.get()) };
        MutexGuard { lock: self, marker: PhantomData }
    }

    /// Sleeps until the lock is ours, or `EINTR` when the task is being killed.
    pub fn lock_killable(&self) -> Result<MutexGuard<'_, T>> {
        // SAFETY: the handle is a live mutex.
        check(unsafe { ffi::ex_mutex_lock_killable(self.handle.get()) })?;
        Ok(MutexGuard { lock: self, marker: PhantomData })
    }

    /// The data without locking: we are its only user.
    pub fn get_mut(&mut self) -> &mut T {
        self.data.get_mut()
    }
}

impl<T> Drop for Mutex<T> {
    fn drop(&mut self) {
        if !self.handle.is_null() {
            // SAFETY: created by init, freed once, here; &mut self says nobody holds it.
            unsafe { ffi::ex_mutex_free(self.handle.raw()) }
        }
    }
}

/// Unlocks when dropped.
#[must_use]
pub struct MutexGuard<'a, T> {
    lock: &'a Mutex<T>,
    marker: NotSend,
}

impl<T> Deref for MutexGuard<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        // SAFETY: we hold the lock.
        unsafe { &*self.lock.data.get() }
    }
}

impl<T> DerefMut for MutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: we hold the lock, and &mut self makes the borrow unique.
        unsafe { &mut *self.lock.data.get() }
    }
}

impl<T> Drop for MutexGuard<'_, T> {
    fn drop(&mut self) {
        // SAFETY: we hold this lock.
        unsafe { ffi::ex_mutex_unlock(self.lock.handle.raw()) }
    }
}
