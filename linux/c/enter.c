// SPDX-License-Identifier: MIT OR GPL-2.0-only
/*
 * The way into the guest and back. Everything between ex_guest_enter() and ex_guest_exit()
 * runs while RCU believes this CPU is in user mode: no tracing, no instrumented function, so it is noinstr.
 */
#include <asm/mce.h>
#include <asm/nospec-branch.h>
#include <asm/ptrace.h>
#include <asm/segment.h>
#include "guest.h"
#include "mitigations.h"
#include "helpers/helpers.h"

/* enter-svm.S. 0 after a VM exit, 1 when SVM is off on this CPU and nothing was run. */
u32 ex_svm_run_asm(u64 vmcb_pa, u64 *regs, u64 host_save_pa, u64 guest_spec_ctrl, u64 host_spec_ctrl);

/* Interrupts off. See enter::svm in linux/host for the contract. */
noinstr u32 ex_svm_enter(u64 vmcb_pa, u64 *regs, u64 host_save_pa, u64 guest_spec_ctrl)
{
	u64 host_spec_ctrl = 0;
	u32 off;

#ifdef EX_HAVE_SPEC_CTRL_CURRENT
	host_spec_ctrl = raw_cpu_read_8(x86_spec_ctrl_current);
#endif
	ex_guest_enter();
	ex_clear_divider();
	off = ex_svm_run_asm(vmcb_pa, regs, host_save_pa, guest_spec_ctrl, host_spec_ctrl);
	ex_guest_exit();
	ex_guard_user_part();
	return off;
}

/*
 * The guest exited for a machine check, on either vendor. The intercept has eaten the exception, so the host's handler must
 * be called: it also clears MCG_STATUS.MCIP, without which the next machine check resets the machine. By a call, not by
 * "int $18": the handler takes one that hits the kernel for fatal. Interrupts off.
 */
void ex_machine_check(void)
{
#if defined(CONFIG_X86_MCE) && defined(EX_HAVE_DO_MACHINE_CHECK)
	/* As if it had hit the task in user mode: the guest's memory is the task's, and no kernel lock is held. */
	struct pt_regs regs = { .cs = __USER_CS, .flags = X86_EFLAGS_IF };

	do_machine_check(&regs);
#endif
}

/* Interrupts off, around one or more ex_svm_enter: the time between goes to the guest's account. */
void ex_guest_timing_enter(void)
{
	guest_timing_enter_irqoff();
	ex_guest_slice();
}

void ex_guest_timing_exit(void)
{
	guest_timing_exit_irqoff();
}

/* Lets pending interrupts in: the one that caused the exit, and the tick that must still count as guest time. */
void ex_irq_window(void)
{
	local_irq_enable();
	/* STI holds interrupts back for one instruction. */
	asm volatile("nop");
	local_irq_disable();
}
