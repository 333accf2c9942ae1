//! Registers between the VMCB and the hall: plain fields on SVM, no instruction needed.

use crate::vcpu::Svm;
use exitless_vcpu::backend::SysReg;
use exitless_x86::regs::{SegReg, Segment, TableReg};
use exitless_x86::svm::{VmcbSave, VmcbSeg};

fn slot(s: &mut VmcbSave, r: SegReg) -> &mut VmcbSeg {
    match r {
        SegReg::Es => &mut s.es,
        SegReg::Cs => &mut s.cs,
        SegReg::Ss => &mut s.ss,
        SegReg::Ds => &mut s.ds,
        SegReg::Fs => &mut s.fs,
        SegReg::Gs => &mut s.gs,
        SegReg::Ldtr => &mut s.ldtr,
        SegReg::Tr => &mut s.tr,
    }
}

fn slot_ref(s: &VmcbSave, r: SegReg) -> &VmcbSeg {
    match r {
        SegReg::Es => &s.es,
        SegReg::Cs => &s.cs,
        SegReg::Ss => &s.ss,
        SegReg::Ds => &s.ds,
        SegReg::Fs => &s.fs,
        SegReg::Gs => &s.gs,
        SegReg::Ldtr => &s.ldtr,
        SegReg::Tr => &s.tr,
    }
}

impl Svm {
    pub(crate) fn get_segment(&self, r: SegReg) -> Segment {
        let v = slot_ref(self.save(), r);
        Segment { base: v.base, limit: v.limit, selector: v.selector, attrib: v.attrib & 0xfff }
    }

    pub(crate) fn put_segment(&mut self, r: SegReg, s: &Segment) {
        let save = self.save_mut();
        let attrib = if s.present() || r != SegReg::Tr { s.attrib & 0xfff } else { 0 };
        *slot(save, r) = VmcbSeg { selector: s.selector, attrib, limit: s.limit, base: s.base };
        if r == SegReg::Ss {
            // The VMCB keeps CPL apart from SS.DPL; for all entry paths they are the same (APM vol. 2, 15.5.1).
            save.cpl = s.dpl();
        }
    }

    pub(crate) fn table(v: &VmcbSeg) -> TableReg {
        TableReg { base: v.base, limit: v.limit & 0xffff, reserved: 0 }
    }

    pub(crate) fn read_sys(&self, r: SysReg) -> u64 {
        let s = self.save();
        match r {
            SysReg::Star => s.star,
            SysReg::Lstar => s.lstar,
            SysReg::Cstar => s.cstar,
            SysReg::Sfmask => s.sfmask,
            SysReg::KernelGsBase => s.kernel_gs_base,
            SysReg::FsBase => s.fs.base,
            SysReg::GsBase => s.gs.base,
            SysReg::SysenterCs => s.sysenter_cs,
            SysReg::SysenterEsp => s.sysenter_esp,
            SysReg::SysenterEip => s.sysenter_eip,
            SysReg::Pat => s.g_pat,
            SysReg::DebugCtl => s.dbgctl,
            SysReg::LastBranchFrom => s.br_from,
            SysReg::LastBranchTo => s.br_to,
            SysReg::LastIntFrom => s.last_excp_from,
            SysReg::LastIntTo => s.last_excp_to,
            SysReg::SpecCtrl => self.spec_ctrl,
            SysReg::TscAux => self.tsc_aux,
        }
    }

    pub(crate) fn write_sys(&mut self, r: SysReg, v: u64) {
        let s = self.save_mut();
        match r {
            SysReg::Star => s.star = v,
            SysReg::Lstar => s.lstar = v,
            SysReg::Cstar => s.cstar = v,
            SysReg::Sfmask => s.sfmask = v,
            SysReg::KernelGsBase => s.kernel_gs_base = v,
            SysReg::FsBase => s.fs.base = v,
            SysReg::GsBase => s.gs.base = v,
            SysReg::SysenterCs => s.sysenter_cs = v,
            SysReg::SysenterEsp => s.sysenter_esp = v,
            SysReg::SysenterEip => s.sysenter_eip = v,
            SysReg::Pat => s.g_pat = v,
            SysReg::DebugCtl => s.dbgctl = v,
            SysReg::LastBranchFrom => s.br_from = v,
            SysReg::LastBranchTo => s.br_to = v,
            SysReg::LastIntFrom => s.last_excp_from = v,
            SysReg::LastIntTo => s.last_excp_to = v,
            SysReg::SpecCtrl => {
                // For CPUs that switch it themselves; others ignore the field and the entry code writes the MSR.
                s.spec_ctrl = v;
                self.spec_ctrl = v;
            }
            SysReg::TscAux => self.tsc_aux = v,
        }
    }
}
