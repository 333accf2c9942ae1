//! One instruction through the emulator, from its first pass to its last replay.

use super::ending::{emulation_failure, fault, no_host_page};
use super::plain;
use crate::backend::Backend;
use crate::emul::Emulation;
use crate::host::Host;
use crate::journal::Walked;
use crate::journal::{Access, Source};
use crate::outcome::{Next, RunExit};
use crate::shared::VcpuShared;
use crate::skip::{self, NoBytes};
use crate::trace;
use crate::vcpu::Vcpu;
use exitless_insn::{Mode, Outcome, Stop, emulate};

/// Emulates the instruction at RIP, going on where the journal says.
pub fn run<B: Backend, H: Host<Cpu = B::Cpu>>(v: &mut Vcpu<B>, sh: &VcpuShared, host: &H) -> Next {
    at(v, sh, host, None)
}

/// The same after a fault of a data access that had passed the guest's own tables.
pub fn at<B: Backend, H: Host<Cpu = B::Cpu>>(
    v: &mut Vcpu<B>,
    sh: &VcpuShared,
    host: &H,
    walked: Option<Walked>,
) -> Next {
    // It reads and writes wherever the guest says, and the host's pages may have to be brought for that.
    v.b.dirty_l1d();
    let source = match v.journal.source() {
        Some(source) => source,
        None => match skip::fetch(v, host, false) {
            Ok((bytes, fetched)) => {
                let valid = fetched.min(skip::code_room(v));
                if host.tracing() {
                    trace::emulates(v, host, &bytes, valid, false);
                }
                let operand = walked.filter(|_| one_operand(&bytes, v.mode()));
                Source { bytes, valid, stepping: v.traps(), operand }
            }
            Err(NoBytes::Fault(x)) => {
                v.journal.clear();
                return fault(v, sh, x);
            }
            Err(NoBytes::Host) => return no_host_page(host),
            Err(NoBytes::Missing) => return emulation_failure(v, host),
        },
    };
    let next = pass(v, sh, host, &source);
    match (next, v.journal.awaiting()) {
        (Next::Again, None) => posted(v, sh).map_or(Next::Again, Next::Leave),
        (next, _) => next,
    }
}

/// One pass over the instruction.
fn pass<B: Backend, H: Host<Cpu = B::Cpu>>(
    v: &mut Vcpu<B>,
    sh: &VcpuShared,
    host: &H,
    source: &Source,
) -> Next {
    sh.stats.insn_emulation.bump();
    v.journal.rewind();
    let (before, stepping) = (v.b.rflags(), v.b.stepping());
    let mut e = Emulation { v, sh, host, operand: source.operand };
    let outcome = plain::pass(&mut e, source).unwrap_or_else(|| emulate(&mut e, &source.bytes, source.valid));
    let next = match outcome {
        Outcome::Done | Outcome::Again => {
            v.journal.clear();
            v.event_dirty = true;
            // Behind an instruction, a shadow is of its own: MOV's or POP's to SS, which holds debug traps back as well. Between
            // iterations it is STI's before them, which does not.
            if outcome == Outcome::Again || !v.b.interrupt_shadow() {
                v.trap(before, stepping);
            }
            Next::Again
        }
        Outcome::Contended => {
            v.journal.clear();
            v.event_dirty = true;
            Next::Again
        }
        Outcome::Stop(Stop::NeedUser) => {
            v.journal.keep(*source);
            ask_user(v, sh, host)
        }
        Outcome::Stop(Stop::Fault(x)) => {
            v.journal.clear();
            fault(v, sh, x)
        }
        // What was done outside of memory stays done: the next KVM_RUN goes on from there.
        Outcome::Stop(Stop::HostMemory) => {
            v.journal.keep(*source);
            no_host_page(host)
        }
        Outcome::Stop(Stop::CutShort) => cut_short(v, sh, host, source.valid),
        // What comes to be at RIP now is hardware's, unless an INT3 that hardware could not deliver: its frame lies in the device.
        Outcome::Stop(Stop::Elsewhere) if v.reinject.is_none() && !v.b.runs_again() => {
            v.journal.clear();
            Next::Again
        }
        Outcome::Stop(Stop::Unhandled | Stop::Elsewhere) => {
            v.journal.clear();
            if host.tracing() {
                trace::emulates(v, host, &source.bytes, source.valid, true);
            }
            emulation_failure(v, host)
        }
    };
    // No trap of a later instruction tells what this one touched.
    if !matches!(outcome, Outcome::Stop(Stop::NeedUser | Stop::HostMemory)) {
        v.debug.forget_hits();
    }
    next
}

/// The instruction does not end where its bytes do.
fn cut_short<B: Backend, H: Host<Cpu = B::Cpu>>(
    v: &mut Vcpu<B>,
    sh: &VcpuShared,
    host: &H,
    valid: usize,
) -> Next {
    v.journal.clear();
    match skip::cut_short(v, host, valid) {
        Ok(()) => Next::Again,
        Err(NoBytes::Fault(x)) => fault(v, sh, x),
        Err(NoBytes::Host) => no_host_page(host),
        Err(NoBytes::Missing) => emulation_failure(v, host),
    }
}

/// MOV, MOVZX and MOVSX between a register and memory: the only memory operand is the one that faulted.
fn one_operand(bytes: &[u8; 15], mode: Mode) -> bool {
    const PREFIXES: [u8; 8] = [0x66, 0x67, 0x2e, 0x36, 0x3e, 0x26, 0x64, 0x65];
    let rex = |b: u8| mode == Mode::Bits64 && b & 0xf0 == 0x40;
    let mut rest = bytes.iter().copied().skip_while(|b| PREFIXES.contains(b) || rex(*b));
    match rest.next() {
        Some(0x88..=0x8b | 0xa0..=0xa3 | 0xc6 | 0xc7) => true,
        Some(0x0f) => matches!(rest.next(), Some(0xb6 | 0xb7 | 0xbe | 0xbf)),
        _ => false,
    }
}

/// A posted write that user space has not seen.
pub fn posted<B: Backend>(v: &mut Vcpu<B>, sh: &VcpuShared) -> Option<RunExit> {
    let entry = v.journal.next_posted()?;
    sh.stats.mmio_exits.bump();
    Some(RunExit::Mmio(entry))
}

/// Posted writes first, then what the instruction waits for.
pub fn ask_user<B: Backend, H: Host<Cpu = B::Cpu>>(v: &mut Vcpu<B>, sh: &VcpuShared, host: &H) -> Next {
    if let Some(exit) = posted(v, sh) {
        return Next::Leave(exit);
    }
    let Some(asked) = v.journal.tell() else { return emulation_failure(v, host) };
    trace::ask(host, &asked);
    match asked.access {
        Access::Mmio { .. } => {
            sh.stats.mmio_exits.bump();
            Next::Leave(RunExit::Mmio(asked))
        }
        Access::Port { port } => {
            sh.stats.io_exits.bump();
            // A block lies in the page already.
            if asked.write && asked.count == 1 {
                host.io_page_write(0, asked.data.get(..usize::from(asked.len.min(4))).unwrap_or(&[]));
            }
            Next::Leave(RunExit::Io { port, size: asked.len, count: asked.count, input: !asked.write })
        }
    }
}
