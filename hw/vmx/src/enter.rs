//! One entry: host state, translations, write-back, VMLAUNCH or VMRESUME. Implements the hall's trait.

use crate::cache as c;
use crate::host::write_cpu_state;
use crate::machine::{Machine, how, switched};
use crate::percpu::PerCpu;
use crate::residence::Residence;
use crate::vcpu::{PLE_WINDOW, Vmx};
use core::sync::atomic::Ordering::Relaxed;
use exitless_vcpu::backend::{
    ApicKind, ApicPage, Backend, Event, Exit, ExitInfo, Instructions, InterruptStatus, Opened, Sender, Sent,
    Stopped, SysReg,
};
use exitless_vcpu::timer::Found;
use exitless_x86::exception::Vector;
use exitless_x86::msr::{Msr, debugctl};
use exitless_x86::regs::{Gpr, Gprs, SegReg, Segment, TableReg, rflags};
use exitless_x86::vmx::control::{interruption as i, primary};
use exitless_x86::vmx::exit::BasicReason;
use exitless_x86::vmx::{PENDING_DEBUG_BS, field as f, interruptibility as block, invept, invvpid};

/// DR6 with no condition reported (SDM vol. 3B, 18.2.3).
const DR6_NEUTRAL: u64 = 0xffff_0ff0;
/// No VM exit has this number; counters put failed entries here.
const NO_REASON: u32 = 0xffff;

/// What [`Vmx::plan`] decides, besides the bits of [`how`].
pub(crate) mod plan {
    use crate::machine::how;
    /// The guest's debug registers are in the CPU: DR6 changes hands.
    pub(super) const DEBUG_REGISTERS: u32 = 1 << 8;
    /// The host's IA32_DEBUGCTL must be written again after exits.
    pub(super) const HOST_DEBUGCTL: u32 = 1 << 9;
    /// The VMCS is not current on this CPU.
    pub(super) const UNSETTLED: u32 = 1 << 10;
    /// Not launched yet.
    pub(super) const FRESH: u32 = 1 << 11;
    /// Registers of performance monitoring change hands.
    pub(super) const PMU: u32 = 1 << 12;
    /// The CPU's APIC timer is lent, or was by the last entry.
    pub(crate) const LENDS: u32 = 1 << 13;
    /// There is something to do before the switch.
    pub(super) const BEFORE: u32 = DEBUG_REGISTERS | UNSETTLED | PMU | LENDS | how::GUARD_L1D;
    /// There is something to do after it.
    pub(super) const AFTER: u32 = DEBUG_REGISTERS | HOST_DEBUGCTL | FRESH | PMU;
    /// Too much to be entered again straight behind an exit.
    pub(super) const RARE: u32 = (BEFORE | AFTER) & !LENDS & !how::GUARD_L1D;
}

impl<M: Machine> Vmx<M> {
    /// What holds for all entries of a slice. `false`: the VMCS is not current here.
    fn settle(&mut self, at: &Residence, cpu: &PerCpu) -> bool {
        if !cpu.is_current(at) {
            return false;
        }
        if !at.live() {
            self.go_live(at, cpu);
        } else if at.take_stale() {
            at.lend(&self.m, cpu);
        }
        let moved = at.take_moved();
        if moved {
            let host = cpu.host();
            write_cpu_state(&self.m, &host, self.caps.pat());
            self.host_efer = host.efer;
            self.m.put(f::GUEST_RSP, self.vmcs_rsp);
        }
        self.follow_host();
        self.follow_pmu();
        self.share_efer();
        if self.exceptions != self.vmcs_exceptions {
            self.vmcs_exceptions = self.exceptions;
            self.m.put(f::EXCEPTION_BITMAP, self.exceptions);
        }
        if self.caps.pause_loop() && self.ple_window != self.vmcs_ple_window {
            self.vmcs_ple_window = self.ple_window;
            self.m.put(f::PLE_WINDOW, self.ple_window);
        }
        if self.caps.vpid() && (moved || self.vpid_generation != cpu.generation.load(Relaxed)) {
            self.choose_vpid(cpu);
        }
        // Translations that this CPU keeps from the last time the VM ran here may be of any age.
        self.flush_due |= moved;
        true
    }

    /// What may differ from entry to entry.
    fn write_back(&mut self, cpu: &PerCpu, flush: bool) {
        if flush || self.flush_due {
            self.flush_translations();
        }
        self.write_apic();
        let rsp = self.run.gprs.get(Gpr::Rsp);
        if rsp != self.vmcs_rsp {
            self.vmcs_rsp = rsp;
            self.m.put(f::GUEST_RSP, rsp);
        }
        if self.debug_touched {
            self.settle_debug();
        }
        self.cache.write_back(&self.m);
        self.load_timer(cpu);
    }

    fn choose_vpid(&mut self, cpu: &PerCpu) {
        let fresh = cpu.take();
        self.vpid_generation = fresh.generation;
        self.m.put(f::VPID, fresh.vpid);
        if fresh.flush_all {
            self.m.invvpid(invvpid::ALL_CONTEXT, 0);
        }
    }

    /// Guest-physical and combined translations of this VM, for all VPIDs (SDM vol. 3C, 29.4.3.1).
    fn flush_translations(&mut self) {
        let eptp = self.cache.get(&self.m, c::EPTP);
        let kind = if self.caps.invept_single() { invept::SINGLE_CONTEXT } else { invept::ALL_CONTEXT };
        self.m.invept(kind, eptp);
        self.flush_due = false;
    }

    /// In an interrupt shadow the pending single-step trap must agree with TF and BTF, or VM entry fails (SDM vol. 3C,
    /// 27.3.1.5).
    fn settle_debug(&mut self) {
        self.debug_touched = false;
        let m = &self.m;
        let shadow = self.cache.get(m, c::INTERRUPTIBILITY);
        if shadow & (block::STI | block::MOV_SS) == 0 {
            return;
        }
        if shadow & block::STI != 0 && self.stepping() {
            // STI holds no trap back: with one pending the guest would not get anywhere. The shadow goes, as on stock KVM.
            self.set_interrupt_shadow(false);
            return;
        }
        let step = self.cache.get(m, c::RFLAGS) & rflags::TF != 0
            && self.cache.get(m, c::DEBUGCTL) & debugctl::BTF == 0;
        let pending = self.cache.get(m, c::PENDING_DEBUG) & !PENDING_DEBUG_BS;
        self.cache.set(c::PENDING_DEBUG, if step { pending | PENDING_DEBUG_BS } else { pending });
    }

    /// Decides once for the entries of a slice.
    fn plan(&mut self, settled: bool, at: &Residence) {
        let bit = |on: bool, bit: u32| if on { bit } else { 0 };
        self.plan = bit(!settled, plan::UNSETTLED)
            | bit(at.launched(), how::LAUNCHED)
            | bit(!at.launched(), plan::FRESH)
            | bit(self.caps.guard_l1d(), how::GUARD_L1D)
            | bit(!self.dr_intercept, plan::DEBUG_REGISTERS)
            | bit(self.switches_pmu(), plan::PMU)
            | bit(self.lends, plan::LENDS)
            | bit(self.host_debugctl != 0, plan::HOST_DEBUGCTL);
    }

    /// What few entries need directly before the switch. The bits for it; `None`: it cannot be.
    #[cold]
    fn rare_before(&mut self, cpu: &PerCpu) -> Option<u32> {
        let mut bits = self.plan;
        if bits & plan::UNSETTLED != 0 {
            return None;
        }
        if bits & plan::LENDS != 0 {
            self.follow_loan(cpu);
        }
        if bits & plan::PMU != 0 {
            self.follow_pmu();
            self.quiet_pebs();
        }
        if bits & plan::DEBUG_REGISTERS != 0 {
            self.m.set_dr6(self.dr6);
        }
        if bits & how::GUARD_L1D != 0 && self.l1d_dirty.take() {
            bits |= how::L1D_DIRTY;
        }
        Some(bits)
    }

    /// And directly after it.
    #[cold]
    fn rare_after(&mut self, switched: u32) {
        if self.plan & plan::DEBUG_REGISTERS != 0 {
            self.dr6 = self.m.dr6();
            self.m.set_dr6(DR6_NEUTRAL);
        }
        if switched != switched::EXIT {
            self.resume_pebs();
            return;
        }
        if self.plan & plan::HOST_DEBUGCTL != 0 {
            self.restore_debugctl();
        }
        if self.exit_reason().entry_failed() {
            return;
        }
        if self.plan & plan::FRESH != 0 {
            self.plan = self.plan & !plan::FRESH | how::LAUNCHED;
            if let Some(at) = self.residence() {
                at.set_launched();
            }
        }
    }

    fn after(&mut self, cpu: &PerCpu) -> Exit {
        if self.exit_reason().entry_failed() {
            // Guest fields, launch state and the event's valid bit are as they were (SDM vol. 3C, 27.8).
            self.cache.set(c::EVENT, 0);
        } else {
            self.left = true;
            self.taken = false;
            self.cache.left_guest();
            self.read_rsp();
        }
        self.decode_exit(cpu)
    }

    /// The exit is a write of the x2APIC's ICR, behind an entry that asks for nothing afterwards.
    #[inline(always)]
    fn wrote_icr(&self, bits: u32) -> bool {
        self.run.reason == u32::from(BasicReason::WRMSR.0)
            && self.run.gprs.get(Gpr::Rcx) as u32 == Msr::X2APIC_ICR.0
            && bits & plan::RARE == 0
    }

    /// Sends, and enters again, as long as nothing else comes. `came`: what then did, if it is no exit like any other (not returned, lest
    /// each branch on the way to nothing sets registers for it). A function of its own, so that other exits pay nothing.
    #[inline(never)]
    fn send_on(&mut self, cpu: &PerCpu, bits: u32, mut sender: impl Sender, came: &mut (u32, Sent)) {
        loop {
            let first = || self.step(self.m.get(f::EXIT_INSTRUCTION_LENGTH));
            let sent = sender.send(self.run.gprs.edx_eax(), first);
            match sent {
                Sent::No => return,
                Sent::Waits => return came.1 = sent,
                Sent::GoOn => {}
            }
            // The kernel had the timer back, to wake somebody: whose it is is the hall's to settle.
            if bits & plan::LENDS != 0 && !cpu.loan.is_lent() {
                return came.1 = Sent::Waits;
            }
            sender.goes_on();
            // Nothing of the VMCS was read but what this needs, and nothing written but RIP.
            self.load_timer(cpu);
            let switched = self.m.enter(&mut self.run, bits & !how::L1D_DIRTY);
            if switched != switched::EXIT {
                // The last one's is what there is, with what the CPU logged until then.
                self.left = true;
                self.cache.left_guest();
                self.read_rsp();
                return came.0 = switched;
            }
            if !self.wrote_icr(bits) {
                return;
            }
        }
    }

    /// The guest's, which is no slot of the cache.
    fn read_rsp(&mut self) {
        self.vmcs_rsp = self.m.get(f::GUEST_RSP);
        self.run.gprs.set(Gpr::Rsp, self.vmcs_rsp);
    }

    fn failed(&mut self) -> Exit {
        self.cache.set(c::EVENT, 0);
        // 0: there was no current VMCS to hold a number.
        Exit::FailEntry(u64::from(self.m.get(f::VM_INSTRUCTION_ERROR)))
    }

    /// Replaces the interrupt shadow: one of its bits, or 0.
    fn cast_shadow(&mut self, shadow: u32) {
        let now = self.cache.get(&self.m, c::INTERRUPTIBILITY) & !(block::STI | block::MOV_SS);
        self.cache.set(c::INTERRUPTIBILITY, now | shadow);
        if shadow == 0 {
            let pending = self.cache.get(&self.m, c::PENDING_DEBUG);
            self.cache.set(c::PENDING_DEBUG, pending & !PENDING_DEBUG_BS);
        }
        self.debug_touched |= shadow != 0;
    }

    fn primary(&mut self, bit: u32, on: bool) {
        let now = self.cache.get(&self.m, c::PRIMARY);
        self.cache.set(c::PRIMARY, if on { now | bit } else { now & !bit });
    }
}

impl<M: Machine> Backend for Vmx<M> {
    type Cpu = PerCpu;

    fn begin(&mut self, cpu: &PerCpu) {
        let Some(at) = self.residence_ptr() else { return };
        // SAFETY: type invariant: the residence lives as long as `self`, and is all atomics.
        let at = unsafe { at.as_ref() };
        let settled = self.settle(at, cpu);
        self.plan(settled, at);
    }

    const WRMSR: u64 = BasicReason::WRMSR.0 as u64;

    fn enter<S: Sender>(&mut self, cpu: &PerCpu, flush: bool, sender: impl FnOnce() -> S) -> Exit {
        self.left = false;
        self.length.set(0);
        self.run.reason = NO_REASON;
        let mut bits = self.plan;
        if bits & plan::BEFORE != 0 {
            match self.rare_before(cpu) {
                Some(more) => bits = more,
                None => return Exit::Disabled,
            }
        }
        self.write_back(cpu, flush);
        let mut switched = self.m.enter(&mut self.run, bits);
        let mut sent = Sent::No;
        if switched == switched::EXIT && self.wrote_icr(bits) {
            let mut came = (switched::EXIT, Sent::No);
            self.send_on(cpu, bits, sender(), &mut came);
            (switched, sent) = came;
        }
        if bits & plan::AFTER != 0 {
            self.rare_after(switched);
        }
        match switched {
            switched::EXIT => {
                let exit = self.after(cpu);
                if sent == Sent::Waits { Exit::Sent } else { exit }
            }
            switched::FAILED => self.failed(),
            _ => Exit::Disabled,
        }
    }

    fn end(&mut self) {
        match core::mem::take(&mut self.acknowledged) {
            0 => {}
            vector => self.m.interrupt(vector),
        }
        if core::mem::take(&mut self.machine_check) {
            self.m.machine_check();
        }
    }

    fn dirty_l1d(&self) {
        self.l1d_dirty.set(true);
    }
    fn exit_number(&self) -> u64 {
        u64::from(self.exit_reason().basic().0)
    }
    fn exit_info(&self) -> ExitInfo {
        let reason = self.exit_reason();
        let mut told =
            ExitInfo { reason: reason.0, info1: self.m.get(f::EXIT_QUALIFICATION), ..ExitInfo::default() };
        if !reason.entry_failed() {
            told.info2 = u64::from(self.m.get(f::IDT_VECTORING_INFO));
            told.event = self.m.get(f::EXIT_INTERRUPTION_INFO);
            if told.event & (i::VALID | i::ERROR_CODE_VALID) == i::VALID | i::ERROR_CODE_VALID {
                told.error_code = self.m.get(f::EXIT_INTERRUPTION_ERROR_CODE);
            }
        }
        told
    }
    fn take_interrupted(&mut self) -> Option<Event> {
        self.take_event()
    }
    fn inject(&mut self, event: Event) {
        self.awake();
        self.put_event(event);
    }
    fn withdraw(&mut self) {
        self.cache.set(c::EVENT, 0);
    }
    fn next_rip(&self) -> Option<u64> {
        self.behind_instruction()
    }
    fn skip_instruction(&mut self) -> bool {
        self.step_over()
    }
    fn fetched(&self) -> &[u8] {
        // VMX stores no instruction bytes.
        &[]
    }
    fn set_logging(&mut self, on: bool) {
        self.log_dirty(on);
    }
    fn take_log(&mut self) -> u16 {
        self.take_entries()
    }
    fn logged(&self, n: u16) -> u64 {
        self.entry(n)
    }
    fn stopped(&self) -> Option<Stopped> {
        Some(self.stopped_at())
    }
    fn fault_linear(&self) -> Option<u64> {
        // Misconfigurations leave the field as it was (SDM vol. 3C, 28.2.1).
        let told = self.exit_reason().basic() != BasicReason::EPT_MISCONFIGURATION;
        told.then(|| self.m.get(f::GUEST_LINEAR_ADDRESS))
    }

    fn gprs(&self) -> &Gprs {
        &self.run.gprs
    }
    fn gprs_mut(&mut self) -> &mut Gprs {
        &mut self.run.gprs
    }
    fn rip(&self) -> u64 {
        self.cache.get(&self.m, c::RIP)
    }
    fn set_rip(&mut self, v: u64) {
        self.awake();
        self.cache.set(c::RIP, v);
    }
    fn rflags(&self) -> u64 {
        let flags = self.cache.get(&self.m, c::RFLAGS);
        if self.planted && flags & rflags::TF != 0 && !self.step_tf { flags & !rflags::TF } else { flags }
    }
    fn set_rflags(&mut self, v: u64) {
        let planted = if self.stepping() { rflags::TF } else { 0 };
        self.step_tf = v & rflags::TF != 0;
        self.cache.set(c::RFLAGS, v | planted | rflags::FIXED);
        self.debug_touched = true;
    }
    fn segment(&self, r: SegReg) -> Segment {
        self.get_segment(r)
    }
    fn set_segment(&mut self, r: SegReg, s: &Segment) {
        self.awake();
        self.put_segment(r, s);
    }
    fn code_attributes(&self) -> u16 {
        crate::state::attributes(self.cache.get(&self.m, c::CS_ACCESS))
    }
    fn gdtr(&self) -> TableReg {
        self.table(c::GDTR_BASE, c::GDTR_LIMIT)
    }
    fn set_gdtr(&mut self, t: &TableReg) {
        self.cache.set(c::GDTR_BASE, t.base);
        self.cache.set(c::GDTR_LIMIT, t.limit);
    }
    fn idtr(&self) -> TableReg {
        self.table(c::IDTR_BASE, c::IDTR_LIMIT)
    }
    fn set_idtr(&mut self, t: &TableReg) {
        self.cache.set(c::IDTR_BASE, t.base);
        self.cache.set(c::IDTR_LIMIT, t.limit);
    }
    fn cpl(&self) -> u8 {
        // SS.DPL, also of an unusable SS (SDM vol. 3C, 25.4.1).
        (self.cache.get(&self.m, c::SS_ACCESS) >> exitless_x86::vmx::access_rights::DPL_SHIFT & 3) as u8
    }
    fn cr0(&self) -> u64 {
        self.read_cr0()
    }
    fn set_cr0(&mut self, v: u64) {
        self.set_cr0_field(v);
    }
    fn cr2(&self) -> u64 {
        self.run.cr2
    }
    fn set_cr2(&mut self, v: u64) {
        self.run.cr2 = v;
    }
    fn cr3(&self) -> u64 {
        self.cache.get(&self.m, c::CR3)
    }
    fn set_cr3(&mut self, v: u64) {
        self.cache.set(c::CR3, v);
    }
    fn cr4(&self) -> u64 {
        self.read_cr4()
    }
    fn set_cr4(&mut self, v: u64) {
        self.set_cr4_field(v);
    }
    fn cr4_watched(&self) -> u64 {
        self.cache.get(&self.m, c::CR4_READ_SHADOW) & !crate::state::CR4_GUEST_OWNED
    }
    fn executes_xsaves(&self) -> bool {
        self.caps.xsaves() && self.shown.xsaves
    }
    fn efer(&self) -> u64 {
        self.cache.get(&self.m, c::EFER)
    }
    fn set_efer(&mut self, v: u64) {
        self.set_efer_field(v);
    }
    fn dr6(&self) -> u64 {
        self.dr6
    }
    fn set_dr6(&mut self, v: u64) {
        self.dr6 = v;
    }
    fn dr7(&self) -> u64 {
        self.cache.get(&self.m, c::DR7)
    }
    fn set_dr7(&mut self, v: u64) {
        self.cache.set(c::DR7, v);
    }
    fn sys_reg(&self, r: SysReg) -> u64 {
        self.read_sys(r)
    }
    fn set_sys_reg(&mut self, r: SysReg, v: u64) {
        self.write_sys(r, v);
    }
    fn cr8(&self) -> u8 {
        self.read_cr8()
    }
    fn set_cr8(&mut self, v: u8) {
        self.write_cr8(v);
    }
    fn interrupt_shadow(&self) -> bool {
        self.cache.get(&self.m, c::INTERRUPTIBILITY) & (block::STI | block::MOV_SS) != 0
    }
    fn set_interrupt_shadow(&mut self, on: bool) {
        self.awake();
        if !on {
            return self.cast_shadow(0);
        }
        // With IF clear there is no shadow of STI (SDM vol. 3C, 27.3.1.5).
        let open = self.cache.get(&self.m, c::RFLAGS) & rflags::IF != 0;
        self.cast_shadow(if open { block::STI } else { block::MOV_SS });
    }
    fn hold_by_mov_ss(&mut self) {
        self.awake();
        self.cast_shadow(block::MOV_SS);
    }
    fn shadow_of(&self) -> (bool, bool) {
        let now = self.cache.get(&self.m, c::INTERRUPTIBILITY);
        (now & block::MOV_SS != 0, now & block::STI != 0)
    }
    fn nmi_masked(&self) -> bool {
        self.cache.get(&self.m, c::INTERRUPTIBILITY) & block::NMI != 0 || self.injecting_nmi()
    }
    fn set_nmi_masked(&mut self, on: bool) {
        self.mask_nmis(on);
    }
    fn spin_longer(&mut self, longer: bool) {
        self.ple_window = if longer { self.ple_window.saturating_mul(2) } else { PLE_WINDOW };
    }
    fn set_interrupt_window(&mut self, on: bool) {
        self.interrupt_window = on;
        self.primary(primary::INTERRUPT_WINDOW_EXITING, on || self.nmi_behind_sti);
    }
    fn set_nmi_window(&mut self, on: bool) {
        // NMI-window exits may come in STI's shadow, where the hall injects nothing: it would ask again for ever. The
        // interrupt window opens when that shadow ends, because IF is set in it.
        let sti = self.cache.get(&self.m, c::INTERRUPTIBILITY) & (block::STI | block::NMI) == block::STI;
        self.nmi_behind_sti = on && sti;
        self.primary(primary::NMI_WINDOW_EXITING, on && !sti);
        self.primary(primary::INTERRUPT_WINDOW_EXITING, self.interrupt_window || self.nmi_behind_sti);
    }
    fn set_cr8_intercept(&mut self, on: bool) {
        self.primary(primary::CR8_LOAD_EXITING, on);
    }
    fn set_dr_intercept(&mut self, on: bool) {
        self.dr_intercept = on;
        self.primary(primary::MOV_DR_EXITING, on);
    }
    fn set_bp_intercept(&mut self, on: bool) {
        const BP: u32 = 1 << Vector::BP.0;
        self.exceptions = if on { self.exceptions | BP } else { self.exceptions & !BP };
    }
    fn set_step(&mut self, on: bool) {
        if on || self.planted {
            let flags = self.rflags();
            self.step_tf = flags & rflags::TF != 0;
            self.planted = on;
            self.cache.set(c::RFLAGS, if on { flags | rflags::TF } else { flags });
            self.debug_touched = true;
        }
    }
    fn stepping(&self) -> bool {
        self.planted && self.cache.get(&self.m, c::RFLAGS) & rflags::TF != 0
    }
    fn uses_pdptes(&self) -> bool {
        self.in_pae_paging()
    }
    fn set_pdptes(&mut self, pdptes: [u64; 4]) {
        self.put_pdptes(pdptes);
    }
    fn has_timer(&self) -> bool {
        self.caps.preemption_timer()
    }
    fn set_timer(&mut self, at: Option<u64>) -> bool {
        self.timer_at(at)
    }
    fn lend_timer(&mut self, cpu: &PerCpu, deadline: u64, quiet: bool) -> bool {
        self.lend(cpu, deadline, quiet)
    }
    fn lend_timer_inside(&mut self, cpu: &PerCpu, deadline: u64) -> bool {
        self.lend_inside(cpu, deadline)
    }
    fn timer_lent(&self, cpu: &PerCpu) -> bool {
        cpu.loan.is_lent()
    }
    fn take_timer_back(&mut self, cpu: &PerCpu) -> Option<Found> {
        self.settle_timer(cpu)
    }
    fn timer_rang(&mut self, cpu: &PerCpu) -> bool {
        cpu.loan.take_rang()
    }
    fn virtualizes_apic(&self) -> bool {
        self.caps.apicv()
    }
    fn posts_ipis(&self) -> bool {
        self.sends_ipis()
    }
    fn set_apic(&mut self, kind: ApicKind) {
        self.apic_kind(kind);
    }
    fn apic_page(&self) -> Option<&ApicPage> {
        self.page()
    }
    fn interrupt_status(&self) -> InterruptStatus {
        self.read_status()
    }
    fn set_interrupt_status(&mut self, status: InterruptStatus) {
        self.write_status(status);
    }
    fn set_eoi_exits(&mut self, vectors: [u64; 4]) {
        self.write_eoi_exits(vectors);
    }
    fn set_instructions(&mut self, shown: Instructions) {
        self.show_instructions(shown);
    }
    fn set_opened(&mut self, opened: Opened) {
        self.run.spec_open = u64::from(opened.has(Opened::SPEC_CTRL));
        if self.opened != opened {
            self.opened = opened;
            self.controls_due();
        }
    }
    fn set_tsc_offset(&mut self, offset: u64) {
        self.cache.set(c::TSC_OFFSET, offset);
    }
    fn set_tsc_ratio(&mut self, ratio: u64) {
        if self.caps.tsc_scaling().is_some() {
            self.cache.set(c::TSC_MULTIPLIER, ratio);
        }
    }
    fn set_slat_root(&mut self, hpa: u64) {
        self.set_ept_root(hpa);
    }
}
