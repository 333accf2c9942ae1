//! CPUID without leaving the slice.

use crate::backend::Backend;
use crate::host::Host;
use crate::outcome::Fast;
use crate::skip;
use crate::vcpu::Vcpu;

pub(super) fn handle<B: Backend, H: Host<Cpu = B::Cpu>>(v: &mut Vcpu<B>, host: &H) -> Fast {
    if !v.b.skip_instruction() {
        let Some(next) = skip::next_rip(v, host, true) else { return Fast::Slow };
        v.finish_skip(next);
    }
    crate::exits::cpuid::execute(v);
    Fast::Reenter
}
