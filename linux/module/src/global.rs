//! What the module owns once: capabilities, permission maps, per-CPU parts.
//!
//! Built by `ex_rs_init` before anything else runs, read-only until `ex_rs_exit` after everything else ended.

use crate::dev::Supported;
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, Ordering};
use exitless_host::mem::{KBox, KSlice, Pages};
use exitless_host::{Errno, cpu, pr_err};
use exitless_hw_ops as ops;
use exitless_svm::{Caps, PerCpu, msr_bitmap};

const EFER: u32 = 0xc000_0080;
const EFER_SVME: u64 = 1 << 12;
const VM_CR: u32 = 0xc001_0114;
const VM_HSAVE_PA: u32 = 0xc001_0117;

/// One CPU's part.
#[derive(bytemuck::Zeroable)]
#[repr(C)]
pub struct CpuSlot {
    /// What entries need.
    pub svm: PerCpu,
    /// Physical address of the page VMRUN saves the host to.
    hsave_pa: AtomicU64,
    /// SVM is on here, by us.
    enabled: AtomicBool,
    _pad: [u8; 7],
}

/// See the file's head.
#[derive(bytemuck::Zeroable)]
pub struct Global {
    /// What the CPUs can do.
    pub caps: Caps,
    /// Per CPU, indexed by CPU number.
    pub cpus: KSlice<CpuSlot>,
    /// The MSR permission map all vCPUs share.
    pub msrpm: Option<Pages>,
    /// The I/O permission map: every port exits.
    pub iopm: Option<Pages>,
    /// Per-CPU pages: for each CPU the one VMRUN saves to and the one VMSAVE saves to.
    pages: KSlice<[Option<Pages>; 2]>,
    /// The supported list.
    supported: Option<KBox<Supported>>,
    /// The CPU has RDTSCP and so TSC_AUX.
    pub has_tsc_aux: bool,
    /// XCR0 as the kernel runs with it.
    pub host_xcr0: u64,
    /// IA32_XSS as the kernel runs with it; 0 without XSAVES.
    pub host_xss: u64,
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

/// A number no other vCPU of this load has had.
pub fn next_identity() -> u64 {
    NEXT_IDENTITY.fetch_add(1, Ordering::Relaxed)
}

/// The module's state. `None` only before `init` and after `exit`, when no file of ours is open.
pub fn get() -> Option<&'static Global> {
    // SAFETY: the pointer is null or came from a leaked KBox that `exit` frees after the last user is gone.
    unsafe { GLOBAL.load(Ordering::Acquire).as_ref() }
}

fn negotiate() -> Result<Caps, Errno> {
    // SAFETY: asked only when CPUID shows SVM, which brings VM_CR.
    let vm_cr = || unsafe { ops::rdmsr(VM_CR) };
    Caps::negotiate(|leaf| ops::cpuid(leaf, 0), vm_cr).map_err(|why| {
        pr_err!("{}", why.message());
        Errno::EOPNOTSUPP
    })
}

/// Builds everything that may fail, before any CPU is touched.
pub fn init() -> Result<(), Errno> {
    let caps = negotiate()?;
    let mut g = KBox::<Global>::zeroed().ok_or(Errno::ENOMEM)?;
    let n = cpu::count();
    g.caps = caps;
    g.pages = KSlice::zeroed(n).ok_or(Errno::ENOMEM)?;
    g.cpus = KSlice::zeroed(n).ok_or(Errno::ENOMEM)?;
    let Global { pages, cpus, .. } = &mut *g;
    for (own, slot) in pages.iter_mut().zip(cpus.iter()) {
        let hsave = Pages::zeroed(0).ok_or(Errno::ENOMEM)?;
        let save = Pages::zeroed(0).ok_or(Errno::ENOMEM)?;
        slot.hsave_pa.store(hsave.hardware_address(), Ordering::Relaxed);
        slot.svm.host_save_pa.store(save.hardware_address(), Ordering::Relaxed);
        *own = [Some(hsave), Some(save)];
    }
    let mut msrpm = Pages::zeroed(1).ok_or(Errno::ENOMEM)?;
    msr_bitmap::fill(msrpm.bytes_mut(), exitless_policy::msr::passthrough());
    g.msrpm = Some(msrpm);
    let mut iopm = Pages::zeroed(2).ok_or(Errno::ENOMEM)?;
    iopm.bytes_mut().fill(0xff);
    g.iopm = Some(iopm);
    let rdtscp = ops::cpuid(0x8000_0001, 0).edx & (1 << 27) != 0;
    let rdpid = ops::cpuid(0, 0).eax >= 7 && ops::cpuid(7, 0).ecx & (1 << 22) != 0;
    g.has_tsc_aux = rdtscp || rdpid;
    g.host_xcr0 = exitless_host::fpu::host_xcr0();
    g.host_xss = exitless_host::fpu::host_xss();
    g.supported = Some(Supported::compute(g.host_xcr0).ok_or(Errno::ENOMEM)?);
    GLOBAL.store(KBox::into_raw(g), Ordering::Release);
    Ok(())
}

/// Frees it all.
pub fn exit() {
    let p = GLOBAL.swap(core::ptr::null_mut(), Ordering::AcqRel);
    if !p.is_null() {
        // SAFETY: it came from `KBox::into_raw` in `init`, and SVM is off on every CPU by now.
        drop(unsafe { KBox::from_raw(p) });
    }
}

/// This CPU starts to run guests. Interrupts are off.
pub fn cpu_online(cpu: u32) -> Result<(), Errno> {
    let g = get().ok_or(Errno::ENXIO)?;
    let slot = g.cpus.get(cpu as usize).ok_or(Errno::ENXIO)?;
    // SAFETY: every x86-64 CPU has EFER.
    let efer = unsafe { ops::rdmsr(EFER) };
    if efer & EFER_SVME != 0 && !slot.enabled.load(Ordering::Relaxed) {
        // Another hypervisor drives SVM here.
        return Err(Errno::EBUSY);
    }
    // SAFETY: `negotiate` saw SVM; the kernel caches no copy of EFER.SVME; the page is this CPU's own.
    unsafe {
        ops::wrmsr(EFER, efer | EFER_SVME);
        ops::wrmsr(VM_HSAVE_PA, slot.hsave_pa.load(Ordering::Relaxed));
    }
    slot.svm.enable(cpu, g.caps.asids);
    slot.enabled.store(true, Ordering::Relaxed);
    Ok(())
}

/// This CPU stops running guests. Interrupts are off. Harmless when SVM was not on.
pub fn cpu_offline(cpu: u32) {
    let Some(slot) = get().and_then(|g| g.cpus.get(cpu as usize)) else { return };
    if slot.enabled.swap(false, Ordering::Relaxed) {
        // SAFETY: SVM is on here by us; no guest runs any more, so the host save page is not needed.
        unsafe {
            ops::wrmsr(VM_HSAVE_PA, 0);
            ops::wrmsr(EFER, ops::rdmsr(EFER) & !EFER_SVME);
        }
    }
}

/// The machine crashes: give the CPU back in any state.
pub fn cpu_emergency() {
    let ours =
        get().and_then(|g| g.cpus.get(cpu::id() as usize)).is_some_and(|s| s.enabled.load(Ordering::Relaxed));
    if ours {
        // SAFETY: SVM is on, so STGI is legal; interrupts must not stay blocked by GIF when SVM goes.
        unsafe {
            ops::stgi();
            ops::wrmsr(EFER, ops::rdmsr(EFER) & !EFER_SVME);
        }
    }
}
