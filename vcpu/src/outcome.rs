//! The words that everybody says: what becomes of an exit, and why `KVM_RUN` returns.

use crate::journal::Entry;

/// What became of an exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fast {
    /// Done; enter the guest again.
    Reenter,
    /// Done; leave the slice (interrupts must be enabled, or events looked at).
    Done,
    /// Not for the fast path.
    Slow,
}

/// Why `KVM_RUN` returns; the names are `KVM_EXIT_*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunExit {
    /// A signal or `immediate_exit`: `-EINTR`.
    Interrupted,
    /// Port I/O; data of writes lies at the start of the I/O page.
    Io {
        /// First port.
        port: u16,
        /// Bytes per element.
        size: u8,
        /// Elements.
        count: u32,
        /// IN.
        input: bool,
    },
    /// MMIO of at most 8 bytes.
    Mmio(Entry),
    /// HLT without an in-kernel APIC.
    Hlt,
    /// Triple fault.
    Shutdown,
    /// The CPU refused the guest's state.
    FailEntry(u64),
    /// Something the kernel cannot do: a `KVM_INTERNAL_ERROR_*` suberror and three words of data.
    Internal {
        /// The suberror.
        suberror: u32,
        /// Words for `kvm_run.internal.data`.
        data: [u64; 4],
        /// How many of them count.
        ndata: u32,
    },
    /// An exit reason nobody knows; the vendor's number.
    Unknown(u64),
    /// A breakpoint for the debugger of user space.
    Debug {
        /// Exception vector, 1 or 3.
        exception: u32,
        /// Linear address of the instruction.
        pc: u64,
        /// DR6 of this exception alone, not the guest's.
        dr6: u64,
        /// DR7 in force.
        dr7: u64,
    },
    /// The interrupt window that user space asked for is open.
    IrqWindowOpen,
    /// The guest wrote CR8 while user space has the APIC.
    SetTpr,
    /// The guest ended a level-triggered interrupt of the I/O APIC that user space has.
    IoapicEoi {
        /// Its vector.
        vector: u8,
    },
    /// A negative errno.
    Error(i32),
}

/// What to do after an exit was handled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Around the loop.
    Again,
    /// Out to user space.
    Leave(RunExit),
}

/// `KVM_INTERNAL_ERROR_*` (ABI header linux/kvm.h).
#[allow(missing_docs)]
pub mod suberror {
    pub const EMULATION: u32 = 1;
    pub const DELIVERY_EV: u32 = 3;
    pub const UNEXPECTED_EXIT_REASON: u32 = 4;
}
