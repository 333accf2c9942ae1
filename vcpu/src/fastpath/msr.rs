//! WRMSR of the TSC deadline, the most frequent of a tickless guest's exits: the timer moves in the CPU, and a deadline that
//! has passed is delivered by it. Only where the CPU has the timer and delivers: elsewhere arming may sleep.

use crate::backend::Backend;
use crate::host::Host;
use crate::outcome::Fast;
use crate::shared::VcpuShared;
use crate::timer;
use crate::vcpu::Vcpu;
use exitless_chooser::{Fallback, Mechanism::DeadlineFastpath};
use exitless_x86::msr::Msr;
use exitless_x86::regs::Gpr;

pub(super) fn write<B: Backend, H: Host<Cpu = B::Cpu>>(v: &mut Vcpu<B>, sh: &VcpuShared, host: &H) -> Fast {
    let g = v.b.gprs();
    let (msr, low, high) = (g.get(Gpr::Rcx) as u32, g.get(Gpr::Rax) as u32, g.get(Gpr::Rdx) as u32);
    if msr != Msr::TSC_DEADLINE.0 || !sh.active(DeadlineFastpath) {
        return Fast::Slow;
    }
    if v.timer_on_host || !v.b.skip_instruction() {
        let why = if v.timer_on_host { Fallback::Elsewhere } else { Fallback::Length };
        sh.count_fallback(DeadlineFastpath, why);
        return Fast::Slow;
    }
    sh.count_hit(DeadlineFastpath);
    sh.stats.by_msr.bump(msr);
    let m = host.now();
    let deadline = u64::from(high) << 32 | u64::from(low);
    let work = v.lapic.set_tsc_deadline(&sh.apic, deadline, &timer::now(v, m));
    if work.timer_changed {
        timer::arm(v, host, m);
    }
    if work.rescan {
        let _ = sh.apic.posted().announce();
    }
    Fast::Reenter
}
