//! IPIs to many vCPUs by one hypercall (KVM_HC_SEND_IPI): bit n of `bits` names the APIC id `lowest` + n.

use crate::host::Host;
use crate::shared::VcpuShared;
use exitless_chooser::{Fallback, Mechanism::PvIpi};
use exitless_pv_abi::KVM_EINVAL;
use exitless_x86::apic::{DeliveryMode, Icr, InterruptMessage, Shorthand};

/// Most targets that are sent to with interrupts off.
const FEW: u32 = 16;

/// Few enough to be sent to with interrupts off.
pub fn are_few(bits: u128) -> bool {
    bits.count_ones() <= FEW
}

/// `sent` as [`send`] answered; `slow`: with interrupts on.
pub fn count(sh: &VcpuShared, sent: i64, slow: bool) {
    if !sh.active(PvIpi) {
        return;
    }
    if slow {
        return sh.count_fallback(PvIpi, Fallback::Targets);
    }
    sh.count_hit(PvIpi);
    // Each would have been a write of the ICR.
    sh.stats.deeds(PvIpi).saved.add(sent.saturating_sub(1).max(0) as u64);
}

/// How many took the IPI that `icr` describes, or a negative error.
pub fn send<H: Host>(host: &H, mut bits: u128, lowest: u32, icr: u64) -> i64 {
    let mut asked = Icr::from(icr).message(true);
    if asked.logical || asked.shorthand != Shorthand::None {
        return -KVM_EINVAL;
    }
    // As in the ICR itself (SDM vol. 3A, 11.6.1).
    asked.level &= asked.mode == DeliveryMode::INIT;
    let mut taken = 0;
    while bits != 0 {
        let Some(destination) = lowest.checked_add(bits.trailing_zeros()) else { break };
        bits &= bits - 1;
        taken += i64::from(host.send_to(destination, &InterruptMessage { destination, ..asked }));
    }
    taken
}
