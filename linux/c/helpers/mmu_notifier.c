// SPDX-License-Identifier: MIT OR GPL-2.0-only
/* linux/mmu_notifier.h: the host takes pages back or asks for their age. */
#include <linux/mmu_notifier.h>
#include <linux/sched.h>
#include <linux/sched/mm.h>
#include <linux/slab.h>
#include "helpers.h"
#include "../trace.h"

struct ex_mmu_notifier {
	struct mmu_notifier mn;
	void *cookie;
};

static void *ex_cookie(struct mmu_notifier *mn)
{
	return container_of(mn, struct ex_mmu_notifier, mn)->cookie;
}

static int ex_invalidate_start(struct mmu_notifier *mn, const struct mmu_notifier_range *range)
{
	trace_kvm_unmap_hva_range(range->start, range->end);
	return ex_rs_mmu_invalidate_start(ex_cookie(mn), range->start, range->end, mmu_notifier_range_blockable(range));
}

static void ex_invalidate_end(struct mmu_notifier *mn, const struct mmu_notifier_range *range)
{
	ex_rs_mmu_invalidate_end(ex_cookie(mn), range->start, range->end);
}

static int ex_clear_flush_young(struct mmu_notifier *mn, struct mm_struct *mm, unsigned long start, unsigned long end)
{
	trace_kvm_age_hva(start, end);
	return ex_rs_mmu_age(ex_cookie(mn), start, end, true);
}

static int ex_clear_young(struct mmu_notifier *mn, struct mm_struct *mm, unsigned long start, unsigned long end)
{
	trace_kvm_age_hva(start, end);
	return ex_rs_mmu_age(ex_cookie(mn), start, end, true);
}

static int ex_test_young(struct mmu_notifier *mn, struct mm_struct *mm, unsigned long address)
{
	trace_kvm_test_age_hva(address);
	return ex_rs_mmu_age(ex_cookie(mn), address, address + 1, false);
}

static void ex_release(struct mmu_notifier *mn, struct mm_struct *mm)
{
	ex_rs_mmu_release(ex_cookie(mn));
}

static const struct mmu_notifier_ops ex_mmu_ops = {
	.invalidate_range_start = ex_invalidate_start,
	.invalidate_range_end = ex_invalidate_end,
	.clear_flush_young = ex_clear_flush_young,
	.clear_young = ex_clear_young,
	.test_young = ex_test_young,
	.release = ex_release,
};

/* On the current address space. Callbacks may run before this returns. */
void *ex_mmu_notifier_new(void *cookie, int *err)
{
	struct ex_mmu_notifier *n = kzalloc(sizeof(*n), GFP_KERNEL_ACCOUNT);

	*err = -ENOMEM;
	if (!n)
		return NULL;
	n->cookie = cookie;
	n->mn.ops = &ex_mmu_ops;
	*err = mmu_notifier_register(&n->mn, current->mm);
	if (*err) {
		kfree(n);
		return NULL;
	}
	return n;
}

/* Process context; on return no callback runs. Ends in the release callback when the mm still lives. */
void ex_mmu_notifier_free(void *notifier)
{
	struct ex_mmu_notifier *n = notifier;

	mmu_notifier_unregister(&n->mn, n->mn.mm);
	kfree(n);
}
