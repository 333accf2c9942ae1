/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * The local APIC's timer while a guest has it (hw/vmx/src/lend.rs): whoever is about to start or stop a timer of the kernel's on this CPU,
 * or to wake a thread, for which the scheduler may, has it given back first. Only slices lend it, with interrupts off.
 */
#ifndef EX_APIC_TIMER_H
#define EX_APIC_TIMER_H

#include <linux/percpu.h>
#include "helpers.h"

DECLARE_PER_CPU(bool, ex_apic_timer_lent);

/* hw/vmx/src/machine.rs calls it. */
void ex_note_apic_timer_lent(bool lent);

/* Any context: where interrupts are on nothing is lent, on whatever CPU. */
static inline void ex_want_apic_timer(void)
{
	if (unlikely(raw_cpu_read(ex_apic_timer_lent)))
		ex_rs_give_timer_back();
}

#endif
