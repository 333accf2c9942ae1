//! Exits handled with interrupts on: one file per kind, one line per arm.

pub mod apic_page;
pub mod cpuid;
pub mod cr;
pub mod doorbell;
pub mod dr;
pub mod emulate;
pub mod ending;
pub mod exception;
pub mod halt;
pub mod hypercall;
pub mod io;
pub mod msr;
mod plain;
pub mod slat;
pub mod task;
pub mod xsetbv;

use crate::apic::{avic, eoi, page};
use crate::backend::{Backend, Exit};
use crate::host::Host;
use crate::outcome::{Next, RunExit};
use crate::shared::VcpuShared;
use crate::vcpu::Vcpu;
use ending::{fault, skip_over, unexpected};
use exitless_chooser::{Fallback, Mechanism::Boost};
use exitless_x86::exception::Exception;

/// Handles what the fast path left.
pub fn handle<B: Backend, H: Host<Cpu = B::Cpu>>(
    v: &mut Vcpu<B>,
    sh: &VcpuShared,
    host: &H,
    exit: Exit,
) -> Next {
    v.debug.forget_hits();
    if !leaves_l1d_clean(exit) {
        v.b.dirty_l1d();
    }
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
        // Settled when the slice ended.
        Exit::Deadline => Next::Again,
        // Nor is it ever left to us: the fast path takes it.
        Exit::Sent => Next::Again,
        // What was logged is taken behind each slice.
        Exit::LogFull => Next::Again,
        Exit::EoiInduced(vector) => eoi::ended(v, sh, host, vector),
        Exit::ApicWrite(offset) => page::wrote(v, sh, host, offset),
        Exit::ApicAccess(offset) => apic_page::refused(v, sh, host, offset),
        Exit::IncompleteIpi(icr, why) => avic::incomplete(v, sh, host, icr, why),
        Exit::Unaccelerated(offset, write) => apic_page::unaccelerated(v, sh, host, offset, write),
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

/// Nothing that answers this exit loads what a guest could look for in the cache, or what does says so itself; a kind that is not
/// known for that, like one that is rare, is none. What they load: the vCPU's registers and tables, the VM's chips, tables and bits
/// of dirty pages, instructions by accesses that do not fault; of the host its clocks and timers, and run queues and wait queues
/// where somebody is woken or an eventfd signalled. Who sleeps, gives way or goes to user space comes to this CPU anew.
fn leaves_l1d_clean(exit: Exit) -> bool {
    match exit {
        // The interrupt's handler: the kernel itself notes that it ran.
        Exit::ExternalInterrupt | Exit::InterruptWindow | Exit::NmiWindow => true,
        Exit::Timer | Exit::Deadline | Exit::Sent => true,
        Exit::Cpuid | Exit::Rdmsr | Exit::Wrmsr | Exit::Rdpmc | Exit::Xsetbv | Exit::Hypercall => true,
        Exit::CrAccess | Exit::Cr8Write | Exit::DrAccess => true,
        Exit::Hlt | Exit::Pause | Exit::Monitor | Exit::Mwait | Exit::Invd | Exit::Wbinvd => true,
        Exit::EoiInduced(_) | Exit::ApicWrite(_) | Exit::LogFull => true,
        // But for doorbells and chips they say so themselves: a fault that is resolved, the emulator.
        Exit::Io(_) | Exit::Slat(_) => true,
        // The host's handlers have run already.
        Exit::Nmi | Exit::HostEvent | Exit::Exception(_) => false,
        Exit::TaskSwitch(_) | Exit::DescriptorTable | Exit::ApicAccess(_) => false,
        Exit::Int1(_) | Exit::Rdpru | Exit::VirtInstruction => false,
        // Of CPUs without that fault.
        Exit::IncompleteIpi(..) | Exit::Unaccelerated(..) => false,
        Exit::Shutdown | Exit::FailEntry(_) | Exit::Disabled | Exit::Unknown(_) => false,
    }
}

fn pause<B: Backend, H: Host<Cpu = B::Cpu>>(v: &mut Vcpu<B>, sh: &VcpuShared, host: &H) -> Next {
    v.b.spin_longer(true);
    if sh.active(Boost) && !host.alone() {
        sh.hints.came_out(v.b.cpl() == 0);
        if host.spin() {
            sh.count_hit(Boost);
        } else {
            sh.count_fallback(Boost, Fallback::Elsewhere);
        }
    }
    skip_over(v, sh, host)
}

/// The fast path was not taken: an event's delivery was interrupted, or it is switched off.
fn timer<B: Backend, H: Host<Cpu = B::Cpu>>(v: &mut Vcpu<B>, sh: &VcpuShared, host: &H) -> Next {
    if crate::timer::ran_out(v, sh, host) {
        v.event_dirty = true;
    }
    Next::Again
}

const EIO: i32 = 5;

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
