//! The half of a local APIC that every CPU may touch: pending interrupts, pending events, published addressing.
//!
//! # Ordering
//! A sender writes TMR, then IRR, then (its caller's part) a request, and kicks if the target may be in the guest:
//! ```text
//!  sender                                   owner
//!  TMR bit     (relaxed)                    mode = in guest
//!  IRR bit     (AcqRel, read-modify-write)  fence(SeqCst)
//!  request     (Release)                    request set? -> mode = outside, take it (Acquire), scan the IRR
//!  fence(SeqCst)                            else enter the guest; a kick makes it leave
//!  target in guest (or blocked)? -> kick
//! ```
//! * Release of the request / Acquire of its taking: an owner that takes the request sees the IRR bit.
//! * The two SeqCst fences forbid "sender saw the old mode **and** owner saw no request", the only way to lose a wake-up.
//! * AcqRel on the IRR: an owner that sees the bit sees the TMR written before it; and a sender that finds the bit already set
//!   (coalesced, no request of its own) still has its earlier stores seen by the handler, because the owner's clearing of the bit
//!   acquires them.
//! * Only the owner clears IRR bits ([`Shared::take`]); it does so before the vector shows up in the ISR of the CPU it runs on.
//!
//! `tests/ordering.rs` checks both claims with loom, and checks that they break without the fences or with TMR after IRR.

use crate::ApicPage;
use crate::bitmap::{self, place};
use bytemuck::Zeroable;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use exitless_ipi::Address;
use exitless_posted::Descriptor;
#[cfg(doc)]
use exitless_x86::apic::apic_base;
use exitless_x86::apic::{DeliveryMode, InterruptMessage, lvt, reg};

/// What one message did to one APIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accepted {
    /// Nothing: APIC disabled, entry masked, illegal vector, reserved mode, INIT level de-assert.
    None,
    /// Taken, but it was pending already: whoever made it pending also made the request.
    Coalesced,
    /// A vector became pending in the IRR: raise an event request, wake or kick the owner.
    Event,
    /// An NMI was queued: request, wake, kick.
    Nmi,
    /// INIT or SIPI is pending ([`Shared::take_startup`]): request, wake, kick.
    Startup,
    /// The message says "ask the 8259": nothing is stored here, the owner must be kicked to look at the PIC.
    ExtInt,
}

impl Accepted {
    /// The owner has something new to look at.
    pub fn is_new(self) -> bool {
        !matches!(self, Self::None | Self::Coalesced)
    }
}

/// INIT and SIPI taken together; INIT is to be handled first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Startup {
    /// An INIT arrived.
    pub init: bool,
    /// Start page of a SIPI that arrived after the last INIT, or without one.
    pub sipi: Option<u8>,
}

/// Bits of `Shared::events`.
mod event {
    pub(super) const INIT: u32 = 1 << 9;
    pub(super) const SIPI: u32 = 1 << 10;
    pub(super) const SIPI_VECTOR: u32 = 0xff;
}

/// Error status bits that this model raises (SDM vol. 3A, figure 11-9).
pub(crate) mod esr {
    pub(crate) const SEND_ILLEGAL_VECTOR: u32 = 1 << 5;
    pub(crate) const RECEIVE_ILLEGAL_VECTOR: u32 = 1 << 6;
}

/// Most NMIs that can wait: one being blocked and one latched behind it.
const MAX_QUEUED_NMIS: u32 = 2;

/// Vectors below this are reserved for exceptions and illegal for the APIC.
pub(crate) const FIRST_LEGAL_VECTOR: u8 = 16;

/// What senders read. Written by the owner when the guest reprograms its APIC, rarely; so it has a cache line of its own.
#[derive(Debug, Zeroable)]
#[repr(C, align(64))]
struct Directory {
    address: AtomicU64,
    // A bit of the TMR is set, or was.
    levels: AtomicBool,
    lint0: AtomicU32,
    lint1: AtomicU32,
    error: AtomicU32,
}

/// The part of a local APIC that any CPU may touch, without locks. All zero: an absent APIC that accepts nothing.
#[derive(Debug, Zeroable)]
#[repr(C, align(64))]
pub struct Shared {
    // One cache line: what a sender of interrupts writes. Where the CPU has posted interrupts, it takes them from here.
    own: Descriptor,
    // Where it is instead, if it is to be shown to guests. Set before anybody knows of the APIC, as the pages.
    elsewhere: Option<&'static Descriptor>,
    // Set before anybody knows of the APIC.
    page: Option<&'static ApicPage>,
    // As `page`, where the IRR is there too.
    irr: Option<&'static ApicPage>,
    tmr: [AtomicU32; 8],
    directory: Directory,
    // The rest: written by the owner at each interrupt (PPR), or rare.
    ppr: AtomicU32,
    events: AtomicU32,
    nmis: AtomicU32,
    errors: AtomicU32,
}

impl AsRef<Self> for Shared {
    fn as_ref(&self) -> &Self {
        self
    }
}

impl Shared {
    /// Where the guest reads registers without an exit: the TMR's home is this page from now on, because with an interrupt that the
    /// CPU posts nobody comes by who could bring it there.
    pub fn use_page(&mut self, page: &'static ApicPage) {
        self.page = Some(page);
    }

    /// The descriptor is this one from now on, in memory that guests may be shown. Nothing was posted yet.
    pub fn use_descriptor(&mut self, descriptor: &'static Descriptor) {
        self.elsewhere = Some(descriptor);
    }

    /// Guests may be shown the descriptor.
    pub fn can_be_shown(&self) -> bool {
        self.elsewhere.is_some()
    }

    /// As [`Shared::use_page`], and the IRR's home is the page too: CPUs that send interrupts themselves know no other place (AVIC).
    /// The descriptor announces, no more.
    pub fn use_page_for_irr(&mut self, page: &'static ApicPage) {
        self.use_page(page);
        self.irr = Some(page);
    }

    /// Word `index` (0..8) of the IRR in the page, if it is there.
    fn irr(&self, index: usize) -> Option<&AtomicU32> {
        self.irr?.register(reg::IRR + index as u32 * 16)
    }

    /// Word `index` (0..4) of the IRR, 64 vectors to a word; 0 beyond.
    fn requested(&self, index: usize) -> u64 {
        let Some(page) = self.irr else { return self.posted().requested(index) };
        let half = |i: usize| {
            let word = page.register(reg::IRR + (2 * index + i) as u32 * 16);
            word.map_or(0, |w| u64::from(w.load(Ordering::Acquire)))
        };
        half(0) | half(1) << 32
    }

    /// Word `index` (0..8) of the TMR.
    fn tmr(&self, index: usize) -> Option<&AtomicU32> {
        let own = self.tmr.get(index)?;
        let Some(page) = self.page else { return Some(own) };
        page.register(reg::TMR + index as u32 * 16)
    }

    /// Makes `vector` pending; true if it was not pending before. The caller then requests and kicks (see the module's text).
    ///
    /// Does not look at enables or at the vector's legality: senders use [`Shared::accept`].
    pub fn post(&self, vector: u8, level: bool) -> bool {
        self.note_trigger(vector, level) && self.request(vector)
    }

    /// Into the IRR; true if it was not there.
    fn request(&self, vector: u8) -> bool {
        let (index, bit) = place(vector);
        match self.irr(index) {
            Some(irr) => irr.fetch_or(bit, Ordering::AcqRel) & bit == 0,
            None => self.posted().request(vector),
        }
    }

    /// `vector` is accepted, as level or edge triggered.
    #[inline(always)]
    fn note_trigger(&self, vector: u8, level: bool) -> bool {
        // A guest of x2APICs and MSIs has no levels at all.
        if level || self.directory.levels.load(Ordering::Relaxed) {
            self.change_trigger(vector, level)
        } else {
            true
        }
    }

    fn change_trigger(&self, vector: u8, level: bool) -> bool {
        let (index, bit) = place(vector);
        let Some(tmr) = self.tmr(index) else { return false };
        if level {
            self.expect_levels();
        }
        // The TMR rarely changes: reading first keeps the line shared between senders of the same kind.
        match (level, tmr.load(Ordering::Relaxed) & bit != 0) {
            (true, false) => _ = tmr.fetch_or(bit, Ordering::Relaxed),
            (false, true) => _ = tmr.fetch_and(!bit, Ordering::Relaxed),
            _ => (),
        }
        true
    }

    /// Before a bit of the TMR is set: whoever sees it, or what it stands for, sees this.
    fn expect_levels(&self) {
        if !self.directory.levels.load(Ordering::Relaxed) {
            self.directory.levels.store(true, Ordering::Release);
        }
    }

    /// As [`Shared::post`] of an edge, where the descriptor is the IRR (never with [`Shared::use_page_for_irr`]).
    #[inline(always)]
    pub fn post_edge(&self, vector: u8) -> bool {
        self.note_trigger(vector, false) && self.posted().request(vector)
    }

    /// Owner: accepts an edge of its own, which the caller then puts into the IRR, where that is; false: the vector is illegal, and the
    /// error noted.
    pub(crate) fn accept_own(&self, vector: u8) -> bool {
        if vector < FIRST_LEGAL_VECTOR {
            let _ = self.raise_error(esr::RECEIVE_ILLEGAL_VECTOR);
            return false;
        }
        self.note_trigger(vector, false)
    }

    /// Owner: clears the IRR bit; true if it was set.
    pub(crate) fn take(&self, vector: u8) -> bool {
        let (index, bit) = place(vector);
        match self.irr(index) {
            Some(irr) => irr.fetch_and(!bit, Ordering::AcqRel) & bit != 0,
            None => self.posted().withdraw(vector),
        }
    }

    /// Any vector is pending. Exact for the owner; a hint for others.
    pub fn has_irr(&self) -> bool {
        (0..4).any(|index| self.requested(index) != 0)
    }

    /// The IRR as the posted-interrupt descriptor that it is, unless [`Shared::use_page_for_irr`] moved it.
    #[inline]
    pub fn posted(&self) -> &Descriptor {
        self.elsewhere.unwrap_or(&self.own)
    }

    /// Highest pending vector, whatever the PPR.
    pub fn top_irr(&self) -> Option<u8> {
        bitmap::highest_of_64((0..4).map(|index| self.requested(index)))
    }

    /// The vector was last accepted as level triggered.
    pub fn is_level(&self, vector: u8) -> bool {
        let (index, bit) = place(vector);
        self.tmr(index).is_some_and(|tmr| tmr.load(Ordering::Relaxed) & bit != 0)
    }

    /// Word `index` (0..8) of the IRR; 0 beyond.
    pub(crate) fn irr_word(&self, index: usize) -> u32 {
        (self.requested(index / 2) >> (32 * (index % 2))) as u32
    }

    /// Word `index` (0..8) of the TMR; 0 beyond.
    pub(crate) fn tmr_word(&self, index: usize) -> u32 {
        self.tmr(index).map_or(0, |word| word.load(Ordering::Relaxed))
    }

    /// Owner, restoring: replaces word `index` of TMR and IRR.
    pub(crate) fn set_words(&self, index: usize, tmr: u32, irr: u32) {
        if let Some(tmr_word) = self.tmr(index) {
            if tmr != 0 {
                self.expect_levels();
            }
            tmr_word.store(tmr, Ordering::Relaxed);
            let shift = 32 * (index % 2);
            match self.irr(index) {
                Some(word) => word.store(irr, Ordering::Release),
                None => self.posted().replace(index / 2, 0xffff_ffff << shift, u64::from(irr) << shift),
            }
        }
    }

    /// Owner, at reset: nothing is pending, nothing was level triggered, no error was seen.
    pub(crate) fn clear_interrupts(&self) {
        (0..8).for_each(|index| self.set_words(index, 0, 0));
        self.errors.store(0, Ordering::Relaxed);
    }

    /// Owner: what senders compare destinations with.
    pub(crate) fn publish(&self, address: Address) {
        self.directory.address.store(address.into(), Ordering::Release);
    }

    /// Owner: the LVT entries that other CPUs deliver through.
    pub(crate) fn publish_lvt(&self, lint0: u32, lint1: u32, error: u32) {
        self.directory.lint0.store(lint0, Ordering::Release);
        self.directory.lint1.store(lint1, Ordering::Release);
        self.directory.error.store(error, Ordering::Release);
    }

    /// Owner: the processor priority, for lowest-priority arbitration.
    pub(crate) fn publish_ppr(&self, ppr: u8) {
        self.ppr.store(u32::from(ppr), Ordering::Relaxed);
    }

    /// What destinations are compared with now.
    pub fn address(&self) -> Address {
        self.directory.address.load(Ordering::Acquire).into()
    }

    /// The APIC is enabled in IA32_APIC_BASE: it takes part in message delivery.
    pub fn hw_enabled(&self) -> bool {
        self.address().hw_enabled()
    }

    /// The APIC is enabled in the SVR too: it accepts fixed and lowest-priority interrupts.
    pub fn sw_enabled(&self) -> bool {
        self.address().listens()
    }

    /// Lower wins lowest-priority arbitration (SDM vol. 3A, 11.6.2.4: the PPR stands for the APR). May be a moment old.
    pub fn arbitration_priority(&self) -> u8 {
        self.ppr.load(Ordering::Relaxed) as u8
    }

    /// Applies a message that names this APIC (see [`Address::names`]); what the caller then owes is in [`Accepted`].
    pub fn accept(&self, msg: &InterruptMessage) -> Accepted {
        self.accept_at(self.address(), msg)
    }

    /// The same, its address known.
    #[inline]
    pub(crate) fn accept_at(&self, address: Address, msg: &InterruptMessage) -> Accepted {
        match msg.mode {
            DeliveryMode::FIXED | DeliveryMode::LOWEST if !address.listens() => Accepted::None,
            DeliveryMode::FIXED | DeliveryMode::LOWEST => self.post_checked(msg.vector, msg.level),
            _ if !address.hw_enabled() => Accepted::None,
            DeliveryMode::NMI => self.queue_nmi(),
            // The INIT level de-assert message only set arbitration ids on old buses (SDM vol. 3A, 11.6.1).
            DeliveryMode::INIT if msg.level && !msg.assert => Accepted::None,
            DeliveryMode::INIT => self.queue_init(),
            DeliveryMode::STARTUP => self.queue_sipi(msg.vector),
            DeliveryMode::EXTINT => Accepted::ExtInt,
            _ => Accepted::None,
        }
    }

    /// An edge of this vector from somewhere else than the owner.
    pub fn accept_edge(&self, vector: u8) -> Accepted {
        if self.sw_enabled() { self.post_checked(vector, false) } else { Accepted::None }
    }

    /// Posts a legal vector; an illegal one becomes an error instead (SDM vol. 3A, 11.5.3).
    pub(crate) fn post_checked(&self, vector: u8, level: bool) -> Accepted {
        if vector < FIRST_LEGAL_VECTOR {
            return self.raise_error(esr::RECEIVE_ILLEGAL_VECTOR);
        }
        if self.post(vector, level) { Accepted::Event } else { Accepted::Coalesced }
    }

    /// Accumulates error bits; the first since the last ESR write fires the LVT error entry.
    pub(crate) fn raise_error(&self, bits: u32) -> Accepted {
        let armed = self.errors.fetch_or(bits, Ordering::AcqRel) == 0;
        let entry = self.directory.error.load(Ordering::Acquire);
        let vector = entry as u8;
        if !armed || entry & lvt::MASKED != 0 || vector < FIRST_LEGAL_VECTOR || !self.hw_enabled() {
            return Accepted::None;
        }
        if self.post(vector, false) { Accepted::Event } else { Accepted::Coalesced }
    }

    /// Owner, at an ESR write: the errors since the last one.
    pub(crate) fn take_errors(&self) -> u32 {
        self.errors.swap(0, Ordering::AcqRel)
    }

    /// Queues an NMI; at most two wait, more are lost as on hardware.
    pub fn queue_nmi(&self) -> Accepted {
        let queued = self.nmis.fetch_update(Ordering::AcqRel, Ordering::Relaxed, |count| {
            (count < MAX_QUEUED_NMIS).then_some(count + 1)
        });
        if queued.is_ok() { Accepted::Nmi } else { Accepted::Coalesced }
    }

    /// Owner: takes the queued NMIs, 0..=2.
    pub fn take_nmis(&self) -> u32 {
        // Whoever queues one asks the owner to look afterwards.
        if self.nmis.load(Ordering::Relaxed) == 0 { 0 } else { self.nmis.swap(0, Ordering::AcqRel) }
    }

    /// NMIs are queued.
    pub fn has_nmis(&self) -> bool {
        self.nmis.load(Ordering::Acquire) != 0
    }

    /// INIT forgets a SIPI that came before it.
    fn queue_init(&self) -> Accepted {
        let update = |events| Some(events & !(event::SIPI | event::SIPI_VECTOR) | event::INIT);
        _ = self.events.fetch_update(Ordering::AcqRel, Ordering::Relaxed, update);
        Accepted::Startup
    }

    /// The latest SIPI's vector counts. The owner drops it unless the vCPU waits for a SIPI.
    fn queue_sipi(&self, vector: u8) -> Accepted {
        let update = |events| Some(events & !event::SIPI_VECTOR | event::SIPI | u32::from(vector));
        _ = self.events.fetch_update(Ordering::AcqRel, Ordering::Relaxed, update);
        Accepted::Startup
    }

    /// Owner, restoring: the vector of the SIPI that waits or will be made to wait.
    pub fn restore_sipi_vector(&self, vector: u8) {
        let update = |events| Some(events & !event::SIPI_VECTOR | u32::from(vector));
        _ = self.events.fetch_update(Ordering::AcqRel, Ordering::Relaxed, update);
    }

    /// Owner, restoring: a SIPI waits, with the vector that was restored or that came last.
    pub fn restore_sipi(&self) {
        self.events.fetch_or(event::SIPI, Ordering::AcqRel);
    }

    /// Owner: takes INIT and SIPI. The vector stays, for [`Shared::restore_sipi`].
    pub fn take_startup(&self) -> Startup {
        const ALL: u32 = event::INIT | event::SIPI;
        let events = self.events.fetch_and(!ALL, Ordering::AcqRel);
        let sipi = (events & event::SIPI != 0).then_some(events as u8);
        Startup { init: events & event::INIT != 0, sipi }
    }

    /// The 8259's INTR output reaches this CPU: LINT0 is unmasked in ExtINT mode, or the APIC is disabled in IA32_APIC_BASE and its
    /// pin is the INTR pin (SDM vol. 3A, 11.4.3).
    pub fn accepts_ext_int(&self) -> bool {
        let entry = self.directory.lint0.load(Ordering::Acquire);
        !self.hw_enabled() || (entry & lvt::MASKED == 0 && lvt_mode(entry) == DeliveryMode::EXTINT)
    }
}

fn lvt_mode(entry: u32) -> DeliveryMode {
    DeliveryMode(((entry & lvt::MODE) >> 8) as u8)
}
