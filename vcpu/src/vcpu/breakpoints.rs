//! Whose the debug registers are, and the traps of instructions that the hall completes: see the head of `crate::debug`.

use super::Vcpu;
use super::debug::{Debug, Touch};
use crate::backend::Backend;
use crate::host::Taken;
use exitless_kvm_abi::{
    KVM_GUESTDBG_ENABLE, KVM_GUESTDBG_INJECT_BP, KVM_GUESTDBG_INJECT_DB, KVM_GUESTDBG_SINGLESTEP,
};
use exitless_x86::exception::{Exception, Vector};
use exitless_x86::regs::{cr4, dr6, dr7, rflags};

/// DR7's bits 17:16 for the register, 19:18.
mod field {
    pub(super) const WRITE: u64 = 1;
    pub(super) const PORT: u64 = 2;
    pub(super) const ACCESS: u64 = 3;
}

/// What register `n` watches, if it is enabled.
fn kind(dr7: u64, n: u32) -> Option<u64> {
    (dr7 >> (2 * n) & 3 != 0).then_some(dr7 >> (16 + 4 * n) & 3)
}

/// Bytes that it watches (SDM vol. 3B, 18.2.4).
fn size(dr7: u64, n: u32) -> u64 {
    match dr7 >> (18 + 4 * n) & 3 {
        0 => 1,
        1 => 2,
        2 => 8,
        _ => 4,
    }
}

/// The registers that watch some of the `len` bytes from `at` on, as B0 to B3.
fn hits(dr: &[u64; 4], dr7: u64, touch: Touch, at: u64, len: usize) -> u16 {
    let mut found = 0;
    for (n, watched) in (0..4).zip(dr) {
        let kind = kind(dr7, n);
        let meant = match touch {
            Touch::Read => kind == Some(field::ACCESS),
            Touch::Write => matches!(kind, Some(field::WRITE | field::ACCESS)),
            Touch::Port => kind == Some(field::PORT),
        };
        let size = size(dr7, n);
        let watched = watched & !(size - 1);
        // Distances, because either range may end at the top.
        let overlap = at.wrapping_sub(watched) < size || watched.wrapping_sub(at) < len as u64;
        if meant && overlap {
            found |= 1 << n;
        }
    }
    found
}

/// An exception is still on its way into the guest: another cannot be queued (`-EBUSY`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Busy;

impl<B: Backend> Vcpu<B> {
    /// KVM_SET_GUEST_DEBUG: `control` are `KVM_GUESTDBG_*`, `registers` DR0 to DR7.
    ///
    /// # Errors
    /// [`Busy`], and nothing changed.
    pub fn set_guest_debug(&mut self, control: u32, registers: [u64; 8]) -> Result<(), Busy> {
        if control & (KVM_GUESTDBG_INJECT_DB | KVM_GUESTDBG_INJECT_BP) != 0 {
            if self.exception.is_some() {
                return Err(Busy);
            }
            let db = control & KVM_GUESTDBG_INJECT_DB != 0;
            self.queue(Exception::plain(if db { Vector::DB } else { Vector::BP }));
        }
        let guest_dr7 = self.guest_dr7();
        let was_due = self.debug.due;
        let on = control & KVM_GUESTDBG_ENABLE != 0;
        let [a, b, c, d, _, _, _, dr7] = registers;
        self.debug = Debug {
            dr: [a, b, c, d],
            // Entries refuse other bits.
            dr7: dr7 & dr7::WRITABLE | dr7::FIXED,
            guest_dr7: 0,
            control: if on { control } else { 0 },
            due: 0,
            hits: 0,
            pushf: 0,
        };
        let steps = self.debug.has(KVM_GUESTDBG_SINGLESTEP);
        self.debug.due = if self.debug.takes_db() { was_due } else { 0 };
        self.set_guest_dr7(guest_dr7);
        self.settle_debug_registers();
        self.b.set_step(steps);
        self.b.set_bp_intercept(self.debug.takes_bp());
        Ok(())
    }

    /// The guest's DR7.
    pub fn guest_dr7(&self) -> u64 {
        if self.debug.has_registers() { self.debug.guest_dr7 } else { self.b.dr7() }
    }

    /// Sets it.
    pub fn set_guest_dr7(&mut self, value: u64) {
        if self.debug.has_registers() {
            self.debug.guest_dr7 = value;
            self.b.set_dr7(self.debug.dr7);
        } else {
            self.b.set_dr7(value);
        }
    }

    /// Outside of slices, when the guest's registers or the debugger changed: who has the CPU's from now on.
    pub fn settle_debug_registers(&mut self) {
        self.set_guest_dr7(self.guest_dr7());
        self.dr_live = !self.debug.takes_db() && self.b.dr7() & dr7::ENABLED != 0;
        self.b.set_dr_intercept(!self.dr_live);
    }

    /// The guest's first access to a debug register in this slice may load them all. `false`: a debugger is in the way.
    pub fn lend_debug_registers(&mut self) -> bool {
        if self.debug.takes_db() {
            return false;
        }
        self.dr_live = true;
        self.b.set_dr_intercept(false);
        true
    }

    /// An instruction completed that began with `flags`, and with the debugger's TF if `stepping`: its traps.
    pub fn trap(&mut self, flags: u64, stepping: bool) {
        let hits = u64::from(core::mem::take(&mut self.debug.hits));
        let step = if stepping || flags & rflags::TF != 0 { dr6::BS } else { 0 };
        if hits | step == 0 {
            return;
        }
        if stepping || (hits != 0 && self.debug.takes_db()) {
            self.debug.due = (hits | step) as u16;
            self.event_dirty = true;
        } else {
            self.raise(Exception { payload: hits | step, ..Exception::plain(Vector::DB) });
        }
    }

    /// A register in force may watch data or ports. Cheap where none is.
    pub fn watches(&self) -> bool {
        (self.dr_live || self.debug.takes_db())
            && (0..4).any(|n| kind(self.b.dr7(), n).is_some_and(|kind| kind != 0))
    }

    /// The instruction under way may end in a trap, each iteration of it if it is repeated.
    pub fn traps(&self) -> bool {
        self.b.rflags() & rflags::TF != 0 || self.b.stepping() || self.watches()
    }

    /// Outside of slices: the instruction under way touches `len` bytes at a linear address, or a port.
    pub fn touch(&mut self, touch: Touch, at: u64, len: usize) {
        // Without CR4.DE there are none on ports.
        if self.watches() && (touch != Touch::Port || self.b.cr4() & cr4::DE != 0) {
            let dr = if self.debug.has_registers() { &self.debug.dr } else { &self.dr };
            self.debug.hits |= hits(dr, self.b.dr7(), touch, at, len);
        }
    }

    /// DR0 to DR3 for the slice.
    pub fn debug_registers(&self) -> Option<[u64; 4]> {
        if !self.debug.takes_db() {
            return self.dr_live.then_some(self.dr);
        }
        let in_force = if self.debug.has_registers() { self.debug.dr } else { self.dr };
        (self.b.dr7() & dr7::ENABLED != 0).then_some(in_force)
    }

    /// A slice ended, with these registers; `debug`: the guest's debug registers were loaded.
    #[inline(always)]
    pub(crate) fn unloaded(&mut self, taken: &Taken, debug: bool) {
        self.pkru = taken.pkru.unwrap_or(self.pkru);
        if debug {
            self.debug_unloaded(taken.dr);
        }
    }

    /// A slice with the guest's registers loaded ended: keeps them loaded only while a breakpoint is armed.
    pub fn debug_unloaded(&mut self, dr: [u64; 4]) {
        self.dr = dr;
        self.settle_debug_registers();
    }
}
