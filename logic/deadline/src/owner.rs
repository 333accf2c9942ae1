//! Who has a vCPU's timer: one word, which the vCPU's thread changes, and of which the host timer's callback takes what is due.
//!
//! Vocabulary: the *thread* is the vCPU's; the *callback* is the host timer's, in hard interrupt context on any CPU, also late,
//! for an arming that the thread has replaced since. Nobody waits for a callback: the word tells it whether it is still meant.
//!
//! ```text
//!   thread:    Nobody, Cpu, Guest, Host, Posted, Fired ── give ──▶ Nobody, Cpu, Guest, Host, Posted    Firing: waits for Fired
//!   callback:  Host ─────────────────────────────▶ Nobody, gone       and asks the thread to look
//!              Posted(at), at has come ──▶ Firing ── (posts the vector) ──▶ Fired, gone
//!              Posted(at), long before ──────────▶ the same           and queues the timer for then
//!              Nobody, Cpu, Guest ───────────────▶ the same, gone     and does nothing
//! ```
//! *Gone*: the host's timer fired since the thread last gave; nothing is queued there any more ([`crate::Queue`]). The word is given
//! before the host's timer is started, so a callback that finds another arming's word is at most early for it. One that queues the
//! timer anew looks at the word once more behind that: if it is another the thread's start may be the one replaced, and the thread
//! is asked.

use core::sync::atomic::{AtomicU64, Ordering};

/// Who has the timer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Home {
    /// Nothing is armed.
    Nobody,
    /// The CPU, while the vCPU is in the guest.
    Cpu,
    /// The guest itself, in this slice: the CPU's APIC timer is lent to it ([`crate::passthrough`]).
    Guest,
    /// The host's timer, which asks the thread to look.
    Host,
    /// The host's timer, which posts the vector itself when the host's TSC reaches this.
    Posted(u64),
}

/// What [`Owner::give`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// The host's timer has posted the vector: the deadline is over, and the APIC is to hear of it.
    pub fired: bool,
    /// Nothing is queued in the host's timer any more.
    pub gone: bool,
}

/// What a callback does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// It was not meant.
    Nothing,
    /// Asks the thread to look.
    Ask,
    /// Posts the vector, then calls [`Owner::posted`].
    Post,
    /// So many ticks later: calls again.
    Wait(u64),
    /// Queues the timer for then, so many ticks later, and asks the thread unless [`Owner::is_still`] for the same moment.
    Later {
        /// The moment.
        at: u64,
        /// Ticks until then.
        left: u64,
    },
}

const NOBODY: u64 = 0;
const CPU: u64 = 1;
const HOST: u64 = 2;
const POSTED: u64 = 3;
const FIRING: u64 = 4;
const FIRED: u64 = 5;
const GUEST: u64 = 6;
const KIND: u64 = 7;
const GONE: u64 = 8;
/// The moment stands above; rounded up, so never early.
const SHIFT: u32 = 4;

/// The word: the machine's, or loom's model of it.
pub trait Word {
    /// Acquires.
    fn load(&self) -> u64;
    /// Releases.
    fn store(&self, new: u64);
    /// Replaces `old`, or fails with the value found.
    fn exchange(&self, old: u64, new: u64) -> Result<u64, u64>;
    /// Lets the other side go on.
    fn pause();
}

impl Word for AtomicU64 {
    fn load(&self) -> u64 {
        self.load(Ordering::Acquire)
    }
    fn store(&self, new: u64) {
        self.store(new, Ordering::Release);
    }
    fn exchange(&self, old: u64, new: u64) -> Result<u64, u64> {
        self.compare_exchange(old, new, Ordering::AcqRel, Ordering::Acquire)
    }
    fn pause() {
        core::hint::spin_loop();
    }
}

/// See the file's head. All-zero: nobody.
#[derive(Debug, Default, bytemuck::Zeroable)]
#[repr(transparent)]
pub struct Owner<W = AtomicU64>(W);

impl Home {
    fn word(self) -> u64 {
        match self {
            Self::Nobody => NOBODY,
            Self::Cpu => CPU,
            Self::Guest => GUEST,
            Self::Host => HOST,
            Self::Posted(at) => POSTED | at.div_ceil(1 << SHIFT) << SHIFT,
        }
    }
}

impl<W: Word> Owner<W> {
    /// Around a word of 0.
    pub fn new(word: W) -> Self {
        Self(word)
    }

    /// The thread's: the CPU has it. Nothing of the callback's can have changed that.
    pub fn is_cpu(&self) -> bool {
        self.0.load() & KIND == CPU
    }

    /// The thread's: the guest has it in this slice.
    pub fn is_guest(&self) -> bool {
        self.0.load() & KIND == GUEST
    }

    /// The thread's: the host's timer has it, and asks. If not any more a moment later, it has asked.
    pub fn is_host(&self) -> bool {
        self.0.load() & KIND == HOST
    }

    /// The thread's: the host's timer has it and posts, or has posted.
    pub fn is_posted(&self) -> bool {
        matches!(self.0.load() & KIND, POSTED | FIRING | FIRED)
    }

    /// The thread's: the host's timer has posted what the APIC does not know of yet. Waits for one that is about to.
    pub fn has_fired(&self) -> bool {
        self.settled() & KIND == FIRED
    }

    /// Waits while the callback posts, which takes it a few instructions with interrupts off.
    fn settled(&self) -> u64 {
        loop {
            let word = self.0.load();
            if word & KIND != FIRING {
                return word;
            }
            W::pause();
        }
    }

    /// The thread's: the one way to give the timer to somebody. `queued`: the host's timer may be queued, so a callback may come; without,
    /// nobody else changes a word that the callback has nothing to do with.
    pub fn give(&self, to: Home, queued: bool) -> Found {
        let new = to.word();
        let mut old = self.settled();
        loop {
            let found = Found { fired: old & KIND == FIRED, gone: old & GONE != 0 };
            if !queued && matches!(old & KIND, NOBODY | CPU | GUEST) {
                if old != new {
                    self.0.store(new);
                }
                return found;
            }
            match self.0.exchange(old, new) {
                Ok(_) => return found,
                Err(_) => old = self.settled(),
            }
        }
    }

    /// The callback's, at `tsc` of the host: what is to be done. It waits for no more than `patience` ticks.
    pub fn take_due(&self, tsc: u64, patience: u64) -> Due {
        let mut old = self.0.load();
        loop {
            let at = old & !(KIND | GONE);
            let left = at.saturating_sub(tsc);
            let (new, due) = match old & KIND {
                HOST => (NOBODY | GONE, Due::Ask),
                POSTED if left == 0 => (FIRING | GONE, Due::Post),
                POSTED if left <= patience => return Due::Wait(left),
                POSTED => return Due::Later { at, left },
                _ => (old | GONE, Due::Nothing),
            };
            match self.0.exchange(old, new) {
                Ok(_) => return due,
                Err(now) => old = now,
            }
        }
    }

    /// The callback's, behind [`Due::Later`]: it is this moment still that is waited for.
    pub fn is_still(&self, at: u64) -> bool {
        self.0.load() & !GONE == at | POSTED
    }

    /// The callback's, behind [`Due::Post`]: the vector is posted.
    pub fn posted(&self) {
        self.0.store(FIRED | GONE);
    }
}
