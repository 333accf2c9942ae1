// SPDX-License-Identifier: MIT OR GPL-2.0-only
/*
 * Memory as no file gives it: mmap of /dev/odd_pages at these offsets, in pages.
 *
 *   0x000  a page with a memory error, while the first letter written last is 'p'
 *   0x100  a page that cannot be had (SIGBUS), likewise
 *   0x200  frames without a page (VM_PFNMAP) of ordinary memory
 *   0x300  the same of reserved memory
 *   0x400  the same of a device: the HPET, whose first register never changes
 *
 * Writing 'o' makes everything ordinary. Writing 's' takes the frames of 0x200 and 0x300 back, and whoever looks again finds
 * the other of two: they begin with a number that tells which.
 */
#include <linux/fs.h>
#include <linux/gfp.h>
#include <linux/miscdevice.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/uaccess.h>

#define HPET 0xfed00000ul

enum kind { POISON, MISSING, MEMORY, RESERVED, DEVICE, KINDS };

static struct page *ordinary, *memory[2], *reserved[2];
static struct address_space *mapping;
static bool failing, other;

static vm_fault_t odd_fault(struct vm_fault *vmf)
{
	enum kind kind = vmf->pgoff >> 8;
	struct page *page = kind == RESERVED ? reserved[other] : memory[other];

	switch (kind) {
	case POISON:
	case MISSING:
		if (READ_ONCE(failing))
			return kind == POISON ? VM_FAULT_HWPOISON : VM_FAULT_SIGBUS;
		get_page(ordinary);
		vmf->page = ordinary;
		return 0;
	case DEVICE:
		return vmf_insert_pfn(vmf->vma, vmf->address, HPET >> PAGE_SHIFT);
	default:
		return vmf_insert_pfn(vmf->vma, vmf->address, page_to_pfn(page));
	}
}

static const struct vm_operations_struct odd_vm_ops = { .fault = odd_fault };

static int odd_mmap(struct file *file, struct vm_area_struct *vma)
{
	enum kind kind = vma->vm_pgoff >> 8;

	if (kind >= KINDS || vma_pages(vma) > 0x100)
		return -EINVAL;
	mapping = file->f_mapping;
	vma->vm_ops = &odd_vm_ops;
	if (kind >= MEMORY) {
		vm_flags_t flags = VM_IO | VM_PFNMAP | VM_DONTEXPAND | VM_DONTDUMP;
#ifdef vm_flags_set
		vm_flags_set(vma, flags);
#else
		vma->vm_flags |= flags;
#endif
	}
	if (kind == DEVICE)
		vma->vm_page_prot = pgprot_noncached(vma->vm_page_prot);
	return 0;
}

static ssize_t odd_write(struct file *file, const char __user *from, size_t len, loff_t *pos)
{
	char letter;

	if (!len || get_user(letter, from))
		return -EFAULT;
	switch (letter) {
	case 'p':
	case 'o':
		WRITE_ONCE(failing, letter == 'p');
		break;
	case 's':
		other = !other;
		break;
	default:
		return -EINVAL;
	}
	if (mapping)
		unmap_mapping_range(mapping, 0, (loff_t)KINDS << (8 + PAGE_SHIFT), 1);
	return len;
}

static const struct file_operations odd_fops = { .owner = THIS_MODULE, .mmap = odd_mmap, .write = odd_write };
static struct miscdevice odd = { .minor = MISC_DYNAMIC_MINOR, .name = "odd_pages", .fops = &odd_fops };

static void odd_free(void)
{
	int i;

	for (i = 0; i < 2; i++) {
		if (reserved[i]) {
			ClearPageReserved(reserved[i]);
			__free_page(reserved[i]);
		}
		if (memory[i])
			__free_page(memory[i]);
	}
	if (ordinary)
		__free_page(ordinary);
}

static int __init odd_init(void)
{
	int i, err = -ENOMEM;

	ordinary = alloc_page(GFP_KERNEL | __GFP_ZERO);
	for (i = 0; i < 2; i++) {
		memory[i] = alloc_page(GFP_KERNEL | __GFP_ZERO);
		reserved[i] = alloc_page(GFP_KERNEL | __GFP_ZERO);
		if (!memory[i] || !reserved[i])
			goto out;
		SetPageReserved(reserved[i]);
		*(u32 *)page_address(memory[i]) = 0x100 + i;
		*(u32 *)page_address(reserved[i]) = 0x200 + i;
	}
	err = ordinary ? misc_register(&odd) : -ENOMEM;
out:
	if (err)
		odd_free();
	return err;
}

static void __exit odd_exit(void)
{
	misc_deregister(&odd);
	odd_free();
}

module_init(odd_init);
module_exit(odd_exit);
MODULE_DESCRIPTION("Lab: pages with errors, and frames without pages");
MODULE_LICENSE("Dual MIT/GPL");
