// SPDX-License-Identifier: MIT OR GPL-2.0-only
/* linux/timekeeping.h, linux/pvclock_gtod.h, asm/tsc.h: clocks, all in nanoseconds. */
#include <linux/irq_work.h>
#include <linux/irqflags.h>
#include <linux/ktime.h>
#include <linux/notifier.h>
#include <linux/pvclock_gtod.h>
#include <linux/timekeeper_internal.h>
#include <linux/timekeeping.h>
#include <linux/workqueue.h>
#include <asm/tsc.h>
#include "helpers.h"

u64 ex_monotonic_ns(void)
{
	return ktime_get_ns();
}

u64 ex_real_ns(void)
{
	return ktime_get_real_ns();
}

u32 ex_tsc_khz(void)
{
	return tsc_khz;
}

bool ex_tsc_unstable(void)
{
	return check_tsc_unstable();
}

/* A CPU's TSC is behind another's: the kernel takes it for no clock any more, here and for itself. */
void ex_tsc_mark_unstable(void)
{
	if (!check_tsc_unstable())
		mark_tsc_unstable("exitless: a CPU's TSC is behind another's");
}

/*
 * One instant on several clocks. False when the kernel's clock source is not the TSC: an older kernel does not
 * name its source, so ask whether the cycle count lies between two reads of the TSC.
 */
bool ex_clock_snapshot(struct ex_clock_snapshot *out)
{
	struct system_time_snapshot snap;
	u64 before, after;
	s64 to_boot;
	unsigned long flags;

	local_irq_save(flags);
	before = rdtsc_ordered();
	ktime_get_snapshot(&snap);
	after = rdtsc_ordered();
	to_boot = ktime_to_ns(ktime_mono_to_any(0, TK_OFFS_BOOT));
	local_irq_restore(flags);
	out->base_ns = ktime_to_ns(snap.raw) + to_boot;
	out->real_ns = ktime_to_ns(snap.real);
	if (before <= snap.cycles && snap.cycles <= after && !check_tsc_unstable()) {
		out->tsc = snap.cycles;
		return true;
	}
	out->tsc = after;
	return false;
}

/*
 * Watches which clock source the kernel counts by. It tells at each tick, with its clocks locked: they can be read,
 * and anything be done, only after the interrupt that follows, and in a work.
 */
static bool ex_by_tsc;

static void ex_source_changed(struct work_struct *unused)
{
	ex_rs_clock_source_changed();
}

static DECLARE_WORK(ex_source_work, ex_source_changed);

static void ex_source_irq_fn(struct irq_work *unused)
{
	schedule_work(&ex_source_work);
}

static DEFINE_IRQ_WORK(ex_source_irq, ex_source_irq_fn);

static int ex_timekeeping(struct notifier_block *nb, unsigned long was_set, void *data)
{
	struct timekeeper *tk = data;
	bool by_tsc = tk->tkr_mono.clock->vdso_clock_mode == VDSO_CLOCKMODE_TSC;

	if (by_tsc != READ_ONCE(ex_by_tsc)) {
		WRITE_ONCE(ex_by_tsc, by_tsc);
		irq_work_queue(&ex_source_irq);
	}
	return 0;
}

static struct notifier_block ex_timekeeping_nb = { .notifier_call = ex_timekeeping };

void ex_timekeeping_setup(void)
{
	pvclock_gtod_register_notifier(&ex_timekeeping_nb);
}

void ex_timekeeping_teardown(void)
{
	pvclock_gtod_unregister_notifier(&ex_timekeeping_nb);
	irq_work_sync(&ex_source_irq);
	cancel_work_sync(&ex_source_work);
}
