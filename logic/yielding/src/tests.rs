//! Order, bound and fairness of the choice.

use crate::{Few, Hints, Rotation, Seen, WINDOW};
use proptest::prelude::*;
use std::cell::Cell;
use std::collections::BTreeSet;
use std::vec::Vec;

const USER: Seen = Seen { interrupt: false, in_kernel: false, spinning: false };
const KERNEL: Seen = Seen { in_kernel: true, ..USER };
const SPINNER: Seen = Seen { spinning: true, ..KERNEL };
const INTERRUPT: Seen = Seen { interrupt: true, ..USER };

/// A rotation whose next look counts ranks.
fn ranked() -> Rotation {
    let r = Rotation::default();
    r.choose(0, 1, None, |_| None);
    r
}

fn tried(few: Few) -> Vec<usize> {
    few.iter().collect()
}

/// Who has an interrupt to take, then who got the spinner's IPI, then who was in the kernel, then the user's code, then who spins.
#[test]
fn the_best_first() {
    let vcpus = [USER, SPINNER, KERNEL, INTERRUPT, USER, USER];
    let look = |i: usize| Some(vcpus[i]);
    assert_eq!(tried(ranked().choose(5, 6, None, look)), [3, 2, 0]);
    assert_eq!(tried(ranked().choose(5, 6, Some(4), look)), [3, 4, 2]);
    assert_eq!(
        tried(ranked().choose(3, 6, Some(3), look)),
        [2, 0, 4],
        "never itself, whatever it sent to itself"
    );
    let only = |which: usize| move |i: usize| (i == which).then_some(vcpus[i]);
    for i in 0..5 {
        assert_eq!(
            tried(ranked().choose(5, 6, None, only(i))),
            [i],
            "whoever is ready is better than nobody"
        );
    }
    assert_eq!(tried(ranked().choose(5, 6, None, |_| None)), [0; 0]);
}

/// The scheduler may not follow a yield, and whoever got it is as ready as before: the next spinner tries the next of the same rank, not
/// the same one again and again (which left a guest beside another at two thirds of the work that stock KVM lets it do).
#[test]
fn of_equals_the_next() {
    let r = ranked();
    let first = || r.choose(0, 4, None, |_| Some(INTERRUPT)).iter().next();
    assert_eq!([first(), first(), first()], [Some(1), Some(2), Some(3)]);
}

/// A receiver beyond the window of a big VM is found all the same; one that is no vCPU of it is not.
#[test]
fn the_receiver_beyond_the_window() {
    let look = |i: usize| Some(if i == 700 { USER } else { KERNEL });
    assert_eq!(tried(ranked().choose(0, 1024, Some(700), look))[0], 700);
    let look = |i: usize| (i < 1024).then_some(KERNEL);
    assert!(ranked().choose(0, 1024, Some(5000), look).iter().all(|i| i < 1024));
}

/// What they show: ready from when the CPU is lost, or from being woken, until the thread has one again.
#[test]
fn hints() {
    let h = Hints::default();
    h.left(false);
    assert!(!h.is_ready(), "asleep");
    h.woken();
    assert!(h.is_ready());
    h.came();
    assert!(!h.is_ready());
    h.left(true);
    assert!(h.is_ready());
    h.came_out(true);
    h.spins(true);
    assert_eq!(Seen::of(&h, || false), Some(SPINNER));
    h.came();
    assert_eq!(Seen::of(&h, || panic!("asked of one that is not ready")), None);
    h.sent_to(7);
    assert_eq!((h.take_receiver(), h.take_receiver()), (Some(7), None));
}

proptest! {
    /// Never the spinner, never one that is not ready, none twice, at most three; and a look costs no more than the window and the
    /// receiver, in a VM of 1024 too.
    #[test]
    fn bounded(
        len in 0usize..1025, me in 0usize..1024, receiver in prop::option::of(0usize..2000),
        ready in prop::collection::vec(any::<Option<(bool, bool, bool)>>(), 1024), looks in 1usize..20,
    ) {
        let r = Rotation::default();
        for _ in 0..looks {
            let asked = Cell::new(0);
            let few = tried(r.choose(me, len, receiver, |i| {
                asked.set(asked.get() + 1);
                assert!(i < len);
                ready[i].map(|(interrupt, in_kernel, spinning)| Seen { interrupt, in_kernel, spinning })
            }));
            prop_assert!(asked.get() <= WINDOW + 1);
            prop_assert!(few.len() <= 3);
            prop_assert!(few.iter().all(|&i| i != me && ready[i].is_some()));
            prop_assert_eq!(few.iter().collect::<BTreeSet<_>>().len(), few.len());
            let in_window = (0..len.min(WINDOW)).any(|i| i != me && ready[i].is_some());
            prop_assert!(len > WINDOW || few.is_empty() != in_window, "somebody, if anybody is");
        }
    }

    /// Whoever stays ready is tried, whatever the others' ranks and whoever else comes and goes.
    #[test]
    fn fair(len in 2usize..1025, me in 0usize..1024, poor in 0usize..1024, noise in any::<u64>()) {
        let (me, poor) = (me % len, poor % len);
        prop_assume!(me != poor);
        let r = Rotation::default();
        let found = (0..4 * len + 4).any(|turn| {
            let others = |i: usize| {
                let x = (noise ^ (i as u64) << 32 ^ turn as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 61;
                (x != 0).then_some(INTERRUPT)
            };
            // It is the worst there is.
            let look = |i: usize| if i == poor { Some(SPINNER) } else { others(i) };
            r.choose(me, len, None, look).iter().any(|i| i == poor)
        });
        prop_assert!(found);
    }
}
