//! KVM_GET_NESTED_STATE and KVM_SET_NESTED_STATE of vCPUs that have neither VMX nor SVM: there is one state, which comes and goes
//! with snapshots although nothing is nested (Cloud Hypervisor does not ask for the capability before).

use crate::Invalid;
use bytemuck::Zeroable;
use exitless_kvm_abi::{
    KVM_STATE_NESTED_FORMAT_SVM, KVM_STATE_NESTED_FORMAT_VMX, KVM_STATE_NESTED_GIF_SET, kvm_nested_state,
};

/// Whose format the state has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `hdr`: addresses of the VMXON region and of the current VMCS, flags of SMM (16 bits), the VMX flags (bits 63:32), the
    /// preemption timer's deadline.
    Vmx,
    /// `hdr`: the VMCB's address, which only guest mode has.
    Svm,
}

/// The header's size, which is the whole state's: what KVM_CAP_NESTED_STATE answers.
pub const SIZE: u32 = size_of::<kvm_nested_state>() as u32;

/// The address of a region that is not there.
const NOWHERE: u64 = u64::MAX;
/// VMX flag: the preemption timer's deadline is valid. Without guest mode it means nothing.
const DEADLINE: u64 = 1 << 32;

/// What a vCPU that never left its first level has.
pub fn empty(format: Format) -> kvm_nested_state {
    let mut s = kvm_nested_state { size: SIZE, ..kvm_nested_state::zeroed() };
    match format {
        Format::Vmx => {
            s.format = KVM_STATE_NESTED_FORMAT_VMX;
            let [vmxon, vmcs, ..] = &mut s.hdr;
            (*vmxon, *vmcs) = (NOWHERE, NOWHERE);
        }
        Format::Svm => {
            s.format = KVM_STATE_NESTED_FORMAT_SVM;
            // Without EFER.SVME the global interrupt flag is 1.
            s.flags = KVM_STATE_NESTED_GIF_SET;
        }
    }
    s
}

/// Whether `s` may be restored: only if it says what [`empty`] says.
///
/// # Errors
/// [`Invalid`] for a state that needs VMX or SVM, of the other vendor, or with bits that mean nothing.
pub fn check(format: Format, s: &kvm_nested_state) -> Result<(), Invalid> {
    let want = empty(format);
    let head = s.size >= SIZE && (s.flags, s.format) == (want.flags, want.format);
    let [vmxon, vmcs, smm_and_flags, ..] = s.hdr;
    let body = match format {
        Format::Vmx => {
            (vmxon, vmcs) == (NOWHERE, NOWHERE)
                && smm_and_flags & 0xffff == 0
                && smm_and_flags >> 32 << 32 & !DEADLINE == 0
        }
        Format::Svm => true,
    };
    if head && body { Ok(()) } else { Err(Invalid) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use exitless_kvm_abi::{KVM_STATE_NESTED_EVMCS, KVM_STATE_NESTED_GUEST_MODE};

    /// What was read is accepted, by its own vendor only; a buffer larger than the header is no other state.
    #[test]
    fn the_empty_state_comes_back() {
        for (format, other) in [(Format::Vmx, Format::Svm), (Format::Svm, Format::Vmx)] {
            let s = empty(format);
            assert_eq!((s.size, check(format, &s)), (128, Ok(())));
            assert_eq!(check(format, &kvm_nested_state { size: 4224, ..s }), Ok(()));
            assert_eq!(check(other, &s), Err(Invalid));
            assert_eq!(check(format, &kvm_nested_state { size: 127, ..s }), Err(Invalid));
        }
    }

    /// A state that something nested left behind would be lost: it is refused.
    #[test]
    fn states_with_content_are_refused() {
        for flags in [KVM_STATE_NESTED_GUEST_MODE, KVM_STATE_NESTED_EVMCS, 0x1000] {
            for format in [Format::Vmx, Format::Svm] {
                let s = empty(format);
                assert_eq!(check(format, &kvm_nested_state { flags: s.flags | flags, ..s }), Err(Invalid));
            }
        }
        let svm = empty(Format::Svm);
        assert_eq!(check(Format::Svm, &kvm_nested_state { flags: 0, ..svm }), Err(Invalid), "GIF clear");
        let vmx = |i: usize, word: u64| {
            let mut s = empty(Format::Vmx);
            s.hdr[i] = word;
            check(Format::Vmx, &s)
        };
        assert_eq!(vmx(0, 0x1000), Err(Invalid), "VMXON");
        assert_eq!(vmx(1, 0x1000), Err(Invalid), "a VMCS without VMXON");
        assert_eq!(vmx(2, 1), Err(Invalid), "guest mode in SMM");
        assert_eq!(vmx(2, 2 << 32), Err(Invalid), "unknown flag");
        assert_eq!((vmx(2, DEADLINE), vmx(3, 77)), (Ok(()), Ok(())), "a deadline of nothing");
    }
}
