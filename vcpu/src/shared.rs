//! What other CPUs may touch of a vCPU: its requests, its mode and its APIC's mailbox. Atomics only.
//!
//! Vocabulary: a *request* asks the vCPU's thread to look at something before it next enters the guest; a *kick*
//! makes it come out of the guest or out of sleep to see the request.
//!
//! ```text
//!            slice begins                 VM entry ... exit
//!  OUTSIDE ---------------> IN_GUEST ------------------------> OUTSIDE
//!                              | kicked: the IPI forces an exit
//! ```
//! The one race that matters: a requester stores the request, then loads the mode; the vCPU stores IN_GUEST, then
//! loads the requests. Both are SeqCst, so at least one sees the other: either the vCPU notices the request and does
//! not enter, or the requester sees IN_GUEST and sends the IPI. `tests/loom.rs` holds this.

use crate::stats::waker;
use core::sync::atomic::{AtomicBool, AtomicI32, AtomicU8, AtomicU32, AtomicU64, Ordering};
use exitless_chooser::{Facts, Fallback, Mechanism, Set};
use exitless_lapic::Shared as ApicShared;

/// A reason to look before the next entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request(pub u64);

#[allow(missing_docs)]
impl Request {
    /// Interrupt state changed: evaluate what to inject.
    pub const EVENT: Self = Self(1 << 0);
    /// Guest-physical translations changed: flush before entering.
    pub const TLB_FLUSH: Self = Self(1 << 1);
    /// Someone waits for readers of slots and routes.
    pub const QUIESCE: Self = Self(1 << 2);
    /// The APIC timer's host timer fired.
    pub const TIMER: Self = Self(1 << 3);
    /// kvmclock must be written again.
    pub const CLOCK: Self = Self(1 << 4);
    /// Steal time must be written again.
    pub const STEAL: Self = Self(1 << 5);
    /// INIT or SIPI waits.
    pub const APIC_STATE: Self = Self(1 << 6);
    /// The VM died (its memory is gone).
    pub const DEAD: Self = Self(1 << 8);
    /// The host's TSC is not where this vCPU left it.
    pub const TSC: Self = Self(1 << 11);
    /// Whether the CPU logs the guest's writes has changed.
    pub const LOGGING: Self = Self(1 << 9);
    /// The guest is to be told that it was stopped.
    pub const STOPPED: Self = Self(1 << 12);
    /// The guest's lazy deadline is to be looked at, and not attended before the guest's next write.
    pub const LAZY: Self = Self(1 << 15);
    /// The VM's switches moved, or a fact that [`crate::mechanisms`] looks at did.
    pub const MECHANISMS: Self = Self(1 << 14);
    /// Pages have come that others brought, or the guest can hear of them.
    pub const ASYNC_PF: Self = Self(1 << 16);
    /// The host slept: its clock stood still, its TSC perhaps not, and what was queued by one for the other comes late.
    pub const SLEPT: Self = Self(1 << 10);
    /// The thread came to another CPU: timers on the one it left would interrupt that one, to interrupt this one.
    pub const MOVED: Self = Self(1 << 13);

    /// Whoever asks for one of these wakes a sleeper. With the others there is time until it looks for another reason: what it has
    /// translated does not matter while it sleeps, nor what a stopped guest is told.
    pub const WAKING: Self = Self(
        Self::EVENT.0
            | Self::QUIESCE.0
            | Self::TIMER.0
            | Self::APIC_STATE.0
            | Self::LOGGING.0
            | Self::LAZY.0
            | Self::MECHANISMS.0
            | Self::ASYNC_PF.0
            | Self::SLEPT.0,
    );
}

/// Where the vCPU's thread is.
#[allow(missing_docs)]
pub mod mode {
    pub const OUTSIDE: u32 = 0;
    pub const IN_GUEST: u32 = 1;
}

/// `KVM_MP_STATE_*` values (ABI header asm/kvm.h).
#[allow(missing_docs)]
pub mod mp {
    pub const RUNNABLE: u32 = 0;
    pub const UNINITIALIZED: u32 = 1;
    pub const INIT_RECEIVED: u32 = 2;
    pub const HALTED: u32 = 3;
    pub const SIPI_RECEIVED: u32 = 4;
}

/// The guest's TSC, as whoever compares those of several vCPUs sees it.
#[derive(bytemuck::Zeroable)]
#[repr(C)]
pub struct Tsc {
    /// [`crate::clock::tsc::Rate::raw_ratio`].
    pub ratio: AtomicU64,
    /// In the guest's ticks.
    pub offset: AtomicU64,
    /// What the host's TSC fell back by while the vCPU did not run and the owner's offset does not make up for yet, in the guest's
    /// ticks: each fall is scaled for itself, whether the vCPU ran between two or not, so that TSCs that agreed do.
    owed: AtomicU64,
}

impl Tsc {
    /// Ratio and offset.
    pub fn get(&self) -> (u64, u64) {
        (self.ratio.load(Ordering::Relaxed), self.offset.load(Ordering::Relaxed))
    }

    /// The host's TSC went back by so many ticks, and the owner will make up for it before it runs.
    pub fn host_back(&self, ticks: u64) {
        let moved = crate::clock::tsc::scale(ticks, self.ratio.load(Ordering::Relaxed));
        self.offset.fetch_add(moved, Ordering::Relaxed);
        self.owed.fetch_add(moved, Ordering::Relaxed);
    }

    /// The owner's offset has something to make up for.
    pub fn owes(&self) -> bool {
        self.owed.load(Ordering::Relaxed) != 0
    }

    /// What the owner's offset has to make up for, told once.
    pub fn take_owed(&self) -> u64 {
        self.owed.swap(0, Ordering::Relaxed)
    }
}

/// What the vCPU's thread chose last. Only it writes; anyone may read. Relaxed, for nothing hangs on when a choice is seen: a mechanism
/// is right with its switch in either place, at each exit anew, and data that it shares with others has an order of its own.
#[derive(bytemuck::Zeroable)]
#[repr(C)]
pub struct Chosen {
    active: AtomicU64,
    against: AtomicU64,
    features: AtomicU32,
    /// The thread has chosen at least once.
    once: AtomicBool,
    _pad: [u8; 3],
}

impl Chosen {
    /// What is active.
    pub fn active(&self) -> Set {
        Set(self.active.load(Ordering::Relaxed))
    }

    /// What it followed from; `None`: nothing was chosen yet.
    pub fn facts(&self) -> Option<Facts> {
        // First: who sees that it was done sees facts, of that choice or of a later one.
        self.once.load(Ordering::Acquire).then(|| Facts {
            against: self.against.load(Ordering::Relaxed),
            features: self.features.load(Ordering::Relaxed),
        })
    }

    pub(crate) fn set(&self, active: Set, facts: &Facts) {
        self.against.store(facts.against, Ordering::Relaxed);
        self.features.store(facts.features, Ordering::Relaxed);
        self.active.store(active.0, Ordering::Relaxed);
        self.once.store(true, Ordering::Release);
    }
}

/// Where the guest wants to read that its vCPU was preempted. By the vCPU's own thread only, which the scheduler takes away in the
/// middle of anything.
#[derive(bytemuck::Zeroable)]
#[repr(C)]
pub struct Steal {
    /// Address of the byte; 0: nowhere.
    byte: AtomicU64,
    /// The guest is between two instructions, and nothing that the module holds came of its page tables: whoever is told that the vCPU
    /// was preempted leaves a TLB flush to its return (CVE-2022-39189).
    at_boundary: AtomicBool,
    /// The byte says preempted, perhaps with a flush that a sibling left there: it is not written until it was exchanged. A thread that
    /// loses its CPU once more on its way to the guest would wipe that flush out.
    told: AtomicBool,
}

impl Steal {
    /// The guest's wish; `None`: it has none.
    pub fn set(&self, byte: Option<u64>) {
        self.byte.store(byte.unwrap_or(0), Ordering::Relaxed);
        self.told.store(false, Ordering::Relaxed);
    }

    /// Between two instructions, or not any more.
    pub fn at_boundary(&self, is: bool) {
        if self.at_boundary.load(Ordering::Relaxed) != is {
            self.at_boundary.store(is, Ordering::Relaxed);
        }
    }

    /// The thread loses its CPU to another: where that may be told.
    pub fn to_tell(&self) -> Option<u64> {
        let byte = self.byte.load(Ordering::Relaxed);
        let may = self.at_boundary.load(Ordering::Relaxed) && !self.told.load(Ordering::Relaxed);
        (byte != 0 && may).then_some(byte)
    }

    /// The byte was written.
    pub fn note_told(&self) {
        self.told.store(true, Ordering::Relaxed);
    }

    /// The byte must be exchanged before the guest runs.
    pub fn told(&self) -> bool {
        self.told.load(Ordering::Relaxed)
    }

    /// It was.
    pub fn taken_back(&self) {
        self.told.store(false, Ordering::Relaxed);
    }
}

/// Pages that workers of the host bring (`exitless_async_pf`), as they and the owner see them.
#[derive(bytemuck::Zeroable)]
#[repr(C)]
pub struct Brought {
    /// A bit for each place whose worker has ended, until the owner has seen it.
    ended: AtomicU64,
    /// And did not get its page.
    refused: AtomicU64,
    /// The guest has a token that it did not take yet: more news need not interrupt it.
    told: AtomicBool,
    _pad: [u8; 7],
}

impl Brought {
    /// A worker's last deed; the caller requests and wakes. `true`: and interrupts, the guest waits for news.
    pub fn end(&self, place: u8, there: bool) -> bool {
        let bit = 1u64.checked_shl(place.into()).unwrap_or(0);
        if !there {
            self.refused.fetch_or(bit, Ordering::Relaxed);
        }
        self.ended.fetch_or(bit, Ordering::SeqCst);
        !self.told.load(Ordering::SeqCst)
    }

    /// The owner: workers that have ended, and those of them that got nothing.
    pub fn ended(&self) -> (u64, u64) {
        // The second behind the first, which says that it counts.
        let ended = self.ended.load(Ordering::SeqCst);
        (ended, self.refused.load(Ordering::Relaxed))
    }

    /// The owner has seen the end, and may give the place to another worker.
    pub fn settle(&self, place: u8) {
        let others = !1u64.checked_shl(place.into()).unwrap_or(0);
        self.refused.fetch_and(others, Ordering::Relaxed);
        self.ended.fetch_and(others, Ordering::SeqCst);
    }

    /// The owner: the guest has a token to take.
    pub fn token_told(&self) {
        self.told.store(true, Ordering::SeqCst);
    }

    /// The owner: it has taken it. The look at who has ended comes behind.
    pub fn token_taken(&self) {
        self.told.store(false, Ordering::SeqCst);
    }
}

/// The shared part of one vCPU.
#[derive(bytemuck::Zeroable)]
#[repr(C)]
pub struct VcpuShared {
    /// Requests not yet seen.
    pub requests: AtomicU64,
    /// The thread was put on a CPU: a [`Request::STEAL`] of its own making, which needs no locked instruction.
    pub returned: AtomicBool,
    /// By the scheduler, which had given it to others: what loops of PAUSEs wait for may be another than before.
    pub rescheduled: AtomicBool,
    /// [`mode`].
    pub mode: AtomicU32,
    /// [`mp`]: written by the owner, read by wakers.
    pub mp_state: AtomicU32,
    /// Somebody measures: time stamps are taken.
    pub measured: AtomicBool,
    /// [`waker`]: whose interrupt came last to the halted vCPU.
    pub waker: AtomicU8,
    /// It halted with interrupts enabled.
    pub halted_open: AtomicBool,
    /// The CPU the thread was last loaded on, -1 before the first.
    pub cpu: AtomicI32,
    /// From where to where the thread may use published tables.
    pub section: crate::section::Section,
    /// A sibling ends its halt (KVM_HC_KICK_CPU): the next, if it is not halted.
    pub unhalted: AtomicBool,
    /// While in the guest, the CPU delivers what is posted to `apic`: a notification is enough. Written by the owner.
    pub delivers: AtomicBool,
    /// The TSC. Written by the owner, under the VM's clock lock read by all.
    pub tsc: Tsc,
    /// Who has the APIC's timer.
    pub timer: exitless_deadline::Owner,
    /// The vector that the host's timer posts. Written by the owner, not while that may be firing.
    pub timer_vector: AtomicU8,
    /// The APIC's mailbox.
    pub apic: ApicShared,
    /// Steal time, as whoever takes the CPU away needs it.
    pub steal: Steal,
    /// Pages that others bring for it.
    pub pages: Brought,
    /// What it shows those that wait for it.
    pub hints: exitless_yielding::Hints,
    /// Which mechanisms are active: beside the counters, on lines that only the owner writes.
    pub chosen: Chosen,
    /// MSR_EXITLESS_LAZY_DEADLINE, and the deadline that is attended: for who shows them. Written by the owner.
    pub lazy_page: AtomicU64,
    /// See above.
    pub lazy_armed: AtomicU64,
    /// While somebody measures: when the first IPI was posted that no entry has followed, ticks; 0: none.
    pub sent: AtomicU64,
    /// Since when the thread sleeps, ns on the host's monotonic clock; 0: it does not. For who looks whether that is right; written by
    /// the owner, as what follows.
    pub asleep: AtomicU64,
    /// When the APIC's timer is due for which it wakes up, ns, as it was when it fell asleep; 0: none is armed.
    pub wakes_at: AtomicU64,
    /// Counters; written by the owner alone.
    pub stats: crate::stats::Stats,
}

impl VcpuShared {
    /// Posts a request. The caller kicks afterwards.
    pub fn request(&self, r: Request) {
        self.requests.fetch_or(r.0, Ordering::SeqCst);
    }

    /// Whether any request waits.
    pub fn pending(&self) -> bool {
        self.requests.load(Ordering::SeqCst) != 0
    }

    /// The sleeper's question: is there something to look at? An announcement counts even if the CPU does not deliver: its
    /// sender may have thought so, and that we are in the guest. `tests/loom_posted.rs` holds this.
    pub fn must_wake(&self) -> bool {
        self.pending() || self.returned.load(Ordering::Relaxed) || self.apic.posted().outstanding()
    }

    /// The sender's side, behind a post to a vCPU that the CPU does not deliver to: it has to look. Whose the interrupt is, of [`waker`]:
    /// the last that comes to a halted vCPU counts as what woke it. While somebody measures, the first IPI since an entry is stamped.
    pub fn request_event(&self, by: u8, tsc: impl FnOnce() -> u64) {
        if self.mp_state.load(Ordering::Relaxed) == mp::HALTED {
            self.waker.store(by, Ordering::Relaxed);
        }
        if by == waker::IPI && self.measured.load(Ordering::Relaxed) && self.sent.load(Ordering::Relaxed) == 0
        {
            self.sent.store(tsc(), Ordering::Relaxed);
        }
        self.request(Request::EVENT);
    }

    /// The owner's side: its halt is over.
    pub fn count_wake(&self) {
        let by = if self.unhalted.load(Ordering::Relaxed) {
            waker::SIBLING
        } else {
            self.waker.load(Ordering::Relaxed)
        };
        if let Some(c) = self.stats.wakes.get(usize::from(by)) {
            c.bump();
        }
    }

    /// The vCPU may use this mechanism.
    #[inline]
    pub fn active(&self, m: Mechanism) -> bool {
        self.chosen.active().has(m)
    }

    /// The owner's side: an active mechanism took a case. Exits saved or added: `stats.deeds(m).saved.add(n)`.
    #[inline]
    pub fn count_hit(&self, m: Mechanism) {
        self.stats.deeds(m).hits.bump();
    }

    /// The owner's side: an active mechanism left a case to the way there always is.
    #[inline]
    pub fn count_fallback(&self, m: Mechanism, why: Fallback) {
        let [first, ..] = &self.stats.deeds(m).fallbacks;
        self.stats.deeds(m).fallbacks.get(why as usize).unwrap_or(first).bump();
    }

    /// Takes all requests.
    pub fn take(&self) -> u64 {
        let mut own = 0;
        if self.returned.load(Ordering::Relaxed) {
            self.returned.store(false, Ordering::Relaxed);
            own = Request::STEAL.0;
        }
        if self.requests.load(Ordering::Relaxed) == 0 {
            return own;
        }
        self.requests.swap(0, Ordering::SeqCst) | own
    }

    /// The requester's side: does the thread need an IPI to come out of the guest?
    pub fn needs_ipi(&self) -> bool {
        self.mode.load(Ordering::SeqCst) == mode::IN_GUEST
    }

    /// The owner's side: announces entry, then says whether it must look at requests first.
    pub fn begin_guest(&self) -> bool {
        self.mode.store(mode::IN_GUEST, Ordering::SeqCst);
        !self.pending() && !self.returned.load(Ordering::Relaxed)
    }

    /// The owner's side: out of the guest.
    pub fn end_guest(&self) {
        self.mode.store(mode::OUTSIDE, Ordering::Release);
    }
}
