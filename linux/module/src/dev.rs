//! `/dev/kvm`: what the module offers, and the birth of VMs.

use crate::global::{self, Global};
use crate::user;
use crate::vendor;
use crate::vm::ioctl::X2APIC_API;
use crate::vm::{MAX_VCPU_IDS, MAX_VCPUS, Vm};
use exitless_host::file::{FdKind, FdSlot};
use exitless_host::mem::{KArc, KBox};
use exitless_host::{Errno, Result, cpu, task, uaccess};
use exitless_irqchip::routes::MAX_ROUTES;
use exitless_kvm_abi::*;
use exitless_memslots::MAX_SLOTS;
use exitless_policy::cpuid::{CpuidIndex, GuestCpuid, HostCpuid, MAX_SUPPORTED, emulated, supported};
use exitless_policy::mce::{self, MAX_BANKS};
use exitless_policy::msr::MsrKind;
use exitless_policy::{GuestCaps, arch_capabilities, msr, nested};
use exitless_x86::cpuid::CpuidResult;
use exitless_x86::msr::Msr;

/// The host's CPUID.
struct Cpu<'a> {
    xcr0: u64,
    gpa_bits: u32,
    /// Makes it what guests can have.
    adjust: &'a dyn Fn(u32, u32, &mut CpuidResult),
}

impl HostCpuid for Cpu<'_> {
    fn cpuid(&self, leaf: u32, sub: u32) -> CpuidResult {
        let mut r = exitless_hw_ops::cpuid(leaf, sub);
        (self.adjust)(leaf, sub, &mut r);
        r
    }
    fn xcr0(&self) -> u64 {
        self.xcr0
    }
    fn gpa_bits(&self) -> u32 {
        self.gpa_bits
    }
}

/// The supported list and its summary, computed at load.
#[derive(bytemuck::Zeroable)]
pub struct Supported {
    entries: [kvm_cpuid_entry2; MAX_SUPPORTED],
    index: CpuidIndex,
    len: usize,
    /// The summary.
    pub caps: GuestCaps,
    /// IA32_ARCH_CAPABILITIES of a new vCPU.
    pub arch_capabilities: u64,
}

impl Supported {
    /// Asks the CPU.
    pub fn compute(
        xcr0: u64,
        gpa_bits: u32,
        adjust: &dyn Fn(u32, u32, &mut CpuidResult),
    ) -> Option<KBox<Supported>> {
        let mut s = KBox::<Supported>::zeroed()?;
        let this = &mut *s;
        this.len = supported(&Cpu { xcr0, gpa_bits, adjust }, &mut this.entries).ok()?;
        let used = this.entries.get(..this.len)?;
        this.index.build(used);
        this.caps.compute(GuestCpuid::new(used, &this.index), None);
        if this.caps.spec_ctrl != 0 {
            this.caps.spec_ctrl_hardware |= cpu::spec_ctrl_bits();
        }
        let (cpu, known) = cpu::arch_capabilities();
        this.arch_capabilities = arch_capabilities(cpu, known, this.caps.rtm);
        Some(s)
    }

    /// No list: before the module is ready.
    pub const fn none() -> Self {
        // SAFETY: the type is `Zeroable`.
        unsafe { core::mem::zeroed() }
    }

    /// The list.
    pub fn entries(&self) -> &[kvm_cpuid_entry2] {
        self.entries.get(..self.len).unwrap_or(&[])
    }
}

/// ioctls on `/dev/kvm`.
pub fn ioctl(cmd: u32, arg: usize) -> Result<isize> {
    match cmd {
        KVM_GET_API_VERSION => no_arg(arg, 12),
        KVM_CREATE_VM => create_vm(arg),
        KVM_CHECK_EXTENSION => Ok(check_extension(arg)),
        KVM_GET_VCPU_MMAP_SIZE => no_arg(arg, 3 * 4096),
        KVM_GET_SUPPORTED_CPUID => {
            cpuid_list(arg, global::get().map_or(&[][..], |g| g.supported().entries()))
        }
        KVM_GET_EMULATED_CPUID => cpuid_list(arg, &emulated(host_caps()?)),
        KVM_GET_MSR_INDEX_LIST => msr_index_list(arg),
        KVM_GET_MSR_FEATURE_INDEX_LIST => feature_msr_list(arg),
        KVM_GET_MSRS => feature_msrs(arg),
        KVM_X86_GET_MCE_CAP_SUPPORTED => user::put(arg, &(mce::SUPPORTED | MAX_BANKS as u64)),
        _ => Err(Errno::ENOTTY),
    }
}

fn no_arg(arg: usize, value: isize) -> Result<isize> {
    if arg == 0 { Ok(value) } else { Err(Errno::EINVAL) }
}

/// `KVM_CHECK_EXTENSION`: 0 for everything not known here. `docs/kvm-api.md` lists them.
pub fn check_extension(cap: usize) -> isize {
    let Ok(cap) = u32::try_from(cap) else { return 0 };
    match cap {
        KVM_CAP_IRQCHIP | KVM_CAP_HLT | KVM_CAP_USER_MEMORY | KVM_CAP_SET_TSS_ADDR | KVM_CAP_EXT_CPUID => 1,
        KVM_CAP_NOP_IO_DELAY | KVM_CAP_MP_STATE | KVM_CAP_SYNC_MMU | KVM_CAP_CLOCKSOURCE => 1,
        KVM_CAP_DESTROY_MEMORY_REGION_WORKS | KVM_CAP_JOIN_MEMORY_REGIONS_WORKS | KVM_CAP_USER_NMI => 1,
        KVM_CAP_IRQ_INJECT_STATUS | KVM_CAP_IRQFD | KVM_CAP_PIT2 | KVM_CAP_PIT_STATE2 | KVM_CAP_IOEVENTFD => {
            1
        }
        KVM_CAP_SET_IDENTITY_MAP_ADDR | KVM_CAP_VCPU_EVENTS | KVM_CAP_INTERNAL_ERROR_DATA => 1,
        KVM_CAP_DEBUGREGS | KVM_CAP_X86_ROBUST_SINGLESTEP | KVM_CAP_XSAVE | KVM_CAP_GET_TSC_KHZ => 1,
        KVM_CAP_TSC_DEADLINE_TIMER | KVM_CAP_KVMCLOCK_CTRL | KVM_CAP_SIGNAL_MSI | KVM_CAP_READONLY_MEM => 1,
        KVM_CAP_IRQFD_RESAMPLE | KVM_CAP_IOEVENTFD_ANY_LENGTH | KVM_CAP_IMMEDIATE_EXIT => 1,
        KVM_CAP_IOEVENTFD_NO_LENGTH | KVM_CAP_SET_BOOT_CPU_ID | KVM_CAP_MMU_SHADOW_CACHE_CONTROL => 1,
        KVM_CAP_ENABLE_CAP | KVM_CAP_ENABLE_CAP_VM | KVM_CAP_ENFORCE_PV_FEATURE_CPUID => 1,
        KVM_CAP_VCPU_ATTRIBUTES | KVM_CAP_GET_MSR_FEATURES | KVM_CAP_HALT_POLL => 1,
        KVM_CAP_COALESCED_PIO | KVM_CAP_CHECK_EXTENSION_VM | KVM_CAP_SPLIT_IRQCHIP => 1,
        KVM_CAP_EXIT_ON_EMULATION_FAILURE | KVM_CAP_BINARY_STATS_FD => 1,
        KVM_CAP_INTR_SHADOW | KVM_CAP_REINJECT_CONTROL | KVM_CAP_IOAPIC_POLARITY_IGNORED => 1,
        KVM_CAP_EXT_EMUL_CPUID | KVM_CAP_ASYNC_PF | KVM_CAP_ASYNC_PF_INT => 1,
        KVM_CAP_TSC_CONTROL | KVM_CAP_VM_TSC_CONTROL => {
            isize::from(global::get().and_then(vendor::tsc_scaling).is_some())
        }
        KVM_CAP_XCRS => isize::from(global::get().is_some_and(|g| g.host_xcr0 != 0)),
        KVM_CAP_SET_GUEST_DEBUG => 1,
        KVM_CAP_SET_GUEST_DEBUG2 => exitless_vcpu::vcpu::debug::CONTROLS as isize,
        // The page of the ring in a vCPU's mapping.
        KVM_CAP_COALESCED_MMIO => 2,
        KVM_CAP_SYNC_REGS => KVM_SYNC_X86_VALID_FIELDS as isize,
        KVM_CAP_ADJUST_CLOCK => CLOCK_FLAGS as isize,
        KVM_CAP_IRQ_ROUTING => MAX_ROUTES as isize,
        KVM_CAP_NR_MEMSLOTS => MAX_SLOTS as isize,
        KVM_CAP_NR_VCPUS => (cpu::online_count() as isize).min(MAX_VCPUS as isize),
        KVM_CAP_MAX_VCPUS => MAX_VCPUS as isize,
        KVM_CAP_MAX_VCPU_ID => MAX_VCPU_IDS as isize,
        KVM_CAP_X2APIC_API => X2APIC_API as isize,
        KVM_CAP_MCE => MAX_BANKS as isize,
        KVM_CAP_X86_DISABLE_EXITS => cpu::exits_to_disable() as isize,
        KVM_CAP_NESTED_STATE => nested::SIZE as isize,
        _ => 0,
    }
}

/// Flags `KVM_GET_CLOCK` may set.
pub const CLOCK_FLAGS: u32 = KVM_CLOCK_TSC_STABLE | KVM_CLOCK_REALTIME | KVM_CLOCK_HOST_TSC;

fn create_vm(kind: usize) -> Result<isize> {
    if kind != 0 {
        return Err(Errno::EINVAL);
    }
    let slot = FdSlot::reserve()?;
    let vm = Vm::create()?;
    crate::stats::publish(&vm, task::current_pid(), slot.number());
    let raw = KArc::into_raw(vm);
    // SAFETY: `raw` is a reference that the fd owns from now on; its release callback takes it back.
    match unsafe { slot.open(FdKind::Vm, c"kvm-vm", raw.cast_mut().cast()) } {
        Ok(fd) => Ok(fd.install() as isize),
        Err(e) => {
            // SAFETY: no file was made, the reference is still ours.
            drop(unsafe { KArc::from_raw(raw) });
            Err(e)
        }
    }
}

/// `KVM_GET_SUPPORTED_CPUID` and `KVM_GET_EMULATED_CPUID`.
fn cpuid_list(arg: usize, list: &[kvm_cpuid_entry2]) -> Result<isize> {
    let mut head: kvm_cpuid2 = user::get(arg)?;
    if (head.nent as usize) < list.len() {
        return Err(Errno::E2BIG);
    }
    uaccess::write_slice(user::at(arg, size_of::<kvm_cpuid2>())?, list)?;
    head.nent = list.len() as u32;
    user::put(arg, &head)
}

fn feature_msr_list(arg: usize) -> Result<isize> {
    let g = global::get().ok_or(Errno::ENXIO)?;
    put_msr_list(arg, msr::feature_list(g.kind == vendor::Kind::Svm).map(|m| m.0))
}

/// The E2BIG protocol of both lists of MSRs: the length is told in any case.
fn put_msr_list(arg: usize, list: impl Iterator<Item = u32> + Clone) -> Result<isize> {
    let asked: kvm_msr_list = user::get(arg)?;
    let nmsrs = list.clone().count() as u32;
    user::put(arg, &kvm_msr_list { nmsrs })?;
    if asked.nmsrs < nmsrs {
        return Err(Errno::E2BIG);
    }
    let base = user::at(arg, size_of::<kvm_msr_list>())?;
    for (i, m) in list.enumerate() {
        uaccess::write(user::at(base, i * 4)?, &m)?;
    }
    Ok(0)
}

/// `KVM_GET_MSRS` without a vCPU: feature MSRs only; returns how many it read.
fn feature_msrs(arg: usize) -> Result<isize> {
    let g = global::get().ok_or(Errno::ENXIO)?;
    user::each_msr(arg, |e, at| {
        let Some(value) = feature(g, Msr(e.index)) else { return Ok(false) };
        e.data = value;
        uaccess::write(at, e)?;
        Ok(true)
    })
}

/// A feature MSR's value: the host's, where guests see that; else that of every vCPU.
fn feature(g: &Global, m: Msr) -> Option<u64> {
    let amd = g.kind == vendor::Kind::Svm;
    msr::feature_list(amd).find(|f| *f == m)?;
    match msr::find(m.0)?.1 {
        MsrKind::UcodeRev if amd => Some(cpu::microcode().into()),
        MsrKind::UcodeRev => Some(u64::from(cpu::microcode()) << 32),
        MsrKind::ArchCapabilities => Some(g.supported().arch_capabilities),
        MsrKind::Const(value) => Some(value),
        _ => None,
    }
}

/// The summary of the supported list.
fn host_caps() -> Result<&'static GuestCaps> {
    global::get().map(|g| &g.supported().caps).ok_or(Errno::ENXIO)
}

fn msr_index_list(arg: usize) -> Result<isize> {
    put_msr_list(arg, msr::index_list(host_caps()?))
}
