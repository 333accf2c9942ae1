//! Writes to a device's page whose instruction is known: see the head of [`crate::exits::doorbell`].

use crate::backend::{Backend, SlatFault};
use crate::exits::doorbell;
use crate::host::Host;
use crate::outcome::Fast;
use crate::shared::VcpuShared;
use crate::vcpu::Vcpu;

pub(super) fn handle<B: Backend, H: Host<Cpu = B::Cpu>>(
    v: &mut Vcpu<B>,
    sh: &VcpuShared,
    host: &H,
    fault: SlatFault,
) -> Fast {
    let ring = doorbell::may_ring(fault) && doorbell::rung(v, sh, host, fault.gpa);
    if !ring {
        return Fast::Slow;
    }
    sh.stats.pf_taken.bump();
    Fast::Reenter
}
