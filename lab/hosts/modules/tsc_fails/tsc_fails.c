// SPDX-License-Identifier: MIT OR GPL-2.0-only
/* Loading it makes the kernel take its TSC for one that went wrong, as its watchdog would. */
#include <linux/module.h>
#include <asm/tsc.h>

static int __init tsc_fails_init(void)
{
	mark_tsc_unstable("the lab wants it so");
	return 0;
}

static void __exit tsc_fails_exit(void)
{
}

module_init(tsc_fails_init);
module_exit(tsc_fails_exit);

MODULE_LICENSE("Dual MIT/GPL");
MODULE_DESCRIPTION("Test: the host's TSC turns unstable");
