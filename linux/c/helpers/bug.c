// SPDX-License-Identifier: MIT OR GPL-2.0-only
/* linux/bug.h: the end of the line. */
#include <linux/bug.h>
#include "helpers.h"

void ex_bug(void)
{
	BUG();
}

bool ex_warn_once(void)
{
	return WARN_ON_ONCE(1);
}
