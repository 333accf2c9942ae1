//! What a debugger wants of this vCPU.

use exitless_kvm_abi::{
    KVM_GUESTDBG_BLOCKIRQ, KVM_GUESTDBG_ENABLE, KVM_GUESTDBG_INJECT_BP, KVM_GUESTDBG_INJECT_DB,
    KVM_GUESTDBG_SINGLESTEP, KVM_GUESTDBG_USE_HW_BP, KVM_GUESTDBG_USE_SW_BP,
};

/// What `KVM_CAP_SET_GUEST_DEBUG2` answers.
pub const CONTROLS: u32 = KVM_GUESTDBG_ENABLE
    | KVM_GUESTDBG_SINGLESTEP
    | KVM_GUESTDBG_USE_SW_BP
    | KVM_GUESTDBG_USE_HW_BP
    | KVM_GUESTDBG_INJECT_DB
    | KVM_GUESTDBG_INJECT_BP
    | KVM_GUESTDBG_BLOCKIRQ;

/// What the debugger wants; all-zero: there is none.
#[derive(Clone, Copy, Debug, Default, bytemuck::Zeroable)]
pub struct Debug {
    /// Its own DR0 to DR3 and DR7.
    pub(super) dr: [u64; 4],
    pub(super) dr7: u64,
    /// The guest's DR7 while the debugger's is in force.
    pub(super) guest_dr7: u64,
    /// `KVM_GUESTDBG_*`; 0 without `KVM_GUESTDBG_ENABLE`.
    pub(super) control: u32,
    /// Conditions of DR6 for which the guest is to stop; 0: none.
    pub(crate) due: u16,
    /// B0 to B3 of the instruction under way.
    pub(super) hits: u16,
    /// The instruction to be stepped is a PUSHF, which ends at this RIP; 0: no.
    pub(crate) pushf: u64,
}

/// What an instruction does to an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Touch {
    /// Reads memory.
    Read,
    /// Writes it.
    Write,
    /// Reads or writes a port.
    Port,
}

impl Debug {
    pub(crate) fn has(&self, bits: u32) -> bool {
        self.control & bits != 0
    }

    /// A debugger steps, has breakpoints, has interrupts wait, or is to be told of a stop.
    pub(crate) fn acts(&self) -> bool {
        self.control != 0 || self.due != 0
    }

    /// Interrupts and NMIs wait.
    pub fn blocks_interrupts(&self) -> bool {
        self.has(KVM_GUESTDBG_BLOCKIRQ)
    }

    /// The debugger's registers are in force.
    pub(crate) fn has_registers(&self) -> bool {
        self.has(KVM_GUESTDBG_USE_HW_BP)
    }

    /// A #DB is the debugger's.
    pub(crate) fn takes_db(&self) -> bool {
        self.has(KVM_GUESTDBG_SINGLESTEP | KVM_GUESTDBG_USE_HW_BP)
    }

    /// INT3 is the debugger's.
    pub fn takes_bp(&self) -> bool {
        self.has(KVM_GUESTDBG_USE_SW_BP)
    }

    /// A stop that is due is no more: the guest goes on elsewhere.
    pub fn forget_stop(&mut self) {
        self.due = 0;
    }

    /// An instruction begins, or one has ended without a trap.
    pub fn forget_hits(&mut self) {
        self.hits = 0;
    }
}
