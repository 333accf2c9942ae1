//! Registers between the VMCB and the hall: plain fields on SVM, no instruction needed.

use crate::vcpu::Svm;
use exitless_vcpu::backend::SysReg;
use exitless_x86::regs::{SegReg, Segment, TableReg};
use exitless_x86::svm::VmcbSeg;

impl Svm {
    pub(crate) fn get_segment(&self, r: SegReg) -> Segment {
        let v = self.vmcb.segment(r);
        Segment { base: v.base, limit: v.limit, selector: v.selector, attrib: v.attrib & 0xfff }
    }

    pub(crate) fn put_segment(&mut self, r: SegReg, s: &Segment) {
        let attrib = if s.present() || r != SegReg::Tr { s.attrib & 0xfff } else { 0 };
        self.vmcb.set_segment(r, VmcbSeg { selector: s.selector, attrib, limit: s.limit, base: s.base });
        if r == SegReg::Ss {
            // The VMCB keeps CPL apart from SS.DPL; for all entry paths they are the same (APM vol. 2, 15.5.1).
            self.vmcb.set_cpl(s.dpl());
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
            SysReg::SpecCtrl if self.virtual_spec_ctrl => s.spec_ctrl,
            SysReg::SpecCtrl => self.spec_ctrl.guest,
            SysReg::TscAux => self.tsc_aux,
        }
    }

    pub(crate) fn write_sys(&mut self, r: SysReg, v: u64) {
        let b = &mut self.vmcb;
        match r {
            SysReg::Star => b.set_star(v),
            SysReg::Lstar => b.set_lstar(v),
            SysReg::Cstar => b.set_cstar(v),
            SysReg::Sfmask => b.set_sfmask(v),
            SysReg::KernelGsBase => b.set_kernel_gs_base(v),
            SysReg::FsBase => b.set_fs(VmcbSeg { base: v, ..b.save().fs }),
            SysReg::GsBase => b.set_gs(VmcbSeg { base: v, ..b.save().gs }),
            SysReg::SysenterCs => b.set_sysenter_cs(v),
            SysReg::SysenterEsp => b.set_sysenter_esp(v),
            SysReg::SysenterEip => b.set_sysenter_eip(v),
            SysReg::Pat => b.set_g_pat(v),
            SysReg::DebugCtl => b.set_dbgctl(v),
            SysReg::LastBranchFrom => b.set_br_from(v),
            SysReg::LastBranchTo => b.set_br_to(v),
            SysReg::LastIntFrom => b.set_last_excp_from(v),
            SysReg::LastIntTo => b.set_last_excp_to(v),
            SysReg::SpecCtrl => {
                // For CPUs that switch it themselves; others ignore the field and the entry code writes the MSR.
                b.set_spec_ctrl(v);
                self.spec_ctrl.guest = v;
            }
            SysReg::TscAux => self.tsc_aux = v,
        }
    }
}
