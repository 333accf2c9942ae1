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

#endif
