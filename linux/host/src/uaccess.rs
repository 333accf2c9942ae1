//! User memory of the current address space: ioctl arguments, and guest memory by its host virtual address.
//!
//! Each call reads or writes once; nothing here reads the same user bytes twice.

use crate::errno::check;
use crate::ffi;
use crate::{Errno, Result};
use bytemuck::{AnyBitPattern, NoUninit};
use core::mem::size_of_val;

/// Is the range in the user part of the address space? Says nothing about mappings.
pub fn access_ok(addr: usize, len: usize) -> bool {
    // SAFETY: a range check.
    unsafe { ffi::ex_access_ok(addr, len) }
}

/// A small structure by value. `EFAULT`. For big ones: [`read_into`].
pub fn read<T: AnyBitPattern>(addr: usize) -> Result<T> {
    let mut value = T::zeroed();
    read_into(&mut value, addr)?;
    Ok(value)
}

/// Fills `value` in place. On `EFAULT` its content is some mix of old and new bytes.
pub fn read_into<T: AnyBitPattern>(value: &mut T, addr: usize) -> Result<()> {
    let len = size_of_val(value);
    // SAFETY: value is len writable bytes, and any bytes make a valid T.
    check(unsafe { ffi::ex_user_read((&raw mut *value).cast(), addr, len) }).map(drop)
}

/// Fills a slice in place.
pub fn read_slice<T: AnyBitPattern>(values: &mut [T], addr: usize) -> Result<()> {
    let len = size_of_val(values);
    // SAFETY: values is len writable bytes, and any bytes make valid Ts.
    check(unsafe { ffi::ex_user_read(values.as_mut_ptr().cast(), addr, len) }).map(drop)
}

/// Writes one structure. `T` has no padding, so no kernel stack leaks. `EFAULT`.
pub fn write<T: NoUninit>(addr: usize, value: &T) -> Result<()> {
    // SAFETY: value is initialised bytes.
    check(unsafe { ffi::ex_user_write(addr, (&raw const *value).cast(), size_of_val(value)) }).map(drop)
}

/// Writes a slice.
pub fn write_slice<T: NoUninit>(addr: usize, values: &[T]) -> Result<()> {
    // SAFETY: values is initialised bytes.
    check(unsafe { ffi::ex_user_write(addr, values.as_ptr().cast(), size_of_val(values)) }).map(drop)
}

/// Writes zeros.
pub fn clear(addr: usize, len: usize) -> Result<()> {
    // SAFETY: the helper checks the range.
    check(unsafe { ffi::ex_user_clear(addr, len) }).map(drop)
}

/// Guest memory by host virtual address; may fault a page in, so may sleep.
pub fn read_bytes(hva: u64, bytes: &mut [u8]) -> Result<()> {
    read_slice(bytes, hva as usize)
}

/// Guest memory by host virtual address; may sleep.
pub fn write_bytes(hva: u64, bytes: &[u8]) -> Result<()> {
    write_slice(hva as usize, bytes)
}

/// As [`read_bytes`], never sleeps: `EFAULT` also when the page is not resident. Interrupts may be off.
pub fn read_bytes_atomic(hva: u64, bytes: &mut [u8]) -> Result<()> {
    // SAFETY: bytes is writable.
    let ret = unsafe { ffi::ex_user_read_atomic(bytes.as_mut_ptr().cast(), hva as usize, bytes.len()) };
    check(ret).map(drop)
}

/// Swaps a byte if it holds `old`, as [`cmpxchg_u32`].
pub fn cmpxchg_u8(hva: u64, old: u8, new: u8) -> Result<bool> {
    // SAFETY: the helper checks the range and catches faults.
    check(unsafe { ffi::ex_user_cmpxchg_u8(hva as usize, old, new) }).map(|swapped| swapped != 0)
}

/// Swaps 2 bytes if they hold `old`, as [`cmpxchg_u32`].
pub fn cmpxchg_u16(hva: u64, old: u16, new: u16) -> Result<bool> {
    if hva & 1 != 0 {
        return Err(Errno::EINVAL);
    }
    // SAFETY: the helper checks the range and catches faults.
    check(unsafe { ffi::ex_user_cmpxchg_u16(hva as usize, old, new) }).map(|swapped| swapped != 0)
}

/// Swaps 4 bytes if they hold `old`. `Ok(false)`: they did not. `EFAULT`; `EINVAL` when not aligned. May sleep.
pub fn cmpxchg_u32(hva: u64, old: u32, new: u32) -> Result<bool> {
    if hva & 3 != 0 {
        return Err(Errno::EINVAL);
    }
    // SAFETY: the helper checks the range and catches faults.
    check(unsafe { ffi::ex_user_cmpxchg_u32(hva as usize, old, new) }).map(|swapped| swapped != 0)
}

/// Swaps 8 bytes if they hold `old`, as [`cmpxchg_u32`].
pub fn cmpxchg_u64(hva: u64, old: u64, new: u64) -> Result<bool> {
    if hva & 7 != 0 {
        return Err(Errno::EINVAL);
    }
    // SAFETY: the helper checks the range and catches faults.
    check(unsafe { ffi::ex_user_cmpxchg_u64(hva as usize, old, new) }).map(|swapped| swapped != 0)
}

/// One load of 8 bytes, never sleeping: `None` when the page is not resident. For page-table walks in the exit path.
///
/// # Safety
/// `hva` and the 7 bytes behind it lie in the user half of the address space.
pub unsafe fn read_u64_atomic(hva: u64) -> Option<u64> {
    let mut value = 0;
    // SAFETY: the caller's promise; a page that is missing makes the helper return false.
    unsafe { ffi::ex_user_read_u64_atomic(hva as usize, &raw mut value) }.then_some(value)
}

/// One store of a byte, never sleeping: `false` when the page is not resident or not writable. The scheduler's lock may be held.
///
/// # Safety
/// `hva` lies in the user half of the address space.
pub unsafe fn write_u8_atomic(hva: u64, value: u8) -> bool {
    // SAFETY: the caller's promise; a page that is missing makes the helper return false.
    unsafe { ffi::ex_user_write_u8_atomic(hva as usize, value) }
}

/// One store of 8 aligned bytes, never sleeping: `false` when the page is not resident or not writable. Interrupts may be off.
///
/// # Safety
/// `hva` and the 7 bytes behind it lie in the user half of the address space.
pub unsafe fn write_u64_atomic(hva: u64, value: u64) -> bool {
    // SAFETY: the caller's promise; a page that is missing makes the helper return false.
    unsafe { ffi::ex_user_write_u64_atomic(hva as usize, value) }
}
