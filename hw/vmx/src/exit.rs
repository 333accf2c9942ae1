//! From VM exits to the hall's words (SDM vol. 3D, appendix C).

use crate::cache as c;
use crate::machine::Machine;
use crate::percpu::PerCpu;
use crate::vcpu::Vmx;
use exitless_vcpu::backend::{Event, Exit, IoAccess, SlatFault, Stopped, TaskSource, TaskSwitch};
use exitless_x86::exception::{Exception, Vector};
use exitless_x86::regs::rflags;
use exitless_x86::vmx::control::interruption as i;
use exitless_x86::vmx::exit::{
    BasicReason as R, CrQualification, DB_QUALIFICATION, EptViolation, IoQualification, TaskQualification,
    cr_access, task_source,
};
use exitless_x86::vmx::{activity, field as f, interruptibility};

impl<M: Machine> Vmx<M> {
    pub(crate) fn decode_exit(&mut self, cpu: &PerCpu) -> Exit {
        let reason = self.exit_reason();
        if reason.entry_failed() {
            self.machine_check = reason.basic() == R::ENTRY_MACHINE_CHECK;
            return Exit::FailEntry(u64::from(reason.0));
        }
        match reason.basic() {
            R::CPUID => Exit::Cpuid,
            R::EXTERNAL_INTERRUPT => self.external_interrupt(cpu),
            R::HLT => Exit::Hlt,
            R::IO => Exit::Io(io(IoQualification::from_bits(self.m.get(f::EXIT_QUALIFICATION)))),
            R::RDMSR => Exit::Rdmsr,
            R::WRMSR => Exit::Wrmsr,
            R::EPT_VIOLATION => self.ept_violation(),
            R::EPT_MISCONFIGURATION => self.device_mark(),
            R::PML_FULL => self.log_full(),
            R::EXCEPTION_OR_NMI => self.exception_or_nmi(),
            R::INTERRUPT_WINDOW => self.interrupt_window(),
            R::NMI_WINDOW => Exit::NmiWindow,
            R::CR_ACCESS => self.cr_access(),
            R::MOV_DR => Exit::DrAccess,
            R::VMCALL => Exit::Hypercall,
            R::PAUSE => Exit::Pause,
            R::TRIPLE_FAULT => self.triple_fault(),
            R::INIT | R::SIPI | R::IO_SMI | R::OTHER_SMI => Exit::HostEvent,
            R::TASK_SWITCH => self.task_switch(),
            R::INVD => Exit::Invd,
            R::WBINVD => Exit::Wbinvd,
            R::MONITOR => Exit::Monitor,
            R::MWAIT => Exit::Mwait,
            R::XSETBV => Exit::Xsetbv,
            R::RDPMC => Exit::Rdpmc,
            R::PREEMPTION_TIMER => Exit::Timer,
            R::VIRTUALIZED_EOI => Exit::EoiInduced(self.m.get(f::EXIT_QUALIFICATION) as u8),
            R::APIC_WRITE => Exit::ApicWrite(self.m.get(f::EXIT_QUALIFICATION) as u32 & 0xfff),
            R::APIC_ACCESS => Exit::ApicAccess(self.m.get(f::EXIT_QUALIFICATION) as u32 & 0xfff),
            R::GDTR_IDTR | R::LDTR_TR => Exit::DescriptorTable,
            R::GETSEC | R::VMFUNC | R::ENCLS | R::INVEPT | R::INVVPID => Exit::VirtInstruction,
            R::RDTSCP | R::INVPCID | R::RDRAND | R::RDSEED | R::XSAVES | R::XRSTORS => Exit::VirtInstruction,
            R::UMWAIT | R::TPAUSE | R::PCONFIG | R::LOADIWKEY | R::ENCLV => Exit::VirtInstruction,
            // Without a control of their own, on CPUs that have them.
            R::SEAMCALL | R::TDCALL | R::RDMSRLIST | R::WRMSRLIST => Exit::VirtInstruction,
            R::URDMSR | R::UWRMSR | R::RDMSR_IMM | R::WRMSR_IMM => Exit::VirtInstruction,
            R(n) if (R::VMCLEAR.0..=R::VMXON.0).contains(&n) => Exit::VirtInstruction,
            R(n) => Exit::Unknown(u64::from(n)),
        }
    }

    /// Without acknowledge-on-exit it stays pending until the host enables interrupts. With it, it is due when the slice has
    /// ended; or the guest's.
    fn external_interrupt(&mut self, cpu: &PerCpu) -> Exit {
        if self.caps.apicv() {
            let info = self.m.get(f::EXIT_INTERRUPTION_INFO);
            let vector = (info & i::VECTOR) as u8;
            if info & i::VALID != 0 {
                if self.guests_timer(cpu, vector) {
                    return Exit::Deadline;
                }
                self.acknowledged = vector;
            }
        }
        Exit::ExternalInterrupt
    }

    /// NMIs go to the host before we get here: the world switch runs the handler. #MC is due when the slice has ended.
    fn exception_or_nmi(&mut self) -> Exit {
        let info = self.run.interruption;
        if info & i::TYPE == i::TYPE_NMI {
            return Exit::Nmi;
        }
        let vector = Vector((info & i::VECTOR) as u8);
        self.machine_check = vector == Vector::MC;
        if info & i::TYPE == i::TYPE_PRIVILEGED_SOFTWARE_EXCEPTION {
            // It changes no debug register (SDM vol. 2A, INT1), and the exit comes before it (vol. 3C, 28.2.5).
            return Exit::Int1(self.m.get(f::EXIT_INSTRUCTION_LENGTH) as u8);
        }
        if info & i::NMI_UNBLOCKING != 0 && vector != Vector::DF {
            self.iret_faulted();
        }
        self.debug_touched |= vector == Vector::DB;
        let code = (info & i::ERROR_CODE_VALID != 0).then(|| self.m.get(f::EXIT_INTERRUPTION_ERROR_CODE));
        let payload = match vector {
            Vector::PF => self.m.get(f::EXIT_QUALIFICATION),
            // The exit leaves DR6 alone and tells what it would have become (SDM vol. 3C, 28.1).
            Vector::DB => self.m.get(f::EXIT_QUALIFICATION) & DB_QUALIFICATION,
            _ => 0,
        };
        Exit::Exception(Exception { vector, error_code: code, payload })
    }

    fn ept_violation(&mut self) -> Exit {
        let q = EptViolation::from_bits(self.m.get(f::EXIT_QUALIFICATION));
        if q.nmi_unblocking() {
            self.iret_faulted();
        }
        Exit::Slat(SlatFault {
            gpa: self.m.get(f::GUEST_PHYSICAL_ADDRESS),
            write: q.write(),
            fetch: q.fetch(),
            present: q.readable() || q.writable() || q.executable(),
            table_walk: !q.linear_valid() || !q.final_access(),
            marked: false,
        })
    }

    /// The write that found no room has not happened, and the exit took the log's end as an EPT violation would (SDM vol. 3C,
    /// 29.3.6): as there, it may have been an IRET's.
    fn log_full(&mut self) -> Exit {
        if EptViolation::from_bits(self.m.get(f::EXIT_QUALIFICATION)).nmi_unblocking() {
            self.iret_faulted();
        }
        Exit::LogFull
    }

    /// Nothing in the tables is misconfigured but the marks of devices. The exit tells where, and no more (SDM vol. 3C, 28.2.1).
    fn device_mark(&self) -> Exit {
        Exit::Slat(SlatFault {
            gpa: self.m.get(f::GUEST_PHYSICAL_ADDRESS),
            write: true,
            fetch: false,
            present: false,
            table_walk: false,
            marked: true,
        })
    }

    /// See [`Stopped`]. The manual has no length for EPT misconfigurations (SDM vol. 3C, 28.2.5); processors store it, and stock
    /// KVM skips by it. Here it only tells one instruction from another, whose length was decoded.
    pub(crate) fn stopped_at(&self) -> Stopped {
        Stopped {
            rip: self.cache.get(&self.m, c::RIP),
            code: crate::state::attributes(self.cache.get(&self.m, c::CS_ACCESS)),
            length: self.m.get(f::EXIT_INSTRUCTION_LENGTH) as u8,
            bytes: [0; 15],
        }
    }

    /// RF holds what the old TSS gets (SDM vol. 3C, 28.3.3).
    fn task_switch(&self) -> Exit {
        let q = TaskQualification::from_bits(self.m.get(f::EXIT_QUALIFICATION));
        let source = match (q.source(), self.vectoring()) {
            (task_source::CALL, _) => TaskSource::Call,
            (task_source::IRET, _) => TaskSource::Iret,
            (task_source::JMP, _) => TaskSource::Jump,
            (_, Some(event)) => TaskSource::Gate(event),
            // A gate, and nothing that goes through it.
            (_, None) => return Exit::Unknown(u64::from(R::TASK_SWITCH.0)),
        };
        let error_code = match source {
            TaskSource::Gate(Event::Exception(x)) => x.error_code,
            _ => None,
        };
        let resume = self.cache.get(&self.m, c::RFLAGS) & exitless_x86::regs::rflags::RF != 0;
        Exit::TaskSwitch(TaskSwitch { selector: q.selector(), source, error_code, resume })
    }

    /// CALL, JMP, IRET or a software interrupt asked for a task switch: the exit-instruction length is valid (SDM vol. 3C,
    /// 28.2.5).
    fn switched_by_instruction(&self) -> bool {
        self.exit_reason().basic() == R::TASK_SWITCH
            && match TaskQualification::from_bits(self.m.get(f::EXIT_QUALIFICATION)).source() {
                task_source::GATE => matches!(self.vectoring(), Some(Event::Software(..))),
                _ => true,
            }
    }

    /// The guest's IRET unblocked NMIs and then faulted: it will run again, so they are blocked until then. The manual's
    /// rule (SDM vol. 3C, 28.2.3) does not hold when the fault hit the delivery of another event.
    fn iret_faulted(&mut self) {
        if self.m.get(f::IDT_VECTORING_INFO) & i::VALID == 0 {
            let now = self.cache.get(&self.m, c::INTERRUPTIBILITY);
            self.cache.set(c::INTERRUPTIBILITY, now | interruptibility::NMI);
        }
    }

    fn cr_access(&self) -> Exit {
        let q = CrQualification::from_bits(self.m.get(f::EXIT_QUALIFICATION));
        if q.access() == cr_access::MOV_TO && q.register() == 8 { Exit::Cr8Write } else { Exit::CrAccess }
    }

    fn interrupt_window(&mut self) -> Exit {
        self.nmi_behind_sti = false;
        Exit::InterruptWindow
    }

    fn triple_fault(&self) -> Exit {
        // Whoever resets the vCPU finds it active.
        self.m.put(f::GUEST_ACTIVITY, activity::ACTIVE);
        Exit::Shutdown
    }

    /// See `Backend::skip_instruction`; past the cache, which has none of these fields so soon after an exit.
    pub(crate) fn step_over(&mut self) -> bool {
        let done = !self.cache.is_dirty() && self.step(self.length());
        if done {
            self.cache.forget(c::RIP);
        }
        done
    }

    /// The same in the VMCS alone, by an instruction of that length.
    #[inline(always)]
    pub(crate) fn step(&self, length: u32) -> bool {
        const SHADOW: u32 = interruptibility::STI | interruptibility::MOV_SS;
        let (m, rip) = (&self.m, self.m.get(f::GUEST_RIP));
        let next = rip.wrapping_add(u64::from(length));
        if (rip ^ next) >> 32 != 0
            || m.get(f::GUEST_INTERRUPTIBILITY) & SHADOW != 0
            || m.get(f::GUEST_RFLAGS) & (rflags::TF | rflags::RF) != 0
        {
            return false;
        }
        m.put(f::GUEST_RIP, next);
        true
    }

    fn length(&self) -> u32 {
        if self.length.get() == 0 {
            self.length.set(self.m.get(f::EXIT_INSTRUCTION_LENGTH));
        }
        self.length.get()
    }

    /// RIP behind the instruction that caused the exit. Outside 64-bit code RIP wraps at 32 bits.
    pub(crate) fn behind_instruction(&self) -> Option<u64> {
        // A failed entry has a reason of no instruction.
        if !self.exit_reason().basic().by_instruction() && !self.switched_by_instruction() {
            return None;
        }
        let length = self.length();
        if length == 0 || length > 15 {
            return None;
        }
        let rip = self.cache.get(&self.m, c::RIP);
        let next = rip.wrapping_add(u64::from(length));
        // Only an instruction that ends the first 4 GiB can tell 64-bit code from other code.
        let wraps = rip >> 32 == 0 && next >> 32 != 0;
        let long = wraps
            && crate::state::attributes(self.cache.get(&self.m, c::CS_ACCESS))
                & exitless_x86::regs::Segment::L
                != 0;
        Some(if wraps && !long { next & 0xffff_ffff } else { next })
    }
}

fn io(q: IoQualification) -> IoAccess {
    IoAccess { port: q.port(), size: q.size() + 1, input: q.input(), string: q.string(), rep: q.rep() }
}

/// The name of an exit number, in the words KVM's tools use for VMX.
pub fn name(number: u64) -> Option<&'static str> {
    Some(match R(u16::try_from(number).ok()?) {
        R::EXCEPTION_OR_NMI => "EXCEPTION_NMI",
        R::EXTERNAL_INTERRUPT => "EXTERNAL_INTERRUPT",
        R::TRIPLE_FAULT => "TRIPLE_FAULT",
        R::INIT => "INIT_SIGNAL",
        R::SIPI => "SIPI_SIGNAL",
        R::INTERRUPT_WINDOW => "INTERRUPT_WINDOW",
        R::NMI_WINDOW => "NMI_WINDOW",
        R::TASK_SWITCH => "TASK_SWITCH",
        R::CPUID => "CPUID",
        R::HLT => "HLT",
        R::INVD => "INVD",
        R::INVLPG => "INVLPG",
        R::RDPMC => "RDPMC",
        R::RDTSC => "RDTSC",
        R::VMCALL => "VMCALL",
        R::VMCLEAR => "VMCLEAR",
        R::VMLAUNCH => "VMLAUNCH",
        R::VMPTRLD => "VMPTRLD",
        R::VMPTRST => "VMPTRST",
        R::VMREAD => "VMREAD",
        R::VMRESUME => "VMRESUME",
        R::VMWRITE => "VMWRITE",
        R::VMXOFF => "VMOFF",
        R::VMXON => "VMON",
        R::CR_ACCESS => "CR_ACCESS",
        R::MOV_DR => "DR_ACCESS",
        R::IO => "IO_INSTRUCTION",
        R::RDMSR => "MSR_READ",
        R::WRMSR => "MSR_WRITE",
        R::ENTRY_GUEST_STATE => "INVALID_STATE",
        R::ENTRY_MSR_LOADING => "MSR_LOAD_FAIL",
        R::MWAIT => "MWAIT_INSTRUCTION",
        R::MONITOR_TRAP_FLAG => "MONITOR_TRAP_FLAG",
        R::MONITOR => "MONITOR_INSTRUCTION",
        R::PAUSE => "PAUSE_INSTRUCTION",
        R::ENTRY_MACHINE_CHECK => "MCE_DURING_VMENTRY",
        R::TPR_BELOW_THRESHOLD => "TPR_BELOW_THRESHOLD",
        R::APIC_ACCESS => "APIC_ACCESS",
        R::VIRTUALIZED_EOI => "EOI_INDUCED",
        R::GDTR_IDTR => "GDTR_IDTR",
        R::LDTR_TR => "LDTR_TR",
        R::EPT_VIOLATION => "EPT_VIOLATION",
        R::EPT_MISCONFIGURATION => "EPT_MISCONFIG",
        R::INVEPT => "INVEPT",
        R::RDTSCP => "RDTSCP",
        R::PREEMPTION_TIMER => "PREEMPTION_TIMER",
        R::INVVPID => "INVVPID",
        R::WBINVD => "WBINVD",
        R::XSETBV => "XSETBV",
        R::APIC_WRITE => "APIC_WRITE",
        R::RDRAND => "RDRAND",
        R::INVPCID => "INVPCID",
        R::VMFUNC => "VMFUNC",
        R::ENCLS => "ENCLS",
        R::RDSEED => "RDSEED",
        R::PML_FULL => "PML_FULL",
        R::XSAVES => "XSAVES",
        R::XRSTORS => "XRSTORS",
        R::PCONFIG => "PCONFIG",
        R::UMWAIT => "UMWAIT",
        R::TPAUSE => "TPAUSE",
        R::LOADIWKEY => "LOADIWKEY",
        R::ENCLV => "ENCLV",
        R::BUS_LOCK => "BUS_LOCK",
        R::SEAMCALL => "SEAMCALL",
        R::TDCALL => "TDCALL",
        _ => return None,
    })
}
