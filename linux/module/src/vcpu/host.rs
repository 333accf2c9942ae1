//! The hall's view of Linux: [`Host`] over the helpers, for one vCPU thread inside `KVM_RUN`.

use super::{VcpuObj, poll};
use crate::global::{self, Global};
use crate::vendor::{self, Vendor};
use crate::vm::Vm;
use crate::vm::memory::mark;
use core::cell::Cell;
use core::marker::PhantomData;
use core::mem::offset_of;
use core::sync::atomic::Ordering;
use exitless_host::fpu::Loaded;
use exitless_host::task::WorkWord;
use exitless_host::{cpu, enter, fpu, task, time, trace, uaccess};
use exitless_hw_ops as ops;
use exitless_memslots::Slot;
use exitless_vcpu::chooser::{Facts, Fallback, Set};
use exitless_vcpu::clock::tsc::Rate;
use exitless_vcpu::host::{Extended, FaultOutcome, Host, MasterClock, Moment, PlainIpi, Taken};
use exitless_vcpu::times::Times;
use exitless_vcpu::traced::Trace;
use exitless_x86::apic::InterruptMessage;
use exitless_x86::msr::{Msr, flush_cmd};

/// IA32_XSS.
const XSS: u32 = 0xda0;
/// DR7 with no breakpoint enabled: bit 10 reads as one.
const DR7_OFF: u64 = 1 << 10;

/// One run (or one ioctl) of one vCPU.
pub struct RunHost<'a, B> {
    vm: &'a Vm,
    me: &'a VcpuObj,
    /// The vCPU is loaded: this is KVM_RUN, not another ioctl.
    loaded: bool,
    /// Inside the vCPU's read section.
    inside: Cell<bool>,
    /// The slot that page-table walks used last; valid while the read section is held.
    slot: Cell<Slot>,
    /// The task's PKRU, while a guest's is loaded.
    pkru: Cell<u32>,
    /// The guest's extended state and debug registers are loaded.
    guests: Cell<bool>,
    /// What `work_pending` looks at.
    work: WorkWord,
    backend: PhantomData<fn(B)>,
}

impl<'a, B> RunHost<'a, B> {
    /// For an ioctl on `me` of `vm`.
    pub fn new(vm: &'a Vm, me: &'a VcpuObj) -> Self {
        Self {
            vm,
            me,
            loaded: false,
            inside: Cell::new(false),
            slot: Cell::new(Slot::default()),
            pkru: Cell::new(0),
            guests: Cell::new(false),
            work: WorkWord::current(),
            backend: PhantomData,
        }
    }

    /// For KVM_RUN: the vCPU is loaded whenever the hall uses this.
    pub fn running(vm: &'a Vm, me: &'a VcpuObj) -> Self {
        let mut host = Self::new(vm, me);
        host.loaded = true;
        host
    }

    /// Enters the read section of slots, routes and ioeventfds.
    pub fn lock(&self) {
        if !self.inside.replace(true) {
            self.slot.set(Slot::default());
            self.me.shared.section.enter(&self.vm.changes);
        }
    }

    /// The slot and the host's address of 8 bytes that lie in one page. In the read section.
    fn word(&self, gpa: u64) -> Option<(Slot, u64)> {
        let gfn = gpa >> 12;
        let mut slot = self.slot.get();
        if !slot.contains(gfn) {
            slot = self.vm.slot_of(gfn)?;
            self.slot.set(slot);
        }
        let hva = slot.hva_of(gfn)? | gpa & 4095;
        (gpa & 4095 <= 4096 - 8).then_some((slot, hva))
    }

    /// The guest's registers, which are loaded in KVM_RUN alone.
    fn registers(&self) -> Option<Loaded<'_>> {
        // SAFETY: `loaded` says that this is KVM_RUN, which loads them before the run loop and puts them away behind it; the
        // emulator, who asks, runs there with interrupts on.
        self.loaded.then(|| unsafe { self.me.fpu.loaded() })
    }

    /// Leaves it.
    pub fn unlock(&self) {
        if self.inside.replace(false) && self.me.shared.section.leave() {
            self.vm.left.wake();
        }
    }

    /// Interrupts are off; only what differs from the host's is written.
    fn load_extended(&self, g: &Global, state: &Extended) {
        if let Some(xcr0) = state.xcr0.filter(|&xcr0| g.host_xcr0 != 0 && xcr0 != g.host_xcr0) {
            // SAFETY: OSXSAVE is on (host_xcr0 is known), the value passed the policy's check against the host's;
            // `unload_extended` restores the host's before interrupts are on.
            unsafe { ops::xsetbv(0, xcr0) };
        }
        if state.xsaves && g.host_xss != 0 {
            // SAFETY: the host has XSAVES, and zero is legal; `unload_extended` restores the host's.
            unsafe { ops::wrmsr(XSS, 0) };
        }
        if let Some(pkru) = state.pkru.filter(|_| g.host_pkru) {
            // SAFETY: the host has CR4.PKE set; `unload_extended` restores the task's.
            unsafe {
                self.pkru.set(ops::rdpkru());
                if pkru != self.pkru.get() {
                    ops::wrpkru(pkru);
                }
            }
        }
    }

    /// The other way; the guest's PKRU.
    fn unload_extended(&self, g: &Global, state: &Extended) -> Option<u32> {
        if state.xcr0.is_some_and(|xcr0| g.host_xcr0 != 0 && xcr0 != g.host_xcr0) {
            // SAFETY: the kernel's own value.
            unsafe { ops::xsetbv(0, g.host_xcr0) };
        }
        if state.xsaves && g.host_xss != 0 {
            // SAFETY: the kernel's own value.
            unsafe { ops::wrmsr(XSS, g.host_xss) };
        }
        state.pkru.filter(|_| g.host_pkru).map(|_| {
            // SAFETY: the host has CR4.PKE set; the task's own value.
            unsafe {
                let guest = ops::rdpkru();
                if guest != self.pkru.get() {
                    ops::wrpkru(self.pkru.get());
                }
                guest
            }
        })
    }
}

impl<B> Drop for RunHost<'_, B> {
    fn drop(&mut self) {
        self.unlock();
    }
}

impl<B: Vendor> Host for RunHost<'_, B> {
    type Cpu = B::Cpu;

    fn cpu(&self) -> &B::Cpu {
        let id = cpu::id() as usize;
        global::get().and_then(|g| g.cpus.get(id)).map_or(B::nowhere(), B::cpu)
    }

    fn wanted(&self) -> Set {
        Set(self.vm.wanted.load(Ordering::Relaxed))
    }
    fn facts(&self) -> Facts {
        self.vm.facts()
    }

    fn read_guest(&self, gpa: u64, buf: &mut [u8]) -> bool {
        self.vm.read(gpa, buf)
    }
    fn write_guest(&self, gpa: u64, data: &[u8]) -> bool {
        self.vm.write(gpa, data)
    }
    fn read_guest_atomic(&self, gpa: u64, buf: &mut [u8]) -> bool {
        self.vm.read_atomic(gpa, buf)
    }
    fn read_u64_atomic(&self, gpa: u64) -> Option<u64> {
        let (_, hva) = self.word(gpa)?;
        // SAFETY: the slot's range passed `access_ok` when it was set, and the 8 bytes lie in one of its pages.
        unsafe { uaccess::read_u64_atomic(hva) }
    }
    fn load_shared(&self, gpa: u64) -> Option<u64> {
        self.read_u64_atomic(gpa)
    }
    fn store_shared(&self, gpa: u64, value: u64) -> bool {
        let Some((slot, hva)) = self.word(gpa).filter(|(slot, _)| slot.writable()) else { return false };
        // SAFETY: as in `read_u64_atomic`.
        let written = unsafe { uaccess::write_u64_atomic(hva, value) };
        if written {
            mark(&slot, gpa >> 12);
        }
        written
    }
    fn cmpxchg_guest(&self, gpa: u64, size: u8, old: u64, new: u64) -> Option<bool> {
        self.vm.cmpxchg(gpa, size, old, new)
    }
    fn is_ram(&self, gpa: u64, write: bool) -> bool {
        self.vm.is_ram(gpa, write)
    }
    fn slat_fault(&self, gpa: u64, write: bool, fetch: bool, waits: bool) -> FaultOutcome {
        self.vm.fault(gpa, write, fetch, waits)
    }
    fn bring_page(&self, hva: u64, write: bool, place: u8) -> bool {
        self.me.workers.bring(hva, write, place)
    }

    fn logs_in_cpu(&self) -> bool {
        self.vm.logging.load(Ordering::SeqCst)
    }
    fn mark_dirty(&self, gpa: u64) {
        self.vm.mark_dirty(gpa);
    }
    fn is_doorbell(&self, gpa: u64) -> bool {
        self.vm.is_doorbell(gpa)
    }
    fn ring(&self, gpa: u64) -> bool {
        self.vm.ring(gpa)
    }
    fn mark_device(&self, gpa: u64) {
        self.vm.mark_device(gpa);
    }

    fn exits_on_failure(&self) -> bool {
        self.vm.exit_on_failure.load(Ordering::Relaxed)
    }

    fn pio_read(&self, port: u16, data: &mut [u8]) -> bool {
        self.vm.chip_port_read(port, data)
    }
    fn pio_write(&self, port: u16, data: &[u8]) -> bool {
        self.vm.chip_port_write(port, data)
    }
    fn pio_event(&self, port: u16, data: &[u8]) -> bool {
        self.vm.quiet_write(true, u64::from(port), data)
    }
    fn mmio_read(&self, gpa: u64, data: &mut [u8]) -> bool {
        self.vm.ioapic_read(gpa, data)
    }
    fn mmio_write(&self, gpa: u64, data: &[u8]) -> bool {
        self.vm.ioapic_write(gpa, data) || self.vm.quiet_write(false, gpa, data)
    }
    fn send_ipi(&self, msg: &InterruptMessage) {
        self.vm.deliver(msg, Some(self.me));
    }
    fn send_ipi_to_few(
        &self,
        msg: &InterruptMessage,
        first: impl FnOnce() -> Result<(), Fallback>,
    ) -> Result<(), Fallback> {
        self.vm.deliver_to_few(msg, Some(self.me), Fallback::Targets, first)
    }
    #[inline(always)]
    fn send_plain(&self, plain: PlainIpi, first: impl FnOnce() -> bool) -> bool {
        self.vm.send_plain::<B>(plain, self.me, first)
    }
    fn send_to(&self, id: u32, msg: &InterruptMessage) -> bool {
        self.vm.deliver_to(id, msg, self.me)
    }
    fn unhalt(&self, id: u32) {
        if let Some(v) = self.vm.vcpu_with_id(id) {
            v.unhalt();
        }
    }
    fn ioapic_eoi(&self, vector: u8, level: bool) -> bool {
        if !self.vm.wants_eoi(vector) {
            return false;
        }
        if !self.vm.irqchip.load(Ordering::Acquire) {
            return level;
        }
        self.vm.ioapic_eoi(vector, level);
        false
    }
    fn wants_eoi(&self, vector: u8) -> bool {
        self.vm.wants_eoi(vector)
    }
    fn eoi_vectors(&self) -> [u64; 4] {
        self.vm.eoi_set()
    }
    fn pic_pending(&self) -> bool {
        self.vm.pic_output.load(Ordering::SeqCst)
    }
    fn pic_ack(&self) -> u8 {
        self.vm.pic_ack()
    }
    fn irqchip(&self) -> bool {
        self.vm.lapics.load(Ordering::Acquire)
    }
    fn apic_moved(&self) {
        self.vm.apic_moved(self.me);
    }
    fn apic_id(&self) -> u32 {
        crate::vendor::svm::apic_id(cpu::id())
    }
    fn found_by_hardware(&self, found: bool) {
        self.vm.found_by_hardware(self.me, found);
    }
    fn open_window(&self) {
        self.vm.window.open();
    }
    fn all_look(&self) {
        self.vm.request_all(exitless_vcpu::Request::EVENT);
    }
    fn hardware_sends(&self) -> bool {
        self.vm.all_found() && global::get().is_some_and(|g| g.svm.caps.avic_ipis)
    }
    fn tell_ipi(&self, msg: &InterruptMessage) {
        self.vm.tell(msg, self.me);
    }
    fn edge_eois(&self) -> bool {
        self.vm.edge_eois.load(Ordering::Acquire)
    }

    fn times(&self) -> Option<&Times> {
        if self.me.shared.measured.load(Ordering::Relaxed) { self.me.times() } else { None }
    }
    fn now(&self) -> Moment {
        let now = Moment { ns: time::monotonic_ns(), tsc: ops::rdtsc() };
        if self.loaded { now } else { self.me.moment::<B>(now) }
    }
    fn tsc_khz(&self) -> u32 {
        time::tsc_khz()
    }
    fn arch_capabilities(&self) -> u64 {
        global::get().map_or(0, |g| g.supported().arch_capabilities)
    }
    fn tsc(&self) -> u64 {
        ops::rdtsc()
    }
    fn timer_advance_ns(&self) -> Option<u32> {
        task::timer_advance_ns()
    }
    fn arm_timer(&self, ns: u64) {
        self.me.timer.start(ns.min(i64::MAX as u64), true);
    }
    fn arm_timer_elsewhere(&self, ns: u64) {
        cpu::preempt_disable();
        self.me.timer.start_elsewhere(ns);
        cpu::preempt_enable();
    }
    fn cancel_timer(&self) {
        self.me.timer.try_cancel();
    }
    fn bring_timers(&self, armed: bool) {
        if armed {
            self.me.timer.bring();
        }
        // The 8254 interrupts the first vCPU, as a rule.
        if self.me.index == 0 {
            self.vm.pit_bring();
        }
    }
    fn master_clock(&self) -> MasterClock {
        self.vm.master_clock()
    }
    fn wall_clock_pair(&self) -> Option<(u64, u64)> {
        let now = time::snapshot();
        now.by_tsc.then_some((now.real_ns, now.tsc))
    }
    fn wall_clock_base(&self) -> u64 {
        let now = self.vm.read_clock();
        now.host.real_ns.wrapping_sub(now.ns)
    }
    fn steady_tsc(&self) -> bool {
        global::steady_tsc()
    }
    fn tsc_moved(&self) {
        self.vm.tsc_changed();
    }
    fn take_tsc_jump(&self) -> i64 {
        self.me.take_tsc_jump()
    }
    fn match_tsc(&self, value: u64, rate: &Rate) -> u64 {
        self.vm.match_tsc(value, rate, self.now().tsc)
    }
    fn run_delay(&self) -> u64 {
        task::run_delay_ns()
    }

    fn slice_begin(&self) {
        enter::slice_begin();
    }
    fn slice_end(&self) {
        enter::slice_end();
    }
    fn work_pending(&self) -> bool {
        self.work.pending()
    }
    #[inline(always)]
    fn tracing(&self) -> bool {
        trace::wanted()
    }
    fn trace(&self, event: &Trace) {
        // The first listener came in the middle of a slice: the next exit is the first that it hears of.
        if self.guests.get() {
            return;
        }
        super::trace::tell(self.me.id, B::ISA, event);
    }
    fn do_work(&self) -> bool {
        self.unlock();
        let ok = task::handle_guest_work().is_ok();
        self.lock();
        ok
    }
    fn fpu_live(&self) {
        fpu::before_enter();
    }
    fn load_state(&self, state: &Extended, debug: Option<[u64; 4]>) {
        self.guests.set(true);
        if let Some(g) = global::get() {
            self.load_extended(g, state);
        }
        if let Some([a, b, c, d]) = debug {
            // SAFETY: interrupts are off; `unload_state` puts the host's breakpoints back. DR7 goes first: the host's
            // would arm the guest's addresses in the kernel. VMRUN loads the guest's, #VMEXIT disables all.
            unsafe {
                ops::set_dr7(DR7_OFF);
                ops::set_dr0(a);
                ops::set_dr1(b);
                ops::set_dr2(c);
                ops::set_dr3(d);
            }
        }
    }
    fn unload_state(&self, state: &Extended, debug: bool) -> Taken {
        let pkru = global::get().and_then(|g| self.unload_extended(g, state));
        let dr = if debug {
            // SAFETY: reading debug registers at CPL 0 with GD clear (DR7 was reset by the exit).
            unsafe { [ops::dr0(), ops::dr1(), ops::dr2(), ops::dr3()] }
        } else {
            [0; 4]
        };
        // Each exit leaves DR7 off, whether or not the guest's addresses were loaded.
        if cpu::host_breakpoints_active() {
            cpu::restore_host_breakpoints();
        }
        self.guests.set(false);
        Taken { dr, pkru }
    }
    fn branch_barrier(&self) -> bool {
        cpu::preempt_disable();
        let done = cpu::ibpb_for_guest();
        if let Some(g) = global::get().filter(|_| done && self.loaded)
            && let Some(slot) = g.cpus.get(cpu::id() as usize)
        {
            self.me.renew_identity(g, slot);
        }
        cpu::preempt_enable();
        done
    }
    fn barriers_unseen(&self) {
        self.me.own_barriers.store(true, Ordering::Relaxed);
    }
    fn flush_l1d(&self) {
        // SAFETY: the guest's CPUID has the register because the host's has it; the cache is written back, nothing is lost.
        unsafe { ops::wrmsr(Msr::FLUSH_CMD.0, flush_cmd::L1D_FLUSH) };
    }
    fn reload_tsc_aux(&self, value: u64) {
        self.me.tsc_aux.store(value, Ordering::Relaxed);
        if global::get().is_some_and(|g| g.has_tsc_aux) && self.loaded {
            let _irqs = cpu::NoIrq::new();
            B::reload_tsc_aux(self.cpu(), value);
        }
    }
    fn quiesce(&self) {
        self.unlock();
        self.lock();
    }
    fn spin(&self) -> bool {
        poll::spins(self.vm, self.me)
    }
    fn alone(&self) -> bool {
        task::single_task_running()
    }
    fn yield_to(&self, id: u32) -> bool {
        let other = self.vm.vcpu_with_id(id).filter(|v| v.index != self.me.index);
        other.is_some_and(poll::yield_to)
    }
    fn memory_error(&self, hva: u64) {
        task::memory_error(hva);
    }
    fn poll(&self, until: u64) -> bool {
        self.unlock();
        let woken = poll::halted(self.me, &self.work, until);
        self.lock();
        woken
    }
    fn block(&self) -> bool {
        self.unlock();
        let stats = &self.me.shared.stats;
        let from = time::monotonic_ns();
        stats.blocking.set(1);
        self.me.shared.asleep.store(from, Ordering::Relaxed);
        let woken = match vendor::falls_asleep(self.me) {
            true => self.me.task.block(),
            false => task::Woken::Condition,
        };
        vendor::wakes_up(self.me);
        self.me.shared.asleep.store(0, Ordering::Relaxed);
        let slept = time::monotonic_ns().saturating_sub(from);
        if trace::wanted() {
            trace::wakeup(slept, true, woken == task::Woken::Condition);
        }
        stats.blocking.set(0);
        stats.halt_wait_ns.add(slept);
        stats.sleeps.note(slept);
        poll::slept(self.me, slept);
        self.lock();
        woken != task::Woken::Signal
    }
    fn immediate_exit(&self) -> bool {
        self.me.run_page().immediate_exit()
    }
    fn io_page_read(&self, offset: usize, buf: &mut [u8]) {
        self.me.io_page().bytes(offset, buf);
    }
    fn io_page_write(&self, offset: usize, data: &[u8]) {
        self.me.io_page().put_bytes(offset, data);
    }
    fn mmio_answer(&self) -> [u8; 8] {
        let mut d = [0; 8];
        let at = crate::runpage::EXIT + offset_of!(exitless_kvm_abi::kvm_run_mmio, data);
        self.me.run_page().bytes(at, &mut d);
        d
    }
    fn xmm(&self, i: usize) -> [u8; 16] {
        self.registers().map_or([0; 16], |r| r.xmm(i))
    }
    fn set_xmm(&self, i: usize, v: [u8; 16]) {
        if let Some(r) = self.registers() {
            r.set_xmm(i, v);
        }
    }
    fn mmx(&self, i: usize) -> u64 {
        self.registers().map_or(0, |r| r.mmx(i))
    }
    fn set_mmx(&self, i: usize, v: u64) {
        if let Some(r) = self.registers() {
            r.set_mmx(i, v);
        }
    }
    fn x87_control(&self) -> u16 {
        self.registers().map_or(0, |r| r.control())
    }
    fn x87_status(&self) -> u16 {
        self.registers().map_or(0, |r| r.status())
    }
}
