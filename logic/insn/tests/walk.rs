//! The guest page walk: one story per rule, and random tables against a naive reference.

mod common;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

use common::Random;
use exitless_insn::walk::missing_table;
use exitless_insn::{Access, GuestMemory, PagingMode, WalkError, translate};
use exitless_x86::exception::Exception;
use exitless_x86::paging::pte::{A, D, G, P, PS, RW, US, XD};
use exitless_x86::regs::{cr0, cr4, efer};

/// Sparse memory of u64 words; pages not in it do not exist.
#[derive(Clone, Debug, Default)]
struct Memory {
    words: RefCell<BTreeMap<u64, u64>>,
    /// This many cmpxchg fail first, each after setting this bit in the word.
    interfere: Cell<(u32, u64)>,
    read_only: bool,
}

impl Memory {
    fn put(&self, gpa: u64, value: u64) {
        self.words.borrow_mut().insert(gpa, value);
    }

    fn put32(&self, gpa: u64, value: u32) {
        let (word, shift) = (gpa & !7, gpa % 8 * 8);
        let old = self.get(word).unwrap_or(0);
        self.put(word, old & !(0xffff_ffff << shift) | u64::from(value) << shift);
    }

    fn get(&self, gpa: u64) -> Option<u64> {
        self.words.borrow().get(&gpa).copied()
    }

    /// Pretends that another processor writes the entry right before our cmpxchg.
    fn raced(&self, gpa: u64) -> bool {
        let (times, bit) = self.interfere.get();
        if times == 0 {
            return false;
        }
        self.interfere.set((times - 1, bit));
        let old = self.get(gpa & !7).unwrap();
        self.put(gpa & !7, old ^ bit << (gpa % 8 * 8));
        true
    }
}

impl GuestMemory for Memory {
    fn read_u64(&self, gpa: u64) -> Option<u64> {
        assert_eq!(gpa % 8, 0);
        self.get(gpa)
    }
    fn read_u32(&self, gpa: u64) -> Option<u32> {
        assert_eq!(gpa % 4, 0);
        self.get(gpa & !7).map(|v| (v >> (gpa % 8 * 8)) as u32)
    }
    fn cmpxchg_u64(&self, gpa: u64, old: u64, new: u64) -> Option<bool> {
        assert_eq!(new & !(A | D), old & !(A | D), "only A and D are set");
        if self.read_only {
            return None;
        }
        if self.raced(gpa) || self.get(gpa)? != old {
            return Some(false);
        }
        self.put(gpa, new);
        Some(true)
    }
    fn cmpxchg_u32(&self, gpa: u64, old: u32, new: u32) -> Option<bool> {
        if self.read_only {
            return None;
        }
        if self.raced(gpa) || self.read_u32(gpa)? != old {
            return Some(false);
        }
        self.put32(gpa, new);
        Some(true)
    }
}

fn long_mode() -> PagingMode {
    PagingMode {
        cr0: cr0::PE | cr0::PG | cr0::WP,
        cr3: 0x1000,
        cr4: cr4::PAE,
        efer: efer::LMA | efer::LME | efer::NXE,
        rflags_ac: false,
        pkru: 0,
        cpl: 0,
        max_phys_bits: 40,
    }
}

const GVA: u64 = 0x0000_1234_5678_9abc;

fn index(gva: u64, level: u32) -> u64 {
    gva >> (12 + 9 * (level - 1)) & 511
}

/// Four levels at 0x1000, 0x2000, .. with `rights` everywhere and the page at 0xabc_d000.
fn four_levels(rights: u64) -> (Memory, [u64; 4]) {
    let m = Memory::default();
    let mut at = [0; 4];
    for level in (1..=4u32).rev() {
        let table = 0x1000 * u64::from(5 - level);
        let target = if level == 1 { 0x0abc_d000 } else { table + 0x1000 };
        at[level as usize - 1] = table + index(GVA, level) * 8;
        m.put(at[level as usize - 1], target | rights | P);
    }
    (m, at)
}

fn fault(code: u32) -> Result<u64, WalkError> {
    Err(WalkError::Fault(Exception::pf(code, GVA)))
}

const PAGE: Result<u64, WalkError> = Ok(0x0abc_dabc);

/// A read sets A everywhere and D nowhere; a write sets D in the last entry only.
#[test]
fn accessed_and_dirty() {
    let (m, at) = four_levels(RW);
    assert_eq!(translate(&m, &long_mode(), GVA, Access::READ), PAGE);
    assert!(at.iter().all(|a| m.get(*a).unwrap() & (A | D) == A));
    assert_eq!(translate(&m, &long_mode(), GVA, Access::WRITE), PAGE);
    let dirty = at.map(|a| m.get(a).unwrap() & D != 0);
    assert_eq!(dirty, [true, false, false, false]);
}

/// Tables in memory that cannot be written are fine while nothing has to be set.
#[test]
fn read_only_tables() {
    let (mut m, at) = four_levels(RW | A);
    m.read_only = true;
    assert_eq!(translate(&m, &long_mode(), GVA, Access::READ), PAGE);
    assert_eq!(translate(&m, &long_mode(), GVA, Access::WRITE), Err(WalkError::NoMemory(at[0])));
}

/// A fault leaves A and D alone.
#[test]
fn a_fault_sets_nothing() {
    let (m, at) = four_levels(0);
    assert_eq!(translate(&m, &long_mode(), GVA, Access::WRITE), fault(3));
    assert!(at.iter().all(|a| m.get(*a).unwrap() & (A | D) == 0));
}

/// An entry that changes under the walk is read again; one that never rests ends the walk.
#[test]
fn entries_change_under_the_walk() {
    let (m, at) = four_levels(RW);
    m.interfere.set((3, G));
    assert_eq!(translate(&m, &long_mode(), GVA, Access::WRITE), PAGE);
    m.put(at[0], m.get(at[0]).unwrap() & !(A | D));
    m.interfere.set((1, P));
    assert_eq!(translate(&m, &long_mode(), GVA, Access::WRITE), fault(2));
    let (m, at) = four_levels(RW);
    m.interfere.set((u32::MAX, G));
    assert_eq!(translate(&m, &long_mode(), GVA, Access::WRITE), Err(WalkError::NoMemory(at[3])));
}

/// Not present at each level, and a table where there is no memory.
#[test]
fn absent() {
    for level in 0..4 {
        let (m, at) = four_levels(RW | US);
        m.put(at[level], 0);
        assert_eq!(translate(&m, &long_mode(), GVA, Access::READ), fault(0));
        let user = PagingMode { cpl: 3, ..long_mode() };
        assert_eq!(translate(&m, &user, GVA, Access::WRITE), fault(6));
        assert_eq!(translate(&m, &user, GVA, Access::FETCH), fault(0x14));
        m.words.borrow_mut().remove(&at[level]);
        assert_eq!(translate(&m, &long_mode(), GVA, Access::READ), Err(WalkError::NoMemory(at[level])));
    }
}

/// Rights are the intersection over the levels; CR0.WP lets a supervisor write or not, never a user.
#[test]
fn write_protection() {
    for level in 0..4 {
        let (m, at) = four_levels(RW | US);
        m.put(at[level], m.get(at[level]).unwrap() & !RW);
        assert_eq!(translate(&m, &long_mode(), GVA, Access::WRITE), fault(3));
        let no_wp = PagingMode { cr0: cr0::PE | cr0::PG, ..long_mode() };
        assert_eq!(translate(&m, &no_wp, GVA, Access::WRITE), PAGE);
        let user = PagingMode { cpl: 3, ..no_wp };
        assert_eq!(translate(&m, &user, GVA, Access::WRITE), fault(7));
        assert_eq!(translate(&m, &user, GVA, Access::READ), PAGE);
    }
}

/// A user needs U/S at every level; an implicit access is a supervisor's at any CPL.
#[test]
fn user_and_supervisor() {
    for level in 0..4 {
        let (m, at) = four_levels(RW | US);
        m.put(at[level], m.get(at[level]).unwrap() & !US);
        let user = PagingMode { cpl: 3, ..long_mode() };
        assert_eq!(translate(&m, &user, GVA, Access::READ), fault(5));
        assert_eq!(translate(&m, &user, GVA, Access::SYSTEM_READ), PAGE);
        assert_eq!(translate(&m, &PagingMode { cpl: 2, ..user }, GVA, Access::READ), PAGE);
    }
}

/// XD stops fetches; without EFER.NXE the bit is reserved, and the code does not say "fetch".
#[test]
fn execute_disable() {
    for level in 0..4 {
        let (m, at) = four_levels(RW | US);
        m.put(at[level], m.get(at[level]).unwrap() | XD);
        assert_eq!(translate(&m, &long_mode(), GVA, Access::READ), PAGE);
        assert_eq!(translate(&m, &long_mode(), GVA, Access::FETCH), fault(0x11));
        let off = PagingMode { efer: efer::LMA | efer::LME, ..long_mode() };
        assert_eq!(translate(&m, &off, GVA, Access::FETCH), fault(9));
    }
}

/// SMEP stops supervisor fetches from user pages, SMAP data accesses unless RFLAGS.AC lifts it; implicit ones
/// are never lifted.
#[test]
fn smep_and_smap() {
    let (m, _) = four_levels(RW | US);
    let smep = PagingMode { cr4: cr4::PAE | cr4::SMEP, ..long_mode() };
    assert_eq!(translate(&m, &smep, GVA, Access::FETCH), fault(0x11));
    assert_eq!(translate(&m, &PagingMode { cpl: 3, ..smep }, GVA, Access::FETCH), PAGE);
    assert_eq!(translate(&m, &smep, GVA, Access::READ), PAGE);
    let smap = PagingMode { cr4: cr4::PAE | cr4::SMAP, ..long_mode() };
    assert_eq!(translate(&m, &smap, GVA, Access::READ), fault(1));
    assert_eq!(translate(&m, &smap, GVA, Access::WRITE), fault(3));
    assert_eq!(translate(&m, &smap, GVA, Access::FETCH), PAGE);
    let lifted = PagingMode { rflags_ac: true, ..smap };
    assert_eq!(translate(&m, &lifted, GVA, Access::WRITE), PAGE);
    assert_eq!(translate(&m, &lifted, GVA, Access::SYSTEM_READ), fault(1));
    let (m, _) = four_levels(RW);
    assert_eq!(translate(&m, &smap, GVA, Access::WRITE), PAGE);
}

/// Protection keys: access disable stops data accesses of anyone to user pages, write disable those of users, and
/// of supervisors with CR0.WP. Fetches and supervisor pages are free.
#[test]
fn protection_keys() {
    let (m, at) = four_levels(RW | US);
    m.put(at[0], m.get(at[0]).unwrap() | 5 << 59);
    let keys = PagingMode { cr4: cr4::PAE | cr4::PKE, pkru: 1 << 10, ..long_mode() };
    assert_eq!(translate(&m, &keys, GVA, Access::READ), fault(0x21));
    assert_eq!(translate(&m, &keys, GVA, Access::FETCH), PAGE);
    let user = PagingMode { cpl: 3, pkru: 2 << 10, ..keys };
    assert_eq!(translate(&m, &user, GVA, Access::READ), PAGE);
    assert_eq!(translate(&m, &user, GVA, Access::WRITE), fault(0x27));
    let supervisor = PagingMode { cpl: 0, ..user };
    assert_eq!(translate(&m, &supervisor, GVA, Access::WRITE), fault(0x23));
    let no_wp = PagingMode { cr0: cr0::PE | cr0::PG, ..supervisor };
    assert_eq!(translate(&m, &no_wp, GVA, Access::WRITE), PAGE);
    assert_eq!(translate(&m, &PagingMode { pkru: !(3 << 10), ..keys }, GVA, Access::WRITE), PAGE);
    assert_eq!(translate(&m, &PagingMode { cr4: cr4::PAE, ..keys }, GVA, Access::READ), PAGE);
    let (m, at) = four_levels(RW);
    m.put(at[0], m.get(at[0]).unwrap() | 5 << 59);
    assert_eq!(translate(&m, &keys, GVA, Access::READ), PAGE);
}

/// Pages of 1 GiB and 2 MiB, their misaligned addresses, and PS where no page is that large.
#[test]
fn large_pages() {
    let (m, at) = four_levels(RW);
    m.put(at[2], 0x1_4000_0000 | P | RW | PS | 1 << 12);
    assert_eq!(translate(&m, &long_mode(), GVA, Access::WRITE), Ok(0x1_4000_0000 | GVA & 0x3fff_ffff));
    assert_eq!(m.get(at[2]).unwrap() & (A | D), A | D);
    m.put(at[2], 0x1_4020_0000 | P | RW | PS);
    assert_eq!(translate(&m, &long_mode(), GVA, Access::WRITE), fault(0xb));
    let (m, at) = four_levels(RW);
    m.put(at[1], 0x1_4060_0000 | P | RW | PS);
    assert_eq!(translate(&m, &long_mode(), GVA, Access::READ), Ok(0x1_4060_0000 | GVA & 0x1f_ffff));
    m.put(at[1], 0x1_4060_2000 | P | RW | PS);
    assert_eq!(translate(&m, &long_mode(), GVA, Access::READ), fault(9));
    let (m, at) = four_levels(RW);
    m.put(at[3], m.get(at[3]).unwrap() | PS);
    assert_eq!(translate(&m, &long_mode(), GVA, Access::READ), fault(9));
}

/// Address bits at and above MAXPHYADDR are reserved at every level; the one below is not.
#[test]
fn physical_width() {
    for level in 0..4 {
        let (m, at) = four_levels(RW);
        let good = m.get(at[level]).unwrap();
        m.put(at[level], good | 1 << 40);
        assert_eq!(translate(&m, &long_mode(), GVA, Access::READ), fault(9));
        let wider = PagingMode { max_phys_bits: 41, ..long_mode() };
        assert_ne!(translate(&m, &wider, GVA, Access::READ), fault(9));
        m.put(at[level], good | 1 << 52 | 1 << 62);
        assert_eq!(translate(&m, &long_mode(), GVA, Access::READ), PAGE);
    }
}

/// Five levels use bits 56:48.
#[test]
fn five_levels() {
    let (m, _) = four_levels(RW);
    let gva = GVA | 0x00a5 << 48;
    m.put(0x9000 + 0xa5 * 8, 0x1000 | P | RW);
    let mode = PagingMode { cr3: 0x9000, cr4: cr4::PAE | cr4::LA57, ..long_mode() };
    assert_eq!(translate(&m, &mode, gva, Access::READ), PAGE);
    assert_eq!(m.get(0x9000 + 0xa5 * 8).unwrap() & A, A);
}

/// 32-bit paging: entries of four bytes, 4 MiB pages by CR4.PSE, and PSE-36 addresses.
#[test]
fn legacy_paging() {
    let mode = PagingMode { cr4: cr4::PSE, efer: 0, cr3: 0x1018, ..long_mode() };
    let m = Memory::default();
    let gva = 0x5678_9abc;
    let pde = 0x1000 + (gva >> 22) * 4;
    let pte = 0x2000 + (gva >> 12 & 0x3ff) * 4;
    m.put32(pde, 0x2000 | 3);
    m.put32(pte, 0xfeed_0000 | 3);
    assert_eq!(translate(&m, &mode, gva, Access::WRITE), Ok(0xfeed_0abc));
    assert_eq!(m.read_u32(pte).unwrap(), 0xfeed_0063);
    assert_eq!(m.read_u32(pde).unwrap(), 0x2023);
    assert_eq!(translate(&m, &mode, gva | 0xffff_ffff << 32, Access::WRITE), Ok(0xfeed_0abc));
    m.put32(pde, 0x0040_0000 | 0x83 | 0x5a << 13);
    assert_eq!(translate(&m, &mode, gva, Access::READ), Ok(0x5a_0040_0000 | gva & 0x3f_ffff));
    let narrow = PagingMode { max_phys_bits: 36, ..mode };
    let reserved = Err(WalkError::Fault(Exception::pf(9, gva)));
    assert_eq!(translate(&m, &narrow, gva, Access::READ), reserved);
    m.put32(pde, 0x0040_0000 | 0x83 | 1 << 21);
    assert_eq!(translate(&m, &mode, gva, Access::READ), reserved);
    // Without CR4.PSE bit 7 means nothing and the entry points to a table.
    m.put32(pde, 0x2000 | 0x83);
    assert_eq!(translate(&m, &PagingMode { cr4: 0, ..mode }, gva, Access::READ), Ok(0xfeed_0abc));
}

/// PAE: four entries at a 32-byte aligned CR3 without rights or accessed flag, then two levels.
#[test]
fn pae_paging() {
    let mode = PagingMode { cr4: cr4::PAE, efer: efer::NXE, cr3: 0x1020, ..long_mode() };
    let m = Memory::default();
    let gva = 0xc034_5678u64;
    m.put(0x1020 + 3 * 8, 0x2000 | P);
    let pde = 0x2000 + (gva >> 21 & 511) * 8;
    let pte = 0x3000 + (gva >> 12 & 511) * 8;
    m.put(pde, 0x3000 | P | RW | US);
    m.put(pte, 0x12_3456_7000 | P | RW | US | XD);
    let user = PagingMode { cpl: 3, ..mode };
    assert_eq!(translate(&m, &user, gva, Access::WRITE), Ok(0x12_3456_7678));
    assert_eq!(m.get(0x1038).unwrap(), 0x2000 | P);
    let code = |c| Err(WalkError::Fault(Exception::pf(c, gva)));
    assert_eq!(translate(&m, &user, gva, Access::FETCH), code(0x15));
    for reserved in [RW, US, 1 << 6, XD, 1 << 40, 1 << 55] {
        m.put(0x1038, 0x2000 | P | reserved);
        assert_eq!(translate(&m, &user, gva, Access::READ), code(0xd), "PDPTE bit {reserved:x}");
    }
    // A processor under nested paging may have set its accessed flag there: a guest that had switched from legacy
    // paging to PAE once got a #PF for it.
    m.put(0x1038, 0x2000 | P | A);
    assert_eq!(translate(&m, &user, gva, Access::READ), Ok(0x12_3456_7678));
    m.put(0x1038, 0x2000 | P);
    m.put(pte, 0x12_3456_7000 | P | RW | US | 1 << 60);
    assert_eq!(translate(&m, &user, gva, Access::READ), code(0xd));
    m.put(pde, 0x12_3460_0000 | P | RW | US | PS);
    assert_eq!(translate(&m, &user, gva, Access::READ), Ok(0x12_3460_0000 | gva & 0x1f_ffff));
}

/// A paging structure outside of memory becomes the fault of an absent entry, with the access in its code.
#[test]
fn tables_outside_of_memory() {
    let gva = 0xffff_8000_1234_5678;
    let mode = PagingMode { cpl: 3, efer: efer::LMA | efer::NXE, ..long_mode() };
    let (m, _) = four_levels(RW);
    m.words.borrow_mut().clear();
    assert!(matches!(translate(&m, &mode, gva, Access::WRITE), Err(WalkError::NoMemory(_))));
    assert_eq!(missing_table(&mode, gva, Access::READ), Exception::pf(4, gva));
    assert_eq!(missing_table(&mode, gva, Access::WRITE), Exception::pf(6, gva));
    assert_eq!(missing_table(&mode, gva, Access::FETCH), Exception::pf(0x14, gva));
    assert_eq!(missing_table(&mode, gva, Access::SYSTEM_WRITE), Exception::pf(2, gva));
    let legacy = PagingMode { efer: 0, cr4: 0, cpl: 0, ..mode };
    assert_eq!(missing_table(&legacy, gva, Access::FETCH), Exception::pf(0, 0x1234_5678));
}

/// Without paging linear is physical.
#[test]
fn no_paging() {
    let mode = PagingMode { cr0: cr0::PE, ..long_mode() };
    assert_eq!(translate(&Memory::default(), &mode, 0x1_2345_6789, Access::WRITE), Ok(0x2345_6789));
}

/// What the manual's prose says, in its order, for one access. Returns the result and the entries to mark.
fn reference(
    m: &Memory,
    p: &PagingMode,
    gva: u64,
    access: Access,
) -> (Result<u64, WalkError>, Vec<(u64, u64)>) {
    let long = p.efer & efer::LMA != 0;
    let pae = p.cr4 & cr4::PAE != 0;
    let write = access == Access::WRITE || access == Access::SYSTEM_WRITE;
    let fetch = access == Access::FETCH;
    let user = p.cpl == 3 && !access.implicit_supervisor;
    let nxe = p.efer & efer::NXE != 0;
    let mut code = 0;
    if write {
        code |= 2;
    }
    if user {
        code |= 4;
    }
    if fetch && (pae && nxe || p.cr4 & cr4::SMEP != 0) {
        code |= 16;
    }
    let gva = if long { gva } else { gva & 0xffff_ffff };
    let fault = |c: u32| (Err(WalkError::Fault(Exception::pf(code | c, gva))), Vec::new());
    // (bits of the linear address, bytes of an entry) per level, top first.
    let levels: &[(u32, u32)] = match (long, pae, p.cr4 & cr4::LA57 != 0) {
        (true, _, true) => &[(48, 9), (39, 9), (30, 9), (21, 9), (12, 9)],
        (true, _, false) => &[(39, 9), (30, 9), (21, 9), (12, 9)],
        (false, true, _) => &[(30, 2), (21, 9), (12, 9)],
        (false, false, _) => &[(22, 10), (12, 10)],
    };
    let mut table = match (long, pae) {
        (true, _) => p.cr3 & 0x000f_ffff_ffff_f000,
        (false, true) => p.cr3 & 0xffff_ffe0,
        _ => p.cr3 & 0xffff_f000,
    };
    let (mut can_write, mut can_user, mut can_fetch) = (true, true, true);
    let mut marks = Vec::new();
    for (shift, bits) in levels {
        let i = gva >> shift & ((1 << bits) - 1);
        let at = if pae || long { table + i * 8 } else { table + i * 4 };
        let entry = if pae || long { m.read_u64(at) } else { m.read_u32(at).map(u64::from) };
        let Some(e) = entry else { return (Err(WalkError::NoMemory(at)), Vec::new()) };
        if e & 1 == 0 {
            return fault(0);
        }
        let top_of_pae = !long && pae && *shift == 30;
        let big = match shift {
            12 => false,
            21 => e & PS != 0,
            22 => e & PS != 0 && p.cr4 & cr4::PSE != 0,
            30 => long && e & PS != 0,
            _ => false,
        };
        let mut bad = false;
        if long || pae {
            for bit in u32::from(p.max_phys_bits)..52 {
                bad |= e >> bit & 1 != 0;
            }
            bad |= e >> 63 != 0 && !nxe;
            if !long {
                bad |= e >> 52 & 0x7ff != 0;
            }
            if top_of_pae {
                // Bit 5 is tolerated as an accessed flag.
                bad |= e >> 63 != 0 || e & 0b1_1100_0110 != 0;
            }
            bad |= *shift >= 39 && e & PS != 0;
            if big {
                for bit in 13..*shift {
                    bad |= e >> bit & 1 != 0;
                }
            }
        } else if big {
            let m = u32::from(p.max_phys_bits.min(40));
            for bit in (m - 32 + 13)..22 {
                bad |= e >> bit & 1 != 0;
            }
        }
        if bad {
            return fault(1 | 8);
        }
        if !top_of_pae {
            can_write &= e & 2 != 0;
            can_user &= e & 4 != 0;
            can_fetch &= !((long || pae) && e >> 63 != 0);
            marks.push((at, A));
        }
        if !big && *shift != 12 {
            table = if long || pae { e & 0x000f_ffff_ffff_f000 } else { e & 0xffff_f000 };
            continue;
        }
        let mut page = if long || pae { e & 0x000f_ffff_ffff_f000 } else { e & 0xffff_f000 };
        page = page >> shift << shift;
        if *shift == 22 {
            page |= (e >> 13 & 0xff) << 32;
        }
        let mut denied = false;
        if user {
            denied |= !can_user;
            denied |= write && !can_write;
        } else {
            denied |= write && !can_write && p.cr0 & cr0::WP != 0;
            if can_user && !fetch && p.cr4 & cr4::SMAP != 0 && (access.implicit_supervisor || !p.rflags_ac) {
                denied = true;
            }
            denied |= fetch && can_user && p.cr4 & cr4::SMEP != 0;
        }
        denied |= fetch && !can_fetch;
        let mut key_denies = false;
        if long && p.cr4 & cr4::PKE != 0 && can_user && !fetch {
            let key = (e >> 59 & 15) as u32;
            let ad = p.pkru >> (2 * key) & 1 != 0;
            let wd = p.pkru >> (2 * key + 1) & 1 != 0;
            key_denies = ad || wd && write && (user || p.cr0 & cr0::WP != 0);
        }
        if denied || key_denies {
            return fault(if key_denies { 0x21 } else { 1 });
        }
        if write && let Some(last) = marks.last_mut() {
            last.1 |= D;
        }
        return (Ok(page | gva & ((1 << shift) - 1)), marks);
    }
    unreachable!("the last level maps a page")
}

/// A random entry: mostly present and generous, sometimes anything.
fn entry(r: &mut Random, wide: bool) -> u64 {
    let mut e = r.below(8) << 12 | P;
    for (bit, one_in) in [(RW, 5), (US, 5)] {
        if r.below(one_in) != 0 {
            e |= bit;
        }
    }
    for (bit, one_in) in
        [(PS, 6), (A, 2), (D, 2), (XD, 8), (G, 3), (1 << 13, 30), (1 << 40, 40), (1 << 21, 30)]
    {
        if r.below(one_in) == 0 {
            e |= bit;
        }
    }
    if e & PS != 0 && r.below(4) != 0 {
        e &= !0x3fff_f000;
        e |= r.below(4) << 30;
    }
    if r.below(20) == 0 {
        e &= !P;
    }
    if r.below(50) == 0 {
        e ^= 1 << r.below(64);
    }
    if wide {
        e |= r.below(4) << 59;
    }
    if !wide { e & 0xffff_ffff } else { e }
}

/// Random tables, modes and accesses: the same result, and exactly the reference's A and D flags.
#[test]
fn random_tables_match_the_reference() {
    let (mut translated, mut faulted) = (0, 0);
    for seed in 0..40_000u64 {
        let mut r = Random::new(seed + 1);
        let mut p = long_mode();
        p.cr3 = r.below(2) << 12 | r.below(2) << 5;
        let kind = r.below(4);
        p.cr4 = match kind {
            0 => r.pick(&[0, cr4::PSE]),
            1 | 2 => cr4::PAE,
            _ => cr4::PAE | cr4::LA57,
        };
        p.efer = if kind >= 2 { efer::LMA | efer::LME } else { 0 };
        p.efer |= if r.below(4) != 0 { efer::NXE } else { 0 };
        for bit in [cr4::SMEP, cr4::SMAP, cr4::PKE] {
            p.cr4 |= if r.below(3) == 0 { bit } else { 0 };
        }
        p.cr0 ^= if r.coin() { cr0::WP } else { 0 };
        p.rflags_ac = r.coin();
        p.pkru = if r.coin() { 0 } else { r.next() as u32 };
        p.cpl = r.pick(&[0, 0, 3, 3, 1]);
        p.max_phys_bits = r.pick(&[32, 36, 40, 46, 52]);
        let gva = r.next() & if kind < 2 { 0xffff_ffff } else { 0x00ff_ffff_ffff_ffff };
        let memory = tables(&p, gva, &mut r);
        let access =
            r.pick(&[Access::READ, Access::WRITE, Access::FETCH, Access::SYSTEM_READ, Access::SYSTEM_WRITE]);
        let (expected, marks) = reference(&memory, &p, gva, access);
        let mut after = memory.clone();
        for (at, flags) in marks {
            let word = after.words.get_mut().get_mut(&(at & !7)).unwrap();
            *word |= flags << (at % 8 * 8);
        }
        assert_eq!(translate(&memory, &p, gva, access), expected, "seed {seed} {p:x?} {gva:x} {access:?}");
        assert_eq!(*memory.words.borrow(), *after.words.borrow(), "seed {seed}");
        match expected {
            Ok(_) => translated += 1,
            Err(_) => faulted += 1,
        }
    }
    assert!(translated > 3_000 && faulted > 3_000, "{translated} translated, {faulted} faulted");
}

/// Eight pages of tables that point at each other, filled where the walk for `gva` can look.
fn tables(p: &PagingMode, gva: u64, r: &mut Random) -> Memory {
    let m = Memory::default();
    let legacy = p.efer & efer::LMA == 0 && p.cr4 & cr4::PAE == 0;
    let mut looks = Vec::new();
    for page in 0..8u64 {
        let at = |i: u64| page << 12 | i;
        if legacy {
            looks.extend([at((gva >> 22) * 4), at((gva >> 12 & 0x3ff) * 4)]);
        } else {
            looks.extend((1..=5).map(|level| at(index(gva, level) * 8)));
            looks.push(at(0x20 + (gva >> 30 & 3) * 8));
            looks.push(at((gva >> 30 & 3) * 8));
        }
    }
    for at in looks {
        let mut e = entry(r, !legacy);
        let pointer_table = p.efer & efer::LMA == 0 && !legacy && at < 0x2000 && at & 0xfff < 0x40;
        if pointer_table && r.below(8) != 0 {
            e &= 0x7001;
        }
        if r.below(200) == 0 {
            continue;
        }
        if legacy { m.put32(at, e as u32) } else { m.put(at, e) }
    }
    m
}
