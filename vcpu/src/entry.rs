//! Events on their way into the guest: what to inject, what to wait for, and what an exit interrupted.
//!
//! Order of precedence: an interrupted delivery; an exception; an NMI; an external interrupt. At most one is
//! programmed per entry; for the rest a window is requested, so that the guest comes out when it could take them.

use crate::apic::eoi;
use crate::backend::{Backend, Event};
use crate::host::Host;
use crate::outcome::RunExit;
use crate::shared::VcpuShared;
use crate::trace;
use crate::vcpu::Vcpu;
use core::sync::atomic::Ordering::Relaxed;
use exitless_x86::exception::{Exception, Vector};
use exitless_x86::regs::{cr0, dr7, rflags};

/// An interrupt source that has something for the guest.
enum Source {
    Pic,
    Apic(u8),
    User(u8),
}

fn candidate<B: Backend, H: Host<Cpu = B::Cpu>>(v: &Vcpu<B>, sh: &VcpuShared, host: &H) -> Option<Source> {
    injectable(v, sh, host).or_else(|| host.irqchip().then(|| v.lapic.pending(&sh.apic))?.map(Source::Apic))
}

/// The same without the APIC's, which the CPU may deliver by itself.
fn injectable<B: Backend, H: Host<Cpu = B::Cpu>>(v: &Vcpu<B>, sh: &VcpuShared, host: &H) -> Option<Source> {
    if !host.irqchip() {
        return v.user_interrupt.map(Source::User);
    }
    if sh.apic.accepts_ext_int() {
        // One of the two at most: the 8259 pair is here or in user space.
        if let Some(vector) = v.user_interrupt {
            return Some(Source::User(vector));
        }
        if host.pic_pending() {
            return Some(Source::Pic);
        }
    }
    None
}

/// An interrupt of user space's 8259 pair (or APIC) would be taken: none waits, and LINT0 lets it through.
pub fn accepts_user<B: Backend, H: Host<Cpu = B::Cpu>>(v: &Vcpu<B>, sh: &VcpuShared, host: &H) -> bool {
    v.user_interrupt.is_none() && (!host.irqchip() || sh.apic.accepts_ext_int())
}

/// As [`accepts_user`], and now: at an instruction boundary with nothing half delivered. User space may even deliver it
/// by writing the registers itself.
pub fn ready_for_user<B: Backend, H: Host<Cpu = B::Cpu>>(v: &Vcpu<B>, sh: &VcpuShared, host: &H) -> bool {
    let idle = v.injecting.is_none() && v.reinject.is_none() && v.exception.is_none();
    accepts_user(v, sh, host) && interrupts_open(v) && idle
}

/// Interrupts go in at this instruction boundary.
pub fn interrupts_open<B: Backend>(v: &Vcpu<B>) -> bool {
    v.b.rflags() & rflags::IF != 0 && !v.b.interrupt_shadow()
}

/// Decides what the next entry delivers.
pub fn prepare<B: Backend, H: Host<Cpu = B::Cpu>>(v: &mut Vcpu<B>, sh: &VcpuShared, host: &H) {
    sh.stats.req_event.bump();
    if v.injecting.is_none() {
        inject_pending(v, host);
    }
    // What stands behind the event of this entry: its turn comes at the exit.
    v.event_dirty = v.exception.is_some();
    if v.debug.blocks_interrupts() {
        v.b.set_interrupt_window(false);
    } else {
        inject_nmi(v, sh, host);
        inject_interrupt(v, sh, host);
    }
    if v.vapic.on() {
        v.b.set_cr8_intercept(false);
        v.b.set_eoi_exits(host.eoi_vectors());
        // What this thread itself requested, its timer's vector among others, nobody announced.
        if sh.apic.has_irr() {
            let _ = sh.apic.posted().announce();
        }
    } else if host.irqchip() {
        update_tpr_threshold(v, sh);
        eoi::offer(v, sh, host);
    } else {
        // User space hears of every lowering of CR8.
        v.b.set_cr8_intercept(true);
    }
}

/// The same in a slice, for an interrupt of the APIC's: what else may wait is not for a slice, or not for the next entry. `false`:
/// something else may, and nothing was decided.
pub fn prepare_now<B: Backend, H: Host<Cpu = B::Cpu>>(v: &mut Vcpu<B>, sh: &VcpuShared, host: &H) -> bool {
    let in_flight = v.injecting.is_some() || v.reinject.is_some() || v.exception.is_some();
    let users = v.user_interrupt.is_some() || v.user_eoi.is_some() || v.want_window || v.debug.acts();
    let pic = host.pic_pending() && sh.apic.accepts_ext_int();
    if in_flight || users || pic || v.nmi_pending != 0 || !host.irqchip() || eoi::may_offer(v) {
        return false;
    }
    prepare(v, sh, host);
    true
}

/// `again`: its delivery was interrupted.
fn put<B: Backend, H: Host<Cpu = B::Cpu>>(v: &mut Vcpu<B>, host: &H, event: Event, again: bool) {
    if host.tracing() {
        trace::injects(host, event, again);
    }
    v.b.inject(event);
    v.injecting = Some(event);
}

/// An interrupted delivery first, else a queued exception.
fn inject_pending<B: Backend, H: Host<Cpu = B::Cpu>>(v: &mut Vcpu<B>, host: &H) {
    if let Some(event) = v.reinject.take() {
        put(v, host, event, true);
    } else if let Some(x) = v.exception.take() {
        // Delivery of a fault sets RF in the pushed flags; of #DB it clears GD (SDM vol. 3B, 18.2.4).
        match x.vector {
            Vector::DB => v.set_guest_dr7(v.guest_dr7() & !dr7::GD),
            // Traps of their instructions.
            Vector::BP | Vector::OF => {}
            _ => v.b.set_rflags(v.b.rflags() | rflags::RF),
        }
        // Real mode pushes no error code, and VMRUN refuses one there (APM vol. 2, 15.20).
        let code = x.error_code.filter(|_| v.b.cr0() & cr0::PE != 0);
        let event = crate::debug::event(v, host, Exception { error_code: code, ..x });
        put(v, host, event, false);
    }
}

fn inject_nmi<B: Backend, H: Host<Cpu = B::Cpu>>(v: &mut Vcpu<B>, sh: &VcpuShared, host: &H) {
    if v.nmi_pending == 0 {
        return;
    }
    if v.injecting.is_none() && !v.b.nmi_masked() && !v.b.interrupt_shadow() {
        v.nmi_pending -= 1;
        put(v, host, Event::Nmi, false);
        sh.stats.nmi_injections.bump();
    }
    if v.nmi_pending != 0 {
        v.b.set_nmi_window(true);
    }
}

fn inject_interrupt<B: Backend, H: Host<Cpu = B::Cpu>>(v: &mut Vcpu<B>, sh: &VcpuShared, host: &H) {
    let next = if v.vapic.on() { injectable } else { candidate };
    let Some(source) = next(v, sh, host) else {
        v.b.set_interrupt_window(v.want_window && accepts_user(v, sh, host));
        return;
    };
    if v.injecting.is_some() || !interrupts_open(v) {
        v.b.set_interrupt_window(true);
        return;
    }
    let vector = match source {
        Source::Pic => host.pic_ack(),
        Source::Apic(vector) => {
            v.lapic.ack(&sh.apic, vector);
            vector
        }
        Source::User(vector) => {
            v.user_interrupt = None;
            vector
        }
    };
    put(v, host, Event::Interrupt(vector), false);
    sh.stats.irq_injections.bump();
    let more = next(v, sh, host).is_some();
    v.b.set_interrupt_window(more || (v.want_window && accepts_user(v, sh, host)));
}

/// An interrupt that waits below the TPR: watch CR8 writes, which hardware otherwise does alone.
fn update_tpr_threshold<B: Backend>(v: &mut Vcpu<B>, sh: &VcpuShared) {
    let masked = match v.lapic.top_irr(&sh.apic) {
        Some(vector) => vector >> 4 <= v.lapic.tpr() >> 4,
        None => false,
    };
    v.b.set_cr8_intercept(masked);
}

/// Directly before VM entry.
pub fn before<B: Backend>(v: &mut Vcpu<B>) {
    let tpr = v.lapic.tpr() >> 4;
    if !v.vapic.on() && v.b.cr8() != tpr {
        v.b.set_cr8(tpr);
    }
}

/// Directly after VM exit.
pub fn after<B: Backend>(v: &mut Vcpu<B>, sh: &VcpuShared) {
    v.flush = false;
    v.injecting = None;
    v.started = true;
    let cr8 = v.b.cr8();
    if !v.vapic.on() && cr8 != v.lapic.tpr() >> 4 {
        let _ = v.lapic.set_cr8(&sh.apic, cr8);
        v.event_dirty = true;
    }
    if let Some(event) = v.b.take_interrupted() {
        v.reinject = Some(event);
        v.event_dirty = true;
    }
    // What waits for its turn, or for its window.
    v.event_dirty |= v.exception.is_some() || v.nmi_pending != 0;
}

/// May a halted vCPU go on?
pub fn wakes<B: Backend, H: Host<Cpu = B::Cpu>>(v: &Vcpu<B>, sh: &VcpuShared, host: &H) -> bool {
    sh.unhalted.load(Relaxed) || interrupted(v, sh, host)
}

/// Something would go into the guest now.
pub fn interrupted<B: Backend, H: Host<Cpu = B::Cpu>>(v: &Vcpu<B>, sh: &VcpuShared, host: &H) -> bool {
    let nmi = v.nmi_pending != 0 && !v.b.nmi_masked();
    nmi || v.exception.is_some()
        || v.reinject.is_some()
        || (v.b.rflags() & rflags::IF != 0 && candidate(v, sh, host).is_some())
}

/// User space asked for an interrupt window and it is open.
pub fn user_window<B: Backend, H: Host<Cpu = B::Cpu>>(
    v: &Vcpu<B>,
    sh: &VcpuShared,
    host: &H,
) -> Option<RunExit> {
    (v.want_window && ready_for_user(v, sh, host)).then_some(RunExit::IrqWindowOpen)
}
