//! The debugger in user space (`KVM_SET_GUEST_DEBUG`) beside the guest's own use of debug registers and TF.
//!
//! Vocabulary: the *guest's* debug registers are those it reads and writes, and KVM_GET_DEBUGREGS shows; those *in force* are
//! what the CPU compares while the guest runs: the guest's, or the debugger's instead. A *step* is TF set behind the guest's back
//! ([`Backend::set_step`]). A stop is *due* when an instruction ended that the hall completed, where no #DB comes from hardware.
//! *Hits* are the watchpoints that such an instruction touched, on data or ports.
//!
//! ```text
//!  nobody debugs ── MOV DR ──▶ the guest has the CPU's (`dr_live`) ── no breakpoint armed, slice ends ──▶ nobody debugs
//!  a debugger steps or has breakpoints: MOV DR exits each time, those in force are loaded while one of them is armed
//! ```
//! What the debugger asked for ends in `KVM_EXIT_DEBUG`; while it steps or has breakpoints in registers that goes for each #DB,
//! also for one that the guest would have had: user space tells them apart, and gives it back (KVM_SET_VCPU_EVENTS), as on
//! stock KVM.

use crate::backend::{Backend, By, Event};
use crate::emul::Emulation;
use crate::host::Host;
use crate::run::{Next, RunExit};
use crate::shared::VcpuShared;
use crate::skip;
use crate::vcpu::Vcpu;
use exitless_insn::emulate::linearize;
use exitless_insn::{Access, Cpu, Mode};
use exitless_kvm_abi::{
    KVM_GUESTDBG_BLOCKIRQ, KVM_GUESTDBG_ENABLE, KVM_GUESTDBG_INJECT_BP, KVM_GUESTDBG_INJECT_DB,
    KVM_GUESTDBG_SINGLESTEP, KVM_GUESTDBG_USE_HW_BP, KVM_GUESTDBG_USE_SW_BP,
};
use exitless_x86::exception::{Exception, Vector};
use exitless_x86::regs::{Gpr, SegReg, cr4, dr6, dr7, rflags};

/// What `KVM_CAP_SET_GUEST_DEBUG2` answers.
pub const CONTROLS: u32 = KVM_GUESTDBG_ENABLE
    | KVM_GUESTDBG_SINGLESTEP
    | KVM_GUESTDBG_USE_SW_BP
    | KVM_GUESTDBG_USE_HW_BP
    | KVM_GUESTDBG_INJECT_DB
    | KVM_GUESTDBG_INJECT_BP
    | KVM_GUESTDBG_BLOCKIRQ;

/// What the debugger wants; all-zero: there is none.
#[derive(Clone, Copy, Debug, Default, bytemuck::Zeroable)]
pub struct Debug {
    /// Its own DR0 to DR3 and DR7.
    dr: [u64; 4],
    dr7: u64,
    /// The guest's DR7 while the debugger's is in force.
    guest_dr7: u64,
    /// `KVM_GUESTDBG_*`; 0 without `KVM_GUESTDBG_ENABLE`.
    control: u32,
    /// Conditions of DR6 for which the guest is to stop; 0: none.
    due: u16,
    /// B0 to B3 of the instruction under way.
    hits: u16,
    /// The instruction to be stepped is a PUSHF, which ends at this RIP; 0: no.
    pushf: u64,
}

/// What an instruction does to an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Touch {
    /// Reads memory.
    Read,
    /// Writes it.
    Write,
    /// Reads or writes a port.
    Port,
}

impl Debug {
    fn has(&self, bits: u32) -> bool {
        self.control & bits != 0
    }

    /// Interrupts and NMIs wait.
    pub fn blocks_interrupts(&self) -> bool {
        self.has(KVM_GUESTDBG_BLOCKIRQ)
    }

    /// The debugger's registers are in force.
    fn has_registers(&self) -> bool {
        self.has(KVM_GUESTDBG_USE_HW_BP)
    }

    /// A #DB is the debugger's.
    fn takes_db(&self) -> bool {
        self.has(KVM_GUESTDBG_SINGLESTEP | KVM_GUESTDBG_USE_HW_BP)
    }

    /// INT3 is the debugger's.
    pub fn takes_bp(&self) -> bool {
        self.has(KVM_GUESTDBG_USE_SW_BP)
    }

    /// A stop that is due is no more: the guest goes on elsewhere.
    pub fn forget_stop(&mut self) {
        self.due = 0;
    }

    /// An instruction begins, or one has ended without a trap.
    pub fn forget_hits(&mut self) {
        self.hits = 0;
    }
}

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

/// The exit for the debugger: where the guest is, and why.
fn exit<B: Backend>(v: &mut Vcpu<B>, vector: Vector, conditions: u64) -> RunExit {
    v.debug.due = 0;
    // Hardware may have cleared GD where a #DB told of it, and the instruction may have taken TF away.
    v.settle_debug_registers();
    v.b.set_step(v.debug.has(KVM_GUESTDBG_SINGLESTEP));
    RunExit::Debug {
        exception: u32::from(vector.0),
        pc: skip::linear_rip(v),
        dr6: dr6::NEUTRAL | conditions,
        dr7: v.b.dr7(),
    }
}

/// A stop behind an instruction that ended in the hall, to be told before the guest runs on.
pub fn due<B: Backend>(v: &mut Vcpu<B>) -> Option<RunExit> {
    let conditions = u64::from(v.debug.due);
    (conditions != 0).then(|| exit(v, Vector::DB, conditions))
}

/// #DB from hardware: the debugger's, or the guest's. Hardware may tell of matches with registers that are not enabled (SDM vol.
/// 3B, 18.2.3); those may be what another guest left.
///
/// # Errors
/// It is the guest's: what it gets.
pub fn debug_exception<B: Backend>(v: &mut Vcpu<B>, x: Exception) -> Result<RunExit, Exception> {
    let dr7 = v.b.dr7();
    let idle = (0..4).filter(|n| dr7 >> (2 * n) & 3 == 0).fold(0, |bits, n| bits | 1 << n);
    let x = Exception { payload: x.payload & !idle, ..x };
    if v.debug.takes_db() { Ok(exit(v, Vector::DB, x.payload)) } else { Err(x) }
}

/// Before the guest runs: a step over PUSHF will leave our TF on the guest's stack.
pub fn look_ahead<B: Backend, H: Host<Cpu = B::Cpu>>(v: &mut Vcpu<B>, host: &H) {
    if v.b.stepping() {
        v.debug.pushf = skip::behind_pushf(v, host).unwrap_or(0);
    }
}

/// Behind a step of PUSHF: takes our TF off the guest's stack.
pub fn hide_step<B: Backend, H: Host<Cpu = B::Cpu>>(v: &mut Vcpu<B>, sh: &VcpuShared, host: &H) {
    let behind = core::mem::take(&mut v.debug.pushf);
    if behind == 0 || v.b.rip() != behind || v.b.rflags() & rflags::TF != 0 {
        return;
    }
    // TF is bit 0 of the second byte, whatever the operand size.
    let at = v.b.gprs().get(Gpr::Rsp).wrapping_add(1);
    let mut e = Emulation { v, sh, host, operand: None };
    let mut byte = [0];
    let Ok(linear) = linearize(&e, SegReg::Ss, stack_offset(&e, at), 1, true) else { return };
    if e.read(linear, &mut byte).is_ok() {
        let [old] = byte;
        // A stack in a device keeps what it got.
        let _ = e.memory_write(linear, &[old & !1], Access::WRITE);
    }
    v.journal.clear();
    v.debug.forget_hits();
}

/// An offset in the stack segment, as wide as the stack pointer is.
fn stack_offset<B: Backend, H: Host<Cpu = B::Cpu>>(e: &Emulation<'_, B, H>, at: u64) -> u64 {
    match (e.mode(), e.segment(SegReg::Ss).db()) {
        (Mode::Bits64, _) => at,
        (_, true) => at & 0xffff_ffff,
        (_, false) => at & 0xffff,
    }
}

/// INT3, which exits only for a debugger that plants it.
pub fn breakpoint<B: Backend>(v: &mut Vcpu<B>) -> Next {
    Next::Leave(exit(v, Vector::BP, 0))
}

/// MOV DR while DR7.GD is set: the debugger's business only if GD is the debugger's.
pub fn general_detect<B: Backend>(v: &mut Vcpu<B>) -> Next {
    if v.debug.has_registers() {
        return Next::Leave(exit(v, Vector::DB, dr6::BD));
    }
    let x = Exception { payload: dr6::BD, ..Exception::plain(Vector::DB) };
    if v.raise(x) { Next::Again } else { Next::Leave(RunExit::Shutdown) }
}

/// #BP and #OF are instructions' exceptions, and delivery pushes RIP behind them: those that user space queues are for the
/// instruction at RIP.
pub fn event<B: Backend, H: Host<Cpu = B::Cpu>>(v: &Vcpu<B>, host: &H, x: Exception) -> Event {
    match x.vector {
        Vector::BP | Vector::OF => {
            Event::Software(By::Int3OrInto, x.vector.0, skip::length(v, host).unwrap_or(0))
        }
        _ => Event::Exception(x),
    }
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

    /// A slice with the guest's registers loaded ended: keeps them loaded only while a breakpoint is armed.
    pub fn debug_unloaded(&mut self, dr: [u64; 4]) {
        self.dr = dr;
        self.settle_debug_registers();
    }
}
