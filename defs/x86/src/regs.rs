//! Registers of one logical processor: general purpose, control, segment and table registers.

use bytemuck::{Pod, Zeroable};

/// General purpose registers in the order of their encoding (SDM vol. 2A, table 3-1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
#[allow(missing_docs)]
pub enum Gpr {
    Rax = 0,
    Rcx = 1,
    Rdx = 2,
    Rbx = 3,
    Rsp = 4,
    Rbp = 5,
    Rsi = 6,
    Rdi = 7,
    R8 = 8,
    R9 = 9,
    R10 = 10,
    R11 = 11,
    R12 = 12,
    R13 = 13,
    R14 = 14,
    R15 = 15,
}

/// The general purpose registers, indexed by encoding. The world switch knows this layout: 16 x 8 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Gprs(pub [u64; 16]);

impl Gprs {
    /// The register's full 64 bits.
    pub fn get(&self, r: Gpr) -> u64 {
        // PANIC: never; `Gpr` has 16 values and the array 16 entries, the compiler drops the check.
        self.0[r as usize & 15]
    }

    /// Replaces the full 64 bits.
    pub fn set(&mut self, r: Gpr, value: u64) {
        self.0[r as usize & 15] = value;
    }

    /// EDX:EAX as one value, as RDMSR, WRMSR and XSETBV use it.
    pub fn edx_eax(&self) -> u64 {
        (self.get(Gpr::Rdx) << 32) | (self.get(Gpr::Rax) & 0xffff_ffff)
    }

    /// Writes EDX:EAX, clearing the upper halves of RDX and RAX as RDMSR does.
    pub fn set_edx_eax(&mut self, value: u64) {
        self.set(Gpr::Rax, value & 0xffff_ffff);
        self.set(Gpr::Rdx, value >> 32);
    }
}

/// Segment registers in the order of their encoding; `Ldtr` and `Tr` follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
#[allow(missing_docs)]
pub enum SegReg {
    Es = 0,
    Cs = 1,
    Ss = 2,
    Ds = 3,
    Fs = 4,
    Gs = 5,
    Ldtr = 6,
    Tr = 7,
}

/// A segment register with its hidden part. `limit` is in bytes (already scaled by G).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Segment {
    /// Linear base address.
    pub base: u64,
    /// Highest valid offset, in bytes.
    pub limit: u32,
    /// The visible selector.
    pub selector: u16,
    /// Access rights in the VMCB's packed form (APM vol. 2, 15.5.1): bits 3:0 type, 4 S, 6:5 DPL, 7 P,
    /// 8 AVL, 9 L, 10 D/B, 11 G.
    pub attrib: u16,
}

#[allow(missing_docs)]
impl Segment {
    pub const S: u16 = 1 << 4;
    pub const P: u16 = 1 << 7;
    pub const AVL: u16 = 1 << 8;
    pub const L: u16 = 1 << 9;
    pub const DB: u16 = 1 << 10;
    pub const G: u16 = 1 << 11;

    pub fn typ(&self) -> u8 {
        (self.attrib & 15) as u8
    }
    pub fn dpl(&self) -> u8 {
        (self.attrib >> 5 & 3) as u8
    }
    pub fn present(&self) -> bool {
        self.attrib & Self::P != 0
    }
    pub fn long(&self) -> bool {
        self.attrib & Self::L != 0
    }
    pub fn db(&self) -> bool {
        self.attrib & Self::DB != 0
    }
    /// Data segment that expands down (type bit 2 of a non-code segment).
    pub fn expand_down(&self) -> bool {
        self.attrib & (Self::S | 8 | 4) == (Self::S | 4)
    }
    /// Code segment, or data segment with the writable bit.
    pub fn writable(&self) -> bool {
        self.attrib & (Self::S | 8 | 2) == (Self::S | 2)
    }
}

/// GDTR or IDTR.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct TableReg {
    /// Linear base address.
    pub base: u64,
    /// Limit in bytes.
    pub limit: u32,
    /// Always zero.
    pub reserved: u32,
}

/// CR0 bits (SDM vol. 3A, 2.5).
#[allow(missing_docs)]
pub mod cr0 {
    pub const PE: u64 = 1 << 0;
    pub const MP: u64 = 1 << 1;
    pub const EM: u64 = 1 << 2;
    pub const TS: u64 = 1 << 3;
    pub const ET: u64 = 1 << 4;
    pub const NE: u64 = 1 << 5;
    pub const WP: u64 = 1 << 16;
    pub const AM: u64 = 1 << 18;
    pub const NW: u64 = 1 << 29;
    pub const CD: u64 = 1 << 30;
    pub const PG: u64 = 1 << 31;
}

/// CR4 bits (SDM vol. 3A, 2.5).
#[allow(missing_docs)]
pub mod cr4 {
    pub const VME: u64 = 1 << 0;
    pub const PVI: u64 = 1 << 1;
    pub const TSD: u64 = 1 << 2;
    pub const DE: u64 = 1 << 3;
    pub const PSE: u64 = 1 << 4;
    pub const PAE: u64 = 1 << 5;
    pub const MCE: u64 = 1 << 6;
    pub const PGE: u64 = 1 << 7;
    pub const PCE: u64 = 1 << 8;
    pub const OSFXSR: u64 = 1 << 9;
    pub const OSXMMEXCPT: u64 = 1 << 10;
    pub const UMIP: u64 = 1 << 11;
    pub const LA57: u64 = 1 << 12;
    pub const VMXE: u64 = 1 << 13;
    pub const SMXE: u64 = 1 << 14;
    pub const FSGSBASE: u64 = 1 << 16;
    pub const PCIDE: u64 = 1 << 17;
    pub const OSXSAVE: u64 = 1 << 18;
    pub const SMEP: u64 = 1 << 20;
    pub const SMAP: u64 = 1 << 21;
    pub const PKE: u64 = 1 << 22;
    pub const CET: u64 = 1 << 23;
    pub const PKS: u64 = 1 << 24;
}

/// IA32_EFER bits (SDM vol. 3A, 2.2.1; APM vol. 2, 3.1.7).
#[allow(missing_docs)]
pub mod efer {
    pub const SCE: u64 = 1 << 0;
    pub const LME: u64 = 1 << 8;
    pub const LMA: u64 = 1 << 10;
    pub const NXE: u64 = 1 << 11;
    pub const SVME: u64 = 1 << 12;
    pub const LMSLE: u64 = 1 << 13;
    pub const FFXSR: u64 = 1 << 14;
    pub const TCE: u64 = 1 << 15;
    pub const AUTOIBRS: u64 = 1 << 21;
}

/// DR6 (SDM vol. 3B, 18.2.3).
#[allow(missing_docs)]
pub mod dr6 {
    /// B0 to B3.
    pub const BREAKPOINTS: u64 = 0xf;
    pub const BD: u64 = 1 << 13;
    pub const BS: u64 = 1 << 14;
    pub const BT: u64 = 1 << 15;
    /// All of them.
    pub const CONDITIONS: u64 = BREAKPOINTS | BD | BS | BT;
    /// None of them, and what reads as one.
    pub const NEUTRAL: u64 = 0xffff_0ff0;
}

/// DR7 (SDM vol. 3B, 18.2.4).
#[allow(missing_docs)]
pub mod dr7 {
    /// L0 to L3 and G0 to G3.
    pub const ENABLED: u64 = 0xff;
    pub const GD: u64 = 1 << 13;
    /// What software may set.
    pub const WRITABLE: u64 = 0xffff_23ff;
    /// What reads as one.
    pub const FIXED: u64 = 1 << 10;
}

/// RFLAGS bits (SDM vol. 1, 3.4.3).
#[allow(missing_docs)]
pub mod rflags {
    pub const CF: u64 = 1 << 0;
    pub const FIXED: u64 = 1 << 1;
    pub const PF: u64 = 1 << 2;
    pub const AF: u64 = 1 << 4;
    pub const ZF: u64 = 1 << 6;
    pub const SF: u64 = 1 << 7;
    pub const TF: u64 = 1 << 8;
    pub const IF: u64 = 1 << 9;
    pub const DF: u64 = 1 << 10;
    pub const OF: u64 = 1 << 11;
    pub const IOPL: u64 = 3 << 12;
    pub const NT: u64 = 1 << 14;
    pub const RF: u64 = 1 << 16;
    pub const VM: u64 = 1 << 17;
    pub const AC: u64 = 1 << 18;
    pub const VIF: u64 = 1 << 19;
    pub const VIP: u64 = 1 << 20;
    pub const ID: u64 = 1 << 21;
}
