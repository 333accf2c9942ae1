//! The APIC timer's wires: from the APIC's wish to a timer of the host's, and back.
//!
//! Who has the timer is one word ([`exitless_deadline::Owner`], with its states), where it belongs one table
//! ([`exitless_deadline::place`]), and [`place`] here the one function that changes it: it harvests what has fired, takes the timer
//! from who had it, arms it where it belongs, and what fires meanwhile asks for another look.
//! ```text
//!            armed, runs                   about to sleep
//!   nobody ───────────────▶ the CPU ───────────────────────▶ the host (hrtimer)
//!      ▲                       ▲                                   │
//!      └──── disarmed, due ────┴────────── runnable again ─────────┘    armed, no timer in the CPU: the host at once
//! ```
//! *Posted*: the host's timer is on a CPU that keeps house and posts the vector into the running guest, which has no exit then. Only in
//! VMs that idle without exits ([`exitless_chooser`] has all conditions), and only while the vCPU is in its run loop: whoever leaves
//! for user space leaves the timer with the host, and all else in the APIC's registers.
//!
//! *The CPU*: a timer that runs while the vCPU is in the guest and then exits (VMX-preemption timer, SDM vol. 3C, 26.5.1). It
//! holds a moment of the host's TSC (a little before the deadline: [`early`]), and counts from there anew at each entry: on whatever CPU, after however long a
//! break. So a preempted vCPU needs no other timer: what was due meanwhile exits at once when it runs again, and before
//! that nobody could take the interrupt. Where CPUs' TSCs differ such a moment means nothing, and the host's timer is the home.
//!
//! In a slice the guest itself may have the CPU's APIC timer: [`passthrough`].
//!
//! Nothing here sleeps or waits: slices use it. A callback of the host's timer that comes late finds by the word that it is not
//! meant; one that is queued early stays so, where that saves moving it ([`exitless_deadline::Queue`]).

pub mod early;
pub mod lazy;
pub mod passthrough;

use crate::backend::Backend;
use crate::clock::units::{ns_to_ticks, ticks_to_ns};
use crate::host::{Host, Moment};
use crate::shared::{VcpuShared, mp};
use crate::stats::waker;
use crate::vcpu::{Vcpu, vapic};
use core::sync::atomic::Ordering;
use exitless_chooser::Mechanism::{PostedTimer, SleepUntil, TimerPassthrough};
pub use exitless_deadline::Due;
pub use exitless_deadline::passthrough::{Found, Loan, Register};
use exitless_deadline::{Facts, Home, Place};
use exitless_lapic::{Accepted, Armed, Now};
use exitless_policy::Origin;

/// Both clocks as the guest's APIC sees them.
pub fn now<B: Backend>(v: &Vcpu<B>, m: Moment) -> Now {
    Now { ns: m.ns, guest_tsc: v.guest_tsc(m.tsc) }
}

/// Takes a posted timer from the host's: what has fired until now is over, and nothing fires from here on. Whoever changes what the APIC
/// waits for, or asks whether that is due, comes here first, and [`place`] follows.
fn harvest<B: Backend>(v: &mut Vcpu<B>, sh: &VcpuShared) {
    if sh.timer.is_posted() {
        give(v, sh, Home::Nobody);
    }
}

/// What the host's timer has posted shows in the APIC's registers: before somebody reads the deadline.
pub fn show<B: Backend>(v: &mut Vcpu<B>, sh: &VcpuShared) {
    if sh.timer.is_posted() && sh.timer.has_fired() {
        v.lapic.deadline_posted();
    }
}

/// The APIC is about to be reset: nothing of the timer comes behind that.
pub fn stop<B: Backend>(v: &mut Vcpu<B>, sh: &VcpuShared) {
    harvest(v, sh);
}

/// The vCPU leaves for user space, whose ioctls find all in the APIC: the host's timer asks, from here on.
pub fn leave<B: Backend, H: Host<Cpu = B::Cpu>>(v: &mut Vcpu<B>, sh: &VcpuShared, host: &H) {
    if sh.timer.is_posted() {
        harvest(v, sh);
        place_as(v, sh, host, host.now(), false);
    }
}

/// Nobody but this thread looks at a lazy deadline: while one is attended, nothing is posted.
fn posts<B: Backend>(v: &Vcpu<B>, sh: &VcpuShared) -> bool {
    sh.active(PostedTimer) && v.pv.lazy.armed() == 0
}

/// Posted or not any more, as a switch or a fact has moved; before a slice.
pub fn follow<B: Backend, H: Host<Cpu = B::Cpu>>(v: &mut Vcpu<B>, sh: &VcpuShared, host: &H) {
    let posted = sh.timer.is_posted();
    if posted != posts(v, sh)
        && (posted || v.lapic.plain_deadline().is_some() && v.lapic.armed() != Armed::None)
    {
        sync(v, sh, host);
    }
}

/// Brings the timer in line with the APIC: what is due expires, what is next is armed.
pub fn sync<B: Backend, H: Host<Cpu = B::Cpu>>(v: &mut Vcpu<B>, sh: &VcpuShared, host: &H) {
    harvest(v, sh);
    let m = host.now();
    if v.lapic.armed().is_due(&now(v, m)) {
        fired(v, sh, host);
    } else {
        place(v, sh, host, m);
    }
}

/// The host's timer fired, or the deadline is past: posts the vector if it is time, and arms the next.
pub fn fired<B: Backend, H: Host<Cpu = B::Cpu>>(v: &mut Vcpu<B>, sh: &VcpuShared, host: &H) {
    harvest(v, sh);
    let m = host.now();
    let n = now(v, m);
    expire(v, sh, host, &n);
    v.event_dirty = true;
    place(v, sh, host, m);
}

/// IA32_TSC_DEADLINE is written at `m`, of which the TSC counts. `true`: it has passed, and its vector is posted unless masked.
pub fn write_deadline<B: Backend, H: Host<Cpu = B::Cpu>>(
    v: &mut Vcpu<B>,
    sh: &VcpuShared,
    host: &H,
    deadline: u64,
    m: Moment,
    origin: Origin,
) -> bool {
    harvest(v, sh);
    let deadline = if origin == Origin::Guest { lazy::meant(v, host, deadline, m.tsc) } else { deadline };
    if !v.lapic.set_tsc_deadline(deadline) {
        return false;
    }
    if deadline != 0 && sh.active(TimerPassthrough) {
        v.passthrough.armed();
    }
    let n = now(v, m);
    lazy::written(v, sh, host, deadline, &n, origin);
    let passed = expire(v, sh, host, &n);
    if passed {
        v.stopwatch.set_late(m.tsc);
    }
    place(v, sh, host, m);
    passed
}

/// The CPU's timer ran out, in a slice. `true`: the APIC's is due, and its vector posted unless masked.
pub fn ran_out<B: Backend, H: Host<Cpu = B::Cpu>>(v: &mut Vcpu<B>, sh: &VcpuShared, host: &H) -> bool {
    if !sh.timer.is_cpu() {
        // It ran out for nobody. If the host has it, that one will come.
        return false;
    }
    let m = host.now();
    let Some(left) = left(v, host, m) else { return false };
    if left > early::ticks(v, host) {
        place(v, sh, host, m);
        return false;
    }
    if lazy::put_off(v, sh, host, &now(v, m)) {
        place(v, sh, host, m);
        return false;
    }
    early::wait(v, host, m.tsc.saturating_add(left));
    // The guest finds its clock at the deadline, if not behind it.
    let m = host.now();
    let n = now(v, m);
    let due = expire(v, sh, host, &n);
    place(v, sh, host, m);
    due
}

/// If the APIC's timer is due, it moves on, and its vector goes where the IRR is: nobody but the CPU in guest mode looks at the page,
/// so what the thread itself posts needs no locked instruction there, and no announcement. (With AVIC other CPUs write the IRR.)
fn expire<B: Backend, H: Host<Cpu = B::Cpu>>(v: &mut Vcpu<B>, sh: &VcpuShared, host: &H, now: &Now) -> bool {
    if v.lapic.armed().is_due(now) && lazy::put_off(v, sh, host, now) {
        return false;
    }
    let was = host.times().map(|_| v.lapic.armed());
    let due = if !v.vapic.in_page || v.vapic.keeps_irr() {
        v.lapic.expire(&sh.apic, now)
    } else {
        v.lapic.expire_into(&sh.apic, now, |vector| vapic::request(&mut v.b, vector))
    };
    if due && v.mp_state == mp::HALTED {
        sh.waker.store(waker::TIMER, Ordering::Relaxed);
    }
    if let Some(was) = was.filter(|_| due) {
        note_due(v, host, was, now);
    }
    due
}

/// Somebody measures: since when the vector that was posted `now` has been due.
#[cold]
fn note_due<B: Backend, H: Host>(v: &mut Vcpu<B>, host: &H, was: Armed, now: &Now) {
    let late = match was {
        Armed::None => return,
        Armed::AtNs(ns) => ns_to_ticks(now.ns.saturating_sub(ns), host.tsc_khz()),
        Armed::AtTsc(t) => v.rate.host_ticks(now.guest_tsc.saturating_sub(t)),
    };
    v.stopwatch.timer_due(host.tsc().saturating_sub(late));
}

/// Host ticks that are left at `m` until the APIC's timer is due.
fn left<B: Backend, H: Host<Cpu = B::Cpu>>(v: &Vcpu<B>, host: &H, m: Moment) -> Option<u64> {
    match v.lapic.armed() {
        Armed::None => None,
        Armed::AtNs(ns) => Some(ns_to_ticks(ns.saturating_sub(m.ns), host.tsc_khz())),
        Armed::AtTsc(t) => Some(v.rate.host_ticks(t.saturating_sub(v.guest_tsc(m.tsc)))),
    }
}

/// When that is on the host's monotonic clock, ns.
pub fn due_ns<B: Backend, H: Host<Cpu = B::Cpu>>(v: &Vcpu<B>, host: &H) -> Option<u64> {
    let m = host.now();
    left(v, host, m).map(|ticks| m.ns.saturating_add(ticks_to_ns(ticks, host.tsc_khz())))
}

/// The one function that changes who has the timer. It is armed for what the APIC waits for, which is not due at `m`.
pub fn place<B: Backend, H: Host<Cpu = B::Cpu>>(v: &mut Vcpu<B>, sh: &VcpuShared, host: &H, m: Moment) {
    place_as(v, sh, host, m, v.runs());
}

fn place_as<B: Backend, H: Host<Cpu = B::Cpu>>(
    v: &mut Vcpu<B>,
    sh: &VcpuShared,
    host: &H,
    m: Moment,
    runs: bool,
) {
    let Some(left) = left(v, host, m) else {
        v.b.set_timer(None);
        give(v, sh, Home::Nobody);
        return unqueue(v, host, m.tsc);
    };
    let at = m.tsc.saturating_add(left);
    let posts = posts(v, sh);
    let facts = Facts {
        runs,
        cpu_timer: v.b.has_timer(),
        deep_idle: v.in_guest.mwait,
        steady_tsc: host.steady_tsc(),
        posts,
        // Matters for that alone.
        plain: posts && v.lapic.plain_deadline().is_some(),
    };
    match exitless_deadline::place(facts) {
        Place::Cpu => {
            v.b.set_timer(Some(at.saturating_sub(early::ticks(v, host))));
            if !sh.timer.is_cpu() {
                give(v, sh, Home::Cpu);
                unqueue(v, host, m.tsc);
            }
        }
        Place::Posted => post(v, sh, host, m.tsc, at),
        Place::Host => {
            v.b.set_timer(None);
            if !sh.timer.is_host() {
                give(v, sh, Home::Host);
            }
            if !facts.steady_tsc || !sh.active(SleepUntil) {
                v.queue.gone();
            }
            if !v.queue.want(m.tsc, at, host.tsc_khz(), false) {
                sh.count_hit(SleepUntil);
            } else if let Some(ns) = due_ns(v, host) {
                v.passthrough.touched();
                host.arm_timer(ns);
            }
        }
    }
}

/// The host's timer posts the vector at `at`, on a CPU that keeps house. If it is queued there for an earlier moment it queues itself
/// anew then, and this CPU need not call the other. The word is nobody's or the CPU's or the host's here: see [`harvest`].
fn post<B: Backend, H: Host<Cpu = B::Cpu>>(v: &mut Vcpu<B>, sh: &VcpuShared, host: &H, now: u64, at: u64) {
    let Some(vector) = v.lapic.plain_deadline() else { return };
    v.b.set_timer(None);
    sh.timer_vector.store(vector, Ordering::Relaxed);
    give(v, sh, Home::Posted(at));
    if v.queue.want(now, at, host.tsc_khz(), true)
        && let Some(ns) = due_ns(v, host)
    {
        v.passthrough.touched();
        host.arm_timer_elsewhere(ns);
    }
    sh.count_hit(PostedTimer);
}

/// Gives it to somebody, and learns what the host's timer has done until then.
fn give<B: Backend>(v: &mut Vcpu<B>, sh: &VcpuShared, to: Home) {
    let found = sh.timer.give(to, v.queue.queued());
    if found.gone {
        v.queue.gone();
    }
    if found.fired {
        v.lapic.deadline_posted();
    }
}

/// The host's timer fired, in hard interrupt context on whatever CPU: the requester's side. `again` queues it for so many ticks later.
/// It waits for `patience` ticks in all, however often the guest writes another deadline meanwhile.
/// What its CPU then does is in the answer; [`Due::Post`]: the vector is in the IRR, and the owner is to be told as of any message that
/// was `Accepted` so.
pub fn host_fired(
    sh: &VcpuShared,
    mut tsc: impl FnMut() -> u64,
    patience: u64,
    again: impl Fn(u64),
) -> (Due, Accepted) {
    let begin = tsc();
    let mut now = begin;
    loop {
        match sh.timer.take_due(now, patience.saturating_sub(now.saturating_sub(begin))) {
            Due::Wait(_) => {
                core::hint::spin_loop();
                now = tsc();
            }
            Due::Post => {
                let accepted = sh.apic.accept_edge(sh.timer_vector.load(Ordering::Relaxed));
                sh.timer.posted();
                return (Due::Post, accepted);
            }
            Due::Later { at, left } => {
                again(left);
                return (if sh.timer.is_still(at) { Due::Nothing } else { Due::Ask }, Accepted::None);
            }
            due => return (due, Accepted::None),
        }
    }
}

/// Nobody waits for the host's timer any more.
fn unqueue<B: Backend, H: Host<Cpu = B::Cpu>>(v: &mut Vcpu<B>, host: &H, now: u64) {
    if v.queue.drop(now, host.tsc_khz()) {
        v.passthrough.touched();
        host.cancel_timer();
    }
}

/// The thread came to another CPU: what is queued on the one that it left comes along, or goes. What those have who keep house stays.
pub fn moved<B: Backend, H: Host<Cpu = B::Cpu>>(v: &mut Vcpu<B>, sh: &VcpuShared, host: &H) {
    let meant = sh.timer.is_host();
    let here = v.queue.queued() && !v.queue.is_away();
    if here && !meant {
        v.queue.gone();
        v.passthrough.touched();
        host.cancel_timer();
    }
    host.bring_timers(here && meant);
}

/// The host slept: the host's timer, whose clock stood still meanwhile, is queued anew, or goes.
pub fn slept<B: Backend, H: Host<Cpu = B::Cpu>>(v: &mut Vcpu<B>, sh: &VcpuShared, host: &H) {
    if v.queue.queued() {
        v.queue.gone();
        v.passthrough.touched();
        host.cancel_timer();
    }
    sync(v, sh, host);
}

/// Until when a vCPU that is about to sleep may be waited for awake, ns on the host's clock; never, if the host has the timer.
pub fn next_ns<B: Backend, H: Host<Cpu = B::Cpu>>(v: &Vcpu<B>, sh: &VcpuShared, host: &H) -> u64 {
    if sh.timer.is_host() || sh.timer.is_posted() {
        return u64::MAX;
    }
    due_ns(v, host).unwrap_or(u64::MAX)
}

/// The vCPU is about to sleep: the CPU's timer cannot wake it. `false`: it is due already, do not sleep.
pub fn to_host<B: Backend, H: Host<Cpu = B::Cpu>>(v: &mut Vcpu<B>, sh: &VcpuShared, host: &H) -> bool {
    if sh.timer.is_host() || sh.timer.is_posted() || v.lapic.armed() == Armed::None {
        return true;
    }
    let m = host.now();
    if v.lapic.armed().is_due(&now(v, m)) {
        fired(v, sh, host);
        return false;
    }
    place(v, sh, host, m);
    true
}

/// The vCPU runs again.
pub fn to_cpu<B: Backend, H: Host<Cpu = B::Cpu>>(v: &mut Vcpu<B>, sh: &VcpuShared, host: &H) {
    if sh.timer.is_host() && v.b.has_timer() && host.steady_tsc() {
        sync(v, sh, host);
    }
}
