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
    /// How many are in xAPIC mode, for which an x2APIC sender's 0xff may be a broadcast.
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

/// A map with what follows it: ids from `IDS` on, where the VM has vCPUs with such ids.
pub struct Whole<'a, const IDS: usize, W, F> {
    low: &'a Map<IDS, W>,
    high: F,
}

/// How many stand at a place, and the sum of their values: that of the one, where it is one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Zeroable)]
#[repr(C)]
pub struct Claim {
    sum: u32,
    count: u32,
}

impl Claim {
    fn change(&mut self, slot: u16, comes: bool) {
        let (one, sum) = (1, u32::from(slot));
        let by = |value: u32, by: u32| if comes { value.wrapping_add(by) } else { value.wrapping_sub(by) };
        (self.sum, self.count) = (by(self.sum, sum), by(self.count, one));
    }

    /// As the map says it.
    fn value(self) -> u16 {
        match self.count {
            0 => NOBODY,
            1 => self.sum as u16,
            _ => SEVERAL,
        }
    }
}

/// From which the map is made: what it costs to change does not grow with the number of vCPUs.
#[derive(Debug, Zeroable)]
#[repr(C)]
pub struct Claims<const IDS: usize> {
    ids: [Claim; IDS],
    flat: [Claim; 8],
    clusters: [Claim; 16 * CLUSTER],
    xapics: u32,
    _pad: u32,
}

impl<const IDS: usize> Claims<IDS> {
    fn at<'a>(&'a mut self, high: &'a mut [Claim], place: Place) -> Option<&'a mut Claim> {
        match place {
            Place::Id(id) => match (id as usize).checked_sub(IDS) {
                None => self.ids.guarded_mut(id as usize),
                Some(id) => high.guarded_mut(id),
            },
            Place::Flat(bit) => self.flat.guarded_mut(bit.into()),
            Place::Cluster(bit) => self.clusters.guarded_mut(bit.into()),
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
            (_, Place::Id(id)) => id == self.physical_id(),
            (true, _) => false,
            (_, Place::Flat(n)) => self.flat() && bit(n),
            (_, Place::Cluster(n)) => !self.flat() && n / 4 == self.logical_id() / 16 && bit(n % 4),
        }
    }

    /// Everywhere it may stand, and perhaps elsewhere; each once.
    fn places(self) -> impl Iterator<Item = Place> {
        let cluster = self.logical_id() / 16 * 4;
        core::iter::once(Place::Id(self.physical_id()))
            .chain((0..8).map(Place::Flat))
            .chain((0..4).map(move |bit| Place::Cluster(cluster + bit)))
    }
}

impl<const IDS: usize, W> Map<IDS, W> {
    /// With what follows it, which is asked for where it is needed; nothing: no vCPU has an id that large.
    #[inline(always)]
    pub fn with<'a, F: Fn() -> &'a [W]>(&'a self, high: F) -> Whole<'a, IDS, W, F> {
        Whole { low: self, high }
    }
}

impl<'a, const IDS: usize, W: Slot, F: Fn() -> &'a [W]> Whole<'a, IDS, W, F> {
    /// The vCPU at `index`, below 65534, had the address `old`, or none yet, has `new` now, and has published it. `high` goes with the
    /// claims as the map's does with the map.
    pub fn update(
        &self,
        claims: &mut Claims<IDS>,
        high: &mut [Claim],
        index: usize,
        old: Address,
        new: Address,
    ) {
        let mut change = |place, comes| {
            if let (Some(claim), Some(slot)) = (claims.at(high, place), self.slot(place)) {
                claim.change(index as u16 + 1, comes);
                slot.set(claim.value());
            }
        };
        let left = old.places().filter(|&place| old.stands_at(place) && !new.stands_at(place));
        left.for_each(|place| change(place, false));
        let taken = new.places().filter(|&place| new.stands_at(place) && !old.stands_at(place));
        taken.for_each(|place| change(place, true));
        let xapic = |a: Address| a.hw_enabled() && !a.x2apic();
        if xapic(old) != xapic(new) {
            let by = if xapic(new) { 1 } else { u32::MAX };
            claims.xapics = claims.xapics.wrapping_add(by);
            self.low.xapics.set(claims.xapics as u16);
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

    /// Those of the 16 ids from `from` on whose bits are set in `members`, each to be asked by [`Address::is_member`]; nobody else is a
    /// member of that cluster of x2APIC mode. `None`: somebody is in xAPIC mode, or they cannot be looked up.
    #[inline]
    pub fn members(&self, from: u32, members: u16) -> Option<Few> {
        let mut few = Few::default();
        self.add_members(&mut few, from, members)?;
        self.all_x2apic().then_some(few)
    }

    fn add_members(&self, few: &mut Few, from: u32, members: u16) -> Option<()> {
        bits(members.into()).try_for_each(|bit| self.add(few, Place::Id(from | bit)))
    }

    /// No APIC is in xAPIC mode: a logical destination is a cluster of x2APIC mode and nothing else.
    fn all_x2apic(&self) -> bool {
        // Whoever was in xAPIC mode all the time is counted.
        self.low.xapics.get() == 0
    }

    /// The one vCPU that `msg` can name, if it is for one physical id; to be asked by [`Address::names`].
    #[inline]
    pub fn only(&self, msg: &InterruptMessage) -> Option<usize> {
        let plain = msg.shorthand == Shorthand::None && !msg.logical;
        if !plain || matches!(msg.destination, 0xff | u32::MAX) { None } else { self.holder(msg.destination) }
    }

    #[inline(always)]
    fn slot(&self, place: Place) -> Option<&'a W> {
        match place {
            Place::Id(id) => self.low.ids.guarded(id as usize).or_else(|| self.higher(id)),
            Place::Flat(bit) => self.low.flat.guarded(bit.into()),
            Place::Cluster(bit) => self.low.clusters.guarded(bit.into()),
        }
    }

    #[cold]
    fn higher(&self, id: u32) -> Option<&'a W> {
        (self.high)().guarded((id as usize).checked_sub(IDS)?)
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
        is_broadcast(msg, true) || (is_broadcast(msg, false) && self.low.xapics.get() != 0)
    }

    /// A destination of the three logical models at once: APICs need not agree on one.
    fn logical(&self, few: &mut Few, destination: u32) -> Option<()> {
        self.add_members(few, destination >> 16 << 4, destination as u16)?;
        if self.all_x2apic() {
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
}

#[cfg(test)]
impl<'a, const IDS: usize, W: Slot, F: Fn() -> &'a [W]> Whole<'a, IDS, W, F> {
    /// What an update must not do: empties where `address` will stand.
    pub(crate) fn empty(&self, address: Address) {
        let slots =
            address.places().filter(|&place| address.stands_at(place)).filter_map(|place| self.slot(place));
        slots.for_each(|slot| slot.set(NOBODY));
    }
}
