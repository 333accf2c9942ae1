//! The guest's CPU: registers, event delivery, windows, and a script of operations. Strict where hardware would misbehave.
//!
//! An operation that exits is finished by the hall; the next thing the CPU does checks that RIP moved behind it exactly once
//! (or stayed, if the guest gets a fault for it) and that devices saw exactly its accesses.

use super::os::Core;
use super::vapic::Apic;
use super::world::{Env, HOUSEKEEPER, Hand, Step, Touch, World};
use exitless_lazy::{GuestPage, Told};
use exitless_vcpu::backend::{
    ApicKind, ApicPage, Backend, By, Event, Exit, ExitInfo, Instructions, InterruptStatus, Opened, Sender,
    Sent, SlatFault, Stopped, SysReg,
};
use exitless_vcpu::shared::{mode, mp};
use exitless_vcpu::timer::{Found, Register};
use exitless_x86::exception::{Exception, Vector};
use exitless_x86::regs::{Gpr, Gprs, SegReg, Segment, TableReg, rflags};
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::atomic::Ordering;

/// Where code lies: operations follow each other from here and start over at the end.
pub(crate) const CODE: u64 = 0x1000;
const CODE_END: u64 = 0x7000;
/// Where the handler of vector 0 lies; 256 bytes each.
pub(crate) const HANDLERS: u64 = 0x1_0000;
/// The guest's flag for PV EOI.
pub(crate) const PV_EOI_FLAG: u64 = 0x3_0000;

/// What the guest does next.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Op {
    /// Instructions that do not exit.
    Nop,
    Sti,
    Cli,
    /// All of RFLAGS.
    Popf(u64),
    Pushf,
    /// Back from a handler: to where the event hit, or behind the instruction that faulted.
    Iret,
    /// CR8, in 32-bit code spelt LOCK MOV CR0.
    Cr8(u8),
    /// The TPR through the APIC's page, all 8 bits.
    Tpr(u8),
    /// An access to RAM that may not be mapped yet.
    Ram(u64),
    /// The end-of-interrupt write, to the APIC's page.
    Eoi,
    /// The guest's EOI when the host may have waived it: clears the flag, or does the write.
    PvEoi,
    /// DR7, while debug registers are intercepted or not.
    Dr7(u64),
    /// WRPKRU, behind RDPKRU that finds the first value.
    Pkru(u32, u32),
    /// The debugger's breakpoint, or the guest's own.
    Int3,
    /// IA32_TSC_DEADLINE, this many ns from now.
    Deadline(u64),
    /// The look behind that, by a guest that has agreed to something: the deadline, and what it was told.
    Again(u64, Told),
    /// IA32_APIC_BASE; disabled it forgets everything.
    ApicBase(u64),
    /// Through SELF_IPI or the ICR.
    SelfIpi(u8),
    /// What sends this vector to the vCPU itself, and nothing else.
    Own(u8, Box<Op>),
    /// A fixed interrupt to this physical id.
    Ipi(u8),
    /// The timer's current count, which no hardware reads for us.
    ReadCount,
    /// The APIC is software-disabled for a moment, as in Linux's `clear_local_APIC`: timer disarmed, SVR, SVR, LVT.
    Inhibit,
    /// An instruction with its bytes, the exit it makes, registers it needs and device accesses it owes.
    Exit(Box<Instruction>),
    /// An exit that is not an instruction: nothing moves.
    Event(Exit),
    /// The rest of the world does something while the guest runs.
    World(Env),
}

/// The page of lazy deadlines, from the guest's side.
struct LazyPage<'a> {
    w: &'a World,
    page: u64,
}

impl GuestPage for LazyPage<'_> {
    fn want(&self, deadline: u64) {
        assert!(self.w.write_ram(self.page + 8, &deadline.to_le_bytes()));
    }
    fn barrier(&self) {}
    fn armed(&self) -> u64 {
        self.w.u64_at(self.page)
    }
    fn told(&self) -> Told {
        Told { offset: self.w.u64_at(self.page + 16), inside: self.w.u64_at(self.page + 24) }
    }
    fn request(&self) {
        let _ = self.w.sh.apic.posted().request(self.w.timer_vector.get());
    }
}

/// See [`Op::Exit`].
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Instruction {
    pub(crate) bytes: Vec<u8>,
    pub(crate) exit: Exit,
    pub(crate) set: Vec<(Gpr, u64)>,
    /// Device accesses it must make, in order, once.
    pub(crate) owes: Vec<Touch>,
    /// Registers afterwards.
    pub(crate) then: Vec<(Gpr, u64)>,
    /// A repeated string instruction: interruptible between iterations.
    pub(crate) rep: bool,
    /// It faults: RIP stays and an exception follows.
    pub(crate) faults: bool,
    /// The CPU tells the next RIP.
    pub(crate) next_rip: bool,
}

/// One exit of a CPU that makes no sense: see `random.rs`.
#[derive(Clone, Debug)]
pub(crate) struct Noise {
    pub(crate) exit: Exit,
    pub(crate) interrupted: Option<Event>,
    pub(crate) next: Option<u64>,
    pub(crate) fetched: Vec<u8>,
    pub(crate) gprs: [u64; 16],
    /// RIP, RFLAGS, CR0, CR3, CR4, EFER, DR7.
    pub(crate) regs: [u64; 7],
    pub(crate) cr8: u8,
    pub(crate) segment: (usize, Segment),
    pub(crate) shadow: bool,
    pub(crate) nmi_masked: bool,
}

/// What an exit left to check.
#[derive(Clone, Debug)]
struct Open {
    at: u64,
    next: u64,
    insn: Instruction,
    depth: usize,
}

/// What an event pushed.
#[derive(Clone, Copy, Debug)]
struct Frame {
    rip: u64,
    rflags: u64,
    /// Bytes to skip when it returns.
    skip: u64,
}

/// See the file's head.
pub(crate) struct Cpu {
    pub(crate) w: Rc<World>,
    pub(crate) ops: VecDeque<Op>,
    /// What coming deliveries run into instead of happening; `None`: that one goes well.
    pub(crate) breaks: VecDeque<Option<Exit>>,
    /// Every event delivered, in order.
    pub(crate) delivered: Vec<Event>,
    /// Exits to make instead of following the script.
    pub(crate) noise: Option<VecDeque<Noise>>,
    /// As SVM: only a masked NMI or a shadow makes an NMI window, nothing tells that an event is behind.
    pub(crate) poor_nmi_window: bool,
    /// As SVM: the exits interrupt the delivery of an INT3 of the guest's own, of which nothing is told but that.
    pub(crate) own_event: bool,
    /// Handlers send EOIs and return by themselves.
    pub(crate) handlers: bool,
    pub(crate) entries: u64,
    pub(crate) flushes: u32,
    pub(crate) fetched: Vec<u8>,
    /// As AMD: exits of memory operands tell the instruction's bytes, and those behind it.
    pub(crate) tells_bytes: bool,
    /// As VMX: the linear address of a second-level fault.
    pub(crate) linear: Option<u64>,
    /// As VMX: exits tell an instruction's length.
    pub(crate) tells_length: bool,
    /// Writes are logged; the pages that were, and those among them that were told.
    pub(crate) logging: bool,
    pub(crate) log: Vec<u64>,
    taken: Vec<u64>,

    pub(crate) gprs: Gprs,
    pub(crate) rip: u64,
    pub(crate) rflags: u64,
    pub(crate) cr0: u64,
    pub(crate) cr4: u64,
    pub(crate) efer: u64,
    pub(crate) cr2: u64,
    pub(crate) cr3: u64,
    pub(crate) dr6: u64,
    pub(crate) dr7: u64,
    pub(crate) cr8: u8,
    pub(crate) tsc_offset: u64,
    /// What CPUID shows, as the backend was told.
    pub(crate) shown: Instructions,
    pub(crate) opened: Opened,
    /// With VMX's 48 bits behind the point.
    pub(crate) tsc_ratio: u64,
    pub(crate) shadow: bool,
    /// The shadow is MOV SS's.
    pub(crate) held: bool,
    /// Exits of PAUSE loops since the scheduler gave the thread a CPU.
    pub(crate) spins: u32,
    pub(crate) nmi_masked: bool,
    pub(crate) window: bool,
    pub(crate) nmi_window: bool,
    pub(crate) cr8_intercept: bool,
    pub(crate) dr_intercept: bool,
    pub(crate) bp_intercept: bool,
    /// A debugger has interrupts wait.
    pub(crate) interrupts_blocked: bool,
    /// Instructions of the script trap behind TF.
    pub(crate) traps: bool,
    /// TF was set behind the guest's back, and what the guest's is.
    planted: Option<bool>,
    pub(crate) event: Option<Event>,
    /// The APIC in hardware.
    pub(crate) apic: Apic,
    /// The CPU has a timer that ends guest mode, and counts this many ticks at most.
    pub(crate) timer_limit: Option<u64>,
    interrupted: Option<Event>,
    segments: [Segment; 8],
    gdtr: TableReg,
    idtr: TableReg,
    sys: [u64; 18],
    next: Option<u64>,
    frames: Vec<Frame>,
    open: Option<Open>,
    /// End of the last instruction of the script.
    flow: u64,
}

impl Cpu {
    pub(crate) fn new(w: Rc<World>, page: &'static ApicPage) -> Self {
        Self {
            w,
            ops: VecDeque::new(),
            breaks: VecDeque::new(),
            delivered: Vec::new(),
            noise: None,
            poor_nmi_window: false,
            handlers: true,
            entries: 0,
            flushes: 0,
            fetched: Vec::new(),
            tells_bytes: false,
            gprs: Gprs::default(),
            rip: 0,
            rflags: 2,
            cr0: 0,
            cr4: 0,
            efer: 0,
            cr2: 0,
            cr3: 0,
            dr6: 0,
            dr7: 0,
            cr8: 0,
            tsc_offset: 0,
            shown: Instructions::default(),
            opened: Opened::NONE,
            tsc_ratio: 1 << 48,
            shadow: false,
            held: false,
            spins: 0,
            nmi_masked: false,
            window: false,
            nmi_window: false,
            cr8_intercept: false,
            dr_intercept: false,
            bp_intercept: false,
            interrupts_blocked: false,
            traps: false,
            planted: None,
            event: None,
            apic: Apic::new(page),
            timer_limit: None,
            own_event: false,
            linear: None,
            tells_length: false,
            logging: false,
            log: vec![],
            taken: vec![],
            interrupted: None,
            segments: [Segment::default(); 8],
            gdtr: TableReg::default(),
            idtr: TableReg::default(),
            sys: [0; 18],
            next: None,
            frames: Vec::new(),
            open: None,
            flow: 0,
        }
    }

    /// 32-bit flat protected mode without paging, at [`CODE`].
    pub(crate) fn flat(&mut self) {
        self.cr0 = 0x11;
        let data = Segment { base: 0, limit: !0, selector: 0x10, attrib: 0xc93 };
        for s in [SegReg::Es, SegReg::Ss, SegReg::Ds, SegReg::Fs, SegReg::Gs] {
            self.segments[s as usize] = data;
        }
        self.segments[SegReg::Cs as usize] = Segment { base: 0, limit: !0, selector: 8, attrib: 0xc9b };
        self.rip = CODE;
        self.gprs.set(Gpr::Rsp, 0x2_0000);
    }

    /// Nothing is half done: the script and all handlers have ended.
    pub(crate) fn idle(&self) -> bool {
        self.ops.is_empty() && self.frames.is_empty()
    }

    /// Frames of handlers that run.
    pub(crate) fn depth(&self) -> usize {
        self.frames.len()
    }

    /// INIT and the like: the script's bookkeeping starts over, where RIP now is.
    pub(crate) fn forget(&mut self) {
        self.frames.clear();
        self.open = None;
        self.ops.clear();
    }

    pub(crate) fn open_for_interrupts(&self) -> bool {
        self.rflags & rflags::IF != 0 && !self.shadow
    }

    /// The next exit of the noise.
    fn make_noise(&mut self) -> Exit {
        self.event = None;
        self.w.ipi.set(false);
        self.w.notified.set(false);
        self.w.flush_owed.set(false);
        let Some(n) = self.noise.as_mut().and_then(VecDeque::pop_front) else {
            self.w.script_over.set(true);
            self.w.signal.set(true);
            return Exit::ExternalInterrupt;
        };
        self.gprs = Gprs(n.gprs);
        let [rip, rflags, cr0, cr3, cr4, efer, dr7] = n.regs;
        (self.rip, self.rflags, self.cr0, self.cr3) = (rip, rflags | rflags::FIXED, cr0, cr3);
        (self.cr4, self.efer, self.dr7) = (cr4, efer, dr7);
        self.cr8 = n.cr8 & 15;
        self.w.tpr.set(self.cr8 << 4);
        self.segments[n.segment.0] = n.segment.1;
        // A backend unmasks NMIs when an NMI's delivery was interrupted.
        (self.shadow, self.nmi_masked) = (n.shadow, n.nmi_masked && n.interrupted != Some(Event::Nmi));
        (self.interrupted, self.next, self.fetched) = (n.interrupted, n.next, n.fetched);
        n.exit
    }

    fn check_entry(&self, core: &Core) {
        let w = &self.w;
        assert!(w.in_slice.get() && w.fpu_live.get(), "entered outside a slice or without the FPU state");
        assert_eq!(core.0, w.cpu.get(), "another CPU's part");
        let (_, dr) = w.loaded.get().expect("entered without the guest's XCR0");
        assert!(dr.is_some() || self.dr_intercept, "debug registers run free but are not loaded");
        let armed = self.dr7 & 0xff != 0;
        assert!(dr.is_none() || !self.dr_intercept || armed, "debug registers are loaded for nobody");
        assert_eq!(w.sh.mode.load(Ordering::SeqCst), mode::IN_GUEST);
        assert_eq!(w.sh.mp_state.load(Ordering::SeqCst), mp::RUNNABLE, "a halted CPU entered the guest");
        let kick = w.ipi.get() || w.slow.borrow().iter().any(|(.., step)| *step == Step::Kick);
        assert!(!w.sh.pending() || kick, "entered with a request and no IPI under way");
        assert!(
            !w.sh.returned.load(Ordering::Relaxed),
            "entered, and the time that the thread waited is not told"
        );
        assert!(
            !(w.signal.get() || w.work.get()) || w.ipi.get(),
            "entered with a signal and no IPI under way"
        );
        let cr8 = self.noise.is_some() || self.apic.on() || self.cr8 == w.tpr.get() >> 4;
        assert!(cr8, "CR8 is not the TPR's upper half");
        assert!(self.rflags & rflags::FIXED != 0);
        assert!(
            w.timer.get().is_none() || [w.cpu.get(), HOUSEKEEPER].contains(&w.timer_cpu.get()),
            "the timer was left on another CPU"
        );
    }

    fn check_event(&self, event: Event) {
        match event {
            Event::Interrupt(_) => assert!(self.open_for_interrupts(), "interrupt with interrupts closed"),
            Event::Nmi => assert!(!self.shadow, "NMI in an interrupt shadow"),
            _ => {}
        }
    }

    /// The interrupt was due, and is due no more.
    fn account(&self, v: u8) {
        let w = &self.w;
        if w.pic_acked.get() == Some(v) {
            w.pic_acked.set(None);
            return;
        }
        if !w.irqchip.get() {
            return;
        }
        let class = v >> 4;
        assert!(class > w.tpr.get() >> 4, "vector {v:#x} below the TPR");
        let top = w.isr.borrow().last().copied();
        assert!(top.is_none_or(|t| class > t >> 4), "vector {v:#x} over {top:?} in service");
        if v == w.timer_vector.get() {
            let tsc = self.guest_tsc(w.ns.get());
            if tsc < w.timer_not_before.get() && w.asks.get() {
                w.early.set(w.early.get() + 1);
                if let Some(page) = self.page().filter(|page| GuestPage::told(page).inside != 0) {
                    GuestPage::request(&page);
                }
                w.isr.borrow_mut().insert(v);
                return;
            }
            assert!(tsc >= w.timer_not_before.get(), "the timer fired early");
            let arms =
                w.timer_arms.get().checked_sub(1).expect("the timer fired more often than it was armed");
            w.timer_arms.set(arms);
            if tsc >= w.timer_last.get() {
                w.timer_owed.set(false);
                // Around the last deadline this may be one before, which waited, and the last one's still comes.
                const CLOSE: u64 = 1000 * super::world::TICKS;
                if tsc >= w.timer_last.get() + CLOSE {
                    w.timer_arms.set(0);
                }
            }
        } else {
            // Accepted again before it was requested in the same place: those are one.
            let left = usize::from(self.still_requested(v));
            let sent = w.irr.borrow().iter().filter(|i| **i == v).count();
            assert!(sent > left, "vector {v:#x} delivered but never sent, or twice");
            w.irr.borrow_mut().retain(|i| *i != v);
            w.irr.borrow_mut().extend((0..left).map(|_| v));
        }
        w.isr.borrow_mut().insert(v);
    }

    fn deliver(&mut self, event: Event) {
        let vector = match event {
            Event::Interrupt(v) | Event::Software(_, v, _) => v,
            Event::Nmi => 2,
            Event::Exception(x) => x.vector.0,
        };
        let skip = self.settle(Some(event));
        match event {
            Event::Interrupt(v) if self.apic.taken == Some(v) => self.apic.taken = None,
            Event::Interrupt(v) => self.account(v),
            Event::Nmi => {
                assert!(self.nmi_masked, "inject masks NMIs");
                self.w.nmi_owed.set(false);
            }
            _ => {}
        }
        self.delivered.push(event);
        let behind = if let Event::Software(.., len) = event { u64::from(len) } else { 0 };
        self.frames.push(Frame { rip: self.rip + behind, rflags: self.rflags, skip });
        self.rflags &= !(rflags::IF | rflags::TF | rflags::RF);
        self.shadow = false;
        self.rip = HANDLERS + u64::from(vector) * 256;
        if self.handlers {
            let external = matches!(event, Event::Interrupt(v) if self.w.isr.borrow().contains(&v));
            self.ops.push_front(Op::Iret);
            if external {
                self.ops.push_front(Op::PvEoi);
            }
        }
    }

    /// Checks the instruction that exited last, now that something follows it. Answers the bytes to skip when the handler of
    /// `event` returns. `None` for the event: the next operation follows.
    fn settle(&mut self, event: Option<Event>) -> u64 {
        let Some(open) = self.open.take() else { return 0 };
        let stays = self.rip == open.at;
        let faulted = stays && matches!(event, Some(Event::Exception(_)));
        if open.insn.rep && stays && !faulted {
            // Between two iterations: it goes on after the handler.
            self.open = Some(open);
            return 0;
        }
        if faulted {
            assert!(open.insn.faults, "{:x?} must not fault, but: {event:?}", open.insn);
            assert_eq!(*self.w.log.borrow(), [], "a faulting instruction touched devices");
            return open.next - open.at;
        }
        assert!(!open.insn.faults, "{:x?} did not fault", open.insn);
        assert_eq!(self.rip, open.next, "RIP after {:x?}", open.insn);
        assert!(!self.shadow, "an interrupt shadow outlived its instruction");
        assert_eq!(self.w.log.take(), open.insn.owes, "device accesses of {:x?}", open.insn);
        for (r, v) in &open.insn.then {
            assert_eq!(self.gprs.get(*r), *v, "{r:?} after {:x?}", open.insn);
        }
        0
    }

    /// One operation; the exit it makes.
    fn step(&mut self) -> Option<Exit> {
        if let Some(open) = self.again() {
            return Some(open);
        }
        self.settle(None);
        match self.ops.pop_front() {
            Some(op) => {
                if self.frames.is_empty() && self.rip >= CODE_END {
                    self.rip = CODE;
                }
                self.execute(op)
            }
            None => {
                self.w.script_over.set(true);
                self.w.signal.set(true);
                Some(Exit::ExternalInterrupt)
            }
        }
    }

    /// A repeated string instruction that is not at its end exits again.
    fn again(&mut self) -> Option<Exit> {
        let open = self.open.as_ref()?;
        let goes_on = open.insn.rep && self.rip == open.at && self.frames.len() == open.depth;
        goes_on.then_some(open.insn.exit)
    }

    fn execute(&mut self, op: Op) -> Option<Exit> {
        match op {
            Op::Nop => self.plain(1),
            Op::Sti => {
                self.plain(1);
                self.shadow = self.rflags & rflags::IF == 0;
                self.rflags |= rflags::IF;
                None
            }
            Op::Cli => {
                self.rflags &= !rflags::IF;
                self.plain(1)
            }
            Op::Pushf => {
                let sp = self.gprs.get(Gpr::Rsp) - 4;
                self.gprs.set(Gpr::Rsp, sp);
                self.w.write_ram(sp, &(self.rflags as u32).to_le_bytes());
                self.plain(1)
            }
            Op::Popf(flags) => {
                self.rflags = flags;
                self.plain(1)
            }
            Op::Iret => {
                let f = self.frames.pop().expect("a script without its frame");
                self.rip = f.rip + f.skip;
                self.rflags = f.rflags;
                self.shadow = false;
                self.nmi_masked = false;
                None
            }
            Op::Cr8(v) => self.write_cr8(v),
            Op::Tpr(v) => {
                self.w.tpr.set(v);
                self.execute(self.apic_write(0x80, u32::from(v)))
            }
            Op::Ram(gpa) => self.touch_ram(gpa),
            // The APIC was reset under the handler.
            Op::Eoi if self.w.apic_lost.get() && self.w.isr.borrow().is_empty() => self.plain(5),
            Op::Eoi => {
                assert!(self.w.isr.borrow_mut().pop_last().is_some(), "EOI without interrupt");
                self.execute(self.apic_write(0xb0, 0))
            }
            Op::PvEoi => self.pv_eoi(),
            Op::Int3 => {
                self.w.write_ram(self.rip, &[0xcc]);
                if self.bp_intercept {
                    return Some(Exit::Exception(Exception::plain(Vector::BP)));
                }
                self.deliver(Event::Software(By::Int3OrInto, 3, 1));
                None
            }
            Op::Dr7(v) if self.dr_intercept => {
                self.ops.push_front(Op::Dr7(v));
                Some(Exit::DrAccess)
            }
            Op::Dr7(v) => {
                self.dr7 = v;
                self.plain(3)
            }
            Op::Pkru(found, v) => {
                assert_eq!(self.w.pkru.replace(v), found);
                self.plain(3)
            }
            Op::Deadline(ns) => self.deadline(ns),
            Op::Again(at, told) => self.look_again(at, told),
            Op::ApicBase(v) => {
                self.w.x2apic.set(v & 0x400 != 0);
                if v & 0x800 == 0 {
                    self.w.apic_lost.set(true);
                    self.w.apic_reset.set(true);
                    self.w.tpr.set(0);
                    self.w.timer_owed.set(false);
                }
                self.execute(super::guest::wrmsr(0x1b, v))
            }
            Op::SelfIpi(v) => {
                if self.w.sh.apic.sw_enabled() {
                    self.w.irr.borrow_mut().push(v);
                }
                let op = if self.w.x2apic.get() {
                    super::guest::wrmsr(0x83f, u64::from(v))
                } else {
                    self.apic_write(0x300, 1 << 18 | u32::from(v))
                };
                self.execute(op)
            }
            Op::Own(v, op) => {
                self.w.irr.borrow_mut().push(v);
                self.execute(*op)
            }
            Op::Ipi(to) => self.send_ipi(to),
            Op::ReadCount if self.w.x2apic.get() => self.execute(super::guest::rdmsr(0x839)),
            Op::ReadCount => self.execute(super::guest::apic_load(0x390)),
            Op::Inhibit => self.inhibit(),
            Op::Exit(insn) if self.own_deadline(&insn) => self.plain(insn.bytes.len() as u64),
            Op::Exit(insn) => self.apic_insn(*insn),
            Op::Event(exit) => Some(exit),
            Op::World(e) => {
                self.w.happen(e);
                None
            }
        }
    }

    /// A register of the APIC written, the way the present mode has it.
    pub(crate) fn apic_write(&self, at: u32, v: u32) -> Op {
        if self.w.x2apic.get() {
            super::guest::wrmsr(0x800 + (at >> 4), u64::from(v))
        } else {
            super::guest::store(super::world::APIC + u64::from(at), v)
        }
    }

    /// Two registers in the xAPIC's page, and anything may come between the writes.
    fn send_ipi(&mut self, to: u8) -> Option<Exit> {
        const VECTOR: u32 = 0x77;
        // Hardware finds the vCPU that it runs by itself.
        let found = self.apic.kind == ApicKind::X2ApicIpis && to == 0;
        if !found {
            self.w.ipis_owed.borrow_mut().push(u32::from(to));
        }
        if self.w.x2apic.get() {
            return self.execute(super::guest::wrmsr(0x830, u64::from(to) << 32 | u64::from(VECTOR)));
        }
        self.ops.push_front(self.apic_write(0x300, VECTOR));
        self.execute(self.apic_write(0x310, u32::from(to) << 24))
    }

    fn inhibit(&mut self) -> Option<Exit> {
        let timer = u32::from(self.w.timer_vector.get()) | exitless_x86::apic::lvt::TIMER_DEADLINE;
        for (at, v) in [(0x350, 7 << 8), (0x320, timer), (0xf0, 0x1ff)] {
            self.ops.push_front(self.apic_write(at, v));
        }
        self.ops.push_front(Op::Nop);
        self.ops.push_front(self.apic_write(0xf0, 0xff));
        self.w.timer_owed.set(false);
        self.execute(super::guest::wrmsr(0x6e0, 0))
    }

    pub(crate) fn plain(&mut self, len: u64) -> Option<Exit> {
        self.rip += len;
        self.shadow = false;
        None
    }

    fn write_cr8(&mut self, v: u8) -> Option<Exit> {
        let faults = v > 15;
        if self.apic.on() && !faults {
            self.virtual_tpr(v << 4);
            return self.plain(4);
        }
        if self.cr8_intercept || faults {
            if !faults {
                self.w.tpr.set(v << 4);
            }
            let mut insn = super::guest::insn(&[0xf0, 0x0f, 0x22, 0xc0], Exit::Cr8Write);
            insn.set = vec![(Gpr::Rax, u64::from(v))];
            insn.faults = faults;
            return Some(self.exit(insn));
        }
        if self.cr8 != v {
            self.w.tpr.set(v << 4);
        }
        self.cr8 = v;
        self.plain(4)
    }

    fn touch_ram(&mut self, gpa: u64) -> Option<Exit> {
        if self.w.mapped.borrow().contains(&(gpa >> 12)) {
            return self.plain(5);
        }
        self.ops.push_front(Op::Ram(gpa));
        Some(Exit::Slat(SlatFault {
            gpa,
            write: true,
            fetch: false,
            present: false,
            table_walk: false,
            marked: false,
        }))
    }

    fn pv_eoi(&mut self) -> Option<Exit> {
        let flag = self.w.u32_at(PV_EOI_FLAG);
        assert!(flag & 1 == 0 || !self.apic.on(), "offered to do without an EOI that hardware must see");
        if flag & 1 == 0 {
            return self.execute(Op::Eoi);
        }
        self.w.write_ram(PV_EOI_FLAG, &(flag & !1).to_le_bytes());
        assert!(self.w.isr.borrow_mut().pop_last().is_some(), "EOI without interrupt");
        self.plain(4)
    }

    fn guest_tsc(&self, ns: u64) -> u64 {
        let host = u128::from(ns * super::world::TICKS);
        (((host * u128::from(self.tsc_ratio)) >> 48) as u64).wrapping_add(self.tsc_offset)
    }

    /// To the guest to which the timer is lent its register is a register.
    fn own_deadline(&mut self, insn: &Instruction) -> bool {
        let has = |r: Gpr| insn.set.iter().find(|(at, _)| *at == r).map_or(0, |(_, v)| *v);
        let own = insn.exit == Exit::Wrmsr && has(Gpr::Rcx) as u32 == 0x6e0 && self.w.tick.loan.is_lent();
        if own {
            Register::write(&*self.w, has(Gpr::Rdx) << 32 | has(Gpr::Rax) & 0xffff_ffff);
        }
        own
    }

    fn deadline(&mut self, ns: u64) -> Option<Exit> {
        let w = &self.w;
        let at = self.guest_tsc(w.ns.get() + ns);
        let waits = w.timer_owed.get() || self.still_requested(w.timer_vector.get());
        let first = if waits { w.timer_not_before.get().min(at) } else { at };
        w.timer_not_before.set(first);
        w.timer_last.set(at);
        w.timer_owed.set(true);
        w.timer_arms.set(w.timer_arms.get() + 1);
        if self.w.lazy.get().is_some_and(|page| !exitless_lazy::set(&LazyPage { w: &self.w, page }, at)) {
            return self.plain(2);
        }
        match self.told() {
            Some(told) => self.write_deadline(at, told),
            None => self.execute(super::guest::wrmsr(0x6e0, at)),
        }
    }

    /// The page, of a guest that has agreed to something.
    fn page(&self) -> Option<LazyPage<'_>> {
        let page = self.w.lazy.get().filter(|_| self.w.shifts.get() || self.w.asks.get())?;
        Some(LazyPage { w: &self.w, page })
    }

    fn told(&self) -> Option<Told> {
        self.page().map(|page| GuestPage::told(&page))
    }

    /// As `exitless_lazy::write`, of which each write may exit.
    fn write_deadline(&mut self, at: u64, told: Told) -> Option<Exit> {
        if told.inside != 0
            && let Some(page) = self.page()
        {
            GuestPage::request(&page);
        }
        self.ops.push_front(Op::Again(at, told));
        self.execute(super::guest::wrmsr(0x6e0, at.wrapping_sub(told.offset)))
    }

    fn look_again(&mut self, at: u64, told: Told) -> Option<Exit> {
        match self.told() {
            Some(seen) if seen != told => self.write_deadline(at, seen),
            _ => self.plain(2),
        }
    }

    /// What the CPU's APIC timer, or the host's deadline in its stead, makes of this moment.
    fn apic_timer(&mut self) -> Option<Exit> {
        let tick = &self.w.tick;
        self.w.apic_timer();
        // The preemption timer goes before interrupts.
        if tick.loan.host().is_some_and(|at| at <= self.tsc()) {
            return Some(Exit::Timer);
        }
        if !tick.requested.get() {
            return None;
        }
        if !tick.loan.is_lent() {
            return Some(Exit::ExternalInterrupt);
        }
        tick.requested.set(false);
        tick.loan.rang();
        Some(Exit::Deadline)
    }

    pub(crate) fn exit(&mut self, insn: Instruction) -> Exit {
        assert!(self.w.write_ram(self.rip, &insn.bytes));
        for (r, v) in &insn.set {
            self.gprs.set(*r, *v);
        }
        let (at, next) = (self.rip, self.rip + insn.bytes.len() as u64);
        self.next = insn.next_rip.then_some(next);
        let exit = insn.exit;
        if self.tells_bytes {
            let told = if matches!(exit, Exit::Slat(_)) { &insn.bytes[..] } else { &[] };
            self.fetched =
                told.iter().copied().chain([0x90; 15]).take(if told.is_empty() { 0 } else { 15 }).collect();
        }
        assert_eq!(*self.w.log.borrow(), [], "accesses of no instruction");
        self.open = Some(Open { at, next, insn, depth: self.frames.len() });
        exit
    }
}

impl Cpu {
    /// One entry.
    fn run(&mut self, core: &Core, flush: bool) -> Exit {
        self.check_entry(core);
        self.w.check_l1d();
        self.w.trail.borrow_mut().push(Hand::Entered);
        self.entries += 1;
        self.next = None;
        if flush {
            self.flushes += 1;
            self.w.flush_owed.set(false);
        }
        if self.noise.is_some() {
            return self.make_noise();
        }
        self.enter_apic();
        if let Some(event) = self.event.take() {
            self.check_event(event);
            if let Some(exit) = self.breaks.pop_front().flatten() {
                if event == Event::Nmi {
                    self.nmi_masked = false;
                }
                if let (Event::Interrupt(v), Exit::TaskSwitch(_) | Exit::Exception(_)) = (event, exit) {
                    // Software delivers it, or a fault takes its place.
                    self.w.irr.borrow_mut().retain(|i| *i != v);
                }
                self.interrupted = Some(event);
                return exit;
            }
            self.deliver(event);
        }
        loop {
            if self.w.ipi.take() || self.notified() {
                return Exit::ExternalInterrupt;
            }
            if self.timer_limit.is_some() {
                self.w.ns.set(self.w.ns.get() + 3);
            }
            if let Some(exit) = self.apic_timer() {
                return exit;
            }
            if !self.w.tick.loan.is_lent() && self.w.cpu_timer.get().is_some_and(|at| at <= self.tsc()) {
                return Exit::Timer;
            }
            self.w.runs();
            assert!(!self.w.flush_owed.get(), "the guest runs on translations that are gone");
            if self.nmi_window && !self.nmi_masked && !self.shadow {
                return Exit::NmiWindow;
            }
            if self.window && self.open_for_interrupts() {
                return Exit::InterruptWindow;
            }
            if self.open_for_interrupts()
                && let Some(v) = self.apic.take()
            {
                self.account(v);
                self.apic.virtually.push(v);
                self.apic.taken = Some(v);
                let event = Event::Interrupt(v);
                if let Some(exit) = self.breaks.pop_front().flatten() {
                    self.interrupted = Some(event);
                    return exit;
                }
                self.deliver(event);
                continue;
            }
            self.check_stuck();
            let traps = self.traps && self.rflags & rflags::TF != 0;
            if let Some(exit) = self.step() {
                return exit;
            }
            if traps {
                return Exit::Exception(Exception { payload: 1 << 14, ..Exception::plain(Vector::DB) });
            }
        }
    }
}

impl Backend for Cpu {
    type Cpu = Core;

    fn dirty_l1d(&self) {
        self.w.l1d_dirty.set(true);
    }
    const WRMSR: u64 = 7;

    fn enter<S: Sender>(&mut self, core: &Core, flush: bool, sender: impl FnOnce() -> S) -> Exit {
        self.w.barren.set(0);
        let mut exit = self.run(core, flush);
        let mut sender = sender();
        while exit == Exit::Wrmsr && self.gprs.get(Gpr::Rcx) == 0x830 {
            let held = self.shadow || self.rflags & (rflags::TF | rflags::RF) != 0;
            let (next, lent) = (self.next.filter(|_| !held), self.w.tick.loan.is_lent());
            let icr = self.gprs.edx_eax();
            let mut moved = false;
            let sent = sender.send(icr, || {
                assert!(!core::mem::replace(&mut moved, true), "moved on twice");
                moved = next.is_some();
                moved
            });
            assert_eq!(moved, sent != Sent::No, "sent and moved on, or neither");
            if let Some(next) = next.filter(|_| moved) {
                self.rip = next;
            }
            match sent {
                Sent::No => break,
                Sent::GoOn if lent == self.w.tick.loan.is_lent() => {
                    let posted = self.w.sh.apic.posted().outstanding() && !self.w.notified.get();
                    assert!(
                        self.w.ipi.get() || !self.w.sh.pending() && !posted,
                        "it has asked itself to look"
                    );
                    sender.goes_on();
                    exit = self.run(core, false);
                }
                Sent::GoOn | Sent::Waits => return Exit::Sent,
            }
        }
        exit
    }

    fn end(&mut self) {
        self.w.host_runs(Hand::Ended);
    }

    fn exit_number(&self) -> u64 {
        7
    }
    fn exit_info(&self) -> ExitInfo {
        ExitInfo { reason: 7, ..ExitInfo::default() }
    }
    fn take_interrupted(&mut self) -> Option<Event> {
        self.interrupted.take()
    }
    fn runs_again(&self) -> bool {
        self.own_event
    }
    fn inject(&mut self, event: Event) {
        assert!(self.event.is_none(), "two events for one entry: {:?} and {event:?}", self.event);
        if event == Event::Nmi {
            assert!(!self.nmi_masked, "NMI while NMIs are masked");
            self.nmi_masked = true;
        }
        self.event = Some(event);
    }
    fn withdraw(&mut self) {
        self.event = None;
    }
    fn next_rip(&self) -> Option<u64> {
        self.next
    }
    fn fetched(&self) -> &[u8] {
        &self.fetched
    }
    fn fault_linear(&self) -> Option<u64> {
        self.linear
    }
    fn set_logging(&mut self, on: bool) {
        self.logging = on;
    }
    fn take_log(&mut self) -> u16 {
        assert!(self.w.in_slice.get(), "another vCPU's CPU may be asked for the log");
        self.taken = std::mem::take(&mut self.log);
        self.taken.len() as u16
    }
    fn logged(&self, n: u16) -> u64 {
        self.taken[usize::from(n)]
    }
    fn stopped(&self) -> Option<Stopped> {
        let open = self.open.as_ref()?;
        let at = Stopped { rip: open.at, code: self.code_attributes(), ..Stopped::default() };
        self.tells_length.then_some(Stopped { length: open.insn.bytes.len() as u8, ..at })
    }

    fn gprs(&self) -> &Gprs {
        &self.gprs
    }
    fn gprs_mut(&mut self) -> &mut Gprs {
        &mut self.gprs
    }
    fn rip(&self) -> u64 {
        self.rip
    }
    fn set_rip(&mut self, v: u64) {
        self.rip = v;
    }
    fn rflags(&self) -> u64 {
        match self.planted {
            Some(false) => self.rflags & !rflags::TF,
            _ => self.rflags,
        }
    }
    fn set_rflags(&mut self, v: u64) {
        let planted = if self.stepping() { rflags::TF } else { 0 };
        self.planted = self.planted.map(|_| v & rflags::TF != 0);
        self.rflags = v | planted;
    }
    fn segment(&self, r: SegReg) -> Segment {
        self.segments[r as usize]
    }
    fn set_segment(&mut self, r: SegReg, s: &Segment) {
        self.segments[r as usize] = *s;
    }
    fn gdtr(&self) -> TableReg {
        self.gdtr
    }
    fn set_gdtr(&mut self, t: &TableReg) {
        self.gdtr = *t;
    }
    fn idtr(&self) -> TableReg {
        self.idtr
    }
    fn set_idtr(&mut self, t: &TableReg) {
        self.idtr = *t;
    }
    fn cpl(&self) -> u8 {
        self.segments[SegReg::Ss as usize].dpl()
    }
    fn cr0(&self) -> u64 {
        self.cr0
    }
    fn set_cr0(&mut self, v: u64) {
        self.cr0 = v;
    }
    fn cr2(&self) -> u64 {
        self.cr2
    }
    fn set_cr2(&mut self, v: u64) {
        self.cr2 = v;
    }
    fn cr3(&self) -> u64 {
        self.cr3
    }
    fn set_cr3(&mut self, v: u64) {
        self.cr3 = v;
    }
    fn cr4(&self) -> u64 {
        self.cr4
    }
    fn set_cr4(&mut self, v: u64) {
        self.cr4 = v;
    }
    fn efer(&self) -> u64 {
        self.efer
    }
    fn set_efer(&mut self, v: u64) {
        self.efer = v;
    }
    fn dr6(&self) -> u64 {
        self.dr6
    }
    fn set_dr6(&mut self, v: u64) {
        self.dr6 = v;
    }
    fn dr7(&self) -> u64 {
        self.dr7
    }
    fn set_dr7(&mut self, v: u64) {
        self.dr7 = v;
    }
    fn sys_reg(&self, r: SysReg) -> u64 {
        self.sys[r as usize]
    }
    fn set_sys_reg(&mut self, r: SysReg, v: u64) {
        self.sys[r as usize] = v;
    }
    fn cr8(&self) -> u8 {
        self.cr8
    }
    fn set_cr8(&mut self, v: u8) {
        assert!(v < 16);
        self.cr8 = v;
    }
    fn interrupt_shadow(&self) -> bool {
        self.shadow
    }
    fn set_interrupt_shadow(&mut self, on: bool) {
        (self.shadow, self.held) = (on, false);
    }
    fn hold_by_mov_ss(&mut self) {
        (self.shadow, self.held) = (true, true);
    }
    fn nmi_masked(&self) -> bool {
        self.nmi_masked
    }
    fn set_nmi_masked(&mut self, on: bool) {
        self.nmi_masked = on;
    }
    fn spin_longer(&mut self, longer: bool) {
        self.spins = if longer { self.spins + 1 } else { 0 };
    }
    fn set_interrupt_window(&mut self, on: bool) {
        // AVIC ignores it.
        self.window = on && !(self.apic.avic && self.apic.on());
    }
    fn set_nmi_window(&mut self, on: bool) {
        self.nmi_window = on && (!self.poor_nmi_window || self.nmi_masked || self.shadow);
    }
    fn set_cr8_intercept(&mut self, on: bool) {
        self.cr8_intercept = on;
    }
    fn set_dr_intercept(&mut self, on: bool) {
        self.dr_intercept = on;
    }
    fn set_bp_intercept(&mut self, on: bool) {
        self.bp_intercept = on;
    }
    fn set_step(&mut self, on: bool) {
        let flags = self.rflags();
        self.planted = on.then_some(flags & rflags::TF != 0);
        self.rflags = if on { flags | rflags::TF } else { flags };
    }
    fn stepping(&self) -> bool {
        self.planted.is_some() && self.rflags & rflags::TF != 0
    }
    fn has_timer(&self) -> bool {
        self.timer_limit.is_some()
    }
    fn set_timer(&mut self, at: Option<u64>) -> bool {
        let Some(limit) = self.timer_limit else { return false };
        let now = self.tsc();
        self.w.cpu_timer.set(at.map(|at| at.min(now.saturating_add(limit))));
        true
    }
    fn lend_timer(&mut self, _: &Core, deadline: u64, quiet: bool) -> bool {
        assert!(self.w.in_slice.get() && self.tsc_ratio == 1 << 48);
        let told = self.w.lazy.get().map_or(0, |page| self.w.u64_at(page + 16));
        assert_eq!(self.tsc_offset, told, "the guest writes in ticks of another TSC");
        assert!(
            !quiet || !self.w.tick.touched.get(),
            "what the kernel's timer requested passes for the guest's"
        );
        let lends = self.w.tick.period.get() != 0 && self.w.tick.loan.lend(&*self.w, deadline, quiet);
        self.w.tick.loans.set(self.w.tick.loans.get() + u32::from(lends));
        lends
    }
    fn lend_timer_inside(&mut self, _: &Core, deadline: u64) -> bool {
        let page = self.w.lazy.get().expect("a guest that has agreed");
        assert_eq!((self.tsc_offset, 1), (self.w.u64_at(page + 16), self.w.u64_at(page + 24)));
        let lends = self.w.tick.period.get() != 0 && self.w.tick.loan.lend_inside(&*self.w, deadline);
        self.w.tick.loans.set(self.w.tick.loans.get() + u32::from(lends));
        lends
    }
    fn timer_lent(&self, _: &Core) -> bool {
        self.w.tick.loan.is_lent()
    }
    fn timer_rang(&mut self, _: &Core) -> bool {
        self.w.tick.loan.take_rang()
    }
    fn take_timer_back(&mut self, _: &Core) -> Option<Found> {
        // The exit took its time.
        self.w.ns.set(self.w.ns.get() + 4 * u64::from(self.w.tick.loan.is_lent()));
        let found = self.w.tick.loan.settle(&*self.w);
        if found.is_some_and(|f| f.rang) {
            self.w.tick.guests.set(self.w.tick.requested.get());
        }
        found
    }
    fn virtualizes_apic(&self) -> bool {
        self.apic.able
    }
    fn posts_ipis(&self) -> bool {
        self.apic.ipiv
    }
    fn set_apic(&mut self, kind: ApicKind) {
        self.apic.kind = kind;
    }
    fn apic_page(&self) -> Option<&ApicPage> {
        self.apic.able.then_some(self.apic.page)
    }
    fn interrupt_status(&self) -> InterruptStatus {
        self.apic.status
    }
    fn set_interrupt_status(&mut self, status: InterruptStatus) {
        if self.apic.avic {
            assert_eq!(status.requesting, 0, "a plain store to an IRR that other CPUs write");
            self.cr8 = (self.apic.page.read(exitless_x86::apic::reg::TPR) >> 4) as u8;
        }
        self.apic.status = status;
    }
    fn set_eoi_exits(&mut self, vectors: [u64; 4]) {
        self.apic.eoi_exits = vectors;
    }
    fn set_instructions(&mut self, shown: Instructions) {
        self.shown = shown;
    }
    fn set_opened(&mut self, opened: Opened) {
        self.opened = opened;
    }
    fn set_tsc_offset(&mut self, offset: u64) {
        self.tsc_offset = offset;
    }
    fn set_tsc_ratio(&mut self, ratio: u64) {
        self.tsc_ratio = ratio;
    }
    fn set_slat_root(&mut self, _hpa: u64) {}
}
