//! Error numbers as system calls return them.

use core::ffi::c_int;

/// What almost every function here returns.
pub type Result<T> = core::result::Result<T, Errno>;

/// A positive error number, `EINVAL` = 22.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(transparent)]
pub struct Errno(i32);

macro_rules! errnos {
    ($($(#[$doc:meta])* $name:ident = $value:literal;)*) => {
        impl Errno {
            $($(#[$doc])* pub const $name: Errno = Errno($value);)*
        }
    };
}

errnos! {
    /// Operation not permitted.
    EPERM = 1;
    /// No such object.
    ENOENT = 2;
    /// Nobody there: no task to yield to.
    ESRCH = 3;
    /// A signal is pending.
    EINTR = 4;
    /// Input or output failed.
    EIO = 5;
    /// No such device or CPU.
    ENXIO = 6;
    /// The list that user space gave is too short.
    E2BIG = 7;
    /// Not a descriptor of the right kind.
    EBADF = 9;
    /// Try again.
    EAGAIN = 11;
    /// No memory.
    ENOMEM = 12;
    /// User memory cannot be reached.
    EFAULT = 14;
    /// In use.
    EBUSY = 16;
    /// Already there.
    EEXIST = 17;
    /// No such device.
    ENODEV = 19;
    /// A value is not allowed.
    EINVAL = 22;
    /// Too many open files.
    EMFILE = 24;
    /// Not an ioctl of this descriptor.
    ENOTTY = 25;
    /// No space in a fixed table.
    ENOSPC = 28;
    /// Out of range.
    ERANGE = 34;
    /// Not implemented.
    ENOSYS = 38;
    /// Value too large.
    EOVERFLOW = 75;
    /// Not supported on this machine.
    EOPNOTSUPP = 95;
    /// The page has a memory error.
    EHWPOISON = 133;
}

impl Errno {
    /// From a helper's negative return value. Anything that is not an error number becomes `EIO`.
    pub const fn from_ret(ret: c_int) -> Errno {
        if ret < 0 && ret >= -4095 { Errno(-ret) } else { Errno::EIO }
    }

    /// The positive number.
    pub const fn number(self) -> i32 {
        self.0
    }

    /// As a system call returns it: negative.
    pub const fn to_ret(self) -> isize {
        -(self.0 as isize)
    }

    /// As a C `int` function returns it: negative.
    pub const fn to_int(self) -> c_int {
        -self.0
    }
}

/// 0 or more is success.
pub(crate) fn check(ret: c_int) -> Result<c_int> {
    if ret < 0 { Err(Errno::from_ret(ret)) } else { Ok(ret) }
}

/// Folds a result into an ioctl's return value.
pub fn ret(result: Result<isize>) -> isize {
    match result {
        Ok(value) => value,
        Err(errno) => errno.to_ret(),
    }
}

/// Folds a result into a C `int` return value, 0 for success.
pub fn int(result: Result<()>) -> c_int {
    match result {
        Ok(()) => 0,
        Err(errno) => errno.to_int(),
    }
}
