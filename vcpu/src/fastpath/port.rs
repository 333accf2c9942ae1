//! IN and OUT to chips in the kernel, and OUT that somebody waits for, without leaving the slice.

use crate::backend::{Backend, IoAccess};
use crate::exits::io;
use crate::host::Host;
use crate::outcome::Fast;
use crate::shared::VcpuShared;
use crate::skip;
use crate::vcpu::Vcpu;
use exitless_chooser::{Fallback, Mechanism::PortFastpath};
use exitless_x86::regs::Gpr;

pub(super) fn handle<B: Backend, H: Host<Cpu = B::Cpu>>(
    v: &mut Vcpu<B>,
    sh: &VcpuShared,
    host: &H,
    access: IoAccess,
) -> Fast {
    if !sh.active(PortFastpath) {
        return Fast::Slow;
    }
    if access.string || v.watches() {
        let why = if access.string { Fallback::Form } else { Fallback::Watched };
        return slow(sh, why);
    }
    let Some(next) = skip::next_rip(v, host, true) else { return slow(sh, Fallback::Length) };
    let len = usize::from(access.size.min(4));
    let mut data = (v.b.gprs().get(Gpr::Rax) as u32).to_le_bytes();
    let Some(part) = data.get_mut(..len) else { return Fast::Slow };
    if access.input {
        if !host.pio_read(access.port, part) {
            return nobody(v, sh);
        }
        io::finish_in(v, access.size, u32::from_le_bytes(data));
    } else if !host.pio_write(access.port, part) && !host.pio_event(access.port, part) {
        return nobody(v, sh);
    }
    sh.count_hit(PortFastpath);
    io::count(sh, access.port);
    v.finish_skip(next);
    Fast::Reenter
}

/// The slow path need not ask the chips again.
fn nobody<B: Backend>(v: &mut Vcpu<B>, sh: &VcpuShared) -> Fast {
    v.no_chip = true;
    slow(sh, Fallback::Nobody)
}

fn slow(sh: &VcpuShared, why: Fallback) -> Fast {
    sh.count_fallback(PortFastpath, why);
    Fast::Slow
}
