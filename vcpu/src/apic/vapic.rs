//! The local APIC while the CPU virtualises it: interrupts are delivered, and ended, without an exit.
//!
//! Vocabulary: the *page* is the virtual-APIC page that hardware works on (SDM vol. 3C, 30.1); *requested* interrupts wait
//! in the posted-interrupt descriptor, which is the mailbox of `exitless_lapic::Shared`; *home* is where TPR, IRR and ISR are:
//!
//! ```text
//!             hand_over (a slice begins)
//!   software ───────────────────────────▶ page      sync, before each entry: requested ─▶ IRR of the page
//!      ▲  IRR: the descriptor               │       notification, in the guest: the same, by hardware
//!      └──── take_back (software looks) ────┘
//! ```
//! The TMR is always in the page, where there is one: senders write it. So is the IRR with AVIC, where VMRUN looks at it and the
//! descriptor announces only ([`super::avic`]). The home stays the page over exits that have nothing to do with the APIC. All else of
//! the hall sees software's registers, after `take_back`.
//!
//! A sender whose target may be in the guest announces and notifies, without a request: whoever enters the guest looks at
//! the descriptor after saying so ([`sync`] comes after `begin_guest`), and who goes to sleep looks once more
//! ([`VcpuShared::must_wake`]).

use super::ipiv;
use crate::backend::{ApicKind, Backend, InterruptStatus};
use crate::shared::VcpuShared;
use crate::vcpu::Vcpu;
use exitless_x86::apic::reg;

/// Offset of word `index` of a 256-bit register.
fn bank(first: u32, index: usize) -> u32 {
    first + index as u32 * 16
}

/// The word of 32 vectors from words of 64.
fn half(words: &[u64; 4], index: usize) -> u32 {
    words.get(index / 2).map_or(0, |w| (w >> (32 * (index % 2))) as u32)
}

fn highest(words: &[u64; 4]) -> u8 {
    let top = words.iter().enumerate().rev().find(|(_, w)| **w != 0);
    top.map_or(0, |(i, w)| (i as u8) << 6 | (63 - w.leading_zeros()) as u8)
}

/// In a slice, before its first entry.
pub fn hand_over<B: Backend>(v: &mut Vcpu<B>, sh: &VcpuShared) {
    if v.vapic.in_page || !v.vapic.on() {
        return;
    }
    let Some(page) = v.b.apic_page() else { return };
    if v.vapic.stale {
        v.lapic.show(|offset, value| page.write(offset, value));
        ipiv::show(v, page);
        v.vapic.stale = false;
    }
    page.write(reg::TPR, u32::from(v.lapic.tpr()));
    page.write(reg::PPR, u32::from(v.lapic.ppr()));
    let mut requests = [0; 4];
    if !v.vapic.keeps_irr() {
        sh.apic.posted().drain(&mut requests);
        (0..8).for_each(|i| page.write(bank(reg::IRR, i), half(&requests, i)));
    }
    for (i, in_service) in v.lapic.in_service().into_iter().enumerate() {
        page.write(bank(reg::ISR, i), in_service);
    }
    let status =
        InterruptStatus { requesting: highest(&requests), servicing: v.lapic.top_isr().unwrap_or(0) };
    v.b.set_interrupt_status(status);
    v.vapic.in_page = true;
}

/// After `begin_guest`: a sender took us for one whose CPU delivers, and its notification may be spent. `true`: do not enter,
/// `request::process` looks at what it announced.
pub fn missed<B: Backend>(v: &Vcpu<B>, sh: &VcpuShared) -> bool {
    !v.vapic.on() && sh.apic.posted().outstanding()
}

/// Before each entry, after `begin_guest`: what was posted and announced becomes requesting.
pub fn sync<B: Backend>(v: &mut Vcpu<B>, sh: &VcpuShared) {
    if !v.vapic.in_page {
        return;
    }
    if v.vapic.keeps_irr() {
        sh.apic.posted().settle();
        return;
    }
    let mut requests = [0; 4];
    if !sh.apic.posted().take(&mut requests) {
        return;
    }
    let Some(page) = v.b.apic_page() else { return };
    for i in 0..8 {
        let new = half(&requests, i);
        if new != 0 {
            let at = bank(reg::IRR, i);
            page.write(at, page.read(at) | new);
        }
    }
    let now = v.b.interrupt_status();
    let top = highest(&requests);
    if top > now.requesting {
        v.b.set_interrupt_status(InterruptStatus { requesting: top, ..now });
    }
}

/// In a slice: hardware would deliver one of the requests now, if interrupts were open.
pub fn deliverable<B: Backend>(v: &mut Vcpu<B>, sh: &VcpuShared) -> bool {
    sync(v, sh);
    let (Some(page), true) = (v.b.apic_page(), v.vapic.in_page) else { return false };
    let tpr = page.read(reg::TPR) as u8;
    let now = v.b.interrupt_status();
    now.requesting >> 4 > (tpr >> 4).max(now.servicing >> 4)
}

/// Makes software the home again.
pub fn take_back<B: Backend>(v: &mut Vcpu<B>, sh: &VcpuShared) {
    if !v.vapic.in_page {
        return;
    }
    v.vapic.in_page = false;
    let Some(page) = v.b.apic_page() else { return };
    let mut in_service = [0; 8];
    let mut requests = [0u64; 4];
    for (i, word) in in_service.iter_mut().enumerate() {
        *word = page.read(bank(reg::ISR, i));
        if v.vapic.keeps_irr() {
            continue;
        }
        let at = bank(reg::IRR, i);
        let requested = page.read(at);
        if requested != 0 {
            page.write(at, 0);
            if let Some(to) = requests.get_mut(i / 2) {
                *to |= u64::from(requested) << (32 * (i % 2));
            }
        }
    }
    let tpr = page.read(reg::TPR) as u8;
    let (low, high) = ipiv::icr(v, page);
    v.lapic.adopt(&sh.apic, tpr, in_service);
    if matches!(v.vapic.kind, ApicKind::XApic | ApicKind::X2ApicIpis) {
        v.lapic.adopt_icr(low, high);
    }
    for (i, bits) in requests.into_iter().enumerate().filter(|(_, bits)| *bits != 0) {
        sh.apic.posted().put_back(i, bits);
    }
}
