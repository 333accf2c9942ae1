//! What the local APIC is told once (`Config`) and what it asks of its caller (`Work`).

use bytemuck::Zeroable;
use exitless_x86::apic::InterruptMessage;

/// The access must raise #GP(0) in the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gp;

/// Properties of the VM and of the guest's CPUID; may change before the vCPU first runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Zeroable)]
pub struct Config {
    /// CPUID.1:ECX bit 24: LVTT bit 18 is writable and IA32_TSC_DEADLINE works.
    pub tsc_deadline: bool,
    /// The version register offers EOI-broadcast suppression (no in-kernel I/O APIC); SVR bit 12 is writable.
    pub directed_eoi: bool,
    /// The LVT has a CMCI entry (IA32_MCG_CAP bit 10).
    pub cmci: bool,
    /// KVM_X86_QUIRK_LINT0_REENABLED: reset leaves LINT0 of the boot CPU unmasked in ExtINT mode.
    pub lint0_reenabled: bool,
    /// KVM_X2APIC_API_USE_32BIT_IDS: the saved ID of an APIC in x2APIC mode is the plain 32-bit id, not `id << 24`.
    pub x2apic_format: bool,
    /// Shortest period of the periodic timer in nanoseconds; 0 means no limit. See [`Config::MIN_PERIOD_NS`].
    pub min_period_ns: u64,
}

impl Config {
    /// The usual limit for the periodic timer, 200 µs: shorter periods would be a storm of host timers.
    pub const MIN_PERIOD_NS: u64 = 200_000;
}

impl Default for Config {
    fn default() -> Self {
        Self {
            tsc_deadline: true,
            directed_eoi: false,
            cmci: false,
            lint0_reenabled: true,
            x2apic_format: false,
            min_period_ns: Self::MIN_PERIOD_NS,
        }
    }
}

/// An end of interrupt, for the I/O APIC and for acknowledge notifiers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EoiWork {
    /// The vector that left service.
    pub vector: u8,
    /// Its TMR bit: it was accepted as level triggered.
    pub level: bool,
    /// The I/O APICs must see this EOI: level triggered and not suppressed by SVR bit 12.
    pub broadcast: bool,
}

/// What remains to be done by the caller after a register access.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[must_use]
pub struct Work {
    /// Send this with [`crate::route`]. Self-IPIs of fixed mode never appear here: they are in the IRR already.
    pub ipi: Option<InterruptMessage>,
    /// An interrupt left service.
    pub eoi: Option<EoiWork>,
    /// [`crate::Lapic::armed`] may answer differently now.
    pub timer_changed: bool,
    /// [`crate::Lapic::pending`] or [`crate::Shared::accepts_ext_int`] may answer differently now.
    pub rescan: bool,
    /// Id, logical id, destination format or mode changed: routing caches and "ids are the indices" must be re-evaluated.
    pub routing_changed: bool,
}
