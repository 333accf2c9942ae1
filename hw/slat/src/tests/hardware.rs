//! The CPU's page walker, played by a function and by a thread.

use std::sync::RwLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::vec::Vec;

use super::frames::{Arena, Vm};
use crate::*;

/// One guest access at `gpa`: walks as hardware does, sets accessed and dirty bits with a compare-and-swap that fails
/// when the entry changed meanwhile (the walk starts again then). Returns the host physical address and the entry's
/// value after the access, or `None` for a fault.
pub(crate) fn access<F: Format>(
    format: &F,
    arena: &Arena,
    root: u64,
    levels: u32,
    gpa: u64,
    write: bool,
) -> Option<(u64, u64)> {
    'again: loop {
        let mut table = root;
        for level in (0..levels).rev() {
            let slot: &AtomicU64 = &arena.page(table)[(gpa >> (12 + 9 * level)) as usize & 511];
            let entry = slot.load(Ordering::Acquire);
            if !format.is_present(entry) {
                return None;
            }
            if !format.is_leaf(entry, level) {
                table = format.address(entry, Level::Page4K);
                continue;
            }
            if write && !format.perm(entry).write {
                return None;
            }
            let dirty = if write { format.dirty_mask() } else { 0 };
            let new = entry | format.accessed_mask() | dirty;
            if slot.compare_exchange(entry, new, Ordering::AcqRel, Ordering::Acquire).is_err() {
                continue 'again;
            }
            let level = Level::from_index(level).expect("leaves are at the three lowest levels");
            return Some((format.address(entry, level) + (gpa & (level.size() - 1)), new));
        }
        unreachable!("level 0 has only leaves");
    }
}

const HPA: u64 = 1 << 30;

/// The contract that migration and page reclaim rest on: a guest write is never lost. A thread writes through the
/// tables while they are mapped, widened, aged, zapped and collapsed. After each flush, every page that it wrote since
/// the one before is dirty in the tables, or was dropped as dirty in between.
#[test]
fn no_write_is_lost() {
    race(64, 3000, churn);
}

/// The same with one page that is hardly mapped when it goes again: the first write meets the swap of the entry.
#[test]
fn first_write_against_zap() {
    race(1, 20_000, |vm, round, _| {
        vm.map(0, HPA, Level::Page4K, Perm::RWX).unwrap();
        pause(round);
        assert_eq!(vm.zap(0, 4096, 100).next, None);
    });
}

/// The same when a 2M leaf replaces the page's table: hardware may know the table still, and must find it empty.
#[test]
fn first_write_against_collapse() {
    race(1, 5_000, |vm, round, _| {
        vm.map(0, HPA, Level::Page4K, Perm::RWX).unwrap();
        pause(round);
        vm.map(0, HPA, Level::Page2M, Perm::RX).unwrap();
        assert_eq!(vm.zap(0, 4096, 100).next, None);
    });
}

fn pause(round: u64) {
    (0..round % 64).for_each(|_| std::hint::spin_loop());
}

/// Runs `work` at least `rounds` times, and until the other thread got a write through, with a flush after each.
fn race(pages: u64, rounds: u64, mut work: impl FnMut(&mut Vm<Npt>, u64, u64)) {
    let mut vm = Vm::new(Npt::default(), 4, 64);
    let (arena, root) = (vm.frames.arena.clone(), vm.slat.root_hpa());
    // A walk is a read section; a flush waits for all walks, as the interrupt of a TLB shootdown does.
    let walks = RwLock::new(());
    let stop = AtomicBool::new(false);
    let written: Vec<AtomicU64> = (0..pages).map(|_| AtomicU64::new(0)).collect();
    let mut total = 0;

    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut page = 1;
            while !stop.load(Ordering::Relaxed) {
                page = (page * 5 + 3) % pages;
                let walk = walks.read().unwrap();
                if let Some((hpa, _)) = access(&Npt::default(), &arena, root, 4, page << 12, true) {
                    assert_eq!(hpa, HPA + (page << 12));
                    written[page as usize].fetch_add(1, Ordering::Relaxed);
                }
                drop(walk);
            }
        });
        let _stop = StopOnDrop(&stop);
        let mut round = 0;
        while round < rounds || (total == 0 && round < 10_000_000) {
            work(&mut vm, round, pages);
            let flushed = walks.write().unwrap();
            for (page, writes) in written.iter().enumerate() {
                let (gpa, writes) = ((page as u64) << 12, writes.swap(0, Ordering::Relaxed));
                let told = vm.dropped.iter().any(|l| l.dirty && l.level.base(gpa) == l.gpa);
                let told = told || vm.lookup(gpa).is_some_and(|leaf| leaf.dirty);
                assert!(writes == 0 || told, "round {round}: {writes} writes to {gpa:x} are lost");
                total += writes;
            }
            drop(flushed);
            vm.frames.empty(&mut vm.free);
            vm.dropped.clear();
            round += 1;
        }
    });
    assert!(total > 0, "the walker never got through");
    vm.finish();
}

struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn churn(vm: &mut Vm<Npt>, round: u64, pages: u64) {
    for page in (0..pages).filter(|page| !(page ^ round).is_multiple_of(3)) {
        vm.map(page << 12, HPA + (page << 12), Level::Page4K, Perm::RX).unwrap();
        vm.map(page << 12, HPA + (page << 12), Level::Page4K, Perm::RWX).unwrap();
    }
    match round % 4 {
        0 => assert!(vm.map(0, HPA, Level::Page2M, Perm::RWX).is_ok()),
        1 => assert_eq!(vm.protect(0, pages << 12, 10_000).next, None),
        2 => assert!(vm.slat.age_range(&vm.frames, 0, pages << 12, true, 10_000).next.is_none()),
        _ => {}
    }
    vm.zap_steps((round % pages) << 12, pages << 12, 50);
}
