//! Machine-check registers: storage and validity (SDM vol. 3B, 16.3; APM vol. 2, 9.3).
//!
//! Nothing reports errors here; guests and VMMs enable banks, clear them and save them.

use crate::msr::MsrKind;
use crate::{Invalid, Origin};
use bytemuck::Zeroable;
use exitless_nospec::Guarded;
use exitless_x86::msr::mcg_cap;

/// Most banks (the answer to KVM_CAP_MCE).
pub const MAX_BANKS: usize = 32;
/// What KVM_X86_GET_MCE_CAP_SUPPORTED answers: MCG_CTL, software error recovery.
pub const SUPPORTED: u64 = mcg_cap::CTL_P | mcg_cap::SER_P;
/// Register of a bank: MSR number modulo 4.
const CTL: u8 = 0;
const STATUS: u8 = 1;

/// The registers of one vCPU. All-zero has no banks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Zeroable)]
#[repr(C)]
pub struct Mce {
    /// IA32_MCG_CAP.
    cap: u64,
    status: u64,
    ctl: u64,
    /// CTL, STATUS, ADDR, MISC of each bank.
    banks: [[u64; 4]; MAX_BANKS],
}

impl Mce {
    /// The state of a new vCPU: all banks, as real machines have them; KVM_X86_SETUP_MCE narrows them.
    pub fn init(&mut self) {
        self.cap = MAX_BANKS as u64;
        self.status = 0;
        self.ctl = 0;
        self.banks.fill([0; 4]);
    }

    /// KVM_X86_SETUP_MCE: `cap` is the wished IA32_MCG_CAP.
    ///
    /// # Errors
    /// [`Invalid`] for no bank, more than [`MAX_BANKS`], or bits not [`SUPPORTED`].
    pub fn setup(&mut self, cap: u64) -> Result<(), Invalid> {
        let banks = (cap & mcg_cap::COUNT) as usize;
        if banks == 0 || banks > MAX_BANKS || cap & !(SUPPORTED | mcg_cap::COUNT | mcg_cap::EXT_CNT) != 0 {
            return Err(Invalid);
        }
        self.cap = cap;
        if cap & mcg_cap::CTL_P != 0 {
            self.ctl = !0;
        }
        for [ctl, ..] in self.banks.iter_mut().take(banks) {
            *ctl = !0;
        }
        Ok(())
    }

    /// IA32_MCG_CAP.
    pub fn cap(&self) -> u64 {
        self.cap
    }

    fn bank(&self, i: u8) -> Option<usize> {
        let bank = (i / 4) as usize;
        (bank < (self.cap & mcg_cap::COUNT) as usize).then_some(bank)
    }

    /// Reads the register of an `Mc*` kind.
    ///
    /// # Errors
    /// [`Invalid`] for a bank that does not exist, MCG_CTL without its bit in MCG_CAP (to a guest), or another kind.
    pub fn read(&self, kind: MsrKind, origin: Origin) -> Result<u64, Invalid> {
        match kind {
            MsrKind::McgCap => Some(self.cap),
            MsrKind::McgStatus => Some(self.status),
            MsrKind::McgCtl => self.has_ctl(origin).then_some(self.ctl),
            MsrKind::McBank(i) => {
                self.bank(i).and_then(|b| self.banks.guarded(b)?.get((i % 4) as usize)).copied()
            }
            _ => None,
        }
        .ok_or(Invalid)
    }

    fn has_ctl(&self, origin: Origin) -> bool {
        self.cap & mcg_cap::CTL_P != 0 || origin == Origin::Host
    }

    /// Writes it. `status_writable` is AMD's HWCR.McStatusWrEn, which lets a guest write other than 0 to a status.
    ///
    /// # Errors
    /// [`Invalid`] as for [`Mce::read`], and for a CTL other than all zeros or all ones (bits 0 and 10 are free: guests
    /// clear them for errata) and a nonzero STATUS from the guest.
    pub fn write(
        &mut self,
        kind: MsrKind,
        v: u64,
        origin: Origin,
        status_writable: bool,
    ) -> Result<(), Invalid> {
        let all_or_none = |v: u64| v == 0 || v | 1 << 10 | 1 == !0;
        let (place, ok) = match kind {
            MsrKind::McgStatus => (Some(&mut self.status), true),
            MsrKind::McgCtl => {
                let has = self.has_ctl(origin);
                (Some(&mut self.ctl), has && (v == 0 || v == !0))
            }
            MsrKind::McBank(i) => {
                let ok = match i % 4 {
                    CTL => all_or_none(v),
                    STATUS => v == 0 || origin == Origin::Host || status_writable,
                    _ => true,
                };
                let bank = self.bank(i).and_then(|b| self.banks.guarded_mut(b));
                (bank.and_then(|b| b.get_mut((i % 4) as usize)), ok)
            }
            _ => (None, false),
        };
        match place {
            Some(place) if ok => *place = v,
            _ => return Err(Invalid),
        }
        Ok(())
    }
}
