//! One vCPU's kernel object: what other threads may touch, the C parts, and the [`Vcpu`] that its own thread drives.

pub mod host;
pub mod ioctl;
pub mod poll;
pub mod run;
pub mod state;
pub mod sync;
pub mod trace;

use crate::global::{self, CpuSlot, Global};
use crate::publish::Once;
use crate::runpage::RunPage;
use crate::vendor::{self, Vendor, with_backend};
use crate::vm::Vm;
use core::cell::UnsafeCell;
use core::ffi::c_void;
use core::mem::{ManuallyDrop, MaybeUninit};
use core::ptr::{NonNull, addr_of_mut};
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use exitless_host::fpu::GuestFpu;
use exitless_host::lock::{LockClass, Mutex};
use exitless_host::mem::{KArc, KBox, Pages};
use exitless_host::task::VcpuTask;
use exitless_host::timer::Timer;
use exitless_host::workers::Workers;
use exitless_host::{Errno, Result, cpu, task, time};
use exitless_hw_ops as ops;
use exitless_ipi::Address;
use exitless_pv_abi::KVM_VCPU_PREEMPTED;
use exitless_svm::Svm;
use exitless_vcpu::clock::tsc::{Rate, ticks_and_rest};
use exitless_vcpu::clock::units::ticks_to_ns;
use exitless_vcpu::host::Moment;
use exitless_vcpu::journal::Journal;
use exitless_vcpu::stats::waker;
use exitless_vcpu::timer::{self, Due};
use exitless_vcpu::times::Times;
use exitless_vcpu::{Request, Vcpu, VcpuShared};
use exitless_vmx::Vmx;

/// See the file's head.
#[derive(bytemuck::Zeroable)]
#[repr(C)]
pub struct VcpuObj {
    /// For everyone.
    pub shared: VcpuShared,
    /// Those who wait for its slow pages; they know it by this alone.
    workers: Workers,
    /// The thread: sleep, wake, preemption.
    pub task: VcpuTask,
    /// The APIC timer's host timer.
    pub timer: Timer,
    /// FPU state.
    pub fpu: GuestFpu,
    /// Serialises ioctls; its holder owns `inner`.
    pub lock: Mutex<()>,
    inner: Inner,
    run: Option<Pages>,
    io: Option<Pages>,
    /// What was measured of it.
    times: Once<Times>,
    /// What the thread had waited for CPUs when it last left one, ns.
    waited_ns: AtomicU64,
    /// With SVM.
    pub svm: vendor::svm::Parts,
    /// With VMX.
    pub vmx: vendor::vmx::Parts,
    vm: AtomicU64,
    /// KVM's vCPU id (the APIC id).
    pub id: u32,
    /// Position in the VM.
    pub index: u32,
    /// The address from which the VM's map is made, under the lock of that.
    pub claimed: AtomicU64,
    /// Number for the branch predictor barrier.
    identity: AtomicU64,
    /// The guest's TSC_AUX.
    pub tsc_aux: AtomicU64,
    /// The guest's TSC ratio, where it is no field of the VMCB or VMCS.
    pub tsc_ratio: AtomicU64,
    /// Signal mask of `KVM_SET_SIGNAL_MASK`.
    pub sigmask: AtomicU64,
    /// How long to wait awake in HLT, ns.
    pub poll_ns: AtomicU64,
    /// The host's TSC when the thread last left a CPU, and its monotonic clock then, ns, 0: not taken.
    pub left_tsc: AtomicU64,
    left_ns: AtomicU64,
    /// Millionths of a tick that were cut off the times between CPUs so far.
    left_rest: AtomicU32,
    /// `sigmask` counts.
    pub has_sigmask: AtomicBool,
    /// The thread came to a CPU whose TSC may be another than the one it left, and its offset is that one's still.
    tsc_lost: AtomicBool,
    /// The guest makes branch barriers of which nobody hears.
    own_barriers: AtomicBool,
}

/// The vCPU proper, of the vendor that was chosen at load.
#[repr(C)]
pub union Inner {
    svm: ManuallyDrop<UnsafeCell<MaybeUninit<Vcpu<Svm>>>>,
    vmx: ManuallyDrop<UnsafeCell<MaybeUninit<Vcpu<Vmx>>>>,
}

impl Inner {
    /// As SVM's.
    pub fn svm(&self) -> *mut Vcpu<Svm> {
        // SAFETY: a cell of any bytes is a value of this field.
        unsafe { &self.svm }.get().cast()
    }
    /// As VMX's.
    pub fn vmx(&self) -> *mut Vcpu<Vmx> {
        // SAFETY: as above.
        unsafe { &self.vmx }.get().cast()
    }
}

// SAFETY: `MaybeUninit` accepts any bytes; `create` writes it before anyone looks.
unsafe impl bytemuck::Zeroable for Inner {}
// SAFETY: `inner` is only reached through `VcpuObj::own`, whose contract is to hold `lock`; the rest is atomics, C
// objects with their own locking, or set before the vCPU is published.
unsafe impl Sync for VcpuObj {}
// SAFETY: as above.
unsafe impl Send for VcpuObj {}

impl VcpuObj {
    /// The VM. Lives longer than the vCPU.
    pub fn vm(&self) -> &Vm {
        // SAFETY: set in `create` to the VM that owns this object and frees it last.
        unsafe { &*(self.vm.load(Ordering::Relaxed) as *const Vm) }
    }

    /// The vCPU proper.
    ///
    /// # Safety
    /// The caller holds `lock`, no other reference from here is alive, and `B` is the backend chosen at load.
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn own<B: Vendor>(&self) -> &mut Vcpu<B> {
        // SAFETY: written in `create`; exclusive by contract.
        unsafe { &mut *B::place(&self.inner) }
    }

    /// A number no other vCPU of this load has had, for the branch predictor barrier.
    pub fn identity(&self) -> u64 {
        self.identity.load(Ordering::Relaxed)
    }

    /// After the guest's own barrier: what it trained on other CPUs is a stranger's from now on, so the barrier follows
    /// when it comes there. `slot` is this CPU's; preemption is off.
    pub fn renew_identity(&self, g: &Global, slot: &CpuSlot) {
        let fresh = global::next_identity();
        self.identity.store(fresh, Ordering::Relaxed);
        vendor::renew(g, self, slot, fresh);
    }

    /// `struct kvm_run`.
    pub fn run_page(&self) -> RunPage {
        let p = self.run.as_ref().map_or(NonNull::dangling().as_ptr(), Pages::as_ptr);
        // SAFETY: `run` is set before the vCPU is published and lives as long as it.
        unsafe { RunPage::new(NonNull::new_unchecked(p)) }
    }

    /// The I/O data page behind it.
    pub fn io_page(&self) -> RunPage {
        let p = self.io.as_ref().map_or(NonNull::dangling().as_ptr(), Pages::as_ptr);
        // SAFETY: as for `run_page`.
        unsafe { RunPage::new(NonNull::new_unchecked(p)) }
    }

    /// The page behind page `pgoff` of the fd's mapping; null: none.
    pub fn page(&self, pgoff: usize) -> *mut c_void {
        let own = |p: &Option<Pages>| p.as_ref().map_or(core::ptr::null_mut(), |p| p.page(0));
        match pgoff {
            0 => own(&self.run),
            1 => own(&self.io),
            2 => self.vm().ring_page(),
            _ => core::ptr::null_mut(),
        }
    }

    /// The host timer of the APIC fired (hard interrupt).
    pub fn timer_fired(&self) {
        // What its clock is less than 10 us early by, against the TSC, it waits for.
        let patience = u64::from(time::tsc_khz()) / 100;
        let again = |left| {
            self.timer.start_again(time::monotonic_ns().saturating_add(ticks_to_ns(left, time::tsc_khz())));
        };
        match timer::host_fired(&self.shared, ops::rdtsc, patience, again) {
            (Due::Ask, _) => {}
            (_, accepted) => return self.notify(accepted, waker::TIMER),
        }
        self.shared.request(Request::TIMER);
        if self.shared.needs_ipi() && self.shared.cpu.load(Ordering::Relaxed) != cpu::id() as i32 {
            self.vm().stats.foreign_timers.fetch_add(1, Ordering::Relaxed);
        }
        self.kick();
    }

    /// Before [`VcpuObj::measure`]: it has room for what is measured, and keeps it. The caller holds the VM's `lock`.
    pub fn make_times(&self) -> Result<()> {
        self.times.make().ok_or(Errno::ENOMEM).map(drop)
    }

    /// Somebody measures it from now on, or nobody. The caller holds the VM's `lock`.
    pub fn measure(&self, on: bool) {
        self.shared.measured.store(on, Ordering::Relaxed);
    }

    /// What was measured of it, ever.
    pub fn times(&self) -> Option<&Times> {
        self.times.get()
    }

    /// A worker has ended, with the page of this place or without.
    pub fn page_brought(&self, place: u8, there: bool) {
        let awaited = self.shared.pages.end(place, there);
        self.shared.request(Request::ASYNC_PF);
        if awaited {
            self.kick();
        } else {
            self.wake();
        }
    }

    /// The thread was put on a CPU again. Preemption is off.
    pub fn sched_in(&self, cpu: u32) {
        self.come(cpu);
        let waited = task::run_delay_ns().saturating_sub(self.waited_ns.load(Ordering::Relaxed));
        self.shared.stats.steal_ns.add(waited);
    }

    /// The thread lost its CPU, still runnable or not.
    pub fn sched_out(&self, preempted: bool) {
        self.waited_ns.store(task::run_delay_ns(), Ordering::Relaxed);
        self.leave(preempted);
    }

    /// The vCPU comes to a CPU. Preemption is off.
    fn come(&self, cpu: u32) {
        self.check_tsc(cpu);
        if let Some(g) = global::get() {
            self.load_on(g, cpu);
        }
        self.shared.hints.came();
        self.shared.returned.store(true, Ordering::Relaxed);
    }

    /// The vCPU leaves its CPU.
    fn leave(&self, preempted: bool) {
        self.shared.hints.left(preempted);
        if preempted
            && let Some(byte) = self.shared.steal.to_tell()
            && self.vm().write_byte_atomic(byte, KVM_VCPU_PREEMPTED)
        {
            self.shared.steal.note_told();
        }
        self.leave_tsc();
        if let Some(g) = global::get() {
            self.put_on(g);
        }
    }

    /// Is the TSC of the CPU that the thread came to the one that it left? Preemption is off.
    fn check_tsc(&self, cpu: u32) {
        let moved = self.shared.cpu.load(Ordering::Relaxed) != cpu as i32;
        if moved && (ops::rdtsc().wrapping_sub(self.left_tsc.load(Ordering::Relaxed)) as i64) < 0 {
            time::mark_tsc_unstable();
        }
        if global::tsc_unsteady() {
            self.tsc_lost.store(true, Ordering::Relaxed);
            self.shared.request(Request::TSC);
        }
    }

    /// The thread leaves its CPU. Preemption is off.
    fn leave_tsc(&self) {
        if !self.tsc_lost.load(Ordering::Relaxed) {
            self.note_tsc();
        }
    }

    fn note_tsc(&self) {
        if global::steady_tsc() {
            self.left_tsc.store(ops::rdtsc(), Ordering::Relaxed);
        } else {
            self.note(tsc_and_clock());
        }
    }

    fn note(&self, at: Moment) {
        self.left_tsc.store(at.tsc, Ordering::Relaxed);
        self.left_ns.store(at.ns, Ordering::Relaxed);
    }

    /// The TSC of the CPU that the thread left, as it would be `now`, and the rest of a tick; `now.tsc` is this CPU's.
    fn left_tsc_at(&self, now: Moment) -> (u64, u32) {
        let left = self.left_tsc.load(Ordering::Relaxed);
        let rest = self.left_rest.load(Ordering::Relaxed);
        match self.left_ns.load(Ordering::Relaxed) {
            // When it left, all TSCs were one as far as anybody knew: what this one says holds, unless it is behind.
            0 if now.tsc.wrapping_sub(left) as i64 >= 0 => (now.tsc, rest),
            0 => (left, rest),
            ns => {
                let (ticks, rest) = ticks_and_rest(now.ns.saturating_sub(ns), time::tsc_khz(), rest);
                (left.wrapping_add(ticks), rest)
            }
        }
    }

    /// [`exitless_vcpu::host::Host::take_tsc_jump`].
    fn take_tsc_jump(&self) -> i64 {
        cpu::preempt_disable();
        let mut jump = 0;
        if self.tsc_lost.swap(false, Ordering::Relaxed) {
            let here = tsc_and_clock();
            let (there, rest) = self.left_tsc_at(here);
            jump = there.wrapping_sub(here.tsc) as i64;
            self.left_rest.store(rest, Ordering::Relaxed);
            self.note(here);
        }
        cpu::preempt_enable();
        jump
    }

    /// `now` by the TSC that the vCPU's offset is for, in an ioctl that runs on whatever CPU.
    fn moment<B: Vendor>(&self, now: Moment) -> Moment {
        if global::steady_tsc() || B::LOADED_FOR_IOCTLS {
            return now;
        }
        Moment { tsc: self.left_tsc_at(now).0, ..now }
    }

    /// The offset of the vCPU's TSC is not right for the host's TSC any more.
    fn tsc_jumped(&self) -> bool {
        self.shared.tsc.owes() || self.tsc_lost.load(Ordering::Relaxed)
    }

    fn load_on(&self, g: &Global, cpu: u32) {
        let Some(slot) = g.cpus.get(cpu as usize) else { return };
        if self.shared.cpu.load(Ordering::Relaxed) != cpu as i32 {
            self.shared.cpu.store(cpu as i32, Ordering::Relaxed);
            self.shared.request(Request::MOVED);
            if self.own_barriers.load(Ordering::Relaxed) {
                // One of them may have been for what it trained here.
                let fresh = global::next_identity();
                self.identity.store(fresh, Ordering::Relaxed);
                vendor::rename(g, self, fresh);
            }
        }
        vendor::load(g, self, slot);
    }

    /// Gives the vCPU's owner's `inner` another rate of its TSC.
    pub fn set_tsc_rate<B: Vendor>(&self, g: &Global, inner: &mut Vcpu<B>, rate: Rate) {
        let scaling = vendor::tsc_scaling(g);
        inner.set_tsc_rate(&self.shared, rate, scaling);
        if let Some(scaling) = scaling {
            self.tsc_ratio.store(rate.ratio(scaling), Ordering::Relaxed);
        }
    }

    fn put_on(&self, g: &Global) {
        let at = self.shared.cpu.load(Ordering::Relaxed);
        if g.cpus.get(at as usize).is_some() {
            vendor::put(g, self);
        }
    }
}

/// This CPU's TSC and the monotonic clock at one instant. Reading that clock may take long, and longer at times: it lies in the middle
/// between two reads of the TSC, so that what leaving and coming back measure does not grow or shrink with it. Preemption is off.
fn tsc_and_clock() -> Moment {
    let before = ops::rdtsc();
    let ns = time::monotonic_ns();
    let took = ops::rdtsc().wrapping_sub(before);
    Moment { ns, tsc: before.wrapping_add(took / 2) }
}

/// While this lives, the vCPU is on the CPU of the calling thread, wherever the scheduler takes that.
pub struct Loaded<'a>(&'a VcpuObj);

impl<'a> Loaded<'a> {
    /// Process context, by the holder of the vCPU's lock.
    pub fn new(v: &'a VcpuObj) -> Self {
        cpu::preempt_disable();
        // SAFETY: preemption is off; `put` follows on the same thread when this drops.
        let at = unsafe { v.task.load() };
        v.come(at);
        cpu::preempt_enable();
        Self(v)
    }
}

impl Drop for Loaded<'_> {
    fn drop(&mut self) {
        cpu::preempt_disable();
        self.0.leave(false);
        // SAFETY: the pair of `load` in `new`.
        unsafe { self.0.task.put() };
        cpu::preempt_enable();
    }
}

/// Builds a vCPU that nobody knows yet: [`Vm::add_vcpu`] or [`free`] follows. The caller holds the VM's `lock`.
pub fn create(vm: &Vm, id: u32, bsp: bool, rate: Rate) -> Result<*mut VcpuObj> {
    let g = global::get().ok_or(Errno::ENXIO)?;
    let mut v = KBox::<VcpuObj>::zeroed().ok_or(Errno::ENOMEM)?;
    let cookie: *mut c_void = v.as_ptr().cast();
    v.id = id;
    v.index = vm.vcpu_count() as u32;
    // Nowhere yet, and not away from the default page.
    v.claimed.store(Address::new().with_default_page(true).into(), Ordering::Relaxed);
    v.identity.store(global::next_identity(), Ordering::Relaxed);
    v.vm.store(core::ptr::from_ref(vm) as u64, Ordering::Relaxed);
    v.shared.cpu.store(-1, Ordering::Relaxed);
    v.task.init(cookie)?;
    v.workers.init(cookie)?;
    v.timer.init(cookie, crate::callbacks::timer_kind::APIC)?;
    v.fpu.init()?;
    v.lock.init(LockClass::Vcpu)?;
    if vm.measured.load(Ordering::Relaxed) {
        v.make_times()?;
        v.measure(true);
    }
    v.run = Some(Pages::zeroed(0).ok_or(Errno::ENOMEM)?);
    v.io = Some(Pages::zeroed(0).ok_or(Errno::ENOMEM)?);
    let root = vm.mmu.lock().root();
    with_backend!(g.kind, B => {
        fill_blanks(B::place(&v.inner));
        B::create(g, &mut v, root)?;
        // SAFETY: nobody else knows the object yet.
        let inner = unsafe { v.own::<B>() };
        inner.in_guest = vm.in_guest();
        inner.commit_cpuid(0, &g.supported().caps);
        let host = host::RunHost::<B>::new(vm, &v);
        inner.init(&v.shared, &host, id, bsp);
        v.set_tsc_rate(g, inner, rate);
        inner.set_tsc_offset(&v.shared, vm.join_tsc(&rate));
        v.note_tsc();
    });
    Ok(KBox::into_raw(v))
}

/// Gives every field of the zeroed vCPU whose all-zero bytes might not be a value of its type a value.
fn fill_blanks<B: Vendor>(p: *mut Vcpu<B>) {
    // SAFETY: `p` points to zeroed memory of the right size and alignment. The fields written here are all those whose
    // types are not `Zeroable`; the others (backend, APIC, CPUID, MSRs, PV, integers, bools) are valid as zeroes.
    unsafe {
        addr_of_mut!((*p).journal).write(Journal::default());
        addr_of_mut!((*p).pending_port).write(None);
        addr_of_mut!((*p).reinject).write(None);
        addr_of_mut!((*p).exception).write(None);
        addr_of_mut!((*p).user_interrupt).write(None);
        addr_of_mut!((*p).user_eoi).write(None);
        addr_of_mut!((*p).injecting).write(None);
        addr_of_mut!((*p).asked).write(None);
        addr_of_mut!((*p).outside).write(None);
    }
}

/// Frees a vCPU.
///
/// # Safety
/// `v` is null or came from [`create`], and nobody can reach it any more.
pub unsafe fn free(v: *mut VcpuObj) {
    // SAFETY: see the contract; dropping the fields cancels the timer and frees the pages.
    if let Some(b) = unsafe { KBox::from_raw(v) } {
        b.timer.cancel();
        vendor::forget(&b);
        drop(b);
    }
}

/// The fd was closed: its reference to the VM ends.
///
/// # Safety
/// `v` is a vCPU whose fd held a reference made by `KArc::into_raw`.
pub unsafe fn release(v: *mut VcpuObj) {
    // SAFETY: the fd kept the VM, and so the vCPU, alive until now.
    let vm = unsafe { (*v).vm.load(Ordering::Relaxed) } as *const Vm;
    // SAFETY: takes back the fd's reference.
    drop(unsafe { KArc::from_raw(vm) });
}
