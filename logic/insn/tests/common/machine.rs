//! A processor with flat RAM, one device behind MMIO and ports, and a journal like the module's.

use std::ops::Range;

use exitless_insn::emulate::{Table, X87Word};
use exitless_insn::{Cpu, Mode, Outcome, Stop, emulate};
use exitless_x86::exception::Exception;
use exitless_x86::regs::{Gpr, SegReg, Segment, TableReg};

use super::fetch;

/// An access that reaches the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    pub write: bool,
    pub port: bool,
    pub address: u64,
    pub len: usize,
    pub data: [u8; 16],
}

/// The device answers every read differently, so that an access too many or out of order shows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Device {
    pub log: Vec<Request>,
}

impl Device {
    fn perform(&mut self, mut r: Request) -> Request {
        if !r.write {
            let n = self.log.len() as u64 + 1;
            let low = (r.address ^ n << 3).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let value = u128::from(low) | u128::from(low.rotate_left(17)) << 64;
            r.data = value.to_le_bytes();
        }
        self.log.push(r);
        r
    }
}

#[derive(Clone, Debug)]
pub struct Machine {
    pub mode: Mode,
    pub protected: bool,
    pub cpl: u8,
    pub cr0: u64,
    pub cr4: u64,
    /// GDTR and IDTR.
    pub tables: [TableReg; 2],
    pub mmx: [u64; 8],
    /// Why MMX, or a word of the x87's, is out of reach.
    pub no_mmx: Option<Exception>,
    /// Interrupts are held back.
    pub shadow: bool,
    pub linear_bits: u8,
    pub gpr: [u64; 16],
    pub rip: u64,
    pub rflags: u64,
    pub segments: [Segment; 8],
    pub xmm: [[u8; 16]; 16],
    pub xmm_reachable: bool,
    pub ram_base: u64,
    pub ram: Vec<u8>,
    /// Writes here fault with #PF.
    pub read_only: Range<u64>,
    pub mmio: Range<u64>,
    /// The device lives in user space: every access stops once.
    pub user: bool,
    pub device: Device,
    /// Ports take up to 16 bytes of INS and OUTS at once, when memory is RAM.
    pub blocks: bool,
    pub journal: Vec<Request>,
    pub position: usize,
    pub pending: Option<Request>,
    /// Another processor writes the byte at the address of a locked access this many times.
    pub races: u32,
    pub commits: u32,
}

pub const RAM: u64 = 0x1_0000;
pub const RAM_LEN: usize = 0x2_0000;
pub const MMIO: u64 = 0x10_0000;

impl Machine {
    pub fn new(mode: Mode) -> Self {
        let attrib =
            Segment::P | Segment::S | Segment::G | if mode == Mode::Bits32 { Segment::DB } else { 0 };
        let limit = if mode == Mode::Bits16 { 0xffff } else { u32::MAX };
        let data = Segment { base: 0, limit, selector: 0x10, attrib: attrib | 3 };
        let long = if mode == Mode::Bits64 { Segment::L } else { 0 };
        let code = Segment { selector: 8, attrib: attrib | 0xb | long, ..data };
        Self {
            mode,
            protected: true,
            cpl: 0,
            cr0: 0x8000_0011,
            cr4: 0,
            tables: [TableReg::default(); 2],
            mmx: [0; 8],
            no_mmx: None,
            shadow: false,
            linear_bits: 48,
            gpr: [0; 16],
            rip: 0x1000,
            rflags: 2,
            segments: [data, code, data, data, data, data, Segment::default(), Segment::default()],
            xmm: [[0; 16]; 16],
            xmm_reachable: true,
            ram_base: RAM,
            ram: vec![0; RAM_LEN],
            read_only: 0..0,
            mmio: MMIO..MMIO + 0x1_0000,
            user: false,
            device: Device::default(),
            blocks: false,
            journal: Vec::new(),
            position: 0,
            pending: None,
            races: 0,
            commits: 0,
        }
    }

    pub fn set(&mut self, r: Gpr, v: u64) -> &mut Self {
        self.gpr[r as usize] = v;
        self
    }

    pub fn get(&self, r: Gpr) -> u64 {
        self.gpr[r as usize]
    }

    pub fn poke(&mut self, at: u64, data: &[u8]) -> &mut Self {
        let at = (at - self.ram_base) as usize;
        self.ram[at..at + data.len()].copy_from_slice(data);
        self
    }

    pub fn peek(&self, at: u64, len: usize) -> &[u8] {
        let at = (at - self.ram_base) as usize;
        &self.ram[at..at + len]
    }

    pub fn peek_u64(&self, at: u64) -> u64 {
        u64::from_le_bytes(self.peek(at, 8).try_into().unwrap())
    }

    /// One call of the emulator.
    pub fn step(&mut self, code: &[u8]) -> Outcome {
        let (bytes, valid) = fetch(code);
        self.position = 0;
        emulate(self, &bytes, valid)
    }

    /// User space performs the recorded request.
    pub fn answer(&mut self) {
        let request = self.pending.take().expect("a request is pending");
        let done = self.device.perform(request);
        self.journal.push(done);
    }

    /// Emulates until the instruction is done or faults, answering requests.
    pub fn run(&mut self, code: &[u8]) -> Outcome {
        for _ in 0..10_000 {
            match self.step(code) {
                Outcome::Again | Outcome::Contended => {}
                Outcome::Stop(Stop::NeedUser) => self.answer(),
                end => return end,
            }
        }
        panic!("no end of {code:02x?}");
    }

    fn in_ram(&self, linear: u64, len: usize) -> Option<usize> {
        let at = linear.checked_sub(self.ram_base)?;
        (at + len as u64 <= self.ram.len() as u64).then_some(at as usize)
    }

    /// Place in RAM and length of a block, as far as this machine takes it.
    fn block(&self, size: u8, max: u32, linear: u64) -> Option<(usize, usize)> {
        let all = usize::from(size) * max as usize;
        assert!(max >= 2 && linear & 4095 <= 4096 - all as u64, "a block of one page: {linear:x} {all}");
        let at = self.in_ram(linear, all)?;
        self.blocks.then_some((at, all.min(16)))
    }

    fn page_fault(&self, linear: u64, write: bool) -> Stop {
        let present = if self.read_only.contains(&linear) { 1 } else { 0 };
        Stop::Fault(Exception::pf(present | if write { 2 } else { 0 }, linear))
    }

    fn reach(&mut self, request: Request) -> Result<[u8; 16], Stop> {
        if !self.user {
            return Ok(self.device.perform(request).data);
        }
        if let Some(done) = self.journal.get(self.position).copied() {
            let data = if request.write { request.data } else { done.data };
            assert_eq!(Request { data, ..request }, done, "the replay makes the same accesses");
            self.position += 1;
            return Ok(done.data);
        }
        self.pending = Some(request);
        Err(Stop::NeedUser)
    }

    fn write_allowed(&self, linear: u64, len: usize) -> Result<(), Stop> {
        let reachable = self.in_ram(linear, len).is_some() || self.mmio.contains(&linear);
        if !reachable || self.read_only.contains(&linear) {
            return Err(self.page_fault(linear, true));
        }
        Ok(())
    }
}

impl Cpu for Machine {
    fn mode(&self) -> Mode {
        self.mode
    }
    fn protected(&self) -> bool {
        self.protected
    }
    fn linear_bits(&self) -> u8 {
        self.linear_bits
    }
    fn cpl(&self) -> u8 {
        self.cpl
    }
    fn cr0(&self) -> u64 {
        self.cr0
    }
    fn cr4(&self) -> u64 {
        self.cr4
    }
    fn long_mode(&self) -> bool {
        self.mode == Mode::Bits64
    }
    fn load_msw(&mut self, value: u16) -> Result<(), Stop> {
        self.cr0 = self.cr0 & !0xe | u64::from(value & 0xf);
        Ok(())
    }
    fn set_segment(&mut self, s: SegReg, to: &Segment) {
        self.segments[s as usize] = *to;
    }
    fn table(&self, t: Table) -> TableReg {
        self.tables[t as usize]
    }
    fn set_table(&mut self, t: Table, to: &TableReg) {
        self.tables[t as usize] = *to;
    }
    fn hold_interrupts(&mut self) {
        self.shadow = true;
    }
    fn mmx_usable(&mut self) -> Result<(), Stop> {
        self.no_mmx.map_or(Ok(()), |x| Err(Stop::Fault(x)))
    }
    fn mmx(&mut self, i: u8) -> u64 {
        self.mmx[usize::from(i)]
    }
    fn set_mmx(&mut self, i: u8, value: u64) {
        self.mmx[usize::from(i)] = value;
    }
    fn x87(&mut self, word: X87Word) -> Result<u16, Stop> {
        self.no_mmx.map_or(Ok(if word == X87Word::Control { 0x37f } else { 0x3801 }), |x| Err(Stop::Fault(x)))
    }
    fn gpr(&self, r: Gpr) -> u64 {
        self.gpr[r as usize]
    }
    fn set_gpr(&mut self, r: Gpr, value: u64) {
        self.gpr[r as usize] = value;
    }
    fn rip(&self) -> u64 {
        self.rip
    }
    fn set_rip(&mut self, rip: u64) {
        self.rip = rip;
    }
    fn rflags(&self) -> u64 {
        self.rflags
    }
    fn set_rflags(&mut self, value: u64) {
        self.rflags = value;
    }
    fn segment(&self, s: SegReg) -> Segment {
        self.segments[s as usize]
    }
    fn xmm(&mut self, i: u8) -> Result<[u8; 16], Stop> {
        if self.xmm_reachable { Ok(self.xmm[i as usize]) } else { Err(Stop::Unhandled) }
    }
    fn set_xmm(&mut self, i: u8, value: [u8; 16]) {
        self.xmm[i as usize] = value;
    }

    fn read(&mut self, linear: u64, buf: &mut [u8]) -> Result<(), Stop> {
        if let Some(at) = self.in_ram(linear, buf.len()) {
            buf.copy_from_slice(&self.ram[at..at + buf.len()]);
            return Ok(());
        }
        if !self.mmio.contains(&linear) {
            return Err(self.page_fault(linear, false));
        }
        let request = Request { write: false, port: false, address: linear, len: buf.len(), data: [0; 16] };
        let data = self.reach(request)?;
        let len = buf.len();
        buf.copy_from_slice(&data[..len]);
        Ok(())
    }

    fn write(&mut self, linear: u64, data: &[u8]) -> Result<(), Stop> {
        self.write_allowed(linear, data.len())?;
        if let Some(at) = self.in_ram(linear, data.len()) {
            self.ram[at..at + data.len()].copy_from_slice(data);
            return Ok(());
        }
        let mut bytes = [0; 16];
        bytes[..data.len()].copy_from_slice(data);
        let request = Request { write: true, port: false, address: linear, len: data.len(), data: bytes };
        self.reach(request).map(|_| ())
    }

    fn read_for_write(&mut self, linear: u64, buf: &mut [u8]) -> Result<(), Stop> {
        self.write_allowed(linear, buf.len())?;
        self.read(linear, buf)
    }

    fn check_write(&mut self, linear: u64, len: usize) -> Result<(), Stop> {
        self.write_allowed(linear, len)
    }

    fn check_read(&mut self, linear: u64, len: usize) -> Result<(), Stop> {
        let there = self.in_ram(linear, len).is_some() || self.mmio.contains(&linear);
        if there { Ok(()) } else { Err(self.page_fault(linear, false)) }
    }

    fn exchange_system(&mut self, linear: u64, old: u8, new: u8) -> Result<bool, Stop> {
        let at = self.in_ram(linear, 1).ok_or_else(|| self.page_fault(linear, true))?;
        let same = self.ram[at] == old;
        if same {
            self.ram[at] = new;
        }
        Ok(same)
    }

    fn compare_exchange(&mut self, linear: u64, old: &[u8], new: &[u8]) -> Result<bool, Stop> {
        assert_eq!(old.len(), new.len());
        if let Some(at) = self.in_ram(linear, old.len()) {
            if self.races > 0 {
                self.races -= 1;
                self.ram[at] = self.ram[at].wrapping_add(1);
            }
            if self.ram[at..at + old.len()] != *old {
                return Ok(false);
            }
        }
        self.write(linear, new)?;
        Ok(true)
    }

    fn read_system(&mut self, linear: u64, buf: &mut [u8]) -> Result<(), Stop> {
        let at = self.in_ram(linear, buf.len()).ok_or_else(|| self.page_fault(linear, false))?;
        buf.copy_from_slice(&self.ram[at..at + buf.len()]);
        Ok(())
    }

    fn io_in(&mut self, port: u16, size: u8) -> Result<u32, Stop> {
        let len = usize::from(size);
        let request = Request { write: false, port: true, address: port.into(), len, data: [0; 16] };
        let data = self.reach(request)?;
        let mut value = [0; 4];
        value[..len].copy_from_slice(&data[..len]);
        Ok(u32::from_le_bytes(value))
    }

    fn io_out(&mut self, port: u16, size: u8, value: u32) -> Result<(), Stop> {
        let mut data = [0; 16];
        data[..usize::from(size)].copy_from_slice(&value.to_le_bytes()[..usize::from(size)]);
        let request = Request { write: true, port: true, address: port.into(), len: size.into(), data };
        self.reach(request).map(|_| ())
    }

    fn io_in_block(&mut self, port: u16, size: u8, max: u32, linear: u64) -> Result<u32, Stop> {
        let Some((at, len)) = self.block(size, max, linear) else { return Ok(0) };
        self.write_allowed(linear, len)?;
        let request = Request { write: false, port: true, address: port.into(), len, data: [0; 16] };
        let data = self.reach(request)?;
        self.ram[at..at + len].copy_from_slice(&data[..len]);
        Ok((len / usize::from(size)) as u32)
    }

    fn io_out_block(&mut self, port: u16, size: u8, max: u32, linear: u64) -> Result<u32, Stop> {
        let Some((at, len)) = self.block(size, max, linear) else { return Ok(0) };
        let mut data = [0; 16];
        data[..len].copy_from_slice(&self.ram[at..at + len]);
        self.reach(Request { write: true, port: true, address: port.into(), len, data })?;
        Ok((len / usize::from(size)) as u32)
    }

    fn commit(&mut self) {
        assert_eq!(self.position, self.journal.len(), "every answer is used before the commit");
        self.journal.clear();
        self.position = 0;
        self.commits += 1;
    }
}
