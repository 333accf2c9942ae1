//! What is on its way into the guest: exceptions queued, deliveries interrupted.

use super::Vcpu;
use crate::backend::{Backend, Event};
use exitless_x86::exception::{Exception, Vector};
use exitless_x86::regs::dr6;

impl<B: Backend> Vcpu<B> {
    /// Queues an exception that the guest's own doing raised. `false`: triple fault.
    pub fn raise(&mut self, x: Exception) -> bool {
        match x.vector {
            // B0 to B3 tell of this one, the others gather until software clears them (SDM vol. 3B, 18.2.3).
            Vector::DB => self.b.set_dr6(self.b.dr6() & !dr6::BREAKPOINTS | x.payload),
            // When the fault is found, also one that becomes a double fault (SDM vol. 3A, 6.15).
            Vector::PF => self.b.set_cr2(x.payload),
            _ => {}
        }
        self.queue(x)
    }

    /// Queues an exception for the guest, following the rules for two at once (SDM vol. 3A, table 6-5).
    /// `false`: triple fault.
    pub fn queue(&mut self, x: Exception) -> bool {
        self.event_dirty = true;
        // An instruction whose event could not be delivered runs again behind the handler.
        self.forget_software();
        let first = match (self.exception, self.reinject) {
            (Some(e), _) => Some(e.vector),
            (None, Some(Event::Exception(e))) => Some(e.vector),
            _ => None,
        };
        let Some(first) = first else {
            self.exception = Some(x);
            return true;
        };
        if first == Vector::DF {
            return false;
        }
        let double = (first.contributory() && x.vector.contributory())
            || (first == Vector::PF && (x.vector.contributory() || x.vector == Vector::PF));
        if double {
            self.reinject = None;
            self.exception = Some(Exception { vector: Vector::DF, error_code: Some(0), payload: 0 });
        } else {
            // One after the other: the second now; the first comes back when its instruction runs again.
            if matches!(self.reinject, Some(Event::Exception(_))) {
                self.reinject = None;
            }
            self.exception = Some(x);
        }
        true
    }

    /// The interrupt or NMI whose delivery an exit interrupted does not come again: it was accepted, and something takes its place.
    pub fn lose_delivery(&mut self) {
        match self.reinject {
            Some(Event::Interrupt(_)) => self.reinject = None,
            Some(Event::Nmi) => {
                self.reinject = None;
                self.b.set_nmi_masked(true);
            }
            _ => {}
        }
    }

    /// An instruction's event that waits to be delivered again: RIP is still at the instruction, which raises it by itself.
    pub(super) fn forget_software(&mut self) {
        if matches!(self.reinject, Some(Event::Software(..))) {
            self.reinject = None;
        }
        if matches!(self.injecting, Some(Event::Software(..))) {
            self.withdraw();
        }
    }

    /// Takes back what the next entry was to deliver: user space says what it delivers. NMI masking is the caller's.
    pub fn withdraw(&mut self) {
        if self.injecting.take().is_some() {
            self.b.withdraw();
        }
    }

    /// What is on its way into the guest, programmed or to be repeated.
    pub fn delivery(&self) -> Option<Event> {
        self.injecting.or(self.reinject)
    }

    /// NMIs are masked, and by one that was delivered: the one on its way masks them when it arrives.
    pub fn nmi_masked(&self) -> bool {
        self.b.nmi_masked() && self.delivery() != Some(Event::Nmi)
    }

    /// User space says what is on its way into the guest, and whether NMIs are masked. By an NMI on its way they are not, whatever
    /// user space was told: VM entry refuses one that is blocked (SDM vol. 3C, 27.3.1.5).
    pub fn restore_delivery(&mut self, event: Option<Event>, masked: bool) {
        self.withdraw();
        self.reinject = event;
        self.b.set_nmi_masked(masked && event != Some(Event::Nmi));
    }
}
