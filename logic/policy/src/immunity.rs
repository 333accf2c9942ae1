//! IA32_ARCH_CAPABILITIES: which speculation faults the CPU does not have, as far as that holds for a guest.

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
}
