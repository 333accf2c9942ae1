// SPDX-License-Identifier: MIT OR GPL-2.0-only
/*
 * Faults of the CPU: what is decided at load, by what the kernel decided at boot, and what happens less often than entries.
 * docs/security.md has the whole list.
 */
#define pr_fmt(fmt) "exitless: " fmt

#include <linux/cpu.h>
#include <linux/gfp.h>
#include <linux/moduleparam.h>
#include <linux/mutex.h>
#include <linux/sched/smt.h>
#include <linux/smp.h>
#include <linux/string.h>
#include <asm/msr.h>
#include <asm/vmx.h>
#include "mitigations.h"
#include "helpers/helpers.h"

/* modprobe exitless vmentry_l1d_flush=...: as of kvm-intel: auto (what the kernel was started with), always, cond, never. */
static char *ex_l1d_wish = "auto";
module_param_named(vmentry_l1d_flush, ex_l1d_wish, charp, 0444);
MODULE_PARM_DESC(vmentry_l1d_flush, "L1TF: flush the L1 data cache at entries: auto, always, cond or never (default: auto)");

/* More than any L1 data cache of the CPUs with L1TF holds. */
#define EX_L1D_ORDER 4
#define EX_L1D_SIZE (PAGE_SIZE << EX_L1D_ORDER)
#define EX_L1D_LINE 64

static enum vmx_l1d_flush_state ex_l1d_state = VMENTER_L1D_FLUSH_NOT_REQUIRED;
static u8 *ex_l1d_area;
bool ex_l1d_always;

/* A guest of this module has had device memory. Never cleared: the entry asks no VM. */
bool ex_guests_have_device_memory;

/* The kernel's choice at boot: l1tf= or mitigations=. */
static enum vmx_l1d_flush_state ex_l1d_auto(void)
{
#if IS_ENABLED(CONFIG_KVM_INTEL)
	switch (l1tf_mitigation) {
	case L1TF_MITIGATION_OFF:
		return VMENTER_L1D_FLUSH_NEVER;
	case L1TF_MITIGATION_FULL:
	case L1TF_MITIGATION_FULL_FORCE:
		return VMENTER_L1D_FLUSH_ALWAYS;
	default:
		return VMENTER_L1D_FLUSH_COND;
	}
#else
	/* A kernel without KVM does not note what interrupt handlers leave in the cache. */
	return cpu_mitigations_off() ? VMENTER_L1D_FLUSH_NEVER : VMENTER_L1D_FLUSH_ALWAYS;
#endif
}

/* -EINVAL: an unknown word. */
static int ex_l1d_decide(void)
{
	static const char *const words[] = { "auto", "always", "cond", "never" };
	static const enum vmx_l1d_flush_state states[] = { VMENTER_L1D_FLUSH_AUTO, VMENTER_L1D_FLUSH_ALWAYS,
							   VMENTER_L1D_FLUSH_COND, VMENTER_L1D_FLUSH_NEVER };
	int wish = match_string(words, ARRAY_SIZE(words), ex_l1d_wish);

	if (wish < 0)
		return -EINVAL;
	if (!boot_cpu_has_bug(X86_BUG_L1TF) || ex_arch_capabilities() & ARCH_CAP_SKIP_VMENTRY_L1DFLUSH)
		return VMENTER_L1D_FLUSH_NOT_REQUIRED;
#if IS_ENABLED(CONFIG_KVM_INTEL)
	if (l1tf_mitigation == L1TF_MITIGATION_FULL_FORCE)
		return VMENTER_L1D_FLUSH_ALWAYS;
#endif
	return states[wish] == VMENTER_L1D_FLUSH_AUTO ? ex_l1d_auto() : states[wish];
}

bool ex_vmx_flushes_l1d(void)
{
	return ex_l1d_state == VMENTER_L1D_FLUSH_COND || ex_l1d_state == VMENTER_L1D_FLUSH_ALWAYS;
}

static void ex_l1d_warn(void)
{
#if IS_ENABLED(CONFIG_KVM_INTEL)
	bool wanted = l1tf_mitigation != L1TF_MITIGATION_OFF && l1tf_mitigation != L1TF_MITIGATION_FLUSH_NOWARN;

	if (wanted && ex_l1d_state != VMENTER_L1D_FLUSH_NOT_REQUIRED && sched_smt_active())
		pr_warn("this CPU has L1TF and SMT is on: a guest may read what the sibling thread has in the cache\n");
#endif
}

#ifdef EX_HAVE_ITLB_MULTIHIT_MITIGATION
/* In no header. */
extern bool itlb_multihit_kvm_mitigation;
#endif

/* What /sys/devices/system/cpu/vulnerabilities says of virtual machines. */
static void ex_vmx_publish(enum vmx_l1d_flush_state state, bool exec)
{
#if IS_ENABLED(CONFIG_KVM_INTEL) && defined(EX_HAVE_L1TF_VMX_MITIGATION)
	l1tf_vmx_mitigation = state;
#endif
#ifdef EX_HAVE_ITLB_MULTIHIT_MITIGATION
	itlb_multihit_kvm_mitigation = exec;
#endif
}

/* At load, on Intel's CPUs, before any other function here is called. ex_vmx_mitigations_end() undoes it. */
int ex_vmx_mitigations_begin(void)
{
	int state = ex_l1d_decide();
	size_t page;

	if (state < 0) {
		pr_err("vmentry_l1d_flush=%s: auto, always, cond or never\n", ex_l1d_wish);
		return state;
	}
	ex_l1d_state = state;
	ex_l1d_always = state == VMENTER_L1D_FLUSH_ALWAYS;
	if (ex_vmx_flushes_l1d() && !boot_cpu_has(X86_FEATURE_FLUSH_L1D)) {
		ex_l1d_area = (u8 *)__get_free_pages(GFP_KERNEL, EX_L1D_ORDER);
		if (!ex_l1d_area)
			return -ENOMEM;
		/* Different pages: a hypervisor below this kernel must not make one of them. */
		for (page = 0; page < EX_L1D_SIZE / PAGE_SIZE; page++)
			memset(ex_l1d_area + page * PAGE_SIZE, page + 1, PAGE_SIZE);
	}
	ex_l1d_warn();
	ex_vmx_publish(state, ex_vmx_guards_exec());
	return 0;
}

/* Harmless when nothing was begun. */
void ex_vmx_mitigations_end(void)
{
	if (ex_l1d_state != VMENTER_L1D_FLUSH_NOT_REQUIRED || ex_vmx_guards_exec())
		ex_vmx_publish(VMENTER_L1D_FLUSH_AUTO, false);
	ex_l1d_state = VMENTER_L1D_FLUSH_NOT_REQUIRED;
	free_pages((unsigned long)ex_l1d_area, EX_L1D_ORDER);
	ex_l1d_area = NULL;
}

/* CPUs without IA32_FLUSH_CMD: reading more than the cache holds puts out what was in it. Interrupts off. */
noinstr void ex_l1d_read_through(void)
{
	unsigned int a = 0, c = 0;
	size_t at;

	/* The pages' translations first, and nothing of the second round before they are there. */
	for (at = 0; at < EX_L1D_SIZE; at += PAGE_SIZE)
		(void)READ_ONCE(ex_l1d_area[at]);
	asm volatile("cpuid" : "+a" (a), "+c" (c) : : "ebx", "edx", "memory");
	for (at = 0; at < EX_L1D_SIZE; at += EX_L1D_LINE)
		(void)READ_ONCE(ex_l1d_area[at]);
	asm volatile("lfence" : : : "memory");
}

static void ex_nothing(void *unused)
{
}

/* A page of a device is about to be mapped in a guest. Process context, interrupts on. */
void ex_guest_gets_device_memory(void)
{
	static DEFINE_MUTEX(lock);
	static bool told;

	if (smp_load_acquire(&told))
		return;
	mutex_lock(&lock);
	if (!told) {
		WRITE_ONCE(ex_guests_have_device_memory, true);
		/* Whoever is in a guest comes out, and clears the buffers on the way back. */
		on_each_cpu(ex_nothing, NULL, 1);
		smp_store_release(&told, true);
	}
	mutex_unlock(&lock);
}

/*
 * SRSO on CPUs whose BP_CFG can keep guests' training from the host (BpSpecReduce, Zen 5): set on a CPU from the first
 * vCPU that comes to it until no VM is left, for it slows the host too.
 */
#ifdef X86_FEATURE_SRSO_BP_SPEC_REDUCE
static DEFINE_PER_CPU(bool, ex_speculation_reduced);
static DEFINE_MUTEX(ex_guests_lock);
static unsigned int ex_guests;

/* Preemption off, before the first entry on this CPU. */
void ex_svm_reduce_speculation(void)
{
	if (!cpu_feature_enabled(X86_FEATURE_SRSO_BP_SPEC_REDUCE) || this_cpu_read(ex_speculation_reduced))
		return;
	msr_set_bit(MSR_ZEN4_BP_CFG, MSR_ZEN4_BP_CFG_BP_SPEC_REDUCE_BIT);
	this_cpu_write(ex_speculation_reduced, true);
}

/* Also when SVM goes off on a CPU: one that comes back has the bit clear. Preemption off. */
void ex_svm_restore_speculation(void)
{
	if (!this_cpu_read(ex_speculation_reduced))
		return;
	this_cpu_write(ex_speculation_reduced, false);
	msr_clear_bit(MSR_ZEN4_BP_CFG, MSR_ZEN4_BP_CFG_BP_SPEC_REDUCE_BIT);
}

static void ex_svm_restore_here(void *unused)
{
	ex_svm_restore_speculation();
}

/* A VM was made. Process context. */
void ex_guests_begin(void)
{
	mutex_lock(&ex_guests_lock);
	ex_guests++;
	mutex_unlock(&ex_guests_lock);
}

/* It is gone, and its vCPUs: none of them comes to a CPU any more. Process context. */
void ex_guests_end(void)
{
	mutex_lock(&ex_guests_lock);
	if (!--ex_guests && cpu_feature_enabled(X86_FEATURE_SRSO_BP_SPEC_REDUCE))
		on_each_cpu(ex_svm_restore_here, NULL, 1);
	mutex_unlock(&ex_guests_lock);
}
#else
void ex_svm_reduce_speculation(void) { }
void ex_svm_restore_speculation(void) { }
void ex_guests_begin(void) { }
void ex_guests_end(void) { }
#endif
