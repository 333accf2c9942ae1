//! Inter-processor interrupts, sent without leaving the slice.
//!
//! A message whose targets can be looked up and are few costs a bounded time, whatever it delivers: bits in the targets' mailboxes,
//! and for each a notification, a kick or a wake-up. Nothing of a target's but what it shares is touched, and no lock but the
//! scheduler's is taken. What the sender itself is to look at makes it look, as for any other target: a request, or `event_dirty`.

pub(crate) mod quick;

use crate::backend::Backend;
use crate::host::Host;
use crate::shared::VcpuShared;
use crate::skip::Behind;
use crate::vcpu::Vcpu;
use exitless_chooser::Fallback;
use exitless_x86::apic::{DeliveryMode, InterruptMessage, Shorthand};

/// The ICR is written with `value`.
///
/// # Errors
/// Nothing was done, and why.
pub(crate) fn send<B: Backend, H: Host<Cpu = B::Cpu>>(
    v: &mut Vcpu<B>,
    sh: &VcpuShared,
    host: &H,
    value: u64,
    behind: Behind,
) -> Result<(), Fallback> {
    let message = v.lapic.icr_message(value).ok_or(Fallback::Form)?;
    if is_own(&message) {
        behind.go(v, host)?;
        let _ = sh.apic.accept(&message);
        look_at_own(v, sh);
    } else {
        host.send_ipi_to_few(&message, || behind.go(v, host))?;
    }
    v.lapic.keep_icr(value);
    Ok(())
}

/// For the sender alone, whatever its id is.
fn is_own(message: &InterruptMessage) -> bool {
    message.shorthand == Shorthand::SelfOnly && message.mode == DeliveryMode::FIXED
}

/// The sender's mailbox has something.
fn look_at_own<B: Backend>(v: &mut Vcpu<B>, sh: &VcpuShared) {
    if v.vapic.on() {
        let _ = sh.apic.posted().announce();
    } else {
        v.event_dirty = true;
    }
}
