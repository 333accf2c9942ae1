//! From destinations to vCPUs by look-up; see the crate's text for who may read and change it when.

use crate::address::{Address, is_broadcast};
use crate::few::Few;
use bytemuck::Zeroable;
use core::sync::atomic::{AtomicU16, Ordering};
use exitless_nospec::Guarded;
use exitless_x86::apic::{InterruptMessage, Shorthand};

/// A word of the map. Tests put loom's memory in its place.
pub trait Slot {
    /// Acquire.
    fn get(&self) -> u16;
    /// Release.
    fn set(&self, value: u16);
}

impl Slot for AtomicU16 {
    #[inline(always)]
    fn get(&self) -> u16 {
        self.load(Ordering::Acquire)
    }
    #[inline(always)]
    fn set(&self, value: u16) {
        self.store(value, Ordering::Release);
    }
}

/// Nobody stands there. Other values, up to [`SEVERAL`], are an index and one.
const NOBODY: u16 = 0;
/// More than one stands there.
const SEVERAL: u16 = u16::MAX;

/// Members of a cluster of the xAPIC.
const CLUSTER: usize = 4;

/// Who stands where, for ids below `IDS`, which are at least all of an xAPIC. All zero: no vCPU.
#[derive(Debug, Zeroable)]
#[repr(C, align(64))]
pub struct Map<const IDS: usize, W = AtomicU16> {
    ids: [W; IDS],
    flat: [W; 8],
    clusters: [W; 16 * CLUSTER],
    /// How many are in xAPIC mode, for which an x2APIC sender's 0xff is a broadcast.
    xapics: W,
}

/// The positions of the bits that are set.
fn bits(mut bits: u32) -> impl Iterator<Item = u32> {
    core::iter::from_fn(move || {
        let lowest = bits.trailing_zeros();
        bits &= bits.wrapping_sub(1);
        (lowest < 32).then_some(lowest)
    })
}

/// The addresses from which the map was made, of vCPUs below `VCPUS`.
#[derive(Debug, Zeroable)]
pub struct Claims<const VCPUS: usize> {
    addresses: [Address; VCPUS],
    /// Nobody is known from here on.
    known: usize,
}

impl<const VCPUS: usize> Claims<VCPUS> {
    fn known(&self) -> impl Iterator<Item = Address> {
        self.addresses.iter().take(self.known).copied()
    }

    /// Who stands at `place`, as the map says it.
    fn at(&self, place: Place) -> u16 {
        let mut there = (1..).zip(self.known()).filter(|(_, address)| address.stands_at(place));
        match (there.next(), there.next()) {
            (None, _) => NOBODY,
            (Some((slot, _)), None) => slot,
            _ => SEVERAL,
        }
    }
}

/// One value that a destination can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Id(u32),
    Flat(u8),
    Cluster(u8),
}

impl Address {
    /// Physical destinations name it by `id`.
    pub fn has_id(self, id: u32) -> bool {
        self.stands_at(Place::Id(id))
    }

    fn stands_at(self, place: Place) -> bool {
        let bit = |bit: u8| self.logical_id() >> bit & 1 != 0;
        match (self.x2apic(), place) {
            _ if !self.hw_enabled() => false,
            (true, Place::Id(id)) => id == self.x2apic_id(),
            (false, Place::Id(id)) if id > 0xff => id == self.x2apic_id(),
            (false, Place::Id(id)) => id == self.xapic_id().into(),
            (true, _) => false,
            (_, Place::Flat(n)) => self.flat() && bit(n),
            (_, Place::Cluster(n)) => !self.flat() && n / 4 == self.logical_id() / 16 && bit(n % 4),
        }
    }

    /// Everywhere it may stand, and perhaps elsewhere.
    fn places(self) -> impl Iterator<Item = Place> {
        let cluster = self.logical_id() / 16 * 4;
        [Place::Id(self.x2apic_id()), Place::Id(self.xapic_id().into())]
            .into_iter()
            .chain((0..8).map(Place::Flat))
            .chain((0..4).map(move |bit| Place::Cluster(cluster + bit)))
    }
}

impl<const IDS: usize, W: Slot> Map<IDS, W> {
    /// The vCPU at `index` has another address now, and has published it.
    pub fn update<const VCPUS: usize>(&self, claims: &mut Claims<VCPUS>, index: usize, new: Address) {
        const { assert!(VCPUS < SEVERAL as usize) };
        let Some(claim) = claims.addresses.get_mut(index) else { return };
        let old = core::mem::replace(claim, new);
        claims.known = claims.known.max(index + 1);
        for place in old.places().chain(new.places()) {
            if old.stands_at(place) != new.stands_at(place)
                && let Some(slot) = self.slot(place)
            {
                slot.set(claims.at(place));
            }
        }
        let xapic = |a: Address| a.hw_enabled() && !a.x2apic();
        if xapic(old) != xapic(new) {
            self.xapics.set(claims.known().filter(|&a| xapic(a)).count() as u16);
        }
    }

    /// Who has this physical id, if that is one vCPU; to be asked by [`Address::has_id`].
    #[inline]
    pub fn holder(&self, id: u32) -> Option<usize> {
        match self.slot(Place::Id(id))?.get() {
            NOBODY | SEVERAL => None,
            slot => Some(usize::from(slot - 1)),
        }
    }

    /// The one vCPU that `msg` can name, if it is for one physical id; to be asked by [`Address::names`].
    #[inline]
    pub fn only(&self, msg: &InterruptMessage) -> Option<usize> {
        let plain = msg.shorthand == Shorthand::None && !msg.logical;
        if !plain || matches!(msg.destination, 0xff | u32::MAX) { None } else { self.holder(msg.destination) }
    }

    fn slot(&self, place: Place) -> Option<&W> {
        match place {
            Place::Id(id) => self.ids.guarded(id as usize),
            Place::Flat(bit) => self.flat.guarded(bit.into()),
            Place::Cluster(bit) => self.clusters.guarded(bit.into()),
        }
    }

    /// Those of `vcpus` vCPUs that `msg` can name, each to be asked by [`Address::names`] (or, with a shorthand, whether it is
    /// enabled); nobody else is named. `None`: they cannot be looked up, or are too many.
    ///
    /// `sender` is the index of the sending vCPU, `None` for devices.
    pub fn resolve(&self, msg: &InterruptMessage, sender: Option<usize>, vcpus: usize) -> Option<Few> {
        let mut few = Few::default();
        match msg.shorthand {
            Shorthand::SelfOnly => sender.map_or(Some(()), |index| few.add(index as u16))?,
            Shorthand::All => return Few::all(vcpus, None),
            Shorthand::AllButSelf => return Few::all(vcpus, sender),
            Shorthand::None if self.is_broadcast(msg) => return Few::all(vcpus, None),
            Shorthand::None if msg.logical => self.logical(&mut few, msg.destination)?,
            Shorthand::None => self.add(&mut few, Place::Id(msg.destination))?,
        }
        Some(few)
    }

    /// For somebody.
    fn is_broadcast(&self, msg: &InterruptMessage) -> bool {
        is_broadcast(msg, true) || (is_broadcast(msg, false) && self.xapics.get() != 0)
    }

    /// A destination of the three logical models at once: APICs need not agree on one.
    fn logical(&self, few: &mut Few, destination: u32) -> Option<()> {
        for bit in bits(destination & 0xffff) {
            self.add(few, Place::Id(destination >> 16 << 4 | bit))?;
        }
        // Whoever was in xAPIC mode all the time is counted.
        if self.xapics.get() == 0 {
            return Some(());
        }
        for bit in bits(destination & 0xff) {
            self.add(few, Place::Flat(bit as u8))?;
        }
        if destination <= 0xff {
            for bit in bits(destination & 0xf) {
                self.add(few, Place::Cluster((destination / 16 * 4 + bit) as u8))?;
            }
        }
        Some(())
    }

    /// Adds whoever stands at `place`; `None`: several, or no room. Beyond the map it is not known who.
    fn add(&self, few: &mut Few, place: Place) -> Option<()> {
        match self.slot(place)?.get() {
            NOBODY => Some(()),
            SEVERAL => None,
            slot => few.add(slot - 1),
        }
    }
}

#[cfg(test)]
impl<const IDS: usize, W: Slot> Map<IDS, W> {
    /// No vCPU, on memory of another kind.
    pub(crate) fn on(mut zero: impl FnMut() -> W) -> Self {
        use core::array::from_fn;
        Self {
            ids: from_fn(|_| zero()),
            flat: from_fn(|_| zero()),
            clusters: from_fn(|_| zero()),
            xapics: zero(),
        }
    }

    /// What an update must not do: empties where `address` will stand.
    pub(crate) fn empty(&self, address: Address) {
        let slots =
            address.places().filter(|&place| address.stands_at(place)).filter_map(|place| self.slot(place));
        slots.for_each(|slot| slot.set(NOBODY));
    }
}
