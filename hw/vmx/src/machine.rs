//! What the backend asks of the CPU: the current VMCS, VMX instructions, MSRs, one entry. Tests answer with an array.

use crate::ops;
use crate::pmu::{LONGEST, Switched};
use crate::vcpu::Run;
use exitless_x86::vmx::field::{Access, Field, Rw, Width};

/// How to enter; linux/c/vmx.c knows the bits.
pub mod how {
    /// VMRESUME.
    pub const LAUNCHED: u32 = 1;
    /// The CPU may show the guest what is in its L1 data cache (L1TF), and the host wants that prevented.
    pub const GUARD_L1D: u32 = 2;
    /// Something that a guest could look for may be there.
    pub const L1D_DIRTY: u32 = 4;
}

/// What [`Machine::host_timer`] tells, above LVTT's vector; linux/c/vmx.c knows the bits.
pub mod host_timer {
    /// LVTT is in TSC-deadline mode, and not masked.
    pub const DEADLINE: u32 = 1 << 8;
    /// The kernel masks it, without a word in the deadline, when a thread runs alone on this CPU (nohz_full).
    pub const MAY_STOP: u32 = 1 << 9;
}

/// How an entry ended; what the world switch returns.
pub mod switched {
    /// The guest ran (or the entry failed late): the exit reason tells.
    pub const EXIT: u32 = 0;
    /// VMLAUNCH or VMRESUME failed: there is no current VMCS, or the instruction-error field tells.
    pub const FAILED: u32 = 1;
    /// The instruction faulted: VMX operation was left under us.
    pub const OFF: u32 = 2;
}

/// The selectors that a VM exit clears and a task may have set, and the bases that loading them again would change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct TaskSegments {
    pub ds: u16,
    pub es: u16,
    pub fs: u16,
    pub gs: u16,
    pub ldt: u16,
    pub fs_base: u64,
    /// The user's, which is in KERNEL_GS_BASE here; giving the others back leaves it to the caller.
    pub gs_base: u64,
}

/// The CPU. Methods are safe to call in the contexts that [`crate::residence`] and [`crate::enter`] establish: CPL 0, and
/// for VMCS accesses the vCPU's VMCS current here. Outside they fail cleanly: 0 or `false`.
pub trait Machine {
    /// VMREAD.
    fn vmread(&self, encoding: u32) -> u64;
    /// VMWRITE.
    fn vmwrite(&self, encoding: u32, value: u64) -> bool;
    /// VMCLEAR.
    fn vmclear(&self, pa: u64) -> bool;
    /// VMPTRLD.
    fn vmptrld(&self, pa: u64) -> bool;
    /// INVEPT.
    fn invept(&self, kind: u64, eptp: u64) -> bool;
    /// INVVPID.
    fn invvpid(&self, kind: u64, vpid: u16) -> bool;
    /// The world switch, with interrupts off; `how` are bits of [`how`] (others mean nothing),
    /// the result is one of [`switched`].
    fn enter(&self, run: &mut Run, how: u32) -> u32;
    /// Calls the host's handler of an interrupt that the exit has acknowledged. Interrupts are off.
    fn interrupt(&self, vector: u8);
    /// Calls the host's handler of machine checks: the exit has eaten the exception. Interrupts are off.
    fn machine_check(&self);
    /// Where a VM exit lands.
    fn exit_address(&self) -> u64;
    /// RDMSR.
    fn rdmsr(&self, msr: u32) -> u64;
    /// WRMSR.
    fn wrmsr(&self, msr: u32, value: u64);
    /// Before this CPU next returns to user mode, [`crate::PerCpu::take_back_lent`] is to be called. Preemption is off.
    fn call_on_user_return(&self);
    /// The registers of performance monitoring that must differ between host and guest now, to the front of `list`: how many.
    /// Interrupts are off.
    fn pmu_list(&self, list: &mut [Switched; LONGEST]) -> usize;
    /// RDTSC.
    fn tsc(&self) -> u64;
    /// RDTSC, behind all writes of MSRs before.
    fn tsc_behind(&self) -> u64 {
        self.tsc()
    }
    /// What LVTT of this CPU says: its vector, and bits of [`host_timer`]. Interrupts are off.
    fn host_timer(&self) -> u32;
    /// The vector is in the IRR of this CPU's APIC, behind all reads of MSRs before. Interrupts are off.
    fn interrupt_requested(&self, vector: u8) -> bool;
    /// LVTT of this CPU, in deadline mode, names this vector; before what follows. Interrupts are off.
    fn set_timer_vector(&self, vector: u8);
    /// Ends the interrupt in service in this CPU's APIC: one that an exit has acknowledged. Interrupts are off.
    fn end_interrupt(&self);
    /// From now on the kernel calls [`crate::PerCpu::give_timer_back`] before it starts or stops a timer on this CPU, or not any more.
    /// Interrupts are off.
    fn note_lent(&self, lent: bool);
    /// The host's CR3 now. Interrupts are off.
    fn host_cr3(&self) -> u64;
    /// Its CR4.
    fn host_cr4(&self) -> u64;
    /// DR6.
    fn dr6(&self) -> u64;
    /// Writes DR6.
    fn set_dr6(&self, value: u64);
    /// The task's selectors and bases. Interrupts are off.
    fn task_segments(&self) -> TaskSegments;
    /// Gives them back after VM exits, and the limits of GDT and TSS too.
    fn restore_task_segments(&self, s: &TaskSegments);
    /// Nobody may be scheduled in between.
    fn without_interrupts<R>(&self, f: impl FnOnce() -> R) -> R;
    /// An indirect-branch prediction barrier.
    fn branch_barrier(&self);

    /// A field's value.
    fn get<W: Width, A: Access>(&self, f: Field<W, A>) -> W::Value {
        W::value(self.vmread(f.encoding()))
    }
    /// Writes a field.
    fn put<W: Width>(&self, f: Field<W, Rw>, v: W::Value) {
        self.vmwrite(f.encoding(), W::raw(v));
    }
}

/// The real one.
#[derive(Clone, Copy, Debug, Default, bytemuck::Zeroable)]
pub struct Hardware;

unsafe extern "C" {
    /// The world switch (linux/c/vmx.c): 0 exit, 1 VMfail, 2 #UD.
    fn ex_vmx_enter(run: *mut Run, how: u32) -> u32;
    /// linux/c/helpers/user_return.c: the user-return notifier of this CPU.
    fn ex_call_on_user_return();
    /// linux/c/vmx.c: FS base and inactive GS base.
    fn ex_vmx_task_bases(fs: *mut u64, gs: *mut u64);
    /// linux/c/vmx.c: asks perf.
    fn ex_vmx_pmu_list(list: *mut Switched, longest: u32) -> u32;
    /// linux/c/vmx.c: through the IDT's gate.
    fn ex_vmx_interrupt(vector: u8);
    /// linux/c/enter.c: the host's handler.
    fn ex_machine_check();
    /// The label in linux/c/enter-vmx.S at which VM exits arrive.
    static ex_vmx_exit_here: u8;
    /// linux/c/vmx.c: loads selectors with the kernel's own, fault-proof macros.
    fn ex_vmx_restore_segments(ds: u16, es: u16, fs: u16, gs: u16, ldt: u16, fs_base: u64);
    /// linux/c/vmx.c: this CPU's APIC.
    fn ex_vmx_host_timer() -> u32;
    fn ex_vmx_interrupt_requested(vector: u8) -> bool;
    fn ex_vmx_set_timer_vector(vector: u8);
    fn ex_vmx_end_interrupt();
    /// linux/c/helpers/hrtimer.c.
    fn ex_note_apic_timer_lent(lent: bool);
    /// linux/c/vmx.c: what the kernel notes of CR3 and CR4.
    fn ex_vmx_host_cr3() -> u64;
    fn ex_vmx_host_cr4() -> u64;
    fn ex_ibpb();
}

impl Machine for Hardware {
    fn vmread(&self, encoding: u32) -> u64 {
        ops::vmread(encoding)
    }
    fn vmwrite(&self, encoding: u32, value: u64) -> bool {
        ops::vmwrite(encoding, value)
    }
    fn vmclear(&self, pa: u64) -> bool {
        ops::vmclear(pa)
    }
    fn vmptrld(&self, pa: u64) -> bool {
        ops::vmptrld(pa)
    }
    fn invept(&self, kind: u64, eptp: u64) -> bool {
        ops::invept(kind, eptp)
    }
    fn invvpid(&self, kind: u64, vpid: u16) -> bool {
        ops::invvpid(kind, vpid)
    }
    fn enter(&self, run: &mut Run, how: u32) -> u32 {
        // SAFETY: `run` has the layout that the world switch knows; interrupts are off and our VMCS is current (trait
        // contract of the caller, `Backend::enter`); otherwise VMLAUNCH fails and says so.
        unsafe { ex_vmx_enter(run, how) }
    }
    fn interrupt(&self, vector: u8) {
        // SAFETY: interrupts are off, and the CPU is in the host: as if the interrupt came now.
        unsafe { ex_vmx_interrupt(vector) };
    }
    fn machine_check(&self) {
        // SAFETY: interrupts are off, and the CPU is in the host.
        unsafe { ex_machine_check() };
    }
    fn exit_address(&self) -> u64 {
        (&raw const ex_vmx_exit_here).addr() as u64
    }
    fn rdmsr(&self, msr: u32) -> u64 {
        // SAFETY: the backend names syscall MSRs, FS and GS base, DEBUGCTL, TSC_AUX and, where the host's timer uses it, TSC_DEADLINE
        // only, where they exist.
        unsafe { exitless_hw_ops::rdmsr(msr) }
    }
    fn wrmsr(&self, msr: u32, value: u64) {
        // SAFETY: as in `rdmsr`, and PEBS_ENABLE when perf names it; guest values passed the policy's checks, and `put`
        // restores the host's. What `lend` takes the host's deadline away for is back before interrupts are on.
        unsafe { exitless_hw_ops::wrmsr(msr, value) };
    }
    fn call_on_user_return(&self) {
        // SAFETY: interrupts, and so preemption, are off.
        unsafe { ex_call_on_user_return() };
    }
    fn pmu_list(&self, list: &mut [Switched; LONGEST]) -> usize {
        // SAFETY: the list has that many entries, and interrupts are off.
        unsafe { ex_vmx_pmu_list(list.as_mut_ptr(), LONGEST as u32) as usize }
    }
    fn tsc(&self) -> u64 {
        exitless_hw_ops::rdtsc()
    }
    fn tsc_behind(&self) -> u64 {
        exitless_hw_ops::rdtsc_behind()
    }
    fn host_timer(&self) -> u32 {
        // SAFETY: reads registers of this CPU's APIC; interrupts are off.
        unsafe { ex_vmx_host_timer() }
    }
    fn interrupt_requested(&self, vector: u8) -> bool {
        // SAFETY: as above; there is an IRR bit for each vector.
        unsafe { ex_vmx_interrupt_requested(vector) }
    }
    fn set_timer_vector(&self, vector: u8) {
        // SAFETY: LVTT was in deadline mode when it was lent, and nobody but the lender changes it meanwhile; interrupts are off.
        unsafe { ex_vmx_set_timer_vector(vector) }
    }
    fn end_interrupt(&self) {
        // SAFETY: the exit has acknowledged an interrupt, whose handler will not run: this is its one EOI. Interrupts are off.
        unsafe { ex_vmx_end_interrupt() };
    }
    fn note_lent(&self, lent: bool) {
        // SAFETY: interrupts are off: a flag of this CPU's.
        unsafe { ex_note_apic_timer_lent(lent) };
    }
    fn host_cr3(&self) -> u64 {
        // SAFETY: reads what the kernel notes for this CPU; interrupts are off (`Backend::begin`).
        unsafe { ex_vmx_host_cr3() }
    }
    fn host_cr4(&self) -> u64 {
        // SAFETY: reads what the kernel notes for this CPU.
        unsafe { ex_vmx_host_cr4() }
    }
    fn dr6(&self) -> u64 {
        // SAFETY: CPL 0; a VM exit clears DR7 and so GD.
        unsafe { exitless_hw_ops::dr6() }
    }
    fn set_dr6(&self, value: u64) {
        // SAFETY: interrupts are off (`Backend::enter`), and the neutral value follows the exit.
        unsafe { exitless_hw_ops::set_dr6(value) };
    }
    fn task_segments(&self) -> TaskSegments {
        let (ds, es, fs, gs, ldt) = ops::selectors();
        let (mut fs_base, mut gs_base) = (0, 0);
        // SAFETY: two places for two words; interrupts are off (the caller is about to enter).
        unsafe { ex_vmx_task_bases(&raw mut fs_base, &raw mut gs_base) };
        TaskSegments { ds, es, fs, gs, ldt, fs_base, gs_base }
    }
    fn restore_task_segments(&self, s: &TaskSegments) {
        // SAFETY: the values that `task_segments` read of this task on this CPU.
        unsafe { ex_vmx_restore_segments(s.ds, s.es, s.fs, s.gs, s.ldt, s.fs_base) };
    }
    fn without_interrupts<R>(&self, f: impl FnOnce() -> R) -> R {
        ops::without_interrupts(f)
    }
    fn branch_barrier(&self) {
        // SAFETY: a barrier without operands, legal in any context.
        unsafe { ex_ibpb() };
    }
}
