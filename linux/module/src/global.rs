//! What the module owns once: the vendor's part, per-CPU parts, what guests may have.
//!
//! Built by `ex_rs_init` before anything else runs, read-only until `ex_rs_exit` after everything else ended.

use crate::dev::Supported;
use crate::vendor;
use crate::vm::Vm;
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, Ordering};
use exitless_host::lock::{LockClass, SpinLock};
use exitless_host::mem::{KArc, KBox, KSlice};
use exitless_host::{Errno, cpu, time};
use exitless_hw_ops as ops;
use exitless_policy::hide_unused_controls;
use exitless_vcpu::clock::Instant;
use exitless_x86::cpuid::{CpuidResult, leaf, leafd_1_eax, xcr0};
use exitless_x86::regs::cr4;

/// One CPU's part.
#[derive(bytemuck::Zeroable)]
#[repr(C)]
pub struct CpuSlot {
    /// With SVM.
    pub svm: vendor::svm::Cpu,
    /// With VMX.
    pub vmx: vendor::vmx::Cpu,
    /// Virtualisation is on here, by us.
    enabled: AtomicBool,
    _pad: [u8; 7],
}

impl CpuSlot {
    /// Virtualisation is on here, by us.
    pub fn enabled(&self) -> bool {
        self.enabled.load(Ordering::Relaxed)
    }
}

/// See the file's head.
#[derive(bytemuck::Zeroable)]
pub struct Global {
    /// Which of the two below counts.
    pub kind: vendor::Kind,
    /// What vCPUs share with SVM.
    pub svm: vendor::svm::Shared,
    /// What vCPUs share with VMX.
    pub vmx: vendor::vmx::Shared,
    /// Per CPU, indexed by CPU number.
    pub cpus: KSlice<CpuSlot>,
    /// The supported list.
    supported: Option<KBox<Supported>>,
    /// The CPU has RDTSCP and so TSC_AUX.
    pub has_tsc_aux: bool,
    /// XCR0 as the kernel runs with it.
    pub host_xcr0: u64,
    /// IA32_XSS as the kernel runs with it; 0 without XSAVES.
    pub host_xss: u64,
    /// The kernel uses protection keys: CR4.PKE is set on every CPU.
    pub host_pkru: bool,
    /// All VMs.
    pub vms: SpinLock<Vms>,
    /// When the host was last suspended.
    pub suspended: SpinLock<Instant>,
}

/// The list of all VMs.
#[derive(bytemuck::Zeroable)]
pub struct Vms(AtomicPtr<Vm>);

impl Vms {
    /// A VM that is complete.
    pub fn add(&self, vm: &Vm) {
        vm.next.store(self.0.load(Ordering::Relaxed), Ordering::Relaxed);
        self.0.store(core::ptr::from_ref(vm).cast_mut(), Ordering::Relaxed);
    }

    /// All of them, by the holder of the lock.
    fn iter(&self) -> impl Iterator<Item = &Vm> {
        // SAFETY: what the list holds are VMs that have not been removed, so live; the list's lock is held.
        let vm = |at: &AtomicPtr<Vm>| unsafe { at.load(Ordering::Relaxed).as_ref() };
        core::iter::successors(vm(&self.0), move |here| vm(&here.next))
    }

    /// A VM that ends; one that never was in the list is no harm.
    pub fn remove(&self, vm: &Vm) {
        let mut at = &self.0;
        // SAFETY: what the list holds are VMs that have not been removed, so live; the list's lock is held.
        while let Some(here) = unsafe { at.load(Ordering::Relaxed).as_ref() } {
            if core::ptr::eq(here, vm) {
                at.store(vm.next.load(Ordering::Relaxed), Ordering::Relaxed);
                return;
            }
            at = &here.next;
        }
    }
}

/// Does something for each VM, with the list locked and interrupts off.
pub fn each_vm(f: impl Fn(&Vm)) {
    let Some(g) = get() else { return };
    g.vms.lock().iter().for_each(f);
}

/// The VM with the lowest id from `from` on, which lives as long as what is returned.
pub fn next_vm(from: u64) -> Option<KArc<Vm>> {
    let list = get()?.vms.lock();
    let mut from = from;
    loop {
        let vm = list.iter().filter(|vm| vm.id >= from).min_by_key(|vm| vm.id)?;
        // SAFETY: what is in the list is not freed before it was removed, under the lock that is held.
        let alive = unsafe { KArc::try_clone_raw(core::ptr::from_ref(vm)) };
        if alive.is_some() {
            return alive;
        }
        from = vm.id + 1;
    }
}

/// CPUs' TSCs differ, or stop: what one of them says means nothing on the next. Never taken back, as by the kernel.
static UNSTEADY: AtomicBool = AtomicBool::new(false);

/// The host's TSC was known to be the same on all CPUs when it was last asked about.
pub fn steady_tsc() -> bool {
    !UNSTEADY.load(Ordering::Relaxed)
}

/// Asks the kernel whether CPUs' TSCs differ.
pub fn tsc_unsteady() -> bool {
    if steady_tsc() && time::tsc_unstable() {
        UNSTEADY.store(true, Ordering::Relaxed);
    }
    !steady_tsc()
}

impl Global {
    /// The supported CPUID list.
    pub fn supported(&self) -> &Supported {
        static NONE: Supported = Supported::none();
        self.supported.as_deref().unwrap_or(&NONE)
    }
}

static GLOBAL: AtomicPtr<Global> = AtomicPtr::new(core::ptr::null_mut());
static NEXT_IDENTITY: AtomicU64 = AtomicU64::new(1);

/// A number no other vCPU or VM of this load has had.
pub fn next_identity() -> u64 {
    NEXT_IDENTITY.fetch_add(1, Ordering::Relaxed)
}

/// The module's state. `None` only before `init` and after `exit`, when no file of ours is open.
pub fn get() -> Option<&'static Global> {
    // SAFETY: the pointer is null or came from a leaked KBox that `exit` frees after the last user is gone.
    unsafe { GLOBAL.load(Ordering::Acquire).as_ref() }
}

/// Builds everything that may fail, before any CPU is touched.
pub fn init() -> Result<(), Errno> {
    let mut g = KBox::<Global>::zeroed().ok_or(Errno::ENOMEM)?;
    g.vms.init(LockClass::VmList)?;
    g.suspended.init(LockClass::Other)?;
    vendor::probe(&mut g)?;
    g.cpus = KSlice::zeroed(cpu::count()).ok_or(Errno::ENOMEM)?;
    vendor::prepare(&mut g)?;
    let rdtscp = ops::cpuid(0x8000_0001, 0).edx & (1 << 27) != 0;
    let rdpid = ops::cpuid(0, 0).eax >= 7 && ops::cpuid(7, 0).ecx & (1 << 22) != 0;
    g.has_tsc_aux = rdtscp || rdpid;
    g.host_xcr0 = exitless_host::fpu::host_xcr0();
    g.host_xss = exitless_host::fpu::host_xss();
    g.host_pkru = ops::cr4() & cr4::PKE != 0;
    let gpa_bits = exitless_slat::gpa_bits(vendor::Entries::shape(&g).0);
    // Keys that the kernel does not use it does not switch.
    let offered = if g.host_pkru { g.host_xcr0 } else { g.host_xcr0 & !xcr0::PKRU };
    // Where the kernel found XSAVES broken (erratum 1386 of AMD's), CPUID shows it nevertheless.
    let xsaves = exitless_host::fpu::host_xsaves();
    let (spec_ctrl, ibpb) = (cpu::has_spec_ctrl(), cpu::has_ibpb());
    let adjust = |l: u32, sub: u32, r: &mut CpuidResult| {
        vendor::adjust(&g, l, sub, r);
        hide_unused_controls(l, sub, r, spec_ctrl, ibpb);
        if (l, sub) == (leaf::XSAVE, 1) && !xsaves {
            r.eax &= !leafd_1_eax::XSAVES;
        }
    };
    g.supported = Some(Supported::compute(offered, gpa_bits, &adjust).ok_or(Errno::ENOMEM)?);
    GLOBAL.store(KBox::into_raw(g), Ordering::Release);
    Ok(())
}

/// Frees it all.
pub fn exit() {
    let p = GLOBAL.swap(core::ptr::null_mut(), Ordering::AcqRel);
    if !p.is_null() {
        // SAFETY: it came from `KBox::into_raw` in `init`, and virtualisation is off on every CPU by now.
        drop(unsafe { KBox::from_raw(p) });
    }
}

/// This CPU starts to run guests. Interrupts are off.
pub fn cpu_online(cpu: u32) -> Result<(), Errno> {
    let g = get().ok_or(Errno::ENXIO)?;
    let slot = g.cpus.get(cpu as usize).ok_or(Errno::ENXIO)?;
    vendor::cpu_on(g, slot, cpu)?;
    slot.enabled.store(true, Ordering::Relaxed);
    Ok(())
}

/// This CPU stops running guests. Interrupts are off. Harmless when virtualisation was not on.
pub fn cpu_offline(cpu: u32) {
    let Some(g) = get() else { return };
    let Some(slot) = g.cpus.get(cpu as usize) else { return };
    if slot.enabled.swap(false, Ordering::Relaxed) {
        vendor::cpu_off(g, slot);
    }
}

/// The machine crashes: give the CPU back in any state.
pub fn cpu_emergency() {
    let Some(g) = get() else { return };
    if let Some(slot) = g.cpus.get(cpu::id() as usize).filter(|s| s.enabled()) {
        vendor::cpu_emergency(g, slot);
    }
}
