// SPDX-License-Identifier: MIT OR GPL-2.0-only
/* linux/spinlock.h, linux/mutex.h: locks live in C because debug kernels make them bigger. */
#include <linux/mutex.h>
#include <linux/slab.h>
#include <linux/spinlock.h>
#include "helpers.h"

/* One key per kind of lock, so that lockdep learns the order between kinds. */
static struct lock_class_key ex_spin_keys[EX_LOCK_CLASSES];
static struct lock_class_key ex_mutex_keys[EX_LOCK_CLASSES];
static const char *const ex_lock_names[EX_LOCK_CLASSES] = {
	"ex_other", "ex_vm", "ex_slots", "ex_mmu", "ex_vcpu", "ex_lapic", "ex_irqchip", "ex_routes",
	"ex_irqfds", "ex_ioeventfds", "ex_pit", "ex_clock", "ex_vm_list", "ex_stats",
};

void *ex_spin_new(u32 class)
{
	raw_spinlock_t *lock = kzalloc(sizeof(*lock), GFP_KERNEL_ACCOUNT);

	if (!lock)
		return NULL;
	class %= EX_LOCK_CLASSES;
	raw_spin_lock_init(lock);
	lockdep_set_class_and_name(lock, &ex_spin_keys[class], ex_lock_names[class]);
	return lock;
}

void ex_spin_free(void *lock)
{
	kfree(lock);
}

unsigned long ex_spin_lock(void *lock)
{
	unsigned long flags;

	raw_spin_lock_irqsave((raw_spinlock_t *)lock, flags);
	return flags;
}

void ex_spin_unlock(void *lock, unsigned long flags)
{
	raw_spin_unlock_irqrestore((raw_spinlock_t *)lock, flags);
}

void *ex_mutex_new(u32 class)
{
	struct mutex *lock = kzalloc(sizeof(*lock), GFP_KERNEL_ACCOUNT);

	if (!lock)
		return NULL;
	class %= EX_LOCK_CLASSES;
	mutex_init(lock);
	lockdep_set_class_and_name(lock, &ex_mutex_keys[class], ex_lock_names[class]);
	return lock;
}

void ex_mutex_free(void *lock)
{
	mutex_destroy(lock);
	kfree(lock);
}

void ex_mutex_lock(void *lock)
{
	mutex_lock(lock);
}

int ex_mutex_lock_killable(void *lock)
{
	return mutex_lock_killable(lock);
}

void ex_mutex_unlock(void *lock)
{
	mutex_unlock(lock);
}
