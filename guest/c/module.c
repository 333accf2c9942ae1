// SPDX-License-Identifier: MIT OR GPL-2.0-only
/*
 * exitless-guest.ko: a guest on Exitless sets its timers without exits. Elsewhere it says so and does nothing.
 *
 * The local APIC's timer is one clock event device per CPU, of a static per-CPU variable; its function set_next_event,
 * lapic_next_deadline(), gets it as an argument. So the function is hooked by ftrace until one CPU comes by, which tells where the
 * device is on all of them; then the hook goes, and each CPU exchanges its device's pointer for exg_next_event(), with interrupts off:
 * nobody else calls it.
 *
 *   load: what is found -> where the device is -> hotplug callbacks, which take each CPU -> syscore -> reboot notifier.
 *   Unload, reboot and kexec walk it backwards: pointers as they were, MSRs 0, and only then the pages go.
 *
 * The parameters are in sysfs from before the load until behind the unload: whoever reads or writes them looks under exg_lock whether
 * anything is there.
 *
 * A CPU that goes offline is given back, one that comes is taken: the kernel fills its device in anew. Where the host does not attend
 * (another one behind a migration, or its switch is off), each deadline is written to the MSR as the kernel would have done, and the
 * host is asked again once a second at most.
 */
#define pr_fmt(fmt) "exitless_guest: " fmt

#include <linux/clockchips.h>
#include <linux/cpu.h>
#include <linux/cpuhotplug.h>
#include <linux/delay.h>
#include <linux/ftrace.h>
#include <linux/io.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/percpu.h>
#include <linux/reboot.h>
#include <linux/slab.h>
#include <linux/smp.h>
#include <linux/syscore_ops.h>
#include <asm/cpufeature.h>
#include <asm/msr.h>
#include <asm/tsc.h>
#include "exg.h"
#include "ex_config.h"

#ifdef EX_HAVE_SYSCORE_OBJECT
#define EXG_SYSCORE_ARG void *unused
#else
#define EXG_SYSCORE_ARG void
#endif

/* The device counts TSC ticks by eights. exg_fits() asks whether it does. */
#define EXG_TSC_DIVISOR 8

static const char exg_symbol[] = "lapic_next_deadline";

static bool exg_lazy = true;
static DEFINE_MUTEX(exg_lock);
/* Why no CPU may be taken; NULL while all is there that taking one needs. Under exg_lock, as what follows and exg_cpus. */
static const char *exg_why = "not looked yet";
/* CPUs are taken as they come. */
static bool exg_on;
static int exg_slot;
static DEFINE_PER_CPU(struct exg_cpu *, exg_cpus);

/* Where the device is: on that CPU, and the kernel's own function. */
static struct clock_event_device *exg_seen;
static int exg_seen_on = -1;
static int (*exg_original)(unsigned long delta, struct clock_event_device *dev);

static_assert(sizeof(struct exg_cpu) == 128);

static struct clock_event_device *exg_device(int cpu)
{
	return (void *)exg_seen - per_cpu_offset(exg_seen_on) + per_cpu_offset(cpu);
}

static u64 exg_second(void)
{
	return (u64)tsc_khz * 1000;
}

/* On the CPU itself. A host that does not know the MSR, or a bit of it, lets it fault, which costs an exit and is caught. */
static void exg_ask(struct exg_cpu *c)
{
	u64 value = virt_to_phys(c) | EXG_ENABLED;

	if (wrmsrl_safe(EXG_MSR_LAZY_DEADLINE, value | EXG_HOST_TICKS))
		wrmsrl_safe(EXG_MSR_LAZY_DEADLINE, value);
}

/* The write of this MSR orders nothing by itself (SDM vol. 3A, 11.12.3); the first has the deadline's own fence before it. */
void exg_wrmsr_deadline(u64 value)
{
	wrmsrl(MSR_IA32_TSC_DEADLINE, value);
}

/* Instead of lapic_next_deadline(): interrupts are off. */
static int exg_next_event(unsigned long delta, struct clock_event_device *dev)
{
	struct exg_cpu *c = this_cpu_read(exg_cpus);
	u64 deadline = rdtsc() + (u64)delta * EXG_TSC_DIVISOR;

	if (!ex_rs_set(c, deadline))
		return 0;
	/* The write of this MSR orders nothing by itself (SDM vol. 3A, 11.12.3). */
	asm volatile("mfence; lfence" : : : "memory");
	ex_rs_write(c, deadline);
	if (unlikely(ex_rs_wrote(c, deadline, rdtsc(), exg_second())))
		exg_ask(c);
	return 0;
}

/* On the CPU itself, interrupts off. */
static void exg_take(void *unused)
{
	struct clock_event_device *dev = exg_device(smp_processor_id());
	struct exg_cpu *c = this_cpu_read(exg_cpus);

	if (dev->set_next_event != exg_original)
		return;
	c->armed = 0;
	c->offset = 0;
	ex_rs_asks(c, rdtsc(), exg_second());
	exg_ask(c);
	WRITE_ONCE(dev->set_next_event, exg_next_event);
}

/* Likewise. The host puts the last deadline into the MSR before it lets go of the page, whoever has the device by now. */
static void exg_give(void *unused)
{
	struct clock_event_device *dev = exg_device(smp_processor_id());

	if (dev->set_next_event == exg_next_event)
		WRITE_ONCE(dev->set_next_event, exg_original);
	wrmsrl_safe(EXG_MSR_LAZY_DEADLINE, 0);
}

static int exg_cpu_online(unsigned int cpu)
{
	if (READ_ONCE(exg_on))
		smp_call_function_single(cpu, exg_take, NULL, 1);
	return 0;
}

static int exg_cpu_offline(unsigned int cpu)
{
	smp_call_function_single(cpu, exg_give, NULL, 1);
	return 0;
}

/* All CPUs as `on` says. Under exg_lock. */
static void exg_put(bool on)
{
	if (exg_why || exg_on == on)
		return;
	cpus_read_lock();
	WRITE_ONCE(exg_on, on);
	on_each_cpu(on ? exg_take : exg_give, NULL, 1);
	cpus_read_unlock();
}

/* No CPU is taken from here on, whatever is written to `lazy`. */
static void exg_end(const char *why)
{
	mutex_lock(&exg_lock);
	exg_put(false);
	exg_why = why;
	mutex_unlock(&exg_lock);
}

/* The last CPU, before the machine sleeps, and behind that: the host may be another, or may have forgotten. */
static int exg_suspend(EXG_SYSCORE_ARG)
{
	if (exg_on)
		exg_give(NULL);
	return 0;
}

static void exg_resume(EXG_SYSCORE_ARG)
{
	if (exg_on)
		exg_take(NULL);
}

#ifdef EX_HAVE_SYSCORE_OBJECT
static const struct syscore_ops exg_syscore_ops = { .suspend = exg_suspend, .resume = exg_resume };
static struct syscore exg_syscore = { .ops = &exg_syscore_ops };
#else
static struct syscore_ops exg_syscore = { .suspend = exg_suspend, .resume = exg_resume };
#define register_syscore register_syscore_ops
#define unregister_syscore unregister_syscore_ops
#endif

/* Whoever runs next has its own use for these pages. */
static int exg_reboot(struct notifier_block *nb, unsigned long action, void *data)
{
	exg_end("the machine goes down");
	return NOTIFY_DONE;
}

static struct notifier_block exg_reboot_nb = { .notifier_call = exg_reboot };

static void notrace exg_hook(unsigned long ip, unsigned long parent, struct ftrace_ops *ops, struct ftrace_regs *fregs)
{
	struct pt_regs *regs = ftrace_get_regs(fregs);

	if (regs && cmpxchg(&exg_seen_on, -1, smp_processor_id()) == -1)
		smp_store_release(&exg_seen, (struct clock_event_device *)regs->si);
}

/* Permanent: not to be had where hooks are switched off, and nobody switches them off meanwhile. */
static struct ftrace_ops exg_ops = { .func = exg_hook, .flags = FTRACE_OPS_FL_SAVE_REGS | FTRACE_OPS_FL_PERMANENT };

/* The device is what we take it for: one per CPU, of deadlines, counting by eights. */
static const char *exg_fits(void)
{
	u64 per_ms = (u64)NSEC_PER_MSEC * exg_seen->mult >> exg_seen->shift;
	s64 error = per_ms * EXG_TSC_DIVISOR - tsc_khz;
	int cpu;

	exg_original = exg_seen->set_next_event;
	if (!strstarts(exg_seen->name ?: "", "lapic"))
		return "the timer's device is not the local APIC's";
	if (abs(error) > tsc_khz / 50)
		return "the timer's device does not count TSC ticks by eights";
	for_each_online_cpu(cpu)
		if (exg_device(cpu)->set_next_event != exg_original)
			return "the CPUs' timers are not alike";
	return NULL;
}

static const char *exg_find_device(void)
{
	int tries, err;

	err = ftrace_set_filter(&exg_ops, (unsigned char *)exg_symbol, strlen(exg_symbol), 1);
	if (err)
		return "this kernel's function tracer does not know lapic_next_deadline";
	err = register_ftrace_function(&exg_ops);
	if (err) {
		ftrace_free_filter(&exg_ops);
		return err == -EBUSY ? "this kernel's hooks are switched off: sysctl kernel.ftrace_enabled" :
				       "this kernel's functions cannot be hooked";
	}
	/* Each sleep sets a timer. */
	for (tries = 0; tries < 1000 && !smp_load_acquire(&exg_seen); tries++)
		usleep_range(100, 200);
	unregister_ftrace_function(&exg_ops);
	ftrace_free_filter(&exg_ops);
	return exg_seen ? exg_fits() : "no CPU uses the APIC's deadline timer";
}

static const char *exg_look(void)
{
	u32 found = boot_cpu_has(X86_FEATURE_HYPERVISOR) ? ex_rs_find() : 0;

	if (!found)
		return "no Exitless here, or nothing that it offers";
	if (found & EXG_OTHER_VERSION)
		return "the host speaks another version";
	if (!(found & (EXG_FEATURE_LAZY_DEADLINE | EXG_FEATURE_HOST_TICKS)))
		return "the host offers no lazy deadlines, nor its timer";
	if (!boot_cpu_has(X86_FEATURE_TSC_DEADLINE_TIMER))
		return "this guest has no TSC-deadline timer";
	return exg_find_device();
}

static void exg_free(void)
{
	int cpu;

	for_each_possible_cpu(cpu) {
		kfree(per_cpu(exg_cpus, cpu));
		per_cpu(exg_cpus, cpu) = NULL;
	}
}

static int exg_alloc(void)
{
	int cpu;

	for_each_possible_cpu(cpu) {
		struct exg_cpu *c = kzalloc_node(sizeof(*c), GFP_KERNEL, cpu_to_node(cpu));

		if (!c)
			return -ENOMEM;
		per_cpu(exg_cpus, cpu) = c;
	}
	return 0;
}

/* Under exg_lock, which no hotplug callback takes. */
static int exg_start(void)
{
	int err = exg_alloc();

	if (!err) {
		exg_on = exg_lazy;
		err = cpuhp_setup_state(CPUHP_AP_ONLINE_DYN, "exitless/guest:online", exg_cpu_online, exg_cpu_offline);
	}
	if (err < 0) {
		exg_on = false;
		exg_free();
		return err;
	}
	exg_slot = err;
	exg_why = NULL;
	return 0;
}

static int __init exg_init(void)
{
	const char *why = exg_look();
	int err;

	if (why) {
		exg_end(why);
		pr_info("%s: nothing to do\n", why);
		return 0;
	}
	mutex_lock(&exg_lock);
	err = exg_start();
	mutex_unlock(&exg_lock);
	if (err)
		return err;
	register_syscore(&exg_syscore);
	register_reboot_notifier(&exg_reboot_nb);
	pr_info("lazy deadlines on %u CPUs\n", num_online_cpus());
	return 0;
}

static void __exit exg_exit(void)
{
	if (exg_slot <= 0)
		return;
	unregister_reboot_notifier(&exg_reboot_nb);
	unregister_syscore(&exg_syscore);
	exg_end("unloaded");
	cpuhp_remove_state(exg_slot);
	mutex_lock(&exg_lock);
	exg_free();
	mutex_unlock(&exg_lock);
}

module_init(exg_init);
module_exit(exg_exit);

static int exg_set_lazy(const char *text, const struct kernel_param *kp)
{
	int err = param_set_bool(text, kp);

	if (!err) {
		mutex_lock(&exg_lock);
		exg_put(exg_lazy);
		mutex_unlock(&exg_lock);
	}
	return err;
}

static const struct kernel_param_ops exg_lazy_ops = { .flags = KERNEL_PARAM_OPS_FL_NOARG, .set = exg_set_lazy, .get = param_get_bool };

module_param_cb(lazy, &exg_lazy_ops, &exg_lazy, 0644);
MODULE_PARM_DESC(lazy, "Lazy deadlines, where the host offers them (default: y); may be switched at any time");

/* What was found, and of how many CPUs the host attends the timer's last deadline. */
static int exg_print_state(char *buf)
{
	unsigned int taken = 0, attended = 0, ticks = 0;
	int cpu;

	if (exg_why)
		return sysfs_emit(buf, "%s\n", exg_why);
	cpus_read_lock();
	for_each_online_cpu(cpu) {
		taken += READ_ONCE(exg_device(cpu)->set_next_event) == exg_next_event;
		attended += READ_ONCE(per_cpu(exg_cpus, cpu)->armed) != 0;
		ticks += READ_ONCE(per_cpu(exg_cpus, cpu)->offset) != 0;
	}
	cpus_read_unlock();
	return sysfs_emit(buf, "lazy deadlines on %u of %u CPUs, attended now on %u, in the host's ticks on %u\n", taken,
			  num_online_cpus(), attended, ticks);
}

static int exg_get_state(char *buf, const struct kernel_param *kp)
{
	int len;

	mutex_lock(&exg_lock);
	len = exg_print_state(buf);
	mutex_unlock(&exg_lock);
	return len;
}

static const struct kernel_param_ops exg_state_ops = { .get = exg_get_state };

module_param_cb(state, &exg_state_ops, NULL, 0444);
MODULE_PARM_DESC(state, "What was found and is used");

/* A counter's sum over all CPUs; the parameter's argument is where it lies in struct exg_cpu. */
static int exg_get_sum(char *buf, const struct kernel_param *kp)
{
	size_t at = (size_t)kp->arg;
	u64 sum = 0;
	int cpu;

	mutex_lock(&exg_lock);
	for_each_possible_cpu(cpu)
		if (per_cpu(exg_cpus, cpu))
			sum += READ_ONCE(*(u64 *)((void *)per_cpu(exg_cpus, cpu) + at));
	mutex_unlock(&exg_lock);
	return sysfs_emit(buf, "%llu\n", sum);
}

static const struct kernel_param_ops exg_sum_ops = { .get = exg_get_sum };

#define EXG_SUM(name, text)									\
	module_param_cb(name, &exg_sum_ops, (void *)offsetof(struct exg_cpu, name), 0444);	\
	MODULE_PARM_DESC(name, text)

EXG_SUM(written, "Deadlines that were written to the MSR");
EXG_SUM(spared, "Deadlines that were not, because an earlier one is armed");
EXG_SUM(asked, "Times that the host was asked to attend");

MODULE_DESCRIPTION("Timers without exits for guests on Exitless");
MODULE_LICENSE("Dual MIT/GPL");
