// SPDX-License-Identifier: MIT OR GPL-2.0-only
/* linux/eventfd.h. */
#include <linux/err.h>
#include <linux/eventfd.h>
#include "apic_timer.h"
#include "helpers.h"

int ex_eventfd_get(int fd, void **out)
{
	struct eventfd_ctx *ctx = eventfd_ctx_fdget(fd);

	if (IS_ERR(ctx))
		return PTR_ERR(ctx);
	*out = ctx;
	return 0;
}

void ex_eventfd_put(void *ctx)
{
	eventfd_ctx_put(ctx);
}

/* May ex_eventfd_signal() be called? On PREEMPT_RT its lock sleeps. */
bool ex_eventfd_may_signal(void)
{
	return !IS_ENABLED(CONFIG_PREEMPT_RT) || !irqs_disabled();
}

/* Any context, see above. */
void ex_eventfd_signal(void *ctx)
{
	ex_want_apic_timer();
#ifdef EX_HAVE_EVENTFD_SIGNAL_COUNT
	eventfd_signal(ctx, 1);
#else
	eventfd_signal(ctx);
#endif
}
