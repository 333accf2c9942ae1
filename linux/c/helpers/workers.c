// SPDX-License-Identifier: MIT OR GPL-2.0-only
/*
 * linux/workqueue.h, linux/mm.h: threads of the kernel that wait for pages of user space in vCPUs' places.
 *
 *   ex_workers_bring --> worker: the page is faulted in, however long that takes --> ex_rs_page_brought
 *
 * A worker holds no reference to the VM, so that neither waits for the other: it knows its vCPU by a small object that loses sight of it when
 * the vCPU is freed. While it waits it is a user of the address space, no longer: one that exits goes when its userfaultfds, closed with its
 * other files, have let their waiters go. A userfaultfd that another process has open lets nobody go: until that one brings the page or closes
 * the descriptor, the memory and this module stay. Nobody can kill a thread of the kernel that waits there.
 */
#include <linux/cred.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/refcount.h>
#include <linux/sched.h>
#include <linux/sched/mm.h>
#include <linux/slab.h>
#include <linux/spinlock.h>
#include <linux/uidgid.h>
#include <linux/workqueue.h>
#include "helpers.h"

/* No more works than that are let in (ex_rs_worker_may). */
#define EX_MOST 512

struct ex_workers {
	refcount_t refs;
	spinlock_t lock;
	/* NULL: it is gone. */
	void *vcpu;
};

struct ex_worker {
	struct work_struct work;
	struct ex_workers *of;
	struct mm_struct *mm;
	u64 hva;
	u32 user;
	u32 place;
	bool write;
};

static struct workqueue_struct *ex_workers_wq;

/*
 * A work that is queued behind those of others would make its vCPU wait for their user space: as many as are let in must run at once. A queue
 * of the CPUs' runs EX_MOST on each. An unbound one would divide them among the NUMA nodes (since 6.9).
 */
int ex_workers_setup(void)
{
	ex_workers_wq = alloc_workqueue("exitless-pages", 0, EX_MOST);
	return ex_workers_wq ? 0 : -ENOMEM;
}

/* Waits for the last instructions of workers, each of which held a module reference until just before. */
void ex_workers_teardown(void)
{
	destroy_workqueue(ex_workers_wq);
}

static void ex_workers_put(struct ex_workers *w)
{
	if (refcount_dec_and_test(&w->refs))
		kfree(w);
}

void *ex_workers_new(void *vcpu)
{
	struct ex_workers *w = kzalloc(sizeof(*w), GFP_KERNEL_ACCOUNT);

	if (!w)
		return NULL;
	refcount_set(&w->refs, 1);
	spin_lock_init(&w->lock);
	w->vcpu = vcpu;
	return w;
}

/* Process context. On return none of them says anything to the vCPU any more. */
void ex_workers_free(void *workers)
{
	struct ex_workers *w = workers;

	spin_lock(&w->lock);
	w->vcpu = NULL;
	spin_unlock(&w->lock);
	ex_workers_put(w);
}

/* As for the vCPU, whose access it was: not more than that, or pages that are shared would be copied for a read. */
static bool ex_worker_waits(struct ex_worker *worker)
{
	unsigned int flags = FAULT_FLAG_REMOTE | (worker->write ? FAULT_FLAG_WRITE : 0);
	bool unlocked = false;
	int err;

	if (!mmget_not_zero(worker->mm))
		return false;
	mmap_read_lock(worker->mm);
	err = fixup_user_fault(worker->mm, worker->hva, flags, &unlocked);
	mmap_read_unlock(worker->mm);
	mmput(worker->mm);
	return !err;
}

static void ex_worker_run(struct work_struct *work)
{
	struct ex_worker *worker = container_of(work, struct ex_worker, work);
	struct ex_workers *w = worker->of;
	bool there = ex_worker_waits(worker);

	spin_lock(&w->lock);
	if (w->vcpu)
		ex_rs_page_brought(w->vcpu, worker->place, there);
	spin_unlock(&w->lock);
	ex_workers_put(w);
	mmdrop(worker->mm);
	ex_rs_worker_done(worker->user);
	kfree(worker);
	module_put(THIS_MODULE);
}

/* By the vCPU's thread. False: its user has enough of them, or there is no memory; the thread waits itself. */
bool ex_workers_bring(void *workers, u64 hva, bool write, u32 place)
{
	struct ex_workers *w = workers;
	u32 user = __kuid_val(current_uid());
	struct ex_worker *worker;

	if (!ex_rs_worker_may(user))
		return false;
	worker = kzalloc(sizeof(*worker), GFP_NOWAIT | __GFP_NOWARN | __GFP_ACCOUNT);
	if (!worker) {
		ex_rs_worker_done(user);
		return false;
	}
	/* The caller's descriptor holds one already. */
	__module_get(THIS_MODULE);
	refcount_inc(&w->refs);
	mmgrab(current->mm);
	worker->of = w;
	worker->mm = current->mm;
	worker->hva = hva;
	worker->user = user;
	worker->place = place;
	worker->write = write;
	INIT_WORK(&worker->work, ex_worker_run);
	queue_work(ex_workers_wq, &worker->work);
	return true;
}
