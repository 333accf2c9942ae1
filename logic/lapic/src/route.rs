//! From an interrupt message to the APICs that take it: shorthands, destinations, lowest priority.

use crate::shared::{Accepted, Shared};
use exitless_ipi::{Address, Few};
use exitless_x86::apic::{DeliveryMode, InterruptMessage, Shorthand};

/// The VM's vCPUs as the router sees them.
// Nobody asks whether there are none.
#[allow(clippy::len_without_is_empty)]
pub trait Targets {
    /// One of them, which has an APIC.
    type Vcpu: AsRef<Shared>;

    /// Indices are below this.
    fn len(&self) -> usize;

    /// The vCPU at `index`; `None` if there is none (yet).
    fn get(&self, index: usize) -> Option<&Self::Vcpu>;

    /// [`exitless_ipi::Map::only`]. `None`: [`Targets::resolve`] tells.
    fn only(&self, msg: &InterruptMessage) -> Option<usize>;

    /// [`exitless_ipi::Map::resolve`].
    fn resolve(&self, msg: &InterruptMessage, sender: Option<usize>) -> Option<Few>;

    /// A number that differs from call to call: lowest-priority ties go to the first candidate at or after it, modulo their number.
    fn rotation(&self) -> usize;
}

/// What [`route`] achieved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Delivered {
    /// APICs that took the message, those where it was pending already included.
    pub accepted: u32,
    /// APICs where it was news.
    pub new: u32,
}

impl Delivered {
    /// KVM_IRQ_LINE_STATUS: -1 nobody took it, 0 coalesced, otherwise how many CPUs it was delivered to.
    pub fn status(self) -> i32 {
        if self.accepted == 0 { -1 } else { self.new as i32 }
    }

    fn add(&mut self, accepted: Accepted) {
        self.accepted += u32::from(accepted != Accepted::None);
        self.new += u32::from(accepted.is_new());
    }
}

/// Who may be named.
enum Candidates {
    Few(Few),
    /// Everybody below.
    All(usize),
}

impl Candidates {
    fn for_each(&self, f: impl FnMut(usize)) {
        match self {
            Self::Few(few) => few.iter().for_each(f),
            Self::All(len) => (0..*len).for_each(f),
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::Few(few) => few.len(),
            Self::All(len) => *len,
        }
    }

    fn nth(&self, position: usize) -> Option<usize> {
        match self {
            Self::Few(few) => few.nth(position),
            Self::All(_) => Some(position),
        }
    }
}

/// Delivers `msg` to every APIC that it names (lowest priority: to one of them).
///
/// `sender` is the index of the sending vCPU; `None` for devices, for which the shorthands `SelfOnly` and `AllButSelf` name nobody
/// and everybody. `sink` is called for each APIC that the message changed; it owes the request, wake-up and kick that [`Accepted`]
/// describes. Takes no lock, allocates nothing. Looks at no more vCPUs than are named, where they can be looked up.
pub fn route<T: Targets>(
    msg: &InterruptMessage,
    sender: Option<usize>,
    targets: &T,
    sink: impl FnMut(usize, &T::Vcpu, Accepted),
) -> Delivered {
    route_among(msg, sender, targets, &candidates(msg, sender, targets), sink)
}

/// Calls `sink` with each APIC that `msg` names, and changes none: hardware has made it pending there.
pub fn named<T: Targets>(
    msg: &InterruptMessage,
    sender: Option<usize>,
    targets: &T,
    mut sink: impl FnMut(usize, &T::Vcpu),
) {
    candidates(msg, sender, targets).for_each(|index| {
        if let Some(t) = targets.get(index).filter(|t| names(msg, sender, index, t.as_ref().address())) {
            sink(index, t);
        }
    });
}

fn candidates<T: Targets>(msg: &InterruptMessage, sender: Option<usize>, targets: &T) -> Candidates {
    match targets.resolve(msg, sender) {
        Some(few) => Candidates::Few(few),
        None => Candidates::All(targets.len()),
    }
}

/// As [`route`], but only to vCPUs that can be looked up, [`Few::MOST`] of them at most, and behind `first`, if that succeeds.
///
/// # Errors
/// `first`'s, or, without it, `otherwise`: they cannot be looked up, or are more. Nothing was done.
pub fn route_few<T: Targets, E>(
    msg: &InterruptMessage,
    sender: Option<usize>,
    targets: &T,
    otherwise: E,
    first: impl FnOnce() -> Result<(), E>,
    mut sink: impl FnMut(usize, &T::Vcpu, Accepted),
) -> Result<Delivered, E> {
    if let Some(index) = targets.only(msg) {
        first()?;
        let mut delivered = Delivered::default();
        deliver(msg, sender, targets, index, &mut delivered, &mut sink);
        return Ok(delivered);
    }
    let few = targets.resolve(msg, sender).ok_or(otherwise)?;
    first()?;
    Ok(route_among(msg, sender, targets, &Candidates::Few(few), sink))
}

fn route_among<T: Targets>(
    msg: &InterruptMessage,
    sender: Option<usize>,
    targets: &T,
    candidates: &Candidates,
    mut sink: impl FnMut(usize, &T::Vcpu, Accepted),
) -> Delivered {
    let mut delivered = Delivered::default();
    let mut to = |index| deliver(msg, sender, targets, index, &mut delivered, &mut sink);
    if msg.mode != DeliveryMode::LOWEST {
        candidates.for_each(to);
        return delivered;
    }
    let named = |position: usize| {
        let index = candidates.nth(position)?;
        let target = targets.get(index)?.as_ref();
        let address = target.address();
        (names(msg, sender, index, address) && address.listens()).then_some((index, target))
    };
    if let Some(index) = lowest(candidates.len(), targets.rotation(), named) {
        to(index);
    }
    delivered
}

/// To the vCPU at `index`, if `msg` names it.
#[inline]
fn deliver<T: Targets>(
    msg: &InterruptMessage,
    sender: Option<usize>,
    targets: &T,
    index: usize,
    delivered: &mut Delivered,
    sink: &mut impl FnMut(usize, &T::Vcpu, Accepted),
) {
    let Some(target) = targets.get(index) else { return };
    let address = target.as_ref().address();
    if !names(msg, sender, index, address) {
        return;
    }
    let accepted = target.as_ref().accept_at(address, msg);
    delivered.add(accepted);
    if accepted.is_new() {
        sink(index, target, accepted);
    }
}

/// `msg` is for the APIC at `index`, whose address this is.
#[inline]
fn names(msg: &InterruptMessage, sender: Option<usize>, index: usize, address: Address) -> bool {
    match msg.shorthand {
        Shorthand::None => address.names(msg),
        Shorthand::SelfOnly => address.hw_enabled() && sender == Some(index),
        Shorthand::All => address.hw_enabled(),
        Shorthand::AllButSelf => address.hw_enabled() && sender != Some(index),
    }
}

/// Among `len` candidates, those named that can take a vector, the one with the lowest processor priority (SDM vol. 3A,
/// 11.6.2.4).
fn lowest<'a>(
    len: usize,
    rotation: usize,
    named: impl Fn(usize) -> Option<(usize, &'a Shared)>,
) -> Option<usize> {
    let start = rotation.checked_rem(len)?;
    let lowest = (start..len)
        .chain(0..start)
        .filter_map(named)
        .min_by_key(|(_, target)| target.arbitration_priority())?;
    Some(lowest.0)
}
