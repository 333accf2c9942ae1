// SPDX-License-Identifier: MIT OR GPL-2.0-only
/* linux/fs.h, linux/anon_inodes.h, linux/file.h: the three kinds of descriptor. */
#include <linux/anon_inodes.h>
#include <linux/compat.h>
#include <linux/err.h>
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/mm.h>
#include <linux/module.h>
#include "helpers.h"

static long ex_dev_ioctl(struct file *file, unsigned int cmd, unsigned long arg)
{
	return ex_rs_dev_ioctl(cmd, arg);
}

static long ex_vm_ioctl(struct file *file, unsigned int cmd, unsigned long arg)
{
	return ex_rs_vm_ioctl(file->private_data, cmd, arg);
}

static long ex_vcpu_ioctl(struct file *file, unsigned int cmd, unsigned long arg)
{
	return ex_rs_vcpu_ioctl(file->private_data, cmd, arg);
}

#ifdef CONFIG_COMPAT
static long ex_dev_compat_ioctl(struct file *file, unsigned int cmd, unsigned long arg)
{
	return ex_rs_dev_ioctl(cmd, (unsigned long)compat_ptr(arg));
}

static long ex_vm_compat_ioctl(struct file *file, unsigned int cmd, unsigned long arg)
{
	return ex_rs_vm_ioctl(file->private_data, cmd, (unsigned long)compat_ptr(arg));
}

static long ex_vcpu_compat_ioctl(struct file *file, unsigned int cmd, unsigned long arg)
{
	return ex_rs_vcpu_ioctl(file->private_data, cmd, (unsigned long)compat_ptr(arg));
}
#define EX_COMPAT(fn) .compat_ioctl = fn,
#else
#define EX_COMPAT(fn)
#endif

static int ex_vm_release(struct inode *inode, struct file *file)
{
	ex_rs_vm_release(file->private_data);
	return 0;
}

static int ex_vcpu_release(struct inode *inode, struct file *file)
{
	ex_rs_vcpu_release(file->private_data);
	return 0;
}

static vm_fault_t ex_vcpu_fault(struct vm_fault *vmf)
{
	struct page *page = ex_rs_vcpu_fault(vmf->vma->vm_file->private_data, vmf->pgoff);

	if (!page)
		return VM_FAULT_SIGBUS;
	get_page(page);
	vmf->page = page;
	return 0;
}

static const struct vm_operations_struct ex_vcpu_vm_ops = { .fault = ex_vcpu_fault };

static int ex_vcpu_mmap(struct file *file, struct vm_area_struct *vma)
{
	vma->vm_ops = &ex_vcpu_vm_ops;
	return 0;
}

const struct file_operations ex_dev_fops = {
	.owner = THIS_MODULE,
	.unlocked_ioctl = ex_dev_ioctl,
	EX_COMPAT(ex_dev_compat_ioctl)
	.llseek = noop_llseek,
};

static const struct file_operations ex_vm_fops = {
	.owner = THIS_MODULE,
	.release = ex_vm_release,
	.unlocked_ioctl = ex_vm_ioctl,
	EX_COMPAT(ex_vm_compat_ioctl)
	.llseek = noop_llseek,
};

static const struct file_operations ex_vcpu_fops = {
	.owner = THIS_MODULE,
	.release = ex_vcpu_release,
	.unlocked_ioctl = ex_vcpu_ioctl,
	EX_COMPAT(ex_vcpu_compat_ioctl)
	.mmap = ex_vcpu_mmap,
	.llseek = noop_llseek,
};

/* The file of KVM_GET_STATS_FD, made by Rust piece by piece. */
static ssize_t ex_stats_read(struct file *file, char __user *buf, size_t count, loff_t *pos,
			     size_t (*fill)(void *object, u64 from, char *buf, size_t len))
{
	char piece[256] __aligned(8);
	size_t done = 0, n;

	if (*pos < 0)
		return -EINVAL;
	while (done < count) {
		n = fill(file->private_data, *pos, piece, min(count - done, sizeof(piece)));
		if (!n)
			break;
		if (copy_to_user(buf + done, piece, n))
			return -EFAULT;
		done += n;
		*pos += n;
	}
	return done;
}

static ssize_t ex_vm_stats_read(struct file *file, char __user *buf, size_t count, loff_t *pos)
{
	return ex_stats_read(file, buf, count, pos, ex_rs_vm_stats);
}

static ssize_t ex_vcpu_stats_read(struct file *file, char __user *buf, size_t count, loff_t *pos)
{
	return ex_stats_read(file, buf, count, pos, ex_rs_vcpu_stats);
}

static int ex_vm_stats_release(struct inode *inode, struct file *file)
{
	ex_rs_vm_stats_release(file->private_data);
	return 0;
}

static const struct file_operations ex_vm_stats_fops = {
	.owner = THIS_MODULE,
	.release = ex_vm_stats_release,
	.read = ex_vm_stats_read,
	.llseek = noop_llseek,
};

static const struct file_operations ex_vcpu_stats_fops = {
	.owner = THIS_MODULE,
	.release = ex_vcpu_release,
	.read = ex_vcpu_stats_read,
	.llseek = noop_llseek,
};

/* Indexed by FdKind of linux/host/src/file.rs. */
static const struct file_operations *const ex_fops[] = {
	&ex_vm_fops, &ex_vcpu_fops, &ex_vm_stats_fops, &ex_vcpu_stats_fops
};

int ex_fd_reserve(u32 flags)
{
	return get_unused_fd_flags(flags);
}

void ex_fd_unreserve(int fd)
{
	put_unused_fd(fd);
}

/* The file holds a module reference. NULL and *err on failure; the object is then still the caller's. */
void *ex_fd_open(u32 kind, const char *name, void *object, u32 flags, int *err)
{
	struct file *file;

	if (kind >= ARRAY_SIZE(ex_fops)) {
		*err = -EINVAL;
		return NULL;
	}
	file = anon_inode_getfile(name, ex_fops[kind], object, flags);
	if (IS_ERR(file)) {
		*err = PTR_ERR(file);
		return NULL;
	}
	/* Files of this kind cannot be read at an offset by themselves. */
	if (ex_fops[kind]->read)
		file->f_mode |= FMODE_PREAD;
	return file;
}

/* From here on user space can use and close the descriptor. */
void ex_fd_install(int fd, void *file)
{
	fd_install(fd, file);
}

/* Ends in the release callback, possibly only when this task returns to user mode. */
void ex_fd_close(void *file)
{
	fput(file);
}
