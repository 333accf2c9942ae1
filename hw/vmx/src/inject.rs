//! Events into the guest and back out of an interrupted delivery (SDM vol. 3C, 25.8.3, 25.9.3, 27.2.1.3, 28.2.4).

use crate::cache as c;
use crate::machine::Machine;
use crate::vcpu::Vmx;
use exitless_vcpu::backend::{By, Event};
use exitless_x86::exception::{Exception, Vector};
use exitless_x86::regs::cr0;
use exitless_x86::vmx::control::interruption as i;
use exitless_x86::vmx::exit::BasicReason;
use exitless_x86::vmx::field as f;
use exitless_x86::vmx::interruptibility;

/// An event as the VM-entry fields take it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Encoded {
    pub(crate) info: u32,
    pub(crate) code: u32,
    pub(crate) length: u32,
}

/// Vectors that VM entry wants to deliver with an error code in protected mode, and no others (SDM vol. 3C, 27.2.1.3).
fn pushes_code(v: Vector) -> bool {
    matches!(v.0, 8 | 10..=14 | 17)
}

/// Encodes an event. `protected`: CR0.PE, without which nothing pushes an error code. `any_code`: the CPU takes any
/// pairing of vector and error code.
pub(crate) fn encode(event: Event, protected: bool, any_code: bool) -> Encoded {
    match event {
        Event::Interrupt(v) => {
            Encoded { info: i::VALID | i::TYPE_EXTERNAL | u32::from(v), ..Encoded::default() }
        }
        Event::Nmi => Encoded { info: i::VALID | i::TYPE_NMI | 2, ..Encoded::default() },
        Event::Software(by, v, length) => software(by, v, length),
        Event::Exception(x) => {
            let info = i::VALID | i::TYPE_HARDWARE_EXCEPTION | u32::from(x.vector.0 & 31);
            let code = match x.error_code {
                _ if !protected => None,
                given if any_code => given,
                given => pushes_code(x.vector).then(|| given.unwrap_or(0)),
            };
            match code {
                // Bits 31:16 must be zero (SDM vol. 3C, 27.2.1.3).
                Some(code) => Encoded { info: info | i::ERROR_CODE_VALID, code: code & 0xffff, length: 0 },
                None => Encoded { info, ..Encoded::default() },
            }
        }
    }
}

/// Length 0: the shortest form. Prefixes make any of them longer.
fn software(by: By, v: u8, length: u8) -> Encoded {
    let (kind, shortest) = match by {
        By::IntN => (i::TYPE_SOFTWARE_INTERRUPT, 2),
        By::Int3OrInto => (i::TYPE_SOFTWARE_EXCEPTION, 1),
        By::Int1 => (i::TYPE_PRIVILEGED_SOFTWARE_EXCEPTION, 1),
    };
    let length = if length == 0 { shortest } else { u32::from(length.min(15)) };
    Encoded { info: i::VALID | kind | u32::from(v), code: 0, length }
}

/// Decodes IDT-vectoring information. `cr2` is the guest's, for an interrupted #PF; `length` the exit-instruction length,
/// which counts for software events.
pub(crate) fn decode(info: u32, code: u32, length: u32, cr2: u64) -> Option<Event> {
    if info & i::VALID == 0 {
        return None;
    }
    let vector = (info & i::VECTOR) as u8;
    match info & i::TYPE {
        i::TYPE_EXTERNAL => Some(Event::Interrupt(vector)),
        i::TYPE_NMI => Some(Event::Nmi),
        i::TYPE_HARDWARE_EXCEPTION => Some(Event::Exception(Exception {
            vector: Vector(vector),
            error_code: (info & i::ERROR_CODE_VALID != 0).then_some(code),
            payload: if Vector(vector) == Vector::PF { cr2 } else { 0 },
        })),
        kind => Some(Event::Software(by(kind)?, vector, length.min(15) as u8)),
    }
}

/// The instruction that events of this type come from.
fn by(kind: u32) -> Option<By> {
    match kind {
        i::TYPE_SOFTWARE_INTERRUPT => Some(By::IntN),
        i::TYPE_SOFTWARE_EXCEPTION => Some(By::Int3OrInto),
        i::TYPE_PRIVILEGED_SOFTWARE_EXCEPTION => Some(By::Int1),
        _ => None,
    }
}

impl<M: Machine> Vmx<M> {
    pub(crate) fn put_event(&mut self, event: Event) {
        let e = encode(event, self.read_cr0() & cr0::PE != 0, self.caps.any_error_code());
        self.cache.set(c::EVENT, e.info);
        self.cache.set(c::EVENT_CODE, e.code);
        self.cache.set(c::EVENT_LENGTH, e.length);
    }

    /// The event that waits for the next entry is an NMI: as good as delivered, and masking others.
    pub(crate) fn injecting_nmi(&self) -> bool {
        let info = self.cache.get(&self.m, c::EVENT);
        info & i::VALID != 0 && info & i::TYPE == i::TYPE_NMI
    }

    /// The event whose delivery the last exit interrupted.
    pub(crate) fn vectoring(&self) -> Option<Event> {
        let info = self.m.get(f::IDT_VECTORING_INFO);
        if info & i::VALID == 0 {
            return None;
        }
        let code = self.m.get(f::IDT_VECTORING_ERROR_CODE);
        let length = self.m.get(f::EXIT_INSTRUCTION_LENGTH);
        decode(info, code, length, self.run.cr2)
    }

    pub(crate) fn take_event(&mut self) -> Option<Event> {
        if self.taken || !self.left || self.exit_reason().basic().by_instruction() {
            return None;
        }
        self.taken = true;
        match self.vectoring() {
            Some(Event::Nmi) => {
                // The delivery that masked NMIs is to happen again.
                self.mask_nmis(false);
                Some(Event::Nmi)
            }
            // What the switch does with it is in the exit.
            Some(Event::Software(..)) if self.exit_reason().basic() == BasicReason::TASK_SWITCH => None,
            // Software events too: to run INT n again would be wrong, as its interrupt shadow is gone (SDM vol. 3C, 28.3.4) and
            // an interrupt could come before it.
            other => other,
        }
    }

    pub(crate) fn mask_nmis(&mut self, on: bool) {
        let now = self.cache.get(&self.m, c::INTERRUPTIBILITY);
        let nmi = if on { interruptibility::NMI } else { 0 };
        self.cache.set(c::INTERRUPTIBILITY, now & !interruptibility::NMI | nmi);
    }
}
