//! I/O APIC, 8259 pair, 8254, MSI and GSI routes as pure decisions.
#![no_std]
#![forbid(unsafe_code)]
