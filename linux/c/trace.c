// SPDX-License-Identifier: MIT OR GPL-2.0-only
/*
 * Tracepoints. Rust asks ex_traced, a branch that is patched while anybody listens to any event, and calls these functions then;
 * each event looks at its own branch in turn.
 */
#include <linux/export.h>
#include <linux/jump_label.h>
#include <linux/kvm.h>
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

void ex_trace_emulate(u64 rip, u32 code, const u8 *bytes, u8 length, u8 flags, bool failed)
{
	trace_kvm_emulate_insn(rip, code, bytes, length, flags, failed);
}

void ex_trace_fast_mmio(u64 gpa)
{
	trace_kvm_fast_mmio(gpa);
}

void ex_trace_ipi(u32 icr, u32 destination)
{
	trace_kvm_apic_ipi(icr, destination);
}

void ex_trace_accept(u32 apicid, u16 mode, bool level, u8 vector)
{
	trace_kvm_apic_accept_irq(apicid, mode, level, vector);
}

void ex_trace_eoi(u32 apicid, u8 vector)
{
	trace_kvm_eoi(apicid, vector);
}

void ex_trace_pv_eoi(u32 apicid, u8 vector)
{
	trace_kvm_pv_eoi(apicid, vector);
}

void ex_trace_inject_interrupt(u8 vector, bool soft, bool again)
{
	trace_kvm_inj_virq(vector, soft, again);
}

void ex_trace_inject_exception(u8 vector, bool coded, u32 error_code, bool again)
{
	trace_kvm_inj_exception(vector, coded, error_code, again);
}

void ex_trace_cr(bool write, u32 cr, u64 value)
{
	trace_kvm_cr(write, cr, value);
}

void ex_trace_timer_wait(u32 vcpu, s64 late)
{
	trace_kvm_wait_lapic_expire(vcpu, late);
}

void ex_trace_page_fault(u32 vcpu, u64 rip, u64 address, u64 error_code)
{
	trace_kvm_page_fault(vcpu, rip, address, error_code);
}

void ex_trace_log_full(u32 vcpu)
{
	trace_kvm_pml_full(vcpu);
}

void ex_trace_user_exit(u32 reason, int err)
{
	trace_kvm_userspace_exit(reason, err);
}

void ex_trace_fpu(bool load)
{
	trace_kvm_fpu(load);
}

void ex_trace_wakeup(u64 ns, bool waited, bool valid)
{
	trace_kvm_vcpu_wakeup(ns, waited, valid);
}

void ex_trace_halt_poll(u32 vcpu, u32 fresh, u32 old)
{
	trace_kvm_halt_poll_ns(vcpu, fresh, old);
}

void ex_trace_set_irq(u32 gsi, bool level, u32 source)
{
	trace_kvm_set_irq(gsi, level, source);
}

void ex_trace_msi(u64 address, u64 data)
{
	trace_kvm_msi_set_irq(address, data);
}

void ex_trace_ack(u32 irqchip, u32 pin)
{
	trace_kvm_ack_irq(irqchip, pin);
}
