//! Sets of mechanisms, and how administrators write changes of one: `-ipi_fastpath,+posted_timer`.

use crate::table::{COUNT, DEFAULTS, Mechanism, TABLE};

/// A set of mechanisms: a bit each, by number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Zeroable)]
#[repr(transparent)]
pub struct Set(pub u64);

/// A word is no mechanism's name with a sign.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotAMechanism<'a>(pub &'a str);

impl Set {
    /// None.
    pub const NONE: Self = Self(0);
    /// All there are.
    pub const ALL: Self = Self(!0 >> (64 - COUNT));
    /// The table's column.
    pub const DEFAULT: Self = Self(DEFAULTS);

    /// Whether `m` is in it.
    pub const fn has(self, m: Mechanism) -> bool {
        self.0 & 1 << m as u8 != 0
    }

    /// With or without `m`.
    pub const fn put(self, m: Mechanism, on: bool) -> Self {
        let bit = 1 << m as u8;
        Self(if on { self.0 | bit } else { self.0 & !bit })
    }

    /// Its members.
    pub fn iter(self) -> impl Iterator<Item = Mechanism> {
        TABLE.iter().map(|row| row.mechanism).filter(move |m| self.has(*m))
    }

    /// This set after the changes in `text`: words with a sign, between commas or blanks, done in order. The word `all` is every
    /// mechanism, `default` the table's column, which stands without a sign.
    pub fn changed(self, text: &str) -> Result<Self, NotAMechanism<'_>> {
        let words = text.split([',', ' ', '\t', '\n']).filter(|w| !w.is_empty());
        words.into_iter().try_fold(self, Self::change)
    }

    fn change(self, word: &str) -> Result<Self, NotAMechanism<'_>> {
        if word == "default" {
            return Ok(Self::DEFAULT);
        }
        let (on, name) = match (word.strip_prefix('+'), word.strip_prefix('-')) {
            (Some(name), _) => (true, name),
            (_, Some(name)) => (false, name),
            _ => return Err(NotAMechanism(word)),
        };
        if name == "all" {
            return Ok(if on { Self::ALL } else { Self::NONE });
        }
        Mechanism::from_name(name).map(|m| self.put(m, on)).ok_or(NotAMechanism(word))
    }
}
