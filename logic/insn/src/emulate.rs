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
use exitless_x86::regs::{Gpr, SegReg, Segment, TableReg, cr4, rflags};
use iced_x86::{Instruction, Mnemonic, OpKind, Register};

use crate::alu::{Op, Size};
use crate::bits::Count;
use crate::decode::{DecodeError, Mode, decode};
use crate::operand::{Exec, Flow, Halt, Step};
use crate::{arith, bits, mov, segment, stack, string, system};

pub use crate::address::linearize;

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
    /// CR0 as the guest sees it.
    fn cr0(&self) -> u64;
    /// CR4 as the guest sees it.
    fn cr4(&self) -> u64;
    /// EFER.LMA.
    fn long_mode(&self) -> bool;
    /// LMSW: TS, EM, MP and PE of CR0, of which PE is only set; #GP(0) for what CR0 cannot hold.
    fn load_msw(&mut self, value: u16) -> Result<(), Stop>;
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
    /// Each instruction, and each iteration of a repeated one, may end in a trap. A replay asks for the first pass's answer.
    fn stepping(&self) -> bool {
        self.rflags() & rflags::TF != 0
    }
    /// A segment register with its hidden part, LDTR and TR among them.
    fn segment(&self, s: SegReg) -> Segment;
    /// Replaces it; called at commit.
    fn set_segment(&mut self, s: SegReg, to: &Segment);
    /// GDTR or IDTR.
    fn table(&self, t: Table) -> TableReg;
    /// Replaces it; called at commit.
    fn set_table(&mut self, t: Table, to: &TableReg);
    /// No interrupt before the next instruction is over; called after [`Cpu::set_rip`].
    fn hold_interrupts(&mut self);
    /// XMM register `i` (0 to 15). `Err(Stop::Unhandled)` when not reachable, or the #NM or #UD of CR0.TS/EM.
    fn xmm(&mut self, i: u8) -> Result<[u8; 16], Stop>;
    /// Replaces XMM register `i`; called at commit, only after `xmm(i)` succeeded in the same emulation.
    fn set_xmm(&mut self, i: u8, value: [u8; 16]);
    /// An MMX instruction may be executed; otherwise the #UD, #NM or #MF.
    fn mmx_usable(&mut self) -> Result<(), Stop>;
    /// MMX register `i` (0 to 7), after [`Cpu::mmx_usable`]: from here on the x87 registers are MMX registers.
    fn mmx(&mut self, i: u8) -> u64;
    /// Replaces MMX register `i`; called at commit, after [`Cpu::mmx_usable`].
    fn set_mmx(&mut self, i: u8, value: u64);
    /// A word of the x87's, or the #NM of CR0.EM and CR0.TS.
    fn x87(&mut self, word: X87Word) -> Result<u16, Stop>;

    /// Reads guest memory or MMIO at a linear address, as a data read at the current CPL.
    fn read(&mut self, linear: u64, buf: &mut [u8]) -> Result<(), Stop>;
    /// Writes guest memory or MMIO.
    fn write(&mut self, linear: u64, data: &[u8]) -> Result<(), Stop>;
    /// Reads the old value of a read-modify-write: faults as a write would, before anything is read.
    fn read_for_write(&mut self, linear: u64, buf: &mut [u8]) -> Result<(), Stop>;
    /// Checks that a read would succeed, without reading.
    fn check_read(&mut self, linear: u64, len: usize) -> Result<(), Stop>;
    /// Checks that a write would succeed, without writing and without a journal entry (INS: the port must not be
    /// read when memory would fault).
    fn check_write(&mut self, linear: u64, len: usize) -> Result<(), Stop>;
    /// Locked write-back: replaces `old` by `new` atomically, `Ok(false)` when memory has changed since it was
    /// read. MMIO has no atomics: write `new` and return true.
    fn compare_exchange(&mut self, linear: u64, old: &[u8], new: &[u8]) -> Result<bool, Stop>;
    /// Reads a descriptor table or a task state: supervisor rights at any CPL. Memory only, no journal.
    fn read_system(&mut self, linear: u64, buf: &mut [u8]) -> Result<(), Stop>;
    /// Replaces a byte there atomically; `Ok(false)`: it is not `old` any more.
    fn exchange_system(&mut self, linear: u64, old: u8, new: u8) -> Result<bool, Stop>;
    /// IN or one element of INS: `size` is 1, 2 or 4. The port may be used.
    fn io_in(&mut self, port: u16, size: u8) -> Result<u32, Stop>;
    /// OUT or one element of OUTS.
    fn io_out(&mut self, port: u16, size: u8, value: u32) -> Result<(), Stop>;
    /// Up to `max` (at least 2) elements of REP INS at once: reads `port` and writes the elements one after the other
    /// from `linear` on. All of it lies in one page and inside the segment. Faults as a write of the first element
    /// would, before the port is read. Returns how many elements were done; `Ok(0)` without any effect when
    /// `check_write`, `io_in` and `write` should do them one by one. A replay asks with the same arguments.
    fn io_in_block(&mut self, port: u16, size: u8, max: u32, linear: u64) -> Result<u32, Stop>;
    /// As [`Cpu::io_in_block`], for REP OUTS: reads memory and writes `port`.
    fn io_out_block(&mut self, port: u16, size: u8, max: u32, linear: u64) -> Result<u32, Stop>;
    /// Everything up to here is in the registers: forget the journal.
    fn commit(&mut self);
}

/// The tables that have a register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Table {
    /// GDTR.
    Global,
    /// IDTR.
    Interrupt,
}

/// The words that x87 instructions store without waiting for exceptions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum X87Word {
    Control,
    Status,
}

/// Why an instruction stopped in the middle. Nothing since the last commit has reached a register. After `Fault`
/// and `Unhandled` the journal may hold answers that were used: the caller drops it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The guest gets this exception; RIP points at the instruction.
    Fault(Exception),
    /// The `Cpu` has recorded a request for user space. Emulate the instruction again after the answer.
    NeedUser,
    /// The host has no page for the guest's memory just now. Nothing is lost: emulate the instruction again when it may have.
    HostMemory,
    /// The instruction goes on after the bytes given.
    CutShort,
    /// Not handled, but an instruction without memory: not what the exit was for, as its code has changed since. Run the guest.
    Elsewhere,
    /// Not an instruction or a situation this emulator knows.
    Unhandled,
}

/// How an emulation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Complete: registers, RFLAGS (RF clear) and RIP are those after the instruction.
    Done,
    /// A repeated string instruction made progress and is not at its end. RIP is unchanged: look at pending events, then run
    /// the guest or emulate again.
    Again,
    /// A locked instruction lost its race too often: nothing was done. Then as for `Again`.
    Contended,
    /// Stopped; of a repeated string instruction the iterations before are committed.
    Stop(Stop),
}

/// Executes the instruction at the front of `bytes`, of which `valid` were fetched at RIP (at most 15).
pub fn emulate<C: Cpu>(cpu: &mut C, bytes: &[u8; 15], valid: usize) -> Outcome {
    let (mode, rip) = (cpu.mode(), cpu.rip());
    let instr = match decode(bytes, valid, mode, rip) {
        Ok(instr) => instr,
        Err(DecodeError::Lock) => return Outcome::Stop(Stop::Fault(Exception::ud())),
        Err(DecodeError::CutShort) => return Outcome::Stop(Stop::CutShort),
        Err(DecodeError::Unknown) => return Outcome::Stop(Stop::Unhandled),
    };
    let next = in_code_segment(mode, rip.wrapping_add(instr.len() as u64));
    let mut x = Exec { cpu, instr, mode, next };
    match dispatch(&mut x) {
        Ok(Flow::Next) => complete(x.cpu, next, false),
        Ok(Flow::Shadow) => complete(x.cpu, next, true),
        Ok(Flow::Jump(to)) => complete(x.cpu, to, false),
        Ok(Flow::Repeat) => Outcome::Again,
        Err(Halt::Contended) => Outcome::Contended,
        Err(Halt::Stop(Stop::Unhandled)) if !accesses_memory(x.cpu, &x.instr) => {
            Outcome::Stop(Stop::Elsewhere)
        }
        Err(Halt::Stop(stop)) => Outcome::Stop(stop),
    }
}

/// By an operand, an address in a register, the stack, or a table. INT3 does not count: a debugger may have put it there.
fn accesses_memory<C: Cpu>(cpu: &C, instr: &Instruction) -> bool {
    use Mnemonic::*;
    let operand = |op| {
        let near = matches!(
            instr.op_kind(op),
            OpKind::Register | OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64
        );
        let selector = segment::named(instr.op_register(op)).is_some();
        selector || !near && instr.try_immediate(op).is_err()
    };
    // PAE paging has CR3 name a table that is loaded with it (SDM vol. 3A, 4.4.1).
    let pdptes = || instr.op0_register() == Register::CR3 && cpu.cr4() & cr4::PAE != 0 && !cpu.long_mode();
    // `Some`: whatever the operands are.
    let implied = match instr.mnemonic() {
        Push | Pop | Pusha | Pushad | Popa | Popad | Pushf | Pushfd | Pushfq | Popf | Popfd | Popfq => {
            Some(true)
        }
        Call | Ret | Retf | Enter | Leave | Iret | Iretd | Iretq | Umonitor => Some(true),
        Lar | Lsl | Verr | Verw | Lldt | Ltr | Lkgs | Int | Int1 | Into => Some(true),
        Clzero | Monitor | Monitorx | Vmrun | Vmload | Vmsave | Skinit | Encls | Enclu | Enclv => Some(true),
        Rdmsrlist | Wrmsrlist | Pconfig | Pbndkb | Pvalidate | Psmash | Rmpadjust | Rmpquery | Rmpupdate => {
            Some(true)
        }
        Setssbsy | Saveprevssp | Uiret | Senduipi | Eretu | Erets | Loadall | Rsm => Some(true),
        Montmul | Xsha1 | Xsha256 | Xsha512 | Xsha512_alt | Xstore | Xstore_alt => Some(true),
        Xcryptcbc | Xcryptcfb | Xcryptctr | Xcryptecb | Xcryptofb | Ccs_encrypt | Ccs_hash => Some(true),
        // An address that is not accessed.
        Lea | Nop | Reservednop | Ud1 | Invlpg | Cldemote | Prefetch | Prefetchw | Prefetchwt1 => Some(false),
        Prefetchnta | Prefetcht0 | Prefetcht1 | Prefetcht2 | Prefetchit0 | Prefetchit1 => Some(false),
        _ => None,
    };
    implied.unwrap_or_else(|| (0..instr.op_count()).any(operand) || pdptes())
}

/// RIP outside 64-bit mode has 32 bits.
fn in_code_segment(mode: Mode, rip: u64) -> u64 {
    if mode == Mode::Bits64 { rip } else { rip & 0xffff_ffff }
}

/// The instruction is done: RIP moves, RF clears.
fn complete<C: Cpu>(cpu: &mut C, rip: u64, shadow: bool) -> Outcome {
    cpu.set_rip(rip);
    if shadow {
        cpu.hold_interrupts();
    }
    let flags = cpu.rflags() & !rflags::RF;
    cpu.set_rflags(flags);
    cpu.commit();
    Outcome::Done
}

/// One line per instruction; families with many members are asked first.
fn dispatch<C: Cpu>(x: &mut Exec<'_, C>) -> Step {
    let m = x.instr.mnemonic();
    if let Some(kind) = string::kind_of(m).filter(|_| string::is_string(x)) {
        return string::string(x, kind);
    }
    if let Some(sse) = mov::sse_move(m) {
        return mov::sse(x, sse);
    }
    match condition_of(m) {
        Some(Condition::Set(cc)) => return mov::set(x, cc),
        Some(Condition::Move(cc)) => return mov::conditional(x, cc),
        None => {}
    }
    match m {
        Mnemonic::Mov | Mnemonic::Movnti | Mnemonic::Movdiri => mov::mov(x),
        Mnemonic::Movzx => mov::zero_extend(x),
        Mnemonic::Movsx | Mnemonic::Movsxd => mov::sign_extend(x),
        Mnemonic::Movbe => mov::swap_bytes(x),
        Mnemonic::Xlatb => mov::xlat(x),
        Mnemonic::In => mov::input(x),
        Mnemonic::Out => mov::output(x),
        Mnemonic::Add => arith::binary(x, Op::Add),
        Mnemonic::Adc => arith::binary(x, Op::Adc),
        Mnemonic::Sub => arith::binary(x, Op::Sub),
        Mnemonic::Sbb => arith::binary(x, Op::Sbb),
        Mnemonic::And => arith::binary(x, Op::And),
        Mnemonic::Or => arith::binary(x, Op::Or),
        Mnemonic::Xor => arith::binary(x, Op::Xor),
        Mnemonic::Cmp => arith::compare(x, Op::Sub),
        Mnemonic::Test => arith::compare(x, Op::And),
        Mnemonic::Inc => arith::unary(x, Op::Inc),
        Mnemonic::Dec => arith::unary(x, Op::Dec),
        Mnemonic::Neg => arith::unary(x, Op::Neg),
        Mnemonic::Not => arith::unary(x, Op::Not),
        Mnemonic::Shl | Mnemonic::Sal => arith::shift(x, Op::Shl),
        Mnemonic::Shr => arith::shift(x, Op::Shr),
        Mnemonic::Sar => arith::shift(x, Op::Sar),
        Mnemonic::Rol => arith::shift(x, Op::Rol),
        Mnemonic::Ror => arith::shift(x, Op::Ror),
        Mnemonic::Rcl => arith::shift(x, Op::Rcl),
        Mnemonic::Rcr => arith::shift(x, Op::Rcr),
        Mnemonic::Shld => arith::double_shift(x, true),
        Mnemonic::Shrd => arith::double_shift(x, false),
        Mnemonic::Mul => arith::multiply(x, false),
        Mnemonic::Imul => arith::imul(x),
        Mnemonic::Div => arith::divide(x, false),
        Mnemonic::Idiv => arith::divide(x, true),
        Mnemonic::Xchg => arith::exchange(x),
        Mnemonic::Xadd => arith::exchange_add(x),
        Mnemonic::Cmpxchg => arith::compare_exchange(x),
        Mnemonic::Cmpxchg8b => arith::compare_exchange_pair(x, Size::B4),
        Mnemonic::Cmpxchg16b => arith::compare_exchange_pair(x, Size::B8),
        Mnemonic::Bt => bits::bit(x, Op::Bt),
        Mnemonic::Bts => bits::bit(x, Op::Bts),
        Mnemonic::Btr => bits::bit(x, Op::Btr),
        Mnemonic::Btc => bits::bit(x, Op::Btc),
        Mnemonic::Bsf => bits::scan(x, true),
        Mnemonic::Bsr => bits::scan(x, false),
        Mnemonic::Popcnt => bits::count(x, Count::Ones),
        Mnemonic::Tzcnt => bits::count(x, Count::TrailingZeros),
        Mnemonic::Lzcnt => bits::count(x, Count::LeadingZeros),
        Mnemonic::Push => stack::push(x),
        Mnemonic::Pop => stack::pop(x),
        Mnemonic::Pusha | Mnemonic::Pushad => stack::push_registers(x),
        Mnemonic::Popa | Mnemonic::Popad => stack::pop_registers(x),
        Mnemonic::Pushf | Mnemonic::Pushfd | Mnemonic::Pushfq => stack::push_flags(x),
        Mnemonic::Popf | Mnemonic::Popfd | Mnemonic::Popfq => stack::pop_flags(x),
        Mnemonic::Enter => stack::enter(x),
        Mnemonic::Leave => stack::leave(x),
        Mnemonic::Call => stack::call(x),
        Mnemonic::Jmp => stack::jump(x),
        Mnemonic::Ret => stack::ret(x),
        Mnemonic::Retf => stack::ret_far(x),
        Mnemonic::Lds => segment::load_pointer(x, SegReg::Ds),
        Mnemonic::Les => segment::load_pointer(x, SegReg::Es),
        Mnemonic::Lfs => segment::load_pointer(x, SegReg::Fs),
        Mnemonic::Lgs => segment::load_pointer(x, SegReg::Gs),
        Mnemonic::Lss => segment::load_pointer(x, SegReg::Ss),
        Mnemonic::Sldt => segment::store(x, SegReg::Ldtr),
        Mnemonic::Str => segment::store(x, SegReg::Tr),
        Mnemonic::Lldt => segment::load_ldt(x),
        Mnemonic::Ltr => segment::load_task(x),
        Mnemonic::Sgdt => system::store_table(x, Table::Global),
        Mnemonic::Sidt => system::store_table(x, Table::Interrupt),
        Mnemonic::Lgdt => system::load_table(x, Table::Global),
        Mnemonic::Lidt => system::load_table(x, Table::Interrupt),
        Mnemonic::Smsw => system::store_status(x),
        Mnemonic::Lmsw => system::load_status(x),
        Mnemonic::Clflush | Mnemonic::Clflushopt | Mnemonic::Clwb => system::cache_line(x),
        Mnemonic::Fnstcw => mov::store_x87(x, X87Word::Control),
        Mnemonic::Fnstsw => mov::store_x87(x, X87Word::Status),
        _ => Err(Stop::Unhandled.into()),
    }
}

/// An instruction with a condition code.
enum Condition {
    Set(u8),
    Move(u8),
}

/// The condition code in the order of its encoding.
fn condition_of(m: Mnemonic) -> Option<Condition> {
    match m {
        Mnemonic::Seto => Some(Condition::Set(0)),
        Mnemonic::Setno => Some(Condition::Set(1)),
        Mnemonic::Setb => Some(Condition::Set(2)),
        Mnemonic::Setae => Some(Condition::Set(3)),
        Mnemonic::Sete => Some(Condition::Set(4)),
        Mnemonic::Setne => Some(Condition::Set(5)),
        Mnemonic::Setbe => Some(Condition::Set(6)),
        Mnemonic::Seta => Some(Condition::Set(7)),
        Mnemonic::Sets => Some(Condition::Set(8)),
        Mnemonic::Setns => Some(Condition::Set(9)),
        Mnemonic::Setp => Some(Condition::Set(10)),
        Mnemonic::Setnp => Some(Condition::Set(11)),
        Mnemonic::Setl => Some(Condition::Set(12)),
        Mnemonic::Setge => Some(Condition::Set(13)),
        Mnemonic::Setle => Some(Condition::Set(14)),
        Mnemonic::Setg => Some(Condition::Set(15)),
        Mnemonic::Cmovo => Some(Condition::Move(0)),
        Mnemonic::Cmovno => Some(Condition::Move(1)),
        Mnemonic::Cmovb => Some(Condition::Move(2)),
        Mnemonic::Cmovae => Some(Condition::Move(3)),
        Mnemonic::Cmove => Some(Condition::Move(4)),
        Mnemonic::Cmovne => Some(Condition::Move(5)),
        Mnemonic::Cmovbe => Some(Condition::Move(6)),
        Mnemonic::Cmova => Some(Condition::Move(7)),
        Mnemonic::Cmovs => Some(Condition::Move(8)),
        Mnemonic::Cmovns => Some(Condition::Move(9)),
        Mnemonic::Cmovp => Some(Condition::Move(10)),
        Mnemonic::Cmovnp => Some(Condition::Move(11)),
        Mnemonic::Cmovl => Some(Condition::Move(12)),
        Mnemonic::Cmovge => Some(Condition::Move(13)),
        Mnemonic::Cmovle => Some(Condition::Move(14)),
        Mnemonic::Cmovg => Some(Condition::Move(15)),
        _ => None,
    }
}
