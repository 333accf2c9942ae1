// SPDX-License-Identifier: MIT OR GPL-2.0-only
/* linux/bug.h: what should never be seen. */
#include <linux/bug.h>
#include "helpers.h"

bool ex_warn_once(void)
{
	return WARN_ON_ONCE(1);
}
