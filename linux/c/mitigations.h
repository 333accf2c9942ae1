/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * What is done against faults of the CPU in C around each entry; the rest is in the two .S files. docs/security.md has the
 * whole list. Everything here is noinstr, and a test of what the kernel decided at boot is a patched jump.
 */
#ifndef EX_MITIGATIONS_H
#define EX_MITIGATIONS_H

#include <linux/hardirq.h>
#include <asm/cpufeature.h>
#include <asm/nospec-branch.h>
#include <asm/processor.h>
#include "verw.h"

/* mitigations.c */
extern bool ex_l1d_always;
extern bool ex_guests_have_device_memory;
void ex_l1d_read_through(void);
void ex_vmx_mitigations_end(void);

/* L1TF: the guest must not find the host's data in the L1 data cache. */
static __always_inline void ex_flush_l1d(bool dirty)
{
#if IS_ENABLED(CONFIG_KVM_INTEL)
	/* Interrupt handlers since the last entry count too. */
	dirty |= kvm_get_cpu_l1tf_flush_l1d();
	kvm_clear_cpu_l1tf_flush_l1d();
#endif
	if (!dirty && !ex_l1d_always)
		return;
	if (static_cpu_has(X86_FEATURE_FLUSH_L1D))
		native_wrmsrl(MSR_IA32_FLUSH_CMD, L1D_FLUSH);
	else
		ex_l1d_read_through();
}

/*
 * MMIO stale data: reads of device memory may show what the CPU's buffers hold. CPUs where that matters for guests with
 * devices only, and not at each entry anyway (enter-vmx.S).
 */
static __always_inline void ex_clear_for_device_memory(void)
{
#if defined(X86_FEATURE_CLEAR_CPU_BUF_VM_MMIO)
	bool wanted = static_cpu_has(X86_FEATURE_CLEAR_CPU_BUF_VM_MMIO);
#elif defined(EX_HAVE_CPU_BUF_VM_CLEAR)
	bool wanted = static_branch_unlikely(&cpu_buf_vm_clear);
#elif defined(EX_HAVE_MMIO_STALE_DATA_CLEAR)
	bool wanted = static_branch_unlikely(&mmio_stale_data_clear);
#else
	bool wanted = false;
#endif
	if (wanted && READ_ONCE(ex_guests_have_device_memory))
		asm volatile("verw %0" : : "m" (EX_VERW_SEL) : "cc");
}

/* DIV0 of Zen 1: the divider keeps the last division's result, for the sibling thread and for whoever runs next. */
static __always_inline void ex_clear_divider(void)
{
#ifdef X86_BUG_DIV0
	if (static_cpu_has(X86_BUG_DIV0))
		asm volatile("div %2" : : "a" (0), "d" (0), "r" (1) : "cc");
#endif
}

/* VMSCAPE: the guest may have trained branches that this task's user part would follow. After each exit. */
static __always_inline void ex_guard_user_part(void)
{
#ifdef EX_HAVE_IBPB_EXIT_TO_USER
	if (cpu_feature_enabled(X86_FEATURE_IBPB_EXIT_TO_USER))
		raw_cpu_write_1(x86_ibpb_exit_to_user, true);
#endif
}

#endif
