//! The emulator's view of this vCPU: registers from the backend, memory from the host, devices through the journal.

use crate::backend::Backend;
use crate::host::Host;
use crate::journal::{Access as Where, Entry, Step, Walked};
use crate::memory::PagedMemory;
use crate::shared::VcpuShared;
use crate::trace;
use crate::vcpu::Vcpu;
use crate::vcpu::debug::Touch;
use exitless_insn::emulate::{Table, X87Word};
use exitless_insn::walk::{Operation, missing_table};
use exitless_insn::{Access, Cpu, Mode, Stop, WalkError, translate};
use exitless_x86::exception::{Exception, Vector};
use exitless_x86::regs::{Gpr, SegReg, Segment, TableReg, cr0, cr4, efer, rflags};

/// One emulation pass.
pub struct Emulation<'a, B, H> {
    /// The vCPU.
    pub v: &'a mut Vcpu<B>,
    /// Its shared part.
    pub sh: &'a VcpuShared,
    /// The host.
    pub host: &'a H,
    /// Where the instruction's only memory operand lies, if the exit told it.
    pub operand: Option<Walked>,
}

/// A stretch of one page: guest-physical address and length.
#[derive(Clone, Copy)]
struct Piece {
    gpa: u64,
    from: usize,
    len: usize,
}

impl<B: Backend, H: Host<Cpu = B::Cpu>> Emulation<'_, B, H> {
    /// Translates every page of an access before any is touched: one or two pieces.
    fn pieces(&self, linear: u64, len: usize, op: Operation) -> Result<(Piece, Option<Piece>), Stop> {
        self.pieces_for(linear, len, Access { operation: op, implicit_supervisor: false })
    }

    fn pieces_for(&self, linear: u64, len: usize, access: Access) -> Result<(Piece, Option<Piece>), Stop> {
        let room = (4096 - (linear & 4095)) as usize;
        let first = Piece { gpa: self.gpa(linear, access)?, from: 0, len: len.min(room) };
        if len <= room {
            return Ok((first, None));
        }
        // The program's addresses have 32 bits outside of 64-bit code; the system's in all of long mode 64.
        let wide = self.mode() == Mode::Bits64 || access.implicit_supervisor && self.long_mode();
        let next = linear.wrapping_add(room as u64) & if wide { !0 } else { 0xffff_ffff };
        Ok((first, Some(Piece { gpa: self.gpa(next, access)?, from: room, len: len - room })))
    }

    fn gpa(&self, linear: u64, access: Access) -> Result<u64, Stop> {
        if let Some(known) = self.operand.filter(|o| o.allows(linear, access.operation)) {
            return Ok(known.gpa);
        }
        let mode = self.v.paging(self.v.b.cpl());
        match translate(&PagedMemory(self.host), &mode, linear, access) {
            Ok(gpa) => Ok(gpa),
            Err(WalkError::Fault(x)) => Err(Stop::Fault(x)),
            Err(WalkError::NoMemory(at)) if self.host.is_ram(at, false) && !self.present(at, false) => {
                Err(Stop::HostMemory)
            }
            Err(WalkError::NoMemory(_)) => Err(Stop::Fault(missing_table(&mode, linear, access))),
        }
    }

    /// The host has a page behind memory of the guest, or brings one in now.
    fn present(&self, gpa: u64, write: bool) -> bool {
        let mut byte = [0];
        let reads = self.host.read_guest(gpa, &mut byte);
        let old = u64::from(u8::from_le_bytes(byte));
        reads && (!write || self.host.cmpxchg_guest(gpa, 1, old, old).is_some())
    }

    /// Memory that could not be reached: the host has no page, or it is no memory at all.
    fn out_of_reach(&self, gpa: u64) -> Stop {
        if self.host.is_ram(gpa, false) { Stop::HostMemory } else { Stop::Unhandled }
    }

    /// Reads one piece: RAM, a chip in the kernel, or user space in steps of at most 8 bytes.
    pub(crate) fn read_piece(&mut self, gpa: u64, buf: &mut [u8]) -> Result<(), Stop> {
        if self.host.is_ram(gpa, false) {
            return if self.host.read_guest(gpa, buf) { Ok(()) } else { Err(Stop::HostMemory) };
        }
        let mut at = gpa;
        for part in buf.chunks_mut(8) {
            self.read_device(at, part)?;
            at = at.wrapping_add(part.len() as u64);
        }
        Ok(())
    }

    fn read_device(&mut self, gpa: u64, part: &mut [u8]) -> Result<(), Stop> {
        let len = part.len() as u8;
        let mut entry = Entry { access: Where::Mmio { gpa }, write: false, len, count: 1, data: [0; 8] };
        if let Step::Done(data) = self.v.journal.step(&entry) {
            copy(part, &data);
            return Ok(());
        }
        if self.kernel_read(gpa, part) {
            copy(&mut entry.data, part);
            return self.note(entry);
        }
        self.v.journal.ask(entry);
        Err(Stop::NeedUser)
    }

    pub(crate) fn write_piece(&mut self, gpa: u64, data: &[u8]) -> Result<(), Stop> {
        if self.host.is_ram(gpa, true) {
            return self.memory(gpa, data);
        }
        let mut at = gpa;
        for part in data.chunks(8) {
            self.write_device(at, part)?;
            at = at.wrapping_add(part.len() as u64);
        }
        Ok(())
    }

    fn memory(&self, gpa: u64, data: &[u8]) -> Result<(), Stop> {
        if self.host.write_guest(gpa, data) { Ok(()) } else { Err(Stop::HostMemory) }
    }

    fn write_device(&mut self, gpa: u64, part: &[u8]) -> Result<(), Stop> {
        let len = part.len() as u8;
        let mut entry = Entry { access: Where::Mmio { gpa }, write: true, len, count: 1, data: [0; 8] };
        if let Step::Done(_) = self.v.journal.step(&entry) {
            return Ok(());
        }
        copy(&mut entry.data, part);
        if self.kernel_write(gpa, part) || self.v.journal.post(entry) {
            return self.note(entry);
        }
        self.v.journal.ask(entry);
        Err(Stop::NeedUser)
    }

    fn note(&mut self, entry: Entry) -> Result<(), Stop> {
        trace::tell(self.host, || trace::access(&entry));
        if self.v.journal.record(entry) { Ok(()) } else { Err(Stop::Unhandled) }
    }

    /// The local APIC's page or a chip of the VM.
    fn kernel_read(&mut self, gpa: u64, part: &mut [u8]) -> bool {
        crate::apic::page::read(self.v, self.sh, self.host, gpa, part) || self.host.mmio_read(gpa, part)
    }

    fn kernel_write(&mut self, gpa: u64, part: &[u8]) -> bool {
        crate::apic::page::write(self.v, self.sh, self.host, gpa, part) || self.host.mmio_write(gpa, part)
    }
}

fn copy(to: &mut [u8], from: &[u8]) {
    for (d, s) in to.iter_mut().zip(from) {
        *d = *s;
    }
}

impl<B: Backend, H: Host<Cpu = B::Cpu>> Cpu for Emulation<'_, B, H> {
    fn mode(&self) -> Mode {
        self.v.mode()
    }
    fn protected(&self) -> bool {
        self.v.b.cr0() & cr0::PE != 0 && self.v.b.rflags() & rflags::VM == 0
    }
    fn linear_bits(&self) -> u8 {
        if self.v.b.cr4() & cr4::LA57 != 0 { 57 } else { 48 }
    }
    fn cpl(&self) -> u8 {
        self.v.b.cpl()
    }
    fn cr0(&self) -> u64 {
        self.v.b.cr0()
    }
    fn cr4(&self) -> u64 {
        self.v.b.cr4()
    }
    fn long_mode(&self) -> bool {
        self.v.b.efer() & efer::LMA != 0
    }
    fn load_msw(&mut self, value: u16) -> Result<(), Stop> {
        if crate::control::load_msw(self.v, self.host, value) {
            return Ok(());
        }
        Err(Stop::Fault(Exception::gp(0)))
    }
    fn gpr(&self, r: Gpr) -> u64 {
        self.v.b.gprs().get(r)
    }
    fn set_gpr(&mut self, r: Gpr, value: u64) {
        self.v.b.gprs_mut().set(r, value);
    }
    fn rip(&self) -> u64 {
        self.v.b.rip()
    }
    fn set_rip(&mut self, rip: u64) {
        // Called once per completed instruction: the shadow ends with it.
        self.v.b.set_rip(rip);
        if self.v.b.interrupt_shadow() {
            self.v.b.set_interrupt_shadow(false);
        }
    }
    fn rflags(&self) -> u64 {
        self.v.b.rflags()
    }
    fn stepping(&self) -> bool {
        // In a replay it is as it was: a debugger may have come or gone meanwhile.
        self.v.journal.source().map_or_else(|| self.v.traps(), |s| s.stepping)
    }
    fn set_rflags(&mut self, value: u64) {
        self.v.b.set_rflags(value);
    }
    fn segment(&self, s: SegReg) -> Segment {
        self.v.b.segment(s)
    }
    fn set_segment(&mut self, s: SegReg, to: &Segment) {
        self.v.b.set_segment(s, to);
    }
    fn table(&self, t: Table) -> TableReg {
        match t {
            Table::Global => self.v.b.gdtr(),
            Table::Interrupt => self.v.b.idtr(),
        }
    }
    fn set_table(&mut self, t: Table, to: &TableReg) {
        match t {
            Table::Global => self.v.b.set_gdtr(to),
            Table::Interrupt => self.v.b.set_idtr(to),
        }
    }
    fn hold_interrupts(&mut self) {
        self.v.b.hold_by_mov_ss();
    }
    fn xmm(&mut self, i: u8) -> Result<[u8; 16], Stop> {
        if self.v.b.cr0() & cr0::EM != 0 || self.v.b.cr4() & cr4::OSFXSR == 0 {
            return Err(Stop::Fault(Exception::ud()));
        }
        if self.v.b.cr0() & cr0::TS != 0 {
            return Err(Stop::Fault(Exception::plain(Vector::NM)));
        }
        Ok(self.host.xmm(usize::from(i)))
    }
    fn set_xmm(&mut self, i: u8, value: [u8; 16]) {
        self.host.set_xmm(usize::from(i), value);
    }
    fn mmx_usable(&mut self) -> Result<(), Stop> {
        /// ES: an unmasked exception waits.
        const ES: u16 = 1 << 7;
        if self.v.b.cr0() & cr0::EM != 0 {
            return Err(Stop::Fault(Exception::ud()));
        }
        if self.v.b.cr0() & cr0::TS != 0 {
            return Err(Stop::Fault(Exception::plain(Vector::NM)));
        }
        let waits = self.host.x87_status() & ES != 0;
        if waits { Err(Stop::Fault(Exception::plain(Vector::MF))) } else { Ok(()) }
    }
    fn mmx(&mut self, i: u8) -> u64 {
        self.host.mmx(usize::from(i))
    }
    fn set_mmx(&mut self, i: u8, value: u64) {
        self.host.set_mmx(usize::from(i), value);
    }
    fn x87(&mut self, word: X87Word) -> Result<u16, Stop> {
        if self.v.b.cr0() & (cr0::EM | cr0::TS) != 0 {
            return Err(Stop::Fault(Exception::plain(Vector::NM)));
        }
        Ok(match word {
            X87Word::Control => self.host.x87_control(),
            X87Word::Status => self.host.x87_status(),
        })
    }

    fn read(&mut self, linear: u64, buf: &mut [u8]) -> Result<(), Stop> {
        self.v.touch(Touch::Read, linear, buf.len());
        let (a, b) = self.pieces(linear, buf.len(), Operation::Read)?;
        self.read_pieces(a, b, buf)
    }
    fn write(&mut self, linear: u64, data: &[u8]) -> Result<(), Stop> {
        self.v.touch(Touch::Write, linear, data.len());
        let (a, b) = self.pieces(linear, data.len(), Operation::Write)?;
        self.both_present(a, b)?;
        for p in [Some(a), b].into_iter().flatten() {
            self.write_piece(p.gpa, data.get(p.from..p.from + p.len).unwrap_or(&[]))?;
        }
        Ok(())
    }
    fn read_for_write(&mut self, linear: u64, buf: &mut [u8]) -> Result<(), Stop> {
        self.v.touch(Touch::Write, linear, buf.len());
        let (a, b) = self.pieces(linear, buf.len(), Operation::Write)?;
        self.read_pieces(a, b, buf)
    }
    fn check_read(&mut self, linear: u64, len: usize) -> Result<(), Stop> {
        self.pieces(linear, len, Operation::Read).map(|_| ())
    }
    fn check_write(&mut self, linear: u64, len: usize) -> Result<(), Stop> {
        self.pieces(linear, len, Operation::Write).map(|_| ())
    }
    fn compare_exchange(&mut self, linear: u64, old: &[u8], new: &[u8]) -> Result<bool, Stop> {
        let (a, b) = self.pieces(linear, new.len(), Operation::Write)?;
        let size = new.len();
        let whole = b.is_none() && matches!(size, 1 | 2 | 4 | 8) && a.gpa & (size as u64 - 1) == 0;
        if whole && self.host.is_ram(a.gpa, true) {
            let word = |s: &[u8]| {
                let mut w = [0; 8];
                copy(&mut w, s);
                u64::from_le_bytes(w)
            };
            return self.host.cmpxchg_guest(a.gpa, size as u8, word(old), word(new)).ok_or(Stop::HostMemory);
        }
        // A device, 16 bytes or a split lock: not atomic against other vCPUs, as on stock KVM for devices.
        self.write(linear, new)?;
        Ok(true)
    }
    fn read_system(&mut self, linear: u64, buf: &mut [u8]) -> Result<(), Stop> {
        self.system_read(self.system_address(linear), buf)
    }
    fn exchange_system(&mut self, linear: u64, old: u8, new: u8) -> Result<bool, Stop> {
        self.system_exchange(self.system_address(linear), old, new)
    }
    fn io_in(&mut self, port: u16, size: u8) -> Result<u32, Stop> {
        self.v.touch(Touch::Port, port.into(), size.into());
        let len = usize::from(size.min(4));
        let mut data = [0; 8];
        let entry = Entry { access: Where::Port { port }, write: false, len: size, count: 1, data };
        if let Step::Done(d) = self.v.journal.step(&entry) {
            return Ok(u32::from_le_bytes([d[0], d[1], d[2], d[3]]));
        }
        let part = data.get_mut(..len).unwrap_or(&mut []);
        if self.host.pio_read(port, part) {
            self.note(Entry { data, ..entry })?;
            return Ok(u32::from_le_bytes([data[0], data[1], data[2], data[3]]));
        }
        self.v.journal.ask(entry);
        Err(Stop::NeedUser)
    }
    fn io_out(&mut self, port: u16, size: u8, value: u32) -> Result<(), Stop> {
        self.v.touch(Touch::Port, port.into(), size.into());
        let mut data = [0; 8];
        copy(&mut data, &value.to_le_bytes());
        let entry = Entry { access: Where::Port { port }, write: true, len: size, count: 1, data };
        if let Step::Done(_) = self.v.journal.step(&entry) {
            return Ok(());
        }
        let part = data.get(..usize::from(size.min(4))).unwrap_or(&[]);
        if self.host.pio_write(port, part) || self.host.pio_event(port, part) {
            return self.note(entry);
        }
        self.v.journal.ask(entry);
        Err(Stop::NeedUser)
    }
    fn io_in_block(&mut self, port: u16, size: u8, max: u32, linear: u64) -> Result<u32, Stop> {
        let Some(block) = self.block(size, max, linear, Operation::Write)? else { return Ok(0) };
        let entry = Entry { access: Where::Port { port }, write: false, len: size, count: max, data: [0; 8] };
        let one = Entry { count: 1, ..entry };
        let first = usize::from(size.min(4));
        if self.v.journal.next_is(&one)
            && let Step::Done(data) = self.v.journal.step(&one)
        {
            return self.first_element(block, &data, first);
        }
        if let Step::Done(_) = self.v.journal.step(&entry) {
            self.page_to_memory(block)?;
            return Ok(max);
        }
        let mut data = [0; 8];
        if self.host.pio_read(port, data.get_mut(..first).unwrap_or(&mut [])) {
            self.note(Entry { data, ..one })?;
            return self.first_element(block, &data, first);
        }
        self.v.journal.ask(entry);
        Err(Stop::NeedUser)
    }
    /// Always one element: stock KVM hands REP OUTS to user space that way, and device models rely on it.
    fn io_out_block(&mut self, _port: u16, _size: u8, _max: u32, _linear: u64) -> Result<u32, Stop> {
        Ok(0)
    }
    fn commit(&mut self) {
        self.v.journal.clear();
    }
}

impl<B: Backend, H: Host<Cpu = B::Cpu>> Emulation<'_, B, H> {
    /// A write across two pages begins when the host has both, so that it is not left half done.
    fn both_present(&self, a: Piece, b: Option<Piece>) -> Result<(), Stop> {
        let Some(b) = b else { return Ok(()) };
        for p in [a, b] {
            if self.host.is_ram(p.gpa, true) && !self.present(p.gpa, true) {
                return Err(Stop::HostMemory);
            }
        }
        Ok(())
    }

    fn read_pieces(&mut self, a: Piece, b: Option<Piece>, buf: &mut [u8]) -> Result<(), Stop> {
        for p in [Some(a), b].into_iter().flatten() {
            self.read_piece(p.gpa, buf.get_mut(p.from..p.from + p.len).unwrap_or(&mut []))?;
        }
        Ok(())
    }
}

/// The processor's own accesses to descriptor tables, task states and frames: to memory only. At most one page boundary lies
/// in them.
impl<B: Backend, H: Host<Cpu = B::Cpu>> Emulation<'_, B, H> {
    /// An address of the system's, of 32 bits outside of long mode.
    fn system_address(&self, linear: u64) -> u64 {
        if self.long_mode() { linear } else { linear & 0xffff_ffff }
    }

    /// Would the access succeed?
    pub(crate) fn system_check(&self, linear: u64, len: usize, access: Access) -> Result<(), Stop> {
        let (a, b) = self.pieces_for(linear, len, access)?;
        let memory = |p: Piece| self.host.is_ram(p.gpa, access.operation == Operation::Write);
        if [Some(a), b].into_iter().flatten().all(memory) { Ok(()) } else { Err(Stop::Unhandled) }
    }

    pub(crate) fn system_read(&self, linear: u64, buf: &mut [u8]) -> Result<(), Stop> {
        let (a, b) = self.pieces_for(linear, buf.len(), Access::SYSTEM_READ)?;
        for p in [Some(a), b].into_iter().flatten() {
            let part = buf.get_mut(p.from..p.from + p.len).unwrap_or(&mut []);
            if !self.host.read_guest(p.gpa, part) {
                return Err(self.out_of_reach(p.gpa));
            }
        }
        Ok(())
    }

    pub(crate) fn memory_write(&self, linear: u64, data: &[u8], access: Access) -> Result<(), Stop> {
        let (a, b) = self.pieces_for(linear, data.len(), access)?;
        for p in [Some(a), b].into_iter().flatten() {
            let part = data.get(p.from..p.from + p.len).unwrap_or(&[]);
            if !self.host.write_guest(p.gpa, part) {
                return Err(self.out_of_reach(p.gpa));
            }
        }
        Ok(())
    }

    /// Replaces a byte atomically; `false`: it is not `old` any more. In a read-only slot it stays and nobody is told, as in a
    /// ROM.
    pub(crate) fn system_exchange(&self, linear: u64, old: u8, new: u8) -> Result<bool, Stop> {
        let (at, _) = self.pieces_for(linear, 1, Access::SYSTEM_WRITE)?;
        match self.host.cmpxchg_guest(at.gpa, 1, u64::from(old), u64::from(new)) {
            Some(done) => Ok(done),
            None if self.host.is_ram(at.gpa, false) && !self.host.is_ram(at.gpa, true) => Ok(true),
            None => Err(Stop::Unhandled),
        }
    }
}

/// Bytes copied at a time between memory and the I/O page.
const CHUNK: usize = 64;

/// Blocks of string I/O: the data goes through the I/O page, where user space finds it or has put it. A chip in the kernel
/// takes one element instead.
impl<B: Backend, H: Host<Cpu = B::Cpu>> Emulation<'_, B, H> {
    /// Where a block lies; `None` unless it is memory, all of it in one page.
    fn block(&self, size: u8, max: u32, linear: u64, op: Operation) -> Result<Option<Piece>, Stop> {
        let len = usize::from(size) * max as usize;
        let (piece, rest) = self.pieces(linear, len, op)?;
        let whole = rest.is_none() && self.host.is_ram(piece.gpa, op == Operation::Write);
        Ok(whole.then_some(piece))
    }

    /// The first element of a block alone, from the journal.
    fn first_element(&self, block: Piece, data: &[u8; 8], len: usize) -> Result<u32, Stop> {
        self.memory(block.gpa, data.get(..len).unwrap_or(&[])).map(|()| 1)
    }

    fn page_to_memory(&self, block: Piece) -> Result<(), Stop> {
        for at in (0..block.len).step_by(CHUNK) {
            let mut chunk = [0; CHUNK];
            let part = chunk.get_mut(..CHUNK.min(block.len - at)).unwrap_or(&mut []);
            self.host.io_page_read(at, part);
            self.memory(block.gpa + at as u64, part)?;
        }
        Ok(())
    }
}
