//! Intel VMX: MSR bitmaps, VMXON regions, VMCSs that move between CPUs, and the change of hands on a CPU.

use super::Vendor;
use crate::global::{self, CpuSlot, Global};
use crate::vcpu::{Inner, VcpuObj};
use core::ffi::c_void;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use exitless_host::mem::{KSlice, Pages, phys_of};
use exitless_host::trace::Isa;
use exitless_host::wakeup::{self, Sleeper};
use exitless_host::{Errno, cpu, pr_err, pr_warn, vmx as host};
use exitless_hw_ops as ops;
use exitless_policy::nested;
use exitless_posted::{Block, PidPointer, Place};
use exitless_slat::Level;
use exitless_vcpu::backend::{ApicPage, Backend, Opened};
use exitless_vcpu::chooser::Mechanism;
use exitless_vcpu::{Request, Vcpu};
use exitless_vmx::caps::Wish;
use exitless_vmx::vapic::{NOTIFICATION, WAKE_UP};
use exitless_vmx::{Caps, Hardware, LoadError, Missing, PerCpu, Residence, Vmx, msr_bitmap};
use exitless_x86::cpuid::{CpuidResult, ext1_edx, leaf, leaf7_ebx, leaf7_ecx, leafd_1_eax};
use exitless_x86::msr::Msr;
use exitless_x86::vmx::feature_control as fc;
use exitless_x86::vmx::posted::destination;

/// What all vCPUs share.
#[derive(bytemuck::Zeroable)]
pub struct Shared {
    /// What the CPUs can do.
    pub caps: Caps,
    /// The MSR bitmaps, as [`exitless_vmx::MsrBitmaps`] has their addresses.
    msr_bitmaps: [[Option<Pages>; 7]; Opened::SETS],
    /// Per CPU: the VMXON region.
    pages: KSlice<Option<Pages>>,
}

/// One CPU's part.
#[derive(bytemuck::Zeroable)]
#[repr(C)]
pub struct Cpu {
    /// What entries need.
    per_cpu: PerCpu,
    /// Physical address of the VMXON region.
    region_pa: AtomicU64,
    /// The CPU as posted-interrupt descriptors name it.
    destination: AtomicU64,
}

/// One vCPU's part.
#[derive(bytemuck::Zeroable)]
#[repr(C)]
pub struct Parts {
    /// Where its VMCS is.
    residence: Residence,
    vmcs: Option<Pages>,
    virtual_apic: Option<Pages>,
    msr_areas: Option<Pages>,
    log: Option<Pages>,
    /// Where CPUs post IPIs: on which list it sleeps.
    sleeper: Sleeper,
    /// It sleeps, or is about to: the descriptor's place is the list, whatever CPU the thread comes to. Written by the thread.
    asleep: AtomicBool,
    _pad: [u8; 7],
}

/// The PID-pointer table of one VM, where CPUs send IPIs (SDM vol. 3C, 30.1.6).
#[derive(bytemuck::Zeroable)]
pub struct PidTable(Option<Pages>);

/// CPUs, or guests, post to vCPUs: who sleeps must be found.
pub(super) fn hardware_posts(g: &Global) -> bool {
    g.vmx.caps.ipiv() || g.vmx.caps.apicv() && host::allows_raw_ipi()
}

/// The highest APIC id in a table of one page.
const LAST_PID: u16 = 511;

impl PidTable {
    /// For a new VM.
    pub fn new(g: &Global) -> Result<Self, Errno> {
        if !g.vmx.caps.ipiv() || !wakeup::listens() {
            return Ok(Self(None));
        }
        Pages::zeroed(0).map(|page| Self(Some(page))).ok_or(Errno::ENOMEM)
    }

    /// CPUs post to vCPUs of this VM: to those that have an entry.
    pub const fn is_there(&self) -> bool {
        self.0.is_some()
    }

    fn phys(&self) -> u64 {
        self.0.as_ref().map_or(0, Pages::phys)
    }

    /// The entry of an APIC id; `None`: beyond the table, or there is none.
    fn entry(&self, id: u32) -> Option<&'static PidPointer> {
        let table = self.0.as_ref().filter(|_| id <= u32::from(LAST_PID))?;
        // SAFETY: the page is 512 zeroed words, which are entries, and the index is below 512. The page lives as long as the VM, which
        // frees its vCPUs first, and they alone keep the reference.
        unsafe { table.as_ptr().cast::<PidPointer>().add(id as usize).as_ref() }
    }
}

impl Vendor for Vmx {
    const LOADED_FOR_IOCTLS: bool = true;
    const POSTS: bool = true;
    const NESTED: nested::Format = nested::Format::Vmx;
    const ISA: Isa = Isa::Vmx;

    fn place(inner: &Inner) -> *mut Vcpu<Self> {
        inner.vmx()
    }
    fn cpu(slot: &CpuSlot) -> &PerCpu {
        &slot.vmx.per_cpu
    }
    fn nowhere() -> &'static PerCpu {
        static NONE: PerCpu = PerCpu::none();
        &NONE
    }
    fn create(g: &Global, v: &mut VcpuObj, root: u64) -> Result<(), Errno> {
        let identity = v.identity();
        let vmcs = region(&g.vmx.caps)?;
        let apic = Pages::zeroed(0).ok_or(Errno::ENOMEM)?;
        let areas = Pages::zeroed(0).ok_or(Errno::ENOMEM)?;
        let log = if g.vmx.caps.pml() { Some(Pages::zeroed(0).ok_or(Errno::ENOMEM)?) } else { None };
        if g.vmx.caps.apicv()
            && let Some(descriptor) = v.vm().window.descriptor(v.id)?
        {
            v.shared.apic.use_descriptor(descriptor);
        }
        let descriptor_pa = phys_of(v.shared.apic.posted());
        let (pid_table_pa, pid) = (v.vm().pids.phys(), v.vm().pids.entry(v.id));
        if hardware_posts(g) && wakeup::listens() {
            let cookie = core::ptr::from_mut(v).cast();
            v.vmx.sleeper.init(cookie)?;
        }
        v.vmx.residence.init(vmcs.phys(), identity);
        // SAFETY: a zeroed page is one; it is the vCPU's, like `shared`, which alone gets the reference: both end in `free`.
        let registers = unsafe { apic.as_ptr().cast::<ApicPage>().as_ref() };
        v.shared.apic.use_page(registers.ok_or(Errno::ENOMEM)?);
        let pages = exitless_vmx::Pages {
            residence: NonNull::from(&v.vmx.residence),
            virtual_apic: NonNull::new(apic.as_ptr().cast()).ok_or(Errno::ENOMEM)?,
            virtual_apic_pa: apic.phys(),
            msr_areas: NonNull::new(areas.as_ptr().cast()).ok_or(Errno::ENOMEM)?,
            msr_areas_pa: areas.phys(),
            log: log.as_ref().and_then(|p| NonNull::new(p.as_ptr().cast())),
            log_pa: log.as_ref().map_or(0, Pages::phys),
            descriptor_pa,
            apic_access_pa: v.vm().apic_access_pa(),
            pid_table_pa,
            last_pid: LAST_PID,
        };
        v.vmx.vmcs = Some(vmcs);
        v.vmx.virtual_apic = Some(apic);
        v.vmx.msr_areas = Some(areas);
        v.vmx.log = log;
        // Looked at before it first runs; whoever has the CPU log from then on tells each vCPU of the VM.
        v.shared.request(Request::LOGGING);
        // SAFETY: the caller's object alone refers to it.
        let inner = unsafe { v.own::<Vmx>() };
        inner.b.init(pages, &g.vmx.caps, v.vm().in_guest());
        let page = |set: usize, place: usize| g.vmx.msr_bitmaps.get(set)?.get(place)?.as_ref();
        inner.b.use_msr_bitmaps(|set, place| page(set, place).map_or(0, Pages::phys));
        if let Some(pid) = pid {
            inner.vapic.use_ipiv(pid, descriptor_pa);
        }
        inner.b.set_slat_root(root);
        Ok(())
    }
    fn reload_tsc_aux(_cpu: &PerCpu, _value: u64) {
        // Travels with the other MSRs of the residence.
    }
}

/// What this host wants of its CPUs.
fn wish() -> Wish {
    Wish {
        apicv: host::wants_apicv(),
        guard_l1d: host::flushes_l1d(),
        preemption_timer: host::wants_timer(),
        vpid: host::wants_vpid(),
        pml: host::wants_pml(),
        ipiv: host::wants_ipiv(),
    }
}

/// A capability MSR, or IA32_FEATURE_CONTROL; `Caps::negotiate` asks for those only that exist.
fn capability(msr: u32) -> u64 {
    // SAFETY: see above.
    unsafe { ops::rdmsr(msr) }
}

/// The kernel's log says why this CPU is no use.
fn refused(why: Missing) -> Errno {
    match why.control() {
        Some(name) => pr_err!("{}: {name}", why.message()),
        None => pr_err!("{}", why.message()),
    }
    Errno::EOPNOTSUPP
}

pub(super) fn probe(g: &mut Global) -> Result<(), Errno> {
    if host::fred() {
        pr_err!("this kernel takes its events by FRED, which is not supported yet: boot it with fred=off");
        return Err(Errno::EOPNOTSUPP);
    }
    host::begin_mitigations()?;
    g.vmx.caps = Caps::negotiate(|leaf| ops::cpuid(leaf, 0), capability, wish()).map_err(refused)?;
    match (g.vmx.caps.ipiv(), host::wants_ipiv()) {
        (true, _) => {
            pr_warn!("ipiv=1: IPI virtualization is on, untested on hardware so far");
            crate::control::want(Mechanism::IpiVirtualization);
        }
        (false, true) => pr_warn!("ipiv=1: this CPU has no IPI virtualization, or APICv is off"),
        (false, false) => {}
    }
    Ok(())
}

/// A region that VMXON or VMPTRLD takes: zeroes behind the revision (SDM vol. 3C, 25.2).
fn region(caps: &Caps) -> Result<Pages, Errno> {
    let mut page = Pages::zeroed(0).ok_or(Errno::ENOMEM)?;
    for (to, from) in page.bytes_mut().iter_mut().zip(caps.revision.to_ne_bytes()) {
        *to = from;
    }
    Ok(page)
}

/// The bitmaps of a set; see [`exitless_vmx::MsrBitmaps`].
fn bitmaps(opened: Opened) -> Result<[Pages; 7], Errno> {
    let mut plain = Pages::zeroed(0).ok_or(Errno::ENOMEM)?;
    msr_bitmap::fill(plain.bytes_mut(), exitless_policy::msr::passthrough());
    msr_bitmap::open(plain.bytes_mut(), opened);
    let x2apic = changed(&plain, msr_bitmap::open_x2apic)?;
    let off = changed(&x2apic, msr_bitmap::close_self_ipi)?;
    let lent = changed(&plain, msr_bitmap::open_deadline)?;
    let x2apic_lent = changed(&x2apic, msr_bitmap::open_deadline)?;
    let ipis = changed(&x2apic, msr_bitmap::open_icr)?;
    let ipis_lent = changed(&ipis, msr_bitmap::open_deadline)?;
    Ok([plain, x2apic, off, lent, x2apic_lent, ipis, ipis_lent])
}

/// Bitmaps that differ from others by this.
fn changed(from: &Pages, change: fn(&mut [u8])) -> Result<Pages, Errno> {
    let mut to = Pages::zeroed(0).ok_or(Errno::ENOMEM)?;
    to.bytes_mut().copy_from_slice(from.bytes());
    change(to.bytes_mut());
    Ok(to)
}

pub(super) fn prepare(g: &mut Global) -> Result<(), Errno> {
    let Global { vmx, cpus, .. } = g;
    vmx.pages = KSlice::zeroed(cpus.len()).ok_or(Errno::ENOMEM)?;
    for (own, slot) in vmx.pages.iter_mut().zip(cpus.iter()) {
        let page = region(&vmx.caps)?;
        slot.vmx.region_pa.store(page.phys(), Ordering::Relaxed);
        *own = Some(page);
    }
    for (set, opened) in vmx.msr_bitmaps.iter_mut().zip(Opened::all()) {
        *set = bitmaps(opened)?.map(Some);
    }
    Ok(())
}

pub(super) fn cpu_on(g: &Global, slot: &CpuSlot, cpu: u32) -> Result<(), Errno> {
    let here = g.vmx.caps.negotiate_again(|leaf| ops::cpuid(leaf, 0), capability).map_err(refused)?;
    if let Some(what) = g.vmx.caps.difference(&here) {
        pr_err!("cpu {cpu} is not like the CPU that loaded the module: {what}");
        return Err(Errno::EOPNOTSUPP);
    }
    if here.feature_control_unlocked() {
        // SAFETY: the register exists (VMX does) and is not locked; the value allows VMXON and locks it.
        unsafe { ops::wrmsr(Msr::FEATURE_CONTROL.0, fc::LOCK | fc::VMX_OUTSIDE_SMX) };
    }
    let id = cpu::apic_id(cpu).ok_or(Errno::EIO)?;
    slot.vmx.destination.store(u64::from(destination(id, host::host_x2apic())), Ordering::Relaxed);
    host::on(slot.vmx.region_pa.load(Ordering::Relaxed))?;
    let mut state = exitless_vmx::HostState::default();
    host::state(bytemuck::cast_mut(&mut state));
    slot.vmx.per_cpu.enable(&Hardware, cpu, &state, g.has_tsc_aux && g.vmx.caps.rdtscp());
    Ok(())
}

pub(super) fn cpu_off(slot: &CpuSlot) {
    // SAFETY: a vCPU clears its VMCS everywhere before it is freed (`forget`).
    unsafe { slot.vmx.per_cpu.disable(&Hardware) };
    host::off();
}

/// See [`super::user_return`].
pub(super) fn user_return(slot: &CpuSlot) {
    slot.vmx.per_cpu.take_back_lent(&Hardware);
}

/// See [`PerCpu::give_timer_back`].
pub(crate) fn give_timer_back(slot: &CpuSlot) {
    slot.vmx.per_cpu.give_timer_back(&Hardware);
}

/// `ex_rs_on_cpu`: the residence `arg` is to leave this CPU. Interrupts are off.
///
/// # Safety
/// `arg` is a live [`Residence`].
pub(crate) unsafe fn leave_here(slot: &CpuSlot, arg: *mut c_void) {
    // SAFETY: contract.
    unsafe { &*arg.cast::<Residence>() }.clear_here(&Hardware, &slot.vmx.per_cpu);
}

/// Makes the VMCS inactive on `other`. Preemption is off, interrupts are on.
fn leave(residence: &Residence, other: u32) {
    let arg = core::ptr::from_ref(residence).cast_mut().cast();
    // A CPU that is offline has cleared it on its way down.
    let _ = cpu::on_one(other, arg, crate::callbacks::on_cpu::VMCS_LEAVES);
}

/// The vector on this CPU.
fn place(slot: &CpuSlot, vector: u8) -> Place {
    Place { vector, destination: slot.vmx.destination.load(Ordering::Relaxed) as u32 }
}

/// See [`super::falls_asleep`].
pub(super) fn falls_asleep(v: &VcpuObj) -> bool {
    if !v.vmx.sleeper.there() {
        return true;
    }
    cpu::preempt_disable();
    // SAFETY: preemption is off, and this is process context; `wakes_up` takes it off.
    let may = unsafe { v.vmx.sleeper.add() };
    v.vmx.asleep.store(true, Ordering::Relaxed);
    // Loaded here, on the list first: what is posted from now on comes to this CPU, or is seen now.
    let here = global::get().and_then(|g| g.cpus.get(cpu::id() as usize));
    let sleeps =
        may && here.is_some_and(|slot| v.shared.apic.posted().wait(place(slot, WAKE_UP)) == Block::Sleep);
    cpu::preempt_enable();
    sleeps
}

/// See [`super::wakes_up`].
pub(super) fn wakes_up(v: &VcpuObj) {
    if !v.vmx.sleeper.there() {
        return;
    }
    cpu::preempt_disable();
    v.vmx.asleep.store(false, Ordering::Relaxed);
    if let Some(slot) = global::get().and_then(|g| g.cpus.get(cpu::id() as usize)) {
        let _ = v.shared.apic.posted().load(place(slot, NOTIFICATION));
    }
    // SAFETY: process context; `falls_asleep` put it there.
    unsafe { v.vmx.sleeper.remove() };
    cpu::preempt_enable();
}

pub(super) fn load(v: &VcpuObj, slot: &CpuSlot) {
    let r = &v.vmx.residence;
    if !v.vmx.asleep.load(Ordering::Relaxed) {
        // What is pending is looked at before each entry.
        let _ = v.shared.apic.posted().load(place(slot, NOTIFICATION));
    }
    // One CPU at most has it; once it has left there no other takes it, for this thread alone loads it.
    for _ in 0..2 {
        let loaded = {
            let _irqs = cpu::NoIrq::new();
            // SAFETY: interrupts are off, `slot` is this CPU's, and `forget` runs before the residence is freed.
            unsafe { r.load(&Hardware, &slot.vmx.per_cpu) }
        };
        match loaded {
            Err(LoadError::Elsewhere(other)) => leave(r, other),
            // Off (a shutdown was faster) or refused: the next entry finds nothing loaded and says so.
            _ => return,
        }
    }
}

pub(super) fn put(v: &VcpuObj) {
    if !v.vmx.asleep.load(Ordering::Relaxed) {
        v.shared.apic.posted().put();
    }
    // SAFETY: still on the CPU of the last load, preemption is off.
    unsafe { v.vmx.residence.put(&Hardware) };
}

pub(super) fn rename(v: &VcpuObj, identity: u64) {
    v.vmx.residence.rename(identity);
}

pub(super) fn renew(v: &VcpuObj, slot: &CpuSlot, identity: u64) {
    v.vmx.residence.renew(&slot.vmx.per_cpu, identity);
}

/// Before a vCPU is freed: no CPU may keep parts of its VMCS. Process context.
pub(crate) fn forget(v: &VcpuObj) {
    while let Some(at) = v.vmx.residence.active_on() {
        leave(&v.vmx.residence, at);
        if v.vmx.residence.active_on() == Some(at) && !cpu::is_online(at) {
            // It went down without VMXOFF (a crash is under way): nobody will write that page back.
            break;
        }
    }
}

/// Instructions that are #UD in the guest without their control (SDM vol. 3C, 26.3); UMIP where exits make it.
pub(super) fn adjust(g: &Global, l: u32, sub: u32, r: &mut CpuidResult) {
    let caps = &g.vmx.caps;
    match (l, sub) {
        (leaf::EXTENDED_FEATURES, _) if !caps.rdtscp() => r.edx &= !ext1_edx::RDTSCP,
        (leaf::XSAVE, 1) if !caps.xsaves() => r.eax &= !leafd_1_eax::XSAVES,
        (leaf::STRUCTURED_FEATURES, 0) => {
            if !caps.rdtscp() {
                r.ecx &= !leaf7_ecx::RDPID;
            }
            if !caps.invpcid() {
                r.ebx &= !leaf7_ebx::INVPCID;
            }
            if caps.emulates_umip() {
                r.ecx |= leaf7_ecx::UMIP;
            }
        }
        _ => {}
    }
}

/// See [`super::guards_exec`].
pub(super) fn guards_exec() -> bool {
    host::guards_exec()
}

/// The page behind the APIC's registers, for a VM whose vCPUs have their APICs virtualised.
pub(crate) fn apic_access_page(g: &Global) -> Result<Option<Pages>, Errno> {
    if !g.vmx.caps.apicv() {
        return Ok(None);
    }
    Pages::zeroed(0).map(Some).ok_or(Errno::ENOMEM)
}

/// Four levels; leaves as the CPU has them.
pub(super) fn table_shape(g: &Global) -> (u32, Level) {
    let caps = &g.vmx.caps;
    let largest = match (caps.ept_2m(), caps.ept_1g()) {
        (true, true) => Level::Page1G,
        (true, false) => Level::Page2M,
        _ => Level::Page4K,
    };
    (4, largest)
}
