//! Intel's IPI virtualization: CPUs post fixed physical IPIs of guests in x2APIC mode to the targets' mailboxes (SDM vol. 3C, 30.1.6).
//!
//! A vCPU whose APIC is on in x2APIC mode is *found*: its entry in the VM's table is valid, whatever its own entries do with the APIC,
//! for software looks into the mailbox as well. Whoever is not found, and every other form, exits behind the write of the ICR. A
//! vCPU that sleeps is woken by the CPU's wake-up vector: `Host::block` sees to it.

use crate::backend::{ApicKind, Backend};
use crate::host::Host;
use crate::vcpu::Vcpu;
use exitless_chooser::Mechanism::IpiVirtualization;
use exitless_lapic::{ApicPage, Mode};
use exitless_x86::apic::reg;

/// Half of a 64-bit register: the ICR of the page is one (SDM vol. 3C, 30.5), where the APIC's other pages have two registers.
const ICR_HIGH: u32 = reg::ICR + 4;

/// What the coming slice does with an APIC that is on in x2APIC mode.
pub(super) fn kind<B: Backend, H: Host<Cpu = B::Cpu>>(v: &Vcpu<B>, host: &H) -> ApicKind {
    let wanted = v.b.posts_ipis() && host.wanted().has(IpiVirtualization);
    match v.vapic.kind {
        _ if wanted => ApicKind::X2ApicIpis,
        // Whether it stays that is looked at afterwards.
        ApicKind::X2ApicRaw => ApicKind::X2ApicRaw,
        _ => ApicKind::X2Apic,
    }
}

/// Before each slice: whether senders find this APIC.
pub(super) fn admit<B: Backend, H: Host<Cpu = B::Cpu>>(v: &mut Vcpu<B>, host: &H) {
    let Some(pid) = v.vapic.pid else { return };
    let x2apic = host.irqchip() && v.lapic.mode() == Mode::X2Apic && v.lapic.sw_enabled();
    if v.vapic.found == x2apic {
        return;
    }
    // A fact that an administrator sees.
    (v.vapic.found, v.vapic.x2apic, v.chosen) = (x2apic, x2apic, false);
    if x2apic {
        pid.admit(v.vapic.mailbox);
    } else {
        pid.retire();
    }
}

/// Before the APIC forgets what is pending.
pub(super) fn retire<B: Backend>(v: &mut Vcpu<B>) {
    if let Some(pid) = v.vapic.pid.filter(|_| v.vapic.found) {
        (v.vapic.found, v.vapic.x2apic, v.chosen) = (false, false, false);
        pid.retire();
    }
}

/// The ICR is one register of the page.
fn is_whole<B: Backend>(v: &Vcpu<B>) -> bool {
    v.vapic.kind == ApicKind::X2ApicIpis && !v.vapic.keeps_irr()
}

/// The command as hardware has it in the page: its halves.
pub(super) fn icr<B: Backend>(v: &Vcpu<B>, page: &ApicPage) -> (u32, u32) {
    (page.read(reg::ICR), page.read(if is_whole(v) { ICR_HIGH } else { reg::ICR2 }))
}

/// The page gets software's.
pub(super) fn show<B: Backend>(v: &Vcpu<B>, page: &ApicPage) {
    if is_whole(v) {
        page.write(ICR_HIGH, (v.lapic.icr() >> 32) as u32);
    }
}

/// The guest wrote the ICR, and hardware did not send it: the command.
pub fn unsent<B: Backend>(v: &Vcpu<B>) -> Option<u64> {
    let (low, high) = icr(v, v.b.apic_page().filter(|_| is_whole(v))?);
    Some(u64::from(low) | u64::from(high) << 32)
}
