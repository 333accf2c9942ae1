//! The map against the slow way, which asks every vCPU; and its changes under loom.

use crate::map::Slot;
use crate::{Address, Claim, Claims, Map, PlainIpi, To, Whole};
use bytemuck::Zeroable;
use core::sync::atomic::{AtomicU16, Ordering};
use exitless_x86::apic::{DeliveryMode, Icr, InterruptMessage, Shorthand};
use proptest::prelude::*;
use std::boxed::Box;
use std::vec::Vec;

const VCPUS: usize = 1024;
/// In the map proper, and in all.
const LOW: usize = 256;
const IDS: usize = 4096;

/// A VM as both ways see it.
struct Vm {
    map: Box<Map<LOW>>,
    high: Vec<AtomicU16>,
    claims: Box<Claims<LOW>>,
    high_claims: Vec<Claim>,
    addresses: Vec<Address>,
}

impl Vm {
    fn new(addresses: impl IntoIterator<Item = Address>) -> Self {
        let high = (LOW..IDS).map(|_| AtomicU16::new(0)).collect();
        let mut vm = Self {
            map: Box::new(Map::zeroed()),
            high,
            claims: Box::new(Claims::zeroed()),
            high_claims: std::vec![Claim::default(); IDS - LOW],
            addresses: Vec::new(),
        };
        addresses.into_iter().for_each(|address| vm.add(address));
        vm
    }

    fn add(&mut self, address: Address) {
        self.addresses.push(Address::new());
        self.change(self.addresses.len() - 1, address);
    }

    fn change(&mut self, index: usize, address: Address) {
        let old = core::mem::replace(&mut self.addresses[index], address);
        let map = self.map.with(|| &self.high);
        map.update(&mut self.claims, &mut self.high_claims, index, old, address);
    }

    fn named(&self, m: &InterruptMessage, sender: Option<usize>, index: usize) -> bool {
        let address = self.addresses[index];
        match m.shorthand {
            Shorthand::None => address.names(m),
            Shorthand::SelfOnly => address.hw_enabled() && sender == Some(index),
            Shorthand::All => address.hw_enabled(),
            Shorthand::AllButSelf => address.hw_enabled() && sender != Some(index),
        }
    }

    /// Whom `m` names, found by asking every vCPU.
    fn slow(&self, m: &InterruptMessage, sender: Option<usize>) -> Vec<usize> {
        (0..self.addresses.len()).filter(|&index| self.named(m, sender, index)).collect()
    }

    /// Whom `m` names, found by the map; `None`: it cannot say.
    fn fast(&self, m: &InterruptMessage, sender: Option<usize>) -> Option<Vec<usize>> {
        let few = self.map.with(|| &self.high).resolve(m, sender, self.addresses.len())?;
        assert!(few.iter().all(|index| index < self.addresses.len()), "{m:?}: {few:?}");
        assert_eq!((few.iter().count(), few.nth(few.len())), (few.len(), None));
        let mut named: Vec<_> = few.iter().filter(|&index| self.named(m, sender, index)).collect();
        named.sort();
        assert!(named.windows(2).all(|pair| pair[0] != pair[1]), "nobody twice: {few:?}");
        Some(named)
    }
}

fn xapic(id: u32, xapic_id: u8) -> Address {
    Address::new().with_hw_enabled(true).with_x2apic_id(id).with_xapic_id(xapic_id)
}

fn flat(id: u32, logical_id: u8) -> Address {
    xapic(id, id as u8).with_flat(true).with_logical_id(logical_id)
}

fn cluster(id: u32, logical_id: u8) -> Address {
    xapic(id, id as u8).with_logical_id(logical_id)
}

fn x2apic(id: u32) -> Address {
    xapic(id, id as u8).with_x2apic(true)
}

fn to(destination: u32, logical: bool, x2apic: bool) -> InterruptMessage {
    InterruptMessage {
        destination,
        logical,
        mode: DeliveryMode::FIXED,
        vector: 0x40,
        level: false,
        assert: true,
        shorthand: Shorthand::None,
        x2apic,
    }
}

fn shorthand(shorthand: Shorthand) -> InterruptMessage {
    InterruptMessage { shorthand, ..to(0, false, false) }
}

/// What a device or an xAPIC can write as a destination, without broadcasts: all of it is looked up where no two vCPUs stand at
/// one place, in each model that a guest may choose.
#[test]
fn each_destination_of_one_byte() {
    let models = [
        Vm::new((0..8).map(|id| flat(id, 1 << id))),
        Vm::new((0..60).map(|id| cluster(id, ((id / 4 * 16) | 1 << (id % 4)) as u8))),
        Vm::new((0..255).map(x2apic)),
    ];
    for (vm, destination) in models.iter().flat_map(|vm| (0..0xff).map(move |d| (vm, d))) {
        for m in [to(destination, false, false), to(destination, true, false)] {
            assert_eq!(vm.fast(&m, None), Some(vm.slow(&m, None)), "{m:?}");
        }
    }
    assert_eq!(models[0].fast(&to(0b1010_0001, true, false), None), Some(std::vec![0, 5, 7]));
    assert_eq!(models[1].fast(&to(0x3a, true, false), None), Some(std::vec![13, 15]));
}

/// As many vCPUs as KVM allows, in x2APIC mode: each id and each cluster, whole, in parts and of one.
#[test]
fn each_destination_of_x2apic() {
    // Ids as user space may number them, with holes.
    let vm = Vm::new((0..VCPUS as u32).map(|n| x2apic(n * 3)));
    for id in 0..IDS as u32 {
        let named =
            if id % 3 == 0 && id < 3 * VCPUS as u32 { std::vec![id as usize / 3] } else { Vec::new() };
        assert_eq!(vm.fast(&to(id, false, true), None), Some(named), "{id}");
        for members in [0xffff, 0x5a5a, 1 << (id % 16)] {
            let m = to((id / 16) << 16 | members, true, true);
            assert_eq!(vm.fast(&m, None), Some(vm.slow(&m, None)), "{m:?}");
        }
    }
}

/// An x2APIC sender's 0xff is an id, or half a cluster, where all are in x2APIC mode; it is everybody else's broadcast.
#[test]
fn eight_bits_of_ones() {
    let mut vm = Vm::new((0..300).map(x2apic));
    assert_eq!(vm.fast(&to(0xff, false, true), None), Some(std::vec![255]));
    assert_eq!(vm.fast(&to(0xff, true, true), None), Some((0..8).collect()));
    assert_eq!(vm.fast(&to(0xff, false, false), None), None);
    vm.change(7, xapic(7, 7));
    assert_eq!(vm.fast(&to(0xff, false, true), None), None);
    assert_eq!(vm.slow(&to(0xff, false, true), None), [7, 255]);
    vm.change(7, Address::new());
    assert_eq!(vm.fast(&to(0xff, true, true), None), Some(std::vec![0, 1, 2, 3, 4, 5, 6]), "7 is disabled");
}

/// Shorthands and broadcasts are short lists in small VMs, and for the slow way in others.
#[test]
fn everybody() {
    let numbers = |vcpus: u32| {
        [Shorthand::All, Shorthand::AllButSelf]
            .map(|s| Vm::new((0..vcpus).map(x2apic)).fast(&shorthand(s), Some(3)).map(|named| named.len()))
    };
    assert_eq!(numbers(4), [Some(4), Some(3)]);
    assert_eq!(numbers(16), [Some(16), Some(15)]);
    assert_eq!(numbers(17), [None, Some(16)]);
    assert_eq!(numbers(18), [None, None]);
    let vm = Vm::new((0..18).map(x2apic));
    assert_eq!(vm.fast(&shorthand(Shorthand::SelfOnly), Some(17)), Some(std::vec![17]));
    assert_eq!(vm.fast(&shorthand(Shorthand::SelfOnly), None), Some(Vec::new()));
}

/// Two at one place are for the slow way, until one of them is elsewhere; others are not touched.
#[test]
fn aliases() {
    let mut vm = Vm::new([flat(0, 1), flat(1, 2), flat(2, 4)]);
    vm.change(2, xapic(2, 1).with_flat(true).with_logical_id(3));
    for destination in [to(1, false, false), to(1, true, false), to(2, true, false)] {
        assert_eq!(vm.fast(&destination, None), None, "{destination:?}");
    }
    assert_eq!(vm.fast(&to(0, false, false), None), Some(std::vec![0]));
    assert_eq!(vm.fast(&to(2, false, false), None), Some(Vec::new()));
    vm.change(1, Address::new());
    assert_eq!(vm.fast(&to(1, false, false), None), Some(std::vec![2]));
    assert_eq!(vm.fast(&to(2, true, false), None), Some(std::vec![2]));
    assert_eq!(vm.fast(&to(1, true, false), None), None, "0 is there still");
}

/// Above 0xff an id is the vCPU's own in each mode, and its only one: its lower 8 bits are another vCPU's, also an x2APIC sender's 0xff.
#[test]
fn wide_ids_before_x2apic() {
    let mut vm =
        Vm::new([x2apic(0x23), xapic(0x123, 0x23), xapic(0x124, 0x24), xapic(0xff, 0xff), xapic(1, 1)]);
    let both = |vm: &Vm, destination, x2apic| {
        let m = to(destination, false, x2apic);
        let named = vm.slow(&m, None);
        assert!(vm.fast(&m, None).is_none_or(|fast| fast == named), "{m:?}");
        named
    };
    for x2apic in [false, true] {
        assert_eq!(both(&vm, 0x123, x2apic), [1]);
        assert_eq!(both(&vm, 0x23, x2apic), [0]);
        assert_eq!(both(&vm, 0x24, x2apic), []);
    }
    assert_eq!(vm.fast(&to(0x23, false, true), None), Some(std::vec![0]), "looked up");
    assert_eq!(both(&vm, 0xff, true), [3, 4], "a broadcast in xAPIC mode, and an id");
    assert_eq!(both(&vm, 0xff, false), [0, 1, 2, 3, 4]);
    assert_eq!(both(&vm, u32::MAX, true), [0, 1, 2, 3, 4]);
    vm.change(1, xapic(0x123, 0x77));
    assert_eq!(
        (both(&vm, 0x77, true), both(&vm, 0x123, true)),
        (Vec::new(), std::vec![1]),
        "not by a changed id"
    );
    vm.change(1, x2apic(0x123));
    assert_eq!((both(&vm, 0x23, true), both(&vm, 0x123, true)), (std::vec![0], std::vec![1]));
    assert_eq!(vm.fast(&to(IDS as u32, false, true), None), None, "beyond the map nothing is known");
}

fn any_address() -> impl Strategy<Value = Address> {
    let id = prop_oneof![0u32..24, 0xf8u32..0x108, 0..2 * IDS as u32, any::<u32>()];
    (id, 0u8..8, any::<u8>(), 0u8..8, any::<(bool, bool)>()).prop_map(
        |(id, xapic_id, logical, bit, (one, flat))| {
            xapic(id, xapic_id).with_logical_id(if one { 1 << bit } else { logical }).with_flat(flat)
        },
    )
}

fn any_state() -> impl Strategy<Value = Address> {
    (any_address(), 0u8..5, any::<bool>()).prop_map(|(address, mode, listens)| {
        let address = address.with_sw_enabled(listens);
        match mode {
            0 => address.with_hw_enabled(false),
            1 | 2 => address.with_x2apic(true),
            _ => address,
        }
    })
}

fn any_message() -> impl Strategy<Value = InterruptMessage> {
    let names = prop_oneof![
        6 => Just(Shorthand::None),
        1 => Just(Shorthand::SelfOnly),
        1 => Just(Shorthand::All),
        1 => Just(Shorthand::AllButSelf)
    ];
    let destination = prop_oneof![0u32..24, Just(0xff), Just(u32::MAX), 0u32..0x2_0000, any::<u32>()];
    (destination, any::<(bool, bool)>(), names).prop_map(|(destination, (logical, x2apic), shorthand)| {
        InterruptMessage { shorthand, ..to(destination, logical, x2apic) }
    })
}

proptest! {
    /// Whatever a guest makes of its APICs, in whatever order: what the map says is what asking everybody says.
    #[test]
    fn as_the_slow_way(
        first in prop::collection::vec(any_state(), 1..24),
        changes in prop::collection::vec((0usize..24, any_state()), 0..24),
        messages in prop::collection::vec((any_message(), 0usize..32), 16),
    ) {
        let mut vm = Vm::new(first);
        for (index, address) in changes {
            vm.change(index % vm.addresses.len(), address);
        }
        for (m, sender) in messages {
            let sender = (sender < vm.addresses.len()).then_some(sender);
            if let Some(named) = vm.fast(&m, sender) {
                prop_assert_eq!(named, vm.slow(&m, sender), "{:?} {:?}", m, vm.addresses);
            }
        }
    }

    /// A map that went through changes is the map of where they led.
    #[test]
    fn no_history(
        first in prop::collection::vec(any_state(), 1..12),
        changes in prop::collection::vec((0usize..12, any_state()), 0..24),
    ) {
        let mut vm = Vm::new(first);
        for (index, address) in changes {
            vm.change(index % vm.addresses.len(), address);
        }
        let fresh = Vm::new(vm.addresses.iter().copied());
        prop_assert_eq!(std::format!("{:?} {:?}", vm.map, vm.high), std::format!("{:?} {:?}", fresh.map, fresh.high));
        prop_assert_eq!(std::format!("{:?}", vm.claims), std::format!("{:?}", fresh.claims));
        prop_assert_eq!(&vm.high_claims, &fresh.high_claims);
    }
}

/// A VM without large ids has no room for them: who has one is asked, and nobody else is lost.
#[test]
fn without_the_upper_part() {
    let (map, mut claims) = (Map::<LOW>::zeroed(), Claims::<LOW>::zeroed());
    let map = map.with(|| &[]);
    map.update(&mut claims, &mut [], 0, Address::new(), x2apic(2));
    map.update(&mut claims, &mut [], 1, Address::new(), xapic(0x123, 0x23));
    let named: Vec<_> = map.resolve(&to(2, false, true), None, 2).unwrap().iter().collect();
    assert_eq!(named, [0]);
    assert_eq!(map.resolve(&to(0x123, false, true), None, 2), None);
    assert_eq!(map.holder(0x23), None, "its 8 bits are not its id");
    assert_eq!(map.holder(0x123), None);
}

// --- loom ---

type Word = loom::sync::atomic::AtomicU16;

impl Slot for Word {
    fn get(&self) -> u16 {
        self.load(Ordering::Acquire)
    }
    fn set(&self, value: u16) {
        self.store(value, Ordering::Release);
    }
}

/// A map on loom's memory, what its vCPUs have published, and whether the one that moves has gone on.
struct World {
    map: Map<3, Word>,
    claims: loom::sync::Mutex<Claims<3>>,
    addresses: [loom::sync::atomic::AtomicU64; 3],
    gone_on: loom::sync::atomic::AtomicBool,
}

impl World {
    fn new(addresses: [Address; 3]) -> Self {
        let world = Self {
            map: Map::on(|| Word::new(0)),
            claims: loom::sync::Mutex::new(Claims::zeroed()),
            addresses: addresses.map(|address| loom::sync::atomic::AtomicU64::new(address.into())),
            gone_on: loom::sync::atomic::AtomicBool::new(false),
        };
        for (index, address) in addresses.into_iter().enumerate() {
            world.whole().update(&mut world.claims.lock().unwrap(), &mut [], index, Address::new(), address);
        }
        world
    }

    fn whole<'a>(&'a self) -> Whole<'a, 3, Word, impl Fn() -> &'a [Word]> {
        self.map.with(|| &[])
    }

    /// As the owner of `index` does it.
    fn move_to(&self, index: usize, address: Address) {
        let old = Address::from(self.addresses[index].swap(address.into(), Ordering::Release));
        self.whole().update(&mut self.claims.lock().unwrap(), &mut [], index, old, address);
    }

    /// The same, but a place is emptied before it is filled anew.
    fn move_by_emptying(&self, index: usize, address: Address) {
        let (map, mut claims) = (self.whole(), self.claims.lock().unwrap());
        let old = Address::from(self.addresses[index].load(Ordering::Acquire));
        map.update(&mut claims, &mut [], index, old, Address::new());
        map.empty(address);
        map.update(&mut claims, &mut [], index, Address::new(), address);
    }

    /// `m` reaches the vCPU at `index`.
    fn reaches(&self, m: &InterruptMessage, index: usize) -> bool {
        let address = |index: usize| Address::from(self.addresses[index].load(Ordering::Acquire));
        match self.whole().resolve(m, None, 3) {
            Some(few) => few.iter().any(|found| found == index && address(found).names(m)),
            None => address(index).names(m),
        }
    }
}

fn under_loom(moves: fn(&World), sends: fn(&World)) {
    loom::model(move || {
        let world = loom::sync::Arc::new(World::new([x2apic(0), x2apic(1), x2apic(2)]));
        let mover = {
            let world = world.clone();
            loom::thread::spawn(move || moves(&world))
        };
        sends(&world);
        mover.join().unwrap();
    });
}

/// Whoever does not move is reached, while another comes to its place and leaves it again.
#[test]
fn who_stays_is_reached() {
    under_loom(
        |world| {
            world.move_to(1, xapic(1, 0));
            world.move_to(1, x2apic(1));
        },
        |world| assert!(world.reaches(&to(0, false, true), 0)),
    );
}

#[test]
#[should_panic(expected = "lost")]
fn an_emptied_place_loses_who_stays() {
    under_loom(
        |world| world.move_by_emptying(1, xapic(1, 0)),
        |world| assert!(world.reaches(&to(0, false, true), 0), "lost"),
    );
}

/// Whoever knows that a vCPU has moved reaches it at its new place.
#[test]
fn who_has_moved_is_reached() {
    under_loom(
        |world| {
            world.move_to(1, xapic(1, 2));
            world.gone_on.store(true, Ordering::Release);
        },
        |world| {
            let there = world.gone_on.load(Ordering::Acquire);
            assert!(!there || world.reaches(&to(2, false, true), 1));
        },
    );
}

/// Two move at once, one to where the other was: afterwards each is where it says.
#[test]
fn two_move_at_once() {
    loom::model(|| {
        let world = loom::sync::Arc::new(World::new([x2apic(0), x2apic(1), Address::new()]));
        let other = world.clone();
        let mover = loom::thread::spawn(move || other.move_to(0, xapic(0, 2)));
        world.move_to(1, xapic(1, 0));
        mover.join().unwrap();
        assert!(world.reaches(&to(0, false, true), 1) && world.reaches(&to(2, false, true), 0));
        assert!(world.whole().resolve(&to(1, false, true), None, 3).is_some_and(|few| few.is_empty()));
    });
}

/// What is plain, by the fields of the register: all values of the lower 20 bits, one bit above, destinations at the borders.
#[test]
fn what_is_plain() {
    for low in (0..1 << 20).chain((20..32).map(|bit| 1 << bit | 0x51)) {
        for destination in [0, 0xfe, 0xff, 0x100, 0x1_8001, u32::MAX - 1, u32::MAX] {
            let icr = u64::from(destination) << 32 | low;
            let (fields, reserved) = (Icr::from(icr), low & 0xfff3_2000 != 0);
            let m = fields.message(true);
            let fixed = m.mode == DeliveryMode::FIXED && !m.level && m.vector >= 16;
            let edge = fixed && !reserved && !fields.pending();
            let broadcast = destination == u32::MAX || destination == 0xff && !m.logical;
            let plain = match m.shorthand {
                Shorthand::None => edge && !broadcast,
                Shorthand::AllButSelf => edge && !m.logical,
                _ => false,
            };
            let found = PlainIpi::of(icr);
            assert_eq!(found.is_some(), plain, "{icr:x}");
            assert!(found.is_none_or(|p| p.vector == m.vector), "{icr:x}");
        }
    }
}

impl Vm {
    /// Whom a plain command reaches, as whoever sends it looks them up. `None`: the ordinary way.
    fn reached(&self, to: To, sender: usize) -> Option<Vec<usize>> {
        let map = self.map.with(|| &self.high);
        let takes = |index: usize, id: u32| self.addresses[index].takes(id);
        match to {
            To::Id(id) => map
                .holder(id)
                .filter(|&index| takes(index, id) && index != sender)
                .map(|index| std::vec![index]),
            To::Cluster(from, members) => {
                let few = map.members(from, members)?;
                Some(few.iter().filter(|&index| self.addresses[index].is_member(from, members)).collect())
            }
            To::Others => {
                let others = (0..self.addresses.len()).filter(|&index| index != sender);
                Some(others.filter(|&index| self.addresses[index].listens()).collect())
            }
        }
    }
}

/// Clusters that the map does not reach, or where two have one id, are for the ordinary way: nobody is asked one by one in a slice.
#[test]
fn clusters_that_cannot_be_looked_up() {
    let Some(PlainIpi { to: To::Cluster(from, members), .. }) = PlainIpi::of(0xfff0_ffff << 32 | 0x851)
    else {
        panic!("a plain command")
    };
    assert_eq!((from, members), (0xfff00, 0xffff));
    let listens = |id| x2apic(id).with_sw_enabled(true);
    let mut vm = Vm::new((0..40).map(listens));
    assert_eq!(vm.map.with(|| &vm.high).members(from, members), None);
    assert_eq!(vm.map.with(|| &vm.high).members(IDS as u32, 1), None);
    assert_eq!(vm.map.with(|| &[]).members(LOW as u32, 1), None, "no id is that large");
    assert_eq!(vm.reached(To::Cluster(32, 0xffff), 0), Some((32..40).collect()));
    vm.add(listens(33));
    assert_eq!(vm.reached(To::Cluster(32, 0xffff), 0), None, "two have one id");
    assert_eq!(vm.reached(To::Cluster(32, 0xfffd), 0), Some([32].into_iter().chain(34..40).collect()));
    vm.change(7, xapic(7, 7));
    assert_eq!(vm.reached(To::Cluster(16, 1), 0), None, "more is named than a cluster");
}

proptest! {
    /// A plain command reaches exactly whom asking everybody names, and of those whoever listens; nobody else, whatever the destination.
    #[test]
    fn a_plain_command_reaches_whom_it_names(
        first in prop::collection::vec(any_state(), 1..24),
        changes in prop::collection::vec((0usize..24, any_state()), 0..24),
        commands in prop::collection::vec((any_message(), 0usize..24, any::<u8>()), 32),
        x2apic in any::<bool>(),
    ) {
        let mut vm = Vm::new(first);
        for (index, address) in changes {
            vm.change(index % vm.addresses.len(), address);
        }
        for index in (0..vm.addresses.len()).filter(|_| x2apic) {
            let address = vm.addresses[index];
            vm.change(index, address.with_x2apic(true));
        }
        for (m, sender, vector) in commands {
            let sender = sender % vm.addresses.len();
            let shorthand = if m.shorthand == Shorthand::AllButSelf { 3 } else { 0 };
            let icr = Icr::new().with_vector(vector).with_logical(m.logical && shorthand == 0);
            let icr = icr.with_shorthand(shorthand).with_destination(m.destination);
            let Some(plain) = PlainIpi::of(icr.into()) else { continue };
            let Some(mut reached) = vm.reached(plain.to, sender) else { continue };
            let mut named = vm.slow(&icr.message(true), Some(sender));
            named.retain(|&index| vm.addresses[index].listens());
            reached.sort();
            named.sort();
            prop_assert_eq!(reached, named, "{:x?} {:?}", icr, vm.addresses);
        }
    }
}
