//! One vCPU's kernel object: what other threads may touch, the C parts, and the [`Vcpu`] that its own thread drives.

pub mod host;
pub mod ioctl;
pub mod run;
pub mod state;
pub mod sync;

use crate::global::{self, Global};
use crate::runpage::RunPage;
use crate::vm::Vm;
use core::cell::UnsafeCell;
use core::ffi::c_void;
use core::mem::MaybeUninit;
use core::ptr::{NonNull, addr_of_mut};
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use exitless_host::fpu::GuestFpu;
use exitless_host::lock::{LockClass, Mutex};
use exitless_host::mem::{KArc, KBox, Pages, encryption_bit};
use exitless_host::task::VcpuTask;
use exitless_host::timer::Timer;
use exitless_host::{Errno, Result, cpu, enter};
use exitless_svm::Svm;
use exitless_vcpu::journal::Journal;
use exitless_vcpu::{Request, Vcpu, VcpuShared};

/// See the file's head.
#[derive(bytemuck::Zeroable)]
#[repr(C)]
pub struct VcpuObj {
    /// For everyone.
    pub shared: VcpuShared,
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
    vmcb: Option<Pages>,
    vm: AtomicU64,
    /// KVM's vCPU id (the APIC id).
    pub id: u32,
    /// Position in the VM.
    pub index: u32,
    /// Number for the branch predictor barrier.
    identity: u64,
    /// The guest's TSC_AUX.
    pub tsc_aux: AtomicU64,
    /// Signal mask of `KVM_SET_SIGNAL_MASK`.
    pub sigmask: AtomicU64,
    /// `sigmask` counts.
    pub has_sigmask: AtomicBool,
    _pad: [u8; 7],
}

/// The vCPU proper.
struct Inner(UnsafeCell<MaybeUninit<Vcpu<Svm>>>);

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
    /// The caller holds `lock` and no other reference from here is alive.
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn own(&self) -> &mut Vcpu<Svm> {
        // SAFETY: written in `create`; exclusive by contract.
        unsafe { (*self.inner.0.get()).assume_init_mut() }
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
        self.shared.request(Request::TIMER);
        self.kick();
    }

    /// The thread was put on a CPU. Preemption is off.
    pub fn sched_in(&self, cpu: u32) {
        if let Some(g) = global::get() {
            self.load_on(g, cpu);
        }
        self.shared.request(Request::STEAL);
    }

    /// The thread leaves its CPU.
    pub fn sched_out(&self, _preempted: bool) {
        if let Some(g) = global::get() {
            self.put_on(g);
        }
    }

    fn load_on(&self, g: &Global, cpu: u32) {
        let Some(slot) = g.cpus.get(cpu as usize) else { return };
        self.shared.cpu.store(cpu as i32, Ordering::Relaxed);
        let aux = g.has_tsc_aux.then(|| self.tsc_aux.load(Ordering::Relaxed));
        // SAFETY: preemption is off (scheduler or caller) and `slot` is this CPU's.
        unsafe { exitless_svm::enter::load(&slot.svm, self.identity, aux) };
        // Fails when a shutdown has turned SVM off; then the next entry fails too and says so.
        // SAFETY: as above, and the page is this CPU's own.
        let _ = unsafe { enter::save_host(slot.svm.host_save_pa.load(Ordering::Relaxed)) };
    }

    fn put_on(&self, g: &Global) {
        let at = self.shared.cpu.load(Ordering::Relaxed);
        if let Some(slot) = g.cpus.get(at as usize) {
            // SAFETY: still on the CPU of the last load, preemption is off.
            unsafe { exitless_svm::enter::put(&slot.svm, g.has_tsc_aux) };
        }
        cpu::reload_ldt();
    }
}

/// Builds a vCPU that nobody knows yet: [`Vm::add_vcpu`] or [`free`] follows. The caller holds the VM's `lock`.
pub fn create(vm: &Vm, id: u32, bsp: bool) -> Result<*mut VcpuObj> {
    let g = global::get().ok_or(Errno::ENXIO)?;
    let mut v = KBox::<VcpuObj>::zeroed().ok_or(Errno::ENOMEM)?;
    let cookie: *mut c_void = v.as_ptr().cast();
    v.id = id;
    v.index = vm.vcpu_count() as u32;
    v.identity = global::next_identity();
    v.vm.store(core::ptr::from_ref(vm) as u64, Ordering::Relaxed);
    v.shared.cpu.store(-1, Ordering::Relaxed);
    v.task.init(cookie)?;
    v.timer.init(cookie, crate::callbacks::timer_kind::APIC)?;
    v.fpu.init()?;
    v.lock.init(LockClass::Vcpu)?;
    v.run = Some(Pages::zeroed(0).ok_or(Errno::ENOMEM)?);
    v.io = Some(Pages::zeroed(0).ok_or(Errno::ENOMEM)?);
    let vmcb = Pages::zeroed(0).ok_or(Errno::ENOMEM)?;
    let pages = exitless_svm::Pages {
        vmcb: NonNull::new(vmcb.as_ptr().cast()).ok_or(Errno::ENOMEM)?,
        vmcb_pa: vmcb.hardware_address(),
        msrpm_pa: g.msrpm.as_ref().map_or(0, Pages::hardware_address),
        iopm_pa: g.iopm.as_ref().map_or(0, Pages::hardware_address),
    };
    v.vmcb = Some(vmcb);
    fill_blanks(v.inner.0.get_mut());
    let root = vm.mmu.lock().root() | encryption_bit();
    // SAFETY: nobody else knows the object yet.
    let inner = unsafe { v.own() };
    inner.b.init(pages, &g.caps);
    inner.cpuid.commit(0, &g.supported().caps);
    exitless_vcpu::backend::Backend::set_slat_root(&mut inner.b, root);
    let host = host::RunHost::new(vm, &v);
    inner.init(&v.shared, &host, id, bsp);
    inner.set_tsc_offset(vm.match_tsc(0));
    drop(host);
    Ok(KBox::into_raw(v))
}

/// Gives every field of the zeroed vCPU whose all-zero bytes might not be a value of its type a value.
fn fill_blanks(v: &mut MaybeUninit<Vcpu<Svm>>) {
    let p = v.as_mut_ptr();
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
