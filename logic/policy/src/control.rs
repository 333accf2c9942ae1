//! Which values of control registers, EFER, XCR0 and APIC_BASE a guest may write (SDM vol. 3A, 2.5, 4.1 and 11.4;
//! APM vol. 2, 3.1 and 5.3). Nothing is changed here: the caller stores what comes back.

use crate::{GuestCaps, Invalid, Origin};
use exitless_x86::cpuid::xcr0;
use exitless_x86::regs::{cr0, cr4, efer};

/// CR0 bits that have a meaning. Others below bit 32 read as zero whatever is written.
const CR0_DEFINED: u64 = cr0::PE
    | cr0::MP
    | cr0::EM
    | cr0::TS
    | cr0::ET
    | cr0::NE
    | cr0::WP
    | cr0::AM
    | cr0::NW
    | cr0::CD
    | cr0::PG;

/// Switches the paging mode depends on, before the write under judgement.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mode {
    /// CR0.
    pub cr0: u64,
    /// CR3; only its low 12 bits matter.
    pub cr3: u64,
    /// CR4.
    pub cr4: u64,
    /// EFER.
    pub efer: u64,
    /// CS.L.
    pub cs_long: bool,
}

impl Mode {
    fn long_mode_active(&self) -> bool {
        self.efer & efer::LMA != 0
    }
}

/// What a valid CR0 write makes of CR0 and EFER.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cr0Write {
    /// CR0 to store.
    pub cr0: u64,
    /// EFER to store: LMA follows PG while LME is set.
    pub efer: u64,
    /// The write switches PAE paging on (or changes it): load and check the PDPTEs from CR3.
    pub load_pdptes: bool,
}

fn valid(ok: bool) -> Result<(), Invalid> {
    if ok { Ok(()) } else { Err(Invalid) }
}

/// MOV to CR0, LMSW, CLTS.
///
/// # Errors
/// [`Invalid`] for bits 63:32, NW without CD, PG without PE, long mode without PAE or from a long CS, paging off in
/// 64-bit mode or under PCIDE, WP off under CET.
pub fn check_cr0(new: u64, m: &Mode) -> Result<Cr0Write, Invalid> {
    valid(new >> 32 == 0)?;
    let new = new & CR0_DEFINED | cr0::ET;
    let has = |bit| new & bit != 0;
    let had = |bit| m.cr0 & bit != 0;
    valid(!has(cr0::NW) || has(cr0::CD))?;
    valid(!has(cr0::PG) || has(cr0::PE))?;
    valid(has(cr0::WP) || m.cr4 & cr4::CET == 0)?;
    let mut to_efer = m.efer;
    let pae = m.cr4 & cr4::PAE != 0;
    match (had(cr0::PG), has(cr0::PG)) {
        (false, true) if m.efer & efer::LME != 0 => {
            valid(pae && !m.cs_long)?;
            to_efer |= efer::LMA;
        }
        (true, false) => {
            valid(m.cr4 & cr4::PCIDE == 0 && !(m.long_mode_active() && m.cs_long))?;
            to_efer &= !efer::LMA;
        }
        _ => {}
    }
    // PDPTEs are loaded when PAE paging starts, or CD or NW change under it (SDM vol. 3A, 4.4.1).
    let touched = (new ^ m.cr0) & (cr0::PG | cr0::CD | cr0::NW) != 0;
    let load_pdptes = has(cr0::PG) && pae && to_efer & efer::LMA == 0 && touched;
    Ok(Cr0Write { cr0: new, efer: to_efer, load_pdptes })
}

/// MOV to CR4; `Ok(true)` asks to load and check the PDPTEs from CR3.
///
/// # Errors
/// [`Invalid`] for bits the guest does not have, PAE off or LA57 changed in long mode, PCIDE on outside long mode or
/// with a PCID in CR3, CET without CR0.WP.
pub fn check_cr4(new: u64, m: &Mode, caps: &GuestCaps) -> Result<bool, Invalid> {
    valid(new & !caps.cr4_allowed == 0)?;
    let changed = new ^ m.cr4;
    let long = m.long_mode_active();
    if long {
        valid(new & cr4::PAE != 0 && changed & cr4::LA57 == 0)?;
    }
    if changed & new & cr4::PCIDE != 0 {
        valid(long && m.cr3 & 0xfff == 0)?;
    }
    valid(new & cr4::CET == 0 || m.cr0 & cr0::WP != 0)?;
    let pae_paging = m.cr0 & cr0::PG != 0 && new & cr4::PAE != 0 && !long;
    Ok(pae_paging && changed & (cr4::PAE | cr4::PGE | cr4::PSE | cr4::SMEP) != 0)
}

/// What a valid CR3 write stores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cr3Write {
    /// CR3 to store.
    pub cr3: u64,
    /// The guest asked to keep the new PCID's translations (bit 63 under PCIDE).
    pub no_flush: bool,
}

/// MOV to CR3. PDPTEs are the caller's to check under PAE paging.
///
/// # Errors
/// [`Invalid`] for address bits beyond the guest's physical width in long mode.
pub fn check_cr3(new: u64, m: &Mode, caps: &GuestCaps) -> Result<Cr3Write, Invalid> {
    let no_flush = m.cr4 & cr4::PCIDE != 0 && new >> 63 != 0;
    let cr3 = if no_flush { new & !(1 << 63) } else { new };
    valid(!m.long_mode_active() || cr3 & caps.phys_reserved() == 0)?;
    Ok(Cr3Write { cr3, no_flush })
}

/// MOV to DR6: the value to store.
///
/// # Errors
/// [`Invalid`] for bits 63:32.
pub fn check_dr6(new: u64) -> Result<u64, Invalid> {
    valid(new >> 32 == 0)?;
    // B0-B3, BD, BS, BT; the others read as fixed ones or zero (SDM vol. 3B, 17.2.3).
    Ok(new & 0xe00f | 0xffff_0ff0)
}

/// MOV to DR7: the value to store.
///
/// # Errors
/// [`Invalid`] for bits 63:32.
pub fn check_dr7(new: u64) -> Result<u64, Invalid> {
    valid(new >> 32 == 0)?;
    // Bits 12, 14, 15 read as zero, bit 10 as one; bit 11 (RTM debugging) is not offered (SDM vol. 3B, 17.2.4).
    Ok(new & 0xffff_23ff | 1 << 10)
}

/// A write of EFER: the value to store. LMA never follows the write, only CR0.PG; for the host it follows its value,
/// because KVM_SET_MSRS restores EFER with CR0 already decided. `caps` are the guest's when the guest writes, the
/// host's (of the supported list) when the VMM does: it may restore EFER before it sets CPUID.
///
/// # Errors
/// [`Invalid`] for bits `caps` does not have, and for LME changed under paging by the guest.
pub fn efer_write(
    old: u64,
    new: u64,
    cr0_now: u64,
    origin: Origin,
    caps: &GuestCaps,
) -> Result<u64, Invalid> {
    valid(new & !caps.efer_allowed & !efer::LMA == 0)?;
    match origin {
        Origin::Guest => {
            valid((old ^ new) & efer::LME == 0 || cr0_now & cr0::PG == 0)?;
            Ok(new & !efer::LMA | old & efer::LMA)
        }
        Origin::Host => Ok(new),
    }
}

/// XSETBV: the value to store in XCR0 (SDM vol. 1, 13.3).
///
/// # Errors
/// [`Invalid`] for another register than 0, components the guest does not have, x87 off, AVX without SSE, AVX-512 in
/// part or without AVX.
pub fn check_xcr0(index: u32, new: u64, caps: &GuestCaps) -> Result<u64, Invalid> {
    valid(index == 0 && new & xcr0::X87 != 0 && new & !(caps.xcr0 | xcr0::X87) == 0)?;
    valid(new & xcr0::AVX == 0 || new & xcr0::SSE != 0)?;
    let avx512 = new & xcr0::AVX512;
    valid(avx512 == 0 || avx512 == xcr0::AVX512 && new & xcr0::AVX != 0)?;
    Ok(new)
}

/// State the VMM sets as a whole (KVM_SET_SREGS): the same rules without a history. EFER is bounded by `host` (the
/// supported list's summary), not by the guest's CPUID, which small VMMs set later or never.
///
/// # Errors
/// [`Invalid`] where no sequence of guest writes could have led to this state.
pub fn check_state(m: &Mode, caps: &GuestCaps, host: &GuestCaps) -> Result<(), Invalid> {
    valid(m.cr0 >> 32 == 0 && m.cr4 & !caps.cr4_allowed == 0)?;
    valid(m.efer & !host.efer_allowed & !efer::LMA == 0)?;
    let has = |bit| m.cr0 & bit != 0;
    valid(!has(cr0::NW) || has(cr0::CD))?;
    valid(!has(cr0::PG) || has(cr0::PE))?;
    if m.efer & efer::LME != 0 && has(cr0::PG) {
        valid(m.cr4 & cr4::PAE != 0 && m.long_mode_active() && m.cr3 & caps.phys_reserved() == 0)
    } else {
        valid(!m.long_mode_active() && !m.cs_long)
    }
}
