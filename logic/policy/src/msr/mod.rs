//! MSRs: THE table (`table`), the lookup, and which access with which value is allowed (`check`).
//!
//! ```text
//! RDMSR, KVM_GET_MSRS --> check_read(msr, origin, caps)  --> MsrKind --> the vCPU reads, one arm per kind
//! WRMSR, KVM_SET_MSRS --> check_write(msr, value, ...)   --> MsrKind and the value to store --> the vCPU stores
//!                                                        `-> Invalid: #GP(0), or the ioctl stops counting
//! ```
//! A number that is in no row is [`MsrKind::Unknown`]: #GP, for the host too. An MSR listed by
//! KVM_GET_MSR_INDEX_LIST is readable and writable by the host with any value it was read with.

mod check;
mod table;

pub use check::{check_read, check_write};
pub use table::{Guest, Need, Row, TABLE};

use crate::GuestCaps;
use exitless_x86::msr::Msr;

/// What a number means: one variant for each way to read and write. The vCPU's handler is one match over it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum MsrKind {
    // --- time ---
    Tsc,
    TscAdjust,
    TscDeadline,
    // --- local APIC ---
    ApicBase,
    /// Register offset in the xAPIC page divided by 16.
    X2Apic(u8),
    // --- kept where the backend says (it switches them with the guest) ---
    Star,
    Lstar,
    Cstar,
    Sfmask,
    KernelGsBase,
    FsBase,
    GsBase,
    SysenterCs,
    SysenterEsp,
    SysenterEip,
    Pat,
    DebugCtl,
    SpecCtrl,
    TscAux,
    // --- kept by the vCPU ---
    Efer,
    MiscEnable,
    /// Intel's BIOS_SIGN_ID, AMD's PATCH_LEVEL: the guest's writes are dropped.
    UcodeRev,
    ArchCapabilities,
    Hwcr,
    MtrrDefType,
    /// 0: 64K; 1, 2: 16K; 3 to 10: 4K. See [`crate::mtrr::Mtrrs`].
    MtrrFixed(u8),
    /// Base of range i at 2i, its mask at 2i+1.
    MtrrVariable(u8),
    /// See [`crate::mce::Mce`].
    McgCap,
    McgStatus,
    McgCtl,
    /// Four registers per bank: number minus 0x400.
    McBank(u8),
    /// Write-only: 1 asks for an indirect branch prediction barrier, 0 for nothing.
    PredCmd,
    /// Write-only: 1 flushes the L1 data cache, 0 asks for nothing.
    FlushCmd,
    // --- paravirtual; `false` is the older of two numbers for the same register ---
    PvWallClock(bool),
    PvSystemTime(bool),
    PvStealTime,
    PvEoi,
    PvPollControl,
    PvAsyncPf,
    PvAsyncPfInt,
    /// Reads as 0: bit 0 of a write says that the guest has taken a token.
    PvAsyncPfAck,
    LazyDeadline,
    Descriptor,
    Sequence,
    SequenceParts,
    /// Write-only: the ICR, for guests whose writes of it do not exit.
    ExitlessIcr,
    // --- no state ---
    /// Reads as this; a write that passed the check changes nothing.
    Const(u64),
    /// No such MSR: #GP(0) to the guest.
    Unknown,
}

impl MsrKind {
    /// The kind `i` numbers further on in a row of several.
    const fn nth(self, i: u32) -> Self {
        let i = i as u8;
        match self {
            Self::X2Apic(first) => Self::X2Apic(first + i),
            Self::MtrrFixed(first) => Self::MtrrFixed(first + i),
            Self::MtrrVariable(first) => Self::MtrrVariable(first + i),
            Self::McBank(first) => Self::McBank(first + i),
            other => other,
        }
    }
}

/// The kind of a number. The two hottest are answered before the table is searched.
#[inline]
pub fn lookup(msr: u32) -> MsrKind {
    if msr == Msr::TSC_DEADLINE.0 {
        return MsrKind::TscDeadline;
    }
    if msr.wrapping_sub(Msr::X2APIC.0) < 0x100 {
        return MsrKind::X2Apic(msr as u8);
    }
    find(msr).map_or(MsrKind::Unknown, |(_, kind)| kind)
}

/// The row of a number, and its kind. A binary search.
pub fn find(msr: u32) -> Option<(&'static Row, MsrKind)> {
    let after = TABLE.partition_point(|r| r.msr.0 <= msr);
    let row = TABLE.get(after.checked_sub(1)?)?;
    let i = msr.checked_sub(row.msr.0)?;
    (i < row.count).then(|| (row, row.kind.nth(i)))
}

/// MSRs the guest reads and writes without an exit: the backend switches them with the guest, every value hardware
/// accepts is harmless to the host. For the MSR permission map.
pub fn passthrough() -> impl Iterator<Item = u32> {
    TABLE.iter().filter(|r| r.passthrough).flat_map(Row::numbers)
}

/// KVM_GET_MSR_FEATURE_INDEX_LIST: what the host's tools may ask without a vCPU. `amd`: of which vendor the host is.
pub fn feature_list(amd: bool) -> impl Iterator<Item = Msr> + Clone {
    TABLE.iter().filter(|r| r.feature).map(|r| r.msr).filter(move |m| amd || *m != Msr::DE_CFG)
}

/// KVM_GET_MSR_INDEX_LIST: what a VMM saves and restores beside the registers that have ioctls of their own. `host` is
/// the summary of the supported list. Short on purpose: VMMs add their own to it and have room for 256.
pub fn index_list(host: &GuestCaps) -> impl Iterator<Item = u32> + Clone {
    TABLE.iter().filter(|r| r.listed && r.need.met(host)).flat_map(Row::numbers)
}
