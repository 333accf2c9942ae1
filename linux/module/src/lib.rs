//! exitless.ko: load and unload, ioctls, VM, vCPU, memory, statistics.
#![no_std]

