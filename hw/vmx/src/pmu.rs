//! The host's performance counters around entries: which registers a VM entry and a VM exit exchange, as perf asks.
//!
//! A counter that may not count guests, or hosts, must stop and go with the switch itself; and a CPU that writes a PEBS record
//! while a guest runs writes it through the guest's page tables, to the host's linear address. The host's list names registers
//! and both values. IA32_PERF_GLOBAL_CTRL changes hands by the controls for it, where they exist and work; other registers by
//! the MSR-load areas (SDM vol. 3C, 25.7.2 and 25.8.2).
//!
//! Perf changes its counters with interrupts off: between slices, or in an NMI. While the list is empty (no event of this CPU
//! tells hosts from guests, none uses PEBS) no NMI can fill it: a counter's overflow stops events, it starts none; enabling one
//! takes an interrupt, and that ends a slice. So one look when the slice begins is enough. While there is a list, an event on it
//! may be stopped by an NMI between two entries of a slice; then each entry looks again, and what an exit loads is current.

use crate::cache as c;
use crate::machine::Machine;
use crate::vcpu::Vmx;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use exitless_x86::msr::Msr;
use exitless_x86::vmx::control::entry;
use exitless_x86::vmx::field as f;

/// The longest list. Perf has up to three registers for counters with a global control, and one for each counter, eight at
/// most, without. IA32_VMX_MISC allows 512 at least (SDM vol. 3D, A.6).
pub const LONGEST: usize = 16;

/// One register that hosts and guests must find different; `struct ex_vmx_pmu_msr` in linux/c/vmx.c is the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Zeroable)]
#[allow(missing_docs)]
#[repr(C)]
pub struct Switched {
    pub msr: u64,
    pub host: u64,
    pub guest: u64,
}

/// The MSR-load areas, which the CPU reads: a register's number and its value (SDM vol. 3C, table 25-15).
#[derive(bytemuck::Zeroable)]
#[repr(C, align(16))]
pub struct MsrAreas {
    pub(crate) entry: [[AtomicU64; 2]; LONGEST],
    pub(crate) exit: [[AtomicU64; 2]; LONGEST],
}

impl MsrAreas {
    /// Where the part for VM exits begins.
    pub(crate) const EXIT: u64 = core::mem::offset_of!(Self, exit) as u64;

    fn put(&self, i: usize, s: &Switched) {
        for (area, value) in [(&self.entry, s.guest), (&self.exit, s.host)] {
            if let Some([number, data]) = area.get(i) {
                number.store(s.msr, Relaxed);
                data.store(value, Relaxed);
            }
        }
    }
}

/// What the VMCS has of it.
#[derive(bytemuck::Zeroable)]
#[repr(C)]
pub(crate) struct Pmu {
    /// The host's list, when it was looked at last.
    list: [Switched; LONGEST],
    /// What the VMCS's fields of IA32_PERF_GLOBAL_CTRL hold.
    global: Switched,
    /// The host's IA32_PEBS_ENABLE, which is 0 in the CPU before an entry.
    pebs: u64,
    /// The number of registers in the MSR-load areas.
    count: u32,
    /// The controls for IA32_PERF_GLOBAL_CTRL are on.
    global_on: bool,
    /// `pebs` must be cleared before an entry.
    pebs_on: bool,
    pad: [bool; 2],
}

impl<M: Machine> Vmx<M> {
    /// Something is exchanged.
    pub(crate) fn switches_pmu(&self) -> bool {
        self.pmu.global_on || self.pmu.count != 0
    }

    /// By the controls for it.
    pub(crate) fn switches_global_ctrl(&self) -> bool {
        self.pmu.global_on
    }

    /// Looks at the host's list, and makes the VMCS follow. The VMCS is current, interrupts are off.
    pub(crate) fn follow_pmu(&mut self) {
        let n = self.m.pmu_list(&mut self.pmu.list);
        if n == 0 && !self.switches_pmu() {
            return;
        }
        let (mut global, mut pebs, mut count) = (None, None, 0);
        for s in self.pmu.list.iter().take(n) {
            if s.msr == u64::from(Msr::PERF_GLOBAL_CTRL.0) && self.caps.perf_global_ctrl() {
                global = Some(*s);
                continue;
            }
            if s.msr == u64::from(Msr::PEBS_ENABLE.0) {
                pebs = Some(s.host);
            }
            if let Some(areas) = self.msr_areas() {
                areas.put(count as usize, s);
                count += 1;
            }
        }
        self.pmu.pebs_on = pebs.is_some();
        self.pmu.pebs = pebs.unwrap_or(0);
        self.switch_global_ctrl(global);
        if self.pmu.count != count {
            self.pmu.count = count;
            self.m.put(f::ENTRY_MSR_LOAD_COUNT, count);
            self.m.put(f::EXIT_MSR_LOAD_COUNT, count);
        }
    }

    fn switch_global_ctrl(&mut self, s: Option<Switched>) {
        if let Some(s) = s
            && s != self.pmu.global
        {
            self.pmu.global = s;
            self.m.put(f::HOST_PERF_GLOBAL_CTRL, s.host);
            self.m.put(f::GUEST_PERF_GLOBAL_CTRL, s.guest);
        }
        if s.is_some() == self.pmu.global_on {
            return;
        }
        self.pmu.global_on = s.is_some();
        let on_entry = entry::LOAD_PERF_GLOBAL_CTRL;
        let controls = self.cache.get(&self.m, c::ENTRY) & !on_entry;
        self.cache.set(c::ENTRY, if s.is_some() { controls | on_entry } else { controls });
        self.put_exit_controls();
    }

    /// Directly before an entry: a record that is under way must reach the host's memory. The exchange by the area leaves no
    /// time for it, as a CPU that needs the exchange may write a record some instructions after its counter's overflow.
    pub(crate) fn quiet_pebs(&self) {
        if self.pmu.pebs_on {
            self.m.wrmsr(Msr::PEBS_ENABLE.0, 0);
        }
    }

    /// There was no VM entry, and so no exit that loads the host's value.
    pub(crate) fn resume_pebs(&self) {
        if self.pmu.pebs_on {
            self.m.wrmsr(Msr::PEBS_ENABLE.0, self.pmu.pebs);
        }
    }
}
