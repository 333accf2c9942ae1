//! Per physical CPU: which VMCSs it holds, what the host's state is here, and the VPID counter.
//!
//! VPIDs tag TLB entries. Each CPU hands them out in *generations*, as the twin does with ASIDs: when they run out, a new
//! generation begins with a full flush. A vCPU that comes to a CPU, or finds the generation gone, takes a fresh one.

use crate::machine::Machine;
use crate::residence::{MSRS, Residence, Travelling};
use core::mem::size_of;
use core::ptr;
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU8, AtomicU32, AtomicU64, Ordering::Relaxed};
use exitless_vcpu::timer::Loan;

/// What a VM exit must give back to this CPU: constant while the CPU is online. `struct ex_vmx_host_state` in
/// linux/c/vmx.c is the same; selectors and IA32_SYSENTER_CS stand in 64-bit words too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
#[allow(missing_docs)]
#[repr(C)]
pub struct HostState {
    pub cr0: u64,
    pub efer: u64,
    pub pat: u64,
    pub cs: u64,
    pub ss: u64,
    pub tr: u64,
    pub gs_base: u64,
    pub tss_base: u64,
    pub gdt_base: u64,
    pub idt_base: u64,
    pub sysenter_cs: u64,
    pub sysenter_esp: u64,
    pub sysenter_eip: u64,
}

const WORDS: usize = size_of::<HostState>() / 8;

/// The last VPID of a generation: all of 16 bits, but 0.
const LAST_VPID: u32 = 0xffff;

/// Only its own CPU writes it, with interrupts off; atomics make that safe to say.
#[derive(bytemuck::Zeroable)]
#[repr(C)]
pub struct PerCpu {
    list: AtomicPtr<Residence>,
    current: AtomicPtr<Residence>,
    /// The generation of VPIDs; 0 = VMX was never on here.
    pub(crate) generation: AtomicU64,
    next_vpid: AtomicU32,
    number: AtomicU32,
    /// The identity of the vCPU that was loaded last, for the branch prediction barrier.
    pub(crate) last_vcpu: AtomicU64,
    host: [AtomicU64; WORDS],
    /// The host's values of what is lent, and those in the CPU.
    host_msrs: [AtomicU64; MSRS],
    lent_msrs: [AtomicU64; MSRS],
    on: AtomicBool,
    tsc_aux: AtomicBool,
    /// The vector of this CPU's APIC timer; 0: not known, or not to be lent.
    timer_vector: AtomicU8,
    /// Something is lent, and the return to user mode will call [`PerCpu::take_back_lent`].
    owes: AtomicBool,
    pad: [u8; 4],
    /// The CPU's APIC timer.
    pub(crate) loan: Loan,
}

/// A fresh VPID.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vpid {
    /// 1 to 0xffff.
    pub vpid: u16,
    /// Whose generation it is.
    pub generation: u64,
    /// The CPU's TLB must be flushed of all VPIDs before this entry.
    pub flush_all: bool,
}

impl PerCpu {
    /// A CPU where VMX is off.
    pub const fn none() -> Self {
        Self {
            list: AtomicPtr::new(ptr::null_mut()),
            current: AtomicPtr::new(ptr::null_mut()),
            generation: AtomicU64::new(0),
            next_vpid: AtomicU32::new(0),
            number: AtomicU32::new(0),
            last_vcpu: AtomicU64::new(0),
            host: [const { AtomicU64::new(0) }; WORDS],
            host_msrs: [const { AtomicU64::new(0) }; MSRS],
            lent_msrs: [const { AtomicU64::new(0) }; MSRS],
            on: AtomicBool::new(false),
            tsc_aux: AtomicBool::new(false),
            owes: AtomicBool::new(false),
            timer_vector: AtomicU8::new(0),
            pad: [0; 4],
            loan: Loan::none(),
        }
    }

    /// VMXON succeeded on this CPU, `number`. Interrupts are off. `tsc_aux`: the register exists.
    pub fn enable<M: Machine>(&self, m: &M, number: u32, host: &HostState, tsc_aux: bool) {
        self.number.store(number, Relaxed);
        for (to, from) in self.host.iter().zip(bytemuck::cast::<HostState, [u64; WORDS]>(*host)) {
            to.store(from, Relaxed);
        }
        self.tsc_aux.store(tsc_aux, Relaxed);
        for msr in self.lent() {
            let host = m.rdmsr(msr.number());
            for row in [&self.host_msrs, &self.lent_msrs] {
                if let Some(to) = row.get(msr as usize) {
                    to.store(host, Relaxed);
                }
            }
        }
        self.owes.store(false, Relaxed);
        self.list.store(ptr::null_mut(), Relaxed);
        self.current.store(ptr::null_mut(), Relaxed);
        // One past the end: the first use begins a generation with a flush. Generations carry the CPU's number in their
        // upper bits: a vCPU that moved never takes another CPU's generation for this one's.
        self.next_vpid.store(LAST_VPID + 1, Relaxed);
        let first = u64::from(number) << 44 | 1;
        self.generation.store((self.generation.load(Relaxed) + 1).max(first), Relaxed);
        self.on.store(true, Relaxed);
    }

    /// VMXOFF follows: makes every VMCS here inactive, so that none keeps data of its own in this CPU. Interrupts are
    /// off. `false`: VMX was not on.
    ///
    /// # Safety
    /// Residences that were loaded here are alive.
    pub unsafe fn disable<M: Machine>(&self, m: &M) -> bool {
        if !self.on.swap(false, Relaxed) {
            return false;
        }
        self.take_back_lent(m);
        // The emergency path comes in the middle of a slice, too: the next kernel's LVTT is not to be a notification's.
        self.give_timer_back(m);
        // SAFETY: contract.
        while let Some(first) = unsafe { self.list.load(Relaxed).as_ref() } {
            first.clear_here(m, self);
            if ptr::eq(self.list.load(Relaxed), first) {
                // Each turn takes the first off the list; a CPU on its way down must not hang if that is ever untrue.
                break;
            }
        }
        true
    }

    /// VMX is on here.
    pub fn on(&self) -> bool {
        self.on.load(Relaxed)
    }
    pub(crate) fn timer_vector(&self) -> u8 {
        self.timer_vector.load(Relaxed)
    }
    pub(crate) fn set_timer_vector(&self, vector: u8) {
        self.timer_vector.store(vector, Relaxed);
    }
    pub(crate) fn number(&self) -> u32 {
        self.number.load(Relaxed)
    }
    pub(crate) fn is_current(&self, r: &Residence) -> bool {
        ptr::eq(self.current.load(Relaxed), r) && self.on()
    }
    pub(crate) fn set_current(&self, r: Option<&Residence>) {
        self.current.store(r.map_or(ptr::null_mut(), |r| ptr::from_ref(r).cast_mut()), Relaxed);
    }
    pub(crate) fn list(&self) -> &AtomicPtr<Residence> {
        &self.list
    }

    /// What is lent to guests and exists here.
    pub(crate) fn lent(&self) -> impl Iterator<Item = Travelling> + use<> {
        let tsc_aux = self.tsc_aux.load(Relaxed);
        Travelling::ALL.into_iter().filter(move |&m| m.lent() && (m != Travelling::TscAux || tsc_aux))
    }

    /// Gives the CPU a value, if it has another; the first that is not the host's arranges for the way back. Interrupts are
    /// off.
    pub(crate) fn put_lent<M: Machine>(&self, m: &M, msr: Travelling, value: u64) {
        let Some(now) = self.lent_msrs.get(msr as usize).filter(|now| now.load(Relaxed) != value) else {
            return;
        };
        now.store(value, Relaxed);
        m.wrmsr(msr.number(), value);
        let host = self.host_msrs.get(msr as usize).map_or(0, |v| v.load(Relaxed));
        if value != host && !self.owes.load(Relaxed) {
            self.owes.store(true, Relaxed);
            m.call_on_user_return();
        }
    }

    /// Before this CPU returns to user mode: its syscall registers are the host's again. Interrupts are off.
    pub fn take_back_lent<M: Machine>(&self, m: &M) {
        for msr in self.lent() {
            let host = self.host_msrs.get(msr as usize).map_or(0, |v| v.load(Relaxed));
            self.put_lent(m, msr, host);
        }
        self.owes.store(false, Relaxed);
    }

    /// The host's state here.
    pub fn host(&self) -> HostState {
        let mut words = [0; WORDS];
        for (to, from) in words.iter_mut().zip(&self.host) {
            *to = from.load(Relaxed);
        }
        bytemuck::cast(words)
    }

    /// Takes the next VPID.
    pub fn take(&self) -> Vpid {
        let next = self.next_vpid.load(Relaxed);
        if next <= LAST_VPID {
            self.next_vpid.store(next + 1, Relaxed);
            return Vpid { vpid: next as u16, generation: self.generation.load(Relaxed), flush_all: false };
        }
        let generation = self.generation.load(Relaxed).wrapping_add(1);
        self.generation.store(generation, Relaxed);
        self.next_vpid.store(2, Relaxed);
        Vpid { vpid: 1, generation, flush_all: true }
    }
}
