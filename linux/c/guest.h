/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * What the kernel wants to hear around the time in a guest, for both vendors.
 *
 * With context tracking (nohz_full), lockdep or interrupt-flag tracing that is a call at each entry and exit. Without them
 * all that is left is a quiescent state for RCU, and one for each slice of entries is enough: any interrupt, the tick among
 * them, ends a slice.
 */
#ifndef EX_GUEST_H
#define EX_GUEST_H

#include <linux/context_tracking.h>
#include <linux/kvm_host.h>
#include <linux/percpu.h>
#include "ex_config.h"

static __always_inline bool ex_guest_tracked(void)
{
	return IS_ENABLED(CONFIG_PROVE_LOCKING) || IS_ENABLED(CONFIG_TRACE_IRQFLAGS) || context_tracking_enabled();
}

/* Interrupts off, before each entry. No traced or instrumented function until ex_guest_exit(). */
static __always_inline void ex_guest_enter(void)
{
	if (ex_guest_tracked())
		guest_state_enter_irqoff();
}

/* After each exit. */
static __always_inline void ex_guest_exit(void)
{
	if (ex_guest_tracked())
		guest_state_exit_irqoff();
}

/* Once for a slice, interrupts off. */
static inline void ex_guest_slice(void)
{
	if (ex_guest_tracked())
		return;
#ifdef EX_HAVE_RCU_NOTE_CPU
	rcu_virt_note_context_switch(smp_processor_id());
#else
	rcu_virt_note_context_switch();
#endif
}

/* Which guest this CPU has run in this slice, and what it handles that made it exit: for perf's samples. */
struct ex_guest_seen {
	/* 0: none; EX_GUEST_IN_VMCS: the one of the current VMCS; else the address of its VMCB. */
	u64 where;
	u32 handled;
};
DECLARE_PER_CPU(struct ex_guest_seen, ex_guest_seen);

#define EX_GUEST_IN_VMCS	1

#define EX_HANDLED_NOTHING	0
#define EX_HANDLED_IRQ		1
#define EX_HANDLED_NMI		2

/* Around the handler of what made the guest exit. Preemption off. */
static __always_inline void ex_guest_handles(u32 what)
{
	raw_cpu_write(ex_guest_seen.handled, what);
	barrier();
}

/* vmx.c: of the current VMCS. */
unsigned long ex_vmx_guest_rip(void);
u32 ex_vmx_guest_cpl(void);

#endif
