//! Where a VMCS is, and the registers that travel with the vCPU's thread. All atomics: preempt notifiers reach it while
//! the run loop holds the vCPU itself.
//!
//! A VMCS is *active* on at most one CPU, which keeps parts of it to itself; before another CPU may load it, the first must
//! VMCLEAR it. Each CPU lists what is active there ([`PerCpu`]), so that it can be made inactive when VMX goes off.
//!
//! ```text
//!  nowhere ── load ──▶ active on A, current ── other load on A ──▶ active on A, not current
//!     ▲                         │  ▲                                        │
//!     └──── clear_here (on A) ──┘  └───────────────── load ─────────────────┘
//! ```

use crate::machine::{Machine, TaskSegments};
use crate::percpu::PerCpu;
use core::ptr;
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64, Ordering::Relaxed};
use exitless_x86::msr::Msr;

/// MSRs that no VMCS field holds. KERNEL_GS_BASE the guest writes at will; its value is in the CPU from the first entry after
/// [`Residence::load`] until [`Residence::put`]. The others are *lent*: writes exit, so memory always has the guest's value;
/// the CPU has it from that entry on, until another vCPU's takes its place or the CPU returns to user mode, the only one
/// that uses these registers ([`PerCpu::take_back_lent`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
#[allow(missing_docs)]
pub enum Travelling {
    Star,
    Lstar,
    Cstar,
    Sfmask,
    KernelGsBase,
    /// Where the CPU has it.
    TscAux,
}

/// How many.
pub(crate) const MSRS: usize = 6;

impl Travelling {
    pub(crate) const ALL: [Self; MSRS] =
        [Self::Star, Self::Lstar, Self::Cstar, Self::Sfmask, Self::KernelGsBase, Self::TscAux];

    /// Writes exit, and the value stays in the CPU beyond `put`.
    pub(crate) const fn lent(self) -> bool {
        !matches!(self, Self::KernelGsBase)
    }

    /// The MSR's number.
    pub(crate) const fn number(self) -> u32 {
        match self {
            Self::Star => Msr::STAR.0,
            Self::Lstar => Msr::LSTAR.0,
            Self::Cstar => Msr::CSTAR.0,
            Self::Sfmask => Msr::SFMASK.0,
            Self::KernelGsBase => Msr::KERNEL_GS_BASE.0,
            Self::TscAux => Msr::TSC_AUX.0,
        }
    }
}

/// Why a VMCS was not loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoadError {
    /// Active on this CPU: run [`Residence::clear_here`] there, then try again.
    Elsewhere(u32),
    /// VMX is off on this CPU.
    Off,
    /// The processor refused the region's address or revision: a bug of ours.
    Refused,
}

/// See the file's head.
#[derive(bytemuck::Zeroable)]
#[repr(C)]
pub struct Residence {
    vmcs_pa: AtomicU64,
    /// For the branch prediction barrier; never 0.
    identity: AtomicU64,
    /// The next VMCS that is active on the same CPU; only that CPU touches it.
    next: AtomicPtr<Residence>,
    /// Number of the CPU on which the VMCS is active, plus 1; 0 = none.
    cpu: AtomicU32,
    /// VMRESUME, not VMLAUNCH.
    launched: AtomicBool,
    /// The guest's travelling MSRs are in the CPU, the task's selectors are not.
    live: AtomicBool,
    /// The VMCS came to another CPU since the last entry.
    moved: AtomicBool,
    /// A lent MSR changed while live.
    stale: AtomicBool,
    guest: [AtomicU64; MSRS],
    /// The task's KERNEL_GS_BASE (the user's GS base), while live.
    host_kernel_gs: AtomicU64,
    /// The task's DS, ES, FS and GS, 16 bits each, while live.
    selectors: AtomicU64,
    ldt: AtomicU64,
    fs_base: AtomicU64,
}

impl Residence {
    /// A VMCS region that was never loaded: one zeroed page at `vmcs_pa` with `Caps::revision` in its first word.
    /// `identity` is a number that no other vCPU of this load has had, not 0.
    pub fn init(&self, vmcs_pa: u64, identity: u64) {
        self.vmcs_pa.store(vmcs_pa, Relaxed);
        self.identity.store(identity, Relaxed);
    }

    /// Makes the VMCS current on this CPU.
    ///
    /// # Errors
    /// See [`LoadError`].
    ///
    /// # Safety
    /// Interrupts are off and `cpu` is this CPU's part. `self` stays where it is until [`Residence::clear_here`] ran.
    pub unsafe fn load<M: Machine>(&self, m: &M, cpu: &PerCpu) -> Result<(), LoadError> {
        if !cpu.on() {
            return Err(LoadError::Off);
        }
        let pa = self.vmcs_pa.load(Relaxed);
        match self.cpu.load(Relaxed) {
            0 => {
                // Also sets the launch state to "clear" (SDM vol. 3C, 25.11.3).
                if !m.vmclear(pa) {
                    return Err(LoadError::Refused);
                }
                self.launched.store(false, Relaxed);
                self.moved.store(true, Relaxed);
                self.next.store(cpu.list().load(Relaxed), Relaxed);
                cpu.list().store(ptr::from_ref(self).cast_mut(), Relaxed);
                self.cpu.store(cpu.number() + 1, Relaxed);
            }
            at if at == cpu.number() + 1 => {}
            at => return Err(LoadError::Elsewhere(at - 1)),
        }
        if !cpu.is_current(self) {
            if !m.vmptrld(pa) {
                return Err(LoadError::Refused);
            }
            cpu.set_current(Some(self));
        }
        let identity = self.identity.load(Relaxed);
        // Interrupts are off, and only this CPU changes it: no exchange.
        if cpu.last_vcpu.load(Relaxed) != identity {
            cpu.last_vcpu.store(identity, Relaxed);
            m.branch_barrier();
        }
        Ok(())
    }

    /// What every CPU remembers of the vCPU is a stranger's; the next load brings a barrier. `identity` as in [`Residence::init`].
    pub fn rename(&self, identity: u64) {
        self.identity.store(identity, Relaxed);
    }

    /// The vCPU, loaded on the CPU whose part `cpu` is, has executed a branch barrier of its own: what other CPUs remember of
    /// it is a stranger's. Preemption is off; `identity` as in [`Residence::init`].
    pub fn renew(&self, cpu: &PerCpu, identity: u64) {
        self.identity.store(identity, Relaxed);
        cpu.last_vcpu.store(identity, Relaxed);
    }

    /// Makes the VMCS inactive, on the CPU whose part `cpu` is, with interrupts off. Harmless if it is not active here.
    pub fn clear_here<M: Machine>(&self, m: &M, cpu: &PerCpu) {
        if self.cpu.load(Relaxed) != cpu.number() + 1 {
            return;
        }
        m.vmclear(self.vmcs_pa.load(Relaxed));
        self.unlink(cpu);
        if cpu.is_current(self) {
            cpu.set_current(None);
        }
        // Last: from now on another CPU may load it.
        self.cpu.store(0, core::sync::atomic::Ordering::Release);
    }

    fn unlink(&self, cpu: &PerCpu) {
        let next = self.next.load(Relaxed);
        let mut link = cpu.list();
        loop {
            let at = link.load(Relaxed);
            if ptr::eq(at, self) {
                link.store(next, Relaxed);
                return;
            }
            // SAFETY: the list holds residences that are alive (contract of `load`), and only this CPU changes it.
            match unsafe { at.as_ref() } {
                Some(r) => link = &r.next,
                None => return,
            }
        }
    }

    /// The CPU on which the VMCS is active: where [`Residence::clear_here`] must run before the region is freed.
    pub fn active_on(&self) -> Option<u32> {
        self.cpu.load(core::sync::atomic::Ordering::Acquire).checked_sub(1)
    }

    pub(crate) fn launched(&self) -> bool {
        self.launched.load(Relaxed)
    }
    pub(crate) fn set_launched(&self) {
        self.launched.store(true, Relaxed);
    }
    pub(crate) fn take_moved(&self) -> bool {
        let moved = self.moved.load(Relaxed);
        if moved {
            self.moved.store(false, Relaxed);
        }
        moved
    }
    pub(crate) fn take_stale(&self) -> bool {
        let stale = self.stale.load(Relaxed);
        if stale {
            self.stale.store(false, Relaxed);
        }
        stale
    }
    pub(crate) fn live(&self) -> bool {
        self.live.load(Relaxed)
    }

    // --- the host's and the guest's registers change hands ---

    /// The first entry after [`Residence::load`]: interrupts are off. Returns the task's FS base.
    pub(crate) fn go_live<M: Machine>(&self, m: &M, cpu: &PerCpu) -> u64 {
        let s = m.task_segments();
        let word = |v: u16, n: u32| u64::from(v) << (16 * n);
        self.selectors.store(word(s.ds, 0) | word(s.es, 1) | word(s.fs, 2) | word(s.gs, 3), Relaxed);
        self.ldt.store(u64::from(s.ldt), Relaxed);
        self.fs_base.store(s.fs_base, Relaxed);
        self.host_kernel_gs.store(s.gs_base, Relaxed);
        self.live.store(true, Relaxed);
        let (kernel_gs, guest) = (Travelling::KernelGsBase, self.guest_msr(Travelling::KernelGsBase));
        if guest != self.host_kernel_gs.load(Relaxed) {
            m.wrmsr(kernel_gs.number(), guest);
        }
        self.lend(m, cpu);
        s.fs_base
    }

    /// Brings the lent MSRs into the CPU, where they differ from what is there. Interrupts are off.
    pub(crate) fn lend<M: Machine>(&self, m: &M, cpu: &PerCpu) {
        self.stale.store(false, Relaxed);
        for msr in cpu.lent() {
            cpu.put_lent(m, msr, self.guest_msr(msr));
        }
    }

    /// The thread leaves this CPU, or returns to user space: but for what is lent, the CPU is the host's again. Preemption is
    /// off.
    ///
    /// # Safety
    /// [`Residence::load`] was called on this CPU last.
    pub unsafe fn put<M: Machine>(&self, m: &M) {
        if !self.live.load(Relaxed) {
            return;
        }
        // Before the selectors: loading GS changes KERNEL_GS_BASE.
        let kernel_gs = Travelling::KernelGsBase;
        self.store_guest(kernel_gs, m.rdmsr(kernel_gs.number()));
        let (selectors, host) = (self.selectors.load(Relaxed), self.host_kernel_gs.load(Relaxed));
        let gs = (selectors >> 48) as u16;
        m.restore_task_segments(&TaskSegments {
            ds: selectors as u16,
            es: (selectors >> 16) as u16,
            fs: (selectors >> 32) as u16,
            gs,
            ldt: self.ldt.load(Relaxed) as u16,
            fs_base: self.fs_base.load(Relaxed),
            gs_base: host,
        });
        if gs != 0 || self.guest_msr(kernel_gs) != host {
            m.wrmsr(kernel_gs.number(), host);
        }
        self.live.store(false, Relaxed);
    }

    fn guest_msr(&self, msr: Travelling) -> u64 {
        self.guest.get(msr as usize).map_or(0, |v| v.load(Relaxed))
    }
    fn store_guest(&self, msr: Travelling, v: u64) {
        if let Some(to) = self.guest.get(msr as usize) {
            to.store(v, Relaxed);
        }
    }

    /// The guest's value, wherever it is.
    pub(crate) fn read_msr<M: Machine>(&self, m: &M, msr: Travelling) -> u64 {
        if msr.lent() {
            return self.guest_msr(msr);
        }
        // A switch of threads between the look at `live` and the MSR would read the host's.
        m.without_interrupts(|| if self.live() { m.rdmsr(msr.number()) } else { self.guest_msr(msr) })
    }

    /// Changes the guest's value, wherever it is.
    pub(crate) fn write_msr<M: Machine>(&self, m: &M, msr: Travelling, v: u64) {
        m.without_interrupts(|| {
            self.store_guest(msr, v);
            if msr.lent() {
                self.stale.store(true, Relaxed);
            } else if self.live() {
                m.wrmsr(msr.number(), v);
            }
        });
    }
}
