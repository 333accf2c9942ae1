//! Requests, looked at with interrupts on before each slice.

use crate::backend::{Backend, Event};
use crate::host::Host;
use crate::outcome::{Next, RunExit};
use crate::shared::{Request as R, VcpuShared, mp};
use crate::vcpu::Vcpu;
use core::sync::atomic::Ordering::Relaxed;

/// Takes and does all requests.
pub fn process<B: Backend, H: Host<Cpu = B::Cpu>>(v: &mut Vcpu<B>, sh: &VcpuShared, host: &H) -> Next {
    // A sender that took us for one whose CPU delivers, just when that ended.
    if !v.vapic.on() && sh.apic.posted().outstanding() && sh.apic.posted().settle() {
        v.event_dirty = true;
    }
    let bits = sh.take();
    if bits == 0 {
        return Next::Again;
    }
    let has = |r: R| bits & r.0 != 0;
    if has(R::DEAD) {
        const EIO: i32 = 5;
        sh.request(R::DEAD);
        return Next::Leave(RunExit::Error(-EIO));
    }
    if has(R::TLB_FLUSH) {
        v.flush = true;
        sh.stats.tlb_flush.bump();
    }
    if has(R::LOGGING) {
        v.b.set_logging(host.logs_in_cpu());
    }
    if has(R::QUIESCE) {
        host.quiesce();
    }
    // Before whatever reads it.
    if has(R::TSC) {
        v.follow_host_tsc(sh, host);
    }
    // The host's TSC is a fact that mechanisms look at.
    if has(R::MECHANISMS) || has(R::TSC) {
        v.chosen = false;
    }
    if has(R::APIC_STATE) {
        apic_state(v, sh, host);
    }
    if has(R::MOVED) {
        crate::timer::moved(v, sh, host);
    }
    if has(R::SLEPT) {
        crate::timer::slept(v, sh, host);
    }
    if has(R::TIMER) {
        crate::timer::fired(v, sh, host);
    }
    if has(R::LAZY) {
        crate::timer::lazy::clear(v, sh, host);
        crate::timer::sync(v, sh, host);
    }
    if has(R::STOPPED) {
        crate::pv::clock::note_stopped(v);
    }
    if has(R::CLOCK) {
        crate::pv::clock::write(v, host);
    }
    if has(R::STEAL) && sh.rescheduled.load(Relaxed) {
        sh.rescheduled.store(false, Relaxed);
        v.b.spin_longer(false);
    }
    if has(R::STEAL) {
        crate::pv::steal::write(v, sh, host);
    }
    if has(R::ASYNC_PF) {
        crate::pv::async_pf::ready(v, sh, host);
    }
    take_nmis(v, sh);
    v.event_dirty = true;
    Next::Again
}

/// NMIs from the APIC's mailbox: at most two count, the one in service and the one latched behind it.
fn take_nmis<B: Backend>(v: &mut Vcpu<B>, sh: &VcpuShared) {
    let n = sh.apic.take_nmis();
    let nmi = Some(Event::Nmi);
    let busy = v.b.nmi_masked() || v.injecting == nmi || v.reinject == nmi;
    let limit = if busy { 1 } else { 2 };
    v.nmi_pending = v.nmi_pending.saturating_add(n.min(2) as u8).min(limit);
}

/// INIT and SIPI (SDM vol. 3A, 9.4.4): INIT resets; SIPI counts only while waiting for it.
pub fn apic_state<B: Backend, H: Host<Cpu = B::Cpu>>(v: &mut Vcpu<B>, sh: &VcpuShared, host: &H) {
    crate::apic::vapic::take_back(v, sh);
    let startup = sh.apic.take_startup();
    if startup.init {
        crate::apic::choose::retire(v, sh, host);
        v.reset(sh, host, true);
        v.set_mp(sh, if v.bsp { mp::RUNNABLE } else { mp::INIT_RECEIVED });
    }
    if let Some(page) = startup.sipi
        && v.mp_state == mp::INIT_RECEIVED
    {
        v.start_at(page);
        v.set_mp(sh, mp::RUNNABLE);
    }
}
