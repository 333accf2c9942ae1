//! Whether a CPU's AVIC is used at all, and for a vCPU now.

use exitless_x86::cpuid::{CpuidResult, family, vendor};
use exitless_x86::svm::feature;

/// Why AVIC is not used on this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Absent {
    /// CPUID 8000_000A EDX bit 13 is clear.
    Avic,
    /// CPUID 8000_000A EDX bit 18 is clear.
    X2Avic,
}

impl Absent {
    /// For the administrator who asked for it.
    pub fn message(self) -> &'static str {
        match self {
            Self::Avic => {
                "avic=1 has no effect: this CPU has no AVIC (CPUID 8000_000A EDX bit 13), or firmware hides it"
            }
            Self::X2Avic => {
                "avic=1 has no effect: this CPU has AVIC, but not for APICs in x2APIC mode (CPUID 8000_000A EDX bit 18), and those in a page stay software's"
            }
        }
    }
}

/// Whether CPUs send IPIs too; `Err`: AVIC is not to be used.
///
/// Erratum 1235 of AMD's family 17h and Hygon's 18h: the CPU may miss that IsRunning was just cleared, and the target sleeps on.
pub fn offer(mut cpuid: impl FnMut(u32) -> CpuidResult) -> Result<bool, Absent> {
    let svm = cpuid(0x8000_000a).edx;
    if svm & feature::AVIC == 0 {
        return Err(Absent::Avic);
    }
    if svm & feature::X2AVIC == 0 {
        return Err(Absent::X2Avic);
    }
    let first = cpuid(0);
    let model = ([first.ebx, first.ecx, first.edx], family(cpuid(1).eax));
    Ok(!matches!(model, (vendor::AMD, 0x17) | (vendor::HYGON, 0x18)))
}

/// What a vCPU's APIC does and waits for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// Its switch is on.
    pub wanted: bool,
    /// In x2APIC mode and enabled in SVR, in a VM that has its APICs in the kernel.
    pub x2apic: bool,
    /// A debugger has interrupts wait.
    pub blocked: bool,
    /// An interrupt that is not the APIC's waits, or user space waits until one could be taken.
    pub ext_int: bool,
    /// Somebody wants to hear of the EOIs of edge-triggered interrupts.
    pub edge_eois: bool,
}

/// Why a vCPU's entries are without AVIC for now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inhibit {
    /// Switched off.
    Unwanted,
    /// The APIC is off, or its registers are a page.
    Mode,
    /// Hardware would deliver at once.
    Blocked,
    /// With AVIC there is no virtual interrupt whose intercept tells that interrupts are open (V_IRQ is ignored).
    Window,
    /// EOIs of edge-triggered interrupts never exit.
    EdgeEois,
}

/// `None`: AVIC it is.
pub fn inhibit(s: State) -> Option<Inhibit> {
    match s {
        State { wanted: false, .. } => Some(Inhibit::Unwanted),
        State { x2apic: false, .. } => Some(Inhibit::Mode),
        State { blocked: true, .. } => Some(Inhibit::Blocked),
        State { ext_int: true, .. } => Some(Inhibit::Window),
        State { edge_eois: true, .. } => Some(Inhibit::EdgeEois),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(name: [u32; 3], signature: u32, svm: u32) -> Result<bool, Absent> {
        offer(|leaf| match leaf {
            0 => CpuidResult { ebx: name[0], ecx: name[1], edx: name[2], ..CpuidResult::default() },
            1 => CpuidResult { eax: signature, ..CpuidResult::default() },
            0x8000_000a => CpuidResult { edx: svm, ..CpuidResult::default() },
            _ => CpuidResult::default(),
        })
    }

    const BOTH: u32 = feature::AVIC | feature::X2AVIC;

    #[test]
    fn what_the_cpu_lacks() {
        assert_eq!(machine(vendor::AMD, 0x00a6_0f12, 0), Err(Absent::Avic));
        assert_eq!(machine(vendor::AMD, 0x00a6_0f12, feature::X2AVIC), Err(Absent::Avic));
        assert_eq!(machine(vendor::AMD, 0x00a2_0f12, feature::AVIC), Err(Absent::X2Avic));
        assert_eq!(machine(vendor::AMD, 0x00a6_0f12, BOTH), Ok(true));
    }

    /// Zen 1 and 2, and Hygon's: no IPIs, whatever CPUID says. The same family number of the other vendor is another CPU.
    #[test]
    fn erratum_1235() {
        for (name, signature, ipis) in [
            (vendor::AMD, 0x0080_0f12, false),
            (vendor::AMD, 0x0083_0f10, false),
            (vendor::HYGON, 0x0090_0f01, false),
            (vendor::AMD, 0x0090_0f01, true),
            (vendor::AMD, 0x00a2_0f12, true),
            (vendor::AMD, 0x00b4_0f40, true),
        ] {
            assert_eq!(machine(name, signature, BOTH), Ok(ipis), "{signature:#x}");
        }
    }

    #[test]
    fn each_reason() {
        let on = State { wanted: true, x2apic: true, ..State::default() };
        assert_eq!(inhibit(on), None);
        assert_eq!(inhibit(State { wanted: false, ..on }), Some(Inhibit::Unwanted));
        assert_eq!(inhibit(State { x2apic: false, ..on }), Some(Inhibit::Mode));
        assert_eq!(inhibit(State { blocked: true, ..on }), Some(Inhibit::Blocked));
        assert_eq!(inhibit(State { ext_int: true, ..on }), Some(Inhibit::Window));
        assert_eq!(inhibit(State { edge_eois: true, ..on }), Some(Inhibit::EdgeEois));
    }
}
