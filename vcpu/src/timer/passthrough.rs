//! The guest has the CPU's own APIC timer while it runs (mechanism `timer_passthrough`): it arms without an exit, and what it armed
//! ends guest mode when it comes. Never early: the comparator's TSC is the guest's, or the guest has agreed to subtract the offset, and
//! is told so ([`super::lazy`]), or nothing is lent.
//!
//! Outside of slices nothing is lent and the APIC's registers say everything, so whoever sleeps, moves, leaves for user space or is
//! saved finds them as ever. In a slice it is lent before the first entry once a write has exited, and settled behind the last: none
//! of its exits in between costs anything for it. Where the host cannot spare its timer the slice goes the way there always is. A guest's
//! lazy deadlines ([`super::lazy`]) are not attended meanwhile: it shall write.
//!
//! *Inside* (mechanism `timer_in_guest`): what comes does not end guest mode either. The guest requests its vector before it writes, the timer's
//! interrupt is a notification, and the CPU delivers. Whatever else notifies the vCPU meanwhile brings that vector early, which the guest
//! has agreed to bear.

use super::{expire, give, lazy, now, place};
use crate::backend::Backend;
use crate::host::{Host, Moment};
use crate::shared::VcpuShared;
use crate::vcpu::Vcpu;
use exitless_chooser::{Fallback, Mechanism::TimerInGuest, Mechanism::TimerPassthrough};
use exitless_deadline::Home;
use exitless_lapic::Now;

/// A slice begins.
pub fn begin<B: Backend>(v: &mut Vcpu<B>) {
    v.passthrough.begin();
}

/// Directly before an entry: lends it, unless it is lent, or not to be. `false`: no entry, a request waits.
#[inline]
pub fn before<B: Backend, H: Host<Cpu = B::Cpu>>(
    v: &mut Vcpu<B>,
    sh: &VcpuShared,
    host: &H,
    cpu: &B::Cpu,
) -> bool {
    // While the guest's page is out of reach, perhaps for good, all goes the way there always is.
    if !v.passthrough.takes_writes() || v.b.timer_lent(cpu) || v.pv.lazy.owes() {
        return true;
    }
    lend(v, sh, host, cpu);
    // What was attended is the APIC's, but the guest's page does not say so yet.
    !v.pv.lazy.owes()
}

fn lend<B: Backend, H: Host<Cpu = B::Cpu>>(v: &mut Vcpu<B>, sh: &VcpuShared, host: &H, cpu: &B::Cpu) {
    // The kernel may have taken it back since the last entry.
    settle(v, sh, host, cpu);
    if !v.passthrough.takes_writes() {
        return;
    }
    if !sh.active(TimerPassthrough) {
        return v.passthrough.close();
    }
    let told = v.pv.lazy.told();
    if v.tsc_offset != 0 && told.offset == 0 || sh.active(TimerInGuest) && told.inside == 0 {
        // Not before the guest knows what to do, which its next write brings.
        return v.passthrough.touched();
    }
    if v.pv.lazy.armed() != 0 {
        if !spares(v, cpu) {
            return refused(v, sh, host);
        }
        v.passthrough.touched();
        lazy::unattended(v, sh, host);
    }
    let m = Moment { ns: 0, tsc: host.tsc() };
    let n = now(v, m);
    if expire(v, sh, host, &n) {
        v.event_dirty |= !v.vapic.in_page;
        place(v, sh, host, m);
    }
    let quiet = v.passthrough.take_quiet();
    let deadline = to_host(v.lapic.tsc_deadline(), &n, m.tsc);
    let inside = told.inside != 0;
    let lent =
        if inside { v.b.lend_timer_inside(cpu, deadline) } else { v.b.lend_timer(cpu, deadline, quiet) };
    if lent {
        if inside {
            ask(v, sh, deadline);
        }
        give(v, sh, Home::Guest);
    } else {
        refused(v, sh, host);
    }
}

/// The vector that is requested while the timer is lent inside; what is armed already the guest need not request.
fn ask<B: Backend>(v: &mut Vcpu<B>, sh: &VcpuShared, deadline: u64) {
    let vector = v.lapic.plain_deadline().unwrap_or(0);
    v.passthrough.asks(vector);
    if deadline != 0 && vector != 0 {
        // Not announced: the timer does that.
        let _ = sh.apic.posted().request(vector);
    }
}

/// It was lent inside: the guest's request is taken back, unless the CPU has delivered it. `true`: nothing is armed any more, and it is still
/// there: the deadline came outside of the guest.
fn asked<B: Backend>(v: &Vcpu<B>, sh: &VcpuShared, armed: bool) -> bool {
    let vector = v.passthrough.asked();
    let there = vector != 0 && sh.apic.posted().withdraw(vector);
    let deeds = sh.stats.deeds(TimerInGuest);
    if armed && !there {
        // Somebody else's notification brought it, early.
        deeds.added.bump();
    }
    there && !armed
}

/// The host would lend it now: whose lazy deadline is attended has something to lose.
fn spares<B: Backend>(v: &mut Vcpu<B>, cpu: &B::Cpu) -> bool {
    v.b.lend_timer(cpu, 0, false) && v.b.take_timer_back(cpu).is_some()
}

fn refused<B: Backend, H: Host<Cpu = B::Cpu>>(v: &mut Vcpu<B>, sh: &VcpuShared, host: &H) {
    v.passthrough.refused();
    sh.count_fallback(TimerPassthrough, Fallback::Elsewhere);
    untold(v, sh, host);
}

/// Where no loan takes it back a request is an interrupt, early: nobody is to request again in its handler, so again and again, until the
/// deadline. The next write is told anew.
fn untold<B: Backend, H: Host<Cpu = B::Cpu>>(v: &mut Vcpu<B>, sh: &VcpuShared, host: &H) {
    if v.pv.lazy.told().inside != 0 && !v.passthrough.takes_writes() {
        lazy::untold(v, sh, host);
    }
}

/// [`crate::backend::Exit::Deadline`]: one of the guest's has come, whichever. What it arms from now on is in the CPU.
pub fn rang<B: Backend, H: Host<Cpu = B::Cpu>>(v: &mut Vcpu<B>, sh: &VcpuShared, host: &H) {
    if v.b.timer_rang(host.cpu()) {
        ring(v, sh, host, host.tsc());
    }
}

/// The APIC expires, whatever it knows of the deadline.
fn ring<B: Backend, H: Host<Cpu = B::Cpu>>(v: &mut Vcpu<B>, sh: &VcpuShared, host: &H, tsc: u64) {
    sh.count_hit(TimerPassthrough);
    let n = now(v, Moment { ns: 0, tsc });
    if v.lapic.set_tsc_deadline(1) && expire(v, sh, host, &n) {
        v.event_dirty |= !v.vapic.in_page;
    }
}

/// A slice ends, or the kernel has taken the timer back: what the guest left there is the APIC's. Before anything acknowledges an
/// interrupt.
pub fn settle<B: Backend, H: Host<Cpu = B::Cpu>>(v: &mut Vcpu<B>, sh: &VcpuShared, host: &H, cpu: &B::Cpu) {
    let Some(found) = v.b.take_timer_back(cpu) else { return };
    let tsc = host.tsc();
    if found.inside {
        sh.count_hit(TimerInGuest);
        if asked(v, sh, found.deadline != 0) {
            ring(v, sh, host, tsc);
        }
    }
    if found.rang {
        ring(v, sh, host, tsc);
        // It may still be requested, and would be taken for the next one.
        v.passthrough.refused();
    }
    v.passthrough.used(found.wrote);
    let _ = v.lapic.set_tsc_deadline(lazy::to_guest(v, found.deadline, tsc));
    place(v, sh, host, Moment { ns: 0, tsc });
    untold(v, sh, host);
}

/// A guest's deadline in the host's ticks, of which it is `tsc`; neither wraps.
fn to_host(deadline: u64, now: &Now, tsc: u64) -> u64 {
    if deadline == 0 { 0 } else { tsc.saturating_add(deadline.saturating_sub(now.guest_tsc)) }
}

/// What the guest reads, of its own `deadline`.
pub fn as_read<B: Backend>(v: &Vcpu<B>, deadline: u64) -> u64 {
    if deadline == 0 { 0 } else { deadline.wrapping_sub(v.pv.lazy.told().offset).max(1) }
}
