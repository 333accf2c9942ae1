//! The read section of `section.rs` under loom's weak memory model: a replaced table is never freed under a reader, no writer sleeps
//! for ever, and each rule is needed: without it loom finds the use after free, or the sleeper.
//!
//! A model with each rule as a switch, like `tests/loom.rs`. Tables are numbers that name a cell of `freed`.

use loom::sync::Arc;
use loom::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering, fence};
use loom::thread;

#[derive(Clone, Copy)]
struct Rules {
    /// Writer: a fence between publication and its look at the section.
    publish_look: bool,
    /// Owner: a fence between announcement and the first load.
    announce_load: bool,
    /// Owner: leaves and sees the mark in one step.
    leave_looks: bool,
    /// Writer: marks only what it has looked at.
    mark_compares: bool,
    /// Writer: asks whom it marks, and not whom an earlier look found inside.
    asks_whom_it_marks: bool,
}

const REAL: Rules = Rules {
    publish_look: true,
    announce_load: true,
    leave_looks: true,
    mark_compares: true,
    asks_whom_it_marks: true,
};
const AWAITED: u64 = 1 << 63;

struct World {
    table: AtomicUsize,
    freed: [AtomicBool; 3],
    changes: AtomicU64,
    section: AtomicU64,
    /// How often a writer went to sleep, and was woken.
    asleep: AtomicUsize,
    woken: AtomicUsize,
    /// How often a vCPU was asked to leave: nobody else makes a guest that never exits come out.
    asked: AtomicUsize,
    rules: Rules,
}

impl World {
    fn new(rules: Rules) -> Arc<Self> {
        Arc::new(Self {
            table: AtomicUsize::new(0),
            freed: std::array::from_fn(|_| AtomicBool::new(false)),
            changes: AtomicU64::new(0),
            section: AtomicU64::new(0),
            asleep: AtomicUsize::new(0),
            woken: AtomicUsize::new(0),
            asked: AtomicUsize::new(0),
            rules,
        })
    }

    fn use_table(&self) {
        self.section.store(self.changes.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        if self.rules.announce_load {
            fence(Ordering::SeqCst);
        }
        let table = self.table.load(Ordering::Acquire);
        assert!(!self.freed[table].load(Ordering::Relaxed), "a freed table is used");
        let section = if self.rules.leave_looks {
            self.section.swap(0, Ordering::AcqRel)
        } else {
            let section = self.section.load(Ordering::Acquire);
            self.section.store(0, Ordering::Release);
            section
        };
        if section & AWAITED != 0 {
            self.woken.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The look that marks; `true`: the vCPU has left.
    fn left_or_tells(&self, change: u64) -> bool {
        loop {
            let section = self.section.load(Ordering::Acquire);
            if section == 0 || section & !AWAITED > change {
                return true;
            }
            if !self.rules.mark_compares {
                self.section.fetch_or(AWAITED, Ordering::AcqRel);
                self.asleep.fetch_add(1, Ordering::Relaxed);
                self.asked.fetch_add(1, Ordering::Relaxed);
                return false;
            }
            let marked = section | AWAITED;
            if section == marked {
                return false;
            }
            if self.section.compare_exchange(section, marked, Ordering::AcqRel, Ordering::Acquire).is_ok() {
                self.asleep.fetch_add(1, Ordering::Relaxed);
                if self.rules.asks_whom_it_marks {
                    self.asked.fetch_add(1, Ordering::Relaxed);
                }
                return false;
            }
        }
    }

    /// Publishes and frees the old table if the vCPU has left; goes to sleep otherwise, and the story ends for it.
    fn replace(&self, new: usize) {
        let old = self.table.swap(new, Ordering::AcqRel);
        let change = self.changes.fetch_add(1, Ordering::AcqRel) + 1;
        if self.rules.publish_look {
            fence(Ordering::SeqCst);
        }
        if !self.rules.asks_whom_it_marks {
            let section = self.section.load(Ordering::Acquire);
            if section != 0 && section & !AWAITED <= change {
                self.asked.fetch_add(1, Ordering::Relaxed);
            }
        }
        if self.left_or_tells(change) {
            self.freed[old].store(true, Ordering::Relaxed);
        }
    }
}

fn explore(model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(model);
}

/// A vCPU that goes through sections, a writer that changes the table.
fn race(rules: Rules, sections: usize, changes: usize) {
    explore(move || {
        let w = World::new(rules);
        let writer = {
            let w = w.clone();
            thread::spawn(move || (1..=changes).for_each(|n| w.replace(n)))
        };
        (0..sections).for_each(|_| w.use_table());
        writer.join().unwrap();
        let (asleep, woken) = (w.asleep.load(Ordering::Relaxed), w.woken.load(Ordering::Relaxed));
        assert_eq!(asleep, woken, "a writer sleeps, and every section has been left");
        assert!(
            w.asked.load(Ordering::Relaxed) >= asleep,
            "a writer sleeps until a vCPU leaves that nobody has asked"
        );
    });
}

fn must_fail(what: &str, model: impl Fn() + std::panic::UnwindSafe) {
    assert!(std::panic::catch_unwind(model).is_err(), "loom does not need: {what}");
}

#[test]
fn no_table_is_freed_under_its_reader() {
    race(REAL, 1, 1);
    race(REAL, 2, 1);
    race(REAL, 2, 2);
}

#[test]
fn every_rule_is_needed() {
    must_fail("the writer's fence", || race(Rules { publish_look: false, ..REAL }, 1, 1));
    must_fail("the owner's fence", || race(Rules { announce_load: false, ..REAL }, 1, 1));
    must_fail("the owner's exchange", || race(Rules { leave_looks: false, ..REAL }, 1, 1));
    must_fail("the writer's comparison", || race(Rules { mark_compares: false, ..REAL }, 1, 1));
    must_fail("asking with the mark", || race(Rules { asks_whom_it_marks: false, ..REAL }, 1, 1));
}
