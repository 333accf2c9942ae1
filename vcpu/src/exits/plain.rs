//! The plainest accesses to a device, MOV of 32 bits in 64-bit code, without the emulator: hardware has walked to the operand, so that its
//! bytes, and where it lies, are all that there is to look at.

use crate::backend::Backend;
use crate::emul::Emulation;
use crate::host::Host;
use crate::journal::Source;
use exitless_insn::walk::Operation;
use exitless_insn::{Cpu, Mode, Outcome, Plain, plain_address, plain_mov};
use exitless_x86::regs::rflags;

/// Bytes of the operand.
const LEN: usize = 4;

/// One pass, as the emulator's; `None`: not of this kind, and nothing was done.
pub(super) fn pass<B: Backend, H: Host<Cpu = B::Cpu>>(
    e: &mut Emulation<'_, B, H>,
    source: &Source,
) -> Option<Outcome> {
    let walked = source.operand?;
    if e.mode() != Mode::Bits64 || walked.gpa & 4095 > 4096 - LEN as u64 || e.v.watches() {
        return None;
    }
    let bytes = source.bytes.get(..source.valid)?;
    let (length, what) = plain_mov(bytes, Mode::Bits64)?;
    let next = e.rip().wrapping_add(length as u64);
    let load = matches!(what, Plain::Load(_));
    let operation = if load { Operation::Read } else { Operation::Write };
    // An operand that begins in the page before faults here as well.
    if !walked.allows(plain_address(bytes, next, |r| e.gpr(r))?, operation) {
        return None;
    }
    let done = match what {
        Plain::Load(to) => {
            let mut data = [0; LEN];
            e.read_piece(walked.gpa, &mut data).map(|()| e.set_gpr(to, u32::from_le_bytes(data).into()))
        }
        Plain::Store(from) => e.write_piece(walked.gpa, &(e.gpr(from) as u32).to_le_bytes()),
        Plain::StoreConstant(value) => e.write_piece(walked.gpa, &value.to_le_bytes()),
    };
    Some(done.map_or_else(Outcome::Stop, |()| finish(e, next)))
}

fn finish<B: Backend, H: Host<Cpu = B::Cpu>>(e: &mut Emulation<'_, B, H>, next: u64) -> Outcome {
    e.set_rip(next);
    let flags = e.rflags();
    if flags & rflags::RF != 0 {
        e.set_rflags(flags & !rflags::RF);
    }
    e.commit();
    Outcome::Done
}
