//! AVIC: CPUs deliver interrupts and send IPIs, for APICs that are MSRs (x2AVIC). The rules are `exitless_avic`'s.
//!
//! A vCPU whose APIC is on in x2APIC mode is *found*: its entry in the VM's table is valid. Only where all of a VM are, its CPUs send
//! IPIs, for a broadcast reaches those alone that are found. One that is found takes IPIs whatever its entries do with the APIC: the
//! IRR is in the page. In a slice that may take them without an exit its entry says that it runs, and where.

use super::{vapic, work};
use crate::backend::{ApicKind, Backend};
use crate::host::Host;
use crate::outcome::Next;
use crate::shared::VcpuShared;
use crate::timer;
use crate::vcpu::Vcpu;
use exitless_avic::{Owed, State, inhibit};
use exitless_chooser::{Fallback, Mechanism::Avic};
use exitless_lapic::Mode;
use exitless_x86::apic::{Icr, reg};
use exitless_x86::msr::Msr;
use exitless_x86::svm::avic::Incomplete;

/// What the coming slice does with the APIC.
pub(super) fn kind<B: Backend, H: Host<Cpu = B::Cpu>>(
    v: &mut Vcpu<B>,
    sh: &VcpuShared,
    host: &H,
) -> ApicKind {
    let wanted = host.wanted().has(Avic);
    let not_the_apics = v.user_interrupt.is_some() || host.pic_pending() || v.want_window;
    let state = State {
        wanted,
        x2apic: host.irqchip() && v.lapic.mode() == Mode::X2Apic && v.lapic.sw_enabled(),
        blocked: v.debug.blocks_interrupts(),
        ext_int: not_the_apics && sh.apic.accepts_ext_int(),
        edge_eois: host.edge_eois(),
    };
    // Facts that an administrator can change; the others pass.
    v.chosen &= (v.vapic.x2apic, v.vapic.edge_eois) == (state.x2apic, state.edge_eois);
    (v.vapic.x2apic, v.vapic.edge_eois) = (state.x2apic, state.edge_eois);
    if state.x2apic {
        admit(v, host);
    } else {
        retire(v, host);
    }
    match inhibit(state) {
        Some(_) => ApicKind::Software,
        None if host.hardware_sends() => ApicKind::X2ApicIpis,
        None => ApicKind::X2Apic,
    }
}

fn admit<B: Backend, H: Host<Cpu = B::Cpu>>(v: &mut Vcpu<B>, host: &H) {
    if let Some(entry) = v.vapic.entry.filter(|_| !v.vapic.found) {
        v.vapic.found = true;
        entry.admit(v.vapic.backing);
        host.found_by_hardware(true);
    }
}

/// Hardware senders do not find the APIC any more, and CPUs stop to send.
pub(super) fn retire<B: Backend, H: Host<Cpu = B::Cpu>>(v: &mut Vcpu<B>, host: &H) {
    if let Some(entry) = v.vapic.entry.filter(|_| v.vapic.found) {
        v.vapic.found = false;
        entry.retire();
        host.found_by_hardware(false);
    }
}

/// A slice begins on this CPU, after `begin_guest`: who looked before and did not find the vCPU running tells it.
pub fn runs<B: Backend, H: Host<Cpu = B::Cpu>>(v: &Vcpu<B>, host: &H) {
    if let Some(entry) = v.vapic.entry.filter(|_| v.vapic.kind == ApicKind::X2ApicIpis) {
        entry.run(v.vapic.backing, host.apic_id());
    }
}

/// The slice is over. What hardware sent is in the IRR; the next entry looks there, and who wants to sleep.
pub fn stops<B: Backend>(v: &Vcpu<B>) {
    if let Some(entry) = v.vapic.entry.filter(|_| v.vapic.kind == ApicKind::X2ApicIpis) {
        entry.stop(v.vapic.backing);
    }
}

/// The guest wrote the ICR, and hardware did not do all of it. The instruction is done.
pub fn incomplete<B: Backend, H: Host<Cpu = B::Cpu>>(
    v: &mut Vcpu<B>,
    sh: &VcpuShared,
    host: &H,
    icr: u64,
    why: Incomplete,
) -> Next {
    match exitless_avic::incomplete(why) {
        Owed::Tell => {
            sh.count_fallback(Avic, Fallback::Elsewhere);
            host.tell_ipi(&Icr::from(icr).message(true));
        }
        Owed::Send => {
            sh.count_fallback(Avic, Fallback::Form);
            vapic::take_back(v, sh);
            let now = timer::now(v, host.now());
            let msr = Msr::X2APIC.0 + (reg::ICR >> 4);
            let asked = v.lapic.msr_write(&sh.apic, msr, icr, &now).unwrap_or_default();
            work::apply(v, sh, host, asked);
        }
    }
    Next::Again
}
