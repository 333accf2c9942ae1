//! Descriptor-table registers, the machine status word and cache lines, with their operand in memory.

use exitless_x86::exception::Exception;
use exitless_x86::paging::canonical;
use exitless_x86::regs::{TableReg, cr4};

use crate::address;
use crate::alu::Size;
use crate::decode::Mode;
use crate::emulate::{Cpu, Stop, Table};
use crate::operand::{Exec, Flow, Step, read, write};

/// A base of 24 bits, as the 286 had it, is what 16-bit operands hold.
const BASE24: u64 = 0xff_ffff;

/// UMIP: #GP(0) for user code that stores the system's registers (SDM vol. 3A, 2.5).
pub(crate) fn umip<C: Cpu>(cpu: &C) -> Result<(), Stop> {
    let hidden = cpu.cr4() & cr4::UMIP != 0 && cpu.cpl() != 0;
    if hidden { Err(Stop::Fault(Exception::gp(0))) } else { Ok(()) }
}

fn privileged<C: Cpu>(cpu: &C) -> Result<(), Stop> {
    if cpu.cpl() == 0 { Ok(()) } else { Err(Stop::Fault(Exception::gp(0))) }
}

/// SMSW: memory takes 16 bits, a register its full size.
pub(crate) fn store_status<C: Cpu>(x: &mut Exec<'_, C>) -> Step {
    umip(x.cpu)?;
    let size = x.size(0)?;
    let value = x.cpu.cr0();
    x.store(0, size, value)?;
    Ok(Flow::Next)
}

/// LMSW.
pub(crate) fn load_status<C: Cpu>(x: &mut Exec<'_, C>) -> Step {
    privileged(x.cpu)?;
    let value = x.load(0, Size::B2)? as u16;
    x.cpu.load_msw(value)?;
    Ok(Flow::Next)
}

/// Bytes of the base in a pseudo-descriptor, and whether 24 bits of it count. `prefixed`: 16-bit operands.
fn base_size<C: Cpu>(x: &Exec<'_, C>) -> (Size, bool) {
    use iced_x86::Code::{Lgdt_m1632_16, Lidt_m1632_16, Sgdt_m1632_16, Sidt_m1632_16};
    if x.mode == Mode::Bits64 {
        return (Size::B8, false);
    }
    let short = matches!(x.instr.code(), Lgdt_m1632_16 | Lidt_m1632_16 | Sgdt_m1632_16 | Sidt_m1632_16);
    (Size::B4, short)
}

/// Linear addresses of limit and base. The alignment check is for 4 bytes (SDM vol. 3A, table 6-7).
fn pseudo_descriptor<C: Cpu>(x: &Exec<'_, C>, base: Size, write: bool) -> Result<(u64, u64), Stop> {
    let at = x.place(0, 2 + base.bytes(), write)?;
    if x.mode != Mode::Bits64 {
        address::aligned(x.cpu, at, 4)?;
    }
    Ok((at, x.place(2, base.bytes(), write)?))
}

/// SGDT and SIDT.
pub(crate) fn store_table<C: Cpu>(x: &mut Exec<'_, C>, t: Table) -> Step {
    umip(x.cpu)?;
    let (size, short) = base_size(x);
    let (limit_at, base_at) = pseudo_descriptor(x, size, true)?;
    x.cpu.check_write(base_at, size.bytes())?;
    let table = x.cpu.table(t);
    write(x.cpu, limit_at, Size::B2, u64::from(table.limit))?;
    write(x.cpu, base_at, size, if short { table.base & BASE24 } else { table.base })?;
    Ok(Flow::Next)
}

/// LGDT and LIDT.
pub(crate) fn load_table<C: Cpu>(x: &mut Exec<'_, C>, t: Table) -> Step {
    privileged(x.cpu)?;
    let (size, short) = base_size(x);
    let (limit_at, base_at) = pseudo_descriptor(x, size, false)?;
    let limit = read(x.cpu, limit_at, Size::B2)? as u32;
    let base = read(x.cpu, base_at, size)?;
    let base = if short { base & BASE24 } else { base };
    if x.mode == Mode::Bits64 && !canonical(base, x.cpu.linear_bits()) {
        return Err(Stop::Fault(Exception::gp(0)).into());
    }
    x.cpu.set_table(t, &TableReg { base, limit, ..TableReg::default() });
    Ok(Flow::Next)
}

/// CLFLUSH, CLFLUSHOPT, CLWB: rights of a load; a device has no line in any cache.
pub(crate) fn cache_line<C: Cpu>(x: &mut Exec<'_, C>) -> Step {
    let at = x.place(0, 1, false)?;
    x.cpu.check_read(at, 1)?;
    Ok(Flow::Next)
}
