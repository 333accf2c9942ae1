// SPDX-License-Identifier: MIT OR GPL-2.0-only
/* linux/printk.h: one line each; the text is not a format and need not end in NUL. */
#define pr_fmt(fmt) "exitless: " fmt

#include <linux/printk.h>
#include "helpers.h"

void ex_pr_info(const char *text, u32 len)
{
	pr_info("%.*s\n", (int)len, text);
}

void ex_pr_warn(const char *text, u32 len)
{
	pr_warn("%.*s\n", (int)len, text);
}

void ex_pr_err(const char *text, u32 len)
{
	pr_err("%.*s\n", (int)len, text);
}
