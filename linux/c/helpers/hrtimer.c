// SPDX-License-Identifier: MIT OR GPL-2.0-only
/* linux/hrtimer.h: timers on CLOCK_MONOTONIC that fire in hard interrupt context, also on PREEMPT_RT. */
#include <linux/atomic.h>
#include <linux/cpumask.h>
#include <linux/hrtimer.h>
#include <linux/sched/isolation.h>
#include <linux/slab.h>
#include <linux/smp.h>
#include <linux/topology.h>
#include "apic_timer.h"
#include "helpers.h"

DEFINE_PER_CPU(bool, ex_apic_timer_lent);

/* Interrupts off. */
void ex_note_apic_timer_lent(bool lent)
{
	raw_cpu_write(ex_apic_timer_lent, lent);
}

struct ex_timer {
	struct hrtimer timer;
	void *cookie;
	u32 kind;
	/* To be queued by another CPU: which, plus one; for when, wherever it was started last. */
	u32 elsewhere;
	u64 expires;
	call_single_data_t csd;
	/* Calls that are on their way or run. */
	atomic_t calls;
};

static enum hrtimer_restart ex_timer_fire(struct hrtimer *timer)
{
	struct ex_timer *t = container_of(timer, struct ex_timer, timer);
	u64 next = ex_rs_timer_fired(t->cookie, t->kind);

	/*
	 * Not HRTIMER_RESTART: another CPU may have started the timer during the callback, and a queued timer must not get
	 * another expiry in place.
	 */
	if (next != U64_MAX)
		hrtimer_start(timer, ns_to_ktime(min_t(u64, next, KTIME_MAX)), HRTIMER_MODE_ABS_HARD);
	return HRTIMER_NORESTART;
}

/* A CPU that keeps house, of this node if there is one: each in turn, or all timers would be one's. */
static unsigned int ex_housekeeper(void)
{
	const struct cpumask *all = housekeeping_cpumask(HK_TYPE_TIMER);
	unsigned int cpu = cpumask_any_and_distribute(all, cpumask_of_node(numa_node_id()));

	if (cpu < nr_cpu_ids && cpu_online(cpu))
		return cpu;
	return cpumask_any_and_distribute(all, cpu_online_mask);
}

/*
 * The CPU that is called goes offline (CPUHP_AP_SMPCFD_DYING): its timers may have been migrated already, and one that is started now
 * would not fire before it is back. All other CPUs stand still, so nobody else makes the call. False: one is on its way, or cannot be.
 */
static bool ex_timer_pass_on(struct ex_timer *t)
{
	unsigned int cpu = ex_housekeeper();

	if (cpu >= nr_cpu_ids)
		cpu = cpumask_any(cpu_online_mask);
	if (smp_call_function_single_async(cpu, &t->csd))
		return false;
	t->elsewhere = cpu + 1;
	return true;
}

/* On the CPU that shall have it, interrupts off. */
static void ex_timer_queue(void *info)
{
	struct ex_timer *t = info;
	u64 expires;

	if (unlikely(!cpu_online(smp_processor_id()))) {
		if (ex_timer_pass_on(t))
			return;
		goto out;
	}
	/* A call to one's own CPU comes out of a slice. */
	ex_want_apic_timer();
	/* The thread may start it anew meanwhile, anywhere: who starts it last has the newest time. */
	do {
		expires = READ_ONCE(t->expires);
		hrtimer_start(&t->timer, ns_to_ktime(expires), HRTIMER_MODE_ABS_PINNED_HARD);
		smp_mb();
	} while (READ_ONCE(t->expires) != expires);
out:
	/* From here on it may be freed. */
	atomic_fetch_dec_release(&t->calls);
}

void *ex_timer_new(void *cookie, u32 kind)
{
	struct ex_timer *t = kzalloc(sizeof(*t), GFP_KERNEL_ACCOUNT);

	if (!t)
		return NULL;
	t->cookie = cookie;
	t->kind = kind;
#ifdef EX_HAVE_HRTIMER_SETUP
	hrtimer_setup(&t->timer, ex_timer_fire, CLOCK_MONOTONIC, HRTIMER_MODE_ABS_HARD);
#else
	hrtimer_init(&t->timer, CLOCK_MONOTONIC, HRTIMER_MODE_ABS_HARD);
	t->timer.function = ex_timer_fire;
#endif
	INIT_CSD(&t->csd, ex_timer_queue, t);
	return t;
}

void ex_timer_free(void *timer)
{
	struct ex_timer *t = timer;

	/*
	 * A second call would not tell: those that somebody waits for overtake others (__flush_smp_call_function_queue()). Nobody starts
	 * it any more, and a CPU that goes offline takes its calls before.
	 */
	atomic_cond_read_acquire(&t->calls, !VAL);
	hrtimer_cancel(&t->timer);
	kfree(t);
}

void ex_timer_start(void *timer, u64 expires_ns, bool pinned)
{
	struct ex_timer *t = timer;
	u64 expires = min_t(u64, expires_ns, KTIME_MAX);

	/* For a call on its way, which may start the timer behind this: it looks again, behind the timer's lock. */
	WRITE_ONCE(t->expires, expires);
	ex_want_apic_timer();
	hrtimer_start(&t->timer, ns_to_ktime(expires),
		      pinned ? HRTIMER_MODE_ABS_PINNED_HARD : HRTIMER_MODE_ABS_HARD);
}

/*
 * Queues, or moves, the timer to a CPU that keeps house: by a call there, as this CPU may program another's for later than its next
 * event only. Always the same CPU while that is online, so that one call at most is on its way. If there is none, here. Preemption
 * off, by one starter at a time.
 */
void ex_timer_start_elsewhere(void *timer, u64 expires_ns)
{
	struct ex_timer *t = timer;
	unsigned int cpu = t->elsewhere - 1;
	int err;

	if (!t->elsewhere || !cpu_online(cpu))
		cpu = ex_housekeeper();
	WRITE_ONCE(t->expires, min_t(u64, expires_ns, KTIME_MAX));
	/* Against the barrier in ex_timer_queue(): a call that is busy still looks at it (again). */
	smp_mb();
	atomic_inc(&t->calls);
	err = cpu < nr_cpu_ids ? smp_call_function_single_async(cpu, &t->csd) : -ENXIO;
	if (!err) {
		t->elsewhere = cpu + 1;
		return;
	}
	atomic_dec(&t->calls);
	if (err != -EBUSY)
		ex_timer_start(timer, expires_ns, true);
}

/* By the callback, on its CPU: not the newest time, if others start the timer meanwhile. */
void ex_timer_start_again(void *timer, u64 expires_ns)
{
	struct ex_timer *t = timer;

	hrtimer_start(&t->timer, ns_to_ktime(min_t(u64, expires_ns, KTIME_MAX)), HRTIMER_MODE_ABS_PINNED_HARD);
}

/* Some CPUs are isolated, and others keep house for them. */
bool ex_keeps_house(void)
{
	return housekeeping_enabled(HK_TYPE_TIMER);
}

/* Waits for a running callback. True when the timer was queued. */
bool ex_timer_cancel(void *timer)
{
	struct ex_timer *t = timer;

	return hrtimer_cancel(&t->timer);
}

/* 1 was queued, 0 was not, -1 the callback is running. */
int ex_timer_try_cancel(void *timer)
{
	struct ex_timer *t = timer;

	ex_want_apic_timer();
	return hrtimer_try_to_cancel(&t->timer);
}

/* A timer that is queued is from now on queued on this CPU. Process context; waits for a running callback. */
void ex_timer_bring(void *timer)
{
	struct ex_timer *t = timer;

	if (hrtimer_cancel(&t->timer))
		hrtimer_start_expires(&t->timer, HRTIMER_MODE_ABS_PINNED_HARD);
}

u64 ex_timer_expires(const void *timer)
{
	const struct ex_timer *t = timer;

	return ktime_to_ns(hrtimer_get_expires(&t->timer));
}
