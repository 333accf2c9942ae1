// SPDX-License-Identifier: MIT OR GPL-2.0-only
/*
 * asm/irq.h: vCPUs that sleep while hardware may post to them. Each is on the list of one CPU, which gets the wake-up vector when
 * something was posted: which of them is meant, their descriptors say.
 */
#include <linux/cpuhotplug.h>
#include <linux/cpumask.h>
#include <linux/list.h>
#include <linux/percpu.h>
#include <linux/slab.h>
#include <linux/spinlock.h>
#include <asm/irq.h>
#include <asm/irq_vectors.h>
#include "../ex.h"
#include "helpers.h"

/* hw/vmx/src/vapic.rs */
static_assert(POSTED_INTR_WAKEUP_VECTOR == 0xf1);

struct ex_sleepers {
	raw_spinlock_t lock;
	struct list_head list;
};

static DEFINE_PER_CPU(struct ex_sleepers, ex_sleepers);
static int ex_leave_state;

struct ex_sleeper {
	struct list_head link;
	void *vcpu;
	/* Whose list; its vCPU's thread alone moves it. */
	u32 cpu;
};

void *ex_sleeper_new(void *vcpu)
{
	struct ex_sleeper *s = kzalloc(sizeof(*s), GFP_KERNEL_ACCOUNT);

	if (s) {
		INIT_LIST_HEAD(&s->link);
		s->vcpu = vcpu;
	}
	return s;
}

/* It is on no list. */
void ex_sleeper_free(void *sleeper)
{
	kfree(sleeper);
}

/* Onto this CPU's list. Preemption off, interrupts on; it is on none. */
void ex_sleeper_add(void *sleeper)
{
	struct ex_sleepers *here = this_cpu_ptr(&ex_sleepers);
	struct ex_sleeper *s = sleeper;

	raw_spin_lock_irq(&here->lock);
	s->cpu = smp_processor_id();
	list_add_tail(&s->link, &here->list);
	raw_spin_unlock_irq(&here->lock);
}

/* Interrupts on; it is on one, this CPU's or another's. */
void ex_sleeper_remove(void *sleeper)
{
	struct ex_sleeper *s = sleeper;
	struct ex_sleepers *there = per_cpu_ptr(&ex_sleepers, s->cpu);

	raw_spin_lock_irq(&there->lock);
	list_del_init(&s->link);
	raw_spin_unlock_irq(&there->lock);
}

/* The wake-up vector, in its hard interrupt. The lists are as long as vCPUs went to sleep here and still do. */
static void ex_wake_up(void)
{
	struct ex_sleepers *here = this_cpu_ptr(&ex_sleepers);
	struct ex_sleeper *s;

	raw_spin_lock(&here->lock);
	list_for_each_entry(s, &here->list, link)
		ex_rs_posted(s->vcpu);
	raw_spin_unlock(&here->lock);
}

/* The CPU goes away; no thread of a vCPU runs on it any more. Those that sleep on its list look for another. */
static int ex_sleepers_leave(unsigned int cpu)
{
	struct ex_sleepers *there = per_cpu_ptr(&ex_sleepers, cpu);
	struct ex_sleeper *s;

	raw_spin_lock_irq(&there->lock);
	list_for_each_entry(s, &there->list, link)
		ex_rs_sleeps_elsewhere(s->vcpu);
	raw_spin_unlock_irq(&there->lock);
	return 0;
}

/* Process context. */
int ex_sleepers_setup(void)
{
	int cpu, state;

	for_each_possible_cpu(cpu) {
		struct ex_sleepers *there = per_cpu_ptr(&ex_sleepers, cpu);

		raw_spin_lock_init(&there->lock);
		INIT_LIST_HEAD(&there->list);
	}
	state = cpuhp_setup_state_nocalls(CPUHP_AP_ONLINE_DYN, "exitless:sleepers", NULL, ex_sleepers_leave);
	if (state < 0)
		return state;
	ex_leave_state = state;
	kvm_set_posted_intr_wakeup_handler(ex_wake_up);
	return 0;
}

/* There is no vCPU, and there will be none. Waits until nobody is in the handler. */
void ex_sleepers_teardown(void)
{
	if (!ex_leave_state)
		return;
	kvm_set_posted_intr_wakeup_handler(NULL);
	cpuhp_remove_state_nocalls(ex_leave_state);
	ex_leave_state = 0;
}
