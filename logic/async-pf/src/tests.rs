use super::*;
use exitless_pv_abi::{KVM_ASYNC_PF_DELIVERY_AS_INT, KVM_ASYNC_PF_ENABLED, KVM_ASYNC_PF_SEND_ALWAYS};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::vec::Vec;

/// Told at CPL 3 only, unless always; never with paging off, nor without the interrupt that would tell of the page's coming.
#[test]
fn who_is_told() {
    let user = Guest { cpl: 3, paging: true };
    let kernel = Guest { cpl: 0, paging: true };
    let on = KVM_ASYNC_PF_ENABLED | KVM_ASYNC_PF_DELIVERY_AS_INT;
    for (msr, told_user, told_kernel) in [
        (0, false, false),
        (KVM_ASYNC_PF_ENABLED, false, false),
        (KVM_ASYNC_PF_ENABLED | KVM_ASYNC_PF_SEND_ALWAYS, false, false),
        (KVM_ASYNC_PF_DELIVERY_AS_INT | KVM_ASYNC_PF_SEND_ALWAYS, false, false),
        (on, true, false),
        (on | KVM_ASYNC_PF_SEND_ALWAYS, true, true),
    ] {
        let wish = Wish(0x1000 | msr);
        assert_eq!((wish.takes(user), wish.takes(kernel)), (told_user, told_kernel), "{msr:#x}");
        assert!(!wish.takes(Guest { paging: false, ..user }));
        assert_eq!(wish.area(), 0x1000);
    }
    // CPL 1 and 2 are not the kernel's.
    assert!(Wish(on).takes(Guest { cpl: 1, paging: true }));
}

/// A token is never 0 (a free word) nor all ones (everybody), and two pages on their way never have the same.
#[test]
fn tokens() {
    for id in [0, 0xfff] {
        let mut pages = Pages::default();
        let mut last = 0;
        for n in 0..0x10_0010u32 {
            let place = pages.begin(0x1000, 0, id).unwrap();
            let token = pages.tell(place).unwrap();
            assert!(token != 0 && token != WAKE_ALL && token & 0xfff == id);
            assert!(token > last || n == 0xf_fffe, "{n:#x}");
            last = token;
            pages.cancel(place);
        }
    }
}

/// A worker that got nothing: the next fault of its page is not given to another one, which would go on for ever. Those of other pages are.
#[test]
fn a_page_that_was_refused_is_waited_for() {
    let mut pages = Pages::default();
    let place = pages.begin(0x1000, 0x5000, 0).unwrap();
    let bit = 1 << place;
    assert_eq!(pages.take_quiet(bit, bit), Some(Ended { place, gpa: 0x5000, token: None }));
    assert_eq!(pages.begin(0x1000, 0x5000, 0), None);
    assert!(pages.begin(0x1000, 0x5000, 0).is_some(), "once");
    let mut pages = Pages::default();
    let place = pages.begin(0x1000, 0x5000, 0).unwrap();
    let _ = pages.take_quiet(1 << place, 1 << place);
    assert!(pages.begin(0x2000, 0x6000, 0).is_some());
    assert_eq!(pages.begin(0x1000, 0x5000, 0), None, "another page's fault came between");
}

/// Of each such page it is known, also of two in turn: otherwise a guest that is told, and goes from one to the other, never hears of the
/// error. More than there are places for: of most.
#[test]
fn pages_that_are_refused_in_turn() {
    for n in [2, MOST as u64, MOST as u64 + 1] {
        let mut pages = Pages::default();
        let mut waited = 0;
        for round in 0..2 {
            for hva in (0..n).map(|i| 0x1000 + (i << 12)) {
                match pages.begin(hva, hva, 0) {
                    Some(place) => {
                        let _ = pages.tell(place);
                        assert!(pages.take_told(1 << place, 1 << place).is_some(), "round {round}");
                    }
                    None => waited += 1,
                }
            }
        }
        assert!(waited >= n.min(MOST as u64 - 1), "{waited} of {n}");
    }
}

/// One user takes half of the workers, not all; what one gives back is the next one's.
#[test]
fn something_is_left_for_others() {
    let pot = Pot::new();
    let all = |user| (0..1000).take_while(|_| pot.take(user)).count();
    assert_eq!(all(0), 256);
    assert_eq!(all(1000), 128);
    // The owners of user namespaces' usual ranges.
    assert_eq!((all(100_000), all(165_536)), (64, 32));
    pot.give(165_536);
    assert!(pot.take(165_536) && !pot.take(165_536) && !pot.take(0));
    (0..256).for_each(|_| pot.give(0));
    assert!(pot.take(0));
}

/// The vCPU waits for its page, not for any: woken by another one's end it would fault again and again.
#[test]
fn waits_for_its_own_page() {
    let mut pages = Pages::default();
    let first = pages.begin(0x1000, 0, 0).unwrap();
    let second = pages.begin(0x2000, 0, 0).unwrap();
    assert!(pages.is_there(0), "nobody waits");
    pages.wait_for(second);
    assert!(pages.waits() && !pages.is_there(0) && !pages.is_there(1 << first));
    assert!(pages.is_there(1 << second));
    let _ = pages.take_quiet(1 << second, 0);
    assert!(pages.is_there(0), "taken before it was looked for");
    pages.go_on();
    assert!(!pages.waits());
}

/// What the guest does not know of ends without it, even while its word is not free; what was told before a reset is not told behind it.
#[test]
fn forgotten() {
    let mut pages = Pages::default();
    let told = pages.begin(0x1000, 0, 0).unwrap();
    let quiet = pages.begin(0x2000, 0, 0).unwrap();
    let _ = pages.tell(told);
    let ended = 1 << told | 1 << quiet;
    assert_eq!(pages.take_quiet(ended, 0).map(|e| e.place), Some(quiet));
    assert_eq!(pages.take_quiet(ended, 0), None);
    assert!(pages.owes(ended) && !pages.owes(0));
    pages.owe_wake_all();
    assert!(pages.owes(0));
    pages.forget();
    assert!(!pages.owes(ended));
    assert_eq!(pages.find(0x1000), Some(told), "its worker lives");
    assert_eq!(pages.take_quiet(ended, 0).map(|e| e.place), Some(told));
    assert_eq!(pages.find(0x1000), None);
}

proptest! {
    /// Whatever happens in whatever order: each page that was told is told once more, or forgotten; no place has two workers; never more
    /// than [`MOST`].
    #[test]
    fn each_once(steps in proptest::collection::vec((0u8..6, 0u8..80), 0..400)) {
        let mut pages = Pages::default();
        let mut model = BTreeMap::new();
        let mut ended = 0u64;
        for (step, n) in steps {
            let hva = 0x10_0000 + (u64::from(n) << 12);
            match step {
                0 | 1 if pages.find(hva).is_none() => match pages.begin(hva, hva + 1, 5) {
                    Some(place) => {
                        let token = if step == 1 { pages.tell(place) } else { None };
                        prop_assert!(model.insert(place, (hva, token)).is_none());
                    }
                    None => prop_assert_eq!(model.len(), MOST),
                },
                2 | 3 => {
                    let running: Vec<u8> = model.keys().copied().filter(|p| ended & 1 << p == 0).collect();
                    if let Some(place) = running.get(usize::from(n) % running.len().max(1)) {
                        ended |= 1 << place;
                    }
                }
                4 => {
                    pages.forget();
                    model.values_mut().for_each(|(_, token)| *token = None);
                }
                _ => {
                    while let Some(e) = pages.take_quiet(ended, 0).or_else(|| pages.take_told(ended, 0)) {
                        ended &= !(1 << e.place);
                        let (hva, token) = model.remove(&e.place).unwrap();
                        prop_assert_eq!((e.gpa, e.token), (hva + 1, token));
                    }
                    prop_assert_eq!(ended, 0);
                }
            }
            for (place, (hva, _)) in &model {
                prop_assert_eq!(pages.find(*hva), Some(*place));
            }
        }
    }
}
