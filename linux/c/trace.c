// SPDX-License-Identifier: MIT OR GPL-2.0-only
/*
 * Tracepoints. Rust asks ex_traced, a branch that is patched while anybody listens to any event, and calls these functions then;
 * each event looks at its own branch in turn.
 */
#include <linux/export.h>
#include <linux/jump_label.h>
#include <asm/apicdef.h>
#include "helpers/helpers.h"

#define CREATE_TRACE_POINTS
#include "trace.h"

/* linux/host/src/trace.rs has branches on it. */
DEFINE_STATIC_KEY_FALSE(ex_traced);

/* The kernel calls this before an event's first listener comes, and the other behind its last. */
int ex_trace_listen(void)
{
	static_branch_inc(&ex_traced);
	return 0;
}

void ex_trace_leave(void)
{
	static_branch_dec(&ex_traced);
}

void ex_trace_entry(u32 vcpu, u64 rip)
{
	trace_kvm_entry(vcpu, rip);
}

void ex_trace_exit(u32 vcpu, u32 isa, u32 reason, u64 rip, u64 info1, u64 info2, u32 event, u32 error_code)
{
	trace_kvm_exit(vcpu, isa, reason, rip, info1, info2, event, error_code);
}

void ex_trace_cpuid(u32 function, u32 index, const u64 *answer, bool found, bool used_max_basic)
{
	trace_kvm_cpuid(function, index, answer, found, used_max_basic);
}

void ex_trace_msr(bool write, u32 index, u64 data, bool refused)
{
	trace_kvm_msr(write, index, data, refused);
}

void ex_trace_apic(bool write, u32 reg, u64 value)
{
	trace_kvm_apic(write, reg, value);
}

void ex_trace_hypercall(u64 number, const u64 *operands)
{
	trace_kvm_hypercall(number, operands);
}

void ex_trace_pio(bool write, u32 port, u32 size, u32 count, u32 value)
{
	trace_kvm_pio(write, port, size, count, value);
}

void ex_trace_mmio(u32 type, u32 len, u64 gpa, u64 value)
{
	trace_kvm_mmio(type, len, gpa, value);
}
