// SPDX-License-Identifier: MIT OR GPL-2.0-only
/* asm/fpu/api.h: the guest's registers through the kernel's own guest FPU objects (closed since 7.x). */
#include <linux/slab.h>
#include <linux/thread_info.h>
#include <asm/fpu/api.h>
#include <asm/fpu/types.h>
#include <asm/msr.h>
#include <asm/fpu/xcr.h>
#include "helpers.h"

#ifndef EX_HAVE_FPU_GUEST
#error "this kernel keeps its guest FPU objects to kvm.ko: the kernel_fpu_begin scheme is not written yet"
#endif

void *ex_fpu_new(void)
{
	struct fpu_guest *fpu = kzalloc(sizeof(*fpu), GFP_KERNEL_ACCOUNT);

	if (fpu && !fpu_alloc_guest_fpstate(fpu)) {
		kfree(fpu);
		return NULL;
	}
	return fpu;
}

void ex_fpu_free(void *fpu)
{
	fpu_free_guest_fpstate(fpu);
	kfree(fpu);
}

/* Process context, once per KVM_RUN: the task's registers go away, the guest's come. */
void ex_fpu_load_guest(void *fpu)
{
	fpu_swap_kvm_fpstate(fpu, true);
}

void ex_fpu_put_guest(void *fpu)
{
	fpu_swap_kvm_fpstate(fpu, false);
}

/* Interrupts off, just before entry: a schedule or a softirq may have taken the registers. */
void ex_fpu_before_enter(void)
{
	if (test_thread_flag(TIF_NEED_FPU_LOAD))
		switch_fpu_return();
}

void ex_fpu_to_uabi(void *fpu, void *buf, u32 size, u64 xfeatures, u32 pkru)
{
#ifdef EX_HAVE_FPU_UABI_XFEATURES
	fpu_copy_guest_fpstate_to_uabi(fpu, buf, size, xfeatures, pkru);
#else
	fpu_copy_guest_fpstate_to_uabi(fpu, buf, size, pkru);
#endif
}

int ex_fpu_from_uabi(void *fpu, const void *buf, u64 xcr0, u32 *pkru)
{
	return fpu_copy_uabi_to_guest_fpstate(fpu, buf, xcr0, pkru);
}

/* 0 when the host has no XSAVE. */
u64 ex_host_xcr0(void)
{
	return boot_cpu_has(X86_FEATURE_OSXSAVE) ? xgetbv(XCR_XFEATURE_ENABLED_MASK) : 0;
}

u64 ex_host_xss(void)
{
	u64 xss = 0;

	if (boot_cpu_has(X86_FEATURE_XSAVES))
		rdmsrl_safe(MSR_IA32_XSS, &xss);
	return xss;
}
