//! From an interrupt message to the APICs that take it: shorthands, destinations, lowest priority.

use crate::shared::{Accepted, Shared};
use exitless_ipi::Few;
use exitless_x86::apic::{DeliveryMode, InterruptMessage, Shorthand};

/// The VM's vCPUs as the router sees them.
// Nobody asks whether there are none.
#[allow(clippy::len_without_is_empty)]
pub trait Targets {
    /// Indices are below this.
    fn len(&self) -> usize;

    /// The APIC at `index`; `None` if there is none (yet).
    fn get(&self, index: usize) -> Option<&Shared>;

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
    sink: impl FnMut(usize, Accepted),
) -> Delivered {
    route_among(msg, sender, targets, &candidates(msg, sender, targets), sink)
}

/// Calls `sink` with each APIC that `msg` names, and changes none: hardware has made it pending there.
pub fn named<T: Targets>(
    msg: &InterruptMessage,
    sender: Option<usize>,
    targets: &T,
    sink: impl FnMut(usize),
) {
    let candidates = candidates(msg, sender, targets);
    let named = |index: &usize| targets.get(*index).is_some_and(|t| names(msg, sender, *index, t));
    (0..candidates.len()).filter_map(|position| candidates.nth(position)).filter(named).for_each(sink);
}

fn candidates<T: Targets>(msg: &InterruptMessage, sender: Option<usize>, targets: &T) -> Candidates {
    match targets.resolve(msg, sender) {
        Some(few) => Candidates::Few(few),
        None => Candidates::All(targets.len()),
    }
}

/// As [`route`], but only to vCPUs that can be looked up, [`Few::MOST`] of them at most. `None`: they cannot, or are more; nothing was
/// done.
pub fn route_few<T: Targets>(
    msg: &InterruptMessage,
    sender: Option<usize>,
    targets: &T,
    sink: impl FnMut(usize, Accepted),
) -> Option<Delivered> {
    let few = targets.resolve(msg, sender)?;
    Some(route_among(msg, sender, targets, &Candidates::Few(few), sink))
}

fn route_among<T: Targets>(
    msg: &InterruptMessage,
    sender: Option<usize>,
    targets: &T,
    candidates: &Candidates,
    mut sink: impl FnMut(usize, Accepted),
) -> Delivered {
    let mut delivered = Delivered::default();
    let mut deliver = |(index, target): (usize, &Shared)| {
        let accepted = target.accept(msg);
        delivered.add(accepted);
        if accepted.is_new() {
            sink(index, accepted);
        }
    };
    let named = |position: usize| {
        let index = candidates.nth(position)?;
        let target = targets.get(index)?;
        names(msg, sender, index, target).then_some((index, target))
    };
    if msg.mode != DeliveryMode::LOWEST {
        (0..candidates.len()).filter_map(named).for_each(deliver);
    } else if let Some(lowest) = lowest(candidates.len(), targets.rotation(), named) {
        deliver(lowest);
    }
    delivered
}

/// `msg` is for the APIC at `index`.
fn names(msg: &InterruptMessage, sender: Option<usize>, index: usize, target: &Shared) -> bool {
    match msg.shorthand {
        Shorthand::None => target.address().names(msg),
        Shorthand::SelfOnly => target.hw_enabled() && sender == Some(index),
        Shorthand::All => target.hw_enabled(),
        Shorthand::AllButSelf => target.hw_enabled() && sender != Some(index),
    }
}

/// Among `len` candidates, those named that can take a vector, the one with the lowest processor priority (SDM vol. 3A,
/// 11.6.2.4).
fn lowest<'a>(
    len: usize,
    rotation: usize,
    named: impl Fn(usize) -> Option<(usize, &'a Shared)>,
) -> Option<(usize, &'a Shared)> {
    let start = rotation.checked_rem(len)?;
    (start..len)
        .chain(0..start)
        .filter_map(named)
        .filter(|(_, target)| target.sw_enabled())
        .min_by_key(|(_, target)| target.arbitration_priority())
}
