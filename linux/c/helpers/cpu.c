// SPDX-License-Identifier: MIT OR GPL-2.0-only
/* linux/cpu.h, linux/smp.h, linux/preempt.h, linux/irqflags.h, asm/processor.h: this CPU and the others. */
#include <linux/cpu.h>
#include <linux/cpumask.h>
#include <linux/hw_breakpoint.h>
#include <linux/irqflags.h>
#include <linux/kvm.h>
#include <linux/moduleparam.h>
#include <linux/preempt.h>
#include <linux/percpu.h>
#include <linux/smp.h>
#include <asm/apic.h>
#include <asm/apicdef.h>
#include <asm/debugreg.h>
#include <asm/irq_vectors.h>
#include <asm/nospec-branch.h>
#include <asm/processor.h>
#include "helpers.h"
#ifdef EX_HAVE_IPI_TRACEPOINT
#include <trace/events/ipi.h>
#endif

u32 ex_cpu_id(void)
{
	return raw_smp_processor_id();
}

/* One more than the highest possible CPU number. */
u32 ex_cpu_possible(void)
{
	return nr_cpu_ids;
}

bool ex_cpu_is_possible(u32 cpu)
{
	return cpu < nr_cpu_ids && cpu_possible(cpu);
}

bool ex_cpu_is_online(u32 cpu)
{
	return cpu < nr_cpu_ids && cpu_online(cpu);
}

u32 ex_cpu_online_count(void)
{
	return num_online_cpus();
}

/* The host's APIC id of a CPU, U32_MAX when unknown. */
u32 ex_cpu_apic_id(u32 cpu)
{
	if (!ex_cpu_is_possible(cpu) || per_cpu(x86_cpu_to_apicid, cpu) == BAD_APICID)
		return U32_MAX;
	return per_cpu(x86_cpu_to_apicid, cpu);
}

/* The microcode's revision as this kernel shows it. */
u32 ex_cpu_microcode(void)
{
	return boot_cpu_data.microcode;
}

/* IA32_ARCH_CAPABILITIES; 0 on a CPU without it. */
u64 ex_arch_capabilities(void)
{
	u64 value = 0;

	if (boot_cpu_has(X86_FEATURE_ARCH_CAPABILITIES))
		rdmsrl(MSR_IA32_ARCH_CAPABILITIES, value);
	return value;
}

/*
 * Bits of the same register, for what the kernel knows this CPU to be immune to although an older one cannot say so.
 * Debian's 6.1 and 6.12 know all these bugs; a kernel that does not know one says nothing about it.
 */
u64 ex_immunities(void)
{
	u64 immune = 0;

	if (!boot_cpu_has_bug(X86_BUG_CPU_MELTDOWN))
		immune |= ARCH_CAP_RDCL_NO;
	if (!boot_cpu_has_bug(X86_BUG_SPEC_STORE_BYPASS))
		immune |= ARCH_CAP_SSB_NO;
	if (!boot_cpu_has_bug(X86_BUG_MDS))
		immune |= ARCH_CAP_MDS_NO;
	if (!boot_cpu_has_bug(X86_BUG_ITLB_MULTIHIT))
		immune |= ARCH_CAP_PSCHANGE_MC_NO;
	if (!boot_cpu_has_bug(X86_BUG_TAA))
		immune |= ARCH_CAP_TAA_NO;
#ifdef X86_BUG_GDS
	if (!boot_cpu_has_bug(X86_BUG_GDS))
		immune |= ARCH_CAP_GDS_NO;
#endif
#ifdef X86_BUG_RFDS
	if (!boot_cpu_has_bug(X86_BUG_RFDS))
		immune |= ARCH_CAP_RFDS_NO;
#endif
#ifdef X86_BUG_ITS
	if (!boot_cpu_has_bug(X86_BUG_ITS))
		immune |= ARCH_CAP_ITS_NO;
#endif
	return immune;
}

void ex_preempt_disable(void)
{
	preempt_disable();
}

void ex_preempt_enable(void)
{
	preempt_enable();
}

unsigned long ex_irq_save(void)
{
	unsigned long flags;

	local_irq_save(flags);
	return flags;
}

void ex_irq_restore(unsigned long flags)
{
	local_irq_restore(flags);
}

/* Forces a VM exit on that CPU and sends its task through the scheduler's check. */
void ex_cpu_kick(u32 cpu)
{
	if (ex_cpu_is_online(cpu))
		smp_send_reschedule(cpu);
}

static void ex_send_ipis(const struct cpumask *to, int vector)
{
#ifdef EX_HAVE_APIC_STATIC_CALLS
	__apic_send_IPI_mask(to, vector);
#else
	apic->send_IPI_mask(to, vector);
#endif
}

/* Tells that CPU to look at the posted-interrupt descriptor of the guest it runs. No exit; nothing outside of guests. */
void ex_cpu_post(u32 cpu)
{
	if (ex_cpu_is_online(cpu))
		ex_send_ipis(cpumask_of(cpu), POSTED_INTR_VECTOR);
}

/* The ICR reaches every CPU by its id, so that the kernel's driver of the APICs knows no better. */
static bool ex_icr_reaches;

static void ex_icr_setup(void)
{
	static const char *const plain[] = { "flat", "physical flat", "cluster x2apic", "physical x2apic" };

	ex_icr_reaches = match_string(plain, ARRAY_SIZE(plain), apic->name) >= 0;
}

/* As ex_cpu_post(), for a CPU that is online or was a moment ago, without the detour over a mask. Interrupts off. */
notrace void ex_notify(u32 cpu)
{
	u32 id;

	if (unlikely(cpu >= nr_cpu_ids))
		return;
	if (unlikely(!ex_icr_reaches)) {
		ex_cpu_post(cpu);
		return;
	}
	id = per_cpu(x86_cpu_to_apicid, cpu);
	if (x2apic_mode) {
		/* WRMSR of the x2APIC's registers waits for no store before it (SDM vol. 3A, 11.12.3). */
		weak_wrmsr_fence();
		native_x2apic_icr_write(APIC_DM_FIXED | POSTED_INTR_VECTOR, id);
	} else {
		while (native_apic_mem_read(APIC_ICR) & APIC_ICR_BUSY)
			cpu_relax();
		native_apic_mem_write(APIC_ICR2, id << 24);
		native_apic_mem_write(APIC_ICR, APIC_DM_FIXED | POSTED_INTR_VECTOR);
	}
}

/*
 * CPUs that are online and cannot run guests, and how many virtual machines there are. Both are never there together: the
 * first change under the write side of the hotplug lock (or while the module loads), the second's zero is left under the read
 * side.
 */
static struct cpumask ex_unfit;
static atomic_t ex_vms = ATOMIC_INIT(0);

/* What came of turning virtualization on in a CPU; interrupts may be off. */
void ex_cpu_fit(u32 cpu, bool fit)
{
	if (fit)
		cpumask_clear_cpu(cpu, &ex_unfit);
	else
		cpumask_set_cpu(cpu, &ex_unfit);
}

/* A CPU is about to be given to tasks. -EIO: threads of virtual machines could come there, and it cannot run guests. */
int ex_cpu_welcome(u32 cpu)
{
	return cpumask_test_cpu(cpu, &ex_unfit) && atomic_read(&ex_vms) ? -EIO : 0;
}

/* A virtual machine is made. -EBUSY: there is a CPU that cannot run it. Pairs with ex_vm_gone(). */
int ex_vm_born(void)
{
	int err = 0;

	cpus_read_lock();
	if (cpumask_intersects(cpu_online_mask, &ex_unfit))
		err = -EBUSY;
	else
		atomic_inc(&ex_vms);
	cpus_read_unlock();
	return err;
}

void ex_vm_gone(void)
{
	atomic_dec(&ex_vms);
}

struct ex_call {
	void *arg;
	u32 op;
};

static void ex_call_ipi(void *data)
{
	struct ex_call *call = data;

	ex_rs_on_cpu(call->arg, call->op);
}

int ex_on_one_cpu(u32 cpu, void *arg, u32 op)
{
	struct ex_call call = { arg, op };

	if (!ex_cpu_is_possible(cpu))
		return -ENXIO;
	return smp_call_function_single(cpu, ex_call_ipi, &call, 1);
}

/*
 * Where a CPU gathers those that it interrupts together: one set for senders that wait (process context, preemption off), one for
 * those that do not (interrupts off).
 */
struct ex_kick_sets {
	struct cpumask wait;
	struct cpumask now;
};

static struct ex_kick_sets __percpu *ex_kick_sets;

int ex_kicks_setup(void)
{
	ex_icr_setup();
	ex_kick_sets = alloc_percpu(struct ex_kick_sets);
	return ex_kick_sets ? 0 : -ENOMEM;
}

void ex_kicks_teardown(void)
{
	free_percpu(ex_kick_sets);
}

/* This CPU's set, empty. */
void *ex_kick_set(bool wait)
{
	struct ex_kick_sets *sets = this_cpu_ptr(ex_kick_sets);
	struct cpumask *set = wait ? &sets->wait : &sets->now;

	cpumask_clear(set);
	return set;
}

void ex_kick_add(void *set, u32 cpu)
{
	if (cpu < nr_cpu_ids)
		__cpumask_set_cpu(cpu, set);
}

static void ex_ack_ipi(void *unused)
{
}

/* Returns when each other CPU of the set has taken an interrupt, so has left guest mode since the call. */
void ex_kick_all_ack(const void *set)
{
	if (!cpumask_empty(set))
		smp_call_function_many(set, ex_ack_ipi, NULL, true);
}

/* ex_cpu_kick() for all of the set at once. */
void ex_kick_all(void *set)
{
	if (cpumask_and(set, set, cpu_online_mask))
		ex_send_ipis(set, RESCHEDULE_VECTOR);
}

/* ex_cpu_post() likewise. */
void ex_post_all(void *set)
{
	if (cpumask_and(set, set, cpu_online_mask))
		ex_send_ipis(set, POSTED_INTR_VECTOR);
}

bool ex_hw_breakpoint_active(void)
{
	return hw_breakpoint_active();
}

void ex_hw_breakpoint_restore(void)
{
	hw_breakpoint_restore();
}

/*
 * VMLOAD after each exit brings back the LDTR of the last VMSAVE, its hidden base included. Another thread of the
 * process may have installed a new table since and freed that one: load the selector again, from the descriptor that
 * the kernel keeps current on this CPU. Preemption off, before the task may return to user mode.
 */
void ex_ldt_reload(void)
{
	u16 selector;

	asm volatile("sldt %0" : "=m" (selector));
	if (selector)
		asm volatile("lldt %0" : : "m" (selector));
}

void ex_ibpb(void)
{
	indirect_branch_prediction_barrier();
}

/* The guest's own barrier: also where the kernel uses none for itself. False: the CPU has none. Preemption off. */
bool ex_ibpb_for_guest(void)
{
	if (!boot_cpu_has(X86_FEATURE_IBPB))
		return false;
	wrmsrl(MSR_IA32_PRED_CMD, PRED_CMD_IBPB);
	return true;
}

/* The value SPEC_CTRL must have while this CPU runs the host. Preemption off. */
u64 ex_host_spec_ctrl(void)
{
#ifdef EX_HAVE_SPEC_CTRL_CURRENT
	return this_cpu_read(x86_spec_ctrl_current);
#else
	return 0;
#endif
}

/* Kernels clear these where microcode is known to do harm (or by clearcpuid=); CPUID tells of the MSRs nevertheless. */
bool ex_host_has_spec_ctrl(void)
{
	return boot_cpu_has(X86_FEATURE_MSR_SPEC_CTRL);
}

bool ex_host_has_ibpb(void)
{
	return boot_cpu_has(X86_FEATURE_IBPB);
}

/* KVM_X86_DISABLE_EXITS_* that guests may have here. Idle in a guest: the other thread of the core may find its return predictions used. */
static bool ex_mitigate_smt_rsb;
module_param_named(mitigate_smt_rsb, ex_mitigate_smt_rsb, bool, 0444);
MODULE_PARM_DESC(mitigate_smt_rsb, "Guests never idle without an exit, on CPUs with X86_BUG_SMT_RSB (default: 0)");

u64 ex_exits_to_disable(void)
{
	u64 exits = KVM_X86_DISABLE_EXITS_PAUSE;

#ifdef X86_BUG_SMT_RSB
	if (ex_mitigate_smt_rsb && boot_cpu_has_bug(X86_BUG_SMT_RSB) && cpu_smt_possible())
		return exits;
#endif
	exits |= KVM_X86_DISABLE_EXITS_HLT | KVM_X86_DISABLE_EXITS_CSTATE;
	/* The CPU wakes by a store it monitors, and the APIC's timer counts in every C-state. */
	if (boot_cpu_has(X86_FEATURE_MWAIT) && !boot_cpu_has_bug(X86_BUG_MONITOR) && boot_cpu_has(X86_FEATURE_ARAT))
		exits |= KVM_X86_DISABLE_EXITS_MWAIT;
	return exits;
}

/* Bits that SPEC_CTRL takes on this CPU, which has it: more than CPUID tells of. Process context. */
u64 ex_spec_ctrl_bits(void)
{
	unsigned long flags;
	u64 bits = 0;
	u32 bit;

	for (bit = 0; bit < 64; bit++) {
		local_irq_save(flags);
		if (!wrmsrl_safe(MSR_IA32_SPEC_CTRL, ex_host_spec_ctrl() | BIT_ULL(bit)))
			bits |= BIT_ULL(bit);
		wrmsrl(MSR_IA32_SPEC_CTRL, ex_host_spec_ctrl());
		local_irq_restore(flags);
	}
	return bits;
}
