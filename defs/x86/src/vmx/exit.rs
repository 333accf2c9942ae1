//! Why the guest was left: reasons, qualifications, and the errors of VMX instructions (SDM vol. 3C, 25.9 and 28.2;
//! vol. 3C, 31.4; vol. 3D, appendix C).

use bitfield_struct::bitfield;

/// The exit reason field (SDM vol. 3C, table 25-16).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExitReason(pub u32);

impl ExitReason {
    /// Bit 31: the VM entry failed; the guest did not run.
    pub const ENTRY_FAILURE: u32 = 1 << 31;

    /// Bits 15:0.
    pub const fn basic(self) -> BasicReason {
        BasicReason(self.0 as u16)
    }
    /// The VM entry failed after its checks of controls and host state.
    pub const fn entry_failed(self) -> bool {
        self.0 & Self::ENTRY_FAILURE != 0
    }
}

/// A basic exit reason (SDM vol. 3D, table C-1). Open: hardware extends it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BasicReason(pub u16);

#[allow(missing_docs)]
impl BasicReason {
    pub const EXCEPTION_OR_NMI: Self = Self(0);
    pub const EXTERNAL_INTERRUPT: Self = Self(1);
    pub const TRIPLE_FAULT: Self = Self(2);
    pub const INIT: Self = Self(3);
    pub const SIPI: Self = Self(4);
    pub const IO_SMI: Self = Self(5);
    pub const OTHER_SMI: Self = Self(6);
    pub const INTERRUPT_WINDOW: Self = Self(7);
    pub const NMI_WINDOW: Self = Self(8);
    pub const TASK_SWITCH: Self = Self(9);
    pub const CPUID: Self = Self(10);
    pub const GETSEC: Self = Self(11);
    pub const HLT: Self = Self(12);
    pub const INVD: Self = Self(13);
    pub const INVLPG: Self = Self(14);
    pub const RDPMC: Self = Self(15);
    pub const RDTSC: Self = Self(16);
    pub const RSM: Self = Self(17);
    pub const VMCALL: Self = Self(18);
    pub const VMCLEAR: Self = Self(19);
    pub const VMLAUNCH: Self = Self(20);
    pub const VMPTRLD: Self = Self(21);
    pub const VMPTRST: Self = Self(22);
    pub const VMREAD: Self = Self(23);
    pub const VMRESUME: Self = Self(24);
    pub const VMWRITE: Self = Self(25);
    pub const VMXOFF: Self = Self(26);
    pub const VMXON: Self = Self(27);
    pub const CR_ACCESS: Self = Self(28);
    pub const MOV_DR: Self = Self(29);
    pub const IO: Self = Self(30);
    pub const RDMSR: Self = Self(31);
    pub const WRMSR: Self = Self(32);
    pub const ENTRY_GUEST_STATE: Self = Self(33);
    pub const ENTRY_MSR_LOADING: Self = Self(34);
    pub const MWAIT: Self = Self(36);
    pub const MONITOR_TRAP_FLAG: Self = Self(37);
    pub const MONITOR: Self = Self(39);
    pub const PAUSE: Self = Self(40);
    pub const ENTRY_MACHINE_CHECK: Self = Self(41);
    pub const TPR_BELOW_THRESHOLD: Self = Self(43);
    pub const APIC_ACCESS: Self = Self(44);
    pub const VIRTUALIZED_EOI: Self = Self(45);
    pub const GDTR_IDTR: Self = Self(46);
    pub const LDTR_TR: Self = Self(47);
    pub const EPT_VIOLATION: Self = Self(48);
    pub const EPT_MISCONFIGURATION: Self = Self(49);
    pub const INVEPT: Self = Self(50);
    pub const RDTSCP: Self = Self(51);
    pub const PREEMPTION_TIMER: Self = Self(52);
    pub const INVVPID: Self = Self(53);
    pub const WBINVD: Self = Self(54);
    pub const XSETBV: Self = Self(55);
    pub const APIC_WRITE: Self = Self(56);
    pub const RDRAND: Self = Self(57);
    pub const INVPCID: Self = Self(58);
    pub const VMFUNC: Self = Self(59);
    pub const ENCLS: Self = Self(60);
    pub const RDSEED: Self = Self(61);
    pub const PML_FULL: Self = Self(62);
    pub const XSAVES: Self = Self(63);
    pub const XRSTORS: Self = Self(64);
    pub const PCONFIG: Self = Self(65);
    pub const SPP: Self = Self(66);
    pub const UMWAIT: Self = Self(67);
    pub const TPAUSE: Self = Self(68);
    pub const LOADIWKEY: Self = Self(69);
    pub const ENCLV: Self = Self(70);
    pub const BUS_LOCK: Self = Self(74);
    pub const INSTRUCTION_TIMEOUT: Self = Self(75);
    pub const SEAMCALL: Self = Self(76);
    pub const TDCALL: Self = Self(77);
    pub const RDMSRLIST: Self = Self(78);
    pub const WRMSRLIST: Self = Self(79);
    pub const URDMSR: Self = Self(80);
    pub const UWRMSR: Self = Self(81);
    pub const RDMSR_IMM: Self = Self(84);
    pub const WRMSR_IMM: Self = Self(85);

    /// An instruction caused the exit and has not executed: the exit-instruction length is valid, and no event was
    /// being delivered (SDM vol. 3C, 28.2.5; an instruction begins only when delivery is over).
    pub const fn by_instruction(self) -> bool {
        matches!(
            self,
            Self::CPUID
                | Self::GETSEC
                | Self::HLT
                | Self::INVD
                | Self::INVLPG
                | Self::RDPMC
                | Self::RDTSC
                | Self::RSM
                | Self::VMCALL
                | Self::VMCLEAR
                | Self::VMLAUNCH
                | Self::VMPTRLD
                | Self::VMPTRST
                | Self::VMREAD
                | Self::VMRESUME
                | Self::VMWRITE
                | Self::VMXOFF
                | Self::VMXON
                | Self::CR_ACCESS
                | Self::MOV_DR
                | Self::IO
                | Self::RDMSR
                | Self::WRMSR
                | Self::MWAIT
                | Self::MONITOR
                | Self::PAUSE
                | Self::GDTR_IDTR
                | Self::LDTR_TR
                | Self::INVEPT
                | Self::RDTSCP
                | Self::INVVPID
                | Self::WBINVD
                | Self::XSETBV
                | Self::RDRAND
                | Self::INVPCID
                | Self::VMFUNC
                | Self::ENCLS
                | Self::RDSEED
                | Self::XSAVES
                | Self::XRSTORS
                | Self::PCONFIG
                | Self::UMWAIT
                | Self::TPAUSE
                | Self::LOADIWKEY
                | Self::ENCLV
                | Self::SEAMCALL
                | Self::TDCALL
                | Self::RDMSRLIST
                | Self::WRMSRLIST
                | Self::URDMSR
                | Self::UWRMSR
                | Self::RDMSR_IMM
                | Self::WRMSR_IMM
        )
    }
}

/// Exit qualification of an EPT violation (SDM vol. 3C, table 28-7).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct EptViolation {
    pub read: bool,
    pub write: bool,
    pub fetch: bool,
    pub readable: bool,
    pub writable: bool,
    pub executable: bool,
    pub user_executable: bool,
    /// The guest linear address field is valid.
    pub linear_valid: bool,
    /// With `linear_valid`: the access was the final one; clear: to a paging structure, or its A/D update.
    pub final_access: bool,
    pub user: bool,
    pub writable_linear: bool,
    pub execute_disable: bool,
    pub nmi_unblocking: bool,
    pub shadow_stack: bool,
    pub supervisor_shadow_stack: bool,
    pub verification: bool,
    #[bits(48)]
    __: u64,
}

/// Exit qualification of an I/O instruction (SDM vol. 3C, table 28-5).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct IoQualification {
    /// Bytes minus one: 0, 1 or 3.
    #[bits(3)]
    pub size: u8,
    pub input: bool,
    pub string: bool,
    pub rep: bool,
    pub immediate: bool,
    #[bits(9)]
    __: u16,
    pub port: u16,
    __: u32,
}

/// Exit qualification of a control-register access (SDM vol. 3C, table 28-3).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct CrQualification {
    #[bits(4)]
    pub register: u8,
    /// 0 MOV to CR, 1 MOV from CR, 2 CLTS, 3 LMSW.
    #[bits(2)]
    pub access: u8,
    pub lmsw_memory: bool,
    __: bool,
    #[bits(4)]
    pub gpr: u8,
    #[bits(4)]
    __: u8,
    pub lmsw_source: u16,
    __: u32,
}

/// Values of [`CrQualification::access`].
#[allow(missing_docs)]
pub mod cr_access {
    pub const MOV_TO: u8 = 0;
    pub const MOV_FROM: u8 = 1;
    pub const CLTS: u8 = 2;
    pub const LMSW: u8 = 3;
}

/// Exit qualification of a task switch (SDM vol. 3C, table 28-2).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct TaskQualification {
    pub selector: u16,
    #[bits(14)]
    __: u16,
    /// 0 CALL, 1 IRET, 2 JMP, 3 a task gate in the IDT.
    #[bits(2)]
    pub source: u8,
    __: u32,
}

/// Values of [`TaskQualification::source`].
#[allow(missing_docs)]
pub mod task_source {
    pub const CALL: u8 = 0;
    pub const IRET: u8 = 1;
    pub const JMP: u8 = 2;
    pub const GATE: u8 = 3;
}

/// Exit qualification of a #DB: the bits that DR6 would get (SDM vol. 3C, table 28-1): B0 to B3, BD, BS.
pub const DB_QUALIFICATION: u64 = 0x600f;

/// Why a VMX instruction failed with a current VMCS (SDM vol. 3C, table 31-1). Open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InstructionError(pub u32);

#[allow(missing_docs)]
impl InstructionError {
    pub const VMCALL_IN_ROOT: Self = Self(1);
    pub const VMCLEAR_ADDRESS: Self = Self(2);
    pub const VMLAUNCH_NOT_CLEAR: Self = Self(4);
    pub const VMRESUME_NOT_LAUNCHED: Self = Self(5);
    pub const VMRESUME_AFTER_VMXOFF: Self = Self(6);
    pub const ENTRY_CONTROLS: Self = Self(7);
    pub const ENTRY_HOST_STATE: Self = Self(8);
    pub const VMPTRLD_ADDRESS: Self = Self(9);
    pub const VMPTRLD_REVISION: Self = Self(11);
    pub const UNSUPPORTED_FIELD: Self = Self(12);
    pub const READ_ONLY_FIELD: Self = Self(13);
    pub const ENTRY_BLOCKED_BY_MOV_SS: Self = Self(26);
    pub const INVEPT_OPERAND: Self = Self(28);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bit positions of the manual's tables, each written as a number here once more.
    #[test]
    fn qualifications() {
        let ept = EptViolation::from_bits(1 << 1 | 1 << 3 | 1 << 7 | 1 << 8 | 1 << 12);
        assert!(
            ept.write() && ept.readable() && ept.linear_valid() && ept.final_access() && ept.nmi_unblocking()
        );
        assert!(!ept.read() && !ept.fetch() && !ept.writable() && !ept.executable());
        let io = IoQualification::from_bits(0x03f8_0000 | 1 << 3 | 1 << 4 | 1 << 5 | 1 << 6 | 3);
        assert_eq!((io.port(), io.size()), (0x3f8, 3));
        assert!(io.input() && io.string() && io.rep() && io.immediate());
        let task = TaskQualification::from_bits(0x8000_0048);
        assert_eq!((task.selector(), task.source()), (0x48, task_source::JMP));
        let cr = CrQualification::from_bits(0xabcd_0f58);
        assert_eq!((cr.register(), cr.access(), cr.gpr(), cr.lmsw_source()), (8, 1, 15, 0xabcd));
        assert!(cr.lmsw_memory());
    }

    #[test]
    fn reasons() {
        let r = ExitReason(ExitReason::ENTRY_FAILURE | 33);
        assert!(r.entry_failed());
        assert_eq!(r.basic(), BasicReason::ENTRY_GUEST_STATE);
        assert!(BasicReason::CPUID.by_instruction());
        assert!(!BasicReason::EPT_VIOLATION.by_instruction());
        assert!(!BasicReason(60_000).by_instruction());
    }
}
