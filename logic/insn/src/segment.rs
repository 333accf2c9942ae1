//! Loads of segment registers and far branches, of which a selector or the stack may lie in a device (SDM vol. 3A, 5.5 and 5.8).
//! The privilege level stays: gates, task switches and returns to outer levels are not handled.

use exitless_x86::exception::{Exception, Vector};
use exitless_x86::paging::canonical;
use exitless_x86::regs::{SegReg, Segment, cr0, rflags};
use iced_x86::{MemorySize, OpKind, Register};

use crate::address::{self, segment_of};
use crate::alu::Size;
use crate::emulate::{Cpu, Stop, Table};
use crate::operand::{Exec, Flow, Step, read};
use crate::stack;
use crate::task::{self, Descriptor};

/// How often another processor may change a descriptor's byte under us.
const TRIES: u32 = 16;

/// The rules for selectors: those of protected mode, or base equals selector times 16.
enum Rules {
    Real,
    Virtual8086,
    Protected,
}

impl Rules {
    fn of<C: Cpu>(cpu: &C) -> Self {
        if cpu.cr0() & cr0::PE == 0 {
            Self::Real
        } else if cpu.rflags() & rflags::VM != 0 {
            Self::Virtual8086
        } else {
            Self::Protected
        }
    }
}

/// The checks of a task switch raise #TS where an instruction raises #GP.
fn by_instruction(x: Exception) -> Stop {
    Stop::Fault(if x.vector == Vector::TS { Exception { vector: Vector::GP, ..x } } else { x })
}

/// #GP for a selector.
fn refused(selector: u16) -> Stop {
    by_instruction(task::invalid(selector, 0))
}

/// A descriptor of the GDT or the LDT, and where it lies.
fn descriptor<C: Cpu>(cpu: &mut C, selector: u16) -> Result<(u64, Descriptor), Stop> {
    let (gdtr, ldtr) = (cpu.table(Table::Global), cpu.segment(SegReg::Ldtr));
    let at = task::place(selector, &gdtr, &ldtr).ok_or_else(|| refused(selector))?;
    let mut bytes = [0; 8];
    cpu.read_system(at, &mut bytes)?;
    Ok((at, Descriptor(u64::from_le_bytes(bytes))))
}

/// A checked segment of a code or data descriptor, which is accessed from now on.
fn checked<C: Cpu>(
    cpu: &mut C,
    selector: u16,
    check: impl Fn(Descriptor) -> Result<Segment, Stop>,
) -> Result<Segment, Stop> {
    for _ in 0..TRIES {
        let (at, d) = descriptor(cpu, selector)?;
        let segment = check(d)?;
        let byte = d.type_byte();
        if d.accessed() || cpu.exchange_system(at + task::TYPE_BYTE, byte, byte | task::ACCESSED)? {
            return Ok(segment);
        }
    }
    Err(Stop::Unhandled)
}

/// What a data or stack segment register holds after a load of `selector`.
pub(crate) fn data<C: Cpu>(cpu: &mut C, r: SegReg, selector: u16) -> Result<Segment, Stop> {
    let (cpl, rpl) = (cpu.cpl(), (selector & 3) as u8);
    match Rules::of(cpu) {
        Rules::Real => return Ok(real(&cpu.segment(r), selector)),
        Rules::Virtual8086 => return Ok(task::vm86_segment(selector)),
        Rules::Protected => {}
    }
    if r != SegReg::Ss {
        if task::is_null(selector) {
            return Ok(task::unusable(selector));
        }
        return checked(cpu, selector, |d| task::data_segment(selector, d, cpl, 0).map_err(by_instruction));
    }
    if !task::is_null(selector) {
        return checked(cpu, selector, |d| task::stack_segment(selector, d, cpl, 0).map_err(by_instruction));
    }
    // 64-bit code below level 3 may have none.
    let allowed = cpu.mode() == crate::decode::Mode::Bits64 && cpl != 3 && rpl == cpl;
    if allowed { Ok(task::provisional_stack(selector, cpl)) } else { Err(refused(0)) }
}

/// In real mode limit and attributes stay.
fn real(old: &Segment, selector: u16) -> Segment {
    Segment { base: u64::from(selector) << 4, selector, ..*old }
}

/// The segment register an operand names.
pub(crate) fn named(r: Register) -> Option<SegReg> {
    (Register::ES as u32..=Register::GS as u32).contains(&(r as u32)).then(|| segment_of(r))
}

/// Where execution goes on behind a load of `r`: SS holds interrupts back for one instruction (SDM vol. 2B, MOV).
fn behind(r: SegReg) -> Flow {
    if r == SegReg::Ss { Flow::Shadow } else { Flow::Next }
}

/// MOV to a segment register.
pub(crate) fn mov<C: Cpu>(x: &mut Exec<'_, C>, r: SegReg) -> Step {
    if r == SegReg::Cs {
        return Err(Stop::Fault(Exception::ud()).into());
    }
    let selector = x.load(1, Size::B2)? as u16;
    let segment = data(x.cpu, r, selector)?;
    x.cpu.set_segment(r, &segment);
    Ok(behind(r))
}

/// POP of a segment register: of a wide operand the selector's bytes count.
pub(crate) fn pop<C: Cpu>(x: &mut Exec<'_, C>, r: SegReg, size: Size) -> Step {
    let linear = address::data(x.cpu, SegReg::Ss, stack::moved(x.cpu, 0), size.bytes(), false)?;
    let selector = read(x.cpu, linear, size)? as u16;
    let segment = data(x.cpu, r, selector)?;
    let top = stack::moved(x.cpu, size.bytes() as u64);
    stack::set_stack_pointer(x.cpu, top);
    x.cpu.set_segment(r, &segment);
    Ok(behind(r))
}

/// The far pointer in memory: offset, its size, and selector.
fn far_pointer<C: Cpu>(x: &mut Exec<'_, C>) -> Result<(u64, Size, u16), Stop> {
    let size = match x.instr.memory_size() {
        MemorySize::SegPtr16 => Size::B2,
        MemorySize::SegPtr32 => Size::B4,
        MemorySize::SegPtr64 => Size::B8,
        _ => return Err(Stop::Unhandled),
    };
    let at = x.place(0, size.bytes() + 2, false)?;
    // A 32-bit pointer is aligned to 2 bytes, a 48-bit one to 4 (SDM vol. 3A, table 6-7).
    address::aligned(x.cpu, at, size.bytes().min(4))?;
    let selector_at = x.place(size.bytes() as u64, 2, false)?;
    let offset = read(x.cpu, at, size)?;
    let selector = read(x.cpu, selector_at, Size::B2)? as u16;
    Ok((offset, size, selector))
}

/// LDS, LES, LFS, LGS, LSS.
pub(crate) fn load_pointer<C: Cpu>(x: &mut Exec<'_, C>, r: SegReg) -> Step {
    let register = x.reg(0).ok_or(Stop::Unhandled)?;
    let (offset, _, selector) = far_pointer(x)?;
    let segment = data(x.cpu, r, selector)?;
    x.cpu.set_segment(r, &segment);
    x.set(register, offset);
    Ok(Flow::Next)
}

/// Who branches: JMP and CALL enter code at their own level, RETF returns to the level in the selector.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Branch {
    Enter,
    Return,
}

/// The code segment behind `selector`, and that `offset` lies in it.
fn code<C: Cpu>(cpu: &mut C, selector: u16, offset: u64, branch: Branch) -> Result<Segment, Stop> {
    let segment = match Rules::of(cpu) {
        Rules::Real => real(&cpu.segment(SegReg::Cs), selector),
        Rules::Virtual8086 => task::vm86_segment(selector),
        Rules::Protected => protected_code(cpu, selector, branch)?,
    };
    let inside = if cpu.long_mode() && segment.long() {
        canonical(offset, cpu.linear_bits())
    } else {
        offset <= u64::from(segment.limit)
    };
    if inside { Ok(segment) } else { Err(refused(0)) }
}

fn protected_code<C: Cpu>(cpu: &mut C, selector: u16, branch: Branch) -> Result<Segment, Stop> {
    if task::is_null(selector) {
        return Err(refused(0));
    }
    let (cpl, rpl, long_mode) = (cpu.cpl(), (selector & 3) as u8, cpu.long_mode());
    if branch == Branch::Return {
        if rpl < cpl {
            return Err(refused(selector));
        }
        if rpl > cpl {
            return Err(Stop::Unhandled);
        }
    }
    let kept = selector & !3 | u16::from(cpl);
    checked(cpu, selector, |d| {
        let s = d.segment(selector);
        // A gate or a TSS: another kind of branch.
        if branch == Branch::Enter && s.attrib & Segment::S == 0 {
            return Err(Stop::Unhandled);
        }
        let nobody = branch == Branch::Enter && !d.conforming() && rpl > cpl;
        if nobody || long_mode && s.long() && s.db() {
            return Err(refused(selector));
        }
        // The rules of a task switch look at the level that comes to be, which is the present one.
        task::code_segment(kept, d, 0).map_err(by_instruction)
    })
}

/// The target of a far branch: in memory, or in the instruction.
fn far_target<C: Cpu>(x: &mut Exec<'_, C>) -> Result<(u64, Size, u16), Stop> {
    match x.instr.op0_kind() {
        OpKind::Memory => far_pointer(x),
        OpKind::FarBranch16 => {
            Ok((u64::from(x.instr.far_branch16()), Size::B2, x.instr.far_branch_selector()))
        }
        OpKind::FarBranch32 => {
            Ok((u64::from(x.instr.far_branch32()), Size::B4, x.instr.far_branch_selector()))
        }
        _ => Err(Stop::Unhandled),
    }
}

/// Far JMP.
pub(crate) fn jump<C: Cpu>(x: &mut Exec<'_, C>) -> Step {
    let (offset, _, selector) = far_target(x)?;
    let cs = code(x.cpu, selector, offset, Branch::Enter)?;
    x.cpu.set_segment(SegReg::Cs, &cs);
    Ok(Flow::Jump(offset))
}

/// Far CALL: CS and the next instruction's offset onto the stack.
pub(crate) fn call<C: Cpu>(x: &mut Exec<'_, C>) -> Step {
    let (offset, size, selector) = far_target(x)?;
    let cs = code(x.cpu, selector, offset, Branch::Enter)?;
    let old = u64::from(x.cpu.segment(SegReg::Cs).selector);
    let top = stack::push_all(x.cpu, size, &[old, x.next])?;
    stack::set_stack_pointer(x.cpu, top);
    x.cpu.set_segment(SegReg::Cs, &cs);
    Ok(Flow::Jump(offset))
}

/// RETF, and `release` bytes more from the stack.
pub(crate) fn ret<C: Cpu>(x: &mut Exec<'_, C>, size: Size, release: u64) -> Step {
    let mut words = [0; 2];
    stack::pop_all(x.cpu, size, &mut words)?;
    let [offset, selector] = words;
    let cs = code(x.cpu, selector as u16, offset, Branch::Return)?;
    let top = stack::moved(x.cpu, 2 * size.bytes() as u64 + release);
    stack::set_stack_pointer(x.cpu, top);
    x.cpu.set_segment(SegReg::Cs, &cs);
    Ok(Flow::Jump(offset))
}

// --- the system's selectors ---

/// LLDT and LTR are there in protected mode, for the kernel.
fn system_only<C: Cpu>(cpu: &C) -> Result<(), Stop> {
    if !matches!(Rules::of(cpu), Rules::Protected) {
        return Err(Stop::Fault(Exception::ud()));
    }
    if cpu.cpl() == 0 { Ok(()) } else { Err(refused(0)) }
}

/// The base of a system descriptor; in long mode it has 16 bytes.
fn wide_base<C: Cpu>(cpu: &mut C, at: u64, selector: u16, base: u64) -> Result<u64, Stop> {
    if !cpu.long_mode() {
        return Ok(base);
    }
    let gdtr = cpu.table(Table::Global);
    if u64::from(selector & 0xfff8) + 15 > u64::from(gdtr.limit) {
        return Err(refused(selector));
    }
    let mut upper = [0; 8];
    cpu.read_system(at + 8, &mut upper)?;
    let upper = u64::from_le_bytes(upper);
    let base = base | upper << 32;
    // The type field of the upper half is zero (SDM vol. 3A, figure 8-4).
    let good = upper >> 40 & 0x1f == 0 && canonical(base, cpu.linear_bits());
    if good { Ok(base) } else { Err(refused(selector)) }
}

/// A system segment of the GDT of one of `types`.
fn system<C: Cpu>(cpu: &mut C, selector: u16, types: &[u8]) -> Result<(u64, u8, Segment), Stop> {
    if selector & 4 != 0 {
        return Err(refused(selector));
    }
    let (at, d) = descriptor(cpu, selector)?;
    let s = d.segment(selector);
    if s.attrib & Segment::S != 0 || !types.contains(&s.typ()) {
        return Err(refused(selector));
    }
    if !s.present() {
        let code = Some(u32::from(selector & 0xfffc));
        return Err(Stop::Fault(Exception { error_code: code, ..Exception::plain(Vector::NP) }));
    }
    let base = wide_base(cpu, at, selector, s.base)?;
    Ok((at, d.type_byte(), Segment { base, ..s }))
}

/// LLDT.
pub(crate) fn load_ldt<C: Cpu>(x: &mut Exec<'_, C>) -> Step {
    const LDT: u8 = 2;
    system_only(x.cpu)?;
    let selector = x.load(0, Size::B2)? as u16;
    let ldt =
        if task::is_null(selector) { task::unusable(selector) } else { system(x.cpu, selector, &[LDT])?.2 };
    x.cpu.set_segment(SegReg::Ldtr, &ldt);
    Ok(Flow::Next)
}

/// LTR: the TSS becomes busy.
pub(crate) fn load_task<C: Cpu>(x: &mut Exec<'_, C>) -> Step {
    system_only(x.cpu)?;
    let selector = x.load(0, Size::B2)? as u16;
    if task::is_null(selector) {
        return Err(refused(0).into());
    }
    let types: &[u8] = if x.cpu.long_mode() { &[9] } else { &[1, 9] };
    for _ in 0..TRIES {
        let (at, byte, mut tss) = system(x.cpu, selector, types)?;
        if x.cpu.exchange_system(at + task::TYPE_BYTE, byte, byte | task::BUSY)? {
            tss.attrib |= u16::from(task::BUSY);
            x.cpu.set_segment(SegReg::Tr, &tss);
            return Ok(Flow::Next);
        }
    }
    Err(Stop::Unhandled.into())
}

/// SLDT and STR: memory takes 16 bits, a register its full size.
pub(crate) fn store<C: Cpu>(x: &mut Exec<'_, C>, r: SegReg) -> Step {
    if !matches!(Rules::of(x.cpu), Rules::Protected) {
        return Err(Stop::Fault(Exception::ud()).into());
    }
    crate::system::umip(x.cpu)?;
    let size = x.size(0)?;
    let selector = u64::from(x.cpu.segment(r).selector);
    x.store(0, size, selector)?;
    Ok(Flow::Next)
}
