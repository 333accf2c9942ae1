// SPDX-License-Identifier: MIT OR GPL-2.0-only
/* linux/slab.h, linux/gfp.h: zeroed memory charged to the caller's cgroup. */
#include <linux/gfp.h>
#include <linux/log2.h>
#include <linux/mm.h>
#include <linux/slab.h>
#include <linux/mem_encrypt.h>
#include "helpers.h"

/*
 * Caches of a power of two keep that alignment; 96 and 192 do not. From a page on, kmalloc and vmalloc both
 * give at least page alignment.
 */
static size_t ex_padded(size_t size, size_t align)
{
	if (align > ARCH_KMALLOC_MINALIGN && size < PAGE_SIZE)
		return roundup_pow_of_two(max(size, align));
	return size;
}

void *ex_kvzalloc(size_t size, size_t align)
{
	if (!size || align > PAGE_SIZE || size > INT_MAX)
		return NULL;
	return kvzalloc(ex_padded(size, align), GFP_KERNEL_ACCOUNT);
}

/* Memory of the module itself, not of one VM's owner. */
void *ex_kvmalloc_module(size_t size, size_t align)
{
	if (!size || align > PAGE_SIZE || size > INT_MAX)
		return NULL;
	return kvmalloc(ex_padded(size, align), GFP_KERNEL);
}

void ex_kvfree(void *ptr)
{
	kvfree(ptr);
}

/* 2^order physically contiguous zeroed pages. Order 0 pages may be mapped into user space. */
void *ex_pages_alloc(u32 order)
{
	struct page *page = alloc_pages(GFP_KERNEL_ACCOUNT | __GFP_ZERO | (order ? __GFP_COMP : 0), order);

	return page ? page_address(page) : NULL;
}

void ex_pages_free(void *virt, u32 order)
{
	__free_pages(virt_to_page(virt), order);
}

void *ex_page_of(void *virt)
{
	return is_vmalloc_addr(virt) ? vmalloc_to_page(virt) : virt_to_page(virt);
}

u64 ex_phys_of(const void *virt)
{
	if (is_vmalloc_addr(virt))
		return ((u64)vmalloc_to_pfn(virt) << PAGE_SHIFT) + offset_in_page(virt);
	return __pa(virt);
}

/* Kernel address of a page that lies in the direct map. */
void *ex_virt_of(u64 phys)
{
	return __va(phys);
}

u64 ex_sme_mask(void)
{
	return sme_me_mask;
}
