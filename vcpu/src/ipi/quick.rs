//! Plain commands, which by far the most are: checked, posted and notified straight behind the world switch, and back into the guest.
//!
//! What the hall does around each other exit is left out, for nothing of it moves: the sender's registers but RIP and the ICR, its events,
//! its timers. So the guest goes on only where none of it was under way, and nobody asks for anything. Whatever is not plain or not to be
//! looked up is an exit as any other, as is each write under a single step and, on VMX, while the guest's debug registers are in the CPU.

use crate::backend::{Sender, Sent};
use crate::host::Host;
use crate::shared::VcpuShared;
use crate::stats::Stats;
use crate::vcpu::Vcpu;
use core::sync::atomic::Ordering::Relaxed;
use exitless_chooser::Mechanism::IpiValidated;
use exitless_ipi::PlainIpi;
use exitless_lapic::{Lapic, Mode};
use exitless_x86::msr::Msr;

/// For one slice.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Quick {
    /// The mechanism is active, the APIC in x2APIC mode, and the ICR software's.
    may: bool,
    /// How many were sent that no other exit followed: to be counted.
    alone: u64,
}

/// The sender for one entry.
pub(crate) struct Entry<'a, H> {
    quick: &'a mut Quick,
    lapic: &'a mut Lapic,
    event_dirty: &'a bool,
    sh: &'a VcpuShared,
    host: &'a H,
}

impl Quick {
    /// A slice begins: mode and mechanisms stay as they are until it ends.
    pub(crate) fn begin<B>(v: &Vcpu<B>, sh: &VcpuShared) -> Self {
        let ours = v.lapic.mode() == Mode::X2Apic && !v.vapic.keeps_irr();
        Self { may: ours && sh.active(IpiValidated), alone: 0 }
    }

    /// An entry of it.
    #[inline(always)]
    pub(crate) fn entry<'a, H>(
        &'a mut self,
        lapic: &'a mut Lapic,
        event_dirty: &'a bool,
        sh: &'a VcpuShared,
        host: &'a H,
    ) -> Entry<'a, H> {
        Entry { quick: self, lapic, event_dirty, sh, host }
    }

    /// It ends.
    pub(crate) fn end(self, stats: &Stats, number: u64) {
        if self.alone != 0 {
            stats.exits_of(number, self.alone);
            stats.fast.add(self.alone);
            stats.by_msr.add(Msr::X2APIC_ICR.0, self.alone);
            stats.deeds(IpiValidated).hits.add(self.alone);
        }
    }
}

/// [`crate::backend::Exit::Sent`].
pub(crate) fn count(sh: &VcpuShared) {
    sh.stats.by_msr.bump(Msr::X2APIC_ICR.0);
    sh.count_hit(IpiValidated);
}

impl<H: Host> Sender for Entry<'_, H> {
    #[inline(always)]
    fn send(&mut self, icr: u64, first: impl FnOnce() -> bool) -> Sent {
        // Who traces or measures hears of each exit.
        if !self.quick.may || self.host.tracing() || self.sh.measured.load(Relaxed) {
            return Sent::No;
        }
        let Some(plain) = PlainIpi::of(icr) else { return Sent::No };
        if !self.host.send_plain(plain, first) {
            return Sent::No;
        }
        self.lapic.keep_sent(icr);
        let posted = self.sh.apic.posted().outstanding();
        if posted || self.sh.pending() || self.host.work_pending() || *self.event_dirty {
            return Sent::Waits;
        }
        Sent::GoOn
    }

    #[inline(always)]
    fn goes_on(&mut self) {
        self.quick.alone += 1;
    }
}
