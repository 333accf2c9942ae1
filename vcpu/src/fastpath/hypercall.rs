//! Hypercalls without leaving the slice: none of those there are needs more than registers.

use crate::backend::Backend;
use crate::exits::hypercall;
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
    if skip::over(v, host).is_err() {
        return Fast::Slow;
    }
    hypercall::execute(v, sh);
    Fast::Reenter
}
