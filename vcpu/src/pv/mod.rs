//! Paravirtual features of the KVM ABI that lie in guest memory which the guest named by MSR; a bad address hurts only the guest.
//! The EOI that needs no exit stands beside the APIC.

pub mod clock;
pub mod steal;
