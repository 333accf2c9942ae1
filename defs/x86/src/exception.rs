//! Exception vectors, error codes and events to inject (SDM vol. 3A, 6.15; APM vol. 2, 8.2).

/// An exception vector. Open: any `u8` below 32 may come from hardware or user space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vector(pub u8);

#[allow(missing_docs)]
impl Vector {
    pub const DE: Self = Self(0);
    pub const DB: Self = Self(1);
    pub const NMI: Self = Self(2);
    pub const BP: Self = Self(3);
    pub const OF: Self = Self(4);
    pub const BR: Self = Self(5);
    pub const UD: Self = Self(6);
    pub const NM: Self = Self(7);
    pub const DF: Self = Self(8);
    pub const TS: Self = Self(10);
    pub const NP: Self = Self(11);
    pub const SS: Self = Self(12);
    pub const GP: Self = Self(13);
    pub const PF: Self = Self(14);
    pub const MF: Self = Self(16);
    pub const AC: Self = Self(17);
    pub const MC: Self = Self(18);
    pub const XM: Self = Self(19);
    pub const VE: Self = Self(20);
    pub const CP: Self = Self(21);

    /// Whether delivery pushes an error code (in protected mode).
    pub fn has_error_code(self) -> bool {
        matches!(self.0, 8 | 10..=14 | 17 | 21)
    }

    /// Contributory exceptions of the double-fault rule (SDM vol. 3A, table 6-4).
    pub fn contributory(self) -> bool {
        matches!(self.0, 0 | 10..=13)
    }
}

/// An exception to deliver to the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exception {
    /// Which one.
    pub vector: Vector,
    /// The error code, where the vector has one.
    pub error_code: Option<u32>,
    /// CR2 for #PF, the DR6 bits for #DB; otherwise 0.
    pub payload: u64,
}

impl Exception {
    /// An exception without error code or payload.
    pub const fn plain(vector: Vector) -> Self {
        Self { vector, error_code: None, payload: 0 }
    }
    /// #GP(code).
    pub const fn gp(code: u32) -> Self {
        Self { vector: Vector::GP, error_code: Some(code), payload: 0 }
    }
    /// #SS(code).
    pub const fn ss(code: u32) -> Self {
        Self { vector: Vector::SS, error_code: Some(code), payload: 0 }
    }
    /// #UD.
    pub const fn ud() -> Self {
        Self::plain(Vector::UD)
    }
    /// #PF(code) at linear address `cr2`.
    pub const fn pf(code: u32, cr2: u64) -> Self {
        Self { vector: Vector::PF, error_code: Some(code), payload: cr2 }
    }
}

/// #PF error code bits (SDM vol. 3A, 4.7).
#[allow(missing_docs)]
pub mod pf_code {
    pub const P: u32 = 1 << 0;
    pub const W: u32 = 1 << 1;
    pub const U: u32 = 1 << 2;
    pub const RSVD: u32 = 1 << 3;
    pub const I: u32 = 1 << 4;
    pub const PK: u32 = 1 << 5;
}
