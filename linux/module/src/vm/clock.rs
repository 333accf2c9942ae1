//! The VM's clocks: kvmclock and the generation of its TSCs, and what happens to them when the host's change.

use super::Vm;
use crate::global;
use core::sync::atomic::Ordering;
use exitless_host::time;
use exitless_vcpu::Request;
use exitless_vcpu::chooser::Mechanism::HostTsc;
use exitless_vcpu::clock::tsc::Rate;
use exitless_vcpu::clock::{Clock, Generation, Instant, agree};
use exitless_vcpu::host::MasterClock;

/// Under one lock: who compares the vCPUs' TSCs holds it, so that the last to change one sees all others.
#[derive(bytemuck::Zeroable)]
pub struct Clocks {
    clock: Clock,
    generation: Generation,
}

impl Clocks {
    /// Guest time zero is now.
    pub fn start(&mut self) {
        self.clock = Clock::start(time::tsc_khz(), instant(&time::snapshot()));
    }
}

/// What `KVM_GET_CLOCK` tells.
pub struct Reading {
    /// Guest time, ns.
    pub ns: u64,
    /// All vCPUs' pages and TSCs agree.
    pub stable: bool,
    /// When that was.
    pub host: time::Instant,
}

/// As the clocks take it.
pub fn instant(now: &time::Instant) -> Instant {
    let steady = now.by_tsc || !global::tsc_unsteady();
    Instant { tsc: now.tsc, base: now.base_ns, by_tsc: now.by_tsc, steady }
}

impl Vm {
    /// Guest time now.
    pub fn read_clock(&self) -> Reading {
        let c = self.clocks.lock();
        let host = time::snapshot();
        Reading { ns: c.clock.at(&instant(&host)), stable: c.clock.stable() && host.by_tsc, host }
    }

    /// `KVM_SET_CLOCK`: guest time is `ns` now.
    pub fn set_clock(&self, ns: u64) {
        let mut c = self.clocks.lock();
        let now = instant(&time::snapshot());
        self.settle_clock(&mut c, now);
        c.clock.set(ns, now);
        drop(c);
        self.request_all(Request::CLOCK);
    }

    /// The pair for clock pages.
    pub fn master_clock(&self) -> MasterClock {
        let mut c = self.clocks.lock();
        let now = instant(&time::snapshot());
        // The host's clock source may have changed, and we hear of it first.
        let due = self.settle_clock(&mut c, now);
        let (tsc, ns) = c.clock.page(now);
        let clock = MasterClock { tsc, ns, stable: c.clock.stable() };
        drop(c);
        if due {
            self.request_all(Request::CLOCK);
        }
        clock
    }

    /// `true`: all pages must be written again.
    fn settle_clock(&self, c: &mut Clocks, now: Instant) -> bool {
        c.clock.settle(agree(self.each_vcpu().map(|v| v.shared.tsc.get())), now)
    }

    /// Some vCPU's TSC is another, or a vCPU is new, or the host counts by something else: do all agree, and do the pages say so?
    pub fn tsc_changed(&self) {
        let mut c = self.clocks.lock();
        let due = self.settle_clock(&mut c, instant(&time::snapshot()));
        drop(c);
        if due {
            self.request_all(Request::CLOCK);
        }
    }

    /// Offset for the TSC of a vCPU that is new, or new at this rate.
    pub fn join_tsc(&self, rate: &Rate) -> u64 {
        let mut c = self.clocks.lock();
        c.generation.start_at_hosts(self.wants(HostTsc));
        c.generation.join(rate, &instant(&time::snapshot()))
    }

    /// Offset for a TSC write of user space. `tsc`: the vCPU's host TSC now.
    pub fn match_tsc(&self, value: u64, rate: &Rate, tsc: u64) -> u64 {
        let mut c = self.clocks.lock();
        let mut now = instant(&time::snapshot());
        if !now.steady {
            now.tsc = tsc;
        }
        c.generation.start_at_hosts(self.wants(HostTsc));
        c.generation.write(value, rate, &now)
    }

    /// User space gave a vCPU's TSC this offset.
    pub fn tsc_offset_set(&self, offset: u64, rate: &Rate) {
        self.clocks.lock().generation.set_offset(offset, rate, &instant(&time::snapshot()));
    }

    /// The host was suspended at one instant and is back at the other. No thread of user space has run since: each vCPU finds
    /// its requests when it does.
    pub fn host_resumed(&self, suspended: &Instant, now: Instant) {
        let back = suspended.tsc.saturating_sub(now.tsc);
        let mut c = self.clocks.lock();
        c.clock.resume(suspended, now);
        c.generation.host_tsc_back(back);
        for v in self.each_vcpu() {
            v.host_tsc_back(back);
            for r in [Request::TSC, Request::STOPPED, Request::CLOCK, Request::SLEPT, Request::TIMER] {
                v.shared.request(r);
            }
        }
    }

    /// The host is about to be suspended.
    pub fn note_stop(&self) {
        for v in self.each_vcpu() {
            v.shared.request(Request::STOPPED);
            v.shared.request(Request::CLOCK);
        }
    }

    /// The host's clock source changed: pages are written anew, timers find their home.
    pub fn clock_source_changed(&self) {
        self.tsc_changed();
        self.request_all(Request::TIMER);
    }
}

/// The host is about to be suspended: this CPU's TSC now, and the base clock.
pub fn host_suspends() {
    if let Some(g) = global::get() {
        *g.suspended.lock() = instant(&time::snapshot());
    }
}

/// The host is back.
pub fn host_resumes() {
    let Some(g) = global::get() else { return };
    let suspended = *g.suspended.lock();
    let now = instant(&time::snapshot());
    global::each_vm(|vm| vm.host_resumed(&suspended, now));
}

/// The kernel counts time by another clock source.
pub fn source_changed() {
    global::tsc_unsteady();
    global::each_vm(Vm::clock_source_changed);
}

/// The guests stop, and are told so when they go on.
pub fn guests_stop() {
    global::each_vm(Vm::note_stop);
}

/// The host was suspended, perhaps with all CPUs on, and threads run again.
pub fn guests_go_on() {
    global::each_vm(|vm| vm.request_all(Request::SLEPT));
}

impl crate::vcpu::VcpuObj {
    /// The host's TSC went back by so many ticks while this vCPU did not run.
    fn host_tsc_back(&self, ticks: u64) {
        self.left_tsc.fetch_sub(ticks, Ordering::Relaxed);
        self.shared.tsc.host_back(ticks);
    }
}
