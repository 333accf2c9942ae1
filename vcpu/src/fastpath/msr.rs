//! WRMSR of the TSC deadline, the most frequent of a tickless guest's exits: the timer moves in the CPU or in the host, neither of
//! which sleeps, and a deadline that has passed is delivered without any.

use crate::backend::Backend;
use crate::host::{Host, Moment};
use crate::outcome::Fast;
use crate::shared::VcpuShared;
use crate::skip;
use crate::timer;
use crate::vcpu::Vcpu;
use exitless_chooser::{Fallback, Mechanism::DeadlineFastpath};
use exitless_x86::msr::Msr;
use exitless_x86::regs::Gpr;

pub(super) fn write<B: Backend, H: Host<Cpu = B::Cpu>>(v: &mut Vcpu<B>, sh: &VcpuShared, host: &H) -> Fast {
    let msr = v.b.gprs().get(Gpr::Rcx) as u32;
    if msr != Msr::TSC_DEADLINE.0 || !sh.active(DeadlineFastpath) {
        return Fast::Slow;
    }
    let deadline = v.b.gprs().edx_eax();
    if !v.b.skip_instruction() {
        let Some(next) = skip::next_rip(v, host, true) else {
            sh.count_fallback(DeadlineFastpath, Fallback::Length);
            return Fast::Slow;
        };
        v.finish_skip(next);
    }
    sh.count_hit(DeadlineFastpath);
    sh.stats.by_msr.bump(msr);
    let m = Moment { ns: 0, tsc: host.tsc() };
    // Where the CPU delivers, it has the vector.
    v.event_dirty |= timer::write_deadline(v, sh, host, deadline, m) && !v.vapic.in_page;
    Fast::Reenter
}
