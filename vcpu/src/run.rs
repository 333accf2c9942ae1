//! The loop around one vCPU: requests, events, one slice of guest running, the exit; until user space is needed.

use crate::apic::{avic, choose, eoi, raw, vapic};
use crate::backend::{Backend, Exit};
use crate::debug;
use crate::entry;
use crate::exits;
use crate::fastpath;
use crate::host::{Extended, Host};
use crate::ipi::quick::Quick;
use crate::journal::{Access, Entry};
use crate::mechanisms;
use crate::outcome::{Fast, Next, RunExit};
use crate::pv::{async_pf, steal};
use crate::request;
use crate::shared::{VcpuShared, mp};
use crate::timer::{self, passthrough};
use crate::times::Spent;
use crate::trace;
use crate::traced::Trace;
use crate::vcpu::{PendingPort, Vcpu};
use core::sync::atomic::Ordering::Relaxed;
use exitless_chooser::Mechanism::HaltPollGuest;

/// Runs the vCPU until user space is needed. The caller has loaded the vCPU and its FPU state, and holds the lock on
/// slots and routes.
pub fn run<B: Backend, H: Host<Cpu = B::Cpu>>(v: &mut Vcpu<B>, sh: &VcpuShared, host: &H) -> RunExit {
    clock(v, host, Spent::User);
    let exit = until_exit(v, sh, host);
    sh.steal.at_boundary(false);
    timer::leave(v, sh, host);
    eoi::withdraw(v, host);
    timer::lazy::depart(v, sh, host);
    raw::depart(v, sh, host);
    vapic::take_back(v, sh);
    clock(v, host, Spent::Kernel);
    exit
}

/// Until now the vCPU was there, if somebody measures.
fn clock<B: Backend, H: Host<Cpu = B::Cpu>>(v: &mut Vcpu<B>, host: &H, spent: Spent) {
    if let Some(t) = host.times() {
        v.stopwatch.lap(t, host.tsc(), spent);
    }
}

fn until_exit<B: Backend, H: Host<Cpu = B::Cpu>>(v: &mut Vcpu<B>, sh: &VcpuShared, host: &H) -> RunExit {
    if let Next::Leave(exit) = complete(v, sh, host) {
        return exit;
    }
    if host.immediate_exit() {
        return RunExit::Interrupted;
    }
    v.event_dirty = true;
    // Whatever made it wait, the guest may be elsewhere by now.
    v.async_pf.go_on();
    // ioctls may have written any register.
    v.vapic.written();
    loop {
        if let Some(vector) = v.user_eoi.take() {
            sh.stats.user.bump();
            return RunExit::IoapicEoi { vector };
        }
        if let Some(exit) = debug::due(v) {
            sh.stats.user.bump();
            return exit;
        }
        if do_work(v, sh, host) {
            sh.stats.signal_exits.bump();
            return RunExit::Interrupted;
        }
        if let Next::Leave(exit) = request::process(v, sh, host) {
            return exit;
        }
        // What follows may read the guest's page tables.
        sh.steal.at_boundary(false);
        if !v.runs() {
            if let Next::Leave(exit) = wait(v, sh, host) {
                return exit;
            }
            continue;
        }
        choose::choose(v, sh, host);
        mechanisms::choose(v, sh, host);
        raw::follow(v, sh, host);
        timer::follow(v, sh, host);
        timer::lazy::settle(v, sh, host);
        if v.event_dirty {
            entry::prepare(v, sh, host);
        }
        if let Some(exit) = entry::user_window(v, sh, host) {
            return exit;
        }
        debug::look_ahead(v, host);
        let exit = slice(v, sh, host);
        eoi::collect(v, sh, host);
        let Some(exit) = exit else { continue };
        let next = exits::handle(v, sh, host, exit);
        if host.tracing() {
            trace::answered(v, sh, host, false);
        }
        if let Next::Leave(exit) = next {
            sh.stats.user.bump();
            return exit;
        }
    }
}

/// Does what the host has for this thread, whoever's data that is about. `true`: a signal must be taken.
fn do_work<B: Backend, H: Host<Cpu = B::Cpu>>(v: &Vcpu<B>, sh: &VcpuShared, host: &H) -> bool {
    if !host.work_pending() {
        return false;
    }
    // Perhaps that another thread wants the CPU.
    sh.hints.came_out(v.b.cpl() == 0);
    v.b.dirty_l1d();
    raw::pauses(v, host);
    !host.do_work()
}

/// What the CPU has logged becomes the VM's knowledge before the vCPU counts as out of the guest: who asks for the log interrupts
/// those that are in it, and waits for no more than that. Interrupts are off; a full log is 512 look-ups.
fn take_log<B: Backend, H: Host<Cpu = B::Cpu>>(v: &mut Vcpu<B>, host: &H) {
    for n in 0..v.b.take_log() {
        host.mark_dirty(v.b.logged(n));
    }
}

/// One slice with interrupts off: enters until an exit needs more. `None`: nothing left to handle. A function of its own, so that
/// what is around it takes no register from the fast path; and what somebody may switch is loaded each time, beside the requests, so
/// that there is one loop and not one for each answer.
#[inline(never)]
fn slice<B: Backend, H: Host<Cpu = B::Cpu>>(v: &mut Vcpu<B>, sh: &VcpuShared, host: &H) -> Option<Exit> {
    host.slice_begin();
    host.fpu_live();
    if !sh.begin_guest() || vapic::missed(v, sh) || host.work_pending() {
        sh.end_guest();
        host.slice_end();
        return None;
    }
    let state = v.extended();
    host.load_state(&state, v.debug_registers());
    vapic::hand_over(v, sh);
    // Preemption is off: the slice stays on this CPU.
    let cpu = host.cpu();
    v.b.begin(cpu);
    passthrough::begin(v);
    avic::runs(v, host);
    v.stopwatch.slice(sh.measured.load(Relaxed));
    // Somebody listens or measures, or did at this slice's last exit.
    let mut watched = host.tracing() || sh.measured.load(Relaxed);
    let mut quick = Quick::begin(v, sh);
    let exit = loop {
        if !passthrough::before(v, sh, host, cpu) {
            break None;
        }
        entry::before(v);
        vapic::sync(v, sh);
        if watched {
            watch_entry(v, sh, host, &state);
        }
        let exit = v.b.enter(cpu, v.flush, || quick.entry(&mut v.lapic, &v.event_dirty, sh, host));
        if sh.measured.load(Relaxed) {
            watched = true;
            stamp_exit(v, host);
        }
        entry::after(v, sh);
        sh.stats.exit(v.b.exit_number());
        if host.tracing() {
            watched = true;
            trace::left(v, sh, host, &state, &exit);
        }
        match fastpath::try_handle(v, sh, host, &exit) {
            Fast::Reenter => {
                sh.stats.fast.bump();
                if sh.pending() || host.work_pending() || (v.event_dirty && !entry::prepare_now(v, sh, host))
                {
                    break None;
                }
            }
            Fast::Done => break None,
            Fast::Slow => break Some(exit),
        }
    };
    quick.end(&sh.stats, B::WRMSR);
    passthrough::settle(v, sh, host, cpu);
    let debug = v.dr_live;
    if v.outside.is_none() {
        let taken = host.unload_state(&state, debug);
        v.unloaded(&taken, debug);
    } else {
        trace::took(v, debug);
    }
    if exit.is_none() && host.tracing() {
        trace::answered(v, sh, host, true);
    }
    take_log(v, host);
    sh.end_guest();
    avic::stops(v);
    // Whatever was handled ended with its instruction. From here on the CPU may be taken away.
    sh.steal.at_boundary(exit.is_none() && steal::tells(v, sh));
    // Handlers of the host, and softirqs behind them, use the kernel's FPU: not before everything above is the host's again.
    v.b.end();
    host.slice_end();
    exit
}

/// Before an entry of a slice in which somebody listens or measures.
#[cold]
#[inline(never)]
fn watch_entry<B: Backend, H: Host<Cpu = B::Cpu>>(
    v: &mut Vcpu<B>,
    sh: &VcpuShared,
    host: &H,
    state: &Extended,
) {
    trace::enters(v, sh, host, state);
    if sh.measured.load(Relaxed) {
        stamp_entry(v, sh, host);
    }
}

#[cold]
fn stamp_entry<B: Backend, H: Host<Cpu = B::Cpu>>(v: &mut Vcpu<B>, sh: &VcpuShared, host: &H) {
    match host.times() {
        Some(t) => v.stopwatch.enter(t, &sh.sent, host.tsc()),
        None => v.stopwatch.slice(false),
    }
}

#[cold]
fn stamp_exit<B: Backend, H: Host<Cpu = B::Cpu>>(v: &mut Vcpu<B>, host: &H) {
    let now = host.tsc();
    match host.times() {
        Some(t) => v.stopwatch.exit(t, now, v.b.exit_number()),
        None => v.stopwatch.slice(false),
    }
}

/// The vCPU is halted, or waits for INIT, SIPI or a page: sleeps until that may have changed.
fn wait<B: Backend, H: Host<Cpu = B::Cpu>>(v: &mut Vcpu<B>, sh: &VcpuShared, host: &H) -> Next {
    vapic::take_back(v, sh);
    // Before the look at what is requested: who announces afterwards finds us awake, or wakes us.
    sh.apic.posted().settle();
    if v.mp_state == mp::HALTED && entry::wakes(v, sh, host) {
        sh.count_wake();
        v.set_mp(sh, mp::RUNNABLE);
        timer::to_cpu(v, sh, host);
        // HLT ended the interrupt shadow: what it held back may go in now.
        v.event_dirty = true;
        sh.stats.halt_wakeup.bump();
        return Next::Again;
    }
    if v.mp_state == mp::RUNNABLE && async_pf::goes_on(v, sh, host) {
        timer::to_cpu(v, sh, host);
        v.event_dirty = true;
        return Next::Again;
    }
    if sh.pending() {
        return Next::Again;
    }
    if waits_awake(v, sh) && poll(v, sh, host) {
        sh.stats.halt_polled.bump();
        return Next::Again;
    }
    if !timer::to_host(v, sh, host) {
        return Next::Again;
    }
    sh.wakes_at.store(timer::due_ns(v, host).unwrap_or(0), Relaxed);
    clock(v, host, Spent::Kernel);
    let woken = host.block();
    clock(v, host, Spent::Halted);
    if woken {
        return Next::Again;
    }
    sh.stats.signal_exits.bump();
    Next::Leave(RunExit::Interrupted)
}

fn poll<B: Backend, H: Host<Cpu = B::Cpu>>(v: &mut Vcpu<B>, sh: &VcpuShared, host: &H) -> bool {
    let until = timer::next_ns(v, sh, host);
    clock(v, host, Spent::Kernel);
    let woken = host.poll(until);
    clock(v, host, Spent::Polled);
    woken
}

/// The host waits awake before the thread sleeps, unless the guest does so itself. A slow page is worth no waiting.
fn waits_awake<B: Backend>(v: &Vcpu<B>, sh: &VcpuShared) -> bool {
    if v.async_pf.waits() {
        return false;
    }
    if !v.pv.polls_itself || !sh.active(HaltPollGuest) {
        return true;
    }
    sh.count_hit(HaltPollGuest);
    false
}

/// Finishes what user space was asked to do before this call.
fn complete<B: Backend, H: Host<Cpu = B::Cpu>>(v: &mut Vcpu<B>, sh: &VcpuShared, host: &H) -> Next {
    if let Some(p) = v.pending_port.take() {
        complete_port(v, host, p);
        return Next::Again;
    }
    if let Some(exit) = exits::emulate::posted(v, sh) {
        return Next::Leave(exit);
    }
    if let Some(asked) = v.journal.awaiting() {
        if !v.journal.told() {
            return exits::emulate::ask_user(v, sh, host);
        }
        let mut data = [0; 8];
        if !asked.write {
            match asked.access {
                Access::Mmio { .. } => data = host.mmio_answer(),
                // A block stays where it is until the replay.
                Access::Port { .. } if asked.count != 1 => {}
                Access::Port { .. } => {
                    if let Some(d) = data.get_mut(..usize::from(asked.len)) {
                        host.io_page_read(0, d);
                    }
                }
            }
        }
        if !asked.write {
            trace::tell(host, || trace::access(&Entry { data, ..asked }));
        }
        v.journal.answer(data);
    }
    // An instruction in the middle: answered, or the host had no page for the guest's memory.
    match v.journal.source() {
        Some(_) => exits::emulate::run(v, sh, host),
        None => Next::Again,
    }
}

/// A port read (IN) that user space answered.
fn complete_port<B: Backend, H: Host<Cpu = B::Cpu>>(v: &mut Vcpu<B>, host: &H, p: PendingPort) {
    let mut data = [0; 4];
    if let Some(d) = data.get_mut(..usize::from(p.size.min(4))) {
        host.io_page_read(0, d);
    }
    let data = u32::from_le_bytes(data);
    trace::tell(host, || Trace::Pio { write: false, port: p.port, size: p.size, count: 1, data });
    exits::io::finish_in(v, p.size, data);
    v.finish_skip(p.next_rip);
}
