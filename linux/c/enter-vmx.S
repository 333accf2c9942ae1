/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * u32 ex_vmx_run_asm(struct ex_vmx_run *run, u64 launched, u64 host_spec_ctrl)
 *                           rdi                  rsi            rdx
 *
 * Contract
 *   in:   interrupts off, a VMCS current on this CPU whose HOST_RIP is ex_vmx_exit_here; run as in vmx.c: u64[16]
 *         registers in encoding order (slot 4, rsp, is a VMCS field: neither read nor written here), then cr2 (not
 *         touched here), the value HOST_RSP holds, the guest's SPEC_CTRL, which changes behind the exit if it is open, that is,
 *         if the guest writes it by itself. launched: 0 VMLAUNCH, else VMRESUME.
 *   out:  0: a VM exit (or a late entry failure); run holds the guest's registers.
 *         1: VMLAUNCH or VMRESUME failed; run is as before.
 *         2: #UD: this CPU is not in VMX operation (any more); run is as before.
 *         Interrupts off, no guest value in any general register, the host's SPEC_CTRL.
 *
 *   A VM exit arrives at ex_vmx_exit_here with the stack pointer that HOST_RSP holds and every other register the guest's.
 *   GS, FS, GDT and the like come from the VMCS, so NMIs are harmless at any point.
 */
#include <linux/linkage.h>
#include <linux/objtool.h>
#include <asm/alternative.h>
#include <asm/asm.h>
#include <asm/cpufeatures.h>
#include <asm/msr-index.h>
#include <asm/nospec-branch.h>
#include <asm/segment.h>
#include "ex_config.h"
#include "verw.h"

#define REG_RAX  0
#define REG_RCX  8
#define REG_RDX  16
#define REG_RBX  24
#define REG_RBP  40
#define REG_RSI  48
#define REG_RDI  56
#define REG_R8   64
#define REG_R9   72
#define REG_R10  80
#define REG_R11  88
#define REG_R12  96
#define REG_R13  104
#define REG_R14  112
#define REG_R15  120
#define RUN_HOST_RSP   136
#define RUN_SPEC_CTRL  144
#define RUN_SPEC_OPEN  160

/* The VMCS field HOST_RSP. */
#define FIELD_HOST_RSP  0x6c14

/* What is kept on the stack, from rsp upwards, while the guest runs. */
#define KEPT_RUN             0
#define KEPT_HOST_SPEC_CTRL  8

.section .noinstr.text, "ax"

SYM_FUNC_START(ex_vmx_run_asm)
	push	%rbp
	push	%r15
	push	%r14
	push	%r13
	push	%r12
	push	%rbx
	push	%rdx
	push	%rdi

	/* The stack is as deep as last time on almost every entry. */
	cmp	%rsp, RUN_HOST_RSP(%rdi)
	je	.Lhost_rsp_done
	mov	$FIELD_HOST_RSP, %eax
	mov	%rsp, %rcx
1:	vmwrite	%rcx, %rax
	jbe	.Lfailed
	mov	%rcx, RUN_HOST_RSP(%rdi)
.Lhost_rsp_done:

	/* The guest's SPEC_CTRL, unless the CPU has none. */
	ALTERNATIVE "jmp .Lguest_spec_ctrl_done", "", X86_FEATURE_MSR_SPEC_CTRL
	mov	%rdx, %r8
	mov	RUN_SPEC_CTRL(%rdi), %rdx
	cmp	%rdx, %r8
	je	.Lguest_spec_ctrl_done
	mov	%edx, %eax
	shr	$32, %rdx
	mov	$MSR_IA32_SPEC_CTRL, %ecx
	wrmsr
.Lguest_spec_ctrl_done:

	/* CF until the entry: moves leave the flags alone, VERW changes ZF only. */
	bt	$0, %rsi

	mov	REG_RAX(%rdi), %rax
	mov	REG_RCX(%rdi), %rcx
	mov	REG_RDX(%rdi), %rdx
	mov	REG_RBX(%rdi), %rbx
	mov	REG_RBP(%rdi), %rbp
	mov	REG_RSI(%rdi), %rsi
	mov	REG_R8(%rdi), %r8
	mov	REG_R9(%rdi), %r9
	mov	REG_R10(%rdi), %r10
	mov	REG_R11(%rdi), %r11
	mov	REG_R12(%rdi), %r12
	mov	REG_R13(%rdi), %r13
	mov	REG_R14(%rdi), %r14
	mov	REG_R15(%rdi), %r15
	mov	REG_RDI(%rdi), %rdi

	/* MDS, TAA, RFDS, MMIO stale data: after the last read of memory. Kernels from 6.19 on say it by the second feature. */
#ifdef X86_FEATURE_CLEAR_CPU_BUF_VM
	EX_CLEAR_CPU_BUFFERS X86_FEATURE_CLEAR_CPU_BUF, X86_FEATURE_CLEAR_CPU_BUF_VM
#else
	EX_CLEAR_CPU_BUFFERS X86_FEATURE_CLEAR_CPU_BUF
#endif
	jnc	.Llaunch
2:	vmresume
	jmp	.Lnot_entered
.Llaunch:
3:	vmlaunch
.Lnot_entered:
	/* Both fall through only when they failed, with CF or ZF set. */
	jbe	.Lfailed

SYM_INNER_LABEL(ex_vmx_exit_here, SYM_L_GLOBAL)
	ANNOTATE_NOENDBR
	push	%rax
	mov	8 + KEPT_RUN(%rsp), %rax
	pop	REG_RAX(%rax)
	mov	%rcx, REG_RCX(%rax)
	mov	%rdx, REG_RDX(%rax)
	mov	%rbx, REG_RBX(%rax)
	mov	%rbp, REG_RBP(%rax)
	mov	%rsi, REG_RSI(%rax)
	mov	%rdi, REG_RDI(%rax)
	mov	%r8, REG_R8(%rax)
	mov	%r9, REG_R9(%rax)
	mov	%r10, REG_R10(%rax)
	mov	%r11, REG_R11(%rax)
	mov	%r12, REG_R12(%rax)
	mov	%r13, REG_R13(%rax)
	mov	%r14, REG_R14(%rax)
	mov	%r15, REG_R15(%rax)
	xor	%ebx, %ebx

.Lclear:
	/* No guest value may steer the host's speculation. ebx is the result from here on. */
	xor	%eax, %eax
	xor	%ecx, %ecx
	xor	%edx, %edx
	xor	%ebp, %ebp
	xor	%esi, %esi
	xor	%edi, %edi
	xor	%r8d, %r8d
	xor	%r9d, %r9d
	xor	%r10d, %r10d
	xor	%r11d, %r11d
	xor	%r12d, %r12d
	xor	%r13d, %r13d
	xor	%r14d, %r14d
	xor	%r15d, %r15d

	/* Before any RET: the return stack may hold the guest's addresses. */
#ifdef EX_HAVE_RSB_VMEXIT
	FILL_RETURN_BUFFER %rax, RSB_CLEAR_LOOPS, X86_FEATURE_RSB_VMEXIT, X86_FEATURE_RSB_VMEXIT_LITE
#else
	FILL_RETURN_BUFFER %rax, RSB_CLEAR_LOOPS, X86_FEATURE_RETPOLINE
#endif

	/*
	 * The host's SPEC_CTRL, before any RET and indirect branch. What the guest made of its own is read before it is gone.
	 * With legacy IBRS it is written even if it did not change: the write is what keeps the guest's predictions away.
	 */
	ALTERNATIVE "jmp .Lhost_spec_ctrl_done", "", X86_FEATURE_MSR_SPEC_CTRL
	mov	KEPT_RUN(%rsp), %rsi
	/* Not entered: the MSR may still hold the host's. */
	test	%ebx, %ebx
	jnz	.Lguest_spec_ctrl_known
	cmpq	$0, RUN_SPEC_OPEN(%rsi)
	je	.Lguest_spec_ctrl_known
	mov	$MSR_IA32_SPEC_CTRL, %ecx
	rdmsr
	shl	$32, %rdx
	or	%rdx, %rax
	mov	%rax, RUN_SPEC_CTRL(%rsi)
.Lguest_spec_ctrl_known:
	mov	KEPT_HOST_SPEC_CTRL(%rsp), %rdx
	ALTERNATIVE "", "jmp .Lhost_spec_ctrl_write", X86_FEATURE_KERNEL_IBRS
	cmp	RUN_SPEC_CTRL(%rsi), %rdx
	je	.Lhost_spec_ctrl_same
.Lhost_spec_ctrl_write:
	mov	%edx, %eax
	shr	$32, %rdx
	mov	$MSR_IA32_SPEC_CTRL, %ecx
	wrmsr
.Lhost_spec_ctrl_same:
	/* The comparison must not be predicted past. */
	lfence
.Lhost_spec_ctrl_done:

#ifdef EX_HAVE_CLEAR_BHB_VMEXIT
	CLEAR_BRANCH_HISTORY_VMEXIT
#endif
	mov	%ebx, %eax
	add	$16, %rsp
	pop	%rbx
	pop	%r12
	pop	%r13
	pop	%r14
	pop	%r15
	pop	%rbp
	RET

.Lfailed:
	mov	$1, %ebx
	jmp	.Lclear
	/* VMX operation was left under us. */
.Loff:
	mov	$2, %ebx
	jmp	.Lclear

	_ASM_EXTABLE(1b, .Loff)
	_ASM_EXTABLE(2b, .Loff)
	_ASM_EXTABLE(3b, .Loff)
SYM_FUNC_END(ex_vmx_run_asm)

/*
 * void ex_vmx_call_gate(unsigned long handler)
 *                           rdi
 *
 * Contract
 *   in:   interrupts off; handler: the address in a 64-bit interrupt gate without stack switch (IST 0).
 *   out:  the handler has run and returned by IRET; interrupts are off.
 *
 * The CALL pushes the return address where an interrupt would have pushed RIP; what an interrupt pushes above it is here.
 */
SYM_FUNC_START(ex_vmx_call_gate)
	push	%rbp
	mov	%rsp, %rbp
	/* As the CPU aligns the frame. */
	and	$-16, %rsp
	push	$__KERNEL_DS
	push	%rbp
	pushf
	push	$__KERNEL_CS
	CALL_NOSPEC rdi
	/* IRET has loaded rsp with the rbp of above; the unwinder and objtool hear it from us. */
	mov	%rbp, %rsp
	pop	%rbp
	RET
SYM_FUNC_END(ex_vmx_call_gate)
