//! The rules of the ioctl one by one, then random histories against a naive model.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;
use std::vec;
use std::vec::Vec;

use proptest::prelude::*;

use crate::*;

const LIMITS: Limits = Limits { max_slots: MAX_SLOTS, phys_bits: 40 };
const EINVAL: i32 = 22;
const EEXIST: i32 = 17;
const MIB: u64 = 1 << 20;

fn region(slot: u32, flags: u32, gpa: u64, size: u64, hva: u64) -> Region {
    Region { slot, flags, guest_phys_addr: gpa, memory_size: size, userspace_addr: hva }
}

/// Plans and applies, as the ioctl does.
fn set(table: &mut Vec<Slot>, region: Region) -> Result<Change, Refusal> {
    let change = plan(table, &region, &LIMITS)?;
    let mut out = vec![Slot::default(); table.len() + 1];
    let len = apply(table, &change, &mut out).expect("room for one more");
    out.truncate(len);
    assert!(Table::new(&out).is_well_formed(), "{out:x?}");
    *table = out;
    Ok(change)
}

fn errno(table: &mut Vec<Slot>, region: Region) -> i32 {
    set(table, region).map_or_else(Refusal::errno, |_| 0)
}

/// One slot of 1 MiB at 1 MiB.
fn one() -> Vec<Slot> {
    let mut table = vec![];
    set(&mut table, region(0, 0, MIB, MIB, 0x7000_0000)).unwrap();
    table
}

/// Every malformed region gets EINVAL, whatever the table holds.
#[test]
fn malformed_regions() {
    let bad = [
        region(1 << 16, 0, 0, 0x1000, 0),
        region(MAX_SLOTS, 0, 0, 0x1000, 0),
        region(1, 4, 0, 0x1000, 0),
        region(1, 0, 0x800, 0x1000, 0),
        region(1, 0, 0, 0x1800, 0),
        region(1, 0, 0, 0x1000, 1),
        // The same bits in two of them.
        region(1, 0, 0x800, 0x1800, 0),
        region(1, 0, 0, 0x1800, 0x800),
        region(1, 0, u64::MAX - 0xfff, 0x2000, 0),
        region(1, 0, 1 << 40, 0x1000, 0),
        region(1, 0, (1 << 40) - 0x1000, 0x2000, 0),
        region(1, 0, 0, 0x2000, u64::MAX - 0xfff),
        region(1, 0, 0, 0x1000 << 31, 0),
    ];
    for bad in bad {
        assert_eq!(errno(&mut one(), bad), EINVAL, "{bad:x?}");
    }
    let wide = Limits { max_slots: 2, phys_bits: 52 };
    assert_eq!(plan(&[], &region(1, 0, 0, 0x1000 << 31, 0), &wide), Err(Refusal::TooManyPages));
    assert!(plan(&[], &region(1, 0, 0, 0x1000 * change::MAX_SLOT_PAGES, 0), &wide).is_ok());
}

/// The last page below MAXPHYADDR is usable, and so is the highest slot number.
#[test]
fn limits_are_inclusive() {
    assert_eq!(errno(&mut vec![], region(MAX_SLOTS - 1, 0, (1 << 40) - 0x1000, 0x1000, 0)), 0);
}

/// A CPU with 52 bits and tables of four levels: a slot above 2^48 was taken, and its first access ended KVM_RUN with EFAULT.
#[test]
fn tables_limit_too() {
    for (width, held, bits) in [(52, 48, 48), (52, 52, 52), (48, 48, 48), (46, 52, 46), (40, 48, 40)] {
        let limits = Limits::new(MAX_SLOTS, width, held);
        let last = (1 << bits) - 0x1000;
        assert!(plan(&[], &region(0, 0, last, 0x1000, 0), &limits).is_ok(), "{width} {held}");
        for beyond in [region(0, 0, last, 0x2000, 0), region(0, 0, 1 << bits, 0x1000, 0)] {
            assert_eq!(plan(&[], &beyond, &limits), Err(Refusal::OutOfRange), "{width} {held}");
        }
    }
}

/// Deleting what is not there is an error: VMMs probe KVM_CAP_DESTROY_MEMORY_REGION_WORKS semantics with it.
#[test]
fn delete() {
    let mut table = one();
    assert_eq!(errno(&mut table, region(7, 0, 0, 0, 0)), EINVAL);
    assert_eq!(set(&mut table, region(0, 0, 0, 0, 0)), Ok(Change::Delete { index: 0 }));
    assert!(table.is_empty());
    assert_eq!(errno(&mut table, region(0, 0, 0, 0, 0)), EINVAL);
}

/// An existing slot keeps its size, its host address and its READONLY flag.
#[test]
fn forbidden_changes() {
    for (bad, why) in [
        (region(0, 0, MIB, 2 * MIB, 0x7000_0000), Refusal::SizeChanged),
        (region(0, 0, MIB, MIB, 0x7000_1000), Refusal::HvaChanged),
        (region(0, 2, MIB, MIB, 0x7000_0000), Refusal::ReadOnlyChanged),
    ] {
        assert_eq!(set(&mut one(), bad), Err(why));
        assert_eq!(why.errno(), EINVAL);
    }
}

/// Guest ranges exclude each other by every page; host ranges do not.
#[test]
fn overlap() {
    let mut table = one();
    for gpa in [MIB, 2 * MIB - 0x1000, MIB - 0x1000] {
        assert_eq!(errno(&mut table, region(1, 0, gpa, 0x2000, 0)), EEXIST, "{gpa:x}");
    }
    assert_eq!(errno(&mut table, region(1, 0, 0, 4 * MIB, 0)), EEXIST);
    assert_eq!(errno(&mut table, region(1, 0, 2 * MIB, MIB, 0x7000_0000)), 0);
    assert_eq!(errno(&mut table, region(1, 0, MIB, MIB, 0x7000_0000)), EEXIST);
}

/// A slot may move onto a range that overlaps its own old one.
#[test]
fn move_onto_itself() {
    let mut table = one();
    let change = set(&mut table, region(0, 0, MIB + 0x1000, MIB, 0x7000_0000)).unwrap();
    assert!(matches!(change, Change::Move { index: 0, .. }));
    assert_eq!(table[0].base_gfn, 0x101);
}

/// The same region again changes nothing: QEMU does it at every reset.
#[test]
fn identical() {
    let mut table = one();
    assert_eq!(set(&mut table, region(0, 0, MIB, MIB, 0x7000_0000)), Ok(Change::Nothing));
    assert_eq!(table, one());
}

/// The life of a dirty bitmap: wanted when logging starts, kept over a move, dropped when logging ends or the slot goes.
#[test]
fn bitmap_life() {
    let mut table = one();
    let log = region(0, 1, MIB, MIB, 0x7000_0000);
    let mut change = plan(&table, &log, &LIMITS).unwrap();
    assert_eq!(change.needs_bitmap(), Some(256));
    assert_eq!(change.write_protect(&table), Some(GfnRange { start: 256, end: 512 }));
    assert_eq!((change.zap(&table), change.drops_bitmap(&table)), (None, None));
    change.new_slot_mut().unwrap().dirty = 99;
    let mut out = [Slot::default(); 2];
    assert_eq!(apply(&table, &change, &mut out), Some(1));
    table = out[..1].to_vec();
    assert_eq!(plan(&table, &log, &LIMITS), Ok(Change::Nothing), "the handle is no difference");

    let change = set(&mut table, region(0, 1, 4 * MIB, MIB, 0x7000_0000)).unwrap();
    assert_eq!((change.needs_bitmap(), table[0].dirty), (None, 99));
    assert_eq!(change.drops_bitmap(&table), None, "the table that is published now refers to it");

    let stop = plan(&table, &region(0, 0, 4 * MIB, MIB, 0x7000_0000), &LIMITS).unwrap();
    assert_eq!((stop.drops_bitmap(&table), stop.write_protect(&table)), (Some(99), None));
    let delete = plan(&table, &region(0, 0, 0, 0, 0), &LIMITS).unwrap();
    assert_eq!(delete.drops_bitmap(&table), Some(99));
    assert_eq!(delete.zap(&table), Some(GfnRange { start: 1024, end: 1280 }));
}

/// Memory appears where a slot is created or moved to; flags and deletions bring none.
#[test]
fn where_memory_appears() {
    let table = one();
    let appears = |r: &Region| plan(&table, r, &LIMITS).unwrap().appears();
    let (mega, base) = (MIB >> 12, table[0].base_gfn);
    let old = region(0, 0, base << 12, table[0].npages << 12, table[0].hva);
    assert_eq!(appears(&region(1, 0, 64 * MIB, MIB, 0)), Some(GfnRange { start: 64 * mega, end: 65 * mega }));
    let moved = Region { guest_phys_addr: 64 * MIB, ..old };
    assert_eq!(appears(&moved), Some(GfnRange { start: 64 * mega, end: 64 * mega + table[0].npages }));
    assert_eq!(appears(&Region { flags: 1, ..old }), None);
    assert_eq!(appears(&Region { memory_size: 0, ..old }), None);
    assert_eq!(appears(&old), None);
}

/// `apply` refuses memory that is too short and changes of another table, instead of losing slots.
#[test]
fn apply_refuses() {
    let table = one();
    let create = plan(&table, &region(1, 0, 0, MIB, 0), &LIMITS).unwrap();
    assert_eq!(apply(&table, &create, &mut [Slot::default(); 1]), None);
    assert_eq!(apply(&[], &Change::Delete { index: 0 }, &mut [Slot::default(); 1]), None);
}

/// `left` counts to the end of the slot, and READONLY shows.
#[test]
fn hva_span() {
    let mut table = one();
    set(&mut table, region(1, 2, 2 * MIB, MIB, 0x9000_0000)).unwrap();
    let table = Table::new(&table);
    assert_eq!(table.hva(2 * MIB - 5), Some(HvaSpan { hva: 0x7000_0000 + MIB - 5, left: 5, writable: true }));
    assert_eq!(table.hva(2 * MIB), Some(HvaSpan { hva: 0x9000_0000, left: MIB, writable: false }));
    assert_eq!(table.hva(3 * MIB), None);
    assert_eq!(table.hva(u64::MAX), None);
}

/// A slot ends where it ends, for every way to ask.
#[test]
fn slots_are_found_by_what_they_hold() {
    let mut slots = one();
    set(&mut slots, region(3, 0, 8 * MIB, 0x2000, 0x9000_0000)).unwrap();
    let table = Table::new(&slots);
    assert_eq!(table.find_id(3), Some(&slots[1]));
    assert_eq!(table.find_id(0), Some(&slots[0]));
    assert_eq!(table.find_id(1), None);
    assert_eq!(slots[1].hva_of(0x801), Some(0x9000_1000));
    assert_eq!((slots[1].hva_of(0x802), slots[1].hva_of(0x7ff)), (None, None));
}

/// What the histories below hold tables to is no empty promise.
#[test]
fn malformed_tables_are_told() {
    let slot = |base_gfn, npages| Slot { base_gfn, npages, ..Slot::default() };
    let well = |slots: &[Slot]| Table::new(slots).is_well_formed();
    assert!(well(&[]) && well(&[slot(4, 4), slot(8, 1)]));
    assert!(!well(&[slot(8, 1), slot(4, 4)]), "sorted");
    assert!(!well(&[slot(4, 5), slot(8, 1)]), "apart");
    assert!(!well(&[slot(4, 4), slot(8, 0)]), "not empty");
}

/// A notifier range that touches one byte of a page concerns the page; one host page can sit in two slots.
#[test]
fn hva_ranges_alias() {
    let mut table = one();
    set(&mut table, region(1, 0, 8 * MIB, 0x2000, 0x7000_1000)).unwrap();
    let table = Table::new(&table);
    let hits: Vec<_> =
        table.find_hva_range(0x7000_1fff, 0x7000_2001).map(|(s, r)| (s.id, r.start, r.end)).collect();
    assert_eq!(hits, [(0, 0x101, 0x103), (1, 0x800, 0x802)]);
    assert_eq!(table.find_hva_range(0, u64::MAX).count(), 2);
    assert_eq!(table.find_hva_range(0x7000_1000, 0x7000_1000).count(), 0);
}

/// CLEAR_DIRTY_LOG takes whole words, except at the end of the slot.
#[test]
fn clear_request() {
    for (first, num, pages, ok) in [
        (0, 64, 200, true),
        (64, 136, 200, true),
        (64, 135, 200, false),
        (64, 137, 200, false),
        (1, 64, 200, false),
        (192, 8, 200, true),
        (256, 0, 200, false),
        (128, 0, 128, true),
        (0, 0, 200, true),
        (0, u64::MAX, 200, false),
    ] {
        assert_eq!(ClearRequest::check(first, num, pages).is_some(), ok, "{first} {num} {pages}");
    }
    let tail = ClearRequest::check(64, 136, 200).unwrap();
    assert_eq!((tail.mask(0), tail.mask(1), tail.mask(3), tail.mask(4)), (0, u64::MAX, 0xff, 0));
}

/// Two vCPUs that write the same pages at once: no mark is lost, and each page is new to exactly one of them.
#[test]
fn dirty_marks_once() {
    for _ in 0..50 {
        let words: Vec<AtomicU64> = (0..64).map(|_| AtomicU64::new(0)).collect();
        let map = DirtyBitmap::new(&words, 64 * 64 - 10);
        let line = std::sync::Barrier::new(2);
        let mark = || {
            line.wait();
            (0..64 * 64).map(|page| map.mark(page) as u64).sum::<u64>()
        };
        let new: u64 = std::thread::scope(|scope| {
            let threads = [scope.spawn(mark), scope.spawn(mark)];
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert_eq!(new, 64 * 64 - 10, "the last ten pages are outside");
        assert!((0..63).all(|word| map.take(word) == u64::MAX));
        assert_eq!((map.take(63), map.take(64), map.take(0)), (u64::MAX >> 10, 0, 0));
    }
}

/// GET_DIRTY_LOG copies whole words: eight bytes for every 64 pages begun.
#[test]
fn bitmaps_are_whole_words() {
    let words = [0, 1, 64, 65, 128].map(DirtyBitmap::words_for);
    assert_eq!(words, [0, 1, 1, 2, 2]);
}

/// Reading and clearing see the slot's bits, and no ghosts behind its end.
#[test]
fn marks_are_exact() {
    let words: Vec<AtomicU64> = (0..3).map(|_| AtomicU64::new(0)).collect();
    let map = DirtyBitmap::new(&words, 65);
    assert_eq!((0..200).filter(|page| map.mark(*page)).count(), 65);
    assert_eq!([0, 1, 2].map(|w| map.peek(w)), [u64::MAX, 1, 0]);
    assert_eq!(map.clear(1, u64::MAX), 1);
    assert_eq!(map.clear(0, 0b101), 0b101);
    assert_eq!(map.peek(0), !0b101);
}

/// A bitmap shorter than the slot (a caller's mistake) loses marks but touches nothing else.
#[test]
fn short_bitmap() {
    let words = [AtomicU64::new(0)];
    let map = DirtyBitmap::new(&words, 1000);
    assert!(!map.mark(64));
    assert_eq!(map.clear(5, u64::MAX) | map.take(5) | map.peek(u64::MAX), 0);
}

/// The naive model: every guest page with its owner.
#[derive(Default)]
struct Model {
    slots: BTreeMap<u32, (u64, u64, u64, u32)>,
}

impl Model {
    fn set(&mut self, r: &Region) -> i32 {
        let (gfn, pages) = (r.guest_phys_addr / 4096, r.memory_size / 4096);
        let wanted = (gfn, pages, r.userspace_addr, r.flags);
        match self.slots.get(&r.slot) {
            None if pages == 0 => return EINVAL,
            Some(_) if pages == 0 => {
                self.slots.remove(&r.slot);
                return 0;
            }
            Some(&(_, p, h, f)) if p != pages || h != r.userspace_addr || (f ^ r.flags) & 2 != 0 => {
                return EINVAL;
            }
            _ => {}
        }
        if (gfn..gfn + pages).any(|g| self.owner(g).is_some_and(|id| id != r.slot)) {
            return EEXIST;
        }
        self.slots.insert(r.slot, wanted);
        0
    }

    fn owner(&self, gfn: u64) -> Option<u32> {
        self.slots.iter().find(|(_, s)| (s.0..s.0 + s.1).contains(&gfn)).map(|(id, _)| *id)
    }
}

fn any_region() -> impl Strategy<Value = Region> {
    // Few numbers, so that slots meet each other.
    (0u32..5, 0u32..4, 0u64..40, 0u64..8, 0u64..4)
        .prop_map(|(slot, flags, gfn, pages, hva)| region(slot, flags, gfn << 12, pages << 12, hva << 14))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Any history of calls gives the same answers, owners, host addresses and notifier hits as the model.
    #[test]
    fn history(regions in prop::collection::vec(any_region(), 1..40), probe in (0u64..20, 0u64..20)) {
        let (mut table, mut model) = (vec![], Model::default());
        for r in regions {
            let before = table.clone();
            let got = errno(&mut table, r);
            prop_assert_eq!(got, model.set(&r), "{:x?} on {:x?}", r, before);
            prop_assert!(got == 0 || table == before);
            let view = Table::new(&table);
            prop_assert_eq!(view.slots().len(), model.slots.len());
            for gfn in 0..50 {
                let owner = model.owner(gfn);
                prop_assert_eq!(view.find(gfn).map(|s| s.id), owner);
                let hva = owner.map(|id| model.slots[&id]).map(|s| s.2 + ((gfn - s.0) << 12));
                prop_assert_eq!(view.hva(gfn << 12).map(|s| s.hva), hva);
            }
        }
        let (start, end) = (probe.0 << 12, (probe.0 + probe.1) << 12);
        let mut hits: Vec<(u32, u64)> = Table::new(&table)
            .find_hva_range(start, end)
            .flat_map(|(s, r)| (r.start..r.end).map(|g| (s.id, g)))
            .collect();
        hits.sort();
        let expect: Vec<(u32, u64)> = model.slots.iter()
            .flat_map(|(&id, s)| (0..s.1).map(move |p| (id, s.0 + p, s.2 + (p << 12))))
            .filter(|&(_, _, hva)| hva >= start && hva < end)
            .map(|(id, gfn, _)| (id, gfn))
            .collect();
        prop_assert_eq!(hits, expect);
    }

    /// No 64-bit garbage makes planning or applying misbehave.
    #[test]
    fn garbage(slot: u32, flags: u32, gpa: u64, size: u64, hva: u64, bits in 0u32..80) {
        let table = one();
        let limits = Limits { max_slots: u32::MAX, phys_bits: bits };
        for mask in [u64::MAX, !0xfff] {
            let r = region(slot & 0x1ffff, flags & 7, gpa & mask, size & mask, hva & mask);
            if let Ok(change) = plan(&table, &r, &limits) {
                let mut out = [Slot::default(); 2];
                let len = apply(&table, &change, &mut out).unwrap();
                prop_assert!(Table::new(&out[..len]).is_well_formed());
                for s in &out[..len] {
                    let last = s.gfns().end - 1;
                    let span = Table::new(&out[..len]).hva((last << 12) | 0xfff).unwrap();
                    prop_assert_eq!(span.left, 1);
                }
            }
        }
    }
}
