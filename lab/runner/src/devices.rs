//! The runner's devices: storage behind MMIO windows and ports, a counter to read, a FIFO to write, and their logs.

use crate::config::*;

/// One MMIO access that reached user space.
#[derive(Clone, Copy, Debug)]
pub struct Access {
    /// Guest-physical address.
    pub address: u64,
    /// Length in bytes.
    pub len: u32,
    /// Direction.
    pub write: bool,
    /// Bytes, little endian.
    pub data: u64,
}

/// State of all devices.
pub struct Devices {
    windows: [(u64, Vec<u8>); 2],
    ports: [u8; 16],
    counter: u8,
    /// Bytes written to `PIO_OUT`.
    pub fifo: Vec<u8>,
    /// MMIO accesses since the log was last taken.
    pub log: Vec<Access>,
    /// Text that the guest wrote.
    pub text: String,
}

fn window(start: u64, size: u64) -> (u64, Vec<u8>) {
    (start, (start..start + size).map(mmio_pattern).collect())
}

impl Devices {
    /// All devices as after power-on.
    #[allow(clippy::new_without_default)]
    pub fn new() -> Devices {
        Devices {
            windows: [window(MMIO, MMIO_SIZE), window(MMIO_LOW, MMIO_LOW_SIZE)],
            ports: [0; 16],
            counter: 0,
            fifo: Vec::new(),
            log: Vec::new(),
            text: String::new(),
        }
    }

    fn cell(&mut self, address: u64) -> Option<&mut u8> {
        self.windows.iter_mut().find_map(|(start, bytes)| {
            let offset = address.checked_sub(*start)?;
            bytes.get_mut(usize::try_from(offset).ok()?)
        })
    }

    /// One MMIO access; reads outside of the windows give all ones.
    pub fn mmio(&mut self, address: u64, bytes: &mut [u8], write: bool) {
        for (i, b) in bytes.iter_mut().enumerate() {
            match self.cell(address + i as u64) {
                Some(c) if write => *c = *b,
                Some(c) => *b = *c,
                None if !write => *b = 0xff,
                None => {}
            }
        }
        if self.log.len() < 64 {
            let mut data = [0; 8];
            data[..bytes.len().min(8)].copy_from_slice(&bytes[..bytes.len().min(8)]);
            self.log.push(Access { address, len: bytes.len() as u32, write, data: u64::from_le_bytes(data) });
        }
    }

    /// One element of port input.
    pub fn input(&mut self, port: u16, bytes: &mut [u8]) {
        for (i, b) in bytes.iter_mut().enumerate() {
            *b = if port == PIO_IN {
                self.counter = self.counter.wrapping_add(1);
                self.counter.wrapping_sub(1)
            } else {
                let index = usize::from(port.wrapping_sub(PIO_RAM)) + i;
                self.ports.get(index).copied().unwrap_or(0xff)
            };
        }
    }

    /// One element of port output.
    pub fn output(&mut self, port: u16, bytes: &[u8]) {
        if port == PIO_OUT {
            self.fifo.extend_from_slice(bytes);
            return;
        }
        for (i, b) in bytes.iter().enumerate() {
            let index = usize::from(port.wrapping_sub(PIO_RAM)) + i;
            if let Some(p) = self.ports.get_mut(index) {
                *p = *b;
            }
        }
    }

    /// Takes the FIFO and starts the input counter again.
    pub fn take_fifo(&mut self) -> Vec<u8> {
        self.counter = 0;
        std::mem::take(&mut self.fifo)
    }
}
