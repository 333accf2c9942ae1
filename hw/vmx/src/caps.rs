//! What this CPU's VMX can do: wanted, must-be-one, may-be-one, decided once at load (SDM vol. 3D, appendix A).
//!
//! A needed control that the CPU does not let us set, or does not let us clear, refuses the module with its name.

use crate::vapic::SECONDARY as SECONDARY_APIC;
use exitless_vcpu::backend::InGuest;
use exitless_vcpu::clock::tsc::Scaling;
use exitless_x86::cpuid::{CpuidResult, leaf1_ecx};
use exitless_x86::msr::Msr;
use exitless_x86::regs::cr4;
use exitless_x86::vmx::caps::{Allowed, Basic, Misc, ept_vpid, msr};
use exitless_x86::vmx::control::{entry, exit, pin, primary, secondary, tertiary};
use exitless_x86::vmx::feature_control as fc;

/// The negotiated capabilities, the same for all CPUs: a CPU that comes online later is compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Zeroable)]
pub struct Caps {
    /// The first word of VMCS and VMXON regions.
    pub revision: u32,
    /// Pin-based controls.
    pub pin: u32,
    /// Primary processor-based controls, without the windows and intercepts that come and go.
    pub primary: u32,
    /// Secondary processor-based controls.
    pub secondary: u32,
    /// Secondary controls, none of them in [`Self::secondary`], that the CPU has and vCPUs may want.
    pub optional: u32,
    /// VM-exit controls.
    pub exit: u32,
    /// VM-entry controls, without "IA-32e mode guest".
    pub entry: u32,
    /// IA32_VMX_EPT_VPID_CAP.
    pub ept_vpid: u64,
    /// Bits of CR0 that must be 1 in VMX operation; PE and PG are free for an unrestricted guest.
    pub cr0_must: u64,
    /// Bits of CR0 that may be 1.
    pub cr0_may: u64,
    /// Bits of CR4 that must be 1 in VMX operation.
    pub cr4_must: u64,
    /// Bits of CR4 that may be 1.
    pub cr4_may: u64,
    /// The preemption timer ticks once each 2^n TSC ticks; meaningful if `preemption_timer`.
    pub timer_shift: u32,
    /// What the host wanted.
    wish: Wish,
    /// Flags below, one bit each: no padding, all-zero valid.
    flags: u32,
}

const PREEMPTION_TIMER: u32 = 1 << 0;
const ANY_ERROR_CODE: u32 = 1 << 1;
const UNLOCKED: u32 = 1 << 2;
const APICV: u32 = 1 << 3;
const GUARD_L1D: u32 = 1 << 4;
const PERF_GLOBAL_CTRL: u32 = 1 << 5;
const IPIV: u32 = 1 << 6;

impl Caps {
    /// The CPU has a preemption timer that works, and the host wants it used.
    pub fn preemption_timer(&self) -> bool {
        self.flags & PREEMPTION_TIMER != 0
    }
    /// The APIC can be virtualised: registers, delivery, posting, in both modes; exits then acknowledge interrupts.
    pub fn apicv(&self) -> bool {
        self.flags & APICV != 0
    }
    /// What it was negotiated for.
    #[cfg(test)]
    pub(crate) fn wish(&self) -> Wish {
        self.wish
    }
    /// The CPU sends IPIs of guests in x2APIC mode by itself, and the host wants it. The primary controls then activate tertiary ones.
    pub fn ipiv(&self) -> bool {
        self.flags & IPIV != 0
    }
    /// Entries must not show the guest what is in the L1 data cache.
    pub fn guard_l1d(&self) -> bool {
        self.flags & GUARD_L1D != 0
    }
    /// Entries and exits can load IA32_PERF_GLOBAL_CTRL, and do it right.
    pub fn perf_global_ctrl(&self) -> bool {
        self.flags & PERF_GLOBAL_CTRL != 0
    }
    /// Hardware exceptions take an error code or not, whatever their vector.
    pub fn any_error_code(&self) -> bool {
        self.flags & ANY_ERROR_CODE != 0
    }
    /// Firmware left IA32_FEATURE_CONTROL open: each CPU must write [`Caps::FEATURE_CONTROL`] before VMXON.
    pub fn feature_control_unlocked(&self) -> bool {
        self.flags & UNLOCKED != 0
    }
    /// What to write where firmware left the register open.
    pub const FEATURE_CONTROL: u64 = fc::LOCK | fc::VMX_OUTSIDE_SMX;
    /// TLB entries carry a VPID.
    pub fn vpid(&self) -> bool {
        self.secondary & secondary::ENABLE_VPID != 0
    }
    /// EPT entries have accessed and dirty bits.
    pub fn ept_accessed_dirty(&self) -> bool {
        self.ept_vpid & ept_vpid::ACCESSED_DIRTY != 0
    }
    /// The second-level entries: memory is write-back whatever the guest's PAT says.
    pub fn ept_format(&self) -> exitless_slat::Ept {
        exitless_slat::Ept::new(self.ept_accessed_dirty(), true)
    }
    /// What keeps a VMCS made for `self` from a CPU that has `other`; `None`: nothing. Whether IA32_FEATURE_CONTROL is locked is
    /// each CPU's own. A new field must be given its line here.
    pub fn difference(&self, other: &Self) -> Option<&'static str> {
        #[rustfmt::skip]
        let Self {
            revision, pin, primary, secondary, optional, exit, entry, ept_vpid, cr0_must, cr0_may, cr4_must, cr4_may, timer_shift, wish, flags,
        } = *self;
        let compared = [
            (revision == other.revision, "the VMCS revision (IA32_VMX_BASIC)"),
            (pin == other.pin, "pin-based controls"),
            (primary == other.primary, "primary processor-based controls"),
            (
                secondary == other.secondary && optional == other.optional,
                "secondary processor-based controls",
            ),
            (exit == other.exit, "VM-exit controls"),
            (entry == other.entry, "VM-entry controls"),
            (ept_vpid == other.ept_vpid, "EPT and VPIDs (IA32_VMX_EPT_VPID_CAP)"),
            (cr0_must == other.cr0_must && cr0_may == other.cr0_may, "the fixed bits of CR0"),
            (cr4_must == other.cr4_must && cr4_may == other.cr4_may, "the fixed bits of CR4"),
            (timer_shift == other.timer_shift, "the rate of the preemption timer (IA32_VMX_MISC)"),
            (wish == other.wish, "what the host wants"),
            (
                (flags ^ other.flags) & !UNLOCKED == 0,
                "preemption timer, APIC, IPIs, performance counters or error codes",
            ),
        ];
        compared.into_iter().find(|(same, _)| !same).map(|(_, what)| what)
    }
    /// EPT leaves of 2 MiB.
    pub fn ept_2m(&self) -> bool {
        self.ept_vpid & ept_vpid::PAGE_2M != 0
    }
    /// EPT leaves of 1 GiB.
    pub fn ept_1g(&self) -> bool {
        self.ept_vpid & ept_vpid::PAGE_1G != 0
    }
    /// INVEPT of one EPT pointer.
    pub fn invept_single(&self) -> bool {
        self.ept_vpid & ept_vpid::INVEPT_SINGLE != 0
    }
    /// PAT changes hands by hardware.
    pub fn pat(&self) -> bool {
        self.entry & entry::LOAD_PAT != 0
    }
    /// MSRs pass through as the bitmap says.
    pub fn msr_bitmaps(&self) -> bool {
        self.primary & primary::USE_MSR_BITMAPS != 0
    }
    /// The guest has RDTSCP, and so sees TSC_AUX.
    pub fn rdtscp(&self) -> bool {
        self.secondary & secondary::ENABLE_RDTSCP != 0
    }
    /// The guest has INVPCID.
    pub fn invpcid(&self) -> bool {
        self.secondary & secondary::ENABLE_INVPCID != 0
    }
    /// The guest can have XSAVES.
    pub fn xsaves(&self) -> bool {
        self.secondary & secondary::ENABLE_XSAVES != 0
    }
    /// The CPU lacks CR4.UMIP, and lets what that forbids exit.
    pub fn emulates_umip(&self) -> bool {
        self.cr4_may & cr4::UMIP == 0 && self.optional & secondary::DESCRIPTOR_TABLE_EXITING != 0
    }
    /// The CPU logs the pages whose dirty bits it sets, and the host wants that.
    pub fn pml(&self) -> bool {
        self.optional & secondary::ENABLE_PML != 0
    }
    /// How the guest's TSC can be scaled.
    pub fn tsc_scaling(&self) -> Option<Scaling> {
        (self.secondary & secondary::USE_TSC_SCALING != 0).then_some(Scaling::VMX)
    }
    /// For a vCPU whose guest does `own` without an exit.
    pub(crate) fn leaving(&self, own: InGuest) -> Self {
        let off = |on: bool, bits: u32| if on { bits } else { 0 };
        let primary = off(own.hlt, primary::HLT_EXITING)
            | off(own.mwait, primary::MWAIT_EXITING | primary::MONITOR_EXITING);
        let secondary = off(own.pause, secondary::PAUSE_LOOP_EXITING);
        Self { primary: self.primary & !primary, secondary: self.secondary & !secondary, ..*self }
    }
    /// PAUSE loops exit.
    pub fn pause_loop(&self) -> bool {
        self.secondary & secondary::PAUSE_LOOP_EXITING != 0
    }
}

/// What the host wants of the CPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Zeroable)]
pub struct Wish {
    /// Virtualise the APIC if the CPU can.
    pub apicv: bool,
    /// Keep the L1 data cache from guests (L1TF).
    pub guard_l1d: bool,
    /// Use the preemption timer; the host's TSC is the same on all CPUs.
    pub preemption_timer: bool,
    /// Tag translations by VPIDs.
    pub vpid: bool,
    /// Log the pages that guests write.
    pub pml: bool,
    /// Let CPUs send IPIs.
    pub ipiv: bool,
}

/// Why VMX cannot be used here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missing {
    /// CPUID.01H:ECX[5] is clear.
    Vmx,
    /// IA32_FEATURE_CONTROL is locked without "VMX outside SMX".
    DisabledByFirmware,
    /// VMCS regions are not write-back or do not fit a page.
    Region,
    /// A control that is needed cannot be set; its name.
    Control(&'static str),
    /// A control that must be off cannot be cleared; its name.
    Forced(&'static str),
    /// EPT lacks this.
    Ept(&'static str),
}

impl Missing {
    /// What to tell the person who loads the module. Missing controls are named by [`Missing::control`].
    pub fn message(self) -> &'static str {
        match self {
            Self::Vmx => "this CPU has no VMX (CPUID 1 ECX bit 5): an Intel VT-x CPU is needed",
            Self::DisabledByFirmware => {
                "VMX is disabled by firmware (IA32_FEATURE_CONTROL): enable virtualization in the BIOS setup"
            }
            Self::Region => "this CPU wants VMCS regions that this module cannot give (IA32_VMX_BASIC)",
            Self::Control(_) => "this CPU lacks a VMX control that is required",
            Self::Forced(_) => "this CPU forces a VMX control that must be off",
            Self::Ept(_) => "this CPU's extended page tables lack what is required",
        }
    }

    /// Which control or property, where it is one.
    pub fn control(self) -> Option<&'static str> {
        match self {
            Self::Control(name) | Self::Forced(name) | Self::Ept(name) => Some(name),
            _ => None,
        }
    }
}

/// CPUs whose preemption timer counts at another rate than IA32_VMX_MISC says (Intel's specification updates for Nehalem and
/// Westmere; reports for one Ivy Bridge), by family, model and stepping in CPUID.01H:EAX.
const BROKEN_TIMER: [u32; 9] =
    [0x106a0, 0x106a1, 0x106a4, 0x106a5, 0x106e5, 0x20652, 0x20655, 0x206e6, 0x306a8];
/// Those fields.
const SIGNATURE: u32 = 0x0fff_3fff;

/// CPUs whose VM exits may lose bits 34:32 when they load IA32_PERF_GLOBAL_CTRL (Intel's specification updates for Nehalem and
/// Westmere: AAK155, AAP115, AAT100, BC86, BA97), by family and model in CPUID.01H:EAX.
const BROKEN_GLOBAL_CTRL: [u32; 5] = [0x106a0, 0x106e0, 0x20650, 0x206c0, 0x206e0];
/// Those fields.
const MODEL: u32 = SIGNATURE & !0xf;

/// A bit and its name in messages.
type Named = (u32, &'static str);

const PIN_NEEDED: &[Named] = &[
    (pin::EXTERNAL_INTERRUPT_EXITING, "external-interrupt exiting"),
    (pin::NMI_EXITING, "NMI exiting"),
    (pin::VIRTUAL_NMIS, "virtual NMIs"),
];
const PRIMARY_NEEDED: &[Named] = &[
    (primary::INTERRUPT_WINDOW_EXITING, "interrupt-window exiting"),
    (primary::USE_TSC_OFFSETTING, "use TSC offsetting"),
    (primary::HLT_EXITING, "HLT exiting"),
    (primary::MWAIT_EXITING, "MWAIT exiting"),
    (primary::RDPMC_EXITING, "RDPMC exiting"),
    (primary::CR8_LOAD_EXITING, "CR8-load exiting"),
    (primary::USE_TPR_SHADOW, "use TPR shadow"),
    (primary::NMI_WINDOW_EXITING, "NMI-window exiting"),
    (primary::MOV_DR_EXITING, "MOV-DR exiting"),
    (primary::UNCONDITIONAL_IO_EXITING, "unconditional I/O exiting"),
    (primary::MONITOR_EXITING, "MONITOR exiting"),
    (primary::SECONDARY, "activate secondary controls"),
];
/// Controls that come and go at run time, or that nobody here handles: they must be free to be 0.
const PRIMARY_OFF: &[Named] = &[
    (primary::INTERRUPT_WINDOW_EXITING, "interrupt-window exiting"),
    (primary::NMI_WINDOW_EXITING, "NMI-window exiting"),
    (primary::MOV_DR_EXITING, "MOV-DR exiting"),
    (primary::CR3_LOAD_EXITING, "CR3-load exiting"),
    (primary::CR3_STORE_EXITING, "CR3-store exiting"),
    (primary::CR8_LOAD_EXITING, "CR8-load exiting"),
    (primary::CR8_STORE_EXITING, "CR8-store exiting"),
    (primary::INVLPG_EXITING, "INVLPG exiting"),
    (primary::RDTSC_EXITING, "RDTSC exiting"),
    (primary::MONITOR_TRAP_FLAG, "monitor trap flag"),
];
const PRIMARY_WANTED: u32 = primary::USE_MSR_BITMAPS;
const SECONDARY_NEEDED: &[Named] = &[
    (secondary::ENABLE_EPT, "enable EPT"),
    // Real mode runs in hardware; there is no emulator for it.
    (secondary::UNRESTRICTED_GUEST, "unrestricted guest"),
];
const SECONDARY_WANTED: u32 = secondary::ENABLE_RDTSCP
    | secondary::ENABLE_VPID
    | secondary::WBINVD_EXITING
    | secondary::PAUSE_LOOP_EXITING
    | secondary::USE_TSC_SCALING
    | secondary::ENABLE_INVPCID
    | secondary::ENABLE_XSAVES
    | secondary::ENABLE_ENCLS_EXITING;
/// They follow the guest's CPUID and CR4, and what is logged.
const SECONDARY_OPTIONAL: u32 = secondary::RDRAND_EXITING
    | secondary::RDSEED_EXITING
    | secondary::DESCRIPTOR_TABLE_EXITING
    | secondary::ENABLE_PML;
const EXIT_NEEDED: &[Named] = &[
    (exit::SAVE_DEBUG_CONTROLS, "save debug controls"),
    (exit::HOST_ADDRESS_SPACE_SIZE, "host address-space size"),
    (exit::LOAD_EFER, "load IA32_EFER (exit)"),
];
const ENTRY_NEEDED: &[Named] = &[
    (entry::LOAD_DEBUG_CONTROLS, "load debug controls"),
    (entry::IA32E_MODE_GUEST, "IA-32e mode guest"),
    (entry::LOAD_EFER, "load IA32_EFER (entry)"),
];
/// These come and go too.
const EXIT_OFF: &[Named] = &[
    (exit::LOAD_PERF_GLOBAL_CTRL, "load IA32_PERF_GLOBAL_CTRL (exit)"),
    (exit::LOAD_EFER, "load IA32_EFER (exit)"),
];
const ENTRY_OFF: &[Named] = &[
    (entry::IA32E_MODE_GUEST, "IA-32e mode guest"),
    (entry::LOAD_PERF_GLOBAL_CTRL, "load IA32_PERF_GLOBAL_CTRL (entry)"),
    (entry::LOAD_EFER, "load IA32_EFER (entry)"),
];
/// Bits of [`PRIMARY_NEEDED`] and [`ENTRY_NEEDED`] that a fresh VMCS does not have yet.
const PRIMARY_DYNAMIC: u32 = primary::INTERRUPT_WINDOW_EXITING
    | primary::NMI_WINDOW_EXITING
    | primary::CR8_LOAD_EXITING
    | primary::MOV_DR_EXITING;
const ENTRY_DYNAMIC: u32 = entry::IA32E_MODE_GUEST;

/// Needed and wanted bits, as the CPU takes them.
fn choose(allowed: Allowed, needed: &[Named], wanted: u32, off: &[Named]) -> Result<u32, Missing> {
    let mut word = wanted;
    for &(bit, name) in needed {
        if allowed.may() & bit == 0 {
            return Err(Missing::Control(name));
        }
        word |= bit;
    }
    for &(bit, name) in off {
        if allowed.must() & bit != 0 {
            return Err(Missing::Forced(name));
        }
    }
    Ok(allowed.adjust(word))
}

fn ept(caps: u64) -> Result<(), Missing> {
    let all = ept_vpid::INVEPT_SINGLE | ept_vpid::INVEPT_ALL;
    let needed = |ok: bool, name| if ok { Ok(()) } else { Err(Missing::Ept(name)) };
    needed(caps & ept_vpid::WALK_4 != 0, "a page-walk length of 4")?;
    needed(caps & ept_vpid::WB != 0, "write-back paging structures")?;
    needed(caps & ept_vpid::INVEPT != 0 && caps & all != 0, "INVEPT")
}

impl Caps {
    /// Decides from CPUID and the capability MSRs; an MSR is read only when the CPU says that it exists.
    ///
    /// # Errors
    /// What is missing, in the order of the manual's appendix.
    pub fn negotiate(
        mut cpuid: impl FnMut(u32) -> CpuidResult,
        mut rdmsr: impl FnMut(u32) -> u64,
        wish: Wish,
    ) -> Result<Self, Missing> {
        if cpuid(0).eax < 1 || cpuid(1).ecx & leaf1_ecx::VMX == 0 {
            return Err(Missing::Vmx);
        }
        let control = rdmsr(Msr::FEATURE_CONTROL.0);
        let locked = control & fc::LOCK != 0;
        if locked && control & fc::VMX_OUTSIDE_SMX == 0 {
            return Err(Missing::DisabledByFirmware);
        }
        let basic = Basic(rdmsr(msr::BASIC));
        if basic.region_size() > 4096 || basic.memory_type() != 6 || basic.addresses_32_bits() {
            return Err(Missing::Region);
        }
        let mut allowed =
            |plain: u32, real: u32| Allowed(rdmsr(if basic.true_controls() { real } else { plain }));
        let pins = allowed(msr::PINBASED_CTLS, msr::TRUE_PINBASED_CTLS);
        let mut caps = Self { revision: basic.revision(), wish, ..Self::default() };
        caps.pin = choose(pins, PIN_NEEDED, 0, &[])?;
        caps.pin &= !(pin::PREEMPTION_TIMER | pin::POSTED_INTERRUPTS);
        let primaries = allowed(msr::PROCBASED_CTLS, msr::TRUE_PROCBASED_CTLS);
        caps.primary = choose(primaries, PRIMARY_NEEDED, PRIMARY_WANTED, PRIMARY_OFF)? & !PRIMARY_DYNAMIC;
        let exits = allowed(msr::EXIT_CTLS, msr::TRUE_EXIT_CTLS);
        let entries = allowed(msr::ENTRY_CTLS, msr::TRUE_ENTRY_CTLS);
        // PAT by hardware on both ways or on none.
        let pat = exits.may() & exit::LOAD_PAT != 0 && entries.may() & entry::LOAD_PAT != 0;
        let (pat_exit, pat_entry) = if pat { (exit::LOAD_PAT, entry::LOAD_PAT) } else { (0, 0) };
        let secondaries = Allowed(rdmsr(msr::PROCBASED_CTLS2));
        // All of it or nothing: parts of it exist on old CPUs only, and each part would be a mode to test.
        let apicv = wish.apicv
            && pins.may() & pin::POSTED_INTERRUPTS != 0
            && exits.may() & exit::ACKNOWLEDGE_INTERRUPT != 0
            && secondaries.may() & SECONDARY_APIC == SECONDARY_APIC
            && caps.msr_bitmaps();
        // The register is there if the control can be 1; it tells only what may be 1 (SDM vol. 3D, A.3.4).
        let ipiv = wish.ipiv
            && apicv
            && primaries.may() & primary::TERTIARY != 0
            && rdmsr(msr::PROCBASED_CTLS3) & tertiary::IPI_VIRTUALIZATION != 0;
        if ipiv {
            caps.primary |= primary::TERTIARY;
        }
        let acknowledge = if apicv { exit::ACKNOWLEDGE_INTERRUPT } else { 0 };
        caps.exit = choose(exits, EXIT_NEEDED, pat_exit | acknowledge, EXIT_OFF)?;
        caps.entry = choose(entries, ENTRY_NEEDED, pat_entry, ENTRY_OFF)? & !ENTRY_DYNAMIC;
        caps.secondary = choose(secondaries, SECONDARY_NEEDED, SECONDARY_WANTED, &[])?;
        caps.optional = secondaries.may() & SECONDARY_OPTIONAL;
        caps.ept_vpid = rdmsr(msr::EPT_VPID_CAP);
        ept(caps.ept_vpid)?;
        if !wish.pml || !caps.ept_accessed_dirty() {
            caps.optional &= !secondary::ENABLE_PML;
        }
        let flushes = ept_vpid::INVVPID | ept_vpid::INVVPID_ALL;
        if !wish.vpid || caps.ept_vpid & flushes != flushes {
            // Without a way to flush all of them VPIDs could never be used again.
            caps.secondary &= !secondary::ENABLE_VPID;
        }
        let misc = Misc(rdmsr(msr::MISC));
        caps.timer_shift = misc.preemption_timer_shift();
        caps.fixed_bits(&mut rdmsr);
        let timer = wish.preemption_timer
            && pins.may() & pin::PREEMPTION_TIMER != 0
            && !BROKEN_TIMER.contains(&(cpuid(1).eax & SIGNATURE));
        let global_ctrl = exits.may() & exit::LOAD_PERF_GLOBAL_CTRL != 0
            && entries.may() & entry::LOAD_PERF_GLOBAL_CTRL != 0
            && !BROKEN_GLOBAL_CTRL.contains(&(cpuid(1).eax & MODEL));
        let flag = |on: bool, bit| if on { bit } else { 0 };
        caps.flags = flag(timer, PREEMPTION_TIMER)
            | flag(basic.any_error_code(), ANY_ERROR_CODE)
            | flag(apicv, APICV)
            | flag(wish.guard_l1d, GUARD_L1D)
            | flag(global_ctrl, PERF_GLOBAL_CTRL)
            | flag(ipiv, IPIV)
            | flag(!locked, UNLOCKED);
        Ok(caps)
    }

    /// The same for the CPU that comes online or wakes up. It is asked for what the first was asked for, whatever the host would
    /// wish now: a TSC found unstable meanwhile must not keep every CPU away.
    ///
    /// # Errors
    /// What is missing there.
    pub fn negotiate_again(
        &self,
        cpuid: impl FnMut(u32) -> CpuidResult,
        rdmsr: impl FnMut(u32) -> u64,
    ) -> Result<Self, Missing> {
        Self::negotiate(cpuid, rdmsr, self.wish)
    }

    /// CR0 and CR4 bits that VMX operation fixes (SDM vol. 3C, 24.8; vol. 3D, A.7 and A.8).
    fn fixed_bits(&mut self, rdmsr: &mut impl FnMut(u32) -> u64) {
        use exitless_x86::regs::cr0;
        self.cr0_must = rdmsr(msr::CR0_FIXED0) & !(cr0::PE | cr0::PG);
        self.cr0_may = rdmsr(msr::CR0_FIXED1);
        self.cr4_must = rdmsr(msr::CR4_FIXED0);
        self.cr4_may = rdmsr(msr::CR4_FIXED1);
    }
}
