//! `kvm_run`, the page shared with the VMM: exit reasons and one view structure per exit.

use bytemuck::{Pod, Zeroable};

pub const KVM_EXIT_UNKNOWN: u32 = 0;
pub const KVM_EXIT_EXCEPTION: u32 = 1;
pub const KVM_EXIT_IO: u32 = 2;
pub const KVM_EXIT_HYPERCALL: u32 = 3;
pub const KVM_EXIT_DEBUG: u32 = 4;
pub const KVM_EXIT_HLT: u32 = 5;
pub const KVM_EXIT_MMIO: u32 = 6;
pub const KVM_EXIT_IRQ_WINDOW_OPEN: u32 = 7;
pub const KVM_EXIT_SHUTDOWN: u32 = 8;
pub const KVM_EXIT_FAIL_ENTRY: u32 = 9;
pub const KVM_EXIT_INTR: u32 = 10;
pub const KVM_EXIT_SET_TPR: u32 = 11;
pub const KVM_EXIT_TPR_ACCESS: u32 = 12;
pub const KVM_EXIT_NMI: u32 = 16;
pub const KVM_EXIT_INTERNAL_ERROR: u32 = 17;
pub const KVM_EXIT_WATCHDOG: u32 = 21;
pub const KVM_EXIT_SYSTEM_EVENT: u32 = 24;
pub const KVM_EXIT_IOAPIC_EOI: u32 = 26;
pub const KVM_EXIT_HYPERV: u32 = 27;
pub const KVM_EXIT_X86_RDMSR: u32 = 29;
pub const KVM_EXIT_X86_WRMSR: u32 = 30;
pub const KVM_EXIT_DIRTY_RING_FULL: u32 = 31;
pub const KVM_EXIT_AP_RESET_HOLD: u32 = 32;
pub const KVM_EXIT_X86_BUS_LOCK: u32 = 33;
pub const KVM_EXIT_XEN: u32 = 34;
pub const KVM_EXIT_NOTIFY: u32 = 37;
/// Linux 6.8; comes with `-EFAULT`, not with 0.
pub const KVM_EXIT_MEMORY_FAULT: u32 = 39;

pub const KVM_INTERNAL_ERROR_EMULATION: u32 = 1;
pub const KVM_INTERNAL_ERROR_SIMUL_EX: u32 = 2;
pub const KVM_INTERNAL_ERROR_DELIVERY_EV: u32 = 3;
pub const KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON: u32 = 4;
pub const KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES: u64 = 1 << 0;

pub const KVM_EXIT_IO_IN: u8 = 0;
pub const KVM_EXIT_IO_OUT: u8 = 1;

pub const KVM_EXIT_HYPERV_SYNIC: u32 = 1;
pub const KVM_EXIT_HYPERV_HCALL: u32 = 2;
pub const KVM_EXIT_HYPERV_SYNDBG: u32 = 3;
pub const KVM_EXIT_XEN_HCALL: u32 = 1;

pub const KVM_SYSTEM_EVENT_SHUTDOWN: u32 = 1;
pub const KVM_SYSTEM_EVENT_RESET: u32 = 2;
pub const KVM_SYSTEM_EVENT_CRASH: u32 = 3;
pub const KVM_SYSTEM_EVENT_WAKEUP: u32 = 4;
pub const KVM_SYSTEM_EVENT_SUSPEND: u32 = 5;
pub const KVM_SYSTEM_EVENT_SEV_TERM: u32 = 6;

pub const KVM_MSR_EXIT_REASON_INVAL: u32 = 1 << 0;
pub const KVM_MSR_EXIT_REASON_UNKNOWN: u32 = 1 << 1;
pub const KVM_MSR_EXIT_REASON_FILTER: u32 = 1 << 2;

pub const KVM_NOTIFY_CONTEXT_INVALID: u32 = 1 << 0;

/// `kvm_run.flags`: the exit happened in system management mode.
pub const KVM_RUN_X86_SMM: u16 = 1 << 0;
/// `kvm_run.flags`: a bus lock was detected; set besides any exit reason.
pub const KVM_RUN_X86_BUS_LOCK: u16 = 1 << 1;

pub const SYNC_REGS_SIZE_BYTES: usize = 2048;
/// Bytes of the union at [`KVM_RUN_EXIT_OFFSET`].
pub const KVM_RUN_EXIT_SIZE: usize = 256;
/// Where the per-exit union starts in [`kvm_run`].
pub const KVM_RUN_EXIT_OFFSET: usize = 32;

/// The start of a vCPU's mapping. User space may write any byte at any time: read a field once, then judge the copy.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
pub struct kvm_run {
    /// In: leave KVM_RUN as soon as a userspace-injected interrupt could be delivered.
    pub request_interrupt_window: u8,
    /// In: complete what is pending, then return -EINTR without entering the guest. Never cleared by the kernel.
    pub immediate_exit: u8,
    pub padding1: [u8; 6],
    /// Out: `KVM_EXIT_*`.
    pub exit_reason: u32,
    pub ready_for_interrupt_injection: u8,
    /// Out: RFLAGS.IF.
    pub if_flag: u8,
    /// Out: `KVM_RUN_X86_*`.
    pub flags: u16,
    /// In and out: the task priority (CR8).
    pub cr8: u64,
    /// In and out: IA32_APIC_BASE.
    pub apic_base: u64,
    /// The union: read and write it through [`kvm_run::exit`] and [`kvm_run::exit_mut`].
    pub exit: [u8; KVM_RUN_EXIT_SIZE],
    pub kvm_valid_regs: u64,
    pub kvm_dirty_regs: u64,
    /// The union `s`; its `regs` member is [`crate::kvm_sync_regs`].
    pub s: [u8; SYNC_REGS_SIZE_BYTES],
}

impl kvm_run {
    /// The union seen as one exit's structure. `None` never happens for the `kvm_run_*` types of this file
    /// (all fit 256 bytes at alignment 8); a bigger type gets it.
    pub fn exit<T: Pod>(&self) -> Option<&T> {
        bytemuck::try_from_bytes(self.exit.get(..core::mem::size_of::<T>())?).ok()
    }

    /// As [`kvm_run::exit`], to fill in.
    pub fn exit_mut<T: Pod>(&mut self) -> Option<&mut T> {
        bytemuck::try_from_bytes_mut(self.exit.get_mut(..core::mem::size_of::<T>())?).ok()
    }
}

/// KVM_EXIT_UNKNOWN.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
pub struct kvm_run_hw {
    pub hardware_exit_reason: u64,
}

/// KVM_EXIT_FAIL_ENTRY.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
pub struct kvm_run_fail_entry {
    pub hardware_entry_failure_reason: u64,
    pub cpu: u32,
    pub pad: u32,
}

/// KVM_EXIT_EXCEPTION.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
pub struct kvm_run_ex {
    pub exception: u32,
    pub error_code: u32,
}

/// KVM_EXIT_IO: `count` transfers of `size` bytes; the bytes stand at `data_offset` from the start of `kvm_run`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
pub struct kvm_run_io {
    /// [`KVM_EXIT_IO_IN`] or [`KVM_EXIT_IO_OUT`].
    pub direction: u8,
    pub size: u8,
    pub port: u16,
    pub count: u32,
    pub data_offset: u64,
}

/// KVM_EXIT_DEBUG.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
pub struct kvm_debug_exit_arch {
    pub exception: u32,
    pub pad: u32,
    pub pc: u64,
    pub dr6: u64,
    pub dr7: u64,
}

/// KVM_EXIT_MMIO: at most 8 bytes at a time.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
pub struct kvm_run_mmio {
    pub phys_addr: u64,
    pub data: [u8; 8],
    pub len: u32,
    pub is_write: u8,
    pub pad: [u8; 3],
}

/// KVM_EXIT_HYPERCALL.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
pub struct kvm_run_hypercall {
    pub nr: u64,
    pub args: [u64; 6],
    pub ret: u64,
    /// 6.1 calls it `longmode`; later headers overlay 64-bit `flags` on this and `pad`.
    pub longmode: u32,
    pub pad: u32,
}

/// KVM_EXIT_TPR_ACCESS.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
pub struct kvm_run_tpr_access {
    pub rip: u64,
    pub is_write: u32,
    pub pad: u32,
}

/// KVM_EXIT_INTERNAL_ERROR.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
pub struct kvm_run_internal {
    /// `KVM_INTERNAL_ERROR_*`.
    pub suberror: u32,
    /// How many of `data` are valid.
    pub ndata: u32,
    pub data: [u64; 16],
}

/// KVM_EXIT_INTERNAL_ERROR with suberror KVM_INTERNAL_ERROR_EMULATION; `ndata` is then at least 1 (flags),
/// 3 with the instruction bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
pub struct kvm_run_emulation_failure {
    pub suberror: u32,
    pub ndata: u32,
    /// [`KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES`].
    pub flags: u64,
    pub insn_size: u8,
    pub insn_bytes: [u8; 15],
}

/// KVM_EXIT_SYSTEM_EVENT. The older name of `data[0]` is `flags`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
pub struct kvm_run_system_event {
    /// `KVM_SYSTEM_EVENT_*`; the header calls it `type`.
    pub type_: u32,
    pub ndata: u32,
    pub data: [u64; 16],
}

/// KVM_EXIT_IOAPIC_EOI (split irqchip).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
pub struct kvm_run_eoi {
    pub vector: u8,
}

/// KVM_EXIT_HYPERV; `u` is kept as words because nothing here fills it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
pub struct kvm_hyperv_exit {
    pub type_: u32,
    pub pad1: u32,
    pub u: [u64; 6],
}

/// KVM_EXIT_XEN; the header's union starts at offset 8.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
pub struct kvm_xen_exit {
    pub type_: u32,
    pub pad: u32,
    pub u: [u64; 9],
}

/// KVM_EXIT_X86_RDMSR and KVM_EXIT_X86_WRMSR.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
pub struct kvm_run_msr {
    /// Answer of user space: nonzero injects #GP.
    pub error: u8,
    pub pad: [u8; 7],
    /// `KVM_MSR_EXIT_REASON_*`.
    pub reason: u32,
    pub index: u32,
    pub data: u64,
}

/// KVM_EXIT_NOTIFY.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
pub struct kvm_run_notify {
    pub flags: u32,
}

/// KVM_EXIT_MEMORY_FAULT (Linux 6.8).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
pub struct kvm_run_memory_fault {
    pub flags: u64,
    pub gpa: u64,
    pub size: u64,
}
