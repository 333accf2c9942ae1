//! Hypercalls without leaving the slice: those that need registers and other vCPUs' mailboxes, and nobody to yield to.

use crate::backend::Backend;
use crate::exits::hypercall::{self, Call};
use crate::host::Host;
use crate::outcome::Fast;
use crate::shared::VcpuShared;
use crate::skip;
use crate::vcpu::Vcpu;
use exitless_x86::regs::efer;

pub(super) fn handle<B: Backend, H: Host<Cpu = B::Cpu>>(v: &mut Vcpu<B>, sh: &VcpuShared, host: &H) -> Fast {
    // Long mode is protected mode; real mode, where the instruction faults, is slow.
    if v.b.efer() & efer::LMA == 0 {
        return Fast::Slow;
    }
    let call = Call::of(v, host);
    if !call.is_quick(v, sh, host) || skip::over(v, host).is_err() {
        return Fast::Slow;
    }
    hypercall::execute(v, sh, host, call, false);
    Fast::Reenter
}
