//! The host's half of the VMCS, and the change of hands between host and guest around entries.

use crate::cache as c;
use crate::machine::Machine;
use crate::percpu::{HostState, PerCpu};
use crate::residence::Residence;
use crate::vcpu::Vmx;
use exitless_x86::msr::{Msr, debugctl};
use exitless_x86::vmx::field as f;

/// Everything of the host that is constant on a CPU. Selectors that a task may have set (DS, ES, FS, GS) must be 0 here,
/// as must RPL and TI of all (SDM vol. 3C, 27.2.3); `Residence` gives them back.
pub(crate) fn write_cpu_state<M: Machine>(m: &M, h: &HostState, pat: bool) {
    m.put(f::HOST_CR0, h.cr0);
    m.put(f::HOST_CS_SELECTOR, h.cs as u16);
    m.put(f::HOST_SS_SELECTOR, h.ss as u16);
    m.put(f::HOST_TR_SELECTOR, h.tr as u16);
    m.put(f::HOST_DS_SELECTOR, 0);
    m.put(f::HOST_ES_SELECTOR, 0);
    m.put(f::HOST_FS_SELECTOR, 0);
    m.put(f::HOST_GS_SELECTOR, 0);
    m.put(f::HOST_GS_BASE, h.gs_base);
    m.put(f::HOST_TR_BASE, h.tss_base);
    m.put(f::HOST_GDTR_BASE, h.gdt_base);
    m.put(f::HOST_IDTR_BASE, h.idt_base);
    m.put(f::HOST_SYSENTER_CS, h.sysenter_cs as u32);
    m.put(f::HOST_SYSENTER_ESP, h.sysenter_esp);
    m.put(f::HOST_SYSENTER_EIP, h.sysenter_eip);
    m.put(f::HOST_EFER, h.efer);
    if pat {
        m.put(f::HOST_PAT, h.pat);
    }
    m.put(f::HOST_RIP, m.exit_address());
}

impl<M: Machine> Vmx<M> {
    /// The first entry since the thread came to this CPU.
    pub(crate) fn go_live(&mut self, at: &Residence, cpu: &PerCpu) {
        if !self.prepared {
            self.prepare();
        }
        self.host_timer_known = false;
        let fs_base = at.go_live(&self.m, cpu);
        if fs_base != self.host_fs_base {
            self.host_fs_base = fs_base;
            self.m.put(f::HOST_FS_BASE, fs_base);
        }
        // Whatever ran here in between left its data in the cache.
        self.l1d_dirty.set(true);
    }

    /// What may change from one slice to the next: the address space (and its PCID), CR4, and what perf records of branches.
    pub(crate) fn follow_host(&mut self) {
        let (cr3, cr4) = (self.m.host_cr3(), self.m.host_cr4());
        if cr3 != self.host_cr3 {
            self.host_cr3 = cr3;
            self.m.put(f::HOST_CR3, cr3);
        }
        if cr4 != self.host_cr4 {
            self.host_cr4 = cr4;
            self.m.put(f::HOST_CR4, cr4);
        }
        let debugctl = self.m.rdmsr(Msr::DEBUGCTL.0);
        let changed = debugctl ^ self.host_debugctl;
        self.host_debugctl = debugctl;
        if changed & debugctl::FREEZE_WHILE_SMM != 0 {
            let guest = self.cache.get(&self.m, c::DEBUGCTL);
            self.set_debugctl(guest);
        }
    }

    /// The guest's IA32_DEBUGCTL, with the one bit that is the host's wish for its own counters, whoever runs.
    pub(crate) fn set_debugctl(&self, guest: u64) {
        let bit = debugctl::FREEZE_WHILE_SMM;
        self.cache.set(c::DEBUGCTL, guest & !bit | self.host_debugctl & bit);
    }

    /// A VM exit clears IA32_DEBUGCTL (SDM vol. 3C, 28.5.1).
    pub(crate) fn restore_debugctl(&self) {
        self.m.wrmsr(Msr::DEBUGCTL.0, self.host_debugctl);
    }
}
