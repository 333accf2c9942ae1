//! The owner word under loom: the crate's own code on loom's memory, the thread against the callback.

use crate::owner::{Due, Home, Owner, Word};
use loom::sync::Arc;
use loom::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use loom::thread;

impl Word for AtomicU64 {
    fn load(&self) -> u64 {
        self.load(Ordering::Acquire)
    }
    fn store(&self, new: u64) {
        self.store(new, Ordering::Release);
    }
    fn exchange(&self, old: u64, new: u64) -> Result<u64, u64> {
        self.compare_exchange(old, new, Ordering::AcqRel, Ordering::Acquire)
    }
    fn pause() {
        thread::yield_now();
    }
}

struct World {
    owner: Owner<AtomicU64>,
    /// The posted vectors, as the descriptor has them.
    vectors: AtomicU32,
    asked: AtomicU32,
}

impl World {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            owner: Owner::new(AtomicU64::new(0)),
            vectors: AtomicU32::new(0),
            asked: AtomicU32::new(0),
        })
    }

    /// As the callback in `linux/module`, at this moment.
    fn fires(&self, tsc: u64) {
        match self.owner.take_due(tsc, 0) {
            Due::Post => {
                // Not release: what makes the vector show is the word.
                self.vectors.fetch_add(1, Ordering::Relaxed);
                self.owner.posted();
            }
            Due::Ask => {
                self.asked.fetch_add(1, Ordering::Release);
            }
            Due::Nothing | Due::Wait(_) => {}
        }
    }
}

/// Cancelled while it fires: the vector comes once and the thread knows, or it does not come.
#[test]
fn cancelled_or_fired() {
    loom::model(|| {
        let w = World::new();
        w.owner.give(Home::Posted(160), true);
        let callback = {
            let w = w.clone();
            thread::spawn(move || w.fires(200))
        };
        let found = w.owner.give(Home::Nobody, true);
        // What the thread knows has happened shows, so that it can be saved.
        let seen = w.vectors.load(Ordering::Relaxed);
        assert!(!found.fired || seen == 1, "fired, and no vector shows");
        callback.join().unwrap();
        let vectors = w.vectors.load(Ordering::Relaxed);
        assert_eq!(vectors, u32::from(found.fired), "lost, or more than there was to fire");
        assert_eq!(w.asked.load(Ordering::Relaxed), 0);
    });
}

/// Replaced by a later deadline while the callback of the first runs, late: never early for the second, and whoever is taken
/// for it is asked to look.
#[test]
fn replaced_while_it_fires() {
    loom::model(|| {
        let w = World::new();
        w.owner.give(Home::Posted(160), true);
        let callback = {
            let w = w.clone();
            thread::spawn(move || w.fires(200))
        };
        let found = w.owner.give(Home::Posted(320), true);
        callback.join().unwrap();
        let (vectors, asked) = (w.vectors.load(Ordering::Relaxed), w.asked.load(Ordering::Relaxed));
        assert_eq!(vectors, u32::from(found.fired));
        // The second is still there, or the thread is to look.
        let there = w.owner.is_posted() && !w.owner.has_fired();
        assert!(there || asked == 1, "the second is lost");
        w.fires(320);
        assert_eq!(w.vectors.load(Ordering::Relaxed), vectors + u32::from(there));
    });
}

/// The thread is asked once for each arming that came due, or gets to know that nothing is queued any more.
#[test]
fn asked_or_gone() {
    loom::model(|| {
        let w = World::new();
        w.owner.give(Home::Host, true);
        let callback = {
            let w = w.clone();
            thread::spawn(move || w.fires(200))
        };
        // To the CPU; the host's timer is left queued, and is to serve the next sleep.
        let first = w.owner.give(Home::Cpu, true);
        let second = w.owner.give(Home::Host, true);
        callback.join().unwrap();
        let asked = w.asked.load(Ordering::Relaxed);
        let gone = first.gone || second.gone;
        assert!(gone || asked == 1, "the host's timer fired, and nobody knows");
        assert!(!(asked == 1 && !gone && w.owner.is_host()), "asked, and still counted on");
    });
}

/// From one kind of host timer to the other while it fires: exactly one of vector and question.
#[test]
fn switched_while_it_fires() {
    for to_posted in [true, false] {
        loom::model(move || {
            let w = World::new();
            let homes = [Home::Host, Home::Posted(160)];
            w.owner.give(homes[usize::from(!to_posted)], true);
            let callback = {
                let w = w.clone();
                thread::spawn(move || w.fires(200))
            };
            let found = w.owner.give(homes[usize::from(to_posted)], true);
            callback.join().unwrap();
            let (vectors, asked) = (w.vectors.load(Ordering::Relaxed), w.asked.load(Ordering::Relaxed));
            assert_eq!(vectors + asked, 1, "lost or doubled");
            // Before the switch the thread knows by what it found, behind it by the word.
            assert!(!found.fired || vectors == 1);
            assert!(asked == 0 || found.gone || !w.owner.is_host());
        });
    }
}

/// Moments are rounded up: never early. Far ones stay far.
#[test]
fn moments() {
    loom::model(|| {
        for at in [1u64, 15, 16, 17, 12345, u64::MAX >> 1] {
            let w = World::new();
            w.owner.give(Home::Posted(at), false);
            assert_eq!(w.owner.take_due(at - 1, 0), Due::Ask, "{at}: early, and nobody waits");
            w.owner.give(Home::Posted(at), false);
            assert!(matches!(w.owner.take_due(at - 1, 100), Due::Wait(1..=16)), "{at}");
            assert_eq!(w.owner.take_due(at + 15, 0), Due::Post, "{at}");
            w.owner.posted();
            assert!(w.owner.has_fired());
            let found = w.owner.give(Home::Nobody, false);
            assert!(found.fired && found.gone);
        }
    });
}
