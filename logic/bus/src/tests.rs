use super::*;
use proptest::prelude::*;
use std::vec::Vec;

/// Small ranges, so that keys meet.
fn keys() -> impl Strategy<Value = Key> {
    let lens = prop::sample::select(&[0u32, 1, 2, 4, 8][..]);
    (any::<bool>(), 0u64..4, lens, any::<bool>(), 0u64..3).prop_map(|(pio, addr, len, matches, data)| {
        let matches = matches && len != 0;
        Key { pio, addr, len, matches, data: if matches { data } else { 0 } }
    })
}

fn writes() -> impl Strategy<Value = Write> {
    let lens = prop::sample::select(&[1u32, 2, 3, 4, 8][..]);
    (any::<bool>(), 0u64..4, lens, 0u64..3).prop_map(|(pio, addr, len, data)| Write { pio, addr, len, data })
}

/// The rule of KVM_IOEVENTFD, as its documentation says it.
fn hit(k: &Key, w: &Write) -> bool {
    k.pio == w.pio && k.addr == w.addr && (k.len == 0 || k.len == w.len) && (!k.matches || k.data == w.data)
}

/// A table as it comes to be: what collides is refused.
fn table(wanted: &[Key]) -> Vec<Key> {
    let mut table: Vec<Key> = Vec::new();
    for k in wanted {
        if !table.iter().any(|t| t.collides(k)) {
            table.push(*k);
        }
    }
    table.sort();
    table
}

proptest! {
    /// Halving finds what looking at each finds, and never more than one is there to be found.
    #[test]
    fn halving_finds_what_looking_finds(wanted in prop::collection::vec(keys(), 0..40), w in writes()) {
        let table = table(&wanted);
        let all: Vec<_> = table.iter().filter(|k| hit(k, &w)).collect();
        prop_assert!(all.len() <= 1);
        prop_assert_eq!(find(&table, |k| *k, &w), all.first().copied());
        let any = table.iter().find(|k| !k.pio && k.any() && k.addr == w.addr);
        prop_assert_eq!(find_any(&table, |k| *k, w.addr), any);
    }

    /// Keys collide if and only if some write is both's.
    #[test]
    fn collisions_are_common_writes(a in keys(), b in keys()) {
        let lens = [1u32, 2, 3, 4, 8];
        let common = lens.iter().any(|&len| (0..3).any(|data| {
            let w = Write { pio: a.pio, addr: a.addr, len, data };
            hit(&a, &w) && hit(&b, &w)
        }));
        prop_assert_eq!(a.collides(&b), common);
        prop_assert_eq!(b.collides(&a), common);
    }
}

/// Bytes become the number that the data is compared with.
#[test]
fn bytes_become_a_number() {
    assert_eq!(Write::new(true, 5, &[1, 2]), Write { pio: true, addr: 5, len: 2, data: 0x201 });
    assert_eq!(Write::new(false, 5, &[0xff; 8]).data, u64::MAX);
}

/// A thousand queues: no more than ten keys are looked at.
#[test]
fn a_thousand_keys_cost_ten_looks() {
    let table: Vec<_> = (0..1024).map(|n| Key { addr: n * 4, ..Key::default() }).collect();
    let looks = std::cell::Cell::new(0);
    let counted = |k: &Key| {
        looks.set(looks.get() + 1);
        *k
    };
    assert_eq!(find(&table, counted, &Write::new(false, 4000, &[0; 2])).map(|k| k.addr), Some(4000));
    assert!(looks.get() <= 12, "{}", looks.get());
}

/// The same of each pair of a few keys, so that no chance decides which are tried.
#[test]
fn every_pair_of_a_few() {
    let mut all = Vec::new();
    for pio in [false, true] {
        for addr in [0, 4] {
            for (len, matches, data) in
                [(0, false, 0), (2, false, 0), (2, true, 0), (2, true, 1), (4, false, 0), (4, true, 1)]
            {
                all.push(Key { pio, addr, len, matches, data });
            }
        }
    }
    for a in &all {
        for b in &all {
            let common = [1, 2, 4].iter().any(|&len| {
                (0..3).any(|data| {
                    let w = Write { pio: a.pio, addr: a.addr, len, data };
                    hit(a, &w) && hit(b, &w)
                })
            });
            assert_eq!(a.collides(b), common, "{a:?} {b:?}");
        }
    }
}
