//! Page-modification logging (SDM vol. 3C, 29.3.6): the CPU writes down which pages it sets the dirty bits of.
//!
//! The log is a page of 512 addresses, filled from its end: the index is that of the next to be written, and leaves 0 to 511 when
//! none is left; the next write of the guest to a clean page then exits first.

use crate::machine::Machine;
use crate::vcpu::Vmx;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use exitless_x86::vmx::field as f;

/// Addresses in a log.
const ENTRIES: usize = 512;
/// The index of an empty log.
const EMPTY: u16 = ENTRIES as u16 - 1;

/// The page; the CPU writes it while it is in the guest.
#[repr(C, align(4096))]
pub(crate) struct LogPage([AtomicU64; ENTRIES]);

#[cfg(test)]
impl LogPage {
    /// The CPU's view.
    pub(crate) fn entries(&self) -> &[AtomicU64; ENTRIES] {
        &self.0
    }
}

impl<M: Machine> Vmx<M> {
    /// The fields that do not change, with the rest of the VMCS; an empty log.
    pub(crate) fn prepare_log(&self) {
        if self.caps.pml() {
            self.m.put(f::PML_ADDRESS, self.pages.log_pa);
            self.m.put(f::PML_INDEX, EMPTY);
        }
    }

    pub(crate) fn log_dirty(&mut self, on: bool) {
        self.logging = on && self.caps.pml();
        self.controls_due();
    }

    /// Entries since the last call; they stay in the page until the guest runs again.
    pub(crate) fn take_entries(&mut self) -> u16 {
        // The VMCS has an index once the guest has been entered.
        if !self.logging || !self.left {
            return 0;
        }
        let index = self.m.get(f::PML_INDEX);
        if index == EMPTY {
            return 0;
        }
        self.m.put(f::PML_INDEX, EMPTY);
        if index < EMPTY { EMPTY - index } else { ENTRIES as u16 }
    }

    /// Newest last.
    pub(crate) fn entry(&self, n: u16) -> u64 {
        // SAFETY: type invariant: the page is the vCPU's and lives as long as `self`; the type is atomics of a page's size.
        let page = self.log.map(|p| unsafe { p.cast::<LogPage>().as_ref() });
        let at = usize::from(EMPTY).wrapping_sub(usize::from(n));
        page.and_then(|p| p.0.get(at)).map_or(0, |e| e.load(Relaxed))
    }
}
