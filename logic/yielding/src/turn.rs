//! Whose turn it is.

use crate::hints::Hints;
use bytemuck::Zeroable;
use core::sync::atomic::{AtomicU32, Ordering::Relaxed};

/// Most vCPUs that one look asks, beside the last receiver: what it costs does not grow with the VM.
pub const WINDOW: usize = 64;
/// Most that a spinner tries.
const TRIES: usize = 3;
/// One look in so many forgets ranks.
const PLAIN: u32 = 4;

/// What a look finds of a vCPU that is ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// An interrupt waits for it.
    pub interrupt: bool,
    /// The guest was in its kernel.
    pub in_kernel: bool,
    /// It spun when it gave its CPU away.
    pub spinning: bool,
}

impl Seen {
    /// `None`: not ready. `interrupt` is asked of ready ones only.
    pub fn of(hints: &Hints, interrupt: impl FnOnce() -> bool) -> Option<Self> {
        hints.is_ready().then(|| Self {
            interrupt: interrupt(),
            in_kernel: hints.was_in_kernel(),
            spinning: hints.is_spinning(),
        })
    }

    fn rank(self, receiver: bool) -> Rank {
        match self {
            Self { interrupt: true, .. } => Rank::Interrupt,
            _ if receiver => Rank::Receiver,
            Self { spinning: true, .. } => Rank::Spinner,
            Self { in_kernel: true, .. } => Rank::Kernel,
            _ => Rank::User,
        }
    }
}

/// Why it may be the one that the spinner waits for; the best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rank {
    /// It has an interrupt to take: perhaps one that the spinner wants answered.
    Interrupt,
    /// The spinner's last IPI went there.
    Receiver,
    /// It was in its kernel, and may hold the lock.
    Kernel,
    /// In its user's code, which holds no lock of the kernel's; but time spent there is not lost.
    User,
    /// It waits itself.
    Spinner,
}

/// Those to try, the best first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Few {
    ranked: [Option<(Rank, usize)>; TRIES],
}

impl Few {
    /// Behind those that are as good.
    fn add(&mut self, rank: Rank, index: usize) {
        let mut new = Some((rank, index));
        for place in &mut self.ranked {
            let better = match (new, *place) {
                (Some((new, _)), Some((old, _))) => new < old,
                (new, None) => new.is_some(),
                (None, Some(_)) => false,
            };
            if better {
                core::mem::swap(place, &mut new);
            }
        }
    }

    /// Nobody.
    pub fn is_empty(&self) -> bool {
        self.iter().next().is_none()
    }

    /// Their indices.
    pub fn iter(&self) -> impl Iterator<Item = usize> {
        self.ranked.iter().flatten().map(|&(_, index)| index)
    }
}

/// Where in the VM the next look begins. Spinners change it together and lose each other's changes: that delays a turn at most.
#[derive(Debug, Default, Zeroable)]
#[repr(C)]
pub struct Rotation {
    /// Of looks that count ranks, and of those that do not.
    places: [AtomicU32; 2],
    looks: AtomicU32,
}

impl Rotation {
    /// Whom the vCPU at `me`, of `len`, should try. `receiver`: who got its last IPI. `look` answers `None` for one that is not ready.
    pub fn choose(
        &self,
        me: usize,
        len: usize,
        receiver: Option<usize>,
        look: impl Fn(usize) -> Option<Seen>,
    ) -> Few {
        let mut few = Few::default();
        let looks = self.looks.load(Relaxed);
        self.looks.store(looks.wrapping_add(1), Relaxed);
        let plain = looks.is_multiple_of(PLAIN);
        let window = len.min(WINDOW);
        let [ranked, unranked] = &self.places;
        let from = if plain { unranked } else { ranked };
        let Some(place) = (from.load(Relaxed) as usize).checked_rem(len) else { return few };
        let at = |step: usize| (place + step) % len;
        for index in (0..window).map(at).filter(|&index| index != me) {
            if let Some(seen) = look(index) {
                few.add(if plain { Rank::Interrupt } else { seen.rank(receiver == Some(index)) }, index);
            }
        }
        // Those that a plain look tries are in the order of the window. Of equals the next is the first the next time.
        let behind = if plain { few.iter().last() } else { few.iter().next() };
        let next = behind.map_or(at(window), |index| (index + 1) % len);
        from.store(next as u32, Relaxed);
        // One beyond the window is as good as one in it; it has no part in the rotation.
        let beyond = receiver.filter(|&r| !plain && r < len && r != me && (r + len - place) % len >= window);
        if let Some(r) = beyond
            && let Some(seen) = look(r)
        {
            few.add(seen.rank(true), r);
        }
        few
    }
}
