//! The emulated list (KVM_GET_EMULATED_CPUID): what the processor may lack and a guest may have all the same, because its #UD is
//! answered by the emulator. A VMM that wants it copies the bits into the guest's CPUID.

use crate::GuestCaps;
use exitless_kvm_abi::{KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};
use exitless_x86::cpuid::{leaf, leaf1_ecx, leaf7_ecx};

/// The list for a host with this summary of the supported list.
pub fn emulated(host: &GuestCaps) -> [kvm_cpuid_entry2; 3] {
    let entry = |function, flags| kvm_cpuid_entry2 { function, flags, ..bytemuck::Zeroable::zeroed() };
    // RDPID reads TSC_AUX, which must exist.
    let rdpid = if host.rdtscp { leaf7_ecx::RDPID } else { 0 };
    [
        kvm_cpuid_entry2 { eax: leaf::STRUCTURED_FEATURES, ..entry(leaf::VENDOR, 0) },
        kvm_cpuid_entry2 { ecx: leaf1_ecx::MOVBE, ..entry(leaf::FEATURES, 0) },
        kvm_cpuid_entry2 { ecx: rdpid, ..entry(leaf::STRUCTURED_FEATURES, KVM_CPUID_FLAG_SIGNIFCANT_INDEX) },
    ]
}
