//! IPIs that guests send by themselves: a window to the descriptors, and the CPU's own ICR. The protocol, and what the guest does, is in
//! `docs/protocols/shared-descriptor.md`.
//!
//! ```text
//!              MSR                      follow, if nothing stands against it
//!   nothing ─────────▶ asked, may send ──────────────────────────────────────▶ sends (ApicKind::X2ApicRaw)
//!      ▲                 ▲                                                         │ end: the switch, the APIC's mode
//!      │ user space      │ again: it writes MSR_EXITLESS_ICR                       │ depart: user space
//!      │ sets registers  └────────────────────── asked ◀───────────────────────────┘
//! ```
//! Whoever ends it finds the vCPU before its sequence, or behind it ([`put_back`]).

use crate::backend::{ApicKind, Backend};
use crate::host::Host;
use crate::shared::{Request, VcpuShared};
use crate::vcpu::Vcpu;
use crate::vcpu::raw::Raw;
use exitless_chooser::Mechanism::PvIpiRaw;
use exitless_chooser::Reason;
use exitless_lapic::Mode;
use exitless_policy::msr::MsrKind;
use exitless_policy::{Invalid, Origin, canonical};
use exitless_posted::Flag;
use exitless_pv_abi::{EXITLESS_DESCRIPTOR_RAW, EXITLESS_DESCRIPTOR_SHARED, EXITLESS_YES, exitless_feature};

/// What stands against the leaves that tell of it, whatever the guest does.
pub const FACTS: [Reason; 5] =
    [Reason::NoIrqchip, Reason::NotAllowed, Reason::HostXApic, Reason::HardwarePosts, Reason::NoWindow];

/// CPUID tells of the MSRs.
pub fn shown<B: Backend>(v: &Vcpu<B>) -> bool {
    v.cpuid.own() & exitless_feature::RAW_SEND != 0
}

/// MSR_EXITLESS_ICR is there: also for whom the switch was moved from under its feet.
pub fn has_icr<B: Backend>(v: &Vcpu<B>) -> bool {
    shown(v) || v.pv.raw.asked()
}

/// MSR_EXITLESS_DESCRIPTOR is written. That it sends by itself is for the guest alone to say: it has to know which register it writes next.
///
/// # Errors
/// [`Invalid`]: CPUID does not show it.
pub fn set<B: Backend, H: Host<Cpu = B::Cpu>>(
    v: &mut Vcpu<B>,
    host: &H,
    value: u64,
    origin: Origin,
) -> Result<(), Invalid> {
    let own = v.cpuid.own();
    let (shared, raw) = (value & EXITLESS_DESCRIPTOR_SHARED != 0, value & EXITLESS_DESCRIPTOR_RAW != 0);
    if shared && own & exitless_feature::SHARED_DESCRIPTOR == 0 || raw && !(shared && shown(v)) {
        return Err(Invalid);
    }
    let guest = origin == Origin::Guest;
    v.pv.raw.descriptor = if guest { value } else { value & !EXITLESS_DESCRIPTOR_RAW };
    v.pv.raw.may = raw && guest;
    v.chosen = false;
    if shared {
        host.open_window();
    }
    Ok(())
}

/// The sequence is another. Where it sends by the old one, it has to ask again.
///
/// # Errors
/// [`Invalid`]: CPUID does not show it, or its end is no address.
pub fn set_sequence<B: Backend>(v: &mut Vcpu<B>, kind: MsrKind, value: u64) -> Result<(), Invalid> {
    let Raw { start, parts, .. } = v.pv.raw;
    let (start, parts) = if kind == MsrKind::Sequence { (value, parts) } else { (start, value) };
    // RIP may become either, and an entry with one that is not canonical fails.
    if value != 0 && !(shown(v) && canonical(start.wrapping_add(parts >> 16), v.cpuid.caps().wide)) {
        return Err(Invalid);
    }
    v.pv.raw.descriptor &= !EXITLESS_DESCRIPTOR_RAW;
    v.chosen = false;
    (v.pv.raw.start, v.pv.raw.parts) = (start, parts);
    Ok(())
}

/// Before each slice: whether siblings find this APIC.
pub(super) fn admit<B: Backend, H: Host<Cpu = B::Cpu>>(v: &mut Vcpu<B>, sh: &VcpuShared, host: &H) {
    if v.vapic.pid.is_some() || !sh.apic.can_be_shown() {
        return;
    }
    let x2apic = host.irqchip() && v.lapic.mode() == Mode::X2Apic && v.lapic.sw_enabled();
    if v.vapic.found == x2apic {
        return;
    }
    // A fact that an administrator sees.
    (v.vapic.found, v.vapic.x2apic, v.chosen) = (x2apic, x2apic, false);
    sh.apic.posted().show(Flag::Found, if x2apic { EXITLESS_YES } else { 0 });
}

/// Before the APIC forgets what is pending.
pub(super) fn retire<B: Backend>(v: &mut Vcpu<B>, sh: &VcpuShared) {
    if v.vapic.pid.is_none() && sh.apic.can_be_shown() && v.vapic.found {
        (v.vapic.found, v.vapic.x2apic, v.chosen) = (false, false, false);
        sh.apic.posted().show(Flag::Found, 0);
    }
}

/// Before each slice, once everything else was chosen: the ICR opens, or closes.
pub fn follow<B: Backend, H: Host<Cpu = B::Cpu>>(v: &mut Vcpu<B>, sh: &VcpuShared, host: &H) {
    let sends = v.vapic.kind == ApicKind::X2ApicRaw;
    let wanted = v.pv.raw.may() && sh.active(PvIpiRaw);
    if sends && !wanted {
        end(v, sh, host);
        become_kind(v, ApicKind::X2Apic);
    } else if v.pv.raw.may && !wanted {
        (v.pv.raw.may, v.chosen) = (false, false);
    } else if wanted && v.vapic.kind == ApicKind::X2Apic {
        become_kind(v, ApicKind::X2ApicRaw);
        sh.apic.posted().show(Flag::Sends, EXITLESS_YES);
        sh.count_hit(PvIpiRaw);
    }
}

/// The registers stay where they are.
fn become_kind<B: Backend>(v: &mut Vcpu<B>, kind: ApicKind) {
    v.vapic.kind = kind;
    v.b.set_apic(kind);
}

/// The vCPU sends no more, if it did. Its kind becomes another.
pub(super) fn end<B: Backend, H: Host<Cpu = B::Cpu>>(v: &mut Vcpu<B>, sh: &VcpuShared, host: &H) {
    if v.vapic.kind != ApicKind::X2ApicRaw {
        return;
    }
    sh.apic.posted().show(Flag::Sends, 0);
    // Never behind the guest's back: between its look at the flag and its write of the ICR that register stays what it was.
    (v.pv.raw.may, v.chosen) = (false, false);
    put_back(v, host);
}

/// User space has the vCPU next, and perhaps another host behind it, which has never heard of the window.
pub fn depart<B: Backend, H: Host<Cpu = B::Cpu>>(v: &mut Vcpu<B>, sh: &VcpuShared, host: &H) {
    if v.vapic.kind == ApicKind::X2ApicRaw {
        end(v, sh, host);
        become_kind(v, ApicKind::X2Apic);
    }
}

/// The thread may lose its CPU, for long. Siblings that send by themselves stop behind what it has announced and not told.
pub fn pauses<B: Backend, H: Host<Cpu = B::Cpu>>(v: &Vcpu<B>, host: &H) {
    if v.vapic.kind == ApicKind::X2ApicRaw && leaves(v).is_some_and(|(_, posted)| posted) {
        host.all_look();
    }
}

/// The guest had to exit to send something, and said so by the register: from its next instruction on it need not.
pub(crate) fn again<B: Backend, H: Host<Cpu = B::Cpu>>(v: &mut Vcpu<B>, sh: &VcpuShared, host: &H) {
    if v.pv.raw.asked() && !v.pv.raw.may && host.wanted().has(PvIpiRaw) {
        (v.pv.raw.may, v.chosen) = (true, false);
        sh.request(Request::MECHANISMS);
    }
}

/// RESET or INIT: there is nothing to go back to.
pub(crate) fn forget<B: Backend>(v: &mut Vcpu<B>, sh: &VcpuShared) {
    if v.vapic.kind == ApicKind::X2ApicRaw {
        sh.apic.posted().show(Flag::Sends, 0);
        become_kind(v, ApicKind::X2Apic);
    }
    v.pv.raw = Raw::default();
    v.chosen = false;
}

impl<B: Backend> Vcpu<B> {
    /// User space writes registers: what runs next may be another kernel with other code where the sequence was.
    pub fn forget_sequence(&mut self) {
        self.pv.raw = Raw::default();
        self.chosen = false;
    }
}

/// As [`Raw::leaves`], where it may be in the sequence: in the kernel, and in 64-bit mode, which both addresses are for.
fn leaves<B: Backend>(v: &Vcpu<B>) -> Option<(u64, bool)> {
    let found = v.pv.raw.leaves(v.b.rip())?;
    v.in_kernel().then_some(found)
}

/// Nobody is to be found in the middle of the sequence.
fn put_back<B: Backend, H: Host<Cpu = B::Cpu>>(v: &mut Vcpu<B>, host: &H) {
    // An instruction of it that is being emulated is none that the protocol knows.
    if v.mid_instruction() {
        return;
    }
    let Some((rip, posted)) = leaves(v) else { return };
    v.b.set_rip(rip);
    if posted {
        // Which vCPU was meant only its registers tell, as the guest keeps them.
        host.all_look();
    }
}
