//! What whoever traces is told of a vCPU: Linux's events `kvm:*`, by those names.
//!
//! Nobody listens, as a rule, and [`Host::tracing`] is a branch that the kernel patches: an exit that is answered in the slice passes
//! two of them. What such an exit amounted to is told from outside: registers are noted at the exit, and the event follows from them
//! and from what the answer made of them, directly before the next entry. So handlers know nothing of it, but for those of accesses
//! to devices, whose data may come much later.

use crate::backend::{Backend, Exit, IoAccess};
use crate::host::{Extended, Host};
use crate::journal::{Access, Entry};
use crate::shared::VcpuShared;
use crate::traced::{Asked, Mmio, Trace};
use crate::vcpu::Vcpu;
use exitless_insn::Mode;
use exitless_x86::exception::Vector;
use exitless_x86::msr::Msr;
use exitless_x86::regs::{Gpr, Gprs};

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

/// Directly before an entry, in a slice in which `state` is the guest's.
#[cold]
#[inline(never)]
pub fn enters<B: Backend, H: Host<Cpu = B::Cpu>>(
    v: &mut Vcpu<B>,
    sh: &VcpuShared,
    host: &H,
    state: &Extended,
) {
    let rip = v.b.rip();
    aside(v, host, state, |v| {
        answer(v, sh, host);
        host.trace(&Trace::Entry { rip });
    });
}

/// Directly behind an exit.
#[cold]
#[inline(never)]
pub fn left<B: Backend, H: Host<Cpu = B::Cpu>>(
    v: &mut Vcpu<B>,
    sh: &VcpuShared,
    host: &H,
    state: &Extended,
    exit: Exit,
) {
    v.asked = Some(Asked { exit, number: sh.stats.exits.get(), gprs: *v.b.gprs() });
    let event = Trace::Exit { rip: v.b.rip(), info: v.b.exit_info() };
    aside(v, host, state, |_| host.trace(&event));
}

/// The exit was answered, and no entry follows at once. The host's state is loaded.
#[cold]
#[inline(never)]
pub fn answered<B: Backend, H: Host<Cpu = B::Cpu>>(v: &mut Vcpu<B>, sh: &VcpuShared, host: &H) {
    answer(v, sh, host);
}

/// Listeners may be anybody's programs, which find the host's XCR0, IA32_XSS, PKRU and breakpoints, and may use its FPU: the guest's
/// state is loaded again behind them.
fn aside<B: Backend, H: Host<Cpu = B::Cpu>>(
    v: &mut Vcpu<B>,
    host: &H,
    state: &Extended,
    tell: impl FnOnce(&mut Vcpu<B>),
) {
    let debug = v.dr_live;
    let taken = host.unload_state(state, debug);
    tell(v);
    host.fpu_live();
    // PKRU may be another by now, without an exit.
    host.load_state(&Extended { pkru: taken.pkru.or(state.pkru), ..*state }, debug.then_some(taken.dr));
}

/// What the last exit amounted to.
fn answer<B: Backend, H: Host<Cpu = B::Cpu>>(v: &mut Vcpu<B>, sh: &VcpuShared, host: &H) {
    let Some(asked) = v.asked.take().filter(|a| a.number == sh.stats.exits.get()) else { return };
    let (before, after) = (&asked.gprs, v.b.gprs());
    match asked.exit {
        Exit::Cpuid => host.trace(&cpuid(v, before)),
        Exit::Rdmsr | Exit::Wrmsr => {
            let write = asked.exit == Exit::Wrmsr;
            let refused = v.exception.is_some_and(|x| x.vector == Vector::GP);
            let data = if write { before.edx_eax() } else { after.edx_eax() };
            msr(host, write, before.get(Gpr::Rcx) as u32, data, refused);
        }
        Exit::Hypercall => host.trace(&hypercall(v, before)),
        // The emulator tells of strings, and of a read that user space answers whoever takes the answer.
        Exit::Io(io) if !io.string && v.pending_port.is_none() => {
            let data = if io.input { after } else { before }.get(Gpr::Rax);
            host.trace(&port(io, data as u32));
        }
        Exit::ApicWrite(register) => {
            let value = v.b.apic_page().map_or(0, |page| page.read(register));
            host.trace(&Trace::Apic { write: true, register, value: u64::from(value) });
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

fn msr<H: Host>(host: &H, write: bool, index: u32, data: u64, refused: bool) {
    host.trace(&Trace::Msr { write, index, data: if refused && !write { 0 } else { data }, refused });
    if !refused && (Msr::X2APIC.0..Msr::X2APIC.0 + 0x100).contains(&index) {
        host.trace(&Trace::Apic { write, register: (index - Msr::X2APIC.0) << 4, value: data });
    }
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
