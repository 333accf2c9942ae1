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
        // INT3 and INTO are exceptions to EVENTINJ.
        Event::Software(By::Int3OrInto, v, _) => (e::VALID | e::TYPE_EXCEPTION | u32::from(v), 0),
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

/// Decodes EXITINTINFO: what was being delivered. `cr2` is the guest's, for an interrupted #PF.
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
        let (word, code) = encode(event);
        self.software_length = match event {
            Event::Software(.., length) => length.max(1),
            _ => 0,
        };
        self.vmcb.set_event_inj(word);
        self.vmcb.set_event_inj_err(code);
    }

    /// An instruction's event returns behind the instruction: RIP from there on, or where the CPU has a place for that, there.
    pub(crate) fn begin_software(&mut self) {
        self.software_entered = core::mem::take(&mut self.software_length);
        if self.software_entered == 0 {
            return;
        }
        let next = self.save().rip.wrapping_add(u64::from(self.software_entered));
        if self.next_rip {
            self.vmcb.set_next_rip(next);
        } else {
            self.vmcb.set_rip(next);
        }
        self.software_word = self.control().event_inj;
        self.software_at = self.place();
    }

    /// The linear address of RIP.
    fn place(&self) -> u64 {
        self.save().cs.base.wrapping_add(self.save().rip)
    }

    /// `word` is the event of the last entry, and the guest has not moved since: it is that delivery, not one of the guest's own
    /// after it. A CPU without a place for the next RIP cannot tell ours from the same INT n right behind it.
    fn is_ours(&self, word: u32) -> bool {
        let event = e::VALID | e::TYPE | e::VECTOR;
        self.software_entered != 0
            && (word ^ self.software_word) & event == 0
            && self.place() == self.software_at
    }

    /// Such an event that we gave comes again. The guest's own do not: the instruction executes again from its own RIP, which the
    /// exit left in place.
    fn interrupted_software(&mut self, by: By, vector: u8, word: u32) -> Option<Event> {
        let ours = self.is_ours(word);
        let length = core::mem::take(&mut self.software_entered);
        self.runs_again = !ours;
        if !ours {
            return None;
        }
        if !self.next_rip {
            self.vmcb.set_rip(self.save().rip.wrapping_sub(u64::from(length)));
        }
        Some(Event::Software(by, vector, length))
    }

    pub(crate) fn take_event(&mut self) -> Option<Event> {
        let cr2 = self.save().cr2;
        let c = self.control();
        let (word, code) = (c.exit_int_info, c.exit_int_info_err);
        self.vmcb.set_exit_int_info(0);
        self.runs_again = false;
        match vectoring(word, code, cr2) {
            Some(Event::Nmi) => {
                // The delivery that would have masked NMIs did not happen.
                self.set_nmi_mask(false);
                Some(Event::Nmi)
            }
            Some(Event::Software(by, vector, _)) => self.interrupted_software(by, vector, word),
            other => other,
        }
    }
}
