//! The descriptor and its operations; the rules are in the crate's head.

use crate::memory::{Barrier, Memory, Native, Word};
use core::fmt;
use core::mem::{offset_of, size_of};
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed};
use exitless_x86::vmx::posted::{ALIGN, CONTROL_OFFSET, Control, WORD_BITS};

/// Where notifications go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The physical vector.
    pub vector: u8,
    /// The CPU, as NDST has it (`exitless_x86::vmx::posted::destination`).
    pub destination: u32,
}

/// What a sender has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a notification that is not sent is lost"]
pub enum Posted {
    /// The vector was requested already: whoever requested it notifies.
    Coalesced,
    /// Something else was outstanding: the notification for it serves this too.
    Outstanding,
    /// The vCPU is out: it looks before it runs or blocks. Nothing to send.
    Suppressed,
    /// Send this vector there.
    Notify(Place),
}

impl Posted {
    /// A sender of the host's own notifies. Where the descriptor is `shown` to guests, always: one of theirs may have stopped, for as long as
    /// its host likes, between what it announced and the notification.
    pub fn owes(self, shown: impl FnOnce() -> bool) -> bool {
        !matches!(self, Self::Coalesced | Self::Outstanding) || shown()
    }
}

/// Whether the owner may sleep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "sleeping with something pending loses it"]
pub enum Block {
    /// The next post wakes through the wake-up vector.
    Sleep,
    /// Something is pending: do not sleep; [`Descriptor::load`] next.
    Pending,
}

impl fmt::Debug for Descriptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let control = Control::from_bits(self.control.load(Relaxed));
        f.debug_struct("Descriptor").field("pir", &self.pir).field("control", &control).finish()
    }
}

/// 64 bytes that the CPU and interrupt remapping hardware read and write too. All-zero is valid: nothing requested, NV 0,
/// notifications on; call [`Descriptor::init`] before hardware hears of it.
#[derive(bytemuck::Zeroable)]
#[zeroable(bound = "M::Word: bytemuck::Zeroable")]
#[repr(C, align(64))]
pub struct Descriptor<M: Memory = Native> {
    pub(crate) pir: [M::Word; 4],
    pub(crate) control: M::Word,
    /// What guests read: see [`Descriptor::show`].
    pub(crate) flags: [M::Word; 2],
    pub(crate) reserved: u64,
}

/// A flag that guests with a window to the descriptor read (`docs/protocols/shared-descriptor.md`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flag {
    /// The vCPU may send by itself.
    Sends,
    /// Others may post to it by themselves.
    Found,
}

/// So often is the control word exchanged: more often than senders of a vCPU make an exchange fail, each of which sets ON once.
const TRIES: u32 = 8;

const _: () = {
    assert!(size_of::<Descriptor>() == 64 && align_of::<Descriptor>() == ALIGN);
    assert!(offset_of!(Descriptor, control) == CONTROL_OFFSET);
    assert!(offset_of!(Descriptor, flags) == CONTROL_OFFSET + 8);
};

fn outstanding(word: u64) -> bool {
    Control::from_bits(word).outstanding()
}

const ON: u64 = Control::new().with_outstanding(true).into_bits();
const SN: u64 = Control::new().with_suppress(true).into_bits();

impl<M: Memory> Descriptor<M> {
    /// The vCPU is created: out, nothing requested. Nobody posts yet, but a guest that saw its place before it may have written there.
    pub fn init(&self) {
        for word in &self.pir {
            word.swap(0, Relaxed);
        }
        self.control.swap(SN, AcqRel);
        for flag in &self.flags {
            flag.swap(0, Relaxed);
        }
    }

    // --- anyone ---

    /// Posts `vector`.
    pub fn post(&self, vector: u8) -> Posted {
        if self.request(vector) { self.announce() } else { Posted::Coalesced }
    }

    /// The first half of [`Descriptor::post`]: the request bit. `true`: it was not set, [`Descriptor::announce`] must follow.
    pub fn request(&self, vector: u8) -> bool {
        let (word, bit) = place_of(vector);
        self.pir.get(word).is_some_and(|pir| pir.fetch_or(bit, AcqRel) & bit == 0)
    }

    /// The second half: ON, and what that asks for.
    pub fn announce(&self) -> Posted {
        let before = Control::from_bits(self.control.fetch_or(ON, AcqRel));
        if before.outstanding() {
            Posted::Outstanding
        } else if before.suppress() {
            Posted::Suppressed
        } else {
            Posted::Notify(Place { vector: before.vector(), destination: before.destination() })
        }
    }

    /// Something waits to be taken. Never ON alone: see the crate's head.
    pub fn has_pending(&self) -> bool {
        outstanding(self.control.load(Acquire)) || self.any_requested()
    }

    /// Something was announced since the last take.
    pub fn outstanding(&self) -> bool {
        outstanding(self.control.load(Acquire))
    }

    /// Requests of vectors `64 * index` to `64 * index + 63`; 0 beyond 3.
    pub fn requested(&self, index: usize) -> u64 {
        self.pir.get(index).map_or(0, |word| word.load(Acquire))
    }

    /// The wake-up handler's question: was this vCPU, on the list of the CPU that was notified, meant?
    pub fn wants_wake_up(&self) -> bool {
        outstanding(self.control.load(Acquire))
    }

    // --- the owner ---

    /// The vCPU runs on this CPU from now on, coming from out or blocked. `true`: something is pending, [`take`] it before
    /// the guest runs (the caller does so anyway before each entry).
    ///
    /// [`take`]: Descriptor::take
    pub fn load(&self, at: Place) -> bool {
        let before = self.change(|c| Some(place(c, at).with_suppress(false)));
        M::barrier(Barrier::Load);
        let requested = self.any_requested();
        if requested {
            // Hardware posted while suppressed and left ON alone.
            self.control.fetch_or(ON, AcqRel);
        }
        requested || before.is_some_and(|c| c.outstanding())
    }

    /// The vCPU is out: its thread was preempted, or returns to user space. A notification would hit whatever runs next.
    pub fn put(&self) {
        self.control.fetch_or(SN, AcqRel);
    }

    /// The thread wants to sleep, from running or out, and stands on the wake-up list of the CPU in `at` already.
    pub fn block(&self, at: Place) -> Block {
        let changed = self.change(|c| (!c.outstanding()).then(|| place(c, at).with_suppress(false)));
        if changed.is_none_or(|before| before.outstanding()) {
            return Block::Pending;
        }
        M::barrier(Barrier::Block);
        if self.any_requested() { Block::Pending } else { Block::Sleep }
    }

    /// The same from running, by an owner that has looked at the requests there are and may leave some of them for later: only what was
    /// announced since counts.
    pub fn wait(&self, at: Place) -> Block {
        // SN is clear, so that every sender announces: nothing is requested behind the owner's back.
        let changed = self.change(|c| (!c.outstanding() && !c.suppress()).then(|| place(c, at)));
        if changed.is_none_or(|before| before.outstanding()) { Block::Pending } else { Block::Sleep }
    }

    /// Takes the requests, bit n of word n / 64 for vector n; merges them into `into`. `false`: nothing was outstanding.
    /// For a loaded vCPU: out or blocked, requests may wait without ON.
    pub fn take(&self, into: &mut [u64; 4]) -> bool {
        if !self.settle() {
            return false;
        }
        for (word, into) in self.pir.iter().zip(into) {
            if word.load(Relaxed) != 0 {
                *into |= word.swap(0, AcqRel);
            }
        }
        true
    }

    /// Takes all requests, ON or not: the vCPU's thread hands them to hardware, or looks at them itself. Merges them into
    /// `into`.
    pub fn drain(&self, into: &mut [u64; 4]) {
        self.settle();
        for (word, into) in self.pir.iter().zip(into) {
            if word.load(Relaxed) != 0 {
                *into |= word.swap(0, AcqRel);
            }
        }
    }

    /// Forgets that something was announced, before the owner looks at the requests. `true`: it was.
    pub fn settle(&self) -> bool {
        let was = outstanding(self.control.load(Relaxed));
        if was {
            self.control.fetch_and(!ON, AcqRel);
            M::barrier(Barrier::Take);
        }
        was
    }

    /// Takes one request. `true`: it was there.
    pub fn withdraw(&self, vector: u8) -> bool {
        let (word, bit) = place_of(vector);
        self.pir.get(word).is_some_and(|pir| pir.fetch_and(!bit, AcqRel) & bit != 0)
    }

    /// Puts requests back, without announcing them: the owner knows.
    pub fn put_back(&self, index: usize, bits: u64) {
        if let Some(word) = self.pir.get(index) {
            word.fetch_or(bits, AcqRel);
        }
    }

    /// What guests read of a flag: `value`, or 0. Written by force, whatever they have made of it.
    pub fn show(&self, flag: Flag, value: u64) {
        if let Some(word) = self.flags.get(flag as usize) {
            word.swap(value, AcqRel);
        }
    }

    /// Replaces requests: of word `index` those in `mask` become `bits`.
    pub fn replace(&self, index: usize, mask: u64, bits: u64) {
        if let Some(word) = self.pir.get(index) {
            word.fetch_and(!mask, AcqRel);
            word.fetch_or(bits & mask, AcqRel);
        }
    }

    // --- inside ---

    fn any_requested(&self) -> bool {
        self.pir.iter().any(|word| word.load(Relaxed) != 0)
    }

    /// Replaces the control word in one piece; `None` from `f` leaves it. What was there before, if it was replaced.
    ///
    /// A guest that shares the word may write it all the time: after some tries it is replaced in any case, with ON, which is what was
    /// there before for all that the owner knows.
    fn change(&self, f: impl Fn(Control) -> Option<Control>) -> Option<Control> {
        let mut word = self.control.load(Acquire);
        for _ in 0..TRIES {
            let old = Control::from_bits(word);
            match self.control.exchange(word, f(old)?.into_bits()) {
                Ok(_) => return Some(old),
                Err(now) => word = now,
            }
        }
        let old = Control::from_bits(word);
        self.control.swap(f(old)?.with_outstanding(true).into_bits(), AcqRel);
        Some(old.with_outstanding(true))
    }
}

/// Index of a vector's word, and its bit there.
fn place_of(vector: u8) -> (usize, u64) {
    ((u32::from(vector) / WORD_BITS) as usize, 1 << (u32::from(vector) % WORD_BITS))
}

fn place(c: Control, at: Place) -> Control {
    c.with_vector(at.vector).with_destination(at.destination)
}
