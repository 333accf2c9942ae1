// SPDX-License-Identifier: MIT OR GPL-2.0-only
/* linux/debugfs.h: /sys/kernel/debug/kvm/<vm>/, text made by Rust, counters by address. */
#include <linux/dcache.h>
#include <linux/debugfs.h>
#include <linux/fs.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/slab.h>
#include "helpers.h"

#define EX_TEXT_SIZE (64 * 1024)

static struct dentry *ex_debugfs_root;

struct ex_debugfs_file {
	struct ex_debugfs_file *next;
	void *cookie;
	u32 kind;
};

struct ex_debugfs_dir {
	struct dentry *dentry;
	struct ex_debugfs_file *files;
};

struct ex_debugfs_view {
	size_t len;
	char text[];
};

void ex_debugfs_setup(void)
{
	ex_debugfs_root = debugfs_create_dir("kvm", NULL);
}

void ex_debugfs_teardown(void)
{
	debugfs_remove(ex_debugfs_root);
}

/* The text is made once per open, so a reader sees one instant. */
static int ex_text_open(struct inode *inode, struct file *file)
{
	struct ex_debugfs_file *f = inode->i_private;
	struct ex_debugfs_view *view = kvzalloc(sizeof(*view) + EX_TEXT_SIZE, GFP_KERNEL);

	if (!view)
		return -ENOMEM;
	view->len = min_t(size_t, ex_rs_debugfs_show(f->cookie, f->kind, view->text, EX_TEXT_SIZE), EX_TEXT_SIZE);
	file->private_data = view;
	return 0;
}

static ssize_t ex_text_read(struct file *file, char __user *buf, size_t count, loff_t *pos)
{
	struct ex_debugfs_view *view = file->private_data;

	return simple_read_from_buffer(buf, count, pos, view->text, view->len);
}

static int ex_text_release(struct inode *inode, struct file *file)
{
	kvfree(file->private_data);
	return 0;
}

/* Whatever is written is a knock. */
static ssize_t ex_text_write(struct file *file, const char __user *buf, size_t count, loff_t *pos)
{
	struct ex_debugfs_file *f = file_inode(file)->i_private;

	ex_rs_debugfs_knock(f->cookie, f->kind);
	return count;
}

static const struct file_operations ex_text_fops = {
	.owner = THIS_MODULE,
	.open = ex_text_open,
	.read = ex_text_read,
	.write = ex_text_write,
	.release = ex_text_release,
	.llseek = default_llseek,
};

void *ex_debugfs_dir_new(const char *name)
{
	struct ex_debugfs_dir *dir = kzalloc(sizeof(*dir), GFP_KERNEL_ACCOUNT);

	struct dentry *taken = debugfs_lookup(name, ex_debugfs_root);

	if (taken) {
		/* A VM outlived its descriptor's number. The second one gets no folder; the kernel would log it each time. */
		dput(taken);
		kfree(dir);
		return NULL;
	}
	if (dir)
		dir->dentry = debugfs_create_dir(name, ex_debugfs_root);
	return dir;
}

/* debugfs_remove waits for opens and reads that are inside Rust. */
void ex_debugfs_dir_free(void *handle)
{
	struct ex_debugfs_dir *dir = handle;
	struct ex_debugfs_file *f, *next;

	debugfs_remove(dir->dentry);
	for (f = dir->files; f; f = next) {
		next = f->next;
		kfree(f);
	}
	kfree(dir);
}

int ex_debugfs_text(void *handle, const char *name, void *cookie, u32 kind, bool knocks)
{
	struct ex_debugfs_dir *dir = handle;
	struct ex_debugfs_file *f = kzalloc(sizeof(*f), GFP_KERNEL_ACCOUNT);

	if (!f)
		return -ENOMEM;
	f->cookie = cookie;
	f->kind = kind;
	f->next = dir->files;
	dir->files = f;
	debugfs_create_file(name, knocks ? 0644 : 0444, dir->dentry, f, &ex_text_fops);
	return 0;
}

void ex_debugfs_u64(void *handle, const char *name, u64 *value)
{
	struct ex_debugfs_dir *dir = handle;

	debugfs_create_u64(name, 0444, dir->dentry, value);
}
