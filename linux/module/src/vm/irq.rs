//! Interrupts: GSIs into the chips, messages into local APICs, kicks to the vCPUs that got something.

use super::Vm;
use crate::vcpu::VcpuObj;
use crate::vendor::{Vendor, svm};
use core::sync::atomic::Ordering;
use exitless_host::cpu::{self, Ipi, Together};
use exitless_host::mem::KSlice;
use exitless_host::timer::Cancelled;
use exitless_host::{time, trace};
use exitless_hw_ops as ops;
use exitless_ipi::{Address, Few, PlainIpi, To};
use exitless_irqchip::chips::{Effect, IrqChips, delivered};
use exitless_irqchip::ioapic::WINDOW_SIZE;
use exitless_irqchip::lines::{LineStatus, Source};
use exitless_irqchip::msi::{DestinationFormat, Msi, VectorSet};
use exitless_irqchip::pic::{Pic, PicId};
use exitless_irqchip::pit::Pit;
use exitless_irqchip::routes::{PinMap, Route, ioapic_eoi_vectors, lookup, message};
use exitless_kvm_abi::{
    KVM_IRQCHIP_IOAPIC, KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK, KVM_X2APIC_API_USE_32BIT_IDS,
    kvm_ioapic_state, kvm_pic_state,
};
use exitless_lapic::{Accepted, Delivered, Shared, Targets, named, route, route_few};
use exitless_vcpu::Request;
use exitless_vcpu::stats::waker;
use exitless_x86::apic::InterruptMessage;

/// The chips of a VM, under one lock.
#[derive(bytemuck::Zeroable)]
pub struct Chips {
    /// 8259 pair and I/O APIC.
    pub irq: IrqChips,
    /// 8254.
    pub pit: Pit,
}

/// The published routes.
#[derive(bytemuck::Zeroable)]
pub struct RouteTable {
    /// Sorted by GSI.
    pub routes: KSlice<Route>,
    /// From pins back to GSIs.
    pub pins: PinMap,
}

impl AsRef<Shared> for VcpuObj {
    fn as_ref(&self) -> &Shared {
        &self.shared.apic
    }
}

impl Targets for Vm {
    type Vcpu = VcpuObj;

    fn len(&self) -> usize {
        self.vcpu_count()
    }
    fn get(&self, index: usize) -> Option<&VcpuObj> {
        self.vcpu(index)
    }
    fn only(&self, msg: &InterruptMessage) -> Option<usize> {
        self.whole_map().only(msg)
    }
    fn resolve(&self, msg: &InterruptMessage, sender: Option<usize>) -> Option<Few> {
        self.whole_map().resolve(msg, sender, self.vcpu_count())
    }
    /// From the time, not from a counter that all senders would write. The upper half of the product differs even where the TSC
    /// counts in big steps.
    fn rotation(&self) -> usize {
        (ops::rdtsc().wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as usize
    }
}

/// Interrupts of these pins of the 8259 pair and the I/O APIC have ended.
#[cold]
fn told_ends(pic: u16, ioapic: u32) {
    for pin in (0..16).filter(|pin| pic >> pin & 1 != 0) {
        trace::ack(pin / 8, pin);
    }
    for pin in (0..24).filter(|pin| ioapic >> pin & 1 != 0) {
        trace::ack(KVM_IRQCHIP_IOAPIC, pin);
    }
}

fn told_msi(msi: Msi) {
    if trace::wanted() {
        trace::msi(u64::from(msi.address_hi) << 32 | u64::from(msi.address), msi.data);
    }
}

fn index(v: &VcpuObj) -> usize {
    v.index as usize
}

/// Who spins for an answer lets the receiver run.
fn note(sender: Option<&VcpuObj>, receiver: &VcpuObj) {
    if let Some(sender) = sender {
        sender.shared.hints.sent_to(index(receiver));
    }
}

/// By whom a receiver may be woken, of [`waker`].
fn by(sender: Option<&VcpuObj>) -> u8 {
    if sender.is_some() { waker::IPI } else { waker::DEVICE }
}

/// The APIC of `v` took a message, if it did.
#[inline(always)]
fn told(v: &VcpuObj, msg: &InterruptMessage, accepted: Accepted) {
    if trace::wanted() && !matches!(accepted, Accepted::None | Accepted::Coalesced) {
        trace::accept(v.id, msg.mode.0, msg.level, msg.vector);
    }
}

impl VcpuObj {
    /// Makes the thread look: wakes it, or brings it out of the guest. Any context.
    pub fn kick(&self) {
        if let Some(at) = self.wake_or_interrupt() {
            cpu::kick(at);
        }
    }

    /// Wakes the thread, if it sleeps. Any context.
    pub fn wake(&self) {
        if self.task.wake() {
            self.shared.hints.woken();
        }
    }

    /// The same, but for the IPI: which other CPU needs it. Interrupts or preemption off, or any answer is as good as the other.
    pub fn wake_or_interrupt(&self) -> Option<u32> {
        // In the guest nobody sleeps. Who goes to sleep behind it looks once more, after a full barrier, for what the caller asked.
        if !self.shared.needs_ipi() {
            self.wake();
            return None;
        }
        u32::try_from(self.shared.cpu.load(Ordering::Relaxed)).ok().filter(|&at| at != cpu::id())
    }

    /// A sibling ends the vCPU's halt. Any context.
    pub fn unhalt(&self) {
        // The request, a full barrier, comes behind it: whoever sees that sees this.
        self.shared.unhalted.store(true, Ordering::Relaxed);
        self.shared.request(Request::EVENT);
        self.kick();
    }

    /// What notifies the CPU where the vCPU is in the guest. On this CPU it is not: it will look before it enters.
    fn notification(&self) -> Option<(Ipi, u32)> {
        let at = u32::try_from(self.shared.cpu.load(Ordering::Relaxed)).ok().filter(|&at| at != cpu::id())?;
        if !self.svm.has_avic() {
            return Some((Ipi::Post, at));
        }
        if !self.shared.delivers.load(Ordering::Acquire) {
            return Some((Ipi::Kick, at));
        }
        // A CPU whose guest is (by now) without AVIC ignores the doorbell.
        svm::ring(at);
        None
    }

    /// An edge that the APIC takes. As [`VcpuObj::notify`] behind an [`Accepted::Event`], but that whoever has announced something before,
    /// and found the vCPU in the guest too, has notified it. Where, is the host's own word: guests may write descriptors.
    #[inline(always)]
    fn interrupt<B: Vendor>(&self, vector: u8) {
        let new =
            if B::POSTS { self.shared.apic.post_edge(vector) } else { self.shared.apic.post(vector, false) };
        if !new && !self.shown() {
            return;
        }
        if !B::POSTS || !self.shared.delivers.load(Ordering::Acquire) {
            return self.notify(Accepted::Event, waker::IPI);
        }
        let posted = self.shared.apic.posted().announce();
        // After the announcement, which is a full barrier, as in `tell`.
        if !self.shared.needs_ipi() {
            self.shared.request_event(waker::IPI, ops::rdtsc);
            self.kick();
        } else if posted.owes(|| self.shown()) {
            cpu::notify(self.shared.cpu.load(Ordering::Relaxed) as u32);
        }
    }

    /// The same for one of several, who are notified together.
    fn join(&self, vector: u8, sender: &VcpuObj, ipis: &mut Together) {
        note(Some(sender), self);
        if (self.shared.apic.post(vector, false) || self.shown())
            && let Some((ipi, at)) = self.tell(Accepted::Event, waker::IPI)
        {
            ipis.add(ipi, at);
        }
    }

    /// Siblings may have requested and announced something for it that they have not told (yet).
    fn shown(&self) -> bool {
        self.vm().window.is_open()
    }

    /// Tells the owner what a message did, and whose it was ([`waker`]).
    pub fn notify(&self, accepted: Accepted, by: u8) {
        if let Some((ipi, at)) = self.tell(accepted, by) {
            ipi.send(at);
        }
    }

    /// The same, but for the IPI: which one is owed, and to which CPU.
    fn tell(&self, accepted: Accepted, by: u8) -> Option<(Ipi, u32)> {
        match accepted {
            Accepted::None => return None,
            Accepted::Coalesced if !self.shown() => return None,
            Accepted::Startup => self.shared.request(Request::APIC_STATE),
            // The CPU delivers it: an announcement, and a notification where the vCPU may be in the guest.
            Accepted::Event | Accepted::Coalesced if self.shared.delivers.load(Ordering::Acquire) => {
                let _ = self.shared.apic.posted().announce();
                // After the announcement, which is a full barrier: see `exitless_vcpu::apic::vapic`.
                if self.shared.needs_ipi() {
                    return self.notification();
                }
                self.shared.request_event(by, ops::rdtsc)
            }
            Accepted::Event | Accepted::Coalesced | Accepted::Nmi | Accepted::ExtInt => {
                self.shared.request_event(by, ops::rdtsc)
            }
        }
        self.wake_or_interrupt().map(|at| (Ipi::Kick, at))
    }
}

impl Vm {
    fn has_x2apic_api(&self, flag: u64) -> bool {
        u64::from(self.x2apic_api.load(Ordering::Relaxed)) & flag != 0
    }

    /// Ids above 0xff are told to user space, and told by it, in full.
    pub fn has_32bit_ids(&self) -> bool {
        self.has_x2apic_api(KVM_X2APIC_API_USE_32BIT_IDS)
    }

    /// How MSIs name them.
    pub fn format(&self) -> DestinationFormat {
        if self.has_32bit_ids() { DestinationFormat::X2apic } else { DestinationFormat::Xapic }
    }

    /// A device's message. Its 0xff is a broadcast, but by KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK an id for APICs in x2APIC mode, as it is
    /// for their own.
    fn of_device(&self, msg: InterruptMessage) -> InterruptMessage {
        let id = self.has_x2apic_api(KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK);
        InterruptMessage { x2apic: msg.x2apic || id, ..msg }
    }

    /// Delivers a device's message.
    fn deliver_of_device(&self, msg: InterruptMessage) -> Delivered {
        self.deliver(&self.of_device(msg), None)
    }

    /// Delivers a message; `sender` is a vCPU.
    pub fn deliver(&self, msg: &InterruptMessage, sender: Option<&VcpuObj>) -> Delivered {
        route(msg, sender.map(index), self, |_, v, accepted| {
            note(sender, v);
            told(v, msg, accepted);
            v.notify(accepted, by(sender));
        })
    }

    /// The same, if all who are named can be looked up and are few, behind `first`, if that succeeds.
    ///
    /// # Errors
    /// `first`'s, or `otherwise`: they cannot or are not. Nothing was done.
    pub fn deliver_to_few<E>(
        &self,
        msg: &InterruptMessage,
        sender: Option<&VcpuObj>,
        otherwise: E,
        first: impl FnOnce() -> Result<(), E>,
    ) -> Result<(), E> {
        let mut ipis = Together::new();
        route_few(msg, sender.map(index), self, otherwise, first, |_, v, accepted| {
            note(sender, v);
            told(v, msg, accepted);
            if let Some((ipi, at)) = v.tell(accepted, by(sender)) {
                ipis.add(ipi, at);
            }
        })?;
        ipis.send();
        Ok(())
    }

    /// Sends what is nothing but an interrupt, behind `first`, if that succeeds. `false`: nothing was done, for it is for the sender, or
    /// for somebody in xAPIC mode, or whom it is for cannot be looked up.
    #[inline(always)]
    pub fn send_plain<B: Vendor>(
        &self,
        plain: PlainIpi,
        sender: &VcpuObj,
        first: impl FnOnce() -> bool,
    ) -> bool {
        match plain.to {
            To::Id(id) => {
                let Some(v) = self.whole_map().holder(id).and_then(|index| self.at(index)) else {
                    return false;
                };
                if !v.shared.apic.address().takes(id) || core::ptr::eq(v, sender) || !first() {
                    return false;
                }
                note(Some(sender), v);
                v.interrupt::<B>(plain.vector);
            }
            To::Cluster(from, members) => {
                let Some(few) = self.whole_map().members(from, members).filter(|_| first()) else {
                    return false;
                };
                self.send_to_cluster(plain.vector, &few, |to| to.is_member(from, members), sender);
            }
            To::Others => {
                if self.vcpu_count() > Few::MOST + 1 || !first() {
                    return false;
                }
                self.send_to_others(plain.vector, sender);
            }
        }
        true
    }

    #[inline(never)]
    fn send_to_cluster(&self, vector: u8, few: &Few, named: impl Fn(Address) -> bool, sender: &VcpuObj) {
        let mut ipis = Together::new();
        for v in few.iter().filter_map(|index| self.at(index)) {
            if named(v.shared.apic.address()) {
                v.join(vector, sender, &mut ipis);
            }
        }
        ipis.send();
    }

    #[inline(never)]
    fn send_to_others(&self, vector: u8, sender: &VcpuObj) {
        let mut ipis = Together::new();
        for v in self.each_vcpu().filter(|v| !core::ptr::eq(*v, sender)) {
            if v.shared.apic.sw_enabled() {
                v.join(vector, sender, &mut ipis);
            }
        }
        ipis.send();
    }

    /// The vCPU whose APIC has this physical id.
    pub fn vcpu_with_id(&self, id: u32) -> Option<&VcpuObj> {
        let v = self.vcpu(self.whole_map().holder(id)?)?;
        v.shared.apic.address().has_id(id).then_some(v)
    }

    /// Delivers a message to the vCPU with that id. `false`: there is none, or it does not take it.
    pub fn deliver_to(&self, id: u32, msg: &InterruptMessage, sender: &VcpuObj) -> bool {
        let Some(v) = self.vcpu_with_id(id) else { return false };
        let accepted = v.shared.apic.accept(msg);
        told(v, msg, accepted);
        note(Some(sender), v);
        v.notify(accepted, waker::IPI);
        accepted != Accepted::None
    }

    /// Hardware has made this IPI of a vCPU pending in each APIC that it names.
    pub fn tell(&self, msg: &InterruptMessage, sender: &VcpuObj) {
        named(msg, Some(index(sender)), self, |_, v| {
            note(Some(sender), v);
            v.notify(Accepted::Event, waker::IPI);
        });
    }

    /// CPUs find the APIC of `v`, or not any more: only while they find all do they send IPIs.
    pub fn found_by_hardware(&self, v: &VcpuObj, found: bool) {
        if found {
            self.unfound.fetch_sub(1, Ordering::SeqCst);
        } else {
            self.unfound.fetch_add(1, Ordering::SeqCst);
            // They look again before the next slice.
            self.request_each(self.each_vcpu().filter(|o| o.index != v.index), Request::EVENT);
        }
    }

    /// CPUs find the APICs of all vCPUs.
    pub fn all_found(&self) -> bool {
        self.unfound.load(Ordering::SeqCst) == 0
    }

    fn effect(&self, e: Effect) -> u32 {
        match e {
            Effect::Deliver(msg) => self.deliver_of_device(msg).accepted,
            Effect::PicChanged(level) => {
                self.pic_changed(level);
                0
            }
        }
    }

    fn pic_changed(&self, level: bool) {
        self.pic_output.store(level, Ordering::SeqCst);
        if level {
            for v in self.each_vcpu().filter(|v| v.shared.apic.accepts_ext_int()) {
                v.notify(Accepted::ExtInt, waker::DEVICE);
            }
        }
    }

    fn with_routes<R>(&self, f: impl FnOnce(&[Route], Option<&PinMap>) -> R) -> R {
        let _srcu = self.srcu.read();
        // SAFETY: SRCU is held.
        match unsafe { self.routes.get() } {
            Some(t) => f(&t.routes, Some(&t.pins)),
            None => f(&[], None),
        }
    }

    /// Drives a GSI. Any context.
    pub fn set_gsi(&self, gsi: u32, source: Source, level: bool) -> LineStatus {
        if trace::wanted() {
            trace::set_irq(gsi, level, source.number());
        }
        self.with_routes(|routes, _| {
            let routes = lookup(routes, gsi);
            match message(routes) {
                Some(msi) if level => self.signal_msi(msi),
                Some(_) => LineStatus::Ignored,
                None => self.set_pins(routes, source, &[level]),
            }
        })
    }

    /// A rising and a falling edge. Any context.
    pub fn pulse_gsi(&self, gsi: u32, source: Source) {
        self.pulse(gsi, source, |msg| {
            self.deliver(msg, None);
            true
        });
    }

    /// The same where interrupts are off. `false`: it is a message to more vCPUs than can be told there, and nothing was done.
    pub fn pulse_few(&self, gsi: u32, source: Source) -> bool {
        self.pulse(gsi, source, |msg| self.deliver_to_few(msg, None, (), || Ok(())).is_ok())
    }

    fn pulse(&self, gsi: u32, source: Source, deliver: impl FnOnce(&InterruptMessage) -> bool) -> bool {
        self.with_routes(|routes, _| {
            let routes = lookup(routes, gsi);
            if let Some(msi) = message(routes) {
                told_msi(msi);
                return deliver(&self.of_device(msi.message(self.format())));
            }
            if trace::wanted() {
                trace::set_irq(gsi, true, source.number());
                trace::set_irq(gsi, false, source.number());
            }
            self.set_pins(routes, source, &[true, false]);
            true
        })
    }

    /// The pins of one GSI, of which there are none without chips, take these levels, one after the other. The status is the first's.
    fn set_pins(&self, routes: &[Route], source: Source, levels: &[bool]) -> LineStatus {
        if routes.is_empty() {
            return LineStatus::Ignored;
        }
        let mut chips = self.chips.lock();
        let mut first = None;
        for &level in levels {
            let status = chips.irq.set_pins(routes, source, level, &mut |e| self.effect(e));
            first.get_or_insert(status);
        }
        first.unwrap_or(LineStatus::Ignored)
    }

    /// `KVM_SIGNAL_MSI`, and what an MSI route sends. No lock.
    pub fn signal_msi(&self, msi: Msi) -> LineStatus {
        told_msi(msi);
        delivered(self.deliver_of_device(msi.message(self.format())).accepted)
    }

    /// The vector of the 8259 pair, acknowledged.
    pub fn pic_ack(&self) -> u8 {
        let (vector, eoi) = {
            let mut chips = self.chips.lock();
            let vector = chips.irq.pic.ack();
            self.pic_sync(&mut chips.irq.pic);
            (vector, chips.irq.pic.take_eoi())
        };
        self.pic_eoi(eoi);
        vector
    }

    fn pic_sync(&self, pic: &mut Pic) {
        if let Some(level) = pic.take_output_change() {
            self.pic_changed(level);
        }
    }

    fn pic_eoi(&self, pins: u16) {
        if pins != 0 {
            self.pins_ended(pins, 0);
        }
    }

    /// The guest ended interrupts of these pins: the 8254 may owe a tick, resample irqfds want to know.
    fn pins_ended(&self, pic: u16, ioapic: u32) {
        if trace::wanted() {
            told_ends(pic, ioapic);
        }
        let mut gsis = [0u64; 2];
        self.with_routes(|_, map| {
            if let Some(map) = map {
                map.for_each_gsi(pic, ioapic, &mut |gsi| {
                    if let Some(w) = gsis.get_mut(gsi as usize / 64) {
                        *w |= 1 << (gsi % 64);
                    }
                });
            }
        });
        if gsis[0] & 1 != 0 && self.pit.load(Ordering::Acquire) && self.chips.lock().pit.irq0_ack() {
            self.pulse_gsi(0, Source::PIT);
        }
        let watched = gsis[0] & self.resample_gsis.load(Ordering::Acquire);
        if watched != 0 {
            super::irqfd::resample(self, watched);
        }
    }

    /// A vCPU ended an interrupt that an I/O APIC entry names.
    pub fn ioapic_eoi(&self, vector: u8, level: bool) {
        let pins = self.chips.lock().irq.ioapic.eoi(vector, level);
        if pins == 0 {
            return;
        }
        self.pins_ended(0, pins);
        if level {
            let mut chips = self.chips.lock();
            let mut sink = |msg: InterruptMessage| {
                self.deliver_of_device(msg);
            };
            // A storming pin is sent again at once: the guest pays with its own time, the host's timer is spared.
            if chips.irq.ioapic.eoi_redeliver(pins, &mut sink) {
                chips.irq.ioapic.eoi_delayed(&mut sink);
            }
        }
    }

    /// Vectors whose EOI the I/O APIC (or the 8254 behind it) wants to hear of.
    pub fn rescan_eoi(&self) {
        if self.note_eoi_listeners() {
            // Where the CPU ends interrupts, it must know which of them exit.
            let deliver = self.each_vcpu().filter(|v| v.shared.delivers.load(Ordering::Acquire));
            self.request_each(deliver, Request::EVENT);
        }
    }

    /// Looks and stores under one lock, so that of two at once the one that looked first does not have the last word. `true`: something
    /// is as it was not before.
    fn note_eoi_listeners(&self) -> bool {
        let chips = self.chips.lock();
        if !self.irqchip.load(Ordering::Acquire) {
            let pins = self.user_pins.load(Ordering::Acquire);
            return self.store_eoi(&self.with_routes(|routes, _| ioapic_eoi_vectors(routes, pins)));
        }
        let pit = self.pit.load(Ordering::Acquire);
        let (notified, resampled) = (self.notified_pins(pit), self.notified_pins(false));
        let heard = if chips.pit.reinjects() { notified } else { resampled };
        let edges = chips.irq.ioapic.notifies_edges(heard);
        let other = self.edge_eois.swap(edges, Ordering::AcqRel) != edges;
        self.store_eoi(&chips.irq.ioapic.eoi_vectors(notified)) || other
    }

    /// With the 8254's, if `pit`.
    fn notified_pins(&self, pit: bool) -> u32 {
        let watched = self.resample_gsis.load(Ordering::Acquire);
        self.with_routes(|_, map| {
            let Some(map) = map else { return 0 };
            (0..24u8)
                .filter(|p| {
                    map.ioapic(*p).is_some_and(|g| (g == 0 && pit) || (g < 64 && watched >> g & 1 != 0))
                })
                .fold(0, |m, p| m | 1 << p)
        })
    }

    fn store_eoi(&self, set: &VectorSet) -> bool {
        let mut changed = false;
        for (a, v) in self.eoi_vectors.iter().zip(set.0) {
            changed |= a.swap(v, Ordering::AcqRel) != v;
        }
        changed
    }

    /// All such vectors, 64 to a word.
    pub fn eoi_set(&self) -> [u64; 4] {
        core::array::from_fn(|i| self.eoi_vectors.get(i).map_or(0, |w| w.load(Ordering::Acquire)))
    }

    /// Does the I/O APIC want this vector's EOI?
    pub fn wants_eoi(&self, vector: u8) -> bool {
        self.eoi_vectors
            .get(usize::from(vector >> 6))
            .is_some_and(|w| w.load(Ordering::Acquire) >> (vector & 63) & 1 != 0)
    }

    // --- registers of the chips ---

    /// Reads a port of the 8259 pair or the 8254.
    pub fn chip_port_read(&self, port: u16, data: &mut [u8]) -> bool {
        let size = data.len() as u8;
        let value = if Pic::claims(port) && self.irqchip.load(Ordering::Acquire) {
            let (value, eoi) = {
                let mut chips = self.chips.lock();
                let value = chips.irq.pic.io_read(port, size);
                self.pic_sync(&mut chips.irq.pic);
                (value, chips.irq.pic.take_eoi())
            };
            self.pic_eoi(eoi);
            value
        } else if self.pit.load(Ordering::Acquire) && self.pit_claims(port) {
            self.chips.lock().pit.io_read(port, size, time::monotonic_ns())
        } else {
            return false;
        };
        for (d, s) in data.iter_mut().zip(value.to_le_bytes()) {
            *d = s;
        }
        true
    }

    fn pit_claims(&self, port: u16) -> bool {
        (matches!(port, 0x40..=0x43) || port == 0x61) && self.chips.lock().pit.claims(port)
    }

    /// Writes a port of the 8259 pair or the 8254.
    pub fn chip_port_write(&self, port: u16, data: &[u8]) -> bool {
        let mut word = [0; 4];
        for (d, s) in word.iter_mut().zip(data) {
            *d = *s;
        }
        let (size, value) = (data.len() as u8, u32::from_le_bytes(word));
        if Pic::claims(port) && self.irqchip.load(Ordering::Acquire) {
            let (eoi, unmasked) = {
                let mut chips = self.chips.lock();
                chips.irq.pic.io_write(port, size, value);
                self.pic_sync(&mut chips.irq.pic);
                (chips.irq.pic.take_eoi(), chips.irq.pic.take_unmasked())
            };
            self.pic_eoi(eoi);
            if unmasked & 1 != 0 {
                self.chips.lock().pit.reset_reinject();
            }
            return true;
        }
        if self.pit.load(Ordering::Acquire) && self.pit_claims(port) {
            let changed = self.chips.lock().pit.io_write(port, size, value, time::monotonic_ns());
            if changed {
                self.pit_arm();
            }
            return true;
        }
        false
    }

    /// Sets the host timer to the 8254's next tick.
    pub fn pit_arm(&self) {
        self.pit_start(&self.chips.lock());
    }

    /// Under the lock, so that the timer follows whoever programmed the chip last.
    fn pit_start(&self, chips: &Chips) {
        match chips.pit.irq0_next() {
            Some(ns) => self.pit_timer.start(ns, false),
            None => {
                let _ = self.pit_timer.try_cancel();
            }
        }
    }

    /// If the host timer is queued, it fires on this CPU from now on.
    pub fn pit_bring(&self) {
        if self.pit.load(Ordering::Acquire) {
            let _chips = self.chips.lock();
            // While its callback runs, that will queue it anew, there.
            if self.pit_timer.try_cancel() == Cancelled::Stopped {
                self.pit_timer.start(self.pit_timer.expires_ns(), false);
            }
        }
    }

    /// The 8254's host timer fired (hard interrupt).
    pub fn pit_fired(&self) {
        let began = time::monotonic_ns();
        let pulse = self.chips.lock().pit.irq0_expire(began);
        if pulse {
            self.pulse_gsi(0, Source::PIT);
        }
        let mut chips = self.chips.lock();
        if pulse {
            chips.pit.irq0_made(began, time::monotonic_ns());
        }
        self.pit_start(&chips);
    }

    /// The chips after power-up.
    pub fn init_chips(&self) {
        let mut chips = self.chips.lock();
        chips.irq.init();
        self.show_ioapic(&chips);
    }

    fn show_ioapic(&self, chips: &Chips) {
        self.ioapic_base.store(chips.irq.ioapic.base(), Ordering::Relaxed);
    }

    /// Whether to lock the chips for an access at `gpa`. Where the I/O APIC is stands beside its lock, for the many accesses that are
    /// others'; it is written under the lock, and a reader that comes meanwhile sees the old place or the new.
    fn at_ioapic(&self, gpa: u64) -> bool {
        self.irqchip.load(Ordering::Acquire)
            && gpa.wrapping_sub(self.ioapic_base.load(Ordering::Relaxed)) < WINDOW_SIZE
    }

    /// Reads the I/O APIC.
    pub fn ioapic_read(&self, gpa: u64, data: &mut [u8]) -> bool {
        if !self.at_ioapic(gpa) {
            return false;
        }
        let chips = self.chips.lock();
        let Some(at) = chips.irq.ioapic.offset_of(gpa) else { return false };
        let value = chips.irq.ioapic.mmio_read(at, data.len() as u8);
        for (d, s) in data.iter_mut().zip(value.to_le_bytes()) {
            *d = s;
        }
        true
    }

    /// Writes the I/O APIC.
    pub fn ioapic_write(&self, gpa: u64, data: &[u8]) -> bool {
        if !self.at_ioapic(gpa) {
            return false;
        }
        let mut word = [0; 8];
        for (d, s) in word.iter_mut().zip(data) {
            *d = *s;
        }
        let written = {
            let mut chips = self.chips.lock();
            let Some(at) = chips.irq.ioapic.offset_of(gpa) else { return false };
            let w = chips.irq.ioapic.mmio_write(at, data.len() as u8, u64::from_le_bytes(word));
            if let Some(msg) = w.message {
                self.deliver_of_device(msg);
            }
            w
        };
        if written.rescan {
            self.rescan_eoi();
        }
        if let Some(pin) = written.unmasked
            && self.with_routes(|_, m| m.and_then(|m| m.ioapic(pin))) == Some(0)
        {
            self.chips.lock().pit.reset_reinject();
        }
        true
    }

    /// `KVM_SET_IRQCHIP` for one chip of the pair.
    pub fn load_pic(&self, id: PicId, state: &kvm_pic_state) {
        let eoi = {
            let mut chips = self.chips.lock();
            chips.irq.pic.load(id, state);
            self.pic_sync(&mut chips.irq.pic);
            let _ = chips.irq.pic.take_unmasked();
            chips.irq.pic.take_eoi()
        };
        self.pic_eoi(eoi);
    }

    /// `KVM_SET_IRQCHIP` for the I/O APIC.
    pub fn load_ioapic(&self, state: &kvm_ioapic_state) {
        {
            let mut chips = self.chips.lock();
            chips.irq.ioapic.load(state, &mut |msg| {
                self.deliver_of_device(msg);
            });
            self.show_ioapic(&chips);
        }
        self.rescan_eoi();
    }
}
