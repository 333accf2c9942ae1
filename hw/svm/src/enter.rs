//! One entry: ASID, flush, VMRUN, and what the exit means for NMI masking. Implements the hall's trait.
//!
//! NMI masking without hardware help: after an NMI is injected, IRET is intercepted. The exit comes *before* IRET
//! executes, so NMIs unmask when a later exit shows another RIP. If an NMI waits meanwhile, TF single-steps the guest
//! over the IRET; the #DB that follows is ours and is swallowed.

use crate::percpu::PerCpu;
use crate::vcpu::{PAUSES, SpecCtrl, Svm};
use core::sync::atomic::Ordering::Relaxed;
use exitless_vcpu::backend::{
    ApicKind, ApicPage, Backend, Event, Exit, ExitInfo, Instructions, InterruptStatus, Opened, Sender, Sent,
    Stopped, SysReg,
};
use exitless_x86::exception::{Exception, Vector};
use exitless_x86::msr::Msr;
use exitless_x86::regs::{Gpr, Gprs, SegReg, Segment, TableReg, cr0, cr4, dr6, rflags};
use exitless_x86::svm::{
    ExitCode, INT_STATE_SHADOW, Vmcb, VmcbSeg, event_inj, int_ctl, intercept1, tlb_control,
};

const TSC_AUX: u32 = 0xc000_0103;
/// The ratio of guests' TSCs (APM vol. 2, 15.30.5).
pub const TSC_RATIO: u32 = 0xc000_0104;

/// CR0 bits that the guest sees but hardware does not get.
const CACHE_BITS: u64 = cr0::CD | cr0::NW;

unsafe extern "C" {
    /// The world switch (linux/c/enter.c): 0, or 1 when VMRUN faulted because SVM was switched off.
    fn ex_svm_enter(
        vmcb: *const Vmcb,
        vmcb_pa: u64,
        gprs: *mut u64,
        host_save_pa: u64,
        spec_ctrl: *mut SpecCtrl,
        host_debugctl: u64,
    ) -> u32;
    fn ex_ibpb();
    /// [`return_tsc_aux`] comes before this CPU is in user mode again (linux/c/helpers/user_return.c).
    fn ex_call_on_user_return();
    /// DEBUGCTL, which every CPU with SVM has (linux/c/enter.c).
    fn ex_svm_debugctl() -> u64;
    fn ex_svm_set_debugctl(value: u64);
    /// Runs the host's machine check handler (linux/c/enter.c).
    fn ex_machine_check();
}

impl Svm {
    /// Takes a valid ASID on this CPU and orders the flush that the entry needs.
    fn choose_asid(&mut self, cpu: &PerCpu, flush: bool) {
        let mut control = if !flush {
            tlb_control::NONE
        } else if self.flush_by_asid {
            tlb_control::FLUSH_ASID
        } else {
            tlb_control::FLUSH_ALL
        };
        if self.asid_generation != cpu.generation.load(Relaxed) || self.asid == 0 {
            let fresh = cpu.take();
            self.asid = fresh.asid;
            self.asid_generation = fresh.generation;
            // The vCPU's last entry was on another CPU, or this one's SVM was off meanwhile, or its ASIDs have run out.
            self.vmcb.forget();
            control = if fresh.flush_all { tlb_control::FLUSH_ALL } else { tlb_control::NONE };
        }
        self.vmcb.set_asid(self.asid);
        self.vmcb.set_tlb_control(control);
    }

    /// Without virtualised last-branch records VMRUN leaves DEBUGCTL alone (APM vol. 2, 15.23): the guest would single-step by
    /// branches, or trap on bus locks, because the host does. The guest's is 0, and the world switch brings the host's back
    /// before it lets NMIs in.
    fn hide_debugctl(&self) {
        if self.host_debugctl != 0 {
            // SAFETY: reset's value; interrupts are off until the host's is back.
            unsafe { ex_svm_set_debugctl(0) };
        }
    }

    /// The world switch: 0, or 1 where there was none.
    #[inline(always)]
    fn switch(&mut self, cpu: &PerCpu) -> u32 {
        let vmcb = self.vmcb.ptr().as_ptr();
        let (pa, host, spec) = (self.vmcb_pa, cpu.host_save_pa.load(Relaxed), &raw mut self.spec_ctrl);
        self.hide_debugctl();
        self.vmcb.begin();
        // SAFETY: interrupts are off (trait contract), the VMCB is ours and complete, the host page is this CPU's.
        unsafe { ex_svm_enter(vmcb, pa, self.gprs.0.as_mut_ptr(), host, spec, self.host_debugctl) }
    }

    /// The exit is a write of the x2APIC's ICR, and says nothing about NMIs.
    #[inline(always)]
    fn wrote_icr(&self) -> bool {
        let c = self.control();
        c.exit_code == Self::WRMSR
            && c.exit_info_1 == 1
            && self.gprs.get(Gpr::Rcx) as u32 == Msr::X2APIC_ICR.0
            && !self.nmi_masked
            && !self.stepping
    }

    /// Sends, and enters again, as long as nothing else comes: what then came. RAX, RSP and whatever else only the VMCB has stay there. A
    /// function of its own, so that other exits pay nothing.
    #[inline(never)]
    fn send_on(&mut self, cpu: &PerCpu, mut sender: impl Sender) -> (u32, Sent) {
        loop {
            let icr = self.gprs.get(Gpr::Rdx) << 32 | self.save().rax & 0xffff_ffff;
            let sent = sender.send(icr, || self.next_rip && self.skip_instruction());
            if sent != Sent::GoOn {
                return (0, sent);
            }
            sender.goes_on();
            self.vmcb.set_event_inj(0);
            self.vmcb.set_tlb_control(tlb_control::NONE);
            let failed = self.switch(cpu);
            if failed != 0 || !self.wrote_icr() {
                return (failed, Sent::No);
            }
        }
    }

    /// After the exit: has the guest's IRET completed?
    fn track_iret(&mut self, exit: Exit) -> Exit {
        if exit == Exit::NmiWindow {
            self.iret_pending = true;
            self.iret_rip = self.save().rip;
            self.intercept_iret(false);
            return exit;
        }
        let moved = self.save().rip != self.iret_rip;
        // A breakpoint on the instruction itself comes before it.
        let db = |x: Exception| x.vector == Vector::DB && x.payload & dr6::BS != 0;
        let stepped = self.stepping && matches!(exit, Exit::Exception(x) if db(x));
        if self.iret_pending && (moved || stepped) {
            self.iret_pending = false;
            self.nmi_masked = false;
        }
        if self.stepping {
            self.end_step();
            if let (true, Exit::Exception(x)) = (stepped, exit) {
                return self.stepped(x);
            }
        }
        exit
    }

    /// The step is over: what else the #DB is about is the guest's, or the debugger's.
    fn stepped(&mut self, x: Exception) -> Exit {
        if self.step_rflags & rflags::TF != 0 {
            return Exit::Exception(x);
        }
        if self.dr6_loaded() {
            self.dr6 &= !dr6::BS;
        }
        match x.payload & !dr6::BS {
            0 => Exit::NmiWindow,
            payload => Exit::Exception(Exception { payload, ..x }),
        }
    }

    /// The guest's DR6 is in the VMCB during entries. Otherwise there is a neutral one, where each #DB leaves what it is about.
    fn dr6_loaded(&self) -> bool {
        self.control().intercept_dr_write == 0
    }

    /// Single-steps the guest over its IRET to learn when NMIs unmask.
    fn begin_step(&mut self) {
        if !self.stepping {
            self.stepping = true;
            self.step_iret = self.iret_pending;
            self.step_rip = self.save().rip;
            self.step_rflags = self.save().rflags;
            self.vmcb.set_rflags(self.step_rflags | rflags::TF);
        }
    }

    /// RFLAGS without the TF of the step over IRET.
    fn without_step(&self) -> u64 {
        let f = self.save().rflags;
        if self.stepping { f & !rflags::TF | self.step_rflags & rflags::TF } else { f }
    }

    /// An event goes in with this entry: its frame holds RFLAGS, where a planted TF would stay for ever. The step comes later.
    fn yield_step(&mut self) {
        if self.stepping && self.control().event_inj & event_inj::VALID != 0 {
            self.vmcb.set_rflags(self.without_step());
            self.stepping = false;
        }
    }

    fn end_step(&mut self) {
        self.stepping = false;
        // A completed IRET loaded RFLAGS from the stack: its TF is the guest's. Otherwise TF is what we planted.
        let completed_iret = self.step_iret && self.save().rip != self.step_rip;
        if self.step_rflags & rflags::TF == 0 && !completed_iret {
            self.vmcb.set_rflags(self.save().rflags & !rflags::TF);
        }
    }

    pub(crate) fn set_nmi_mask(&mut self, on: bool) {
        self.nmi_masked = on;
        self.iret_pending = false;
        self.intercept_iret(on);
    }

    fn intercept_iret(&mut self, on: bool) {
        self.set_in_intercept1(intercept1::IRET, on);
    }

    fn set_in_intercept1(&mut self, bits: u32, on: bool) {
        let now = self.control().intercept1;
        self.vmcb.set_intercept1(if on { now | bits } else { now & !bits });
    }
}

/// A vCPU's thread came to this CPU (or back to it): branch predictor and TSC_AUX change hands. The caller also saves
/// the host's extra state to `cpu.host_save_pa`. `tsc_aux`, `tsc_ratio`: the guest's values, where the CPU has the registers.
///
/// # Safety
/// Interrupts are off and `cpu` is this CPU's part.
pub unsafe fn load(cpu: &PerCpu, identity: u64, tsc_aux: Option<u64>, tsc_ratio: Option<u64>) {
    // Preemption is off, and only this CPU changes it: no exchange.
    if cpu.last_vcpu.load(Relaxed) != identity {
        cpu.last_vcpu.store(identity, Relaxed);
        // SAFETY: a barrier without operands, legal in any context.
        unsafe { ex_ibpb() };
    }
    if let Some(guest) = tsc_aux {
        // SAFETY: the caller's promise.
        unsafe { lend_tsc_aux(cpu, guest) };
    }
    // It scales in guests only (APM vol. 2, 15.30.5), so it stays until another guest wants another.
    if let Some(ratio) = tsc_ratio.filter(|&ratio| cpu.tsc_ratio.load(Relaxed) != ratio) {
        cpu.tsc_ratio.store(ratio, Relaxed);
        // SAFETY: the caller says the MSR exists.
        unsafe { exitless_hw_ops::wrmsr(TSC_RATIO, ratio) };
    }
}

/// The vCPU that is loaded here has this TSC_AUX.
///
/// # Safety
/// Interrupts are off, `cpu` is this CPU's part, and the CPU has the register.
pub unsafe fn lend_tsc_aux(cpu: &PerCpu, guest: u64) {
    let (write, first) = cpu.lend_tsc_aux(guest);
    if write {
        // SAFETY: the register exists; the kernel itself never reads it.
        unsafe { exitless_hw_ops::wrmsr(TSC_AUX, guest) };
    }
    if first {
        // SAFETY: interrupts are off.
        unsafe { ex_call_on_user_return() };
    }
}

/// This CPU is about to return to user mode, or goes off.
///
/// # Safety
/// Interrupts are off, and `cpu` is this CPU's part.
pub unsafe fn return_tsc_aux(cpu: &PerCpu) {
    if let Some(host) = cpu.return_tsc_aux() {
        // SAFETY: the register exists, for it was lent; the value is the kernel's.
        unsafe { exitless_hw_ops::wrmsr(TSC_AUX, host) };
    }
}

impl Backend for Svm {
    type Cpu = PerCpu;

    fn begin(&mut self, _cpu: &PerCpu) {
        // SAFETY: reads a register that exists.
        self.host_debugctl = unsafe { ex_svm_debugctl() };
    }

    const WRMSR: u64 = ExitCode::MSR.0;

    fn enter<S: Sender>(&mut self, cpu: &PerCpu, flush: bool, sender: impl FnOnce() -> S) -> Exit {
        self.choose_asid(cpu, flush);
        self.yield_step();
        let (rax, rsp) = (self.gprs.get(Gpr::Rax), self.gprs.get(Gpr::Rsp));
        let dr6 = if self.dr6_loaded() { self.dr6 } else { dr6::NEUTRAL };
        self.vmcb.set_rax(rax);
        self.vmcb.set_rsp(rsp);
        self.vmcb.set_dr6(dr6);
        self.begin_software();
        let mut failed = self.switch(cpu);
        let mut sent = Sent::No;
        if failed == 0 && self.wrote_icr() {
            (failed, sent) = self.send_on(cpu, sender());
        }
        let (rax, rsp) = (self.save().rax, self.save().rsp);
        self.gprs.set(Gpr::Rax, rax);
        self.gprs.set(Gpr::Rsp, rsp);
        self.vmcb.end(failed != 0);
        self.vmcb.set_event_inj(0);
        self.vmcb.set_tlb_control(tlb_control::NONE);
        if failed != 0 {
            return Exit::Disabled;
        }
        self.exit_code = self.control().exit_code;
        if self.dr6_loaded() {
            self.dr6 = self.save().dr6;
        }
        if sent == Sent::Waits {
            return Exit::Sent;
        }
        let exit = self.decode_exit();
        self.machine_check = matches!(exit, Exit::Exception(x) if x.vector == Vector::MC);
        if self.nmi_masked || self.stepping { self.track_iret(exit) } else { exit }
    }

    fn end(&mut self) {
        if core::mem::take(&mut self.machine_check) {
            // SAFETY: interrupts are off and the host's state is loaded (trait contract).
            unsafe { ex_machine_check() };
        }
    }

    fn exit_number(&self) -> u64 {
        self.exit_code
    }
    fn exit_info(&self) -> ExitInfo {
        let c = self.control();
        let coded = event_inj::VALID | event_inj::ERROR_VALID;
        ExitInfo {
            reason: c.exit_code as u32,
            info1: c.exit_info_1,
            info2: c.exit_info_2,
            event: c.exit_int_info,
            error_code: if c.exit_int_info & coded == coded { c.exit_int_info_err } else { 0 },
        }
    }
    fn take_interrupted(&mut self) -> Option<Event> {
        self.take_event()
    }
    fn runs_again(&self) -> bool {
        self.runs_again
    }
    fn inject(&mut self, event: Event) {
        self.put_event(event);
    }
    fn withdraw(&mut self) {
        self.vmcb.set_event_inj(0);
        self.software_length = 0;
    }
    fn next_rip(&self) -> Option<u64> {
        let c = self.control();
        if c.exit_code == 0x7b {
            return Some(c.exit_info_2);
        }
        (self.next_rip && c.next_rip != 0).then_some(c.next_rip)
    }
    fn skip_instruction(&mut self) -> bool {
        let bits = self.save().rflags & (rflags::TF | rflags::RF);
        if self.planted || self.interrupt_shadow() || bits != 0 {
            return false;
        }
        let Some(next) = self.next_rip() else { return false };
        self.vmcb.set_rip(next);
        true
    }
    fn fault_linear(&self) -> Option<u64> {
        None
    }
    fn stopped(&self) -> Option<Stopped> {
        let fetched = self.fetched();
        let mut at = Stopped {
            rip: self.rip(),
            code: self.code_attributes(),
            // Those that were fetched: the instruction's and what follows.
            length: 0,
            bytes: [0; 15],
        };
        at.bytes.get_mut(..fetched.len())?.copy_from_slice(fetched);
        (!fetched.is_empty()).then_some(at)
    }
    fn fetched(&self) -> &[u8] {
        if !self.decode_assists {
            return &[];
        }
        let c = self.control();
        c.insn_bytes.get(..usize::from(c.insn_len.min(15))).unwrap_or(&[])
    }

    fn gprs(&self) -> &Gprs {
        &self.gprs
    }
    fn gprs_mut(&mut self) -> &mut Gprs {
        &mut self.gprs
    }
    fn rip(&self) -> u64 {
        self.save().rip
    }
    fn set_rip(&mut self, v: u64) {
        self.vmcb.set_rip(v);
    }
    fn rflags(&self) -> u64 {
        let f = self.without_step();
        if self.planted && f & rflags::TF != 0 && !self.planted_tf { f & !rflags::TF } else { f }
    }
    fn set_rflags(&mut self, v: u64) {
        let planted = if self.stepping() { rflags::TF } else { 0 };
        self.planted_tf = v & rflags::TF != 0;
        self.stepping = false;
        self.vmcb.set_rflags(v | planted | rflags::FIXED);
    }
    fn segment(&self, r: SegReg) -> Segment {
        self.get_segment(r)
    }
    fn set_segment(&mut self, r: SegReg, s: &Segment) {
        self.put_segment(r, s);
    }
    fn gdtr(&self) -> TableReg {
        Self::table(&self.save().gdtr)
    }
    fn set_gdtr(&mut self, t: &TableReg) {
        self.vmcb.set_gdtr(VmcbSeg { base: t.base, limit: t.limit, ..self.save().gdtr });
    }
    fn idtr(&self) -> TableReg {
        Self::table(&self.save().idtr)
    }
    fn set_idtr(&mut self, t: &TableReg) {
        self.vmcb.set_idtr(VmcbSeg { base: t.base, limit: t.limit, ..self.save().idtr });
    }
    fn cpl(&self) -> u8 {
        self.save().cpl & 3
    }
    fn cr0(&self) -> u64 {
        self.save().cr0 & !CACHE_BITS | self.hidden_cr0
    }
    /// The guest's CD would switch the caches off for real (APM vol. 2, 15.25.4); it is kept aside, and CR0 is watched
    /// while it differs.
    fn set_cr0(&mut self, v: u64) {
        self.hidden_cr0 = v & CACHE_BITS;
        let watch = u16::from(self.hidden_cr0 != 0);
        self.vmcb.set_intercept_cr_read(self.control().intercept_cr_read & !1 | watch);
        self.vmcb.set_intercept_cr_write(self.control().intercept_cr_write & !1 | watch);
        self.vmcb.set_cr0(v & !CACHE_BITS);
    }
    fn cr2(&self) -> u64 {
        self.save().cr2
    }
    fn set_cr2(&mut self, v: u64) {
        self.vmcb.set_cr2(v);
    }
    fn cr3(&self) -> u64 {
        self.save().cr3
    }
    fn set_cr3(&mut self, v: u64) {
        self.vmcb.set_cr3(v);
    }
    fn cr4(&self) -> u64 {
        if self.lent_mce { self.save().cr4 & !cr4::MCE } else { self.save().cr4 }
    }
    fn set_cr4(&mut self, v: u64) {
        // A machine check with CR4.MCE clear shuts the machine down, intercepted or not (APM vol. 2, 9.2 and 15.12.13). The
        // guest must not see the bit that it did not set.
        self.lent_mce = self.machine_checks && v & cr4::MCE == 0;
        let watch = u16::from(self.lent_mce) << 4;
        self.vmcb.set_intercept_cr_read(self.control().intercept_cr_read & !(1 << 4) | watch);
        self.vmcb.set_cr4(if self.lent_mce { v | cr4::MCE } else { v });
    }
    fn efer(&self) -> u64 {
        self.save().efer & !exitless_x86::regs::efer::SVME
    }
    fn set_efer(&mut self, v: u64) {
        // VMRUN demands SVME in the guest's EFER (APM vol. 2, 15.5.1); the guest never sees it.
        self.vmcb.set_efer(v | exitless_x86::regs::efer::SVME);
    }
    fn dr6(&self) -> u64 {
        self.dr6
    }
    fn set_dr6(&mut self, v: u64) {
        self.dr6 = v;
    }
    fn dr7(&self) -> u64 {
        self.save().dr7
    }
    fn set_dr7(&mut self, v: u64) {
        self.vmcb.set_dr7(v);
    }
    fn sys_reg(&self, r: SysReg) -> u64 {
        self.read_sys(r)
    }
    fn set_sys_reg(&mut self, r: SysReg, v: u64) {
        self.write_sys(r, v);
    }
    fn cr8(&self) -> u8 {
        (self.control().int_ctl & 15) as u8
    }
    fn set_cr8(&mut self, v: u8) {
        self.vmcb.set_int_ctl(self.control().int_ctl & !int_ctl::V_TPR | u32::from(v & 15));
    }
    fn interrupt_shadow(&self) -> bool {
        self.control().int_state & INT_STATE_SHADOW != 0
    }
    fn set_interrupt_shadow(&mut self, on: bool) {
        let now = self.control().int_state;
        self.vmcb.set_int_state(if on { now | INT_STATE_SHADOW } else { now & !INT_STATE_SHADOW });
    }
    fn nmi_masked(&self) -> bool {
        self.nmi_masked
    }
    fn set_nmi_masked(&mut self, on: bool) {
        self.set_nmi_mask(on);
    }
    fn spin_longer(&mut self, longer: bool) {
        // Without the filter the field is 0 and stays so.
        let count = self.control().pause_filter_count;
        if count != 0 {
            self.vmcb.set_pause_filter_count(if longer { count.saturating_mul(2) } else { PAUSES });
        }
    }
    fn set_interrupt_window(&mut self, on: bool) {
        // A dummy virtual interrupt of the highest priority; its intercept fires when it could be taken.
        const DUMMY: u32 = int_ctl::V_IRQ | int_ctl::V_INTR_PRIO | int_ctl::V_IGN_TPR;
        // AVIC ignores it (APM vol. 2, 15.29.3): who needs one has the entries without.
        let on = on && !self.avic_on();
        let now = self.control().int_ctl;
        self.vmcb.set_int_ctl(if on { now | DUMMY } else { now & !DUMMY });
        self.vmcb.set_int_vector(0);
        self.set_in_intercept1(intercept1::VINTR, on);
    }
    fn set_nmi_window(&mut self, on: bool) {
        // While IRET has not been seen its intercept is on already; once it has, or in an interrupt shadow, step over
        // the one instruction in the way.
        if on && (self.iret_pending || (!self.nmi_masked && self.interrupt_shadow())) {
            self.begin_step();
        }
    }
    fn set_cr8_intercept(&mut self, on: bool) {
        let now = self.control().intercept_cr_write & !(1 << 8);
        self.vmcb.set_intercept_cr_write(now | u16::from(on) << 8);
    }
    fn set_dr_intercept(&mut self, on: bool) {
        let bits = if on { 0xffff } else { 0 };
        self.vmcb.set_intercept_dr_read(bits);
        self.vmcb.set_intercept_dr_write(bits);
    }
    fn set_bp_intercept(&mut self, on: bool) {
        const BP: u32 = 1 << Vector::BP.0;
        let now = self.control().intercept_exceptions;
        self.vmcb.set_intercept_exceptions(if on { now | BP } else { now & !BP });
    }
    fn set_step(&mut self, on: bool) {
        if !on && !self.planted {
            return;
        }
        let flags = self.rflags();
        self.planted = on;
        self.planted_tf = flags & rflags::TF != 0;
        let flags = if on { flags | rflags::TF } else { flags };
        if self.stepping {
            self.step_rflags = flags;
        } else {
            self.vmcb.set_rflags(flags);
        }
    }
    fn stepping(&self) -> bool {
        self.planted && self.without_step() & rflags::TF != 0
    }
    fn set_instructions(&mut self, shown: Instructions) {
        self.show_instructions(shown);
    }
    fn set_opened(&mut self, opened: Opened) {
        self.spec_ctrl.open = u64::from(opened.has(Opened::SPEC_CTRL) && !self.virtual_spec_ctrl);
        self.opened = opened;
        self.choose_maps();
    }
    fn virtualizes_apic(&self) -> bool {
        self.apic_page.is_some()
    }
    fn set_apic(&mut self, kind: ApicKind) {
        self.apic(kind);
    }
    fn apic_page(&self) -> Option<&ApicPage> {
        self.backing_page()
    }
    /// VMRUN computes both from the page.
    fn set_interrupt_status(&mut self, _status: InterruptStatus) {
        self.load_tpr();
    }
    fn switches_spec_ctrl(&self) -> bool {
        self.virtual_spec_ctrl
    }
    fn set_tsc_offset(&mut self, offset: u64) {
        self.vmcb.set_tsc_offset(offset);
    }
    /// The ratio is the CPU's, not the VMCB's: [`load`] brings it.
    fn set_tsc_ratio(&mut self, _ratio: u64) {}
    fn set_slat_root(&mut self, hpa: u64) {
        self.vmcb.set_nested_cr3(hpa);
    }
}
