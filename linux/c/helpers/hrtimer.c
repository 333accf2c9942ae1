// SPDX-License-Identifier: MIT OR GPL-2.0-only
/* linux/hrtimer.h: timers on CLOCK_MONOTONIC that fire in hard interrupt context, also on PREEMPT_RT. */
#include <linux/hrtimer.h>
#include <linux/slab.h>
#include "helpers.h"

struct ex_timer {
	struct hrtimer timer;
	void *cookie;
	u32 kind;
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
	return t;
}

void ex_timer_free(void *timer)
{
	struct ex_timer *t = timer;

	hrtimer_cancel(&t->timer);
	kfree(t);
}

void ex_timer_start(void *timer, u64 expires_ns, bool pinned)
{
	struct ex_timer *t = timer;

	hrtimer_start(&t->timer, ns_to_ktime(min_t(u64, expires_ns, KTIME_MAX)),
		      pinned ? HRTIMER_MODE_ABS_PINNED_HARD : HRTIMER_MODE_ABS_HARD);
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
