//! Instruction length, guest page walk and the emulation of what hardware does not complete.
//!
//! ```text
//! exit without next-RIP save ──> length::instruction_length, decode::decode_cr_access
//! exit on a memory operand  ──> emulate::emulate(cpu) ──> Cpu::{read, write, ..} ──> walk::translate
//! exit of a task switch     ──> task: what the TSS and its descriptors mean
//! ```
//!
//! Nothing here allocates after [`init`], knows an operating system or keeps state between calls.
#![no_std]
#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)
)]

#[cfg(test)]
extern crate std;

mod address;
pub mod alu;
mod arith;
mod bits;
pub mod decode;
pub mod emulate;
pub mod length;
mod mov;
mod operand;
pub mod plain;
mod ports;
mod segment;
mod stack;
mod string;
mod system;
pub mod task;
pub mod walk;

pub use decode::{CrAccess, CrAccessKind, Mode, decode_cr_access};
pub use emulate::{Cpu, Outcome, Stop, emulate};
pub use length::{Kind, instruction_length};
pub use plain::{Plain, plain_address, plain_mov};
pub use walk::{Access, GuestMemory, PagingMode, WalkError, translate};

/// Builds the decoder's tables. Call once at module load, from a context that may sleep: this is the only
/// place where the decoder allocates. Later calls of anything in this crate do not allocate.
pub fn init() {
    decode::warm_up();
}
