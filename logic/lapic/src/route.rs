//! From an interrupt message to the APICs that take it: shorthands, destinations, lowest priority.

use crate::shared::{Accepted, Shared};
use exitless_x86::apic::{DeliveryMode, InterruptMessage, Shorthand};

/// The VM's vCPUs as the router sees them.
// Nobody asks whether there are none.
#[allow(clippy::len_without_is_empty)]
pub trait Targets {
    /// Indices are below this.
    fn len(&self) -> usize;

    /// The APIC at `index`; `None` if there is none (yet).
    fn get(&self, index: usize) -> Option<&Shared>;

    /// Every APIC's physical id, in its present mode, is its index and its x2APIC id. Physical destinations then need no search.
    /// Maintained by the VM from [`crate::Work::routing_changed`] and [`Shared::physical_id`].
    fn ids_are_indices(&self) -> bool;

    /// A number that differs from call to call: lowest-priority ties go to the first candidate at or after it, modulo `len`.
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

/// Delivers `msg` to every APIC that it names (lowest priority: to one of them).
///
/// `sender` is the index of the sending vCPU; `None` for devices, for which the shorthands `SelfOnly` and `AllButSelf` name nobody
/// and everybody. `sink` is called for each APIC that the message changed; it owes the request, wake-up and kick that [`Accepted`]
/// describes. Takes no lock, allocates nothing.
pub fn route<T: Targets>(
    msg: &InterruptMessage,
    sender: Option<usize>,
    targets: &T,
    mut sink: impl FnMut(usize, Accepted),
) -> Delivered {
    let mut delivered = Delivered::default();
    let mut deliver = |index: usize, target: &Shared| {
        let accepted = target.accept(msg);
        delivered.add(accepted);
        if accepted.is_new() {
            sink(index, accepted);
        }
    };
    if let Some(index) = single(msg, sender, targets) {
        if let Some(target) = targets.get(index).filter(|target| names(msg, sender, index, target)) {
            deliver(index, target);
        }
    } else if msg.mode == DeliveryMode::LOWEST {
        if let Some((index, target)) = lowest(msg, sender, targets) {
            deliver(index, target);
        }
    } else {
        for index in 0..targets.len() {
            if let Some(target) = targets.get(index).filter(|target| names(msg, sender, index, target)) {
                deliver(index, target);
            }
        }
    }
    delivered
}

/// The only index that can be named, if that is known without a search.
fn single<T: Targets>(msg: &InterruptMessage, sender: Option<usize>, targets: &T) -> Option<usize> {
    match msg.shorthand {
        Shorthand::SelfOnly => sender,
        Shorthand::None if !msg.logical && targets.ids_are_indices() => match msg.destination {
            0xff | u32::MAX => None,
            id => usize::try_from(id).ok(),
        },
        _ => None,
    }
}

/// `msg` is for the APIC at `index`.
fn names(msg: &InterruptMessage, sender: Option<usize>, index: usize, target: &Shared) -> bool {
    match msg.shorthand {
        Shorthand::None => target.matches(msg),
        Shorthand::SelfOnly => target.hw_enabled() && sender == Some(index),
        Shorthand::All => target.hw_enabled(),
        Shorthand::AllButSelf => target.hw_enabled() && sender != Some(index),
    }
}

/// Among the named APICs that can take a vector, the one with the lowest processor priority (SDM vol. 3A, 11.6.2.4).
fn lowest<'a, T: Targets>(
    msg: &InterruptMessage,
    sender: Option<usize>,
    targets: &'a T,
) -> Option<(usize, &'a Shared)> {
    let len = targets.len();
    let start = targets.rotation().checked_rem(len)?;
    (start..len)
        .chain(0..start)
        .filter_map(|index| Some((index, targets.get(index)?)))
        .filter(|&(index, target)| names(msg, sender, index, target) && target.sw_enabled())
        .min_by_key(|(_, target)| target.arbitration_priority())
}
