//! Which mechanisms this vCPU uses: chosen anew before the next entry wherever a fact or a switch has moved.

use crate::apic::raw;
use crate::backend::Backend;
use crate::host::Host;
use crate::shared::VcpuShared;
use crate::timer;
use crate::vcpu::Vcpu;
use crate::vcpu::pv::enabled;
use exitless_chooser::Mechanism::{LazyDeadline, PvIpiRaw, TimerPassthrough};
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
    let lazy = host.wanted().has(LazyDeadline) && host.irqchip() && v.cpuid.caps().tsc_deadline;
    let ticks = host.wanted().has(TimerPassthrough)
        && host.irqchip()
        && v.cpuid.caps().tsc_deadline
        && v.b.has_timer();
    let shown = |shown: bool, feature| if shown { feature } else { 0 };
    let raw = host.wanted().has(PvIpiRaw) && raw::FACTS.iter().all(|reason| !facts.has(*reason));
    let raw = shown(raw, exitless_feature::SHARED_DESCRIPTOR | exitless_feature::RAW_SEND);
    let timers = shown(lazy, exitless_feature::LAZY_DEADLINE) | shown(ticks, exitless_feature::HOST_TICKS);
    v.cpuid.show_own(timers | raw);
    if !sh.active(LazyDeadline) {
        timer::lazy::unattended(v, sh, host);
    }
    if !sh.active(TimerPassthrough) {
        timer::lazy::unshifted(v, sh, host);
    }
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
        .with(Reason::NotAsked, !enabled(v.pv.lazy_deadline))
        .with(Reason::UnsteadyTsc, !host.steady_tsc())
        .with(Reason::OwnTsc, apart)
        .with(Reason::ApartTsc, apart && !timer::lazy::shifts(v))
        .with(Reason::OtherTimer, !v.by_deadline)
        .with(Reason::IdlesInside, v.in_guest.hlt || v.in_guest.mwait)
}
