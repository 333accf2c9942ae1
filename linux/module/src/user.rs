//! ioctl arguments: read once, written once.

use exitless_host::{Errno, Result, uaccess};

/// A whole structure.
pub fn get<T: bytemuck::AnyBitPattern>(arg: usize) -> Result<T> {
    uaccess::read(arg)
}

/// Writes a whole structure.
pub fn put<T: bytemuck::NoUninit>(arg: usize, value: &T) -> Result<isize> {
    uaccess::write(arg, value)?;
    Ok(0)
}

/// Address arithmetic on user pointers.
pub fn at(arg: usize, offset: usize) -> Result<usize> {
    arg.checked_add(offset).ok_or(Errno::EFAULT)
}
