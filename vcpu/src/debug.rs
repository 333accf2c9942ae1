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
use crate::outcome::{Next, RunExit};
use crate::shared::VcpuShared;
use crate::skip;
use crate::vcpu::Vcpu;
use exitless_insn::emulate::linearize;
use exitless_insn::{Access, Cpu, Mode};
use exitless_kvm_abi::KVM_GUESTDBG_SINGLESTEP;
use exitless_x86::exception::{Exception, Vector};
use exitless_x86::regs::{Gpr, SegReg, dr6, rflags};

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
