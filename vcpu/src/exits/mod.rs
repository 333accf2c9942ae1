//! Exits handled with interrupts on: one file per kind, one line per arm.

pub mod cpuid;
pub mod cr;
pub mod doorbell;
pub mod dr;
pub mod emulate;
pub mod exception;
pub mod halt;
pub mod hypercall;
pub mod io;
pub mod mmio;
pub mod msr;
pub mod slat;
pub mod task;
pub mod xsetbv;

use crate::backend::{Backend, Exit};
use crate::host::Host;
use crate::run::{Next, RunExit};
use crate::shared::VcpuShared;
use crate::skip::{self, NoBytes};
use crate::vapic;
use crate::vcpu::Vcpu;
use exitless_x86::exception::Exception;

/// `KVM_INTERNAL_ERROR_*` (ABI header linux/kvm.h).
#[allow(missing_docs)]
pub mod suberror {
    pub const EMULATION: u32 = 1;
    pub const DELIVERY_EV: u32 = 3;
    pub const UNEXPECTED_EXIT_REASON: u32 = 4;
}

/// Handles what the fast path left.
pub fn handle<B: Backend, H: Host<Cpu = B::Cpu>>(
    v: &mut Vcpu<B>,
    sh: &VcpuShared,
    host: &H,
    exit: Exit,
) -> Next {
    v.debug.forget_hits();
    match exit {
        Exit::ExternalInterrupt | Exit::Nmi | Exit::HostEvent => Next::Again,
        Exit::InterruptWindow => window(v),
        Exit::NmiWindow => nmi_window(v),
        Exit::Cpuid => cpuid::handle(v, sh, host),
        Exit::Hlt => halt::handle(v, sh, host),
        Exit::Io(access) => io::handle(v, sh, host, access),
        Exit::Rdmsr => msr::read(v, sh, host),
        Exit::Wrmsr => msr::write(v, sh, host),
        Exit::Slat(fault) => slat::handle(v, sh, host, fault),
        Exit::CrAccess => cr::handle(v, sh, host),
        Exit::Cr8Write => cr::handle(v, sh, host),
        Exit::DrAccess => dr::handle(v, sh, host),
        Exit::Timer => timer(v, sh, host),
        // What was logged is taken behind each slice.
        Exit::LogFull => Next::Again,
        Exit::EoiInduced(vector) => vapic::ended(v, sh, host, vector),
        Exit::ApicWrite(offset) => vapic::wrote(v, sh, host, offset),
        Exit::ApicAccess(offset) => mmio::refused(v, sh, host, offset),
        Exit::Exception(x) => exception::handle(v, sh, host, x),
        Exit::Int1(length) => exception::int1(v, length),
        Exit::Hypercall => hypercall::handle(v, sh, host),
        Exit::Invd | Exit::Wbinvd => skip_over(v, sh, host),
        Exit::Pause => pause(v, sh, host),
        Exit::Monitor | Exit::Mwait => skip_over(v, sh, host),
        Exit::Xsetbv => xsetbv::handle(v, sh, host),
        Exit::Rdpmc => msr::read_counter(v, sh, host),
        Exit::DescriptorTable => emulate::run(v, sh, host),
        Exit::Rdpru | Exit::VirtInstruction => fault(v, sh, Exception::ud()),
        Exit::TaskSwitch(t) => task::handle(v, sh, host, t),
        Exit::Shutdown => Next::Leave(RunExit::Shutdown),
        Exit::FailEntry(code) => Next::Leave(RunExit::FailEntry(code)),
        Exit::Disabled => Next::Leave(RunExit::Error(-EIO)),
        Exit::Unknown(code) => unexpected(code),
    }
}

fn pause<B: Backend, H: Host<Cpu = B::Cpu>>(v: &mut Vcpu<B>, sh: &VcpuShared, host: &H) -> Next {
    host.spin();
    skip_over(v, sh, host)
}

/// The fast path could not be taken: an event's delivery was interrupted.
fn timer<B: Backend, H: Host<Cpu = B::Cpu>>(v: &mut Vcpu<B>, sh: &VcpuShared, host: &H) -> Next {
    crate::timer::fired(v, sh, host);
    Next::Again
}

const EIO: i32 = 5;
const EFAULT: i32 = 14;

fn window<B: Backend>(v: &mut Vcpu<B>) -> Next {
    v.b.set_interrupt_window(false);
    v.event_dirty = true;
    Next::Again
}

fn nmi_window<B: Backend>(v: &mut Vcpu<B>) -> Next {
    v.b.set_nmi_window(false);
    v.event_dirty = true;
    Next::Again
}

fn unexpected(code: u64) -> Next {
    Next::Leave(RunExit::Internal {
        suberror: suberror::UNEXPECTED_EXIT_REASON,
        data: [code, 0, 0, 0],
        ndata: 2,
    })
}

/// Gives the guest an exception; a third fault in a row shuts it down.
pub fn fault<B: Backend>(v: &mut Vcpu<B>, sh: &VcpuShared, x: Exception) -> Next {
    let _ = sh;
    if v.raise(x) { Next::Again } else { Next::Leave(RunExit::Shutdown) }
}

/// Moves on behind an instruction that needs nothing else.
pub fn skip_over<B: Backend, H: Host<Cpu = B::Cpu>>(v: &mut Vcpu<B>, sh: &VcpuShared, host: &H) -> Next {
    match skip::next_rip(v, host, false) {
        Some(next) => {
            v.finish_skip(next);
            Next::Again
        }
        None => unreadable(v, sh, host),
    }
}

/// The instruction that just executed cannot be read any more: another vCPU changed the page tables or the code.
/// Its fetch faults now, so the guest gets that fault; failing that, run it again.
pub fn unreadable<B: Backend, H: Host<Cpu = B::Cpu>>(v: &mut Vcpu<B>, sh: &VcpuShared, host: &H) -> Next {
    match skip::fetch(v, host, false) {
        Err(NoBytes::Fault(x)) => fault(v, sh, x),
        Err(NoBytes::Host) => no_host_page(host),
        _ => emulation_failure(v, host),
    }
}

/// The host has no page where the guest has memory, or one with a memory error, of which a signal tells; as for a second-level
/// fault there.
pub fn no_host_page<H: Host>(host: &H) -> Next {
    let signal = host.work_pending() && !host.do_work();
    Next::Leave(if signal { RunExit::Interrupted } else { RunExit::Error(-EFAULT) })
}

/// Neither hardware nor the emulator can do this instruction. As on stock KVM the guest gets #UD, and user space hears of it
/// besides if the guest's kernel asked for it, which will hardly live on, or instead if it wants to
/// (KVM_CAP_EXIT_ON_EMULATION_FAILURE).
pub fn emulation_failure<B: Backend, H: Host<Cpu = B::Cpu>>(v: &mut Vcpu<B>, host: &H) -> Next {
    if host.exits_on_failure() {
        return failure_exit(v, host);
    }
    if !v.raise(Exception::ud()) {
        return Next::Leave(RunExit::Shutdown);
    }
    if v.b.cpl() == 0 { failure_exit(v, host) } else { Next::Again }
}

/// To user space, with the instruction's bytes.
pub fn failure_exit<B: Backend, H: Host<Cpu = B::Cpu>>(v: &Vcpu<B>, host: &H) -> Next {
    let (bytes, valid) = skip::fetch(v, host, false).unwrap_or(([0; 15], 0));
    let word = |from: usize| {
        let mut w = [0; 8];
        for (d, s) in w.iter_mut().zip(bytes.iter().skip(from)) {
            *d = *s;
        }
        u64::from_le_bytes(w)
    };
    // The layout of kvm_run.emulation_failure: flags (instruction bytes valid), size and 15 bytes.
    let sized = valid as u64 & 15;
    Next::Leave(RunExit::Internal {
        suberror: suberror::EMULATION,
        data: [1, sized | word(0) << 8, word(7), 0],
        ndata: 3,
    })
}
