//! Fake memory: an arena of pages, of which some are cached, some are tables. Touching a page that is no table panics,
//! so a table that is freed too early or linked twice shows at once.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::vec::Vec;

use crate::*;

const FIRST: u64 = 0x40_0000;

pub(crate) struct Arena {
    pages: Vec<Entries>,
}

impl Arena {
    pub(crate) fn page(&self, hpa: u64) -> &Entries {
        &self.pages[((hpa - FIRST) >> 12) as usize]
    }
}

pub(crate) struct FakeFrames {
    pub(crate) arena: Arc<Arena>,
    cache: Vec<u64>,
    pub(crate) live: HashSet<u64>,
    /// Pages that `take` may still give: the size of the preallocated cache.
    pub(crate) allowance: usize,
}

impl FakeFrames {
    pub(crate) fn new(pages: usize) -> Self {
        let arena = Arena { pages: (0..pages).map(|_| [const { AtomicU64::new(0) }; 512]).collect() };
        let cache = (0..pages as u64).map(|n| FIRST + (n << 12)).collect();
        Self { arena: Arc::new(arena), cache, live: HashSet::new(), allowance: usize::MAX }
    }

    pub(crate) fn give_back(&mut self, page: TablePage) {
        let hpa = page.hpa();
        assert!(self.live.remove(&hpa), "{hpa:x} given back twice");
        assert!(self.arena.page(hpa).iter().all(|e| e.load(Ordering::Relaxed) == 0), "{hpa:x} is not zeroed");
        self.cache.push(hpa);
    }

    pub(crate) fn empty(&mut self, free: &mut FreeList) {
        while let Some(page) = free.pop(self) {
            self.give_back(page);
        }
        assert_eq!((free.is_empty(), free.len()), (true, 0));
    }
}

impl Frames for FakeFrames {
    fn available(&self) -> usize {
        self.cache.len().min(self.allowance)
    }

    fn take(&mut self) -> Option<TablePage> {
        self.allowance = self.allowance.checked_sub(1)?;
        let hpa = self.cache.pop()?;
        assert!(self.live.insert(hpa));
        Some(TablePage::new(hpa))
    }

    fn entries(&self, table: TableAddr) -> &Entries {
        assert!(self.live.contains(&table.hpa()), "{:x} is no table", table.hpa());
        self.arena.page(table.hpa())
    }
}

/// Tables with a root, and their memory.
pub(crate) struct Vm<F> {
    pub(crate) slat: Slat<F>,
    pub(crate) frames: FakeFrames,
    pub(crate) free: FreeList,
    pub(crate) dropped: Vec<Leaf>,
}

impl<F: Format + Default> Vm<F> {
    pub(crate) fn new(format: F, levels: u32, pages: usize) -> Self {
        let mut frames = FakeFrames::new(pages);
        let mut slat = Slat::default();
        let root = frames.take().unwrap();
        slat.init(format, levels, root).unwrap();
        Self { slat, frames, free: FreeList::new(), dropped: Vec::new() }
    }

    pub(crate) fn map(&mut self, gpa: u64, hpa: u64, level: Level, perm: Perm) -> Result<Mapped, MapError> {
        let want = Mapping { gpa, hpa, level, perm, memtype: MemType::Wb, dirty: false };
        self.slat.map(&mut self.frames, &want, &mut self.free, &mut |leaf| self.dropped.push(leaf))
    }

    pub(crate) fn zap(&mut self, start: u64, end: u64, budget: u32) -> Swept {
        self.slat
            .zap_range(&self.frames, start, end, budget, &mut self.free, &mut |leaf| self.dropped.push(leaf))
    }

    /// Zaps in steps of `budget` until the range is done. Returns whether any step wanted a flush.
    pub(crate) fn zap_steps(&mut self, start: u64, end: u64, budget: u32) -> bool {
        let (mut at, mut flush) = (start, false);
        loop {
            let swept = self.zap(at, end, budget);
            flush |= swept.flush;
            let Some(next) = swept.next else { return flush };
            assert!(next > at, "no progress at {at:x}");
            at = next;
        }
    }

    pub(crate) fn protect(&mut self, start: u64, end: u64, budget: u32) -> Swept {
        self.slat.write_protect_range(&self.frames, start, end, budget, &mut |leaf| self.dropped.push(leaf))
    }

    pub(crate) fn lookup(&self, gpa: u64) -> Option<Leaf> {
        self.slat.lookup(&self.frames, gpa)
    }

    /// The end of the VM: nothing may be left but what the cache had.
    pub(crate) fn finish(mut self) -> Vec<Leaf> {
        self.zap_steps(0, u64::MAX, 1000);
        self.frames.empty(&mut self.free);
        assert_eq!(self.slat.counts(), Counts { tables: 1, ..Counts::default() });
        let root = self.slat.take_root(&self.frames).expect("an empty root");
        self.frames.give_back(root);
        assert!(self.frames.live.is_empty(), "tables leaked: {:x?}", self.frames.live);
        self.dropped
    }
}
