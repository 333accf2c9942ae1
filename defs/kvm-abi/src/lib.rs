//! The /dev/kvm ABI of x86-64: ioctl numbers, structures, capabilities, exit reasons.
//!
//! Names and layouts are those of `<linux/kvm.h>` and `<asm/kvm.h>` (Linux 6.1; later items say so), so that one word
//! means one thing on both sides of the ioctl. Differences in form, all of them invisible in memory:
//! padding is spelled out (every structure is `Pod`: any bytes are a valid value, none leaks), unions are arrays with
//! named accessors, and a structure with a flexible array is its header alone; the entries follow it in memory.
//!
//! `tests/` compares every size, offset and number with the C headers and with rust-vmm's bindings.
#![no_std]
#![forbid(unsafe_code)]
// The names are the C header's own, and the header's names are their documentation; what it leaves unsaid is said here.
#![allow(non_camel_case_types, missing_docs)]

mod cap;
mod device;
mod exit;
mod ioctl;
mod memory;
mod stats;
mod vcpu;
mod vm;

pub use cap::*;
pub use device::*;
pub use exit::*;
pub use ioctl::*;
pub use memory::*;
pub use stats::*;
pub use vcpu::*;
pub use vm::*;
