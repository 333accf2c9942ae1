//! How an instruction that exited ends when its work is not done: moved over, a fault, a failure that user space hears of.

use crate::backend::Backend;
use crate::host::Host;
use crate::outcome::{Next, RunExit, suberror};
use crate::shared::VcpuShared;
use crate::skip::{self, NoBytes};
use crate::vcpu::Vcpu;
use exitless_x86::exception::Exception;

const EFAULT: i32 = 14;

/// Gives the guest an exception; a third fault in a row shuts it down.
pub fn fault<B: Backend>(v: &mut Vcpu<B>, sh: &VcpuShared, x: Exception) -> Next {
    let _ = sh;
    if v.raise(x) { Next::Again } else { Next::Leave(RunExit::Shutdown) }
}

/// Moves on behind an instruction that needs nothing else.
pub fn skip_over<B: Backend, H: Host<Cpu = B::Cpu>>(v: &mut Vcpu<B>, sh: &VcpuShared, host: &H) -> Next {
    match skip::next_rip(v, host, false) {
        Some(next) => {
            v.finish_skip(next);
            Next::Again
        }
        None => unreadable(v, sh, host),
    }
}

/// The instruction that just executed cannot be read any more: another vCPU changed the page tables or the code.
/// Its fetch faults now, so the guest gets that fault; failing that, run it again.
pub fn unreadable<B: Backend, H: Host<Cpu = B::Cpu>>(v: &mut Vcpu<B>, sh: &VcpuShared, host: &H) -> Next {
    match skip::fetch(v, host, false) {
        Err(NoBytes::Fault(x)) => fault(v, sh, x),
        Err(NoBytes::Host) => no_host_page(host),
        _ => emulation_failure(v, host),
    }
}

/// The host has no page where the guest has memory, or one with a memory error, of which a signal tells; as for a second-level
/// fault there.
pub fn no_host_page<H: Host>(host: &H) -> Next {
    let signal = host.work_pending() && !host.do_work();
    Next::Leave(if signal { RunExit::Interrupted } else { RunExit::Error(-EFAULT) })
}

/// Neither hardware nor the emulator can do this instruction. As on stock KVM the guest gets #UD, and user space hears of it
/// besides if the guest's kernel asked for it, which will hardly live on, or instead if it wants to
/// (KVM_CAP_EXIT_ON_EMULATION_FAILURE).
pub fn emulation_failure<B: Backend, H: Host<Cpu = B::Cpu>>(v: &mut Vcpu<B>, host: &H) -> Next {
    if host.exits_on_failure() {
        return failure_exit(v, host);
    }
    if !v.raise(Exception::ud()) {
        return Next::Leave(RunExit::Shutdown);
    }
    if v.b.cpl() == 0 { failure_exit(v, host) } else { Next::Again }
}

/// To user space, with the instruction's bytes.
pub fn failure_exit<B: Backend, H: Host<Cpu = B::Cpu>>(v: &Vcpu<B>, host: &H) -> Next {
    let (bytes, valid) = skip::fetch(v, host, false).unwrap_or(([0; 15], 0));
    let word = |from: usize| {
        let mut w = [0; 8];
        for (d, s) in w.iter_mut().zip(bytes.iter().skip(from)) {
            *d = *s;
        }
        u64::from_le_bytes(w)
    };
    // The layout of kvm_run.emulation_failure: flags (instruction bytes valid), size and 15 bytes.
    let sized = valid as u64 & 15;
    Next::Leave(RunExit::Internal {
        suberror: suberror::EMULATION,
        data: [1, sized | word(0) << 8, word(7), 0],
        ndata: 3,
    })
}

/// An exit that nobody asked for, to user space; `code` is the vendor's.
pub fn unexpected(code: u64) -> Next {
    Next::Leave(RunExit::Internal {
        suberror: suberror::UNEXPECTED_EXIT_REASON,
        data: [code, 0, 0, 0],
        ndata: 2,
    })
}
