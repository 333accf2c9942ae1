//! Hardware task switches: what a TSS holds, and what its descriptors must be (SDM vol. 3A, chapter 8).
//!
//! Nothing here touches memory: the caller reads descriptors and the two TSS images, and asks what they mean.
//!
//! Vocabulary:
//! - *outgoing*, *incoming*: the old and the new task.
//! - *commit*: the point of no return. Faults before it belong to the outgoing task, which goes on as if nothing had been;
//!   those after it to the incoming one, whose first instruction they precede.

use exitless_x86::exception::{Exception, Vector};
use exitless_x86::regs::{Segment, TableReg, rflags};

/// What asked for the switch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// CALL to a TSS or a task gate.
    Call,
    /// JMP to a TSS or a task gate.
    Jump,
    /// IRET with EFLAGS.NT.
    Iret,
    /// A task gate in the IDT.
    Gate {
        /// The event came from outside of the program: anything but INT n, INT3, INTO and INT1.
        external: bool,
    },
}

impl Cause {
    /// The incoming task returns to the outgoing one: link and NT are set, the outgoing TSS stays busy.
    pub fn nests(self) -> bool {
        matches!(self, Self::Call | Self::Gate { .. })
    }

    /// Bit 0 of error codes (SDM vol. 3A, 6.13).
    pub fn ext(self) -> u32 {
        u32::from(self == Self::Gate { external: true })
    }
}

/// The error code that names a selector.
fn code(selector: u16, ext: u32) -> u32 {
    u32::from(selector & 0xfffc) | ext
}

fn with_code(vector: Vector, selector: u16, ext: u32) -> Exception {
    Exception { vector, error_code: Some(code(selector, ext)), payload: 0 }
}

/// #TS for a selector.
pub fn invalid(selector: u16, ext: u32) -> Exception {
    with_code(Vector::TS, selector, ext)
}

fn absent(selector: u16, ext: u32) -> Exception {
    with_code(Vector::NP, selector, ext)
}

/// A selector of the null descriptor.
pub fn is_null(selector: u16) -> bool {
    selector & 0xfffc == 0
}

/// A descriptor of 8 bytes (SDM vol. 3A, 3.4.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descriptor(pub u64);

/// Offset of the byte with type, S, DPL and P in a descriptor.
pub const TYPE_BYTE: u64 = 5;
/// The accessed bit of code and data segments, in that byte.
pub const ACCESSED: u8 = 1;
/// The busy bit of a TSS, in that byte.
pub const BUSY: u8 = 2;

impl Descriptor {
    /// The segment register that holds it.
    pub fn segment(self, selector: u16) -> Segment {
        let d = self.0;
        let base = d >> 16 & 0xff_ffff | d >> 56 << 24;
        let attrib = (d >> 40 & 0xff | d >> 52 << 8 & 0xf00) as u16;
        let limit = (d & 0xffff | d >> 32 & 0xf_0000) as u32;
        let limit = if attrib & Segment::G != 0 { limit << 12 | 0xfff } else { limit };
        Segment { base, limit, selector, attrib }
    }

    /// The byte at [`TYPE_BYTE`].
    pub fn type_byte(self) -> u8 {
        (self.0 >> 40) as u8
    }

    /// Accessed already; system descriptors have no such bit.
    pub fn accessed(self) -> bool {
        let s = self.segment(0);
        s.attrib & Segment::S == 0 || s.typ() & ACCESSED != 0
    }

    fn is_code(self) -> bool {
        let s = self.segment(0);
        s.attrib & Segment::S != 0 && s.typ() & 8 != 0
    }

    /// Code that runs at its caller's privilege.
    pub(crate) fn conforming(self) -> bool {
        self.is_code() && self.segment(0).typ() & 4 != 0
    }
}

/// Linear address, of 32 bits, of a selector's descriptor; `None` if it is null or beyond its table's limit.
pub fn lookup(selector: u16, gdtr: &TableReg, ldtr: &Segment) -> Option<u64> {
    place(selector, gdtr, ldtr).map(|at| at & 0xffff_ffff)
}

/// As [`lookup`], in long mode too.
pub(crate) fn place(selector: u16, gdtr: &TableReg, ldtr: &Segment) -> Option<u64> {
    let local = selector & 4 != 0;
    let (base, limit) = if local { (ldtr.base, ldtr.limit) } else { (gdtr.base, gdtr.limit) };
    let offset = u32::from(selector & 0xfff8);
    let inside = offset + 7 <= limit && !is_null(selector) && (!local || ldtr.present());
    inside.then_some(base.wrapping_add(u64::from(offset)))
}

/// The two formats of a TSS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Of the 286: 44 bytes (SDM vol. 3A, figure 8-10).
    Bits16,
    /// 104 bytes (SDM vol. 3A, figure 8-2).
    Bits32,
}

/// The bytes of a TSS that a switch knows.
pub type Image = [u8; 104];

impl Format {
    /// The format of a TSS descriptor's type, busy or available.
    pub fn of(typ: u8) -> Option<Self> {
        match typ & !BUSY {
            1 => Some(Self::Bits16),
            9 => Some(Self::Bits32),
            _ => None,
        }
    }

    /// Bytes that a switch reads. The limit must be this or more, less one.
    pub fn size(self) -> usize {
        match self {
            Self::Bits16 => 44,
            Self::Bits32 => 104,
        }
    }

    /// First byte and number of bytes that a switch writes into the outgoing TSS.
    pub fn dynamic(self) -> (usize, usize) {
        match self {
            Self::Bits16 => (0x0e, 0x1c),
            Self::Bits32 => (0x20, 0x40),
        }
    }
}

/// Offset of the link to the previous task, in both formats.
pub const LINK: u64 = 0;

/// A task's registers. Segment registers and general registers stand in the order of their encodings; a 16-bit TSS knows the
/// first four segment registers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct State {
    pub eip: u32,
    pub eflags: u32,
    pub gprs: [u32; 8],
    pub selectors: [u16; 6],
    pub ldt: u16,
    /// `None`: the TSS has no place for it.
    pub cr3: Option<u32>,
    /// The T bit: a debug trap before the first instruction.
    pub trap: bool,
}

fn half(image: &Image, at: usize) -> u16 {
    match image.get(at..at + 2) {
        Some(&[a, b]) => u16::from_le_bytes([a, b]),
        _ => 0,
    }
}

fn word(image: &Image, at: usize) -> u32 {
    u32::from(half(image, at)) | u32::from(half(image, at + 2)) << 16
}

fn put<const N: usize>(image: &mut Image, at: usize, bytes: [u8; N]) {
    if let Some(to) = image.get_mut(at..at + N) {
        to.copy_from_slice(&bytes);
    }
}

/// EFLAGS bits that exist; bit 1 is one.
const FLAGS: u64 = 0x3f_7fd5;

/// The link in a TSS image.
pub fn link(image: &Image) -> u16 {
    half(image, LINK as usize)
}

impl State {
    /// What a TSS holds. Halves that a 16-bit TSS lacks become zero.
    pub fn load(format: Format, image: &Image) -> Self {
        let mut s = Self::default();
        let flags = match format {
            Format::Bits16 => {
                s.eip = u32::from(half(image, 0x0e));
                fill(&mut s.gprs, |i| u32::from(half(image, 0x12 + 2 * i)));
                fill(&mut s.selectors, |i| if i < 4 { half(image, 0x22 + 2 * i) } else { 0 });
                s.ldt = half(image, 0x2a);
                u32::from(half(image, 0x10))
            }
            Format::Bits32 => {
                s.cr3 = Some(word(image, 0x1c));
                s.eip = word(image, 0x20);
                fill(&mut s.gprs, |i| word(image, 0x28 + 4 * i));
                fill(&mut s.selectors, |i| half(image, 0x48 + 4 * i));
                s.ldt = half(image, 0x60);
                s.trap = half(image, 0x64) & 1 != 0;
                word(image, 0x24)
            }
        };
        s.eflags = flags & FLAGS as u32 | rflags::FIXED as u32;
        s
    }

    /// Writes the dynamic fields of the outgoing task; the bytes between them stay.
    pub fn save(&self, format: Format, image: &mut Image) {
        match format {
            Format::Bits16 => {
                put(image, 0x0e, (self.eip as u16).to_le_bytes());
                put(image, 0x10, (self.eflags as u16).to_le_bytes());
                for (i, v) in self.gprs.iter().enumerate() {
                    put(image, 0x12 + 2 * i, (*v as u16).to_le_bytes());
                }
                for (i, v) in self.selectors.iter().take(4).enumerate() {
                    put(image, 0x22 + 2 * i, v.to_le_bytes());
                }
            }
            Format::Bits32 => {
                put(image, 0x20, self.eip.to_le_bytes());
                put(image, 0x24, self.eflags.to_le_bytes());
                for (i, v) in self.gprs.iter().enumerate() {
                    put(image, 0x28 + 4 * i, v.to_le_bytes());
                }
                for (i, v) in self.selectors.iter().enumerate() {
                    put(image, 0x48 + 4 * i, v.to_le_bytes());
                }
            }
        }
    }

    /// Virtual-8086 mode: selectors are paragraph numbers.
    pub fn vm86(&self) -> bool {
        u64::from(self.eflags) & rflags::VM != 0
    }

    /// The privilege level the task starts at.
    pub fn cpl(&self) -> u8 {
        let [_, cs, ..] = self.selectors;
        if self.vm86() { 3 } else { (cs & 3) as u8 }
    }
}

fn fill<T, const N: usize>(to: &mut [T; N], of: impl Fn(usize) -> T) {
    for (i, v) in to.iter_mut().enumerate() {
        *v = of(i);
    }
}

// --- before the commit (SDM vol. 3A, table 8-1, first half) ---

/// Where the incoming TSS's descriptor lies: in the GDT, within its limit.
///
/// # Errors
/// #GP for the selector, #TS if IRET found it in the link.
pub fn tss_address(selector: u16, gdtr: &TableReg, cause: Cause) -> Result<u64, Exception> {
    let local = selector & 4 != 0;
    let at = if local { None } else { lookup(selector, gdtr, &Segment::default()) };
    at.ok_or_else(|| refused(selector, cause))
}

fn refused(selector: u16, cause: Cause) -> Exception {
    let vector = if cause == Cause::Iret { Vector::TS } else { Vector::GP };
    with_code(vector, selector, cause.ext())
}

/// Type, presence and limit of the incoming TSS. Its DPL is not looked at: hardware has done that, and does not tell whether a
/// task gate stood before it, which makes it count for nothing.
///
/// # Errors
/// #GP (of IRET: #TS) if it is no TSS or is busy (of IRET: is not), #NP if absent, #TS if too short.
pub fn incoming(d: Descriptor, selector: u16, cause: Cause) -> Result<Format, Exception> {
    let s = d.segment(selector);
    let format = Format::of(s.typ()).filter(|_| s.attrib & Segment::S == 0);
    let busy = s.typ() & BUSY != 0;
    let (Some(format), true) = (format, busy == (cause == Cause::Iret)) else {
        return Err(refused(selector, cause));
    };
    if !s.present() {
        return Err(absent(selector, cause.ext()));
    }
    long_enough(&s, format, cause.ext())?;
    Ok(format)
}

/// The TSS has all fields of its format.
///
/// # Errors
/// #TS.
pub fn long_enough(tss: &Segment, format: Format, ext: u32) -> Result<(), Exception> {
    let last = format.size() as u32 - 1;
    if tss.limit >= last { Ok(()) } else { Err(invalid(tss.selector, ext)) }
}

// --- after the commit (second half) ---

/// A segment register that holds the null selector: nothing can be reached through it.
pub fn unusable(selector: u16) -> Segment {
    Segment { selector, ..Segment::default() }
}

/// A segment register in virtual-8086 mode.
pub fn vm86_segment(selector: u16) -> Segment {
    Segment { base: u64::from(selector) << 4, limit: 0xffff, selector, attrib: 0xf3 }
}

/// The LDT.
///
/// # Errors
/// #TS if the descriptor is no LDT's, or is absent.
pub fn ldt(selector: u16, d: Descriptor, ext: u32) -> Result<Segment, Exception> {
    const LDT: u8 = 2;
    let s = d.segment(selector);
    let good = s.attrib & Segment::S == 0 && s.typ() == LDT && s.present();
    if good { Ok(s) } else { Err(invalid(selector, ext)) }
}

/// CS. The RPL becomes the CPL.
///
/// # Errors
/// #TS for a wrong type or privilege, #NP if absent.
pub fn code_segment(selector: u16, d: Descriptor, ext: u32) -> Result<Segment, Exception> {
    let (s, rpl) = (d.segment(selector), (selector & 3) as u8);
    let privilege = if d.conforming() { s.dpl() <= rpl } else { s.dpl() == rpl };
    if !d.is_code() || !privilege {
        return Err(invalid(selector, ext));
    }
    if s.present() { Ok(touched(s)) } else { Err(absent(selector, ext)) }
}

/// SS.
///
/// # Errors
/// #TS for a wrong type or privilege, #SS if absent.
pub fn stack_segment(selector: u16, d: Descriptor, cpl: u8, ext: u32) -> Result<Segment, Exception> {
    let (s, rpl) = (d.segment(selector), (selector & 3) as u8);
    if !s.writable() || rpl != cpl || s.dpl() != cpl {
        return Err(invalid(selector, ext));
    }
    if s.present() { Ok(touched(s)) } else { Err(Exception::ss(code(selector, ext))) }
}

/// DS, ES, FS or GS.
///
/// # Errors
/// #TS for a wrong type or privilege, #NP if absent.
pub fn data_segment(selector: u16, d: Descriptor, cpl: u8, ext: u32) -> Result<Segment, Exception> {
    let (s, rpl) = (d.segment(selector), (selector & 3) as u8);
    let readable = s.attrib & Segment::S != 0 && (!d.is_code() || s.typ() & 2 != 0);
    if !readable || !d.conforming() && s.dpl() < cpl.max(rpl) {
        return Err(invalid(selector, ext));
    }
    if s.present() { Ok(touched(s)) } else { Err(absent(selector, ext)) }
}

fn touched(s: Segment) -> Segment {
    Segment { attrib: s.attrib | u16::from(ACCESSED), ..s }
}

/// CS as it stands between the commit and its own load, should a fault come first: code of the new privilege level that never
/// runs, so that the processor can deliver the fault.
pub fn provisional_code(old: &Segment, selector: u16, cpl: u8) -> Segment {
    const CODE: u16 = 0xb | Segment::S | Segment::P;
    Segment { selector, attrib: old.attrib & 0xf00 | CODE | u16::from(cpl) << 5, ..*old }
}

/// SS at that time: unusable, but its DPL is the privilege level.
pub fn provisional_stack(selector: u16, cpl: u8) -> Segment {
    Segment { attrib: u16::from(cpl) << 5, ..unusable(selector) }
}
