//! Which mechanisms this vCPU uses: chosen anew before the next entry wherever a fact or a switch has moved.

use crate::apic::raw;
use crate::backend::Backend;
use crate::host::Host;
use crate::shared::VcpuShared;
use crate::timer;
use crate::vcpu::Vcpu;
use crate::vcpu::pv::enabled;
use exitless_chooser::Mechanism::{LazyDeadline, PvIpiRaw, TimerInGuest, TimerPassthrough};
use exitless_chooser::{Facts, Reason, active};
use exitless_pv_abi::exitless_feature;

/// Chooses, if something moved since.
pub fn choose<B: Backend, H: Host<Cpu = B::Cpu>>(v: &mut Vcpu<B>, sh: &VcpuShared, host: &H) {
    let by_deadline = v.lapic.expires_by_deadline();
    if core::mem::replace(&mut v.chosen, true) && v.by_deadline == by_deadline {
        return;
    }
    v.by_deadline = by_deadline;
    let facts = facts(v, sh, host);
    sh.chosen.set(active(host.wanted(), &facts), &facts);
    let shown = own_features(v, host, &facts);
    v.cpuid.show_own(shown);
    if !sh.active(LazyDeadline) {
        timer::lazy::unattended(v, sh, host);
    }
    if !sh.active(TimerPassthrough) || v.pv.lazy.told().inside != 0 && !sh.active(TimerInGuest) {
        timer::lazy::untold(v, sh, host);
    }
}

/// What our own leaves tell of.
fn own_features<B: Backend, H: Host<Cpu = B::Cpu>>(v: &Vcpu<B>, host: &H, facts: &Facts) -> u32 {
    let deadline = host.irqchip() && v.cpuid.caps().tsc_deadline;
    let lends = deadline && v.b.has_timer();
    let inside = lends && !facts.has(Reason::NoWindow) && !facts.has(Reason::HardwarePosts);
    let raw = raw::FACTS.iter().all(|reason| !facts.has(*reason));
    let window = exitless_feature::SHARED_DESCRIPTOR;
    [
        (deadline, LazyDeadline, exitless_feature::LAZY_DEADLINE),
        (lends, TimerPassthrough, exitless_feature::HOST_TICKS),
        (inside, TimerInGuest, exitless_feature::TIMER_IN_GUEST | window),
        (raw, PvIpiRaw, exitless_feature::RAW_SEND | window),
    ]
    .into_iter()
    .filter(|(able, mechanism, _)| *able && host.wanted().has(*mechanism))
    .fold(0, |shown, (.., features)| shown | features)
}

/// Whoever changes what is looked at here clears [`Vcpu::chosen`], on other threads by [`crate::Request::MECHANISMS`].
fn facts<B: Backend, H: Host<Cpu = B::Cpu>>(v: &Vcpu<B>, sh: &VcpuShared, host: &H) -> Facts {
    let caps = v.cpuid.caps();
    let apart = v.tsc_offset != 0 || v.rate.is_scaled();
    Facts { features: caps.pv, ..host.facts() }
        .with(Reason::NoIrqchip, !host.irqchip())
        .with(Reason::NoDelivery, !v.vapic.on())
        .with(
            Reason::NoX2Apic,
            (v.vapic.keeps_irr() || v.vapic.pid.is_some() || sh.apic.can_be_shown()) && !v.vapic.x2apic,
        )
        .with(Reason::NoWindow, !sh.apic.can_be_shown())
        .with(Reason::NotRaw, !v.pv.raw.may())
        .with(Reason::NoIpiv, !v.b.posts_ipis())
        .with(Reason::EdgeEois, v.vapic.edge_eois)
        .with(Reason::NoTimer, !v.b.has_timer())
        .with(Reason::NoDeadline, !caps.tsc_deadline)
        .with(Reason::NotAgreed, !timer::lazy::asks(v))
        .with(Reason::NotAsked, !enabled(v.pv.lazy_deadline))
        .with(Reason::UnsteadyTsc, !host.steady_tsc())
        .with(Reason::OwnTsc, apart)
        .with(Reason::ApartTsc, apart && !timer::lazy::shifts(v))
        .with(Reason::OtherTimer, !v.by_deadline)
        .with(Reason::IdlesInside, v.in_guest.hlt || v.in_guest.mwait)
}
