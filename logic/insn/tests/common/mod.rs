//! A small machine to emulate on, instructions to feed it, and the real processor to compare with.
#![allow(dead_code, missing_docs, unreachable_pub)]

pub mod forms;
pub mod machine;
#[cfg(all(target_arch = "x86_64", unix))]
pub mod native;

/// xorshift64*: the same stream for the same seed, so that a failing seed can be run again.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Below `n`.
    pub fn below(&mut self, n: u64) -> u64 {
        (self.next() >> 11) % n
    }

    pub fn coin(&mut self) -> bool {
        self.below(2) == 0
    }

    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }

    /// Values that sit on the edges of every operand size, or anything.
    pub fn value(&mut self) -> u64 {
        const EDGES: [u64; 14] = [
            0,
            1,
            2,
            0x7f,
            0x80,
            0xff,
            0x7fff,
            0x8000,
            0xffff,
            0x7fff_ffff,
            0x8000_0000,
            0xffff_ffff,
            0x8000_0000_0000_0000,
            u64::MAX,
        ];
        if self.coin() { self.pick(&EDGES) } else { self.next() }
    }
}

/// The bytes of an instruction as the emulator takes them.
pub fn fetch(code: &[u8]) -> ([u8; 15], usize) {
    let mut bytes = [0xcc; 15];
    bytes[..code.len()].copy_from_slice(code);
    (bytes, code.len())
}
