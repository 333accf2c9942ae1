//! Events into the guest and back out of an interrupted delivery (APM vol. 2, 15.20 and 15.7.2).

use crate::vcpu::Svm;
use exitless_vcpu::backend::{By, Event};
use exitless_x86::exception::{Exception, Vector};
use exitless_x86::svm::event_inj as e;

/// Encodes an event for EVENTINJ: the word and the error code.
pub(crate) fn encode(event: Event) -> (u32, u32) {
    match event {
        Event::Interrupt(v) => (e::VALID | e::TYPE_INTR | u32::from(v), 0),
        Event::Nmi => (e::VALID | e::TYPE_NMI | 2, 0),
        Event::Software(_, v, _) => (e::VALID | e::TYPE_SOFT | u32::from(v), 0),
        Event::Exception(x) => {
            let word = e::VALID | e::TYPE_EXCEPTION | u32::from(x.vector.0);
            match x.error_code {
                Some(code) => (word | e::ERROR_VALID, code),
                None => (word, 0),
            }
        }
    }
}

/// Decodes EXITINTINFO, as what is to be delivered again. `cr2` is the guest's, for an interrupted #PF.
pub(crate) fn decode(word: u32, code: u32, cr2: u64) -> Option<Event> {
    // INT3 and INTO are reported as exceptions but must be executed again to push the right RIP.
    let by_exception = word & e::TYPE == e::TYPE_EXCEPTION;
    vectoring(word, code, cr2).filter(|event| !(by_exception && matches!(event, Event::Software(..))))
}

/// Decodes EXITINTINFO, as what was being delivered.
pub(crate) fn vectoring(word: u32, code: u32, cr2: u64) -> Option<Event> {
    if word & e::VALID == 0 {
        return None;
    }
    let vector = (word & e::VECTOR) as u8;
    match word & e::TYPE {
        e::TYPE_INTR => Some(Event::Interrupt(vector)),
        e::TYPE_NMI => Some(Event::Nmi),
        e::TYPE_SOFT => Some(Event::Software(By::IntN, vector, 0)),
        e::TYPE_EXCEPTION => {
            if matches!(Vector(vector), Vector::BP | Vector::OF) {
                return Some(Event::Software(By::Int3OrInto, vector, 0));
            }
            Some(Event::Exception(Exception {
                vector: Vector(vector),
                error_code: (word & e::ERROR_VALID != 0).then_some(code),
                payload: if Vector(vector) == Vector::PF { cr2 } else { 0 },
            }))
        }
        _ => None,
    }
}

impl Svm {
    pub(crate) fn put_event(&mut self, event: Event) {
        if event == Event::Nmi {
            self.set_nmi_mask(true);
        }
        if let Event::Exception(x) = event
            && x.vector == Vector::PF
        {
            self.save_mut().cr2 = x.payload;
        }
        let (word, code) = encode(event);
        let c = self.control_mut();
        c.event_inj = word;
        c.event_inj_err = code;
    }

    pub(crate) fn take_event(&mut self) -> Option<Event> {
        let cr2 = self.save().cr2;
        let c = self.control_mut();
        let (word, code) = (c.exit_int_info, c.exit_int_info_err);
        c.exit_int_info = 0;
        let event = decode(word, code, cr2);
        if event == Some(Event::Nmi) {
            // The delivery that would have masked NMIs did not happen.
            self.set_nmi_mask(false);
        }
        // INT n: the instruction executes again from its own RIP, which the exit left in place.
        match event {
            Some(Event::Software(..)) => None,
            other => other,
        }
    }
}
