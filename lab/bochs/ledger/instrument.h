/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* The ledger in Bochs: what the host executes between two marks that is dear on a CPU, and one instruction here.
   docs/lab-bochs.md has the marks and the file. Bochs's instrumentation hooks; all others are empty. */

#include "cpu/decoder/ia_opcodes.h"

class BX_CPU_C;
class bxInstruction_c;

/* Between the marks. */
extern bool ledger_open;

void ledger_start(void);
void ledger_instruction(unsigned cpu, bxInstruction_c *i);
void ledger_event(unsigned cpu, const char *family, unsigned vector);
/* A register of the local APIC, accessed in memory. */
void ledger_apic(BX_CPU_C *cpu, unsigned reg, bool write);
/* A write of the interrupt command register, by MSR or in memory. */
void ledger_ipi(BX_CPU_C *cpu);

#define BX_INSTR_INIT_ENV() ledger_start()
#define BX_INSTR_EXIT_ENV()

/* Marks are NOPs. */
#define BX_INSTR_BEFORE_EXECUTION(cpu_id, i) \
  { if (ledger_open || (i)->getIaOpcode() == BX_IA_NOP) ledger_instruction(cpu_id, i); }
#define BX_INSTR_EXCEPTION(cpu_id, vector, error_code) \
  { if (ledger_open) ledger_event(cpu_id, "exception", vector); }
#define BX_INSTR_HWINTERRUPT(cpu_id, vector, cs, eip) \
  { if (ledger_open) ledger_event(cpu_id, "interrupt", vector); }

#define BX_INSTR_INITIALIZE(cpu_id)
#define BX_INSTR_EXIT(cpu_id)
#define BX_INSTR_RESET(cpu_id, type)
#define BX_INSTR_HLT(cpu_id)
#define BX_INSTR_MWAIT(cpu_id, addr, len, flags)
#define BX_INSTR_DEBUG_PROMPT()
#define BX_INSTR_DEBUG_CMD(cmd)
#define BX_INSTR_CNEAR_BRANCH_TAKEN(cpu_id, branch_eip, new_eip)
#define BX_INSTR_CNEAR_BRANCH_NOT_TAKEN(cpu_id, branch_eip)
#define BX_INSTR_UCNEAR_BRANCH(cpu_id, what, branch_eip, new_eip)
#define BX_INSTR_FAR_BRANCH(cpu_id, what, prev_cs, prev_eip, new_cs, new_eip)
#define BX_INSTR_OPCODE(cpu_id, i, opcode, len, is32, is64)
#define BX_INSTR_INTERRUPT(cpu_id, vector)
#define BX_INSTR_CLFLUSH(cpu_id, laddr, paddr)
#define BX_INSTR_CACHE_CNTRL(cpu_id, what)
#define BX_INSTR_TLB_CNTRL(cpu_id, what, new_cr3)
#define BX_INSTR_PREFETCH_HINT(cpu_id, what, seg, offset)
#define BX_INSTR_AFTER_EXECUTION(cpu_id, i)
#define BX_INSTR_REPEAT_ITERATION(cpu_id, i)
#define BX_INSTR_LIN_ACCESS(cpu_id, lin, phy, len, memtype, rw)
#define BX_INSTR_PHY_ACCESS(cpu_id, phy, len, memtype, rw)
#define BX_INSTR_INP(addr, len)
#define BX_INSTR_INP2(addr, len, val)
#define BX_INSTR_OUTP(addr, len, val)
#define BX_INSTR_WRMSR(cpu_id, addr, value)
#define BX_INSTR_VMEXIT(cpu_id, reason, qualification)
