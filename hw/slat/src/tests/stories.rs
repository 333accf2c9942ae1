//! One story per test, on NPT unless the format matters.

use std::sync::atomic::Ordering;
use std::vec::Vec;

use super::frames::Vm;
use crate::*;

const G: u64 = 1 << 30;
const M2: u64 = 2 << 20;
const D: u64 = 1 << 6;
const A: u64 = 1 << 5;

fn vm() -> Vm<Npt> {
    Vm::new(Npt::default(), 4, 64)
}

/// What hardware does on a write through the 4K, 2M or 1G leaf of `gpa`.
fn set_bits(vm: &Vm<Npt>, gpa: u64, bits: u64) {
    let mut table = vm.slat.root_hpa();
    for level in (0..4).rev() {
        let slot = &vm.frames.arena.page(table)[(gpa >> (12 + 9 * level)) as usize & 511];
        let entry = slot.load(Ordering::Relaxed);
        if level == 0 || entry & 0x80 != 0 {
            slot.fetch_or(bits, Ordering::Relaxed);
            return;
        }
        table = entry & Npt::ADDRESS;
    }
}

/// The first fault of a VM: three tables, one leaf, no flush; the second fault of another vCPU finds it.
#[test]
fn first_fault() {
    let mut vm = vm();
    assert_eq!(vm.map(0x1234_5678, 0x8000_0abc, Level::Page4K, Perm::RWX), Ok(Mapped::Fresh));
    assert_eq!(vm.map(0x1234_5000, 0x8000_0000, Level::Page4K, Perm::RX), Ok(Mapped::Same));
    let leaf = vm.lookup(0x1234_5fff).unwrap();
    assert_eq!((leaf.gpa, leaf.hpa, leaf.level), (0x1234_5000, 0x8000_0000, Level::Page4K));
    assert_eq!((leaf.perm, leaf.accessed, leaf.dirty), (Perm::RWX, true, false));
    assert_eq!(vm.slat.counts(), Counts { tables: 4, pages_4k: 1, pages_2m: 0, pages_1g: 0 });
    assert_eq!(vm.lookup(0x1234_6000), None);
    assert_eq!(vm.finish().len(), 1);
}

/// Without enough pages nothing changes: no half-built path, and a large leaf in the way stays.
#[test]
fn need_frames_is_atomic() {
    let mut vm = vm();
    vm.frames.allowance = 2;
    assert_eq!(vm.map(0, 0x1000, Level::Page4K, Perm::RWX), Err(MapError::NeedFrames));
    assert_eq!((vm.slat.counts().tables, vm.frames.allowance), (1, 2));
    assert_eq!(vm.map(0, G, Level::Page1G, Perm::RX), Ok(Mapped::Fresh));
    assert_eq!(vm.map(0, 0x1000, Level::Page4K, Perm::RWX), Err(MapError::NeedFrames));
    assert_eq!(vm.lookup(0).unwrap().level, Level::Page1G);
    assert!(vm.dropped.is_empty());
    vm.finish();
}

/// Four tables are the most that one map takes, which is what callers fill their cache up to.
#[test]
fn tables_per_map() {
    let mut vm = Vm::new(Npt::default(), 5, 16);
    vm.frames.allowance = TABLES_PER_MAP;
    assert_eq!(vm.map((1 << 52) - 1, 0x1000, Level::Page4K, Perm::RWX), Ok(Mapped::Fresh));
    assert_eq!(vm.map(1 << 52, 0x1000, Level::Page4K, Perm::RWX), Err(MapError::OutOfRange));
    assert_eq!(vm.lookup(1 << 52), None);
    vm.finish();
    assert_eq!(self::vm().map(1 << 48, 0, Level::Page4K, Perm::RWX), Err(MapError::OutOfRange));
}

/// A write fault on a read-only leaf widens it in place and keeps what hardware noted; a late reader takes nothing back.
#[test]
fn widen() {
    let mut vm = vm();
    vm.map(0x5000, 0x9000, Level::Page4K, Perm { write: false, exec: false }).unwrap();
    set_bits(&vm, 0x5000, D);
    assert_eq!(vm.map(0x5000, 0x9000, Level::Page4K, Perm::RWX), Ok(Mapped::Widened));
    assert_eq!(vm.map(0x5000, 0x9000, Level::Page4K, Perm::RX), Ok(Mapped::Same));
    let leaf = vm.lookup(0x5000).unwrap();
    assert_eq!((leaf.perm, leaf.dirty), (Perm::RWX, true));
    vm.finish();
}

/// Another host page behind the same guest page (copy on write): the old one is reported with its dirty bit.
#[test]
fn other_page() {
    let mut vm = vm();
    vm.map(0x5000, 0x9000, Level::Page4K, Perm::RX).unwrap();
    set_bits(&vm, 0x5000, D);
    assert_eq!(vm.map(0x5000, 0xa000, Level::Page4K, Perm::RWX), Ok(Mapped::Changed));
    assert_eq!(vm.dropped.iter().map(|l| (l.hpa, l.dirty)).collect::<Vec<_>>(), [(0x9000, true)]);
    vm.finish();
}

/// A 4K fault under a 2M leaf: served by it if the memory is the same, otherwise the leaf is dropped.
#[test]
fn small_under_large() {
    let mut vm = vm();
    vm.map(M2, 8 * M2, Level::Page2M, Perm::RX).unwrap();
    assert_eq!(vm.map(M2 + 0x3000, 8 * M2 + 0x3000, Level::Page4K, Perm::RX), Ok(Mapped::Same));
    assert_eq!(vm.map(M2 + 0x3000, 8 * M2 + 0x3000, Level::Page4K, Perm::RWX), Ok(Mapped::Changed));
    assert_eq!((vm.dropped[0].gpa, vm.dropped[0].level), (M2, Level::Page2M));
    assert_eq!(vm.lookup(M2), None);
    assert_eq!(vm.slat.counts(), Counts { tables: 4, pages_4k: 1, pages_2m: 0, pages_1g: 0 });
    vm.finish();
}

/// A 2M leaf over 4K ones: they are dropped with their bits, their table goes to the free list, zeroed but for the chain.
#[test]
fn large_over_small() {
    let mut vm = vm();
    for page in 0..512 {
        vm.map(M2 + page * 4096, page * 4096 * 3, Level::Page4K, Perm::RWX).unwrap();
    }
    set_bits(&vm, M2 + 7 * 4096, D);
    assert_eq!(vm.map(M2, 8 * M2, Level::Page2M, Perm::RWX), Ok(Mapped::Changed));
    assert_eq!((vm.dropped.len(), vm.free.len()), (512, 1));
    let dirty: Vec<u64> = vm.dropped.iter().filter(|l| l.dirty).map(|l| l.gpa).collect();
    assert_eq!(dirty, [M2 + 7 * 4096]);
    assert_eq!(vm.slat.counts(), Counts { tables: 3, pages_4k: 0, pages_2m: 1, pages_1g: 0 });
    vm.finish();
}

/// A 1G leaf over others is refused, because it could be a quarter of a million entries; once they are zapped it works.
#[test]
fn huge_over_small() {
    let mut vm = vm();
    vm.map(G + M2, M2, Level::Page2M, Perm::RWX).unwrap();
    assert_eq!(vm.map(G, G, Level::Page1G, Perm::RWX), Err(MapError::Occupied));
    assert!(vm.zap_steps(G, 2 * G, 100));
    assert_eq!(vm.map(G, G, Level::Page1G, Perm::RWX), Ok(Mapped::Fresh));
    vm.finish();
}

/// Write protection drops large leaves and leaves an empty directory behind, which is no obstacle to a 1G leaf.
#[test]
fn huge_over_empty_directory() {
    let mut vm = vm();
    vm.map(G + M2, M2, Level::Page2M, Perm::RWX).unwrap();
    assert_eq!(vm.protect(G, 2 * G, 5000), Swept { flush: true, next: None });
    assert_eq!(vm.map(G, G, Level::Page1G, Perm::RWX), Ok(Mapped::Changed));
    assert_eq!(vm.free.len(), 1);
    vm.finish();
}

/// Freeing an empty table needs a flush even when no leaf goes with it: the CPU caches links to tables as well.
#[test]
fn empty_directory_needs_flush() {
    let mut vm = vm();
    vm.map(G + M2, M2, Level::Page2M, Perm::RWX).unwrap();
    assert!(vm.protect(G, 2 * G, 5000).flush);
    assert_eq!(vm.zap(G, G + 4096, 5000), Swept { flush: true, next: None });
    assert_eq!((vm.free.len(), vm.slat.counts().tables), (2, 1));
    vm.finish();
}

/// A range that touches one byte of a 2M leaf takes the whole leaf: a notifier may not leave stale memory mapped.
#[test]
fn zap_touching() {
    let mut vm = vm();
    vm.map(M2, 8 * M2, Level::Page2M, Perm::RWX).unwrap();
    assert_eq!(vm.zap(0, M2, 5000), Swept { flush: false, next: None });
    assert_eq!(vm.zap(M2 + 5, M2 + 6, 5000), Swept { flush: true, next: None });
    assert_eq!(vm.lookup(M2), None);
    assert_eq!(vm.free.len(), 2, "directory and directory pointer table are empty now");
    assert_eq!(vm.zap(M2, M2, 5000), Swept { flush: false, next: None });
    vm.finish();
}

/// A table disappears with its last leaf, not earlier.
#[test]
fn zap_last_leaf() {
    let mut vm = vm();
    vm.map(0x1000, 0x1000, Level::Page4K, Perm::RWX).unwrap();
    vm.map(0x2000, 0x2000, Level::Page4K, Perm::RWX).unwrap();
    assert!(vm.zap(0x1000, 0x2000, 5000).flush);
    assert_eq!((vm.free.len(), vm.slat.counts().tables), (0, 4));
    assert!(vm.zap(0x2000, 0x3000, 5000).flush);
    assert_eq!((vm.free.len(), vm.slat.counts().tables), (3, 1));
    vm.finish();
}

/// The smallest budget still gets to the end, one entry at a time, and frees the tables that its steps emptied.
#[test]
fn budget_of_nothing() {
    let mut vm = vm();
    for page in 0..700 {
        vm.map(page * 4096, page * 4096, Level::Page4K, Perm::RWX).unwrap();
    }
    assert!(vm.zap_steps(0, 700 * 4096, 0));
    assert_eq!((vm.dropped.len(), vm.free.len()), (700, 4));
    vm.finish();
}

/// A budget is an upper bound of entries looked at.
#[test]
fn budget_is_a_bound() {
    let mut vm = vm();
    for page in 0..512 {
        vm.map(page * 4096, page * 4096, Level::Page4K, Perm::RWX).unwrap();
    }
    let swept = vm.zap(0, M2, 100);
    assert_eq!((swept, vm.dropped.len()), (Swept { flush: true, next: Some(100 * 4096) }, 100));
    let aged = vm.slat.age_range(&vm.frames, 0, M2, true, 101);
    assert_eq!(aged, Aged { young: true, next: Some(101 * 4096) });
    vm.finish();
}

/// Aging: young once, old until the guest touches the page again. Dirty bits survive.
#[test]
fn aging() {
    let mut vm = vm();
    vm.map(0x5000, 0x9000, Level::Page4K, Perm::RWX).unwrap();
    set_bits(&vm, 0x5000, D);
    let age = |vm: &Vm<Npt>, clear| vm.slat.age_range(&vm.frames, 0x5000, 0x6000, clear, 100).young;
    assert!(age(&vm, false) && age(&vm, true) && !age(&vm, true) && !age(&vm, false));
    set_bits(&vm, 0x5000, A);
    assert!(age(&vm, true));
    assert!(!vm.slat.age_range(&vm.frames, 0x6000, G, true, 100_000).young);
    assert!(vm.lookup(0x5000).unwrap().dirty);
    vm.finish();
}

/// An Intel CPU without accessed bits: everything is young, dirty means writable, and no reserved bit is written.
#[test]
fn without_accessed_bits() {
    let mut vm = Vm::new(Ept::new(false, true), 4, 16);
    vm.map(0x5000, 0x9000, Level::Page4K, Perm::RX).unwrap();
    assert!(vm.slat.age_range(&vm.frames, 0, M2, true, 5000).young);
    let before = vm.lookup(0x5000).unwrap();
    assert!((before.accessed, before.dirty) == (true, false));
    assert_eq!(vm.map(0x5000, 0x9000, Level::Page4K, Perm::RWX), Ok(Mapped::Widened));
    assert!(vm.lookup(0x5000).unwrap().dirty);
    vm.finish();
}

/// A dirty log starts: 4K leaves become read-only, large ones go; a second time nothing is left to do.
#[test]
fn write_protect() {
    let mut vm = vm();
    vm.map(0x5000, 0x9000, Level::Page4K, Perm::RWX).unwrap();
    vm.map(M2, 8 * M2, Level::Page2M, Perm::RWX).unwrap();
    vm.map(2 * M2, 9 * M2, Level::Page2M, Perm::RX).unwrap();
    set_bits(&vm, 0x5000, D);
    assert_eq!(vm.protect(0, G, 100_000), Swept { flush: true, next: None });
    let leaf = vm.lookup(0x5000).unwrap();
    assert_eq!((leaf.perm, leaf.dirty), (Perm::RX, true));
    assert_eq!((vm.lookup(M2), vm.dropped.len()), (None, 1));
    assert_eq!(vm.lookup(2 * M2).unwrap().level, Level::Page2M, "not writable, so nothing to protect");
    assert_eq!(vm.protect(0, G, 100_000), Swept { flush: false, next: None });
    assert_eq!(vm.slat.counts(), Counts { tables: 4, pages_4k: 1, pages_2m: 1, pages_1g: 0 });
    vm.finish();
}

/// One word of a dirty bitmap across the border of two page tables.
#[test]
fn protect_mask() {
    let mut vm = vm();
    let base = M2 - 32 * 4096;
    for page in 0..64 {
        vm.map(base + page * 4096, page * 4096, Level::Page4K, Perm::RWX).unwrap();
    }
    let mask = 1 << 63 | 1 << 32 | 1 << 31 | 1;
    let mut none = |_| panic!("only 4K leaves");
    assert!(vm.slat.write_protect_mask(&vm.frames, base, mask, &mut none));
    assert!(!vm.slat.write_protect_mask(&vm.frames, base, mask, &mut none));
    assert!(!vm.slat.write_protect_mask(&vm.frames, G, u64::MAX, &mut none));
    assert!(!vm.slat.write_protect_mask(&vm.frames, u64::MAX, u64::MAX, &mut none));
    for page in 0..64 {
        assert_eq!(vm.lookup(base + page * 4096).unwrap().perm.write, mask >> page & 1 == 0);
    }
    vm.finish();
}

/// The encryption bit of the host is in every entry, tables included, and never in an address that comes out.
#[test]
fn sme() {
    let sme = 1 << 47;
    let mut vm = Vm::new(Npt { sme_mask: sme, reserved: 1 << 51 }, 4, 16);
    vm.map(0x5000, 0x9000, Level::Page4K, Perm::RWX).unwrap();
    assert_eq!(vm.lookup(0x5000).unwrap().hpa, 0x9000);
    for table in &vm.frames.live {
        for entry in vm.frames.arena.page(*table) {
            let entry = entry.load(Ordering::Relaxed);
            assert!(entry == 0 || entry & sme != 0);
        }
    }
    vm.finish();
}

/// Before `init` every operation is a harmless nothing, and a second root is refused.
#[test]
fn no_root() {
    let mut vm = vm();
    let mut slat: Slat<Npt> = bytemuck::Zeroable::zeroed();
    let want =
        Mapping { gpa: 0, hpa: 0, level: Level::Page4K, perm: Perm::RX, memtype: MemType::Wb, dirty: false };
    assert_eq!(slat.map(&mut vm.frames, &want, &mut vm.free, &mut |_| ()), Err(MapError::OutOfRange));
    assert!(!slat.age_range(&vm.frames, 0, u64::MAX, true, 1).young);
    assert_eq!((slat.lookup(&vm.frames, 0), slat.root_hpa()), (None, 0));
    assert!(slat.take_root(&vm.frames).is_none());
    let page = vm.frames.take().unwrap();
    let page = vm.slat.init(Npt::default(), 4, page).unwrap_err();
    vm.frames.give_back(page);
    vm.map(0, 0, Level::Page4K, Perm::RWX).unwrap();
    assert!(vm.slat.take_root(&vm.frames).is_none(), "still in use");
    vm.finish();
}

/// Code runs from small pages while large ones are data (iTLB multihit): a fetch splits, and a later data access next to it
/// must not merge again, or the two would take turns for ever.
#[test]
fn small_leaves_are_kept() {
    let mut vm = vm();
    vm.slat.keep_small();
    let data = Perm { write: true, exec: false };
    assert_eq!(vm.map(0, G, Level::Page2M, data), Ok(Mapped::Fresh));
    assert_eq!(vm.map(0x5000, G + 0x5000, Level::Page4K, Perm::RWX), Ok(Mapped::Changed));
    assert_eq!(vm.map(0x6000, G + 0x6000, Level::Page2M, data), Err(MapError::Occupied));
    assert_eq!(vm.map(0x6000, G + 0x6000, Level::Page4K, Perm::RWX), Ok(Mapped::Fresh));
    assert_eq!(vm.lookup(0x5000).unwrap().perm, Perm::RWX);
    // A table that a zap has emptied is no reason to stay small.
    assert_eq!(vm.zap(0, M2, 1000).next, None);
    assert!(vm.map(0, G, Level::Page2M, data).is_ok());
    vm.finish();
}

/// One of two large leaves goes: their table stays, and it is the leaf that asks for the flush.
#[test]
fn a_large_leaf_alone_needs_a_flush() {
    let mut vm = vm();
    for gpa in [0, M2] {
        vm.map(gpa, 8 * M2 + gpa, Level::Page2M, Perm::RWX).unwrap();
    }
    let swept = vm.zap(0, 2 * M2, 1);
    assert_eq!(
        (swept.flush, swept.next, vm.dropped.len()),
        (true, Some(M2), 1),
        "one entry for a budget of one"
    );
    let swept = vm.zap(0, M2, 100);
    assert_eq!((swept.flush, swept.next), (false, None), "nothing was there any more");
    assert!(vm.lookup(M2).is_some() && vm.free.is_empty());
    assert!(vm.zap(M2, 2 * M2, 100).flush);
    assert!(!vm.free.is_empty(), "the empty tables wait for the flush");
    vm.finish();
}

/// An entry that is not present, whoever wrote it, is no leaf: nothing is reported, nothing is counted.
#[test]
fn garbage_is_no_leaf() {
    let mut vm = vm();
    for page in 0..2 {
        vm.map(page * 4096, 0x9000 + page * 4096, Level::Page4K, Perm::RWX).unwrap();
    }
    set_bits(&vm, 0x1000, D);
    let mut table = vm.slat.root_hpa();
    for _ in 0..3 {
        table = vm.frames.arena.page(table)[0].load(Ordering::Relaxed) & Npt::ADDRESS;
    }
    vm.frames.arena.page(table)[2].store(0x7000, Ordering::Relaxed);
    assert!(vm.zap(0, M2, 1000).flush);
    assert_eq!(vm.dropped.iter().map(|leaf| leaf.gpa).collect::<Vec<_>>(), [0, 0x1000]);
    vm.finish();
}

/// The word of a dirty bitmap that reaches behind what the tables can say: address 0 is not meant.
#[test]
fn protect_mask_ends_with_the_tables() {
    let mut vm = vm();
    vm.map(0, 0x9000, Level::Page4K, Perm::RWX).unwrap();
    let end = 1 << 48;
    assert!(!vm.slat.write_protect_mask(&vm.frames, end - 4096, 0b110, &mut |_| ()));
    assert_eq!(vm.lookup(0).unwrap().perm, Perm::RWX);
}

/// A mark is no mapping: hardware faults at it, nobody counts it, sweeps leave it alone. Memory takes its place, and a zap
/// removes it without a flush. Where something is mapped, nothing is marked.
#[test]
fn marks() {
    marks_of(Npt { sme_mask: 0, reserved: 1 << 51 });
    marks_of(Ept::new(true, true));
    let mut vm = Vm::new(Npt::default(), 4, 16);
    assert_eq!(vm.slat.mark_device(&mut vm.frames, G), Ok(false), "no bit is reserved");
    assert_eq!(vm.slat.counts().tables, 1);
    vm.finish();
}

fn marks_of<F: Format + Default>(format: F) {
    let mut vm = Vm::new(format, 4, 16);
    let entry = |vm: &Vm<F>, gpa: u64| {
        let mut table = vm.slat.root_hpa();
        for level in (1..4).rev() {
            let entry =
                vm.frames.arena.page(table)[(gpa >> (12 + 9 * level)) as usize & 511].load(Ordering::Relaxed);
            table = format.address(entry, Level::Page4K);
        }
        vm.frames.arena.page(table)[(gpa >> 12) as usize & 511].load(Ordering::Relaxed)
    };
    vm.map(G, G, Level::Page4K, Perm::RWX).unwrap();
    vm.map(2 * G, G, Level::Page2M, Perm::RWX).unwrap();
    let before = vm.slat.counts();
    for gpa in [G + 4096, G + 8192 + 5] {
        assert_eq!(vm.slat.mark_device(&mut vm.frames, gpa), Ok(true));
        assert_eq!(Some(entry(&vm, gpa)), format.device_mark());
        assert!(!format.is_present(entry(&vm, gpa)));
        assert_eq!(vm.lookup(gpa), None);
    }
    assert_eq!(vm.slat.counts(), before);
    assert_eq!(vm.slat.mark_device(&mut vm.frames, G + 1), Ok(false));
    assert_eq!(vm.slat.mark_device(&mut vm.frames, 2 * G + 4096), Ok(false));
    for gpa in [1 << 48, u64::MAX] {
        assert_eq!(vm.slat.mark_device(&mut vm.frames, gpa), Err(MapError::OutOfRange));
    }
    let swept = vm.protect(G + 4096, G + 8192, 100);
    assert_eq!((swept.flush, swept.next), (false, None));
    assert_eq!(Some(entry(&vm, G + 4096)), format.device_mark());
    assert_eq!(vm.map(G + 4096, 3 * G, Level::Page4K, Perm::RWX), Ok(Mapped::Fresh));
    assert_eq!(vm.lookup(G + 4096).unwrap().hpa, 3 * G);
    assert!(!vm.zap(G + 8192, G + 12288, 100).flush);
    assert_eq!(entry(&vm, G + 8192), 0);
    // A table of its own; a mark alone keeps it, until it goes.
    assert_eq!(vm.slat.mark_device(&mut vm.frames, 5 * G), Ok(true));
    assert!(vm.slat.counts().tables > before.tables);
    vm.finish();
    let mut vm = Vm::new(format, 4, 3);
    assert_eq!(vm.slat.mark_device(&mut vm.frames, G), Err(MapError::NeedFrames));
    assert_eq!(vm.slat.counts().tables, 1);
    vm.finish();
    let mut vm = Vm::new(format, 4, 4);
    assert_eq!(vm.slat.mark_device(&mut vm.frames, G), Ok(true), "just enough");
    vm.finish();
}

/// A log in hardware is told of a page when its dirty bit is set: clearing it is what write protection is without a log. Writes
/// stay allowed, large leaves go, and a leaf that is born dirty is not told of.
#[test]
fn dirty_bits_are_cleared_for_the_log() {
    let mut vm = Vm::new(Ept::new(true, true), 4, 16);
    let map = |vm: &mut Vm<Ept>, gpa: u64, perm: Perm, dirty: bool| {
        let want = Mapping { gpa, hpa: gpa, level: Level::Page4K, perm, memtype: MemType::Wb, dirty };
        vm.slat.map(&mut vm.frames, &want, &mut vm.free, &mut |_| ()).unwrap()
    };
    for page in 0..8 {
        map(&mut vm, page * 4096, Perm::RWX, page & 1 == 0);
    }
    map(&mut vm, 8 * 4096, Perm::RX, true);
    vm.map(G, G, Level::Page2M, Perm::RWX).unwrap();
    vm.map(2 * G, G, Level::Page2M, Perm::RX).unwrap();
    let dirty =
        |vm: &Vm<Ept>| (0..9).filter(|page| vm.lookup(page * 4096).unwrap().dirty).collect::<Vec<_>>();
    assert_eq!(dirty(&vm), [0, 2, 4, 6, 8]);
    assert!(vm.slat.clear_dirty_mask(&vm.frames, 0, 0b1101, &mut |_| ()));
    assert_eq!(dirty(&vm), [4, 6, 8]);
    assert!(!vm.slat.clear_dirty_mask(&vm.frames, 0, 0b1111, &mut |_| ()), "nothing changed: no flush");
    let mut gone = Vec::new();
    let swept = vm.slat.clear_dirty_range(&vm.frames, 0, 3 * G, 5000, &mut |leaf| gone.push(leaf.gpa));
    assert_eq!((swept.flush, gone), (true, Vec::from([G])));
    assert_eq!(dirty(&vm), []);
    assert!((0..8).all(|page| vm.lookup(page * 4096).unwrap().perm.write), "writes are still allowed");
    assert!(vm.lookup(2 * G).is_some(), "nothing can be written there");
    vm.finish();
}
