//! VMX facts: VMCS fields, control bits, exit reasons, capability MSRs (SDM vol. 3C, chapters 24 to 31; vol. 3D,
//! appendices A to C).
//!
//! | file       | what                                                            |
//! |------------|-----------------------------------------------------------------|
//! | `field`    | every VMCS field, with its width and access in the type         |
//! | `control`  | bits of the VM-execution, VM-exit and VM-entry controls         |
//! | `exit`     | exit reasons, exit qualifications, events, instruction errors   |
//! | `caps`     | the capability MSRs and how to read them                        |
//! | `posted`   | the posted-interrupt descriptor                                 |

pub mod caps;
pub mod control;
pub mod exit;
pub mod field;
pub mod posted;

use bytemuck::Zeroable;
use core::mem::{offset_of, size_of};

/// The start of a VMCS region and of a VMXON region; the rest is the processor's own (SDM vol. 3C, 25.2).
#[repr(C, align(4096))]
#[derive(Clone, Copy, Zeroable)]
pub struct VmcsRegion {
    /// Bits 30:0: the revision that IA32_VMX_BASIC names. Bit 31: shadow VMCS; must be clear in a VMXON region.
    pub revision: u32,
    /// Why the last VM entry or exit ended in VMX abort; 0 = it did not (SDM vol. 3C, 28.7).
    pub abort: u32,
    /// Implementation-specific.
    pub data: [u8; 4096 - 8],
}

const _: () = {
    assert!(size_of::<VmcsRegion>() == 4096);
    assert!(offset_of!(VmcsRegion, abort) == 4);
    assert!(offset_of!(VmcsRegion, data) == 8);
};

/// IA32_FEATURE_CONTROL bits that gate VMXON (SDM vol. 3C, 24.7).
#[allow(missing_docs)]
pub mod feature_control {
    pub const LOCK: u64 = 1 << 0;
    pub const VMX_IN_SMX: u64 = 1 << 1;
    pub const VMX_OUTSIDE_SMX: u64 = 1 << 2;
}

/// INVEPT types (SDM vol. 3C, chapter 31, INVEPT).
#[allow(missing_docs)]
pub mod invept {
    pub const SINGLE_CONTEXT: u64 = 1;
    pub const ALL_CONTEXT: u64 = 2;
}

/// INVVPID types (SDM vol. 3C, chapter 31, INVVPID).
#[allow(missing_docs)]
pub mod invvpid {
    pub const INDIVIDUAL_ADDRESS: u64 = 0;
    pub const SINGLE_CONTEXT: u64 = 1;
    pub const ALL_CONTEXT: u64 = 2;
    pub const SINGLE_CONTEXT_RETAINING_GLOBALS: u64 = 3;
}

/// Access rights of a segment as the VMCS keeps them (SDM vol. 3C, table 25-2).
#[allow(missing_docs)]
pub mod access_rights {
    pub const ACCESSED: u32 = 1 << 0;
    pub const TYPE: u32 = 15;
    pub const S: u32 = 1 << 4;
    pub const DPL_SHIFT: u32 = 5;
    pub const P: u32 = 1 << 7;
    pub const AVL: u32 = 1 << 12;
    pub const L: u32 = 1 << 13;
    pub const DB: u32 = 1 << 14;
    pub const G: u32 = 1 << 15;
    /// The register holds no segment; its other bits do not matter, but for SS.DPL, which is the CPL.
    pub const UNUSABLE: u32 = 1 << 16;
}

/// Interruptibility state (SDM vol. 3C, table 25-3).
#[allow(missing_docs)]
pub mod interruptibility {
    pub const STI: u32 = 1 << 0;
    pub const MOV_SS: u32 = 1 << 1;
    pub const SMI: u32 = 1 << 2;
    /// NMIs are blocked; with virtual NMIs: virtual ones.
    pub const NMI: u32 = 1 << 3;
    pub const ENCLAVE: u32 = 1 << 4;
}

/// Activity state (SDM vol. 3C, 25.4.2).
#[allow(missing_docs)]
pub mod activity {
    pub const ACTIVE: u32 = 0;
    pub const HLT: u32 = 1;
    pub const SHUTDOWN: u32 = 2;
    pub const WAIT_FOR_SIPI: u32 = 3;
}

/// Pending debug exceptions: single-step (SDM vol. 3C, table 25-4).
pub const PENDING_DEBUG_BS: u64 = 1 << 14;

/// The VMCS link pointer's value for "none" (SDM vol. 3C, 25.4.2).
pub const NO_LINK: u64 = u64::MAX;
