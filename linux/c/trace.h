/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * The events kvm:*, as tools know them: names, fields, their types and order, and the text are stock KVM's (scenario `tracing`
 * compares them with the kernel's own). An event that is listened to switches what its callers look at: see trace.c.
 */
#undef TRACE_SYSTEM
#define TRACE_SYSTEM kvm

#if !defined(EX_TRACE_H) || defined(TRACE_HEADER_MULTI_READ)
#define EX_TRACE_H

#include <linux/tracepoint.h>
#include <asm/svm.h>
#include <asm/vmx.h>

#ifndef EX_TRACE_WORDS
#define EX_TRACE_WORDS
/* The field isa. */
#define EX_ISA_VMX 1
#define EX_ISA_SVM 2

int ex_trace_listen(void);
void ex_trace_leave(void);
#endif

TRACE_EVENT_FN(kvm_entry,
	TP_PROTO(u32 vcpu, u64 rip),
	TP_ARGS(vcpu, rip),
	TP_STRUCT__entry(
		__field(unsigned int, vcpu_id)
		__field(unsigned long, rip)
		__field(bool, immediate_exit)
	),
	TP_fast_assign(
		__entry->vcpu_id = vcpu;
		__entry->rip = rip;
		__entry->immediate_exit = false;
	),
	TP_printk("vcpu %u, rip 0x%lx%s", __entry->vcpu_id, __entry->rip, __entry->immediate_exit ? "[immediate exit]" : ""),
	ex_trace_listen, ex_trace_leave
);

#define ex_exit_name(isa, reason) \
	(isa == EX_ISA_VMX) ? \
	__print_symbolic(reason & 0xffff, VMX_EXIT_REASONS) : \
	__print_symbolic(reason, SVM_EXIT_REASONS), \
	(isa == EX_ISA_VMX && reason & ~0xffff) ? " " : "", \
	(isa == EX_ISA_VMX) ? \
	__print_flags(reason & ~0xffff, " ", VMX_EXIT_REASON_FLAGS) : ""

TRACE_EVENT_FN(kvm_exit,
	TP_PROTO(u32 vcpu, u32 isa, u32 reason, u64 rip, u64 info1, u64 info2, u32 event, u32 error_code),
	TP_ARGS(vcpu, isa, reason, rip, info1, info2, event, error_code),
	TP_STRUCT__entry(
		__field(unsigned int, exit_reason)
		__field(unsigned long, guest_rip)
		__field(u32, isa)
		__field(u64, info1)
		__field(u64, info2)
		__field(u32, intr_info)
		__field(u32, error_code)
		__field(unsigned int, vcpu_id)
	),
	TP_fast_assign(
		__entry->exit_reason = reason;
		__entry->guest_rip = rip;
		__entry->isa = isa;
		__entry->info1 = info1;
		__entry->info2 = info2;
		__entry->intr_info = event;
		__entry->error_code = error_code;
		__entry->vcpu_id = vcpu;
	),
	TP_printk("vcpu %u reason %s%s%s rip 0x%lx info1 0x%016llx info2 0x%016llx intr_info 0x%08x error_code 0x%08x",
		  __entry->vcpu_id, ex_exit_name(__entry->isa, __entry->exit_reason), __entry->guest_rip,
		  __entry->info1, __entry->info2, __entry->intr_info, __entry->error_code),
	ex_trace_listen, ex_trace_leave
);

TRACE_EVENT_FN(kvm_cpuid,
	TP_PROTO(u32 function, u32 index, const u64 *answer, bool found, bool used_max_basic),
	TP_ARGS(function, index, answer, found, used_max_basic),
	TP_STRUCT__entry(
		__field(unsigned int, function)
		__field(unsigned int, index)
		__field(unsigned long, rax)
		__field(unsigned long, rbx)
		__field(unsigned long, rcx)
		__field(unsigned long, rdx)
		__field(bool, found)
		__field(bool, used_max_basic)
	),
	TP_fast_assign(
		__entry->function = function;
		__entry->index = index;
		__entry->rax = answer[0];
		__entry->rbx = answer[1];
		__entry->rcx = answer[2];
		__entry->rdx = answer[3];
		__entry->found = found;
		__entry->used_max_basic = used_max_basic;
	),
	TP_printk("func %x idx %x rax %lx rbx %lx rcx %lx rdx %lx, cpuid entry %s%s",
		  __entry->function, __entry->index, __entry->rax, __entry->rbx, __entry->rcx, __entry->rdx,
		  __entry->found ? "found" : "not found", __entry->used_max_basic ? ", used max basic" : ""),
	ex_trace_listen, ex_trace_leave
);

TRACE_EVENT_FN(kvm_msr,
	TP_PROTO(u32 write, u32 index, u64 data, bool refused),
	TP_ARGS(write, index, data, refused),
	TP_STRUCT__entry(
		__field(unsigned, write)
		__field(u32, ecx)
		__field(u64, data)
		__field(u8, exception)
	),
	TP_fast_assign(
		__entry->write = write;
		__entry->ecx = index;
		__entry->data = data;
		__entry->exception = refused;
	),
	TP_printk("msr_%s %x = 0x%llx%s", __entry->write ? "write" : "read", __entry->ecx, __entry->data,
		  __entry->exception ? " (#GP)" : ""),
	ex_trace_listen, ex_trace_leave
);

#define ex_apic_name(at) { APIC_##at, "APIC_" #at }
#define EX_APIC_REGISTERS \
	ex_apic_name(ID), ex_apic_name(LVR), ex_apic_name(TASKPRI), ex_apic_name(ARBPRI), \
	ex_apic_name(PROCPRI), ex_apic_name(EOI), ex_apic_name(RRR), ex_apic_name(LDR), ex_apic_name(DFR), \
	ex_apic_name(SPIV), ex_apic_name(ISR), ex_apic_name(TMR), ex_apic_name(IRR), ex_apic_name(ESR), \
	ex_apic_name(ICR), ex_apic_name(ICR2), ex_apic_name(LVTT), ex_apic_name(LVTTHMR), ex_apic_name(LVTPC), \
	ex_apic_name(LVT0), ex_apic_name(LVT1), ex_apic_name(LVTERR), ex_apic_name(TMICT), ex_apic_name(TMCCT), \
	ex_apic_name(TDCR), ex_apic_name(SELF_IPI), ex_apic_name(EFEAT), ex_apic_name(ECTRL)

TRACE_EVENT_FN(kvm_apic,
	TP_PROTO(u32 rw, u32 reg, u64 val),
	TP_ARGS(rw, reg, val),
	TP_STRUCT__entry(
		__field(unsigned int, rw)
		__field(unsigned int, reg)
		__field(u64, val)
	),
	TP_fast_assign(
		__entry->rw = rw;
		__entry->reg = reg;
		__entry->val = val;
	),
	TP_printk("apic_%s %s = 0x%llx", __entry->rw ? "write" : "read",
		  __print_symbolic(__entry->reg, EX_APIC_REGISTERS), __entry->val),
	ex_trace_listen, ex_trace_leave
);

TRACE_EVENT_FN(kvm_hypercall,
	TP_PROTO(u64 nr, const u64 *a),
	TP_ARGS(nr, a),
	TP_STRUCT__entry(
		__field(unsigned long, nr)
		__field(unsigned long, a0)
		__field(unsigned long, a1)
		__field(unsigned long, a2)
		__field(unsigned long, a3)
	),
	TP_fast_assign(
		__entry->nr = nr;
		__entry->a0 = a[0];
		__entry->a1 = a[1];
		__entry->a2 = a[2];
		__entry->a3 = a[3];
	),
	TP_printk("nr 0x%lx a0 0x%lx a1 0x%lx a2 0x%lx a3 0x%lx", __entry->nr, __entry->a0, __entry->a1,
		  __entry->a2, __entry->a3),
	ex_trace_listen, ex_trace_leave
);

TRACE_EVENT_FN(kvm_pio,
	TP_PROTO(u32 rw, u32 port, u32 size, u32 count, u32 val),
	TP_ARGS(rw, port, size, count, val),
	TP_STRUCT__entry(
		__field(unsigned int, rw)
		__field(unsigned int, port)
		__field(unsigned int, size)
		__field(unsigned int, count)
		__field(unsigned int, val)
	),
	TP_fast_assign(
		__entry->rw = rw;
		__entry->port = port;
		__entry->size = size;
		__entry->count = count;
		__entry->val = val;
	),
	TP_printk("pio_%s at 0x%x size %d count %d val 0x%x %s", __entry->rw ? "write" : "read", __entry->port,
		  __entry->size, __entry->count, __entry->val, __entry->count > 1 ? "(...)" : ""),
	ex_trace_listen, ex_trace_leave
);

TRACE_EVENT_FN(kvm_mmio,
	TP_PROTO(u32 type, u32 len, u64 gpa, u64 val),
	TP_ARGS(type, len, gpa, val),
	TP_STRUCT__entry(
		__field(u32, type)
		__field(u32, len)
		__field(u64, gpa)
		__field(u64, val)
	),
	TP_fast_assign(
		__entry->type = type;
		__entry->len = len;
		__entry->gpa = gpa;
		__entry->val = val;
	),
	TP_printk("mmio %s len %u gpa 0x%llx val 0x%llx",
		  __print_symbolic(__entry->type, { 0, "unsatisfied-read" }, { 1, "read" }, { 2, "write" }),
		  __entry->len, __entry->gpa, __entry->val),
	ex_trace_listen, ex_trace_leave
);

#endif

#undef TRACE_INCLUDE_PATH
#define TRACE_INCLUDE_PATH .
#undef TRACE_INCLUDE_FILE
#define TRACE_INCLUDE_FILE trace
#include <trace/define_trace.h>
