// SPDX-License-Identifier: MIT OR GPL-2.0-only
/*
 * linux/user-return-notifier.h: registers that only user mode looks at stay a guest's in the CPU until it returns there. Where TIF
 * flags go with the CPU from task to task, whichever task returns first calls us.
 */
#include <linux/irqflags.h>
#include <linux/percpu.h>
#include <linux/smp.h>
#include <linux/user-return-notifier.h>
#include "../ex.h"
#include "helpers.h"

/* hw/svm and hw/vmx declare it for themselves, as the world switches. */
void ex_call_on_user_return(void);

struct ex_user_return {
	struct user_return_notifier notifier;
	bool on;
};
static DEFINE_PER_CPU(struct ex_user_return, ex_user_return);

/* Interrupts off. */
void ex_forget_user_return(void)
{
	struct ex_user_return *u = this_cpu_ptr(&ex_user_return);

	if (u->on) {
		u->on = false;
		user_return_notifier_unregister(&u->notifier);
	}
}

static void ex_on_user_return(struct user_return_notifier *notifier)
{
	unsigned long flags;

	/* Against an interrupt that turns virtualization off here. */
	local_irq_save(flags);
	if (this_cpu_read(ex_user_return.on)) {
		ex_forget_user_return();
		ex_rs_user_return(smp_processor_id());
	}
	local_irq_restore(flags);
}

/* Interrupts off: ex_rs_user_return() comes before this CPU is in user mode again. */
void ex_call_on_user_return(void)
{
	struct ex_user_return *u = this_cpu_ptr(&ex_user_return);

	if (u->on)
		return;
	u->on = true;
	u->notifier.on_user_return = ex_on_user_return;
	user_return_notifier_register(&u->notifier);
}
