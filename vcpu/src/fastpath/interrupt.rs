//! Host interrupts and the guest's interrupt window: nothing to decode, the slice just ends.

use crate::backend::Backend;
use crate::outcome::Fast;
use crate::shared::VcpuShared;
use crate::vcpu::Vcpu;

pub(super) fn handle(sh: &VcpuShared) -> Fast {
    sh.stats.irq_exits.bump();
    Fast::Done
}

pub(super) fn window<B: Backend>(v: &mut Vcpu<B>, sh: &VcpuShared) -> Fast {
    sh.stats.irq_window_exits.bump();
    v.b.set_interrupt_window(false);
    v.event_dirty = true;
    Fast::Done
}
