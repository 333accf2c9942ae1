//! Paravirtual features of the KVM ABI: what lies in guest memory that the guest named by MSR (a bad address hurts only the guest), and
//! what hypercalls do. The EOI that needs no exit stands beside the APIC.

pub mod async_pf;
pub mod clock;
pub mod ipi;
pub mod steal;
