//! Random histories of map, zap, protect, age and hardware accesses, against a model that is a plain list of leaves.

use std::collections::BTreeMap;
use std::vec::Vec;

use proptest::prelude::*;

use super::frames::Vm;
use super::hardware::access;
use crate::*;

/// The model of a leaf, by its first gpa.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Page {
    level: Level,
    hpa: u64,
    write: bool,
    accessed: bool,
    dirty: bool,
}

#[derive(Clone, Debug)]
enum Op {
    Map { gpa: u64, hpa: u64, level: Level, write: bool },
    Zap { start: u64, end: u64, budget: u32 },
    Protect { start: u64, end: u64, budget: u32 },
    Mask { gpa: u64, mask: u64 },
    Age { start: u64, end: u64, clear: bool },
    Access { gpa: u64, write: bool },
    Flush,
}

#[derive(Default)]
struct Model {
    leaves: BTreeMap<u64, Page>,
}

impl Model {
    fn covering(&self, gpa: u64) -> Option<(u64, Page)> {
        let (&base, &page) = self.leaves.range(..=gpa).next_back()?;
        (gpa - base < page.level.size()).then_some((base, page))
    }

    fn touching(&self, start: u64, end: u64) -> Vec<u64> {
        self.leaves
            .iter()
            .filter(|(base, page)| **base < end && start < **base + page.level.size())
            .map(|(base, _)| *base)
            .collect()
    }

    fn map(&mut self, gpa: u64, hpa: u64, level: Level, write: bool) -> Result<bool, ()> {
        let base = level.base(gpa);
        let hpa = level.base(hpa);
        let fresh = Page { level, hpa, write, accessed: true, dirty: false };
        if let Some((at, old)) = self.covering(base).filter(|(_, old)| old.level >= level) {
            let same = old.hpa + (base - at) == hpa;
            if same && (old.write || !write) {
                return Ok(false);
            }
            let dirty = same && old.level == level && old.dirty;
            self.leaves.remove(&at);
            self.leaves.insert(base, Page { dirty, ..fresh });
            return Ok(true);
        }
        let smaller = self.touching(base, base + level.size());
        if !smaller.is_empty() && level == Level::Page1G {
            return Err(());
        }
        self.leaves.retain(|at, _| !smaller.contains(at));
        self.leaves.insert(base, fresh);
        Ok(true)
    }

    fn protect(&mut self, at: u64) {
        match self.leaves.get_mut(&at) {
            Some(page) if page.level == Level::Page4K => page.write = false,
            Some(page) if page.write => {
                self.leaves.remove(&at);
            }
            _ => {}
        }
    }
}

const SPAN: u64 = 4 << 30;

fn run<F: Format + Default>(format: F, levels: u32, ops: Vec<Op>) -> Result<(), TestCaseError> {
    let mut vm = Vm::new(format, levels, 4096);
    let mut model = Model::default();
    let ad = format.accessed_mask() != 0;
    for op in ops {
        step(&mut vm, &mut model, op)?;
        let counts = vm.slat.counts();
        let count = |level| model.leaves.values().filter(|p| p.level == level).count() as u64;
        prop_assert_eq!(counts.pages_4k, count(Level::Page4K));
        prop_assert_eq!(counts.pages_2m, count(Level::Page2M));
        prop_assert_eq!(counts.pages_1g, count(Level::Page1G));
        prop_assert_eq!(counts.tables as usize + vm.free.len(), vm.frames.live.len());
    }
    for (&base, page) in &model.leaves {
        for gpa in [base, base + page.level.size() - 1] {
            let leaf = vm.lookup(gpa);
            prop_assert!(leaf.is_some(), "{base:x} {page:?}");
            let leaf = leaf.unwrap();
            prop_assert_eq!((leaf.gpa, leaf.hpa, leaf.level), (base, page.hpa, page.level));
            prop_assert_eq!(leaf.perm.write, page.write);
            if ad {
                prop_assert_eq!((leaf.accessed, leaf.dirty), (page.accessed, page.dirty));
            }
        }
    }
    vm.dropped.clear();
    let dropped = vm.finish();
    prop_assert_eq!(dropped.len(), model.leaves.len());
    Ok(())
}

fn step<F: Format + Default>(vm: &mut Vm<F>, model: &mut Model, op: Op) -> Result<(), TestCaseError> {
    let ad = vm.slat.format().accessed_mask() != 0;
    match op {
        Op::Map { gpa, hpa, level, write } => {
            let got = vm.map(gpa, hpa, level, Perm { write, exec: true });
            let expect = model.map(gpa, hpa, level, write);
            prop_assert_eq!(got.is_err(), expect.is_err(), "{:?}", got);
            prop_assert_eq!(got == Ok(Mapped::Same), expect == Ok(false));
        }
        Op::Zap { start, end, budget } => {
            vm.dropped.clear();
            vm.zap_steps(start, end, budget);
            let gone = model.touching(start, end);
            let dropped: Vec<u64> = vm.dropped.iter().map(|l| l.gpa).collect();
            prop_assert_eq!(&dropped, &gone);
            for (at, leaf) in gone.iter().zip(&vm.dropped) {
                let page = model.leaves.remove(at).unwrap();
                prop_assert_eq!((leaf.hpa, leaf.level), (page.hpa, page.level));
                prop_assert!(!ad || (leaf.accessed, leaf.dirty) == (page.accessed, page.dirty));
            }
        }
        Op::Protect { start, end, budget } => {
            let mut at = Some(start);
            while let Some(from) = at {
                at = vm.protect(from, end, budget).next;
            }
            model.touching(start, end).into_iter().for_each(|base| model.protect(base));
        }
        Op::Mask { gpa, mask } => {
            vm.slat.write_protect_mask(&vm.frames, gpa & !0xfff, mask, &mut |_| ());
            for bit in (0..64).filter(|bit| mask >> bit & 1 != 0) {
                if let Some((base, _)) = model.covering((gpa & !0xfff) + bit * 4096) {
                    model.protect(base);
                }
            }
        }
        Op::Age { start, end, clear } => {
            let aged = vm.slat.age_range(&vm.frames, start, end, clear, u32::MAX);
            let touched = model.touching(start, end);
            let young = touched.iter().any(|at| model.leaves[at].accessed || !ad);
            prop_assert_eq!(aged, Aged { young, next: None });
            if clear {
                touched.iter().for_each(|at| model.leaves.get_mut(at).unwrap().accessed = false);
            }
        }
        Op::Access { gpa, write } => {
            let format = *vm.slat.format();
            let got = access(&format, &vm.frames.arena, vm.slat.root_hpa(), vm.slat.levels(), gpa, write);
            let hit = model.covering(gpa).filter(|(_, page)| page.write || !write);
            prop_assert_eq!(got.map(|hit| hit.0), hit.map(|(base, page)| page.hpa + (gpa - base)));
            if let Some((base, _)) = hit {
                let page = model.leaves.get_mut(&base).unwrap();
                page.accessed = true;
                page.dirty |= write;
            }
        }
        Op::Flush => vm.frames.empty(&mut vm.free),
    }
    Ok(())
}

/// Addresses that meet each other: a few pages in a few 2M blocks in a few 1G blocks.
fn gpa() -> impl Strategy<Value = u64> {
    (0u64..4, prop_oneof![0u64..3, 509u64..512], prop_oneof![0u64..4, 508u64..512], 0u64..4096)
        .prop_map(|(g, m, k, byte)| g << 30 | m << 21 | k << 12 | byte)
}

fn range() -> impl Strategy<Value = (u64, u64)> {
    prop_oneof![
        (gpa(), gpa()).prop_map(|(a, b)| (a.min(b), a.max(b))),
        gpa().prop_map(|a| (a & !0xfff, (a & !0xfff) + 4096)),
        gpa().prop_map(|a| (a & !(M2 - 1), (a & !(M2 - 1)) + M2)),
        Just((0, SPAN)),
    ]
}
const M2: u64 = 2 << 20;

fn op() -> impl Strategy<Value = Op> {
    let level = prop_oneof![6 => Just(Level::Page4K), 3 => Just(Level::Page2M), 1 => Just(Level::Page1G)];
    let budget = prop_oneof![0u32..4, 100u32..2000];
    prop_oneof![
        // Identity or one fixed offset, so that equal memory meets equal memory across sizes.
        10 => (gpa(), any::<bool>(), level, any::<bool>()).prop_map(|(gpa, off, level, write)| {
            Op::Map { gpa, hpa: gpa + if off { 8 << 30 } else { 0 }, level, write }
        }),
        3 => (range(), budget.clone()).prop_map(|((start, end), budget)| Op::Zap { start, end, budget }),
        2 => (range(), budget).prop_map(|((start, end), budget)| Op::Protect { start, end, budget }),
        1 => (gpa(), any::<u64>()).prop_map(|(gpa, mask)| Op::Mask { gpa, mask }),
        2 => (range(), any::<bool>()).prop_map(|((start, end), clear)| Op::Age { start, end, clear }),
        6 => (gpa(), any::<bool>()).prop_map(|(gpa, write)| Op::Access { gpa, write }),
        1 => Just(Op::Flush),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(120))]

    /// NPT, four levels.
    #[test]
    fn npt(ops in prop::collection::vec(op(), 1..60)) {
        run(Npt::default(), 4, ops)?;
    }

    /// EPT with accessed and dirty bits, five levels.
    #[test]
    fn ept(ops in prop::collection::vec(op(), 1..60)) {
        run(Ept::new(true, true), 5, ops)?;
    }

    /// EPT of a CPU without accessed and dirty bits.
    #[test]
    fn ept_plain(ops in prop::collection::vec(op(), 1..60)) {
        run(Ept::new(false, false), 4, ops)?;
    }
}
