/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * VERW with a memory operand: with the microcode for MDS and its kin it clears the CPU's buffers (SDM vol. 2D, and Intel's
 * and AMD's guidance). It changes ZF only. Which feature says that it is wanted before a guest differs by vendor and kernel.
 */
#ifndef EX_VERW_H
#define EX_VERW_H

#include "ex_config.h"

#if defined(EX_HAVE_X86_VERW_SEL)
#define EX_VERW_SEL x86_verw_sel
#elif defined(EX_HAVE_MDS_VERW_SEL)
#define EX_VERW_SEL mds_verw_sel
#else
#error "This kernel is too old: it has no selector for VERW, so that guests could read the host's data on many CPUs."
#endif

#ifdef __ASSEMBLY__
/* If the CPU has either feature. */
.macro EX_CLEAR_CPU_BUFFERS feature:req feature2
	.ifb	\feature2
	ALTERNATIVE "jmp .Lbuffers_left_\@", "", \feature
	.else
	ALTERNATIVE_2 "jmp .Lbuffers_left_\@", "", \feature, "", \feature2
	.endif
	verw	EX_VERW_SEL(%rip)
.Lbuffers_left_\@:
.endm
#endif

#endif
