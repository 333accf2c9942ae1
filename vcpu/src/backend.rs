//! What the hall needs from a CPU vendor: registers, one entry into the guest, and events.
//!
//! `hw/svm` and `hw/vmx` are twins that implement [`Backend`]; the run loop is monomorphised over it, so no exit
//! pays for an indirect branch. A backend never decides anything and never calls the operating system.

use exitless_deadline::passthrough::Found;
pub use exitless_lapic::ApicPage;
use exitless_x86::exception::Exception;
use exitless_x86::msr::Msr;
use exitless_x86::regs::{Gprs, SegReg, Segment, TableReg};
use exitless_x86::svm::avic::Incomplete;

/// System registers that hardware switches with the guest and the policy table calls "vendor saved".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum SysReg {
    Star,
    Lstar,
    Cstar,
    Sfmask,
    KernelGsBase,
    FsBase,
    GsBase,
    SysenterCs,
    SysenterEsp,
    SysenterEip,
    Pat,
    DebugCtl,
    LastBranchFrom,
    LastBranchTo,
    LastIntFrom,
    LastIntTo,
    SpecCtrl,
    TscAux,
}

/// Which instruction raises a software event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// INT n.
    IntN,
    /// INT3 or INTO.
    Int3OrInto,
    /// INT1 (opcode F1): the DPL of its gate does not count.
    Int1,
}

/// An event for the next entry to deliver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// An external interrupt with its vector.
    Interrupt(u8),
    /// A non-maskable interrupt.
    Nmi,
    /// A hardware exception.
    Exception(Exception),
    /// An instruction's: which, its vector, and its length in bytes (0: unknown), by which delivery moves RIP.
    Software(By, u8, u8),
}

/// Port I/O as the exit describes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IoAccess {
    /// First port.
    pub port: u16,
    /// Bytes per element: 1, 2 or 4.
    pub size: u8,
    /// IN or INS.
    pub input: bool,
    /// INS or OUTS.
    pub string: bool,
    /// A REP prefix stands before it.
    pub rep: bool,
}

/// A second-level translation fault.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SlatFault {
    /// Faulting guest-physical address.
    pub gpa: u64,
    /// A write.
    pub write: bool,
    /// An instruction fetch.
    pub fetch: bool,
    /// The translation was present (a permission fault).
    pub present: bool,
    /// The fault hit the guest's own page tables, or the loading of PDPTEs, not the final address.
    pub table_walk: bool,
    /// The tables have the mark of a device there (EPT: a misconfiguration, NPT: a reserved bit). Where
    /// the exit tells no kind of access, `write` is set.
    pub marked: bool,
}

/// The instruction that an exit stopped, as far as the exit and registers tell without a look at memory. Two that are equal are one
/// instruction, unless somebody has written another of the same length there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Zeroable)]
pub struct Stopped {
    /// Where it is.
    pub rip: u64,
    /// Attributes of its code segment.
    pub code: u16,
    /// Its length, where the exit tells one; 0: not.
    pub length: u8,
    /// Its bytes and what follows, where the exit tells them.
    pub bytes: [u8; 15],
}

/// Instructions that the guest's CPUID shows, of those that a CPU can be told to refuse.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Zeroable)]
#[allow(missing_docs)]
pub struct Instructions {
    pub rdtscp: bool,
    pub rdpid: bool,
    pub invpcid: bool,
    pub rdrand: bool,
    pub rdseed: bool,
    pub xsaves: bool,
}

/// What a guest does without an exit although it idles or spins meanwhile, by its owner's wish (KVM_CAP_X86_DISABLE_EXITS).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Zeroable)]
pub struct InGuest {
    /// HLT.
    pub hlt: bool,
    /// MONITOR and MWAIT.
    pub mwait: bool,
    /// PAUSE in loops.
    pub pause: bool,
    /// Reading how long the CPU's core was in C-states.
    pub cstates: bool,
}

/// MSRs that a guest reaches without an exit once it uses them: a set of them, of which each has its own maps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Zeroable)]
#[repr(transparent)]
pub struct Opened(u8);

#[allow(missing_docs)]
impl Opened {
    pub const NONE: Self = Self(0);
    /// Read and written; its value is the guest's, so the world switch follows it.
    pub const SPEC_CTRL: Self = Self(1);
    /// Only written.
    pub const PRED_CMD: Self = Self(2);
    /// Only written.
    pub const FLUSH_CMD: Self = Self(4);
    /// Only read: how long the core was in C1, C3, C6 and C7 (Intel).
    pub const CSTATES: Self = Self(8);
    /// How many sets there are.
    pub const SETS: usize = 16;
    /// How many of them, the first, have nothing of Intel's alone.
    pub const COMMON_SETS: usize = 8;

    /// Every set, by its index.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..Self::SETS as u8).map(Self)
    }
    pub const fn index(self) -> usize {
        self.0 as usize % Self::SETS
    }
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
    /// With `other`, or without.
    pub const fn put(self, other: Self, on: bool) -> Self {
        Self(if on { self.0 | other.0 } else { self.0 & !other.0 })
    }
    /// Each MSR of the set that is written, and whether it is read as well.
    pub fn msrs(self) -> impl Iterator<Item = (u32, bool)> {
        let each = [
            (Self::SPEC_CTRL, Msr::SPEC_CTRL, true),
            (Self::PRED_CMD, Msr::PRED_CMD, false),
            (Self::FLUSH_CMD, Msr::FLUSH_CMD, false),
        ];
        each.into_iter().filter(move |(one, ..)| self.has(*one)).map(|(_, msr, read)| (msr.0, read))
    }
}

/// What entries do with the local APIC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Zeroable)]
#[repr(u8)]
pub enum ApicKind {
    /// Nothing: software delivers.
    #[default]
    Software = 0,
    /// The CPU delivers interrupts; the registers are a page in memory.
    XApic = 1,
    /// The CPU delivers interrupts; the registers are MSRs.
    X2Apic = 2,
    /// As [`Self::X2Apic`], but self-IPIs exit: the APIC's enable bit in SVR is clear, of which the CPU knows nothing.
    X2ApicOff = 3,
    /// As [`Self::X2Apic`], and the CPU sends IPIs: writes of the ICR exit only where it cannot (AVIC, IPI virtualization).
    X2ApicIpis = 4,
    /// As [`Self::X2Apic`], and the ICR is the CPU's own: see [`crate::apic::raw`].
    X2ApicRaw = 5,
}

/// The vectors that virtual-interrupt delivery compares (SDM vol. 3C, 25.4.2); 0: none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InterruptStatus {
    /// RVI: the highest in the page's IRR.
    pub requesting: u8,
    /// SVI: the highest in its ISR.
    pub servicing: u8,
}

/// What asked for a task switch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TaskSource {
    /// CALL to a TSS, or through a task gate.
    Call,
    /// JMP to a TSS, or through a task gate.
    Jump,
    /// IRET with EFLAGS.NT.
    Iret,
    /// This event met a task gate in the IDT. [`Backend::take_interrupted`] tells it too, unless it is an instruction's.
    Gate(Event),
}

/// A hardware task switch that hardware has not begun: RIP is the instruction's, or where the event struck.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TaskSwitch {
    /// Selector of the new TSS.
    pub selector: u16,
    /// What asked for it.
    pub source: TaskSource,
    /// The error code that goes onto the new task's stack.
    pub error_code: Option<u32>,
    /// RF in the flags that go into the old TSS.
    pub resume: bool,
}

/// Why the guest was left, in the words both vendors share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // The instructions name themselves.
pub enum Exit {
    /// A host interrupt is pending; enabling interrupts delivers it.
    ExternalInterrupt,
    /// A host NMI was or will be taken.
    Nmi,
    /// The guest can now take an external interrupt.
    InterruptWindow,
    /// The guest executed (or is about to execute) IRET: NMIs unmask after it.
    NmiWindow,
    Cpuid,
    Hlt,
    Io(IoAccess),
    Rdmsr,
    Wrmsr,
    Slat(SlatFault),
    /// MOV from or to a control or debug register, CLTS, LMSW, SMSW: the instruction tells the operands.
    CrAccess,
    /// MOV to CR8 alone is intercepted while an interrupt waits below the TPR.
    Cr8Write,
    DrAccess,
    /// The timer of [`Backend::set_timer`] ran out; or, while [`Backend::timer_lent`], the host's deadline has come.
    Timer,
    /// A deadline of the timer that is lent has come: [`Backend::timer_rang`].
    Deadline,
    /// There was no room in the log of [`Backend::take_log`].
    LogFull,
    /// The guest ended this vector, in hardware, and its EOI was asked for.
    EoiInduced(u8),
    /// The guest wrote the register at this offset of the APIC's page, in hardware; the rest is ours.
    ApicWrite(u32),
    /// An access to this offset of the APIC's page that hardware does not do.
    ApicAccess(u32),
    /// The guest wrote this to the ICR, and hardware did not get it to all targets. The instruction is done.
    IncompleteIpi(u64, Incomplete),
    /// The guest wrote, or read, the APIC's register at this offset, and AVIC leaves it to us: before the instruction or behind it.
    Unaccelerated(u32, bool),
    /// An intercepted exception, not yet delivered. #DB: its payload has at least what it is about, and DR6 is as it was.
    Exception(Exception),
    /// INT1 of this length in bytes, not executed: an intercepted #DB that is no exception.
    Int1(u8),
    Hypercall,
    Invd,
    Wbinvd,
    Monitor,
    Mwait,
    Pause,
    Xsetbv,
    Rdpmc,
    Rdpru,
    /// SGDT, SIDT, SLDT, STR, LGDT, LIDT, LLDT or LTR, for a guest that set CR4.UMIP on a CPU without it.
    DescriptorTable,
    /// A hardware task switch.
    TaskSwitch(TaskSwitch),
    /// Triple fault.
    Shutdown,
    /// An instruction that the guest must not have.
    VirtInstruction,
    /// A host SMI or INIT that needs nothing.
    HostEvent,
    /// The CPU refused the guest state; the vendor's code.
    FailEntry(u64),
    /// Virtualisation was switched off under us (emergency restart).
    Disabled,
    /// The guest wrote the x2APIC's ICR; the sender of [`Backend::enter`] has sent it, and something waits. The instruction is done.
    Sent,
    /// An exit nobody asked for; the vendor's code.
    Unknown(u64),
}

/// What an exit tells of itself, as the vendor has it: for traces.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ExitInfo {
    /// VMX: the exit reason, its flags included; SVM: EXITCODE.
    pub reason: u32,
    /// VMX: the exit qualification; SVM: EXITINFO1.
    pub info1: u64,
    /// VMX: the IDT-vectoring information; SVM: EXITINFO2.
    pub info2: u64,
    /// VMX: the interruption information; SVM: EXITINTINFO.
    pub event: u32,
    /// The error code of that event, if it has one.
    pub error_code: u32,
}

/// What became of a command, straight after the exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// Nothing was done: an exit as any other.
    No,
    /// Sent, and the guest goes on.
    GoOn,
    /// Sent, but something is to be looked at before the guest goes on.
    Waits,
}

/// Who sends commands straight after the exit: nothing of the vCPU is read or written but what the command needs.
pub trait Sender {
    /// The guest writes this to the x2APIC's ICR. `first` moves on behind the instruction; `false`: that cannot be told yet, and nothing
    /// may be sent. At most once, before anything is sent.
    fn send(&mut self, icr: u64, first: impl FnOnce() -> bool) -> Sent;
    /// Behind [`Sent::GoOn`]: the guest is entered again, and the exit was one alone.
    fn goes_on(&mut self);
}

/// Nobody: each command is an exit as any other.
#[derive(Clone, Copy, Debug)]
pub struct NoSender;

impl Sender for NoSender {
    fn send(&mut self, _icr: u64, _first: impl FnOnce() -> bool) -> Sent {
        Sent::No
    }
    fn goes_on(&mut self) {}
}

/// One vendor's virtual CPU. All methods but [`Backend::enter`] only touch the vCPU's own state.
#[allow(missing_docs)] // Register getters and setters say what they are.
pub trait Backend {
    /// What the backend keeps per physical CPU (host save area, ASID counter).
    type Cpu;

    /// A slice of entries begins: interrupts and preemption are off until the last of them, and `cpu` is the CPU we run on.
    fn begin(&mut self, cpu: &Self::Cpu) {
        let _ = cpu;
    }
    /// Enters the guest once, and once more behind each write of the x2APIC's ICR that the sender, asked for at the first, has sent and
    /// whose exit leaves nothing else to do. Interrupts are off, the vCPU's FPU state is live, `cpu` is the CPU we run on. `true` in `flush` drops the
    /// vCPU's guest-physical translations first.
    fn enter<S: Sender>(&mut self, cpu: &Self::Cpu, flush: bool, sender: impl FnOnce() -> S) -> Exit;
    /// The vendor's number of an exit by WRMSR.
    const WRMSR: u64;
    /// The slice is over: the host's XCR0, IA32_XSS and debug registers are back, and nobody takes the vCPU for running any
    /// more. Hands to the host what the exit took from it: an acknowledged interrupt, a machine check. Interrupts are off;
    /// a handler's softirqs turn them on for a while.
    fn end(&mut self) {}
    /// What ran may have left data in the L1 data cache that is not the guest's to find (L1TF): where the CPU would show it, the
    /// next entry flushes. Told by the backend to itself: the first entry since the thread came to this CPU, KVM_RUN included; by
    /// the kernel: interrupts and the softirqs behind them.
    fn dirty_l1d(&self) {}
    /// The vendor's number of the last exit, for counters.
    fn exit_number(&self) -> u64;
    /// More of it, directly behind the exit.
    fn exit_info(&self) -> ExitInfo;
    /// The event whose delivery the last exit interrupted, if any; reading it forgets it. A software event only where RIP is
    /// still at its instruction and delivering it needs nothing but [`Backend::inject`]; elsewhere the instruction runs again.
    fn take_interrupted(&mut self) -> Option<Event>;
    /// The last exit interrupted the delivery of an instruction's event that [`Backend::take_interrupted`] does not tell, because
    /// the instruction runs again.
    fn runs_again(&self) -> bool {
        false
    }
    /// Gives the next entry an event to deliver. The address of a #PF is in CR2 already.
    fn inject(&mut self, event: Event);
    /// Takes back an injected event that no entry has delivered yet. NMI masking is the caller's.
    fn withdraw(&mut self);
    /// RIP behind the exiting instruction where hardware told it.
    fn next_rip(&self) -> Option<u64>;
    /// Moves RIP behind the exiting instruction, if hardware tells where that is and nothing else follows: no interrupt
    /// shadow to end, no single step, no RF, no wrap. `false`: nothing was done.
    fn skip_instruction(&mut self) -> bool {
        false
    }
    /// The bytes hardware fetched at the exiting instruction (decode assists); empty without.
    fn fetched(&self) -> &[u8];
    /// The CPU logs the pages of which it sets the dirty bit, or not any more.
    fn set_logging(&mut self, on: bool) {
        let _ = on;
    }
    /// How many pages were logged since the last call. At the end of a slice.
    fn take_log(&mut self) -> u16 {
        0
    }
    /// Guest-physical address of the `n`-th of them.
    fn logged(&self, n: u16) -> u64 {
        let _ = n;
        0
    }
    /// The instruction that the last exit stopped; `None`: the exit tells neither its length nor its bytes.
    fn stopped(&self) -> Option<Stopped> {
        None
    }
    /// The linear address of the last exit's second-level fault, where hardware tells it.
    fn fault_linear(&self) -> Option<u64>;

    fn gprs(&self) -> &Gprs;
    fn gprs_mut(&mut self) -> &mut Gprs;
    fn rip(&self) -> u64;
    fn set_rip(&mut self, v: u64);
    fn rflags(&self) -> u64;
    fn set_rflags(&mut self, v: u64);
    fn segment(&self, r: SegReg) -> Segment;
    fn set_segment(&mut self, r: SegReg, s: &Segment);
    /// Attributes of CS, for the mode of the code that runs.
    fn code_attributes(&self) -> u16 {
        self.segment(SegReg::Cs).attrib
    }
    fn gdtr(&self) -> TableReg;
    fn set_gdtr(&mut self, t: &TableReg);
    fn idtr(&self) -> TableReg;
    fn set_idtr(&mut self, t: &TableReg);
    /// Current privilege level, 0 to 3.
    fn cpl(&self) -> u8;
    fn cr0(&self) -> u64;
    /// Sets CR0; the caller checked it. EFER.LMA is the caller's too.
    fn set_cr0(&mut self, v: u64);
    fn cr2(&self) -> u64;
    fn set_cr2(&mut self, v: u64);
    fn cr3(&self) -> u64;
    fn set_cr3(&mut self, v: u64);
    fn cr4(&self) -> u64;
    fn set_cr4(&mut self, v: u64);
    /// CR4, but for bits that the guest may change without an exit: known without asking the CPU.
    fn cr4_watched(&self) -> u64 {
        self.cr4()
    }
    /// XSAVES and XRSTORS execute with CR4.OSXSAVE set, whatever the guest's CPUID says.
    fn executes_xsaves(&self) -> bool {
        true
    }
    fn efer(&self) -> u64;
    fn set_efer(&mut self, v: u64);
    fn dr6(&self) -> u64;
    fn set_dr6(&mut self, v: u64);
    fn dr7(&self) -> u64;
    fn set_dr7(&mut self, v: u64);
    fn sys_reg(&self, r: SysReg) -> u64;
    fn set_sys_reg(&mut self, r: SysReg, v: u64);
    /// The task priority hardware keeps for CR8, 0 to 15.
    fn cr8(&self) -> u8;
    fn set_cr8(&mut self, v: u8);

    /// STI or MOV SS blocks interrupts for one instruction.
    fn interrupt_shadow(&self) -> bool;
    /// Off: a debug trap that waits for its end goes too, also one that waits without a shadow.
    fn set_interrupt_shadow(&mut self, on: bool);
    /// MOV SS or POP SS is done: no interrupt before the next instruction is over, and where the CPU tells its shadow from
    /// STI's, no debug trap.
    fn hold_by_mov_ss(&mut self) {
        self.set_interrupt_shadow(true);
    }
    /// Whose the shadow is: MOV SS's and STI's, both where the CPU does not tell them apart.
    fn shadow_of(&self) -> (bool, bool) {
        let on = self.interrupt_shadow();
        (on, on)
    }
    /// NMIs are masked until IRET.
    fn nmi_masked(&self) -> bool;
    /// The next loop of PAUSEs exits after twice the time of the last; `false`: after as short a one as the first did.
    fn spin_longer(&mut self, longer: bool);
    fn set_nmi_masked(&mut self, on: bool);
    /// Asks for [`Exit::InterruptWindow`] (or withdraws the wish).
    fn set_interrupt_window(&mut self, on: bool);
    /// Asks to be told when NMIs unmask.
    fn set_nmi_window(&mut self, on: bool);
    /// Exit on CR8 writes.
    fn set_cr8_intercept(&mut self, on: bool);
    /// DR0 to DR3 and DR6/DR7 accesses exit (DR6 is not loaded) or not.
    fn set_dr_intercept(&mut self, on: bool);
    /// INT3 exits as [`Exit::Exception`], for a debugger that plants it.
    fn set_bp_intercept(&mut self, on: bool);
    /// Sets RFLAGS.TF behind the guest's back, for a debugger, or gives the guest its own TF back. [`Backend::rflags`] shows
    /// the guest's all the while. Set once more if what ran meanwhile took it away.
    fn set_step(&mut self, on: bool);
    /// TF is set behind the guest's back: what completes now ends in a trap for the debugger. Not while a handler runs, say:
    /// delivery of an event clears TF, its return brings it back.
    fn stepping(&self) -> bool;

    /// The guest is in PAE paging and VM entry takes its four PDPTEs from the backend. `false`: hardware reads memory.
    fn uses_pdptes(&self) -> bool {
        false
    }
    /// The PDPTEs, where [`Backend::uses_pdptes`] holds, after CR0, CR3, CR4 or EFER changed.
    fn set_pdptes(&mut self, pdptes: [u64; 4]) {
        let _ = pdptes;
    }

    /// The CPU has a timer that ends guest mode.
    fn has_timer(&self) -> bool {
        false
    }
    /// Ends guest mode with [`Exit::Timer`] when the host's TSC reaches `at`, in this and the following entries; `None`: no
    /// more. One that cannot count that far exits before, and counts on in the next entry. `false`: there is no such timer.
    fn set_timer(&mut self, at: Option<u64>) -> bool {
        let _ = at;
        false
    }
    /// Lends the CPU's APIC timer to the guest, armed for `deadline` of the host's TSC (0: not armed): it reads and writes
    /// IA32_TSC_DEADLINE without an exit, and each deadline that comes ends guest mode with [`Exit::Deadline`]. What the host waits for
    /// ends it with [`Exit::Timer`]. `quiet`: no timer of this CPU was started or stopped since interrupts are off. `false`: not now.
    fn lend_timer(&mut self, cpu: &Self::Cpu, deadline: u64, quiet: bool) -> bool {
        let _ = (cpu, deadline, quiet);
        false
    }
    /// The same, but a deadline that comes is a notification: the CPU delivers what the guest has requested in its own descriptor, without an
    /// exit. For guests whose interrupts the CPU delivers.
    fn lend_timer_inside(&mut self, cpu: &Self::Cpu, deadline: u64) -> bool {
        let _ = (cpu, deadline);
        false
    }
    /// It is lent. The host takes it back by itself, in the middle of a slice, where it is about to use it.
    fn timer_lent(&self, cpu: &Self::Cpu) -> bool {
        let _ = cpu;
        false
    }
    /// A deadline of the guest's came since it was lent, or since the last call.
    fn timer_rang(&mut self, cpu: &Self::Cpu) -> bool {
        let _ = cpu;
        false
    }
    /// The timer is the host's again: what the guest left; `None`: it was not lent since the last call. Before [`Backend::end`].
    fn take_timer_back(&mut self, cpu: &Self::Cpu) -> Option<Found> {
        let _ = cpu;
        None
    }
    /// The CPU can deliver virtual interrupts, and does once [`Backend::set_apic`] says so.
    fn virtualizes_apic(&self) -> bool {
        false
    }
    /// It can send the IPIs of a guest in x2APIC mode too, posting to the targets' mailboxes (VMX); what it cannot send exits behind the
    /// write ([`ApicKind::X2ApicIpis`]).
    fn posts_ipis(&self) -> bool {
        false
    }
    /// What the next entries do with the APIC.
    fn set_apic(&mut self, kind: ApicKind) {
        let _ = kind;
    }
    /// The page that hardware works on.
    fn apic_page(&self) -> Option<&ApicPage> {
        None
    }
    /// Which interrupts hardware is about to deliver, and serves.
    fn interrupt_status(&self) -> InterruptStatus {
        InterruptStatus::default()
    }
    /// Changes that for the next entry.
    fn set_interrupt_status(&mut self, status: InterruptStatus) {
        let _ = status;
    }
    /// Vectors, 64 to a word, whose EOI exits.
    fn set_eoi_exits(&mut self, vectors: [u64; 4]) {
        let _ = vectors;
    }

    /// The guest finds these instructions; the others fault, where the CPU can make them. None of them before the first call.
    fn set_instructions(&mut self, shown: Instructions);

    /// The guest has these MSRs for itself, and no others of [`Opened`]; none before the first call.
    fn set_opened(&mut self, opened: Opened);
    /// The CPU switches SPEC_CTRL with the guest by itself: open, it costs no entry anything.
    fn switches_spec_ctrl(&self) -> bool {
        false
    }

    /// Value added to the host's TSC, in ticks, modulo 2^64.
    fn set_tsc_offset(&mut self, offset: u64);
    /// The TSC's ratio in the CPU's format; nothing where the CPU does not scale, or keeps it outside of the vCPU.
    fn set_tsc_ratio(&mut self, ratio: u64);
    /// Root of the second-level tables.
    fn set_slat_root(&mut self, hpa: u64);
}
