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
#include <asm/apicdef.h>
#include <asm/kvm.h>
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

TRACE_EVENT_FN(kvm_fast_mmio,
	TP_PROTO(u64 gpa),
	TP_ARGS(gpa),
	TP_STRUCT__entry(
		__field(u64, gpa)
	),
	TP_fast_assign(
		__entry->gpa = gpa;
	),
	TP_printk("fast mmio at gpa 0x%llx", __entry->gpa),
	ex_trace_listen, ex_trace_leave
);

#define EX_DELIVERY_MODES \
	{0x0, "Fixed"}, {0x1, "LowPrio"}, {0x2, "SMI"}, {0x3, "Res3"}, {0x4, "NMI"}, {0x5, "INIT"}, {0x6, "SIPI"}, \
	{0x7, "ExtINT"}

TRACE_EVENT_FN(kvm_apic_ipi,
	TP_PROTO(u32 icr, u32 destination),
	TP_ARGS(icr, destination),
	TP_STRUCT__entry(
		__field(__u32, icr_low)
		__field(__u32, dest_id)
	),
	TP_fast_assign(
		__entry->icr_low = icr;
		__entry->dest_id = destination;
	),
	TP_printk("dst %x vec %u (%s|%s|%s|%s|%s)", __entry->dest_id, (u8)__entry->icr_low,
		  __print_symbolic((__entry->icr_low >> 8 & 0x7), EX_DELIVERY_MODES),
		  (__entry->icr_low & (1<<11)) ? "logical" : "physical",
		  (__entry->icr_low & (1<<14)) ? "assert" : "de-assert",
		  (__entry->icr_low & (1<<15)) ? "level" : "edge",
		  __print_symbolic((__entry->icr_low >> 18 & 0x3), {0x0, "dst"}, {0x1, "self"}, {0x2, "all"}, {0x3, "all-but-self"})),
	ex_trace_listen, ex_trace_leave
);

TRACE_EVENT_FN(kvm_apic_accept_irq,
	TP_PROTO(u32 apicid, u16 dm, u16 tm, u8 vec),
	TP_ARGS(apicid, dm, tm, vec),
	TP_STRUCT__entry(
		__field(__u32, apicid)
		__field(__u16, dm)
		__field(__u16, tm)
		__field(__u8, vec)
	),
	TP_fast_assign(
		__entry->apicid = apicid;
		__entry->dm = dm;
		__entry->tm = tm;
		__entry->vec = vec;
	),
	TP_printk("apicid %x vec %u (%s|%s)", __entry->apicid, __entry->vec,
		  __print_symbolic((__entry->dm >> 8 & 0x7), EX_DELIVERY_MODES), __entry->tm ? "level" : "edge"),
	ex_trace_listen, ex_trace_leave
);

DECLARE_EVENT_CLASS(ex_eoi,
	TP_PROTO(u32 apicid, int vector),
	TP_ARGS(apicid, vector),
	TP_STRUCT__entry(
		__field(__u32, apicid)
		__field(int, vector)
	),
	TP_fast_assign(
		__entry->apicid = apicid;
		__entry->vector = vector;
	),
	TP_printk("apicid %x vector %d", __entry->apicid, __entry->vector)
);

DEFINE_EVENT_FN(ex_eoi, kvm_eoi, TP_PROTO(u32 apicid, int vector), TP_ARGS(apicid, vector),
	ex_trace_listen, ex_trace_leave);
DEFINE_EVENT_FN(ex_eoi, kvm_pv_eoi, TP_PROTO(u32 apicid, int vector), TP_ARGS(apicid, vector),
	ex_trace_listen, ex_trace_leave);

TRACE_EVENT_FN(kvm_inj_virq,
	TP_PROTO(u32 vector, bool soft, bool again),
	TP_ARGS(vector, soft, again),
	TP_STRUCT__entry(
		__field(unsigned int, vector)
		__field(bool, soft)
		__field(bool, reinjected)
	),
	TP_fast_assign(
		__entry->vector = vector;
		__entry->soft = soft;
		__entry->reinjected = again;
	),
	TP_printk("%s 0x%x%s", __entry->soft ? "Soft/INTn" : "IRQ", __entry->vector,
		  __entry->reinjected ? " [reinjected]" : ""),
	ex_trace_listen, ex_trace_leave
);

#define ex_exception_name(x) { x##_VECTOR, "#" #x }
#define EX_EXCEPTIONS \
	ex_exception_name(DE), ex_exception_name(DB), ex_exception_name(BP), ex_exception_name(OF), \
	ex_exception_name(BR), ex_exception_name(UD), ex_exception_name(NM), ex_exception_name(DF), \
	ex_exception_name(TS), ex_exception_name(NP), ex_exception_name(SS), ex_exception_name(GP), \
	ex_exception_name(PF), ex_exception_name(MF), ex_exception_name(AC), ex_exception_name(MC)

TRACE_EVENT_FN(kvm_inj_exception,
	TP_PROTO(u8 vector, bool coded, u32 error_code, bool again),
	TP_ARGS(vector, coded, error_code, again),
	TP_STRUCT__entry(
		__field(u8, exception)
		__field(u8, has_error)
		__field(u32, error_code)
		__field(bool, reinjected)
	),
	TP_fast_assign(
		__entry->exception = vector;
		__entry->has_error = coded;
		__entry->error_code = error_code;
		__entry->reinjected = again;
	),
	TP_printk("%s%s%s%s%s", __print_symbolic(__entry->exception, EX_EXCEPTIONS),
		  !__entry->has_error ? "" : " (",
		  !__entry->has_error ? "" : __print_symbolic(__entry->error_code, { }),
		  !__entry->has_error ? "" : ")",
		  __entry->reinjected ? " [reinjected]" : ""),
	ex_trace_listen, ex_trace_leave
);

TRACE_EVENT_FN(kvm_cr,
	TP_PROTO(u32 rw, u32 cr, u64 val),
	TP_ARGS(rw, cr, val),
	TP_STRUCT__entry(
		__field(unsigned int, rw)
		__field(unsigned int, cr)
		__field(unsigned long, val)
	),
	TP_fast_assign(
		__entry->rw = rw;
		__entry->cr = cr;
		__entry->val = val;
	),
	TP_printk("cr_%s %x = 0x%lx", __entry->rw ? "write" : "read", __entry->cr, __entry->val),
	ex_trace_listen, ex_trace_leave
);

TRACE_EVENT_FN(kvm_wait_lapic_expire,
	TP_PROTO(u32 vcpu, s64 late),
	TP_ARGS(vcpu, late),
	TP_STRUCT__entry(
		__field(unsigned int, vcpu_id)
		__field(s64, delta)
	),
	TP_fast_assign(
		__entry->vcpu_id = vcpu;
		__entry->delta = late;
	),
	TP_printk("vcpu %u: delta %lld (%s)", __entry->vcpu_id, __entry->delta, __entry->delta < 0 ? "early" : "late"),
	ex_trace_listen, ex_trace_leave
);

TRACE_EVENT_FN(kvm_page_fault,
	TP_PROTO(u32 vcpu, u64 rip, u64 address, u64 error_code),
	TP_ARGS(vcpu, rip, address, error_code),
	TP_STRUCT__entry(
		__field(unsigned int, vcpu_id)
		__field(unsigned long, guest_rip)
		__field(u64, fault_address)
		__field(u64, error_code)
	),
	TP_fast_assign(
		__entry->vcpu_id = vcpu;
		__entry->guest_rip = rip;
		__entry->fault_address = address;
		__entry->error_code = error_code;
	),
	TP_printk("vcpu %u rip 0x%lx address 0x%016llx error_code 0x%llx", __entry->vcpu_id, __entry->guest_rip,
		  __entry->fault_address, __entry->error_code),
	ex_trace_listen, ex_trace_leave
);

TRACE_EVENT_FN(kvm_pml_full,
	TP_PROTO(u32 vcpu),
	TP_ARGS(vcpu),
	TP_STRUCT__entry(
		__field(unsigned int, vcpu_id)
	),
	TP_fast_assign(
		__entry->vcpu_id = vcpu;
	),
	TP_printk("vcpu %d: PML full", __entry->vcpu_id),
	ex_trace_listen, ex_trace_leave
);

#define ex_user_exit(x) { KVM_EXIT_##x, "KVM_EXIT_" #x }
#define EX_USER_EXITS \
	ex_user_exit(UNKNOWN), ex_user_exit(EXCEPTION), ex_user_exit(IO), ex_user_exit(HYPERCALL), \
	ex_user_exit(DEBUG), ex_user_exit(HLT), ex_user_exit(MMIO), ex_user_exit(IRQ_WINDOW_OPEN), \
	ex_user_exit(SHUTDOWN), ex_user_exit(FAIL_ENTRY), ex_user_exit(INTR), ex_user_exit(SET_TPR), \
	ex_user_exit(TPR_ACCESS), ex_user_exit(S390_SIEIC), ex_user_exit(S390_RESET), ex_user_exit(DCR), \
	ex_user_exit(NMI), ex_user_exit(INTERNAL_ERROR), ex_user_exit(OSI), ex_user_exit(PAPR_HCALL), \
	ex_user_exit(S390_UCONTROL), ex_user_exit(WATCHDOG), ex_user_exit(S390_TSCH), ex_user_exit(EPR), \
	ex_user_exit(SYSTEM_EVENT), ex_user_exit(S390_STSI), ex_user_exit(IOAPIC_EOI), ex_user_exit(HYPERV), \
	ex_user_exit(ARM_NISV), ex_user_exit(X86_RDMSR), ex_user_exit(X86_WRMSR)

TRACE_EVENT_FN(kvm_userspace_exit,
	TP_PROTO(u32 reason, int err),
	TP_ARGS(reason, err),
	TP_STRUCT__entry(
		__field(__u32, reason)
		__field(int, errno)
	),
	TP_fast_assign(
		__entry->reason = reason;
		__entry->errno = err;
	),
	TP_printk("reason %s (%d)",
		  __entry->errno < 0 ?
		  (__entry->errno == -EINTR ? "restart" : "error") :
		  __print_symbolic(__entry->reason, EX_USER_EXITS),
		  __entry->errno < 0 ? -__entry->errno : __entry->reason),
	ex_trace_listen, ex_trace_leave
);

TRACE_EVENT_FN(kvm_fpu,
	TP_PROTO(u32 load),
	TP_ARGS(load),
	TP_STRUCT__entry(
		__field(u32, load)
	),
	TP_fast_assign(
		__entry->load = load;
	),
	TP_printk("%s", __print_symbolic(__entry->load, {0, "unload"}, {1, "load"})),
	ex_trace_listen, ex_trace_leave
);

TRACE_EVENT_FN(kvm_vcpu_wakeup,
	TP_PROTO(u64 ns, bool waited, bool valid),
	TP_ARGS(ns, waited, valid),
	TP_STRUCT__entry(
		__field(__u64, ns)
		__field(bool, waited)
		__field(bool, valid)
	),
	TP_fast_assign(
		__entry->ns = ns;
		__entry->waited = waited;
		__entry->valid = valid;
	),
	TP_printk("%s time %lld ns, polling %s", __entry->waited ? "wait" : "poll", __entry->ns,
		  __entry->valid ? "valid" : "invalid"),
	ex_trace_listen, ex_trace_leave
);

TRACE_EVENT_FN(kvm_halt_poll_ns,
	TP_PROTO(u32 vcpu, u32 fresh, u32 old),
	TP_ARGS(vcpu, fresh, old),
	TP_STRUCT__entry(
		__field(bool, grow)
		__field(unsigned int, vcpu_id)
		__field(unsigned int, new)
		__field(unsigned int, old)
	),
	TP_fast_assign(
		__entry->grow = fresh > old;
		__entry->vcpu_id = vcpu;
		__entry->new = fresh;
		__entry->old = old;
	),
	TP_printk("vcpu %u: halt_poll_ns %u (%s %u)", __entry->vcpu_id, __entry->new,
		  __entry->grow ? "grow" : "shrink", __entry->old),
	ex_trace_listen, ex_trace_leave
);

TRACE_EVENT_FN(kvm_set_irq,
	TP_PROTO(u32 gsi, int level, int source),
	TP_ARGS(gsi, level, source),
	TP_STRUCT__entry(
		__field(unsigned int, gsi)
		__field(int, level)
		__field(int, irq_source_id)
	),
	TP_fast_assign(
		__entry->gsi = gsi;
		__entry->level = level;
		__entry->irq_source_id = source;
	),
	TP_printk("gsi %u level %d source %d", __entry->gsi, __entry->level, __entry->irq_source_id),
	ex_trace_listen, ex_trace_leave
);

TRACE_EVENT_FN(kvm_msi_set_irq,
	TP_PROTO(u64 address, u64 data),
	TP_ARGS(address, data),
	TP_STRUCT__entry(
		__field(__u64, address)
		__field(__u64, data)
	),
	TP_fast_assign(
		__entry->address = address;
		__entry->data = data;
	),
	TP_printk("dst %llx vec %u (%s|%s|%s%s)",
		  (u8)(__entry->address >> 12) | ((__entry->address >> 32) & 0xffffff00), (u8)__entry->data,
		  __print_symbolic((__entry->data >> 8 & 0x7), EX_DELIVERY_MODES),
		  (__entry->address & (1<<2)) ? "logical" : "physical",
		  (__entry->data & (1<<15)) ? "level" : "edge", (__entry->address & (1<<3)) ? "|rh" : ""),
	ex_trace_listen, ex_trace_leave
);

TRACE_EVENT_FN(kvm_ack_irq,
	TP_PROTO(u32 irqchip, u32 pin),
	TP_ARGS(irqchip, pin),
	TP_STRUCT__entry(
		__field(unsigned int, irqchip)
		__field(unsigned int, pin)
	),
	TP_fast_assign(
		__entry->irqchip = irqchip;
		__entry->pin = pin;
	),
	TP_printk("irqchip %s pin %u",
		  __print_symbolic(__entry->irqchip, {0, "PIC master"}, {1, "PIC slave"}, {2, "IOAPIC"}), __entry->pin),
	ex_trace_listen, ex_trace_leave
);

/* CR0.PE, EFLAGS.VM, CS.D, CS.L. */
#define EX_CODE_MODES \
	{ 0, "real" }, { (1 << 0) | (1 << 1), "vm16" }, { (1 << 0), "prot16" }, { (1 << 0) | (1 << 2), "prot32" }, \
	{ (1 << 0) | (1 << 3), "prot64" }

TRACE_EVENT_FN(kvm_emulate_insn,
	TP_PROTO(u64 rip, u32 code, const u8 *bytes, u8 length, u8 flags, bool failed),
	TP_ARGS(rip, code, bytes, length, flags, failed),
	TP_STRUCT__entry(
		__field(__u64, rip)
		__field(__u32, csbase)
		__field(__u8, len)
		__array(__u8, insn, 15)
		__field(__u8, flags)
		__field(__u8, failed)
	),
	TP_fast_assign(
		__entry->rip = rip;
		__entry->csbase = code;
		__entry->len = length;
		memcpy(__entry->insn, bytes, 15);
		__entry->flags = flags;
		__entry->failed = failed;
	),
	TP_printk("%x:%llx:%s (%s)%s", __entry->csbase, __entry->rip, __print_hex(__entry->insn, __entry->len),
		  __print_symbolic(__entry->flags, EX_CODE_MODES), __entry->failed ? " failed" : ""),
	ex_trace_listen, ex_trace_leave
);

DECLARE_EVENT_CLASS(ex_hva_range,
	TP_PROTO(unsigned long start, unsigned long end),
	TP_ARGS(start, end),
	TP_STRUCT__entry(
		__field(unsigned long, start)
		__field(unsigned long, end)
	),
	TP_fast_assign(
		__entry->start = start;
		__entry->end = end;
	),
	TP_printk("mmu notifier unmap range: %#016lx -- %#016lx", __entry->start, __entry->end)
);

DEFINE_EVENT(ex_hva_range, kvm_unmap_hva_range, TP_PROTO(unsigned long start, unsigned long end), TP_ARGS(start, end));
DEFINE_EVENT_PRINT(ex_hva_range, kvm_age_hva, TP_PROTO(unsigned long start, unsigned long end), TP_ARGS(start, end),
	TP_printk("mmu notifier age hva: %#016lx -- %#016lx", __entry->start, __entry->end)
);

TRACE_EVENT(kvm_test_age_hva,
	TP_PROTO(unsigned long hva),
	TP_ARGS(hva),
	TP_STRUCT__entry(
		__field(unsigned long, hva)
	),
	TP_fast_assign(
		__entry->hva = hva;
	),
	TP_printk("mmu notifier test age hva: %#016lx", __entry->hva)
);

#endif

#undef TRACE_INCLUDE_PATH
#define TRACE_INCLUDE_PATH .
#undef TRACE_INCLUDE_FILE
#define TRACE_INCLUDE_FILE trace
#include <trace/define_trace.h>
