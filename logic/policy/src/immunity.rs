//! IA32_ARCH_CAPABILITIES: which speculation faults the CPU does not have, as far as that holds for a guest.

use exitless_x86::cpuid::{CpuidResult, ext8_ebx, leaf, leaf7_edx};
use exitless_x86::msr::arch_capabilities as bit;

/// Statements about the CPU, good and bad, that hold for whoever runs on it. Absent: bits that promise a control register which
/// guests do not have (TSX_CTRL, FB_CLEAR_CTRL, GDS_CTRL), and what only concerns a hypervisor (SKIP_L1DFL_VMENTRY).
const PASSED: u64 = bit::RDCL_NO
    | bit::IBRS_ALL
    | bit::RSBA
    | bit::SSB_NO
    | bit::MDS_NO
    | bit::PSCHANGE_MC_NO
    | bit::TAA_NO
    | bit::SBDR_SSDP_NO
    | bit::FBSDP_NO
    | bit::PSDP_NO
    | bit::FB_CLEAR
    | bit::RRSBA
    | bit::BHI_NO
    | bit::PBRSB_NO
    | bit::GDS_NO
    | bit::RFDS_NO
    | bit::RFDS_CLEAR
    | bit::ITS_NO;

/// What a new vCPU's register holds. `cpu`: the register of the CPU. `known`: bits that the host's kernel knows to be true besides.
/// `rtm`: guests may have transactions; without them TAA_NO says nothing about the CPU, and a guest that moves on could believe it.
pub fn arch_capabilities(cpu: u64, known: u64, rtm: bool) -> u64 {
    let value = (cpu | known) & PASSED;
    if rtm { value } else { value & !bit::TAA_NO }
}

/// The processor's CPUID without the controls of speculation that the kernel does not use: where it knows that the microcode's do
/// harm, or was told so (`clearcpuid=`), the entry code leaves SPEC_CTRL alone, so no guest may have it. `spec_ctrl`, `ibpb`: the kernel
/// uses them.
pub fn hide_unused_controls(index: u32, sub: u32, r: &mut CpuidResult, spec_ctrl: bool, ibpb: bool) {
    const INTEL: u32 = leaf7_edx::STIBP | leaf7_edx::SSBD;
    const AMD: u32 =
        ext8_ebx::IBRS | ext8_ebx::STIBP | ext8_ebx::STIBP_ALWAYS_ON | ext8_ebx::SSBD | ext8_ebx::PSFD;
    match (index, sub) {
        (leaf::STRUCTURED_FEATURES, 0) => {
            // This bit is both.
            r.edx &= if spec_ctrl && ibpb { !0 } else { !leaf7_edx::SPEC_CTRL };
            r.edx &= if spec_ctrl { !0 } else { !INTEL };
        }
        (leaf::ADDRESS_SIZES, _) => {
            r.ebx &= if spec_ctrl { !0 } else { !AMD };
            r.ebx &= if ibpb { !0 } else { !ext8_ebx::IBPB };
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A guest is never told of a control that it does not have.
    #[test]
    fn no_control_is_promised() {
        let all = arch_capabilities(!0, !0, true);
        assert_eq!(all & (bit::TSX_CTRL | bit::FB_CLEAR_CTRL | bit::GDS_CTRL | bit::SKIP_L1DFL_VMENTRY), 0);
        assert_eq!(all, PASSED);
    }

    /// Both sources count; a CPU whose transactions are off says nothing of their faults.
    #[test]
    fn sources() {
        assert_eq!(arch_capabilities(bit::RSBA, bit::RDCL_NO, true), bit::RSBA | bit::RDCL_NO);
        assert_eq!(arch_capabilities(bit::TAA_NO, bit::TAA_NO, false), 0);
    }

    #[test]
    fn controls_that_the_kernel_does_not_use_are_hidden() {
        use super::{CpuidResult, ext8_ebx, hide_unused_controls, leaf, leaf7_edx};
        let of = |index, spec_ctrl, ibpb| {
            let mut r = CpuidResult { eax: !0, ebx: !0, ecx: !0, edx: !0 };
            hide_unused_controls(index, 0, &mut r, spec_ctrl, ibpb);
            assert_eq!((r.eax, r.ecx), (!0, !0));
            (!r.ebx, !r.edx)
        };
        let (intel, amd) = (leaf::STRUCTURED_FEATURES, leaf::ADDRESS_SIZES);
        for index in [intel, amd, leaf::FEATURES] {
            assert_eq!(of(index, true, true), (0, 0));
        }
        assert_eq!(of(intel, true, false), (0, leaf7_edx::SPEC_CTRL));
        assert_eq!(of(intel, false, true), (0, leaf7_edx::SPEC_CTRL | leaf7_edx::STIBP | leaf7_edx::SSBD));
        assert_eq!(of(amd, true, false), (ext8_ebx::IBPB, 0));
        let all =
            ext8_ebx::IBRS | ext8_ebx::STIBP | ext8_ebx::STIBP_ALWAYS_ON | ext8_ebx::SSBD | ext8_ebx::PSFD;
        assert_eq!(of(amd, false, true), (all, 0));
        assert_eq!(of(leaf::FEATURES, false, false), (0, 0));
    }
}
