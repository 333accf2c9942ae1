// SPDX-License-Identifier: MIT OR GPL-2.0-only
/* linux/uaccess.h: user memory of the current address space. */
#include <linux/uaccess.h>
#include "helpers.h"

bool ex_access_ok(unsigned long addr, unsigned long len)
{
	return access_ok((void __user *)addr, len);
}

/* 0 or -EFAULT. May fault and sleep. */
int ex_user_read(void *dst, unsigned long addr, unsigned long len)
{
	return copy_from_user(dst, (const void __user *)addr, len) ? -EFAULT : 0;
}

int ex_user_write(unsigned long addr, const void *src, unsigned long len)
{
	return copy_to_user((void __user *)addr, src, len) ? -EFAULT : 0;
}

int ex_user_clear(unsigned long addr, unsigned long len)
{
	return clear_user((void __user *)addr, len) ? -EFAULT : 0;
}

/* Never sleeps: -EFAULT also when the page is not resident. */
int ex_user_read_atomic(void *dst, unsigned long addr, unsigned long len)
{
	unsigned long left;

	if (!access_ok((void __user *)addr, len))
		return -EFAULT;
	pagefault_disable();
	left = __copy_from_user_inatomic(dst, (const void __user *)addr, len);
	pagefault_enable();
	return left ? -EFAULT : 0;
}

/* For page-table walks with interrupts off: one load. The caller vouches that addr lies in user space. */
bool ex_user_read_u64_atomic(unsigned long addr, u64 *value)
{
	u64 v;
	int err;

	pagefault_disable();
	err = __get_user(v, (u64 __user *)addr);
	pagefault_enable();
	if (err)
		return false;
	*value = v;
	return true;
}

/* Under the scheduler's lock: one store. The caller vouches that addr lies in user space. */
bool ex_user_write_u8_atomic(unsigned long addr, u8 value)
{
	int err;

	pagefault_disable();
	err = __put_user(value, (u8 __user *)addr);
	pagefault_enable();
	return !err;
}

/* With interrupts off: one store. The caller vouches that addr lies in user space. */
bool ex_user_write_u64_atomic(unsigned long addr, u64 value)
{
	int err;

	pagefault_disable();
	err = __put_user(value, (u64 __user *)addr);
	pagefault_enable();
	return !err;
}

/* 1 = swapped, 0 = the value differed, -EFAULT. */
#define EX_USER_CMPXCHG(type)                                                     \
	int ex_user_cmpxchg_##type(unsigned long addr, type old, type new)        \
	{                                                                         \
		type __user *ptr = (type __user *)addr;                           \
		bool swapped;                                                     \
                                                                                  \
		if (!user_access_begin(ptr, sizeof(*ptr)))                        \
			return -EFAULT;                                           \
		swapped = unsafe_try_cmpxchg_user(ptr, &old, new, fault);         \
		user_access_end();                                                \
		return swapped;                                                   \
	fault:                                                                    \
		user_access_end();                                                \
		return -EFAULT;                                                   \
	}

EX_USER_CMPXCHG(u8)
EX_USER_CMPXCHG(u16)
EX_USER_CMPXCHG(u32)
EX_USER_CMPXCHG(u64)
