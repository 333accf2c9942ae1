//! Port I/O: chips in the kernel, ioeventfds, user space; string forms go through the emulator.

use super::emulate;
use super::ending::unreadable;
use crate::backend::{Backend, IoAccess};
use crate::host::Host;
use crate::outcome::{Next, RunExit};
use crate::shared::VcpuShared;
use crate::skip;
use crate::vcpu::debug::Touch;
use crate::vcpu::{PendingPort, Vcpu};
use exitless_x86::regs::Gpr;

/// Counts a port exit.
pub fn count(sh: &VcpuShared, port: u16) {
    sh.stats.by_port.bump(u32::from(port));
}

/// Puts the result of IN into AL, AX or EAX.
pub fn finish_in<B: Backend>(v: &mut Vcpu<B>, size: u8, data: u32) {
    let rax = v.b.gprs().get(Gpr::Rax);
    let data = u64::from(data);
    let new = match size {
        1 => rax & !0xff | data & 0xff,
        2 => rax & !0xffff | data & 0xffff,
        _ => data,
    };
    v.b.gprs_mut().set(Gpr::Rax, new);
}

/// IN, OUT, INS, OUTS.
pub fn handle<B: Backend, H: Host<Cpu = B::Cpu>>(
    v: &mut Vcpu<B>,
    sh: &VcpuShared,
    host: &H,
    access: IoAccess,
) -> Next {
    count(sh, access.port);
    if access.string {
        return emulate::run(v, sh, host);
    }
    let asked = core::mem::take(&mut v.no_chip);
    // An OUT is complete for the guest with this: user space may look at the registers.
    let quick = !access.input && !v.watches() && v.b.skip_instruction();
    let next = if quick {
        0
    } else {
        let Some(next) = skip::next_rip(v, host, false) else { return unreadable(v, sh, host) };
        next
    };
    v.touch(Touch::Port, access.port.into(), access.size.into());
    let len = usize::from(access.size.min(4));
    let mut data = (v.b.gprs().get(Gpr::Rax) as u32).to_le_bytes();
    let part = data.get_mut(..len).unwrap_or(&mut []);
    if access.input {
        if !asked && host.pio_read(access.port, part) {
            finish_in(v, access.size, u32::from_le_bytes(data));
            v.finish_skip(next);
            return Next::Again;
        }
        v.pending_port = Some(PendingPort { port: access.port, size: access.size, next_rip: next });
    } else {
        if !quick {
            v.finish_skip(next);
        }
        if !asked && host.pio_write(access.port, part) || host.pio_event(access.port, part) {
            return Next::Again;
        }
        host.io_page_write(0, part);
    }
    sh.stats.io_exits.bump();
    Next::Leave(RunExit::Io { port: access.port, size: access.size, count: 1, input: access.input })
}
