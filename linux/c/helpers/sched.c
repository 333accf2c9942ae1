// SPDX-License-Identifier: MIT OR GPL-2.0-only
/* linux/sched.h, linux/preempt.h, linux/rcuwait.h, linux/entry-kvm.h: the task that is a virtual CPU. */
#include <linux/compat.h>
#include <linux/entry-kvm.h>
#include <linux/kvm_host.h>
#include <linux/mm.h>
#include <linux/moduleparam.h>
#include <linux/pid.h>
#include <linux/preempt.h>
#include <linux/rcuwait.h>
#include <linux/sched.h>
#include <linux/sched/signal.h>
#include <linux/sched/stat.h>
#include <linux/signal.h>
#include <linux/slab.h>
#include "apic_timer.h"
#include "helpers.h"

#if !defined(CONFIG_PREEMPT_NOTIFIERS) || !defined(CONFIG_KVM_XFER_TO_GUEST_WORK)
#error "this kernel is built without what KVM selects (preempt notifiers, guest work): CONFIG_KVM=m is needed"
#endif

struct ex_vcpu {
	struct preempt_notifier notifier;
	struct rcuwait wait;
	struct pid __rcu *pid;
	void *rust;
};

#ifndef EX_HAVE_XFER_WITHOUT_VCPU
/*
 * xfer_to_guest_mode_handle_work() notes a signal in the struct kvm_vcpu it is given (run->exit_reason and a
 * counter). We have none, so all vCPUs share a scrap one whose content nobody reads.
 */
static struct kvm_vcpu *ex_scrap_vcpu;

int ex_sched_setup(void)
{
	ex_scrap_vcpu = kvzalloc(sizeof(*ex_scrap_vcpu), GFP_KERNEL);
	if (!ex_scrap_vcpu)
		return -ENOMEM;
	ex_scrap_vcpu->run = kzalloc(sizeof(*ex_scrap_vcpu->run), GFP_KERNEL);
	if (!ex_scrap_vcpu->run) {
		kvfree(ex_scrap_vcpu);
		return -ENOMEM;
	}
	preempt_notifier_inc();
	return 0;
}

void ex_sched_teardown(void)
{
	preempt_notifier_dec();
	kfree(ex_scrap_vcpu->run);
	kvfree(ex_scrap_vcpu);
}
#else
int ex_sched_setup(void)
{
	preempt_notifier_inc();
	return 0;
}

void ex_sched_teardown(void)
{
	preempt_notifier_dec();
}
#endif

static void ex_sched_in(struct preempt_notifier *notifier, int cpu)
{
	ex_rs_sched_in(container_of(notifier, struct ex_vcpu, notifier)->rust, cpu);
}

static void ex_sched_out(struct preempt_notifier *notifier, struct task_struct *next)
{
#ifdef EX_HAVE_TASK_IS_RUNNABLE
	bool runnable = task_is_runnable(current);
#else
	bool runnable = current->on_rq;
#endif

	/* Never lent here, but where a slice ended in an oops: the kernel schedules on, and needs its tick. */
	ex_want_apic_timer();
	ex_rs_sched_out(container_of(notifier, struct ex_vcpu, notifier)->rust, runnable);
}

static struct preempt_ops ex_preempt_ops = { .sched_in = ex_sched_in, .sched_out = ex_sched_out };

void *ex_vcpu_new(void *rust)
{
	struct ex_vcpu *v = kzalloc(sizeof(*v), GFP_KERNEL_ACCOUNT);

	if (!v)
		return NULL;
	preempt_notifier_init(&v->notifier, &ex_preempt_ops);
	rcuwait_init(&v->wait);
	v->rust = rust;
	return v;
}

/* No wake or yield_to may be running: the VM's last reference is gone. */
void ex_vcpu_free(void *vcpu)
{
	struct ex_vcpu *v = vcpu;

	put_pid(rcu_dereference_protected(v->pid, true));
	kfree(v);
}

/* Preemption off. From here on this task's switches reach Rust. Returns the CPU. */
u32 ex_vcpu_load(void *vcpu)
{
	struct ex_vcpu *v = vcpu;

	preempt_notifier_register(&v->notifier);
	return smp_processor_id();
}

/* Preemption off. */
void ex_vcpu_put(void *vcpu)
{
	struct ex_vcpu *v = vcpu;

	preempt_notifier_unregister(&v->notifier);
}

/* 0: Rust says go on; -EINTR: a signal. */
int ex_vcpu_block(void *vcpu)
{
	struct ex_vcpu *v = vcpu;
	int err = 0;

	prepare_to_rcuwait(&v->wait);
	for (;;) {
		set_current_state(TASK_INTERRUPTIBLE);
		if (ex_rs_vcpu_wake_check(v->rust))
			break;
		if (signal_pending(current)) {
			err = -EINTR;
			break;
		}
		schedule();
	}
	finish_rcuwait(&v->wait);
	return err;
}

/* Any context. True when a blocked task was woken. */
bool ex_vcpu_wake(void *vcpu)
{
	struct ex_vcpu *v = vcpu;

	ex_want_apic_timer();
	return rcuwait_wake_up(&v->wait);
}

/* The thread that runs this vCPU, for yield_to. Under the vCPU's mutex. */
void ex_vcpu_record_current(void *vcpu)
{
	struct ex_vcpu *v = vcpu;
	struct pid *old = rcu_dereference_protected(v->pid, true), *new;

	if (old == task_pid(current))
		return;
	new = get_task_pid(current, PIDTYPE_PID);
	rcu_assign_pointer(v->pid, new);
	if (old) {
		synchronize_rcu();
		put_pid(old);
	}
}

/* 1 yielded, 0 did not, -ESRCH nobody runs it or nothing to do. */
int ex_vcpu_yield_to(void *vcpu, bool preempt)
{
	struct ex_vcpu *v = vcpu;
	struct task_struct *task;
	struct pid *pid;
	int ret;

	rcu_read_lock();
	pid = rcu_dereference(v->pid);
	task = pid ? get_pid_task(pid, PIDTYPE_PID) : NULL;
	rcu_read_unlock();
	if (!task)
		return -ESRCH;
	ret = yield_to(task, preempt);
	put_task_struct(task);
	return ret;
}

/* Longest wait awake in HLT, ns; writable in /sys/module/exitless/parameters. */
static unsigned int ex_halt_poll = 200000;
module_param_named(halt_poll_ns, ex_halt_poll, uint, 0644);
MODULE_PARM_DESC(halt_poll_ns, "Longest time a halted vCPU waits awake before its thread sleeps, ns (default: 200000)");

u64 ex_halt_poll_ns(void)
{
	return READ_ONCE(ex_halt_poll);
}

/* How early a running vCPU's timer runs out, ns: -1 as experience tells, 0 not at all. */
static int ex_timer_advance = -1;
module_param_named(lapic_timer_advance_ns, ex_timer_advance, int, 0644);
MODULE_PARM_DESC(lapic_timer_advance_ns, "How early a running vCPU's timer runs out, ns; -1: adaptive, up to 5000 (default)");

int ex_timer_advance_ns(void)
{
	return READ_ONCE(ex_timer_advance);
}

/* SIGBUS with the page's address; the default action ends the process. */
void ex_send_memory_error(u64 hva)
{
	send_sig_mceerr(BUS_MCEERR_AR, (void __user *)hva, PAGE_SHIFT, current);
}

bool ex_signal_pending(void)
{
	return signal_pending(current);
}

bool ex_need_resched(void)
{
	return need_resched();
}

void ex_cond_resched(void)
{
	cond_resched();
}

bool ex_single_task_running(void)
{
	return single_task_running();
}

bool ex_guest_work_pending(void)
{
	return __xfer_to_guest_mode_work_pending();
}

/* The word that ex_guest_work_pending() looks at, for a look without a call; it lives as long as the task. */
const unsigned long *ex_guest_work_word(unsigned long *mask)
{
	*mask = XFER_TO_GUEST_MODE_WORK;
	return &current_thread_info()->flags;
}

/* Interrupts on. Reschedules, runs task work. 0, or -EINTR: leave to user space for a signal. */
int ex_guest_work_handle(void)
{
#ifdef EX_HAVE_XFER_WITHOUT_VCPU
	return xfer_to_guest_mode_handle_work();
#else
	return xfer_to_guest_mode_handle_work(ex_scrap_vcpu);
#endif
}

int ex_current_pid(void)
{
	return task_pid_nr(current);
}

/* As the initial user namespace numbers it. */
u32 ex_current_euid(void)
{
	return __kuid_val(current_euid());
}

/* In the initial user namespace: a container's root is not. */
bool ex_is_admin(void)
{
	return capable(CAP_SYS_ADMIN);
}

bool ex_in_compat_syscall(void)
{
	return in_compat_syscall();
}

/* KVM_SET_SIGNAL_MASK holds while KVM_RUN runs; real_blocked keeps the task's own mask. */
void ex_sigset_activate(u64 set)
{
	sigset_t sigset;

	BUILD_BUG_ON(sizeof(sigset) != sizeof(set));
	memcpy(&sigset, &set, sizeof(sigset));
	sigdelsetmask(&sigset, sigmask(SIGKILL) | sigmask(SIGSTOP));
	sigprocmask(SIG_SETMASK, &sigset, &current->real_blocked);
}

void ex_sigset_deactivate(void)
{
	sigprocmask(SIG_SETMASK, &current->real_blocked, NULL);
	sigemptyset(&current->real_blocked);
}

void ex_cpu_relax(void)
{
	cpu_relax();
}

/* How long the current task has waited on run queues since it began, ns. */
u64 ex_run_delay_ns(void)
{
#ifdef CONFIG_SCHED_INFO
	return current->sched_info.run_delay;
#else
	return 0;
#endif
}
