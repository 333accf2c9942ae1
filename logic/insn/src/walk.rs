//! The walk of the guest's own page tables: guest-virtual to guest-physical (SDM vol. 3A, chapter 4).

use exitless_x86::exception::{Exception, pf_code};
use exitless_x86::paging::{PAGE_SHIFT, pte};
use exitless_x86::regs::{cr0, cr4, efer};

/// Guest-physical memory that holds page tables. `None`: no memory there (or not accessible now).
pub trait GuestMemory {
    /// Reads an aligned little-endian u64.
    fn read_u64(&self, gpa: u64) -> Option<u64>;
    /// Reads an aligned little-endian u32.
    fn read_u32(&self, gpa: u64) -> Option<u32>;
    /// Replaces `old` by `new` atomically; `Some(false)` when memory did not hold `old`.
    fn cmpxchg_u64(&self, gpa: u64, old: u64, new: u64) -> Option<bool>;
    /// As `cmpxchg_u64`, for the 4-byte entries of 32-bit paging.
    fn cmpxchg_u32(&self, gpa: u64, old: u32, new: u32) -> Option<bool>;
}

/// The registers that decide how a linear address is translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PagingMode {
    /// CR0 (PE, PG, WP).
    pub cr0: u64,
    /// CR3; the PCID bits are ignored.
    pub cr3: u64,
    /// CR4 (PAE, PSE, LA57, SMEP, SMAP, PKE).
    pub cr4: u64,
    /// EFER (LMA, NXE).
    pub efer: u64,
    /// RFLAGS.AC, which lifts SMAP for explicit supervisor accesses.
    pub rflags_ac: bool,
    /// PKRU; looked at only when CR4.PKE is set.
    pub pkru: u32,
    /// Current privilege level, 0 to 3; level 3 accesses are user accesses.
    pub cpl: u8,
    /// MAXPHYADDR as the guest's CPUID reports it, 32 to 52.
    pub max_phys_bits: u8,
}

impl PagingMode {
    /// The processor can form this linear address: 32 bits, or canonical in long mode.
    pub fn has_linear(&self, address: u64) -> bool {
        if self.cr0 & cr0::PG == 0 || self.efer & efer::LMA == 0 {
            return address >> 32 == 0;
        }
        let unused = if self.cr4 & cr4::LA57 != 0 { 7 } else { 16 };
        (address << unused).cast_signed() >> unused == address.cast_signed()
    }
}

/// What the access wants to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Data read.
    Read,
    /// Data write, and the read of a read-modify-write.
    Write,
    /// Instruction fetch.
    Fetch,
}

/// One access: what it does, and whether it is an implicit supervisor access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// Read, write or fetch.
    pub operation: Operation,
    /// Descriptor table, TSS and similar accesses: supervisor at any CPL, and SMAP ignores RFLAGS.AC.
    pub implicit_supervisor: bool,
}

#[allow(missing_docs)]
impl Access {
    pub const READ: Self = Self { operation: Operation::Read, implicit_supervisor: false };
    pub const WRITE: Self = Self { operation: Operation::Write, implicit_supervisor: false };
    pub const FETCH: Self = Self { operation: Operation::Fetch, implicit_supervisor: false };
    pub const SYSTEM_READ: Self = Self { operation: Operation::Read, implicit_supervisor: true };
    pub const SYSTEM_WRITE: Self = Self { operation: Operation::Write, implicit_supervisor: true };
}

/// Why there is no translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WalkError {
    /// The guest gets this #PF; the payload is the linear address.
    Fault(Exception),
    /// A paging structure lies where the guest has no memory: this guest-physical address.
    NoMemory(u64),
}

/// Longest walk: five levels.
const MAX_LEVELS: usize = 5;
/// How often a walk starts over because an entry changed under it.
const MAX_RESTARTS: u32 = 64;

/// Translates linear address `gva` and sets the accessed and dirty flags the processor would set.
/// The caller has checked that `gva` is canonical. Entries that keep changing, and entries in memory that
/// cannot be written although a flag must be set, are reported as `NoMemory`.
pub fn translate(
    mem: &impl GuestMemory,
    mode: &PagingMode,
    gva: u64,
    access: Access,
) -> Result<u64, WalkError> {
    let Some(format) = Format::of(mode) else {
        return Ok(gva & 0xffff_ffff);
    };
    let gva = if format.long { gva } else { gva & 0xffff_ffff };
    let mut contended = 0;
    for _ in 0..MAX_RESTARTS {
        let path = descend(mem, mode, &format, gva, access)?;
        if let Err(code) = permitted(mode, &format, &path, access) {
            return Err(fault(mode, &format, access, code, gva));
        }
        match mark(mem, &format, &path, access) {
            Ok(()) => return Ok(path.leaf.frame | gva & path.leaf.offset_mask),
            Err(Mark::NoMemory(gpa)) => return Err(WalkError::NoMemory(gpa)),
            Err(Mark::Changed(gpa)) => contended = gpa,
        }
    }
    Err(WalkError::NoMemory(contended))
}

/// The shape of the paging structures (SDM vol. 3A, 4.1.1).
#[derive(Clone, Copy, Debug)]
struct Format {
    /// Number of the top level; 1 is the page table.
    levels: u32,
    /// Index bits of a level; the top level of PAE uses two of them.
    index_bits: u32,
    /// Entries have 8 bytes.
    wide: bool,
    /// 4- or 5-level paging.
    long: bool,
    /// Guest-physical address of the top table.
    root: u64,
}

impl Format {
    /// `None` without paging.
    fn of(m: &PagingMode) -> Option<Self> {
        if m.cr0 & cr0::PG == 0 {
            return None;
        }
        let format = if m.efer & efer::LMA != 0 {
            let levels = if m.cr4 & cr4::LA57 != 0 { 5 } else { 4 };
            Self { levels, index_bits: 9, wide: true, long: true, root: m.cr3 & pte::ADDRESS }
        } else if m.cr4 & cr4::PAE != 0 {
            Self { levels: 3, index_bits: 9, wide: true, long: false, root: m.cr3 & 0xffff_ffe0 }
        } else {
            Self { levels: 2, index_bits: 10, wide: false, long: false, root: m.cr3 & pte::ADDRESS32 }
        };
        Some(format)
    }

    fn pae(&self) -> bool {
        self.wide && !self.long
    }

    /// Lowest linear address bit that level `level` translates.
    fn shift(&self, level: u32) -> u32 {
        PAGE_SHIFT + (level - 1) * self.index_bits
    }

    /// Guest-physical address of the entry for `gva` in the table at `table`.
    fn entry(&self, table: u64, level: u32, gva: u64) -> u64 {
        let index = gva >> self.shift(level) & ((1 << self.index_bits) - 1);
        table + index * if self.wide { 8 } else { 4 }
    }
}

/// One entry that the walk used.
#[derive(Clone, Copy, Debug, Default)]
struct Used {
    gpa: u64,
    value: u64,
}

/// The page the last entry maps.
#[derive(Clone, Copy, Debug, Default)]
struct Leaf {
    frame: u64,
    offset_mask: u64,
    key: u32,
}

/// All entries of a walk, top first, and their rights taken together.
#[derive(Clone, Copy, Debug)]
struct Path {
    used: [Used; MAX_LEVELS],
    /// Number of entries in `used`.
    depth: usize,
    leaf: Leaf,
    writable: bool,
    user: bool,
    no_execute: bool,
}

/// Walks from the top table to the entry that maps the page. Absent entries and reserved bits fault here.
fn descend(
    mem: &impl GuestMemory,
    m: &PagingMode,
    f: &Format,
    gva: u64,
    access: Access,
) -> Result<Path, WalkError> {
    let mut path = Path {
        used: [Used::default(); MAX_LEVELS],
        depth: 0,
        leaf: Leaf::default(),
        writable: true,
        user: true,
        no_execute: false,
    };
    let mut table = f.root;
    for level in (1..=f.levels).rev() {
        let gpa = f.entry(table, level, gva);
        let value = read_entry(mem, f, gpa).ok_or(WalkError::NoMemory(gpa))?;
        if value & pte::P == 0 {
            return Err(fault(m, f, access, 0, gva));
        }
        let maps = maps_page(m, f, level, value);
        if value & reserved(m, f, level, maps) != 0 {
            return Err(fault(m, f, access, pf_code::P | pf_code::RSVD, gva));
        }
        note(&mut path, f, level, Used { gpa, value });
        if maps {
            path.leaf = leaf(f, level, value);
            break;
        }
        table = value & address_bits(f);
    }
    Ok(path)
}

fn read_entry(mem: &impl GuestMemory, f: &Format, gpa: u64) -> Option<u64> {
    if f.wide { mem.read_u64(gpa) } else { mem.read_u32(gpa).map(u64::from) }
}

/// Takes an entry's rights into the path. A PDPTE of PAE paging has none, and no accessed flag.
fn note(path: &mut Path, f: &Format, level: u32, used: Used) {
    if f.pae() && level == 3 {
        return;
    }
    path.writable &= used.value & pte::RW != 0;
    path.user &= used.value & pte::US != 0;
    path.no_execute |= used.value & pte::XD != 0;
    if let Some(slot) = path.used.get_mut(path.depth) {
        *slot = used;
        path.depth += 1;
    }
}

/// Whether the entry maps a page rather than pointing to a table.
fn maps_page(m: &PagingMode, f: &Format, level: u32, value: u64) -> bool {
    let large = value & pte::PS != 0;
    match level {
        1 => true,
        2 => large && (f.wide || m.cr4 & cr4::PSE != 0),
        // In a PDPTE of PAE paging the bit is reserved.
        3 => large,
        _ => false,
    }
}

fn address_bits(f: &Format) -> u64 {
    if f.wide { pte::ADDRESS } else { pte::ADDRESS32 }
}

/// Bits up to 51 that an address of `m.max_phys_bits` bits does not have.
fn beyond_physical(m: &PagingMode) -> u64 {
    let bits = u32::from(m.max_phys_bits).clamp(32, 52);
    pte::ADDRESS & (u64::MAX << bits)
}

/// Reserved bits of an entry (SDM vol. 3A, 4.3 to 4.5).
fn reserved(m: &PagingMode, f: &Format, level: u32, maps: bool) -> u64 {
    if !f.wide {
        return if maps && level == 2 { reserved_pse36(m) } else { 0 };
    }
    let execute_disable = if m.efer & efer::NXE == 0 { pte::XD } else { 0 };
    let high = beyond_physical(m) | execute_disable;
    let above_address = 0x7ff0_0000_0000_0000;
    match (f.pae(), level) {
        // PDPTE: bits 2:1, 8:6 and everything above the address. Bit 5 is reserved as well (SDM vol. 3A, table 4-8), but
        // under nested paging a processor may walk PDPTEs like other entries and set it as an accessed flag; QEMU's does.
        (true, 3) => high | above_address | pte::XD | 0x1c6,
        (true, _) => high | above_address | unaligned(f, level, maps),
        // PML4E and PML5E: no page of that size.
        (false, 4..) => high | pte::PS,
        (false, _) => high | unaligned(f, level, maps),
    }
}

/// Address bits below a large page, other than its PAT bit.
fn unaligned(f: &Format, level: u32, maps: bool) -> u64 {
    if maps && level > 1 { pte::ADDRESS & ((1 << f.shift(level)) - 1) & !pte::PAT_LARGE } else { 0 }
}

/// A 4 MiB page holds address bits 39:32 in its bits 20:13, as far as MAXPHYADDR goes; bit 21 is reserved.
fn reserved_pse36(m: &PagingMode) -> u64 {
    let usable = u32::from(m.max_phys_bits).clamp(32, 40) - 32;
    0x003f_e000 & (u64::MAX << (13 + usable))
}

/// The page an entry maps at `level`.
fn leaf(f: &Format, level: u32, value: u64) -> Leaf {
    let offset_mask = (1u64 << f.shift(level)) - 1;
    let mut frame = value & address_bits(f) & !offset_mask;
    if !f.wide && level == 2 {
        frame |= (value >> 13 & 0xff) << 32;
    }
    let key = if f.long { (value >> pte::KEY_SHIFT & 15) as u32 } else { 0 };
    Leaf { frame, offset_mask, key }
}

/// The access is made with user rights.
fn is_user(m: &PagingMode, access: Access) -> bool {
    m.cpl == 3 && !access.implicit_supervisor
}

/// Access rights (SDM vol. 3A, 4.6). The error is the #PF code's P and PK bits.
fn permitted(m: &PagingMode, f: &Format, path: &Path, access: Access) -> Result<(), u32> {
    let user = is_user(m, access);
    let by_page = match access.operation {
        _ if user && !path.user => false,
        Operation::Read => user || data_from_supervisor(m, path, access),
        Operation::Write => write_allowed(m, path, user) && (user || data_from_supervisor(m, path, access)),
        Operation::Fetch => !path.no_execute && (user || !path.user || m.cr4 & cr4::SMEP == 0),
    };
    let by_key = key_allows(m, f, path, access, user);
    match (by_page, by_key) {
        (true, true) => Ok(()),
        (_, true) => Err(pf_code::P),
        (_, false) => Err(pf_code::P | pf_code::PK),
    }
}

fn write_allowed(m: &PagingMode, path: &Path, user: bool) -> bool {
    path.writable || !user && m.cr0 & cr0::WP == 0
}

/// SMAP: supervisor data accesses to user pages need RFLAGS.AC and must be explicit.
fn data_from_supervisor(m: &PagingMode, path: &Path, access: Access) -> bool {
    let lifted = m.rflags_ac && !access.implicit_supervisor;
    !path.user || m.cr4 & cr4::SMAP == 0 || lifted
}

/// Protection keys guard data accesses to user pages (SDM vol. 3A, 4.6.2).
fn key_allows(m: &PagingMode, f: &Format, path: &Path, access: Access, user: bool) -> bool {
    let guarded = f.long && m.cr4 & cr4::PKE != 0 && path.user;
    if !guarded || access.operation == Operation::Fetch {
        return true;
    }
    let rights = m.pkru >> (path.leaf.key * 2);
    let (access_disable, write_disable) = (rights & 1 != 0, rights & 2 != 0);
    let writes = access.operation == Operation::Write && (user || m.cr0 & cr0::WP != 0);
    !(access_disable || write_disable && writes)
}

/// The #PF for `access`, whose code has the bits of `code` besides those of the access (SDM vol. 3A, 4.7).
fn fault(m: &PagingMode, f: &Format, access: Access, code: u32, gva: u64) -> WalkError {
    WalkError::Fault(Exception::pf(code | access_code(m, f.wide, access), gva))
}

/// The #PF of an access through a paging structure that lies outside of memory: as if its entry were not present, which is
/// what a processor that reads zeros there finds. For callers that cannot do better with [`WalkError::NoMemory`].
pub fn missing_table(mode: &PagingMode, gva: u64, access: Access) -> Exception {
    let format = Format::of(mode);
    let gva = if format.is_some_and(|f| f.long) { gva } else { gva & 0xffff_ffff };
    Exception::pf(access_code(mode, format.is_some_and(|f| f.wide), access), gva)
}

/// The bits of a #PF code that tell the access; `wide` paging structures have execute-disable bits.
fn access_code(m: &PagingMode, wide: bool, access: Access) -> u32 {
    let write = if access.operation == Operation::Write { pf_code::W } else { 0 };
    let user = if is_user(m, access) { pf_code::U } else { 0 };
    let reports_fetch = wide && m.efer & efer::NXE != 0 || m.cr4 & cr4::SMEP != 0;
    let fetch = if access.operation == Operation::Fetch && reports_fetch { pf_code::I } else { 0 };
    write | user | fetch
}

/// Why a flag was not set.
enum Mark {
    NoMemory(u64),
    /// The entry at this address is not what the walk read.
    Changed(u64),
}

/// Sets the accessed flag of every entry, top first, and the dirty flag of the last one for a write.
fn mark(mem: &impl GuestMemory, f: &Format, path: &Path, access: Access) -> Result<(), Mark> {
    let last = path.depth.saturating_sub(1);
    for (i, used) in path.used.iter().take(path.depth).enumerate() {
        let dirty = i == last && access.operation == Operation::Write;
        let new = used.value | pte::A | if dirty { pte::D } else { 0 };
        if new == used.value {
            continue;
        }
        let done = if f.wide {
            mem.cmpxchg_u64(used.gpa, used.value, new)
        } else {
            mem.cmpxchg_u32(used.gpa, used.value as u32, new as u32)
        };
        match done {
            Some(true) => {}
            Some(false) => return Err(Mark::Changed(used.gpa)),
            None => return Err(Mark::NoMemory(used.gpa)),
        }
    }
    Ok(())
}
