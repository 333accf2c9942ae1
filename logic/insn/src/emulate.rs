//! Executes one instruction that hardware could not complete: the contract with the processor, and the dispatcher.
//!
//! Vocabulary:
//! - *commit*: general registers, RFLAGS and RIP are written once, after every access of the instruction (or of
//!   one iteration of a repeated string instruction) has succeeded. [`Cpu::commit`] is called right after.
//! - *stop*: an access could not complete. Nothing since the last commit has reached a register.
//! - *replay*: after [`Stop::NeedUser`] the same instruction is emulated again from its start. It makes the same
//!   accesses in the same order; the `Cpu` serves reads that completed from its journal and swallows writes that
//!   completed. [`Cpu::commit`] is where it empties the journal.
//!
//! ```text
//!             ┌──────── Again (progress is committed, RIP unchanged) ─────┐
//!             v                                                           │
//!  bytes ─> emulate ── Done (RIP advanced) ──> run guest                  │
//!             │  └──── Stop(Fault) ──────────> inject                     │
//!             └─────── Stop(NeedUser) ──> user space ──> journal ──> emulate
//! ```

use exitless_x86::exception::Exception;
use exitless_x86::regs::{Gpr, SegReg, Segment};

use crate::decode::Mode;

/// The processor and the memory an instruction works on.
///
/// Linear addresses given to the memory functions are canonical (64-bit mode) or below 4 GiB (otherwise) in all
/// their bytes, except that an access may wrap from 0xffff_ffff to 0 outside 64-bit mode; segment checks are
/// done. Accesses are 1, 2, 4, 8 or 16 bytes and may cross a page: the implementation splits them, and
/// translates every page before it touches the first.
pub trait Cpu {
    /// Code size of the running code segment.
    fn mode(&self) -> Mode;
    /// CR0.PE set and RFLAGS.VM clear: segment attributes are checked.
    fn protected(&self) -> bool;
    /// Width of linear addresses in 64-bit mode: 48, or 57 with CR4.LA57.
    fn linear_bits(&self) -> u8;
    /// Current privilege level.
    fn cpl(&self) -> u8;
    /// The full 64-bit register.
    fn gpr(&self, r: Gpr) -> u64;
    /// Replaces the full 64 bits.
    fn set_gpr(&mut self, r: Gpr, value: u64);
    /// The instruction's own address: offset in CS.
    fn rip(&self) -> u64;
    /// Moves RIP.
    fn set_rip(&mut self, rip: u64);
    /// RFLAGS.
    fn rflags(&self) -> u64;
    /// Replaces RFLAGS.
    fn set_rflags(&mut self, value: u64);
    /// A segment register with its hidden part.
    fn segment(&self, s: SegReg) -> Segment;
    /// XMM register `i` (0 to 15). `Err(Stop::Unhandled)` when not reachable, or the #NM or #UD of CR0.TS/EM.
    fn xmm(&mut self, i: u8) -> Result<[u8; 16], Stop>;
    /// Replaces XMM register `i`; called at commit, only after `xmm(i)` succeeded in the same emulation.
    fn set_xmm(&mut self, i: u8, value: [u8; 16]);

    /// Reads guest memory or MMIO at a linear address, as a data read at the current CPL.
    fn read(&mut self, linear: u64, buf: &mut [u8]) -> Result<(), Stop>;
    /// Writes guest memory or MMIO.
    fn write(&mut self, linear: u64, data: &[u8]) -> Result<(), Stop>;
    /// Reads the old value of a read-modify-write: faults as a write would, before anything is read.
    fn read_for_write(&mut self, linear: u64, buf: &mut [u8]) -> Result<(), Stop>;
    /// Checks that a write would succeed, without writing and without a journal entry (INS: the port must not be
    /// read when memory would fault).
    fn check_write(&mut self, linear: u64, len: usize) -> Result<(), Stop>;
    /// Locked write-back: replaces `old` by `new` atomically, `Ok(false)` when memory has changed since it was
    /// read. MMIO has no atomics: write `new` and return true.
    fn compare_exchange(&mut self, linear: u64, old: &[u8], new: &[u8]) -> Result<bool, Stop>;
    /// IN or one element of INS: `size` is 1, 2 or 4. Permission checks were the processor's.
    fn io_in(&mut self, port: u16, size: u8) -> Result<u32, Stop>;
    /// OUT or one element of OUTS.
    fn io_out(&mut self, port: u16, size: u8, value: u32) -> Result<(), Stop>;
    /// Everything up to here is in the registers: forget the journal.
    fn commit(&mut self);
}

/// Why an instruction stopped in the middle. Nothing since the last commit has reached a register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The guest gets this exception; RIP points at the instruction.
    Fault(Exception),
    /// The `Cpu` has recorded a request for user space. Emulate the instruction again after the answer.
    NeedUser,
    /// Not an instruction or a situation this emulator knows.
    Unhandled,
}

/// How an emulation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Complete: registers, RFLAGS (RF clear) and RIP are those after the instruction.
    Done,
    /// A repeated string instruction made progress and is not at its end, or a locked one lost its race too
    /// often. RIP is unchanged: look at pending events, then run the guest or emulate again.
    Again,
    /// Stopped; of a repeated string instruction the iterations before are committed.
    Stop(Stop),
}

/// Executes the instruction at the front of `bytes`, of which `valid` were fetched at RIP (at most 15).
pub fn emulate<C: Cpu>(cpu: &mut C, bytes: &[u8; 15], valid: usize) -> Outcome {
    let _ = (cpu, bytes, valid);
    Outcome::Stop(Stop::Unhandled)
}

/// The memory operand of an instruction that the caller executes itself (INVLPG, LMSW m16, SMSW m16).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryOperand {
    /// Linear address: segment base added, wrapped to the linear width; limit and canonical form not checked.
    pub linear: u64,
    /// Offset in the segment.
    pub offset: u64,
    /// The segment used.
    pub segment: SegReg,
    /// Instruction length in bytes.
    pub length: u8,
}

/// The memory operand of the instruction at the front of `bytes`; `None` when it has none or does not decode.
pub fn memory_operand<C: Cpu>(cpu: &C, bytes: &[u8; 15], valid: usize) -> Option<MemoryOperand> {
    let _ = (cpu, bytes, valid);
    None
}

/// Segment limit and attribute checks, canonical check and the segment base: the linear address of `len` bytes
/// (1 to 16) at `offset`. Faults are #SS(0) for SS, else #GP(0).
pub fn linearize<C: Cpu>(cpu: &C, segment: SegReg, offset: u64, len: usize, write: bool) -> Result<u64, Stop> {
    let _ = (cpu, segment, len, write);
    Ok(offset)
}
