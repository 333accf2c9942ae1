// SPDX-License-Identifier: MIT OR GPL-2.0-only
/* linux/srcu.h. */
#include <linux/slab.h>
#include <linux/srcu.h>
#include "helpers.h"

void *ex_srcu_new(void)
{
	struct srcu_struct *srcu = kzalloc(sizeof(*srcu), GFP_KERNEL_ACCOUNT);

	if (srcu && init_srcu_struct(srcu)) {
		kfree(srcu);
		return NULL;
	}
	return srcu;
}

void ex_srcu_free(void *srcu)
{
	cleanup_srcu_struct(srcu);
	kfree(srcu);
}

int ex_srcu_read_lock(void *srcu)
{
	return srcu_read_lock(srcu);
}

void ex_srcu_read_unlock(void *srcu, int idx)
{
	srcu_read_unlock((struct srcu_struct *)srcu, idx);
}

void ex_srcu_synchronize(void *srcu)
{
	synchronize_srcu(srcu);
}

void ex_srcu_synchronize_expedited(void *srcu)
{
	synchronize_srcu_expedited(srcu);
}
