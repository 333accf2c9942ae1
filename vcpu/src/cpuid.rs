//! The guest's CPUID: the entries user space set, their index and what they amount to.

use exitless_kvm_abi::kvm_cpuid_entry2;
use exitless_policy::GuestCaps;
use exitless_policy::cpuid::{CpuidIndex, Dynamic, GuestCpuid, MAX_ENTRIES};
use exitless_x86::cpuid::CpuidResult;

/// See the file's head. All-zero: nothing set yet.
#[derive(bytemuck::Zeroable)]
#[repr(C)]
pub struct CpuidState {
    entries: [kvm_cpuid_entry2; MAX_ENTRIES],
    index: CpuidIndex,
    caps: GuestCaps,
    len: usize,
}

impl CpuidState {
    /// Room for new entries; [`CpuidState::commit`] follows.
    pub fn entries_mut(&mut self) -> &mut [kvm_cpuid_entry2; MAX_ENTRIES] {
        &mut self.entries
    }

    /// The first `len` entries count from now on; `host` bounds what reaches registers.
    pub fn commit(&mut self, len: usize, host: &GuestCaps) {
        self.len = len.min(MAX_ENTRIES);
        let used = self.entries.get(..self.len).unwrap_or(&[]);
        self.index.build(used);
        self.caps.compute(GuestCpuid::new(used, &self.index), Some(host));
    }

    /// The entries in use, in the order user space gave them.
    pub fn entries(&self) -> &[kvm_cpuid_entry2] {
        self.entries.get(..self.len).unwrap_or(&[])
    }

    /// What the guest can do.
    pub fn caps(&self) -> &GuestCaps {
        &self.caps
    }

    /// What CPUID answers.
    pub fn execute(&self, leaf: u32, sub: u32, cr4: u64, xcr0: u64, apic_enabled: bool) -> CpuidResult {
        let now = Dynamic { cr4, xcr0, apic_enabled };
        GuestCpuid::new(self.entries(), &self.index).answer(leaf, sub, &now)
    }
}
