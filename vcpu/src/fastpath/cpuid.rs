//! CPUID without leaving the slice.

use super::Fast;
use crate::backend::Backend;
use crate::host::Host;
use crate::skip;
use crate::vcpu::Vcpu;

pub(super) fn handle<B: Backend, H: Host<Cpu = B::Cpu>>(v: &mut Vcpu<B>, host: &H) -> Fast {
    let Some(next) = skip::next_rip(v, host, true) else { return Fast::Slow };
    crate::exits::cpuid::execute(v);
    v.finish_skip(next);
    Fast::Reenter
}
