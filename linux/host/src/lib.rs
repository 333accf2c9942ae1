//! Safe Rust over the C helpers of `linux/c`: files, user memory, timers, notifiers, tasks, pages, log.
//!
//! **Handles.** An object that the kernel owns (lock, timer, notifier) is allocated by C, because its layout moves
//! between kernels; Rust holds an opaque pointer. Handle types are `Zeroable`: all-zero means "not created", so they
//! can sit in big structures that are built in place. `init` creates, `Drop` frees, and a use before `init` is
//! an oops with a backtrace instead of being undefined.
//!
//! **Callbacks.** C calls the module crate through `ex_rs_*` functions; `linux/c/ex.h` lists them.
//!
//! This crate (and the world switch that `hw/svm` declares) is the only place that names `ex_*` helpers.
#![no_std]
// A `*mut c_void` argument of a safe function here is a cookie: kept by C, handed back to a callback, never
// dereferenced on the way. Whoever writes the callback answers for what it does with it.
#![allow(clippy::not_unsafe_ptr_arg_deref)]

#[cfg(test)]
extern crate std;

#[cfg(target_os = "none")]
pub mod alloc;
pub mod cpu;
pub mod debugfs;
pub mod enter;
pub mod errno;
pub mod eventfd;
mod ffi;
pub mod file;
pub mod fpu;
mod handle;
pub mod lock;
pub mod log;
pub mod mem;
pub mod mmu;
#[cfg(target_os = "none")]
pub mod panic;
pub mod srcu;
pub mod task;
pub mod time;
pub mod timer;
pub mod trace;
pub mod uaccess;
pub mod vmx;
pub mod wait;
pub mod wakeup;
pub mod workers;

#[cfg(test)]
mod fake;

pub use errno::{Errno, Result};

/// Stops this thread with an oops and a backtrace at the caller.
#[cold]
pub(crate) fn trap() -> ! {
    // SAFETY: ud2 traps. As assembly marked noreturn it tells objtool that nothing follows it, which a call to a C
    // function that never returns would not.
    unsafe { core::arch::asm!("ud2", options(noreturn, nomem, nostack)) }
}
