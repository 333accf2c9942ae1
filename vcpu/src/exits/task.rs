//! Hardware task switches (SDM vol. 3A, 8.3): neither vendor does them for a guest.
//!
//! ```text
//! check ── claim ── save ── link ── commit ── registers ── CR3 ── LDTR, segments ── error code ── T bit
//!   └─ a fault: the old task's ──┘          └─ a fault: the new task's, before its first instruction
//! ```
//!
//! Hardware has checked privileges and the new TSS's descriptor before it exited (SDM vol. 3C, 26.4.2; APM vol. 2, 15.14.1). The
//! descriptor is checked again: another vCPU may have changed it meanwhile.

use super::ending::{failure_exit, fault, unreadable};
use crate::backend::{Backend, Event, TaskSource, TaskSwitch};
use crate::emul::Emulation;
use crate::host::Host;
use crate::outcome::Next;
use crate::shared::VcpuShared;
use crate::skip;
use crate::vcpu::Vcpu;
use exitless_insn::emulate::linearize;
use exitless_insn::task::{self, Cause, Descriptor, Format, Image, State};
use exitless_insn::{Access, Stop};
use exitless_x86::exception::{Exception, Vector};
use exitless_x86::regs::{Gpr, SegReg, Segment, cr0, dr6, efer, rflags};

/// Registers in the order of their encoding, which is a TSS's.
const GPRS: [Gpr; 8] = [Gpr::Rax, Gpr::Rcx, Gpr::Rdx, Gpr::Rbx, Gpr::Rsp, Gpr::Rbp, Gpr::Rsi, Gpr::Rdi];
const SEGMENTS: [SegReg; 6] = [SegReg::Es, SegReg::Cs, SegReg::Ss, SegReg::Ds, SegReg::Fs, SegReg::Gs];

/// L0 to L3 and LE of DR7: a task's own breakpoints (SDM vol. 3B, 18.2.4).
const DR7_LOCAL: u64 = 0x155;
/// How often another CPU may change the byte under us.
const TRIES: u32 = 64;

/// Does the switch, as far as it gets.
pub fn handle<B: Backend, H: Host<Cpu = B::Cpu>>(
    v: &mut Vcpu<B>,
    sh: &VcpuShared,
    host: &H,
    t: TaskSwitch,
) -> Next {
    // There are none in real and in long mode.
    if v.b.cr0() & cr0::PE == 0 || v.b.efer() & efer::LMA != 0 {
        return failure_exit(v, host);
    }
    let Some(eip) = saved_eip(v, host, t.source) else { return unreadable(v, sh, host) };
    take_event(v, t.source);
    let switched = switch(&mut Emulation { v: &mut *v, sh, host, operand: None }, &t, eip);
    v.event_dirty = true;
    match switched {
        Ok(trap) => {
            v.reinject = None;
            if trap {
                v.raise(Exception { payload: dr6::BT, ..Exception::plain(Vector::DB) });
            }
            Next::Again
        }
        // An exception under delivery still counts: two of them may be a double fault.
        Err(Stop::Fault(x)) => fault(v, sh, x),
        Err(_) => failure_exit(v, host),
    }
}

/// Where the old task goes on: behind an instruction that asked for the switch, otherwise where it was.
fn saved_eip<B: Backend, H: Host<Cpu = B::Cpu>>(v: &Vcpu<B>, host: &H, source: TaskSource) -> Option<u64> {
    match source {
        TaskSource::Gate(Event::Interrupt(_) | Event::Nmi | Event::Exception(_)) => Some(v.b.rip()),
        _ => skip::next_rip(v, host, false),
    }
}

/// The event is on its way and does not come again, even if the switch fails: a fault takes its place.
fn take_event<B: Backend>(v: &mut Vcpu<B>, source: TaskSource) {
    match source {
        TaskSource::Gate(Event::Interrupt(_) | Event::Nmi) => v.lose_delivery(),
        // IRET unmasks NMIs even if it faults (SDM vol. 3A, 6.7.1).
        TaskSource::Iret => v.b.set_nmi_masked(false),
        _ => {}
    }
}

fn cause(source: TaskSource) -> Cause {
    match source {
        TaskSource::Call => Cause::Call,
        TaskSource::Jump => Cause::Jump,
        TaskSource::Iret => Cause::Iret,
        TaskSource::Gate(event) => Cause::Gate { external: !matches!(event, Event::Software(..)) },
    }
}

/// The old task's side of the switch.
struct Outgoing {
    tss: Segment,
    format: Format,
    /// Linear address of its descriptor's byte with the busy bit; `None` where TR was never loaded.
    type_byte: Option<u64>,
}

/// `Ok(true)`: the new task wants a debug trap.
fn switch<B: Backend, H: Host<Cpu = B::Cpu>>(
    e: &mut Emulation<'_, B, H>,
    t: &TaskSwitch,
    eip: u64,
) -> Result<bool, Stop> {
    let cause = cause(t.source);
    let old = outgoing(e, cause)?;
    let (tss, format) = claim(e, t.selector, cause)?;
    save(e, &old, cause, eip, t.resume)?;
    let state = arrive(e, &old, &tss, format, cause)?;
    commit(e, &tss, &state, cause)?;
    load_segments(e, &state, cause.ext())?;
    if let Some(code) = t.error_code {
        push_code(e, format, code, cause.ext())?;
    }
    if e.v.b.rip() > u64::from(e.v.b.segment(SegReg::Cs).limit) {
        return Err(Stop::Fault(Exception::gp(cause.ext())));
    }
    Ok(state.trap)
}

// --- the old task ---

/// The old TSS, and that it can be written.
fn outgoing<B: Backend, H: Host<Cpu = B::Cpu>>(
    e: &Emulation<'_, B, H>,
    cause: Cause,
) -> Result<Outgoing, Stop> {
    let tss = e.v.b.segment(SegReg::Tr);
    let format = Format::of(tss.typ()).ok_or(Stop::Unhandled)?;
    task::long_enough(&tss, format, cause.ext()).map_err(Stop::Fault)?;
    let (at, len) = format.dynamic();
    e.system_check(offset(&tss, at as u64), len, Access::SYSTEM_WRITE)?;
    let entry = task::lookup(tss.selector, &e.v.b.gdtr(), &Segment::default());
    let type_byte = entry.map(|at| wrapped(at + task::TYPE_BYTE));
    if let (false, Some(at)) = (cause.nests(), type_byte) {
        e.system_check(at, 1, Access::SYSTEM_READ)?;
    }
    Ok(Outgoing { tss, format, type_byte })
}

/// Registers into the old TSS. Its busy bit goes unless the new task will return.
fn save<B: Backend, H: Host<Cpu = B::Cpu>>(
    e: &Emulation<'_, B, H>,
    old: &Outgoing,
    cause: Cause,
    eip: u64,
    resume: bool,
) -> Result<(), Stop> {
    if let (false, Some(at)) = (cause.nests(), old.type_byte) {
        change(e, at, |byte| Some(byte & !task::BUSY))?;
    }
    let mut image: Image = [0; 104];
    let (at, len) = old.format.dynamic();
    let part = image.get_mut(at..at + len).ok_or(Stop::Unhandled)?;
    e.system_read(offset(&old.tss, at as u64), part)?;
    running(e, cause, eip, resume).save(old.format, &mut image);
    let part = image.get(at..at + len).ok_or(Stop::Unhandled)?;
    e.memory_write(offset(&old.tss, at as u64), part, Access::SYSTEM_WRITE)
}

/// The registers as the old TSS gets them.
fn running<B: Backend, H: Host<Cpu = B::Cpu>>(
    e: &Emulation<'_, B, H>,
    cause: Cause,
    eip: u64,
    resume: bool,
) -> State {
    let mut flags = e.v.b.rflags() & !rflags::RF;
    if resume {
        flags |= rflags::RF;
    }
    if cause == Cause::Iret {
        flags &= !rflags::NT;
    }
    let mut state = State { eip: eip as u32, eflags: flags as u32, ..State::default() };
    for (to, r) in state.gprs.iter_mut().zip(GPRS) {
        *to = e.v.b.gprs().get(r) as u32;
    }
    for (to, r) in state.selectors.iter_mut().zip(SEGMENTS) {
        *to = e.v.b.segment(r).selector;
    }
    state
}

// --- the new task ---

/// The new TSS's descriptor, checked; the TSS is memory, and busy from now on.
fn claim<B: Backend, H: Host<Cpu = B::Cpu>>(
    e: &Emulation<'_, B, H>,
    selector: u16,
    cause: Cause,
) -> Result<(Segment, Format), Stop> {
    let at = task::tss_address(selector, &e.v.b.gdtr(), cause).map_err(Stop::Fault)?;
    for _ in 0..TRIES {
        let d = descriptor(e, at)?;
        let format = task::incoming(d, selector, cause).map_err(Stop::Fault)?;
        let mut tss = d.segment(selector);
        tss.attrib |= u16::from(task::BUSY);
        e.system_check(tss.base, format.size(), Access::SYSTEM_READ)?;
        if cause.nests() {
            e.system_check(offset(&tss, task::LINK), 2, Access::SYSTEM_WRITE)?;
        }
        let byte = d.type_byte();
        if cause == Cause::Iret
            || e.system_exchange(wrapped(at + task::TYPE_BYTE), byte, byte | task::BUSY)?
        {
            return Ok((tss, format));
        }
    }
    Err(Stop::Unhandled)
}

/// The link back, and what the new TSS holds.
fn arrive<B: Backend, H: Host<Cpu = B::Cpu>>(
    e: &Emulation<'_, B, H>,
    old: &Outgoing,
    tss: &Segment,
    format: Format,
    cause: Cause,
) -> Result<State, Stop> {
    if cause.nests() {
        let link = old.tss.selector.to_le_bytes();
        e.memory_write(offset(tss, task::LINK), &link, Access::SYSTEM_WRITE)?;
    }
    let mut image: Image = [0; 104];
    e.system_read(tss.base, image.get_mut(..format.size()).unwrap_or(&mut []))?;
    let mut state = State::load(format, &image);
    if cause.nests() {
        state.eflags |= rflags::NT as u32;
    }
    Ok(state)
}

/// The new task's registers. Selectors come without their descriptors: those may still fault.
fn commit<B: Backend, H: Host<Cpu = B::Cpu>>(
    e: &mut Emulation<'_, B, H>,
    tss: &Segment,
    state: &State,
    cause: Cause,
) -> Result<(), Stop> {
    let b = &mut e.v.b;
    b.set_segment(SegReg::Tr, tss);
    b.set_cr0(b.cr0() | cr0::TS);
    b.set_rip(u64::from(state.eip));
    b.set_rflags(u64::from(state.eflags));
    b.set_interrupt_shadow(false);
    for (value, r) in state.gprs.iter().zip(GPRS) {
        b.gprs_mut().set(r, u64::from(*value));
    }
    b.set_segment(SegReg::Ldtr, &task::unusable(state.ldt));
    let cpl = state.cpl();
    for (selector, r) in state.selectors.iter().zip(SEGMENTS) {
        let s = match r {
            SegReg::Cs => task::provisional_code(&b.segment(r), *selector, cpl),
            SegReg::Ss => task::provisional_stack(*selector, cpl),
            _ => task::unusable(*selector),
        };
        b.set_segment(r, &s);
    }
    let dr7 = e.v.guest_dr7() & !DR7_LOCAL;
    e.v.set_guest_dr7(dr7);
    load_cr3(e, state, cause)
}

/// Without paging CR3 stays (SDM vol. 3A, 8.3), and a 16-bit TSS has none.
fn load_cr3<B: Backend, H: Host<Cpu = B::Cpu>>(
    e: &mut Emulation<'_, B, H>,
    state: &State,
    cause: Cause,
) -> Result<(), Stop> {
    let Some(new) = state.cr3.filter(|_| e.v.b.cr0() & cr0::PG != 0) else { return Ok(()) };
    let old = e.v.b.cr3();
    e.v.b.set_cr3(u64::from(new));
    e.v.flush = true;
    if e.v.load_pdptes(e.host) {
        return Ok(());
    }
    e.v.b.set_cr3(old);
    Err(Stop::Fault(Exception::gp(cause.ext())))
}

/// LDTR and the segment registers, in the order in which the checks count.
fn load_segments<B: Backend, H: Host<Cpu = B::Cpu>>(
    e: &mut Emulation<'_, B, H>,
    state: &State,
    ext: u32,
) -> Result<(), Stop> {
    load_ldt(e, state.ldt, ext)?;
    let cpl = state.cpl();
    if state.vm86() {
        for (selector, r) in state.selectors.iter().zip(SEGMENTS) {
            e.v.b.set_segment(r, &task::vm86_segment(*selector));
        }
        return Ok(());
    }
    let [es, cs, ss, ds, fs, gs] = state.selectors;
    load(e, SegReg::Cs, cs, ext, |d| task::code_segment(cs, d, ext))?;
    load(e, SegReg::Ss, ss, ext, |d| task::stack_segment(ss, d, cpl, ext))?;
    for (r, selector) in [(SegReg::Ds, ds), (SegReg::Es, es), (SegReg::Fs, fs), (SegReg::Gs, gs)] {
        if !task::is_null(selector) {
            load(e, r, selector, ext, |d| task::data_segment(selector, d, cpl, ext))?;
        }
    }
    Ok(())
}

fn load_ldt<B: Backend, H: Host<Cpu = B::Cpu>>(
    e: &mut Emulation<'_, B, H>,
    selector: u16,
    ext: u32,
) -> Result<(), Stop> {
    if task::is_null(selector) {
        return Ok(());
    }
    // LDTR is unusable: a selector of the LDT itself has no descriptor.
    load(e, SegReg::Ldtr, selector, ext, |d| task::ldt(selector, d, ext))
}

fn load<B: Backend, H: Host<Cpu = B::Cpu>>(
    e: &mut Emulation<'_, B, H>,
    r: SegReg,
    selector: u16,
    ext: u32,
    check: impl Fn(Descriptor) -> Result<Segment, Exception>,
) -> Result<(), Stop> {
    let at = task::lookup(selector, &e.v.b.gdtr(), &e.v.b.segment(SegReg::Ldtr));
    let at = at.ok_or_else(|| Stop::Fault(task::invalid(selector, ext)))?;
    let d = descriptor(e, at)?;
    let segment = check(d).map_err(Stop::Fault)?;
    if !d.accessed() {
        let code_or_data = |byte: u8| (byte & 0x10 != 0).then_some(byte | task::ACCESSED);
        change(e, wrapped(at + task::TYPE_BYTE), code_or_data)?;
    }
    e.v.b.set_segment(r, &segment);
    Ok(())
}

/// The event's error code, in the size of the new TSS.
fn push_code<B: Backend, H: Host<Cpu = B::Cpu>>(
    e: &mut Emulation<'_, B, H>,
    format: Format,
    code: u32,
    ext: u32,
) -> Result<(), Stop> {
    let bytes = code.to_le_bytes();
    let bytes = bytes.get(..if format == Format::Bits32 { 4 } else { 2 }).unwrap_or(&[]);
    let mask = if e.v.b.segment(SegReg::Ss).db() { 0xffff_ffff } else { 0xffff };
    let sp = e.v.b.gprs().get(Gpr::Rsp);
    let top = sp.wrapping_sub(bytes.len() as u64) & mask;
    let Ok(linear) = linearize(e, SegReg::Ss, top, bytes.len(), true) else {
        return Err(Stop::Fault(Exception::ss(ext)));
    };
    e.memory_write(linear, bytes, Access::WRITE)?;
    e.v.b.gprs_mut().set(Gpr::Rsp, sp & !mask & 0xffff_ffff | top);
    Ok(())
}

// --- memory ---

/// Linear addresses have 32 bits here.
fn wrapped(linear: u64) -> u64 {
    linear & 0xffff_ffff
}

fn offset(tss: &Segment, at: u64) -> u64 {
    wrapped(tss.base.wrapping_add(at))
}

fn descriptor<B: Backend, H: Host<Cpu = B::Cpu>>(
    e: &Emulation<'_, B, H>,
    at: u64,
) -> Result<Descriptor, Stop> {
    let mut bytes = [0; 8];
    e.system_read(at, &mut bytes)?;
    Ok(Descriptor(u64::from_le_bytes(bytes)))
}

/// Changes a descriptor's byte atomically; `None`: it is to stay after all.
fn change<B: Backend, H: Host<Cpu = B::Cpu>>(
    e: &Emulation<'_, B, H>,
    at: u64,
    to: impl Fn(u8) -> Option<u8>,
) -> Result<(), Stop> {
    for _ in 0..TRIES {
        let mut byte = [0];
        e.system_read(at, &mut byte)?;
        let [old] = byte;
        match to(old) {
            Some(new) if new != old => {
                if e.system_exchange(at, old, new)? {
                    return Ok(());
                }
            }
            _ => return Ok(()),
        }
    }
    Err(Stop::Unhandled)
}
