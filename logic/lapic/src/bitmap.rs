//! 256 vector bits as eight 32-bit words, the shape of ISR, TMR and IRR.

use bytemuck::Zeroable;

/// Splits a vector into word index (0..8) and bit mask.
pub(crate) const fn place(vector: u8) -> (usize, u32) {
    ((vector >> 5) as usize, 1 << (vector & 31))
}

/// Highest set vector of eight words given from word 0 upwards.
pub(crate) fn highest(words: impl DoubleEndedIterator<Item = u32> + ExactSizeIterator) -> Option<u8> {
    let (index, word) = words.enumerate().rev().find(|&(_, word)| word != 0)?;
    Some((index as u8 & 7) << 5 | (31 - word.leading_zeros()) as u8)
}

/// The same of four words of 64 bits.
pub(crate) fn highest_of_64(words: impl DoubleEndedIterator<Item = u64> + ExactSizeIterator) -> Option<u8> {
    let (index, word) = words.enumerate().rev().find(|&(_, word)| word != 0)?;
    Some((index as u8 & 3) << 6 | (63 - word.leading_zeros()) as u8)
}

/// A set of vectors that only its owner touches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Zeroable)]
pub(crate) struct Bitmap(pub(crate) [u32; 8]);

impl Bitmap {
    pub(crate) fn insert(&mut self, vector: u8) {
        let (index, bit) = place(vector);
        if let Some(word) = self.0.get_mut(index) {
            *word |= bit;
        }
    }

    pub(crate) fn remove(&mut self, vector: u8) {
        let (index, bit) = place(vector);
        if let Some(word) = self.0.get_mut(index) {
            *word &= !bit;
        }
    }

    pub(crate) fn highest(&self) -> Option<u8> {
        highest(self.0.iter().copied())
    }

    pub(crate) fn len(&self) -> u32 {
        self.0.iter().map(|word| word.count_ones()).sum()
    }
}
