//! One instruction through the emulator, from its first pass to its last replay.

use super::{emulation_failure, fault};
use crate::backend::Backend;
use crate::emul::Emulation;
use crate::host::Host;
use crate::journal::Access;
use crate::run::{Next, RunExit};
use crate::shared::VcpuShared;
use crate::skip::{self, NoBytes};
use crate::vcpu::Vcpu;
use exitless_insn::{Outcome, Stop, emulate};

/// Emulates the instruction at RIP, going on where the journal says.
pub fn run<B: Backend, H: Host<Cpu = B::Cpu>>(v: &mut Vcpu<B>, sh: &VcpuShared, host: &H) -> Next {
    let (bytes, valid) = match skip::fetch(v, host, false) {
        Ok(b) => b,
        Err(NoBytes::Fault(x)) => {
            v.journal.clear();
            return fault(v, sh, x);
        }
        Err(NoBytes::Missing) => return emulation_failure(v, host),
    };
    sh.stats.insn_emulation.bump();
    v.journal.rewind();
    let before = v.b.rflags();
    let outcome = emulate(&mut Emulation { v, sh, host }, &bytes, valid);
    match outcome {
        Outcome::Done | Outcome::Again => {
            v.journal.clear();
            v.event_dirty = true;
            v.trap_step(before);
            Next::Again
        }
        Outcome::Stop(Stop::NeedUser) => ask_user(v, sh, host),
        Outcome::Stop(Stop::Fault(x)) => {
            v.journal.clear();
            fault(v, sh, x)
        }
        Outcome::Stop(Stop::Unhandled) => {
            v.journal.clear();
            emulation_failure(v, host)
        }
    }
}

fn ask_user<B: Backend, H: Host<Cpu = B::Cpu>>(v: &mut Vcpu<B>, sh: &VcpuShared, host: &H) -> Next {
    let Some(asked) = v.journal.awaiting() else { return emulation_failure(v, host) };
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
