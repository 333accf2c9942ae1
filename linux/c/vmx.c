// SPDX-License-Identifier: MIT OR GPL-2.0-only
/*
 * The way into a VMX guest and back; VMX on and off; the host's state for the VMCS. Twin of enter.c; the switch itself is enter-vmx.S.
 *
 * Everything between ex_guest_enter() and ex_guest_exit() runs while RCU believes this CPU is in
 * user mode: no tracing, no instrumented function, so it is noinstr.
 */
#include <linux/build_bug.h>
#include <linux/cpu.h>
#include <linux/hardirq.h>
#include <linux/hrtimer.h>
#include <linux/kvm_host.h>
#include <linux/moduleparam.h>
#include <linux/perf_event.h>
#include <linux/percpu.h>
#include <linux/sched.h>
#include <linux/stddef.h>
#include <linux/tick.h>
#include <asm/apic.h>
#include <asm/cpu_entry_area.h>
#include <asm/desc.h>
#include <asm/extable.h>
#include <asm/irq_vectors.h>
#include <asm/mmu_context.h>
#include <asm/nospec-branch.h>
#include <asm/perf_event.h>
#include <asm/processor.h>
#include <asm/proto.h>
#include <asm/tlbflush.h>
#include <asm/tsc.h>
#include "guest.h"
#include "mitigations.h"
#include "helpers/helpers.h"

/* VMCS fields and bits (SDM vol. 3D, appendix B; vol. 3C, 25.9.2). */
#define EX_VMCS_EXIT_REASON		0x4402
#define EX_VMCS_EXIT_INTERRUPTION_INFO	0x4404
#define EX_VMCS_GUEST_SS_ACCESS		0x4818
#define EX_VMCS_GUEST_RIP		0x681e
#define EX_REASON_EXCEPTION_OR_NMI	0
#define EX_INTERRUPTION_TYPE		(7u << 8)
#define EX_INTERRUPTION_NMI		(2u << 8)

/* How to enter; hw/vmx/src/machine.rs, How, is the same. */
#define EX_HOW_LAUNCHED		1u
#define EX_HOW_GUARD_L1D	2u
#define EX_HOW_L1D_DIRTY	4u

/* hw/vmx/src/vcpu.rs, struct Run, is the same; enter-vmx.S knows the offsets. */
struct ex_vmx_run {
	u64 regs[16];
	u64 cr2;
	u64 host_rsp;
	u64 spec_ctrl;
	u32 exit_reason;
	u32 interruption;
	u64 spec_open;
};

/* hw/vmx/src/percpu.rs, struct HostState, is the same. */
struct ex_vmx_host_state {
	u64 cr0;
	u64 efer;
	u64 pat;
	u64 cs;
	u64 ss;
	u64 tr;
	u64 gs_base;
	u64 tss_base;
	u64 gdt_base;
	u64 idt_base;
	u64 sysenter_cs;
	u64 sysenter_esp;
	u64 sysenter_eip;
};

/* hw/vmx/src/pmu.rs, struct Switched, is the same. */
struct ex_vmx_pmu_msr {
	u64 msr;
	u64 host;
	u64 guest;
};

u64 ex_vmx_host_cr3(void);
u64 ex_vmx_host_cr4(void);
void ex_vmx_call_gate(unsigned long handler);
u32 ex_vmx_run_asm(struct ex_vmx_run *run, u64 launched, u64 host_spec_ctrl);
u32 ex_vmx_enter(struct ex_vmx_run *run, u32 how);
void ex_vmx_interrupt(u8 vector);
u32 ex_vmx_host_timer(void);
bool ex_vmx_interrupt_requested(u8 vector);
void ex_vmx_set_timer_vector(u8 vector);
void ex_vmx_end_interrupt(void);
u32 ex_vmx_pmu_list(struct ex_vmx_pmu_msr *list, u32 longest);
void ex_vmx_task_bases(u64 *fs, u64 *gs);
void ex_vmx_restore_segments(u16 ds, u16 es, u16 fs, u16 gs, u16 ldt, u64 fs_base);

/* enter-vmx.S and hw/vmx/src/ops.rs count on these. */
static_assert(offsetof(struct ex_vmx_run, host_rsp) == 136);
static_assert(offsetof(struct ex_vmx_run, spec_ctrl) == 144);
static_assert(offsetof(struct ex_vmx_run, interruption) == 156);
static_assert(offsetof(struct ex_vmx_run, spec_open) == 160);
static_assert(sizeof(struct ex_vmx_host_state) == 13 * 8);
static_assert(sizeof(struct ex_vmx_pmu_msr) == 3 * 8);
static_assert(sizeof(struct exception_table_entry) == 12);
static_assert(offsetof(struct exception_table_entry, fixup) == 4);
static_assert(EX_TYPE_DEFAULT == 1);
/* hw/vmx/src/vapic.rs */
static_assert(POSTED_INTR_VECTOR == 0xf2);

/* 0 when VMX was turned off under us. */
static __always_inline unsigned long ex_vmread(unsigned long field)
{
	unsigned long value = 0;

	asm volatile("1: vmread %[field], %[value]\n2:\n"
		     _ASM_EXTABLE(1b, 2b)
		     : [value] "+r" (value) : [field] "r" (field) : "cc");
	return value;
}

/*
 * The exit has acknowledged this interrupt: its handler has to be called, as the CPU would have. The interrupts stay off,
 * and RCU knows that this CPU is in the kernel.
 */
void ex_vmx_interrupt(u8 vector)
{
	struct desc_ptr idt;

	store_idt(&idt);
	ex_guest_handles(EX_HANDLED_IRQ);
	ex_vmx_call_gate(gate_offset((gate_desc *)idt.address + vector));
	ex_guest_handles(EX_HANDLED_NOTHING);
}

/*
 * Interrupts off, the vCPU's VMCS current on this CPU. 0: a VM exit; 1: VMfail; 2: VMX is off.
 * An NMI that ended the guest's time has been handled when it returns; an acknowledged interrupt and a machine check are the
 * caller's to hand to ex_vmx_interrupt() and ex_machine_check(), once the guest's XCR0, XSS and debug registers are gone.
 */
noinstr u32 ex_vmx_enter(struct ex_vmx_run *run, u32 how)
{
	u32 failed;

	raw_cpu_write(ex_guest_seen.where, (u64)EX_GUEST_IN_VMCS);
	ex_guest_enter();
	/* The host touches next to nothing of its own from here on. */
	if (how & EX_HOW_GUARD_L1D)
		ex_flush_l1d(how & EX_HOW_L1D_DIRTY);
	ex_clear_for_device_memory();
	if (run->cr2 != native_read_cr2())
		native_write_cr2(run->cr2);
	failed = ex_vmx_run_asm(run, how & EX_HOW_LAUNCHED, raw_cpu_read_8(x86_spec_ctrl_current));
	run->cr2 = native_read_cr2();
	run->interruption = 0;
	if (!failed) {
		run->exit_reason = ex_vmread(EX_VMCS_EXIT_REASON);
		if (run->exit_reason == EX_REASON_EXCEPTION_OR_NMI) {
			run->interruption = ex_vmread(EX_VMCS_EXIT_INTERRUPTION_INFO);
			/* An NMI exit leaves NMIs blocked; the IRET of the handler unblocks them. Nothing may fault before. */
			if ((run->interruption & EX_INTERRUPTION_TYPE) == EX_INTERRUPTION_NMI) {
				ex_guest_handles(EX_HANDLED_NMI);
				asm volatile("int $2" : : : "memory", "cc");
				ex_guest_handles(EX_HANDLED_NOTHING);
			}
		}
	}
	ex_guest_exit();
	ex_guard_user_part();
	return failed;
}

/* For samples of perf, between a guest's exit and the end of its slice. */
unsigned long ex_vmx_guest_rip(void)
{
	return ex_vmread(EX_VMCS_GUEST_RIP);
}

/* SS.DPL, also in real mode and of an unusable SS (SDM vol. 3C, 25.4.1). */
u32 ex_vmx_guest_cpl(void)
{
	return ex_vmread(EX_VMCS_GUEST_SS_ACCESS) >> 5 & 3;
}

/*
 * What perf wants to differ between host and guest on this CPU now. Interrupts off: the array is this CPU's. No guest has
 * counters or a PEBS buffer of its own here, so there is no guest's state to tell.
 */
u32 ex_vmx_pmu_list(struct ex_vmx_pmu_msr *list, u32 longest)
{
	u32 n = 0;
#ifdef EX_HAVE_GUEST_MSRS
	/* Without counters perf answers NULL and leaves the number alone. */
	struct perf_guest_switch_msr *all;
	int i, count = 0;

	all = perf_guest_get_msrs(&count, NULL);
	for (i = 0; all && i < count; i++) {
		if (all[i].host == all[i].guest)
			continue;
		if (WARN_ON_ONCE(n == longest))
			break;
		list[n++] = (struct ex_vmx_pmu_msr){ all[i].msr, all[i].host, all[i].guest };
	}
#elif IS_ENABLED(CONFIG_CPU_SUP_INTEL)
#error "this kernel keeps perf's list of guest registers to kvm.ko: host profiling could write into guests' memory"
#endif
	return n;
}

/* The kernel notes what CR3 holds; reading it takes longer. Interrupts off. */
u64 ex_vmx_host_cr3(void)
{
#ifdef EX_HAVE_CR3_FAST
	return __get_current_cr3_fast();
#else
	return __native_read_cr3();
#endif
}

/* The same of CR4. */
u64 ex_vmx_host_cr4(void)
{
#ifdef EX_HAVE_CR4_SHADOW
	return cr4_read_shadow();
#else
	return native_read_cr4();
#endif
}

/* modprobe exitless apicv=0: interrupts as on CPUs that cannot virtualise the APIC. Read once, at load. */
static bool ex_apicv = true;
module_param_named(apicv, ex_apicv, bool, 0444);
MODULE_PARM_DESC(apicv, "Let Intel CPUs deliver virtual interrupts by themselves where they can (default: on)");

/* modprobe exitless preemption_timer=0: APIC timers are the host's. */
static bool ex_preemption_timer = true;
module_param_named(preemption_timer, ex_preemption_timer, bool, 0444);
MODULE_PARM_DESC(preemption_timer, "Keep a running vCPU's APIC timer in the VMX-preemption timer (default: on)");

/* modprobe exitless vpid=0: each entry and exit flushes the guest's translations, as on CPUs without VPIDs. */
static bool ex_vpid = true;
module_param_named(vpid, ex_vpid, bool, 0444);
MODULE_PARM_DESC(vpid, "Tag the translations of Intel guests by virtual-processor identifiers (default: on)");

/* modprobe exitless pml=0: writes to logged memory fault once each, as on CPUs that do not log. */
static bool ex_pml = true;
module_param_named(pml, ex_pml, bool, 0444);
MODULE_PARM_DESC(pml, "Let Intel CPUs log which pages guests write where user space logs that (default: on)");

/* modprobe exitless ipiv=1: Intel CPUs send IPIs of guests by themselves. */
static bool ex_ipiv;
module_param_named(ipiv, ex_ipiv, bool, 0444);
MODULE_PARM_DESC(ipiv, "Let Intel CPUs send IPIs of guests in x2APIC mode by themselves where they can (default: off; untested on hardware)");

bool ex_vmx_wants_ipiv(void)
{
	return ex_ipiv;
}

/* modprobe exitless raw_ipi=1: the administrator's half of the consent; docs/security.md says to what. */
static bool ex_raw_ipi;
module_param_named(raw_ipi, ex_raw_ipi, bool, 0444);
MODULE_PARM_DESC(raw_ipi, "Allow Intel guests whose VM's owner switches pvipi_raw on to write the CPUs' interrupt command registers: they can disturb the whole host (default: off)");

bool ex_vmx_allows_raw_ipi(void)
{
	return ex_raw_ipi;
}

bool ex_vmx_wants_pml(void)
{
	return ex_pml;
}

bool ex_vmx_wants_vpid(void)
{
	return ex_vpid;
}

bool ex_vmx_wants_timer(void)
{
	return ex_preemption_timer;
}

bool ex_vmx_wants_apicv(void)
{
	return ex_apicv;
}

/*
 * The kernel takes its events by FRED: there are no gates to call for an interrupt that an exit has acknowledged, and INT 2 for
 * an NMI is fatal.
 */
bool ex_vmx_fred(void)
{
#ifdef X86_FEATURE_FRED
	return cpu_feature_enabled(X86_FEATURE_FRED);
#else
	return false;
#endif
}

/* Large pages that a guest executes from can hang this CPU (iTLB multihit), and mitigations are wanted. */
bool ex_vmx_guards_exec(void)
{
	return boot_cpu_has_bug(X86_BUG_ITLB_MULTIHIT) && !cpu_mitigations_off();
}

/* The host's APICs are in x2APIC mode: ids in posted-interrupt descriptors are 32 bits wide. */
bool ex_vmx_host_x2apic(void)
{
	return x2apic_enabled();
}

/* This CPU's local APIC, by either way in. */
static u32 ex_apic_read(u32 reg)
{
	return x2apic_mode ? native_apic_msr_read(reg) : native_apic_mem_read(reg);
}

/*
 * Whether guests can be lent this host's APIC timers: each CPU's clock event device is the TSC deadline (LVTT says so, masked or not), which
 * counts on in C-states, so that nobody sends its vector as an IPI (tick broadcast); and a handler that runs for nothing does nothing but
 * look, which is not so for periodic ticks and those without high resolution. Any context.
 */
bool ex_vmx_timer_fits(void)
{
	return boot_cpu_has(X86_FEATURE_TSC_DEADLINE_TIMER) && boot_cpu_has(X86_FEATURE_ARAT) &&
	       hrtimer_resolution < LOW_RES_NSEC &&
	       (ex_apic_read(APIC_LVTT) & APIC_LVT_TIMER_TSCDEADLINE);
}

/* hw/vmx/src/machine.rs, host_timer, is the same. */
#define EX_TIMER_DEADLINE	(1u << 8)
#define EX_TIMER_MAY_STOP	(1u << 9)

/*
 * Interrupts off. Where there is a tick, a timer is always armed while a thread runs, so its device stays on. Without (nohz_full) the kernel
 * masks LVTT when nothing is armed, and kernels before "x86/apic: Always explicitly disarm TSC-deadline timer" leave the deadline there.
 * Another vector is the notification's, which an oops in a slice has left there: it is not taken for the kernel's.
 */
u32 ex_vmx_host_timer(void)
{
	u32 lvtt = ex_apic_read(APIC_LVTT);
	u32 told = lvtt & APIC_VECTOR_MASK;

	if ((lvtt & APIC_LVT_TIMER_TSCDEADLINE) && !(lvtt & APIC_LVT_MASKED) && told == LOCAL_TIMER_VECTOR)
		told |= EX_TIMER_DEADLINE;
	if (tick_nohz_full_cpu(smp_processor_id()))
		told |= EX_TIMER_MAY_STOP;
	return told;
}

/* Interrupts off. The reads before it, of the deadline above all, are done first: RDMSR waits for nobody. */
bool ex_vmx_interrupt_requested(u8 vector)
{
	rmb();
	return ex_apic_read(APIC_IRR + vector / 32 * 0x10) & BIT(vector % 32);
}

/* Interrupts off. Deadline mode stays, so what is armed does; before the next write of the deadline (SDM vol. 3A, 11.5.4.1). */
void ex_vmx_set_timer_vector(u8 vector)
{
	u32 lvtt = APIC_LVT_TIMER_TSCDEADLINE | vector;

	if (x2apic_mode) {
		native_apic_msr_write(APIC_LVTT, lvtt);
	} else {
		WRITE_ONCE(*(u32 *)(APIC_BASE + APIC_LVTT), lvtt);
		mb();
	}
}

/* Interrupts off: the interrupt that an exit has acknowledged is over. */
void ex_vmx_end_interrupt(void)
{
	if (x2apic_mode)
		native_apic_msr_write(APIC_EOI, 0);
	else
		WRITE_ONCE(*(u32 *)(APIC_BASE + APIC_EOI), 0);
}

static void ex_vmx_mode_end(void)
{
	cr4_clear_bits(X86_CR4_VMXE);
	intel_pt_handle_vmx(0);
}

/* VMXON on this CPU, interrupts off. -EBUSY: somebody else is in VMX operation here; -EIO: the CPU refuses. */
int ex_vmx_on(u64 region_pa)
{
	u8 failed = 1;

	if (__read_cr4() & X86_CR4_VMXE)
		return -EBUSY;
	intel_pt_handle_vmx(1);
	cr4_set_bits(X86_CR4_VMXE);
	asm volatile("1: vmxon %[pa]\n\tsetna %[failed]\n2:\n"
		     _ASM_EXTABLE(1b, 2b)
		     : [failed] "+q" (failed) : [pa] "m" (region_pa) : "memory", "cc");
	if (!failed)
		return 0;
	ex_vmx_mode_end();
	return -EIO;
}

/*
 * Interrupts off; every VMCS that was loaded here is cleared and what was lent is back. Harmless when the emergency path
 * was faster.
 */
void ex_vmx_off(void)
{
	ex_forget_user_return();
	asm volatile("1: vmxoff\n2:\n" _ASM_EXTABLE(1b, 2b) : : : "memory", "cc");
	ex_vmx_mode_end();
}

/* This CPU's part of the host state; constant while the CPU is online. Preemption off. */
void ex_vmx_host_state(u64 *words)
{
	struct ex_vmx_host_state *h = (void *)words;
	struct cpu_entry_area *area = get_cpu_entry_area(smp_processor_id());
	struct desc_ptr idt;

	store_idt(&idt);
	h->cr0 = read_cr0();
	rdmsrl(MSR_EFER, h->efer);
	rdmsrl(MSR_IA32_CR_PAT, h->pat);
	h->cs = __KERNEL_CS;
	h->ss = __KERNEL_DS;
	h->tr = GDT_ENTRY_TSS * 8;
	rdmsrl(MSR_GS_BASE, h->gs_base);
	h->tss_base = (unsigned long)&area->tss.x86_tss;
	h->gdt_base = (unsigned long)get_current_gdt_ro();
	h->idt_base = idt.address;
	rdmsrl(MSR_IA32_SYSENTER_CS, h->sysenter_cs);
	rdmsrl(MSR_IA32_SYSENTER_ESP, h->sysenter_esp);
	rdmsrl(MSR_IA32_SYSENTER_EIP, h->sysenter_eip);
}

/*
 * The task's FS base and inactive GS base. The kernel knows them, or reads them by RDFSBASE and RDGSBASE; RDMSR is left for
 * tasks of 32 bits. Interrupts off.
 */
void ex_vmx_task_bases(u64 *fs, u64 *gs)
{
#ifdef EX_HAVE_CURRENT_SAVE_FSGS
	if (likely(is_64bit_mm(current->mm))) {
		current_save_fsgs();
		*fs = current->thread.fsbase;
		*gs = current->thread.gsbase;
		/* Without FSGSBASE the kernel notes 0 for a selector that is not null: its base is the descriptor's. */
		if (boot_cpu_has(X86_FEATURE_FSGSBASE) || !(current->thread.fsindex | current->thread.gsindex))
			return;
	}
#endif
	rdmsrl(MSR_FS_BASE, *fs);
	rdmsrl(MSR_KERNEL_GS_BASE, *gs);
}

/*
 * VM exits cleared these selectors and LDTR, and set the limits of TSS and GDT to other values than the kernel's.
 * Preemption off, on the CPU of the exits. Loading GS changes KERNEL_GS_BASE: the caller writes that MSR afterwards.
 */
void ex_vmx_restore_segments(u16 ds, u16 es, u16 fs, u16 gs, u16 ldt, u64 fs_base)
{
	if (ldt)
		asm volatile("lldt %0" : : "m" (ldt));
	if (ds)
		loadsegment(ds, ds);
	if (es)
		loadsegment(es, es);
	if (fs) {
		loadsegment(fs, fs);
		wrmsrl(MSR_FS_BASE, fs_base);
	}
	if (gs)
		load_gs_index(gs);
	invalidate_tss_limit();
	load_fixmap_gdt(raw_smp_processor_id());
}
