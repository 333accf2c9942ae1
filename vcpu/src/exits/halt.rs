//! HLT: sleep in the kernel, or tell user space when it has the APIC.

use super::ending::unreadable;
use crate::backend::Backend;
use crate::entry;
use crate::host::Host;
use crate::outcome::{Next, RunExit};
use crate::shared::{VcpuShared, mp};
use crate::skip;
use crate::stats::waker;
use crate::vcpu::Vcpu;
use core::sync::atomic::Ordering::Relaxed;
use exitless_x86::regs::rflags;

/// The vCPU halts unless something already waits.
pub fn handle<B: Backend, H: Host<Cpu = B::Cpu>>(v: &mut Vcpu<B>, sh: &VcpuShared, host: &H) -> Next {
    let Some(next) = skip::next_rip(v, host, false) else { return unreadable(v, sh, host) };
    v.finish_skip(next);
    sh.stats.halt_exits.bump();
    if !host.irqchip() {
        return if entry::wakes(v, sh, host) { Next::Again } else { Next::Leave(RunExit::Hlt) };
    }
    sh.waker.store(waker::OTHER, Relaxed);
    sh.halted_open.store(v.b.rflags() & rflags::IF != 0, Relaxed);
    v.set_mp(sh, mp::HALTED);
    Next::Again
}
