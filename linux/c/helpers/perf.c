// SPDX-License-Identifier: MIT OR GPL-2.0-only
/*
 * linux/perf_event.h, asm/perf_event.h: whom a sample of perf has hit, and AMD's counters that count hosts or guests alone.
 *
 * perf takes its samples in interrupts. Those that made a guest exit are handled behind the exit, in the host; only we know
 * that they have hit the guest (guest.h tells what is noted when).
 */
#include <linux/perf_event.h>
#include <linux/preempt.h>
#include <asm/perf_event.h>
#include <asm/svm.h>
#include "../guest.h"
#include "helpers.h"

#if defined(CONFIG_CPU_SUP_AMD) && !defined(EX_HAVE_AMD_PMU_VIRT)
#error "this kernel keeps amd_pmu_enable_virt() to its own KVM: AMD's counters of hosts or guests alone would count both"
#endif

DEFINE_PER_CPU(struct ex_guest_seen, ex_guest_seen);

/* The guest that this interrupt or NMI has made exit; 0: none. An NMI within the handler of an interrupt has hit the host. */
static u64 ex_guest_hit(void)
{
	u32 handled = in_nmi() ? EX_HANDLED_NMI : EX_HANDLED_IRQ;

	return this_cpu_read(ex_guest_seen.handled) == handled ? this_cpu_read(ex_guest_seen.where) : 0;
}

static unsigned int ex_perf_state(void)
{
	u64 where = ex_guest_hit();
	bool user;

	if (!where)
		return 0;
	if (where == EX_GUEST_IN_VMCS)
		user = ex_vmx_guest_cpl() != 0;
	else
		user = ((const struct vmcb *)where)->save.cpl != 0;
	return user ? PERF_GUEST_ACTIVE | PERF_GUEST_USER : PERF_GUEST_ACTIVE;
}

static unsigned long ex_perf_get_ip(void)
{
	u64 where = ex_guest_hit();

	if (!where)
		return 0;
	if (where == EX_GUEST_IN_VMCS)
		return ex_vmx_guest_rip();
	return ((const struct vmcb *)where)->save.rip;
}

/* Processor Trace, where it is on, traces host and guests as one: its interrupts are the host's. */
static struct perf_guest_info_callbacks ex_perf_callbacks = {
	.state = ex_perf_state,
	.get_ip = ex_perf_get_ip,
};

/* The kernel has room for one: kvm.ko's vendor modules must not come any more. */
void ex_perf_setup(void)
{
	perf_register_guest_info_callbacks(&ex_perf_callbacks);
}

void ex_perf_teardown(void)
{
	perf_unregister_guest_info_callbacks(&ex_perf_callbacks);
}

/*
 * SVM is on, or off, on this CPU from now on. With SVM on the counters' bits "host only" and "guest only" mean something (APM
 * vol. 2, 13.2.1), and perf uses both; with it off "host only" would stop a counter. Interrupts off.
 */
void ex_pmu_virt(bool on)
{
#ifdef EX_HAVE_AMD_PMU_VIRT
	if (on)
		amd_pmu_enable_virt();
	else
		amd_pmu_disable_virt();
#endif
}
