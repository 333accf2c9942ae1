//! This CPU and the others: interrupts, preemption, kicks, calls on other CPUs, debug registers.

use crate::Result;
use crate::errno::check;
use crate::ffi;
use bytemuck::ZeroableInOption;
use core::ffi::c_void;
use core::marker::PhantomData;
use core::num::NonZeroU8;
use core::ptr::NonNull;

/// The number of this CPU. Means something only while preemption or interrupts are off.
#[inline]
pub fn id() -> u32 {
    // SAFETY: reads a per-CPU variable.
    unsafe { ffi::ex_cpu_id() }
}

/// One more than the highest CPU number that can ever appear: the length of a per-CPU array.
pub fn count() -> usize {
    // SAFETY: reads a variable.
    unsafe { ffi::ex_cpu_possible() as usize }
}

/// Every CPU that can ever come online.
pub fn possible() -> impl Iterator<Item = u32> {
    // SAFETY: reads a mask.
    (0..count() as u32).filter(|&cpu| unsafe { ffi::ex_cpu_is_possible(cpu) })
}

/// Every CPU that is online now; the set may change as soon as this returns.
pub fn online() -> impl Iterator<Item = u32> {
    (0..count() as u32).filter(|&cpu| is_online(cpu))
}

/// Is it online now?
pub fn is_online(cpu: u32) -> bool {
    // SAFETY: reads a mask; the helper checks the number.
    unsafe { ffi::ex_cpu_is_online(cpu) }
}

/// How many are online now.
pub fn online_count() -> u32 {
    // SAFETY: reads a counter.
    unsafe { ffi::ex_cpu_online_count() }
}

/// The host's APIC id of a CPU.
pub fn apic_id(cpu: u32) -> Option<u32> {
    // SAFETY: the helper checks the number.
    let id = unsafe { ffi::ex_cpu_apic_id(cpu) };
    (id != u32::MAX).then_some(id)
}

/// KVM_X86_DISABLE_EXITS_* that guests may have on this host.
pub fn exits_to_disable() -> u64 {
    // SAFETY: reads CPU features and a parameter.
    unsafe { ffi::ex_exits_to_disable() }
}

/// The microcode's revision.
pub fn microcode() -> u32 {
    // SAFETY: reads a variable.
    unsafe { ffi::ex_cpu_microcode() }
}

/// Nobody needs to hear of this CPU's return to user mode any more. Interrupts are off.
pub fn forget_user_return() {
    // SAFETY: this CPU's own state.
    unsafe { ffi::ex_forget_user_return() }
}

/// The kernel uses SPEC_CTRL, so the entry code switches it.
pub fn has_spec_ctrl() -> bool {
    // SAFETY: reads what the kernel knows of its CPUs.
    unsafe { ffi::ex_host_has_spec_ctrl() }
}

/// The kernel has IBPB.
pub fn has_ibpb() -> bool {
    // SAFETY: as above.
    unsafe { ffi::ex_host_has_ibpb() }
}

/// Bits that SPEC_CTRL takes, on a CPU that has it.
pub fn spec_ctrl_bits() -> u64 {
    // SAFETY: tries values of a register that exists, and brings the kernel's back.
    unsafe { ffi::ex_spec_ctrl_bits() }
}

/// IA32_ARCH_CAPABILITIES, 0 on a CPU without it; and the bits of it that the kernel knows to be true besides.
pub fn arch_capabilities() -> (u64, u64) {
    // SAFETY: reads an MSR that CPUID announces, and variables.
    unsafe { (ffi::ex_arch_capabilities(), ffi::ex_immunities()) }
}

/// A guard must be dropped where it was made.
type NotSend = PhantomData<*mut ()>;

/// Preemption stays off while this lives.
#[must_use]
pub struct NoPreempt(NotSend);

impl NoPreempt {
    /// Turns preemption off (counts).
    pub fn new() -> Self {
        preempt_disable();
        NoPreempt(PhantomData)
    }
}

impl Default for NoPreempt {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for NoPreempt {
    fn drop(&mut self) {
        preempt_enable();
    }
}

/// Interrupts stay off while this lives, then return to what they were.
#[must_use]
pub struct NoIrq(usize, NotSend);

impl NoIrq {
    /// Turns interrupts off.
    pub fn new() -> Self {
        // SAFETY: saves RFLAGS, clears IF.
        NoIrq(unsafe { ffi::ex_irq_save() }, PhantomData)
    }
}

impl Default for NoIrq {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for NoIrq {
    fn drop(&mut self) {
        // SAFETY: restores what new() saved on this CPU.
        unsafe { ffi::ex_irq_restore(self.0) }
    }
}

/// By hand, for the run loop: must be balanced.
#[inline]
pub fn preempt_disable() {
    // SAFETY: counts; imbalance is a kernel warning, not undefined.
    unsafe { ffi::ex_preempt_disable() }
}

/// By hand: may schedule at once.
#[inline]
pub fn preempt_enable() {
    // SAFETY: counts.
    unsafe { ffi::ex_preempt_enable() }
}

/// Sends the reschedule IPI: a guest there exits. Any context. Nothing happens if the CPU is offline.
#[inline]
pub fn kick(cpu: u32) {
    // SAFETY: the helper checks the number.
    unsafe { ffi::ex_cpu_kick(cpu) }
}

/// Notifies the guest that runs there of posted interrupts, without an exit. Any context. Nothing happens if the CPU is
/// offline or runs no guest with posted interrupts.
#[inline]
pub fn post(cpu: u32) {
    // SAFETY: the helper checks the number.
    unsafe { ffi::ex_cpu_post(cpu) }
}

/// As [`post`], for a CPU that runs a guest now or did a moment ago: past the kernel's driver where it would do the same. Interrupts are
/// off.
#[inline(always)]
pub fn notify(cpu: u32) {
    // SAFETY: interrupts are off (the caller); the helper checks the number.
    unsafe { ffi::ex_notify(cpu) }
}

/// Runs `ex_rs_on_cpu(arg, op)` on one CPU and waits. `ENXIO`: it is not online. Interrupts on here.
pub fn on_one(cpu: u32, arg: *mut c_void, op: u32) -> Result<()> {
    // SAFETY: the arguments are only handed on; the helper checks the number.
    check(unsafe { ffi::ex_on_one_cpu(cpu, arg, op) }).map(drop)
}

/// An interrupt for another CPU that may run a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ipi {
    /// [`kick`].
    Kick,
    /// [`post`].
    Post,
}

impl Ipi {
    /// Any context.
    #[inline]
    pub fn send(self, cpu: u32) {
        match self {
            Self::Kick => kick(cpu),
            Self::Post => post(cpu),
        }
    }
}

/// CPUs that get the same interrupt together, for which the host's APIC may need one write. Interrupts are off from the second on until
/// it is sent.
#[must_use]
pub struct Together {
    first: Option<(Ipi, u32)>,
    set: Option<(NonNull<c_void>, NoIrq)>,
}

impl Together {
    /// Nobody.
    #[inline]
    pub const fn new() -> Self {
        Self { first: None, set: None }
    }

    /// One more; at once, if the others' interrupt is of the other kind.
    #[inline]
    pub fn add(&mut self, ipi: Ipi, cpu: u32) {
        match self.first {
            None => self.first = Some((ipi, cpu)),
            Some((kind, first)) if kind == ipi => self.gather(first, cpu),
            Some(_) => ipi.send(cpu),
        }
    }

    fn gather(&mut self, first: u32, cpu: u32) {
        // SAFETY: with interrupts off, from before the set is asked for until it is sent, nobody else uses this CPU's; the helpers
        // check the numbers.
        unsafe {
            if self.set.is_none() {
                let off = NoIrq::new();
                self.set = NonNull::new(ffi::ex_kick_set(false)).map(|set| (set, off));
                if let Some((set, _)) = &self.set {
                    ffi::ex_kick_add(set.as_ptr(), first);
                }
            }
            if let Some((set, _)) = &self.set {
                ffi::ex_kick_add(set.as_ptr(), cpu);
            }
        }
    }

    /// Interrupts them.
    #[inline]
    pub fn send(self) {
        match (self.first, &self.set) {
            (None, _) => {}
            (Some((ipi, cpu)), None) => ipi.send(cpu),
            // SAFETY: as in `gather`.
            (Some((Ipi::Kick, _)), Some((set, _))) => unsafe { ffi::ex_kick_all(set.as_ptr()) },
            // SAFETY: as in `gather`.
            (Some((Ipi::Post, _)), Some((set, _))) => unsafe { ffi::ex_post_all(set.as_ptr()) },
        }
    }
}

impl Default for Together {
    fn default() -> Self {
        Self::new()
    }
}

/// Sends the reschedule IPI to all of these CPUs together, as [`kick`] does to one. Any context but NMI; what the iterator does is
/// done with interrupts off.
pub fn kick_all(cpus: impl Iterator<Item = u32>) {
    let _here = NoIrq::new();
    // SAFETY: with interrupts off nobody else uses this CPU's set; the helpers check the numbers.
    unsafe {
        let set = ffi::ex_kick_set(false);
        cpus.for_each(|cpu| ffi::ex_kick_add(set, cpu));
        ffi::ex_kick_all(set);
    }
}

/// Interrupts all of these CPUs together, but for this one, and waits until each has answered: whoever was in guest mode there
/// has left it. Process context, interrupts on; not under a spin lock.
pub fn kick_all_and_wait(cpus: impl Iterator<Item = u32>) {
    let _here = NoPreempt::new();
    // SAFETY: with preemption off nobody else uses this CPU's set, for interrupts never do; the helpers check the numbers.
    unsafe {
        let set = ffi::ex_kick_set(true);
        cpus.for_each(|cpu| ffi::ex_kick_add(set, cpu));
        ffi::ex_kick_all_ack(set);
    }
}

/// A virtual machine is about to be; dropping says that it is gone. As long as there is one, CPUs that cannot run guests are
/// not let online.
pub struct VmCount(#[allow(dead_code)] NonZeroU8); // What makes None of all zeroes.

// SAFETY: the number is never zero, so all-zero is None.
unsafe impl ZeroableInOption for VmCount {}

impl VmCount {
    /// Process context; waits for CPUs on their way. `EBUSY`: a CPU is online that cannot run guests.
    pub fn one() -> Result<Self> {
        // SAFETY: counts; the drop is its pair.
        check(unsafe { ffi::ex_vm_born() }).map(|_| Self(NonZeroU8::MIN))
    }
}

impl Drop for VmCount {
    fn drop(&mut self) {
        // SAFETY: the pair of `one`.
        unsafe { ffi::ex_vm_gone() }
    }
}

/// Does the host use its debug registers on this CPU? Interrupts off.
#[inline]
pub fn host_breakpoints_active() -> bool {
    // SAFETY: reads a per-CPU variable.
    unsafe { ffi::ex_hw_breakpoint_active() }
}

/// Writes the host's debug registers back after a guest had its own in them. Interrupts off.
pub fn restore_host_breakpoints() {
    // SAFETY: restores what the kernel keeps per CPU.
    unsafe { ffi::ex_hw_breakpoint_restore() }
}

/// Makes the LDT of this task current again where VMLOAD may have brought back an older one. Preemption off, when the task
/// stops being a vCPU.
#[inline]
pub fn reload_ldt() {
    // SAFETY: loads the selector that is loaded, from the kernel's own descriptor.
    unsafe { ffi::ex_ldt_reload() }
}

/// Barrier against branch training by another guest: when a different vCPU comes to this CPU. Nothing happens where
/// the kernel does not use IBPB.
#[inline]
pub fn ibpb() {
    // SAFETY: writes PRED_CMD if the kernel says so.
    unsafe { ffi::ex_ibpb() }
}

/// The barrier that a guest asked for, for itself: also where the kernel does not use IBPB. `false`: the CPU has none.
/// Preemption off.
pub fn ibpb_for_guest() -> bool {
    // SAFETY: writes PRED_CMD if the CPU has it.
    unsafe { ffi::ex_ibpb_for_guest() }
}

/// Keeps guests' branch training from the host where the CPU can (SRSO, BpSpecReduce). Preemption off, before the first entry
/// on this CPU.
#[inline]
pub fn reduce_speculation() {
    // SAFETY: sets a bit of an MSR that the kernel says exists.
    unsafe { ffi::ex_svm_reduce_speculation() }
}

/// Undoes [`reduce_speculation`]. Preemption off.
pub fn restore_speculation() {
    // SAFETY: clears that bit if it was set here.
    unsafe { ffi::ex_svm_restore_speculation() }
}

/// The module's parameter `avic`.
pub fn wants_avic() -> bool {
    // SAFETY: reads a flag.
    unsafe { ffi::ex_svm_wants_avic() }
}

/// A VM is made: [`reduce_speculation`] lasts until [`guests_end`] says that none is left. Process context.
pub fn guests_begin() {
    // SAFETY: counts.
    unsafe { ffi::ex_guests_begin() }
}

/// A VM is gone, and its vCPUs. Process context.
pub fn guests_end() {
    // SAFETY: counts; the bit is cleared where it was set.
    unsafe { ffi::ex_guests_end() }
}

/// What SPEC_CTRL must hold while this CPU runs the host. Preemption off.
pub fn host_spec_ctrl() -> u64 {
    // SAFETY: reads a per-CPU variable.
    unsafe { ffi::ex_host_spec_ctrl() }
}

/// SVM is on, or off, here from now on: AMD's counters for hosts or guests alone follow. Interrupts off.
pub fn pmu_virt(on: bool) {
    // SAFETY: perf reprograms its counters of this CPU.
    unsafe { ffi::ex_pmu_virt(on) }
}
