//! The operating system: every service asserts the context it may be called in.

// The tests of the backends, which are no_std, include this file.
#[allow(unused_imports)]
use std::prelude::v1::*;

use super::world::{
    CHIP_MMIO, CHIP_PORT, DOORBELL, EVENT_PORT, HOST_PKRU, HOUSEKEEPER, Hand, ROM, ROM_DOORBELL, TICKS,
    World, pattern,
};

use exitless_vcpu::Request;
use exitless_vcpu::chooser::{Facts, Fallback, Reason, Set};
use exitless_vcpu::clock::tsc::Rate;
use exitless_vcpu::host::{Extended, FaultOutcome, Host, MasterClock, Moment, PlainIpi, Taken, To};
use exitless_vcpu::traced::Trace;
use exitless_x86::apic::{DeliveryMode, InterruptMessage, Shorthand};
use std::rc::Rc;
use std::sync::atomic::Ordering;

/// Where user space has the guest's memory.
pub(crate) const HVA: u64 = 0x7000_0000_0000;

/// APIC ids below this are there.
const VCPUS: u32 = 100;

/// The backend's part of one physical CPU: its number.
pub(crate) struct Core(pub(crate) u32);

/// See the file's head.
pub(crate) struct Os<C: 'static = Core> {
    pub(crate) w: Rc<World>,
    cores: [&'static C; 4],
}

impl Os {
    pub(crate) fn new(w: Rc<World>) -> Self {
        Self::with(w, [&Core(0), &Core(1), &Core(2), &Core(3)])
    }
}

impl<C> Os<C> {
    /// For a backend that keeps something else per CPU.
    pub(crate) fn with(w: Rc<World>, cores: [&'static C; 4]) -> Self {
        Self { w, cores }
    }

    fn lost(&self, gpa: u64) -> bool {
        [self.w.lost.get(), self.w.poisoned.get()].contains(&Some(gpa >> 12))
    }

    /// Not there for who may sleep: a memory error is told.
    fn out_of_reach(&self, gpa: u64) -> bool {
        if self.w.poisoned.get() == Some(gpa >> 12) {
            self.memory_error(HVA + (gpa & !0xfff));
        }
        self.lost(gpa)
    }

    /// A page that guest and host share, for who cannot sleep.
    fn resident(&self, gpa: u64) -> bool {
        !self.w.swapped.get() && !self.w.shared_swapped.get() && !self.lost(gpa)
    }

    fn chip(&self, at: u64, data: &mut [u8]) {
        data.iter_mut().enumerate().for_each(|(i, b)| *b = pattern(at + i as u64));
        self.w.touch(false, false, at, data);
    }
}

fn chip_port(port: u16) -> bool {
    (CHIP_PORT..CHIP_PORT + 16).contains(&port)
}

fn chip_page(gpa: u64) -> bool {
    gpa & !0xfff == CHIP_MMIO
}

impl<C> Host for Os<C> {
    type Cpu = C;

    fn cpu(&self) -> &C {
        assert!(self.w.in_slice.get(), "the CPU may change under a caller outside a slice");
        self.cores[self.w.cpu.get() as usize]
    }

    fn wanted(&self) -> Set {
        self.w.wanted.get()
    }
    fn facts(&self) -> Facts {
        Facts::default()
            .with(Reason::IdleExits, !self.w.idles_in_guest.get())
            .with(Reason::NoHousekeeping, !self.w.housekeeping.get())
            .with(Reason::NotAllowed, !self.w.raw_allowed.get())
            .with(Reason::HardwarePosts, self.w.hardware_posts.get())
            .with(Reason::HostTimer, self.w.tick.period.get() == 0)
    }

    fn read_guest(&self, gpa: u64, buf: &mut [u8]) -> bool {
        self.w.strange("read_guest");
        !self.out_of_reach(gpa) && self.w.read_ram(gpa, buf)
    }
    fn write_guest(&self, gpa: u64, data: &[u8]) -> bool {
        self.w.strange("write_guest");
        if self.out_of_reach(gpa) || self.w.read_only.get() == Some(gpa >> 12) {
            return false;
        }
        self.w.written.borrow_mut().push((gpa, data.to_vec()));
        if let Some((_, vector)) = self.w.tokens.get().filter(|(at, _)| *at == gpa) {
            self.w.irr.borrow_mut().push(vector);
        }
        self.w.write_ram(gpa, data)
    }
    fn read_guest_atomic(&self, gpa: u64, buf: &mut [u8]) -> bool {
        self.w.walks();
        !self.w.swapped.get() && !self.lost(gpa) && self.w.read_ram(gpa, buf)
    }
    fn load_shared(&self, gpa: u64) -> Option<u64> {
        assert_eq!(gpa % 8, 0);
        let mut b = [0; 8];
        let there = self.resident(gpa) && self.w.read_ram(gpa, &mut b);
        there.then(|| u64::from_le_bytes(b))
    }
    fn store_shared(&self, gpa: u64, value: u64) -> bool {
        assert_eq!(gpa % 8, 0);
        let there = self.resident(gpa) && gpa < ROM;
        if there {
            self.w.written.borrow_mut().push((gpa, value.to_le_bytes().to_vec()));
        }
        there && self.w.write_ram(gpa, &value.to_le_bytes())
    }
    fn cmpxchg_guest(&self, gpa: u64, size: u8, old: u64, new: u64) -> Option<bool> {
        self.w.strange("cmpxchg_guest");
        let mut have = [0; 8];
        let n = usize::from(size);
        if self.out_of_reach(gpa) || !self.w.read_ram(gpa, &mut have[..n]) || gpa >= ROM {
            return None;
        }
        let same = have[..n] == old.to_le_bytes()[..n] && !self.w.contended.get();
        if same {
            self.w.write_ram(gpa, &new.to_le_bytes()[..n]);
        }
        Some(same)
    }
    fn is_ram(&self, gpa: u64, write: bool) -> bool {
        gpa < super::world::RAM as u64 || (!write && (ROM..ROM + 4096).contains(&gpa))
    }
    fn slat_fault(&self, gpa: u64, write: bool, _fetch: bool, waits: bool) -> FaultOutcome {
        self.w.strange("slat_fault");
        if !waits && self.w.slow_pages.borrow().contains(&(gpa >> 12)) {
            return FaultOutcome::Slow(HVA + (gpa & !0xfff));
        }
        self.w
            .waited
            .set(self.w.waited.get() + u32::from(self.w.slow_pages.borrow_mut().remove(&(gpa >> 12))));
        if self.w.poisoned.get() == Some(gpa >> 12) {
            return FaultOutcome::Poisoned(HVA + (gpa & !0xfff));
        }
        if self.is_ram(gpa, write) {
            self.w.mapped.borrow_mut().insert(gpa >> 12);
            return FaultOutcome::Fixed;
        }
        if self.is_ram(gpa, false) { FaultOutcome::ReadOnly } else { FaultOutcome::Mmio }
    }

    fn bring_page(&self, hva: u64, write: bool, place: u8) -> bool {
        self.w.may_sleep("bring_page");
        let brings = !self.w.no_workers.get();
        if brings {
            self.w.workers.borrow_mut().push((hva - HVA, write, place));
        }
        brings
    }

    fn logs_in_cpu(&self) -> bool {
        self.w.logs.get()
    }
    fn mark_dirty(&self, gpa: u64) {
        let inside = self.w.in_slice.get() && self.w.sh.needs_ipi();
        assert!(inside, "who asks for the log waits for those in the guest alone");
        self.w.dirty.borrow_mut().push(gpa);
    }
    fn is_doorbell(&self, gpa: u64) -> bool {
        self.w.may_sleep("is_doorbell");
        gpa == DOORBELL || gpa == ROM_DOORBELL
    }
    fn ring(&self, gpa: u64) -> bool {
        (gpa == DOORBELL || gpa == ROM_DOORBELL) && {
            self.w.rings.set(self.w.rings.get() + 1);
            true
        }
    }
    fn mark_device(&self, gpa: u64) {
        self.w.strange("mark_device");
        self.w.marked.borrow_mut().insert(gpa >> 12);
    }

    fn exits_on_failure(&self) -> bool {
        self.w.exits_on_failure.get()
    }

    fn pio_read(&self, port: u16, data: &mut [u8]) -> bool {
        chip_port(port) && {
            self.chip(u64::from(port), data);
            true
        }
    }
    fn pio_write(&self, port: u16, data: &[u8]) -> bool {
        chip_port(port) && {
            self.w.touch(false, true, u64::from(port), data);
            if let Some(effect) = self.w.chip_writes.get() {
                effect(&self.w);
            }
            true
        }
    }
    fn pio_event(&self, port: u16, data: &[u8]) -> bool {
        port == EVENT_PORT && {
            self.w.touch(false, true, u64::from(port), data);
            true
        }
    }
    fn mmio_read(&self, gpa: u64, data: &mut [u8]) -> bool {
        self.w.may_sleep("mmio_read");
        chip_page(gpa) && {
            self.chip(gpa, data);
            true
        }
    }
    fn mmio_write(&self, gpa: u64, data: &[u8]) -> bool {
        self.w.may_sleep("mmio_write");
        if self.ring(gpa) {
            return true;
        }
        chip_page(gpa) && {
            self.w.touch(false, true, gpa, data);
            true
        }
    }
    fn send_ipi(&self, msg: &InterruptMessage) {
        self.w.may_sleep("send_ipi");
        self.w.ipis.borrow_mut().push(*msg);
    }
    fn send_ipi_to_few(
        &self,
        msg: &InterruptMessage,
        first: impl FnOnce() -> Result<(), Fallback>,
    ) -> Result<(), Fallback> {
        if !self.w.few.get() {
            return Err(Fallback::Targets);
        }
        first()?;
        // It may wake somebody.
        self.w.wants_timer();
        self.w.ipis.borrow_mut().push(*msg);
        Ok(())
    }
    fn send_plain(&self, plain: PlainIpi, first: impl FnOnce() -> bool) -> bool {
        let (destination, logical, shorthand) = match plain.to {
            To::Id(id) => (id, false, Shorthand::None),
            To::Cluster(first, bits) => (first << 12 | u32::from(bits), true, Shorthand::None),
            To::Others => (0, false, Shorthand::AllButSelf),
        };
        if !self.w.few.get() || !first() {
            return false;
        }
        // It may wake somebody.
        self.w.wants_timer();
        if self.w.own_share.get() {
            match self.w.sh.delivers.load(Ordering::SeqCst) {
                true => _ = self.w.sh.apic.posted().announce(),
                false => self.w.sh.request(Request::EVENT),
            }
        }
        let message = InterruptMessage {
            destination,
            logical,
            mode: DeliveryMode::FIXED,
            vector: plain.vector,
            level: false,
            assert: true,
            shorthand,
            x2apic: true,
        };
        self.w.ipis.borrow_mut().push(message);
        true
    }
    fn send_to(&self, id: u32, msg: &InterruptMessage) -> bool {
        assert_eq!(id, msg.destination);
        self.w.ipis.borrow_mut().push(*msg);
        id < VCPUS
    }
    fn unhalt(&self, id: u32) {
        self.w.unhalted.borrow_mut().push(id);
    }
    fn ioapic_eoi(&self, vector: u8, level: bool) -> bool {
        self.w.may_sleep("ioapic_eoi");
        self.w.eois.borrow_mut().push((vector, level));
        level && self.w.split.get()
    }
    fn wants_eoi(&self, vector: u8) -> bool {
        self.w.wanted_eoi.get() == Some(vector)
    }
    fn eoi_vectors(&self) -> [u64; 4] {
        let mut set = [0; 4];
        if let Some(vector) = self.w.wanted_eoi.get() {
            set[usize::from(vector >> 6)] = 1 << (vector & 63);
        }
        set
    }
    fn pic_pending(&self) -> bool {
        self.w.pic.get().is_some()
    }
    fn pic_ack(&self) -> u8 {
        let vector = self.w.pic.take().expect("acknowledged an 8259 that asserts nothing");
        self.w.pic_acked.set(Some(vector));
        vector
    }
    fn irqchip(&self) -> bool {
        self.w.irqchip.get()
    }
    fn apic_moved(&self) {
        self.w.may_sleep("apic_moved");
        self.w.moved_apic.set(self.w.moved_apic.get() + 1);
    }

    fn apic_id(&self) -> u32 {
        assert!(self.w.in_slice.get(), "the CPU may change under a caller outside a slice");
        100 + self.w.cpu.get()
    }
    fn found_by_hardware(&self, found: bool) {
        self.w.may_sleep("found_by_hardware");
        assert_ne!(self.w.found.replace(found), found, "told twice");
    }
    fn open_window(&self) {}
    fn all_look(&self) {
        self.w.looks.set(self.w.looks.get() + 1);
    }
    fn hardware_sends(&self) -> bool {
        self.w.found.get() && !self.w.unfound.get()
    }
    fn tell_ipi(&self, msg: &InterruptMessage) {
        self.w.may_sleep("tell_ipi");
        self.w.ipis.borrow_mut().push(*msg);
    }
    fn edge_eois(&self) -> bool {
        self.w.edge_eois.get()
    }

    fn times(&self) -> Option<&exitless_vcpu::times::Times> {
        self.w.measured.get().then_some(&*self.w.times)
    }
    fn now(&self) -> Moment {
        self.w.ns.set(self.w.ns.get() + 1);
        Moment { ns: self.w.ns.get(), tsc: self.w.ns.get() * TICKS }
    }
    fn tsc_khz(&self) -> u32 {
        (TICKS * 1_000_000) as u32
    }
    fn arch_capabilities(&self) -> u64 {
        0x20_0000_0001
    }
    fn tsc(&self) -> u64 {
        // Time goes on for who waits.
        self.w.ns.set(self.w.ns.get() + 1);
        self.now().tsc
    }
    fn timer_advance_ns(&self) -> Option<u32> {
        None
    }
    fn arm_timer(&self, ns: u64) {
        self.w.wants_timer();
        self.w.timer.set(Some(ns));
        self.w.timer_starts.set(self.w.timer_starts.get() + 1);
        self.w.timer_cpu.set(self.w.cpu.get());
    }
    fn arm_timer_elsewhere(&self, ns: u64) {
        self.arm_timer(ns);
        self.w.timer_cpu.set(HOUSEKEEPER);
    }
    fn bring_timers(&self, armed: bool) {
        self.w.may_sleep("bring_timers");
        let elsewhere = self.w.timer_cpu.get() == HOUSEKEEPER;
        assert!(armed || elsewhere || self.w.timer.get().is_none(), "a timer that is left behind");
        if armed {
            self.w.timer_cpu.set(self.w.cpu.get());
        }
    }
    fn cancel_timer(&self) {
        self.w.wants_timer();
        self.w.timer.set(None);
    }
    fn master_clock(&self) -> MasterClock {
        self.w.may_sleep("master_clock");
        MasterClock { tsc: 1000, ns: 500, stable: !self.w.unsteady.get() }
    }
    fn wall_clock_pair(&self) -> Option<(u64, u64)> {
        self.w.may_sleep("wall_clock_pair");
        (!self.w.unsteady.get()).then_some((1_700_000_000_123_456_789, 5000))
    }
    fn wall_clock_base(&self) -> u64 {
        self.w.may_sleep("wall_clock_base");
        1_700_000_000_123_456_789
    }
    fn steady_tsc(&self) -> bool {
        !self.w.unsteady.get()
    }
    fn tsc_moved(&self) {
        self.w.may_sleep("tsc_moved");
        self.w.tscs.borrow_mut().push(self.w.sh.tsc.get());
    }
    fn take_tsc_jump(&self) -> i64 {
        self.w.may_sleep("take_tsc_jump");
        self.w.jump.take()
    }
    fn match_tsc(&self, value: u64, rate: &Rate) -> u64 {
        self.w.may_sleep("match_tsc");
        value.wrapping_sub(rate.guest_ticks(self.w.ns.get() * TICKS))
    }
    fn run_delay(&self) -> u64 {
        self.w.run_delay.get()
    }

    fn slice_begin(&self) {
        self.w.point();
        self.w.host_tick();
        assert!(!self.w.in_slice.replace(true), "slice in a slice");
        self.w.tick.touched.set(false);
        self.w.slices.set(self.w.slices.get() + 1);
        self.w.barren.set(self.w.barren.get() + 1);
        assert!(self.w.barren.get() < 100, "the guest is never entered");
        self.w.trail.borrow_mut().clear();
        // Interrupts were on until here: a pending IPI was taken.
        self.w.ipi.set(false);
        self.w.notified.set(false);
        // Preemption came between: whatever FPU state was live is not the guest's any more.
        self.w.fpu_live.set(false);
    }
    fn slice_end(&self) {
        assert!(self.w.in_slice.replace(false), "slice_end without slice_begin");
        assert!(self.w.loaded.get().is_none(), "the guest's state is still loaded");
        let entry = self.w.entry.get().map_or(0, |e| e.load(std::sync::atomic::Ordering::SeqCst));
        assert_eq!(entry >> 62 & 1, 0, "hardware senders take a vCPU outside a slice for running");
        assert!(!self.w.sh.needs_ipi(), "interrupts on in guest mode: kicks would find nobody");
        self.w.host_tick();
        // Interrupts are on: a pending IPI is taken here, and a notification: the host has nothing to do for it.
        self.w.ipi.set(false);
        self.w.notified.set(false);
        self.w.check_trail();
        self.w.point();
    }
    fn work_pending(&self) -> bool {
        self.w.point();
        self.w.signal.get() || self.w.work.get()
    }
    fn tracing(&self) -> bool {
        self.w.tracing.get()
    }
    fn trace(&self, event: &Trace) {
        assert!(self.w.loaded.get().is_none(), "a listener runs with the guest's state");
        // It may use the FPU.
        self.w.fpu_live.set(false);
        self.w.heard.borrow_mut().push(*event);
        let done = self.w.heard.borrow().len() >= self.w.hears.get();
        self.w.tracing.set(self.w.tracing.get() && !done);
    }
    fn do_work(&self) -> bool {
        self.w.strange("do_work");
        self.w.point();
        self.w.work.set(false);
        !self.w.signal.get()
    }
    fn fpu_live(&self) {
        assert!(self.w.in_slice.get());
        self.w.fpu_live.set(true);
    }
    fn load_state(&self, state: &Extended, debug: Option<[u64; 4]>) {
        self.w.ns.set(self.w.ns.get() + self.w.tick.passes.take());
        assert!(self.w.in_slice.get() && self.w.fpu_live.get(), "load_state before fpu_live");
        assert!(self.w.loaded.replace(Some((*state, debug))).is_none(), "loaded twice");
        self.w.pkru.set(state.pkru.unwrap_or(HOST_PKRU));
        self.w.trail.borrow_mut().push(Hand::Loaded);
    }
    fn unload_state(&self, state: &Extended, debug: bool) -> Taken {
        let (have, dr) = self.w.loaded.take().expect("unloaded what was not loaded");
        // The guest may have changed its PKRU; that it has one holds.
        let known = |s: &Extended| Extended { pkru: s.pkru.map(|_| 0), ..*s };
        assert_eq!(known(&have), known(state), "other state unloaded than loaded");
        assert!(dr.is_some() || !debug, "debug registers unloaded but not loaded");
        self.w.trail.borrow_mut().push(Hand::Unloaded);
        let pkru = self.w.pkru.replace(HOST_PKRU);
        Taken { dr: dr.unwrap_or_default(), pkru: state.pkru.map(|_| pkru) }
    }
    fn branch_barrier(&self) -> bool {
        self.w.barriers.set(self.w.barriers.get() + 1);
        self.w.has_barrier.get()
    }
    fn barriers_unseen(&self) {
        self.w.barriers_unseen.set(true);
    }
    fn flush_l1d(&self) {}
    fn reload_tsc_aux(&self, _value: u64) {}
    fn quiesce(&self) {
        self.w.may_sleep("quiesce");
        self.w.quiesced.set(self.w.quiesced.get() + 1);
        self.w.point();
    }
    fn spin(&self) -> bool {
        self.w.may_sleep("spin");
        self.w.spins.set(self.w.spins.get() + 1);
        true
    }
    fn alone(&self) -> bool {
        self.w.alone.get()
    }
    fn yield_to(&self, id: u32) -> bool {
        self.w.may_sleep("yield_to");
        self.w.yields.borrow_mut().push(id);
        id < VCPUS
    }
    fn memory_error(&self, hva: u64) {
        self.w.strange("memory_error");
        self.w.memory_errors.borrow_mut().push(hva);
        self.w.signal.set(true);
    }
    fn poll(&self, _until: u64) -> bool {
        self.w.may_sleep("poll");
        self.w.polls.set(self.w.polls.get() + 1);
        self.w.point();
        self.w.sh.must_wake()
    }
    fn block(&self) -> bool {
        self.w.may_sleep("block");
        self.w.blocks.set(self.w.blocks.get() + 1);
        assert!(self.w.cpu_timer.get().is_none(), "asleep, and the timer counts in the guest only");
        loop {
            self.w.point();
            if self.w.sh.must_wake() {
                return true;
            }
            if self.w.signal.get() {
                return false;
            }
            if !self.w.schedule.borrow().is_empty() || !self.w.slow.borrow().is_empty() {
                continue;
            }
            if let Some(t) = self.w.timer.get() {
                self.w.ns.set(self.w.ns.get().max(t));
            } else {
                // Nothing will ever happen again: the script ends here, as if somebody pressed ^C.
                self.w.script_over.set(true);
                self.w.signal.set(true);
            }
        }
    }
    fn immediate_exit(&self) -> bool {
        self.w.immediate.get()
    }
    fn io_page_read(&self, offset: usize, buf: &mut [u8]) {
        self.w.may_sleep("io_page_read");
        buf.copy_from_slice(&self.w.io_page.borrow()[offset..offset + buf.len()]);
    }
    fn io_page_write(&self, offset: usize, data: &[u8]) {
        self.w.may_sleep("io_page_write");
        self.w.io_page.borrow_mut()[offset..offset + data.len()].copy_from_slice(data);
    }
    fn mmio_answer(&self) -> [u8; 8] {
        self.w.answer.get()
    }
    fn xmm(&self, i: usize) -> [u8; 16] {
        self.w.xmm.borrow()[i]
    }
    fn set_xmm(&self, i: usize, v: [u8; 16]) {
        self.w.xmm.borrow_mut()[i] = v;
    }
    fn mmx(&self, i: usize) -> u64 {
        self.w.mmx.borrow()[i]
    }
    fn set_mmx(&self, i: usize, v: u64) {
        self.w.mmx.borrow_mut()[i] = v;
    }
    fn x87_control(&self) -> u16 {
        0x37f
    }
    fn x87_status(&self) -> u16 {
        self.w.x87_status.get()
    }
}
