//! Registers between the VMCS and the hall: segments with their unusable bit, CR0 and CR4 behind masks and shadows, the
//! MSRs that travel with the guest.

use crate::cache as c;
use crate::machine::Machine;
use crate::residence::Travelling as T;
use crate::vcpu::Vmx;
use exitless_vcpu::backend::SysReg;
use exitless_x86::msr::debugctl;
use exitless_x86::regs::{SegReg, Segment, TableReg, cr0, cr4, efer};
use exitless_x86::vmx::access_rights as ar;
use exitless_x86::vmx::control::entry;

/// CR0 bits the guest changes without an exit.
pub(crate) const CR0_GUEST_OWNED: u64 = cr0::TS | cr0::MP | cr0::WP;
/// CR4 bits the guest changes without an exit: they exist on every CPU with EPT, and hardware does all they ask for.
pub(crate) const CR4_GUEST_OWNED: u64 =
    cr4::TSD | cr4::DE | cr4::PGE | cr4::PCE | cr4::OSFXSR | cr4::OSXMMEXCPT;
/// Never in the hardware CR0: caching is the host's, and VM entry leaves them alone anyway (SDM vol. 3C, 27.3.2.1).
const CR0_SHADOW_ONLY: u64 = cr0::CD | cr0::NW;

/// Packed attributes to VMX access rights (SDM vol. 3C, table 25-2). A segment that is not present is unusable; code and
/// data segments get their accessed bit, without which VM entry refuses them.
pub(crate) fn access_rights(r: SegReg, s: &Segment) -> u32 {
    let a = u32::from(s.attrib);
    let rights = a & 0xff | (a & 0xf00) << 4;
    if !s.present() {
        return rights | ar::UNUSABLE;
    }
    match r {
        SegReg::Ldtr | SegReg::Tr => rights,
        _ => rights | ar::ACCESSED,
    }
}

/// And back: an unusable segment is not present. Its other bits stay: SS.DPL is the CPL.
pub(crate) fn attributes(rights: u32) -> u16 {
    let rights = if rights & ar::UNUSABLE != 0 { rights & !ar::P } else { rights };
    (rights & 0xff | rights >> 4 & 0xf00) as u16
}

/// The MSR that travels with the thread, where the register is one.
fn travelling(r: SysReg) -> Option<T> {
    Some(match r {
        SysReg::Star => T::Star,
        SysReg::Lstar => T::Lstar,
        SysReg::Cstar => T::Cstar,
        SysReg::Sfmask => T::Sfmask,
        SysReg::KernelGsBase => T::KernelGsBase,
        SysReg::TscAux => T::TscAux,
        _ => return None,
    })
}

impl<M: Machine> Vmx<M> {
    pub(crate) fn get_segment(&self, r: SegReg) -> Segment {
        let (m, n) = (&self.m, r as u8);
        Segment {
            base: self.cache.get(m, c::BASE.nth(n)),
            limit: self.cache.get(m, c::LIMIT.nth(n)),
            selector: self.cache.get(m, c::SELECTOR.nth(n)),
            attrib: attributes(self.cache.get(m, c::ACCESS.nth(n))),
        }
    }

    pub(crate) fn put_segment(&mut self, r: SegReg, s: &Segment) {
        let n = r as u8;
        self.cache.set(c::BASE.nth(n), s.base);
        self.cache.set(c::LIMIT.nth(n), s.limit);
        self.cache.set(c::SELECTOR.nth(n), s.selector);
        self.cache.set(c::ACCESS.nth(n), access_rights(r, s));
    }

    pub(crate) fn table(
        &self,
        base: c::Slot<exitless_x86::vmx::field::Natural>,
        limit: c::Slot<exitless_x86::vmx::field::W32>,
    ) -> TableReg {
        TableReg {
            base: self.cache.get(&self.m, base),
            limit: self.cache.get(&self.m, limit) & 0xffff,
            reserved: 0,
        }
    }

    // --- control registers ---

    pub(crate) fn read_cr0(&self) -> u64 {
        let (hardware, shadow) =
            (self.cache.get(&self.m, c::CR0), self.cache.get(&self.m, c::CR0_READ_SHADOW));
        hardware & CR0_GUEST_OWNED | shadow & !CR0_GUEST_OWNED
    }

    pub(crate) fn set_cr0_field(&mut self, v: u64) {
        let hardware = (v & !CR0_SHADOW_ONLY | self.caps.cr0_must) & (self.caps.cr0_may | !0xffff_ffff);
        self.cache.set(c::CR0, hardware & !CR0_SHADOW_ONLY);
        self.cache.set(c::CR0_READ_SHADOW, v);
    }

    pub(crate) fn read_cr4(&self) -> u64 {
        let (hardware, shadow) =
            (self.cache.get(&self.m, c::CR4), self.cache.get(&self.m, c::CR4_READ_SHADOW));
        hardware & CR4_GUEST_OWNED | shadow & !CR4_GUEST_OWNED
    }

    /// CR4.MCE is the host's: with it clear a machine check shuts the machine down, whatever the exception bitmap says (SDM
    /// vol. 3B, 16.6; vol. 3C, 26.2).
    pub(crate) fn set_cr4_field(&mut self, v: u64) {
        let host_mce = self.m.host_cr4() & cr4::MCE;
        let hidden = if self.caps.emulates_umip() { cr4::UMIP } else { 0 };
        self.cache.set(c::CR4, v & !hidden | self.caps.cr4_must | host_mce);
        if (v & hidden != 0) != self.umip {
            self.umip = v & hidden != 0;
            self.controls_due();
        }
        self.cache.set(c::CR4_READ_SHADOW, v);
    }

    /// "IA-32e mode guest" is EFER.LMA (SDM vol. 3C, 27.3.1.1).
    pub(crate) fn set_efer_field(&mut self, v: u64) {
        self.cache.set(c::EFER, v);
        let controls = self.cache.get(&self.m, c::ENTRY) & !entry::IA32E_MODE_GUEST;
        let long = if v & efer::LMA != 0 { entry::IA32E_MODE_GUEST } else { 0 };
        self.cache.set(c::ENTRY, controls | long);
    }

    /// EFER changes hands only where it differs: each way costs an exchange, on most guests for nothing. Before the first entry of a
    /// slice; the guest's writes exit.
    pub(crate) fn share_efer(&mut self) {
        let same = self.cache.get(&self.m, c::EFER) == self.host_efer;
        if same == self.shares_efer {
            return;
        }
        self.shares_efer = same;
        let controls = self.cache.get(&self.m, c::ENTRY) & !entry::LOAD_EFER;
        self.cache.set(c::ENTRY, if same { controls } else { controls | entry::LOAD_EFER });
        self.put_exit_controls();
    }

    /// The guest is in PAE paging: VM entry takes the PDPTEs from the VMCS, not from memory (SDM vol. 3C, 27.3.2.4).
    pub(crate) fn in_pae_paging(&self) -> bool {
        let efer = self.cache.get(&self.m, c::EFER);
        self.read_cr0() & cr0::PG != 0 && self.read_cr4() & cr4::PAE != 0 && efer & efer::LMA == 0
    }

    /// The four PDPTEs, after the hall changed CR0, CR3 or CR4 of a guest in PAE paging. What the
    /// guest does by itself hardware follows.
    pub(crate) fn put_pdptes(&mut self, pdptes: [u64; 4]) {
        for (slot, v) in [c::PDPTE0, c::PDPTE1, c::PDPTE2, c::PDPTE3].into_iter().zip(pdptes) {
            self.cache.set(slot, v);
        }
    }

    // --- MSRs ---

    pub(crate) fn read_sys(&self, r: SysReg) -> u64 {
        let (m, cache) = (&self.m, &self.cache);
        if let Some((msr, at)) = travelling(r).zip(self.residence()) {
            return at.read_msr(m, msr);
        }
        match r {
            SysReg::FsBase => cache.get(m, c::FS_BASE),
            SysReg::GsBase => cache.get(m, c::GS_BASE),
            SysReg::SysenterCs => u64::from(cache.get(m, c::SYSENTER_CS)),
            SysReg::SysenterEsp => cache.get(m, c::SYSENTER_ESP),
            SysReg::SysenterEip => cache.get(m, c::SYSENTER_EIP),
            SysReg::Pat => cache.get(m, c::PAT),
            SysReg::DebugCtl => cache.get(m, c::DEBUGCTL) & !debugctl::FREEZE_WHILE_SMM,
            SysReg::SpecCtrl => self.run.spec_ctrl,
            // Last-branch records are not virtualised.
            _ => 0,
        }
    }

    pub(crate) fn write_sys(&mut self, r: SysReg, v: u64) {
        if let Some((msr, at)) = travelling(r).zip(self.residence()) {
            at.write_msr(&self.m, msr, v);
            return;
        }
        match r {
            SysReg::FsBase => self.cache.set(c::FS_BASE, v),
            SysReg::GsBase => self.cache.set(c::GS_BASE, v),
            SysReg::SysenterCs => self.cache.set(c::SYSENTER_CS, v as u32),
            SysReg::SysenterEsp => self.cache.set(c::SYSENTER_ESP, v),
            SysReg::SysenterEip => self.cache.set(c::SYSENTER_EIP, v),
            SysReg::Pat => self.cache.set(c::PAT, v),
            SysReg::DebugCtl => {
                self.set_debugctl(v);
                self.debug_touched = true;
            }
            SysReg::SpecCtrl => self.run.spec_ctrl = v,
            _ => {}
        }
    }
}
