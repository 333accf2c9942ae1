//! Who may use a port: IOPL, and the I/O permission bitmap of the task state segment (SDM vol. 1, 19.5).

use exitless_x86::exception::Exception;
use exitless_x86::regs::{SegReg, Segment, cr0, rflags};

use crate::emulate::{Cpu, Stop};

/// Offset of the bitmap's own offset in a 32- and a 64-bit TSS (SDM vol. 3A, 8.2.1 and 8.7).
const BITMAP_BASE: u64 = 102;

/// #GP(0) unless the program may access `size` bytes of ports from `port` on.
pub(crate) fn check<C: Cpu>(cpu: &mut C, port: u16, size: u8) -> Result<(), Stop> {
    if !asks_bitmap(cpu) || bitmap_allows(cpu, port, size)? {
        return Ok(());
    }
    Err(Stop::Fault(Exception::gp(0)))
}

/// Virtual-8086 mode always asks the bitmap, protected mode where IOPL does not suffice, real mode never.
fn asks_bitmap<C: Cpu>(cpu: &C) -> bool {
    let flags = cpu.rflags();
    let iopl = (flags & rflags::IOPL) >> rflags::IOPL.trailing_zeros();
    cpu.cr0() & cr0::PE != 0 && (flags & rflags::VM != 0 || u64::from(cpu.cpl()) > iopl)
}

/// The processor reads two bytes of the bitmap, whatever the port: both must lie in the TSS, which ends in a byte of ones.
fn bitmap_allows<C: Cpu>(cpu: &mut C, port: u16, size: u8) -> Result<bool, Stop> {
    let tss = cpu.segment(SegReg::Tr);
    let within = |end: u64| end <= u64::from(tss.limit);
    if !is_32bit(&tss) || !within(BITMAP_BASE + 1) {
        return Ok(false);
    }
    let at = u64::from(read_word(cpu, &tss, BITMAP_BASE)?) + u64::from(port >> 3);
    if !within(at + 1) {
        return Ok(false);
    }
    let denied = read_word(cpu, &tss, at)? >> (port & 7);
    Ok(denied & ((1 << size) - 1) == 0)
}

/// An available or busy TSS of 32 or 64 bits: a 16-bit TSS has no bitmap.
fn is_32bit(tss: &Segment) -> bool {
    tss.present() && matches!(tss.typ(), 9 | 11)
}

fn read_word<C: Cpu>(cpu: &mut C, tss: &Segment, at: u64) -> Result<u16, Stop> {
    let mut word = [0; 2];
    cpu.read_system(tss.base.wrapping_add(at), &mut word)?;
    Ok(u16::from_le_bytes(word))
}
