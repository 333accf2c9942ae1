//! The guest's CPUID: the entries user space set, their index, what they amount to, and the last answers.

use exitless_kvm_abi::kvm_cpuid_entry2;
use exitless_policy::GuestCaps;
use exitless_policy::cpuid::{CpuidIndex, Dynamic, GuestCpuid, MAX_ENTRIES};
use exitless_pv_abi::{
    EXITLESS_CPUID_FEATURES, EXITLESS_CPUID_SIGNATURE, EXITLESS_SIGNATURE, EXITLESS_VERSION,
    KVM_CPUID_FEATURES, feature,
};
use exitless_x86::cpuid::CpuidResult;

/// Leaves that are the module's, not user space's.
const OWN: core::ops::RangeInclusive<u32> = EXITLESS_CPUID_SIGNATURE..=EXITLESS_CPUID_FEATURES;

/// Answers kept.
const MEMOS: usize = 16;

/// An answer that follows no register. A guest asks for few leaves, but often: it serialises with CPUID.
#[derive(Clone, Copy, Debug, Default, bytemuck::Zeroable)]
struct Memo {
    leaf: u32,
    sub: u32,
    answer: CpuidResult,
    valid: bool,
}

/// Leaves that are asked for together have places of their own: basic, hypervisor and extended ones.
fn place(leaf: u32) -> usize {
    (leaf ^ leaf >> 28) as usize % MEMOS
}

/// See the file's head. All-zero: nothing set yet.
#[derive(bytemuck::Zeroable)]
#[repr(C)]
pub struct CpuidState {
    memos: [Memo; MEMOS],
    entries: [kvm_cpuid_entry2; MAX_ENTRIES],
    index: CpuidIndex,
    caps: GuestCaps,
    len: usize,
    /// `exitless_feature` bits of our own leaves; 0: they are not there.
    own: u32,
    pad: u32,
}

impl CpuidState {
    /// Room for new entries; [`crate::Vcpu::commit_cpuid`] follows.
    pub fn entries_mut(&mut self) -> &mut [kvm_cpuid_entry2; MAX_ENTRIES] {
        &mut self.entries
    }

    /// The first `len` entries count from now on; `host` bounds what reaches registers. A guest that `halts` without an exit is
    /// not shown PV_UNHALT: nobody would hear that it waits to be kicked.
    pub(crate) fn commit(&mut self, len: usize, host: &GuestCaps, halts: bool) {
        self.memos = [Memo::default(); MEMOS];
        self.len = len.min(MAX_ENTRIES);
        let used = self.entries.get_mut(..self.len).unwrap_or(&mut []);
        if halts && let Some(e) = used.iter_mut().find(|e| e.function == KVM_CPUID_FEATURES) {
            e.eax &= !feature::PV_UNHALT;
        }
        self.index.build(used);
        self.caps.compute(GuestCpuid::new(used, &self.index), Some(host));
        self.own = 0;
    }

    /// Our own leaves show these features, or are not there (0). Where user space has one of them itself, they are its.
    pub(crate) fn show_own(&mut self, features: u32) {
        let taken = self.entries().iter().any(|e| OWN.contains(&e.function));
        let own = if taken { 0 } else { features };
        if own != self.own {
            self.memos = [Memo::default(); MEMOS];
            self.own = own;
        }
    }

    /// The features that our own leaves show.
    pub(crate) fn own(&self) -> u32 {
        self.own
    }

    fn own_leaf(&self, leaf: u32) -> CpuidResult {
        let [ebx, ecx, edx] = EXITLESS_SIGNATURE;
        match leaf {
            EXITLESS_CPUID_SIGNATURE => CpuidResult { eax: EXITLESS_CPUID_FEATURES, ebx, ecx, edx },
            _ => CpuidResult { eax: self.own, ebx: EXITLESS_VERSION, ecx: 0, edx: 0 },
        }
    }

    /// The entries in use, in the order user space gave them.
    pub fn entries(&self) -> &[kvm_cpuid_entry2] {
        self.entries.get(..self.len).unwrap_or(&[])
    }

    /// User space gave an entry for it.
    pub(crate) fn has(&self, leaf: u32, sub: u32) -> bool {
        GuestCpuid::new(self.entries(), &self.index).find(leaf, sub).is_some()
    }

    /// What the guest can do.
    pub fn caps(&self) -> &GuestCaps {
        &self.caps
    }

    /// What CPUID answers, if it has answered that before and no register matters.
    #[inline]
    pub fn remembered(&self, leaf: u32, sub: u32) -> Option<CpuidResult> {
        let m = self.memos.get(place(leaf))?;
        (m.leaf == leaf && m.sub == sub && m.valid).then_some(m.answer)
    }

    /// What CPUID answers.
    pub fn execute(&mut self, leaf: u32, sub: u32, now: &Dynamic) -> CpuidResult {
        if self.own != 0 && OWN.contains(&leaf) {
            return self.own_leaf(leaf);
        }
        let guest = GuestCpuid::new(self.entries.get(..self.len).unwrap_or(&[]), &self.index);
        let answer = guest.answer(leaf, sub, now);
        if !guest.follows_registers(leaf, sub)
            && let Some(m) = self.memos.get_mut(place(leaf))
        {
            *m = Memo { leaf, sub, answer, valid: true };
        }
        answer
    }
}
