//! The owner word under loom: the crate's own code on loom's memory, the thread against the callback.

use crate::owner::{Due, Home, Owner, Word};
use loom::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence};
use loom::sync::{Arc, Mutex};
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
    /// What the host's timer is queued for.
    queued: Mutex<u64>,
}

impl World {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            owner: Owner::new(AtomicU64::new(0)),
            vectors: AtomicU32::new(0),
            asked: AtomicU32::new(0),
            queued: Mutex::new(0),
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
            Due::Later { at, .. } => {
                *self.queued.lock().unwrap() = at;
                if !self.owner.is_still(at) {
                    self.asked.fetch_add(1, Ordering::Release);
                }
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
            let Due::Later { at: then, left } = w.owner.take_due(at - 1, 0) else { panic!("{at}: early") };
            assert!(then >= at && left == then - (at - 1) && w.owner.is_still(then), "{at}");
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

/// The callback comes early and queues the timer anew, while the thread starts it for a nearer moment: the nearer one is queued, or the
/// thread is asked.
#[test]
fn queued_anew_while_it_is_started() {
    loom::model(|| {
        let w = World::new();
        w.owner.give(Home::Posted(320), true);
        let callback = {
            let w = w.clone();
            thread::spawn(move || w.fires(100))
        };
        let found = w.owner.give(Home::Posted(160), true);
        *w.queued.lock().unwrap() = 160;
        callback.join().unwrap();
        assert!(!found.gone && !found.fired && w.vectors.load(Ordering::Relaxed) == 0);
        let queued = *w.queued.lock().unwrap();
        assert!(queued == 160 || w.asked.load(Ordering::Relaxed) == 1, "late, and nobody knows");
    });
}

/// The host's timer as `linux/c/helpers/hrtimer.c` starts it: by the thread here, or by a call to another CPU, one at a time.
struct Started {
    /// What it is queued for, under its lock.
    queued: Mutex<u64>,
    newest: AtomicU64,
    call_busy: AtomicBool,
    /// Calls that are on their way or run.
    calls: AtomicU32,
    freed: AtomicBool,
}

impl Started {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            queued: Mutex::new(0),
            newest: AtomicU64::new(0),
            call_busy: AtomicBool::new(false),
            calls: AtomicU32::new(0),
            freed: AtomicBool::new(false),
        })
    }

    /// `ex_timer_queue`; the call may be made again as soon as it begins.
    fn called(&self) {
        self.call_busy.store(false, Ordering::Release);
        loop {
            let expires = self.newest.load(Ordering::Relaxed);
            *self.queued.lock().unwrap() = expires;
            fence(Ordering::SeqCst);
            if self.newest.load(Ordering::Relaxed) == expires {
                break;
            }
        }
        assert!(!self.freed.load(Ordering::Relaxed), "freed under a call");
        self.calls.fetch_sub(1, Ordering::Release);
    }

    /// `ex_timer_free`.
    fn free(&self) {
        while self.calls.load(Ordering::Acquire) != 0 {
            thread::yield_now();
        }
        self.freed.store(true, Ordering::Relaxed);
    }

    /// `ex_timer_start`.
    fn here(&self, expires: u64) {
        self.newest.store(expires, Ordering::Relaxed);
        *self.queued.lock().unwrap() = expires;
    }

    /// `ex_timer_start_elsewhere`.
    fn elsewhere(t: &Arc<Self>, expires: u64) -> Option<thread::JoinHandle<()>> {
        t.newest.store(expires, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        let busy = t.call_busy.load(Ordering::Relaxed);
        (!busy).then(|| {
            t.call_busy.store(true, Ordering::Relaxed);
            t.calls.fetch_add(1, Ordering::Relaxed);
            let t = t.clone();
            thread::spawn(move || t.called())
        })
    }
}

/// Started here or elsewhere while a call is on its way: it is queued for the newest time when all is quiet, never for an older one.
#[test]
fn the_newest_start_counts() {
    for here in [true, false] {
        loom::model(move || {
            let t = Started::new();
            let first = Started::elsewhere(&t, 2);
            let second = if here {
                t.here(1);
                None
            } else {
                Started::elsewhere(&t, 1)
            };
            first.into_iter().chain(second).for_each(|call| call.join().unwrap());
            assert_eq!(*t.queued.lock().unwrap(), 1);
        });
    }
}

/// Whoever frees it waits for each call, also for one that was made again while another ran. (That a call has begun, which is all that
/// its being busy or another call to that CPU tells, is not enough.)
#[test]
fn freed_behind_all_calls() {
    // All interleavings take minutes.
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(|| {
        let t = Started::new();
        let calls = [Started::elsewhere(&t, 2), Started::elsewhere(&t, 1)];
        t.free();
        calls.into_iter().flatten().for_each(|call| call.join().unwrap());
    });
}
