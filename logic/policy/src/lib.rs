//! The tables of MSRs, CPUID leaves and XSAVE components: who owns what.
#![no_std]
#![forbid(unsafe_code)]
