//! ioctl arguments: read once, written once.

use exitless_host::{Errno, Result, uaccess};
use exitless_kvm_abi::{kvm_msr_entry, kvm_msrs};

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

/// `KVM_GET_MSRS` and `KVM_SET_MSRS` refuse this many entries and more with E2BIG.
const MAX_IO_MSRS: usize = 256;

/// The entries of a `kvm_msrs` in order, each with its address, until `f` says false; returns how many it accepted.
pub fn each_msr(arg: usize, mut f: impl FnMut(&mut kvm_msr_entry, usize) -> Result<bool>) -> Result<isize> {
    let head: kvm_msrs = get(arg)?;
    if head.nmsrs as usize >= MAX_IO_MSRS {
        return Err(Errno::E2BIG);
    }
    let base = at(arg, size_of::<kvm_msrs>())?;
    for i in 0..head.nmsrs as usize {
        let address = at(base, i * size_of::<kvm_msr_entry>())?;
        let mut entry: kvm_msr_entry = get(address)?;
        if !f(&mut entry, address)? {
            return Ok(i as isize);
        }
    }
    Ok(head.nmsrs as isize)
}
