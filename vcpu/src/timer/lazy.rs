//! Lazy deadlines: the page that the guest named by MSR, and what of its timer stands there. The rules are `exitless_lazy`'s, the wire
//! format is in `docs/protocols/lazy-deadline.md`.
//!
//! While a deadline is attended the APIC's is the earlier one, that of the page's *armed*; whatever looks at the APIC's timer from
//! outside, or changes how it works, ends that first ([`clear`], [`depart`]). Only this thread writes the page. What cannot be written
//! in a slice is owed, and written before the next entry ([`settle`]).
//!
//! The page's *offset* is for the CPU's own timer in the hands of a guest whose TSC is not the host's ([`super::passthrough`]): it ends at the
//! same places, and with passthrough. So does *inside*, for the guest whose timer fires without an exit.

use crate::backend::Backend;
use crate::host::Host;
use crate::shared::{Request, VcpuShared};
use crate::vcpu::Vcpu;
use crate::vcpu::pv::enabled;
use core::mem::offset_of;
use core::sync::atomic::{Ordering, fence};
use exitless_chooser::Mechanism::{LazyDeadline, TimerInGuest, TimerPassthrough};
use exitless_lapic::Now;
use exitless_lazy::{Host as Lazy, HostPage, Told};
use exitless_policy::{Invalid, Origin};
use exitless_pv_abi::{
    EXITLESS_HOST_TICKS, EXITLESS_INSIDE, EXITLESS_LAZY_ADDRESS, KVM_MSR_ENABLED, exitless_feature,
    exitless_lazy_deadline,
};

const ARMED: u64 = offset_of!(exitless_lazy_deadline, armed) as u64;
const PENDING: u64 = offset_of!(exitless_lazy_deadline, pending) as u64;
const OFFSET: u64 = offset_of!(exitless_lazy_deadline, offset) as u64;
const INSIDE: u64 = offset_of!(exitless_lazy_deadline, inside) as u64;
const SEQUENCE: u64 = offset_of!(exitless_lazy_deadline, sequence) as u64;
const LENGTH: u64 = offset_of!(exitless_lazy_deadline, length) as u64;

/// Both bits: the guest has agreed to *offset*.
const SHIFTS: u64 = KVM_MSR_ENABLED | EXITLESS_HOST_TICKS;
/// And to *inside*.
const ASKS: u64 = KVM_MSR_ENABLED | EXITLESS_INSIDE;

/// The page; `sleeps`: what is not resident may be brought.
struct Page<'a, B, H> {
    v: &'a Vcpu<B>,
    host: &'a H,
    sleeps: bool,
}

impl<B: Backend, H: Host<Cpu = B::Cpu>> Page<'_, B, H> {
    fn gpa(&self) -> u64 {
        self.v.pv.lazy_deadline & EXITLESS_LAZY_ADDRESS
    }

    fn load(&self, at: u64) -> Option<u64> {
        let at = self.gpa() + at;
        let there = self.host.load_shared(at);
        if there.is_some() || !self.sleeps {
            return there;
        }
        let mut bytes = [0; 8];
        self.v.read_guest(self.host, at, &mut bytes).then(|| u64::from_le_bytes(bytes))
    }

    fn store(&self, at: u64, value: u64) -> bool {
        let at = self.gpa() + at;
        self.host.store_shared(at, value)
            || self.sleeps && self.v.write_guest(self.host, at, &value.to_le_bytes())
    }
}

impl<B: Backend, H: Host<Cpu = B::Cpu>> HostPage for Page<'_, B, H> {
    fn arm(&self, armed: u64) -> bool {
        self.store(ARMED, armed)
    }

    fn tell(&self, told: Told) -> bool {
        self.store(OFFSET, told.offset) && self.store(INSIDE, told.inside)
    }

    fn barrier(&self) {
        fence(Ordering::SeqCst);
    }

    fn pending(&self) -> Option<u64> {
        self.load(PENDING)
    }
}

/// One step of the protocol.
fn step<B: Backend, H: Host<Cpu = B::Cpu>, R>(
    v: &mut Vcpu<B>,
    sh: &VcpuShared,
    host: &H,
    sleeps: bool,
    act: impl FnOnce(&mut Lazy, &Page<'_, B, H>) -> R,
) -> R {
    let mut lazy = v.pv.lazy;
    let result = act(&mut lazy, &Page { v, host, sleeps });
    v.pv.lazy = lazy;
    sh.lazy_armed.store(lazy.armed(), Ordering::Relaxed);
    if lazy.owes() && !sleeps {
        // Not back into the guest before it is written.
        sh.request(Request::EVENT);
    }
    result
}

/// The MSR is written.
///
/// # Errors
/// [`Invalid`]: CPUID does not show it, or the address is no memory that can be written.
pub fn set<B: Backend, H: Host<Cpu = B::Cpu>>(
    v: &mut Vcpu<B>,
    sh: &VcpuShared,
    host: &H,
    value: u64,
) -> Result<(), Invalid> {
    let own = v.cpuid.own();
    let known = |bits: u64, features: u32| value & bits == 0 || own & features != 0;
    let any =
        exitless_feature::LAZY_DEADLINE | exitless_feature::HOST_TICKS | exitless_feature::TIMER_IN_GUEST;
    if !known(KVM_MSR_ENABLED, any)
        || !known(EXITLESS_HOST_TICKS, exitless_feature::HOST_TICKS)
        || !known(EXITLESS_INSIDE, exitless_feature::TIMER_IN_GUEST)
    {
        return Err(Invalid);
    }
    let before = v.pv.lazy_deadline;
    end(v, sh, host, true);
    tell(v, sh, host, true, 0, Told::NOTHING);
    v.pv.lazy_deadline = value;
    v.pv.lazy = Lazy::default();
    v.chosen = false;
    if !enabled(value) || step(v, sh, host, true, |lazy, page| lazy.begin(page)) {
        sh.lazy_page.store(value, Ordering::Relaxed);
        return Ok(());
    }
    v.pv.lazy_deadline = before;
    v.pv.lazy = Lazy::default();
    Err(Invalid)
}

/// IA32_TSC_DEADLINE was written, and is taken. It may have passed. A write of user space's is not attended, whatever stands in the page:
/// no departure comes behind it.
pub(super) fn written<B: Backend, H: Host<Cpu = B::Cpu>>(
    v: &mut Vcpu<B>,
    sh: &VcpuShared,
    host: &H,
    deadline: u64,
    now: &Now,
    origin: Origin,
) {
    if !enabled(v.pv.lazy_deadline) {
        return;
    }
    if deadline != 0 {
        let told = if origin == Origin::Guest { told(v, sh) } else { Told::NOTHING };
        tell(v, sh, host, false, deadline, told);
    }
    let elsewhere = v.passthrough.takes_writes() || v.lapic.timer_masked();
    let attend = origin == Origin::Guest && sh.active(LazyDeadline) && deadline > now.guest_tsc && !elsewhere;
    step(v, sh, host, false, |lazy, page| if attend { lazy.update(page, deadline) } else { lazy.stop(page) });
    if v.pv.lazy.armed() != 0 {
        sh.count_hit(LazyDeadline);
    }
}

/// What the guest means with a write of `value`, in its own ticks; it is `tsc`.
pub(super) fn meant<B: Backend, H: Host<Cpu = B::Cpu>>(v: &Vcpu<B>, host: &H, value: u64, tsc: u64) -> u64 {
    let page = Page { v, host, sleeps: false };
    let stale = if value != 0 && shifts(v) { v.pv.lazy.stale(&page, value) } else { None };
    stale.unwrap_or_else(|| to_guest(v, value, tsc))
}

/// What is in the register, or was written to it, in the guest's ticks; it is `tsc`.
pub(super) fn to_guest<B: Backend>(v: &Vcpu<B>, register: u64, tsc: u64) -> u64 {
    if register == 0 || v.pv.lazy.told().offset == 0 {
        return register;
    }
    let now = v.guest_tsc(tsc);
    if register > tsc {
        now.saturating_add(register - tsc)
    } else {
        now.saturating_sub(tsc - register).max(1)
    }
}

/// The guest subtracts the offset of its TSC, where it is told to.
pub fn shifts<B: Backend>(v: &Vcpu<B>) -> bool {
    v.pv.lazy_deadline & SHIFTS == SHIFTS && v.tsc_offset != 0 && !v.rate.is_scaled()
}

/// It requests its vector itself, where it is told to.
pub fn asks<B: Backend>(v: &Vcpu<B>) -> bool {
    v.pv.lazy_deadline & ASKS == ASKS
}

/// What the guest is to do with its deadlines, while passthrough may lend it the timer.
fn told<B: Backend>(v: &Vcpu<B>, sh: &VcpuShared) -> Told {
    if !sh.active(TimerPassthrough) || v.lapic.timer_masked() {
        return Told::NOTHING;
    }
    let offset = if shifts(v) { v.tsc_offset } else { 0 };
    Told { offset, inside: u64::from(sh.active(TimerInGuest)) }
}

/// From here on it does that; if `deadline`, which was written, is what it means.
fn tell<B: Backend, H: Host<Cpu = B::Cpu>>(
    v: &mut Vcpu<B>,
    sh: &VcpuShared,
    host: &H,
    sleeps: bool,
    deadline: u64,
    told: Told,
) {
    if (v.pv.lazy.told(), told) != (Told::NOTHING, Told::NOTHING) {
        step(v, sh, host, sleeps, |lazy, page| lazy.tell(page, deadline, told));
    }
}

/// Nobody is to be found between the look at *inside* and the write: on another host the descriptor may be anything. The guest's code
/// goes back to its start. Not in a slice, whose exit is still to be answered. `false`: not known yet, an instruction is under way or the
/// page out of reach.
fn put_back<B: Backend, H: Host<Cpu = B::Cpu>>(v: &mut Vcpu<B>, host: &H) -> bool {
    if !v.in_kernel() {
        return true;
    }
    if v.mid_instruction() {
        return false;
    }
    let page = Page { v, host, sleeps: true };
    let (Some(start), Some(length)) = (page.load(SEQUENCE), page.load(LENGTH)) else { return false };
    if v.b.rip().wrapping_sub(start) < length {
        v.b.set_rip(start);
    }
    true
}

/// What was armed has come, or is about to. `true`: the guest wants a later deadline, which is the APIC's now.
pub(super) fn put_off<B: Backend, H: Host<Cpu = B::Cpu>>(
    v: &mut Vcpu<B>,
    sh: &VcpuShared,
    host: &H,
    now: &Now,
) -> bool {
    if v.pv.lazy.armed() == 0 {
        return false;
    }
    let Some(next) =
        step(v, sh, host, false, |lazy, page| lazy.clear(page)).filter(|next| *next > now.guest_tsc)
    else {
        return false;
    };
    v.lapic.set_tsc_deadline(next);
    step(v, sh, host, false, |lazy, page| lazy.go_on(page, next));
    let deeds = sh.stats.deeds(LazyDeadline);
    // The write that did not exit, and what came in its place.
    deeds.saved.bump();
    deeds.added.bump();
    true
}

/// How the timer works is about to change, or has: the APIC's deadline is the guest's last, and its next write exits.
pub fn clear<B: Backend, H: Host<Cpu = B::Cpu>>(v: &mut Vcpu<B>, sh: &VcpuShared, host: &H) {
    unattended(v, sh, host);
    untold(v, sh, host);
}

/// The APIC's deadline is the guest's last, and its next write comes.
pub fn unattended<B: Backend, H: Host<Cpu = B::Cpu>>(v: &mut Vcpu<B>, sh: &VcpuShared, host: &H) {
    end(v, sh, host, false);
}

/// The guest writes in its own ticks, and does nothing else.
pub fn untold<B: Backend, H: Host<Cpu = B::Cpu>>(v: &mut Vcpu<B>, sh: &VcpuShared, host: &H) {
    tell(v, sh, host, false, 0, Told::NOTHING);
}

fn end<B: Backend, H: Host<Cpu = B::Cpu>>(v: &mut Vcpu<B>, sh: &VcpuShared, host: &H, sleeps: bool) {
    let armed = v.pv.lazy.armed();
    if armed == 0 {
        return;
    }
    let last = step(v, sh, host, sleeps, |lazy, page| lazy.clear(page));
    // Unless the change has disarmed it.
    if let Some(last) = last.filter(|_| v.lapic.tsc_deadline() == armed) {
        v.lapic.set_tsc_deadline(last);
        sh.stats.deeds(LazyDeadline).saved.bump();
    }
}

/// User space has the vCPU next, and perhaps another host behind it, which has never heard of the page.
pub fn depart<B: Backend, H: Host<Cpu = B::Cpu>>(v: &mut Vcpu<B>, sh: &VcpuShared, host: &H) {
    end(v, sh, host, true);
    tell(v, sh, host, true, 0, Told::NOTHING);
    settle(v, sh, host);
}

/// Whoever runs after INIT has not told us about its memory.
pub fn forget<B: Backend, H: Host<Cpu = B::Cpu>>(v: &mut Vcpu<B>, sh: &VcpuShared, host: &H) {
    depart(v, sh, host);
    sh.lazy_page.store(0, Ordering::Relaxed);
    v.chosen = false;
}

/// Before the guest runs: what a slice could not write, or not look at.
pub fn settle<B: Backend, H: Host<Cpu = B::Cpu>>(v: &mut Vcpu<B>, sh: &VcpuShared, host: &H) {
    if v.pv.lazy.owes() {
        step(v, sh, host, true, |lazy, page| lazy.settle(page));
    }
    if v.pv.lazy.strays() && put_back(v, host) {
        v.pv.lazy.found();
    }
}
