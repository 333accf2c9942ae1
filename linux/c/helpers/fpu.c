// SPDX-License-Identifier: MIT OR GPL-2.0-only
/* asm/fpu/api.h: the guest's registers through the kernel's own guest FPU objects (closed since 6.19). */
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

/*
 * Single registers of the guest, between ex_fpu_load_guest and ex_fpu_put_guest, process context. The lock keeps softirqs,
 * interrupt handlers that use the FPU and the scheduler away while they are in the CPU.
 */
static void registers_begin(void)
{
	fpregs_lock();
	ex_fpu_before_enter();
}

static void registers_end(void)
{
	fpregs_unlock();
}

/* One case of a switch over registers: VALUE to or from register N by MOVE. */
#define EX_MOVE(n, move, reg, type)						\
	case n:									\
		if (write)							\
			asm volatile(move " %0, %%" reg #n : : "m"(*(type *)value));	\
		else								\
			asm volatile(move " %%" reg #n ", %0" : "=m"(*(type *)value));	\
		break;

struct ex_xmm {
	u64 part[2];
};

void ex_fpu_xmm(u32 i, void *value, bool write)
{
#define EX_XMM(n) EX_MOVE(n, "movups", "xmm", struct ex_xmm)
	registers_begin();
	switch (i & 15) {
	EX_XMM(0) EX_XMM(1) EX_XMM(2) EX_XMM(3) EX_XMM(4) EX_XMM(5) EX_XMM(6) EX_XMM(7)
	EX_XMM(8) EX_XMM(9) EX_XMM(10) EX_XMM(11) EX_XMM(12) EX_XMM(13) EX_XMM(14) EX_XMM(15)
	}
	registers_end();
#undef EX_XMM
}

/* An unmasked x87 exception that waits would be raised here, in the kernel: nothing is moved then (ex_fpu_status tells). */
void ex_fpu_mmx(u32 i, void *value, bool write)
{
#define EX_MMX(n) EX_MOVE(n, "movq", "mm", u64)
	u16 status;

	registers_begin();
	asm volatile("fnstsw %0" : "=m"(status));
	if (!(status & 0x80)) {
		switch (i & 7) {
		EX_MMX(0) EX_MMX(1) EX_MMX(2) EX_MMX(3) EX_MMX(4) EX_MMX(5) EX_MMX(6) EX_MMX(7)
		}
	}
	registers_end();
#undef EX_MMX
}

u16 ex_fpu_control(void)
{
	u16 v;

	registers_begin();
	asm volatile("fnstcw %0" : "=m"(v));
	registers_end();
	return v;
}

u16 ex_fpu_status(void)
{
	u16 v;

	registers_begin();
	asm volatile("fnstsw %0" : "=m"(v));
	registers_end();
	return v;
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

bool ex_host_xsaves(void)
{
	return boot_cpu_has(X86_FEATURE_XSAVES);
}

u64 ex_host_xss(void)
{
	u64 xss = 0;

	if (ex_host_xsaves())
		rdmsrl_safe(MSR_IA32_XSS, &xss);
	return xss;
}
