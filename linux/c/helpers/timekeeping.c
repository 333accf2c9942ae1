// SPDX-License-Identifier: MIT OR GPL-2.0-only
/* linux/timekeeping.h, asm/tsc.h: clocks, all in nanoseconds. */
#include <linux/ktime.h>
#include <linux/timekeeping.h>
#include <linux/irqflags.h>
#include <asm/tsc.h>
#include "helpers.h"

u64 ex_monotonic_ns(void)
{
	return ktime_get_ns();
}

u64 ex_boottime_ns(void)
{
	return ktime_get_boottime_ns();
}

u64 ex_raw_ns(void)
{
	return ktime_get_raw_ns();
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

u64 ex_rdtsc_ordered(void)
{
	return rdtsc_ordered();
}

/*
 * One instant on several clocks. False when the kernel's clock source is not the TSC: an older kernel does not
 * name its source, so ask whether the cycle count lies between two reads of the TSC.
 */
bool ex_clock_snapshot(struct ex_clock_snapshot *out)
{
	struct system_time_snapshot snap;
	u64 before, after;
	s64 real_to_boot;
	unsigned long flags;

	local_irq_save(flags);
	before = rdtsc_ordered();
	ktime_get_snapshot(&snap);
	after = rdtsc_ordered();
	real_to_boot = ktime_to_ns(ktime_mono_to_any(0, TK_OFFS_BOOT)) - ktime_to_ns(ktime_mono_to_any(0, TK_OFFS_REAL));
	local_irq_restore(flags);
	out->tsc = snap.cycles;
	out->raw_ns = ktime_to_ns(snap.raw);
	out->real_ns = ktime_to_ns(snap.real);
	out->boot_ns = out->real_ns + real_to_boot;
	return before <= snap.cycles && snap.cycles <= after && !check_tsc_unstable();
}
