//! AMD SVM: permission maps, per-CPU pages, VMCBs, and the change of hands on a CPU.

use super::Vendor;
use crate::global::{self, CpuSlot, Global};
use crate::vcpu::{Inner, VcpuObj};
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU64, Ordering};
use exitless_avic::Entry;
use exitless_host::mem::{KSlice, Pages, encryption_bit};
use exitless_host::trace::Isa;
use exitless_host::{Errno, cpu, enter, pr_err, pr_warn};
use exitless_hw_ops as ops;
use exitless_policy::nested;
use exitless_slat::{Level, Npt};
use exitless_svm::enter::TSC_RATIO;
use exitless_svm::{AvicPages, Caps, PerCpu, Svm, msr_bitmap};
use exitless_vcpu::Vcpu;
use exitless_vcpu::backend::{ApicPage, Backend, Opened};
use exitless_vcpu::chooser::Mechanism;
use exitless_vcpu::clock::tsc::Scaling;
use exitless_x86::msr::Msr;
use exitless_x86::regs::cr4;
use exitless_x86::svm::avic::{DOORBELL_ID, MAX_INDEX};

const EFER: u32 = 0xc000_0080;
const EFER_SVME: u64 = 1 << 12;
const VM_CR: u32 = 0xc001_0114;
const VM_HSAVE_PA: u32 = 0xc001_0117;

/// What all vCPUs share.
#[derive(bytemuck::Zeroable)]
pub struct Shared {
    /// What the CPUs can do.
    pub caps: Caps,
    /// The MSR permission maps, as [`exitless_svm::MsrMaps`] has their addresses.
    msrpms: [[Option<Pages>; 3]; Opened::COMMON_SETS],
    /// The I/O permission map: every port exits.
    iopm: Option<Pages>,
    /// Per-CPU pages: for each CPU the one VMRUN saves to and the one VMSAVE saves to.
    pages: KSlice<[Option<Pages>; 2]>,
}

/// One CPU's part.
#[derive(bytemuck::Zeroable)]
#[repr(C)]
pub struct Cpu {
    /// What entries need.
    per_cpu: PerCpu,
    /// Physical address of the page VMRUN saves the host to.
    hsave_pa: AtomicU64,
    /// Its APIC id, for the doorbell.
    apic_id: AtomicU64,
}

/// One vCPU's part.
#[derive(bytemuck::Zeroable)]
#[repr(C)]
pub struct Parts {
    vmcb: Option<Pages>,
    /// AVIC's backing page.
    backing: Option<Pages>,
}

impl Parts {
    /// The vCPU's interrupts are in a page that its CPU looks at.
    pub fn has_avic(&self) -> bool {
        self.backing.is_some()
    }
}

/// AVIC's tables of one VM, where it is used.
#[derive(bytemuck::Zeroable)]
pub struct AvicTables {
    physical: Option<Pages>,
    /// Without entries: CPUs read it for APICs in xAPIC mode only, which stay software's.
    logical: Option<Pages>,
}

impl AvicTables {
    /// AVIC is used.
    pub fn there(&self) -> bool {
        self.physical.is_some()
    }

    /// The entry of an APIC id; `None`: beyond the table, or AVIC is not used.
    fn entry(&self, id: u32) -> Option<&'static Entry> {
        let table = self.physical.as_ref().filter(|_| id <= MAX_INDEX)?;
        // SAFETY: the page is 512 zeroed words, which are entries, and the index is below 512. The page lives as long as the VM, which
        // frees its vCPUs first, and they alone keep the reference.
        unsafe { table.as_ptr().cast::<Entry>().add(id as usize).as_ref() }
    }
}

impl Vendor for Svm {
    const LOADED_FOR_IOCTLS: bool = false;
    const POSTS: bool = false;
    const NESTED: nested::Format = nested::Format::Svm;
    const ISA: Isa = Isa::Svm;

    fn place(inner: &Inner) -> *mut Vcpu<Self> {
        inner.svm()
    }
    fn cpu(slot: &CpuSlot) -> &PerCpu {
        &slot.svm.per_cpu
    }
    fn nowhere() -> &'static PerCpu {
        static NONE: PerCpu = PerCpu::none();
        &NONE
    }
    fn create(g: &Global, v: &mut VcpuObj, root: u64) -> Result<(), Errno> {
        let vmcb = Pages::zeroed(0).ok_or(Errno::ENOMEM)?;
        let pages = exitless_svm::Pages {
            vmcb: NonNull::new(vmcb.as_ptr().cast()).ok_or(Errno::ENOMEM)?,
            vmcb_pa: vmcb.hardware_address(),
            msrpm_pa: g
                .svm
                .msrpms
                .each_ref()
                .map(|set| set.each_ref().map(|p| p.as_ref().map_or(0, Pages::hardware_address))),
            iopm_pa: g.svm.iopm.as_ref().map_or(0, Pages::hardware_address),
            avic: use_avic(v)?,
        };
        v.svm.vmcb = Some(vmcb);
        // SAFETY: the caller's object alone refers to it.
        let inner = unsafe { v.own::<Svm>() };
        inner.b.init(pages, &g.svm.caps, v.vm().in_guest());
        inner.b.set_slat_root(root | encryption_bit());
        Ok(())
    }
    fn reload_tsc_aux(cpu: &PerCpu, value: u64) {
        // SAFETY: the vCPU is loaded on this CPU, interrupts are off (trait contract).
        unsafe { exitless_svm::enter::lend_tsc_aux(cpu, value) };
    }
}

/// With AVIC: the backing page, and the vCPU's place in the VM's table. Nobody knows the vCPU yet.
fn use_avic(v: &mut VcpuObj) -> Result<Option<AvicPages>, Errno> {
    let tables = &v.vm().avic;
    let Some(entry) = tables.entry(v.id) else { return Ok(None) };
    let [physical_pa, logical_pa] =
        [&tables.physical, &tables.logical].map(|t| t.as_ref().map_or(0, Pages::hardware_address));
    let page = Pages::zeroed(0).ok_or(Errno::ENOMEM)?;
    let backing_pa = page.hardware_address();
    let backing = NonNull::new(page.as_ptr().cast::<ApicPage>()).ok_or(Errno::ENOMEM)?;
    // SAFETY: a zeroed page is one; it is the vCPU's, like `shared`, which gets the reference: both end in `free`.
    v.shared.apic.use_page_for_irr(unsafe { backing.as_ref() });
    v.svm.backing = Some(page);
    // SAFETY: the caller's object alone refers to it.
    unsafe { v.own::<Svm>() }.vapic.use_avic(entry, backing_pa);
    Ok(Some(AvicPages { backing, backing_pa, physical_pa, logical_pa }))
}

/// What this CPU can do; the kernel's log says why it is no use.
fn negotiate() -> Result<Caps, Errno> {
    // SAFETY: asked only when CPUID shows SVM, which brings VM_CR.
    let vm_cr = || unsafe { ops::rdmsr(VM_CR) };
    let mut caps = Caps::negotiate(|leaf| ops::cpuid(leaf, 0), vm_cr).map_err(|why| {
        pr_err!("{}", why.message());
        Errno::EOPNOTSUPP
    })?;
    caps.machine_checks = ops::cr4() & cr4::MCE != 0;
    if let (true, Ok(ipis)) = (cpu::wants_avic(), offered()) {
        (caps.avic, caps.avic_ipis) = (true, ipis);
    }
    Ok(caps)
}

/// Whether this CPU has AVIC as we use it, and sends IPIs by it.
fn offered() -> Result<bool, exitless_avic::Absent> {
    exitless_avic::offer(|leaf| ops::cpuid(leaf, 0))
}

pub(super) fn probe(g: &mut Global) -> Result<(), Errno> {
    g.svm.caps = negotiate()?;
    if g.svm.caps.avic {
        crate::control::want(Mechanism::Avic);
    }
    if cpu::wants_avic() {
        match offered() {
            Err(why) => pr_warn!("{}", why.message()),
            Ok(true) => pr_warn!("avic=1: AVIC is on, untested on hardware so far"),
            Ok(false) => {
                pr_warn!("avic=1: AVIC is on, untested on hardware so far; IPIs exit (erratum 1235)");
            }
        }
    }
    Ok(())
}

/// The two tables of a VM.
pub fn avic_tables(g: &Global) -> Result<AvicTables, Errno> {
    let table = || if g.svm.caps.avic { Pages::zeroed(0).ok_or(Errno::ENOMEM).map(Some) } else { Ok(None) };
    Ok(AvicTables { physical: table()?, logical: table()? })
}

/// The host's APIC id of a CPU that runs guests.
pub fn apic_id(cpu: u32) -> u32 {
    let slot = global::get().and_then(|g| g.cpus.get(cpu as usize));
    slot.map_or(0, |s| s.svm.apic_id.load(Ordering::Relaxed) as u32)
}

/// Has the CPU, if it is in guest mode, look at its guest's backing page. Only where AVIC is on.
pub fn ring(cpu: u32) {
    // SAFETY: CPUs with AVIC have the register; it takes the ids that `cpu_on` let pass.
    unsafe { ops::wrmsr(Msr::AVIC_DOORBELL.0, u64::from(apic_id(cpu))) };
}

/// The maps of a set; see [`exitless_svm::MsrMaps`].
fn maps(opened: Opened, avic: bool) -> Result<[Option<Pages>; 3], Errno> {
    let mut plain = Pages::zeroed(1).ok_or(Errno::ENOMEM)?;
    msr_bitmap::fill(plain.bytes_mut(), exitless_policy::msr::passthrough());
    msr_bitmap::open(plain.bytes_mut(), opened);
    if !avic {
        return Ok([Some(plain), None, None]);
    }
    let with = |ipis| {
        let mut pages = Pages::zeroed(1).ok_or(Errno::ENOMEM)?;
        pages.bytes_mut().copy_from_slice(plain.bytes());
        msr_bitmap::open_x2avic(pages.bytes_mut(), ipis);
        Ok(Some(pages))
    };
    let (delivers, sends) = (with(false)?, with(true)?);
    Ok([Some(plain), delivers, sends])
}

pub(super) fn prepare(g: &mut Global) -> Result<(), Errno> {
    let Global { svm, cpus, .. } = g;
    svm.pages = KSlice::zeroed(cpus.len()).ok_or(Errno::ENOMEM)?;
    for (own, slot) in svm.pages.iter_mut().zip(cpus.iter()) {
        let hsave = Pages::zeroed(0).ok_or(Errno::ENOMEM)?;
        let save = Pages::zeroed(0).ok_or(Errno::ENOMEM)?;
        slot.svm.hsave_pa.store(hsave.hardware_address(), Ordering::Relaxed);
        slot.svm.per_cpu.host_save_pa.store(save.hardware_address(), Ordering::Relaxed);
        *own = [Some(hsave), Some(save)];
    }
    for (set, opened) in svm.msrpms.iter_mut().zip(Opened::all()) {
        *set = maps(opened, svm.caps.avic)?;
    }
    let mut iopm = Pages::zeroed(2).ok_or(Errno::ENOMEM)?;
    iopm.bytes_mut().fill(0xff);
    svm.iopm = Some(iopm);
    Ok(())
}

pub(super) fn cpu_on(g: &Global, slot: &CpuSlot, id: u32) -> Result<(), Errno> {
    // First of all: without SVM, or with SVM off by firmware, setting EFER.SVME is #GP.
    let here = negotiate()?;
    if let Some(what) = g.svm.caps.difference(&here) {
        pr_err!("cpu {id} is not like the CPU that loaded the module: {what}");
        return Err(Errno::EOPNOTSUPP);
    }
    if here.avic {
        let apic_id = cpu::apic_id(id).ok_or(Errno::EIO)?;
        if apic_id > DOORBELL_ID {
            pr_err!("cpu {id} has APIC id {apic_id}, which AVIC's doorbell does not take: load with avic=0");
            return Err(Errno::EOPNOTSUPP);
        }
        slot.svm.apic_id.store(u64::from(apic_id), Ordering::Relaxed);
    }
    // SAFETY: every x86-64 CPU has EFER.
    let efer = unsafe { ops::rdmsr(EFER) };
    if efer & EFER_SVME != 0 && !slot.enabled() {
        // Another hypervisor drives SVM here.
        return Err(Errno::EBUSY);
    }
    // SAFETY: SVM is here and not off; the kernel caches no copy of EFER.SVME; the page is this CPU's own.
    unsafe {
        ops::wrmsr(EFER, efer | EFER_SVME);
        ops::wrmsr(VM_HSAVE_PA, slot.svm.hsave_pa.load(Ordering::Relaxed));
    }
    cpu::pmu_virt(true);
    // SAFETY: asked only where the CPU has the register.
    let tsc_aux = if g.has_tsc_aux { unsafe { ops::rdmsr(Msr::TSC_AUX.0) } } else { 0 };
    slot.svm.per_cpu.enable(id, g.svm.caps.asids, tsc_aux);
    Ok(())
}

pub(super) fn cpu_off(g: &Global, slot: &CpuSlot) {
    cpu::restore_speculation();
    user_return(slot);
    cpu::forget_user_return();
    if g.svm.caps.tsc_scaling().is_some() {
        // SAFETY: the MSR exists. As after reset, for whoever comes and does not know it.
        unsafe { ops::wrmsr(TSC_RATIO, 1 << Scaling::SVM.fraction) };
    }
    // SAFETY: SVM is on here by us; no guest runs any more, so the host save page is not needed.
    unsafe {
        ops::wrmsr(VM_HSAVE_PA, 0);
        ops::wrmsr(EFER, ops::rdmsr(EFER) & !EFER_SVME);
    }
    cpu::pmu_virt(false);
}

pub(super) fn cpu_emergency() {
    // SAFETY: SVM is on, so STGI is legal; interrupts must not stay blocked by GIF when SVM goes.
    unsafe {
        ops::stgi();
        ops::wrmsr(EFER, ops::rdmsr(EFER) & !EFER_SVME);
    }
}

pub(super) fn load(g: &Global, v: &VcpuObj, slot: &CpuSlot) {
    // Interrupts off: a shutdown that turns SVM off here leaves the CPU's own registers as after reset, and so they must stay.
    let irqs = cpu::NoIrq::new();
    let on = slot.enabled();
    let aux = (g.has_tsc_aux && on).then(|| v.tsc_aux.load(Ordering::Relaxed));
    let ratio = g.svm.caps.tsc_scaling().filter(|_| on).map(|_| v.tsc_ratio.load(Ordering::Relaxed));
    // SAFETY: interrupts are off and `slot` is this CPU's; CPUID shows the registers.
    unsafe { exitless_svm::enter::load(&slot.svm.per_cpu, v.identity(), aux, ratio) };
    if on {
        cpu::reduce_speculation();
    }
    drop(irqs);
    // Fails when a shutdown has turned SVM off; then the next entry fails too and says so.
    // SAFETY: as above, and the page is this CPU's own.
    let _ = unsafe { enter::save_host(slot.svm.per_cpu.host_save_pa.load(Ordering::Relaxed)) };
}

pub(super) fn put() {
    cpu::reload_ldt();
}

/// See [`super::user_return`].
pub(super) fn user_return(slot: &CpuSlot) {
    // SAFETY: interrupts are off, and `slot` is this CPU's.
    unsafe { exitless_svm::enter::return_tsc_aux(&slot.svm.per_cpu) };
}

pub(super) fn renew(slot: &CpuSlot, identity: u64) {
    slot.svm.per_cpu.last_vcpu.store(identity, Ordering::Relaxed);
}

/// The format of nested page tables here.
pub(super) fn entries() -> Npt {
    let last = ops::cpuid(0x8000_0000, 0).eax;
    let physical_bits = ops::cpuid(0x8000_0008, 0).eax & 0xff;
    let c_bit = (last >= 0x8000_001f).then(|| ops::cpuid(0x8000_001f, 0).ebx & 0x3f);
    Npt { sme_mask: encryption_bit(), reserved: Npt::reserved_bit(physical_bits, c_bit) }
}

/// Nested paging follows the host's number of levels (APM vol. 2, 15.25.3).
pub(super) fn table_shape() -> (u32, Level) {
    let five = ops::cr4() & exitless_x86::regs::cr4::LA57 != 0;
    (if five { 5 } else { 4 }, Level::Page1G)
}
