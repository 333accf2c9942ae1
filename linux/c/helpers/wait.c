// SPDX-License-Identifier: MIT OR GPL-2.0-only
/* linux/wait.h: sleep until somebody says that something has changed. */
#include <linux/atomic.h>
#include <linux/sched.h>
#include <linux/slab.h>
#include <linux/wait.h>
#include "helpers.h"

struct ex_wait {
	wait_queue_head_t sleepers;
	atomic_t wakes;
};

void *ex_wait_new(void)
{
	struct ex_wait *w = kzalloc(sizeof(*w), GFP_KERNEL_ACCOUNT);

	if (w)
		init_waitqueue_head(&w->sleepers);
	return w;
}

void ex_wait_free(void *wait)
{
	kfree(wait);
}

u32 ex_wait_seen(const void *wait)
{
	const struct ex_wait *w = wait;

	return atomic_read_acquire(&w->wakes);
}

/* Returns when there was a wake since that many. Not as one who is busy or hangs: a waker may wait for user space's page. */
void ex_wait_sleep(void *wait, u32 seen)
{
	struct ex_wait *w = wait;

	wait_event_idle(w->sleepers, (u32)atomic_read_acquire(&w->wakes) != seen);
}

/* Any context but NMI. */
void ex_wait_wake(void *wait)
{
	struct ex_wait *w = wait;

	atomic_inc_return_release(&w->wakes);
	wake_up_all(&w->sleepers);
}
