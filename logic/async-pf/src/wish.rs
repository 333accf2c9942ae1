//! What the guest asked for (MSR_KVM_ASYNC_PF_EN), and when it may be told.

use exitless_pv_abi::{
    KVM_ASYNC_PF_ADDRESS, KVM_ASYNC_PF_DELIVERY_AS_INT, KVM_ASYNC_PF_ENABLED, KVM_ASYNC_PF_SEND_ALWAYS,
};

/// Value of MSR_KVM_ASYNC_PF_EN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wish(pub u64);

/// The guest at the instruction whose page is slow.
#[derive(Clone, Copy, Debug)]
pub struct Guest {
    /// Its privilege level.
    pub cpl: u8,
    /// CR0.PG: real mode's vector 14 is no page fault.
    pub paging: bool,
}

impl Wish {
    /// The guest wants to be told. Without the interrupt it would never hear that the page has come.
    pub fn is_on(self) -> bool {
        const BOTH: u64 = KVM_ASYNC_PF_ENABLED | KVM_ASYNC_PF_DELIVERY_AS_INT;
        self.0 & BOTH == BOTH
    }

    /// It may be told here, at an instruction boundary with interrupts open.
    pub fn takes(self, guest: Guest) -> bool {
        self.is_on() && guest.paging && (guest.cpl != 0 || self.0 & KVM_ASYNC_PF_SEND_ALWAYS != 0)
    }

    /// Where the shared words are.
    pub fn area(self) -> u64 {
        self.0 & KVM_ASYNC_PF_ADDRESS
    }
}
