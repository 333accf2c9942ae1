//! ioeventfds: which registrations collide, and whose a write of the guest is.
//!
//! A *key* is what a registration compares: an address or port, a length (0: any) and perhaps the data. A *table* is the keys of
//! a VM in the order of [`Key::cmp`], no two of which collide: one write is at most one key's, and halving finds it.
#![no_std]
#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)
)]

#[cfg(test)]
extern crate std;

use core::cmp::Ordering;

/// What one registration of KVM_IOEVENTFD compares. The order of the fields is that of tables.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, bytemuck::Zeroable)]
pub struct Key {
    /// A port, not an address.
    pub pio: bool,
    /// Where.
    pub addr: u64,
    /// Bytes: 1, 2, 4, 8; 0: any.
    pub len: u32,
    /// The data counts.
    pub matches: bool,
    /// Then this is it.
    pub data: u64,
}

/// A write of the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Write {
    /// To a port.
    pub pio: bool,
    /// Where.
    pub addr: u64,
    /// Bytes.
    pub len: u32,
    /// Little-endian, above `len` zero.
    pub data: u64,
}

impl Write {
    /// Of these bytes, 8 at most.
    pub fn new(pio: bool, addr: u64, bytes: &[u8]) -> Self {
        let mut word = [0; 8];
        for (to, from) in word.iter_mut().zip(bytes) {
            *to = *from;
        }
        Self { pio, addr, len: bytes.len() as u32, data: u64::from_le_bytes(word) }
    }
}

impl Key {
    /// Some write could be that of both.
    pub fn collides(&self, other: &Key) -> bool {
        self.pio == other.pio
            && self.addr == other.addr
            && (self.len == 0
                || other.len == 0
                || (self.len == other.len && (!self.matches || !other.matches || self.data == other.data)))
    }

    /// Neither length nor data count: that something is written is all.
    pub fn any(&self) -> bool {
        self.len == 0
    }

    /// Where the key stands beside the write in a table; `Equal`: the write is the key's.
    fn beside(&self, w: &Write) -> Ordering {
        let place = (self.pio, self.addr).cmp(&(w.pio, w.addr));
        if place != Ordering::Equal || self.any() {
            return place;
        }
        let length = self.len.cmp(&w.len);
        if length != Ordering::Equal || !self.matches {
            return length;
        }
        self.data.cmp(&w.data)
    }
}

/// Whose the write is, in a table whose items have keys.
pub fn find<'t, T>(table: &'t [T], key: impl Fn(&T) -> Key, w: &Write) -> Option<&'t T> {
    table.get(table.binary_search_by(|item| key(item).beside(w)).ok()?)
}

/// Who hears of any write at this address of memory.
pub fn find_any<T>(table: &[T], key: impl Fn(&T) -> Key, addr: u64) -> Option<&T> {
    // A length that no key has: where others are at the address, all of them stand before it.
    let w = Write { pio: false, addr, len: u32::MAX, data: 0 };
    find(table, key, &w)
}

#[cfg(test)]
mod tests;
