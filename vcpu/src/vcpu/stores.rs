//! Instructions that are known to ring doorbells: see the head of `crate::exits::doorbell`.

use crate::backend::Stopped;

/// Drivers ring with few instructions: most with one, for all queues.
const STORES: usize = 4;

/// The known stores, with their lengths; length 0: none.
#[derive(Clone, Copy, Debug, Default, bytemuck::Zeroable)]
pub struct Stores {
    known: [(Stopped, u8); STORES],
    /// The next to be forgotten.
    oldest: u8,
}

impl Stores {
    pub(crate) fn length(&self, at: &Stopped) -> Option<u8> {
        self.known.iter().find(|(known, length)| *length != 0 && known == at).map(|(_, length)| *length)
    }

    pub(crate) fn learn(&mut self, at: Stopped, length: u8) {
        if let Some(place) = self.known.get_mut(usize::from(self.oldest)) {
            *place = (at, length);
        }
        self.oldest = (self.oldest + 1) % STORES as u8;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Four are known, the first of five is not any more.
    #[test]
    fn few_are_known() {
        let at = |rip| Stopped { rip, ..Stopped::default() };
        let mut s = Stores::default();
        assert_eq!(s.length(&at(0)), None);
        for rip in 0..5 {
            s.learn(at(rip), rip as u8 + 2);
        }
        let found: [_; 5] = core::array::from_fn(|rip| s.length(&at(rip as u64)));
        assert_eq!(found, [None, Some(3), Some(4), Some(5), Some(6)]);
        assert_eq!(s.length(&Stopped { length: 3, ..at(4) }), None);
        assert_eq!(s.length(&Stopped { code: 3, ..at(4) }), None);
    }
}
