//! RIP behind the exiting instruction, on CPUs that do not tell.

use crate::backend::Backend;
use crate::host::Host;
use crate::memory::{AtomicMemory, PagedMemory};
use crate::vcpu::Vcpu;
use exitless_chooser::Fallback;
use exitless_insn::walk::missing_table;
use exitless_insn::{Access, Mode, WalkError, instruction_length, translate};
use exitless_x86::exception::Exception;
use exitless_x86::paging::pte;
use exitless_x86::regs::{SegReg, cr0, cr4, efer};

/// Why no instruction could be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoBytes {
    /// The fetch faults in the guest.
    Fault(Exception),
    /// The memory is not there (or not now, in atomic context).
    Missing,
    /// It is the guest's, but the host has no page for it.
    Host,
}

/// Fetches up to 15 bytes at CS:RIP: the bytes and how many are valid. `atomic`: never sleeps.
pub fn fetch<B: Backend, H: Host<Cpu = B::Cpu>>(
    v: &Vcpu<B>,
    host: &H,
    atomic: bool,
) -> Result<([u8; 15], usize), NoBytes> {
    let hw = v.b.fetched();
    if !hw.is_empty() {
        let mut bytes = [0u8; 15];
        let n = hw.len().min(15);
        if let (Some(d), Some(s)) = (bytes.get_mut(..n), hw.get(..n)) {
            d.copy_from_slice(s);
        }
        return Ok((bytes, n));
    }
    fetch_from_memory(v, host, atomic)
}

/// The same, whatever the last exit was.
fn fetch_from_memory<B: Backend, H: Host<Cpu = B::Cpu>>(
    v: &Vcpu<B>,
    host: &H,
    atomic: bool,
) -> Result<([u8; 15], usize), NoBytes> {
    let mut bytes = [0u8; 15];
    let linear = linear_rip(v);
    if let Some(quick) = quick_fetch(v, host, linear) {
        return Ok((quick, 15));
    }
    let mut valid = 0usize;
    while valid < 15 {
        let at = linear.wrapping_add(valid as u64);
        let room = (4096 - (at & 4095)) as usize;
        let n = room.min(15 - valid);
        let Some(part) = bytes.get_mut(valid..valid + n) else { break };
        match fetch_part(v, host, at, part, atomic) {
            Ok(()) => valid += n,
            // Bytes of the next page matter only if the instruction reaches there.
            Err(_) if valid > 0 => break,
            Err(e) => return Err(e),
        }
    }
    Ok((bytes, valid))
}

/// Length of the instruction at RIP, which need not be the one that exited last.
pub fn length<B: Backend, H: Host<Cpu = B::Cpu>>(v: &Vcpu<B>, host: &H) -> Option<u8> {
    let (bytes, valid) = fetch_from_memory(v, host, false).ok()?;
    instruction_length(&bytes, valid, v.mode()).map(|(len, _)| len as u8)
}

/// RIP behind the instruction at RIP, if that is PUSHF.
pub fn behind_pushf<B: Backend, H: Host<Cpu = B::Cpu>>(v: &Vcpu<B>, host: &H) -> Option<u64> {
    const PUSHF: u8 = 0x9c;
    let (bytes, valid) = fetch_from_memory(v, host, false).ok()?;
    let prefix = |b: u8| {
        let rex = v.mode() == Mode::Bits64 && b & 0xf0 == 0x40;
        rex || matches!(b, 0x66 | 0x67 | 0x26 | 0x2e | 0x36 | 0x3e | 0x64 | 0x65 | 0xf2 | 0xf3)
    };
    let at = bytes.iter().take(valid).position(|b| !prefix(*b))?;
    let next = v.b.rip().wrapping_add(at as u64 + 1);
    (bytes.get(at) == Some(&PUSHF)).then(|| wrap(next, v.mode()))
}

/// Linear address of RIP.
pub fn linear_rip<B: Backend>(v: &Vcpu<B>) -> u64 {
    match v.mode() {
        Mode::Bits64 => v.b.rip(),
        _ => v.b.segment(SegReg::Cs).base.wrapping_add(v.b.rip()) & 0xffff_ffff,
    }
}

fn fetch_part<B: Backend, H: Host<Cpu = B::Cpu>>(
    v: &Vcpu<B>,
    host: &H,
    at: u64,
    part: &mut [u8],
    atomic: bool,
) -> Result<(), NoBytes> {
    let mode = v.paging(v.b.cpl());
    if !atomic {
        // As for `Vcpu::read_guest`.
        v.b.dirty_l1d();
    }
    let walked = if atomic {
        translate(&AtomicMemory(host), &mode, at, Access::FETCH)
    } else {
        translate(&PagedMemory(host), &mode, at, Access::FETCH)
    };
    let gpa = match walked {
        Ok(gpa) => gpa,
        Err(WalkError::Fault(x)) => return Err(NoBytes::Fault(x)),
        Err(WalkError::NoMemory(_)) if atomic => return Err(NoBytes::Missing),
        Err(WalkError::NoMemory(_)) => return Err(NoBytes::Fault(missing_table(&mode, at, Access::FETCH))),
    };
    let ok = if atomic { host.read_guest_atomic(gpa, part) } else { host.read_guest(gpa, part) };
    if ok {
        return Ok(());
    }
    Err(if !atomic && host.is_ram(gpa, false) { NoBytes::Host } else { NoBytes::Missing })
}

/// Bytes from RIP to the end of the code segment, 15 at most.
pub fn code_room<B: Backend>(v: &Vcpu<B>) -> usize {
    if v.mode() == Mode::Bits64 {
        return 15;
    }
    let end = u64::from(v.b.segment(SegReg::Cs).limit) + 1;
    end.saturating_sub(v.b.rip()).min(15) as usize
}

/// Why the bytes of an instruction end after `valid` of them: it is too long, the segment ends, or the next page faults. `Ok`:
/// they do not any more.
pub fn cut_short<B: Backend, H: Host<Cpu = B::Cpu>>(
    v: &Vcpu<B>,
    host: &H,
    valid: usize,
) -> Result<(), NoBytes> {
    if valid >= code_room(v) {
        return Err(NoBytes::Fault(Exception::gp(0)));
    }
    let at = linear_rip(v).wrapping_add(valid as u64);
    let at = if v.mode() == Mode::Bits64 { at } else { at & 0xffff_ffff };
    fetch_part(v, host, at, &mut [0], false)
}

/// RIP behind the instruction at RIP. `None`: its bytes cannot be read or decoded (in atomic context: try again
/// with interrupts on).
pub fn next_rip<B: Backend, H: Host<Cpu = B::Cpu>>(v: &Vcpu<B>, host: &H, atomic: bool) -> Option<u64> {
    if let Some(rip) = v.b.next_rip() {
        return Some(rip);
    }
    let mode = v.mode();
    if let Some(len) = short_length(v, host, mode) {
        return Some(wrap(v.b.rip().wrapping_add(len as u64), mode));
    }
    let (bytes, valid) = fetch(v, host, atomic).ok()?;
    let (len, _) = instruction_length(&bytes, valid, mode)?;
    Some(wrap(v.b.rip().wrapping_add(len as u64), mode))
}

/// Moves on behind the exiting instruction, in a slice.
///
/// # Errors
/// Where that is cannot be told there, and nothing was done.
pub fn over<B: Backend, H: Host<Cpu = B::Cpu>>(v: &mut Vcpu<B>, host: &H) -> Result<(), Fallback> {
    if !v.b.skip_instruction() {
        let next = next_rip(v, host, true).ok_or(Fallback::Length)?;
        v.finish_skip(next);
    }
    Ok(())
}

/// Where the guest goes on behind what exited.
#[derive(Clone, Copy, Debug)]
pub enum Behind {
    /// Behind the instruction that exited.
    Exiting,
    /// There.
    At(u64),
    /// It is there already: the exit came behind the instruction.
    Here,
}

impl Behind {
    /// The same, found before an effect that cannot be taken back.
    ///
    /// # Errors
    /// It cannot be told in a slice.
    pub fn known<B: Backend, H: Host<Cpu = B::Cpu>>(self, v: &Vcpu<B>, host: &H) -> Result<Self, Fallback> {
        match self {
            Self::Exiting => next_rip(v, host, true).map(Self::At).ok_or(Fallback::Length),
            other => Ok(other),
        }
    }

    /// Goes on there.
    ///
    /// # Errors
    /// It cannot be told in a slice, and nothing was done.
    pub fn go<B: Backend, H: Host<Cpu = B::Cpu>>(self, v: &mut Vcpu<B>, host: &H) -> Result<(), Fallback> {
        match self {
            Self::Exiting => return over(v, host),
            Self::At(next) => v.finish_skip(next),
            Self::Here => {}
        }
        Ok(())
    }
}

/// All 15 bytes at once, where they lie in one resident page: two loads.
fn quick_fetch<B: Backend, H: Host<Cpu = B::Cpu>>(v: &Vcpu<B>, host: &H, linear: u64) -> Option<[u8; 15]> {
    if linear & 4095 > 4096 - 16 {
        return None;
    }
    let gpa = locate(v, host, linear)?;
    let (low, high) = (host.read_u64_atomic(gpa)?, host.read_u64_atomic(gpa + 8)?);
    let mut bytes = [0; 15];
    for (d, s) in bytes.iter_mut().zip(low.to_le_bytes().into_iter().chain(high.to_le_bytes())) {
        *d = s;
    }
    Some(bytes)
}

/// The length from the first 8 bytes alone, which is all that the instructions of the fast paths need.
fn short_length<B: Backend, H: Host<Cpu = B::Cpu>>(v: &Vcpu<B>, host: &H, mode: Mode) -> Option<usize> {
    let linear = linear_rip(v);
    if linear & 4095 > 4096 - 8 {
        return None;
    }
    let gpa = locate(v, host, linear)?;
    let mut bytes = [0; 15];
    for (d, s) in bytes.iter_mut().zip(host.read_u64_atomic(gpa)?.to_le_bytes()) {
        *d = s;
    }
    instruction_length(&bytes, 8, mode).map(|(len, _)| len)
}

/// Where the instruction that has just executed lies. Hardware fetched it a moment ago, with every right checked and
/// every accessed flag set, so only the addresses remain to be followed; `None` where that is not simple.
fn locate<B: Backend, H: Host<Cpu = B::Cpu>>(v: &Vcpu<B>, host: &H, linear: u64) -> Option<u64> {
    if v.b.cr0() & cr0::PG == 0 || v.b.efer() & efer::LMA == 0 {
        return translate(&AtomicMemory(host), &v.paging(v.b.cpl()), linear, Access::FETCH).ok();
    }
    let mut shift = if v.b.cr4() & cr4::LA57 != 0 { 48 } else { 39 };
    let mut table = v.b.cr3() & pte::ADDRESS;
    loop {
        let entry = host.read_u64_atomic(table + (linear >> shift & 511) * 8)?;
        if entry & pte::P == 0 {
            return None;
        }
        if shift == 12 || (shift <= 30 && entry & pte::PS != 0) {
            let offset = (1u64 << shift) - 1;
            return Some(entry & pte::ADDRESS & !offset | linear & offset);
        }
        table = entry & pte::ADDRESS;
        shift -= 9;
    }
}

/// RIP wraps at the width of the mode's instruction pointer.
pub fn wrap(rip: u64, mode: Mode) -> u64 {
    match mode {
        Mode::Bits64 => rip,
        _ => rip & 0xffff_ffff,
    }
}
