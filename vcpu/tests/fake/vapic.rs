//! The CPU's own APIC: virtual-interrupt delivery, register virtualisation, posted interrupts (SDM vol. 3C, chapter 30), and the
//! VMX-preemption timer (26.5.1). Only what the manual lets hardware do: a vector is recognised when something evaluates it.
//! Or AVIC (APM vol. 2, 15.29), which finds in the page what it delivers and serves.

use super::cpu::{Cpu, Instruction};
use super::machine::{BACKING, MAILBOX};
use super::world::{APIC, TICKS};
use exitless_posted::Posted;
use exitless_vcpu::backend::{ApicKind, ApicPage, Event, Exit, InterruptStatus};
use exitless_x86::apic::{Icr, reg};
use exitless_x86::regs::Gpr;
use exitless_x86::svm::avic::Incomplete;
use std::sync::atomic::Ordering::SeqCst;

/// SELF_IPI of the x2APIC, as an offset.
const SELF_IPI: u32 = 0x3f0;
/// The current count runs: no page has it.
const TMCCT: u32 = 0x390;
/// MSR of register 0.
const X2APIC: u64 = 0x800;
/// ICR: no shorthand but self, edge, fixed (30.1.5); bits 31:20, 17:16, 13 and 12 are reserved or the delivery status.
const SELF_FIXED: (u32, u32) = (0xfff3_3000 | 3 << 18 | 1 << 15 | 7 << 8, 1 << 18);

/// See the file's head.
pub(crate) struct Apic {
    /// The CPU has all this.
    pub(crate) able: bool,
    /// It is AMD's: the IRR is always in the page.
    pub(crate) avic: bool,
    /// It is Intel's, and sends IPIs: it finds vCPU 0, and nobody else.
    pub(crate) ipiv: bool,
    /// It does nothing for writes of SELF_IPI and the error entry, and they are not intercepted.
    pub(crate) stops: bool,
    pub(crate) kind: ApicKind,
    pub(crate) page: &'static ApicPage,
    pub(crate) status: InterruptStatus,
    pub(crate) eoi_exits: [u64; 4],
    /// A vector went from IRR to ISR, and an exit interrupted its delivery.
    pub(crate) taken: Option<u8>,
    /// Vectors delivered without an exit.
    pub(crate) virtually: Vec<u8>,
    recognized: bool,
}

impl Apic {
    pub(crate) fn new(page: &'static ApicPage) -> Self {
        Self {
            able: false,
            avic: false,
            ipiv: false,
            stops: false,
            kind: ApicKind::Software,
            page,
            status: InterruptStatus::default(),
            eoi_exits: [0; 4],
            taken: None,
            virtually: Vec::new(),
            recognized: false,
        }
    }

    pub(crate) fn on(&self) -> bool {
        self.kind != ApicKind::Software
    }

    fn word(first: u32, v: u8) -> (u32, u32) {
        (first + u32::from(v / 32) * 16, 1 << (v % 32))
    }

    pub(crate) fn has(&self, first: u32, v: u8) -> bool {
        let (at, bit) = Self::word(first, v);
        self.page.read(at) & bit != 0
    }

    fn set(&self, first: u32, v: u8, on: bool) {
        let (at, bit) = Self::word(first, v);
        let old = self.page.read(at);
        self.page.write(at, if on { old | bit } else { old & !bit });
    }

    /// Highest vector of a bank; 0: none.
    fn top(&self, first: u32) -> u8 {
        (0..=255).rev().find(|v| self.has(first, *v)).unwrap_or(0)
    }

    /// AVIC: what it delivers and serves is what the page says.
    fn look(&mut self) {
        if self.avic {
            self.status = InterruptStatus { requesting: self.top(reg::IRR), servicing: self.top(reg::ISR) };
        }
    }

    /// PPR virtualisation (30.1.3), then the evaluation (30.2.1).
    fn evaluate(&mut self) {
        self.look();
        self.ppr();
        self.recognized = self.status.requesting >> 4 > (self.page.read(reg::PPR) as u8) >> 4;
    }

    fn ppr(&self) {
        let (tpr, serving) = (self.page.read(reg::TPR) as u8, self.status.servicing);
        let ppr = if tpr >> 4 >= serving >> 4 { tpr } else { serving & 0xf0 };
        self.page.write(reg::PPR, u32::from(ppr));
    }

    /// 30.2.2: what happens before the delivery through the IDT.
    pub(crate) fn take(&mut self) -> Option<u8> {
        if !self.on() || !std::mem::take(&mut self.recognized) {
            return None;
        }
        let v = self.status.requesting;
        assert!(self.has(reg::IRR, v), "RVI {v:#x} is not in the IRR");
        self.set(reg::ISR, v, true);
        self.status.servicing = v;
        self.page.write(reg::PPR, u32::from(v & 0xf0));
        self.set(reg::IRR, v, false);
        self.status.requesting = self.top(reg::IRR);
        Some(v)
    }

    /// 30.1.4.
    fn eoi(&mut self) -> Option<Exit> {
        self.look();
        let v = self.status.servicing;
        if self.avic && self.has(reg::TMR, v) {
            return Some(Exit::Unaccelerated(reg::EOI, true));
        }
        self.set(reg::ISR, v, false);
        self.status.servicing = self.top(reg::ISR);
        self.ppr();
        if !self.avic && self.eoi_exits[usize::from(v >> 6)] >> (v & 63) & 1 != 0 {
            return Some(Exit::EoiInduced(v));
        }
        self.evaluate();
        None
    }

    /// Self-IPI virtualisation (30.1.5), and what posted-interrupt processing does with each vector.
    fn request(&mut self, v: u8) {
        self.set(reg::IRR, v, true);
        self.status.requesting = self.status.requesting.max(v);
        self.evaluate();
    }
}

impl Cpu {
    pub(crate) fn tsc(&self) -> u64 {
        self.w.ns.get() * TICKS
    }

    /// VM entry: what the hall prepared must be what was sent and taken; then the first evaluation (27.3.2.5).
    pub(crate) fn enter_apic(&mut self) {
        let (w, a) = (&self.w, &mut self.apic);
        if w.apic_reset.get() && !w.sh.apic.sw_enabled() {
            w.apic_reset.set(false);
            // The guest disabled its APIC, or INIT did: what was under way is gone.
            w.irr.borrow_mut().clear();
            w.isr.borrow_mut().clear();
        }
        let injected = |v: u8| self.event == Some(Event::Interrupt(v));
        for v in w.irr.borrow().iter() {
            let posted = w.sh.apic.posted().requested(usize::from(v >> 6)) >> (v & 63) & 1 != 0;
            let there = posted || (a.on() || a.avic) && a.has(reg::IRR, *v) || injected(*v);
            assert!(there, "vector {v:#x} is gone");
        }
        let entry = w.entry.get().map_or(0, |e| e.load(SeqCst));
        let runs = (entry >> 62 & 1 != 0).then_some(entry & 0xfff);
        let sends = a.avic && a.kind == ApicKind::X2ApicIpis;
        assert_eq!(runs, sends.then_some(100 + u64::from(w.cpu.get())), "where hardware senders ring");
        assert!(runs.is_none() || entry >> 12 & 0xff_ffff_ffff == BACKING >> 12, "the backing page");
        if !a.on() {
            a.recognized = false;
            return;
        }
        if a.avic {
            // Rung before VMRUN, which looks anyway.
            w.notified.set(false);
        }
        assert!(!a.avic || u32::from(self.cr8) == a.page.read(reg::TPR) >> 4, "V_TPR is not the page's");
        let ext_int = w.pic.get().is_some() && w.sh.apic.accepts_ext_int();
        assert!(
            !a.avic || !ext_int || w.ipi.get() || w.sh.pending(),
            "an ExtINT, and nothing tells when it can go in"
        );
        a.look();
        assert_eq!(a.page.read(reg::TPR), u32::from(w.tpr.get()), "TPR");
        assert_eq!(a.status.requesting, a.top(reg::IRR), "RVI is not the highest in the IRR");
        assert_eq!(a.status.servicing, a.top(reg::ISR), "SVI is not the highest in the ISR");
        for v in 0..=255 {
            let (have, want) = (a.has(reg::ISR, v), w.isr.borrow().contains(&v));
            assert!(have == want || have && injected(v), "ISR, vector {v:#x}: {have}");
        }
        a.evaluate();
    }

    /// A notification interrupt in guest mode (30.6). `true`: it is an exit, nobody asked for posted interrupts.
    pub(crate) fn notified(&mut self) -> bool {
        if !self.w.notified.take() {
            return false;
        }
        if self.apic.avic {
            // A doorbell; without AVIC in the guest, nothing.
            if self.apic.on() {
                self.apic.evaluate();
            }
            return false;
        }
        if !self.apic.on() {
            return true;
        }
        let mut requests = [0; 4];
        // Whether ON is set matters to nobody here.
        self.w.sh.apic.posted().drain(&mut requests);
        for v in (0..=255u8).filter(|v| requests[usize::from(v >> 6)] >> (v & 63) & 1 != 0) {
            self.apic.request(v);
        }
        self.apic.evaluate();
        false
    }

    /// In the guest with interrupts open: a vector that could go in must be on its way.
    pub(crate) fn check_stuck(&self) {
        let w = &self.w;
        let under_way = w.ipi.get() || w.notified.get() || !w.slow.borrow().is_empty();
        // What the guest has requested for its timer waits for that, or for whatever else is announced.
        if under_way
            || w.asks.get()
            || self.interrupts_blocked
            || !self.open_for_interrupts()
            || !w.irqchip.get()
            || !w.sh.apic.hw_enabled()
        {
            return;
        }
        assert!(!w.deliverable(), "a vector is posted, nobody was told, and the guest runs on");
    }

    /// An instruction that exits, unless it touches the APIC and hardware does that.
    pub(crate) fn apic_insn(&mut self, insn: Instruction) -> Option<Exit> {
        let given = |r: Gpr| insn.set.iter().find(|(g, _)| *g == r).map_or(0, |(_, v)| *v);
        let (rax, rcx, len) = (given(Gpr::Rax) as u32, given(Gpr::Rcx), insn.bytes.len() as u64);
        let msr = u32::try_from(rcx.wrapping_sub(X2APIC) << 4).unwrap_or(0);
        if self.apic.avic && self.apic.on() {
            let rdx = given(Gpr::Rdx);
            return match insn.exit {
                Exit::Wrmsr if [reg::TPR, reg::EOI].contains(&msr) => self.virtual_write(len, msr, rax),
                Exit::Wrmsr if msr == reg::ICR && self.apic.kind == ApicKind::X2ApicIpis => {
                    self.plain(len);
                    self.avic_icr(rdx << 32 | u64::from(rax))
                }
                Exit::Wrmsr if msr == SELF_IPI && self.apic.stops => {
                    Some(self.exit(Instruction { exit: Exit::Unaccelerated(SELF_IPI, true), ..insn }))
                }
                Exit::Wrmsr if msr == reg::LVT_ERROR && self.apic.stops => {
                    self.plain(len);
                    self.apic.page.write(msr, rax);
                    Some(Exit::Unaccelerated(msr, true))
                }
                Exit::Rdmsr if msr == reg::TPR => self.virtual_read(len, msr),
                _ => Some(self.exit(insn)),
            };
        }
        match (self.apic.kind, insn.exit) {
            (kind, Exit::Slat(f)) if self.apic.able && f.gpa & !0xfff == APIC => {
                let at = (f.gpa & 0xfff) as u32;
                match kind {
                    ApicKind::XApic if f.write => self.virtual_write(len, at, rax),
                    ApicKind::XApic if at != TMCCT => self.virtual_read(len, at),
                    _ => Some(self.exit(Instruction { exit: Exit::ApicAccess(at), ..insn })),
                }
            }
            (ApicKind::X2ApicIpis, Exit::Wrmsr) if msr == reg::ICR => {
                self.plain(len);
                self.ipiv_icr(given(Gpr::Rdx) << 32 | u64::from(rax))
            }
            // To the host's CPUs: nobody here sees it.
            (ApicKind::X2ApicRaw, Exit::Wrmsr) if msr == reg::ICR => self.plain(len),
            (ApicKind::X2Apic | ApicKind::X2ApicIpis | ApicKind::X2ApicRaw, Exit::Wrmsr)
                if msr == SELF_IPI =>
            {
                self.virtual_write(len, msr, rax)
            }
            (
                ApicKind::X2Apic | ApicKind::X2ApicIpis | ApicKind::X2ApicOff | ApicKind::X2ApicRaw,
                Exit::Wrmsr,
            ) if [reg::TPR, reg::EOI].contains(&msr) => self.virtual_write(len, msr, rax),
            (
                ApicKind::X2Apic | ApicKind::X2ApicIpis | ApicKind::X2ApicOff | ApicKind::X2ApicRaw,
                Exit::Rdmsr,
            ) if (reg::ID..TMCCT).contains(&msr) && ![reg::ICR, reg::EOI].contains(&msr) => {
                self.virtual_read(len, msr)
            }
            _ => Some(self.exit(insn)),
        }
    }

    fn virtual_read(&mut self, len: u64, at: u32) -> Option<Exit> {
        self.gprs.set(Gpr::Rax, u64::from(self.apic.page.read(at)));
        self.plain(len)
    }

    /// 30.4.3.2 and 30.5. An exit comes behind the instruction.
    fn virtual_write(&mut self, len: u64, at: u32, value: u32) -> Option<Exit> {
        self.plain(len);
        match at {
            reg::TPR => {
                self.virtual_tpr(value as u8);
                None
            }
            reg::EOI => self.apic.eoi(),
            SELF_IPI if value >= 16 => self.virtual_ipi(value as u8),
            reg::ICR => {
                self.apic.page.write(at, value);
                let (mask, is) = SELF_FIXED;
                if value & mask == is && value & 0xf0 != 0 {
                    return self.virtual_ipi(value as u8);
                }
                Some(Exit::ApicWrite(at))
            }
            reg::ICR2 => {
                self.apic.page.write(at, value & 0xff00_0000);
                None
            }
            _ => {
                self.apic.page.write(at, value);
                Some(Exit::ApicWrite(at))
            }
        }
    }

    /// Intel's 30.1.6: fixed, physical, edge, no shorthand, to whom the table has; all else exits behind the write. The ICR is one
    /// register of 64 bits there.
    fn ipiv_icr(&mut self, value: u64) -> Option<Exit> {
        assert!(self.apic.ipiv, "an open ICR on a CPU that does not send");
        self.apic.page.write(reg::ICR, value as u32);
        self.apic.page.write(reg::ICR + 4, (value >> 32) as u32);
        let icr = Icr::from(value);
        let plain = value as u32 & !0xff & !(1 << 14) == 0 && icr.vector() >= 16;
        let valid = self.w.pid.get().is_some_and(|e| e.load(SeqCst) == MAILBOX | 1);
        if !plain || value >> 32 != 0 || !valid {
            if icr.shorthand() == 1 {
                // Software sends it to the vCPU itself.
                self.w.irr.borrow_mut().push(icr.vector());
            }
            return Some(Exit::ApicWrite(reg::ICR));
        }
        self.w.irr.borrow_mut().push(icr.vector());
        if let Posted::Notify(_) = self.w.sh.apic.posted().post(icr.vector()) {
            self.w.notified.set(true);
        }
        None
    }

    /// 15.29.6: to itself at once; others exist and do not run.
    fn avic_icr(&mut self, value: u64) -> Option<Exit> {
        self.apic.page.write(reg::ICR, value as u32);
        self.apic.page.write(reg::ICR2, (value >> 32) as u32);
        let icr = Icr::from(value);
        if icr.delivery_mode() != 0 || icr.level() {
            return Some(Exit::IncompleteIpi(value, Incomplete::INVALID_TYPE));
        }
        if icr.shorthand() == 1 || icr.shorthand() == 0 && icr.destination() == 0 {
            self.w.irr.borrow_mut().push(icr.vector());
            return self.virtual_ipi(icr.vector());
        }
        Some(Exit::IncompleteIpi(value, Incomplete::TARGET_NOT_RUNNING))
    }

    pub(crate) fn virtual_tpr(&mut self, tpr: u8) {
        self.w.tpr.set(tpr);
        if self.apic.avic {
            self.cr8 = tpr >> 4;
        }
        self.apic.page.write(reg::TPR, u32::from(tpr));
        self.apic.evaluate();
    }

    fn virtual_ipi(&mut self, v: u8) -> Option<Exit> {
        self.apic.request(v);
        None
    }

    /// How often `v` is still to come: in the descriptor, or in the page's IRR (accepted twice and merged counts once).
    pub(crate) fn still_requested(&self, v: u8) -> bool {
        let posted = self.w.sh.apic.posted().requested(usize::from(v >> 6)) >> (v & 63) & 1 != 0;
        posted || (self.apic.on() || self.apic.avic) && self.apic.has(reg::IRR, v)
    }
}
