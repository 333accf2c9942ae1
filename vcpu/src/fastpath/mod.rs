//! Exits answered with interrupts off, followed by an immediate re-entry: no allocation, no lock of the VM's but a chip's own, and of the
//! kernel's those of an eventfd (with whoever waits for it), a timer's base and a wake-up. One line per arm; what is not here is slow.

mod apic;
mod count;
mod cpuid;
mod doorbell;
mod halt;
mod hypercall;
mod interrupt;
mod msr;
mod page;
mod port;
mod timer;

use crate::backend::{Backend, Exit};
use crate::host::Host;
use crate::ipi::quick;
use crate::outcome::Fast;
use crate::shared::VcpuShared;
use crate::skip;
use crate::vcpu::Vcpu;

/// Tries to answer the exit.
pub fn try_handle<B: Backend, H: Host<Cpu = B::Cpu>>(
    v: &mut Vcpu<B>,
    sh: &VcpuShared,
    host: &H,
    exit: &Exit,
) -> Fast {
    if v.reinject.is_some() {
        return Fast::Slow;
    }
    match *exit {
        Exit::Sent => sent(sh),
        Exit::Cpuid => cpuid::handle(v, host),
        Exit::Hypercall => hypercall::handle(v, sh, host),
        Exit::Io(io) => port::handle(v, sh, host, io),
        Exit::Rdmsr => msr::read(v, sh, host),
        Exit::Wrmsr => msr::write(v, sh, host),
        Exit::ApicWrite(offset) => apic::wrote(v, sh, host, offset),
        Exit::Slat(fault) if page::holds(v, fault) => page::handle(v, sh, host, fault),
        Exit::Slat(fault) => doorbell::handle(v, sh, host, fault),
        Exit::Hlt => halt::handle(v, sh, host),
        Exit::Timer => timer::handle(v, sh, host),
        Exit::Invd | Exit::Wbinvd | Exit::Monitor | Exit::Mwait => nothing(v, host),
        Exit::Deadline => timer::rang(v, sh, host),
        Exit::ExternalInterrupt => interrupt::handle(sh),
        Exit::InterruptWindow => interrupt::window(v, sh),
        _ => Fast::Slow,
    }
}

/// All is done but to count it.
fn sent(sh: &VcpuShared) -> Fast {
    quick::count(sh);
    Fast::Reenter
}

/// An instruction that does nothing here.
fn nothing<B: Backend, H: Host<Cpu = B::Cpu>>(v: &mut Vcpu<B>, host: &H) -> Fast {
    if !v.watches() && skip::over(v, host).is_ok() { Fast::Reenter } else { Fast::Slow }
}
