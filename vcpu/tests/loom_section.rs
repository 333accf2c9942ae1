//! The read section of `section.rs` under loom's weak memory model: a replaced table is never freed under a reader, and each
//! ordering is needed: without it loom finds the use after free.
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
}

const REAL: Rules = Rules { publish_look: true, announce_load: true };

struct World {
    table: AtomicUsize,
    freed: [AtomicBool; 3],
    changes: AtomicU64,
    section: AtomicU64,
    rules: Rules,
}

impl World {
    fn new(rules: Rules) -> Arc<Self> {
        Arc::new(Self {
            table: AtomicUsize::new(0),
            freed: std::array::from_fn(|_| AtomicBool::new(false)),
            changes: AtomicU64::new(0),
            section: AtomicU64::new(0),
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
        self.section.store(0, Ordering::Release);
    }

    /// Publishes and frees the old table if the vCPU has left; gives up otherwise (the real one waits).
    fn replace(&self, new: usize) {
        let old = self.table.swap(new, Ordering::AcqRel);
        let change = self.changes.fetch_add(1, Ordering::AcqRel) + 1;
        if self.rules.publish_look {
            fence(Ordering::SeqCst);
        }
        let section = self.section.load(Ordering::Acquire);
        if section == 0 || section > change {
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
}
