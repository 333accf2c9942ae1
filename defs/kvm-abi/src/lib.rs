//! The /dev/kvm ABI: ioctl numbers, structures, capabilities, exit reasons.
#![no_std]
#![forbid(unsafe_code)]
