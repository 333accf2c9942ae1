//! Whether an access to an MSR is allowed, and what a write stores.

use super::{Guest, MsrKind, find};
use crate::{GuestCaps, Invalid, Origin, Vendor, canonical, mtrr, sign_extended};
use exitless_pv_abi::{
    EXITLESS_DESCRIPTOR_RAW, EXITLESS_DESCRIPTOR_SHARED, EXITLESS_HOST_TICKS, EXITLESS_INSIDE,
    EXITLESS_LAZY_ADDRESS, KVM_ASYNC_PF_DELIVERY_AS_INT, KVM_ASYNC_PF_RESERVED_MASK, KVM_ASYNC_PF_VEC_MASK,
    KVM_MSR_ENABLED, KVM_PV_EOI_ADDRESS, KVM_PV_EOI_ENABLED, KVM_STEAL_RESERVED_MASK, feature,
};
use exitless_x86::msr::{debugctl, flush_cmd, hwcr, pred_cmd};

/// RDMSR or KVM_GET_MSRS.
///
/// # Errors
/// [`Invalid`] for a number in no row, one the guest's CPUID hides, or one that cannot be read.
pub fn check_read(msr: u32, origin: Origin, caps: &GuestCaps) -> Result<MsrKind, Invalid> {
    let (row, kind) = find(msr).ok_or(Invalid)?;
    let exists = origin == Origin::Host || row.need.met(caps);
    if exists && row.guest != Guest::WriteOnly { Ok(kind) } else { Err(Invalid) }
}

/// WRMSR or KVM_SET_MSRS: the kind and the value to store. Judged elsewhere, because they depend on other state:
/// EFER and APIC_BASE (`crate::control`), MTRRs, machine check, the x2APIC registers.
///
/// # Errors
/// [`Invalid`] for a number in no row, one the guest's CPUID hides, a read-only one, or a value that is not allowed.
pub fn check_write(
    msr: u32,
    value: u64,
    origin: Origin,
    caps: &GuestCaps,
) -> Result<(MsrKind, u64), Invalid> {
    let (row, kind) = find(msr).ok_or(Invalid)?;
    match origin {
        Origin::Guest if !row.need.met(caps) => return Err(Invalid),
        Origin::Guest if row.guest == Guest::ReadOnly => return Err(Invalid),
        Origin::Guest if row.guest == Guest::WriteDropped => return Ok((MsrKind::Const(0), 0)),
        // A host may restore a constant it saved elsewhere as zero.
        Origin::Host if matches!(kind, MsrKind::Const(_)) && value == 0 => return Ok((kind, 0)),
        Origin::Host if row.guest == Guest::WriteDropped && kind == MsrKind::Const(0) => {
            return Ok((kind, 0));
        }
        _ => {}
    }
    Ok((kind, stored(kind, value, origin, caps)?))
}

/// The value to store for a kind whose rule needs nothing but the guest's abilities.
fn stored(kind: MsrKind, value: u64, origin: Origin, caps: &GuestCaps) -> Result<u64, Invalid> {
    let only_if = |ok| if ok { Ok(value) } else { Err(Invalid) };
    let host = origin == Origin::Host;
    match kind {
        MsrKind::Const(constant) => only_if(value == constant),
        MsrKind::Unknown | MsrKind::McgCap => Err(Invalid),
        MsrKind::Lstar | MsrKind::Cstar | MsrKind::KernelGsBase | MsrKind::FsBase | MsrKind::GsBase => {
            only_if(canonical(value, caps.wide))
        }
        MsrKind::SysenterEsp | MsrKind::SysenterEip => sysenter(value, origin, caps),
        MsrKind::Pat => only_if(mtrr::pat_valid(value)),
        // A guest that has it for itself may have set what its CPUID does not show and the CPU takes: user space gives it back.
        MsrKind::SpecCtrl if host => only_if(value & !caps.spec_ctrl_hardware == 0),
        MsrKind::SpecCtrl => only_if(value & !caps.spec_ctrl == 0),
        MsrKind::PredCmd => only_if(value & !pred_cmd::IBPB == 0),
        MsrKind::FlushCmd => only_if(value & !flush_cmd::L1D_FLUSH == 0),
        // Reserved bits on Intel, dropped on AMD.
        MsrKind::TscAux if caps.vendor == Vendor::Amd => Ok(value & 0xffff_ffff),
        MsrKind::TscAux => only_if(value >> 32 == 0),
        // Intel's has 32 bits; AMD's processors say how many they keep.
        MsrKind::Sfmask if caps.hardware == Vendor::Amd => Ok(value),
        MsrKind::Sfmask => Ok(value & 0xffff_ffff),
        MsrKind::DebugCtl => debug_ctl(value),
        MsrKind::Hwcr => hwcr_value(value),
        MsrKind::PvStealTime => only_if(value & KVM_STEAL_RESERVED_MASK == 0),
        MsrKind::LazyDeadline => only_if(
            value & !(EXITLESS_LAZY_ADDRESS | EXITLESS_HOST_TICKS | EXITLESS_INSIDE | KVM_MSR_ENABLED) == 0,
        ),
        MsrKind::PvAsyncPf => {
            let shown =
                host || caps.pv & feature::ASYNC_PF_INT != 0 || value & KVM_ASYNC_PF_DELIVERY_AS_INT == 0;
            only_if(value & KVM_ASYNC_PF_RESERVED_MASK == 0 && shown)
        }
        MsrKind::PvAsyncPfInt => only_if(value & !KVM_ASYNC_PF_VEC_MASK == 0),
        MsrKind::Descriptor => only_if(value & !(EXITLESS_DESCRIPTOR_SHARED | EXITLESS_DESCRIPTOR_RAW) == 0),
        MsrKind::Sequence => only_if(canonical(value, caps.wide)),
        MsrKind::SequenceParts => only_if(value >> 32 == 0 && value & 0xffff <= value >> 16),
        MsrKind::PvPollControl => only_if(value <= 1),
        MsrKind::PvEoi => only_if(value & !(KVM_PV_EOI_ADDRESS | u64::from(KVM_PV_EOI_ENABLED)) == 0),
        _ => Ok(value),
    }
}

/// SYSENTER_ESP and SYSENTER_EIP: AMD's processors have no SYSENTER in long mode and take any value, whose upper half they ignore.
/// Intel's fault on addresses that are not canonical, and an entry with one in the VMCS fails: what a guest had on AMD is
/// made canonical.
fn sysenter(value: u64, origin: Origin, caps: &GuestCaps) -> Result<u64, Invalid> {
    match (caps.hardware, origin) {
        (Vendor::Amd, _) => Ok(value),
        (Vendor::Intel, Origin::Host) => Ok(sign_extended(value, caps.wide)),
        (Vendor::Intel, Origin::Guest) if canonical(value, caps.wide) => Ok(value),
        (Vendor::Intel, Origin::Guest) => Err(Invalid),
    }
}

/// Last-branch recording and branch single-step are asked for and not given: the bits are dropped, as a processor that
/// records nothing would look. Others are reserved (APM vol. 2, 13.1.1.6).
fn debug_ctl(value: u64) -> Result<u64, Invalid> {
    if value & !(debugctl::LBR | debugctl::BTF) == 0 { Ok(0) } else { Err(Invalid) }
}

/// Two bits are kept; three switch legacy behaviour that no longer exists and are dropped; the rest is refused.
fn hwcr_value(value: u64) -> Result<u64, Invalid> {
    let kept = hwcr::MC_STATUS_WR_EN | hwcr::TSC_FREQ_SEL;
    let dropped = hwcr::TLB_CACHE_DIS | hwcr::FF_DIS | hwcr::IGNNE_EM;
    if value & !(kept | dropped) == 0 { Ok(value & kept) } else { Err(Invalid) }
}
