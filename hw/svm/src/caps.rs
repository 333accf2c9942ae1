//! What this CPU's SVM can do: read once at load, refused or used (APM vol. 2, 15.4; vol. 3, CPUID 8000_000A).

use exitless_vcpu::clock::tsc::Scaling;
use exitless_x86::cpuid::{CpuidResult, leaf7_ebx};
use exitless_x86::svm::feature;

/// VM_CR.SVMDIS: SVM is switched off (and locked) by firmware.
const VM_CR_SVMDIS: u64 = 1 << 4;

/// The negotiated capabilities, one for all CPUs.
#[derive(Clone, Copy, Debug, Default, bytemuck::Zeroable)]
pub struct Caps {
    /// ASIDs 1 to `asids - 1` may be used.
    pub asids: u32,
    /// The CPU stores the RIP behind the exiting instruction.
    pub next_rip: bool,
    /// The CPU stores the fetched bytes of a faulting instruction.
    pub decode_assists: bool,
    /// TLB_CONTROL can flush one ASID.
    pub flush_by_asid: bool,
    /// A TSC ratio MSR exists.
    pub tsc_rate: bool,
    /// PAUSE can be filtered.
    pub pause_filter: bool,
    /// There is INVPCID, and so its intercept.
    pub invpcid: bool,
    /// SPEC_CTRL changes hands by the VMCB.
    pub spec_ctrl: bool,
    /// The host takes machine checks (its CR4.MCE), so guests must not turn them off.
    pub machine_checks: bool,
    /// CPUs virtualise APICs in x2APIC mode (AVIC), and somebody wants that.
    pub avic: bool,
    /// They send IPIs too.
    pub avic_ipis: bool,
}

/// Why SVM cannot be used here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missing {
    /// CPUID 8000_0001.ECX[2] is clear.
    Svm,
    /// VM_CR.SVMDIS is set.
    DisabledByFirmware,
    /// CPUID 8000_000A.EDX[0] is clear.
    NestedPaging,
    /// Fewer than two ASIDs.
    Asids,
}

impl Missing {
    /// What to tell the person who loads the module, and what to do.
    pub fn message(self) -> &'static str {
        match self {
            Self::Svm => "this CPU has no SVM (CPUID 8000_0001 ECX bit 2): an AMD-V CPU is needed",
            Self::DisabledByFirmware => {
                "SVM is disabled by firmware (VM_CR.SVMDIS): enable SVM in the BIOS setup"
            }
            Self::NestedPaging => "this CPU has no nested paging (CPUID 8000_000A EDX bit 0): it is required",
            Self::Asids => "this CPU offers fewer than two ASIDs: it cannot run a guest",
        }
    }
}

impl Caps {
    /// How the guest's TSC can be scaled.
    pub fn tsc_scaling(&self) -> Option<Scaling> {
        self.tsc_rate.then_some(Scaling::SVM)
    }

    /// What keeps a VMCB made for `self` from a CPU that has `other`; `None`: nothing. A new field must be given its line here.
    pub fn difference(&self, other: &Self) -> Option<&'static str> {
        #[rustfmt::skip]
        let Self { asids, next_rip, decode_assists, flush_by_asid, tsc_rate, pause_filter, invpcid, spec_ctrl, machine_checks, avic, avic_ipis } = *self;
        let compared = [
            (asids == other.asids, "the number of ASIDs"),
            (next_rip == other.next_rip, "next-RIP save"),
            (decode_assists == other.decode_assists, "decode assists"),
            (flush_by_asid == other.flush_by_asid, "flush by ASID"),
            (tsc_rate == other.tsc_rate, "the TSC ratio MSR"),
            (pause_filter == other.pause_filter, "the PAUSE filter"),
            (invpcid == other.invpcid, "INVPCID"),
            (spec_ctrl == other.spec_ctrl, "SPEC_CTRL by the VMCB"),
            (machine_checks == other.machine_checks, "the host's CR4.MCE"),
            (avic == other.avic, "AVIC"),
            (avic_ipis == other.avic_ipis, "IPIs by AVIC"),
        ];
        compared.into_iter().find(|(same, _)| !same).map(|(_, what)| what)
    }

    /// Wanted, needed, present: decides from CPUID and VM_CR. `vm_cr` is asked only when SVM exists. What the host wants for
    /// itself is the caller's to add.
    pub fn negotiate(
        mut cpuid: impl FnMut(u32) -> CpuidResult,
        vm_cr: impl FnOnce() -> u64,
    ) -> Result<Self, Missing> {
        if cpuid(0x8000_0000).eax < 0x8000_000a || cpuid(0x8000_0001).ecx & (1 << 2) == 0 {
            return Err(Missing::Svm);
        }
        if vm_cr() & VM_CR_SVMDIS != 0 {
            return Err(Missing::DisabledByFirmware);
        }
        let f = cpuid(0x8000_000a);
        let has = |bit| f.edx & bit != 0;
        if !has(feature::NP) {
            return Err(Missing::NestedPaging);
        }
        if f.ebx < 2 {
            return Err(Missing::Asids);
        }
        Ok(Self {
            asids: f.ebx,
            next_rip: has(feature::NRIP_SAVE),
            decode_assists: has(feature::DECODE_ASSISTS),
            flush_by_asid: has(feature::FLUSH_BY_ASID),
            tsc_rate: has(feature::TSC_RATE),
            invpcid: cpuid(0).eax >= 7 && cpuid(7).ebx & leaf7_ebx::INVPCID != 0,
            pause_filter: has(feature::PAUSE_FILTER) && has(feature::PAUSE_THRESHOLD),
            spec_ctrl: has(feature::SPEC_CTRL),
            machine_checks: false,
            avic: false,
            avic_ipis: false,
        })
    }
}
