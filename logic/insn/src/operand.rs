//! Operands: registers as parts of 64-bit ones, loads, stores and read-modify-write.

use exitless_x86::regs::Gpr;
use iced_x86::{Instruction, MemorySize, OpKind, Register};

use crate::address::{self, segment_of};
use crate::alu::{self, Op, Size};
use crate::decode::Mode;
use crate::emulate::{Cpu, Stop};

/// How often a locked read-modify-write tries again before it lets the caller look at pending events.
pub(crate) const LOCK_TRIES: u32 = 16;

/// Where execution goes after a handler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flow {
    /// The next instruction.
    Next,
    /// The next instruction, before which no interrupt comes.
    Shadow,
    /// This offset in CS.
    Jump(u64),
    /// The same instruction; what was done is committed.
    Repeat,
}

/// Why a handler did not complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Halt {
    /// An access stopped.
    Stop(Stop),
    /// A locked write lost its race [`LOCK_TRIES`] times; nothing was written.
    Contended,
}

impl From<Stop> for Halt {
    fn from(stop: Stop) -> Self {
        Self::Stop(stop)
    }
}

/// What every handler returns. Its rule: first everything that can fail, then registers.
pub(crate) type Step = Result<Flow, Halt>;

/// A general register operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RegRef {
    pub(crate) gpr: Gpr,
    pub(crate) size: Size,
    /// AH, CH, DH or BH.
    high: bool,
}

impl RegRef {
    /// The general register behind the decoder's name; `None` for other registers.
    pub(crate) fn of(r: Register) -> Option<Self> {
        let n = r as u32;
        let from = |first: Register| (n - first as u32) as u8;
        let (index, size, high) = match n {
            n if n < Register::AL as u32 => return None,
            n if n < Register::AH as u32 => (from(Register::AL), Size::B1, false),
            n if n < Register::SPL as u32 => (from(Register::AH), Size::B1, true),
            n if n < Register::AX as u32 => (from(Register::SPL) + 4, Size::B1, false),
            n if n < Register::EAX as u32 => (from(Register::AX), Size::B2, false),
            n if n < Register::RAX as u32 => (from(Register::EAX), Size::B4, false),
            n if n <= Register::R15 as u32 => (from(Register::RAX), Size::B8, false),
            _ => return None,
        };
        Some(Self { gpr: gpr(index), size, high })
    }

    /// The operand's bits of the full register value, zero-extended.
    pub(crate) fn extract(self, full: u64) -> u64 {
        (if self.high { full >> 8 } else { full }) & self.size.mask()
    }

    /// The full register value after writing `value`: 32-bit results clear the upper half.
    pub(crate) fn insert(self, full: u64, value: u64) -> u64 {
        let value = value & self.size.mask();
        match self.size {
            Size::B8 | Size::B4 => value,
            Size::B1 if self.high => full & !0xff00 | value << 8,
            size => full & !size.mask() | value,
        }
    }
}

/// The register with encoding `index` (low four bits).
pub(crate) fn gpr(index: u8) -> Gpr {
    match index & 15 {
        0 => Gpr::Rax,
        1 => Gpr::Rcx,
        2 => Gpr::Rdx,
        3 => Gpr::Rbx,
        4 => Gpr::Rsp,
        5 => Gpr::Rbp,
        6 => Gpr::Rsi,
        7 => Gpr::Rdi,
        8 => Gpr::R8,
        9 => Gpr::R9,
        10 => Gpr::R10,
        11 => Gpr::R11,
        12 => Gpr::R12,
        13 => Gpr::R13,
        14 => Gpr::R14,
        _ => Gpr::R15,
    }
}

/// Size of a memory operand of integer kind; `None` for wider ones and far pointers.
pub(crate) fn memory_size(instr: &Instruction) -> Option<Size> {
    match instr.memory_size() {
        MemorySize::UInt8 | MemorySize::Int8 => Some(Size::B1),
        MemorySize::UInt16 | MemorySize::Int16 | MemorySize::WordOffset => Some(Size::B2),
        MemorySize::UInt32 | MemorySize::Int32 | MemorySize::DwordOffset => Some(Size::B4),
        MemorySize::UInt64 | MemorySize::Int64 | MemorySize::QwordOffset => Some(Size::B8),
        _ => None,
    }
}

/// Replaces the low `size` bytes of a register by the rules of general register operands.
pub(crate) fn write_gpr<C: Cpu>(cpu: &mut C, r: Gpr, size: Size, value: u64) {
    let full = RegRef { gpr: r, size, high: false }.insert(cpu.gpr(r), value);
    cpu.set_gpr(r, full);
}

/// One emulation: the processor, the instruction and where it ends.
pub(crate) struct Exec<'a, C: Cpu> {
    pub(crate) cpu: &'a mut C,
    pub(crate) instr: Instruction,
    pub(crate) mode: Mode,
    /// Offset in CS of the next instruction.
    pub(crate) next: u64,
}

/// The outcome of a read-modify-write. RFLAGS is not written yet.
pub(crate) struct Modified {
    pub(crate) old: u64,
    pub(crate) rflags: u64,
}

impl<C: Cpu> Exec<'_, C> {
    /// Operand `op` as a general register.
    pub(crate) fn reg(&self, op: u32) -> Option<RegRef> {
        match self.instr.op_kind(op) {
            OpKind::Register => RegRef::of(self.instr.op_register(op)),
            _ => None,
        }
    }

    /// Operand `op` is the explicit memory operand.
    pub(crate) fn is_memory(&self, op: u32) -> bool {
        self.instr.op_kind(op) == OpKind::Memory
    }

    /// Size of a general register or memory operand.
    pub(crate) fn size(&self, op: u32) -> Result<Size, Stop> {
        let size = match self.reg(op) {
            Some(r) => Some(r.size),
            None if self.instr.op_kind(op) == OpKind::Register => None,
            None => memory_size(&self.instr),
        };
        size.ok_or(Stop::Unhandled)
    }

    /// Linear address of `len` bytes at the explicit memory operand, moved by `by` bytes. Alignment is not checked.
    pub(crate) fn place(&self, by: u64, len: usize, write: bool) -> Result<u64, Stop> {
        let offset = address::offset(self.cpu, &self.instr, 0).wrapping_add(by);
        let offset = if self.mode == Mode::Bits64 { offset } else { offset & 0xffff_ffff };
        address::linearize(self.cpu, segment_of(self.instr.memory_segment()), offset, len, write)
    }

    /// The same for one value of 1, 2, 4 or 8 bytes: alignment is checked.
    pub(crate) fn linear_at(&self, by: u64, len: usize, write: bool) -> Result<u64, Stop> {
        let linear = self.place(by, len, write)?;
        address::aligned(self.cpu, linear, len)?;
        Ok(linear)
    }

    /// Linear address of the explicit memory operand, a value of 1, 2, 4 or 8 bytes.
    pub(crate) fn linear(&self, len: usize, write: bool) -> Result<u64, Stop> {
        self.linear_at(0, len, write)
    }

    /// The value of a register, memory or immediate operand, truncated to `size`.
    pub(crate) fn load(&mut self, op: u32, size: Size) -> Result<u64, Stop> {
        match self.instr.op_kind(op) {
            OpKind::Register => self.load_register(op),
            OpKind::Memory => {
                let linear = self.linear(size.bytes(), false)?;
                read(self.cpu, linear, size)
            }
            _ => self.instr.try_immediate(op).map_err(|_| Stop::Unhandled),
        }
        .map(|v| v & size.mask())
    }

    fn load_register(&self, op: u32) -> Result<u64, Stop> {
        let r = self.reg(op).ok_or(Stop::Unhandled)?;
        Ok(r.extract(self.cpu.gpr(r.gpr)))
    }

    /// Writes a register or memory operand.
    pub(crate) fn store(&mut self, op: u32, size: Size, value: u64) -> Result<(), Stop> {
        if self.is_memory(op) {
            let linear = self.linear(size.bytes(), true)?;
            return write(self.cpu, linear, size, value);
        }
        let r = self.reg(op).ok_or(Stop::Unhandled)?;
        self.set(r, value);
        Ok(())
    }

    /// Writes a register operand.
    pub(crate) fn set(&mut self, r: RegRef, value: u64) {
        let full = r.insert(self.cpu.gpr(r.gpr), value);
        self.cpu.set_gpr(r.gpr, full);
    }

    /// Reads operand `op`, applies `f` with source `b` and writes the result; `locked` memory atomically.
    pub(crate) fn modify(&mut self, op: u32, f: Op, size: Size, b: u64) -> Result<Modified, Halt> {
        self.modify_at(op, 0, f, size, b)
    }

    /// As [`Self::modify`], with a memory operand moved by `by` bytes.
    pub(crate) fn modify_at(
        &mut self,
        op: u32,
        by: u64,
        f: Op,
        size: Size,
        b: u64,
    ) -> Result<Modified, Halt> {
        let rflags = self.cpu.rflags();
        if self.is_memory(op) {
            let linear = self.linear_at(by, size.bytes(), true)?;
            let locked = self.instr.has_lock_prefix() || f == Op::Replace;
            let compute = |old| alu::apply(f, size, old, b, rflags);
            return self.modify_memory(linear, size, locked, compute);
        }
        let old = self.load(op, size)?;
        let (new, rflags) = alu::apply(f, size, old, b, rflags);
        self.store(op, size, new)?;
        Ok(Modified { old, rflags })
    }

    /// Read-modify-write of memory. `compute` gives the new value and RFLAGS from the old value.
    pub(crate) fn modify_memory(
        &mut self,
        linear: u64,
        size: Size,
        locked: bool,
        compute: impl Fn(u64) -> (u64, u64),
    ) -> Result<Modified, Halt> {
        for _ in 0..LOCK_TRIES {
            let old = read_for_write(self.cpu, linear, size)?;
            let (new, rflags) = compute(old);
            if locked {
                if exchange(self.cpu, linear, size, old, new)? {
                    return Ok(Modified { old, rflags });
                }
            } else {
                write(self.cpu, linear, size, new)?;
                return Ok(Modified { old, rflags });
            }
        }
        Err(Halt::Contended)
    }
}

/// Reads `size` bytes of memory, zero-extended.
pub(crate) fn read<C: Cpu>(cpu: &mut C, linear: u64, size: Size) -> Result<u64, Stop> {
    let mut bytes = [0; 8];
    cpu.read(linear, front(&mut bytes, size))?;
    Ok(u64::from_le_bytes(bytes))
}

/// As [`read`], with the faults of a write.
pub(crate) fn read_for_write<C: Cpu>(cpu: &mut C, linear: u64, size: Size) -> Result<u64, Stop> {
    let mut bytes = [0; 8];
    cpu.read_for_write(linear, front(&mut bytes, size))?;
    Ok(u64::from_le_bytes(bytes))
}

/// Writes the low `size` bytes of `value`.
pub(crate) fn write<C: Cpu>(cpu: &mut C, linear: u64, size: Size, value: u64) -> Result<(), Stop> {
    let mut bytes = value.to_le_bytes();
    cpu.write(linear, front(&mut bytes, size))
}

/// Replaces `old` by `new` atomically; false when memory has changed.
fn exchange<C: Cpu>(cpu: &mut C, linear: u64, size: Size, old: u64, new: u64) -> Result<bool, Stop> {
    let (mut old, mut new) = (old.to_le_bytes(), new.to_le_bytes());
    cpu.compare_exchange(linear, front(&mut old, size), front(&mut new, size))
}

/// The first `size` of eight bytes.
fn front(bytes: &mut [u8; 8], size: Size) -> &mut [u8] {
    // A `Size` is at most 8, so there is always a front.
    bytes.get_mut(..size.bytes()).unwrap_or_default()
}
