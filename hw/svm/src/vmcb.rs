//! The one door for writes to the VMCB: it notes which groups of fields the CPU must read again (APM vol. 2, 15.15).
//!
//! The CPU may keep, from a VMCB's last entry, what it read of it, in groups; a group whose bit in the clean field is 1 it need not
//! read. Each field has one setter here, which names its group, and there is no other way to write one: no write can be forgotten.
//! Fields without a group are read at each entry. What the guest changes, #VMEXIT writes back.
//!
//! ```text
//! forget (fresh ASID: another CPU, or SVM was off) --> all dirty --begin--> VMRUN --ran--> all clean --setter, other value--> group dirty
//! ```

use core::ptr::NonNull;
use exitless_x86::regs::SegReg;
use exitless_x86::svm::{ExitCode, Vmcb, VmcbControl, VmcbSave, VmcbSeg, clean};

/// A vCPU's VMCB.
///
/// # Invariants
/// After [`Block::init`], `page` points to a page that lives as long as `self` and that nobody else touches, but the CPU during
/// VMRUN.
#[derive(bytemuck::Zeroable)]
#[repr(C)]
pub(crate) struct Block {
    page: Option<NonNull<Vmcb>>,
    /// What the next entry says of the groups.
    clean: u32,
    pad: u32,
}

macro_rules! setters {
    ($($group:expr => { $($set:ident: $area:ident.$field:ident: $type:ty,)* })*) => { $($(
        #[inline]
        pub(crate) fn $set(&mut self, v: $type) {
            self.put($group, |b| &mut b.$area.$field, v);
        }
    )*)* };
}

impl Block {
    /// See the type's invariants.
    pub(crate) fn init(&mut self, page: NonNull<Vmcb>) {
        self.page = Some(page);
        self.forget();
    }

    pub(crate) fn ptr(&self) -> NonNull<Vmcb> {
        // An uninitialised vCPU reads a dangling address only if the owner broke `init` first; make it a clean fault.
        self.page.unwrap_or(NonNull::dangling())
    }

    pub(crate) fn control(&self) -> &VmcbControl {
        // SAFETY: type invariant: the page lives as long as `self`, and `&self` excludes a running entry.
        unsafe { &self.ptr().as_ref().control }
    }

    pub(crate) fn save(&self) -> &VmcbSave {
        // SAFETY: as in `control`.
        unsafe { &self.ptr().as_ref().save }
    }

    #[inline]
    fn put<T: PartialEq>(&mut self, group: u32, at: impl FnOnce(&mut Vmcb) -> &mut T, v: T) {
        // SAFETY: type invariant: only `self` leads to the page, and `&mut self` is exclusive.
        let field = at(unsafe { self.ptr().as_mut() });
        if group == clean::NONE {
            *field = v;
        } else if *field != v {
            *field = v;
            self.clean &= !group;
        }
    }

    /// What a CPU knows of the VMCB is not this one's, or may be gone.
    pub(crate) fn forget(&mut self) {
        self.clean = clean::NONE;
    }

    /// Directly before VMRUN.
    #[inline]
    pub(crate) fn begin(&mut self) {
        let clean = self.clean;
        self.put(clean::NONE, |b| &mut b.control.clean, clean);
        self.clean = clean::ALL;
    }

    /// Behind it: an entry that failed tells nothing of what the CPU has read, and behind SHUTDOWN the VMCB's guest state is undefined
    /// (APM vol. 2, 15.14.3), so that a value that equals what stands there may be another than the CPU's.
    #[inline]
    pub(crate) fn end(&mut self, failed: bool) {
        let code = ExitCode(self.control().exit_code);
        if failed || code.is_invalid() || code == ExitCode::SHUTDOWN {
            self.forget();
        }
    }

    setters! {
        clean::INTERCEPTS => {
            set_intercept_cr_read: control.intercept_cr_read: u16,
            set_intercept_cr_write: control.intercept_cr_write: u16,
            set_intercept_dr_read: control.intercept_dr_read: u16,
            set_intercept_dr_write: control.intercept_dr_write: u16,
            set_intercept_exceptions: control.intercept_exceptions: u32,
            set_intercept1: control.intercept1: u32,
            set_intercept2: control.intercept2: u32,
            set_intercept3: control.intercept3: u32,
            set_pause_filter_threshold: control.pause_filter_threshold: u16,
            set_pause_filter_count: control.pause_filter_count: u16,
            set_tsc_offset: control.tsc_offset: u64,
        }
        clean::PERMISSION_MAPS => {
            set_iopm_base_pa: control.iopm_base_pa: u64,
            set_msrpm_base_pa: control.msrpm_base_pa: u64,
        }
        clean::ASID => { set_asid: control.asid: u32, }
        clean::TPR => {
            set_int_ctl: control.int_ctl: u32,
            set_int_vector: control.int_vector: u32,
        }
        clean::NP => {
            set_nested_cr3: control.nested_cr3: u64,
            set_g_pat: save.g_pat: u64,
        }
        clean::CRX => {
            set_cr0: save.cr0: u64,
            set_cr3: save.cr3: u64,
            set_cr4: save.cr4: u64,
            set_efer: save.efer: u64,
        }
        clean::DRX => {
            set_dr6: save.dr6: u64,
            set_dr7: save.dr7: u64,
        }
        clean::DT => {
            set_gdtr: save.gdtr: VmcbSeg,
            set_idtr: save.idtr: VmcbSeg,
        }
        clean::SEG => {
            set_es: save.es: VmcbSeg,
            set_cs: save.cs: VmcbSeg,
            set_ss: save.ss: VmcbSeg,
            set_ds: save.ds: VmcbSeg,
            set_cpl: save.cpl: u8,
        }
        clean::CR2 => { set_cr2: save.cr2: u64, }
        clean::LBR => {
            set_dbgctl: save.dbgctl: u64,
            set_br_from: save.br_from: u64,
            set_br_to: save.br_to: u64,
            set_last_excp_from: save.last_excp_from: u64,
            set_last_excp_to: save.last_excp_to: u64,
        }
        clean::AVIC => {
            set_avic_vapic_bar: control.avic_vapic_bar: u64,
            set_avic_backing_page: control.avic_backing_page: u64,
            set_avic_logical_id: control.avic_logical_id: u64,
            set_avic_physical_id: control.avic_physical_id: u64,
        }
        // Read at each entry, the last of them by VMLOAD.
        clean::NONE => {
            set_tlb_control: control.tlb_control: u8,
            set_int_state: control.int_state: u32,
            set_exit_int_info: control.exit_int_info: u32,
            set_nested_ctl: control.nested_ctl: u64,
            set_event_inj: control.event_inj: u32,
            set_event_inj_err: control.event_inj_err: u32,
            set_next_rip: control.next_rip: u64,
            set_rflags: save.rflags: u64,
            set_rip: save.rip: u64,
            set_rsp: save.rsp: u64,
            set_rax: save.rax: u64,
            set_spec_ctrl: save.spec_ctrl: u64,
            set_fs: save.fs: VmcbSeg,
            set_gs: save.gs: VmcbSeg,
            set_ldtr: save.ldtr: VmcbSeg,
            set_tr: save.tr: VmcbSeg,
            set_star: save.star: u64,
            set_lstar: save.lstar: u64,
            set_cstar: save.cstar: u64,
            set_sfmask: save.sfmask: u64,
            set_kernel_gs_base: save.kernel_gs_base: u64,
            set_sysenter_cs: save.sysenter_cs: u64,
            set_sysenter_esp: save.sysenter_esp: u64,
            set_sysenter_eip: save.sysenter_eip: u64,
        }
    }

    pub(crate) fn segment(&self, r: SegReg) -> VmcbSeg {
        let s = self.save();
        match r {
            SegReg::Es => s.es,
            SegReg::Cs => s.cs,
            SegReg::Ss => s.ss,
            SegReg::Ds => s.ds,
            SegReg::Fs => s.fs,
            SegReg::Gs => s.gs,
            SegReg::Ldtr => s.ldtr,
            SegReg::Tr => s.tr,
        }
    }

    pub(crate) fn set_segment(&mut self, r: SegReg, v: VmcbSeg) {
        match r {
            SegReg::Es => self.set_es(v),
            SegReg::Cs => self.set_cs(v),
            SegReg::Ss => self.set_ss(v),
            SegReg::Ds => self.set_ds(v),
            SegReg::Fs => self.set_fs(v),
            SegReg::Gs => self.set_gs(v),
            SegReg::Ldtr => self.set_ldtr(v),
            SegReg::Tr => self.set_tr(v),
        }
    }
}
