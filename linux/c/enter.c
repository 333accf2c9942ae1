// SPDX-License-Identifier: MIT OR GPL-2.0-only
/*
 * The way into the guest and back. Everything between ex_guest_enter() and ex_guest_exit()
 * runs while RCU believes this CPU is in user mode: no tracing, no instrumented function, so it is noinstr.
 */
#include <linux/build_bug.h>
#include <linux/moduleparam.h>
#include <linux/stddef.h>
#include <asm/asm.h>
#include <asm/mce.h>
#include <asm/nospec-branch.h>
#include <asm/ptrace.h>
#include <asm/segment.h>
#include <asm/svm.h>
#include "guest.h"
#include "mitigations.h"
#include "helpers/helpers.h"

#if defined(CONFIG_X86_MCE) && !defined(EX_HAVE_DO_MACHINE_CHECK)
#error "this kernel keeps its machine check handler to its own KVM: a machine check under a guest would be lost"
#endif
#ifndef EX_HAVE_SPEC_CTRL_CURRENT
#error "this kernel does not tell its SPEC_CTRL: behind a guest the host would run without its protections"
#endif
#if defined(EX_NEEDS_IBPB_EXIT_TO_USER) && !defined(EX_HAVE_IBPB_EXIT_TO_USER)
#error "this kernel keeps x86_ibpb_exit_to_user to its own KVM: no barrier against VMSCAPE"
#endif

/* The guest's SPEC_CTRL; open: the guest writes it without an exit. hw/svm/src/vcpu.rs, struct SpecCtrl, is the same. */
struct ex_spec_ctrl {
	u64 guest;
	u64 open;
};

/* enter-svm.S knows the offsets. */
static_assert(offsetof(struct ex_spec_ctrl, guest) == 0);
static_assert(offsetof(struct ex_spec_ctrl, open) == 8);

/* enter-svm.S. 0 after a VM exit, 1 when SVM is off on this CPU and nothing was run. */
u32 ex_svm_run_asm(u64 vmcb_pa, u64 *regs, u64 host_save_pa, struct ex_spec_ctrl *spec_ctrl,
		   u64 host_spec_ctrl);

/*
 * Runs the guest of one VMCB, at vmcb and vmcb_pa, until its next exit.
 *
 * regs holds the general registers in encoding order; slots 0 (rax) and 4 (rsp) belong to the VMCB and are neither read nor
 * written. The guest's FS, GS, TR, LDTR, STAR, LSTAR, CSTAR, SFMASK, KernelGSBase and SYSENTER registers are loaded from the
 * VMCB and saved to it. SPEC_CTRL is the guest's for the run, on CPUs that do not virtualise it by spec_ctrl: writes to it are
 * intercepted unless that says that it is open. On return the host's SPEC_CTRL, return stack and branch predictor are as its
 * mitigations want them.
 *
 * Interrupts are off, GIF is set. No other CPU uses the VMCB. host_save_pa holds a VMSAVE made on this CPU by this task since
 * it was scheduled in. XCR0, XSS, debug registers and FPU are the guest's already, and the caller brings the host's back: an
 * NMI that made the guest exit still runs on them, as on VMX. host_debugctl: what DEBUGCTL is set to behind the exit; 0: leave it.
 */
noinstr u32 ex_svm_enter(const void *vmcb, u64 vmcb_pa, u64 *regs, u64 host_save_pa, struct ex_spec_ctrl *spec_ctrl,
			 u64 host_debugctl)
{
	u64 host_spec_ctrl = raw_cpu_read_8(x86_spec_ctrl_current);
	u32 off;

	raw_cpu_write(ex_guest_seen.where, (u64)vmcb);
	ex_guest_enter();
	ex_clear_divider();
	off = ex_svm_run_asm(vmcb_pa, regs, host_save_pa, spec_ctrl, host_spec_ctrl);
	/* Before GIF lets NMIs in: perf's handler finds, and changes, the host's. */
	if (host_debugctl)
		native_wrmsrl(MSR_IA32_DEBUGCTLMSR, host_debugctl);
	/* An NMI that made the guest exit waits for GIF. */
	if (!off && ((const struct vmcb *)vmcb)->control.exit_code == SVM_EXIT_NMI)
		ex_guest_handles(EX_HANDLED_NMI);
	/* #UD when SVM was turned off before CLGI: then GIF is set. */
	asm volatile("1: stgi\n\tnop\n2:\n" _ASM_EXTABLE(1b, 2b) : : : "memory");
	ex_guest_handles(EX_HANDLED_NOTHING);
	ex_guest_exit();
	ex_guard_user_part();
	return off;
}

/* DEBUGCTL of the host: single-stepping by branches, last-branch records, bus-lock traps. Interrupts off. */
u64 ex_svm_debugctl(void)
{
	u64 value;

	rdmsrl(MSR_IA32_DEBUGCTLMSR, value);
	return value;
}

void ex_svm_set_debugctl(u64 value)
{
	wrmsrl(MSR_IA32_DEBUGCTLMSR, value);
}

/*
 * The guest exited for a machine check, on either vendor. The intercept has eaten the exception, so the host's handler must
 * be called: it also clears MCG_STATUS.MCIP, without which the next machine check resets the machine. By a call, not by
 * "int $18": the handler takes one that hits the kernel for fatal. Interrupts off.
 */
void ex_machine_check(void)
{
#ifdef CONFIG_X86_MCE
	/* As if it had hit the task in user mode: the guest's memory is the task's, and no kernel lock is held. */
	struct pt_regs regs = { .cs = __USER_CS, .flags = X86_EFLAGS_IF };

	do_machine_check(&regs);
#endif
}

/* Around one or more entries: no interrupt, no other task, and the time between goes to the guest's account. */
void ex_slice_begin(void)
{
	preempt_disable();
	local_irq_disable();
	guest_timing_enter_irqoff();
	ex_guest_slice();
}

void ex_slice_end(void)
{
	/* Lets pending interrupts in: the one that caused the exit, and the tick that must still count as guest time. */
	if (this_cpu_read(ex_guest_seen.where))
		ex_guest_handles(EX_HANDLED_IRQ);
	local_irq_enable();
	/* STI holds interrupts back for one instruction. */
	asm volatile("nop");
	local_irq_disable();
	ex_guest_handles(EX_HANDLED_NOTHING);
	/* The next slice may be another guest's, and end before it has run. */
	this_cpu_write(ex_guest_seen.where, 0);
	guest_timing_exit_irqoff();
	local_irq_enable();
	preempt_enable();
}

/* modprobe exitless avic=1. Off until somebody has run it: no emulator has AVIC. Read once, at load. */
static bool ex_avic;
module_param_named(avic, ex_avic, bool, 0444);
MODULE_PARM_DESC(avic, "Let AMD CPUs deliver interrupts and send IPIs by themselves where they can (default: off; untested on hardware)");

bool ex_svm_wants_avic(void)
{
	return ex_avic;
}
