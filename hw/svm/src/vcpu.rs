//! One SVM virtual CPU: its VMCB, its registers and what must outlive an exit.

use crate::avic::MsrMaps;
use crate::vmcb::Block;
use core::ptr::NonNull;
use exitless_vcpu::backend::{ApicKind, ApicPage, InGuest, Instructions, Opened};
use exitless_x86::regs::{Gprs, dr6};
use exitless_x86::svm::{
    NESTED_CTL_NP, Vmcb, VmcbControl, VmcbSave, int_ctl, intercept1, intercept2, intercept3,
};

/// Pages the backend needs; the owner allocates and frees them.
#[derive(Clone, Copy, Debug)]
pub struct Pages {
    /// The VMCB: one zeroed page, for this vCPU alone.
    pub vmcb: NonNull<Vmcb>,
    /// Its physical address.
    pub vmcb_pa: u64,
    /// Physical addresses of the MSR permission maps (two pages each; may be shared by all vCPUs), for each set of [`Opened`].
    pub msrpm_pa: MsrMaps,
    /// Physical address of the I/O permission map (three pages of ones; may be shared).
    pub iopm_pa: u64,
    /// With AVIC.
    pub avic: Option<AvicPages>,
}

/// AVIC's pages, each zeroed; the owner frees them.
#[derive(Clone, Copy, Debug)]
pub struct AvicPages {
    /// The backing page, for this vCPU alone; and its physical address.
    pub backing: NonNull<ApicPage>,
    /// See above.
    pub backing_pa: u64,
    /// The VM's tables. The logical one is read in xAPIC mode only.
    pub physical_pa: u64,
    /// See above.
    pub logical_pa: u64,
}

/// SPEC_CTRL where the world switch carries it; `struct ex_spec_ctrl` in linux/c/enter.c is the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Zeroable)]
#[repr(C)]
pub(crate) struct SpecCtrl {
    /// The guest's value.
    pub(crate) guest: u64,
    /// Not 0: the guest writes it without an exit, and it is read back behind each.
    pub(crate) open: u64,
}

/// The vCPU on this vendor's CPUs.
#[derive(bytemuck::Zeroable)]
#[repr(C)]
pub struct Svm {
    /// In encoding order; RAX and RSP are copied to and from the VMCB around an entry.
    pub(crate) gprs: Gprs,
    pub(crate) vmcb: Block,
    pub(crate) vmcb_pa: u64,
    pub(crate) asid_generation: u64,
    /// CR0.CD and NW as the guest set them.
    pub(crate) hidden_cr0: u64,
    pub(crate) spec_ctrl: SpecCtrl,
    pub(crate) msrpm_pa: MsrMaps,
    /// The backing page, with AVIC.
    pub(crate) apic_page: Option<NonNull<ApicPage>>,
    pub(crate) tsc_aux: u64,
    pub(crate) exit_code: u64,
    pub(crate) asid: u32,
    /// NMIs are masked until the guest's IRET.
    pub(crate) nmi_masked: bool,
    /// An IRET was intercepted at `iret_rip`; NMIs unmask when it is behind us.
    pub(crate) iret_pending: bool,
    pub(crate) next_rip: bool,
    pub(crate) flush_by_asid: bool,
    pub(crate) decode_assists: bool,
    /// TF was set by us to see the instruction after IRET.
    pub(crate) stepping: bool,
    /// The step is over an IRET.
    pub(crate) step_iret: bool,
    /// CR4.MCE must be set while the guest runs.
    pub(crate) machine_checks: bool,
    /// CR4.MCE in the VMCB is the host's wish, not the guest's.
    pub(crate) lent_mce: bool,
    /// The last exit was for a machine check that the host has yet to hear of.
    pub(crate) machine_check: bool,
    /// TF was set by a debugger; `planted_tf` is the guest's.
    pub(crate) planted: bool,
    pub(crate) planted_tf: bool,
    /// Bytes of the instruction whose exception or interrupt the next entry delivers, 0: none; and of the last entry's. On CPUs
    /// that do not take the next RIP from the VMCB, the entry moves RIP, and an exit in the middle moves it back.
    pub(crate) software_length: u8,
    pub(crate) software_entered: u8,
    /// The last exit interrupted the delivery of the guest's own INT n, INT3 or INTO.
    pub(crate) runs_again: bool,
    /// The CPU has INVPCID and its intercept.
    pub(crate) invpcid: bool,
    /// The CPU switches SPEC_CTRL by the VMCB.
    pub(crate) virtual_spec_ctrl: bool,
    pub(crate) opened: Opened,
    pub(crate) apic_kind: ApicKind,
    pub(crate) pad: [bool; 1],
    /// The guest's DR6. The VMCB has it during entries in which the guest may read and write it.
    pub(crate) dr6: u64,
    /// Such an event of the last entry, as EVENTINJ, and where the entry left the guest.
    pub(crate) software_word: u32,
    pub(crate) software_at: u64,
    pub(crate) iret_rip: u64,
    pub(crate) step_rip: u64,
    pub(crate) step_rflags: u64,
    /// The host's DEBUGCTL in this slice.
    pub(crate) host_debugctl: u64,
}

// SAFETY: the VMCB page is owned by the vCPU; the pointer moves with it.
unsafe impl Send for Svm {}

/// How many PAUSEs of a loop do not exit, at first.
pub(crate) const PAUSES: u16 = 3000;

impl Svm {
    /// Sets up the VMCB: every intercept the hall needs and the state the controls fix. Registers come later.
    pub fn init(&mut self, pages: Pages, caps: &crate::Caps, own: InGuest) {
        self.vmcb.init(pages.vmcb);
        self.vmcb_pa = pages.vmcb_pa;
        self.next_rip = caps.next_rip;
        self.flush_by_asid = caps.flush_by_asid;
        self.decode_assists = caps.decode_assists;
        self.machine_checks = caps.machine_checks;
        self.virtual_spec_ctrl = caps.spec_ctrl;
        self.msrpm_pa = pages.msrpm_pa;
        let c = &mut self.vmcb;
        // CR3 and CR0.TS/MP belong to the guest; other CR0 bits and CR4 need checks; CR8 goes to V_TPR.
        c.set_intercept_cr_write(1 << 4);
        c.set_intercept_dr_read(0xffff);
        c.set_intercept_dr_write(0xffff);
        // #DB and #AC can loop for ever inside the CPU (CVE-2015-8104, CVE-2015-5307); #MC belongs to the host.
        // #UD: the hall answers VMCALL, the other vendor's hypercall instruction.
        c.set_intercept_exceptions(1 << 1 | 1 << 6 | 1 << 17 | 1 << 18);
        c.set_intercept1(
            intercept1::INTR
                | intercept1::NMI
                | intercept1::SMI
                | intercept1::INIT
                | intercept1::CR0_SEL_WRITE
                | intercept1::RDPMC
                | intercept1::CPUID
                | intercept1::INVD
                | intercept1::INVLPGA
                | intercept1::IOIO_PROT
                | intercept1::MSR_PROT
                | intercept1::TASK_SWITCH
                | intercept1::SHUTDOWN,
        );
        c.set_intercept2(
            intercept2::VMRUN
                | intercept2::VMMCALL
                | intercept2::VMLOAD
                | intercept2::VMSAVE
                | intercept2::STGI
                | intercept2::CLGI
                | intercept2::SKINIT
                | intercept2::WBINVD
                | intercept2::XSETBV
                | intercept2::RDPRU,
        );
        let unless = |own: bool, bits: u32| if own { 0 } else { bits };
        c.set_intercept1(c.control().intercept1 | unless(own.hlt, intercept1::HLT));
        c.set_intercept2(c.control().intercept2 | unless(own.mwait, intercept2::MONITOR | intercept2::MWAIT));
        self.invpcid = caps.invpcid;
        self.show_instructions(Instructions::default());
        let c = &mut self.vmcb;
        if caps.pause_filter && !own.pause {
            c.set_intercept1(c.control().intercept1 | intercept1::PAUSE);
            c.set_pause_filter_count(PAUSES);
            c.set_pause_filter_threshold(128);
        }
        c.set_iopm_base_pa(pages.iopm_pa);
        c.set_int_ctl(int_ctl::V_INTR_MASKING);
        c.set_nested_ctl(NESTED_CTL_NP);
        if let Some(pages) = pages.avic {
            self.init_avic(pages);
        }
        self.choose_maps();
        self.dr6 = dr6::NEUTRAL;
        self.vmcb.set_g_pat(0x0007_0406_0007_0406);
    }

    /// Those that have an intercept. RDPID, RDRAND and RDSEED have none.
    pub(crate) fn show_instructions(&mut self, shown: Instructions) {
        let hide_invpcid = self.invpcid && !shown.invpcid;
        let c = self.control();
        let (two, three) = (c.intercept2 & !intercept2::RDTSCP, c.intercept3 & !intercept3::INVPCID);
        let bit = |on: bool, bit: u32| if on { bit } else { 0 };
        self.vmcb.set_intercept2(two | bit(!shown.rdtscp, intercept2::RDTSCP));
        self.vmcb.set_intercept3(three | bit(hide_invpcid, intercept3::INVPCID));
    }

    pub(crate) fn control(&self) -> &VmcbControl {
        self.vmcb.control()
    }

    pub(crate) fn save(&self) -> &VmcbSave {
        self.vmcb.save()
    }
}
