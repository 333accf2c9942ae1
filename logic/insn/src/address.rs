//! Effective and linear addresses: base, index, displacement, segment checks (SDM vol. 1, 3.7.5; vol. 3A, 5.3).

use exitless_x86::exception::{Exception, Vector};
use exitless_x86::paging::canonical;
use exitless_x86::regs::{Gpr, SegReg, Segment, cr0, rflags};
use iced_x86::{Instruction, Register};

use crate::decode::Mode;
use crate::emulate::{Cpu, Stop};
use crate::operand::RegRef;

/// Bits of a 16-, 32- or 64-bit address.
pub(crate) fn address_mask(bytes: usize) -> u64 {
    match bytes {
        2 => 0xffff,
        4 => 0xffff_ffff,
        _ => u64::MAX,
    }
}

/// The segment of the decoder's segment register; DS for anything else.
pub(crate) fn segment_of(r: Register) -> SegReg {
    match r {
        Register::ES => SegReg::Es,
        Register::CS => SegReg::Cs,
        Register::SS => SegReg::Ss,
        Register::FS => SegReg::Fs,
        Register::GS => SegReg::Gs,
        _ => SegReg::Ds,
    }
}

/// Address size in bytes of an explicit memory operand.
fn address_size(instr: &Instruction) -> usize {
    match (instr.memory_base(), instr.memory_index()) {
        // The displacement is the whole address, already wrapped.
        (Register::RIP | Register::EIP, _) => 8,
        (Register::None, Register::None) => instr.memory_displ_size() as usize,
        (Register::None, r) | (r, _) => RegRef::of(r).map_or(8, |r| r.size.bytes()),
    }
}

/// The value of a base or index register, zero-extended; RIP is already in the displacement.
fn component<C: Cpu>(cpu: &C, r: Register, rsp_bias: u64) -> u64 {
    let Some(r) = RegRef::of(r) else { return 0 };
    let bias = if r.gpr == Gpr::Rsp { rsp_bias } else { 0 };
    r.extract(cpu.gpr(r.gpr).wrapping_add(bias))
}

/// The offset in its segment of the explicit memory operand. `rsp_bias` is added to RSP as a base (POP).
pub(crate) fn offset<C: Cpu>(cpu: &C, instr: &Instruction, rsp_bias: u64) -> u64 {
    let base = component(cpu, instr.memory_base(), rsp_bias);
    let index = component(cpu, instr.memory_index(), 0);
    let scaled = index.wrapping_mul(u64::from(instr.memory_index_scale()));
    let sum = base.wrapping_add(scaled).wrapping_add(instr.memory_displacement64());
    sum & address_mask(address_size(instr))
}

/// The address a flat or segmented access starts at, without any check.
pub(crate) fn unchecked<C: Cpu>(cpu: &C, segment: SegReg, offset: u64) -> u64 {
    match cpu.mode() {
        Mode::Bits64 => base64(cpu, segment).wrapping_add(offset),
        _ => cpu.segment(segment).base.wrapping_add(offset) & 0xffff_ffff,
    }
}

/// Segment limit and attribute checks, canonical check and the segment base: the linear address of `len` bytes
/// (1 to 16, or a block inside of a page) at `offset`. Faults are #SS(0) for SS, else #GP(0).
pub fn linearize<C: Cpu>(
    cpu: &C,
    segment: SegReg,
    offset: u64,
    len: usize,
    write: bool,
) -> Result<u64, Stop> {
    let linear = unchecked(cpu, segment, offset);
    let last = (len as u64).saturating_sub(1);
    let allowed = if cpu.mode() == Mode::Bits64 {
        canonical(linear, cpu.linear_bits()) && canonical(linear.wrapping_add(last), cpu.linear_bits())
    } else {
        let s = cpu.segment(segment);
        in_limit(&s, offset, last) && (!cpu.protected() || attributes_allow(&s, write))
    };
    if allowed { Ok(linear) } else { Err(Stop::Fault(segment_fault(segment))) }
}

/// [`linearize`] for one operand of `len` bytes (1, 2, 4 or 8) that the program itself accesses: also the alignment check.
pub(crate) fn data<C: Cpu>(
    cpu: &C,
    segment: SegReg,
    offset: u64,
    len: usize,
    write: bool,
) -> Result<u64, Stop> {
    let linear = linearize(cpu, segment, offset, len, write)?;
    aligned(cpu, linear, len)?;
    Ok(linear)
}

/// #AC(0) for an address off `to` bytes, where user code has alignment checked (SDM vol. 3A, 6.15, interrupt 17).
pub(crate) fn aligned<C: Cpu>(cpu: &C, linear: u64, to: usize) -> Result<(), Stop> {
    let checked = cpu.cpl() == 3 && cpu.rflags() & rflags::AC != 0 && cpu.cr0() & cr0::AM != 0;
    if checked && !linear.is_multiple_of(to as u64) {
        let code = Some(0);
        return Err(Stop::Fault(Exception { error_code: code, ..Exception::plain(Vector::AC) }));
    }
    Ok(())
}

/// In 64-bit mode only FS and GS have a base.
fn base64<C: Cpu>(cpu: &C, segment: SegReg) -> u64 {
    match segment {
        SegReg::Fs | SegReg::Gs => cpu.segment(segment).base,
        _ => 0,
    }
}

/// The exception of a bad access through `segment`.
fn segment_fault(segment: SegReg) -> Exception {
    if segment == SegReg::Ss { Exception::ss(0) } else { Exception::gp(0) }
}

/// Whether bytes `offset` to `offset + last` lie in the segment. Past 4 GiB is outside of every segment.
fn in_limit(s: &Segment, offset: u64, last: u64) -> bool {
    let end = offset.saturating_add(last);
    if s.expand_down() {
        let top = if s.db() { 0xffff_ffff } else { 0xffff };
        offset > u64::from(s.limit) && end <= top
    } else {
        end <= u64::from(s.limit)
    }
}

/// Type checks of protected mode; a segment register loaded with a null selector is not present.
fn attributes_allow(s: &Segment, write: bool) -> bool {
    let code = s.typ() & 8 != 0;
    let readable = !code || s.typ() & 2 != 0;
    s.present() && if write { s.writable() } else { readable }
}
