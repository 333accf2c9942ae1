// SPDX-License-Identifier: MIT OR GPL-2.0-only
/* linux/mm.h: from a user address to the host's page, and how big the host maps it. */
#include <linux/mm.h>
#include <linux/pgtable.h>
#include <linux/sched.h>
#include <linux/sched/mm.h>
#include <linux/swap.h>
#include <asm/e820/api.h>
#include <asm/memtype.h>
#include "helpers.h"

static int ex_gup_done(struct page *page, bool writable, struct ex_gup_result *out)
{
	out->pfn = page_to_pfn(page);
	out->writable = writable;
	out->counted = 1;
	return 0;
}

/* One look at a VM_IO or VM_PFNMAP mapping (a device BAR); the mmap lock is held for reading. */
#ifdef EX_HAVE_FOLLOW_PFNMAP
static int ex_follow_pfn(struct vm_area_struct *vma, unsigned long addr, struct ex_gup_result *out)
{
	struct follow_pfnmap_args args = { .vma = vma, .address = addr };
	int err = follow_pfnmap_start(&args);

	if (err)
		return err;
	out->pfn = args.pfn;
	out->writable = args.writable;
	follow_pfnmap_end(&args);
	return 0;
}
#else
static int ex_follow_pfn(struct vm_area_struct *vma, unsigned long addr, struct ex_gup_result *out)
{
	spinlock_t *lock;
	pte_t *pte;
	int err = follow_pte(vma->vm_mm, addr, &pte, &lock);

	if (err)
		return err;
	out->pfn = pte_pfn(*pte);
	out->writable = pte_write(*pte);
	pte_unmap_unlock(pte, lock);
	return 0;
}
#endif

/* -EAGAIN asks for another try: the mmap lock was dropped on the way. */
static int ex_gup_remapped(unsigned long hva, bool write, bool waits, struct ex_gup_result *out)
{
	struct mm_struct *mm = current->mm;
	struct vm_area_struct *vma;
	bool unlocked = false;
	int err = -EFAULT;

	mmap_read_lock(mm);
	vma = vma_lookup(mm, hva);
	if (!vma || !(vma->vm_flags & (write ? VM_WRITE : VM_READ)))
		goto out;
	if (!(vma->vm_flags & (VM_IO | VM_PFNMAP))) {
		if (!waits)
			err = -EBUSY;
		goto out;
	}
	out->counted = 0;
	ex_guest_gets_device_memory();
	err = ex_follow_pfn(vma, hva, out);
	if (!err && write && !out->writable)
		err = -EFAULT;
	if (!err)
		goto out;
	err = fixup_user_fault(mm, hva, write ? FAULT_FLAG_WRITE : 0, &unlocked);
	if (err) {
		err = -EFAULT;
		goto out;
	}
	if (unlocked) {
		err = -EAGAIN;
		goto out;
	}
	err = ex_follow_pfn(vma, hva, out);
	if (!err && write && !out->writable)
		err = -EFAULT;
out:
	mmap_read_unlock(mm);
	return err;
}

/*
 * The page behind a user address of the current address space.
 * 0, -EFAULT (no mapping, no permission), -EBUSY (it takes time, and the caller does not wait), -EHWPOISON, -EINTR (fatal signal).
 */
int ex_gup(u64 hva, bool write, bool waits, struct ex_gup_result *out)
{
	struct page *page, *wpage;
	long got;
	int err;

	if (get_user_pages_fast_only(hva, 1, FOLL_WRITE, &page) == 1)
		return ex_gup_done(page, true, out);
	got = get_user_pages_unlocked(hva, 1, &page,
				      FOLL_HWPOISON | (write ? FOLL_WRITE : 0) | (waits ? 0 : FOLL_NOWAIT));
	if (got == 1) {
		if (write)
			return ex_gup_done(page, true, out);
		/* Reading may have been enough to make a writable mapping present. */
		if (get_user_pages_fast_only(hva, 1, FOLL_WRITE, &wpage) == 1) {
			put_page(page);
			return ex_gup_done(wpage, true, out);
		}
		return ex_gup_done(page, false, out);
	}
	if (got == -EHWPOISON)
		return -EHWPOISON;
	do {
		if (fatal_signal_pending(current))
			return -EINTR;
		err = ex_gup_remapped(hva, write, waits, out);
	} while (err == -EAGAIN);
	return err;
}

/* For a counted result. */
void ex_page_release(u64 pfn, bool dirty, bool accessed)
{
	struct page *page = pfn_to_page(pfn);

	/* A page that is cleaned after this look is unmapped from the guest first. */
	if (dirty && !PageDirty(page))
		set_page_dirty_lock(page);
	else if (accessed)
		mark_page_accessed(page);
	put_page(page);
}

/*
 * 1, 2 or 3: the host maps this address by 4 KiB, 2 MiB or 1 GiB; 0: not mapped. True only while no
 * invalidation of the range has started. Interrupts off keep the tables from being freed under us.
 */
u32 ex_host_level(void *handle, u64 hva)
{
	struct mm_struct *mm = handle;
	unsigned long flags;
	u32 level = 0;
	pgd_t pgd;
	p4d_t p4d;
	pud_t pud;
	pmd_t pmd;

	local_irq_save(flags);
	pgd = READ_ONCE(*pgd_offset(mm, hva));
	if (pgd_none(pgd))
		goto out;
	p4d = READ_ONCE(*p4d_offset(&pgd, hva));
	if (p4d_none(p4d) || !p4d_present(p4d))
		goto out;
	pud = READ_ONCE(*pud_offset(&p4d, hva));
	if (pud_none(pud) || !pud_present(pud))
		goto out;
	level = 3;
	if (pud_leaf(pud))
		goto out;
	level = 0;
	pmd = READ_ONCE(*pmd_offset(&pud, hva));
	if (pmd_none(pmd) || !pmd_present(pmd))
		goto out;
	level = pmd_leaf(pmd) ? 2 : 1;
out:
	local_irq_restore(flags);
	return level;
}

/*
 * Memory that the guest may cache, as the host does; not a device. Reserved pages are either: the host's own mapping decides.
 * Memory that the kernel was told to leave alone (mem=, memmap=) has no struct page.
 */
bool ex_pfn_is_ram(u64 pfn)
{
	if (!pfn_valid(pfn))
		return e820__mapped_raw_any(PFN_PHYS(pfn), PFN_PHYS(pfn + 1) - 1, E820_TYPE_RAM);
	if (is_zero_pfn(pfn) || !PageReserved(pfn_to_page(pfn)))
		return true;
	return pat_enabled() && !pat_pfn_immune_to_uc_mtrr(pfn);
}

/* Keeps the mm_struct, not its mappings, alive. */
void *ex_mm_grab_current(void)
{
	if (current->mm)
		mmgrab(current->mm);
	return current->mm;
}

void ex_mm_drop(void *mm)
{
	mmdrop(mm);
}

void *ex_mm_current(void)
{
	return current->mm;
}
