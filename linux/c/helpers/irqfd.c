// SPDX-License-Identifier: MIT OR GPL-2.0-only
/*
 * linux/poll.h, linux/wait.h, linux/workqueue.h: an eventfd that raises a guest interrupt.
 *
 *   signalled --(wait queue, atomic)--> ex_rs_irqfd_wakeup --false--> inject work --> ex_rs_irqfd_inject
 *   closed ----(wait queue, atomic)--> hangup work --> ex_rs_irqfd_hangup --> ex_irqfd_free
 *
 * Only Rust frees: on deassign, on VM release, or inside the hangup callback.
 */
#include <linux/err.h>
#include <linux/eventfd.h>
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/poll.h>
#include <linux/slab.h>
#include <linux/wait.h>
#include <linux/workqueue.h>
#include "helpers.h"

static struct workqueue_struct *ex_irqfd_wq;

struct ex_irqfd {
	void *vm;
	unsigned long cookie;
	struct eventfd_ctx *eventfd;
	wait_queue_entry_t wait;
	poll_table table;
	struct work_struct inject;
	struct work_struct hangup;
};

int ex_irqfd_setup(void)
{
	ex_irqfd_wq = alloc_workqueue("exitless-irqfd", 0, 0);
	return ex_irqfd_wq ? 0 : -ENOMEM;
}

void ex_irqfd_teardown(void)
{
	destroy_workqueue(ex_irqfd_wq);
}

/* Under the eventfd's wait queue lock, interrupts off. */
static int ex_irqfd_wakeup(wait_queue_entry_t *wait, unsigned int mode, int sync, void *key)
{
	struct ex_irqfd *irqfd = container_of(wait, struct ex_irqfd, wait);
	__poll_t flags = key_to_poll(key);
	int taken = 0;

	if (flags & EPOLLIN) {
		u64 count;

		eventfd_ctx_do_read(irqfd->eventfd, &count);
		if (!ex_rs_irqfd_wakeup(irqfd->vm, irqfd->cookie))
			queue_work(ex_irqfd_wq, &irqfd->inject);
		taken = 1;
	}
	if (flags & EPOLLHUP)
		queue_work(ex_irqfd_wq, &irqfd->hangup);
	return taken;
}

static void ex_irqfd_inject_work(struct work_struct *work)
{
	struct ex_irqfd *irqfd = container_of(work, struct ex_irqfd, inject);

	ex_rs_irqfd_inject(irqfd->vm, irqfd->cookie);
}

/* The callback may free the irqfd: nothing is touched after it. */
static void ex_irqfd_hangup_work(struct work_struct *work)
{
	struct ex_irqfd *irqfd = container_of(work, struct ex_irqfd, hangup);

	ex_rs_irqfd_hangup(irqfd->vm, irqfd->cookie);
}

static void ex_irqfd_queue(struct file *file, wait_queue_head_t *wqh, poll_table *table)
{
	struct ex_irqfd *irqfd = container_of(table, struct ex_irqfd, table);

	add_wait_queue_priority(wqh, &irqfd->wait);
}

/* Callbacks may run before this returns. */
void *ex_irqfd_new(void *vm, unsigned long cookie, int fd, int *err)
{
	struct ex_irqfd *irqfd;
	struct file *file;
	__poll_t events;

	*err = -ENOMEM;
	irqfd = kzalloc(sizeof(*irqfd), GFP_KERNEL_ACCOUNT);
	if (!irqfd)
		return NULL;
	irqfd->vm = vm;
	irqfd->cookie = cookie;
	INIT_WORK(&irqfd->inject, ex_irqfd_inject_work);
	INIT_WORK(&irqfd->hangup, ex_irqfd_hangup_work);

	*err = -EBADF;
	file = fget(fd);
	if (!file)
		goto out_free;
	irqfd->eventfd = eventfd_ctx_fileget(file);
	if (IS_ERR(irqfd->eventfd)) {
		*err = PTR_ERR(irqfd->eventfd);
		goto out_file;
	}
	init_waitqueue_func_entry(&irqfd->wait, ex_irqfd_wakeup);
	init_poll_funcptr(&irqfd->table, ex_irqfd_queue);
	events = vfs_poll(file, &irqfd->table);
	if (events & EPOLLIN)
		queue_work(ex_irqfd_wq, &irqfd->inject);
	fput(file);
	*err = 0;
	return irqfd;

out_file:
	fput(file);
out_free:
	kfree(irqfd);
	return NULL;
}

/* Process context. On return no callback of this irqfd runs, except the hangup callback that called us. */
void ex_irqfd_free(void *handle)
{
	struct ex_irqfd *irqfd = handle;
	u64 count;

	eventfd_ctx_remove_wait_queue(irqfd->eventfd, &irqfd->wait, &count);
	if (current_work() != &irqfd->hangup)
		cancel_work_sync(&irqfd->hangup);
	/* What was signalled before is delivered. */
	flush_work(&irqfd->inject);
	eventfd_ctx_put(irqfd->eventfd);
	kfree(irqfd);
}

/* Process context, not from a hangup callback. On return none runs that took its irqfd before. */
void ex_irqfd_settle(void)
{
	flush_workqueue(ex_irqfd_wq);
}

bool ex_irqfd_is(const void *handle, const void *ctx)
{
	const struct ex_irqfd *irqfd = handle;

	return irqfd->eventfd == ctx;
}
