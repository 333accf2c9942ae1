//! CPUID without leaving the slice.

use crate::backend::Backend;
use crate::host::Host;
use crate::outcome::Fast;
use crate::skip;
use crate::vcpu::Vcpu;

pub(super) fn handle<B: Backend, H: Host<Cpu = B::Cpu>>(v: &mut Vcpu<B>, host: &H) -> Fast {
    if skip::over(v, host).is_err() {
        return Fast::Slow;
    }
    crate::exits::cpuid::execute(v);
    Fast::Reenter
}
