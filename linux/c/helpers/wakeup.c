// SPDX-License-Identifier: MIT OR GPL-2.0-only
/*
 * asm/irq.h: vCPUs that sleep while hardware may post to them. Each is on the list of one CPU, which gets the wake-up vector when
 * something was posted: which of them is meant, their descriptors say.
 */
#define pr_fmt(fmt) "exitless: " fmt

#include <linux/cpuhotplug.h>
#include <linux/cpumask.h>
#include <linux/list.h>
#include <linux/percpu.h>
#include <linux/printk.h>
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
	/* The CPU goes away: nobody sleeps here. */
	bool closed;
};

static DEFINE_PER_CPU(struct ex_sleepers, ex_sleepers);
static int ex_leave_state;
/* The vector is ours. */
static bool ex_listening;

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

/*
 * Onto this CPU's list. Preemption off, interrupts on; it is on none. False: it is there, but must not sleep, for the CPU goes away. (A thread
 * that may not be moved just now, as a lock's holder with PREEMPT_RT, comes back to such a CPU.)
 */
bool ex_sleeper_add(void *sleeper)
{
	struct ex_sleepers *here = this_cpu_ptr(&ex_sleepers);
	struct ex_sleeper *s = sleeper;
	bool open;

	raw_spin_lock_irq(&here->lock);
	s->cpu = smp_processor_id();
	list_add_tail(&s->link, &here->list);
	open = !here->closed;
	raw_spin_unlock_irq(&here->lock);
	return open;
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

/* The CPU goes away. Those that sleep on its list look for another. */
static int ex_sleepers_leave(unsigned int cpu)
{
	struct ex_sleepers *there = per_cpu_ptr(&ex_sleepers, cpu);
	struct ex_sleeper *s;

	raw_spin_lock_irq(&there->lock);
	there->closed = true;
	list_for_each_entry(s, &there->list, link)
		ex_rs_sleeps_elsewhere(s->vcpu);
	raw_spin_unlock_irq(&there->lock);
	return 0;
}

static int ex_sleepers_come(unsigned int cpu)
{
	WRITE_ONCE(per_cpu_ptr(&ex_sleepers, cpu)->closed, false);
	return 0;
}

/* Whether hardware may post to vCPUs: who sleeps is woken. */
bool ex_sleepers_listen(void)
{
	return smp_load_acquire(&ex_listening);
}

/*
 * Process context, once /dev/kvm is ours: until then the vector may be a kvm.ko's, and there is no way to give it back. VMs that were made
 * before do without.
 */
void ex_sleepers_setup(void)
{
	int cpu, state;

	for_each_possible_cpu(cpu) {
		struct ex_sleepers *there = per_cpu_ptr(&ex_sleepers, cpu);

		raw_spin_lock_init(&there->lock);
		INIT_LIST_HEAD(&there->list);
	}
	state = cpuhp_setup_state_nocalls(CPUHP_AP_ONLINE_DYN, "exitless:sleepers", ex_sleepers_come, ex_sleepers_leave);
	if (state < 0) {
		pr_warn("IPI virtualization is not used: no place among the kernel's CPU callbacks (error %d)\n", state);
		return;
	}
	ex_leave_state = state;
	kvm_set_posted_intr_wakeup_handler(ex_wake_up);
	smp_store_release(&ex_listening, true);
}

/* No descriptor of ours is open, so there is no vCPU. While no kvm.ko can load. Waits until nobody is in the handler. */
void ex_sleepers_teardown(void)
{
	if (!ex_listening)
		return;
	ex_listening = false;
	kvm_set_posted_intr_wakeup_handler(NULL);
	cpuhp_remove_state_nocalls(ex_leave_state);
}
