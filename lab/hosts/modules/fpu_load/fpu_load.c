// SPDX-License-Identifier: MIT OR GPL-2.0-only
/*
 * A host that uses the kernel's FPU in softirqs on every CPU, as network encryption and the random pool do, and that looks at
 * whose state it runs in: XCR0, IA32_XSS, PKRU, SPEC_CTRL and DR7's enable bits must be the host's, whatever guest the interrupt
 * came out of.
 *
 * Counters, as parameters to read: runs; xcr0, xss, pkru, spec_ctrl, dr7: runs that found a guest's; lost: runs whose registers
 * changed.
 */
#include <linux/cpu.h>
#include <linux/hrtimer.h>
#include <linux/module.h>
#include <linux/percpu.h>
#include <linux/smp.h>
#include <asm/debugreg.h>
#include <asm/fpu/api.h>
#include <asm/fpu/xcr.h>
#include <asm/msr.h>
#include <asm/nospec-branch.h>
#include <asm/special_insns.h>

#define COUNTER(name)				\
	static unsigned long name;		\
	module_param(name, ulong, 0444)

COUNTER(runs);
COUNTER(xcr0);
COUNTER(xss);
COUNTER(pkru);
COUNTER(spec_ctrl);
COUNTER(dr7);
COUNTER(lost);

static unsigned long period_us = 500;
module_param(period_us, ulong, 0444);
MODULE_PARM_DESC(period_us, "Time from one run to the next on each CPU, microseconds (default: 500)");

static u64 host_xcr0, host_xss;
static bool has_xss;
/* What every task of the lab's host has. */
static u32 tasks_pkru;
static DEFINE_PER_CPU(struct hrtimer, timers);

/* Rough counts are enough: CPUs may lose one another's. */
static void bump(unsigned long *counter)
{
	WRITE_ONCE(*counter, READ_ONCE(*counter) + 1);
}

/* As wide as the host has them. Between kernel_fpu_begin() and kernel_fpu_end(). */
static bool registers_keep(void)
{
	u8 pattern[64] __aligned(64), back[64] __aligned(64);

	memset(pattern, 0xa5, sizeof(pattern));
	memset(back, 0, sizeof(back));
	if (host_xcr0 & XFEATURE_MASK_AVX512) {
		asm volatile("vmovdqu64 %1, %%zmm31\n\tvpaddd %%zmm31, %%zmm31, %%zmm0\n\tvmovdqu64 %%zmm31, %0"
			     : "=m" (back) : "m" (pattern));
		return !memcmp(pattern, back, 64);
	}
	if (host_xcr0 & XFEATURE_MASK_YMM) {
		asm volatile("vmovdqu %1, %%ymm15\n\tvxorps %%ymm0, %%ymm0, %%ymm0\n\tvmovdqu %%ymm15, %0"
			     : "=m" (back) : "m" (pattern));
		return !memcmp(pattern, back, 32);
	}
	asm volatile("movdqu %1, %%xmm15\n\tpxor %%xmm0, %%xmm0\n\tmovdqu %%xmm15, %0" : "=m" (back) : "m" (pattern));
	return !memcmp(pattern, back, 16);
}

static enum hrtimer_restart run(struct hrtimer *timer)
{
	unsigned long debug;
	u64 value;

	if (host_xcr0 && xgetbv(XCR_XFEATURE_ENABLED_MASK) != host_xcr0) {
		/* The kernel's own use of the FPU would fault here. */
		bump(&xcr0);
		goto out;
	}
	if (has_xss) {
		rdmsrl(MSR_IA32_XSS, value);
		if (value != host_xss)
			bump(&xss);
	}
	if (boot_cpu_has(X86_FEATURE_OSPKE) && rdpkru() != tasks_pkru)
		bump(&pkru);
	if (boot_cpu_has(X86_FEATURE_MSR_SPEC_CTRL)) {
		rdmsrl(MSR_IA32_SPEC_CTRL, value);
		if (value != this_cpu_read(x86_spec_ctrl_current))
			bump(&spec_ctrl);
	}
	get_debugreg(debug, 7);
	if (debug & 0xff)
		bump(&dr7);
	if (irq_fpu_usable()) {
		kernel_fpu_begin();
		if (!registers_keep())
			bump(&lost);
		kernel_fpu_end();
		bump(&runs);
	}
out:
	hrtimer_forward_now(timer, ns_to_ktime(period_us * NSEC_PER_USEC));
	return HRTIMER_RESTART;
}

static void start(void *unused)
{
	struct hrtimer *timer = this_cpu_ptr(&timers);

	hrtimer_init(timer, CLOCK_MONOTONIC, HRTIMER_MODE_REL_PINNED_SOFT);
	timer->function = run;
	hrtimer_start(timer, ns_to_ktime(period_us * NSEC_PER_USEC), HRTIMER_MODE_REL_PINNED_SOFT);
}

static int __init fpu_load_init(void)
{
	if (boot_cpu_has(X86_FEATURE_OSXSAVE))
		host_xcr0 = xgetbv(XCR_XFEATURE_ENABLED_MASK);
	has_xss = boot_cpu_has(X86_FEATURE_XSAVES);
	if (has_xss)
		rdmsrl(MSR_IA32_XSS, host_xss);
	if (boot_cpu_has(X86_FEATURE_OSPKE))
		tasks_pkru = rdpkru();
	on_each_cpu(start, NULL, 1);
	return 0;
}

static void __exit fpu_load_exit(void)
{
	int cpu;

	for_each_possible_cpu(cpu)
		if (per_cpu(timers, cpu).function)
			hrtimer_cancel(&per_cpu(timers, cpu));
}

module_init(fpu_load_init);
module_exit(fpu_load_exit);
MODULE_DESCRIPTION("Lab: uses the FPU in softirqs and looks at whose state it finds");
MODULE_LICENSE("Dual MIT/GPL");
