// SPDX-License-Identifier: MIT OR GPL-2.0-only
/*
 * Load and unload: what is claimed, in which order, and how each claim is undone.
 *
 *   ex_rs_init -> helpers -> module notifier -> cpuhp slot -> SVM on in each CPU -> perf's callbacks -> emergency
 *   callback -> syscore -> reboot and suspend notifiers -> clock source -> /dev/kvm -> wake-up vector -> /dev/exitless.  Unload walks the same list backwards.
 *
 * The cpuhp slot is the one kvm.ko uses. It comes before the misc minor on purpose: while it is held, stock
 * kvm fails to load cleanly, and if stock kvm holds it, we fail before touching any CPU. A CPU that cannot run guests is
 * turned away, before it gets tasks, while there are virtual machines; otherwise there will be none as long as it is online.
 */
#define pr_fmt(fmt) "exitless: " fmt

#include <linux/cpu.h>
#include <linux/cpuhotplug.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/notifier.h>
#include <linux/reboot.h>
#include <linux/smp.h>
#include <linux/suspend.h>
#include <linux/syscore_ops.h>
#include <asm/reboot.h>
#include "ex.h"
#include "mitigations.h"

#ifdef EX_HAVE_CPUHP_KVM_ONLINE
#define EX_CPUHP_STATE CPUHP_AP_KVM_ONLINE
#else
#define EX_CPUHP_STATE CPUHP_AP_KVM_STARTING
#endif

static atomic_t ex_cpu_failures = ATOMIC_INIT(0);

/* Any context; the callback itself always runs with interrupts off. */
static void ex_cpu_on(unsigned int cpu)
{
	unsigned long flags;
	int err;

	local_irq_save(flags);
	err = ex_rs_cpu_online(cpu);
	local_irq_restore(flags);
	ex_cpu_fit(cpu, !err);
	if (err) {
		atomic_inc(&ex_cpu_failures);
		pr_err("cpu %u cannot run guests (error %d)\n", cpu, err);
	}
}

/* Before any task of user space may run there. */
static int ex_cpu_welcomed(unsigned int cpu)
{
	int err = ex_cpu_welcome(cpu);

	if (err)
		pr_err("cpu %u stays offline while there are virtual machines\n", cpu);
	return err;
}

/* A STARTING callback must not fail; there a later state, ex_welcome_state, does it. */
static int ex_cpu_up(unsigned int cpu)
{
	ex_cpu_on(cpu);
#ifdef EX_HAVE_CPUHP_KVM_ONLINE
	return ex_cpu_welcomed(cpu);
#else
	return 0;
#endif
}

static int ex_cpu_down(unsigned int cpu)
{
	unsigned long flags;

	local_irq_save(flags);
	ex_rs_cpu_offline(cpu);
	local_irq_restore(flags);
	return 0;
}

static void ex_cpu_up_ipi(void *unused)
{
	ex_cpu_on(smp_processor_id());
}

static void ex_cpu_down_ipi(void *unused)
{
	ex_cpu_down(smp_processor_id());
}

/* The hotplug lock is held. */
#ifdef EX_HAVE_CPUHP_KVM_ONLINE
static int ex_welcome_setup(void)
{
	return 0;
}

static void ex_welcome_teardown(void)
{
}
#else
static enum cpuhp_state ex_welcome_state;

static int ex_welcome_setup(void)
{
	int state = cpuhp_setup_state_nocalls_cpuslocked(CPUHP_AP_ONLINE_DYN, "exitless:welcome", ex_cpu_welcomed, NULL);

	if (state < 0)
		return state;
	ex_welcome_state = state;
	return 0;
}

static void ex_welcome_teardown(void)
{
	cpuhp_remove_state_nocalls_cpuslocked(ex_welcome_state);
}
#endif

static int __init ex_claim_cpus(void)
{
	int err;

	cpus_read_lock();
	err = cpuhp_setup_state_nocalls_cpuslocked(EX_CPUHP_STATE, "exitless:cpu", ex_cpu_up, ex_cpu_down);
	if (err < 0) {
		cpus_read_unlock();
		if (err == -EBUSY)
			pr_err("kvm.ko holds the CPU: rmmod kvm_amd kvm_intel kvm, then load exitless again\n");
		return err;
	}
	on_each_cpu(ex_cpu_up_ipi, NULL, 1);
	err = atomic_read(&ex_cpu_failures) ? -EIO : ex_welcome_setup();
	if (err) {
		on_each_cpu(ex_cpu_down_ipi, NULL, 1);
		cpuhp_remove_state_nocalls_cpuslocked(EX_CPUHP_STATE);
	}
	cpus_read_unlock();
	return err;
}

static void ex_release_cpus(void)
{
	cpus_read_lock();
	ex_welcome_teardown();
	on_each_cpu(ex_cpu_down_ipi, NULL, 1);
	cpuhp_remove_state_nocalls_cpuslocked(EX_CPUHP_STATE);
	cpus_read_unlock();
}

/*
 * kvm.ko's vendor modules register with perf before they try the cpuhp slot. The kernel takes one registration and warns of
 * the second, so they are stopped before they begin.
 */
static int ex_module_comes(struct notifier_block *nb, unsigned long event, void *data)
{
	const struct module *mod = data;

	if (event != MODULE_STATE_COMING || (strcmp(mod->name, "kvm_intel") && strcmp(mod->name, "kvm_amd")))
		return NOTIFY_DONE;
	pr_err("%s: the CPU's virtualization is in use here: rmmod exitless first\n", mod->name);
	return notifier_from_errno(-EBUSY);
}

static struct notifier_block ex_module_nb = { .notifier_call = ex_module_comes };

/*
 * Suspend and resume run on the last CPU, interrupts off; the others went through hotplug, and no thread of user space
 * is anywhere but on its way there. The kernel's clocks stop after us and run again before us, being registered first.
 */
static int ex_go_down(void)
{
	ex_rs_host_suspends();
	return ex_cpu_down(smp_processor_id());
}

static void ex_come_up(void)
{
	ex_cpu_on(smp_processor_id());
	ex_rs_host_resumes();
}

#ifdef EX_HAVE_SYSCORE_OBJECT
static int ex_suspend(void *unused)
{
	return ex_go_down();
}

static void ex_resume(void *unused)
{
	ex_come_up();
}

static const struct syscore_ops ex_syscore_ops = { .suspend = ex_suspend, .resume = ex_resume };
static struct syscore ex_syscore = { .ops = &ex_syscore_ops };
#define ex_syscore_register() register_syscore(&ex_syscore)
#define ex_syscore_unregister() unregister_syscore(&ex_syscore)
#else
static int ex_suspend(void)
{
	return ex_go_down();
}

static void ex_resume(void)
{
	ex_come_up();
}

static struct syscore_ops ex_syscore_ops = { .suspend = ex_suspend, .resume = ex_resume };
#define ex_syscore_register() register_syscore_ops(&ex_syscore_ops)
#define ex_syscore_unregister() unregister_syscore_ops(&ex_syscore_ops)
#endif

/* Firmware and the next kernel expect to find SVM off. */
static int ex_reboot(struct notifier_block *nb, unsigned long event, void *unused)
{
	pr_info("shutting virtualization down\n");
	on_each_cpu(ex_cpu_down_ipi, NULL, 1);
	return NOTIFY_OK;
}

static struct notifier_block ex_reboot_nb = { .notifier_call = ex_reboot };

/* Guests learn that they were stopped, and timers that the clock was, also when no CPU is turned off (suspend to idle). */
static int ex_pm(struct notifier_block *nb, unsigned long event, void *unused)
{
	if (event == PM_SUSPEND_PREPARE || event == PM_HIBERNATION_PREPARE)
		ex_rs_guests_stop();
	else if (event == PM_POST_SUSPEND || event == PM_POST_HIBERNATION)
		ex_rs_guests_go_on();
	return NOTIFY_DONE;
}

static struct notifier_block ex_pm_nb = { .notifier_call = ex_pm };

static struct miscdevice ex_misc = {
	.minor = KVM_MINOR,
	.name = "kvm",
	.fops = &ex_dev_fops,
};

static int __init ex_module_init(void)
{
	int err;

	err = ex_rs_init();
	if (err)
		goto out_mitigations;
	err = ex_sched_setup();
	if (err)
		goto out_rust;
	err = ex_kicks_setup();
	if (err)
		goto out_sched;
	err = ex_irqfd_setup();
	if (err)
		goto out_kicks;
	err = ex_workers_setup();
	if (err)
		goto out_irqfd;
	err = register_module_notifier(&ex_module_nb);
	if (err)
		goto out_workers;
	err = ex_claim_cpus();
	if (err)
		goto out_notifier;
#ifdef EX_HAVE_EMERGENCY_CALLBACK
	cpu_emergency_register_virt_callback(ex_rs_cpu_emergency);
#endif
	ex_syscore_register();
	err = register_reboot_notifier(&ex_reboot_nb);
	if (err)
		goto out_cpus;
	err = register_pm_notifier(&ex_pm_nb);
	if (err)
		goto out_reboot;
	ex_timekeeping_setup();
	ex_debugfs_setup();
	err = misc_register(&ex_misc);
	if (err) {
		pr_err("cannot register /dev/kvm (error %d)\n", err);
		goto out_clocks;
	}
	/* Not before /dev/kvm is ours: a kvm.ko that turns virtualization on with its first VM only has perf's one place already. */
	ex_perf_setup();
	if (ex_rs_hardware_posts())
		ex_sleepers_setup();
	ex_control_setup();
	return 0;

out_clocks:
	ex_debugfs_teardown();
	ex_timekeeping_teardown();
	unregister_pm_notifier(&ex_pm_nb);
out_reboot:
	unregister_reboot_notifier(&ex_reboot_nb);
out_cpus:
	ex_syscore_unregister();
#ifdef EX_HAVE_EMERGENCY_CALLBACK
	cpu_emergency_unregister_virt_callback(ex_rs_cpu_emergency);
#endif
	ex_release_cpus();
out_notifier:
	unregister_module_notifier(&ex_module_nb);
out_workers:
	ex_workers_teardown();
out_irqfd:
	ex_irqfd_teardown();
out_kicks:
	ex_kicks_teardown();
out_sched:
	ex_sched_teardown();
out_rust:
	ex_rs_exit();
out_mitigations:
	ex_vmx_mitigations_end();
	return err;
}

/* Runs only when no descriptor of ours is open and no worker waits: each holds a module reference. */
static void __exit ex_module_exit(void)
{
	ex_control_teardown();
	misc_deregister(&ex_misc);
	ex_sleepers_teardown();
	ex_debugfs_teardown();
	ex_timekeeping_teardown();
	unregister_pm_notifier(&ex_pm_nb);
	unregister_reboot_notifier(&ex_reboot_nb);
	ex_syscore_unregister();
#ifdef EX_HAVE_EMERGENCY_CALLBACK
	cpu_emergency_unregister_virt_callback(ex_rs_cpu_emergency);
#endif
	ex_perf_teardown();
	ex_release_cpus();
	unregister_module_notifier(&ex_module_nb);
	ex_workers_teardown();
	ex_irqfd_teardown();
	ex_kicks_teardown();
	ex_sched_teardown();
	ex_rs_exit();
	ex_vmx_mitigations_end();
}

module_init(ex_module_init);
module_exit(ex_module_exit);

MODULE_LICENSE("Dual MIT/GPL");
MODULE_AUTHOR("Exitless developers");
MODULE_DESCRIPTION("The /dev/kvm API with few VM exits, in Rust");
MODULE_VERSION("0.1.0");
MODULE_ALIAS_MISCDEV(KVM_MINOR);
MODULE_ALIAS("devname:kvm");
