//! HLT while something waits that ends it: no trip out of the slice, and none through the scheduler.

use super::count::counted;
use crate::apic::vapic;
use crate::backend::Backend;
use crate::host::Host;
use crate::outcome::Fast;
use crate::shared::VcpuShared;
use crate::skip;
use crate::vcpu::Vcpu;
use exitless_chooser::{Fallback, Mechanism::HaltFastpath};
use exitless_x86::regs::rflags;

pub(super) fn handle<B: Backend, H: Host<Cpu = B::Cpu>>(v: &mut Vcpu<B>, sh: &VcpuShared, host: &H) -> Fast {
    if !sh.active(HaltFastpath) || v.b.rflags() & rflags::IF == 0 || !waits(v, sh) {
        return Fast::Slow;
    }
    counted(sh, HaltFastpath, go_on(v, sh, host))
}

fn go_on<B: Backend, H: Host<Cpu = B::Cpu>>(
    v: &mut Vcpu<B>,
    sh: &VcpuShared,
    host: &H,
) -> Result<(), Fallback> {
    skip::over(v, host)?;
    sh.stats.halt_exits.bump();
    sh.stats.halt_wakeup.bump();
    // HLT ended the interrupt shadow: what it held back may go in now.
    v.event_dirty |= !v.vapic.on();
    Ok(())
}

/// An interrupt of the APIC's is deliverable. Anything else that ends HLT is not looked for.
fn waits<B: Backend>(v: &mut Vcpu<B>, sh: &VcpuShared) -> bool {
    if v.vapic.on() {
        vapic::deliverable(v, sh)
    } else {
        !v.pv.eoi_offered && v.lapic.pending(&sh.apic).is_some()
    }
}
