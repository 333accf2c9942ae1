//! Guest memory: slots published to readers, second-level tables under the mmu lock, and the host's notifications.
//!
//! A fault and a notification race like this: the fault samples `seq`, finds the host page without the lock, then maps
//! it under the lock only if no notification is under way (`active`) and none has ended since (`seq`). A notification
//! counts itself in `active` before it removes mappings. So a mapping made from an old host page is either refused or
//! removed again.
//!
//! Two more races are closed by state under the mmu lock:
//! * Mappings are removed under the lock but flushed after it. Whoever removed some counts itself in `owed` until its
//!   flush is done; a notification that finds nothing to remove while somebody owes a flush does the flush itself, because
//!   the host frees the page as soon as the notification returns.
//! * A slot that is deleted or moved leaves the published table before its mappings are removed. Until they are, it is
//!   `retiring`, where notifications still find it.

use super::Vm;
use crate::{global, vendor};
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU64, Ordering};
use exitless_host::lock::SpinGuard;
use exitless_host::mem::{KBox, KSlice, Pages};
use exitless_host::{Errno, Result, mmu, task, uaccess};
use exitless_kvm_abi::kvm_userspace_memory_region;
use exitless_memslots::{self as ms, Change, DirtyBitmap, GfnRange, Limits, MAX_SLOTS, Slot, Table};
use exitless_slat::{
    Backing, Entries, Format, Frames, FreeList, Level, MapError, Mapped, Mapping, MemType, Perm, Slat,
    TABLES_PER_MAP, TableAddr, TablePage, gpa_bits, max_level,
};
use exitless_vcpu::Request;
use exitless_vcpu::host::FaultOutcome;
use exitless_x86::apic::apic_base;

/// Where the APICs' registers are after reset.
const APIC_GFN: u64 = apic_base::DEFAULT_ADDRESS >> 12;

/// Entries per lock hold when tables are swept.
const BUDGET: u32 = 2048;

/// Words of a dirty bitmap, 64 pages each, before others may have the CPU.
const WORDS_IN_A_ROW: u64 = 32;

/// The published table.
#[derive(bytemuck::Zeroable)]
#[repr(C)]
pub struct SlotTable {
    len: usize,
    slots: [Slot; MAX_SLOTS as usize],
}

impl SlotTable {
    /// The slots in use.
    pub fn table(&self) -> Table<'_> {
        Table::new(self.slots.get(..self.len).unwrap_or(&[]))
    }
}

/// State of slot changes, under `slots_lock`.
#[derive(bytemuck::Zeroable)]
pub struct Update {
    _pad: u64,
}

impl Update {
    pub(super) fn init(&mut self) -> Result<()> {
        Ok(())
    }
}

/// Under the mmu lock.
#[derive(bytemuck::Zeroable)]
pub struct Mmu {
    slat: Slat<vendor::Entries>,
    frames: Cache,
    /// Notifications under way.
    active: u32,
    /// Flushes that somebody owes but has not done yet.
    owed: u32,
    /// Notifications ended.
    seq: u64,
    /// The slot that left the table and may still be mapped; no pages: none.
    retiring: Slot,
    /// The largest leaf that the CPU takes.
    largest: Level,
    /// Only leaves of 4K may be executed: see [`vendor::guards_exec`].
    small_code: bool,
    /// Faults at the APIC's page map the page behind its registers.
    apic_page: bool,
    /// Pages have been marked as devices' ([`Vm::mark_device`]); marks may be left.
    marked: bool,
}

/// Zeroed table pages taken out of the allocator beforehand.
#[derive(bytemuck::Zeroable)]
pub struct Cache {
    pages: [u64; CACHE],
    len: usize,
}

const CACHE: usize = 16;

/// The kernel's linear mapping turns the physical address of one of our table pages into a pointer.
fn table_ptr(hpa: u64) -> NonNull<Entries> {
    NonNull::new(exitless_host::mem::virt_of(hpa)).unwrap_or(NonNull::dangling()).cast()
}

impl Frames for Cache {
    fn available(&self) -> usize {
        self.len
    }
    fn take(&mut self) -> Option<TablePage> {
        let last = self.len.checked_sub(1)?;
        let hpa = *self.pages.get(last)?;
        self.len = last;
        Some(TablePage::new(hpa))
    }
    fn entries(&self, table: TableAddr) -> &Entries {
        // SAFETY: a `TableAddr` is one of our table pages, which is freed only after it was unlinked and popped; the
        // contents are atomics.
        unsafe { table_ptr(table.hpa()).as_ref() }
    }
}

fn new_page() -> Result<u64> {
    let page = Pages::zeroed(0).ok_or(Errno::ENOMEM)?;
    let pa = page.phys();
    let _ = page.into_raw();
    Ok(pa)
}

fn free_page(page: &TablePage) {
    // SAFETY: table pages came from `Pages::into_phys` and leave the tables exactly once.
    drop(unsafe { Pages::from_raw(exitless_host::mem::virt_of(page.hpa()), 0) });
}

impl Mmu {
    pub(super) fn init(&mut self) -> Result<()> {
        let g = global::get().ok_or(Errno::ENXIO)?;
        let root = new_page()?;
        let (levels, largest) = vendor::Entries::shape(g);
        self.largest = largest;
        self.small_code = vendor::guards_exec(g);
        if self.small_code {
            self.slat.keep_small();
        }
        self.slat.init(vendor::Entries::of(g), levels, TablePage::new(root)).map_err(|p| {
            free_page(&p);
            Errno::EINVAL
        })
    }

    /// Physical address of the root.
    pub fn root(&self) -> u64 {
        self.slat.root_hpa()
    }

    /// Frees the (empty) root and the cached pages.
    pub(super) fn free_root(&mut self) {
        if let Some(root) = self.slat.take_root(&self.frames) {
            free_page(&root);
        }
        while let Some(page) = self.frames.take() {
            free_page(&page);
        }
    }

    /// The tables can have marks of devices.
    pub(super) fn can_mark(&self) -> bool {
        self.slat.format().device_mark().is_some()
    }

    /// Leaves by size, for statistics.
    pub fn counts(&self) -> exitless_slat::Counts {
        self.slat.counts()
    }
}

fn release(list: &mut FreeList, cache: &Cache) {
    while let Some(page) = list.pop(cache) {
        free_page(&page);
    }
}

/// A view of the free list's pages that needs no lock: only `entries` is used.
const NO_CACHE: Cache = Cache { pages: [0; CACHE], len: 0 };

/// Frees dirty bitmaps that a table owns alone.
pub(super) fn free_slots(old: Option<KBox<SlotTable>>) {
    let Some(old) = old else { return };
    for s in old.table().slots() {
        free_bitmap(s.dirty);
    }
}

fn new_bitmap(npages: u64) -> Result<u64> {
    let words = KBox::<Bitmap>::zeroed().ok_or(Errno::ENOMEM)?;
    let mut words = words;
    words.words = KSlice::zeroed(DirtyBitmap::words_for(npages) as usize).ok_or(Errno::ENOMEM)?;
    Ok(KBox::into_raw(words) as u64)
}

fn free_bitmap(handle: u64) {
    // SAFETY: a non-zero handle came from `new_bitmap` and is freed once, with its last slot.
    drop(unsafe { KBox::from_raw(handle as *mut Bitmap) });
}

/// A slot's dirty bitmap; its address is the slot's handle.
#[derive(bytemuck::Zeroable)]
struct Bitmap {
    words: KSlice<AtomicU64>,
}

/// Width of host-physical addresses, bits.
fn phys_bits() -> u32 {
    let leaf = exitless_hw_ops::cpuid(0x8000_0008, 0).eax & 0xff;
    leaf.clamp(36, 52)
}

/// The dirty bitmap of a slot that has one.
fn bitmap(s: &Slot) -> Option<DirtyBitmap<'_>> {
    if s.dirty == 0 {
        return None;
    }
    // SAFETY: the handle is live as long as the slot is published or the caller holds its table.
    let owner = unsafe { &*(s.dirty as *const Bitmap) };
    Some(DirtyBitmap::new(&owner.words, s.npages))
}

impl Vm {
    /// The slots of this moment.
    ///
    /// # Safety
    /// The caller is in a read section of the VM or holds `slots_lock`.
    pub unsafe fn table(&self) -> Table<'_> {
        // SAFETY: contract of this function.
        unsafe { self.slots.get() }.map_or(Table::new(&[]), SlotTable::table)
    }

    /// The slot of a guest frame. The caller is in a read section for as long as it uses the copy.
    pub fn slot_of(&self, gfn: u64) -> Option<Slot> {
        // SAFETY: the caller is in a read section.
        unsafe { self.table() }.find(gfn).copied()
    }

    /// `KVM_SET_USER_MEMORY_REGION`.
    pub fn set_region(&self, region: &kvm_userspace_memory_region) -> Result<isize> {
        let _guard = self.slots_lock.lock();
        if region.memory_size != 0
            && !uaccess::access_ok(region.userspace_addr as usize, region.memory_size as usize)
        {
            return Err(Errno::EINVAL);
        }
        let held = gpa_bits(self.mmu.lock().slat.levels());
        let limits = Limits::new(MAX_SLOTS, phys_bits(), held);
        // SAFETY: `slots_lock` is held.
        let current = unsafe { self.table() };
        let mut change =
            ms::plan(current.slots(), region, &limits).map_err(|r| Errno::from_ret(-r.errno()))?;
        let mut fresh = 0;
        if let Some(npages) = change.needs_bitmap()
            && let Some(slot) = change.new_slot_mut()
        {
            fresh = new_bitmap(npages)?;
            slot.dirty = fresh;
        }
        let r = self.apply(current.slots(), &change);
        let first = region.guest_phys_addr >> 12;
        if r.is_ok() && (first..first.saturating_add(region.memory_size >> 12)).contains(&APIC_GFN) {
            // Memory where the APIC's page may be mapped: the next fault finds the slot.
            self.zap(GfnRange { start: APIC_GFN, end: APIC_GFN + 1 }, true);
        }
        if r.is_err() {
            free_bitmap(fresh);
        }
        r
    }

    fn apply(&self, current: &[Slot], change: &Change) -> Result<isize> {
        let mut new = KBox::<SlotTable>::zeroed().ok_or(Errno::ENOMEM)?;
        let n = ms::apply(current, change, &mut new.slots).ok_or(Errno::EINVAL)?;
        new.len = n;
        let logs = new.table().slots().iter().any(Slot::logs_dirty);
        if logs {
            // Before anybody can map by the table that says so: no writable page of it is written unlogged.
            self.log_in_cpu(true);
        }
        let zap = change.zap(current);
        let protect = change.write_protect(current);
        let dropped = change.drops_bitmap(current);
        if zap.is_some() {
            // Before the table changes: a notification reads the table first, so it finds the slot in one of the two.
            self.retire_slot(change.old_index().and_then(|i| current.get(i)));
        }
        let hides = new.table().slots().iter().any(|s| super::window::is_below(s.base_gfn, s.npages));
        if hides && self.window.hide(true) {
            // Nobody sends by a window that others do not see any more.
            self.request_all(Request::MECHANISMS);
            self.synchronize();
        }
        let old = self.slots.replace(Some(new));
        if old.is_some() || self.vcpu_count() != 0 {
            // Nobody may still act on the old table: neither map or mark by it nor hold it when it is freed.
            self.synchronize();
        }
        if let Some(range) = change.appears()
            && self.mmu.lock().marked
        {
            self.zap(range, true);
        }
        if let Some(range) = zap {
            self.zap(range, true);
            self.retire_slot(None);
        }
        if let Some(range) = protect {
            self.watch_writes(range);
        }
        if !hides && self.window.hide(false) {
            self.request_all(Request::MECHANISMS);
        }
        if !logs {
            self.log_in_cpu(false);
        }
        drop(old);
        if let Some(handle) = dropped {
            free_bitmap(handle);
        }
        Ok(0)
    }

    /// Flushes guest-physical translations of all vCPUs and waits until none can use an old one.
    pub fn flush_all(&self) {
        for v in self.each_vcpu() {
            v.shared.request(Request::TLB_FLUSH);
        }
        self.kick_all_and_wait();
    }

    fn retire_slot(&self, slot: Option<&Slot>) {
        let slot = slot.copied().unwrap_or_default();
        self.retiring_logs.store(slot.logs_dirty(), Ordering::Release);
        self.mmu.lock().retiring = slot;
    }

    /// Pays for a counted `owed`: nobody can use what was removed when this returns.
    fn settle(&self, free: &mut FreeList) {
        self.flush_all();
        self.mmu.lock().owed -= 1;
        release(free, &NO_CACHE);
    }

    /// Sweeps a range in steps; `step` runs under the lock and returns (flush, continue at). `yields`: the caller may be
    /// scheduled out between steps.
    fn sweep(
        &self,
        range: GfnRange,
        yields: bool,
        mut step: impl FnMut(&mut Mmu, u64, u64, &mut FreeList) -> (bool, Option<u64>),
    ) {
        let mut free = FreeList::new();
        let (mut at, end) = (range.start << 12, range.end << 12);
        // We owe a flush; somebody else did when we looked.
        let (mut owe, mut others) = (false, false);
        loop {
            let next = {
                let mut mmu = self.mmu.lock();
                let (flush, next) = step(&mut mmu, at, end, &mut free);
                others |= mmu.owed > u32::from(owe);
                if !owe && (flush || !free.is_empty()) {
                    owe = true;
                    mmu.owed += 1;
                }
                next
            };
            match next {
                Some(n) => at = n,
                None => break,
            }
            if yields {
                task::cond_resched();
            }
        }
        if owe {
            self.settle(&mut free);
        } else if others {
            self.flush_all();
        }
    }

    fn zap(&self, range: GfnRange, yields: bool) {
        self.sweep(range, yields, |m, at, end, free| {
            let s = m.slat.zap_range(&m.frames, at, end, BUDGET, free, &mut |_| {});
            (s.flush, s.next)
        });
    }

    /// The next write to each page of the range is told: by the CPU's log, or by a fault.
    fn watch_writes(&self, range: GfnRange) {
        self.sweep(range, true, |m, at, end, _| {
            let Mmu { slat, frames, .. } = m;
            let s = if self.cpu_logs {
                slat.clear_dirty_range(frames, at, end, BUDGET, &mut |_| {})
            } else {
                slat.write_protect_range(frames, at, end, BUDGET, &mut |_| {})
            };
            (s.flush, s.next)
        });
    }

    /// All vCPUs' CPUs log writes from when this returns, where CPUs can, or need not any more. The caller holds `slots_lock`.
    fn log_in_cpu(&self, on: bool) {
        if !self.cpu_logs || self.logging.swap(on, Ordering::SeqCst) == on {
            return;
        }
        self.request_all(Request::LOGGING);
        if on {
            self.synchronize();
        }
    }

    /// The guest wrote the page of `gpa`, the CPU's log says; perhaps while another slot was there: a page too many is copied, none is
    /// lost. The caller is in a read section, interrupts off.
    pub fn mark_dirty(&self, gpa: u64) {
        let gfn = gpa >> 12;
        // SAFETY: see above.
        if let Some(slot) = unsafe { self.table() }.find(gfn) {
            mark(slot, gfn);
        }
        // Whoever sees the new table sees this too: it is stored first.
        if self.retiring_logs.load(Ordering::Acquire) {
            let m = self.mmu.lock();
            if m.retiring.contains(gfn) {
                mark(&m.retiring, gfn);
            }
        }
    }

    /// Removes every mapping: the address space goes away, or the VM.
    pub fn zap_everything(&self) {
        self.dead.store(true, Ordering::Relaxed);
        for v in self.each_vcpu() {
            v.shared.request(Request::DEAD);
        }
        self.zap(GfnRange { start: 0, end: 1 << 40 }, true);
    }

    /// The host is about to change pages behind `start..end` (host virtual addresses). `yields`: the caller may be scheduled out,
    /// which a big range needs; nothing here sleeps otherwise.
    pub fn invalidate_start(&self, start: u64, end: u64, yields: bool) {
        // First, so that no fault maps by a table that is newer than the one read below.
        self.mmu.lock().active += 1;
        let _srcu = self.srcu.read();
        // SAFETY: SRCU is held.
        let table = unsafe { self.table() };
        // After the table: see `apply`.
        let retiring = [self.mmu.lock().retiring];
        for (_, gfns) in
            table.find_hva_range(start, end).chain(Table::new(&retiring).find_hva_range(start, end))
        {
            self.zap(gfns, yields);
        }
    }

    /// The change is complete.
    pub fn invalidate_end(&self, _start: u64, _end: u64) {
        let mut m = self.mmu.lock();
        m.seq += 1;
        m.active = m.active.saturating_sub(1);
    }

    /// Have the pages been used? Clears the accessed bits if asked.
    pub fn age(&self, start: u64, end: u64, clear: bool) -> bool {
        let _srcu = self.srcu.read();
        let mut young = false;
        // SAFETY: SRCU is held.
        for (_, gfns) in unsafe { self.table() }.find_hva_range(start, end) {
            let (mut at, stop) = (gfns.start << 12, gfns.end << 12);
            loop {
                let m = self.mmu.lock();
                let a = m.slat.age_range(&m.frames, at, stop, clear, BUDGET);
                drop(m);
                young |= a.young;
                match a.next {
                    Some(n) => at = n,
                    None => break,
                }
            }
        }
        young
    }

    /// Fills the frame cache. May sleep.
    fn top_up(&self) -> Result<()> {
        loop {
            if self.mmu.lock().frames.len >= TABLES_PER_MAP {
                return Ok(());
            }
            let page = new_page()?;
            let mut m = self.mmu.lock();
            let n = m.frames.len;
            match m.frames.pages.get_mut(n) {
                Some(p) => {
                    *p = page;
                    m.frames.len = n + 1;
                }
                None => {
                    drop(m);
                    free_page(&TablePage::new(page));
                }
            }
        }
    }

    /// Resolves a second-level fault, for a caller that waits for slow pages or does not. The caller is in a read section.
    pub fn fault(&self, gpa: u64, write: bool, fetch: bool, waits: bool) -> FaultOutcome {
        // SAFETY: the run loop is in its read section.
        let Some(slot) = unsafe { self.table() }.find(gpa >> 12) else {
            // The VM's own pages are not executable.
            return if fetch { FaultOutcome::Mmio } else { self.map_own_page(gpa >> 12) };
        };
        if write && !slot.writable() {
            return FaultOutcome::ReadOnly;
        }
        loop {
            match self.try_map(slot, gpa, write, fetch, waits) {
                Ok(true) => return FaultOutcome::Fixed,
                Ok(false) => {
                    // A notification is under way: let it finish; a signal must not wait for it.
                    if task::signal_pending() {
                        return FaultOutcome::Fixed;
                    }
                    task::cond_resched();
                }
                Err(Errno::EHWPOISON) => {
                    return FaultOutcome::Poisoned(slot.hva_of(gpa >> 12).unwrap_or_default());
                }
                Err(Errno::EBUSY) => return FaultOutcome::Slow(slot.hva_of(gpa >> 12).unwrap_or_default()),
                // The thread is being killed: the signal tells.
                Err(Errno::EINTR) => return FaultOutcome::Fixed,
                Err(e) => return FaultOutcome::Error(e.to_int()),
            }
        }
    }

    /// All APICs have their registers at the default page, and the CPU virtualises accesses to them there; or not any more.
    pub fn check_apic_page(&self) {
        let possible = self.lapics.load(Ordering::Acquire) && self.apic_access_pa() != 0;
        let mut mmu = self.mmu.lock();
        // Under the lock, so that of two APICs that move at once the last to come here has seen both.
        let wanted = possible && self.away.load(Ordering::SeqCst) == 0;
        let had = core::mem::replace(&mut mmu.apic_page, wanted);
        drop(mmu);
        if had && !wanted {
            self.zap(GfnRange { start: APIC_GFN, end: APIC_GFN + 1 }, true);
        }
    }

    /// No memory at `gfn`; perhaps the APIC's page, whose accesses the CPU virtualises if something is mapped there, or the window.
    fn map_own_page(&self, gfn: u64) -> FaultOutcome {
        let window = self.window.at(gfn);
        if gfn != APIC_GFN && window.is_none() {
            return FaultOutcome::Mmio;
        }
        let want = Mapping {
            gpa: gfn << 12,
            hpa: window.unwrap_or(self.apic_access_pa()),
            level: Level::Page4K,
            perm: Perm { write: true, exec: false },
            memtype: MemType::Wb,
            dirty: true,
        };
        loop {
            if let Err(e) = self.top_up() {
                return FaultOutcome::Error(e.to_int());
            }
            let mut m = self.mmu.lock();
            if window.is_some() {
                // As a device's page: where memory appears, it goes.
                m.marked = true;
            } else if !m.apic_page {
                return FaultOutcome::Mmio;
            }
            match self.map_locked(m, &want) {
                Ok(true) => return FaultOutcome::Fixed,
                Ok(false) => {}
                Err(e) => return FaultOutcome::Error(e.to_int()),
            }
        }
    }

    /// Marks the page of a device: exits there tell of it. The caller is in the read section in which it found no memory there;
    /// where memory appears, the mark goes when all such sections have ended.
    pub fn mark_device(&self, gpa: u64) {
        // With or without a page behind it, the APIC's is not for doorbells, nor is the window.
        if !self.can_mark || gpa >> 12 == APIC_GFN || super::window::holds(gpa >> 12) {
            return;
        }
        loop {
            // A mark saves time, no more.
            if self.top_up().is_err() {
                return;
            }
            let m = &mut *self.mmu.lock();
            m.marked = true;
            if m.slat.mark_device(&mut m.frames, gpa) != Err(MapError::NeedFrames) {
                return;
            }
        }
    }

    /// One attempt; `false`: raced with a notification.
    fn try_map(&self, slot: &Slot, gpa: u64, write: bool, fetch: bool, waits: bool) -> Result<bool> {
        let Some(hva) = slot.hva_of(gpa >> 12) else { return Err(Errno::EFAULT) };
        self.top_up()?;
        let (seq, largest, small_code) = {
            let m = self.mmu.lock();
            if m.active != 0 {
                return Ok(false);
            }
            (m.seq, if m.small_code && fetch { Level::Page4K } else { m.largest }, m.small_code)
        };
        let page = mmu::page_of(hva, write, waits)?;
        let logs = slot.logs_dirty();
        // Where the CPU logs, a page may be writable before it is written.
        let writable = page.writable() && slot.writable() && (write || !logs || self.cpu_logs);
        let host = if logs { Level::Page4K } else { self.host_level(hva) };
        let backing = Backing { base_gfn: slot.base_gfn, npages: slot.npages, hva: slot.hva };
        let level = max_level(gpa >> 12, &backing, host, largest);
        let want = Mapping {
            gpa,
            hpa: page.pfn() << 12,
            level,
            perm: Perm { write: writable, exec: !small_code || level == Level::Page4K },
            memtype: if mmu::is_ram(page.pfn()) { MemType::Wb } else { MemType::Uc },
            dirty: writable && (write || !logs),
        };
        let outcome = self.install(&want, seq);
        if let Ok(true) = outcome
            && write
        {
            mark(slot, gpa >> 12);
        }
        // A writable mapping lets the guest write without another fault, even when a read made it.
        page.release(writable && matches!(outcome, Ok(true)));
        outcome
    }

    /// How the host maps the address; 4K when it does not (any more).
    fn host_level(&self, hva: u64) -> Level {
        match self.mm().and_then(|mm| mmu::host_level(mm, hva)) {
            Some(mmu::HostLevel::Page2M) => Level::Page2M,
            Some(mmu::HostLevel::Page1G) => Level::Page1G,
            _ => Level::Page4K,
        }
    }

    fn install(&self, want: &Mapping, seq: u64) -> Result<bool> {
        let m = self.mmu.lock();
        if m.active != 0 || m.seq != seq { Ok(false) } else { self.map_locked(m, want) }
    }

    /// Maps and lets go of the lock. `false`: others have used up the table pages.
    fn map_locked(&self, mut m: SpinGuard<'_, Mmu>, want: &Mapping) -> Result<bool> {
        let mut free = FreeList::new();
        let Mmu { slat, frames, .. } = &mut *m;
        let mut r = slat.map(frames, want, &mut free, &mut |_| {});
        for level in [Level::Page2M, Level::Page4K] {
            if r == Err(MapError::Occupied) && want.level > level {
                let exec = want.perm.exec || level == Level::Page4K;
                let smaller = Mapping { level, perm: Perm { exec, ..want.perm }, ..*want };
                r = slat.map(frames, &smaller, &mut free, &mut |_| {});
            }
        }
        let owe = r == Ok(Mapped::Changed) || !free.is_empty();
        if owe {
            m.owed += 1;
        }
        drop(m);
        if owe {
            self.settle(&mut free);
        }
        match r {
            Ok(_) => Ok(true),
            Err(MapError::NeedFrames) => Ok(false),
            Err(_) => Err(Errno::EFAULT),
        }
    }

    // --- guest memory by guest-physical address; the caller is in a read section ---

    /// Calls `f` for each stretch that lies in one slot.
    fn stretches(
        &self,
        gpa: u64,
        len: usize,
        write: bool,
        mut f: impl FnMut(u64, usize, usize) -> bool,
    ) -> bool {
        let mut done = 0;
        while done < len {
            let at = gpa.wrapping_add(done as u64);
            // SAFETY: the callers (run loop and ioctls) are in a read section.
            let table = unsafe { self.table() };
            let Some(slot) = table.find(at >> 12) else { return false };
            if write && !slot.writable() {
                return false;
            }
            let Some(page) = slot.hva_of(at >> 12) else { return false };
            let room = (4096 - (at & 4095)) as usize;
            let n = room.min(len - done);
            if !f(page + (at & 4095), done, n) {
                return false;
            }
            if write {
                mark(slot, at >> 12);
            }
            done += n;
        }
        true
    }

    /// Reads; may sleep.
    pub fn read(&self, gpa: u64, buf: &mut [u8]) -> bool {
        self.stretches(gpa, buf.len(), false, |hva, from, n| {
            let done = buf.get_mut(from..from + n).is_some_and(|b| uaccess::read_bytes(hva, b).is_ok());
            done || out_of_reach(hva, false)
        })
    }

    /// Reads without sleeping.
    pub fn read_atomic(&self, gpa: u64, buf: &mut [u8]) -> bool {
        self.stretches(gpa, buf.len(), false, |hva, from, n| {
            buf.get_mut(from..from + n).is_some_and(|b| uaccess::read_bytes_atomic(hva, b).is_ok())
        })
    }

    /// Writes; may sleep.
    pub fn write(&self, gpa: u64, data: &[u8]) -> bool {
        self.stretches(gpa, data.len(), true, |hva, from, n| {
            let done = data.get(from..from + n).is_some_and(|b| uaccess::write_bytes(hva, b).is_ok());
            done || out_of_reach(hva, true)
        })
    }

    /// Compare-and-exchange of an aligned word of 1, 2, 4 or 8 bytes.
    pub fn cmpxchg(&self, gpa: u64, size: u8, old: u64, new: u64) -> Option<bool> {
        let mut result = None;
        self.stretches(gpa, usize::from(size), true, |hva, _, n| {
            let r = match (n, hva & (n as u64 - 1)) {
                (1, 0) => uaccess::cmpxchg_u8(hva, old as u8, new as u8),
                (2, 0) => uaccess::cmpxchg_u16(hva, old as u16, new as u16),
                (4, 0) => uaccess::cmpxchg_u32(hva, old as u32, new as u32),
                (8, 0) => uaccess::cmpxchg_u64(hva, old, new),
                _ => return false,
            };
            result = r.ok();
            result.is_some() || out_of_reach(hva, true)
        });
        result
    }

    /// Writes a byte without sleeping, from any context of a thread of this address space, in a read section or not.
    pub fn write_byte_atomic(&self, gpa: u64, value: u8) -> bool {
        let _srcu = self.srcu.read();
        let Some(slot) = self.slot_of(gpa >> 12).filter(Slot::writable) else { return false };
        // SAFETY: the slot's range passed `access_ok` when it was set.
        let write = |hva: u64| unsafe { uaccess::write_u8_atomic(hva | gpa & 4095, value) };
        let written = slot.hva_of(gpa >> 12).is_some_and(write);
        if written {
            mark(&slot, gpa >> 12);
        }
        written
    }

    /// Backed by a slot (and writable)?
    pub fn is_ram(&self, gpa: u64, write: bool) -> bool {
        // SAFETY: the callers are in a read section.
        unsafe { self.table() }.find(gpa >> 12).is_some_and(|s| !write || s.writable())
    }

    /// `KVM_GET_DIRTY_LOG`: copies and clears a slot's bitmap, write-protecting what it reports.
    pub fn dirty_log(&self, id: u32, user: usize) -> Result<isize> {
        let _guard = self.slots_lock.lock();
        // SAFETY: `slots_lock` is held.
        let table = unsafe { self.table() };
        let slot = table.find_id(id).ok_or(Errno::ENOENT)?;
        let bits = bitmap(slot).ok_or(Errno::ENOENT)?;
        if self.cpu_logs {
            // What vCPUs have written so far is in their CPUs' logs, which are taken when they come out. No more than that is waited
            // for: a vCPU may be asleep over a page that only the caller can bring.
            self.kick_all_and_wait();
        }
        let mut owe = false;
        let copied = self.harvest(slot, &bits, user, &mut owe);
        // Also when the copy failed: what was write-protected must not be written through an old translation.
        if owe {
            self.settle(&mut FreeList::new());
        }
        copied.map(|()| 0)
    }

    /// Copies the bitmap word by word. `owe`: a flush is due and counted in `owed`.
    fn harvest(&self, slot: &Slot, bits: &DirtyBitmap<'_>, user: usize, owe: &mut bool) -> Result<()> {
        for w in 0..DirtyBitmap::words_for(slot.npages) {
            if w.is_multiple_of(WORDS_IN_A_ROW) {
                task::cond_resched();
            }
            let mask = bits.take(w);
            if mask != 0 {
                let m = &mut *self.mmu.lock();
                let gpa = (slot.base_gfn + w * 64) << 12;
                let Mmu { slat, frames, .. } = m;
                let watched = if self.cpu_logs {
                    slat.clear_dirty_mask(frames, gpa, mask, &mut |_| {})
                } else {
                    slat.write_protect_mask(frames, gpa, mask, &mut |_| {})
                };
                if watched && !*owe {
                    *owe = true;
                    m.owed += 1;
                }
            }
            uaccess::write(crate::user::at(user, w as usize * 8)?, &mask)?;
        }
        Ok(())
    }
}

/// The kernel's own access to guest memory failed: user space hears why if the page has a memory error. Answers `false`. May
/// sleep.
fn out_of_reach(hva: u64, write: bool) -> bool {
    if matches!(mmu::page_of(hva, write, true), Err(Errno::EHWPOISON)) {
        task::memory_error(hva & !0xfff);
    }
    false
}

/// A write to a page of a slot that logs.
/// The page was written. The caller is in the read section that `slot` was found in.
pub fn mark(slot: &Slot, gfn: u64) {
    if let Some(bits) = bitmap(slot) {
        bits.mark(gfn - slot.base_gfn);
    }
}
