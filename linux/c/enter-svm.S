/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * u32 ex_svm_run_asm(u64 vmcb_pa, u64 *regs, u64 host_save_pa, struct ex_spec_ctrl *spec_ctrl, u64 host_spec_ctrl)
 *                        rdi          rsi           rdx                     rcx                     r8
 *
 * Contract
 *   in:   interrupts off (IF=0), GIF=1; regs is u64[16] in encoding order (rax rcx rdx rbx rsp rbp rsi rdi
 *         r8..r15); slots 0 and 4 (rax, rsp) live in the VMCB and are neither read nor written here;
 *         host_save_pa holds a VMSAVE made by this task on this CPU, with the FS, GS and KernelGS values it has now; spec_ctrl:
 *         the guest's value, which changes behind the exit if it is open, that is, if the guest writes it by itself.
 *   out:  0: a VM exit happened; regs (all but slots 0 and 4) are the guest's, VMSAVE state of the guest is in its VMCB.
 *         1: EFER.SVME is clear on this CPU (shutdown or crash), or VMLOAD refused vmcb_pa: nothing was run.
 *         IF=0, no guest value in any general register. GIF=0 unless SVM is off: the caller executes STGI.
 *
 *   CLGI .. STGI is one window without NMIs: inside it GS base belongs to the guest from the first VMLOAD to the
 *   second, so nothing there touches per-CPU data. IF is set within the window, because with V_INTR_MASKING the
 *   host's IF decides whether physical interrupts make the guest exit.
 */
#include <linux/linkage.h>
#include <asm/alternative.h>
#include <asm/asm.h>
#include <asm/cpufeatures.h>
#include <asm/msr-index.h>
#include <asm/nospec-branch.h>
#include "ex_config.h"
#include "verw.h"

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

/* What is kept on the stack, from rsp upwards, while the guest runs. */
#define KEPT_HOST_SAVE        0
#define KEPT_REGS             8
#define KEPT_SPEC_CTRL        16
#define KEPT_HOST_SPEC_CTRL   24

/* struct ex_spec_ctrl, in enter.c. */
#define SPEC_CTRL_GUEST  0
#define SPEC_CTRL_OPEN   8

.section .noinstr.text, "ax"

SYM_FUNC_START(ex_svm_run_asm)
	push	%rbp
	push	%r15
	push	%r14
	push	%r13
	push	%r12
	push	%rbx
	push	%r8
	push	%rcx
	push	%rsi
	push	%rdx

1:	clgi

	/* The guest's SPEC_CTRL, unless the CPU swaps it by itself or has none. */
	ALTERNATIVE_2 "jmp .Lguest_spec_ctrl_done", "", X86_FEATURE_MSR_SPEC_CTRL, \
		"jmp .Lguest_spec_ctrl_done", X86_FEATURE_V_SPEC_CTRL
	mov	SPEC_CTRL_GUEST(%rcx), %rdx
	cmp	%rdx, %r8
	je	.Lguest_spec_ctrl_done
	mov	%edx, %eax
	shr	$32, %rdx
	mov	$MSR_IA32_SPEC_CTRL, %ecx
	wrmsr
.Lguest_spec_ctrl_done:

	/* VMLOAD, VMRUN and VMSAVE take the VMCB's physical address in rax. */
	mov	%rdi, %rax
2:	vmload	%rax

	mov	REG_RCX(%rsi), %rcx
	mov	REG_RDX(%rsi), %rdx
	mov	REG_RBX(%rsi), %rbx
	mov	REG_RBP(%rsi), %rbp
	mov	REG_RDI(%rsi), %rdi
	mov	REG_R8(%rsi), %r8
	mov	REG_R9(%rsi), %r9
	mov	REG_R10(%rsi), %r10
	mov	REG_R11(%rsi), %r11
	mov	REG_R12(%rsi), %r12
	mov	REG_R13(%rsi), %r13
	mov	REG_R14(%rsi), %r14
	mov	REG_R15(%rsi), %r15
	mov	REG_RSI(%rsi), %rsi

	/* TSA: after the last read of memory. */
#ifdef X86_FEATURE_CLEAR_CPU_BUF_VM
	EX_CLEAR_CPU_BUFFERS X86_FEATURE_CLEAR_CPU_BUF_VM
#endif
	sti
	vmrun	%rax
	cli

	/* VMRUN kept rax (the VMCB's address) and rsp in the host state area; all else is the guest's. */
	vmsave	%rax
	mov	KEPT_HOST_SAVE(%rsp), %rax
	vmload	%rax

	mov	KEPT_REGS(%rsp), %rax
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

	/* No guest value may steer the host's speculation. ebx is the result from here on. */
	xor	%ecx, %ecx
	xor	%edx, %edx
	xor	%ebx, %ebx
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

.Lrestore:
	/* Before any RET: the return stack may hold the guest's addresses. */
#ifdef EX_HAVE_RSB_VMEXIT
	FILL_RETURN_BUFFER %rax, RSB_CLEAR_LOOPS, X86_FEATURE_RSB_VMEXIT
#else
	FILL_RETURN_BUFFER %rax, RSB_CLEAR_LOOPS, X86_FEATURE_RETPOLINE
#endif

	/* The host's SPEC_CTRL first: it may hold IBRS. What the guest made of its own is read before it is gone. */
	ALTERNATIVE_2 "jmp .Lhost_spec_ctrl_done", "", X86_FEATURE_MSR_SPEC_CTRL, \
		"jmp .Lhost_spec_ctrl_done", X86_FEATURE_V_SPEC_CTRL
	mov	KEPT_SPEC_CTRL(%rsp), %rsi
	cmpq	$0, SPEC_CTRL_OPEN(%rsi)
	je	.Lguest_spec_ctrl_known
	mov	$MSR_IA32_SPEC_CTRL, %ecx
	rdmsr
	shl	$32, %rdx
	or	%rdx, %rax
	mov	%rax, SPEC_CTRL_GUEST(%rsi)
.Lguest_spec_ctrl_known:
	mov	KEPT_HOST_SPEC_CTRL(%rsp), %rax
	cmp	SPEC_CTRL_GUEST(%rsi), %rax
	je	.Lhost_spec_ctrl_done
	mov	%rax, %rdx
	shr	$32, %rdx
	mov	$MSR_IA32_SPEC_CTRL, %ecx
	wrmsr
.Lhost_spec_ctrl_done:

	/* Clobbers rax, rcx and rdx. */
#ifdef UNTRAIN_RET_VM
	UNTRAIN_RET_VM
#else
	UNTRAIN_RET
#ifdef EX_HAVE_IBPB_ON_VMEXIT
	ALTERNATIVE "", "call entry_ibpb", X86_FEATURE_IBPB_ON_VMEXIT
#endif
#endif
	mov	%ebx, %eax
.Lout:
	add	$32, %rsp
	pop	%rbx
	pop	%r12
	pop	%r13
	pop	%r14
	pop	%r15
	pop	%rbp
	RET

	/* CLGI raised #UD: SVM was turned off under us. GIF was not cleared. */
.Loff:
	mov	$1, %eax
	jmp	.Lout

	/*
	 * VMLOAD refused the VMCB's address: a bug of ours, but nothing is lost yet. VMRUN has no such fixup: CLGI worked,
	 * so SVM is on and stays on until STGI, and an exception there would run on the guest's GS base anyway.
	 */
.Lbad_vmcb:
	mov	$1, %ebx
	jmp	.Lrestore

	_ASM_EXTABLE(1b, .Loff)
	_ASM_EXTABLE(2b, .Lbad_vmcb)
SYM_FUNC_END(ex_svm_run_asm)

/*
 * u32 ex_svm_save_host(u64 host_save_pa): VMSAVE of the host's state. 1 when SVM was turned off, by the interrupt of a
 * shutdown for example, which may arrive between any check and the instruction.
 */
SYM_FUNC_START(ex_svm_save_host)
	mov	%rdi, %rax
1:	vmsave	%rax
	xor	%eax, %eax
	RET
.Lnot_saved:
	mov	$1, %eax
	RET
	_ASM_EXTABLE(1b, .Lnot_saved)
SYM_FUNC_END(ex_svm_save_host)
