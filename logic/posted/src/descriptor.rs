//! The descriptor and its operations; the rules are in the crate's head.

use crate::memory::{Barrier, Memory, Native, Word};
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

/// Whether the owner may sleep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "sleeping with something pending loses it"]
pub enum Block {
    /// The next post wakes through the wake-up vector.
    Sleep,
    /// Something is pending: do not sleep; [`Descriptor::load`] next.
    Pending,
}

/// 64 bytes that the CPU and interrupt remapping hardware read and write too. All-zero is valid: nothing requested, NV 0,
/// notifications on; call [`Descriptor::init`] before hardware hears of it.
#[derive(bytemuck::Zeroable)]
#[zeroable(bound = "M::Word: bytemuck::Zeroable")]
#[repr(C, align(64))]
pub struct Descriptor<M: Memory = Native> {
    pub(crate) pir: [M::Word; 4],
    pub(crate) control: M::Word,
    pub(crate) reserved: [u64; 3],
}

const _: () = {
    assert!(size_of::<Descriptor>() == 64 && align_of::<Descriptor>() == ALIGN);
    assert!(offset_of!(Descriptor, control) == CONTROL_OFFSET);
};

fn outstanding(word: u64) -> bool {
    Control::from_bits(word).outstanding()
}

const ON: u64 = Control::new().with_outstanding(true).into_bits();
const SN: u64 = Control::new().with_suppress(true).into_bits();

impl<M: Memory> Descriptor<M> {
    /// The vCPU is created: out, nothing requested. Nobody posts yet.
    pub fn init(&mut self) {
        for word in &self.pir {
            word.swap(0, Relaxed);
        }
        self.control.swap(SN, AcqRel);
        self.reserved = [0; 3];
    }

    // --- anyone ---

    /// Posts `vector`.
    pub fn post(&self, vector: u8) -> Posted {
        let (word, bit) = (u32::from(vector) / WORD_BITS, 1 << (u32::from(vector) % WORD_BITS));
        let Some(pir) = self.pir.get(word as usize) else { return Posted::Coalesced };
        if pir.fetch_or(bit, AcqRel) & bit != 0 {
            return Posted::Coalesced;
        }
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
        if changed.is_none() {
            return Block::Pending;
        }
        M::barrier(Barrier::Block);
        if self.any_requested() { Block::Pending } else { Block::Sleep }
    }

    /// Takes the requests, bit n of word n / 64 for vector n; merges them into `into`. `false`: nothing was outstanding.
    /// For a loaded vCPU: out or blocked, requests may wait without ON.
    pub fn take(&self, into: &mut [u64; 4]) -> bool {
        if !outstanding(self.control.load(Relaxed)) {
            return false;
        }
        self.control.fetch_and(!ON, AcqRel);
        M::barrier(Barrier::Take);
        for (word, into) in self.pir.iter().zip(into) {
            if word.load(Relaxed) != 0 {
                *into |= word.swap(0, AcqRel);
            }
        }
        true
    }

    // --- under the lock of the wake-up list ---

    /// A blocked vCPU's CPU goes away: it stands on the list of `to`'s CPU already. `true`: wake the vCPU, a sender may have
    /// notified the old CPU. A vCPU that is not blocked at `from` (any more) is left alone.
    pub fn retarget(&self, from: Place, to: Place) -> bool {
        let at =
            |c: Control| Place { vector: c.vector(), destination: c.destination() } == from && !c.suppress();
        self.change(|c| at(c).then(|| place(c, to))).is_some_and(|before| before.outstanding())
    }

    // --- inside ---

    fn any_requested(&self) -> bool {
        self.pir.iter().any(|word| word.load(Relaxed) != 0)
    }

    /// Replaces the control word in one piece; `None` from `f` leaves it. What was there before, if it was replaced.
    fn change(&self, f: impl Fn(Control) -> Option<Control>) -> Option<Control> {
        let mut word = self.control.load(Acquire);
        loop {
            let old = Control::from_bits(word);
            match self.control.exchange(word, f(old)?.into_bits()) {
                Ok(_) => return Some(old),
                Err(now) => word = now,
            }
        }
    }
}

fn place(c: Control, at: Place) -> Control {
    c.with_vector(at.vector).with_destination(at.destination)
}
