//! What guest and host share in memory and MSRs: kvmclock, steal time, PV EOI.
#![no_std]
#![forbid(unsafe_code)]
