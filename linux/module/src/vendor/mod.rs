//! The CPU's vendor: chosen once at load. `svm` and `vmx` are twins with the same verbs.
//!
//! ioctls look at [`Kind`] once and go on in code that is generic over [`Vendor`]; so does `KVM_RUN`, and no exit pays for
//! the choice. The scheduler's callbacks, and whatever else happens less often than exits, look at it each time.

pub mod svm;
pub mod vmx;

use crate::global::{CpuSlot, Global};
use crate::vcpu::{Inner, VcpuObj};
use exitless_host::mem::Pages;
use exitless_host::trace::Isa;
use exitless_host::{Errno, cpu, pr_err, pr_warn};
use exitless_hw_ops as ops;
use exitless_policy::nested;
use exitless_slat::{Ept, Format, Grant, Level, MemType, Npt, Perm};
use exitless_vcpu::Vcpu;
use exitless_vcpu::backend::Backend;
use exitless_vcpu::clock::tsc::Scaling;
use exitless_x86::cpuid::{CpuidResult, vendor};

/// Whose virtualisation the CPU has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, bytemuck::Zeroable)]
#[repr(u8)]
pub enum Kind {
    /// AMD's.
    Svm = 0,
    /// Intel's.
    Vmx = 1,
}

/// What a backend is to the module.
pub trait Vendor: Backend + Sized + 'static {
    /// Registers can only be reached while the vCPU is loaded: ioctls load it, not only `KVM_RUN`.
    const LOADED_FOR_IOCTLS: bool;
    /// CPUs that deliver take what is requested from the descriptor, and are notified by the vector it names; no AVIC.
    const POSTS: bool;
    /// The format of KVM_GET_NESTED_STATE.
    const NESTED: nested::Format;
    /// In whose words exits are told.
    const ISA: Isa;
    /// Where the vCPU proper lives in its kernel object.
    fn place(inner: &Inner) -> *mut Vcpu<Self>;
    /// A CPU's part.
    fn cpu(slot: &CpuSlot) -> &Self::Cpu;
    /// The part of a CPU with virtualisation off: an entry there fails cleanly.
    fn nowhere() -> &'static Self::Cpu;
    /// Gives a new vCPU, which nobody else knows yet, its pages, and its backend their addresses. `root`: of the second-level
    /// tables.
    fn create(g: &Global, v: &mut VcpuObj, root: u64) -> Result<(), Errno>;
    /// The guest wrote TSC_AUX while the vCPU is loaded on the CPU whose part `cpu` is. Interrupts are off.
    fn reload_tsc_aux(cpu: &Self::Cpu, value: u64);
}

/// Runs a generic expression with `$B` as the chosen backend.
macro_rules! with_backend {
    ($kind:expr, $B:ident => $e:expr) => {
        match $kind {
            $crate::vendor::Kind::Svm => {
                type $B = ::exitless_svm::Svm;
                $e
            }
            $crate::vendor::Kind::Vmx => {
                type $B = ::exitless_vmx::Vmx;
                $e
            }
        }
    };
}
pub(crate) use with_backend;

/// The host's tick is of a kind that can be lent to guests.
pub fn timer_fits() -> bool {
    crate::global::get().is_some_and(|g| g.kind == Kind::Vmx) && exitless_host::vmx::timer_fits()
}

/// Looks at the CPU and decides. The kernel's log says why not.
pub fn probe(g: &mut Global) -> Result<(), Errno> {
    let id = ops::cpuid(0, 0);
    g.kind = match [id.ebx, id.ecx, id.edx] {
        vendor::INTEL => Kind::Vmx,
        vendor::AMD | vendor::HYGON => Kind::Svm,
        _ => {
            pr_err!("this CPU is neither Intel's nor AMD's: none of its virtualisation is known here");
            return Err(Errno::EOPNOTSUPP);
        }
    };
    if g.kind == Kind::Vmx && cpu::wants_avic() {
        pr_warn!(
            "avic=1 has no effect: AVIC is AMD's; what Intel's CPUs have in its place is parameter apicv"
        );
    }
    match g.kind {
        Kind::Svm => svm::probe(g),
        Kind::Vmx => vmx::probe(g),
    }
}

/// Allocates what the CPUs need.
pub fn prepare(g: &mut Global) -> Result<(), Errno> {
    match g.kind {
        Kind::Svm => svm::prepare(g),
        Kind::Vmx => vmx::prepare(g),
    }
}

/// This CPU starts to run guests. Interrupts are off.
pub fn cpu_on(g: &Global, slot: &CpuSlot, cpu: u32) -> Result<(), Errno> {
    match g.kind {
        Kind::Svm => svm::cpu_on(g, slot, cpu),
        Kind::Vmx => vmx::cpu_on(g, slot, cpu),
    }
}

/// This CPU, where `cpu_on` succeeded, stops running guests. Interrupts are off.
pub fn cpu_off(g: &Global, slot: &CpuSlot) {
    match g.kind {
        Kind::Svm => svm::cpu_off(g, slot),
        Kind::Vmx => vmx::cpu_off(slot),
    }
}

/// The machine crashes: gives this CPU, where `cpu_on` succeeded, back in any state.
pub fn cpu_emergency(g: &Global, slot: &CpuSlot) {
    match g.kind {
        Kind::Svm => svm::cpu_emergency(),
        Kind::Vmx => vmx::cpu_off(slot),
    }
}

/// A vCPU's thread came to `cpu`, or back to it. Preemption is off.
pub fn load(g: &Global, v: &VcpuObj, slot: &CpuSlot) {
    match g.kind {
        Kind::Svm => svm::load(g, v, slot),
        Kind::Vmx => vmx::load(v, slot),
    }
}

/// The thread leaves its CPU, or returns to user space. Preemption is off.
pub fn put(g: &Global, v: &VcpuObj) {
    match g.kind {
        Kind::Svm => svm::put(),
        Kind::Vmx => vmx::put(v),
    }
}

/// This CPU is about to return to user mode: registers that only user mode looks at are the host's again. Interrupts are off.
pub fn user_return(g: &Global, slot: &CpuSlot) {
    match g.kind {
        Kind::Svm => svm::user_return(slot),
        Kind::Vmx => vmx::user_return(slot),
    }
}

/// The vCPU, loaded nowhere, has another identity.
pub fn rename(g: &Global, v: &VcpuObj, identity: u64) {
    match g.kind {
        // Each load is told.
        Kind::Svm => {}
        Kind::Vmx => vmx::rename(v, identity),
    }
}

/// The vCPU, loaded on this CPU, has another identity. Preemption is off.
pub fn renew(g: &Global, v: &VcpuObj, slot: &CpuSlot, identity: u64) {
    match g.kind {
        Kind::Svm => svm::renew(slot, identity),
        Kind::Vmx => vmx::renew(v, slot, identity),
    }
}

/// A guest that executes from large pages and changes their size under itself can hang these CPUs (CVE-2018-12207, "iTLB
/// multihit"), and the host wants that prevented: code runs from small pages, large ones are data.
pub fn guards_exec(g: &Global) -> bool {
    g.kind == Kind::Vmx && vmx::guards_exec()
}

/// CPUs log the pages of which they set dirty bits, if asked.
pub fn logs_writes(g: &Global) -> bool {
    g.kind == Kind::Vmx && g.vmx.caps.pml()
}

/// How guests' TSCs can be scaled.
pub fn tsc_scaling(g: &Global) -> Option<Scaling> {
    match g.kind {
        Kind::Svm => g.svm.caps.tsc_scaling(),
        Kind::Vmx => g.vmx.caps.tsc_scaling(),
    }
}

/// The page behind the APIC's registers, for a VM whose vCPUs have their APICs virtualised.
pub fn apic_access_page(g: &Global) -> Result<Option<Pages>, Errno> {
    match g.kind {
        Kind::Svm => Ok(None),
        Kind::Vmx => vmx::apic_access_page(g),
    }
}

/// Takes out of a CPUID leaf what guests cannot have although the host has it, and adds what they can although it has not.
pub fn adjust(g: &Global, leaf: u32, sub: u32, r: &mut CpuidResult) {
    if g.kind == Kind::Vmx {
        vmx::adjust(g, leaf, sub, r);
    }
}

/// CPUs can post to vCPUs whose threads sleep.
pub fn hardware_posts(g: &Global) -> bool {
    g.kind == Kind::Vmx && vmx::hardware_posts(g)
}

/// The vCPU's thread, loaded, wants to sleep. `false`: something was posted. [`wakes_up`] follows in either case. Process context.
pub fn falls_asleep(v: &VcpuObj) -> bool {
    vmx::falls_asleep(v)
}

/// See [`falls_asleep`].
pub fn wakes_up(v: &VcpuObj) {
    vmx::wakes_up(v);
}

/// Before a vCPU is freed. Process context.
pub fn forget(v: &VcpuObj) {
    // Without VMX it is nowhere.
    vmx::forget(v);
}

/// The name of an exit's number in the ABI header (asm/svm.h, asm/vmx.h).
pub fn exit_name(kind: Kind, number: u64) -> Option<&'static str> {
    match kind {
        Kind::Svm => exitless_x86::svm::ExitCode(number).name(),
        Kind::Vmx => exitless_vmx::exit::name(number),
    }
}

/// Second-level entries of the vendor; a branch for each page fault, none for an exit that is not one.
#[derive(Clone, Copy, bytemuck::Zeroable)]
pub struct Entries {
    kind: Kind,
    npt: Npt,
    ept: Ept,
}

impl Entries {
    /// For this machine.
    pub fn of(g: &Global) -> Self {
        let npt = svm::entries();
        Self { kind: g.kind, npt, ept: g.vmx.caps.ept_format() }
    }

    /// Levels of tables, and the largest leaf.
    pub fn shape(g: &Global) -> (u32, Level) {
        match g.kind {
            Kind::Svm => svm::table_shape(),
            Kind::Vmx => vmx::table_shape(g),
        }
    }
}

macro_rules! either {
    ($self:ident, $f:ident => $e:expr) => {
        match $self.kind {
            Kind::Svm => {
                let $f = $self.npt;
                $e
            }
            Kind::Vmx => {
                let $f = $self.ept;
                $e
            }
        }
    };
}

impl Format for Entries {
    const WRITE: u64 = {
        assert!(Npt::WRITE == Ept::WRITE);
        Npt::WRITE
    };
    fn leaf(&self, level: Level, hpa: u64, perm: Perm, memtype: MemType) -> u64 {
        either!(self, f => f.leaf(level, hpa, perm, memtype))
    }
    fn table(&self, hpa: u64) -> u64 {
        either!(self, f => f.table(hpa))
    }
    fn device_mark(&self) -> Option<u64> {
        either!(self, f => f.device_mark())
    }
    fn is_present(&self, entry: u64) -> bool {
        either!(self, f => f.is_present(entry))
    }
    fn is_leaf(&self, entry: u64, level: u32) -> bool {
        either!(self, f => f.is_leaf(entry, level))
    }
    fn perm(&self, entry: u64) -> Perm {
        either!(self, f => f.perm(entry))
    }
    fn memtype(&self, entry: u64) -> MemType {
        either!(self, f => f.memtype(entry))
    }
    fn grant(&self, perm: Perm) -> Grant {
        either!(self, f => f.grant(perm))
    }
    fn accessed_mask(&self) -> u64 {
        either!(self, f => f.accessed_mask())
    }
    fn dirty_mask(&self) -> u64 {
        either!(self, f => f.dirty_mask())
    }
}
