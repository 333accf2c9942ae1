//! The local APIC as pure decisions: registers, priority, LVT, timer, EOI, save and restore.
#![no_std]
#![forbid(unsafe_code)]
