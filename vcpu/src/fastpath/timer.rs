//! The CPU's timer ran out: the APIC's vector goes in with the next entry, if it is time.

use crate::backend::Backend;
use crate::host::Host;
use crate::outcome::Fast;
use crate::shared::VcpuShared;
use crate::timer::{self, passthrough};
use crate::vcpu::Vcpu;
use exitless_chooser::Mechanism::TimerFastpath;

pub(super) fn handle<B: Backend, H: Host<Cpu = B::Cpu>>(v: &mut Vcpu<B>, sh: &VcpuShared, host: &H) -> Fast {
    if sh.timer.is_guest() {
        // The host's own deadline has come: its timer goes off when the slice ends.
        sh.stats.irq_exits.bump();
        return Fast::Done;
    }
    if !sh.active(TimerFastpath) {
        return Fast::Slow;
    }
    sh.count_hit(TimerFastpath);
    if !timer::ran_out(v, sh, host) {
        // A timer that was disarmed since, or is a little early.
        return Fast::Reenter;
    }
    // Where the CPU delivers, it has the vector.
    v.event_dirty |= !v.vapic.in_page;
    Fast::Reenter
}

/// A deadline came of the timer that the guest has for itself.
pub(super) fn rang<B: Backend, H: Host<Cpu = B::Cpu>>(v: &mut Vcpu<B>, sh: &VcpuShared, host: &H) -> Fast {
    passthrough::rang(v, sh, host);
    Fast::Reenter
}
