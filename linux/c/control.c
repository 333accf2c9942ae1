// SPDX-License-Identifier: MIT OR GPL-2.0-only
/* /dev/exitless, which shows and switches mechanisms, and the module's parameter with their defaults. */
#define pr_fmt(fmt) "exitless: " fmt

#include <linux/capability.h>
#include <linux/cred.h>
#include <linux/fs.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/moduleparam.h>
#include <linux/seq_file.h>
#include <linux/slab.h>
#include <linux/string.h>
#include "ex.h"

/* More is no list of mechanisms. */
#define EX_WORDS_MAX 4096
#define EX_TEXT_FIRST (16 * 1024)

/* What does not fit is made again with more room. */
static int ex_control_show(struct seq_file *m, void *unused)
{
	char *buf;
	size_t room = seq_get_buf(m, &buf);
	size_t len = ex_rs_control_text(buf, room);

	seq_commit(m, len < room ? (int)len : -1);
	return 0;
}

static int ex_control_open(struct inode *inode, struct file *file)
{
	/* The misc device's, which seq_file does not expect there. */
	file->private_data = NULL;
	return single_open_size(file, ex_control_show, NULL, EX_TEXT_FIRST);
}

/*
 * Who writes has no more rights than who opened it: else whoever holds a descriptor could make it the standard error of a program that
 * has more.
 */
static bool ex_control_same_hands(struct file *file)
{
	return uid_eq(file->f_cred->euid, current_euid()) &&
	       (!ns_capable_noaudit(&init_user_ns, CAP_SYS_ADMIN) ||
		file_ns_capable(file, &init_user_ns, CAP_SYS_ADMIN));
}

static ssize_t ex_control_write(struct file *file, const char __user *buf, size_t count, loff_t *pos)
{
	char *words;
	int err;

	if (!ex_control_same_hands(file))
		return -EPERM;
	if (count >= EX_WORDS_MAX)
		return -E2BIG;
	words = memdup_user_nul(buf, count);
	if (IS_ERR(words))
		return PTR_ERR(words);
	err = ex_rs_control_words(words, count);
	kfree(words);
	return err ? err : count;
}

static long ex_control_ioctl(struct file *file, unsigned int cmd, unsigned long arg)
{
	return ex_rs_control_ioctl(cmd, arg, file->f_mode & FMODE_WRITE);
}

static const struct file_operations ex_control_fops = {
	.owner = THIS_MODULE,
	.open = ex_control_open,
	.release = single_release,
	.read = seq_read,
	.write = ex_control_write,
	.llseek = seq_lseek,
	.unlocked_ioctl = ex_control_ioctl,
	.compat_ioctl = compat_ptr_ioctl,
};

static struct miscdevice ex_control_misc = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "exitless",
	.mode = 0600,
	.fops = &ex_control_fops,
};

static bool ex_control_there;

/* The last step of loading: guests run without it. */
void ex_control_setup(void)
{
	int err = misc_register(&ex_control_misc);

	if (err)
		pr_err("cannot register /dev/exitless (error %d)\n", err);
	ex_control_there = !err;
}

void ex_control_teardown(void)
{
	if (ex_control_there)
		misc_deregister(&ex_control_misc);
}

/* Before ex_rs_init too. */
static int ex_mechanisms_set(const char *words, const struct kernel_param *kp)
{
	return ex_rs_mechanisms_set(words, strnlen(words, EX_WORDS_MAX));
}

static int ex_mechanisms_get(char *buf, const struct kernel_param *kp)
{
	return ex_rs_mechanisms_get(buf, PAGE_SIZE);
}

static const struct kernel_param_ops ex_mechanisms_ops = { .set = ex_mechanisms_set, .get = ex_mechanisms_get };
module_param_cb(mechanisms, &ex_mechanisms_ops, NULL, 0644);
MODULE_PARM_DESC(mechanisms, "Switches of VMs to come, in order: -all,+ipi_fastpath .. (default: as docs/mechanisms.md says)");
