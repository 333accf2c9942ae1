//! What whoever traces is told of a vCPU: Linux's events `kvm:*`, by those names.
//!
//! Nobody listens, as a rule, and [`Host::tracing`] is a branch that the kernel patches: an exit that is answered in the slice passes
//! one. It may be another at any moment, in the middle of a slice too. What such an exit amounted to is told from outside: registers
//! are noted at the exit, and the event follows from them and from what the answer made of them, directly before the next entry. So
//! handlers know nothing of it, but for those of accesses to devices, whose data may come much later.

use crate::backend::{Backend, By, Event, Exit, IoAccess, SlatFault};
use crate::host::{Extended, Host};
use crate::journal::{Access, Entry};
use crate::shared::VcpuShared;
use crate::traced::{Asked, Mmio, Trace};
use crate::vcpu::Vcpu;
use exitless_insn::{Mode, instruction_length};
use exitless_lapic::{Mode as LapicMode, Now};
use exitless_x86::apic::reg;
use exitless_x86::exception::Vector;
use exitless_x86::msr::Msr;
use exitless_x86::regs::{Gpr, Gprs, SegReg, cr0, rflags};

/// Tells an event, if anybody listens.
#[inline(always)]
pub fn tell<H: Host>(host: &H, event: impl FnOnce() -> Trace) {
    if host.tracing() {
        told(host, event);
    }
}

#[cold]
#[inline(never)]
fn told<H: Host>(host: &H, event: impl FnOnce() -> Trace) {
    host.trace(&event());
}

/// Before an entry, in a slice in which `state` is the guest's: what the exit before it amounted to, and that it comes. Then the guest's
/// state is loaded, if it was not.
#[cold]
#[inline(never)]
pub fn enters<B: Backend, H: Host<Cpu = B::Cpu>>(
    v: &mut Vcpu<B>,
    sh: &VcpuShared,
    host: &H,
    state: &Extended,
) {
    if v.outside.is_none() && !host.tracing() {
        return;
    }
    let taken = v.outside.take().unwrap_or_else(|| host.unload_state(state, v.dr_live));
    answer(v, sh, host, true);
    host.trace(&Trace::Entry { rip: v.b.rip() });
    // Listeners may have used it.
    host.fpu_live();
    // PKRU may be another by now, without an exit.
    let state = Extended { pkru: taken.pkru.or(state.pkru), ..*state };
    host.load_state(&state, v.dr_live.then_some(taken.dr));
}

/// Directly behind an exit. Listeners may be anybody's programs, which find the host's XCR0, IA32_XSS, PKRU and breakpoints: these stay
/// loaded until the next entry, so that whatever is told of in between is told with them.
#[cold]
#[inline(never)]
pub fn left<B: Backend, H: Host<Cpu = B::Cpu>>(
    v: &mut Vcpu<B>,
    sh: &VcpuShared,
    host: &H,
    state: &Extended,
    exit: &Exit,
) {
    v.outside = Some(host.unload_state(state, v.dr_live));
    let in_service = in_service(v);
    v.asked = Some(Asked { exit: *exit, number: sh.stats.exits.get(), gprs: *v.b.gprs(), in_service });
    let fault = if let Exit::Slat(fault) = *exit { Some(fault.gpa) } else { None };
    host.trace(&Trace::Exit { rip: v.b.rip(), info: v.b.exit_info(), fault });
}

/// The slice ends, and its last exit was told: what [`left`] took.
#[cold]
#[inline(never)]
pub fn took<B: Backend>(v: &mut Vcpu<B>, debug: bool) {
    if let Some(taken) = v.outside.take() {
        v.unloaded(&taken, debug);
    }
}

/// The exit was answered, in the slice (`fast`) or behind it, and no entry follows at once. The host's state is loaded.
#[cold]
#[inline(never)]
pub fn answered<B: Backend, H: Host<Cpu = B::Cpu>>(v: &mut Vcpu<B>, sh: &VcpuShared, host: &H, fast: bool) {
    answer(v, sh, host, fast);
}

/// The vector that the guest would end with an EOI, where software has the APIC.
pub fn in_service<B: Backend>(v: &Vcpu<B>) -> Option<u8> {
    v.lapic.top_isr().filter(|_| !v.vapic.on())
}

/// An event is given to the next entry; of NMIs there is none.
#[cold]
#[inline(never)]
pub fn injects<H: Host>(host: &H, event: Event, again: bool) {
    let exception = |vector, error_code| Trace::Exception { vector, error_code, again };
    let told = match event {
        Event::Interrupt(vector) => Trace::Interrupt { vector, soft: false, again },
        Event::Software(By::IntN, vector, _) => Trace::Interrupt { vector, soft: true, again },
        Event::Software(_, vector, _) => exception(vector, None),
        Event::Exception(x) => exception(x.vector.0, x.error_code),
        Event::Nmi => return,
    };
    host.trace(&told);
}

/// The emulator begins with the instruction at RIP, of which `valid` bytes were fetched, or gives up.
#[cold]
#[inline(never)]
pub fn emulates<B: Backend, H: Host<Cpu = B::Cpu>>(
    v: &Vcpu<B>,
    host: &H,
    bytes: &[u8; 15],
    valid: usize,
    failed: bool,
) {
    let mode = v.mode();
    let length = instruction_length(bytes, valid, mode).map_or(valid.min(15), |(length, _)| length) as u8;
    let bits = [
        v.b.cr0() & cr0::PE != 0,
        v.b.rflags() & rflags::VM != 0,
        mode == Mode::Bits32,
        mode == Mode::Bits64,
    ];
    let flags = bits.iter().rev().fold(0, |all, bit| all << 1 | u8::from(*bit));
    let code = v.b.segment(SegReg::Cs).base as u32;
    host.trace(&Trace::Emulates { rip: v.b.rip(), code, bytes: *bytes, length, flags, failed });
}

/// What the last exit amounted to.
fn answer<B: Backend, H: Host<Cpu = B::Cpu>>(v: &mut Vcpu<B>, sh: &VcpuShared, host: &H, fast: bool) {
    let Some(asked) = v.asked.take().filter(|a| a.number == sh.stats.exits.get()) else { return };
    let (before, after) = (&asked.gprs, v.b.gprs());
    match asked.exit {
        Exit::Cpuid => host.trace(&cpuid(v, before)),
        Exit::Rdmsr | Exit::Wrmsr => {
            let write = asked.exit == Exit::Wrmsr;
            let refused = v.exception.is_some_and(|x| x.vector == Vector::GP);
            let data = if write { before.edx_eax() } else { after.edx_eax() };
            let index = before.get(Gpr::Rcx) as u32;
            host.trace(&Trace::Msr { write, index, data: if refused && !write { 0 } else { data }, refused });
            match index.checked_sub(Msr::X2APIC.0).filter(|i| *i <= 0xff && !refused) {
                Some(i) if write => told_write(host, i << 4, data, asked.in_service, true),
                Some(i) => host.trace(&Trace::Apic { write, register: i << 4, value: data }),
                None => {}
            }
        }
        Exit::Hypercall => host.trace(&hypercall(v, before)),
        // The emulator tells of strings, and of a read that user space answers whoever takes the answer.
        Exit::Io(io) if !io.string && v.pending_port.is_none() => {
            let data = if io.input { after } else { before }.get(Gpr::Rax);
            host.trace(&port(io, data as u32));
        }
        Exit::ApicWrite(register) => {
            let value = u64::from(v.b.apic_page().map_or(0, |page| page.read(register)));
            told_write(
                host,
                register,
                value | v.lapic.icr() & !0xffff_ffff,
                None,
                v.lapic.mode() == LapicMode::X2Apic,
            );
        }
        Exit::EoiInduced(vector) => host.trace(&Trace::Eoi { vector }),
        // Behind the slice the emulator has told of it.
        Exit::Slat(fault) if fast && v.lapic.mmio_base() == Some(fault.gpa & !0xfff) => {
            register(v, sh, host, fault, asked.in_service)
        }
        _ => {}
    }
}

fn cpuid<B: Backend>(v: &Vcpu<B>, before: &Gprs) -> Trace {
    let (function, index) = (before.get(Gpr::Rax) as u32, before.get(Gpr::Rcx) as u32);
    let answer = [Gpr::Rax, Gpr::Rbx, Gpr::Rcx, Gpr::Rdx].map(|r| v.b.gprs().get(r));
    let found = v.cpuid.has(function, index);
    Trace::Cpuid { function, index, answer, found, used_max_basic: !found && answer != [0; 4] }
}

/// An access to the APIC's page in the slice.
fn register<B: Backend, H: Host>(
    v: &Vcpu<B>,
    sh: &VcpuShared,
    host: &H,
    fault: SlatFault,
    in_service: Option<u8>,
) {
    let at = (fault.gpa & 0xfff) as u32;
    let read = || v.lapic.mmio_read(&sh.apic, at, &Now { ns: 0, guest_tsc: 0 });
    let value = if at == reg::EOI { 0 } else { u64::from(read()) };
    let kind = if fault.write { Mmio::Write } else { Mmio::Read };
    host.trace(&Trace::Mmio { kind, len: 4, gpa: fault.gpa, data: value });
    if fault.write {
        told_write(host, at, value | v.lapic.icr() & !0xffff_ffff, in_service, false);
    } else {
        host.trace(&Trace::Apic { write: false, register: at, value });
    }
}

/// The register at `at` of the APIC was written, and what that did besides. In `value` the ICR has its destination.
fn told_write<H: Host>(host: &H, at: u32, value: u64, in_service: Option<u8>, x2apic: bool) {
    let value_told = if x2apic { value } else { value & 0xffff_ffff };
    host.trace(&Trace::Apic { write: true, register: at, value: value_told });
    match at {
        reg::ICR => {
            let destination = (value >> if x2apic { 32 } else { 56 }) as u32;
            host.trace(&Trace::Ipi { icr: value as u32, destination });
        }
        reg::SELF_IPI => host.trace(&Trace::Ipi { icr: 1 << 18 | value as u32 & 0xff, destination: 0 }),
        reg::EOI => {
            if let Some(vector) = in_service {
                host.trace(&Trace::Eoi { vector });
            }
        }
        _ => {}
    }
}

/// The emulator wrote a register of the APIC's page, before which `in_service` was [`in_service`].
pub fn page_written<B: Backend, H: Host>(v: &Vcpu<B>, host: &H, at: u32, value: u32, in_service: Option<u8>) {
    told_write(host, at, u64::from(value) | v.lapic.icr() & !0xffff_ffff, in_service, false);
}

fn hypercall<B: Backend>(v: &Vcpu<B>, before: &Gprs) -> Trace {
    let mask = if v.mode() == Mode::Bits64 { u64::MAX } else { 0xffff_ffff };
    let operands = [Gpr::Rbx, Gpr::Rcx, Gpr::Rdx, Gpr::Rsi].map(|r| before.get(r) & mask);
    Trace::Hypercall { number: before.get(Gpr::Rax) & mask, operands }
}

fn port(io: IoAccess, data: u32) -> Trace {
    let data = if io.size < 4 { data & ((1 << (8 * io.size)) - 1) } else { data };
    Trace::Pio { write: !io.input, port: io.port, size: io.size, count: 1, data }
}

/// An access to a device by the emulator, with its data, or with those that a write has.
pub fn access(e: &Entry) -> Trace {
    let data = u64::from_le_bytes(e.data);
    match e.access {
        Access::Mmio { gpa } => {
            Trace::Mmio { kind: if e.write { Mmio::Write } else { Mmio::Read }, len: e.len, gpa, data }
        }
        Access::Port { port } => {
            Trace::Pio { write: e.write, port, size: e.len, count: e.count, data: data as u32 }
        }
    }
}

/// User space is asked for an access.
pub fn ask<H: Host>(host: &H, e: &Entry) {
    tell(host, || match e.access {
        Access::Mmio { gpa } if !e.write => {
            Trace::Mmio { kind: Mmio::UnsatisfiedRead, len: e.len, gpa, data: 0 }
        }
        _ => access(e),
    });
}
