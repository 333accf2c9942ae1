//! Per physical CPU: the host save area and the ASID counter.
//!
//! ASIDs tag TLB entries. Each CPU hands out ASIDs in *generations*: when they run out, a new generation begins with a
//! full flush. A vCPU that comes to a CPU, or finds the generation gone, takes a fresh ASID, so it never sees
//! translations that it (or another) left behind.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

/// Only its own CPU touches it while running guests, with preemption off; atomics make that safe to say.
#[derive(bytemuck::Zeroable)]
#[repr(C)]
pub struct PerCpu {
    /// Physical address of the page VMSAVE stores the host's extra state to.
    pub host_save_pa: AtomicU64,
    /// The generation of ASIDs; 0 = SVM not enabled here.
    pub generation: AtomicU64,
    /// The next free ASID.
    pub next_asid: AtomicU32,
    /// How many ASIDs the CPU has.
    pub asids: AtomicU32,
    /// The identity of the vCPU that ran last, for the branch prediction barrier.
    pub last_vcpu: AtomicU64,
    /// The host's TSC_AUX, and the CPU's: a guest's stays until another guest wants another, or the CPU returns to user mode, which
    /// alone looks at it.
    host_tsc_aux: AtomicU64,
    tsc_aux: AtomicU64,
    /// The TSC ratio that the CPU has; 0 = unknown.
    pub tsc_ratio: AtomicU64,
}

/// A fresh ASID.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asid {
    /// 1 to `asids - 1`.
    pub asid: u32,
    /// Whose generation it is.
    pub generation: u64,
    /// The CPU's TLB must be flushed of all ASIDs with this entry.
    pub flush_all: bool,
}

impl PerCpu {
    /// A CPU where SVM is off.
    pub const fn none() -> Self {
        Self {
            host_save_pa: AtomicU64::new(0),
            generation: AtomicU64::new(0),
            next_asid: AtomicU32::new(0),
            asids: AtomicU32::new(0),
            last_vcpu: AtomicU64::new(0),
            host_tsc_aux: AtomicU64::new(0),
            tsc_aux: AtomicU64::new(0),
            tsc_ratio: AtomicU64::new(0),
        }
    }

    /// The CPU's TSC_AUX is to be `value`: whether it must be written, and whether it is the first since [`PerCpu::return_tsc_aux`]
    /// that is not the host's. Interrupts are off until that is done.
    pub(crate) fn lend_tsc_aux(&self, value: u64) -> (bool, bool) {
        let (now, host) = (self.tsc_aux.swap(value, Relaxed), self.host_tsc_aux.load(Relaxed));
        (now != value, now == host && value != host)
    }

    /// The value to write before this CPU is in user mode again, if it has another. Interrupts are off until that is done.
    pub(crate) fn return_tsc_aux(&self) -> Option<u64> {
        let host = self.host_tsc_aux.load(Relaxed);
        (self.tsc_aux.swap(host, Relaxed) != host).then_some(host)
    }

    /// Starts (or restarts) this CPU, whose TSC_AUX is the host's; its ASIDs begin a new generation. Generations carry the CPU's number in their upper
    /// bits: a vCPU that moved never takes another CPU's generation for this one's.
    pub fn enable(&self, cpu: u32, asids: u32, tsc_aux: u64) {
        self.host_tsc_aux.store(tsc_aux, Relaxed);
        self.tsc_aux.store(tsc_aux, Relaxed);
        self.asids.store(asids, Relaxed);
        self.tsc_ratio.store(0, Relaxed);
        // One past the end: the first use begins a generation with a flush.
        self.next_asid.store(asids, Relaxed);
        let first = u64::from(cpu) << 44 | 1;
        self.generation.store((self.generation.load(Relaxed) + 1).max(first), Relaxed);
    }

    /// Takes the next ASID.
    pub fn take(&self) -> Asid {
        let next = self.next_asid.load(Relaxed);
        if next < self.asids.load(Relaxed) {
            self.next_asid.store(next + 1, Relaxed);
            return Asid { asid: next, generation: self.generation.load(Relaxed), flush_all: false };
        }
        let generation = self.generation.load(Relaxed).wrapping_add(1);
        self.generation.store(generation, Relaxed);
        self.next_asid.store(2, Relaxed);
        Asid { asid: 1, generation, flush_all: true }
    }
}
